//! Contestants run in short windows, in turn, and are compared window with window.
//!
//! On a shared machine speed moves within seconds. So a round gives each contestant one window, a ratio
//! is that of two windows of one round, and of all rounds only the quietest quarter counts: those with the
//! smallest product of both times, so that neither of the two is favoured. The ratio shown is the median
//! of these.
//!
//! Pure but for [`measure`], which reads the clock.

use std::time::{Duration, Instant};

use rustix::thread::Pid;

use crate::Failure;

/// Long against a clock's noise and a first wake-up, short against a neighbour's doings.
const WINDOW_MAX: Duration = Duration::from_millis(20);
/// Of so many rounds, one counts.
const QUIET_SHARE: usize = 4;
/// However little time is given.
const ROUNDS_MIN: usize = 5;
/// Round trips at the head of a window that are not counted: caches and sleeping cores.
const WARM: usize = 8;
/// Most messages of one window.
const MESSAGES_MAX: usize = 1 << 18;

/// What can be measured.
pub(super) trait Contestant {
    /// What it is called in the table.
    fn name(&self) -> &'static str;

    /// The thread of the other end; `None` where both ends are tasks of one thread.
    fn peer_thread(&self) -> Option<Pid>;

    /// Whether both ends look for news instead of sleeping.
    fn spins(&self) -> bool {
        false
    }

    /// Sends `count` messages of `bytes`, each only when the one before has come back whole. How long
    /// each took.
    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure>;

    /// Sends `count` messages of `bytes`, and waits for one word of the peer after the last has arrived.
    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure>;
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// There and back, one message at a time.
    RoundTrip { bytes: usize },
    /// One after another, one way.
    OneWay { bytes: usize },
}

/// One row of 7,168 BF16 values, which is what a token sends to an expert.
pub(super) const ROW_BYTES: usize = 7168 * 2;

impl Measure {
    pub(super) const ALL: [Self; 5] = [
        Self::RoundTrip { bytes: 64 },
        Self::RoundTrip { bytes: ROW_BYTES },
        Self::RoundTrip { bytes: 1 << 20 },
        Self::OneWay { bytes: ROW_BYTES },
        Self::OneWay { bytes: 1 << 20 },
    ];

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::RoundTrip { bytes } | Self::OneWay { bytes } => bytes,
        }
    }

    fn window(self, contestant: &mut dyn Contestant, count: usize) -> Result<Window, Failure> {
        match self {
            Self::RoundTrip { bytes } => {
                let mut trips: Vec<u64> = contestant
                    .round_trips(bytes, WARM + count)?
                    .split_off(WARM)
                    .iter()
                    .map(|trip| trip.as_nanos() as u64)
                    .collect();
                trips.sort_unstable();
                Ok(Window { nanos: quantile(&trips, 0.5), trips })
            }
            Self::OneWay { bytes } => {
                let time = contestant.one_way(bytes, count)?;
                Ok(Window { nanos: time.as_nanos() as f64 / count as f64, trips: Vec::new() })
            }
        }
    }
}

/// What came of one window.
#[derive(Debug, Clone)]
struct Window {
    /// Of a message: the median of the round trips, or the mean of those sent one way.
    nanos: f64,
    /// Sorted.
    trips: Vec<u64>,
}

/// The windows of all contestants under one measure.
#[derive(Debug)]
pub(super) struct Rounds {
    /// By contestant, then by round.
    windows: Vec<Vec<Window>>,
}

/// What one contestant did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    /// Of a message: the median of round trips, or the mean of those sent one way.
    pub(super) nanos: f64,
    /// Of round trips only.
    pub(super) nanos_p99: Option<f64>,
    /// Windows that it was taken from.
    pub(super) windows: usize,
}

/// Runs all contestants in turn for so many seconds each.
pub(super) fn measure(
    contestants: &mut [Box<dyn Contestant>],
    measure: Measure,
    seconds: f64,
) -> Result<Rounds, Failure> {
    let window = WINDOW_MAX.min(Duration::from_secs_f64(seconds / ROUNDS_MIN as f64));
    let counts: Vec<usize> = contestants
        .iter_mut()
        .map(|contestant| messages_for(contestant.as_mut(), measure, window))
        .collect::<Result<_, _>>()?;
    let mut windows = vec![Vec::new(); contestants.len()];
    let begin = Instant::now();
    let mut round = 0;
    while round < ROUNDS_MIN || begin.elapsed().as_secs_f64() < seconds * contestants.len() as f64 {
        // Whoever comes first in a round finds the machine as the last of the round before left it.
        for turn in 0..contestants.len() {
            let at = (round + turn) % contestants.len();
            windows[at].push(measure.window(contestants[at].as_mut(), counts[at])?);
        }
        round += 1;
    }
    Ok(Rounds { windows })
}

/// How many messages fill a window.
fn messages_for(
    contestant: &mut dyn Contestant,
    measure: Measure,
    window: Duration,
) -> Result<usize, Failure> {
    let mut count = 2;
    loop {
        let began = Instant::now();
        measure.window(contestant, count)?;
        let took = began.elapsed();
        if took * 4 >= window || count >= MESSAGES_MAX {
            let fit = count as f64 * window.as_secs_f64() / took.as_secs_f64();
            return Ok((fit as usize).clamp(2, MESSAGES_MAX));
        }
        count *= 4;
    }
}

