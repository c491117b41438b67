//! Combining for batches whose rows come from anywhere: each returned row lies where it landed.
//!
//! The plain loop's `combine` reads one buffer that all experts wrote. Here every (row, rank) names a row of
//! some frame. The order of the sums, and so the bits, are the same: residual + shared + routed by rank.

use super::{Trunk, Workspace};
use crate::experts::join_partials;
use crate::kernel::{Kernels, math};
use crate::pool::Pool;
use crate::rows::RowBuffer;
use crate::share::{PIECE_ROWS, share};

/// A row in the row type of its class, wherever it lies.
#[derive(Debug, Clone, Copy)]
pub enum RowValues<'a> {
    /// BF16.
    Bf16(&'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

impl RowValues<'_> {
    /// `sums += weight * row`, one fused multiply-add each.
    pub fn add_to(self, kernels: Kernels, weight: f32, sums: &mut [f32]) {
        match self {
            Self::Bf16(row) => math::axpy_bf16(kernels, sums, weight, row),
            Self::F32(row) => math::axpy(kernels, sums, weight, row),
        }
    }
}

impl Trunk {
    /// Adds the shared experts' output of a sparse layer's [`Trunk::forward`] to the residual, where the routed
    /// experts' output comes later, by [`Trunk::combine_landed`].
    pub fn add_shared(&self, work: &mut Workspace) {
        let hidden = self.spec.hidden;
        if work.shared.rows() == 0 {
            return;
        }
        for (row, residual) in work.hidden.chunks_mut(hidden).enumerate() {
            work.shared.add_row(self.kernels, row, work.shared_gates[row], residual);
        }
    }

    /// Adds to every row of the batch its routed experts by rank. `weights` is row-major, `top_k` a row, and
    /// `landed(entry)` is what that entry's expert returned; nothing, where it was [left out](super::leave_out).
    pub fn combine_landed<'a>(
        &self,
        pool: &Pool,
        work: &mut Workspace,
        top_k: usize,
        weights: &[f32],
        landed: impl Fn(usize) -> Option<RowValues<'a>> + Sync,
    ) {
        let (hidden, kernels) = (self.spec.hidden, self.kernels);
        let pieces =
            work.hidden.chunks_mut(PIECE_ROWS * hidden).zip(weights.chunks(PIECE_ROWS * top_k)).enumerate();
        share(pool, pieces, |(piece, (residual, weights))| {
            let first = piece * PIECE_ROWS * top_k;
            for (entry, weight) in weights.iter().enumerate() {
                let row = entry / top_k;
                let sums = &mut residual[row * hidden..][..hidden];
                if let Some(output) = landed(first + entry) {
                    output.add_to(kernels, *weight, sums);
                }
            }
        });
    }

    /// The same where experts are cut: `partial(entry, shard)` is what that entry's shard returned. Partial outputs are
    /// joined as [`join_partials`] does, and what is added to the row is the whole output, rounded.
    pub fn combine_partials<'a>(
        &self,
        pool: &Pool,
        work: &mut Workspace,
        top_k: usize,
        weights: &[f32],
        partial: impl Fn(usize, usize) -> Option<&'a [f32]> + Sync,
    ) {
        let (hidden, kernels, shards) = (self.spec.hidden, self.kernels, self.spec.shards);
        let pieces =
            work.hidden.chunks_mut(PIECE_ROWS * hidden).zip(weights.chunks(PIECE_ROWS * top_k)).enumerate();
        share(pool, pieces, |(piece, (residual, weights))| {
            let first = piece * PIECE_ROWS * top_k;
            let (mut sums, mut joined) =
                (Vec::with_capacity(hidden), RowBuffer::new(kernels.class().row_type()));
            joined.reset(1, hidden);
            for (entry, weight) in weights.iter().enumerate() {
                // Of an expert all shards are there, or none is.
                if partial(first + entry, 0).is_none() {
                    continue;
                }
                let partials = (0..shards).filter_map(|shard| partial(first + entry, shard));
                join_partials(kernels, partials, &mut sums, &mut joined.out(), 0);
                let row = entry / top_k;
                joined.add_row(kernels, 0, *weight, &mut residual[row * hidden..][..hidden]);
            }
        });
    }
}
