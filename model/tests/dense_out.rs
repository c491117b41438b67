//! Dense layers whose feed-forward is an expert of its own: the same bits as in the trunk.

mod support;

use phalanx_model::gate::Choices;
use phalanx_model::kernel::NumericClass;
use phalanx_model::load::{self, Opened, Progress, Request};
use phalanx_model::plain::{Observe, Run, Unobserved};
use phalanx_model::weights::{ExpertId, ForwardWeights, Manifest};
use support::{Loop, Random, assert_bits, fixture, kernels_of};

/// DeepSeek of both generations, FP8, and layers that are dense by `mlp_only_layers` and `decoder_sparse_step`.
const FIXTURES: [&str; 6] = [
    "deepseekv2",
    "deepseekv3-seed",
    "deepseekv3-fp8",
    "deepseekv2-greedy",
    "qwen2moe",
    "qwen3moe-yarn-mixed",
];

fn open(name: &str) -> Opened {
    Opened::open(&fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

/// What was chosen where.
#[derive(Default)]
struct Layers(Vec<usize>);

impl Observe for Layers {
    fn chosen(&mut self, layer: usize, _choices: &Choices) {
        self.0.push(layer);
    }
}

/// Prefill and decode, in every class: logits and cache are those of the trunk that has its dense layers.
#[test]
fn a_dense_layer_elsewhere_gives_the_same_bits() {
    let mut random = Random::seeded("DENSE_OUT_SEED");
    for name in FIXTURES {
        for class in NumericClass::ALL {
            let Some(kernels) = kernels_of(class).first().copied() else { continue };
            let what = format!("{name}, {class}");
            let (inside, outside) = (open(name), open(name).with_dense_out(true));
            let dense = outside.experts().len() - inside.experts().len();
            assert!(dense > 0, "{what}: the fixture has dense layers");
            let mut model = Loop::of(&inside, kernels, 2);
            let mut other = Loop::of(&outside, kernels, 2);
            let out = |l: &phalanx_model::weights::TrunkLayer| matches!(l.forward, ForwardWeights::DenseOut);
            assert_eq!(other.trunk.weights().layers.iter().filter(|l| out(l)).count(), dense, "{what}");

            let tokens = random.tokens(37, model.vocab());
            let (mut wanted_layers, mut layers) = (Layers::default(), Layers::default());
            let wanted = model.forward(&tokens, &mut wanted_layers);
            let found = other.forward(&tokens, &mut layers);
            assert_bits(&found, &wanted, model.vocab(), 0, &what);
            assert_eq!(layers.0, wanted_layers.0, "{what}: only a gate chooses");
            assert_eq!(other.greedy(&tokens[..5], 12), model.greedy(&tokens[..5], 12), "{what}");
        }
    }
}

/// Such an expert is one like others: it has a digest, of its own bytes; the trunk's is not known without them.
#[test]
fn a_dense_layer_has_a_digest_as_an_expert() {
    for name in FIXTURES {
        let kernels = kernels_of(NumericClass::Portable)[0];
        let (inside, outside) = (open(name), open(name).with_dense_out(true));
        let (model, other) = (Loop::of(&inside, kernels, 1), Loop::of(&outside, kernels, 1));
        let dense: Vec<ExpertId> =
            outside.experts().into_iter().filter(|id| inside.spec.moe(id.layer as usize).is_none()).collect();
        for (id, digest) in &other.manifest.experts {
            match model.manifest.experts.get(id) {
                Some(wanted) => assert_eq!(digest, wanted, "{name}, expert {id}"),
                None => assert!(dense.contains(id), "{name}, expert {id}"),
            }
        }
        assert_eq!(other.manifest.experts.len(), model.manifest.experts.len() + dense.len(), "{name}");
        assert!(model.manifest.trunk.is_some() && other.manifest.trunk.is_none(), "{name}");
        let known = Manifest { trunk: model.manifest.trunk, ..Manifest::default() };
        let request =
            Request { kernels, threads: 1, trunk: true, experts: &[], digests: true, known: &known };
        let loaded = load::load(&outside, &request, &Progress::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.manifest.trunk, model.manifest.trunk, "{name}: known is known");
    }
}

/// Without the dense expert its layer cannot be computed, and the error says which.
#[test]
fn a_dense_expert_that_is_not_held_is_named() {
    let outside = open("deepseekv2").with_dense_out(true);
    let mut model = Loop::of(&outside, kernels_of(NumericClass::Portable)[0], 1);
    model.experts.blocks_mut().remove(&ExpertId { layer: 0, expert: 0 });
    let mut sequence = phalanx_model::kv::Sequence::default();
    let run = Run { sequence: &mut sequence, tokens: &[1, 2] };
    let error = phalanx_model::plain::step(
        &model.trunk,
        &model.pool,
        &mut model.work,
        &mut model.cache,
        &mut [run],
        &mut model.experts,
        &mut Unobserved,
    );
    let error = error.expect_err("the expert was taken away").to_string();
    assert_eq!(error, "layer 0: expert 0.0 is not held here");
}
