//! Which rows may exist: requests become sequences, sequences get rows and pages.
//!
//! Pure: no clock, no bytes, no page table. The shell owns the pages; here they are counted.
//!
//! # The shell's part
//!
//! After every event it tells [`handle_rows_free`](Scheduler::handle_rows_free) what `Flow` has free, then carries out
//! [`poll_action`](Scheduler::poll_action) until there is none. `Leave` becomes `Flow::handle_cancel`, and what
//! `Flow::poll_left` names comes back by [`handle_left`](Scheduler::handle_left).
//!
//! # Who is served
//!
//! Rows go to decoding sequences first, one each by turns, and then to prompts, chunk by chunk. Of the prompts that have begun the
//! most urgent goes on, of those the one with the fewest rows left, so that a short one does not wait for a long one; but of
//! [`PASSED_MAX`] + 1 chunks one is the prompt's that began first. A prompt goes in chunks, several of which may be in flight one
//! behind the other; while others decode, prompts have at most `prefill_rows_max` rows in flight, so that a decoded row never
//! waits for more than those. Which request begins next is `requests.rs`'s.
//!
//! # Pages
//!
//! A sequence begins when pages for all that is known of it are free, and they are its own from then on: so the pages of a
//! chunk are there before its first row enters, and a prompt that began is not stopped by another one. Each 64 tokens later
//! it takes one more. If there is none, those that are coming back are waited for; else a running sequence is preempted, of the
//! lowest rank the one that began last: its rows leave, its pages come back, and its request waits again where it came, to be
//! computed again from prompt and tokens so far, which gives the same bits. A sequence that has all pages ends as full.
//!
//! Whole pages that are computed are kept as blocks (`prefix.rs`). A sequence that begins like an earlier one takes what is there
//! and computes the rest, at least one row; if the next block is just being computed by another sequence it waits for that. Blocks
//! that nobody uses are free pages that remember something: they are given out when there are no others.
//!
//! Nobody waits for ever: of the sequences of the highest rank that run, the one that began first is never preempted, so it ends,
//! unless it is stranded: whoever waits for an expert that nobody holds gives way before all others (`stranded.rs`).
//! Whoever waits to begin is overtaken by a bounded number, and begins at the latest when nobody runs, since what
//! could never fit was refused. Whoever was preempted a few times has the highest rank.

mod held;
mod pages;
mod prefix;
mod requests;
mod sequences;
mod stranded;

use std::cmp::Reverse;
use std::collections::VecDeque;

pub use self::held::Held;
use self::pages::Pages;
pub use self::pages::PrefixSeen;
use self::requests::Requests;
pub use self::requests::{Asked, OVERTAKEN_MAX, PREEMPTED_MAX, Priority, Refused, RequestId};
use self::sequences::{Sequences, State};
use super::flow::Chunk;
use super::ids::{BlockId, SequenceId};

/// Positions in a KV page.
const PAGE: u32 = model::kv::PAGE as u32;

/// So many chunks of other prompts may be given out before the next of the prompt that began first. With three it has a quarter
/// of what prompts get, and a short one hardly ever waits for it.
pub const PASSED_MAX: u32 = 3;
/// Prompts that have begun and are being given out. Each has its pages, though one chunk is given out at a time.
const PROMPTS_MAX: usize = 4;

/// Pages for so many positions.
fn pages_for(positions: u32) -> u32 {
    positions.div_ceil(PAGE)
}

