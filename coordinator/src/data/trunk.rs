//! The trunk's thread: it owns the trunk, the KV cache and the residual of every row, and computes batches.
//!
//! A shell: what is computed next is decided by `Flow`, which pages there are by the scheduler. It hears of
//! sequences and batches through one channel and answers each batch when it is free. Where there are shared experts it says before
//! them what its rows chose, so that rows travel meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use model::attention::Span;
use model::bias::Bias;
use model::kernel::{RowType, RowsRef};
use model::kv::{KvCache, Sequence, SharedPage};
use model::pool::Pool;
use model::rows::RowBuffer;
use model::sampler::{self, Logprobs, Sampling, SamplingError};
use model::share::share;
use model::trunk::{RowValues, Trunk, Workspace, leave_out};
use transport::buffer::{Payload, Pool as Buffers};

use super::ahead::{Ahead, Guided};
use super::flow::BatchRun;
use super::ids::{BlockId, RowId, SequenceId};
use super::landing::{Landed, Slot};
use super::stage::{Stage, stages, top_k_max};
use crate::choice::{self, ChoiceError, Chosen, History};
use crate::grammar::Grammar;

/// How often the thread may be told something before it has heard the first of it: one batch, and the beginnings and ends of
/// many sequences.
const ORDERS_MAX: usize = 4096;

/// Rows of prompts whose logits are there at once: of a vocabulary of 150,000 they take 20 MB, and the head's weights are read once
/// for all of them.
const SCORED_AT_ONCE: usize = 32;

/// Why a block is there.
const KEPT: &str = "the scheduler names blocks that are kept";

/// A sequence that begins.
#[derive(Debug)]
pub struct Begin {
    /// Its place.
    pub sequence: SequenceId,
    /// All ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens that it has already, after the prompt: of a sequence that was preempted.
    pub tokens: Vec<u32>,
    /// How to choose.
    pub sampling: Sampling,
    /// Report so many alternatives with each token.
    pub logprobs: Option<usize>,
    /// Report how likely each token of the prompt was, with so many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// Report the experts of each row that is sampled.
    pub experts: bool,
    /// The form that its answer keeps to.
    pub grammar: Option<Grammar>,
    /// The bias that its rows choose under.
    pub bias: Option<Arc<Bias>>,
}

/// A batch to be computed. Its buffers come back with the answer.
#[derive(Debug, Default)]
pub struct Work {
    /// The stage.
    pub stage: usize,
    /// Its rows.
    pub rows: Vec<RowId>,
    /// The same as runs of positions.
    pub runs: Vec<BatchRun>,
    /// What returned for each (row, rank, shard) of the stage before, row-major; empty at the first stage.
    pub landed: Vec<Slot>,
}

/// What the thread is told.
#[derive(Debug)]
pub enum Order {
    /// A sequence begins.
    Begin(Box<Begin>),
    /// It becomes longer: its pages were reserved.
    Extend {
        /// Which.
        sequence: SequenceId,
        /// By so many positions.
        count: usize,
    },
    /// Its next page is that of a block.
    Share {
        /// Which sequence.
        sequence: SequenceId,
        /// Which block.
        block: BlockId,
    },
    /// A page of it is a block from now on.
    Keep {
        /// Which sequence.
        sequence: SequenceId,
        /// Which of its pages.
        index: u32,
        /// The block's name.
        block: BlockId,
    },
    /// A page of it holds what a block holds, and goes back for it.
    Replace {
        /// Which sequence.
        sequence: SequenceId,
        /// Which of its pages.
        index: u32,
        /// The block's name.
        block: BlockId,
    },
    /// A block is one no longer.
    Forget(BlockId),
    /// A batch.
    Compute(Work),
    /// A sequence has left: its pages are free.
    Release(SequenceId),
}

/// A token that was sampled.
#[derive(Debug)]
pub struct Sampled {
    /// For which sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: Result<Chosen, ChoiceError>,
    /// The experts of its row, by layer and rank, if that was asked for.
    pub experts: Vec<u32>,
}

/// How likely a token of a prompt was.
#[derive(Debug)]
pub struct Scored {
    /// Whose prompt.
    pub sequence: SequenceId,
    /// The token's position.
    pub position: u32,
    /// What the model thought of it, and of others.
    pub logprobs: Result<Logprobs, SamplingError>,
}

/// The experts of a batch's rows.
#[derive(Debug)]
pub struct ChosenExperts {
    /// The batch's stage.
    pub stage: usize,
    /// Experts by row and rank.
    pub experts: Vec<u32>,
    /// The rows as they enter the experts, in the order of the batch.
    pub rows: Payload,
}

