//! Flow and scheduler serve a million rows without an allocation, and quickly. Where pages are kept, a request has a list of its
//! own for their names.
//!
//! Everything here runs on one thread, so that every allocation counted is one of theirs. What stands for exchange, trunk
//! and page table only remembers rows in places that were there before.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use phalanx_coordinator::data::flow::{Flow, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::RowId;
use phalanx_coordinator::data::scheduler::{
    Action, Asked, Priority, RequestId, Scheduler, SchedulerSettings,
};

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

/// Time for which this thread had a core, where the host tells it: others may want the cores as well.
fn busy_ns() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

const STAGES: u32 = 59;
const SEQUENCES: u32 = 64;

/// Requests that come and go, some of them cancelled, among rows that return in any order.
struct World {
    flow: Flow,
    scheduler: Scheduler,
    out: Vec<RowId>,
    /// Prompts are parts of this.
    ids: Vec<u32>,
    /// Tokens that a sequence has yet to say.
    tokens_left: Vec<u32>,
    asked: u64,
    random: u64,
    /// Row visits to stages.
    visits: u64,
    rows: u64,
    preempted: u64,
}

impl World {
    fn new(forwarding: Forwarding, prefix_cache: bool) -> Self {
        let flow = FlowSettings {
            stages: STAGES,
            head_has_layers: false,
            rows_max: 512,
            sequences_max: SEQUENCES,
            batch_rows_max: 512,
            forwarding,
        };
        let scheduler = SchedulerSettings {
            sequences_max: SEQUENCES,
            queue_max: 16,
            pages: 40,
            rows_in_flight_max: 512,
            chunk_rows_max: 64,
            prefill_rows_max: 128,
            prefix_cache,
        };
        Self {
            flow: Flow::new(flow),
            scheduler: Scheduler::new(scheduler),
            out: Vec::with_capacity(512),
            ids: (0..1_000).collect(),
            tokens_left: vec![0; SEQUENCES as usize],
            asked: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            visits: 0,
            rows: 0,
            preempted: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) % below
    }

    fn carry_out(&mut self) {
        while self.scheduler.waiting() < 8 {
            self.asked += 1;
            let (start, prompt) = (self.random(500) as usize, 20 + self.random(200) as usize);
            let request = RequestId(self.asked);
            let prompt = &self.ids[start..start + prompt];
            let priority = Priority::default();
            let asked = Asked {
                request,
                prompt,
                tokens: &[],
                tokens_max: 100,
                priority,
                goes_alone: false,
                is_scored: false,
                bias: None,
            };
            self.scheduler.handle_request(asked).unwrap();
            if self.random(20) == 0 {
                let ago = self.random(100);
                self.scheduler.handle_cancel(RequestId(self.asked.saturating_sub(ago)));
            }
        }
        loop {
            while let Some(sequence) = self.flow.poll_left() {
                self.scheduler.handle_left(sequence);
            }
            self.scheduler.handle_rows_free(self.flow.rows_free());
            match self.scheduler.poll_action() {
                Some(Action::Chunk(chunk)) => {
                    self.rows += u64::from(chunk.count);
                    self.flow.handle_chunk(chunk);
                }
                Some(Action::Begin { sequence, .. }) => {
                    self.tokens_left[sequence.0 as usize] = 1 + self.random(100) as u32;
                }
                Some(Action::Preempt { .. }) => self.preempted += 1,
                Some(Action::SetAside { .. }) => panic!("no expert is missing"),
                Some(Action::Leave { sequence }) => self.flow.handle_cancel(sequence),
                Some(Action::Full { .. } | Action::Release { .. }) => {}
                Some(Action::Share { .. } | Action::Keep { .. }) => {}
                Some(Action::Replace { .. } | Action::Forget { .. }) => {}
                None => break,
            }
        }
    }

    fn compute(&mut self) {
        let Some(batch) = self.flow.poll_batch() else { return };
        self.visits += batch.rows.len() as u64;
        self.flow.handle_attended();
        let batch = self.flow.batch();
        self.out.extend(batch.rows.iter().filter(|&&row| self.flow.is_out(row)));
        if batch.stage + 1 == STAGES {
            for i in 0..self.flow.batch().runs.len() {
                let sequence = self.flow.batch().runs[i].sequence;
                let left = &mut self.tokens_left[sequence.0 as usize];
                *left = left.saturating_sub(1);
                match *left {
                    0 => self.scheduler.handle_finished(sequence),
                    _ => self.scheduler.handle_token(sequence, 7),
                }
            }
        }
        self.carry_out();
    }

    fn run(&mut self, rows: u64) {
        self.carry_out();
        let until = self.rows + rows;
        while self.rows < until {
            let back = self.random(self.out.len() as u64 + 1).max(1);
            for _ in 0..back.min(self.out.len() as u64) {
                let nth = self.random(self.out.len() as u64) as usize;
                let row = self.out.swap_remove(nth);
                self.flow.handle_whole(row);
            }
            self.carry_out();
            self.compute();
        }
    }
}

fn a_million_rows(forwarding: Forwarding, prefix_cache: bool) {
    const ROWS: u64 = 1_000_000;
    let mut world = World::new(forwarding, prefix_cache);
    world.run(ROWS / 10);
    let (visits, preempted, start_ns) = (world.visits, world.preempted, busy_ns());
    let (allocations, asked) = (ALLOCATIONS.get(), world.asked);
    world.run(ROWS);
    let allocations = ALLOCATIONS.get() - allocations;
    let ns = (busy_ns() - start_ns) as f64;
    let visits = world.visits - visits;
    println!(
        "{}: {ROWS} rows, {visits} visits to stages, {} preemptions: {:.0} ns a row, {:.1} ns a visit",
        forwarding.name(),
        world.preempted - preempted,
        ns / ROWS as f64,
        ns / visits as f64
    );
    let requests = if prefix_cache { world.asked - asked } else { 0 };
    assert!(allocations <= 3 * requests, "{allocations} of {requests} requests");
    assert!(visits > ROWS * u64::from(STAGES - 2) && world.preempted > preempted);
    assert!(ns / (visits as f64) < 1_000.0, "a guard only: it takes a tenth of this");
}

/// Rows that return in any order and find no company: the most work there is for each.
#[test]
fn partial_rows_cost_no_allocation() {
    a_million_rows(Forwarding::Partial, false);
}

#[test]
fn whole_rows_cost_no_allocation() {
    a_million_rows(Forwarding::Whole, false);
}

#[test]
fn kept_pages_cost_a_request_two_lists() {
    a_million_rows(Forwarding::Partial, true);
}
