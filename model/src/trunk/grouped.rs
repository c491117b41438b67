//! Grouped-query attention: project, normalise, rotate, write keys and values, attend, project back.

use super::{Trunk, Workspace, resize};
use crate::attention::{Queries, Span, attend as attend_spans};
use crate::kernel::{RowsMut, Sink, Task, math, multiply};
use crate::kv::KvCache;
use crate::pool::Pool;
use crate::rows::store;
use crate::share::{PIECE_ROWS, share};
use crate::spec::{Grouped, QkNorm};
use crate::weights::GroupedWeights;

pub(super) fn attend(
    trunk: &Trunk,
    pool: &Pool,
    work: &mut Workspace,
    layer: usize,
    weights: &GroupedWeights,
    grouped: &Grouped,
    window: Option<usize>,
    cache: &mut KvCache,
    spans: &[Span<'_>],
) {
    let kernels = trunk.kernels;
    let rows = work.rows.rows();
    let (query_width, key_width) = (weights.query.n(), weights.key.n());
    resize(&mut work.queries, rows * query_width);
    resize(&mut work.keys, rows * key_width);
    resize(&mut work.values, rows * key_width);
    let input = work.rows.view();
    let bias = |part: usize| weights.biases.as_ref().map(|biases| biases[part].as_slice());
    let mut tasks = [
        store(
            &weights.query,
            bias(0),
            input,
            RowsMut::new(&mut work.queries, rows, query_width, query_width),
        ),
        store(&weights.key, bias(1), input, RowsMut::new(&mut work.keys, rows, key_width, key_width)),
        store(&weights.value, bias(2), input, RowsMut::new(&mut work.values, rows, key_width, key_width)),
    ];
    multiply(kernels, pool, &mut tasks);

    let row_spans = super::rows_of(spans, rows);
    let kv = cache.layer(layer);
    let half = trunk.spec.rope.dim() / 2;
    let (cosines, sines) = (&work.cosines, &work.sines);
    let pieces = work
        .queries
        .chunks_mut(PIECE_ROWS * query_width)
        .zip(work.keys.chunks_mut(PIECE_ROWS * key_width))
        .zip(work.values.chunks_mut(PIECE_ROWS * key_width))
        .enumerate();
    let pages = &*cache;
    share(pool, pieces, |(piece, ((queries, keys), values))| {
        let first = piece * PIECE_ROWS;
        let rows =
            queries.chunks_mut(query_width).zip(keys.chunks_mut(key_width)).zip(values.chunks_mut(key_width));
        for (row, ((query, key), value)) in (first..).zip(rows) {
            if let Some([query_norm, key_norm]) = &weights.norms {
                norm(trunk, grouped, query, query_norm);
                norm(trunk, grouped, key, key_norm);
            }
            if let Some(limit) = grouped.clip {
                for x in query.iter_mut().chain(key.iter_mut()).chain(value.iter_mut()) {
                    *x = x.clamp(-limit, limit);
                }
            }
            let at = row * half..(row + 1) * half;
            let (cosines, sines) = (&cosines[at.clone()], &sines[at]);
            for head in query.chunks_mut(grouped.head_dim).chain(key.chunks_mut(grouped.head_dim)) {
                trunk.spec.rope.rotate(head, cosines, sines);
            }
            let (span, position) = row_spans[row];
            let heads = key.chunks(grouped.head_dim).zip(value.chunks(grouped.head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let sequence = spans[span].sequence;
                // SAFETY: a row is one position of one sequence, and belongs to this piece alone;
                // nobody reads the layer before all rows are written.
                unsafe {
                    pages.write_key(kv, sequence, head, position, key);
                    pages.write_value(kv, sequence, head, position, value);
                }
            }
        }
    });

    work.attended.reset(rows, query_width);
    let queries = Queries {
        main: &work.queries,
        rotary: &[],
        heads: grouped.heads,
        scale: grouped.scale,
        window,
        sinks: weights.sinks.as_deref(),
    };
    attend_spans(kernels, pool, cache, kv, queries, spans, &mut work.attended);
    let hidden = trunk.spec.hidden;
    let task = Task {
        weights: &weights.output,
        bias: weights.output_bias.as_deref(),
        input: work.attended.view(),
        pick: None,
        rows,
        sink: Sink::Add(RowsMut::new(&mut work.hidden, rows, hidden, hidden)),
    };
    multiply(kernels, pool, &mut [task]);
}

fn norm(trunk: &Trunk, grouped: &Grouped, row: &mut [f32], weight: &[f32]) {
    let width = match grouped.qk_norm {
        QkNorm::Whole => row.len(),
        QkNorm::PerHead | QkNorm::None => grouped.head_dim,
    };
    let mut normed = vec![0.0; width];
    for part in row.chunks_mut(width) {
        math::norm_row(trunk.kernels, part, weight, trunk.spec.norm_eps, &mut normed);
        part.copy_from_slice(&normed);
    }
}
