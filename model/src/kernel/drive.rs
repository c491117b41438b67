//! Cuts tasks into tiles and tiles into blocks, and hands the blocks to the kernels.
//!
//! A *tile* is some panels of one task, for a run of its rows; a thread claims one after the other from a counter, larger
//! ones first. Inside, terms are cut into blocks that stay in the caches, rows into passes whose values stay in
//! L2, panels into what a kernel takes at once. Sums that are not complete wait in f32 in the thread's
//! own scratch, in order, so cutting changes no bits.
//!
//! Weights come from memory once per tile. While a block is computed the next is prefetched, and the next tile is
//! claimed before the last blocks of this one, so that prefetching runs on across tiles and tasks.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::block::{Ahead, Block, STEP};
use super::finish::{Sums, finish};
use super::gemm::{Job, Task, Then};
use super::matrix::{Element, Matrix, PANEL};
use super::path::{Mode, Plan, TILE_PANELS_MAX};
use super::rows::RowsRef;
use super::{Kernels, Region, math};
use crate::pool::Pool;

/// The most rows of a tile; more are computed as if they were several tasks. Weights are then read once for every
/// so many rows, which costs 256 multiply-adds per weight: memory does not bind.
const TILE_ROWS_MAX: usize = 256;

/// Bytes of scratch for rows: half of a 1 MiB L2, and what most smaller ones can share with the weights.
const ROW_BYTES: usize = 448 << 10;
/// Bytes of scratch for sums: the most rows of the most panels of a tile.
const SUM_BYTES: usize = TILE_ROWS_MAX * TILE_PANELS_MAX * PANEL * 4;

/// Less work than this (bytes of weights and multiply-adds, whichever is more) is not worth waking other threads.
const WORK_ALONE: usize = 48 << 10;

/// How one task is cut, and where its units begin among those of all tasks. A unit is two panels.
struct Share {
    plan: Plan,
    first: usize,
    units: usize,
    /// Runs of rows.
    runs: usize,
    /// Units that are not finished.
    left: AtomicUsize,
}

/// A piece of a task that one thread computes.
#[derive(Clone, Copy)]
struct Tile {
    task: usize,
    row: usize,
    rows: usize,
    panel: usize,
    panels: usize,
}

/// The panels of a tile that a kernel computes at once. They lie far apart, so that each of the streams that a kernel reads
/// runs on through the tile: new streams cost the memory more than long ones.
#[derive(Clone, Copy)]
struct Group {
    panel: usize,
    panels: usize,
    /// From one panel of the group to the next.
    apart: usize,
    /// Panels of the tile.
    all: usize,
}

impl Group {
    /// The first of a tile of `all` panels, for kernels of at most `most` panels (a power of two).
    fn first(most: usize, all: usize) -> Group {
        let mut panels = most;
        while panels > all {
            panels /= 2;
        }
        Group { panel: 0, panels, apart: all / panels, all }
    }

    fn next(self) -> Option<Group> {
        if self.panel + 1 < self.apart {
            return Some(Group { panel: self.panel + 1, ..self });
        }
        // What did not go into the streams.
        let done = self.panel + (self.panels - 1) * self.apart + 1;
        let left = self.all - done;
        (left > 0).then(|| {
            let panels = if left >= 2 && self.panels > 2 { 2 } else { 1 };
            Group { panel: done, panels, apart: 1, ..self }
        })
    }
}

/// Tasks that all threads may read: each writes only the tiles it has claimed.
struct Shared<'a, 'b> {
    tasks: &'a [Task<'b>],
    then: &'a [Then<'b>],
}
// SAFETY: matrices and inputs are only read; sinks are written by whoever claimed a tile, and no tile is claimed twice.
unsafe impl Sync for Shared<'_, '_> {}

thread_local! {
    static SHARES: RefCell<Vec<Share>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: Scratch = Scratch::new();
}

pub(super) fn drive(kernels: Kernels, pool: &Pool, tasks: &[Task<'_>], then: &[Then<'_>]) {
    let mut shares = SHARES.take();
    shares.clear();
    let mut total = 0;
    let mut work = 0;
    let mut add = |weights: &Matrix, rows: usize, bf16_rows: bool| {
        let shape = weights.shape();
        let runs = rows.div_ceil(TILE_ROWS_MAX);
        let mode = Plan::mode(kernels, bf16_rows, shape.element == Element::Bf16);
        let plan = Plan::new(kernels, mode, rows.div_ceil(runs.max(1)), shape.k);
        let units = shape.panels().div_ceil(2);
        shares.push(Share { plan, first: total, units, runs, left: AtomicUsize::new(units * runs) });
        total += units * runs;
        work += shape.bytes() * rows.div_ceil(8);
        total
    };
    let mut firsts = 0;
    for task in tasks {
        firsts = add(task.weights, task.rows, matches!(task.input, RowsRef::Bf16 { .. }));
    }
    for (task, then) in tasks.iter().zip(then) {
        add(then.weights, task.rows, task.sink.rounds());
    }
    let claims = Claims {
        work: Shared { tasks, then },
        shares: &shares,
        // With one task the second product has to wait for all of the first, which should end on all threads at once.
        firsts: if tasks.len() == 1 { firsts } else { total },
        total,
        threads: pool.threads(),
        next: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    };
    let compute =
        |_| SCRATCH.with(|scratch| Thread { kernels, claims: &claims, scratch, rows_held: None }.run());
    if work < WORK_ALONE {
        compute(0)
    } else {
        pool.run(&compute)
    }
    SHARES.set(shares);
}

