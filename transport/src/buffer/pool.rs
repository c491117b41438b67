//! Hands out buffers, bounded, and takes them back when they are dropped.
//!
//! One lock guards the lists, held for some ten instructions: a frame costs microseconds elsewhere.
//! Each class has a list of slabs with free slots. Slabs in use stand before idle ones, so that buffers
//! gather in few slabs and the others can be given back.
//!
//! Two bounds. What is *out* never exceeds `bytes_max`, and below that a buffer is never refused. What
//! the pool keeps *mapped* never exceeds `bytes_max` and a [slack](Pool::slack_bytes): when the next slab
//! would, idle slabs of other classes are unmapped first; where none is idle, because each holds a few
//! buffers that are out, a *loose* buffer comes from the heap and goes back there. So at the worst the
//! loose ones, which are out themselves, come on top, and [`PoolStats`] tells how often that happens.
//! The slots' own counts, 8 bytes each, are not in these figures.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::class::{CLASSES, Class};
use super::payload::Buffer;
use super::slab::{NONE, Slab};

/// Hands out buffers, and takes them back when they are dropped. Clones are the same pool. Buffers may
/// outlive it.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Shared>);

/// What a pool has, all in bytes but for the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Held by buffers and payloads, each counted as its class.
    pub out_bytes: u64,
    /// The most there ever was of that.
    pub out_bytes_peak: u64,
    /// Slabs, and loose buffers that are out.
    pub resident_bytes: u64,
    /// The most there ever was of that.
    pub resident_bytes_peak: u64,
    /// Loose buffers that are out.
    pub loose_bytes: u64,
    /// How many loose buffers were ever taken. It grows where memory is fragmented: a larger pool, or
    /// fewer sizes of payloads, would help.
    pub loose_count: u64,
}

/// A slab's memory, for registering it with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlabRange {
    /// Never reused by the same pool, whereas addresses may be.
    pub id: u64,
    /// Address of the first byte, at the beginning of a page.
    pub base: usize,
    /// Whole pages.
    pub bytes: usize,
}

/// What handles and buffers share.
#[derive(Debug)]
pub(super) struct Shared {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stats: PoolStats,
    /// Bytes of slabs none of whose slots is out.
    idle_bytes: u64,
    places: Vec<Place>,
    /// Of `places`: those without a slab.
    vacant: Vec<usize>,
    /// Per class: the first and the last slab with free slots.
    open: [Ends; CLASSES],
    ids: u64,
}

/// Where a slab is kept, and what of it changes.
#[derive(Debug)]
struct Place {
    slab: Option<Arc<Slab>>,
    id: u64,
    /// The first free slot.
    free: u32,
    free_count: u32,
    /// Neighbours in the class's list.
    before: Option<usize>,
    after: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    first: Option<usize>,
    last: Option<usize>,
}

impl Pool {
    /// A pool that never has more than `bytes_max` out, counted as `wire::charge` counts room.
    pub fn new(bytes_max: u64) -> Self {
        let state = State {
            stats: PoolStats::default(),
            idle_bytes: 0,
            places: Vec::new(),
            vacant: Vec::new(),
            open: [Ends::default(); CLASSES],
            ids: 0,
        };
        Self(Arc::new(Shared { bytes_max, state: Mutex::new(state) }))
    }

    /// A buffer of that length, zeroed or with what was last in it; `None` when the bound is reached. The
    /// empty buffer costs nothing and is always there.
    pub fn take(&self, bytes: usize) -> Option<Buffer> {
        if bytes == 0 {
            return Some(Buffer::default());
        }
        let class = Class::holding(bytes)?;
        // Unmapping takes tens of microseconds: it is done when the lock is free again.
        let mut unmapped = Vec::new();
        let taken = self.0.lock().take(class, &self.0, &mut unmapped)?;
        drop(unmapped);
        let (slab, slot) =
            taken.unwrap_or_else(|| (Arc::into_raw(Arc::new(Slab::loose(class, self.raw()))), 0));
        // A buffer keeps its pool: `give_back` takes this count again.
        std::mem::forget(Arc::clone(&self.0));
        Some(Buffer::over(slab, slot, bytes))
    }

