//! Which biases answers may be computed under: the one that they begin with now, and those of late, for streams that were cut.
//!
//! Pure, and bounded. A request has the bias that it began with from its first row to its last and keeps it alive itself; here is
//! what whoever comes back may still ask for.

use std::collections::VecDeque;
use std::sync::Arc;

use model::bias::Bias;

/// So many are known. At one every ten seconds they are those of ten minutes, which a request has by default.
pub const KNOWN_MAX: usize = 64;

/// A bias, and its number.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// Counted from 1, with those of earlier lives of the coordinator where it remembers them.
    pub number: u64,
    /// The bias.
    pub bias: Arc<Bias>,
}

/// Those that are known, the newest last.
#[derive(Debug, Default)]
pub struct Versions {
    known: VecDeque<Version>,
    count: u64,
    /// The last is what answers begin with.
    is_used: bool,
}

impl Versions {
    /// Those of earlier lives; answers begin with none of them. `count`: the highest number of all there ever were.
    pub fn new(mut stored: Vec<Version>, count: u64) -> Self {
        stored.sort_by_key(|version| version.number);
        let mut known = VecDeque::from(stored);
        known.drain(..known.len().saturating_sub(KNOWN_MAX));
        let count = known.back().map_or(count, |last| count.max(last.number));
        Self { known, count, is_used: false }
    }

    /// Answers begin with the newest one from now on, if there is any and `may` says so.
    pub fn take_up(&mut self, may: impl FnOnce(&Bias) -> bool) {
        self.is_used = self.known.back().is_some_and(|newest| may(&newest.bias));
    }

    /// Answers begin with this one from now on. Returns its number, and those that are known no more.
    pub fn add(&mut self, bias: Arc<Bias>) -> (u64, Vec<u64>) {
        let digest = bias.digest();
        let mut gone: Vec<u64> = Vec::new();
        self.known.retain(|version| {
            let is_new = version.bias.digest() != digest;
            gone.extend((!is_new).then_some(version.number));
            is_new
        });
        self.count += 1;
        self.is_used = true;
        self.known.push_back(Version { number: self.count, bias });
        let surplus = self.known.len().saturating_sub(KNOWN_MAX);
        gone.extend(self.known.drain(..surplus).map(|version| version.number));
        (self.count, gone)
    }

    /// What answers begin with now; nothing, as long as the model's own choice is good enough.
    pub fn current(&self) -> Option<&Version> {
        self.known.back().filter(|_| self.is_used)
    }

    /// The newest whose digest begins so.
    pub fn find(&self, beginning: [u8; 4]) -> Option<&Version> {
        self.known.iter().rev().find(|version| version.bias.digest().0.as_bytes().starts_with(&beginning))
    }

    /// How many are known.
    pub fn count(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bias(value: f32) -> Arc<Bias> {
        Arc::new(Bias::new([(1, vec![value, -value])].into()).expect("finite"))
    }

    fn beginning(bias: &Bias) -> [u8; 4] {
        *bias.digest().0.as_bytes().first_chunk().expect("thirty-two bytes")
    }

    #[test]
    fn the_last_ones_are_known_and_the_newest_is_used() {
        let mut versions = Versions::default();
        assert_eq!((versions.current(), versions.count()), (None, 0));
        let all: Vec<Arc<Bias>> = (1..=70_u8).map(|value| bias(value.into())).collect();
        for (number, bias) in (1..).zip(&all) {
            let gone = if number > 64 { vec![number - 64] } else { Vec::new() };
            assert_eq!(versions.add(Arc::clone(bias)), (number, gone));
            assert_eq!(versions.current().map(|current| &current.bias), Some(bias));
        }
        assert_eq!(versions.count(), KNOWN_MAX);
        for (at, bias) in all.iter().enumerate() {
            let found = versions.find(beginning(bias)).map(|found| found.number);
            assert_eq!(found, (at >= 6).then_some(at as u64 + 1));
        }
        // What comes again is the same, and has the newest number.
        assert_eq!(versions.add(Arc::clone(&all[9])), (71, vec![10]));
        assert_eq!(versions.find(beginning(&all[9])).map(|found| found.number), Some(71));
        assert_eq!(versions.count(), KNOWN_MAX);
    }

    /// Without `--balance bias` nothing begins with a bias, and what began with one is gone on with.
    #[test]
    fn those_of_an_earlier_life_are_known() {
        let stored = || vec![Version { number: 7, bias: bias(2.0) }, Version { number: 5, bias: bias(1.0) }];
        for is_used in [true, false] {
            let mut versions = Versions::new(stored(), 9);
            versions.take_up(|newest| *newest == *bias(2.0) && is_used);
            assert_eq!(versions.current().map(|current| current.number), is_used.then_some(7));
            assert_eq!(versions.find(beginning(&bias(1.0))).map(|found| found.number), Some(5));
            assert_eq!(versions.add(bias(3.0)), (10, Vec::new()));
        }
    }
}
