//! From a row's router logits to its experts and their weights.
//!
//! Pure, one row at a time, so a choice never depends on the batch. Experts are ranked by falling
//! selection score, ties to the lower index; weights are summed in rank order. A bias (`bias.rs`) takes part in the
//! choice and in the rank, and never in a weight.

use crate::bias::unit;
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
/// the same length. `correction` is the model's own, `bias` in units; without one nothing is added.
pub fn choose(
    kernels: Kernels,
    moe: &Moe,
    correction: Option<&[f32]>,
    bias: Option<&[f32]>,
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
    if let Some(bias) = bias {
        let unit = unit(moe);
        scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b * unit);
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
        // Without a bias that is the first.
        let max = weights.iter().fold(f32::NEG_INFINITY, |max, w| max.max(*w));
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
    use crate::kernel::NumericClass;
    use crate::spec::{Activation, Renormalize};

    fn random(state: &mut u64) -> f32 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
    }

    fn moe(score: Score, groups: Option<Groups>) -> Moe {
        let renormalize = (score == Score::Sigmoid).then_some(Renormalize { eps: 1e-20 });
        let gate =
            Gate { score, logit_bias: false, correction_bias: false, groups, renormalize, scaling: 2.5 };
        let activation = Activation::Silu;
        Moe { experts: 16, top_k: 4, width: 1, activation, expert_bias: false, gate, shared: None }
    }

    fn kernels() -> Kernels {
        Kernels::for_class(NumericClass::Portable).unwrap()
    }

    /// What a row chooses, and with which weights.
    fn chosen(
        moe: &Moe,
        correction: Option<&[f32]>,
        bias: Option<&[f32]>,
        logits: &[f32],
    ) -> (Vec<u32>, Vec<u32>) {
        let (mut logits, mut scores) = (logits.to_vec(), vec![0.0; moe.experts]);
        let (mut experts, mut weights) = (vec![0; moe.top_k], vec![0.0; moe.top_k]);
        choose(kernels(), moe, correction, bias, &mut logits, &mut scores, &mut experts, &mut weights);
        (experts, weights.iter().map(|weight| weight.to_bits()).collect())
    }

    /// The same by its definition: every score, then sorting; the weights know nothing of biases.
    fn sorted(moe: &Moe, correction: &[f32], bias: &[f32], logits: &[f32]) -> (Vec<u32>, Vec<u32>) {
        let exp = |x: f32| math::exp_f32(kernels(), x);
        let mut weights = logits.to_vec();
        let unit = match moe.gate.score {
            Score::Softmax => {
                let max = math::max(kernels(), logits);
                let mut sums = [0.0; math::LANES];
                math::exp_sub_sum(kernels(), &mut weights, max, 0, &mut sums);
                let sum = math::tree16(&sums);
                weights.iter_mut().for_each(|w| *w /= sum);
                1.0 / 16.0
            }
            Score::Sigmoid => {
                weights.iter_mut().for_each(|w| *w = math::sigmoid_f32(kernels(), *w));
                0.25
            }
            Score::SoftmaxOfChosen => 1.0,
        };
        let score = |e: usize| weights[e] + correction[e] + bias[e] * unit;
        let mut order: Vec<usize> = (0..16).collect();
        if let Some(Groups { count, chosen, .. }) = moe.gate.groups {
            let size = 16 / count;
            let worth = |group: usize| {
                let mut of: Vec<f32> = (group * size..(group + 1) * size).map(score).collect();
                of.sort_by(|a, b| b.total_cmp(a));
                of[0] + of[1]
            };
            let mut groups: Vec<usize> = (0..count).collect();
            groups.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
            order.retain(|e| groups[..chosen].contains(&(e / size)));
        }
        order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
        order.truncate(4);
        let mut weights: Vec<f32> = order.iter().map(|e| weights[*e]).collect();
        if moe.gate.score == Score::SoftmaxOfChosen {
            let max = weights.iter().copied().max_by(f32::total_cmp).unwrap();
            weights.iter_mut().for_each(|w| *w = exp(*w - max));
            let sum: f32 = weights.iter().fold(0.0, |sum, w| sum + w);
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        if let Some(Renormalize { eps }) = moe.gate.renormalize {
            let sum = weights.iter().fold(0.0, |sum, w| sum + w) + eps;
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        let weights = weights.iter().map(|w| (w * 2.5).to_bits()).collect();
        (order.into_iter().map(|e| e as u32).collect(), weights)
    }

    /// For every kind of score, with and without groups: the bias decides who is chosen and in which rank, and no weight has it.
    #[test]
    fn a_bias_is_added_for_choosing_only() {
        let mut state = 3;
        let groups = Groups { count: 4, chosen: 2, worth: GroupWorth::BestTwo };
        let mut others = 0;
        for score in [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen] {
            for groups in [None, Some(groups)] {
                let moe = moe(score, groups);
                for _ in 0..300 {
                    let mut row = || (0..16).map(|_| random(&mut state)).collect::<Vec<f32>>();
                    let (logits, bias) = (row(), row());
                    let correction: Vec<f32> = row().iter().map(|value| value / 20.0).collect();
                    let found = chosen(&moe, Some(&correction), Some(&bias), &logits);
                    assert_eq!(found, sorted(&moe, &correction, &bias, &logits), "{moe:?}");
                    let without = chosen(&moe, Some(&correction), None, &logits);
                    assert_eq!(without, sorted(&moe, &correction, &[0.0; 16], &logits), "{moe:?}");
                    others += usize::from(found != without);
                }
            }
        }
        assert!(others > 1_000, "a bias that changes nothing shows nothing: {others}");
    }

    /// A bias of nothing is none, bit for bit, also where scores are zero or tied.
    #[test]
    fn a_bias_of_zero_is_no_bias() {
        let mut state = 9;
        for score in [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfChosen] {
            let moe = moe(score, None);
            for round in 0..300 {
                let mut logits: Vec<f32> = (0..16).map(|_| random(&mut state)).collect();
                if round % 2 == 0 {
                    logits.iter_mut().for_each(|logit| *logit = logit.trunc());
                }
                let without = chosen(&moe, None, None, &logits);
                assert_eq!(chosen(&moe, None, Some(&[0.0; 16]), &logits), without, "{logits:?}");
            }
        }
    }

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
