//! The largest allocation of a call, counted on this thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

// SAFETY: all is the system's; it is only looked at. What is not written here goes through `alloc`.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The largest single allocation while `act` runs, 0 if there is none, and what it returns.
pub(crate) fn largest_allocation<T>(act: impl FnOnce() -> T) -> (usize, T) {
    LARGEST.with(|largest| largest.set(0));
    let result = act();
    (LARGEST.with(Cell::get), result)
}

#[test]
fn the_watch_sees_what_is_allocated() {
    assert_eq!(largest_allocation(|| std::hint::black_box(vec![0_u8; 12_345]).len()), (12_345, 12_345));
    assert_eq!(largest_allocation(|| 1), (0, 1));
}
