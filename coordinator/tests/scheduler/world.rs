//! A world in which a scheduler and a flow serve requests: the shell's part, played by the book, and watched.
//!
//! It plays the trunk too, with pages that remember of which ids they were computed: all ids from the beginning of their
//! sequence, since keys and values depend on all of them. That is the naive model of the prefix cache.
//!
//! Every row needs one expert at each stage, and experts may be missing: then it waits, and is stranded.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_coordinator::data::flow::{BatchRun, Chunk, Flow, FlowSettings};
use phalanx_coordinator::data::ids::{BlockId, RowId, SequenceId};
use phalanx_coordinator::data::scheduler::{
    Action, Asked, OVERTAKEN_MAX, Priority, RequestId, Scheduler, SchedulerSettings,
};

const PAGE: u32 = 64;

#[derive(Debug, Clone)]
struct Request {
    prompt: u32,
    tokens: u32,
    tokens_max: u32,
    /// Of which text it is the beginning, answer and all.
    text: u32,
    priority: Priority,
    /// Every row of its prompt comes to the head before its first token counts.
    is_scored: bool,
    /// How many began before it that came later.
    overtaken: u64,
    sequence: Option<SequenceId>,
    /// A row of it has gone on without an expert: what is computed of it holds something else than its ids say.
    lacks: bool,
}

#[derive(Debug, Clone)]
struct Sequence {
    request: RequestId,
    text: u32,
    /// Positions that have pages.
    length: u32,
    /// Rows that may be given out: what is known.
    known: u32,
    is_leaving: bool,
    has_rows: bool,
    pages: Vec<usize>,
    /// So many of these it has found.
    found: usize,
    /// Positions that were at the head.
    scored: BTreeSet<u32>,
    /// The first token is there, and waits for them.
    has_first: bool,
}

/// What a page holds.
#[derive(Debug, Clone, Default)]
struct Page {
    /// The ids of all positions up to the last that was computed here.
    ids: Vec<u32>,
    holders: u32,
    is_block: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Full,
    Cancelled,
    Failed,
}

pub(crate) struct World {
    settings: SchedulerSettings,
    flow: Flow,
    scheduler: Scheduler,
    /// Those that have not ended, in the order in which they came.
    requests: BTreeMap<RequestId, Request>,
    sequences: BTreeMap<SequenceId, Sequence>,
    pages: Vec<Page>,
    blocks: BTreeMap<BlockId, usize>,
    /// Blocks of those that failed.
    hidden: BTreeSet<BlockId>,
    out: Vec<RowId>,
    /// The expert that each of those needs.
    needs: BTreeMap<RowId, u32>,
    /// Those that nobody holds, the rows that wait for them, and the requests that are set aside, with what they wait for.
    missing: BTreeSet<u32>,
    stranded: BTreeSet<RowId>,
    aside: BTreeMap<RequestId, BTreeSet<u32>>,
    stages: u32,
    /// Keeps tokens that come after their sequence was preempted.
    keeps_late_tokens: bool,
    pub(crate) ends: BTreeMap<RequestId, End>,
    pub(crate) preempted: usize,
    pub(crate) set_aside: usize,
    pub(crate) rows: u64,
    pub(crate) shared: usize,
    pub(crate) replaced: usize,
    pub(crate) lacking: usize,
}

fn pages(positions: u32) -> u32 {
    positions.div_ceil(PAGE)
}

/// At each stage.
pub(crate) const EXPERTS: u32 = 16;

/// Which expert a row needs: something that looks random, and is the same for the same row.
fn expert(id: u32, position: u32, stage: u32) -> u32 {
    let mix =
        |mixed: u32, value: u32| (mixed.rotate_left(13) ^ value).wrapping_add(7).wrapping_mul(0x9e37_79b1);
    ([id, position, stage, 0].into_iter().fold(5, mix) >> 16) % EXPERTS
}

/// The experts that the first rows of a text need at a stage.
pub(crate) fn needs(text: u32, positions: u32, stage: u32) -> BTreeSet<u32> {
    (0..positions).map(|position| expert(id(text, position), position, stage)).collect()
}

/// What a position holds that was computed without an expert is its id and this.
const LACKS: u32 = 1_000_000_000;
/// What one holds whose rows choose under a bias is its id and this.
const BIASED: u32 = 2 * LACKS;
/// Texts are alike up to here, and then go on differently.
const COMMON: u32 = 100;