/// What the thread answers.
#[derive(Debug)]
pub enum Answer {
    /// The rows of the batch chose their experts, and the thread goes on with it: with shared experts.
    Chosen(ChosenExperts),
    /// The batch is done, and the thread is free.
    Done {
        /// What was chosen in it, if that was not said before: each word wakes its reader.
        chosen: Option<ChosenExperts>,
        /// The batch's buffers.
        work: Work,
        /// Tokens sampled in it.
        sampled: Vec<Sampled>,
        /// Tokens of prompts that were looked at in it.
        scored: Vec<Scored>,
    },
}

/// What the thread is made of.
pub struct Parts {
    /// The trunk.
    pub trunk: Trunk,
    /// What computes.
    pub pool: Arc<Pool>,
    /// Pages for keys and values.
    pub cache: KvCache,
    /// Rows that may exist at once.
    pub rows_max: usize,
    /// Sequences that may exist at once.
    pub sequences_max: usize,
    /// Where rows that leave for experts are written.
    pub buffers: Buffers,
    /// Dense layers' feed-forwards have devices of their own.
    pub dense_out: bool,
}

/// The handle of the thread. Dropped, it lets the thread end after what it was told.
#[derive(Debug)]
pub struct TrunkThread {
    orders: Option<SyncSender<Vec<Order>>>,
    thread: Option<JoinHandle<()>>,
}

impl TrunkThread {
    /// Starts the thread. `answer` is called on it and must not wait.
    pub fn start(parts: Parts, answer: impl FnMut(Answer) + Send + 'static) -> std::io::Result<Self> {
        let (orders, told) = sync_channel(ORDERS_MAX);
        let thread = std::thread::Builder::new()
            .name("trunk".into())
            .spawn(move || Worker::new(parts, answer).serve(&told))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Tells the thread what to do next, in this order. It waits only if it is told thousands of times within one batch.
    pub fn tell(&self, orders: Vec<Order>) {
        let told = self.orders.as_ref().expect("open until it is dropped");
        assert!(told.send(orders).is_ok(), "the trunk's thread panicked");
    }
}

impl Drop for TrunkThread {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was shown where it happened.
            let _ = thread.join();
        }
    }
}

/// A sequence that is computed.
struct State {
    pages: Sequence,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    sampling: Sampling,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    guide: Option<Guided>,
    bias: Option<Arc<Bias>>,
}

impl State {
    fn token(&self, position: usize) -> u32 {
        match self.prompt.get(position) {
            Some(token) => *token,
            None => self.tokens[position - self.prompt.len()],
        }
    }
}

struct Worker<A> {
    trunk: Trunk,
    pool: Arc<Pool>,
    cache: KvCache,
    buffers: Buffers,
    work: Workspace,
    stages: Vec<Stage>,
    top_k_max: usize,
    /// Residual of every row, `[rows_max][hidden]`.
    residuals: Vec<f32>,
    /// Weights of what every row chose last, `[rows_max][top_k_max]`.
    weights: Vec<f32>,
    sequences: Vec<Option<State>>,
    /// Of sequences whose experts are reported: what the row that is sampled next has chosen so far.
    visited: BTreeMap<SequenceId, Vec<u32>>,
    /// What is kept for sequences that begin alike, by block.
    blocks: HashMap<BlockId, SharedPage>,
    batch_weights: Vec<f32>,
    logits: Vec<f32>,
    ahead: Ahead,
    answer: A,
}

impl<A: FnMut(Answer)> Worker<A> {
    fn new(parts: Parts, answer: A) -> Self {
        let Parts { trunk, pool, cache, rows_max, sequences_max, buffers, dense_out } = parts;
        pool.pin_caller();
        let stages = stages(trunk.spec(), dense_out);
        let top_k_max = top_k_max(&stages);
        Self {
            work: Workspace::new(trunk.kernels()),
            residuals: vec![0.0; rows_max * trunk.spec().hidden],
            weights: vec![0.0; rows_max * top_k_max],
            sequences: std::iter::repeat_with(|| None).take(sequences_max).collect(),
            visited: BTreeMap::new(),
            blocks: HashMap::new(),
            batch_weights: Vec::new(),
            logits: Vec::new(),
            ahead: Ahead::new(sequences_max),
            top_k_max,
            stages,
            trunk,
            pool,
            cache,
            buffers,
            answer,
        }
    }

