//! A frame costs no allocation in the steady state: not in this crate, and on memory and plain TCP not at all.
//!
//! Everything here runs on one thread, so that every allocation counted is one of a link.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::memory::MemoryCarrier;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier};
use phalanx_transport::link::Local;
use phalanx_transport::peer::{Endpoint, Opened};
use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::{Header, Kind};
use phalanx_transport::{Frame, Limits};

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

fn local(role: Role, name: &str) -> Local {
    Local {
        peer: PeerName { cluster: ClusterId([1; 16]), role, name: name.to_owned() },
        program: "allocations".to_owned(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: false,
    }
}

/// Round trips of some sizes, with more than a window in all, so that credits are granted as well.
async fn round_trips(count: u64, first: u64, coordinator: &mut Opened, node: &mut Opened, pool: &Pool) {
    for id in first..first + count {
        let bytes = [64, 14_336, 100_000][id as usize % 3];
        let mut header = Header::of_bytes(Kind::Dispatch, id, bytes);
        header.remaining_us = 60_000_000;
        let frame = Frame::new(header, pool.take(bytes as usize).unwrap());
        coordinator.peer.send(frame).await.unwrap();
        let frame = node.data.receive().await.unwrap().unwrap();
        let header = Header { kind: Kind::Return, payload_crc: 0, ..frame.header };
        // The same memory goes back: an expert writes its rows where it likes, an echo where they were.
        let payload = frame.payload.clone();
        drop(frame);
        node.peer.send(Frame::new(header, payload)).await.unwrap();
        let back = coordinator.data.receive().await.unwrap().unwrap();
        assert_eq!(back.header.dispatch, id);
    }
}

fn allocations_over(carrier: &dyn Carrier, acceptor: impl AsyncFnOnce() -> Box<dyn Acceptor>) -> u64 {
    const ROUND_TRIPS: u64 = 3_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = Pool::new(256 << 20);
        let endpoint =
            |role, name| Endpoint::new(local(role, name), Limits::default(), pool.clone()).unwrap();
        let mut listener = endpoint(Role::Coordinator, "front").listen(acceptor().await);
        let address = listener.address().to_owned();
        let node = endpoint(Role::Node, "node-1");
        let (node, mut coordinator) =
            tokio::join!(async { node.dial(carrier, &address).await.unwrap() }, listener.next_link());
        let mut node = node;
        round_trips(ROUND_TRIPS, 0, &mut coordinator, &mut node, &pool).await;
        let before = ALLOCATIONS.get();
        round_trips(ROUND_TRIPS, ROUND_TRIPS, &mut coordinator, &mut node, &pool).await;
        ALLOCATIONS.get() - before
    })
}

#[test]
fn memory_allocates_nothing() {
    let carrier = MemoryCarrier::default();
    let acceptor = async || Box::new(carrier.listen("here").unwrap()) as Box<dyn Acceptor>;
    assert_eq!(allocations_over(&carrier, acceptor), 0);
}

#[test]
fn plain_tcp_allocates_nothing() {
    let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(256 << 20));
    let acceptor = async || Box::new(carrier.listen("127.0.0.1:0").await.unwrap()) as Box<dyn Acceptor>;
    assert_eq!(allocations_over(&carrier, acceptor), 0);
}