struct Claims<'a, 'b> {
    work: Shared<'a, 'b>,
    shares: &'a [Share],
    firsts: usize,
    total: usize,
    threads: usize,
    next: AtomicUsize,
    /// A thread has panicked: what others wait for may never come.
    failed: AtomicBool,
}

impl Claims<'_, '_> {
    /// The next tile; `task` is that of the tile claimed before, as tiles come in order.
    fn claim(&self, task: usize) -> Option<Tile> {
        let mut task = task;
        let mut at = self.next.load(Ordering::Relaxed);
        loop {
            if at >= self.total {
                return None;
            }
            while at >= self.shares[task].first + self.shares[task].units * self.shares[task].runs {
                task += 1;
            }
            let share = &self.shares[task];
            let (run, unit) = ((at - share.first) / share.units, (at - share.first) % share.units);
            // Smaller towards the end, so that all threads finish together; whole kernels' worth while there is more.
            let end = if at < self.firsts { self.firsts } else { self.total };
            let most = match (end - at) / (2 * self.threads) {
                _ if self.threads == 1 => usize::MAX,
                0 => 1,
                most => most.next_multiple_of(2),
            };
            let units = (share.plan.tile / 2).min(share.units - unit).min(most);
            match self.next.compare_exchange_weak(at, at + units, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let (rows, panels) = (self.rows(task), self.weights(task).shape().panels());
                    let row = rows * run / share.runs;
                    return Some(Tile {
                        task,
                        row,
                        rows: rows * (run + 1) / share.runs - row,
                        panel: unit * 2,
                        panels: (units * 2).min(panels - unit * 2),
                    });
                }
                Err(now) => at = now,
            }
        }
    }

    fn rows(&self, task: usize) -> usize {
        self.work.tasks[task % self.work.tasks.len()].rows
    }

    fn weights(&self, task: usize) -> &Matrix {
        let tasks = self.work.tasks.len();
        if task < tasks { self.work.tasks[task].weights } else { self.work.then[task - tasks].weights }
    }

    /// The task of a tile, once there are the rows for it.
    fn job(&self, task: usize) -> Job<'_> {
        let Some(first) = task.checked_sub(self.work.tasks.len()) else {
            return self.work.tasks[task].job();
        };
        let mut turns = 0_u32;
        while self.shares[first].left.load(Ordering::Acquire) > 0 {
            assert!(!self.failed.load(Ordering::Relaxed), "another thread has panicked");
            turns += 1;
            // Whoever has them may wait for this very core.
            if turns.is_multiple_of(1000) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        // SAFETY: no tile of the first product is left, and what was written is seen by whoever saw that.
        unsafe { self.work.then[first].job(&self.work.tasks[first]) }
    }

    /// The first line of a tile's panels, for prefetching, and the bytes between panels.
    fn start_of(&self, kernels: Kernels, tile: Tile) -> (*const u8, usize) {
        let weights = self.weights(tile.task);
        let apart = Group::first(self.shares[tile.task].plan.panels_max(kernels), tile.panels).apart;
        (weights.panel(tile.panel), apart * weights.shape().panel_bytes())
    }
}

/// What a thread keeps between runs.
struct Scratch {
    memory: Region,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch { memory: Region::new((ROW_BYTES + SUM_BYTES).next_multiple_of(2 << 20)) }
    }

    fn rows(&self) -> *mut f32 {
        self.memory.as_ptr().cast()
    }

    fn sums(&self) -> *mut f32 {
        self.memory.as_ptr().wrapping_add(ROW_BYTES).cast()
    }
}

/// Which rows lie in the scratch: of which task, from which row and which k on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    task: usize,
    row: usize,
    rows: usize,
    term: usize,
    terms: usize,
}

/// One thread's part of a run.
struct Thread<'a, 'b> {
    kernels: Kernels,
    claims: &'a Claims<'a, 'b>,
    scratch: &'a Scratch,
    rows_held: Option<Held>,
}

