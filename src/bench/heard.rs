//! When the tokens of an answer came.

use std::time::{Duration, Instant};

/// What a request brought: when it was asked, and when each token came.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) asked: Instant,
    pub(super) at: Vec<Instant>,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self { asked: Instant::now(), at: Vec::new() }
    }

    /// Until the first token.
    pub(super) fn first(&self) -> Option<Duration> {
        self.at.first().map(|first| *first - self.asked)
    }

    /// From one token to the next, on average.
    pub(super) fn each(&self) -> Option<Duration> {
        match self.at[..] {
            [first, .., last] => Some((last - first) / (self.at.len() - 1) as u32),
            _ => None,
        }
    }

    /// Tokens that were computed between two times: each was in the making since the one before it came.
    pub(super) fn between(&self, start: Instant, end: Instant) -> f64 {
        let share = |made: &[Instant]| {
            let inside = made[1].min(end).saturating_duration_since(made[0].max(start));
            let whole = made[1] - made[0];
            match whole.is_zero() {
                // Two that came at once were made at once.
                true => f64::from(u8::from(made[1] > start && made[1] <= end)),
                false => inside.div_duration_f64(whole),
            }
        };
        self.at.windows(2).map(share).sum()
    }
}

/// While all of them run: from the first token of the last to begin, until the first has ended.
pub(super) fn all_run(heard: &[Heard]) -> Option<(Instant, Instant)> {
    let start = heard.iter().filter_map(|heard| heard.at.first()).max()?;
    let end = heard.iter().filter_map(|heard| heard.at.last()).min()?;
    (start < end).then_some((*start, *end))
}

/// The value below which so much of all lies; they are put in order.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => values[((count as f64 * part).ceil() as usize).clamp(1, count) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(start: Instant, at_ms: &[u64]) -> Heard {
        Heard { asked: start, at: at_ms.iter().map(|ms| start + Duration::from_millis(*ms)).collect() }
    }

    /// Two answers in lockstep, one of which began a step earlier: four steps of both.
    #[test]
    fn tokens_are_counted_while_all_run() {
        let start = Instant::now();
        let both = [heard(start, &[10, 20, 30, 40, 50, 60]), heard(start, &[20, 30, 40, 50, 60, 70])];
        let (from, to) = all_run(&both).expect("they run together");
        assert_eq!((from, to), (start + Duration::from_millis(20), start + Duration::from_millis(60)));
        let tokens: f64 = both.iter().map(|heard| heard.between(from, to)).sum();
        assert!((tokens - 8.0).abs() < 1e-9, "{tokens}");
        assert_eq!(both[0].first(), Some(Duration::from_millis(10)));
        assert_eq!(both[0].each(), Some(Duration::from_millis(10)));
        // A part of a step counts as a part of a token.
        let half = both[0].between(start + Duration::from_millis(25), start + Duration::from_millis(30));
        assert!((half - 0.5).abs() < 1e-9, "{half}");
        assert!(all_run(&[heard(start, &[1, 2]), heard(start, &[3, 4])]).is_none());
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut values = [4.0, 1.0, 3.0, 2.0];
        let found = [0.0, 0.25, 0.5, 0.51, 0.99, 1.0].map(|part| quantile(&mut values, part));
        assert_eq!(found, [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        assert!(quantile(&mut [], 0.5).is_nan());
    }
}
