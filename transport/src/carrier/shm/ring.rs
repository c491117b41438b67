//! A stream of bytes through shared memory: one producer, one consumer.
//!
//! Pure but for the memory itself: nothing here waits or rings. Both ends keep their own index to
//! themselves and publish it; the index of the other end is read anew only when what is known of it does not
//! suffice, so in the steady state neither end touches the other's cache lines. An index that was read is
//! never trusted: the distance between the two must be at most the ring's size, or the peer is broken.
//!
//! | offset | what | written by |
//! |---|---|---|
//! | 0 | tail: bytes ever written (u64) | producer |
//! | 8 | state of the producer (u32): 0 open, 1 finished, 2 gone | producer |
//! | 128 | head: bytes ever read (u64) | consumer |
//! | 256 | 1 while the consumer waits (u32) | consumer sets, producer clears |
//! | 260 | state of the consumer (u32): 0 open, 2 gone | consumer |
//! | 384 | 1 while the producer waits (u32) | producer sets, consumer clears |
//! | 4096 | the bytes | producer |
//!
//! The two words for waiting stand apart from the indices: while both ends are busy nobody writes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::memory::Shared;

/// Bytes before the ring itself.
const PREFIX_BYTES: u64 = 4096;
/// Where tail and head may stand. Headers of frames never wrap, and payloads begin on a cache line.
pub(super) const UNIT: u64 = 64;
/// How much is written or read before the other end is told: 64 KiB lets both copies of a long frame
/// overlap, and costs a fence for every few microseconds of copying.
const PIECE_BYTES: u64 = 64 << 10;

const TAIL: usize = 0;
const PRODUCER_STATE: usize = 8;
const HEAD: usize = 128;
const CONSUMER_WAITS: usize = 256;
const CONSUMER_STATE: usize = 260;
const PRODUCER_WAITS: usize = 384;

const OPEN: u32 = 0;
const FINISHED: u32 = 1;
const GONE: u32 = 2;

/// Indices that no honest peer writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the ring: head {head}, tail {tail}, a ring of {size} bytes")]
pub(super) struct Broken {
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) size: u64,
}

/// What the producer's state means to a consumer that has read everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Open,
    Finished,
    Gone,
}

/// Bytes of memory that a ring of `size` needs.
pub(super) const fn memory_bytes(size: u64) -> u64 {
    PREFIX_BYTES + size
}

/// One ring, as both of its ends see it.
#[derive(Debug)]
pub(super) struct Ring {
    shared: Shared,
    size: u64,
    piece: u64,
}

impl Ring {
    /// `shared` has [`memory_bytes`] of `size`, a power of two.
    pub(super) fn new(shared: Shared, size: u64) -> Arc<Self> {
        assert!(size.is_power_of_two() && size >= 4 * UNIT, "sizes of rings are checked before");
        Arc::new(Self { shared, size, piece: PIECE_BYTES.min(size / 4) })
    }

    fn place(&self, index: u64) -> (usize, usize) {
        let at = index & (self.size - 1);
        ((PREFIX_BYTES + at) as usize, (self.size - at) as usize)
    }

    /// The word that says whether the consumer, or the producer, waits.
    pub(super) fn waits(&self, consumer: bool) -> &AtomicU32 {
        self.shared.u32_at(if consumer { CONSUMER_WAITS } else { PRODUCER_WAITS })
    }

    /// Any number of the prefix, for tests that play a broken peer.
    #[cfg(test)]
    pub(super) fn raw(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.shared.u64_at(offset)
    }

