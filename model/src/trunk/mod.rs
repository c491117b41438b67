//! The trunk's part of a step: embed, attend, gate, combine, head.
//!
//! The residual stream is f32. What enters a matrix product is rounded to the row type; what leaves a
//! feed-forward is rounded to the row type; sums of the two kinds meet in f32 only.

mod grouped;
mod landed;
mod latent;
mod missing;

use std::sync::Arc;

pub use landed::RowValues;
pub use missing::leave_out;

use crate::attention::Span;
use crate::bias::Bias;
use crate::experts::{Groups, compute_blocks};
use crate::gate::{Choices, choose};
use crate::kernel::{Kernels, RowsMut, RowsRef, math, multiply, widen_bf16};
use crate::kv::KvCache;
use crate::pool::Pool;
use crate::rows::{RowBuffer, split_rows, store, write_row};
use crate::share::{PIECE_ROWS, share};
use crate::spec::{Attention, Moe, Spec};
use crate::weights::{AttentionWeights, Embedding, ForwardWeights, GateWeights, TrunkWeights};

/// A trunk that computes.
#[derive(Debug)]
pub struct Trunk {
    spec: Arc<Spec>,
    kernels: Kernels,
    weights: TrunkWeights,
}

/// Buffers of a step, kept between steps.
#[derive(Debug)]
pub struct Workspace {
    /// The residual stream, `[rows][hidden]`.
    pub hidden: Vec<f32>,
    /// The rows that enter the experts, rounded.
    pub rows: RowBuffer,
    /// Which experts they take.
    pub choices: Choices,
    /// The same by expert.
    pub groups: Groups,
    /// What the experts return, by slot.
    pub returned: RowBuffer,
    normed: Vec<f32>,
    logits: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    compressed: Vec<f32>,
    absorbed: Vec<f32>,
    plain: RowBuffer,
    attended: RowBuffer,
    inner: RowBuffer,
    shared: RowBuffer,
    shared_gates: Vec<f32>,
}

impl Workspace {
    /// Empty buffers.
    pub fn new(kernels: Kernels) -> Self {
        let rows = || RowBuffer::new(kernels.class().row_type());
        Self {
            hidden: Vec::new(),
            rows: rows(),
            choices: Choices::default(),
            groups: Groups::default(),
            returned: rows(),
            normed: Vec::new(),
            logits: Vec::new(),
            cosines: Vec::new(),
            sines: Vec::new(),
            queries: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            compressed: Vec::new(),
            absorbed: Vec::new(),
            plain: rows(),
            attended: rows(),
            inner: rows(),
            shared: rows(),
            shared_gates: Vec::new(),
        }
    }
}

impl Trunk {
    /// A trunk of loaded weights.
    pub fn new(spec: Arc<Spec>, kernels: Kernels, weights: TrunkWeights) -> Self {
        Self { spec, kernels, weights }
    }

    /// What the model is.
    pub fn spec(&self) -> &Arc<Spec> {
        &self.spec
    }

    /// What computes.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The weights.
    pub fn weights(&self) -> &TrunkWeights {
        &self.weights
    }

