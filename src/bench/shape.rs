//! A model's shape on the command line, and the synthetic checkpoint of that shape.

use model::checkpoint::{Checkpoint, Synthetic};
use model::config::Config;
use model::family;
use model::load::Opened;
use model::weights::Digest;
use serde_json::{Value, json};

use crate::Failure;

/// The bench model: Qwen3-MoE, 1.7 billion parameters, 277 million of them for each token.
const DEFAULTS: [(&str, usize); 12] = [
    ("hidden", 1024),
    ("layers", 16),
    ("dense", 0),
    ("heads", 16),
    ("kv-heads", 4),
    ("head-dim", 64),
    ("experts", 64),
    ("top-k", 8),
    ("width", 512),
    ("vocab", 32_000),
    ("context", 8192),
    ("seed", 1),
];

/// A Qwen3-MoE shape.
#[derive(Debug, Clone)]
pub(crate) struct Shape(Vec<usize>);

impl Default for Shape {
    fn default() -> Self {
        Self(DEFAULTS.iter().map(|(_, value)| *value).collect())
    }
}

/// Reads `layers=4,experts=8`; what is not named is the bench model's.
pub(super) fn parse(text: &str) -> Result<Shape, String> {
    let mut shape = Shape::default();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let names = || DEFAULTS.map(|(name, _)| name).join(", ");
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is not NAME=NUMBER; names are {}", names()))?;
        let index = DEFAULTS
            .iter()
            .position(|(known, _)| *known == name.trim())
            .ok_or_else(|| format!("`{}` is not part of a shape; names are {}", name.trim(), names()))?;
        shape.0[index] = value
            .trim()
            .parse()
            .ok()
            .filter(|n| (shape_min(name.trim())..1 << 24).contains(n))
            .ok_or_else(|| format!("`{part}`: expected a positive number"))?;
    }
    if shape.get("dense") > shape.get("layers") {
        let (dense, layers) = (shape.get("dense"), shape.get("layers"));
        return Err(format!("dense={dense}: the first layers that are dense are at most all {layers}"));
    }
    Ok(shape)
}

fn index_of(name: &str) -> usize {
    let index = DEFAULTS.iter().position(|(known, _)| *known == name);
    index.expect("only known names are asked for")
}

/// Of all numbers, only dense layers may be none.
fn shape_min(name: &str) -> usize {
    usize::from(name != "dense")
}

impl Shape {
    /// The same shape, but for this.
    pub(crate) fn with(mut self, name: &str, value: usize) -> Self {
        self.0[index_of(name)] = value;
        self
    }

    fn get(&self, name: &str) -> usize {
        self.0[index_of(name)]
    }

    /// Its `config.json`.
    pub(crate) fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "torch_dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.get("hidden"),
            "intermediate_size": self.get("width"),
            "moe_intermediate_size": self.get("width"),
            "num_hidden_layers": self.get("layers"),
            "num_attention_heads": self.get("heads"),
            "num_key_value_heads": self.get("kv-heads"),
            "head_dim": self.get("head-dim"),
            "num_experts": self.get("experts"),
            "num_experts_per_tok": self.get("top-k"),
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": (0..self.get("dense")).collect::<Vec<_>>(),
            "vocab_size": self.get("vocab"),
            "max_position_embeddings": self.get("context"),
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": false,
        })
    }

    /// Its tensors, in the order of a written file.
    pub(super) fn tensors(&self) -> Vec<Synthetic> {
        let [hidden, width, vocab] = ["hidden", "width", "vocab"].map(|n| self.get(n));
        let head_dim = self.get("head-dim");
        let (queries, keys) = (self.get("heads") * head_dim, self.get("kv-heads") * head_dim);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| tensors.push(Synthetic { name, shape: shape.to_vec() });
        add("model.embed_tokens.weight".into(), &[vocab, hidden]);
        for layer in 0..self.get("layers") {
            let mut add =
                |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[queries, hidden]);
            add("self_attn.k_proj", &[keys, hidden]);
            add("self_attn.v_proj", &[keys, hidden]);
            add("self_attn.o_proj", &[hidden, queries]);
            add("self_attn.q_norm", &[head_dim]);
            add("self_attn.k_norm", &[head_dim]);
            add("post_attention_layernorm", &[hidden]);
            if layer < self.get("dense") {
                add("mlp.gate_proj", &[width, hidden]);
                add("mlp.up_proj", &[width, hidden]);
                add("mlp.down_proj", &[hidden, width]);
                continue;
            }
            add("mlp.gate", &[self.get("experts"), hidden]);
            for expert in 0..self.get("experts") {
                add(&format!("mlp.experts.{expert}.gate_proj"), &[width, hidden]);
                add(&format!("mlp.experts.{expert}.up_proj"), &[width, hidden]);
                add(&format!("mlp.experts.{expert}.down_proj"), &[hidden, width]);
            }
        }
        add("model.norm.weight".into(), &[hidden]);
        add("lm_head.weight".into(), &[vocab, hidden]);
        tensors
    }

    /// The checkpoint, without a file.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        let text = self.config().to_string();
        let spec = family::spec(&Config::parse("synthetic/config.json".as_ref(), text.as_bytes())?)?;
        let checkpoint = Checkpoint::synthetic("synthetic", &self.tensors(), self.get("seed") as u64);
        Ok(Opened::new(spec, checkpoint, Digest::of(text.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_read_by_names() {
        let shape = parse("layers=2, experts=8").expect("well formed");
        assert_eq!((shape.get("layers"), shape.get("experts"), shape.get("hidden")), (2, 8, 1024));
        for bad in ["layers", "layers=0", "layers=x", "colour=3", "layers=2,dense=3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
