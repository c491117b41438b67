//! A world in which a scheduler and a flow serve requests: the shell's part, played by the book, and watched.

use std::collections::BTreeMap;

use phalanx_coordinator::data::flow::{Chunk, Flow, FlowSettings};
use phalanx_coordinator::data::ids::{RowId, SequenceId};
use phalanx_coordinator::data::scheduler::{Action, RequestId, Scheduler, SchedulerSettings};

#[derive(Debug, Clone)]
struct Request {
    prompt: u32,
    tokens: u32,
    tokens_max: u32,
    sequence: Option<SequenceId>,
}

#[derive(Debug, Clone)]
struct Sequence {
    request: RequestId,
    /// Positions that have pages.
    length: u32,
    /// Rows that may be given out: what is known.
    known: u32,
    is_leaving: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Full,
    Cancelled,
}

pub(crate) struct World {
    settings: SchedulerSettings,
    flow: Flow,
    scheduler: Scheduler,
    /// Those that have not ended, in the order in which they came.
    requests: BTreeMap<RequestId, Request>,
    sequences: BTreeMap<SequenceId, Sequence>,
    out: Vec<RowId>,
    stages: u32,
    /// Keeps tokens that come after their sequence was preempted.
    keeps_late_tokens: bool,
    pub(crate) ends: BTreeMap<RequestId, End>,
    pub(crate) preempted: usize,
    pub(crate) rows: u64,
}

fn pages(positions: u32) -> u32 {
    positions.div_ceil(64)
}

impl World {
    pub(crate) fn new(flow: FlowSettings, settings: SchedulerSettings, keeps_late_tokens: bool) -> Self {
        Self {
            stages: flow.stages,
            flow: Flow::new(flow),
            scheduler: Scheduler::new(settings.clone()),
            settings,
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            out: Vec::new(),
            keeps_late_tokens,
            ends: BTreeMap::new(),
            preempted: 0,
            rows: 0,
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
    }

    pub(crate) fn request(&mut self, id: u64, prompt: u32, tokens_max: u32) {
        let id = RequestId(id);
        let waiting = self.requests.values().filter(|request| !self.runs(request)).count();
        let fits = pages(prompt) <= self.settings.pages && waiting < self.settings.queue_max as usize;
        assert_eq!(self.scheduler.handle_request(id, prompt, tokens_max).is_ok(), fits);
        if fits {
            self.requests.insert(id, Request { prompt, tokens: 0, tokens_max, sequence: None });
        }
        self.carry_out();
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        self.scheduler.handle_cancel(RequestId(id));
        self.end(RequestId(id), End::Cancelled);
        self.carry_out();
    }

    /// A row comes back from the experts.
    pub(crate) fn whole(&mut self, nth: usize) -> bool {
        if self.out.is_empty() {
            return false;
        }
        let row = self.out.swap_remove(nth % self.out.len());
        self.flow.handle_whole(row);
        self.carry_out();
        true
    }

    /// The trunk computes a batch. At the head there are tokens.
    pub(crate) fn compute(&mut self, cancelled_meanwhile: Option<u64>) -> bool {
        let Some(batch) = self.flow.poll_batch() else { return false };
        let batch = batch.clone();
        self.rows += batch.rows.len() as u64;
        if let Some(id) = cancelled_meanwhile {
            self.cancel(id);
        }
        self.flow.handle_attended();
        self.out.extend(batch.rows.iter().filter(|&&row| self.flow.is_out(row)));
        if batch.stage + 1 == self.stages {
            batch.runs.iter().filter(|run| run.samples).for_each(|run| self.token(run.sequence));
        }
        self.carry_out();
        true
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
            self.scheduler.handle_token(sequence);
            self.sequences.get_mut(&sequence).unwrap().known += 1;
        }
    }

    fn end(&mut self, id: RequestId, end: End) {
        if self.requests.remove(&id).is_some() {
            assert_eq!(self.ends.insert(id, end), None);
        }
    }

