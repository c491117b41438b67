//! Shards: one expert cut into parts that different devices hold.
//!
//! An expert of inner width w is w columns of gate and up and w rows of down. A shard has a contiguous run of these, so it
//! computes its part of the inner row from the whole input (column split), and from that a partial output of full width
//! (row split). Nothing has to be exchanged between the two.
//!
//! The order is part of the numeric identity: each partial output is one sum over the shard's own run, ascending, in f32
//! and not rounded; shard 0's has the bias; they are added in order of shards; the sum is rounded as the output of an
//! expert is. Runs are whole units of sixteen, the width of the kernels' panels, as equal as that allows; only the last
//! one may end with a part of a unit. Pure.

use std::ops::Range;

/// Inner width is cut between multiples of this.
pub const SHARD_UNIT: usize = 16;

/// One of the shards of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl Shard {
    /// An expert that is not cut.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// All `count` shards of an expert, in order.
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        (0..count).map(move |index| Self { index, count })
    }

    /// The most shards that an expert of this inner width can be cut into.
    pub fn count_max(width: usize) -> usize {
        width.div_ceil(SHARD_UNIT)
    }

    /// Its run of an inner width; never empty, if there are no more shards than [`Shard::count_max`].
    pub fn run(self, width: usize) -> Range<usize> {
        let units = Self::count_max(width);
        let start = |index: usize| (index * units / self.count * SHARD_UNIT).min(width);
        start(self.index)..start(self.index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs follow one another, begin at multiples of sixteen, are never empty and differ by one unit at most.
    #[test]
    fn runs_cover_the_width() {
        for width in [1, 16, 17, 24, 40, 96, 512, 1408, 1536, 18432] {
            for count in 1..=Shard::count_max(width).min(40) {
                let mut at = 0;
                let mut units = Vec::new();
                for shard in Shard::all(count) {
                    let run = shard.run(width);
                    assert!(run.start == at && !run.is_empty(), "{width} in {count}: {run:?} after {at}");
                    assert_eq!(run.start % SHARD_UNIT, 0);
                    units.push(run.len().div_ceil(SHARD_UNIT));
                    at = run.end;
                }
                assert_eq!(at, width);
                let (least, most) = (units.iter().min(), units.iter().max());
                assert!(most <= least.map(|n| n + 1).as_ref(), "{width} in {count}: {units:?}");
            }
        }
        assert_eq!(Shard::WHOLE.run(531), 0..531);
        assert_eq!(Shard::all(3).map(|s| s.run(40)).collect::<Vec<_>>(), [0..16, 16..32, 32..40]);
        assert_eq!(Shard::all(2).map(|s| s.run(24)).collect::<Vec<_>>(), [0..16, 16..24]);
    }
}
