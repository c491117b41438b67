//! Memory for packed weights and pages: anonymous, aligned, in huge pages where it is large.
//!
//! Weights copied here are read 13-20% faster than from a mapped file (measured on another engine), and cannot
//! fault when the file is cut short. The system gives zeroed pages when they are first written, so a
//! region costs nothing until it is filled, and padding needs no writing.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Alignment of every part that is taken.
pub(super) const ALIGN: usize = 64;

const HUGE: usize = 2 << 20;
const SMALL: usize = 4096;

/// Readable bytes in front of the first part and behind the last: kernels read a little early and prefetch late.
const MARGIN: usize = 4096;

/// Regions of such sizes lie together in one mapping: a third of an expert of 3 MiB would else be in small pages.
const SHARED: std::ops::Range<usize> = (64 << 10)..(32 << 20);
/// A mapping that regions share.
const STRETCH: usize = 128 << 20;

/// Anonymous memory of the system, unmapped when the last region in it goes.
struct Mapping {
    base: NonNull<u8>,
    base_bytes: usize,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is memory. Bytes are reached only by pointer, by whoever took the part.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `bytes` zero bytes, and margins. Aborts as allocation does when memory is out.
    fn new(bytes: usize) -> Self {
        let align = if bytes >= HUGE { HUGE } else { MARGIN };
        let base_bytes = bytes + align + 2 * MARGIN;
        // SAFETY: a fresh anonymous mapping at an address of the system's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                base_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            std::alloc::handle_alloc_error(
                std::alloc::Layout::from_size_align(bytes, ALIGN).expect("the size was accepted above"),
            );
        }
        let base = NonNull::new(base.cast::<u8>()).expect("a mapping is never at address zero");
        let front = (base.as_ptr() as usize + MARGIN).next_multiple_of(align) - base.as_ptr() as usize;
        // SAFETY: `front` is at most MARGIN + align, and the mapping has that and the bytes and a margin behind.
        let start = unsafe { base.add(front) };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: advice on whole pages of our own mapping. It may be refused; small pages then serve.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Self { base, base_bytes, start, bytes }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.base_bytes) };
    }
}

/// The mapping that is being shared, and how much of it has been.
static SHARING: Mutex<Option<(Arc<Mapping>, usize)>> = Mutex::new(None);

/// Places that were given up in mappings that others still lie in, by their bytes. The system has their pages back, so they are
/// zero when they are taken again. They are taken first: experts that come and go would else be strewn over ever more huge
/// pages, each of which the system keeps whole for the one that is left in it.
static GIVEN_UP: Mutex<BTreeMap<usize, Vec<Place>>> = Mutex::new(BTreeMap::new());

struct Place {
    mapping: Weak<Mapping>,
    /// From the mapping's start.
    offset: usize,
}

/// A place of that size that somebody gave up.
fn take_again(bytes: usize) -> Option<(Arc<Mapping>, NonNull<u8>)> {
    let mut given_up = GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner);
    let places = given_up.get_mut(&bytes)?;
    while let Some(place) = places.pop() {
        // The last that lay there may have gone, and the mapping with it.
        if let Some(mapping) = place.mapping.upgrade() {
            // SAFETY: a region of that mapping began there.
            let start = unsafe { mapping.start.add(place.offset) };
            return Some((mapping, start));
        }
    }
    given_up.remove(&bytes);
    None
}

/// From now on it may be taken again.
fn give_up(bytes: usize, mapping: &Arc<Mapping>, start: NonNull<u8>) {
    let offset = start.as_ptr() as usize - mapping.start.as_ptr() as usize;
    let place = Place { mapping: Arc::downgrade(mapping), offset };
    let mut given_up = GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner);
    let places = given_up.entry(bytes).or_default();
    // No more are kept than there are mappings for.
    places.retain(|place| place.mapping.strong_count() > 0);
    places.push(place);
}

/// `bytes`, whole small pages, in a mapping with others.
fn share(bytes: usize) -> (Arc<Mapping>, NonNull<u8>) {
    if let Some(taken) = take_again(bytes) {
        return taken;
    }
    let mut sharing = SHARING.lock().unwrap_or_else(PoisonError::into_inner);
    let (mapping, used) = match sharing.take() {
        Some((mapping, used)) if used + bytes <= STRETCH => (mapping, used),
        _ => (Arc::new(Mapping::new(STRETCH)), 0),
    };
    // SAFETY: the mapping has STRETCH bytes from its start.
    let start = unsafe { mapping.start.add(used) };
    *sharing = Some((Arc::clone(&mapping), used + bytes));
    (mapping, start)
}

/// One piece of anonymous memory, out of which parts are taken in order, each part once.
pub struct Region {
    start: NonNull<u8>,
    bytes: usize,
    taken: AtomicUsize,
    /// What holds it, and whether others lie there too.
    mapping: Arc<Mapping>,
    is_shared: bool,
}

