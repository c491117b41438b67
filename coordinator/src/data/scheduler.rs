//! Which rows may exist: requests become sequences, sequences get rows and pages, first come first served.
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
//! Rows go to decoding sequences first, then to the one sequence whose prompt is being given out, then to the request
//! that waits longest. None begins before an earlier one. A prompt goes in chunks, several of which may be in flight one
//! behind the other; while others decode, prompts have at most `prefill_rows_max` rows in flight, so that a decoded row never
//! waits for more than those.
//!
//! # Pages
//!
//! A sequence begins when pages for all that is known of it are free, and they are its own from then on: so the pages of a
//! chunk are there before its first row enters, and a prompt that began is not stopped by another one. Each 64 tokens later
//! it takes one more. If there is none, those that are coming back are waited for; else the youngest running sequence is
//! preempted: its rows leave, its pages come back, and its request goes to the front of the queue, to be computed again from
//! prompt and tokens so far, which gives the same bits. A sequence that runs alone and holds all pages ends as full.
//!
//! Nobody waits for ever: the oldest running sequence is never preempted, so it ends; then the next is the oldest. Whoever
//! waits to begin does so at the latest when nobody runs, since what could never fit was refused, and what was preempted held
//! fewer pages than there are, for an older sequence held some.

mod held;
mod requests;
mod sequences;

use std::collections::VecDeque;

pub use self::held::Held;
use self::requests::Requests;
pub use self::requests::{Refused, RequestId};
use self::sequences::{Sequences, State};
use super::flow::Chunk;
use super::ids::SequenceId;