    /// Says that this end waits. What follows must be another look at the ring: see `doorbell`.
    pub(super) fn arm(&self, consumer: bool) {
        self.waits(consumer).store(1, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Whether the other end waits and must be rung for; it does not wait any more then.
    fn take_waiting(&self, consumer: bool) -> bool {
        let waits = self.waits(consumer);
        waits.load(Ordering::Acquire) != 0 && waits.swap(0, Ordering::AcqRel) != 0
    }
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Producer {
    ring: Arc<Ring>,
    tail: u64,
    published: u64,
    head_known: u64,
}

impl Producer {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, tail: 0, published: 0, head_known: 0 }
    }

    /// Bytes that may be written now; looks for more room only when less than `wanted` is known.
    pub(super) fn free(&mut self, wanted: u64) -> Result<u64, Broken> {
        let size = self.ring.size;
        let known = size - (self.tail - self.head_known);
        if known >= wanted.min(size) {
            return Ok(known);
        }
        let head = self.ring.shared.u64_at(HEAD).load(Ordering::Acquire);
        // Neither ahead of what was published nor behind what was read before.
        if self.published.wrapping_sub(head) > self.published - self.head_known || !head.is_multiple_of(UNIT)
        {
            return Err(Broken { head, tail: self.published, size });
        }
        self.head_known = head;
        Ok(size - (self.tail - head))
    }

    /// Writes bytes for which there is room. The consumer sees them once they are published.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let (at, before_wrap) = self.ring.place(self.tail);
        let (first, second) = bytes.split_at(before_wrap.min(bytes.len()));
        self.ring.shared.copy_in(at, first);
        if !second.is_empty() {
            self.ring.shared.copy_in(PREFIX_BYTES as usize, second);
        }
        self.tail += bytes.len() as u64;
        debug_assert!(self.tail - self.head_known <= self.ring.size, "written only where there is room");
    }

    /// Leaves out bytes up to the next unit, for which there is room since sizes are multiples of it.
    pub(super) fn pad(&mut self) {
        self.tail = self.tail.next_multiple_of(UNIT);
    }

    /// Longest piece to write before [`Producer::publish`].
    pub(super) fn piece(&self) -> u64 {
        self.ring.piece
    }

    /// Whether a whole piece has been written that the consumer does not know of.
    pub(super) fn is_due(&self) -> bool {
        self.tail - self.published >= self.ring.piece
    }

