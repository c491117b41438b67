//! Attention of rows over their sequences' pages: scores, softmax, values.
//!
//! Every number has one order, whatever the batch: a score is one chain of fused multiply-adds over the
//! key's columns, ascending; the maximum is exact; the softmax's sum is sixteen partial sums by absolute
//! position mod 16, then a fixed tree; an output column is one chain over positions, ascending. So a row
//! gives the same bits alone, in a chunk, or in a whole prefill. All of it is f32 but for the
//! pages' elements. What a row may not see is never multiplied.
//!
//! Both products run on the micro-kernels of the matrix products: pages hold keys and values in the
//! kernels' own layout (see [`crate::kv`]). Work is split by sequence, group of heads and chunk of rows.

mod item;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::kernel::Kernels;
use crate::kv::{KvCache, KvKind, LayerKv, Sequence};
use crate::pool::Pool;

use crate::rows::RowBuffer;
use item::{Item, Line, Output};

/// Rows (query heads times positions) that are computed together.
const ITEM_ROWS: usize = 48;
/// Scores of one item are kept below this, so that they stay in the second-level cache.
const SCORES_BYTES: usize = 512 << 10;

/// Consecutive positions of one sequence, as rows of the batch. They are already in the sequence's pages.
#[derive(Debug, Clone)]
pub struct Span<'a> {
    /// Whose positions.
    pub sequence: &'a Sequence,
    /// Position of the first.
    pub start: usize,
    /// Their rows in the batch.
    pub rows: Range<usize>,
}

/// What the rows ask.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// `[rows][heads * width]`: meets keys (grouped) or latents (latent).
    pub main: &'a [f32],
    /// `[rows][heads * rotary]`: meets the rotated keys of a latent; empty otherwise.
    pub rotary: &'a [f32],
    /// Query heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A row sees itself and this many positions less one before it.
    pub window: Option<usize>,
    /// One logit per head that takes part in the softmax.
    pub sinks: Option<&'a [f32]>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Attends all spans in one layer; row `r` of `out` is `[heads * value width]`, rounded to the row type.
pub fn attend(
    kernels: Kernels,
    pool: &Pool,
    cache: &KvCache,
    layer: LayerKv,
    queries: Queries<'_>,
    spans: &[Span<'_>],
    out: &mut RowBuffer,
) {
    let items = items(layer, &queries, spans);
    let output = Output::new(out);
    let next = AtomicUsize::new(0);
    pool.run(&|_| {
        let mut scratch = SCRATCH.take();
        while let Some((span, item)) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            item::compute(kernels, cache, layer, &queries, &spans[*span], item, &output, &mut scratch);
        }
        SCRATCH.set(scratch);
    });
}

/// Splits the work. The latest rows, which see most, come first, so that the last items are short.
fn items(layer: LayerKv, queries: &Queries<'_>, spans: &[Span<'_>]) -> Vec<(usize, Item)> {
    let (groups, group) = match layer.kind {
        KvKind::Grouped { kv_heads, .. } => (kv_heads, queries.heads / kv_heads),
        // One latent serves all heads: they are split so that several threads can share a decode step.
        KvKind::Latent { .. } => {
            let group = queries.heads.min(ITEM_ROWS / 3);
            (queries.heads.div_ceil(group), group)
        }
    };
    let mut items = Vec::new();
    for (index, span) in spans.iter().enumerate() {
        let end = span.start + span.rows.len();
        let seen = queries.window.map_or(end, |w| end.min(w + ITEM_ROWS));
        let fit = (SCORES_BYTES / 4 / seen.next_multiple_of(16) / group).max(1);
        let rows = (ITEM_ROWS / group).clamp(1, fit);
        let mut to = span.rows.len();
        while to > 0 {
            let from = to.saturating_sub(rows);
            for g in 0..groups {
                let heads = g * group..((g + 1) * group).min(queries.heads);
                items.push((index, Item { heads, kv_head: g, rows: from..to }));
            }
            to = from;
        }
    }
    items
}
