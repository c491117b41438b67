//! A slab: one piece of memory cut into buffers of one class, and the count of who uses each.
//!
//! The counts lie beside the memory and not in it: a device that writes into a registered slab can then
//! damage rows, never the pool. A slab is mapped in whole pages, zero at first, so that every byte that
//! is ever handed out has been initialised.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::class::{ALIGNMENT, Class};
use super::pool::Shared;

/// No slot follows.
pub(super) const NONE: u32 = u32::MAX;

/// What is known of one buffer of a slab.
#[derive(Debug)]
pub(super) struct Slot {
    /// Who holds it: 1 for a `Buffer`, the clones of a `Payload`; 1 too while it is free, so that taking
    /// and giving back need not write it.
    pub(super) holders: AtomicU32,
    /// While it is free: the next free slot. Only touched under the pool's lock; atomic because slots
    /// are shared.
    pub(super) next: AtomicU32,
}

/// One piece of memory and its slots.
#[derive(Debug)]
pub(super) struct Slab {
    base: NonNull<u8>,
    /// Bytes of the whole.
    pub(super) bytes: usize,
    /// Of every buffer in it.
    pub(super) class: Class,
    /// Where the pool keeps what changes; `None` for a loose one, which holds one buffer and goes with it.
    pub(super) place: Option<usize>,
    /// Its pool, which outlives it: a slot that is out keeps it.
    pub(super) pool: *const Shared,
    pub(super) slots: Box<[Slot]>,
}

// SAFETY: a slab owns its memory, which is reached only through a slot's one `Buffer` or its read-only
// `Payload`s; `pool` points to what is `Sync`.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps one of `bytes`, a multiple of the class and of pages. `None` if the host has no memory.
    pub(super) fn map(class: Class, bytes: usize, place: usize, pool: *const Shared) -> Option<Self> {
        Some(Self::over(map(bytes)?, class, bytes, Some(place), pool))
    }

    /// A loose one: a single buffer, off the heap, in no list of the pool's.
    pub(super) fn loose(class: Class, pool: *const Shared) -> Self {
        let layout = loose_layout(class);
        // SAFETY: no class is empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self::over(base, class, class.bytes(), None, pool)
    }

    fn over(
        base: NonNull<u8>,
        class: Class,
        bytes: usize,
        place: Option<usize>,
        pool: *const Shared,
    ) -> Self {
        let count = u32::try_from(bytes / class.bytes()).expect("a slab is at most 2 MiB or one buffer");
        let slot = |index| Slot {
            holders: AtomicU32::new(1),
            next: AtomicU32::new(if index + 1 < count { index + 1 } else { NONE }),
        };
        Self { base, bytes, class, place, pool, slots: (0..count).map(slot).collect() }
    }

    /// Where the memory begins.
    pub(super) fn base(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// Where a slot's memory begins.
    pub(super) fn at(&self, slot: u32) -> NonNull<u8> {
        assert!((slot as usize) < self.slots.len(), "a slot of this slab");
        // SAFETY: within the mapping: there are as many slots as buffers fit.
        unsafe { self.base.add(slot as usize * self.class.bytes()) }
    }

    /// How many buffers it holds.
    pub(super) fn count(&self) -> u32 {
        self.slots.len() as u32
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // In both arms no slot is out: the pool drops a slab only when all its slots are free.
        if self.place.is_some() {
            // SAFETY: mapped by `map` with this length, and nobody uses it.
            unsafe { unmap(self.base, self.bytes) };
        } else {
            // SAFETY: allocated by `loose` with this layout, and nobody uses it.
            unsafe { dealloc(self.base.as_ptr(), loose_layout(self.class)) };
        }
    }
}

fn loose_layout(class: Class) -> Layout {
    Layout::from_size_align(class.bytes(), ALIGNMENT).expect("the largest class is far below isize::MAX")
}

/// Zeroed pages.
#[cfg(not(miri))]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address that the kernel chooses.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }.ok()?;
    NonNull::new(base.cast())
}

/// # Safety
/// `base` came from [`map`] with the same length, and nobody uses the memory any more.
#[cfg(not(miri))]
unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise. It can fail only for a range that is none, which this is not.
    let done = unsafe { rustix::mm::munmap(base.as_ptr().cast(), bytes) };
    debug_assert!(done.is_ok(), "a mapping of ours could not be undone");
}

/// Miri knows no system calls of rustix.
#[cfg(miri)]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes, 4096).ok()?;
    // SAFETY: a slab is never empty.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// # Safety
/// `base` came from [`map`] with the same length, and nobody uses the memory any more.
#[cfg(miri)]
unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    let layout = Layout::from_size_align(bytes, 4096).expect("it was one");
    // SAFETY: the caller's promise.
    unsafe { dealloc(base.as_ptr(), layout) };
}
