//! Virtual time, and what happens when.
//!
//! Pure. Of events of one instant a seed says which comes first, so that no order is taken for granted that nobody promises.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::random::Random;

/// Nanoseconds of a microsecond.
pub(crate) const US: u64 = 1_000;
/// Of a millisecond.
pub(crate) const MS: u64 = 1_000_000;

#[derive(Debug)]
struct Timed<E> {
    at: u64,
    tie: u64,
    event: E,
}

impl<E> PartialEq for Timed<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Timed<E> {}

impl<E> PartialOrd for Timed<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Timed<E> {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// All that is going to happen.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    /// Stands for nanosecond 0: cores want instants, and only their differences count.
    origin: Instant,
    nanos: u64,
    ties: Random,
    events: BinaryHeap<Timed<E>>,
    /// Events that have happened.
    pub(crate) passed: u64,
}

impl<E> Clock<E> {
    pub(crate) fn new(seed: u64) -> Self {
        let (events, ties) = (BinaryHeap::new(), Random::new(seed, 3));
        Self { origin: Instant::now(), nanos: 0, ties, events, passed: 0 }
    }

    pub(crate) fn nanos(&self) -> u64 {
        self.nanos
    }

    pub(crate) fn now(&self) -> Instant {
        self.instant(self.nanos)
    }

    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }

    /// The nanosecond of an instant; one that is past is now.
    pub(crate) fn nanos_of(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.origin).as_nanos() as u64).max(self.nanos)
    }

    /// Something happens in so many nanoseconds.
    pub(crate) fn after(&mut self, nanos: u64, event: E) {
        self.at(self.nanos + nanos, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: E) {
        let tie = self.ties.next();
        self.events.push(Timed { at, tie, event });
    }

    /// The next event; time is now its.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Timed { at, event, .. } = self.events.pop()?;
        assert!(at >= self.nanos, "time never goes back");
        self.nanos = at;
        self.passed += 1;
        Some(event)
    }
}
