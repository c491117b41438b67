//! Stages: what the trunk does between two waits.
//!
//! Pure. A stage combines what returned for a row and then runs layers until one whose rows go out to experts. The
//! last stage is the head: layers after the last experts, if any, then logits.

use std::ops::Range;

use model::spec::Spec;

/// Where the rows of a stage go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// The layer whose experts they choose.
    pub layer: usize,
    /// Experts that a row takes.
    pub top_k: usize,
    /// Experts of the layer.
    pub experts: usize,
    /// Rows choose among them: not so in a dense layer, whose one expert nothing can replace.
    pub is_choice: bool,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The layers that it runs.
    pub layers: Range<usize>,
    /// Where its rows go; nowhere, for the head.
    pub out: Option<Out>,
}

/// The stages of a model, the head last. `dense_out`: dense layers' feed-forwards have devices of their own.
pub fn stages(spec: &Spec, dense_out: bool) -> Vec<Stage> {
    let mut stages = Vec::new();
    let mut start = 0;
    for experts in spec.experts_out(dense_out) {
        let layer = experts.layer;
        let is_choice = spec.moe(layer).is_some();
        let out = Out { layer, top_k: experts.top_k, experts: experts.experts, is_choice };
        stages.push(Stage { layers: start..layer + 1, out: Some(out) });
        start = layer + 1;
    }
    stages.push(Stage { layers: start..spec.layers.len(), out: None });
    stages
}

/// The most experts that a row of any stage takes.
pub fn top_k_max(stages: &[Stage]) -> usize {
    stages.iter().filter_map(|stage| Some(stage.out?.top_k)).max().unwrap_or(1)
}
