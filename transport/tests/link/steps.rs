//! What a step costs: no allocation in the steady state, and a printed time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use phalanx_transport::link::{Link, Side};
use phalanx_transport::wire::control::Control;
use phalanx_transport::wire::{PerLane, charge};
use phalanx_transport::{Lane, Limits};

use crate::support::*;

struct Counting;

thread_local! {
    /// Per thread, for tests run beside one another.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both ends of an open link with the default limits.
fn pair(now: Instant) -> [Link; 2] {
    let limits = Limits::default();
    let mut ends = [Side::Dialled, Side::Accepted].map(|side| {
        let vouched = phalanx_transport::carrier::Vouched::Nobody;
        Link::new(side, local(side), limits, vouched, true, SESSION, PORTS, now)
    });
    carry(&mut ends, now);
    carry(&mut ends, now);
    ends.iter_mut().for_each(|end| while end.poll_event().is_some() {});
    ends
}

/// Control messages cross at once.
fn carry(ends: &mut [Link; 2], now: Instant) {
    for at in 0..2 {
        while let Some(message) = ends[at].poll_control() {
            ends[1 - at].handle_control(message, now);
        }
        while ends[at].poll_event().is_some() {}
    }
}

/// One dispatch there and its return, with credits, grants, heartbeats and deadlines: ten calls of the cores.
fn dispatch_and_return(
    ends: &mut [Link; 2],
    id: u64,
    in_flight: u64,
    released: &mut [PerLane<u64>; 2],
    now: Instant,
) {
    let frame = charge(14_336);
    ends[0].handle_send(Lane::Data, frame).expect("there is credit");
    ends[0].handle_dispatch(id, now + Duration::from_secs(1), now).expect("there is room");
    ends[1].handle_received(Lane::Data, frame).expect("it was granted");
    ends[1].handle_dispatched(id).expect("it is new");
    released[1].data += frame;
    ends[1].handle_released(Lane::Data, released[1].data, now);
    // The oldest returns, so that thousands stay in flight.
    if let Some(old) = id.checked_sub(in_flight) {
        ends[1].handle_send(Lane::Data, frame).expect("there is credit");
        assert!(ends[1].handle_returned(old));
        ends[0].handle_received(Lane::Data, frame).expect("it was granted");
        assert!(ends[0].handle_return(old));
        released[0].data += frame;
        ends[0].handle_released(Lane::Data, released[0].data, now);
    }
    for end in ends.iter_mut() {
        if end.poll_timeout().is_some_and(|due| due <= now) {
            end.handle_timeout(now);
        }
    }
    carry(ends, now);
}

#[test]
fn a_million_dispatches_allocate_nothing() {
    for in_flight in [1, 64, 4096] {
        a_million_dispatches(in_flight);
    }
}

fn a_million_dispatches(in_flight: u64) {
    let start = Instant::now();
    let mut ends = pair(start);
    let mut released = [PerLane::default(); 2];
    let (warm, steps) = (50_000, 1_000_000);
    for id in 0..warm {
        dispatch_and_return(&mut ends, id, in_flight, &mut released, start + Duration::from_micros(id));
    }
    let (before, clock) = (ALLOCATIONS.get(), Instant::now());
    for id in warm..warm + steps {
        dispatch_and_return(&mut ends, id, in_flight, &mut released, start + Duration::from_micros(id));
    }
    let (allocations, took) = (ALLOCATIONS.get() - before, clock.elapsed());
    let nanoseconds = took.as_nanos() as f64 / steps as f64;
    println!("a dispatch and its return, both ends, {in_flight} in flight: {nanoseconds:.0} ns");
    assert_eq!(allocations, 0);
    let counters = ends[0].counters();
    assert_eq!((counters.dispatches, counters.returns), (warm + steps, warm + steps - in_flight));
    assert!(counters.heartbeats >= 9, "time passed: {}", counters.heartbeats);
    assert!(counters.received_bytes.data > 10_000_000_000, "many windows went through");
}

/// The counter counts.
#[test]
fn an_allocation_is_seen() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Control::Probe { id: 1, padding: vec![0; 9] }));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
