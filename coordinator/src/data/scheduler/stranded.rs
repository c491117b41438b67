//! Sequences that wait for an expert that nobody holds, and requests that are set aside for that.
//!
//! Pure. A sequence is *stranded* while a row of it waits for such an expert, which may be for as long as its request has time. Until
//! then it gets no rows, counts neither among the prompts that are being given out nor among those who decode, and what it has promised
//! others compute themselves. It keeps what it has as long as nobody else needs that, since a holder may come soon. Where
//! somebody who runs lacks pages or rows that those who go on will not give back by themselves, stranded sequences give way before all
//! others, one after the other; to somebody who lacks a place or pages to begin, those that have been stranded for long. The request of one is *set aside*: it waits in no line until the shell calls it back, because what it
//! lacked is there, and then it waits where it came. To give way so does not make a request more urgent.

use super::sequences::State;
use super::{Action, RequestId, Scheduler};
use crate::data::ids::SequenceId;

impl Scheduler {
    /// Requests that were set aside and not called back.
    pub fn set_aside(&self) -> usize {
        self.requests.aside()
    }

    /// Sequences that are stranded.
    pub fn stranded(&self) -> usize {
        self.sequences.stranded
    }

    /// A sequence waits for an expert that nobody holds.
    pub fn handle_stranded(&mut self, sequence: SequenceId) {
        let Some(request) = self.sequences.get(sequence).request else { return };
        self.forget_promises(sequence, request);
        self.sequences.handle_stranded(sequence);
    }

    /// It has waited for that for so long that others may begin in its place. Harmless if it does so no more.
    pub fn handle_long(&mut self, sequence: SequenceId) {
        self.sequences.handle_long(sequence);
    }

    /// It does so no more, and goes on where it was.
    pub fn handle_found(&mut self, sequence: SequenceId) {
        let of = self.sequences.get(sequence);
        let Some(request) = of.request.filter(|_| of.state == State::Stranded) else { return };
        self.pages.promise(sequence, of, self.requests.get(request).hashes());
        self.sequences.handle_found(sequence);
    }

    /// What a request lacked that was set aside is there: it waits to begin again. Harmless if it was not, or has ended.
    pub fn handle_called_back(&mut self, request: RequestId) {
        if let Some(place) = self.requests.find(request) {
            self.requests.call_back(place);
        }
    }

    /// So many rows of the flow are those of stranded sequences now.
    pub fn handle_rows_stranded(&mut self, rows: usize) {
        self.rows_stranded = rows;
    }

    /// Of the stranded sequences, or of those that have been so for long, one gives way. False if there is none, or if somebody leaves already: first what that brings is
    /// looked at.
    pub(super) fn strand_gives_way(&mut self, is_long: bool) -> bool {
        if self.sequences.leaving > 0 {
            return false;
        }
        let Some(sequence) = self.sequences.first_stranded(is_long) else { return false };
        self.actions.push_back(Action::SetAside { sequence });
        let request = self.sequences.get(sequence).request.expect("a running sequence has a request");
        self.requests.set_aside(request);
        self.leave(sequence);
        true
    }

    /// So many rows at once are not free. If those who go on, who may each have one that decodes, will never leave so many, stranded
    /// ones give way.
    pub(super) fn make_rows(&mut self, count: u32) -> bool {
        let of_others = (self.settings.rows_in_flight_max as usize).saturating_sub(self.rows_stranded);
        let are_free = self.rows_free >= count as usize + self.sequences.starved.len();
        !are_free && of_others < count as usize + self.sequences.going() && self.strand_gives_way(false)
    }
}
