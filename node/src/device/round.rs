//! One round of a compute pool: all batches that were there, computed in one go and returned.
//!
//! Rows are read where they were received and outputs are written where they are sent from: one return for each
//! link and layer of the round, whose buffer is taken before anything is computed. Only where groups of several
//! frames meet in one batch are their rows gathered first, so that the weights are read once for all of them; and
//! where a batch's groups go back in several frames its outputs are copied there.
//!
//! A panic is caught. Which batch it was is found by computing them one by one, and only that one falls: a result
//! does not depend on its company, so the others' are what they would have been.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::expert_batch::{InnerRows, Part, PartOut, compute_parts};
use model::kernel::{Kernels, RowOut, RowType, RowsMut, RowsRef};
use model::pool::Pool;
use model::rows::{RowBuffer, ValuesMut, split_rows};
use transport::buffer::{Buffer, view};
use transport::wire::groups::return_table_bytes;

use super::ends::{Done, End, Ends, Made};
use super::{Batch, Computed, Outcome};
use crate::post::post;
use crate::returns::{ReturnPath, RowShape};

/// What a pool's thread keeps from round to round.
pub(super) struct Round {
    kernels: Kernels,
    pool: Arc<Pool>,
    inner: InnerRows,
    /// Row indices of groups that are read where they lie.
    picks: Vec<u32>,
    /// Rows that were gathered, and outputs that will be copied; one for each batch that needs it.
    gathered: Vec<RowBuffer>,
    scattered: Vec<RowBuffer>,
}

/// A return that is made in this round.
struct Returning {
    path: Arc<ReturnPath>,
    layer: u32,
    /// Runs of groups of one batch, in the order of their rows.
    runs: Vec<Run>,
    groups: usize,
    rows: usize,
    /// The range of dispatch ids.
    first: u64,
    last: u64,
    buffer: Option<Buffer>,
}

/// Consecutive groups of one batch in one return.
struct Run {
    batch: usize,
    groups: Range<usize>,
    rows: usize,
}

/// How a batch is read and written.
#[derive(Default)]
struct Plan {
    /// Runs that it is returned in.
    runs: usize,
    rows: usize,
    /// Of `picks`, where its rows are read in place.
    pick: Option<Range<usize>>,
    /// Of `gathered` and `scattered`.
    gathered: Option<usize>,
    scattered: Option<usize>,
}

impl Round {
    pub(super) fn new(kernels: Kernels, pool: Arc<Pool>) -> Self {
        let inner = InnerRows::new(kernels.class().row_type());
        Self { kernels, pool, inner, picks: Vec::new(), gathered: Vec::new(), scattered: Vec::new() }
    }

    /// Computes all batches and returns their rows. None is left in `batches`.
    pub(super) fn compute(&mut self, batches: &mut Vec<Batch>) {
        for group in batches.iter_mut().flat_map(|batch| &mut batch.groups) {
            group.begin();
        }
        if self.try_compute(batches).is_ok() {
            batches.clear();
            return;
        }
        for mut batch in batches.drain(..) {
            if let Err(panic) = self.try_compute(std::slice::from_mut(&mut batch)) {
                let Batch { groups, actor, .. } = batch;
                post(&actor, Computed { groups, outcome: Outcome::Fell(words_of(&*panic)) });
            }
        }
    }

    /// The same, or nothing at all and the panic.
    fn try_compute(&mut self, batches: &mut [Batch]) -> Result<(), Box<dyn Any + Send>> {
        let began = Instant::now();
        let mut returning = plan_returns(batches);
        catch_unwind(AssertUnwindSafe(|| self.compute_into(batches, &mut returning)))?;
        finish(batches, returning, began.elapsed());
        Ok(())
    }

    fn compute_into(&mut self, batches: &[Batch], returning: &mut [Returning]) {
        let plans = self.plan_batches(batches, returning);
        let Self { kernels, pool, inner, picks, gathered, scattered } = self;
        let mut outs: Vec<Option<RowOut<'_>>> = batches.iter().map(|_| None).collect();
        // Windows of returns that are filled by a copy.
        let mut copies = Vec::new();
        for into in returning {
            let rows = into.rows;
            let Some(buffer) = &mut into.buffer else { continue };
            let (groups, shape) = (into.groups, into.path.shape);
            let windows =
                split_rows(rows_of(buffer, groups, shape, rows), into.runs.iter().map(|run| run.rows));
            for (run, window) in into.runs.iter().zip(windows) {
                match plans[run.batch].scattered {
                    None => outs[run.batch] = Some(window),
                    Some(_) => copies.push((run, window)),
                }
            }
        }
        let mut scattered_outs: Vec<_> = scattered.iter_mut().map(Some).collect();
        let parts = batches
            .iter()
            .zip(&plans)
            .zip(outs)
            // Without a window there was no memory for its return, and it is not computed.
            .filter(|((_, plan), _)| plan.runs > 0)
            .map(|((batch, plan), out)| {
                if batch.falls {
                    // A fault that was asked for is no news for a person, so the hook is not called.
                    std::panic::resume_unwind(Box::new("it was told to fall"));
                }
                let out = match plan.scattered {
                    None => out.expect("a batch that is returned in one run has its window"),
                    Some(at) => scattered_outs[at].take().expect("one batch, one buffer").out(),
                };
                let (input, pick) = match (&plan.pick, plan.gathered) {
                    (Some(pick), _) => (batch.groups[0].frame_rows(), Some(&picks[pick.clone()])),
                    (None, Some(at)) => (gathered[at].view(), None),
                    (None, None) => unreachable!("a batch is read in place or gathered"),
                };
                Part { block: &batch.weights, input, pick, rows: plan.rows, out: part_out(out) }
            })
            .collect();
        compute_parts(*kernels, pool, parts, inner);
        let mut taken = vec![0; scattered.len()];
        for (run, window) in copies {
            let at = plans[run.batch].scattered.expect("only such are copied");
            copy_rows(&mut scattered[at], taken[at], window);
            taken[at] += run.rows;
        }
    }

