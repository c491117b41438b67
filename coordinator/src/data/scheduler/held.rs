//! What requests and sequences without rows wait for: asked by people, now and then, and looked up then alone.
//!
//! Pure.

use super::sequences::State;
use super::{PROMPTS_MAX, RequestId, Scheduler, pages_for};
use crate::data::ids::SequenceId;

/// What keeps a request, or a sequence, from going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Others that came before it.
    Behind {
        /// How many.
        ahead: usize,
    },
    /// As many run as may.
    Places {
        /// How many, with those whose last rows are on their way back.
        running: usize,
    },
    /// KV pages.
    Pages {
        /// That it needs.
        needed: u32,
        /// That are free.
        free: u32,
        /// In all.
        pages: u32,
    },
    /// As many prompts are being given out as may be at once.
    Prompt,
    /// So many rows are under way as may be, or as prompts may have beside those who decode.
    Rows,
    /// Somebody who holds an expert that it needs: it has given way to those who do not need that.
    Aside,
    /// It runs no more, and its last rows are on their way back.
    Leaving,
    /// Nothing: it goes on at once.
    Nothing,
}

impl Scheduler {
    /// Those that wait to begin, in the order in which they will, each with what it waits for; then those that are set aside.
    pub fn held_requests(&self) -> impl Iterator<Item = (RequestId, Held)> + '_ {
        let in_line = self.requests.in_line().enumerate().map(|(ahead, place)| {
            let held = if ahead == 0 { self.held_first(place) } else { Held::Behind { ahead } };
            (place, held)
        });
        let aside = self.requests.all_aside().map(|place| (place, Held::Aside));
        in_line.chain(aside).map(|(place, held)| (RequestId(self.requests.get(place).id), held))
    }

    /// What the request waits for whose turn it is.
    fn held_first(&self, place: u32) -> Held {
        let request = self.requests.get(place);
        if request.sequence.is_some() {
            return Held::Leaving;
        }
        let (free, pages) = (self.pages.available(), self.settings.pages);
        if self.prompts >= PROMPTS_MAX {
            return Held::Prompt;
        }
        let (found, idle) = self.pages.find(request.hashes_to_find());
        let needed = idle + pages_for(request.length()) - found + self.pages_to_grow(place);
        if !self.sequences.starved.is_empty() || free < needed {
            return Held::Pages { needed, free, pages };
        }
        if self.sequences.next_place().is_none() {
            return Held::Places { running: self.sequences.running() + self.sequences.leaving };
        }
        if self.chunk_rows(request.length()).is_none() { Held::Rows } else { Held::Nothing }
    }

    /// What a sequence waits for that has no row under way.
    pub fn held_sequence(&self, sequence: SequenceId) -> Held {
        match self.sequences.get(sequence).state {
            State::Leaving => Held::Leaving,
            State::Starved => {
                Held::Pages { needed: 1, free: self.pages.available(), pages: self.settings.pages }
            }
            State::Ready | State::Prefilling => Held::Rows,
            State::Sampling | State::Stranded | State::Free => Held::Nothing,
        }
    }
}