/// The third text is the first but for one id near its beginning: all that follows is spelled alike, and is something else. The
/// fourth is the first, under a bias.
fn id(text: u32, position: u32) -> u32 {
    match (text, position) {
        (3, position) => id(0, position),
        (2, 5) => 5_000_000,
        (_, ..COMMON) => position,
        _ => position + 10_000 * (text % 2 + 1),
    }
}

fn bias(text: u32) -> Option<[u8; 32]> {
    (text == 3).then_some([9; 32])
}

/// What is computed at a position.
fn held(text: u32, position: u32) -> u32 {
    id(text, position) + if bias(text).is_some() { BIASED } else { 0 }
}

fn ids(text: u32, length: u32) -> Vec<u32> {
    (0..length).map(|position| id(text, position)).collect()
}

impl World {
    pub(crate) fn new(flow: FlowSettings, settings: SchedulerSettings, keeps_late_tokens: bool) -> Self {
        Self {
            stages: flow.stages,
            flow: Flow::new(flow),
            scheduler: Scheduler::new(settings.clone()),
            pages: vec![Page::default(); settings.pages as usize],
            settings,
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            blocks: BTreeMap::new(),
            hidden: BTreeSet::new(),
            out: Vec::new(),
            needs: BTreeMap::new(),
            missing: BTreeSet::new(),
            stranded: BTreeSet::new(),
            aside: BTreeMap::new(),
            keeps_late_tokens,
            ends: BTreeMap::new(),
            preempted: 0,
            set_aside: 0,
            rows: 0,
            shared: 0,
            replaced: 0,
            lacking: 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.requests.is_empty() && self.sequences.is_empty()
    }

    /// All that was taken was given back.
    pub(crate) fn check_empty(&self) {
        assert_eq!(self.scheduler.pages_free(), self.settings.pages, "all pages come back");
        assert_eq!((self.scheduler.running(), self.scheduler.waiting()), (0, 0));
        assert_eq!(self.flow.rows_free(), self.settings.rows_in_flight_max as usize);
        let held = self.pages.iter().filter(|page| page.holders > 0).count();
        assert_eq!(held, self.blocks.len(), "only blocks are held");
        assert!(self.settings.prefix_cache || self.blocks.is_empty());
    }

    pub(crate) fn request(
        &mut self,
        id: u64,
        prompt: u32,
        tokens_max: u32,
        text: u32,
        priority: i64,
        is_scored: bool,
    ) {
        let (id, priority) = (RequestId(id), Priority::new(priority).unwrap());
        let waiting = self.requests.values().filter(|request| !self.runs(request)).count();
        let fits = pages(prompt) <= self.settings.pages && waiting < self.settings.queue_max as usize;
        let asked = Asked {
            request: id,
            prompt: &ids(text, prompt),
            tokens: &[],
            tokens_max,
            priority,
            goes_alone: id.0 % 5 == 0,
            is_scored,
            bias: bias(text),
        };
        assert_eq!(self.scheduler.handle_request(asked).is_ok(), fits);
        if fits {
            let request = Request {
                prompt,
                tokens: 0,
                tokens_max,
                text,
                priority,
                is_scored,
                overtaken: 0,
                sequence: None,
                lacks: false,
            };
            self.requests.insert(id, request);
        }
        self.carry_out();
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.scheduler.handle_cancel(RequestId(id));
        self.end(RequestId(id), End::Cancelled);
        self.carry_out();
    }

    /// A row of a running sequence cannot be computed.
    pub(crate) fn fail(&mut self, id: u64) {
        let Some(request) = self.requests.get(&RequestId(id)).filter(|request| self.runs(request)) else {
            return;
        };
        let sequence = request.sequence.unwrap();
        let of = &self.sequences[&sequence];
        let own = &of.pages[of.found..];
        self.hidden
            .extend(self.blocks.iter().filter(|(_, page)| own.contains(page)).map(|(block, _)| *block));
        self.scheduler.handle_failed(sequence);
        self.end(RequestId(id), End::Failed);
        self.carry_out();
    }

    /// A row of a running sequence goes on without an expert.
    pub(crate) fn lack(&mut self, id: u64) {
        let Some(request) = self.requests.get(&RequestId(id)).filter(|request| self.runs(request)) else {
            return;
        };
        let sequence = request.sequence.unwrap();
        self.scheduler.handle_left_out(sequence);
        self.requests.get_mut(&RequestId(id)).unwrap().lacks = true;
        self.lacking += 1;
        self.carry_out();
    }

    /// A row comes back from the experts.
    pub(crate) fn whole(&mut self, nth: usize) -> bool {
        let back: Vec<usize> =
            (0..self.out.len()).filter(|at| !self.stranded.contains(&self.out[*at])).collect();
        if back.is_empty() {
            return false;
        }
        let row = self.out.swap_remove(back[nth % back.len()]);
        self.needs.remove(&row);
        self.flow.handle_whole(row);
        self.carry_out();
        true
    }

    /// The last who held an expert goes.
    pub(crate) fn miss(&mut self, expert: u32) {
        self.missing.insert(expert);
        self.strand_missing();
        self.carry_out();
    }

    /// Somebody comes who holds an expert.
    pub(crate) fn find(&mut self, expert: u32) {
        self.missing.remove(&expert);
        let found: Vec<RowId> =
            self.stranded.iter().copied().filter(|row| self.needs[row] == expert).collect();
        for row in found {
            self.stranded.remove(&row);
            if let Some(sequence) = self.flow.handle_stranded(row, false) {
                self.scheduler.handle_found(sequence);
            }
        }
        let back = self.aside.iter().filter(|(_, lacks)| lacks.is_disjoint(&self.missing));
        let back: Vec<RequestId> = back.map(|(id, _)| *id).collect();
        for id in back.into_iter().rev() {
            self.aside.remove(&id);
            self.scheduler.handle_called_back(id);
        }
        self.carry_out();
    }

    /// All rows that are out and need an expert that is missing.
    fn strand_missing(&mut self) {
        let (needs, missing) = (&self.needs, &self.missing);
        let rows: Vec<RowId> = self.out.iter().copied().filter(|row| missing.contains(&needs[row])).collect();
        rows.into_iter().for_each(|row| self.strand(row));
    }

    fn strand(&mut self, row: RowId) {
        if self.flow.is_leaving(row) {
            return;
        }
        if !self.flow.is_needed(row) {
            self.out.retain(|other| *other != row);
            self.needs.remove(&row);
            self.flow.handle_whole(row);
            return;
        }
        if self.stranded.insert(row)
            && let Some(sequence) = self.flow.handle_stranded(row, true)
        {
            self.scheduler.handle_stranded(sequence);
        }
    }

    /// All that are stranded have been for long. False if none is.
    pub(crate) fn wait_long(&mut self) -> bool {
        let flow = &self.flow;
        let sequences: BTreeSet<SequenceId> = self.stranded.iter().map(|row| flow.position(*row).0).collect();
        sequences.iter().for_each(|sequence| self.scheduler.handle_long(*sequence));
        let before = self.set_aside;
        self.carry_out();
        self.set_aside > before
    }

    fn is_stranded(&self, sequence: SequenceId) -> bool {
        self.stranded.iter().any(|row| self.flow.position(*row).0 == sequence)
    }

    /// Nothing can happen any more before somebody comes: all that have not ended wait for him, and nobody waits for them.
    pub(crate) fn check_all_are_stranded(&self) {
        for (id, request) in &self.requests {
            let is_stranded = request.sequence.is_some_and(|sequence| self.is_stranded(sequence));
            assert!(self.aside.contains_key(id) || is_stranded, "{id} waits for others");
        }
    }

    pub(crate) fn missing(&self) -> Vec<u32> {
        self.missing.iter().copied().collect()
    }

    /// The trunk computes a batch. At the head there are tokens.
    pub(crate) fn compute(&mut self, cancelled_meanwhile: Option<u64>) -> bool {
        let Some(batch) = self.flow.poll_batch() else { return false };
        let batch = batch.clone();
        self.rows += batch.rows.len() as u64;
        // The last stage but the head has the last layers.
        if batch.stage + 2 == self.stages {
            for run in &batch.runs {
                (run.start..run.start + (run.rows.end - run.rows.start))
                    .for_each(|position| self.write(run.sequence, position));
            }
        }
        if let Some(id) = cancelled_meanwhile {
            self.cancel(id);
        }
        self.flow.handle_attended();
        for row in batch.rows.iter().copied().filter(|row| self.flow.is_out(*row)) {
            let (sequence, position) = self.flow.position(row);
            let needs = expert(id(self.sequences[&sequence].text, position), position, batch.stage);
            self.out.push(row);
            self.needs.insert(row, needs);
        }
        self.strand_missing();
        if batch.stage + 1 == self.stages {
            batch.runs.iter().for_each(|run| self.head(run));
        }
        self.carry_out();
        true
    }

    /// Rows are at the head.
    fn head(&mut self, run: &BatchRun) {
        let Some(of) = self.sequences.get_mut(&run.sequence) else { return };
        let request =
            self.requests.get(&of.request).filter(|request| request.is_scored && request.tokens == 0);
        let Some(prompt) = request.map(|request| request.prompt) else {
            if run.samples {
                self.token(run.sequence);
            }
            return;
        };
        for position in run.start..run.start + (run.rows.end - run.rows.start) {
            assert!(of.scored.insert(position), "{position} of {} is at the head once", run.sequence);
        }
        of.has_first |= run.samples;
        if of.has_first && of.scored.len() == prompt as usize {
            self.token(run.sequence);
        }
    }

    /// The last layers of a position are computed, in its sequence's page.
    fn write(&mut self, sequence: SequenceId, position: u32) {
        let of = &self.sequences[&sequence];
        let at = of.pages[(position / PAGE) as usize];
        let before = match position.checked_sub(1) {
            Some(before) => self.pages[of.pages[(before / PAGE) as usize]].ids.clone(),
            None => Vec::new(),
        };
        let page = &mut self.pages[at];
        assert!(!page.is_block && page.holders == 1, "{sequence} has the page alone that it writes");
        let known: Vec<u32> = before.iter().map(|id| id % LACKS).collect();
        assert_eq!(known, ids(of.text, position), "all positions before {position} of {sequence} are there");
        let lacks = self.requests.get(&of.request).is_some_and(|request| request.lacks);
        page.ids = before;
        page.ids.push(held(of.text, position) + if lacks { LACKS } else { 0 });
    }

    fn token(&mut self, sequence: SequenceId) {
        let running = self.sequences[&sequence].clone();
        let Some(request) = self.requests.get_mut(&running.request) else { return };
        if request.sequence != Some(sequence) || (running.is_leaving && !self.keeps_late_tokens) {
            return;
        }
        assert_eq!(running.known, request.prompt + request.tokens, "a token follows all that is known");
        request.tokens += 1;
        if request.tokens == request.tokens_max {
            self.scheduler.handle_finished(sequence);
            self.end(running.request, End::Finished);
        } else {
            self.scheduler.handle_token(sequence, id(running.text, running.known));
            self.sequences.get_mut(&sequence).unwrap().known += 1;
        }
    }

    fn end(&mut self, id: RequestId, end: End) {
        self.aside.remove(&id);
        if self.requests.remove(&id).is_some() {
            assert_eq!(self.ends.insert(id, end), None);
        }
    }

    fn runs(&self, request: &Request) -> bool {
        request.sequence.is_some_and(|sequence| !self.sequences[&sequence].is_leaving)
    }

    /// Pages that sequences have.
    fn pages_used(&self) -> u32 {
        let used: BTreeSet<usize> =
            self.sequences.values().flat_map(|sequence| sequence.pages.iter().copied()).collect();
        used.len() as u32
    }

    fn carry_out(&mut self) {
        loop {
            while let Some(sequence) = self.flow.poll_left() {
                self.scheduler.handle_left(sequence);
            }
            self.scheduler.handle_rows_free(self.flow.rows_free());
            self.scheduler.handle_rows_stranded(self.flow.rows_stranded());
            let Some(action) = self.scheduler.poll_action() else { break };
            match action {
                Action::Begin { request, sequence } => self.begin(request, sequence),
                Action::Chunk(chunk) => self.chunk(chunk),
                Action::Preempt { sequence } => {
                    self.preempted += 1;
                    let running = self.requests.values().filter(|request| self.runs(request));
                    let mut running = running.filter_map(|request| request.sequence);
                    assert!(!running.any(|other| self.is_stranded(other)), "who is stranded gives way first");
                    self.sequences.get_mut(&sequence).unwrap().is_leaving = true;
                }
                Action::SetAside { sequence } => self.put_aside(sequence),
                Action::Full { request } => self.full(request),
                Action::Leave { sequence } => {
                    // What was not sent is not waited for.
                    let flow = &self.flow;
                    self.stranded.retain(|row| flow.position(*row).0 != sequence);
                    self.sequences.get_mut(&sequence).unwrap().is_leaving = true;
                    self.flow.handle_cancel(sequence);
                }
                Action::Release { sequence } => self.release(sequence),
                Action::Share { sequence, block } => self.share(sequence, block),
                Action::Keep { sequence, index, block } => self.keep(sequence, index as usize, block),
                Action::Replace { sequence, index, block } => self.replace(sequence, index as usize, block),
                Action::Forget { block } => {
                    let page = self.blocks.remove(&block).expect("it is a block");
                    self.hidden.remove(&block);
                    self.pages[page].is_block = false;
                    self.let_go(page);
                }
            }
        }
        assert!(self.pages_used() + self.scheduler.pages_free() <= self.settings.pages);
        assert_eq!(self.scheduler.prefix_seen().pages as usize, self.blocks.len(), "blocks are counted");
        assert!(self.out.len() <= self.settings.rows_in_flight_max as usize);
    }

    /// A stranded sequence gives way: to somebody who can go on.
    fn put_aside(&mut self, sequence: SequenceId) {
        self.set_aside += 1;
        let of = self.sequences.get_mut(&sequence).unwrap();
        assert!(!std::mem::replace(&mut of.is_leaving, true), "it runs");
        let id = of.request;
        let rows = self.stranded.iter().filter(|row| self.flow.position(**row).0 == sequence);
        let lacks: BTreeSet<u32> = rows.map(|row| self.needs[row]).collect();
        assert!(!lacks.is_empty(), "it is stranded");
        let wants = |(other, request): (&RequestId, &Request)| match request.sequence {
            Some(sequence) => *other != id && !self.is_stranded(sequence),
            None => !self.aside.contains_key(other),
        };
        assert!(self.requests.iter().any(wants), "nobody gives way to nobody");
        self.aside.insert(id, lacks);
    }

    fn let_go(&mut self, page: usize) {
        self.pages[page].holders -= 1;
        if self.pages[page].holders == 0 {
            self.pages[page].ids.clear();
        }
    }

    fn begin(&mut self, id: RequestId, sequence: SequenceId) {
        let request = self.requests[&id].clone();
        assert_eq!(request.sequence, None, "it runs once at a time");
        assert!(!self.aside.contains_key(&id), "it waits for what it lacks");
        let waiting: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(other, request)| **other < id && !self.runs(request) && !self.aside.contains_key(other))
            .map(|(id, _)| *id)
            .collect();
        for other in waiting {
            let other = self.requests.get_mut(&other).unwrap();
            assert!(other.priority < request.priority, "whoever came first begins first");
            other.overtaken += 1;
            assert!(other.overtaken <= OVERTAKEN_MAX, "nobody is overtaken again and again");
        }
        self.requests.get_mut(&id).unwrap().sequence = Some(sequence);
        let begun = Sequence {
            request: id,
            text: request.text,
            length: 0,
            known: request.prompt + request.tokens,
            is_leaving: false,
            has_rows: false,
            pages: Vec::new(),
            found: 0,
            scored: BTreeSet::new(),
            has_first: false,
        };
        assert!(self.sequences.insert(sequence, begun).is_none(), "the place is free");
        assert!(self.sequences.len() <= self.settings.sequences_max as usize);
    }