    /// Shows the consumer what was written. Returns whether it must be rung for.
    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        debug_assert_eq!(self.tail % UNIT, 0, "whole units are published");
        self.ring.shared.u64_at(TAIL).store(self.tail, Ordering::Release);
        self.published = self.tail;
        fence(Ordering::SeqCst);
        self.ring.take_waiting(true)
    }

    /// Nothing follows, in order or not. Returns whether the consumer must be rung for.
    #[must_use]
    pub(super) fn end(&mut self, finished: bool) -> bool {
        let state = if finished { FINISHED } else { GONE };
        self.ring.shared.u32_at(PRODUCER_STATE).store(state, Ordering::Release);
        fence(Ordering::SeqCst);
        self.ring.take_waiting(true)
    }

    /// Whether nobody will read any more.
    pub(super) fn is_consumer_gone(&self) -> bool {
        self.ring.shared.u32_at(CONSUMER_STATE).load(Ordering::Acquire) != OPEN
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Consumer {
    ring: Arc<Ring>,
    head: u64,
    published: u64,
    tail_known: u64,
}

impl Consumer {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, head: 0, published: 0, tail_known: 0 }
    }

    /// Bytes that may be read now; looks for more only when fewer than `wanted` are known.
    pub(super) fn available(&mut self, wanted: u64) -> Result<u64, Broken> {
        let known = self.tail_known - self.head;
        if known >= wanted {
            return Ok(known);
        }
        let size = self.ring.size;
        let tail = self.ring.shared.u64_at(TAIL).load(Ordering::Acquire);
        let distance = tail.wrapping_sub(self.head);
        // Never less than before, and no more than fits behind what the producer was told is free.
        let is_room = distance <= size && tail.wrapping_sub(self.published) <= size;
        if !is_room || distance < known || !tail.is_multiple_of(UNIT) {
            return Err(Broken { head: self.head, tail, size });
        }
        self.tail_known = tail;
        Ok(distance)
    }

    /// Reads bytes that are available.
    pub(super) fn read(&mut self, into: &mut [u8]) {
        let (at, before_wrap) = self.ring.place(self.head);
        let (first, second) = into.split_at_mut(before_wrap.min(into.len()));
        self.ring.shared.copy_out(at, first);
        if !second.is_empty() {
            self.ring.shared.copy_out(PREFIX_BYTES as usize, second);
        }
        self.head += into.len() as u64;
        debug_assert!(self.head <= self.tail_known, "read only what is there");
    }

    /// Passes over what the producer left out.
    pub(super) fn pad(&mut self) {
        self.head = self.head.next_multiple_of(UNIT);
    }

    /// Longest piece to read before [`Consumer::publish`].
    pub(super) fn piece(&self) -> u64 {
        self.ring.piece
    }

    /// Whether a whole piece has been read that the producer does not know of.
    pub(super) fn is_due(&self) -> bool {
        self.head - self.published >= self.ring.piece
    }

    /// Gives what was read back to the producer. Returns whether it must be rung for: one that waits is left
    /// alone until half of the ring is free, or it would be woken for every piece.
    #[must_use]
    pub(super) fn publish(&mut self) -> bool {
        if self.head == self.published {
            return false;
        }
        self.ring.shared.u64_at(HEAD).store(self.head, Ordering::Release);
        self.published = self.head;
        fence(Ordering::SeqCst);
        if self.ring.waits(false).load(Ordering::Acquire) == 0 {
            return false;
        }
        // It waits, so its tail stands still. A tail that is a lie wakes or does not wake the liar.
        let tail = self.ring.shared.u64_at(TAIL).load(Ordering::Acquire);
        tail.wrapping_sub(self.head) <= self.ring.size / 2 && self.ring.take_waiting(false)
    }

    /// What the producer says. To be asked before the last look at what is available.
    pub(super) fn ending(&self) -> Ending {
        match self.ring.shared.u32_at(PRODUCER_STATE).load(Ordering::Acquire) {
            OPEN => Ending::Open,
            FINISHED => Ending::Finished,
            _ => Ending::Gone,
        }
    }

    /// Nobody reads any more. Returns whether the producer must be rung for.
    #[must_use]
    pub(super) fn leave(&mut self) -> bool {
        self.ring.shared.u32_at(CONSUMER_STATE).store(GONE, Ordering::Release);
        fence(Ordering::SeqCst);
        self.ring.take_waiting(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(size: u64) -> Arc<Ring> {
        Ring::new(Shared::create("test", memory_bytes(size)).unwrap().1, size)
    }

    /// Against a queue of the standard library, by random pieces, in one thread.
    #[test]
    fn what_goes_in_comes_out_wherever_it_wraps() {
        let ring = ring(1024);
        let (mut producer, mut consumer) = (Producer::new(Arc::clone(&ring)), Consumer::new(ring));
        let mut expected = std::collections::VecDeque::new();
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes = ((seed >> 33) % 600).next_multiple_of(UNIT) as usize;
            if seed >> 63 == 0 {
                if producer.free(bytes as u64).unwrap() >= bytes as u64 {
                    let piece: Vec<u8> = (0..bytes).map(|at| (seed >> (at % 56)) as u8).collect();
                    producer.write(&piece);
                    expected.extend(piece);
                    let _ = producer.publish();
                } else {
                    assert!(expected.len() + bytes > 1024, "there was room");
                }
            } else if consumer.available(bytes as u64).unwrap() >= bytes as u64 {
                let mut piece = vec![0; bytes];
                consumer.read(&mut piece);
                let _ = consumer.publish();
                assert!(piece.into_iter().eq(expected.drain(..bytes)));
            } else {
                assert!(expected.len() < bytes, "it was there");
            }
        }
    }

    /// Only who says that it waits is rung for, once; and a producer only when half of the ring is free.
    #[test]
    fn who_waits_is_rung_for_once() {
        let ring = ring(1024);
        let (mut producer, mut consumer) =
            (Producer::new(Arc::clone(&ring)), Consumer::new(Arc::clone(&ring)));
        producer.write(&[1; 128]);
        assert!(!producer.publish());
        ring.arm(true);
        producer.write(&[1; 128]);
        assert!(producer.publish());
        producer.write(&[1; 768]);
        assert!(!producer.publish());
        assert_eq!(producer.free(1), Ok(0));

        ring.arm(false);
        assert_eq!(consumer.available(1024), Ok(1024));
        let rung = [256, 192, 64, 64].map(|bytes| {
            consumer.read(&mut vec![0; bytes]);
            consumer.publish()
        });
        assert_eq!(rung, [false, false, true, false]);
    }
}
