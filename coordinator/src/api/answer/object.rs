//! What OpenAI's clients read: the shapes of an answer, whole or as a chunk.

use serde::Serialize;

use super::Head;
use super::likely::LogprobsObject;
use crate::api::said::Said;

#[derive(Serialize)]
pub(super) struct Object<'a> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) choices: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) phalanx: Option<Extension<'a>>,
}

#[derive(Serialize)]
pub(super) struct Choice {
    pub(super) index: usize,
    #[serde(flatten)]
    pub(super) said: Said,
    pub(super) logprobs: Option<LogprobsObject>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
pub(super) struct PromptDetails {
    pub(super) cached_tokens: usize,
}

#[derive(Serialize)]
pub(super) struct Extension<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bias: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    /// For each token the likeliest ids and the logarithms of their probabilities: texts may be alike, ids are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_logprobs: Option<Vec<Vec<(u32, f64)>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expert_layers: Option<Vec<usize>>,
    /// For each token and layer the experts by rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) experts: Option<Vec<Vec<Vec<u32>>>>,
    /// Where a choice ends that lacks something.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missing: Vec<MissingExpert>,
}

/// An expert that rows went on without.
#[derive(Serialize)]
pub(super) struct MissingExpert {
    pub(super) layer: u32,
    pub(super) expert: u32,
    pub(super) rows: u64,
}

/// Writes it as JSON.
pub(super) fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("text as keys, and memory takes everything");
}
