//! Multi-head latent attention in its absorbed form, in prefill and decode alike: queries are carried into
//! the latent's space and meet the latent itself, so nothing is expanded and a step's bits do not depend
//! on how many rows it has.

use super::{Trunk, Workspace, resize};
use crate::attention::{Queries, Span, attend as attend_spans};
use crate::kernel::{RowsMut, Sink, Task, math, multiply};
use crate::kv::KvCache;
use crate::pool::Pool;
use crate::rows::{columns, split_columns, split_rows, store, write_row};
use crate::share::{PIECE_ROWS, share};
use crate::spec::Latent;
use crate::weights::{LatentWeights, QueryWeights};

pub(super) fn attend(
    trunk: &Trunk,
    pool: &Pool,
    work: &mut Workspace,
    layer: usize,
    weights: &LatentWeights,
    latent: &Latent,
    window: Option<usize>,
    cache: &mut KvCache,
    spans: &[Span<'_>],
) {
    let kernels = trunk.kernels;
    let rows = work.rows.rows();
    let head_width = latent.plain_dim + latent.rotary_dim;
    let query_width = latent.heads * head_width;
    let key_width = latent.latent_rank + latent.rotary_dim;
    resize(&mut work.queries, rows * query_width);
    resize(&mut work.keys, rows * key_width);
    project(trunk, pool, work, weights, latent, rows);

    // Rotate; split queries into the part that is absorbed and the part that is rotated; write the
    // latent and the rotated key.
    let row_spans = super::rows_of(spans, rows);
    let kv = cache.layer(layer);
    let half = trunk.spec.rope.dim() / 2;
    let rotary_width = latent.heads * latent.rotary_dim;
    let plain_width = latent.heads * latent.plain_dim;
    resize(&mut work.values, rows * rotary_width);
    work.plain.reset(rows, plain_width);
    let (cosines, sines) = (&work.cosines, &work.sines);
    let pieces = work
        .queries
        .chunks(PIECE_ROWS * query_width)
        .zip(work.keys.chunks_mut(PIECE_ROWS * key_width))
        .zip(work.values.chunks_mut(PIECE_ROWS * rotary_width))
        .zip(split_rows(work.plain.out(), super::pieces_of(rows)))
        .enumerate();
    let pages = &*cache;
    share(pool, pieces, |(piece, (((queries, keys), rotated), mut plain))| {
        let mut unrotated = vec![0.0; plain_width];
        let mut normed = vec![0.0; latent.latent_rank];
        let rows = queries
            .chunks(query_width)
            .zip(keys.chunks_mut(key_width))
            .zip(rotated.chunks_mut(rotary_width))
            .enumerate();
        for (at, ((query, key), rotated)) in rows {
            let row = piece * PIECE_ROWS + at;
            let angles = row * half..(row + 1) * half;
            let (cosines, sines) = (&cosines[angles.clone()], &sines[angles]);
            let heads = query
                .chunks(head_width)
                .zip(unrotated.chunks_mut(latent.plain_dim))
                .zip(rotated.chunks_mut(latent.rotary_dim));
            for ((head, unrotated), rotated) in heads {
                unrotated.copy_from_slice(&head[..latent.plain_dim]);
                rotated.copy_from_slice(&head[latent.plain_dim..]);
                trunk.spec.rope.rotate(rotated, cosines, sines);
            }
            write_row(kernels, &mut plain, at, &unrotated);
            let (compressed, rotary) = key.split_at_mut(latent.latent_rank);
            math::norm_row(kernels, compressed, &weights.latent_norm, latent.inner_norm_eps, &mut normed);
            trunk.spec.rope.rotate(rotary, cosines, sines);
            let (span, position) = row_spans[row];
            // SAFETY: a row is one position of one sequence, and belongs to this piece alone; nobody
            // reads the layer before all rows are written.
            unsafe {
                pages.write_value(kv, spans[span].sequence, 0, position, &normed);
                pages.write_key(kv, spans[span].sequence, 0, position, rotary);
            }
        }
    });

    let rank = latent.latent_rank;
    let absorbed_width = latent.heads * rank;
    resize(&mut work.absorbed, rows * absorbed_width);
    let outs = RowsMut::new(&mut work.absorbed, rows, absorbed_width, absorbed_width);
    let mut tasks: Vec<Task<'_>> = columns(outs, rank)
        .into_iter()
        .zip(&weights.absorb)
        .enumerate()
        .map(|(head, (out, weights))| Task {
            weights,
            bias: None,
            input: work.plain.columns_from(head * latent.plain_dim),
            pick: None,
            rows,
            sink: Sink::Store(out),
        })
        .collect();
    multiply(kernels, pool, &mut tasks);
    drop(tasks);

    work.attended.reset(rows, absorbed_width);
    let queries = Queries {
        main: &work.absorbed,
        rotary: &work.values,
        heads: latent.heads,
        scale: latent.scale,
        window,
        sinks: None,
    };
    attend_spans(kernels, pool, cache, kv, queries, spans, &mut work.attended);

    work.plain.reset(rows, latent.heads * latent.value_dim);
    let mut tasks: Vec<Task<'_>> = split_columns(work.plain.out(), latent.value_dim)
        .into_iter()
        .zip(&weights.value)
        .enumerate()
        .map(|(head, (out, weights))| Task {
            weights,
            bias: None,
            input: work.attended.columns_from(head * rank),
            pick: None,
            rows,
            sink: Sink::Round(out),
        })
        .collect();
    multiply(kernels, pool, &mut tasks);
    drop(tasks);
    let hidden = trunk.spec.hidden;
    let task = Task {
        weights: &weights.output,
        bias: weights.output_bias.as_deref(),
        input: work.plain.view(),
        pick: None,
        rows,
        sink: Sink::Add(RowsMut::new(&mut work.hidden, rows, hidden, hidden)),
    };
    multiply(kernels, pool, &mut [task]);
}

/// From rows to queries and to latents, both in f32.
fn project(
    trunk: &Trunk,
    pool: &Pool,
    work: &mut Workspace,
    weights: &LatentWeights,
    latent: &Latent,
    rows: usize,
) {
    let kernels = trunk.kernels;
    let (query_width, key_width) =
        (latent.heads * (latent.plain_dim + latent.rotary_dim), latent.latent_rank + latent.rotary_dim);
    let input = work.rows.view();
    let keys = RowsMut::new(&mut work.keys, rows, key_width, key_width);
    let key_task = store(&weights.latent, weights.latent_bias.as_deref(), input, keys);
    let queries = RowsMut::new(&mut work.queries, rows, query_width, query_width);
    match &weights.query {
        QueryWeights::Direct(query) => {
            multiply(kernels, pool, &mut [store(query, None, input, queries), key_task]);
        }
        QueryWeights::Compressed { down, bias, norm, up } => {
            let rank = down.n();
            resize(&mut work.compressed, rows * rank);
            let out = RowsMut::new(&mut work.compressed, rows, rank, rank);
            multiply(kernels, pool, &mut [store(down, bias.as_deref(), input, out), key_task]);
            work.plain.reset(rows, rank);
            trunk.norm_rows(pool, &work.compressed, norm, latent.inner_norm_eps, &mut work.plain);
            multiply(kernels, pool, &mut [store(up, None, work.plain.view(), queries)]);
        }
    }
}
