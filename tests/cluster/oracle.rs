//! The plain loop: what every cluster must answer, token by token and probability by probability.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator::generation::{FinishReason, Generation, Request, Token};
use coordinator::grammar::{Form, Grammar, Grammars};
use model::attention::Span;
use model::experts::{Experts, LocalExperts};
use model::gate::Choices;
use model::kernel::Kernels;
use model::kv::{KvCache, Sequence};
use model::load::{self, Opened, Progress};
use model::plain::{Observe, Run, Unobserved, step, step_under};
use model::pool::Pool;
use model::sampler::{Logprobs, Sampling, SamplingFields, logprobs};
use model::text::{StopStream, Tokenizer};
use model::trunk::{Trunk, Workspace};

use crate::conductor::Heard;

/// One model in this process.
pub(crate) struct Oracle {
    pub(crate) opened: Arc<Opened>,
    pub(crate) config: Vec<u8>,
    trunk: Trunk,
    experts: LocalExperts,
    pool: Arc<Pool>,
    cache: KvCache,
    work: Workspace,
    /// Every third request keeps to it.
    grammar: Grammar,
}

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Oracle {
    pub(crate) fn new(dir: &Path, kernels: Kernels) -> Self {
        Self::cut(dir, kernels, 1)
    }

    /// The same with every expert cut into so many shards.
    pub(crate) fn cut(dir: &Path, kernels: Kernels, shards: usize) -> Self {
        let opened = Arc::new(Opened::open(dir).unwrap().with_shards(shards).unwrap());
        let config = std::fs::read(dir.join("config.json")).unwrap();
        let ids = opened.experts();
        let known = Default::default();
        let request =
            load::Request { kernels, threads: 1, trunk: true, experts: &ids, digests: false, known: &known };
        let loaded = load::load(&opened, &request, &Progress::default()).unwrap();
        let pool = Arc::new(Pool::new(1, None));
        Self {
            trunk: Trunk::new(Arc::clone(&opened.spec), kernels, loaded.trunk.unwrap()),
            experts: LocalExperts::new(kernels, Arc::clone(&pool), loaded.experts),
            cache: KvCache::new(&opened.spec, kernels.class().row_type(), 64 << 20),
            work: Workspace::new(kernels),
            grammar: grammar(dir, opened.spec.vocab),
            opened,
            config,
            pool,
        }
    }

    pub(crate) fn kernels(&self) -> Kernels {
        self.trunk.kernels()
    }

    /// Runs a request to its end, alone.
    pub(crate) fn answer(&mut self, request: Request) -> (Vec<Token>, Option<FinishReason>) {
        self.observed(request, &mut Unobserved)
    }

    /// How likely each id of a prompt was but the first, computed row after row.
    pub(crate) fn scored(&mut self, prompt: &[u32], count: usize) -> Vec<Logprobs> {
        let (mut sequence, mut logits, mut scored) = (Sequence::default(), Vec::new(), Vec::new());
        for pair in prompt.windows(2) {
            let mut runs = [Run { sequence: &mut sequence, tokens: &pair[..1] }];
            let Self { trunk, pool, work, cache, experts, .. } = self;
            step(trunk, pool, work, cache, &mut runs, experts, &mut Unobserved).unwrap();
            trunk.logits(pool, work, &[0], &mut logits);
            scored.push(logprobs(&logits, pair[1], count).unwrap());
        }
        self.cache.release(sequence);
        scored
    }

    /// Tokens of a request, and for each expert of a layer how many of them come before a row of its own chooses it.
    pub(crate) fn tokens_before(&mut self, request: Request, layer: usize) -> (usize, BTreeMap<u32, usize>) {
        let mut chosen = Chosen { layer, steps: 0, before: BTreeMap::new() };
        let tokens = self.observed(request, &mut chosen).0.len();
        (tokens, chosen.before)
    }

    fn observed(
        &mut self,
        request: Request,
        observe: &mut dyn Observe,
    ) -> (Vec<Token>, Option<FinishReason>) {
        let mut generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let mut sequence = Sequence::default();
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        let wants_experts = generation.request().experts;
        while generation.finish_reason().is_none() {
            let mut visited = Visited { inner: observe, experts: Vec::new() };
            let next = generation.next_tokens().to_vec();
            let mut runs = [Run { sequence: &mut sequence, tokens: &next }];
            let Self { trunk, pool, work, cache, experts, .. } = self;
            let bias = generation.request().bias.as_deref();
            step_under(trunk, pool, work, cache, &mut runs, experts, &mut visited, bias).unwrap();
            let last = next.len() - 1;
            trunk.logits(pool, work, &[last], &mut logits);
            let experts = if wants_experts { visited.experts } else { Vec::new() };
            let token = generation.handle_logits(&logits).unwrap().token;
            tokens.extend(token.map(|token| Token { experts, ..token }));
        }
        self.cache.release(sequence);
        (tokens, generation.finish_reason())
    }

    /// Runs a request to its end, alone, where some experts are missing: position, layer and expert say which. What is left of a
    /// row's weights is scaled to the sum that they had together, and this is written here once more, as it is said.
    pub(crate) fn without(
        &mut self,
        request: Request,
        is_missing: &dyn Fn(usize, usize, u32) -> bool,
    ) -> Heard {
        let mut generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let mut sequence = Sequence::default();
        let (mut heard, mut logits) = (Heard::default(), Vec::new());
        let wants_experts = generation.request().experts;
        let Self { trunk, pool, work, cache, experts, .. } = self;
        while generation.finish_reason().is_none() {
            let next = generation.next_tokens().to_vec();
            let start = sequence.len();
            cache.extend(&mut sequence, next.len()).unwrap();
            let spans = [Span { sequence: &sequence, start, rows: 0..next.len() }];
            let mut visited = Vec::new();
            trunk.embed(work, &next, &spans);
            for layer in 0..trunk.spec().layers.len() {
                trunk.attend(pool, work, layer, cache, &spans);
                let goes_out = trunk.gate(pool, work, layer);
                if goes_out {
                    let top_k = work.choices.top_k;
                    let rows = work.choices.experts.chunks(top_k).zip(work.choices.weights.chunks_mut(top_k));
                    for (position, (chosen, weights)) in (start..).zip(rows) {
                        let is_here = |rank: &usize| !is_missing(position, layer, chosen[*rank]);
                        let here: Vec<usize> = (0..top_k).filter(is_here).collect();
                        if here.len() == top_k {
                            continue;
                        }
                        let all = weights.iter().fold(0.0_f32, |sum, weight| sum + weight);
                        let left = here.iter().fold(0.0_f32, |sum, rank| sum + weights[*rank]);
                        for rank in 0..top_k {
                            if here.contains(&rank) {
                                weights[rank] *= all / left;
                            } else {
                                // What it returns counts for nothing.
                                weights[rank] = 0.0;
                                *heard.missing.entry((layer as u32, chosen[rank])).or_default() += 1;
                            }
                        }
                    }
                    visited.extend_from_slice(&work.choices.experts[work.choices.experts.len() - top_k..]);
                    experts.compute(layer, &work.rows, &work.groups, &mut work.returned).unwrap();
                }
                trunk.forward(pool, work, layer);
                if goes_out {
                    trunk.combine(pool, work);
                }
            }
            trunk.logits(pool, work, &[next.len() - 1], &mut logits);
            let experts = if wants_experts { visited } else { Vec::new() };
            let token = generation.handle_logits(&logits).unwrap().token;
            heard.tokens.extend(token.map(|token| Token { experts, ..token }));
        }
        cache.release(sequence);
        heard.finish = generation.finish_reason();
        heard
    }

    /// A request of random tokens. Every other one samples, every third wants to know its experts; the probabilities of
    /// five alternatives come with each token, so that equal answers mean equal logits.
    pub(crate) fn request(&self, random: &mut Random, prompt: usize, tokens_max: usize) -> Request {
        let vocab = self.opened.spec.vocab;
        let seed = random.below(1000) as u64;
        let temperature = if seed.is_multiple_of(2) { 0.0 } else { 0.9 };
        Request {
            prompt: (0..prompt).map(|_| random.below(vocab) as u32).collect(),
            sampling: Sampling::new(SamplingFields { temperature, seed, top_p: 0.95, ..fields() }).unwrap(),
            tokens_max,
            end_ids: Vec::new(),
            logprobs: Some(5),
            prompt_logprobs: false,
            experts: seed.is_multiple_of(3),
            grammar: (random.below(3) == 0).then(|| self.grammar.clone()),
            bias: None,
        }
    }
}

