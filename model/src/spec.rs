//! The family-neutral specification of a model: what a family's `config.json` means.
//!
//! Everything after loading reads this and never the family's name, so a family is one file that
//! produces a [`Spec`], and an option is one field here. Pure data.

use crate::rope::Rope;
use crate::weights::{SHARD_UNIT, Shard};

/// A family of models, as one file under `family/` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `MixtralForCausalLM`
    Mixtral,
    /// `Qwen2MoeForCausalLM`
    Qwen2Moe,
    /// `Qwen3MoeForCausalLM`
    Qwen3Moe,
    /// `OlmoeForCausalLM`
    Olmoe,
    /// `DeepseekV2ForCausalLM`
    DeepseekV2,
    /// `DeepseekV3ForCausalLM`
    DeepseekV3,
    /// `GptOssForCausalLM`
    GptOss,
}

impl Family {
    /// The name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Family::Mixtral => "Mixtral",
            Family::Qwen2Moe => "Qwen2-MoE",
            Family::Qwen3Moe => "Qwen3-MoE",
            Family::Olmoe => "OLMoE",
            Family::DeepseekV2 => "DeepSeek-V2",
            Family::DeepseekV3 => "DeepSeek-V3",
            Family::GptOss => "GPT-OSS",
        }
    }
}

/// A whole model.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Who made it so.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Longest sequence, in tokens.
    pub context_max: usize,
    /// Added to the mean square in every norm whose epsilon the family does not fix.
    pub norm_eps: f32,
    /// The head is the embedding.
    pub tied: bool,
    /// Rotary frequencies, the same in every layer.
    pub rope: Rope,
    /// In order.
    pub layers: Vec<Layer>,
    /// How linear weights are stored when they are quantised.
    pub quantization: Option<Quantization>,
    /// Into how many shards every expert is cut, dense layers' feed-forwards too. Not of `config.json`: part of the
    /// numeric identity that is set when a cluster starts; see [`Spec::with_shards`].
    pub shards: usize,
}

/// A number of shards that a model's experts cannot be cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shards} shards: an expert of layer {layer} is {width} wide inside and is cut into parts of at least {SHARD_UNIT}, \
     so it can have 1 to {most} shards"
)]
pub struct ShardsError {
    /// Shards asked for.
    pub shards: usize,
    /// The first layer with the narrowest experts.
    pub layer: usize,
    /// Their inner width.
    pub width: usize,
    /// The most shards they can have.
    pub most: usize,
}

/// How a checkpoint stores quantised weights. They are widened to BF16 on load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// E4M3 values with one f32 `weight_scale_inv` per block of rows x columns.
    Fp8 {
        /// Rows of a block.
        block_rows: usize,
        /// Columns of a block.
        block_columns: usize,
    },
    /// Expert matrices as MXFP4 `_blocks` and `_scales`.
    Mxfp4,
}

/// One decoder layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// How rows of one sequence see one another.
    pub attention: Attention,
    /// A row sees itself and at most this many positions less one before it.
    pub window: Option<usize>,
    /// What follows the attention.
    pub feed_forward: FeedForward,
}

/// Attention of one layer.
#[derive(Debug, Clone)]
pub enum Attention {
    /// Grouped queries: keys and values per group of heads.
    Grouped(Grouped),
    /// Multi-head latent attention: one compressed latent per position.
    Latent(Latent),
}

/// Grouped-query attention.
#[derive(Debug, Clone)]
pub struct Grouped {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Norm of queries and keys before the rotation.
    pub qk_norm: QkNorm,
    /// Queries, keys and values are clamped to this magnitude.
    pub clip: Option<f32>,
    /// `q_proj.bias`, `k_proj.bias`, `v_proj.bias` exist.
    pub qkv_bias: bool,
    /// `o_proj.bias` exists.
    pub output_bias: bool,
    /// One learned logit per head takes part in the softmax and carries no value.
    pub sinks: bool,
}

/// Which norm queries and keys pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, one weight vector of a head's width.
    PerHead,
    /// All heads together, one weight vector over the whole projection.
    Whole,
}

/// Multi-head latent attention. Queries meet the latent itself ("absorbed"), never expanded keys.
#[derive(Debug, Clone)]
pub struct Latent {
    /// Query heads.
    pub heads: usize,
    /// Width of the compressed query, if queries are compressed.
    pub query_rank: Option<usize>,
    /// Width of the compressed latent.
    pub latent_rank: usize,
    /// Width of a head's part without rotation.
    pub plain_dim: usize,
    /// Width of the rotated part, one for all heads on the key side.
    pub rotary_dim: usize,
    /// Width of a head's value.
    pub value_dim: usize,
    /// Factor of the scores, mscale included.
    pub scale: f32,
    /// `q_a_proj.bias`, `kv_a_proj_with_mqa.bias` and `o_proj.bias` exist.
    pub bias: bool,
    /// Epsilon of the two inner norms: the reference implementation fixes it, whatever the
    /// configuration says of the others.
    pub inner_norm_eps: f32,
}

/// Feed-forward of one layer.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// One matrix set that every row takes.
    Dense {
        /// Inner width.
        width: usize,
    },
    /// Routed experts.
    Moe(Moe),
}