    fn runs(&self, request: &Request) -> bool {
        request.sequence.is_some_and(|sequence| !self.sequences[&sequence].is_leaving)
    }

    fn pages_used(&self) -> u32 {
        self.sequences.values().map(|sequence| pages(sequence.length)).sum()
    }

    fn carry_out(&mut self) {
        loop {
            while let Some(sequence) = self.flow.poll_left() {
                self.scheduler.handle_left(sequence);
            }
            self.scheduler.handle_rows_free(self.flow.rows_free());
            let Some(action) = self.scheduler.poll_action() else { break };
            match action {
                Action::Begin { request, sequence } => self.begin(request, sequence),
                Action::Chunk(chunk) => self.chunk(chunk),
                Action::Preempt { .. } => self.preempted += 1,
                Action::Full { sequence } => self.full(sequence),
                Action::Leave { sequence } => {
                    self.sequences.get_mut(&sequence).unwrap().is_leaving = true;
                    self.flow.handle_cancel(sequence);
                }
                Action::Release { sequence } => {
                    let released = self.sequences.remove(&sequence).unwrap();
                    if let Some(request) = self.requests.get_mut(&released.request) {
                        request.sequence = None;
                    }
                }
            }
            assert!(self.pages_used() <= self.settings.pages, "no page is given twice");
        }
        assert!(self.pages_used() + self.scheduler.pages_free() <= self.settings.pages);
        assert!(self.out.len() <= self.settings.rows_in_flight_max as usize);
    }

    fn begin(&mut self, id: RequestId, sequence: SequenceId) {
        let first = self.requests.iter().find(|(_, request)| !self.runs(request));
        assert_eq!(first.map(|(&id, _)| id), Some(id), "whoever came first begins first");
        let request = self.requests.get_mut(&id).unwrap();
        assert_eq!(request.sequence, None, "it runs once at a time");
        request.sequence = Some(sequence);
        let known = request.prompt + request.tokens;
        let begun = Sequence { request: id, length: 0, known, is_leaving: false };
        assert!(self.sequences.insert(sequence, begun).is_none(), "the place is free");
        assert!(self.sequences.len() <= self.settings.sequences_max as usize);
    }

    fn chunk(&mut self, chunk: Chunk) {
        let Chunk { sequence, start, count, samples } = chunk;
        let is_prompt = {
            let request = &self.requests[&self.sequences[&sequence].request];
            start + 1 < request.prompt + request.tokens || request.tokens == 0
        };
        if is_prompt {
            self.check_decoding_goes_first(sequence, count);
        }
        let running = self.sequences.get_mut(&sequence).unwrap();
        assert_eq!(start, running.length, "positions follow one another");
        running.length += count;
        assert_eq!(samples, running.length == running.known, "all that is known, then a token");
        assert!(running.length <= running.known && !running.is_leaving);
        assert!(count <= self.settings.chunk_rows_max);
        self.flow.handle_chunk(chunk);
    }

    /// A prompt's rows enter only while nobody could decode, and not too many beside those who do.
    fn check_decoding_goes_first(&self, whose: SequenceId, count: u32) {
        let mut others_decode = false;
        for (&id, sequence) in &self.sequences {
            if id == whose || sequence.is_leaving {
                continue;
            }
            let length = sequence.length;
            others_decode |= length == sequence.known;
            if length + 1 == sequence.known && length >= self.requests[&sequence.request].prompt {
                assert_eq!(length % 64, 0, "{id} could decode");
            }
        }
        let in_flight = self.settings.rows_in_flight_max as usize - self.flow.rows_free();
        if others_decode {
            let sampled = self.sequences.values().filter(|other| !other.is_leaving).count();
            let of_prompts = in_flight.saturating_sub(sampled) + count as usize;
            assert!(of_prompts <= self.settings.prefill_rows_max as usize);
        }
    }

    fn full(&mut self, sequence: SequenceId) {
        let running = &self.sequences[&sequence];
        assert_eq!(running.known, self.settings.pages * 64 + 1, "it fills all pages");
        let id = running.request;
        self.end(id, End::Full);
    }
}