    /// A buffer with these bytes.
    pub fn copy_of(&self, bytes: &[u8]) -> Option<Buffer> {
        let mut buffer = self.take(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Some(buffer)
    }

    /// What it may have out.
    pub fn bytes_max(&self) -> u64 {
        self.0.bytes_max
    }

    /// How much more than [`bytes_max`](Self::bytes_max) may be mapped: room for slabs that are used in
    /// part, one of each class of a small pool.
    pub fn slack_bytes(&self) -> u64 {
        self.0.slack_bytes()
    }

    /// What it has now.
    pub fn stats(&self) -> PoolStats {
        self.0.lock().stats
    }

    /// All slabs that there are now. A device that registers them keeps what it learned by `id`, and asks
    /// again when a buffer names a slab that it does not know. A slab with a buffer out stays.
    pub fn slabs(&self) -> Vec<SlabRange> {
        let state = self.0.lock();
        let ranges = state.places.iter().filter_map(|place| {
            let slab = place.slab.as_ref()?;
            Some(SlabRange { id: place.id, base: slab.base(), bytes: slab.bytes })
        });
        ranges.collect()
    }

    fn raw(&self) -> *const Shared {
        Arc::as_ptr(&self.0)
    }
}

impl Shared {
    /// Nothing panics while it is held but by a broken invariant, and then figures may be stale, no more.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slack_bytes(&self) -> u64 {
        (self.bytes_max / 8).max(1 << 20)
    }

    /// Takes a slot back that nobody holds. By numbers and not by reference: as soon as the lock is free,
    /// another thread may unmap the slab.
    pub(super) fn give_back(&self, place: Option<usize>, class: Class, slot: u32) {
        let mut state = self.lock();
        let bytes = class.bytes() as u64;
        state.stats.out_bytes -= bytes;
        match place {
            Some(place) => state.push(place, class, slot),
            None => {
                state.stats.loose_bytes -= bytes;
                state.stats.resident_bytes -= bytes;
            }
        }
    }

    /// The slab at a place.
    pub(super) fn range(&self, place: usize) -> Option<SlabRange> {
        let state = self.lock();
        let place = state.places.get(place)?;
        let slab = place.slab.as_ref()?;
        Some(SlabRange { id: place.id, base: slab.base(), bytes: slab.bytes })
    }
}

impl State {
    /// A free slot; `Some(None)` if it must be a loose one, which is counted already; `None` at the bound.
    /// Slabs to be unmapped are put into `unmapped`.
    fn take(
        &mut self,
        class: Class,
        shared: &Arc<Shared>,
        unmapped: &mut Vec<Arc<Slab>>,
    ) -> Option<Option<(*const Slab, u32)>> {
        let bytes = class.bytes() as u64;
        if self.stats.out_bytes.saturating_add(bytes) > shared.bytes_max {
            return None;
        }
        self.stats.out_bytes += bytes;
        self.stats.out_bytes_peak = self.stats.out_bytes_peak.max(self.stats.out_bytes);
        let open = self.open[class.index()].first.or_else(|| self.grow(class, shared, unmapped));
        let Some(place) = open else {
            self.make_room(bytes, shared, unmapped);
            self.stats.loose_bytes += bytes;
            self.stats.loose_count += 1;
            self.add_resident(bytes);
            return Some(None);
        };
        Some(Some(self.pop(place, class)))
    }

    /// A new slab at the head of its class's list; `None` if there is no room for it.
    fn grow(&mut self, class: Class, shared: &Arc<Shared>, unmapped: &mut Vec<Arc<Slab>>) -> Option<usize> {
        let bytes = class.slab_bytes(shared.bytes_max);
        if !self.make_room(bytes as u64, shared, unmapped) {
            return None;
        }
        let place = self.vacant.last().copied().unwrap_or(self.places.len());
        let slab = Slab::map(class, bytes, place, Arc::as_ptr(shared))?;
        self.ids += 1;
        let new = Place {
            id: self.ids,
            free: 0,
            free_count: slab.count(),
            slab: Some(Arc::new(slab)),
            before: None,
            after: None,
        };
        if self.vacant.pop().is_some() {
            self.places[place] = new;
        } else {
            self.places.push(new);
        }
        self.idle_bytes += bytes as u64;
        self.add_resident(bytes as u64);
        self.link_first(place, class);
        Some(place)
    }

