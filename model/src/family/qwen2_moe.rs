//! Qwen2-MoE: biases on queries, keys and values, a gated shared expert, dense layers between.

use super::options::{Sizes, assemble, layer, softmax_gate, sparse_layers, top_k};
use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults};
use crate::spec::{Activation, Family, FeedForward, Moe, Shared, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(config, Some(16))?;
    let experts = config.size_or("num_experts", 60)?;
    let moe = Moe {
        experts,
        top_k: top_k(config, "num_experts_per_tok", experts, Some(4))?,
        width: config.size("moe_intermediate_size")?,
        activation: Activation::Silu,
        expert_bias: false,
        gate: softmax_gate(config.flag_or("norm_topk_prob", false)?),
        shared: Some(Shared { width: config.size("shared_expert_intermediate_size")?, gated: true }),
    };
    let dense = FeedForward::Dense { width: config.size("intermediate_size")? };
    let mut grouped = sizes.grouped();
    grouped.qkv_bias = config.flag_or("qkv_bias", true)?;
    let windows = windows(config, sizes.layers)?;
    let sparse = sparse_layers(config, sizes.layers)?;
    let layers = (0..sizes.layers)
        .map(|l| {
            let forward = if sparse[l] { FeedForward::Moe(moe.clone()) } else { dense.clone() };
            layer(grouped.clone(), windows[l], forward)
        })
        .collect();
    let defaults = RopeDefaults { head_dim: sizes.head_dim, theta: 1e4, layout: Layout::Halves };
    let rope = Rope::from_config(config, defaults)?;
    assemble(config, Family::Qwen2Moe, sizes.hidden, rope, 1e-6, false, layers)
}

/// `layer_types` says it where present; otherwise, with `use_sliding_window`, every second layer
/// from the first on slides, below `max_window_layers`.
fn windows(config: &Config, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = config.flag_or("use_sliding_window", false)?;
    let window = || config.size_or("sliding_window", 4096);
    match config.texts_or_none("layer_types")? {
        // The reference implementation would mask everything in such a layer.
        Some(types) => super::gpt_oss::windows_of_types(config, &types, layers, || match used {
            true => window().map(Some),
            false => Err(config.unsupported("layer_types", "sliding layers need use_sliding_window")),
        }),
        None if used => {
            let (window, below) = (window()?, config.count_or_none("max_window_layers")?.unwrap_or(28));
            Ok((0..layers).map(|l| ((l + 1) % 2 == 1 && l < below).then_some(window)).collect())
        }
        None => Ok(vec![None; layers]),
    }
}
