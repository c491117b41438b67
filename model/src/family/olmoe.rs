//! OLMoE: one norm over the whole query and the whole key, optional clamping, every layer sparse.

use super::options::{Sizes, assemble, layer, softmax_gate, top_k};
use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults};
use crate::spec::{Activation, Family, FeedForward, Moe, QkNorm, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(config, None)?;
    let experts = config.size_or("num_experts", 64)?;
    let moe = Moe {
        experts,
        top_k: top_k(config, "num_experts_per_tok", experts, Some(8))?,
        width: config.size("intermediate_size")?,
        activation: Activation::Silu,
        expert_bias: false,
        gate: softmax_gate(config.flag_or("norm_topk_prob", false)?),
        shared: None,
    };
    let mut grouped = sizes.grouped();
    grouped.qk_norm = QkNorm::Whole;
    grouped.qkv_bias = config.flag_or("attention_bias", false)?;
    grouped.output_bias = grouped.qkv_bias;
    grouped.clip = match config.number_or_none("clip_qkv")? {
        Some(clip) if clip >= 0.0 => Some(clip as f32),
        Some(_) => return Err(config.invalid("clip_qkv", "a number from 0 on, or null")),
        None => None,
    };
    let layers =
        (0..sizes.layers).map(|_| layer(grouped.clone(), None, FeedForward::Moe(moe.clone()))).collect();
    let defaults = RopeDefaults { head_dim: sizes.head_dim, theta: 1e4, layout: Layout::Halves };
    let rope = Rope::from_config(config, defaults)?;
    assemble(config, Family::Olmoe, sizes.hidden, rope, 1e-5, false, layers)
}