/// A form with choices in it that ends nowhere.
fn grammar(dir: &Path, vocab: usize) -> Grammar {
    let schema = serde_json::json!({"type": "array", "minItems": 1000, "items": {"anyOf": [
        {"type": "integer"}, {"type": "string"}, {"enum": ["one", "two"]}]}});
    let grammars = Grammars::new(&Tokenizer::open(dir).unwrap(), vocab, &[]).unwrap();
    grammars.compile(Form::Schema(schema)).unwrap()
}

/// In which step each expert of a layer is chosen first.
struct Chosen {
    layer: usize,
    steps: usize,
    before: BTreeMap<u32, usize>,
}

impl Observe for Chosen {
    fn chosen(&mut self, layer: usize, choices: &Choices) {
        if layer == self.layer {
            for expert in &choices.experts {
                self.before.entry(*expert).or_insert(self.steps);
            }
            self.steps += 1;
        }
    }
}

/// The experts of the last row of a step, beside what somebody else observes.
struct Visited<'a> {
    inner: &'a mut dyn Observe,
    experts: Vec<u32>,
}

impl Observe for Visited<'_> {
    fn residual(&mut self, layer: usize, rows: &[f32]) {
        self.inner.residual(layer, rows);
    }

    fn chosen(&mut self, layer: usize, choices: &Choices) {
        self.experts.extend_from_slice(&choices.experts[choices.experts.len() - choices.top_k..]);
        self.inner.chosen(layer, choices);
    }
}

fn fields() -> SamplingFields {
    Sampling::greedy().fields().clone()
}

/// Random numbers that a seed repeats.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit as u64) as usize
    }
}