impl Rounds {
    /// What one contestant did in the quiet part of its windows.
    pub(super) fn figure(&self, contestant: usize) -> Figure {
        let windows = &self.windows[contestant];
        let quiet = quiet_part(windows.iter().map(|window| window.nanos).collect());
        let nanos = median(quiet.iter().map(|at| windows[*at].nanos).collect());
        let mut trips: Vec<u64> = quiet.iter().flat_map(|at| &windows[*at].trips).copied().collect();
        trips.sort_unstable();
        let nanos_p99 = (!trips.is_empty()).then(|| quantile(&trips, 0.99));
        Figure { nanos, nanos_p99, windows: quiet.len() }
    }

    /// `one` over the `other`, window by window: of their times there and back, of their bytes per second one
    /// way.
    pub(super) fn ratio(&self, measure: Measure, one: usize, other: usize) -> f64 {
        let (one, other) = match measure {
            Measure::RoundTrip { .. } => (one, other),
            // Twice the time is half of the bytes.
            Measure::OneWay { .. } => (other, one),
        };
        let pairs: Vec<(f64, f64)> =
            self.windows[one].iter().zip(&self.windows[other]).map(|(a, b)| (a.nanos, b.nanos)).collect();
        let quiet = quiet_part(pairs.iter().map(|(a, b)| a * b).collect());
        median(quiet.iter().map(|at| pairs[*at].0 / pairs[*at].1).collect())
    }
}

/// Where the smaller [`QUIET_SHARE`]th of these is; one at least.
fn quiet_part(values: Vec<f64>) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    places.truncate(values.len().div_ceil(QUIET_SHARE));
    places
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of sorted values: the smallest that at least this share of them does not exceed.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1] as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(of: &[&[f64]]) -> Rounds {
        let window = |nanos: &f64| Window { nanos: *nanos, trips: vec![*nanos as u64; 2] };
        Rounds { windows: of.iter().map(|windows| windows.iter().map(window).collect()).collect() }
    }

    /// A neighbour who slows a round, or only one window of it, does not change the ratio.
    #[test]
    fn noisy_rounds_do_not_count() {
        let quiet = rounds(&[&[20.0, 20.0, 20.0, 20.0, 20.0, 20.0], &[10.0, 10.0, 10.0, 10.0, 10.0, 10.0]]);
        let noisy = rounds(&[&[20.0, 70.0, 20.0, 20.0, 90.0, 20.0], &[10.0, 30.0, 10.0, 80.0, 10.0, 10.0]]);
        for rounds in [quiet, noisy] {
            let (there_and_back, one_way) = (Measure::RoundTrip { bytes: 1 }, Measure::OneWay { bytes: 1 });
            assert_eq!(rounds.ratio(there_and_back, 0, 1), 2.0, "it took twice the time");
            assert_eq!(rounds.ratio(one_way, 0, 1), 0.5, "it moved half of the bytes");
            assert_eq!(rounds.figure(1), Figure { nanos: 10.0, nanos_p99: Some(10.0), windows: 2 });
        }
    }

    /// A slow tail of one contestant is its own, and stays in its 99th percentile.
    #[test]
    fn quantiles_are_ranks() {
        let trips: Vec<u64> = (1..=200).collect();
        assert_eq!(
            [quantile(&trips, 0.5), quantile(&trips, 0.99), quantile(&trips, 1.0)],
            [100.0, 198.0, 200.0]
        );
        assert_eq!(quantile(&[7], 0.5), 7.0);
    }

    /// Takes a microsecond for each message, and counts what it was asked for.
    struct Clockwork(usize);

    impl Contestant for Clockwork {
        fn name(&self) -> &'static str {
            "clockwork"
        }

        fn peer_thread(&self) -> Option<Pid> {
            None
        }

        fn round_trips(&mut self, _: usize, count: usize) -> Result<Vec<Duration>, Failure> {
            self.0 += 1;
            Ok((0..count).map(|trip| Duration::from_nanos(if trip < WARM { 9_000 } else { 1_000 })).collect())
        }

        fn one_way(&mut self, _: usize, count: usize) -> Result<Duration, Failure> {
            self.0 += 1;
            Ok(Duration::from_micros(count as u64))
        }
    }

    /// The first round trips of a window are not counted, and everybody has as many windows.
    #[test]
    fn all_have_their_turn_and_are_warm() {
        for what in Measure::ALL {
            let mut contestants: Vec<Box<dyn Contestant>> =
                vec![Box::new(Clockwork(0)), Box::new(Clockwork(0))];
            let rounds = measure(&mut contestants, what, 1e-3).expect("it cannot fail");
            assert!(rounds.windows[0].len() >= ROUNDS_MIN);
            assert_eq!(rounds.windows[0].len(), rounds.windows[1].len());
            assert!(rounds.windows.iter().flatten().all(|window| window.nanos == 1_000.0), "{what:?}");
            assert_eq!(
                rounds.figure(0).nanos_p99,
                matches!(what, Measure::RoundTrip { .. }).then_some(1_000.0)
            );
        }
    }
}
