//! How large buffers and slabs are.
//!
//! Pure. Buffers come in powers of two from 64 bytes: a frame that has gone leaves room that any other of
//! its class fits in, and both ends of a link can count a frame's cost without asking one another
//! (`wire::charge`).

/// Where every buffer begins: a multiple of this. A cache line, and the widest vector register.
pub const ALIGNMENT: usize = 64;

/// Slabs are no longer than this, unless one buffer is. One huge page, so that a pool of 64 MiB is
/// registered with a device in some thirty pieces.
pub const SLAB_BYTES_MAX: usize = 2 << 20;

/// Slabs are no shorter: a multiple of every page size in use on the processors we know.
const SLAB_BYTES_MIN: usize = 64 << 10;

/// A slab of a small class holds about so many, so that a few heartbeats do not pin 2 MiB.
const SLOTS_WANTED: usize = 64;

/// Powers of two from 2^6 to 2^47, more than any processor addresses today.
pub(super) const CLASSES: usize = 42;

/// A size of buffers, by its number: class 0 holds 64 bytes, each next one twice as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// The smallest class that holds `bytes`; `None` beyond all of them.
    pub(super) fn holding(bytes: usize) -> Option<Self> {
        let rounded = bytes.max(ALIGNMENT).checked_next_power_of_two()?;
        let number = rounded.trailing_zeros() - ALIGNMENT.trailing_zeros();
        (number < CLASSES as u32).then_some(Self(number as u8))
    }

    /// Bytes of a buffer.
    pub(super) const fn bytes(self) -> usize {
        ALIGNMENT << self.0
    }

    /// Where the class stands among all.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of a slab of this class in a pool of `pool_bytes_max`. A sixteenth of the pool at most: a
    /// small pool that sees many classes could otherwise hold only a few of them.
    pub(super) fn slab_bytes(self, pool_bytes_max: u64) -> usize {
        let sixteenth = usize::try_from(pool_bytes_max / 16).unwrap_or(usize::MAX);
        let shortest = SLAB_BYTES_MIN;
        let longest = sixteenth.clamp(shortest, SLAB_BYTES_MAX);
        // Both ends of the clamp and the class are powers of two but for `longest`, so round that down.
        let longest = 1 << longest.ilog2();
        self.bytes().saturating_mul(SLOTS_WANTED).clamp(shortest, longest).max(self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HEADER_BYTES, charge};

    /// The other end counts by `charge`; a pool that counted otherwise would run dry under a window that
    /// is not used up.
    #[test]
    fn a_class_costs_what_the_protocol_says() {
        for bytes in (1..5000).chain([14_336, 65_535, 65_536, 65_537, 7 << 20, 16 << 20]) {
            let class = Class::holding(bytes).unwrap();
            assert_eq!(class.bytes() as u64 + HEADER_BYTES as u64, charge(bytes as u64), "{bytes}");
        }
    }

    #[test]
    fn a_slab_is_whole_pages_and_whole_buffers() {
        for pool in [0, 1, 100_000, 1 << 20, 3 << 20, 64 << 20, u64::MAX] {
            for number in 0..CLASSES as u8 {
                let (class, slab) = (Class(number), Class(number).slab_bytes(pool));
                assert!(slab >= SLAB_BYTES_MIN && slab.is_multiple_of(class.bytes()));
                assert!(slab.is_power_of_two());
                assert!(slab <= SLAB_BYTES_MAX.max(class.bytes()));
            }
        }
        assert_eq!(Class::holding(14_336).unwrap().slab_bytes(64 << 20), 1 << 20);
        assert_eq!(Class::holding(1 << 20).unwrap().slab_bytes(64 << 20), 2 << 20);
        assert_eq!(Class::holding(usize::MAX), None);
    }
}
