//! DeepSeek-V2: latent attention, softmax gate, greedy or group-limited choice. Weights are never renormalised:
//! the reference implementation ignores `norm_topk_prob`, and every release has it false.

use super::deepseek::{Defaults, groups, layers};
use super::options::assemble;
use crate::config::{Config, ConfigError};
use crate::rope::Layout;
use crate::spec::{Family, Gate, GroupWorth, Score, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    if !matches!(config.text_or_none("scoring_func")?, None | Some("softmax")) {
        return Err(config.unsupported("scoring_func", "DeepSeek-V2 scores with softmax"));
    }
    let groups = match config.text_or_none("topk_method")? {
        None | Some("greedy") => None,
        Some("group_limited_greedy") => groups(config, GroupWorth::Best, (1, 1))?,
        Some(_) => {
            return Err(config.unsupported("topk_method", "supported are greedy and group_limited_greedy"));
        }
    };
    let gate = Gate {
        score: Score::Softmax,
        logit_bias: false,
        correction_bias: false,
        groups,
        renormalize: None,
        scaling: 1.0,
    };
    let defaults = Defaults { first_dense: 0, shared: 2, scaling: 1.0, layout: Layout::Interleaved };
    let (rope, layers) = layers(config, gate, &defaults)?;
    let hidden = config.size("hidden_size")?;
    assemble(config, Family::DeepseekV2, hidden, rope, 1e-6, false, layers)
}