/// Positions in a KV page.
const PAGE: u32 = model::kv::PAGE as u32;

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
    /// Extend the sequence's page table to the end of the chunk, and give it to the flow.
    Chunk(Chunk),
    /// The sequence's request waits again; what it has said so far stays said. `Leave` follows.
    Preempt {
        /// Its place.
        sequence: SequenceId,
    },
    /// There is no page for another token and there never will be: the answer ends as one that is as long as it may be.
    /// `Leave` follows.
    Full {
        /// Its place.
        sequence: SequenceId,
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
    pages_free: u32,
    /// Pages of sequences that are leaving.
    pages_leaving: u32,
    rows_free: usize,
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
            requests: Requests::new(queue_max, sequences_max),
            sequences: Sequences::new(sequences_max),
            pages_free: pages,
            pages_leaving: 0,
            rows_free: rows_in_flight_max as usize,
            actions: VecDeque::with_capacity(4 * sequences_max as usize),
            settings,
        }
    }

    /// KV pages in all.
    pub fn pages(&self) -> u32 {
        self.settings.pages
    }

    /// Pages that belong to no sequence.
    pub fn pages_free(&self) -> u32 {
        self.pages_free
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.sequences.running.len()
    }

    /// Requests that wait to begin, or to begin again.
    pub fn waiting(&self) -> usize {
        self.requests.waiting()
    }

    /// Somebody asks for an answer of up to `tokens_max` tokens.
    pub fn handle_request(
        &mut self,
        request: RequestId,
        prompt_tokens: u32,
        tokens_max: u32,
    ) -> Result<(), Refused> {
        assert!(prompt_tokens > 0 && tokens_max > 0, "{request} has a prompt and wants an answer");
        let (needed, pages) = (pages_for(prompt_tokens), self.settings.pages);
        if needed > pages {
            return Err(Refused::TooLong { needed, pages });
        }
        self.requests.add(request, prompt_tokens, tokens_max)
    }

    /// A token was sampled and the sequence goes on. If it was preempted meanwhile the token counts nevertheless: whoever
    /// drops it instead does not tell, and it is sampled again.
    pub fn handle_token(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.requests.get_mut(request).tokens += 1;
        if self.sequences.get(sequence).state != State::Leaving {
            self.sequences.handle_token(sequence);
        }
    }

    /// The answer has ended.
    pub fn handle_finished(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.end(request);
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
        self.pages_leaving -= left.pages;
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
            let Some(sequence) = self.sequences.ready.first().map(SequenceId) else { break };
            if self.rows_free == 0 {
                return None;
            }
            if let Some(chunk) = self.decode(sequence) {
                return Some(Action::Chunk(chunk));
            }
        }
        if let Some(sequence) = self.sequences.prefilling {
            return self.prefill(sequence).map(Action::Chunk);
        }
        self.begin()
    }

    /// The next row of a decoding sequence, or what is done for want of a page.
    fn decode(&mut self, sequence: SequenceId) -> Option<Chunk> {
        let start = self.sequences.get(sequence).next;
        if pages_for(start + 1) > self.sequences.get(sequence).pages {
            if self.pages_free == 0 {
                self.make_room(sequence);
                return None;
            }
            self.pages_free -= 1;
            self.sequences.get_mut(sequence).pages += 1;
        }
        self.rows_free -= 1;
        self.sequences.handle_chunk(sequence, 1, true);
        Some(Chunk { sequence, start, count: 1, samples: true })
    }

    /// There is no page for the next row of this sequence.
    fn make_room(&mut self, sequence: SequenceId) {
        let youngest = self.sequences.youngest().expect("at least this one runs");
        if self.pages_leaving > 0 {
            self.sequences.handle_starved(sequence);
        } else if self.sequences.running.len() == 1 {
            self.actions.push_back(Action::Full { sequence });
            let request = self.sequences.get(sequence).request.expect("a running sequence has a request");
            self.end(request);
        } else {
            self.actions.push_back(Action::Preempt { sequence: youngest });
            if youngest != sequence {
                self.sequences.handle_starved(sequence);
            }
            let request = self.sequences.get(youngest).request.expect("a running sequence has a request");
            self.requests.wait_again(request);
            self.leave(youngest);
        }
    }

    /// The next chunk of a prompt, if there is room for it.
    fn prefill(&mut self, sequence: SequenceId) -> Option<Chunk> {
        let (start, target) = (self.sequences.get(sequence).next, self.sequences.get(sequence).target);
        let count = self.chunk_rows(target - start)?;
        let samples = start + count == target;
        self.rows_free -= count as usize;
        self.sequences.handle_chunk(sequence, count, samples);
        Some(Chunk { sequence, start, count, samples })
    }

    /// Rows of the next chunk of a prompt of which so many are left; a whole one or none.
    fn chunk_rows(&self, left: u32) -> Option<u32> {
        let count = left.min(self.settings.chunk_rows_max);
        // Those who will decode as soon as they have a page have a row kept for them.
        if self.rows_free < count as usize + self.sequences.starved.len() {
            return None;
        }
        if self.sequences.decoding() > 0 {
            let in_flight = (self.settings.rows_in_flight_max as usize).saturating_sub(self.rows_free);
            let of_prompts = in_flight.saturating_sub(self.sequences.sampling);
            if of_prompts + count as usize > self.settings.prefill_rows_max as usize {
                return None;
            }
        }
        Some(count)
    }

    /// Whoever waits longest begins, if a place, pages, and rows for its first chunk are free.
    fn begin(&mut self) -> Option<Action> {
        let place = self.requests.next()?;
        let request = self.requests.get(place);
        if request.sequence.is_some() || !self.sequences.starved.is_empty() {
            return None; // It still leaves, or others wait for pages.
        }
        let target = request.length();
        let (needed, id) = (pages_for(target), request.id);
        if self.pages_free < needed + self.pages_to_grow(place) {
            return None;
        }
        self.chunk_rows(target)?;
        let sequence = self.sequences.begin(place, target, needed)?;
        self.pages_free -= needed;
        self.requests.begin(place, sequence);
        Some(Action::Begin { request: id, sequence })
    }

    /// Pages that stay free when this request begins beside others, so that it is not preempted at once. One that was
    /// preempted before also leaves one to each that runs.
    fn pages_to_grow(&self, place: u32) -> u32 {
        let running = self.sequences.running.len() as u32;
        if running == 0 {
            return 0;
        }
        let request = self.requests.get(place);
        let soon = request.longest().min(request.length().saturating_add(PAGE));
        let own = pages_for(soon) - pages_for(request.length());
        own + if request.tokens > 0 { running } else { 0 }
    }

    /// A request is done with, wherever it stands.
    fn end(&mut self, place: u32) {
        let sequence = self.requests.remove(place);
        let Some(sequence) = sequence else { return };
        self.sequences.get_mut(sequence).request = None;
        if self.sequences.get(sequence).state != State::Leaving {
            self.leave(sequence);
        }
    }

    /// A running sequence leaves.
    fn leave(&mut self, sequence: SequenceId) {
        let has_rows = self.sequences.leave(sequence);
        if has_rows {
            self.pages_leaving += self.sequences.get(sequence).pages;
            self.actions.push_back(Action::Leave { sequence });
        } else {
            self.release(sequence); // The flow never heard of it.
        }
    }

    fn release(&mut self, sequence: SequenceId) {
        self.pages_free += self.sequences.release(sequence);
        // Each of those who wait for pages wants one. If no more are coming, the others have to make room.
        let served = if self.pages_leaving > 0 { self.pages_free as usize } else { usize::MAX };
        self.sequences.retry_starved(served);
        self.actions.push_back(Action::Release { sequence });
    }
}
