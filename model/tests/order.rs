//! The documented orders of summation, written out and compared bit for bit: attention from what the cache
//! holds, and a layer's residual from what its experts return.
//!
//! `EXACTNESS_SEED=<seed> cargo test --release -p phalanx-model --test order` replays a run.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_model::attention::{Queries, Span, attend};
use phalanx_model::experts::Experts;
use phalanx_model::kernel::{Kernels, Placement, math};
use phalanx_model::kv::{PAGE, Sequence};
use phalanx_model::plain::Run;
use phalanx_model::rows::{RowBuffer, write_row};
use phalanx_model::spec::{Attention, Moe, Score};
use phalanx_model::weights::{AttentionWeights, Block, ExpertId, ForwardWeights, GateWeights};
use support::{Class, FIXTURES, Loop, OneByOne, Random, SMALL, assert_bits, fixture};

/// The orders of summation in attention, written out, from what [`phalanx_model::kv::KvCache::read`] says is in the
/// cache. A mistake that every chunk makes alike shows here, in the BF16 classes as in f32.
#[test]
fn attention_sums_in_the_documented_order() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    let names = [
        "mixtral",
        "qwen3moe",
        "gptoss",
        "gptoss-clamp",
        "mixtral-v5-sliding",
        "deepseekv2",
        "deepseekv3-yarn-mtp",
        SMALL,
    ];
    for name in names {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let mut model = Loop::with(&fixture(name), kernels, 2);
                let mut sequence = Sequence::default();
                let tokens = random.tokens(PAGE + 45, model.vocab());
                model.step(&mut [Run { sequence: &mut sequence, tokens: &tokens }]);
                for layer in 0..model.trunk.spec().layers.len() {
                    let what = format!("{name}, {} on {}, layer {layer}", class.class, kernels.path());
                    check_attention(&model, &sequence, layer, &mut random, &what);
                }
            }
        }
    }
}

/// Random queries of the last rows of a sequence.
fn check_attention(model: &Loop, sequence: &Sequence, layer: usize, random: &mut Random, what: &str) {
    let (kernels, cache, spec) = (model.trunk.kernels(), &model.cache, model.trunk.spec());
    let (heads, scale, width, rotary) = match &spec.layers[layer].attention {
        Attention::Grouped(g) => (g.heads, g.scale, g.head_dim, 0),
        Attention::Latent(l) => (l.heads, l.scale, l.latent_rank, l.rotary_dim),
    };
    let sinks = match &model.trunk.weights().layers[layer].attention {
        AttentionWeights::Grouped(weights) => weights.sinks.as_deref(),
        AttentionWeights::Latent(_) => None,
    };
    let window = spec.layers[layer].window;
    let start = random.below(sequence.len());
    let rows = sequence.len() - start;
    let mut values =
        |columns: usize| -> Vec<f32> { (0..rows * heads * columns).map(|_| random.signed()).collect() };
    let (main, turned) = (values(width), values(rotary));
    let queries = Queries { main: &main, rotary: &turned, heads, scale, window, sinks };
    let mut out = RowBuffer::new(kernels.class().row_type());
    out.reset(rows, heads * width);
    let spans = [Span { sequence, start, rows: 0..rows }];
    attend(kernels, &model.pool, cache, cache.layer(layer), queries, &spans, &mut out);

    let kept: Vec<Vec<f32>> =
        (0..sequence.len()).map(|position| cache.read(layer, sequence, position)).collect();
    let chain = |sum: f32, a: &[f32], b: &[f32]| a.iter().zip(b).fold(sum, |sum, (a, b)| a.mul_add(*b, sum));
    for row in 0..rows {
        let mut wanted = RowBuffer::new(kernels.class().row_type());
        wanted.reset(1, heads * width);
        let mut all = Vec::new();
        for head in 0..heads {
            let at = row * heads + head;
            let query = &main[at * width..][..width];
            // A position keeps key and value of every group, or a rotated key and then its latent.
            let split = |kept: &[f32]| -> (f32, Vec<f32>) {
                if rotary > 0 {
                    let (key, latent) = kept.split_at(rotary);
                    let query_turned = &turned[at * rotary..][..rotary];
                    (chain(chain(0.0, query, latent), query_turned, key), latent.to_vec())
                } else {
                    let groups = kept.len() / (2 * width);
                    let group = head / (heads / groups);
                    let (key, value) = kept[group * 2 * width..][..2 * width].split_at(width);
                    (chain(0.0, query, key), value.to_vec())
                }
            };
            let last = start + row;
            let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
            let seen: Vec<(f32, Vec<f32>)> = kept[first..=last].iter().map(|kept| split(kept)).collect();
            let sink = sinks.map(|sinks| sinks[head]);
            let scores: Vec<f32> = seen.iter().map(|(score, _)| score * scale).collect();
            let max = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scores.iter().map(|score| math::exp_f32(kernels, score - max)).collect();
            let mut sums = [0.0; 16];
            powers.iter().enumerate().for_each(|(index, power)| sums[(first + index) % 16] += power);
            let total = math::tree16(&sums) + sink.map_or(0.0, |sink| math::exp_f32(kernels, sink - max));
            all.extend((0..width).map(|column| {
                let sum = powers
                    .iter()
                    .zip(&seen)
                    .fold(0.0, |sum: f32, (p, (_, value))| p.mul_add(value[column], sum));
                sum / total
            }));
        }
        write_row(kernels, &mut wanted.out(), 0, &all);
        assert_bits(
            &out.row_f32(row),
            &wanted.row_f32(0),
            width,
            0,
            &format!("{what}, position {}, heads", start + row),
        );
    }
}

