//! The batcher allocates nothing once its queues have grown to what is needed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phalanx_node::batcher::{Action, Batcher, GroupId, LinkId, Waiting};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it does what `System` does, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A million rows in groups, with late ones, falls and links that end between them.
fn drive(batcher: &mut Batcher, groups: u32, start: Instant) -> u64 {
    let mut rows = 0;
    for id in 0..groups {
        let now = start + Duration::from_micros(id.into());
        let life = if id % 97 == 0 { Duration::ZERO } else { Duration::from_secs(1) };
        let group = GroupId(id % 4096);
        let link = LinkId(u64::from(id % 3));
        batcher.handle_group(Waiting { group, link, rows: 1 + id % 7, arrived: now, deadline: now + life });
        if id % 1009 == 0 {
            batcher.handle_link_ended(LinkId(1));
        }
        if id % 13 == 0 {
            if id % 26 == 0 {
                batcher.handle_computed(Duration::from_micros(5), now)
            } else {
                batcher.handle_fallen()
            }
        }
        while let Some(action) = batcher.poll_action(now) {
            if action == Action::Compute {
                rows += batcher.batch().iter().map(|group| u64::from(group.rows)).sum::<u64>();
            }
        }
    }
    rows
}

#[test]
fn a_steady_state_allocates_nothing() {
    let start = Instant::now();
    let mut batcher = Batcher::new(64);
    drive(&mut batcher, 10_000, start);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let began = Instant::now();
    let rows = drive(&mut batcher, 300_000, start);
    let (took, allocations) = (began.elapsed(), ALLOCATIONS.load(Ordering::Relaxed) - before);
    println!("{rows} rows of 300000 groups in {took:?}, {allocations} allocations");
    assert!(rows > 500_000);
    // The test's own printing threads may allocate a little; a group each would be 300,000.
    assert!(allocations < 100, "{allocations} allocations");
}
