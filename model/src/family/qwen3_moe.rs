//! Qwen3-MoE: a norm on every head's query and key, optional renormalisation, dense layers between.

use super::options::{Sizes, assemble, layer, softmax_gate, sparse_layers, top_k};
use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults};
use crate::spec::{Activation, Family, FeedForward, Moe, QkNorm, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(config, Some(4))?;
    let experts = match config.size_or_none("num_local_experts")? {
        Some(n) => n,
        None => config.size_or("num_experts", 128)?,
    };
    let moe = Moe {
        experts,
        top_k: top_k(config, "num_experts_per_tok", experts, Some(8))?,
        width: config.size("moe_intermediate_size")?,
        activation: Activation::Silu,
        expert_bias: false,
        gate: softmax_gate(config.flag_or("norm_topk_prob", false)?),
        shared: None,
    };
    let dense = FeedForward::Dense { width: config.size("intermediate_size")? };
    let mut grouped = sizes.grouped();
    grouped.qk_norm = QkNorm::PerHead;
    grouped.qkv_bias = config.flag_or("attention_bias", false)?;
    grouped.output_bias = grouped.qkv_bias;
    let window = match config.flag_or("use_sliding_window", false)? {
        true => config.size_or_none("sliding_window")?,
        false => None,
    };
    let sparse = sparse_layers(config, sizes.layers)?;
    let layers = sparse
        .iter()
        .map(|&sparse| {
            let forward = if sparse { FeedForward::Moe(moe.clone()) } else { dense.clone() };
            layer(grouped.clone(), window, forward)
        })
        .collect();
    let defaults = RopeDefaults { head_dim: sizes.head_dim, theta: 1e4, layout: Layout::Halves };
    let rope = Rope::from_config(config, defaults)?;
    assemble(config, Family::Qwen3Moe, sizes.hidden, rope, 1e-6, false, layers)
}
