//! From a row's router logits to its experts and their weights.
//!
//! Pure, one row at a time, so a choice never depends on the batch. Experts are ranked by falling
//! selection score, ties to the lower index; weights are summed in rank order.

use crate::kernel::{Kernels, math};
use crate::spec::{Gate, GroupWorth, Groups, Moe, Score};

/// The experts of a batch of rows: row-major, `top_k` entries a row, by rank.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Entries per row.
    pub top_k: usize,
    /// Chosen experts.
    pub experts: Vec<u32>,
    /// The weights that multiply their outputs.
    pub weights: Vec<f32>,
}

impl Choices {
    /// Empties it for `rows` rows.
    pub fn reset(&mut self, rows: usize, top_k: usize) {
        self.top_k = top_k;
        self.experts.clear();
        self.experts.resize(rows * top_k, 0);
        self.weights.clear();
        self.weights.resize(rows * top_k, 0.0);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.experts.len().checked_div(self.top_k).unwrap_or(0)
    }
}

/// Chooses for one row. `logits` has one value per expert and is overwritten; `scores` is scratch of
/// the same length.
pub fn choose(
    kernels: Kernels,
    moe: &Moe,
    correction: Option<&[f32]>,
    logits: &mut [f32],
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let gate = &moe.gate;
    match gate.score {
        Score::Softmax => {
            let mut sums = [0.0; math::LANES];
            math::exp_sub_sum(kernels, logits, math::max(kernels, logits), 0, &mut sums);
            let sum = math::tree16(&sums);
            logits.iter_mut().for_each(|x| *x /= sum);
        }
        Score::Sigmoid => math::sigmoid_row(kernels, logits),
        Score::SoftmaxOfChosen => {}
    }
    scores.copy_from_slice(logits);
    if let Some(correction) = correction {
        scores.iter_mut().zip(correction).for_each(|(s, c)| *s += c);
    }
    if let Some(groups) = gate.groups {
        keep_best_groups(groups, scores);
    }
    best(scores, experts);
    for (weight, &expert) in weights.iter_mut().zip(experts.iter()) {
        *weight = logits[expert as usize];
    }
    weigh(kernels, gate, weights);
}

fn weigh(kernels: Kernels, gate: &Gate, weights: &mut [f32]) {
    if gate.score == Score::SoftmaxOfChosen {
        // The first is the largest.
        let max = weights[0];
        weights.iter_mut().for_each(|w| *w = math::exp_f32(kernels, *w - max));
        let sum: f32 = weights.iter().fold(0.0, |sum, w| sum + w);
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    if let Some(renormalize) = gate.renormalize {
        let sum = weights.iter().fold(0.0, |sum, w| sum + w) + renormalize.eps;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    if gate.scaling != 1.0 {
        weights.iter_mut().for_each(|w| *w *= gate.scaling);
    }
}

/// Fills `chosen` with the indices of the highest scores, best first.
///
/// A NaN counts as lowest, so that a broken row still gets `chosen.len()` distinct experts.
fn best(scores: &[f32], chosen: &mut [u32]) {
    let key = |e: u32| {
        let s = scores[e as usize];
        if s.is_nan() { f32::NEG_INFINITY } else { s }
    };
    let mut filled = 0;
    for e in 0..scores.len() as u32 {
        let score = key(e);
        if filled == chosen.len() && score <= key(chosen[filled - 1]) {
            continue;
        }
        let mut at = filled.min(chosen.len() - 1);
        while at > 0 && key(chosen[at - 1]) < score {
            chosen[at] = chosen[at - 1];
            at -= 1;
        }
        chosen[at] = e;
        filled = (filled + 1).min(chosen.len());
    }
}

/// Sets the scores of all but the best groups to minus infinity.
fn keep_best_groups(groups: Groups, scores: &mut [f32]) {
    let size = scores.len() / groups.count;
    let worth: Vec<f32> = scores
        .chunks_exact(size)
        .map(|group| {
            let mut top = [0; 2];
            let n = match groups.worth {
                GroupWorth::Best => 1,
                GroupWorth::BestTwo => 2.min(size),
            };
            best(group, &mut top[..n]);
            top[..n].iter().fold(0.0, |sum, &e| sum + group[e as usize])
        })
        .collect();
    let mut kept = vec![0; groups.chosen];
    best(&worth, &mut kept);
    for (g, group) in scores.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&(g as u32)) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against sorting, with many ties: the order is total, so batches cannot disagree.
    #[test]
    fn best_equals_a_stable_sort() {
        let mut state = 1u64;
        for n in 1..40usize {
            for k in 1..=n {
                let scores: Vec<f32> = (0..n)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 61) as f32
                    })
                    .collect();
                let mut order: Vec<u32> = (0..n as u32).collect();
                order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
                let mut chosen = vec![0; k];
                best(&scores, &mut chosen);
                assert_eq!(chosen, order[..k]);
            }
        }
    }

    #[test]
    fn nan_scores_still_give_distinct_experts() {
        let mut chosen = vec![0; 3];
        best(&[f32::NAN; 5], &mut chosen);
        assert_eq!(chosen, [0, 1, 2]);
        best(&[f32::NAN, 1.0, f32::NAN, 2.0, 0.0], &mut chosen);
        assert_eq!(chosen, [3, 1, 4]);
    }

    #[test]
    fn only_the_best_groups_remain() {
        // Sums of two: 0.9, 1.0, 0.95, 0.3. By the best alone the first group would win.
        let mut scores = vec![0.9, 0.0, 0.5, 0.5, 0.625, 0.325, 0.1, 0.2];
        let groups = Groups { count: 4, chosen: 2, worth: GroupWorth::BestTwo };
        keep_best_groups(groups, &mut scores);
        let kept: Vec<bool> = scores.iter().map(|s| s.is_finite()).collect();
        assert_eq!(kept, [false, false, true, true, true, true, false, false]);
    }
}