    fn serve(mut self, told: &Receiver<Vec<Order>>) {
        for order in told.iter().flatten() {
            match order {
                Order::Begin(begin) => self.begin(*begin),
                Order::Extend { sequence, count } => {
                    let pages = pages_of(&mut self.sequences, sequence);
                    self.cache.extend(pages, count).expect("the scheduler reserved the pages");
                }
                Order::Share { sequence, block } => {
                    let pages = pages_of(&mut self.sequences, sequence);
                    self.cache.adopt(pages, self.blocks.get(&block).expect(KEPT));
                }
                Order::Keep { sequence, index, block } => {
                    let pages = pages_of(&mut self.sequences, sequence);
                    let page = self.cache.share(pages, index as usize);
                    self.blocks.insert(block, page);
                }
                Order::Replace { sequence, index, block } => {
                    let pages = pages_of(&mut self.sequences, sequence);
                    self.cache.replace(pages, index as usize, self.blocks.get(&block).expect(KEPT));
                }
                Order::Forget(block) => self.cache.forget(self.blocks.remove(&block).expect(KEPT)),
                Order::Compute(work) => self.compute(work),
                Order::Release(sequence) => {
                    if let Some(state) = self.sequences[sequence.0 as usize].take() {
                        self.cache.release(state.pages);
                    }
                    self.visited.remove(&sequence);
                }
            }
        }
    }

    fn begin(&mut self, begin: Begin) {
        let Begin { sequence, prompt, tokens, sampling, logprobs, prompt_logprobs, experts, grammar, bias } =
            begin;
        let place = &mut self.sequences[sequence.0 as usize];
        assert!(place.is_none(), "{sequence} has not left");
        let guide = grammar.map(|grammar| self.ahead.begin(&grammar, &tokens));
        let pages = Sequence::default();
        *place = Some(State { pages, prompt, tokens, sampling, logprobs, prompt_logprobs, guide, bias });
        if experts {
            self.visited.insert(sequence, Vec::new());
        }
    }

    fn compute(&mut self, mut batch: Work) {
        let stage = self.stages[batch.stage].clone();
        // Taken out so that spans may borrow them while the cache is written.
        let sequences = std::mem::take(&mut self.sequences);
        let spans: Vec<Span<'_>> = batch
            .runs
            .iter()
            .map(|run| Span {
                sequence: &sequences[run.sequence.0 as usize].as_ref().expect("it has not left").pages,
                start: run.start as usize,
                rows: run.rows.start as usize..run.rows.end as usize,
            })
            .collect();
        if batch.stage == 0 {
            let tokens = tokens_of(&sequences, &batch.runs);
            self.trunk.embed(&mut self.work, &tokens, &spans);
        } else {
            self.gather(&batch.rows);
            self.combine(&batch);
            self.trunk.rotate(&mut self.work, &spans);
        }
        // What returned is in the residuals now: the frames' room goes back to the nodes.
        batch.landed.clear();
        let biases = biases_of(&sequences, &batch.runs);
        let mut chosen = None;
        for layer in stage.layers.clone() {
            self.trunk.attend(&self.pool, &mut self.work, layer, &mut self.cache, &spans);
            let goes_out = self.trunk.gate_under(&self.pool, &mut self.work, layer, &biases);
            if goes_out {
                chosen = Some(self.chosen(&batch));
                self.note_visited(layer, &batch.runs);
                if self.trunk.has_shared(layer) {
                    chosen.take().into_iter().for_each(|chosen| (self.answer)(Answer::Chosen(chosen)));
                }
            }
            self.trunk.forward(&self.pool, &mut self.work, layer);
            if goes_out {
                self.trunk.add_shared(&mut self.work);
            }
        }
        drop((spans, biases));
        self.sequences = sequences;
        let (sampled, scored) = match stage.out {
            Some(_) => {
                self.scatter(&batch.rows);
                (Vec::new(), Vec::new())
            }
            // Scores first: of a prompt they are there before its first token.
            None => {
                let scored = self.score(&batch.runs);
                (self.sample(&batch.runs), scored)
            }
        };
        (self.answer)(Answer::Done { chosen, work: batch, sampled, scored });
    }

    /// Brings the residuals of the batch's rows together.
    fn gather(&mut self, rows: &[RowId]) {
        let hidden = self.trunk.spec().hidden;
        self.work.hidden.clear();
        for row in rows {
            self.work.hidden.extend_from_slice(&self.residuals[row.0 as usize * hidden..][..hidden]);
        }
    }

    fn scatter(&mut self, rows: &[RowId]) {
        let hidden = self.trunk.spec().hidden;
        for (row, residual) in rows.iter().zip(self.work.hidden.chunks_exact(hidden)) {
            self.residuals[row.0 as usize * hidden..][..hidden].copy_from_slice(residual);
        }
    }

