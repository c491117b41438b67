//! A quantised checkpoint is its widened weights, bit for bit. The twins were widened by the fixtures' generator, in
//! numpy, from the same FP8 and MXFP4 values.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use phalanx_model::kernel::{Matrix, NumericClass, Placement};
use phalanx_model::load::Opened;
use phalanx_model::plain::Unobserved;
use phalanx_model::weights::{Block, ForwardWeights};
use support::{Expected, Loop, Random, fixtures, kernels_of, name_of};

/// Quantised checkpoints and their twins.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let pairs: Vec<(PathBuf, PathBuf)> = fixtures()
        .into_iter()
        .filter_map(|dir| {
            let name = name_of(&dir).strip_suffix("-widened")?;
            Some((dir.with_file_name(name), dir.clone()))
        })
        .collect();
    let kinds: BTreeSet<&str> = ["fp8", "mxfp4"]
        .into_iter()
        .filter(|kind| pairs.iter().any(|(dir, _)| name_of(dir).contains(kind)))
        .collect();
    assert!(pairs.len() >= 3 && kinds.len() == 2, "pairs: {pairs:?}");
    for (quantised, widened) in &pairs {
        let scaled = |dir: &PathBuf| {
            let opened = Opened::open(dir).unwrap_or_else(|e| panic!("{e}"));
            let names = opened.checkpoint.names();
            names.iter().filter(|name| name.ends_with("_scale_inv") || name.ends_with("_scales")).count()
        };
        assert!(scaled(quantised) > 0 && scaled(widened) == 0, "{quantised:?} is quantised, its twin is not");
    }
    pairs
}

/// Logits of every prompt and of random tokens.
#[test]
fn a_quantised_checkpoint_gives_the_logits_of_its_widened_twin() {
    let mut random = Random::seeded("QUANTISED_SEED");
    for (quantised, widened) in pairs() {
        let prompts = Expected::open(&quantised).prompts();
        for class in NumericClass::ALL {
            for kernels in kernels_of(class) {
                let mut model = Loop::with(&quantised, kernels, 2);
                let mut twin = Loop::with(&widened, kernels, 2);
                let mut texts: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
                texts.push(random.tokens(100, model.vocab()));
                for text in texts {
                    let what = format!(
                        "{}, {class} on {}, {} tokens",
                        name_of(&quantised),
                        kernels.path(),
                        text.len()
                    );
                    let logits = model.forward(&text, &mut Unobserved);
                    let wanted = twin.forward(&text, &mut Unobserved);
                    assert!(wanted.iter().all(|x| x.is_finite()), "{what}");
                    assert_eq!(bits(&logits), bits(&wanted), "{what}");
                }
            }
        }
    }
}

/// Weight by weight, of every expert, routed, shared and dense: a logit could hide one that is hardly used.
#[test]
fn a_quantised_expert_is_its_widened_twin_weight_by_weight() {
    for (quantised, widened) in pairs() {
        for class in [NumericClass::F32, NumericClass::Portable] {
            let kernels = kernels_of(class)[0];
            let (model, twin) = (Loop::with(&quantised, kernels, 1), Loop::with(&widened, kernels, 1));
            let (blocks, wanted) = (model.experts.blocks(), twin.experts.blocks());
            assert_eq!(blocks.len(), wanted.len());
            for (id, block) in blocks {
                compare(block, &wanted[id], &format!("{}, {class}, expert {id}", name_of(&quantised)));
            }
            let layers = model.trunk.weights().layers.iter().zip(&twin.trunk.weights().layers);
            for (layer, (found, wanted)) in layers.enumerate() {
                let what = format!("{}, {class}, layer {layer}", name_of(&quantised));
                match (&found.forward, &wanted.forward) {
                    (ForwardWeights::Dense(block), ForwardWeights::Dense(wanted)) => {
                        compare(block, wanted, &what)
                    }
                    (ForwardWeights::Moe(gate), ForwardWeights::Moe(wanted)) => {
                        compare_columns(&gate.router, &wanted.router, &[Placement::Plain], &what);
                        if let (Some(block), Some(wanted)) = (&gate.shared, &wanted.shared) {
                            compare(block, wanted, &what);
                        }
                    }
                    _ => panic!("{what}: one is dense, the other sparse"),
                }
            }
        }
    }
}

fn compare(block: &Block, wanted: &Block, what: &str) {
    compare_columns(
        &block.gate_up,
        &wanted.gate_up,
        &[Placement::Gate, Placement::Up],
        &format!("{what}, gate and up"),
    );
    compare_columns(&block.down, &wanted.down, &[Placement::Plain], &format!("{what}, down"));
    assert_eq!(block.gate_up_bias, wanted.gate_up_bias, "{what}: bias of gate and up");
    assert_eq!(block.down_bias, wanted.down_bias, "{what}: bias of down");
    assert_eq!(block.activation, wanted.activation, "{what}");
}

fn compare_columns(matrix: &Matrix, wanted: &Matrix, placements: &[Placement], what: &str) {
    assert_eq!(matrix.shape(), wanted.shape(), "{what}");
    for &placement in placements {
        let mut nonzero = 0;
        for column in 0..matrix.n() / placements.len() {
            let found = matrix.column(placement, column);
            nonzero += found.iter().filter(|x| **x != 0.0).count();
            assert_eq!(
                bits(&found),
                bits(&wanted.column(placement, column)),
                "{what}, {placement:?} {column}"
            );
        }
        assert!(nonzero > 0, "{what}: all weights are zero");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
