//! Chooses the next token.
//!
//! Pure: the choice is a function of logits, history, seed and position, and of nothing else. So a stream
//! can be resumed by anybody from its prompt and the tokens so far, with no state kept for it. The random
//! number of a position is the beginning of a BLAKE3 hash of seed and position; exponentials and logarithms
//! are the `libm` crate's, in f64, so that every host gets the same bits.
//!
//! The order of the steps is that of the Hugging Face library, with the penalties of OpenAI's interface:
//! bias, repetition penalty, presence and frequency penalty, mask, temperature, top-k, top-p, min-p, draw. The
//! draw walks the candidates in falling probability, ties to the lower id. The vocabulary is never sorted
//! as a whole: the likeliest few are gathered and sorted, and more only if the walk gets that far.

use std::cmp::Ordering;

/// At least so many candidates are gathered and sorted at first. Most walks end among them.
const GATHERED_FIRST: usize = 64;
/// Eight to a factor of e, so that a shelf of a large vocabulary holds some thousands; the last takes the
/// rest, whose probabilities are below e^-32 of the likeliest.
const SHELVES: usize = 256;
/// Below it the exponential is 0 in f64.
const LEAST_SCORE: f64 = -745.0;
/// Keeps these random numbers apart from those of any other use of BLAKE3.
const RANDOM_CONTEXT: &[u8] = b"phalanx sampler 1";

/// Why there is no next token. Nothing was changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A field of [`Sampling`] is out of its range.
    #[error("{field} is {found}, which is not {allowed}; choose a value in that range")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: f64,
        /// Its range, in words.
        allowed: &'static str,
    },

    /// A logit is not a number, or positive infinity: the model's weights or kernels are broken.
    #[error(
        "the logit of token {token} is {found}; the weights are probably damaged, check them against \
         their digest"
    )]
    NotANumber {
        /// The first such token.
        token: u32,
        /// Its logit.
        found: f32,
    },

    /// There is no token to choose: no logits, or all are ruled out.
    #[error("none of {count} logits can be chosen; relax the logit bias")]
    NothingLeft {
        /// How many logits there are.
        count: usize,
    },
}

/// How to choose. The fields are valid: there is no other way to make one than [`Sampling::new`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling(SamplingFields);

/// The fields of [`Sampling`] before they are checked. The default takes the likeliest token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingFields {
    /// Divides the logits: above 1 flatter, below 1 sharper, 0 takes the likeliest token. From 0 to 100.
    pub temperature: f64,
    /// Keeps the likeliest tokens that together have this probability. Above 0, up to 1, which keeps all.
    pub top_p: f64,
    /// Keeps so many of the likeliest tokens, and those equal to the last of them; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens with at least this probability relative to the likeliest. From 0, which keeps all, to 1.
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens in prompt or answer; 1 for none.
    /// Above 0, up to 100.
    pub repetition_penalty: f64,
    /// Taken from the logit of every token that is in the answer. From -2 to 2.
    pub presence_penalty: f64,
    /// Taken from the logit of a token once for each time it is in the answer. From -2 to 2.
    pub frequency_penalty: f64,
    /// Added to the logits of single tokens. From -100, which in effect forbids, to 100.
    pub logit_bias: Vec<(u32, f64)>,
    /// Which of the possible answers. Two choices of one request differ in nothing else.
    pub seed: u64,
}