    fn combine(&mut self, batch: &Work) {
        let before = self.stages[batch.stage - 1].out.expect("rows come back from experts");
        let (top_k, hidden) = (before.top_k, self.trunk.spec().hidden);
        let shards = self.trunk.spec().shards;
        self.batch_weights.clear();
        for (row, landed) in batch.rows.iter().zip(batch.landed.chunks_exact(top_k * shards)) {
            let weights = &self.weights[row.0 as usize * self.top_k_max..][..top_k];
            let from = self.batch_weights.len();
            self.batch_weights.extend_from_slice(weights);
            // Of an expert all shards are left out, or none.
            let is_missing = |rank: usize| matches!(landed[rank * shards], Slot::LeftOut);
            leave_out(&mut self.batch_weights[from..], is_missing);
        }
        let row_type = self.trunk.kernels().class().row_type();
        let landed = |slot: usize| match &batch.landed[slot] {
            Slot::Landed(landed) => Some(landed),
            Slot::LeftOut => None,
            Slot::Empty => unreachable!("a whole row has all that was sent for it"),
        };
        let Self { trunk, pool, work, batch_weights, .. } = self;
        if shards == 1 {
            let output = |entry: usize| Some(row_values(landed(entry)?, row_type, hidden));
            trunk.combine_landed(pool, work, top_k, batch_weights, output);
        } else {
            let partial =
                |entry: usize, shard: usize| Some(f32_values(landed(entry * shards + shard)?, hidden));
            trunk.combine_partials(pool, work, top_k, batch_weights, partial);
        }
    }

    /// Keeps the weights of what was chosen. The rest is for whoever sends the rows on their way.
    fn chosen(&mut self, batch: &Work) -> ChosenExperts {
        let choices = &self.work.choices;
        for (row, weights) in batch.rows.iter().zip(choices.weights.chunks_exact(choices.top_k)) {
            self.weights[row.0 as usize * self.top_k_max..][..choices.top_k].copy_from_slice(weights);
        }
        let rows = bytes_of(&self.work.rows, &self.buffers);
        ChosenExperts { stage: batch.stage, experts: choices.experts.clone(), rows }
    }

    /// Keeps what rows chose that are sampled later, for those who want to know. Nobody else pays for it.
    fn note_visited(&mut self, layer: usize, runs: &[BatchRun]) {
        // A dense layer on a device is no choice.
        if self.visited.is_empty() || self.trunk.spec().moe(layer).is_none() {
            return;
        }
        let choices = &self.work.choices;
        for run in runs.iter().filter(|run| run.samples) {
            if let Some(visited) = self.visited.get_mut(&run.sequence) {
                let last = run.rows.end as usize - 1;
                visited.extend_from_slice(&choices.experts[last * choices.top_k..][..choices.top_k]);
            }
        }
    }

    /// How likely the next token was after each row of prompts whose sequences want to know, some rows at a time.
    fn score(&mut self, runs: &[BatchRun]) -> Vec<Scored> {
        let Self { sequences, trunk, pool, work, logits, .. } = self;
        let mut rows = Vec::new();
        for run in runs {
            let state = sequences[run.sequence.0 as usize].as_ref().expect("it has not left");
            let Some(count) = state.prompt_logprobs else { continue };
            for (row, position) in (run.rows.start..run.rows.end).zip(run.start + 1..) {
                if let Some(token) = state.prompt.get(position as usize) {
                    rows.push((row as usize, run.sequence, position, *token, count));
                }
            }
        }
        let vocab = trunk.spec().vocab;
        let mut scored = Vec::with_capacity(rows.len());
        for rows in rows.chunks(SCORED_AT_ONCE) {
            let at: Vec<usize> = rows.iter().map(|(row, ..)| *row).collect();
            trunk.logits(pool, work, &at, logits);
            let likely: Vec<Mutex<Option<_>>> = rows.iter().map(|_| Mutex::new(None)).collect();
            let items = rows.iter().zip(logits.chunks_exact(vocab)).zip(&likely);
            share(pool, items, |((&(_, _, _, token, count), logits), to)| {
                *to.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(sampler::logprobs(logits, token, count));
            });
            let likely =
                likely.into_iter().map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner));
            let likely = likely.map(|logprobs| logprobs.expect("every row was looked at"));
            let whose = rows.iter().map(|&(_, sequence, position, ..)| (sequence, position));
            scored.extend(whose.zip(likely).map(|((sequence, position), logprobs)| Scored {
                sequence,
                position,
                logprobs,
            }));
        }
        scored
    }

    fn sample(&mut self, runs: &[BatchRun]) -> Vec<Sampled> {
        let runs: Vec<&BatchRun> = runs.iter().filter(|run| run.samples).collect();
        if runs.is_empty() {
            return Vec::new();
        }
        let rows: Vec<usize> = runs.iter().map(|run| run.rows.end as usize - 1).collect();
        self.trunk.logits(&self.pool, &mut self.work, &rows, &mut self.logits);
        let vocab = self.trunk.spec().vocab;
        let sampled: Vec<Mutex<Option<Sampled>>> = runs.iter().map(|_| Mutex::new(None)).collect();
        let items = runs.iter().zip(self.logits.chunks_exact(vocab)).zip(&sampled);
        let (sequences, ahead) = (&self.sequences, &self.ahead);
        share(&self.pool, items, |((run, logits), to)| {
            let state = sequences[run.sequence.0 as usize].as_ref().expect("it has not left");
            let token = choose(state, logits, ahead);
            *to.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Sampled { sequence: run.sequence, token, experts: Vec::new() });
        });
        let mut sampled: Vec<Sampled> = sampled
            .into_iter()
            .filter_map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        for Sampled { sequence, token, experts } in &mut sampled {
            if let Some(visited) = self.visited.get_mut(sequence) {
                *experts = std::mem::take(visited);
            }
            if let (Some(state), Ok(chosen)) = (&mut self.sequences[sequence.0 as usize], token) {
                state.tokens.push(chosen.id);
            }
        }
        sampled
    }
}