    /// Gives idle slabs back until `needed` more bytes fit. Leaves everything as it is if they never would.
    fn make_room(&mut self, needed: u64, shared: &Shared, unmapped: &mut Vec<Arc<Slab>>) -> bool {
        let bound = shared.bytes_max.saturating_add(shared.slack_bytes());
        let Some(resident_max) = bound.checked_sub(needed) else { return false };
        if self.stats.resident_bytes - self.idle_bytes > resident_max {
            return false;
        }
        for place in 0..self.places.len() {
            if self.stats.resident_bytes <= resident_max {
                break;
            }
            let Some(slab) = &self.places[place].slab else { continue };
            if self.places[place].free_count < slab.count() {
                continue;
            }
            let (class, bytes) = (slab.class, slab.bytes as u64);
            self.unlink(place, class);
            unmapped.extend(self.places[place].slab.take());
            self.vacant.push(place);
            self.idle_bytes -= bytes;
            self.stats.resident_bytes -= bytes;
        }
        true
    }

    fn add_resident(&mut self, bytes: u64) {
        self.stats.resident_bytes += bytes;
        self.stats.resident_bytes_peak = self.stats.resident_bytes_peak.max(self.stats.resident_bytes);
    }

    fn pop(&mut self, place: usize, class: Class) -> (*const Slab, u32) {
        let at = &mut self.places[place];
        let slab = at.slab.as_ref().expect("a listed place has a slab");
        let slot = at.free;
        debug_assert_ne!(slot, NONE, "a listed slab has a free slot");
        at.free = slab.slots[slot as usize].next.load(Ordering::Relaxed);
        if at.free_count == slab.count() {
            self.idle_bytes -= slab.bytes as u64;
        }
        at.free_count -= 1;
        let (raw, full) = (Arc::as_ptr(slab), at.free_count == 0);
        if full {
            self.unlink(place, class);
        }
        (raw, slot)
    }

    fn push(&mut self, place: usize, class: Class, slot: u32) {
        let at = &mut self.places[place];
        let slab = at.slab.as_ref().expect("a slab with a slot out stays");
        slab.slots[slot as usize].next.store(at.free, Ordering::Relaxed);
        at.free = slot;
        at.free_count += 1;
        let (was_full, idle, bytes) = (at.free_count == 1, at.free_count == slab.count(), slab.bytes);
        if idle {
            self.idle_bytes += bytes as u64;
        }
        match (was_full, idle) {
            (true, true) => self.link_last(place, class),
            (true, false) => self.link_first(place, class),
            (false, true) => {
                self.unlink(place, class);
                self.link_last(place, class);
            }
            (false, false) => {}
        }
    }

    fn link_first(&mut self, place: usize, class: Class) {
        let ends = &mut self.open[class.index()];
        let after = ends.first.replace(place);
        match after {
            Some(after) => self.places[after].before = Some(place),
            None => ends.last = Some(place),
        }
        (self.places[place].before, self.places[place].after) = (None, after);
    }

    fn link_last(&mut self, place: usize, class: Class) {
        let ends = &mut self.open[class.index()];
        let before = ends.last.replace(place);
        match before {
            Some(before) => self.places[before].after = Some(place),
            None => ends.first = Some(place),
        }
        (self.places[place].before, self.places[place].after) = (before, None);
    }

    fn unlink(&mut self, place: usize, class: Class) {
        let (before, after) = (self.places[place].before.take(), self.places[place].after.take());
        let ends = &mut self.open[class.index()];
        match before {
            Some(before) => self.places[before].after = after,
            None => ends.first = after,
        }
        match after {
            Some(after) => self.places[after].before = before,
            None => ends.last = before,
        }
    }
}
