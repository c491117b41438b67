//! Options that several families read in the same way.

use crate::config::{Config, ConfigError};
use crate::rope::Rope;
use crate::spec::{
    Attention, Family, FeedForward, Gate, Grouped, Layer, QkNorm, Quantization, Renormalize, Score, Spec,
};

/// Sizes that every family has.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Sizes {
    /// Reads and checks them. `head_dim` defaults to `hidden / heads`, `num_key_value_heads` to
    /// `kv_heads` where the key is absent and to the number of heads where it is null.
    pub(super) fn read(config: &Config, kv_heads: Option<usize>) -> Result<Self, ConfigError> {
        let hidden = config.size("hidden_size")?;
        let layers = config.size("num_hidden_layers")?;
        let heads = config.size("num_attention_heads")?;
        let absent = if config.has("num_key_value_heads") { None } else { kv_heads };
        let kv_heads = config.size_or("num_key_value_heads", absent.unwrap_or(heads))?;
        if heads % kv_heads != 0 {
            return Err(
                config.invalid("num_key_value_heads", format!("a divisor of num_attention_heads ({heads})"))
            );
        }
        let head_dim = match config.size_or_none("head_dim")? {
            Some(dim) => dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(config.invalid(
                    "num_attention_heads",
                    format!("a divisor of hidden_size ({hidden}), since head_dim is absent"),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(config.refuse(format!("a head width of {head_dim}"), "it must be even"));
        }
        Ok(Self { hidden, layers, heads, kv_heads, head_dim })
    }

    /// Plain grouped attention, to be refined by the family.
    pub(super) fn grouped(&self) -> Grouped {
        Grouped {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: inverse_root(self.head_dim),
            qk_norm: QkNorm::None,
            clip: None,
            qkv_bias: false,
            output_bias: false,
            sinks: false,
        }
    }
}

/// `dim ^ -0.5` as the reference computes it: in double precision, then rounded.
pub(super) fn inverse_root(dim: usize) -> f32 {
    (1.0 / libm::sqrt(dim as f64)) as f32
}

/// Puts a specification together from what the family found.
pub(super) fn assemble(
    config: &Config,
    family: Family,
    hidden: usize,
    rope: Rope,
    default_eps: f64,
    default_tied: bool,
    layers: Vec<Layer>,
) -> Result<Spec, ConfigError> {
    silu_only(config)?;
    let context = config.size("max_position_embeddings")?;
    Ok(Spec {
        family,
        vocab: config.size("vocab_size")?,
        hidden,
        context_max: rope.context_limit.map_or(context, |limit| limit.min(context)),
        norm_eps: config.number_or("rms_norm_eps", default_eps)? as f32,
        tied: config.flag_or("tie_word_embeddings", default_tied)?,
        rope,
        layers,
        quantization: quantization(config)?,
        shards: 1,
    })
}

/// `hidden_act` must be SiLU: no release of these families has another.
fn silu_only(config: &Config) -> Result<(), ConfigError> {
    match config.text_or_none("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(config.unsupported("hidden_act", "only silu is")),
    }
}

/// `quantization_config`: absent, DeepSeek's FP8, or MXFP4.
fn quantization(config: &Config) -> Result<Option<Quantization>, ConfigError> {
    let Some(q) = config.object_or_none("quantization_config")? else { return Ok(None) };
    match q.text_or_none("quant_method")? {
        Some("fp8") => {
            match q.text_or_none("fmt")? {
                None | Some("e4m3") => {}
                Some(_) => return Err(q.unsupported("fmt", "only e4m3 is")),
            }
            match q.counts("weight_block_size")?.as_slice() {
                &[block_rows, block_columns] if block_rows > 0 && block_columns > 0 => {
                    Ok(Some(Quantization::Fp8 { block_rows, block_columns }))
                }
                _ => Err(q.unsupported("weight_block_size", "two positive numbers are needed")),
            }
        }
        Some("mxfp4") => Ok(Some(Quantization::Mxfp4)),
        _ => Err(q.unsupported("quant_method", "supported are fp8 (e4m3 with blocks) and mxfp4")),
    }
}

/// Which layers are sparse under `decoder_sparse_step` and `mlp_only_layers` (the Qwen families).
pub(super) fn sparse_layers(config: &Config, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense = config.counts("mlp_only_layers")?;
    Ok((0..layers).map(|l| !dense.contains(&l) && (l + 1) % step == 0).collect())
}

/// Softmax gate without groups, with `norm_topk_prob`.
pub(super) fn softmax_gate(renormalize: bool) -> Gate {
    Gate {
        score: Score::Softmax,
        logit_bias: false,
        correction_bias: false,
        groups: None,
        renormalize: renormalize.then_some(Renormalize { eps: 0.0 }),
        scaling: 1.0,
    }
}

/// Checks `top_k` against the number of experts.
pub(super) fn top_k(
    config: &Config,
    key: &str,
    experts: usize,
    default: Option<usize>,
) -> Result<usize, ConfigError> {
    let k = match default {
        Some(default) => config.size_or(key, default)?,
        None => config.size(key)?,
    };
    if k > experts {
        return Err(config.invalid(key, format!("at most the number of experts ({experts})")));
    }
    Ok(k)
}

/// A layer of grouped attention.
pub(super) fn layer(grouped: Grouped, window: Option<usize>, feed_forward: FeedForward) -> Layer {
    Layer { attention: Attention::Grouped(grouped), window, feed_forward }
}
