//! The trunk: it computes batches, and keeps what attention has seen in pages.
//!
//! A stand-in for the trunk's thread: the same orders in the same order, hashes instead of vectors. Whatever it computes it
//! holds against the request's oracle at once, so that a wrong row is found where it went wrong.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use coordinator::data::flow::BatchRun;
use coordinator::data::ids::{BlockId, RowId, SequenceId};

use crate::landing::Landed;
use crate::model::{Layer, Model, Oracle};
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
}

/// A batch.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) stage: usize,
    pub(crate) rows: Vec<RowId>,
    pub(crate) runs: Vec<BatchRun>,
    /// What returned for each row, by rank and shard.
    pub(crate) landed: Vec<Option<Landed>>,
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
}

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    prompt: usize,
    oracle: Rc<Oracle>,
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
        let Begin { sequence, tokens, prompt, oracle } = begin;
        let next = vec![0; self.model.stages.len()];
        let new = Sequence { tokens, prompt, oracle, pages: Vec::new(), length: 0, next };
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
        let mut computed =
            Computed { stage, rows: rows.len(), chosen: Vec::new(), values: Vec::new(), sampled: Vec::new() };
        let mut landed = landed.into_iter();
        let slots = stage.checked_sub(1).map_or(0, |before| {
            model.stages[before].out.expect("rows come back from experts").top_k * model.shards
        });
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
                let mut value = match stage {
                    0 => model.embed(sequence.tokens[position as usize], position),
                    _ => {
                        let returned: Vec<u64> = landed
                            .by_ref()
                            .take(slots)
                            .map(|landed| match landed {
                                Some(landed) => landed.value,
                                None => violation(
                                    "once",
                                    format!("row {} is combined without all that returned", row.0),
                                ),
                            })
                            .collect();
                        model.combine(self.values[row.0 as usize], returned.into_iter())
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
                        check_token(sequence, position, token);
                        sequence.tokens.push(token);
                        computed.sampled.push((run.sequence, token));
                    }
                    continue;
                };
                if sequence.oracle.sent(position, stage) != Some(value) {
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

fn check_token(sequence: &Sequence, position: u32, token: u32) {
    let at = position as usize + 1 - sequence.prompt;
    if sequence.oracle.answer.get(at) != Some(&token) {
        violation(
            "oracle",
            format!("token {at} is {token}, the oracle's answer is {:?}", sequence.oracle.answer),
        );
    }
}
