//! Mixtral: grouped attention, every layer sparse, softmax gate that is always renormalised.

use super::options::{Sizes, assemble, layer, softmax_gate, top_k};
use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults};
use crate::spec::{Activation, Family, FeedForward, Moe, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let sizes = Sizes::read(config, Some(8))?;
    let experts = match config.size_or_none("num_local_experts")? {
        Some(n) => n,
        None => config.size_or("num_experts", 8)?,
    };
    let moe = Moe {
        experts,
        top_k: top_k(config, "num_experts_per_tok", experts, Some(2))?,
        width: config.size("intermediate_size")?,
        activation: Activation::Silu,
        expert_bias: false,
        gate: softmax_gate(true),
        shared: None,
    };
    let window = config.size_or_none("sliding_window")?;
    let layers =
        (0..sizes.layers).map(|_| layer(sizes.grouped(), window, FeedForward::Moe(moe.clone()))).collect();
    let defaults = RopeDefaults { head_dim: sizes.head_dim, theta: 1e6, layout: Layout::Halves };
    let rope = Rope::from_config(config, defaults)?;
    assemble(config, Family::Mixtral, sizes.hidden, rope, 1e-5, false, layers)
}
