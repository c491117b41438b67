//! What comes out of a pool: a buffer with one owner who writes it, and a payload that many read.
//!
//! A buffer becomes a payload and is cloned without an allocation: the count of holders is the slot's own.
//! The last holder gives the memory back to its pool, from whatever thread.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::pool::SlabRange;
use super::slab::Slab;
use super::view;

/// A piece of memory with one owner, who may write it. Dropped, it goes back to its pool.
#[derive(Default)]
pub struct Buffer(Option<Piece>);

/// A buffer that is written and may be shared: clones are the same memory, which goes back to its pool with
/// the last of them.
#[derive(Default)]
pub struct Payload(Option<Piece>);

/// A slot that is out. Not to be copied but by those who count.
struct Piece {
    slab: NonNull<Slab>,
    at: NonNull<u8>,
    /// What is in use of the slot, at least 1.
    bytes: usize,
    slot: u32,
}

// SAFETY: a piece is one slot; a `Buffer` has it alone, and `Payload`s only read it. Slabs, pools and counts
// are made for many threads.
unsafe impl Send for Piece {}
// SAFETY: shared access only reads.
unsafe impl Sync for Piece {}

impl Piece {
    fn slab(&self) -> &Slab {
        // SAFETY: a slab lives as long as one of its slots is out.
        unsafe { self.slab.as_ref() }
    }

    fn holders(&self) -> &AtomicU32 {
        &self.slab().slots[self.slot as usize].holders
    }

    fn read(&self) -> &[u8] {
        // SAFETY: the slot is at least `bytes` long, was zeroed when it was mapped, and nobody writes it
        // while this borrow lasts: that needs a `Buffer` borrowed mutably, which is the only holder.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.bytes) }
    }

    fn range(&self) -> Option<SlabRange> {
        let (pool, place) = (self.slab().pool, self.slab().place?);
        // SAFETY: a pool lives as long as one of its slots is out.
        unsafe { &*pool }.range(place)
    }

    /// To its pool. The caller was the only holder, and the count is 1.
    fn give_back(self) {
        let (pool, place, class) = (self.slab().pool, self.slab().place, self.slab().class);
        // SAFETY: the count of the pool that `Pool::take` left with this slot, taken back once.
        let pool = unsafe { Arc::from_raw(pool) };
        pool.give_back(place, class, self.slot);
        if place.is_none() {
            // SAFETY: `Pool::take` made the loose slab by `Arc::into_raw` for this slot alone.
            drop(unsafe { Arc::from_raw(self.slab.as_ptr().cast_const()) });
        }
    }
}

impl Buffer {
    /// Over a slot that nobody else holds, and that leaves `bytes` room.
    pub(super) fn over(slab: *const Slab, slot: u32, bytes: usize) -> Self {
        let slab = NonNull::new(slab.cast_mut()).expect("it comes from an `Arc`");
        // SAFETY: the pool has just taken the slot out of this slab, which lives as long.
        let at = unsafe { slab.as_ref() }.at(slot);
        Self(Some(Piece { slab, at, bytes, slot }))
    }

    /// What it could hold: its class. More than its length is reached by [`resize`](Self::resize).
    pub fn capacity(&self) -> usize {
        self.0.as_ref().map_or(0, |piece| piece.slab().class.bytes())
    }

    /// Cuts it to `bytes`; does nothing if it is shorter. The memory stays out as it is, but for an empty
    /// buffer, which holds none.
    pub fn truncate(&mut self, bytes: usize) {
        if bytes < self.len() {
            self.resize(bytes);
        }
    }

    /// Sets its length, within its capacity. What is uncovered is whatever was there.
    pub fn resize(&mut self, bytes: usize) {
        let capacity = self.capacity();
        assert!(bytes <= capacity, "{bytes} bytes in a buffer of {capacity}");
        if bytes == 0 {
            drop(std::mem::take(self));
        } else if let Some(piece) = &mut self.0 {
            piece.bytes = bytes;
        }
    }

    /// The slab that it lies in; `None` for a loose or an empty one, which no device can have registered.
    pub fn slab(&self) -> Option<SlabRange> {
        self.0.as_ref()?.range()
    }

    /// Its BF16 values; see [`view::as_u16`].
    pub fn as_u16(&self) -> Option<&[u16]> {
        view::as_u16(self)
    }

    /// Its f32 values; see [`view::as_f32`].
    pub fn as_f32(&self) -> Option<&[f32]> {
        view::as_f32(self)
    }

    /// Its BF16 values, to be written.
    pub fn as_u16_mut(&mut self) -> Option<&mut [u16]> {
        view::as_u16_mut(self)
    }

    /// Its f32 values, to be written.
    pub fn as_f32_mut(&mut self) -> Option<&mut [f32]> {
        view::as_f32_mut(self)
    }
}

impl Payload {
    /// The buffer again, if nobody else holds it, so that an answer can be written where the question was.
    pub fn try_into_buffer(mut self) -> Result<Buffer, Self> {
        // Acquire: what other holders read, they have read before they let go. Nobody can clone it
        // meanwhile, for that needs a holder.
        let shared = self.0.as_ref().is_some_and(|piece| piece.holders().load(Ordering::Acquire) != 1);
        if shared { Err(self) } else { Ok(Buffer(self.0.take())) }
    }

    /// The slab that it lies in; `None` for a loose or an empty one, which no device can have registered.
    pub fn slab(&self) -> Option<SlabRange> {
        self.0.as_ref()?.range()
    }

    /// Its BF16 values; see [`view::as_u16`].
    pub fn as_u16(&self) -> Option<&[u16]> {
        view::as_u16(self)
    }

    /// Its f32 values; see [`view::as_f32`].
    pub fn as_f32(&self) -> Option<&[f32]> {
        view::as_f32(self)
    }
}

impl From<Buffer> for Payload {
    fn from(mut buffer: Buffer) -> Self {
        Self(buffer.0.take())
    }
}

impl Clone for Payload {
    fn clone(&self) -> Self {
        let Some(piece) = &self.0 else { return Self(None) };
        // Relaxed, as in `Arc`: a new holder comes from one that has the memory already.
        let holders = piece.holders().fetch_add(1, Ordering::Relaxed);
        assert!(holders < u32::MAX / 2, "a payload that is cloned and forgotten in a loop");
        Self(Some(Piece { slab: piece.slab, at: piece.at, bytes: piece.bytes, slot: piece.slot }))
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let Some(piece) = self.0.take() else { return };
        if piece.holders().load(Ordering::Acquire) != 1 {
            // Release: all that was read here was read before another takes the memory for itself.
            if piece.holders().fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            fence(Ordering::Acquire);
            piece.holders().store(1, Ordering::Relaxed);
        }
        piece.give_back();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(piece) = self.0.take() {
            piece.give_back();
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Piece::read)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(piece) = &mut self.0 else { return &mut [] };
        // SAFETY: as in `Piece::read`, and a buffer is the only holder.
        unsafe { std::slice::from_raw_parts_mut(piece.at.as_ptr(), piece.bytes) }
    }
}

impl Deref for Payload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Piece::read)
    }
}

/// Never the contents: rows are what people asked, and megabytes.
impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} of {} bytes)", self.len(), self.capacity())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Payload({} bytes)", self.len())
    }
}