impl Default for SamplingFields {
    fn default() -> SamplingFields {
        SamplingFields {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks the fields; the error names the first that is out of range.
    pub fn new(fields: SamplingFields) -> Result<Sampling, SamplingError> {
        let check = |field, found: f64, valid: bool, allowed| match valid {
            true => Ok(()),
            false => Err(SamplingError::Field { field, found, allowed }),
        };
        let SamplingFields { temperature, top_p, min_p, .. } = fields;
        let penalty = fields.repetition_penalty;
        let (presence, frequency) = (fields.presence_penalty, fields.frequency_penalty);
        // A comparison with NaN is false, so NaN is refused everywhere.
        let within = |value: f64, low: f64, high: f64| (low..=high).contains(&value);
        check("temperature", temperature, within(temperature, 0.0, 100.0), "between 0 and 100")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, within(min_p, 0.0, 1.0), "between 0 and 1")?;
        let valid = penalty > 0.0 && penalty <= 100.0;
        check("repetition_penalty", penalty, valid, "above 0 and at most 100")?;
        check("presence_penalty", presence, within(presence, -2.0, 2.0), "between -2 and 2")?;
        check("frequency_penalty", frequency, within(frequency, -2.0, 2.0), "between -2 and 2")?;
        for (_, bias) in &fields.logit_bias {
            check("logit_bias", *bias, within(*bias, -100.0, 100.0), "between -100 and 100")?;
        }
        Ok(Sampling(fields))
    }

    /// Takes the likeliest token.
    pub fn greedy() -> Sampling {
        Sampling(SamplingFields::default())
    }

    /// The same choice with other random numbers.
    pub fn with_seed(&self, seed: u64) -> Sampling {
        Sampling(SamplingFields { seed, ..self.0.clone() })
    }

    /// The fields.
    pub fn fields(&self) -> &SamplingFields {
        &self.0
    }
}

/// The tokens that may be chosen: one bit for each, the lowest first. A token without a bit may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(Vec<u32>);

impl Mask {
    /// A mask of words of 32 tokens each.
    pub fn new(words: Vec<u32>) -> Mask {
        Mask(words)
    }

    /// Whether this token may be chosen.
    pub fn allows(&self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Rules out all scores of tokens that may not be chosen.
    fn rule_out(&self, scores: &mut [f64]) {
        let words = self.0.iter().copied().chain(std::iter::repeat(0));
        for (scores, word) in scores.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, score) in scores.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
    }
}

/// A token that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// The logarithm of the probability with which it was drawn, after all steps: 0 where there was no
    /// other possibility. What the model itself thought of it is in [`logprobs`].
    pub logprob: f64,
}

/// Chooses the token at `position`, given the logits there, the ids of the prompt and those generated since.
///
/// Ids without a logit are passed over: a tokenizer may know tokens that the model lacks.
pub fn choose(
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
    sampling: &Sampling,
    position: u64,
) -> Result<Choice, SamplingError> {
    choose_among(None, logits, prompt, generated, sampling, position)
}

/// The same, of the tokens that `allowed` leaves. The mask comes after bias and penalties and before all cuts, so that
/// top-k and top-p count tokens that may be chosen.
pub fn choose_among(
    allowed: Option<&Mask>,
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
    sampling: &Sampling,
    position: u64,
) -> Result<Choice, SamplingError> {
    let mut scores = scores(logits, prompt, generated, &sampling.0)?;
    if let Some(mask) = allowed {
        mask.rule_out(&mut scores);
    }
    if sampling.0.temperature == 0.0 {
        return Ok(Choice { token: likeliest(&scores)?.0, logprob: 0.0 });
    }
    let target = random(sampling.0.seed, position);
    let mut walk = Walk::new(scores, &sampling.0)?;
    let (mut sum, mut drawn) = (0.0, walk.first());
    if walk.keeps_all {
        // Nothing is cut off, so the walk can end at the token drawn. If a rounding puts the goal behind
        // the last token, for the total was summed in another order, it is the last one.
        while let Some(candidate) = walk.next() {
            sum += candidate.weight;
            drawn = candidate;
            if sum > target * walk.weight_total {
                break;
            }
        }
        return Ok(drawn.choice(walk.weight_total));
    }
    let kept = walk.kept();
    let weight_total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
    for candidate in kept {
        sum += candidate.weight;
        drawn = candidate;
        if sum > target * weight_total {
            break;
        }
    }
    Ok(drawn.choice(weight_total))
}