/// Says that a thread has panicked, if it is dropped.
struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Thread<'_, '_> {
    fn run(&mut self) {
        let failing = Failing(&self.claims.failed);
        let mut tile = self.claims.claim(0);
        while let Some(now) = tile {
            tile = self.tile(now);
            self.claims.shares[now.task].left.fetch_sub(now.panels.div_ceil(2), Ordering::Release);
        }
        std::mem::forget(failing);
    }

    /// Computes a tile, and returns the next, which it has claimed before the end to prefetch its weights.
    fn tile(&mut self, tile: Tile) -> Option<Tile> {
        let task = &self.claims.job(tile.task);
        let plan = self.claims.shares[tile.task].plan;
        let k = task.weights.k();
        let whole = tile.rows * stride(plan.mode, k) * 4 <= ROW_BYTES;
        let passes = tile.rows.div_ceil(plan.pass);
        let panel_bytes = task.weights.shape().panel_bytes();
        let mut next = None;
        let c_stride = tile.panels * PANEL;
        let tile_apart = Group::first(plan.panels_max(self.kernels), tile.panels).apart;
        let mut k0 = 0;
        while k0 < k {
            let terms = plan.terms.min(k - k0);
            let last_terms = k0 + terms == k;
            for index in 0..passes {
                let (row, end) = (tile.rows * index / passes, tile.rows * (index + 1) / passes);
                let rows = end - row;
                let (a, a_stride) = if whole {
                    let held = Held { task: tile.task, row: tile.row, rows: tile.rows, term: 0, terms: k };
                    let a_stride = self.hold(task, plan.mode, held);
                    (self.scratch.rows().wrapping_add(row * a_stride + columns(plan.mode, k0)), a_stride)
                } else {
                    let held = Held { task: tile.task, row: tile.row + row, rows, term: k0, terms };
                    (self.scratch.rows(), self.hold(task, plan.mode, held))
                };
                let blocks = rows.div_ceil(plan.rows_max);
                let mut group = Some(Group::first(plan.panels_max(self.kernels), tile.panels));
                while let Some(now) = group {
                    let Group { panel, panels, apart, .. } = now;
                    let at = |panel: usize, k: usize| line(task, tile.panel + panel, k);
                    group = now.next();
                    // What comes after this group of panels, and the bytes between its panels.
                    let after = if let Some(next) = group {
                        Some((at(next.panel, k0), next.apart * panel_bytes))
                    } else if index + 1 < passes {
                        Some((at(0, k0), tile_apart * panel_bytes))
                    } else if !last_terms {
                        Some((at(0, k0 + terms), tile_apart * panel_bytes))
                    } else {
                        next = self.claims.claim(tile.task);
                        next.map(|next| self.claims.start_of(self.kernels, next))
                    };
                    for block in 0..blocks {
                        let (first, end) = (rows * block / blocks, rows * (block + 1) / blocks);
                        let part = Block {
                            rows: end - first,
                            panels,
                            terms,
                            a: a.wrapping_add(first * a_stride),
                            a_stride,
                            b: at(panel, k0),
                            b_stride: apart * panel_bytes,
                            c: self.scratch.sums().wrapping_add((row + first) * c_stride + panel * PANEL),
                            c_stride,
                            c_apart: apart * PANEL,
                            accumulate: k0 > 0,
                            ahead: Ahead::NOTHING,
                        };
                        for part in plan.ahead(self.kernels, part, after, block, blocks) {
                            let kernel = Plan::kernel(
                                self.kernels,
                                plan.mode,
                                part.rows,
                                panels,
                                part.ahead.step != 0,
                            );
                            // SAFETY: rows are held for these terms, the panels are the matrix's, the sums this
                            // thread's scratch, which has room for the rows and panels of any tile.
                            unsafe { Plan::compute(self.kernels, plan.mode, kernel, part) };
                        }
                    }
                }
                if last_terms {
                    let sums = Sums {
                        start: self.scratch.sums().wrapping_add(row * c_stride),
                        row_stride: c_stride,
                        panel_stride: PANEL,
                        row: tile.row + row,
                        rows,
                        panel: tile.panel,
                        panels: tile.panels,
                    };
                    finish(self.kernels, task, sums);
                }
            }
            k0 += terms;
        }
        next
    }

    /// Has the rows in the scratch, and returns how far apart they lie.
    fn hold(&mut self, task: &Job<'_>, mode: Mode, held: Held) -> usize {
        let a_stride = stride(mode, held.terms);
        if self.rows_held == Some(held) {
            return a_stride;
        }
        assert!(
            held.rows * a_stride * 4 <= ROW_BYTES,
            "{} rows of {} values are cut too large",
            held.rows,
            held.terms
        );
        for row in 0..held.rows {
            let source = task.row_index(held.row + row);
            // SAFETY: inside the scratch, by the assertion above.
            let target = unsafe {
                std::slice::from_raw_parts_mut(
                    self.scratch.rows().add(row * a_stride),
                    columns(mode, held.terms + 1),
                )
            };
            match task.input {
                RowsRef::Bf16 { data, stride } => {
                    let data = &data[source * stride + held.term..][..held.terms];
                    if mode == Mode::Paired {
                        let (pairs, rest) = data.as_chunks::<2>();
                        for (target, pair) in target.iter_mut().zip(pairs) {
                            *target = f32::from_bits(u32::from(pair[1]) << 16 | u32::from(pair[0]));
                        }
                        if let [last] = rest {
                            target[pairs.len()] = f32::from_bits(u32::from(*last));
                        }
                    } else {
                        math::widen_row(self.kernels, data, &mut target[..held.terms]);
                        if held.terms % 2 == 1 {
                            // The other half of the last pair.
                            target[held.terms] = 0.0;
                        }
                    }
                }
                RowsRef::F32 { data, stride } => {
                    target[..held.terms].copy_from_slice(&data[source * stride + held.term..][..held.terms]);
                }
            }
        }
        self.rows_held = Some(held);
        a_stride
    }
}

