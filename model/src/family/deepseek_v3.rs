//! DeepSeek-V3 (and what is built like it, such as Kimi K2): latent attention, sigmoid scores with a
//! correction bias that takes part in choosing only, group-limited choice.

use super::deepseek::{Defaults, groups, layers};
use super::options::assemble;
use crate::config::{Config, ConfigError};
use crate::rope::Layout;
use crate::spec::{Family, Gate, GroupWorth, Renormalize, Score, Spec};

pub(super) fn spec(config: &Config) -> Result<Spec, ConfigError> {
    if !matches!(config.text_or_none("scoring_func")?, None | Some("sigmoid")) {
        return Err(config.unsupported("scoring_func", "DeepSeek-V3 scores with sigmoid"));
    }
    if !matches!(config.text_or_none("topk_method")?, None | Some("noaux_tc")) {
        return Err(config.unsupported("topk_method", "DeepSeek-V3 chooses with noaux_tc"));
    }
    let renormalize = config.flag_or("norm_topk_prob", true)?;
    let gate = Gate {
        score: Score::Sigmoid,
        logit_bias: false,
        correction_bias: true,
        groups: groups(config, GroupWorth::BestTwo, (8, 4))?,
        renormalize: renormalize.then_some(Renormalize { eps: 1e-20 }),
        scaling: 1.0,
    };
    let layout = match config.flag_or("rope_interleave", true)? {
        true => Layout::Interleaved,
        false => Layout::Halves,
    };
    let defaults = Defaults { first_dense: 3, shared: 1, scaling: 2.5, layout };
    let (rope, layers) = layers(config, gate, &defaults)?;
    let hidden = config.size("hidden_size")?;
    assemble(config, Family::DeepseekV3, hidden, rope, 1e-6, false, layers)
}