/// The tokens that [`choose`] may draw and their probabilities, falling, ties to the lower id.
pub fn distribution(
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
    sampling: &Sampling,
) -> Result<Vec<(u32, f64)>, SamplingError> {
    let scores = scores(logits, prompt, generated, &sampling.0)?;
    if sampling.0.temperature == 0.0 {
        return Ok(vec![(likeliest(&scores)?.0, 1.0)]);
    }
    let kept = Walk::new(scores, &sampling.0)?.kept();
    let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
    Ok(kept.iter().map(|candidate| (candidate.token, candidate.weight / total)).collect())
}

/// What the model thought, before penalties, temperature and cuts.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The logarithm of the token's probability; minus infinity for an id without a logit.
    pub chosen: f64,
    /// The likeliest tokens and theirs, falling, ties to the lower id. Tokens so unlikely that an f64
    /// cannot hold their probability are not among them.
    pub top: Vec<(u32, f64)>,
}

/// The log-softmax of `logits` at `token`, and the `count` largest.
pub fn logprobs(logits: &[f32], token: u32, count: usize) -> Result<Logprobs, SamplingError> {
    let fields = SamplingFields { temperature: 1.0, ..SamplingFields::default() };
    let scores = scores(logits, &[], &[], &fields)?;
    let mut walk = Walk::new(scores, &fields)?;
    let normalizer = libm::log(walk.weight_total);
    let logprob = |token: u32, scores: &[f64]| match scores.get(token as usize) {
        Some(score) => score - normalizer,
        None => f64::NEG_INFINITY,
    };
    let chosen = logprob(token, &walk.scores);
    let mut top = Vec::new();
    while let Some(candidate) = (top.len() < count).then(|| walk.next()).flatten() {
        top.push((candidate.token, logprob(candidate.token, &walk.scores)));
    }
    Ok(Logprobs { chosen, top })
}

/// The logits of all tokens, by id, after bias and penalties. None is NaN or positive infinity.
fn scores(
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
    fields: &SamplingFields,
) -> Result<Vec<f64>, SamplingError> {
    let is_sound = |logit: f32| logit < f32::INFINITY;
    if let Some(index) = logits.iter().position(|logit| !is_sound(*logit)) {
        return Err(SamplingError::NotANumber { token: index as u32, found: logits[index] });
    }
    // Adding 0 makes -0 a 0, so that the two are a tie.
    let mut scores: Vec<f64> = logits.iter().map(|logit| f64::from(*logit) + 0.0).collect();
    for (token, bias) in &fields.logit_bias {
        if let Some(score) = scores.get_mut(*token as usize) {
            *score += bias;
        }
    }
    if fields.repetition_penalty != 1.0 {
        let mut is_seen = vec![false; scores.len()];
        for token in prompt.iter().chain(generated) {
            let index = *token as usize;
            if is_seen.get(index) == Some(&false) {
                is_seen[index] = true;
                let is_negative = scores[index] < 0.0;
                let factor = fields.repetition_penalty;
                scores[index] = if is_negative { scores[index] * factor } else { scores[index] / factor };
            }
        }
    }
    if fields.presence_penalty != 0.0 || fields.frequency_penalty != 0.0 {
        let mut counts = vec![0u32; scores.len()];
        for token in generated {
            if let Some(count) = counts.get_mut(*token as usize) {
                *count += 1;
            }
        }
        for (score, count) in scores.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            *score -= fields.presence_penalty + fields.frequency_penalty * f64::from(count);
        }
    }
    Ok(scores)
}

/// The highest score and its token; of equal ones the lowest id.
fn likeliest(scores: &[f64]) -> Result<(u32, f64), SamplingError> {
    let largest = scores.iter().fold(f64::NEG_INFINITY, |largest, score| largest.max(*score));
    match scores.iter().position(|score| *score == largest) {
        Some(index) if largest > f64::NEG_INFINITY => Ok((index as u32, largest)),
        _ => Err(SamplingError::NothingLeft { count: scores.len() }),
    }
}