// SAFETY: a region is memory and a counter. Bytes are reached only by pointer, by whoever took the part.
unsafe impl Send for Region {}
// SAFETY: `take` hands out every byte at most once, by an atomic counter.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `bytes` zero bytes (rounded up to 64). Aborts as allocation does when memory is out.
    pub fn new(bytes: usize) -> Region {
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        let is_shared = SHARED.contains(&bytes);
        let (mapping, start) = match is_shared {
            true => share(bytes.next_multiple_of(SMALL)),
            false => {
                let mapping = Arc::new(Mapping::new(bytes));
                let start = mapping.start;
                (mapping, start)
            }
        };
        Region { start, bytes, taken: AtomicUsize::new(0), mapping, is_shared }
    }

    /// Takes the next `bytes` (rounded up to 64) and returns where they begin. They are zero, and
    /// nobody else is given them.
    pub fn take(&self, bytes: usize) -> Part {
        let bytes = bytes.next_multiple_of(ALIGN);
        let offset = self.taken.fetch_add(bytes, Ordering::Relaxed);
        assert!(
            offset + bytes <= self.bytes,
            "a region of {} bytes was asked for {}",
            self.bytes,
            offset + bytes
        );
        Part { offset, bytes }
    }

    /// Asks for huge pages once more, now that it is filled. While a checkpoint is read the system's free memory is in
    /// pieces, full of the file's own pages, and 40% of an expert got small ones (measured); this waits until there is room.
    pub fn settle(&self) {
        #[cfg(target_os = "linux")]
        {
            let first = self.mapping.start.as_ptr() as usize;
            let start = self.start.as_ptr() as usize & !(HUGE - 1);
            let end = (self.start.as_ptr() as usize + self.bytes).next_multiple_of(HUGE);
            let (start, end) = (start.max(first), end.min(first + self.mapping.bytes) & !(HUGE - 1));
            if start % HUGE == 0 && start < end {
                let address = self.mapping.start.as_ptr().wrapping_add(start - first).cast();
                // SAFETY: advice on whole huge pages of our own mapping, whose bytes stay what they are. It may be refused;
                // small pages then serve.
                unsafe { libc::madvise(address, end - start, libc::MADV_COLLAPSE) };
            }
        }
    }

    /// The first byte. At least 64 bytes in front of it and behind the end may be read.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.is_shared {
            let bytes = self.bytes.next_multiple_of(SMALL);
            // SAFETY: whole pages that were given to this region alone, and nothing refers to them any more. If it is
            // refused the pages go with their mapping.
            let refused = unsafe { libc::madvise(self.start.as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
            if refused == 0 {
                give_up(bytes, &self.mapping, self.start);
            }
        }
    }
}

/// A part of a region: given out once.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, from [`Region::as_ptr`].
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Experts that come and go lie where others of their size lay, and what is left of a mapping is none's.
    #[test]
    fn places_are_taken_again() {
        let bytes = (1 << 20) + 3 * SMALL;
        let mut regions: Vec<Region> = (0..10).map(|_| Region::new(bytes)).collect();
        let place = |region: &Region| region.as_ptr() as usize;
        let places: Vec<usize> = regions.iter().map(place).collect();
        for turn in 0..300 {
            let gone = regions.swap_remove(turn * 7 % 10);
            // SAFETY: the region's own bytes.
            unsafe { gone.as_ptr().write_bytes(0xff, gone.bytes()) };
            drop(gone);
            let region = Region::new(bytes);
            // SAFETY: as above.
            let found = unsafe { std::slice::from_raw_parts(region.as_ptr(), region.bytes()) };
            assert!(places.contains(&place(&region)) && found.iter().all(|byte| *byte == 0));
            regions.push(region);
        }
        // Another size has another place.
        drop(regions.pop());
        let other = Region::new(bytes + SMALL);
        assert!(!places.contains(&place(&other)));
    }

    /// Small ones lie together, each zero at first whatever was there before, and large ones begin a huge page.
    #[test]
    fn regions_share_mappings_without_meeting() {
        let fill = |region: &Region, byte: u8| {
            // SAFETY: the region's own bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(region.as_ptr(), region.bytes()) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(byte);
        };
        let mut regions: Vec<Region> = Vec::new();
        // More than one mapping of them, and every other one goes again.
        for number in 0..100u8 {
            let region = Region::new((3 << 20) + 64 * usize::from(number));
            fill(&region, number);
            region.settle();
            regions.push(region);
            if number % 3 == 2 {
                regions.swap_remove(usize::from(number) / 3);
            }
        }
        for region in &regions {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr(), region.bytes()) };
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        }
        assert_eq!(Region::new(SHARED.end).as_ptr() as usize % HUGE, 0);
    }

    /// Parts are aligned, apart, zero, and the margins can be read.
    #[test]
    fn parts_are_aligned_and_apart() {
        for bytes in [100, 1 << 20, 33 << 20] {
            let region = Region::new(bytes);
            let first = region.take(10);
            let second = region.take(40);
            assert_eq!((first.offset, second.offset), (0, 64));
            let start = region.as_ptr();
            assert_eq!(start as usize % SMALL, 0);
            // SAFETY: inside the region and its margins.
            unsafe {
                // Others may lie there, whatever they hold.
                for at in [start.sub(64), start.add(region.bytes() + 63)] {
                    std::hint::black_box(at.read_volatile());
                }
                assert_eq!(*start.add(region.bytes() - 1), 0);
                *start.add(region.bytes() - 1) = 1;
            }
        }
    }

    /// More than there is cannot be taken.
    #[test]
    #[should_panic(expected = "a region of 64 bytes was asked for 128")]
    fn too_much_is_refused() {
        let region = Region::new(64);
        region.take(64);
        region.take(64);
    }
}
