//! One piece of attention: some heads of some consecutive rows of one sequence.
//!
//! Here is the pointer work: scratch is laid out by hand and pages are read in place.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Queries, Span};
use crate::kernel::{Kernels, RowType, TILE_ROWS_MAX, math, tile, tile_f32};
use crate::kv::{KvCache, KvKind, LayerKv, PAGE};
use crate::rows::{RowBuffer, ValuesMut};

const LANES: usize = 16;

/// Sixteen aligned lanes, as the kernels load them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

/// Heads and rows, the latter relative to the span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) heads: Range<usize>,
    /// Group of keys; for a latent there is only one.
    pub(super) kv_head: usize,
    pub(super) rows: Range<usize>,
}

/// The output, of which each item writes its rows and columns alone.
pub(super) struct Output<'a> {
    start: Start,
    rows: usize,
    columns: usize,
    buffer: PhantomData<&'a mut RowBuffer>,
}

enum Start {
    Bf16(*mut u16),
    F32(*mut f32),
}

// SAFETY: `compute` writes only the rows and columns of its item, and items do not overlap.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(buffer: &'a mut RowBuffer) -> Self {
        let (rows, columns) = (buffer.rows(), buffer.columns());
        let start = match buffer.values_mut() {
            ValuesMut::Bf16(values) => Start::Bf16(values.as_mut_ptr()),
            ValuesMut::F32(values) => Start::F32(values.as_mut_ptr()),
        };
        Self { start, rows, columns, buffer: PhantomData }
    }

    /// # Safety
    /// Nobody else reads or writes these columns of this row.
    unsafe fn write(&self, kernels: Kernels, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.columns, "inside the output");
        let at = row * self.columns + column;
        match self.start {
            Start::Bf16(start) => {
                // SAFETY: inside the buffer by the assertion; the caller has these values alone.
                let to = unsafe { std::slice::from_raw_parts_mut(start.add(at), values.len()) };
                math::round_row(kernels, values, to);
            }
            Start::F32(start) => {
                // SAFETY: as above.
                let to = unsafe { std::slice::from_raw_parts_mut(start.add(at), values.len()) };
                to.copy_from_slice(values);
            }
        }
    }
}

/// Lines of scratch, by purpose.
struct Layout {
    /// Rows computed: positions times heads, heads of one position side by side.
    m: usize,
    query_lines: usize,
    score_lines: usize,
    value_panels: usize,
    /// Keys of sixteen positions, turned from a latent.
    turned_lines: usize,
}

impl Layout {
    fn total(&self) -> usize {
        self.m * (self.query_lines + self.score_lines + self.value_panels) + self.turned_lines + 1
    }
}

