//! The trunk: it computes batches, and keeps what attention has seen in pages.
//!
//! A stand-in for the trunk's thread: the same orders in the same order, hashes instead of vectors. Whatever it computes it
//! holds against the request's oracle at once, so that a wrong row is found where it went wrong.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use coordinator::data::flow::BatchRun;
use coordinator::data::ids::{BlockId, RowId, SequenceId};

use crate::landing::Slot;
use crate::model::{Lacking, Layer, Model, Oracle, Plain};
use crate::watch::violation;

const PAGE: usize = 64;

/// A sequence that begins.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) sequence: SequenceId,
    /// Of the prompt, and those that followed.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    pub(crate) oracle: Rc<Oracle>,
    /// It goes on without experts that nobody holds.
    pub(crate) may_leave_out: bool,
    /// Its tokens may be others than the oracle's, since something was left out before.
    pub(crate) has_lacked: bool,
}

/// A batch.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) stage: usize,
    pub(crate) rows: Vec<RowId>,
    pub(crate) runs: Vec<BatchRun>,
    /// What returned for each row, by rank and shard.
    pub(crate) landed: Vec<Slot>,
}

/// As the trunk's thread is told.
#[derive(Debug)]
pub(crate) enum Order {
    Begin(Begin),
    Extend { sequence: SequenceId, count: usize },
    Share { sequence: SequenceId, block: BlockId },
    Keep { sequence: SequenceId, index: u32, block: BlockId },
    Replace { sequence: SequenceId, index: u32, block: BlockId },
    Forget(BlockId),
    Compute(Work),
    Release(SequenceId),
}

