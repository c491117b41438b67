//! The names that a family's tensors have on disk.
//!
//! Only names: which of them must be there follows from the [`Spec`](crate::spec::Spec).

use crate::spec::Family;

/// Names of one family's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    family: Family,
}

/// Names of one layer's tensors.
#[derive(Debug, Clone)]
pub struct LayerNames {
    family: Family,
    prefix: String,
}

/// Names of the three matrices of one feed-forward block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNames {
    /// Gate matrix, `[width, hidden]`.
    pub gate: String,
    /// Up matrix, `[width, hidden]`.
    pub up: String,
    /// Down matrix, `[hidden, width]`.
    pub down: String,
}

/// Where the experts of one layer lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpertNames {
    /// Each expert has tensors of its own.
    Separate(BlockNames),
    /// All experts of a layer share tensors; this is what they begin with.
    Fused(String),
}

impl Names {
    /// The names of `family`.
    pub fn new(family: Family) -> Self {
        Self { family }
    }

    /// Embedding, `[vocab, hidden]`.
    pub fn embedding(&self) -> &'static str {
        "model.embed_tokens.weight"
    }

    /// Norm before the head.
    pub fn norm(&self) -> &'static str {
        "model.norm.weight"
    }

    /// Head, `[vocab, hidden]`; absent when tied.
    pub fn head(&self) -> &'static str {
        "lm_head.weight"
    }

    /// One layer's names.
    pub fn layer(&self, layer: usize) -> LayerNames {
        LayerNames { family: self.family, prefix: format!("model.layers.{layer}") }
    }
}

impl LayerNames {
    /// Norm before attention.
    pub fn input_norm(&self) -> String {
        format!("{}.input_layernorm.weight", self.prefix)
    }

    /// Norm before the feed-forward.
    pub fn post_norm(&self) -> String {
        format!("{}.post_attention_layernorm.weight", self.prefix)
    }

    /// A tensor of the attention, for example `q_proj.weight`.
    pub fn attention(&self, part: &str) -> String {
        format!("{}.self_attn.{part}", self.prefix)
    }

    /// Router matrix, `[experts, hidden]`.
    pub fn gate(&self) -> String {
        match self.family {
            Family::GptOss => format!("{}.mlp.router.weight", self.prefix),
            _ => format!("{}.gate.weight", self.sparse()),
        }
    }

    /// The router matrix where a newer writer has renamed it.
    pub fn gate_renamed(&self) -> String {
        format!("{}.mlp.gate.weight", self.prefix)
    }

    /// Router bias that is part of the logit.
    pub fn gate_bias(&self) -> String {
        format!("{}.mlp.router.bias", self.prefix)
    }

    /// Bias that takes part in choosing only.
    pub fn correction_bias(&self) -> String {
        format!("{}.gate.e_score_correction_bias", self.sparse())
    }

    /// The dense feed-forward.
    pub fn dense(&self) -> BlockNames {
        block(&format!("{}.mlp", self.prefix))
    }

    /// The shared experts.
    pub fn shared(&self) -> BlockNames {
        match self.family {
            Family::Qwen2Moe => block(&format!("{}.mlp.shared_expert", self.prefix)),
            _ => block(&format!("{}.mlp.shared_experts", self.prefix)),
        }
    }

    /// The vector whose product with the row gates the shared experts.
    pub fn shared_gate(&self) -> String {
        format!("{}.mlp.shared_expert_gate.weight", self.prefix)
    }

    /// The tensors of routed expert `expert` as released.
    pub fn expert(&self, expert: usize) -> ExpertNames {
        let experts = self.experts();
        match self.family {
            Family::GptOss => ExpertNames::Fused(experts),
            Family::Mixtral => {
                let name = |part: &str| format!("{experts}.{expert}.{part}.weight");
                ExpertNames::Separate(BlockNames { gate: name("w1"), up: name("w3"), down: name("w2") })
            }
            _ => ExpertNames::Separate(block(&format!("{experts}.{expert}"))),
        }
    }

    /// What the names of all experts begin with.
    pub fn experts(&self) -> String {
        format!("{}.experts", self.sparse())
    }

    /// What the names of all experts begin with where a newer writer has stacked them in one tensor.
    pub fn fused_experts(&self) -> Vec<String> {
        vec![self.experts(), format!("{}.mlp.experts", self.prefix)]
    }

    fn sparse(&self) -> String {
        match self.family {
            Family::Mixtral => format!("{}.block_sparse_moe", self.prefix),
            _ => format!("{}.mlp", self.prefix),
        }
    }
}

fn block(prefix: &str) -> BlockNames {
    let name = |part: &str| format!("{prefix}.{part}_proj.weight");
    BlockNames { gate: name("gate"), up: name("up"), down: name("down") }
}