/// Routed experts of one layer.
#[derive(Debug, Clone)]
pub struct Moe {
    /// How many experts there are.
    pub experts: usize,
    /// How many a row takes.
    pub top_k: usize,
    /// Inner width of an expert.
    pub width: usize,
    /// What stands between an expert's matrices.
    pub activation: Activation,
    /// The experts' matrices have biases.
    pub expert_bias: bool,
    /// How rows choose.
    pub gate: Gate,
    /// Experts that every row takes; part of the trunk.
    pub shared: Option<Shared>,
}

/// The experts of one layer: a dense layer is a layer with one expert that every row chooses, with weight 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerExperts {
    /// Which layer.
    pub layer: usize,
    /// How many experts it has.
    pub experts: usize,
    /// How many a row takes.
    pub top_k: usize,
    /// Inner width of an expert.
    pub width: usize,
    /// What stands between an expert's matrices.
    pub activation: Activation,
    /// The experts' matrices have biases.
    pub bias: bool,
    /// It is a dense layer's feed-forward.
    pub is_dense: bool,
}

/// The function between gate/up and down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`
    Silu,
    /// `(up + 1) * gate * sigmoid(alpha * gate)` with `gate <= limit`, `-limit <= up <= limit`
    ClampedSwiglu {
        /// Factor inside the sigmoid.
        alpha: f32,
        /// Clamp.
        limit: f32,
    },
}

/// Shared experts, fused into one by their widths.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Inner width of all of them together.
    pub width: usize,
    /// Their output is multiplied by the sigmoid of one learned dot product.
    pub gated: bool,
}

/// How rows choose experts and with which weights.
#[derive(Debug, Clone)]
pub struct Gate {
    /// From logit to score.
    pub score: Score,
    /// The router has a bias that is part of the logit.
    pub logit_bias: bool,
    /// A bias that takes part in choosing but not in the weight (`e_score_correction_bias`).
    pub correction_bias: bool,
    /// Only experts of the best groups can be chosen.
    pub groups: Option<Groups>,
    /// Divide the chosen weights by their sum.
    pub renormalize: Option<Renormalize>,
    /// Factor of the weights at the end.
    pub scaling: f32,
}

/// How chosen weights are made to sum to one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Renormalize {
    /// Added to the sum.
    pub eps: f32,
}

/// From logit to selection score and weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// The logit chooses; the weights are the softmax over the chosen.
    SoftmaxOfChosen,
}

/// Group-limited choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// How many groups of consecutive experts.
    pub count: usize,
    /// How many groups a row may choose from.
    pub chosen: usize,
    /// What a group is worth.
    pub worth: GroupWorth,
}

/// What a group is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupWorth {
    /// Its best expert's score (DeepSeek-V2).
    Best,
    /// The sum of its two best (DeepSeek-V3).
    BestTwo,
}

impl Spec {
    /// The layers with routed experts, in order, with their `moe_index`.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &Moe)> {
        self.layers.iter().enumerate().filter_map(|(l, layer)| match &layer.feed_forward {
            FeedForward::Moe(moe) => Some((l, moe)),
            FeedForward::Dense { .. } => None,
        })
    }

    /// The routed experts of layer `layer`, if it has any.
    pub fn moe(&self, layer: usize) -> Option<&Moe> {
        match &self.layers.get(layer)?.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense { .. } => None,
        }
    }

    /// The same model with every expert cut into `shards`.
    pub fn with_shards(self, shards: usize) -> Result<Self, ShardsError> {
        let narrowest = self.experts_out(true).min_by_key(|experts| experts.width);
        let Some(LayerExperts { layer, width, .. }) = narrowest else { return Ok(Self { shards, ..self }) };
        let most = Shard::count_max(width);
        match (1..=most).contains(&shards) {
            true => Ok(Self { shards, ..self }),
            false => Err(ShardsError { shards, layer, width, most }),
        }
    }

    /// The experts of layer `layer` as whoever computes them sees them; `None` if the model has no such layer.
    pub fn layer_experts(&self, layer: usize) -> Option<LayerExperts> {
        let forward = &self.layers.get(layer)?.feed_forward;
        Some(match forward {
            FeedForward::Dense { width } => LayerExperts {
                layer,
                experts: 1,
                top_k: 1,
                width: *width,
                activation: Activation::Silu,
                bias: false,
                is_dense: true,
            },
            FeedForward::Moe(moe) => LayerExperts {
                layer,
                experts: moe.experts,
                top_k: moe.top_k,
                width: moe.width,
                activation: moe.activation,
                bias: moe.expert_bias,
                is_dense: false,
            },
        })
    }

    /// The layers whose rows go out to experts, in order: the sparse ones, and the dense ones too if `dense_out`.
    pub fn experts_out(&self, dense_out: bool) -> impl Iterator<Item = LayerExperts> {
        (0..self.layers.len())
            .filter_map(|layer| self.layer_experts(layer))
            .filter(move |experts| dense_out || !experts.is_dense)
    }

    /// Whether some layer is dense.
    pub fn has_dense_layers(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Dense { .. }))
    }

    /// Whether the model has expert `expert` in layer `layer`; a dense layer's only one is 0.
    pub fn has_expert(&self, layer: usize, expert: usize) -> bool {
        self.layer_experts(layer).is_some_and(|experts| expert < experts.experts)
    }

    /// Values that one position keeps in one layer's cache.
    pub fn kv_values(&self, layer: usize) -> usize {
        match &self.layers[layer].attention {
            Attention::Grouped(g) => 2 * g.kv_heads * g.head_dim,
            Attention::Latent(l) => l.latent_rank + l.rotary_dim,
        }
    }
}