    fn release(&mut self, sequence: SequenceId) {
        let released = self.sequences.remove(&sequence).unwrap();
        released.pages.iter().for_each(|page| self.let_go(*page));
        if let Some(request) = self.requests.get_mut(&released.request) {
            request.sequence = None;
        }
    }

    /// The page of a block, which holds what this sequence would compute.
    fn block(&self, sequence: SequenceId, index: usize, block: BlockId) -> usize {
        let page = *self.blocks.get(&block).expect("it is a block");
        let text = self.sequences[&sequence].text;
        let wanted: Vec<u32> = (0..(index as u32 + 1) * PAGE).map(|position| held(text, position)).collect();
        assert_eq!(self.pages[page].ids, wanted, "no page is shared by mistake");
        page
    }

    fn share(&mut self, sequence: SequenceId, block: BlockId) {
        assert!(!self.hidden.contains(&block), "nobody finds what a sequence computed that failed");
        let lacks = self.requests[&self.sequences[&sequence].request].lacks;
        assert!(!lacks, "who went on without an expert finds nothing");
        let index = self.sequences[&sequence].pages.len();
        let page = self.block(sequence, index, block);
        let of = self.sequences.get_mut(&sequence).unwrap();
        let request = &self.requests[&of.request];
        assert!(!request.is_scored || request.tokens > 0, "what is scored is computed");
        assert!(!of.has_rows && of.length as usize == index * PAGE as usize, "a beginning is shared");
        of.pages.push(page);
        of.length += PAGE;
        of.found += 1;
        assert!(of.length < of.known, "the last row is computed in any case");
        self.pages[page].holders += 1;
        self.shared += 1;
    }

