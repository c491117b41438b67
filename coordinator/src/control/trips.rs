//! How long a message takes to a node and back.
//!
//! Pure. What is shown is the middle one of the last few: a node that was frozen for a while, or a thread of ours that had no
//! core, makes one trip long and says nothing of the way.

use std::time::Duration;

/// Trips that the middle one is taken of; an odd number.
const KEPT: usize = 9;

/// The trips of one link.
#[derive(Debug, Clone, Default)]
pub struct Trips {
    last: [Duration; KEPT],
    count: u64,
    sum: Duration,
}

impl Trips {
    /// A message came back after so long.
    pub fn handle_trip(&mut self, took: Duration) {
        self.last[(self.count % KEPT as u64) as usize] = took;
        self.count += 1;
        self.sum += took;
    }

    /// The middle one of the last nine, of fewer the longer of the two in the middle; nothing before the first.
    pub fn middle(&self) -> Option<Duration> {
        let known = usize::try_from(self.count).unwrap_or(KEPT).min(KEPT);
        let mut last = self.last;
        let last = &mut last[..known];
        last.sort_unstable();
        last.get(known / 2).copied()
    }

    /// Trips since the link opened.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What they took together.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// One that took a second among nine of some microseconds is no second's way; when the way itself becomes longer it is seen
    /// after five.
    #[test]
    fn one_long_trip_is_not_the_way() {
        let mut trips = Trips::default();
        assert_eq!((trips.middle(), trips.count()), (None, 0));
        trips.handle_trip(70 * US);
        assert_eq!(trips.middle(), Some(70 * US));
        trips.handle_trip(90 * US);
        assert_eq!(trips.middle(), Some(90 * US), "of two the longer");
        trips.handle_trip(1_000_000 * US);
        assert_eq!(trips.middle(), Some(90 * US));
        for trip in 80..89 {
            trips.handle_trip(trip * US);
            assert!(trips.middle() < Some(91 * US));
        }
        assert_eq!(trips.middle(), Some(84 * US), "of 80 to 88");
        for _ in 0..4 {
            trips.handle_trip(500 * US);
            assert!(trips.middle() < Some(90 * US));
        }
        trips.handle_trip(500 * US);
        assert_eq!(trips.middle(), Some(500 * US));
        assert_eq!(trips.count(), 17);
        assert_eq!(trips.sum(), (70 + 90 + 1_000_000 + (80..89).sum::<u32>() + 5 * 500) * US);
    }
}
