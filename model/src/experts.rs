//! Rows grouped by expert, and the experts that compute them.
//!
//! An expert is a pure function of its rows. The plain loop takes whoever computes them as an argument
//! ([`Experts`]): experts of this process here, any device, carrier or cluster elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use crate::gate::Choices;
use crate::kernel::{Kernels, RowOut, RowType, RowsRef, Sink, Task, Then, multiply_twice};
use crate::pool::Pool;
use crate::rows::{RowBuffer, split_rows, write_row};
use crate::weights::{Block, ExpertId};

/// An error of whoever computes experts.
pub type ExpertsError = Box<dyn std::error::Error + Send + Sync>;

/// The rows of one layer's step, grouped by expert. Experts ascend, rows ascend within a group.
#[derive(Debug, Default)]
pub struct Groups {
    /// The experts that have rows.
    pub experts: Vec<u32>,
    /// Where each group begins in `rows`; one more entry at the end.
    pub starts: Vec<usize>,
    /// Rows of the batch, group after group. The position in this list is the row's *slot*.
    pub rows: Vec<u32>,
    /// Slot of each (row, rank), row-major.
    pub slots: Vec<u32>,
}

impl Groups {
    /// Groups the rows of `choices` among `experts` experts.
    pub fn fill(&mut self, choices: &Choices, experts: usize) {
        let mut counts = vec![0usize; experts];
        choices.experts.iter().for_each(|&e| counts[e as usize] += 1);
        self.experts.clear();
        self.starts.clear();
        let mut next = vec![0usize; experts];
        let mut start = 0;
        for (expert, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.experts.push(expert as u32);
            self.starts.push(start);
            next[expert] = start;
            start += count;
        }
        self.starts.push(start);
        self.rows.clear();
        self.rows.resize(start, 0);
        self.slots.clear();
        for (entry, &expert) in choices.experts.iter().enumerate() {
            let slot = next[expert as usize];
            next[expert as usize] += 1;
            self.rows[slot] = (entry / choices.top_k) as u32;
            self.slots.push(slot as u32);
        }
    }

    /// Expert and rows of every group.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &[u32])> {
        self.experts.iter().enumerate().map(|(i, &e)| (e, &self.rows[self.starts[i]..self.starts[i + 1]]))
    }
}

/// Computes experts.
pub trait Experts {
    /// Computes every group of `groups` over the rows `rows` in layer `layer`, and writes the output of
    /// slot s to row s of `out`, rounded to the row type. `out` has the right shape already.
    fn compute(
        &mut self,
        layer: usize,
        rows: &RowBuffer,
        groups: &Groups,
        out: &mut RowBuffer,
    ) -> Result<(), ExpertsError>;
}

/// Experts of this process.
pub struct LocalExperts {
    kernels: Kernels,
    pool: Arc<Pool>,
    blocks: HashMap<ExpertId, Arc<Block>>,
    inner: RowBuffer,
}

/// An expert that this process does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expert {0} is not held here")]
pub struct NotHeld(pub ExpertId);

impl LocalExperts {
    /// Experts that compute with `kernels` on `pool`.
    pub fn new(kernels: Kernels, pool: Arc<Pool>, blocks: HashMap<ExpertId, Arc<Block>>) -> Self {
        let inner = RowBuffer::new(kernels.class().row_type());
        Self { kernels, pool, blocks, inner }
    }

    /// The experts held.
    pub fn blocks(&self) -> &HashMap<ExpertId, Arc<Block>> {
        &self.blocks
    }

    /// Takes another process's share out of this one, or puts it back.
    pub fn blocks_mut(&mut self) -> &mut HashMap<ExpertId, Arc<Block>> {
        &mut self.blocks
    }
}

impl Experts for LocalExperts {
    fn compute(
        &mut self,
        layer: usize,
        rows: &RowBuffer,
        groups: &Groups,
        out: &mut RowBuffer,
    ) -> Result<(), ExpertsError> {
        let mut parts = Vec::with_capacity(groups.experts.len());
        for (expert, rows) in groups.iter() {
            let id = ExpertId { layer: layer as u32, expert };
            let block = self.blocks.get(&id).ok_or(NotHeld(id))?;
            parts.push((&**block, Some(rows), rows.len()));
        }
        compute_blocks(self.kernels, &self.pool, &parts, rows, &mut self.inner, out);
        Ok(())
    }
}

/// Computes blocks of one width over rows: all gates and ups at once, then all downs, so that one large
/// block or eight small ones both fill the threads. Outputs follow one another in `out`.
///
/// Blocks that are cut and whole here are computed shard by shard, as devices would. One shard of several has outputs
/// that are partial: `out` is then of f32, and [`join_partials`] makes an expert's output of them.
pub fn compute_blocks(
    kernels: Kernels,
    pool: &Pool,
    parts: &[(&Block, Option<&[u32]>, usize)],
    rows: &RowBuffer,
    inner: &mut RowBuffer,
    out: &mut RowBuffer,
) {
    match parts.first() {
        None => {}
        Some((first, ..)) if first.others.is_empty() => {
            compute_shard(kernels, pool, parts, rows, inner, out);
        }
        Some(_) => compute_shards(kernels, pool, parts, rows, inner, out),
    }
}