    fn keep(&mut self, sequence: SequenceId, index: usize, block: BlockId) {
        let of = &self.sequences[&sequence];
        let page = of.pages[index];
        assert!(!self.pages[page].is_block, "a page is one block");
        let before = of.pages[..index].iter().all(|page| self.pages[*page].is_block);
        assert!(before, "blocks begin at the beginning");
        assert!(self.blocks.insert(block, page).is_none(), "its name is free");
        self.pages[page].is_block = true;
        self.pages[page].holders += 1;
        self.block(sequence, index, block);
    }

    fn replace(&mut self, sequence: SequenceId, index: usize, block: BlockId) {
        let page = self.block(sequence, index, block);
        let own = std::mem::replace(&mut self.sequences.get_mut(&sequence).unwrap().pages[index], page);
        assert!(own != page && self.pages[own].ids == self.pages[page].ids, "both hold the same");
        assert_eq!(self.pages[own].holders, 1, "it was its own");
        self.pages[page].holders += 1;
        self.let_go(own);
        self.replaced += 1;
    }

    fn chunk(&mut self, chunk: Chunk) {
        let Chunk { sequence, start, count, samples, is_scored } = chunk;
        let is_prompt = {
            let request = &self.requests[&self.sequences[&sequence].request];
            assert_eq!(is_scored, request.is_scored && request.tokens == 0, "prompts are, once");
            start + 1 < request.prompt + request.tokens || request.tokens == 0
        };
        assert!(!self.is_stranded(sequence), "it could not use them");
        if is_prompt {
            self.check_decoding_goes_first(sequence, count);
        }
        let running = self.sequences.get_mut(&sequence).unwrap();
        assert_eq!(start, running.length, "positions follow one another");
        running.length += count;
        running.has_rows = true;
        while running.pages.len() < pages(running.length) as usize {
            let free = self.pages.iter().position(|page| page.holders == 0).expect("no page is given twice");
            self.pages[free].holders = 1;
            running.pages.push(free);
        }
        assert_eq!(samples, running.length == running.known, "all that is known, then a token");
        assert!(running.length <= running.known && !running.is_leaving);
        assert!(count <= self.settings.chunk_rows_max);
        self.flow.handle_chunk(chunk);
    }