    /// How each batch is read and written; gathers what has to be.
    fn plan_batches(&mut self, batches: &[Batch], returning: &[Returning]) -> Vec<Plan> {
        let mut plans: Vec<Plan> = batches.iter().map(|_| Plan::default()).collect();
        for run in returning.iter().filter(|into| into.buffer.is_some()).flat_map(|into| &into.runs) {
            plans[run.batch].runs += 1;
            plans[run.batch].rows += run.rows;
        }
        let row = self.kernels.class().row_type();
        let (mut gathered, mut scattered) = (0, 0);
        self.picks.clear();
        for (index, plan) in plans.iter_mut().enumerate().filter(|(_, plan)| plan.runs > 0) {
            let groups = &batches[index].groups;
            let RowShape { columns, back, .. } = groups[0].path().shape;
            let columns = columns as usize;
            let runs = || {
                returning
                    .iter()
                    .filter(|into| into.buffer.is_some())
                    .flat_map(|into| into.runs.iter().filter(|run| run.batch == index))
            };
            if let [group] = &groups[..] {
                let start = self.picks.len();
                self.picks.extend(group.indices());
                plan.pick = Some(start..self.picks.len());
            } else {
                plan.gathered = Some(gathered);
                let buffer = nth(&mut self.gathered, gathered, row);
                gathered += 1;
                buffer.reset(plan.rows, columns);
                let mut to = 0;
                for group in runs().flat_map(|run| &groups[run.groups.clone()]) {
                    gather(buffer, to, group.frame_rows(), group.indices(), columns);
                    to += group.rows() as usize;
                }
            }
            if plan.runs > 1 {
                plan.scattered = Some(scattered);
                nth(&mut self.scattered, scattered, back).reset(plan.rows, columns);
                scattered += 1;
            }
        }
        plans
    }
}

/// Which groups go back together, each with its buffer.
fn plan_returns(batches: &[Batch]) -> Vec<Returning> {
    let mut all: Vec<Returning> = Vec::new();
    for (batch, groups) in batches.iter().map(|batch| &batch.groups).enumerate() {
        for (index, group) in groups.iter().enumerate() {
            let (path, layer, rows) = (group.path(), group.layer(), group.rows() as usize);
            let dispatch = group.entry().dispatch;
            let fits = |into: &Returning| {
                let payload =
                    return_table_bytes(into.groups + 1) + (into.rows + rows) * path.shape.back_bytes();
                Arc::ptr_eq(&into.path, path)
                    && into.layer == layer
                    && into.groups < usize::from(u16::MAX)
                    && payload <= path.payload_bytes_max()
                    && into.last.max(dispatch) - into.first.min(dispatch) <= u64::from(u32::MAX)
            };
            let into = match all.iter().rposition(fits) {
                Some(at) => &mut all[at],
                None => {
                    all.push(Returning {
                        path: Arc::clone(path),
                        layer,
                        runs: Vec::new(),
                        groups: 0,
                        rows: 0,
                        first: dispatch,
                        last: dispatch,
                        buffer: None,
                    });
                    all.last_mut().expect("just pushed")
                }
            };
            (into.first, into.last) = (into.first.min(dispatch), into.last.max(dispatch));
            into.groups += 1;
            into.rows += rows;
            match into.runs.last_mut() {
                Some(run) if run.batch == batch && run.groups.end == index => {
                    run.groups.end += 1;
                    run.rows += rows;
                }
                _ => into.runs.push(Run { batch, groups: index..index + 1, rows }),
            }
        }
    }
    for into in &mut all {
        into.buffer = into.path.buffer(into.groups, into.rows);
    }
    all
}