pub(super) fn compute(
    kernels: Kernels,
    cache: &KvCache,
    layer: LayerKv,
    queries: &Queries<'_>,
    span: &Span<'_>,
    item: &Item,
    out: &Output<'_>,
    scratch: &mut Vec<Line>,
) {
    let row_type = cache.row_type();
    let (width, rotary, value_width) = match layer.kind {
        KvKind::Grouped { head_dim, .. } => (head_dim, 0, head_dim),
        KvKind::Latent { rank, rotary } => (rank, rotary, rank),
    };
    let heads = item.heads.len();
    let first = span.start + item.rows.start;
    let last = span.start + item.rows.end - 1;
    let sees = |position: usize| {
        let from = queries.window.map_or(0, |window| (position + 1).saturating_sub(window));
        from..position + 1
    };
    let base = sees(first).start / LANES * LANES;
    let layout = Layout {
        m: item.rows.len() * heads,
        query_lines: width.div_ceil(LANES) + rotary.div_ceil(LANES),
        score_lines: (last + 1 - base).div_ceil(LANES),
        value_panels: value_width.div_ceil(LANES),
        turned_lines: if rotary > 0 { width.next_multiple_of(2) } else { 0 },
    };
    scratch.clear();
    scratch.resize(layout.total(), Line([0.0; LANES]));
    let (query, rest) = scratch.split_at_mut(layout.m * layout.query_lines);
    let (scores, rest) = rest.split_at_mut(layout.m * layout.score_lines);
    let (sums, turned) = rest.split_at_mut(layout.m * layout.value_panels);
    let query_stride = layout.query_lines * LANES;
    let score_stride = layout.score_lines * LANES;
    let sum_stride = layout.value_panels * LANES;
    let rotary_at = width.next_multiple_of(LANES);

    let flat = flatten(query);
    for (r, row) in item.rows.clone().enumerate() {
        let row = span.rows.start + row;
        for (h, head) in item.heads.clone().enumerate() {
            let to = &mut flat[(r * heads + h) * query_stride..][..query_stride];
            let at = (row * queries.heads + head) * width;
            to[..width].copy_from_slice(&queries.main[at..at + width]);
            let at = (row * queries.heads + head) * rotary;
            to[rotary_at..rotary_at + rotary].copy_from_slice(&queries.rotary[at..at + rotary]);
        }
    }

    let product = Product { kernels, row_type };
    let (query, scores) = (flatten(query), flatten(scores));
    for position in (base..=last).step_by(LANES) {
        let column = position - base;
        let panels = match layer.kind {
            KvKind::Grouped { .. } => [
                (cache.key_panel(layer, span.sequence, item.kv_head, position), 0, width),
                (std::ptr::null(), 0, 0),
            ],
            KvKind::Latent { .. } => {
                turn(cache, layer, span, position, width, turned);
                [
                    (turned.as_ptr().cast::<u8>(), 0, width),
                    (cache.key_panel(layer, span.sequence, 0, position), rotary_at, rotary),
                ]
            }
        };
        for from in (0..layout.m).step_by(TILE_ROWS_MAX) {
            let rows = (layout.m - from).min(TILE_ROWS_MAX);
            for (part, &(panel, at, k)) in panels.iter().enumerate().filter(|(_, (_, _, k))| *k > 0) {
                let a = query[from * query_stride + at..].as_ptr();
                let c = scores[from * score_stride + column..].as_mut_ptr();
                // SAFETY: `rows` rows of queries and of scores begin there, each as long as its stride;
                // the panel holds `k` columns of sixteen positions.
                unsafe { product.tile(rows, k, a, query_stride, panel, c, score_stride, part > 0) };
            }
        }
    }

    let mut totals = vec![0.0; layout.m];
    for (r, row) in item.rows.clone().enumerate() {
        let seen = sees(span.start + row);
        for (h, head) in item.heads.clone().enumerate() {
            let m = r * heads + h;
            let scores = &mut scores[m * score_stride..][seen.start - base..seen.end - base];
            let sink = queries.sinks.map(|sinks| sinks[head]);
            totals[m] = softmax(kernels, scores, queries.scale, seen.start, sink);
        }
    }

    let sums = flatten(sums);
    let whole = whole_range(sees(first), sees(last));
    let values = ValueProduct {
        product,
        cache,
        layer,
        span,
        kv_head: item.kv_head,
        panels: layout.value_panels,
        base,
        score_stride,
        sum_stride,
    };
    // Ascending positions for every row: what only some rows of the item see before the common
    // range, the common range for all rows at once, and what only later rows see.
    for (r, row) in item.rows.clone().enumerate() {
        let seen = sees(span.start + row);
        values.add(scores, sums, r * heads..(r + 1) * heads, seen.start..seen.end.min(whole.start));
    }
    values.add(scores, sums, 0..layout.m, whole.clone());
    for (r, row) in item.rows.clone().enumerate() {
        let seen = sees(span.start + row);
        values.add(scores, sums, r * heads..(r + 1) * heads, seen.start.max(whole.end)..seen.end);
    }

    for (r, row) in item.rows.clone().enumerate() {
        for (h, head) in item.heads.clone().enumerate() {
            let m = r * heads + h;
            let sums = &mut sums[m * sum_stride..][..value_width];
            let total = totals[m];
            sums.iter_mut().for_each(|x| *x /= total);
            // SAFETY: this row and these columns belong to this item alone.
            unsafe { out.write(kernels, span.rows.start + row, head * value_width, sums) };
        }
    }
}

/// Scales, and replaces scores by `e^(score - max)`; returns their sum.
fn softmax(kernels: Kernels, scores: &mut [f32], scale: f32, position: usize, sink: Option<f32>) -> f32 {
    math::scale(kernels, scores, scale);
    let mut max = math::max(kernels, scores);
    if let Some(sink) = sink
        && sink > max
    {
        max = sink;
    }
    let mut sums = [0.0; math::LANES];
    math::exp_sub_sum(kernels, scores, max, position, &mut sums);
    let sum = math::tree16(&sums);
    sink.map_or(sum, |sink| sum + math::exp_f32(kernels, sink - max))
}

/// Positions that every row of an item sees, cut to whole pairs; empty (at its start) if there are none.
fn whole_range(first: Range<usize>, last: Range<usize>) -> Range<usize> {
    let from = last.start.next_multiple_of(2);
    let to = first.end / 2 * 2;
    if from < to {
        from..to
    } else {
        // Nothing in common: every row goes by itself, all of it after this point.
        first.start..first.start
    }
}

/// The micro-kernel for the cache's element type.
#[derive(Clone, Copy)]
struct Product {
    kernels: Kernels,
    row_type: RowType,
}