    /// A prompt's rows enter only while nobody could decode, and not too many beside those who do.
    fn check_decoding_goes_first(&self, whose: SequenceId, count: u32) {
        let mut others_decode = false;
        for (&id, sequence) in &self.sequences {
            if id == whose || sequence.is_leaving || self.is_stranded(id) {
                continue;
            }
            let length = sequence.length;
            others_decode |= length == sequence.known;
            if length + 1 == sequence.known && length >= self.requests[&sequence.request].prompt {
                assert_eq!(length % PAGE, 0, "{id} could decode");
            }
        }
        // What is stranded is in nobody's way.
        let others = self.flow.rows_free() + self.flow.rows_stranded();
        let in_flight = self.settings.rows_in_flight_max as usize - others;
        if others_decode {
            let counts =
                |(id, other): &(&SequenceId, &Sequence)| !other.is_leaving && !self.is_stranded(**id);
            let sampled = self.sequences.iter().filter(counts).count();
            let of_prompts = in_flight.saturating_sub(sampled) + count as usize;
            assert!(of_prompts <= self.settings.prefill_rows_max as usize);
        }
    }

    fn full(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        assert_eq!(request.prompt + request.tokens, self.settings.pages * PAGE + 1, "it fills all pages");
        self.end(id, End::Full);
    }
}