/// What a batch comes to.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) stage: usize,
    pub(crate) rows: usize,
    /// Experts by row and rank, and the rows as they go out; nothing at the head.
    pub(crate) chosen: Vec<u32>,
    pub(crate) values: Vec<u64>,
    pub(crate) sampled: Vec<(SequenceId, u32)>,
    /// What rows were combined without: layer and expert.
    pub(crate) lacked: Vec<(SequenceId, (u32, u32))>,
}

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    prompt: usize,
    oracle: Rc<Oracle>,
    may_leave_out: bool,
    has_lacked: bool,
    /// What its rows were combined without.
    lacking: Lacking,
    pages: Vec<usize>,
    /// Positions that have pages.
    length: usize,
    /// The next position at each stage.
    next: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Page {
    holders: u32,
    /// By layer, what attention sees of each position.
    seen: Vec<[u64; PAGE]>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Trunk {
    model: Rc<Model>,
    orders: VecDeque<Order>,
    is_busy: bool,
    /// By row, as it went out last.
    values: Vec<u64>,
    sequences: BTreeMap<SequenceId, Sequence>,
    blocks: BTreeMap<BlockId, usize>,
    pages: Vec<Page>,
    free: Vec<usize>,
}

impl Trunk {
    pub(crate) fn new(model: &Rc<Model>, pages: usize, rows_max: usize) -> Self {
        let page = Page { holders: 0, seen: vec![[0; PAGE]; model.layers.len()] };
        Self {
            model: Rc::clone(model),
            orders: VecDeque::new(),
            is_busy: false,
            values: vec![0; rows_max],
            sequences: BTreeMap::new(),
            blocks: BTreeMap::new(),
            pages: vec![page; pages],
            free: (0..pages).rev().collect(),
        }
    }

    pub(crate) fn tell(&mut self, order: Order) {
        self.orders.push_back(order);
    }

    /// Pages that nobody holds.
    pub(crate) fn pages_free(&self) -> usize {
        self.free.len()
    }

    /// Pages that are kept for those who begin alike.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The batch is done.
    pub(crate) fn handle_done(&mut self) {
        self.is_busy = false;
    }

    /// Carries orders out up to the next batch, and computes that.
    pub(crate) fn go_on(&mut self) -> Option<Computed> {
        while !self.is_busy {
            match self.orders.pop_front()? {
                Order::Begin(begin) => self.begin(begin),
                Order::Extend { sequence, count } => self.extend(sequence, count),
                Order::Share { sequence, block } => {
                    let page = self.blocks[&block];
                    self.pages[page].holders += 1;
                    let of = self.sequence(sequence);
                    of.pages.push(page);
                    of.length += PAGE;
                    let length = of.length as u32;
                    of.next.fill(length);
                }
                Order::Keep { sequence, index, block } => {
                    self.check_kept(sequence, index as usize);
                    let page = self.sequence(sequence).pages[index as usize];
                    self.pages[page].holders += 1;
                    if self.blocks.insert(block, page).is_some() {
                        violation("pages", format!("{block:?} is kept twice"));
                    }
                }
                Order::Replace { sequence, index, block } => {
                    let page = self.blocks[&block];
                    let own = std::mem::replace(&mut self.sequence(sequence).pages[index as usize], page);
                    if self.pages[own].seen != self.pages[page].seen {
                        violation(
                            "pages",
                            format!("{block:?} holds something else than the page it replaces"),
                        );
                    }
                    self.pages[page].holders += 1;
                    self.let_go(own);
                }
                Order::Forget(block) => {
                    let page = self.blocks.remove(&block).expect("a block that is kept");
                    self.let_go(page);
                }
                Order::Compute(work) => {
                    self.is_busy = true;
                    return Some(self.compute(work));
                }
                Order::Release(sequence) => {
                    // One that was preempted before its first row was never here.
                    if let Some(of) = self.sequences.remove(&sequence) {
                        of.pages.into_iter().for_each(|page| self.let_go(page));
                    }
                }
            }
        }
        None
    }

    fn sequence(&mut self, sequence: SequenceId) -> &mut Sequence {
        self.sequences.get_mut(&sequence).expect("a sequence that has begun and not left")
    }

    fn begin(&mut self, begin: Begin) {
        let Begin { sequence, tokens, prompt, oracle, may_leave_out, has_lacked } = begin;
        let next = vec![0; self.model.stages.len()];
        let (pages, lacking) = (Vec::new(), Lacking::new());
        let new =
            Sequence { tokens, prompt, oracle, may_leave_out, has_lacked, lacking, pages, length: 0, next };
        if self.sequences.insert(sequence, new).is_some() {
            violation("pages", format!("{sequence} begins in a place that is taken"));
        }
    }

    fn extend(&mut self, sequence: SequenceId, count: usize) {
        let of = self.sequences.get_mut(&sequence).expect("it has begun");
        of.length += count;
        while of.pages.len() * PAGE < of.length {
            let Some(page) = self.free.pop() else {
                violation(
                    "memory",
                    format!("there is no page for {sequence}, the scheduler gave more than there are"),
                )
            };
            self.pages[page].holders = 1;
            of.pages.push(page);
        }
    }

    fn let_go(&mut self, page: usize) {
        self.pages[page].holders -= 1;
        if self.pages[page].holders == 0 {
            self.free.push(page);
        }
    }

    fn compute(&mut self, work: Work) -> Computed {
        let Work { stage, rows, runs, landed } = work;
        let model = Rc::clone(&self.model);
        let of_stage = &model.stages[stage];
        let is_ordered = of_stage.out.is_some() || model.head_has_layers();
        let mut computed = Computed {
            stage,
            rows: rows.len(),
            chosen: Vec::new(),
            values: Vec::new(),
            sampled: Vec::new(),
            lacked: Vec::new(),
        };
        let mut landed = landed.into_iter();
        for run in &runs {
            for (at, row) in rows[run.rows.start as usize..run.rows.end as usize].iter().enumerate() {
                let position = run.start + at as u32;
                let sequence = self.sequences.get_mut(&run.sequence).expect("it has not left");
                if is_ordered && std::mem::replace(&mut sequence.next[stage], position + 1) != position {
                    violation(
                        "once",
                        format!(
                            "position {position} of {} is computed out of turn at stage {stage}",
                            run.sequence
                        ),
                    );
                }
                let mut value = match stage.checked_sub(1) {
                    None => model.embed(sequence.tokens[position as usize], position),
                    Some(before) => {
                        let value = self.values[row.0 as usize];
                        let Combined { value, lacks } = combine(&model, before, value, *row, &mut landed);
                        for (rank, of) in lacks {
                            sequence.handle_lacking((position, before), rank);
                            computed.lacked.push((run.sequence, of));
                        }
                        value
                    }
                };
                for layer in of_stage.layers.clone() {
                    value = attend(&model, &mut self.pages, &sequence.pages, layer, position as usize, value);
                    if model.layers[layer] == Layer::Dense {
                        value = model.dense(layer, value);
                    }
                }
                let Some(out) = of_stage.out else {
                    if run.samples && at + 1 == (run.rows.end - run.rows.start) as usize {
                        let token = model.sample(value, position);
                        sequence.check_token(&model, position, token);
                        sequence.tokens.push(token);
                        computed.sampled.push((run.sequence, token));
                    }
                    continue;
                };
                if sequence.is_exact() && sequence.oracle.sent(position, stage) != Some(value) {
                    violation(
                        "oracle",
                        format!("position {position} of {} is another row at stage {stage}", run.sequence),
                    );
                }
                self.values[row.0 as usize] = value;
                computed.chosen.extend(model.choose(out, value));
                computed.values.push(value);
            }
        }
        computed
    }

    /// A page that is kept for others holds what the plain loop has of its ids.
    fn check_kept(&self, sequence: SequenceId, index: usize) {
        let of = &self.sequences[&sequence];
        if of.is_exact() {
            return; // Each of its rows was held against the oracle.
        }
        let mut plain = Plain::new(&self.model);
        let lacking = Lacking::new();
        of.tokens[..(index + 1) * PAGE].iter().for_each(|token| plain.step(*token, &lacking));
        let page = &self.pages[of.pages[index]];
        let is_right = page.seen.iter().zip(&plain.seen).all(|(own, plain)| own[..] == plain[index * PAGE..]);
        if !is_right {
            violation(
                "pages",
                format!("page {index} of {sequence}, which has gone on without an expert, is kept"),
            );
        }
    }
}

impl Sequence {
    /// Whether nothing was ever left out of its request's answer.
    fn is_exact(&self) -> bool {
        !self.has_lacked && self.lacking.is_empty()
    }

    fn handle_lacking(&mut self, at: (u32, usize), rank: usize) {
        if !self.may_leave_out {
            violation(
                "missing",
                format!("a row of a request that wants all experts goes on without one, at {at:?}"),
            );
        }
        self.lacking.entry(at).or_default().insert(rank);
    }

    /// What was left out of an answer makes it another one, which the plain loop gives too that leaves out the same.
    fn check_token(&self, model: &Model, position: u32, token: u32) {
        let (wanted, of) = if self.is_exact() {
            let at = position as usize + 1 - self.prompt;
            (self.oracle.answer.get(at).copied(), "the oracle's")
        } else {
            let mut plain = Plain::new(model);
            self.tokens[..=position as usize].iter().for_each(|token| plain.step(*token, &self.lacking));
            (Some(plain.sample()), "what follows without what was left out")
        };
        if wanted != Some(token) {
            violation("oracle", format!("the token at {position} is {token}, {of} is {wanted:?}"));
        }
    }
}

/// A row that was combined.
struct Combined {
    value: u64,
    /// What it goes on without: rank, layer and expert.
    lacks: Vec<(usize, (u32, u32))>,
}

/// Combines a row with all that came back for it.
fn combine(
    model: &Model,
    before: usize,
    value: u64,
    row: RowId,
    landed: &mut impl Iterator<Item = Slot>,
) -> Combined {
    let out = model.stages[before].out.expect("rows come back from experts");
    let chosen = model.choose(out, value);
    let (mut parts, mut lacks) = (Vec::new(), Vec::new());
    for (rank, expert) in chosen.into_iter().enumerate() {
        let of: Vec<Option<u64>> = landed
            .by_ref()
            .take(model.shards)
            .map(|slot| match slot {
                Slot::Landed(landed) => Some(landed.value),
                Slot::LeftOut => None,
                Slot::Empty => {
                    violation("once", format!("row {} is combined without all that returned", row.0))
                }
            })
            .collect();
        let missing = of.iter().filter(|part| part.is_none()).count();
        if missing == model.shards {
            lacks.push((rank, (out.layer as u32, expert)));
        } else if missing > 0 {
            violation("missing", format!("row {} has a part of expert {expert} and lacks the others", row.0));
        }
        parts.extend(of);
    }
    Combined { value: model.combine(value, parts.into_iter()), lacks }
}

/// Writes what others see of a position, and what it sees.
fn attend(
    model: &Model,
    pages: &mut [Page],
    own: &[usize],
    layer: usize,
    position: usize,
    value: u64,
) -> u64 {
    let page = &mut pages[own[position / PAGE]];
    if page.holders > 1 {
        violation("pages", format!("position {position} is written on a page that others hold"));
    }
    page.seen[layer][position % PAGE] = value;
    let seen = (0..=position).map(|position| pages[own[position / PAGE]].seen[layer][position % PAGE]);
    model.attend(layer, seen)
}