    /// Fills the residual stream from tokens, and the rotation of every row.
    pub fn embed(&self, work: &mut Workspace, tokens: &[u32], spans: &[Span<'_>]) {
        let hidden = self.spec.hidden;
        work.hidden.clear();
        for &token in tokens {
            let at = token as usize * hidden;
            match &self.weights.embedding {
                Embedding::Bf16(rows) => {
                    work.hidden.extend(rows[at..at + hidden].iter().map(|x| widen_bf16(*x)));
                }
                Embedding::F32(rows) => work.hidden.extend_from_slice(&rows[at..at + hidden]),
                Embedding::Tied => {
                    let placement = crate::kernel::Placement::Plain;
                    work.hidden.extend(self.weights.head.column(placement, token as usize));
                }
            }
        }
        self.rotate(work, spans);
    }

    /// Prepares the rotation of every row of a batch: part of [`Trunk::embed`], and all that a batch of rows needs
    /// which were embedded before.
    pub fn rotate(&self, work: &mut Workspace, spans: &[Span<'_>]) {
        let rows = spans.iter().map(|span| span.rows.end).max().unwrap_or(0);
        let half = self.spec.rope.dim() / 2;
        resize(&mut work.cosines, rows * half);
        resize(&mut work.sines, rows * half);
        for span in spans {
            for (position, row) in (span.start..).zip(span.rows.clone()) {
                let at = row * half..(row + 1) * half;
                self.spec.rope.angles(position, &mut work.cosines[at.clone()], &mut work.sines[at]);
            }
        }
    }

    /// Attention of layer `layer`: writes the rows' keys and values, attends, adds to the residual.
    pub fn attend(
        &self,
        pool: &Pool,
        work: &mut Workspace,
        layer: usize,
        cache: &mut KvCache,
        spans: &[Span<'_>],
    ) {
        for span in spans {
            // What is written below is then its sequence's alone.
            assert!(span.start >= span.sequence.writable_from(), "nobody writes to a page that is shared");
        }
        let weights = &self.weights.layers[layer];
        let rows = work.hidden.len() / self.spec.hidden;
        work.rows.reset(rows, self.spec.hidden);
        self.norm_rows(pool, &work.hidden, &weights.input_norm, self.spec.norm_eps, &mut work.rows);
        let window = self.spec.layers[layer].window;
        match (&weights.attention, &self.spec.layers[layer].attention) {
            (AttentionWeights::Grouped(w), Attention::Grouped(g)) => {
                grouped::attend(self, pool, work, layer, w, g, window, cache, spans);
            }
            (AttentionWeights::Latent(w), Attention::Latent(l)) => {
                latent::attend(self, pool, work, layer, w, l, window, cache, spans);
            }
            _ => unreachable!("weights are loaded from the same specification"),
        }
    }

    /// Normalises the rows for the feed-forward of `layer`, chooses experts and groups the rows by them. Says whether
    /// rows go out: not in a dense layer, unless its feed-forward is not the trunk's; then all rows choose expert 0
    /// with weight 1, and combining them gives the bits of [`Trunk::forward`].
    pub fn gate(&self, pool: &Pool, work: &mut Workspace, layer: usize) -> bool {
        self.gate_under(pool, work, layer, &[])
    }

    /// The same where rows choose under a bias: each under its own, if it has one. No `biases` at all: none has.
    pub fn gate_under(
        &self,
        pool: &Pool,
        work: &mut Workspace,
        layer: usize,
        biases: &[Option<&Bias>],
    ) -> bool {
        let weights = &self.weights.layers[layer];
        let hidden = self.spec.hidden;
        let rows = work.hidden.len() / hidden;
        work.rows.reset(rows, hidden);
        let (ForwardWeights::Moe(gate), Some(moe)) = (&weights.forward, self.spec.moe(layer)) else {
            self.norm_rows(pool, &work.hidden, &weights.post_norm, self.spec.norm_eps, &mut work.rows);
            let is_out = matches!(weights.forward, ForwardWeights::DenseOut);
            if is_out {
                work.choices.reset(rows, 1);
                work.choices.weights.fill(1.0);
                work.groups.fill(&work.choices, 1);
                work.returned.reset(rows, hidden);
            }
            return is_out;
        };
        resize(&mut work.normed, rows * hidden);
        let kernels = self.kernels;
        let eps = self.spec.norm_eps;
        let piece = PIECE_ROWS * hidden;
        let pieces = work
            .hidden
            .chunks(piece)
            .zip(work.normed.chunks_mut(piece))
            .zip(split_rows(work.rows.out(), pieces_of(rows)));
        share(pool, pieces, |((from, to), mut rounded)| {
            for (row, (from, to)) in from.chunks(hidden).zip(to.chunks_mut(hidden)).enumerate() {
                math::norm_row(kernels, from, &weights.post_norm, eps, to);
                write_row(kernels, &mut rounded, row, to);
            }
        });
        assert!(biases.is_empty() || biases.len() == rows, "{rows} rows, {} biases", biases.len());
        let bias = |row: usize| biases.get(row).copied().flatten().and_then(|bias| bias.of(layer));
        self.choose(pool, work, gate, moe, &bias);
        work.groups.fill(&work.choices, moe.experts);
        work.returned.reset(work.groups.rows.len(), hidden);
        true
    }

    fn choose<'b>(
        &self,
        pool: &Pool,
        work: &mut Workspace,
        gate: &GateWeights,
        moe: &Moe,
        bias: &(impl Fn(usize) -> Option<&'b [f32]> + Sync),
    ) {
        let (hidden, kernels) = (self.spec.hidden, self.kernels);
        let rows = work.normed.len() / hidden;
        resize(&mut work.logits, rows * moe.experts);
        let input = RowsRef::F32 { data: &work.normed, stride: hidden };
        let out = RowsMut::new(&mut work.logits, rows, moe.experts, moe.experts);
        multiply(kernels, pool, &mut [store(&gate.router, gate.bias.as_deref(), input, out)]);
        work.choices.reset(rows, moe.top_k);
        let correction = gate.correction.as_deref();
        let pieces = work
            .logits
            .chunks_mut(PIECE_ROWS * moe.experts)
            .zip(work.choices.experts.chunks_mut(PIECE_ROWS * moe.top_k))
            .zip(work.choices.weights.chunks_mut(PIECE_ROWS * moe.top_k))
            .enumerate();
        share(pool, pieces, |(piece, ((logits, experts), weights))| {
            let mut scores = vec![0.0; moe.experts];
            let rows = logits.chunks_mut(moe.experts).zip(experts.chunks_mut(moe.top_k));
            let rows = rows.zip(weights.chunks_mut(moe.top_k)).zip(piece * PIECE_ROWS..);
            for (((logits, experts), weights), row) in rows {
                choose(kernels, moe, correction, bias(row), logits, &mut scores, experts, weights);
            }
        });
    }

    /// Whether [`Trunk::forward`] computes shared experts of a layer.
    pub fn has_shared(&self, layer: usize) -> bool {
        matches!(&self.weights.layers[layer].forward, ForwardWeights::Moe(gate) if gate.shared.is_some())
    }

    /// The feed-forward that is the trunk's own: a dense layer, or a sparse layer's shared experts.
    /// A dense layer's output goes to the residual at once; that of shared experts waits for
    /// [`Trunk::combine`].
    pub fn forward(&self, pool: &Pool, work: &mut Workspace, layer: usize) {
        let hidden = self.spec.hidden;
        let rows = work.rows.rows();
        work.shared.reset(0, hidden);
        match &self.weights.layers[layer].forward {
            ForwardWeights::Dense(block) => {
                work.shared.reset(rows, hidden);
                let parts = [(block, None, rows)];
                compute_blocks(self.kernels, pool, &parts, &work.rows, &mut work.inner, &mut work.shared);
                for (row, residual) in work.hidden.chunks_mut(hidden).enumerate() {
                    work.shared.add_row(self.kernels, row, 1.0, residual);
                }
            }
            ForwardWeights::DenseOut => {}
            ForwardWeights::Moe(gate) => {
                let Some(block) = &gate.shared else { return };
                work.shared.reset(rows, hidden);
                let parts = [(block, None, rows)];
                compute_blocks(self.kernels, pool, &parts, &work.rows, &mut work.inner, &mut work.shared);
                work.shared_gates.clear();
                work.shared_gates.resize(rows, 1.0);
                if let Some(vector) = &gate.shared_gate {
                    for (gate, row) in work.shared_gates.iter_mut().zip(work.normed.chunks(hidden)) {
                        let logit = math::dot16(self.kernels, row, vector);
                        *gate = math::sigmoid_f32(self.kernels, logit);
                    }
                }
            }
        }
    }

    /// Adds to every row its shared experts and then its routed experts by rank.
    pub fn combine(&self, pool: &Pool, work: &mut Workspace) {
        let (hidden, kernels) = (self.spec.hidden, self.kernels);
        let Workspace { hidden: residual, choices, groups, returned, shared, shared_gates, .. } = work;
        let k = choices.top_k;
        let pieces = residual
            .chunks_mut(PIECE_ROWS * hidden)
            .zip(choices.weights.chunks(PIECE_ROWS * k))
            .zip(groups.slots.chunks(PIECE_ROWS * k))
            .enumerate();
        share(pool, pieces, |(piece, ((residual, weights), slots))| {
            let rows = residual.chunks_mut(hidden).zip(weights.chunks(k)).zip(slots.chunks(k));
            for (row, ((residual, weights), slots)) in (piece * PIECE_ROWS..).zip(rows) {
                if shared.rows() > 0 {
                    shared.add_row(kernels, row, shared_gates[row], residual);
                }
                for (weight, slot) in weights.iter().zip(slots) {
                    returned.add_row(kernels, *slot as usize, *weight, residual);
                }
            }
        });
    }

    /// The last norm of some rows, in f32: what the reference calls the last hidden state.
    pub fn last_norm(&self, residual: &[f32], out: &mut [f32]) {
        math::norm_row(self.kernels, residual, &self.weights.norm, self.spec.norm_eps, out);
    }

    /// Logits of some rows of the batch, `[rows][vocab]`.
    pub fn logits(&self, pool: &Pool, work: &mut Workspace, rows: &[usize], logits: &mut Vec<f32>) {
        let (hidden, vocab) = (self.spec.hidden, self.spec.vocab);
        work.rows.reset(rows.len(), hidden);
        let mut normed = vec![0.0; hidden];
        let mut out = work.rows.out();
        for (to, &row) in rows.iter().enumerate() {
            self.last_norm(&work.hidden[row * hidden..][..hidden], &mut normed);
            write_row(self.kernels, &mut out, to, &normed);
        }
        resize(logits, rows.len() * vocab);
        let out = RowsMut::new(logits, rows.len(), vocab, vocab);
        multiply(self.kernels, pool, &mut [store(&self.weights.head, None, work.rows.view(), out)]);
    }

    /// Normalises rows and rounds them to the row type.
    fn norm_rows(&self, pool: &Pool, from: &[f32], weight: &[f32], eps: f32, to: &mut RowBuffer) {
        let width = weight.len();
        let kernels = self.kernels;
        let rows = from.len() / width;
        let pieces = from.chunks(PIECE_ROWS * width).zip(split_rows(to.out(), pieces_of(rows)));
        share(pool, pieces, |(from, mut out)| {
            let mut normed = vec![0.0; width];
            for (row, from) in from.chunks(width).enumerate() {
                math::norm_row(kernels, from, weight, eps, &mut normed);
                write_row(kernels, &mut out, row, &normed);
            }
        });
    }
}

/// Row counts of the pieces into which [`PIECE_ROWS`] cuts `rows`.
fn pieces_of(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by(PIECE_ROWS).map(move |at| PIECE_ROWS.min(rows - at))
}

/// For every row of the batch, its span and its position.
fn rows_of(spans: &[Span<'_>], rows: usize) -> Vec<(usize, usize)> {
    let mut of = vec![(0, 0); rows];
    for (index, span) in spans.iter().enumerate() {
        for (position, row) in (span.start..).zip(span.rows.clone()) {
            of[row] = (index, position);
        }
    }
    of
}

/// Makes room without clearing what is there already.
fn resize(values: &mut Vec<f32>, length: usize) {
    values.resize(length, 0.0);
}