/// A token that may be drawn, with the weight of its probability.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// Above 0 and at most 1, the weight of the likeliest.
    weight: f64,
}

impl Candidate {
    fn choice(&self, weight_total: f64) -> Choice {
        // Rounding may make the one possibility a hair likelier than certain.
        let share = (self.weight / weight_total).min(1.0);
        Choice { token: self.token, logprob: libm::log(share) }
    }
}

/// The candidates after top-k, in falling probability, sorted only as far as they are asked for.
///
/// Scores stand on shelves by their distance from the largest. How many stand on each is counted at the
/// start, so that the next few shelves can be gathered and sorted alone.
struct Walk {
    /// By id, relative to the largest and divided by the temperature: 0 or less.
    scores: Vec<f64>,
    counts: [u32; SHELVES],
    /// Where gathering goes on.
    next_shelf: usize,
    /// What was gathered last, and how much of it is walked.
    sorted: Vec<(f64, u32)>,
    walked: usize,
    /// Summed by rising id.
    weight_total: f64,
    top_p: f64,
    min_p: f64,
    keeps_all: bool,
}

impl Walk {
    fn new(mut scores: Vec<f64>, fields: &SamplingFields) -> Result<Walk, SamplingError> {
        // The largest is taken off first, so that the smallest temperature makes weights of 0, no infinity.
        let (_, largest) = likeliest(&scores)?;
        for score in &mut scores {
            *score = (*score - largest) / fields.temperature;
        }
        let top_k = fields.top_k as usize;
        if top_k > 0 && top_k < scores.len() {
            cut_below_rank(&mut scores, top_k);
        }
        Ok(Walk {
            counts: counts(&scores),
            weight_total: scores.iter().map(|score| weight(*score)).sum(),
            scores,
            next_shelf: 0,
            sorted: Vec::new(),
            walked: 0,
            top_p: fields.top_p,
            min_p: fields.min_p,
            keeps_all: fields.top_p >= 1.0 && fields.min_p == 0.0,
        })
    }

    /// The likeliest, without a step.
    fn first(&self) -> Candidate {
        let token = self.scores.iter().position(|score| *score == 0.0).unwrap_or(0) as u32;
        Candidate { token, weight: 1.0 }
    }

    fn next(&mut self) -> Option<Candidate> {
        if self.walked == self.sorted.len() {
            self.gather();
        }
        let (score, token) = *self.sorted.get(self.walked)?;
        self.walked += 1;
        Some(Candidate { token, weight: weight(score) })
    }

    /// Fetches the next shelves and sorts them; each time some times more than before, so that the scores
    /// are looked through only a few times even if the walk goes far.
    fn gather(&mut self) {
        let wanted = GATHERED_FIRST.max(self.sorted.len() * 8);
        let from = self.next_shelf;
        let mut count = 0;
        while self.next_shelf < SHELVES && count < wanted {
            count += self.counts[self.next_shelf] as usize;
            self.next_shelf += 1;
        }
        let range = from..self.next_shelf;
        self.walked = 0;
        self.sorted.clear();
        if count > 0 {
            let on_shelves = (0u32..).zip(&self.scores).filter(|(_, score)| range.contains(&shelf(**score)));
            self.sorted.extend(on_shelves.map(|(token, score)| (*score, token)));
            self.sorted.sort_unstable_by(by_rank);
        }
    }

    /// Those left by top-p and min-p: at least the likeliest.
    fn kept(mut self) -> Vec<Candidate> {
        let mut kept = Vec::new();
        let mut sum = 0.0;
        while let Some(candidate) = self.next() {
            // Kept is whatever begins below the share, so the last one kept passes it.
            let is_within = self.top_p >= 1.0 || sum < self.top_p * self.weight_total;
            // The likeliest has weight 1.
            if !kept.is_empty() && (!is_within || candidate.weight < self.min_p) {
                break;
            }
            sum += candidate.weight;
            kept.push(candidate);
        }
        kept
    }
}