/// What there is to give.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Sequences that may run at once.
    pub sequences_max: u32,
    /// Requests that may wait beside them; more are refused.
    pub queue_max: u32,
    /// KV pages in all.
    pub pages: u32,
    /// Rows in flight, which is `rows_max` of the flow. At least a chunk, and one row for each sequence.
    pub rows_in_flight_max: u32,
    /// Rows of a chunk of a prompt. Larger ones are computed at a better rate and make others wait longer.
    pub chunk_rows_max: u32,
    /// Rows of prompts that may be in flight while others decode. One chunk keeps them quick; two let the trunk compute one
    /// while experts compute the other.
    pub prefill_rows_max: u32,
    /// Whether whole pages are kept for those who begin alike. They are computed anew otherwise, to the same bits.
    pub prefix_cache: bool,
}

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A request runs from now on, as this sequence. Its rows are those of its prompt and of the tokens it has so far.
    Begin {
        /// Which request.
        request: RequestId,
        /// Its place.
        sequence: SequenceId,
    },
    /// The sequence's next page is this block: its positions are computed already.
    Share {
        /// Its place.
        sequence: SequenceId,
        /// What it has from now on.
        block: BlockId,
    },
    /// Extend the sequence's page table to the end of the chunk, and give it to the flow.
    Chunk(Chunk),
    /// A page of the sequence is a block from now on, and is not written any more.
    Keep {
        /// Its place.
        sequence: SequenceId,
        /// Which of its pages.
        index: u32,
        /// Its name.
        block: BlockId,
    },
    /// A page of the sequence holds what a block holds: it is to use the block, and its own page is free.
    Replace {
        /// Its place.
        sequence: SequenceId,
        /// Which of its pages.
        index: u32,
        /// Which block.
        block: BlockId,
    },
    /// A block is one no longer: its page is free, and so is its name.
    Forget {
        /// Which.
        block: BlockId,
    },
    /// The sequence's request waits again; what it has said so far stays said. `Leave` follows.
    Preempt {
        /// Its place.
        sequence: SequenceId,
    },
    /// The sequence's request is set aside until it is called back, because a row of it waits for an expert that nobody holds; what
    /// it has said so far stays said. `Leave` follows.
    SetAside {
        /// Its place.
        sequence: SequenceId,
    },
    /// There is no page for another token and there never will be: the answer ends as one that is as long as it may be.
    /// `Leave` follows if it runs.
    Full {
        /// Whose.
        request: RequestId,
    },
    /// Have its rows leave the flow.
    Leave {
        /// Its place.
        sequence: SequenceId,
    },
    /// All its rows have left: its pages are free and its place may be given to another.
    Release {
        /// Its place.
        sequence: SequenceId,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    settings: SchedulerSettings,
    requests: Requests,
    sequences: Sequences,
    pages: Pages,
    rows_free: usize,
    rows_stranded: usize,
    /// Prompts that wait for nothing but rows, as of the last look.
    prompts: usize,
    /// Chunks given out since the prompt that began first had one.
    passed: u32,
    actions: VecDeque<Action>,
}

impl Scheduler {
    /// A scheduler to which nothing was asked yet.
    pub fn new(settings: SchedulerSettings) -> Self {
        let SchedulerSettings { sequences_max, queue_max, pages, rows_in_flight_max, .. } = settings;
        assert!(sequences_max > 0 && pages > 0 && settings.chunk_rows_max > 0, "there is something to give");
        assert!(
            rows_in_flight_max >= settings.chunk_rows_max.saturating_add(sequences_max),
            "a chunk and a row for each sequence fit at once"
        );
        assert!(
            settings.prefill_rows_max >= settings.chunk_rows_max,
            "a chunk may be in flight while others decode"
        );
        Self {
            requests: Requests::new(queue_max, sequences_max, settings.prefix_cache),
            sequences: Sequences::new(sequences_max),
            pages: Pages::new(pages),
            rows_free: rows_in_flight_max as usize,
            rows_stranded: 0,
            prompts: 0,
            passed: 0,
            actions: VecDeque::with_capacity(4 * sequences_max as usize),
            settings,
        }
    }

    /// KV pages in all.
    pub fn pages(&self) -> u32 {
        self.settings.pages
    }

    /// Pages that no sequence has. Some may be blocks.
    pub fn pages_free(&self) -> u32 {
        self.pages.available()
    }