/// Has what was computed sent, and the actors told.
fn finish(batches: &mut [Batch], returning: Vec<Returning>, elapsed: Duration) {
    // Mostly one: nodes of one process share an arbiter.
    let mut all: Vec<(Ends, End)> = Vec::with_capacity(1);
    for into in returning {
        let groups = |run: &Run| &batches[run.batch].groups[run.groups.clone()];
        let groups = into.runs.iter().flat_map(groups).map(|group| group.entry()).collect();
        let first = into.runs.first().expect("a return has a group").batch;
        let made = Made { path: into.path, layer: into.layer, buffer: into.buffer, groups };
        end_for(&mut all, &batches[first].ends).returns.push(made);
    }
    let work = |batch: &Batch| {
        let rows: u32 = batch.groups.iter().map(|group| group.rows()).sum();
        batch.weights.bytes() as u64 * u64::from(rows.div_ceil(8))
    };
    let all_work: u64 = batches.iter().map(work).sum();
    for batch in batches {
        let busy = elapsed.mul_f64(work(batch) as f64 / all_work.max(1) as f64).max(batch.busy_min);
        let done = Done { actor: batch.actor.clone(), groups: std::mem::take(&mut batch.groups), busy };
        end_for(&mut all, &batch.ends).batches.push(done);
    }
    for (ends, end) in all {
        ends.tell(end);
    }
}

/// What one arbiter is told.
fn end_for<'a>(all: &'a mut Vec<(Ends, End)>, ends: &Ends) -> &'a mut End {
    let at = all.iter().position(|(other, _)| other.is(ends)).unwrap_or_else(|| {
        all.push((ends.clone(), End::default()));
        all.len() - 1
    });
    &mut all[at].1
}

/// The rows behind the table of a return.
fn rows_of(buffer: &mut Buffer, groups: usize, shape: RowShape, rows: usize) -> RowOut<'_> {
    let bytes = &mut buffer[return_table_bytes(groups)..];
    let columns = shape.columns as usize;
    match shape.back {
        RowType::Bf16 => {
            let values = view::as_u16_mut(bytes).expect("buffers and tables are multiples of 64 bytes");
            RowOut::Bf16(RowsMut::new(values, rows, columns, columns))
        }
        RowType::F32 => {
            let values = view::as_f32_mut(bytes).expect("buffers and tables are multiples of 64 bytes");
            RowOut::F32(RowsMut::new(values, rows, columns, columns))
        }
    }
}

/// Sums in f32 are returned as they are: of class `f32`, and a shard's, which are rounded when all shards are added.
fn part_out(out: RowOut<'_>) -> PartOut<'_> {
    match out {
        RowOut::F32(sums) => PartOut::Partial(sums),
        RowOut::Bf16(_) => PartOut::Whole(out),
    }
}

fn nth(buffers: &mut Vec<RowBuffer>, at: usize, row: RowType) -> &mut RowBuffer {
    if buffers.len() == at {
        buffers.push(RowBuffer::new(row));
    }
    let buffer = &mut buffers[at];
    // A node that has served a model whole may serve another in shards.
    if buffer.row_type() != row {
        *buffer = RowBuffer::new(row);
    }
    buffer
}

/// Copies rows of a frame to row `to` of a buffer and those behind it.
fn gather(
    into: &mut RowBuffer,
    to: usize,
    from: RowsRef<'_>,
    indices: impl Iterator<Item = u32>,
    columns: usize,
) {
    match (into.values_mut(), from) {
        (ValuesMut::Bf16(into), RowsRef::Bf16 { data, stride }) => {
            copy_picked(&mut into[to * columns..], data, stride, indices, columns);
        }
        (ValuesMut::F32(into), RowsRef::F32 { data, stride }) => {
            copy_picked(&mut into[to * columns..], data, stride, indices, columns);
        }
        _ => unreachable!("the element of a dispatch is checked before its groups are handed on"),
    }
}

fn copy_picked<T: Copy>(
    into: &mut [T],
    from: &[T],
    stride: usize,
    indices: impl Iterator<Item = u32>,
    columns: usize,
) {
    for (into, index) in into.chunks_exact_mut(columns).zip(indices) {
        into.copy_from_slice(&from[index as usize * stride..][..columns]);
    }
}

/// Copies rows of a buffer, from row `start` on, into a window.
fn copy_rows(from: &mut RowBuffer, start: usize, window: RowOut<'_>) {
    let columns = from.columns();
    match (from.values_mut(), window) {
        (ValuesMut::Bf16(from), RowOut::Bf16(mut into)) => {
            (0..into.rows()).for_each(|row| {
                into.row_mut(row).copy_from_slice(&from[(start + row) * columns..][..columns]);
            });
        }
        (ValuesMut::F32(from), RowOut::F32(mut into)) => {
            (0..into.rows()).for_each(|row| {
                into.row_mut(row).copy_from_slice(&from[(start + row) * columns..][..columns]);
            });
        }
        _ => unreachable!("buffers and returns have the class's row type"),
    }
}

/// What a panic said.
pub(crate) fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
