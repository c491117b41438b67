//! What DeepSeek-V2 and V3 share: latent attention, leading dense layers, shared experts.

use crate::config::{Config, ConfigError};
use crate::rope::{Layout, Rope, RopeDefaults, yarn_mscale};
use crate::spec::{Activation, Attention, FeedForward, Gate, GroupWorth, Groups, Latent, Layer, Moe, Shared};

/// The inner norms of latent attention are built with this whatever `rms_norm_eps` says.
const INNER_NORM_EPS: f32 = 1e-6;

/// Values where the file has none; they differ between V2 and V3.
pub(super) struct Defaults {
    pub(super) first_dense: usize,
    pub(super) shared: usize,
    pub(super) scaling: f64,
    pub(super) layout: Layout,
}

/// Rope and layers. `gate` is the family's own, without its scaling.
pub(super) fn layers(
    config: &Config,
    gate: Gate,
    defaults: &Defaults,
) -> Result<(Rope, Vec<Layer>), ConfigError> {
    let heads = config.size("num_attention_heads")?;
    let plain_dim = config.size("qk_nope_head_dim")?;
    let rotary_dim = config.size("qk_rope_head_dim")?;
    let rope = Rope::from_config(
        config,
        RopeDefaults { head_dim: rotary_dim, theta: 1e4, layout: defaults.layout },
    )?;
    if rope.dim() != rotary_dim {
        return Err(
            config.unsupported("partial_rotary_factor", "latent attention rotates all of qk_rope_head_dim")
        );
    }
    let latent = Latent {
        heads,
        query_rank: config.size_or_none("q_lora_rank")?,
        latent_rank: config.size("kv_lora_rank")?,
        plain_dim,
        rotary_dim,
        value_dim: config.size("v_head_dim")?,
        scale: scale(config, plain_dim + rotary_dim)?,
        bias: config.flag_or("attention_bias", false)?,
        inner_norm_eps: INNER_NORM_EPS,
    };
    if config.flag_or("mlp_bias", false)? {
        return Err(config.unsupported("mlp_bias", "DeepSeek is released without"));
    }
    if let Some(step) = config.size_or_none("moe_layer_freq")?
        && step != 1
    {
        return Err(config.unsupported("moe_layer_freq", "only 1 is"));
    }
    let experts = match config.size_or_none("n_routed_experts")? {
        Some(n) => n,
        None => config.size("num_local_experts")?,
    };
    let width = config.size("moe_intermediate_size")?;
    let shared = config.count_or_none("n_shared_experts")?.unwrap_or(defaults.shared);
    let moe = Moe {
        experts,
        top_k: super::options::top_k(config, "num_experts_per_tok", experts, None)?,
        width,
        activation: Activation::Silu,
        expert_bias: false,
        gate: Gate { scaling: config.number_or("routed_scaling_factor", defaults.scaling)? as f32, ..gate },
        shared: (shared > 0).then(|| Shared { width: width * shared, gated: false }),
    };
    let count = config.size("num_hidden_layers")?;
    let first = config.count_or_none("first_k_dense_replace")?.unwrap_or(defaults.first_dense);
    let dense = match first {
        0 => None,
        _ => Some(FeedForward::Dense { width: config.size("intermediate_size")? }),
    };
    let layers = (0..count)
        .map(|l| Layer {
            attention: Attention::Latent(latent.clone()),
            window: None,
            feed_forward: match &dense {
                Some(dense) if l < first => dense.clone(),
                _ => FeedForward::Moe(moe.clone()),
            },
        })
        .collect();
    Ok((rope, layers))
}

/// `n_group` and `topk_group`; `None` where they do not limit anything.
///
/// `absent` is what the reference implementation takes where the file has neither key.
pub(super) fn groups(
    config: &Config,
    worth: GroupWorth,
    absent: (usize, usize),
) -> Result<Option<Groups>, ConfigError> {
    let experts = match config.size_or_none("n_routed_experts")? {
        Some(n) => n,
        None => config.size("num_local_experts")?,
    };
    let or = |key, absent| config.size_or(key, if config.has(key) { 1 } else { absent });
    let (count, chosen) = (or("n_group", absent.0)?, or("topk_group", absent.1)?);
    if experts % count != 0 {
        return Err(config.invalid("n_group", format!("a divisor of n_routed_experts ({experts})")));
    }
    if chosen > count {
        return Err(config.invalid("topk_group", format!("at most n_group ({count})")));
    }
    let top_k = config.size("num_experts_per_tok")?;
    if chosen * (experts / count) < top_k {
        return Err(config.invalid(
            "topk_group",
            format!("groups that hold at least num_experts_per_tok ({top_k}) experts"),
        ));
    }
    Ok((chosen < count).then_some(Groups { count, chosen, worth }))
}

/// Scores are scaled by the head's width and, with a scaled rotation, by mscale squared.
fn scale(config: &Config, dim: usize) -> Result<f32, ConfigError> {
    let mut scale = 1.0 / libm::sqrt(dim as f64);
    if let Some(p) = Rope::parameters(config)? {
        let kind = p.text_or_none("rope_type")?.or(p.text_or_none("type")?).unwrap_or("default");
        let all = p.number_or("mscale_all_dim", 0.0)?;
        if kind != "default" && all != 0.0 {
            let mscale = yarn_mscale(p.number("factor")?, all);
            scale = scale * mscale * mscale;
        }
    }
    Ok(scale as f32)
}
