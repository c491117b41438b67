//! From a family's `config.json` to a [`Spec`]: one file per family.
//!
//! A family is known by `architectures`, and by `model_type` where that is absent. One that is not
//! here is refused by name.

mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod gpt_oss;
mod mixtral;
mod names;
mod olmoe;
mod options;
mod qwen2_moe;
mod qwen3_moe;

pub use names::{BlockNames, ExpertNames, LayerNames, Names};

use crate::config::{Config, ConfigError};
use crate::spec::{Family, Spec};

const SUPPORTED: &str = "supported families are Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2, \
                         DeepSeek-V3 and GPT-OSS";

/// Reads a whole configuration.
pub fn spec(config: &Config) -> Result<Spec, ConfigError> {
    let family = family(config)?;
    let spec = match family {
        Family::Mixtral => mixtral::spec(config),
        Family::Qwen2Moe => qwen2_moe::spec(config),
        Family::Qwen3Moe => qwen3_moe::spec(config),
        Family::Olmoe => olmoe::spec(config),
        Family::DeepseekV2 => deepseek_v2::spec(config),
        Family::DeepseekV3 => deepseek_v3::spec(config),
        Family::GptOss => gpt_oss::spec(config),
    }?;
    Ok(spec)
}

fn family(config: &Config) -> Result<Family, ConfigError> {
    let architectures = config.texts_or_none("architectures")?.unwrap_or_default();
    let model_type = config.text_or_none("model_type")?;
    let by_architecture = match architectures.first() {
        None => None,
        Some(&name) => Some(match name {
            "MixtralForCausalLM" => Family::Mixtral,
            "Qwen2MoeForCausalLM" => Family::Qwen2Moe,
            "Qwen3MoeForCausalLM" => Family::Qwen3Moe,
            "OlmoeForCausalLM" => Family::Olmoe,
            "DeepseekV2ForCausalLM" => Family::DeepseekV2,
            "DeepseekV3ForCausalLM" => Family::DeepseekV3,
            "GptOssForCausalLM" => Family::GptOss,
            other => return Err(config.refuse(format!("the family `{other}`"), SUPPORTED)),
        }),
    };
    if let Some(family) = by_architecture {
        return Ok(family);
    }
    match model_type {
        Some("mixtral") => Ok(Family::Mixtral),
        Some("qwen2_moe") => Ok(Family::Qwen2Moe),
        Some("qwen3_moe") => Ok(Family::Qwen3Moe),
        Some("olmoe") => Ok(Family::Olmoe),
        Some("deepseek_v2") => Ok(Family::DeepseekV2),
        Some("deepseek_v3") => Ok(Family::DeepseekV3),
        Some("gpt_oss") => Ok(Family::GptOss),
        Some(other) => Err(config.refuse(format!("the family `{other}`"), SUPPORTED)),
        None => Err(config.unsupported("architectures", SUPPORTED)),
    }
}
