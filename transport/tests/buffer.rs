//! A pool that has grown allocates nothing any more. A binary of its own, because it counts
//! allocations.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use phalanx_transport::buffer::{Buffer, Payload, Pool};

thread_local! {
    /// Of this thread: the harness has others, which allocate when they like.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is the system's; it is only counted. What is not written here goes through `alloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One round of what a link does with a frame: fill, share, keep for a resend, answer in place.
fn round(pool: &Pool, bytes: usize, held: &mut Vec<Payload>) {
    let mut buffer = pool.take(bytes).unwrap();
    buffer[0] = 1;
    let payload = Payload::from(buffer);
    held.push(payload.clone());
    held.push(payload.clone());
    drop(payload);
    held.pop();
    let answer: Buffer = held.pop().unwrap().try_into_buffer().unwrap();
    black_box(&answer);
}

/// One test, so that no other thread of the harness counts in.
#[test]
fn a_grown_pool_allocates_nothing() {
    let pool = Pool::new(64 << 20);
    let mut held = Vec::with_capacity(16);
    let sizes = [1, 64, 300, 14_336, 100_000, 1 << 20, 7 << 20];
    drop(sizes.map(|bytes| pool.take(bytes).unwrap()));

    let before = ALLOCATIONS.get();
    for index in 0..10_000 {
        round(&pool, sizes[index % sizes.len()], &mut held);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(pool.stats().loose_count, 0);

    // The counter counts: a pool that has to grow is seen.
    let before = ALLOCATIONS.get();
    drop(black_box(Pool::new(1 << 20).take(64)));
    assert!(ALLOCATIONS.get() > before);

    // Figures for people; a loaded machine may be slower, so nothing is asserted.
    for bytes in [64, 14_336, 1 << 20] {
        let rounds = 300_000;
        let begin = Instant::now();
        for _ in 0..rounds {
            drop(black_box(pool.take(bytes)));
        }
        println!("take and drop of {bytes} B: {:?}", begin.elapsed() / rounds);
    }
    let payload = Payload::from(pool.take(64).unwrap());
    let rounds = 1_000_000;
    let begin = Instant::now();
    for _ in 0..rounds {
        drop(black_box(payload.clone()));
    }
    println!("clone and drop of a payload: {:?}", begin.elapsed() / rounds);
}