    /// What the prefix cache has done and holds.
    pub fn prefix_seen(&self) -> PrefixSeen {
        self.pages.seen()
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.sequences.running()
    }

    /// Requests that wait to begin, or to begin again.
    pub fn waiting(&self) -> usize {
        self.requests.waiting()
    }

    /// Somebody asks for an answer.
    pub fn handle_request(&mut self, asked: Asked<'_>) -> Result<(), Refused> {
        let Asked { request, prompt, tokens, tokens_max, .. } = asked;
        assert!(!prompt.is_empty() && tokens_max > 0, "{request} has a prompt and wants an answer");
        let known = u32::try_from(prompt.len() + tokens.len()).unwrap_or(u32::MAX);
        let (needed, pages) = (pages_for(known), self.settings.pages);
        if needed > pages {
            return Err(Refused::TooLong { needed, pages });
        }
        self.requests.add(asked)
    }

    /// A token was sampled and the sequence goes on. If it was preempted meanwhile the token counts nevertheless: whoever
    /// drops it instead does not tell, and it is sampled again.
    pub fn handle_token(&mut self, sequence: SequenceId, token: u32) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.requests.handle_token(request, token);
        if self.sequences.get(sequence).state != State::Leaving {
            self.keep(sequence, request);
            self.sequences.handle_token(sequence);
        }
    }

    /// The answer has ended with the token that was sampled.
    pub fn handle_finished(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        if self.sequences.get(sequence).state == State::Sampling {
            self.keep(sequence, request);
        }
        self.end(request);
    }

    /// The answer cannot be computed. Nobody is to find what was computed of it.
    pub fn handle_failed(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.pages.hide(self.sequences.get(sequence));
        self.end(request);
    }

    /// A row of a sequence has gone on without an expert. What is computed of the request from now on is another answer than its
    /// ids say: nobody is to find it, nobody waits for it, and it finds nothing of others any more. What it has kept before stays.
    pub fn handle_left_out(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.forget_promises(sequence, request);
        self.requests.handle_left_out(request);
    }

    /// Nobody wants the answer any more. Harmless if it has ended or never was.
    pub fn handle_cancel(&mut self, request: RequestId) {
        if let Some(request) = self.requests.find(request) {
            self.end(request);
        }
    }

    /// The last row of a sequence that was to leave has left the flow.
    pub fn handle_left(&mut self, sequence: SequenceId) {
        let left = self.sequences.get(sequence);
        assert_eq!(left.state, State::Leaving, "{sequence} was to leave");
        if let Some(request) = left.request {
            self.requests.get_mut(request).sequence = None;
        }
        self.release(sequence);
    }

    /// So many rows are free in the flow now.
    pub fn handle_rows_free(&mut self, rows: usize) {
        self.rows_free = rows;
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if self.decode() {
                continue;
            }
            let prompt = self.next_prompt();
            let any = self.begin() || self.prefill(prompt);
            if !any && self.actions.is_empty() {
                return None;
            }
        }
    }

    /// The next row of a decoding sequence, or what is done for want of a page. False if none can have one.
    fn decode(&mut self) -> bool {
        let Some(sequence) = self.sequences.ready.first().map(SequenceId) else { return false };
        if self.rows_free == 0 {
            return self.make_rows(1);
        }
        let of = self.sequences.get_mut(sequence);
        let start = of.next;
        if pages_for(start + 1) > of.pages() && !self.pages.give(of, &mut self.actions) {
            self.make_room(sequence);
            return true;
        }
        self.rows_free -= 1;
        self.sequences.handle_chunk(sequence, 1, true);
        self.actions.push_back(Action::Chunk(Chunk {
            sequence,
            start,
            count: 1,
            samples: true,
            is_scored: false,
        }));
        true
    }

    /// There is no page for the next row of this sequence.
    fn make_room(&mut self, sequence: SequenceId) {
        let of = self.sequences.get(sequence);
        if of.pages() == self.settings.pages {
            return self.end_full(of.request.expect("a running sequence has a request"));
        }
        if self.sequences.leaving > 0 {
            return self.sequences.handle_starved(sequence);
        }
        if self.strand_gives_way(false) {
            return self.sequences.handle_starved(sequence);
        }
        let first = self.sequences.first_to_give_way().expect("at least this one runs");
        self.actions.push_back(Action::Preempt { sequence: first });
        if first != sequence {
            self.sequences.handle_starved(sequence);
        }
        let request = self.sequences.get(first).request.expect("a running sequence has a request");
        self.requests.wait_again(request);
        self.forget_promises(first, request);
        self.leave(first);
    }

    /// The next chunk of a prompt, if any is to go on. False if there is no room for it.
    fn prefill(&mut self, prompt: Option<(SequenceId, bool)>) -> bool {
        let Some((sequence, is_first)) = prompt else { return false };
        let of = self.sequences.get(sequence);
        let (start, left) = (of.next, of.left());
        let Some(count) = self.chunk_rows(left) else {
            return self.make_rows(left.min(self.settings.chunk_rows_max));
        };
        if !of.has_rows {
            let request = of.request.expect("a running sequence has a request");
            self.pages.handle_first_rows(sequence, of, self.requests.get(request).hashes());
        }
        let samples = count == left;
        let is_scored = of.request.is_some_and(|request| self.requests.get(request).is_scored());
        self.passed = if is_first { 0 } else { self.passed + 1 };
        self.rows_free -= count as usize;
        self.sequences.handle_chunk(sequence, count, samples);
        self.actions.push_back(Action::Chunk(Chunk { sequence, start, count, samples, is_scored }));
        true
    }

    /// Which prompt goes on, and whether it is the one that began first. Those whose next block another one computes wait for
    /// that.
    fn next_prompt(&mut self) -> Option<(SequenceId, bool)> {
        let Self { requests, sequences, pages, actions, .. } = self;
        let (mut first, mut best) = (None, None);
        let mut best_key = None;
        let mut next = sequences.prefilling_after(None);
        self.prompts = 0;
        while let Some(sequence) = next {
            next = sequences.prefilling_after(Some(sequence));
            let of = sequences.get_mut(sequence);
            if !of.has_rows {
                let request = of.request.expect("a running sequence has a request");
                let request = requests.get(request);
                if pages.give_found(sequence, of, request.hashes_to_find(), actions) && !request.goes_alone {
                    continue;
                }
            }
            self.prompts += 1;
            first.get_or_insert(sequence);
            let key = (of.rank, Reverse(of.left()));
            if best_key < Some(key) {
                (best, best_key) = (Some(sequence), Some(key));
            }
        }
        let chosen = if self.passed < PASSED_MAX { best } else { first };
        chosen.map(|chosen| (chosen, Some(chosen) == first))
    }

    /// Rows of the next chunk of a prompt of which so many are left; a whole one or none.
    fn chunk_rows(&self, left: u32) -> Option<u32> {
        let count = left.min(self.settings.chunk_rows_max);
        // Those who will decode as soon as they have a page have a row kept for them.
        if self.rows_free < count as usize + self.sequences.starved.len() {
            return None;
        }
        if self.sequences.decoding() > 0 {
            let others = self.rows_free + self.rows_stranded;
            let in_flight = (self.settings.rows_in_flight_max as usize).saturating_sub(others);
            let of_prompts = in_flight.saturating_sub(self.sequences.sampling);
            if of_prompts + count as usize > self.settings.prefill_rows_max as usize {
                return None;
            }
        }
        Some(count)
    }

    /// The next request begins, if a place and pages are free and not too many prompts wait for rows. False if it does not.
    fn begin(&mut self) -> bool {
        let Some(place) = self.requests.next() else { return false };
        let request = self.requests.get(place);
        let target = request.length();
        if pages_for(target) > self.settings.pages {
            self.end_full(place); // It had all of them, some together with others.
            return true;
        }
        if request.sequence.is_some() || !self.sequences.starved.is_empty() {
            return false; // It still leaves, or others wait for pages.
        }
        if self.prompts >= PROMPTS_MAX {
            return false;
        }
        let (found, idle) = self.pages.find(request.hashes_to_find());
        let needed = idle + pages_for(target) - found + self.pages_to_grow(place);
        let available = self.pages.available();
        let next_place = self.sequences.next_place().filter(|_| available >= needed);
        let Some(sequence) = next_place else {
            return available + self.sequences.pages_long >= needed && self.strand_gives_way(true);
        };
        let request = RequestId(request.id);
        let rank = self.requests.begin(place, sequence);
        self.sequences.begin(place, target, rank);
        self.actions.push_back(Action::Begin { request, sequence });
        let Self { requests, sequences, pages, actions, .. } = self;
        let of = sequences.get_mut(sequence);
        pages.give_found(sequence, of, requests.get(place).hashes_to_find(), actions);
        while of.pages() < pages_for(target) {
            let is_given = pages.give(of, actions);
            assert!(is_given, "there are enough for {sequence}");
        }
        true
    }

    /// Pages that stay free when this request begins beside others that go on, so that it is not preempted at once. One that was
    /// preempted before also leaves one to each of these.
    fn pages_to_grow(&self, place: u32) -> u32 {
        let going = self.sequences.going() as u32;
        if going == 0 {
            return 0;
        }
        let request = self.requests.get(place);
        let soon = request.longest().min(request.length().saturating_add(PAGE));
        let own = pages_for(soon) - pages_for(request.length());
        own + if request.tokens > 0 { going } else { 0 }
    }

    /// The rows of a sequence are computed up to the one that was just sampled.
    fn keep(&mut self, sequence: SequenceId, request: u32) {
        self.forget_promises(sequence, request);
        let Self { requests, sequences, pages, actions, .. } = self;
        pages.keep(sequence, sequences.get_mut(sequence), requests.get(request).hashes(), actions);
    }

    fn forget_promises(&mut self, sequence: SequenceId, request: u32) {
        let hashes = self.requests.get(request).hashes();
        self.pages.forget_promises(sequence, self.sequences.get(sequence), hashes);
    }

    /// A request will never have another page.
    fn end_full(&mut self, place: u32) {
        self.actions.push_back(Action::Full { request: RequestId(self.requests.get(place).id) });
        self.end(place);
    }

    /// A request is done with, wherever it stands.
    fn end(&mut self, place: u32) {
        if let Some(sequence) = self.requests.get(place).sequence {
            self.forget_promises(sequence, place);
            self.sequences.get_mut(sequence).request = None;
            if self.sequences.get(sequence).state != State::Leaving {
                self.leave(sequence);
            }
        }
        self.requests.remove(place);
    }

    /// A running sequence leaves.
    fn leave(&mut self, sequence: SequenceId) {
        let has_rows = self.sequences.leave(sequence);
        if has_rows {
            self.actions.push_back(Action::Leave { sequence });
        } else {
            if let Some(request) = self.sequences.get(sequence).request {
                self.requests.get_mut(request).sequence = None;
            }
            self.release(sequence); // The flow never heard of it.
        }
    }

    fn release(&mut self, sequence: SequenceId) {
        // The shell's own handle of it goes first, so that whatever is free here is free there.
        self.actions.push_back(Action::Release { sequence });
        self.pages.take_back(self.sequences.get_mut(sequence), &mut self.actions);
        self.sequences.release(sequence);
        // Each of those who wait for pages wants one. If no more are coming, the others have to make room.
        let is_last = self.sequences.leaving == 0;
        let served = if is_last { usize::MAX } else { self.pages.available() as usize };
        self.sequences.retry_starved(served);
    }
}