impl Product {
    /// # Safety
    /// As for [`tile`], with a panel of this element type.
    unsafe fn tile(
        self,
        rows: usize,
        k: usize,
        a: *const f32,
        a_stride: usize,
        b: *const u8,
        c: *mut f32,
        c_stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.row_type {
                RowType::Bf16 => tile(self.kernels, rows, k, a, a_stride, b, c, c_stride, accumulate),
                RowType::F32 => {
                    tile_f32(self.kernels, rows, k, a, a_stride, b.cast(), c, c_stride, accumulate);
                }
            }
        }
    }
}

/// Probabilities times values.
struct ValueProduct<'a> {
    product: Product,
    cache: &'a KvCache,
    layer: LayerKv,
    span: &'a Span<'a>,
    kv_head: usize,
    panels: usize,
    base: usize,
    score_stride: usize,
    sum_stride: usize,
}

impl ValueProduct<'_> {
    /// Adds the values of `positions` to the sums of rows `rows`, in ascending order.
    fn add(&self, scores: &[f32], sums: &mut [f32], rows: Range<usize>, positions: Range<usize>) {
        let mut from = positions.start;
        while from < positions.end {
            let to = positions.end.min((from / PAGE + 1) * PAGE);
            // A pair is entered at its even half only; an odd first position goes by itself.
            let to = if from % 2 == 1 { from + 1 } else { to };
            for panel in 0..self.panels {
                self.add_panel(scores, sums, rows.clone(), panel, from..to);
            }
            from = to;
        }
    }

    fn add_panel(
        &self,
        scores: &[f32],
        sums: &mut [f32],
        rows: Range<usize>,
        panel: usize,
        positions: Range<usize>,
    ) {
        let page =
            self.cache.value_panel(self.layer, self.span.sequence, self.kv_head, panel, positions.start);
        let slot = positions.start % PAGE;
        let mut alone = [Line([0.0; LANES]); 2];
        let b = match self.product.row_type {
            // SAFETY: the slot lies inside the panel.
            RowType::F32 => unsafe { page.add(slot * LANES * 4) },
            RowType::Bf16 => {
                // SAFETY: the slot's pair lies inside the panel.
                let pair = unsafe { page.add(slot / 2 * LANES * 4) };
                if slot.is_multiple_of(2) {
                    pair
                } else {
                    for (lane, x) in alone[1].0.iter_mut().enumerate() {
                        // SAFETY: a pair is sixteen aligned words.
                        let word = unsafe { pair.cast::<u32>().add(lane).read() };
                        *x = f32::from_bits(word >> 16);
                    }
                    alone[1].0.as_ptr().cast()
                }
            }
        };
        let mut from = rows.start;
        while from < rows.end {
            let count = (rows.end - from).min(TILE_ROWS_MAX);
            let a = scores[from * self.score_stride + positions.start - self.base..].as_ptr();
            let c = sums[from * self.sum_stride + panel * LANES..].as_mut_ptr();
            // SAFETY: `count` rows of scores and sums begin there; the panel holds the positions.
            unsafe {
                self.product.tile(count, positions.len(), a, self.score_stride, b, c, self.sum_stride, true);
            }
            from += count;
        }
    }
}

/// Turns the latents of sixteen positions, which lie as values, into a panel of keys.
fn turn(
    cache: &KvCache,
    layer: LayerKv,
    span: &Span<'_>,
    position: usize,
    width: usize,
    turned: &mut [Line],
) {
    let slot = position % PAGE;
    match cache.row_type() {
        RowType::Bf16 => {
            for panel in 0..width.div_ceil(LANES) {
                let page = cache.value_panel(layer, span.sequence, 0, panel, position);
                // SAFETY: eight pairs of positions begin at the slot, which is a multiple of sixteen.
                let words: &[[u32; LANES]; 8] =
                    unsafe { &*page.add(slot / 2 * LANES * 4).cast::<[[u32; LANES]; 8]>() };
                let columns = (width - panel * LANES).min(LANES);
                for pair in 0..columns.div_ceil(2) {
                    let line = &mut turned[panel * LANES / 2 + pair];
                    for (p, word) in words.iter().enumerate() {
                        let (low, high) = (word[2 * pair], word[2 * pair + 1]);
                        line.0[2 * p] = f32::from_bits(low & 0xffff | high << 16);
                        line.0[2 * p + 1] = f32::from_bits(low >> 16 | high & 0xffff_0000);
                    }
                }
            }
        }
        RowType::F32 => {
            for (column, line) in turned.iter_mut().take(width).enumerate() {
                let page = cache.value_panel(layer, span.sequence, 0, column / LANES, position);
                for (p, x) in line.0.iter_mut().enumerate() {
                    // SAFETY: sixteen positions begin at the slot.
                    *x = unsafe { page.cast::<f32>().add((slot + p) * LANES + column % LANES).read() };
                }
            }
        }
    }
}

fn flatten(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen f32 without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}