/// Rules out all scores below the one that is `rank`th from the top, counted from 1.
fn cut_below_rank(scores: &mut [f64], rank: usize) {
    let (mut last_shelf, mut count) = (SHELVES, 0);
    for (shelf, more) in counts(scores).into_iter().enumerate() {
        count += more as usize;
        if count >= rank {
            last_shelf = shelf;
            break;
        }
    }
    // Fewer than `rank` weigh anything: all of those stay.
    if last_shelf == SHELVES {
        return;
    }
    let mut upper: Vec<(f64, u32)> =
        scores.iter().filter(|score| shelf(**score) <= last_shelf).map(|score| (*score, 0)).collect();
    let (_, (least, _), _) = upper.select_nth_unstable_by(rank - 1, by_rank);
    let least = *least;
    for score in scores.iter_mut().filter(|score| **score < least) {
        *score = f64::NEG_INFINITY;
    }
}

/// Falling scores, ties to the lower id. Scores are never NaN.
fn by_rank(a: &(f64, u32), b: &(f64, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The shelf of a relative score; one that weighs nothing is on none.
fn shelf(score: f64) -> usize {
    // A conversion to an integer stops at the largest, so minus infinity is on no shelf either.
    if score < LEAST_SCORE { SHELVES } else { ((-score * 8.0) as usize).min(SHELVES - 1) }
}

fn counts(scores: &[f64]) -> [u32; SHELVES] {
    let mut counts = [0; SHELVES + 1];
    for score in scores {
        counts[shelf(*score)] += 1;
    }
    std::array::from_fn(|shelf| counts[shelf])
}

/// In proportion to the probability.
fn weight(score: f64) -> f64 {
    if score < LEAST_SCORE { 0.0 } else { libm::exp(score) }
}

/// A number in [0, 1) that is fixed by seed and position.
fn random(seed: u64, position: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(RANDOM_CONTEXT).update(&seed.to_le_bytes()).update(&position.to_le_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    // The 53 bits that a f64 holds.
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(change: impl FnOnce(&mut SamplingFields)) -> Sampling {
        let mut fields = SamplingFields { temperature: 1.0, ..SamplingFields::default() };
        change(&mut fields);
        Sampling::new(fields).unwrap()
    }

    /// Ties are common in BF16 logits; the answer must not depend on how they are walked.
    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let choice = choose(&[1.0, 3.0, 3.0, -0.0], &[], &[], &Sampling::greedy(), 9).unwrap();
        assert_eq!(choice, Choice { token: 1, logprob: 0.0 });
        let zeros = choose(&[-0.0, 0.0], &[], &[], &Sampling::greedy(), 0).unwrap();
        assert_eq!(zeros.token, 0);
    }

    /// Damaged weights give NaN, and a server must say so and live on.
    #[test]
    fn broken_logits_are_an_error() {
        for sampling in [Sampling::greedy(), sampling(|_| ())] {
            let run = |logits: &[f32]| choose(logits, &[], &[], &sampling, 0).unwrap_err();
            assert!(run(&[0.0, f32::NAN]).to_string().starts_with("the logit of token 1 is NaN"));
            assert!(matches!(run(&[f32::INFINITY]), SamplingError::NotANumber { token: 0, .. }));
            assert_eq!(run(&[]), SamplingError::NothingLeft { count: 0 });
            assert_eq!(run(&[f32::NEG_INFINITY; 3]), SamplingError::NothingLeft { count: 3 });
        }
        assert!(logprobs(&[f32::NAN], 0, 1).is_err());
    }

    /// A client mends a request only if the message names the field.
    #[test]
    fn fields_out_of_range_are_named() {
        type Change = fn(&mut SamplingFields);
        let changes: [(&str, Change); 9] = [
            ("temperature is -1, which is not between 0 and 100", |f| f.temperature = -1.0),
            ("temperature is NaN", |f| f.temperature = f64::NAN),
            ("top_p is 0, which is not above 0", |f| f.top_p = 0.0),
            ("top_p is 1.5", |f| f.top_p = 1.5),
            ("min_p is -0.1", |f| f.min_p = -0.1),
            ("repetition_penalty is 0", |f| f.repetition_penalty = 0.0),
            ("presence_penalty is 3", |f| f.presence_penalty = 3.0),
            ("frequency_penalty is -3", |f| f.frequency_penalty = -3.0),
            ("logit_bias is 101", |f| f.logit_bias = vec![(0, 101.0)]),
        ];
        for (start, change) in changes {
            let mut fields = SamplingFields::default();
            change(&mut fields);
            let message = Sampling::new(fields).unwrap_err().to_string();
            assert!(message.starts_with(start), "{message}");
        }
    }

    /// The walk sorts in rounds; a token drawn from a late round is as good as one from the first.
    #[test]
    fn walking_in_rounds_is_sorting_all() {
        // A flat distribution with many ties, so that the walk gets far.
        let logits: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 97) as f32 / 97.0).collect();
        let plain = sampling(|_| ());
        let all = distribution(&logits, &[], &[], &plain).unwrap();
        let mut ranked: Vec<u32> = (0..5000).collect();
        ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        assert_eq!(all.iter().map(|(token, _)| *token).collect::<Vec<_>>(), ranked);
        for position in 0..200 {
            let target = random(0, position);
            let mut sum = 0.0;
            let naive = all.iter().find(|(_, share)| {
                sum += share;
                sum > target
            });
            let choice = choose(&logits, &[], &[], &plain, position).unwrap();
            assert_eq!(choice.token, naive.unwrap().0);
        }
    }

    /// A mask leaves the choice that there would be if the other tokens did not exist, whatever else is asked for.
    #[test]
    fn a_masked_choice_is_that_of_fewer_tokens() {
        let logits: Vec<f32> = (0..70u32).map(|i| ((i * 7919) % 97) as f32 / 9.0).collect();
        let kept = |token: u32| token % 3 == 1 && token < 64;
        let mask = Mask::new(
            (0..2).map(|word| (0..32).map(|bit| u32::from(kept(word * 32 + bit)) << bit).sum()).collect(),
        );
        let mut few = logits.clone();
        for (token, logit) in few.iter_mut().enumerate() {
            assert_eq!(mask.allows(token as u32), kept(token as u32));
            if !kept(token as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for position in 0..100 {
            let sampling = sampling(|fields| {
                (fields.top_k, fields.top_p, fields.min_p) = (7, 0.9, 0.01);
                fields.temperature = f64::from(position as u32 % 4);
            });
            let masked = choose_among(Some(&mask), &logits, &[1], &[2, 4], &sampling, position).unwrap();
            assert_eq!(masked, choose(&few, &[1], &[2, 4], &sampling, position).unwrap());
        }
        let nothing = choose_among(Some(&Mask::new(vec![])), &logits, &[], &[], &Sampling::greedy(), 0);
        assert_eq!(nothing, Err(SamplingError::NothingLeft { count: 70 }));
    }

    /// Extremes of temperature must neither overflow nor leave nothing.
    #[test]
    fn extreme_temperatures_are_harmless() {
        for temperature in [f64::MIN_POSITIVE, 1e-300, 1e-9, 100.0] {
            let sampling = sampling(|fields| fields.temperature = temperature);
            let logits = [f32::MAX, 1.0, f32::MIN, f32::NEG_INFINITY];
            let choice = choose(&logits, &[], &[], &sampling, 1).unwrap();
            assert_eq!(choice.token, 0, "{temperature}");
        }
    }
}