/// The next token of a sequence. What may come after it is found out while its row goes through the layers.
fn choose(state: &State, logits: &[f32], ahead: &Ahead) -> Result<Chosen, ChoiceError> {
    let State { prompt, tokens, sampling, logprobs, guide, .. } = state;
    let history = History { prompt, tokens, sampling, logprobs: *logprobs };
    match guide {
        None => choice::choose(None, logits, history),
        Some(guided) => ahead.choose(guided, logits, history),
    }
}

/// The pages of a sequence that has begun.
fn pages_of(sequences: &mut [Option<State>], sequence: SequenceId) -> &mut Sequence {
    &mut sequences[sequence.0 as usize].as_mut().expect("it has not left").pages
}

fn tokens_of(sequences: &[Option<State>], runs: &[BatchRun]) -> Vec<u32> {
    let mut tokens = Vec::new();
    for run in runs {
        let state = sequences[run.sequence.0 as usize].as_ref().expect("it has not left");
        let positions = run.start..run.start + (run.rows.end - run.rows.start);
        tokens.extend(positions.map(|position| state.token(position as usize)));
    }
    tokens
}

/// The bias of each row; nothing, where no row has any.
fn biases_of<'a>(sequences: &'a [Option<State>], runs: &[BatchRun]) -> Vec<Option<&'a Bias>> {
    let of = |run: &BatchRun| sequences[run.sequence.0 as usize].as_ref()?.bias.as_deref();
    if runs.iter().all(|run| of(run).is_none()) {
        return Vec::new();
    }
    runs.iter().flat_map(|run| run.rows.clone().map(move |_| of(run))).collect()
}

/// The bytes of rows, in a buffer that frames are made of.
fn bytes_of(rows: &RowBuffer, buffers: &Buffers) -> Payload {
    let values = rows.rows() * rows.columns();
    let take = |bytes: usize| buffers.take(bytes).expect("its pool has no bound");
    match rows.view() {
        RowsRef::Bf16 { data, .. } => {
            let mut buffer = take(2 * values);
            buffer.as_u16_mut().expect("buffers are aligned").copy_from_slice(&data[..values]);
            buffer.into()
        }
        RowsRef::F32 { data, .. } => {
            let mut buffer = take(4 * values);
            buffer.as_f32_mut().expect("buffers are aligned").copy_from_slice(&data[..values]);
            buffer.into()
        }
    }
}

fn row_values(landed: &Landed, row_type: RowType, hidden: usize) -> RowValues<'_> {
    let at = landed.at as usize;
    match row_type {
        RowType::Bf16 => {
            let values = landed.rows.payload().as_u16().expect("rows of two bytes, aligned");
            RowValues::Bf16(&values[at / 2..][..hidden])
        }
        RowType::F32 => RowValues::F32(f32_values(landed, hidden)),
    }
}

fn f32_values(landed: &Landed, hidden: usize) -> &[f32] {
    let values = landed.rows.payload().as_f32().expect("rows of four bytes, aligned");
    &values[landed.at as usize / 4..][..hidden]
}
