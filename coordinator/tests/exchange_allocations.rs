//! Rows go out and come back without an allocation in the steady state.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_coordinator::data::exchange::{Exchange, ExchangeSettings, LinkRoom};
use phalanx_coordinator::data::ids::{LinkId, RowId};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};
use transport::wire::cluster::Epoch;
use transport::wire::groups::Reason;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ROWS: u32 = 128;
const EXPERTS: u32 = 64;
const TOP_K: usize = 4;
const NODES: u32 = 4;

/// Many batches: some whole, some in narrow rooms, now and then a busy actor.
fn pass(exchange: &mut Exchange, out: &mut Vec<(LinkId, u64, u32)>, now: &mut Instant) {
    let mut experts = [0; ROWS as usize * TOP_K];
    let rows: [RowId; ROWS as usize] = std::array::from_fn(|row| RowId(row as u32));
    for round in 0..200_u32 {
        for (index, expert) in experts.iter_mut().enumerate() {
            let (row, rank) = (index as u32 / TOP_K as u32, index as u32 % TOP_K as u32);
            *expert = (row * 7 + round * 13 + rank * (1 + row % 15)) % EXPERTS;
        }
        exchange.handle_chosen(round % 3, &rows, TOP_K, &experts, *now + Duration::from_secs(9), *now);
        let mut whole = 0;
        while whole < ROWS {
            while let Some(frame) = exchange.poll_dispatch(*now) {
                out.extend(
                    frame.groups.iter().map(|group| (frame.link, group.dispatch, group.indices.len() as u32)),
                );
            }
            *now += Duration::from_millis(10);
            exchange.handle_timeout(*now);
            while let Some((link, dispatch, rows)) = out.pop() {
                if dispatch % 97 == 0 {
                    exchange.handle_refused(link, dispatch, Reason::Busy, *now);
                } else {
                    exchange.handle_return(link, dispatch, rows, *now).taken().unwrap();
                }
            }
            while exchange.poll_whole().is_some() {
                whole += 1;
            }
        }
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    let mut now = Instant::now();
    let seat = |expert: u32, replica: u32| Seat { node: NodeId((expert + replica) % NODES), device: 0 };
    let replicas = |expert: u32| {
        (0..2).map(move |number| Replica { number: number as u8, seats: vec![seat(expert, number)] })
    };
    let layer = |_| (0..EXPERTS).map(|expert| replicas(expert).collect()).collect();
    let layers = (0..3).map(|number| (number, layer(number))).collect();
    let placement = Placement { epoch: Epoch { term: 1, number: 1 }, layers };
    for rows_at_once in [20_u64, 10_000] {
        let mut exchange = Exchange::new(ExchangeSettings::new(ROWS, TOP_K as u32, 1, 1024));
        exchange.handle_placement(Arc::new(placement.clone()), now);
        for node in 0..NODES {
            let bytes = rows_at_once * 2048;
            let room =
                LinkRoom { out_bytes: bytes, back_bytes: bytes, dispatches: 4096, payload_bytes: bytes / 2 };
            exchange.handle_link(LinkId(node), NodeId(node), room, now);
        }
        let mut out = Vec::with_capacity(10_000);
        pass(&mut exchange, &mut out, &mut now);
        let before = ALLOCATIONS.get();
        pass(&mut exchange, &mut out, &mut now);
        assert_eq!(ALLOCATIONS.get() - before, 0, "with room for {rows_at_once} rows");
        assert!(exchange.counters().refused[3] > 50);
    }
}