/// The order of summation of a layer, written out: residual, then shared experts, then routed ones by rank, each output
/// rounded before and each added by one fused multiply-add. Rank is falling selection score.
#[test]
fn a_row_is_residual_then_shared_then_routed_by_rank() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let what = format!("{name}, {} on {}", class.class, kernels.path());
                let mut model = Loop::with(&fixture(name), kernels, 2);
                let tokens = random.tokens(41, model.vocab());
                check_sums(&mut model, &tokens, &what);
            }
        }
    }
}

fn check_sums(model: &mut Loop, tokens: &[u32], what: &str) {
    let Loop { trunk, experts, pool, work, cache, .. } = model;
    let (spec, kernels) = (Arc::clone(trunk.spec()), trunk.kernels());
    let mut sequence = Sequence::default();
    cache.extend(&mut sequence, tokens.len()).expect("there is room");
    let spans = [Span { sequence: &sequence, start: 0, rows: 0..tokens.len() }];
    trunk.embed(work, tokens, &spans);
    for layer in 0..spec.layers.len() {
        trunk.attend(pool, work, layer, cache, &spans);
        let mut wanted = work.hidden.clone();
        let weights = &trunk.weights().layers[layer];
        let normed: Vec<Vec<f32>> = wanted
            .chunks(spec.hidden)
            .map(|row| {
                let mut normed = vec![0.0; spec.hidden];
                math::norm_row(kernels, row, &weights.post_norm, spec.norm_eps, &mut normed);
                normed
            })
            .collect();
        if trunk.gate(pool, work, layer) {
            experts
                .compute(layer, &work.rows, &work.groups, &mut work.returned)
                .expect("all experts are here");
        }
        let blocks = HashMap::new();
        let mut lonely = OneByOne { kernels, pool, blocks: &blocks, calls: 0 };
        for (row, wanted) in wanted.chunks_mut(spec.hidden).enumerate() {
            let mut add = |block: &Block, weight: f32| {
                let output = lonely.row(block, &normed[row]);
                wanted.iter_mut().zip(output).for_each(|(sum, x)| *sum = weight.mul_add(x, *sum));
            };
            let gate = match &weights.forward {
                ForwardWeights::Dense(block) => {
                    add(block, 1.0);
                    continue;
                }
                ForwardWeights::DenseOut => unreachable!("the whole trunk is loaded"),
                ForwardWeights::Moe(gate) => gate,
            };
            if let Some(block) = &gate.shared {
                let logit =
                    gate.shared_gate.as_ref().map(|vector| math::dot16(kernels, &normed[row], vector));
                add(block, logit.map_or(1.0, |logit| math::sigmoid_f32(kernels, logit)));
            }
            let moe = spec.moe(layer).expect("the layer is sparse");
            let of_row = row * moe.top_k..(row + 1) * moe.top_k;
            let chosen = &work.choices.experts[of_row.clone()];
            let scores: Vec<f32> =
                chosen.iter().map(|e| score(kernels, moe, gate, &normed[row], *e as usize)).collect();
            assert!(
                scores.is_sorted_by(|a, b| a >= b),
                "{what}, layer {layer}, row {row}: {scores:?} by rank"
            );
            for (expert, weight) in chosen.iter().zip(&work.choices.weights[of_row]) {
                let id = ExpertId { layer: layer as u32, expert: *expert };
                add(&experts.blocks()[&id], *weight);
            }
        }
        trunk.forward(pool, work, layer);
        if matches!(weights.forward, ForwardWeights::Moe(_)) {
            trunk.combine(pool, work);
        }
        assert_bits(&work.hidden, &wanted, spec.hidden, 0, &format!("{what}, layer {layer}: the residual"));
    }
    cache.release(sequence);
}

/// By what an expert is chosen: its logit, which a softmax leaves in order, or the sigmoid of it and its correction.
fn score(kernels: Kernels, moe: &Moe, gate: &GateWeights, row: &[f32], expert: usize) -> f32 {
    let weights = gate.router.column(Placement::Plain, expert);
    let logit = row.iter().zip(&weights).fold(0.0, |sum: f32, (x, w)| x.mul_add(*w, sum));
    let logit = logit + gate.bias.as_ref().map_or(0.0, |bias| bias[expert]);
    let score = match moe.gate.score {
        Score::Sigmoid => math::sigmoid_f32(kernels, logit),
        Score::Softmax | Score::SoftmaxOfChosen => logit,
    };
    score + gate.correction.as_ref().map_or(0.0, |correction| correction[expert])
}