/// Where the line of a panel's k begins. k is even.
fn line(task: &Job<'_>, panel: usize, k: usize) -> *const u8 {
    let bytes = match task.weights.shape().element {
        Element::Bf16 => 32,
        Element::F32 => 64,
    };
    task.weights.panel(panel).wrapping_add(k * bytes)
}

/// Values that k terms of a row are in the scratch.
fn columns(mode: Mode, k: usize) -> usize {
    if mode == Mode::Paired { k / 2 } else { k }
}

/// Values from one row in the scratch to the next: a line more than the row, so that rows do not share cache sets.
fn stride(mode: Mode, k: usize) -> usize {
    columns(mode, k + 1).next_multiple_of(16) + 16
}

impl Plan {
    /// The block with what it prefetches: what comes `after` it, or what is `near`. It is cut in two by
    /// its terms where that changes on the way.
    fn ahead(
        &self,
        kernels: Kernels,
        whole: Block,
        after: Option<(*const u8, usize)>,
        block: usize,
        blocks: usize,
    ) -> impl Iterator<Item = Block> {
        let (panels, terms) = (whole.panels, whole.terms);
        let streams = Plan::streams(kernels, panels);
        // One panel by as many streams as there are lines in a step, one line each.
        let follow = |start: *const u8, panel_bytes: usize| {
            let stride = if streams == panels { panel_bytes } else { LINES / streams };
            Ahead { start, stride, step: LINES }
        };
        let cut = terms.saturating_sub(NEAR_TERMS) / STEP * STEP;
        let mut first = None;
        let mut rest = Block { ahead: Ahead::NOTHING, ..whole };
        if self.mode == Mode::Full {
            // The kernels of f32 panels prefetch nothing.
        } else if self.near {
            let on = after == Some((whole.b.wrapping_add(terms * 32), whole.b_stride));
            if on {
                rest.ahead = follow(whole.b.wrapping_add(NEAR_TERMS * 32), whole.b_stride);
            } else if cut > 0 {
                let start = whole.b.wrapping_add((terms - cut) * 32);
                first = Some(Block { terms: cut, ahead: follow(start, whole.b_stride), ..whole });
                rest.a = whole.a.wrapping_add(columns(self.mode, cut));
                rest.b = whole.b.wrapping_add(cut * 32);
                rest.terms = terms - cut;
                rest.accumulate = true;
            }
            if let Some((start, stride)) = after
                && !on
            {
                rest.ahead = follow(start, stride);
            }
        } else if let Some((start, stride)) = after {
            let spread = blocks.min(SPREAD_MAX);
            // The streams are a panel each, or equal parts of one, and every block takes a part of each.
            let (part, stride, step) = if streams == panels {
                (terms * 32, stride, LINES)
            } else {
                (terms * 32 / streams, terms * 32 / streams, LINES / streams)
            };
            if block < spread {
                rest.ahead =
                    Ahead { start: start.wrapping_add(part / spread * block), stride, step: step / spread };
            }
        }
        first.into_iter().chain([rest])
    }
}

/// How far ahead of itself a kernel prefetches when it reads every weight once: 2 KiB of each panel.
const NEAR_TERMS: usize = 64;

/// Bytes of a panel that a kernel goes on by at a time.
const LINES: usize = STEP * 32;

/// Over how many blocks of rows the next weights are prefetched.
const SPREAD_MAX: usize = 2;
