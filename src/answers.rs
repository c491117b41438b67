//! Requests that prove a cluster: what the plain loop answers, and what the cluster does.

use coordinator::generation::{Generation, Request, Token};
use coordinator::start::Coordinator;
use model::kv::Sequence;
use model::load::Opened;
use model::plain::Unobserved;
use model::sampler::Sampling;
use model::text::StopStream;

use crate::Failure;
use crate::arguments::ComputeArguments;
use crate::asked::Asked;
use crate::session::Session;

/// Memory for keys and values of one sequence.
const KV_BYTES: u64 = 1 << 30;

/// What is asked.
pub(crate) type Question = Request;
/// What came of it: every token with the probabilities of the likeliest, so that equal answers mean equal logits.
pub(crate) type Answer = Vec<Token>;

/// Requests with random prompts, all different.
pub(crate) fn questions(count: u32, prompt: u32, tokens: u32, vocab: usize) -> Vec<Question> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let question = |_| Request {
        prompt: (0..prompt).map(|_| random.below(vocab as u32)).collect(),
        sampling: Sampling::greedy(),
        tokens_max: tokens as usize,
        end_ids: Vec::new(),
        logprobs: Some(2),
        prompt_logprobs: false,
        experts: false,
        grammar: None,
        bias: None,
    };
    (0..count).map(question).collect()
}

/// What one process answers, one request after the other.
pub(crate) fn plain(
    opened: &Opened,
    compute: &ComputeArguments,
    questions: &[Question],
) -> Result<Vec<Answer>, Failure> {
    let mut session = Session::load_opened(opened, compute, KV_BYTES)?;
    let mut logits = Vec::new();
    let mut answer = |question: &Question| -> Result<Answer, Failure> {
        let mut generation = Generation::new(question.clone(), None, StopStream::new(Vec::new())?);
        let (mut sequence, mut tokens) = (Sequence::default(), Vec::new());
        while generation.finish_reason().is_none() {
            let next = generation.next_tokens().to_vec();
            session.advance(&mut sequence, &next, &mut Unobserved)?;
            session.logits(&[next.len() - 1], &mut logits);
            tokens.extend(generation.handle_logits(&logits)?.token);
        }
        session.cache.release(sequence);
        Ok(tokens)
    };
    questions.iter().map(&mut answer).collect()
}

/// What the cluster answers, to all at once.
pub(crate) async fn ask_all(
    coordinator: &Coordinator,
    questions: &[Question],
) -> Result<Vec<Answer>, Failure> {
    let mut all = Vec::new();
    for question in questions {
        all.push(Asked::hand_in(coordinator, question.clone()).await?);
    }
    let mut answers = Vec::new();
    for (number, asked) in all.iter_mut().enumerate() {
        let mut tokens = Vec::new();
        while let Some(token) = asked.next().await.map_err(|why| format!("request {number}: {why}"))? {
            tokens.push(token);
        }
        answers.push(tokens);
    }
    Ok(answers)
}

/// Random numbers that a seed repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Random(pub(super) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}
