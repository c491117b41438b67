//! How long sequences that are stranded keep what they have, though somebody who has not begun wants it.
//!
//! Pure: every instant is passed in. Most experts that have no holder have one again within a second or two: a spare loads it, or its
//! node comes back. Who gives way for that is computed again and waits for a place besides, and most of those who would begin instead
//! need the same expert. So those who wait to begin wait a moment longer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ids::SequenceId;

/// Longer than a spare takes to load an expert; a small part of what a request has.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug, Default)]
pub struct Patience {
    /// In the order of time.
    ends: VecDeque<(Instant, SequenceId)>,
}

impl Patience {
    /// A sequence is stranded.
    pub fn handle_stranded(&mut self, sequence: SequenceId, now: Instant) {
        self.ends.push_back((now + PATIENCE, sequence));
    }

    /// It is so no more, or runs no more. Harmless if it was not.
    pub fn handle_over(&mut self, sequence: SequenceId) {
        self.ends.retain(|(_, other)| *other != sequence);
    }

    /// When [`Self::poll_long`] has a sequence next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// A sequence that has been stranded for so long.
    pub fn poll_long(&mut self, now: Instant) -> Option<SequenceId> {
        self.poll_timeout().filter(|end| *end <= now)?;
        self.ends.pop_front().map(|(_, sequence)| sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each once, and who went on meanwhile begins anew.
    #[test]
    fn who_goes_on_in_time_is_not_named() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        let second = Duration::from_secs(1);
        (0..3).for_each(|sequence| patience.handle_stranded(SequenceId(sequence), now));
        patience.handle_over(SequenceId(1));
        patience.handle_stranded(SequenceId(1), now + second);
        assert_eq!((patience.poll_timeout(), patience.poll_long(now + second)), (Some(now + PATIENCE), None));
        let mut named = |at| std::iter::from_fn(|| patience.poll_long(at)).map(|of| of.0).collect::<Vec<_>>();
        assert_eq!(named(now + PATIENCE), [0, 2]);
        assert_eq!(named(now + PATIENCE + second), [1]);
        assert_eq!(patience.poll_timeout(), None);
    }
}
