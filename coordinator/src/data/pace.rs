//! After how long a client that was turned away may come again.
//!
//! Pure: every instant is passed in. A place in the queue is free when a request begins, so what counts is how quickly they do. Of
//! those who are turned away each is sent behind the ones before: told the same, all would come back at once and find one
//! place.

use std::time::{Duration, Instant};

/// Nobody is sent away for longer: so far no rate can be told.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Nor for shorter, which is what HTTP can say.
const RETRY_MIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Pace {
    /// From one beginning to the next, of late.
    interval: Duration,
    last: Option<Instant>,
    /// Who is to come again.
    turned_away: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { interval: Duration::ZERO, last: None, turned_away: 0 }
    }
}

impl Pace {
    /// A request has begun, and so many wait still.
    pub fn handle_begun(&mut self, waiting: usize, now: Instant) {
        if let Some(last) = self.last {
            let elapsed = now.duration_since(last).min(RETRY_MAX);
            self.interval = (self.interval * 7 + elapsed) / 8;
        }
        self.last = Some(now);
        self.turned_away = if waiting == 0 { 0 } else { self.turned_away.saturating_sub(1) };
    }

    /// A client is turned away. Returns when it should come again, in whole seconds.
    pub fn handle_turned_away(&mut self, now: Instant) -> Duration {
        self.turned_away = self.turned_away.saturating_add(1);
        // If nobody has begun for longer than that, it has become slower.
        let silence = self.last.map_or(Duration::ZERO, |last| now.duration_since(last));
        let after = self.interval.max(silence).saturating_mul(self.turned_away);
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        Duration::from_secs(seconds).clamp(RETRY_MIN, RETRY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Ten begin in a second: the eleventh who is turned away has to wait for more than one.
    #[test]
    fn those_who_are_turned_away_come_back_one_after_the_other() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert_eq!(pace.handle_turned_away(now), RETRY_MIN, "nothing is known");
        for _ in 0..100 {
            now += 100 * MS;
            pace.handle_begun(5, now);
        }
        let told: Vec<u64> = (0..25).map(|_| pace.handle_turned_away(now).as_secs()).collect();
        assert_eq!(told, [[1; 10].as_slice(), &[2; 10], &[3; 5]].concat());
        for _ in 0..20 {
            now += 100 * MS;
            pace.handle_begun(5, now);
        }
        assert_eq!(pace.handle_turned_away(now), RETRY_MIN, "twenty places were free meanwhile");
        pace.handle_begun(0, now + 100 * MS);
        assert_eq!(pace.turned_away, 0, "there is room for all");
    }

    /// Where nothing begins any more the wait grows, up to what is ever told.
    #[test]
    fn a_queue_that_stands_still_sends_further_away() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.handle_begun(1, now);
        assert_eq!(pace.handle_turned_away(now + 5_500 * MS), Duration::from_secs(6));
        assert_eq!(pace.handle_turned_away(now + 5_500 * MS), Duration::from_secs(11));
        assert_eq!(pace.handle_turned_away(now + 500_000 * MS), RETRY_MAX);
    }
}