/// The same, but for the shards that the blocks hold beside the first.
fn compute_shard(
    kernels: Kernels,
    pool: &Pool,
    parts: &[(&Block, Option<&[u32]>, usize)],
    rows: &RowBuffer,
    inner: &mut RowBuffer,
    out: &mut RowBuffer,
) {
    let width = parts[0].0.width();
    assert!(parts.iter().all(|(block, ..)| block.width() == width), "blocks of one width");
    let counts = || parts.iter().map(|(_, _, count)| *count);
    inner.reset(counts().sum(), width);
    let mut tasks: Vec<Task<'_>> = split_rows(inner.out(), counts())
        .into_iter()
        .zip(parts)
        .map(|(out, (block, pick, rows_count))| Task {
            weights: &block.gate_up,
            bias: block.gate_up_bias.as_deref(),
            input: rows.view(),
            pick: *pick,
            rows: *rows_count,
            sink: Sink::Gate { activation: block.activation, out },
        })
        .collect();
    let mut then: Vec<Then<'_>> = split_rows(out.out(), counts())
        .into_iter()
        .zip(parts)
        .map(|(out, (block, ..))| Then {
            weights: &block.down,
            bias: block.down_bias.as_deref(),
            sink: Sink::Round(out),
        })
        .collect();
    multiply_twice(kernels, pool, &mut tasks, &mut then);
}

/// Every shard of every block, and their partial outputs joined. The oracle for shards on devices of their own; buffers
/// for partial outputs are made anew each time.
fn compute_shards(
    kernels: Kernels,
    pool: &Pool,
    parts: &[(&Block, Option<&[u32]>, usize)],
    rows: &RowBuffer,
    inner: &mut RowBuffer,
    out: &mut RowBuffer,
) {
    let (total, columns) = (out.rows(), out.columns());
    let count = parts[0].0.shards().count();
    let partials: Vec<RowBuffer> = (0..count)
        .map(|index| {
            let parts: Vec<_> = parts
                .iter()
                .map(|(block, pick, count)| {
                    (block.shards().nth(index).expect("all are cut alike"), *pick, *count)
                })
                .collect();
            let mut partial = RowBuffer::new(RowType::F32);
            partial.reset(total, columns);
            compute_shard(kernels, pool, &parts, rows, inner, &mut partial);
            partial
        })
        .collect();
    let views: Vec<RowsRef<'_>> = partials.iter().map(RowBuffer::view).collect();
    let (mut out, mut sums) = (out.out(), Vec::new());
    for row in 0..total {
        let of_row = views.iter().map(|view| match view {
            RowsRef::F32 { data, stride } => &data[row * stride..][..columns],
            RowsRef::Bf16 { .. } => unreachable!("partial outputs are f32"),
        });
        join_partials(kernels, of_row, &mut sums, &mut out, row);
    }
}

/// Makes an expert's output of its shards' partial outputs, which come in order of shards: adds them one after the other
/// in f32 and rounds the sum to the row type of `out`. `sums` is scratch.
pub fn join_partials<'a>(
    kernels: Kernels,
    partials: impl IntoIterator<Item = &'a [f32]>,
    sums: &mut Vec<f32>,
    out: &mut RowOut<'_>,
    row: usize,
) {
    let mut partials = partials.into_iter();
    sums.clear();
    sums.extend_from_slice(partials.next().expect("an expert has a shard"));
    for partial in partials {
        assert_eq!(partial.len(), sums.len(), "partial outputs of one expert");
        sums.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
    }
    write_row(kernels, out, row, sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every (row, rank) finds its own row and expert behind its slot.
    #[test]
    fn slots_lead_back_to_their_rows() {
        let choices = Choices { top_k: 2, experts: vec![5, 1, 1, 0, 5, 3], weights: vec![0.0; 6] };
        let mut groups = Groups::default();
        groups.fill(&choices, 8);
        assert_eq!(groups.experts, [0, 1, 3, 5]);
        assert_eq!(groups.starts, [0, 1, 3, 4, 6]);
        assert_eq!(groups.rows, [1, 0, 1, 2, 0, 2]);
        for (entry, &slot) in groups.slots.iter().enumerate() {
            assert_eq!(groups.rows[slot as usize], entry as u32 / 2);
            let group = groups.starts.iter().rposition(|&s| s <= slot as usize);
            assert_eq!(groups.experts[group.expect("starts at 0")], choices.experts[entry]);
        }
    }
}
