//! GPT-OSS: attention sinks, sliding and full layers in turn, a clamped gate, biases everywhere.

use super::options::{Sizes, assemble, layer, top_k};
use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults};
use crate::spec::{Activation, Family, FeedForward, Gate, Moe, Score, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let mut sizes = Sizes::read(config, Some(8))?;
    sizes.head_dim = config.size_or("head_dim", 64)?;
    let experts = match config.size_or_none("num_local_experts")? {
        Some(n) => n,
        None => config.size_or("num_experts", 128)?,
    };
    let moe = Moe {
        experts,
        top_k: top_k(config, "num_experts_per_tok", experts, Some(4))?,
        width: config.size("intermediate_size")?,
        activation: Activation::ClampedSwiglu {
            alpha: config.number_or("swiglu_alpha", 1.702)? as f32,
            limit: config.number_or("swiglu_limit", 7.0)? as f32,
        },
        expert_bias: true,
        gate: Gate {
            score: Score::SoftmaxOfChosen,
            logit_bias: true,
            correction_bias: false,
            groups: None,
            renormalize: None,
            scaling: 1.0,
        },
        shared: None,
    };
    let mut grouped = sizes.grouped();
    grouped.qkv_bias = config.flag_or("attention_bias", true)?;
    grouped.output_bias = grouped.qkv_bias;
    grouped.sinks = true;
    let types = match config.texts_or_none("layer_types")? {
        Some(types) => types,
        None => (0..sizes.layers)
            .map(|l| if l % 2 == 0 { "sliding_attention" } else { "full_attention" })
            .collect(),
    };
    let windows =
        windows_of_types(config, &types, sizes.layers, || config.size_or("sliding_window", 128).map(Some))?;
    let layers = windows
        .into_iter()
        .map(|window| layer(grouped.clone(), window, FeedForward::Moe(moe.clone())))
        .collect();
    let defaults = RopeDefaults { head_dim: sizes.head_dim, theta: 150_000.0, layout: Layout::Halves };
    let parameters = match Rope::parameters(config)? {
        Some(parameters) => parameters,
        None => config.default_object("rope_scaling", default_scaling()),
    };
    let rope = Rope::new(config, Some(&parameters), defaults)?;
    assemble(config, Family::GptOss, sizes.hidden, rope, 1e-5, false, layers)
}

/// What the reference implementation takes where the file says nothing: not plain rotation.
fn default_scaling() -> serde_json::Map<String, serde_json::Value> {
    let value = serde_json::json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": false, "original_max_position_embeddings": 4096
    });
    value.as_object().expect("an object was written above").clone()
}

/// One window per layer from `layer_types`; `window` is asked for only if a layer slides.
pub(super) fn windows_of_types(
    config: &Config,
    types: &[&str],
    layers: usize,
    window: impl Fn() -> Result<Option<usize>, ConfigError>,
) -> Result<Vec<Option<usize>>, ConfigError> {
    if types.len() < layers {
        return Err(config.invalid("layer_types", format!("one entry for each of {layers} layers")));
    }
    types[..layers]
        .iter()
        .map(|&kind| match kind {
            "full_attention" => Ok(None),
            "sliding_attention" => window(),
            _ => Err(config.unsupported("layer_types", "supported are full_attention and sliding_attention")),
        })
        .collect()
}
