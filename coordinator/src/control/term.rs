//! Which term this coordinator publishes under.
//!
//! Pure: no clock, no file. A term is 1 + the highest that is known of: the one in the data directory, and those that
//! nodes announce within the join window. It is stored before it is used, so that no term is ever used twice, and it
//! is raised when a node announces a higher one later. No wall clock takes part.

use std::time::{Duration, Instant};

/// Terms above this are no coordinator's: nobody restarts so often.
pub const TERM_MAX: u64 = 1 << 62;

/// The taking of terms.
#[derive(Debug)]
pub struct Terms {
    /// The highest that is known of, our own ones too.
    highest: u64,
    window_ends: Option<Instant>,
    /// What is to be stored, or is being stored.
    wanted: Option<u64>,
    is_told: bool,
    /// What may be used.
    term: Option<u64>,
}

impl Terms {
    /// `stored`: what the data directory has, 0 if nothing.
    pub fn new(stored: u64, window: Duration, now: Instant) -> Self {
        Self { highest: stored, window_ends: Some(now + window), wanted: None, is_told: false, term: None }
    }

    /// The term that may be used, when there is one.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// A node has seen this term.
    pub fn handle_announced(&mut self, term: u64) {
        if term > self.highest && term <= TERM_MAX {
            self.highest = term;
            if self.window_ends.is_none() {
                self.want();
            }
        }
    }

    /// The join window may have ended.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.window_ends.is_some_and(|end| now >= end) {
            self.window_ends = None;
            self.want();
        }
    }

    /// A term is on disk. Whether it is a new one that may be used.
    pub fn handle_stored(&mut self, term: u64) -> bool {
        // An older one was on its way when a higher was announced.
        let is_wanted = self.wanted == Some(term);
        if is_wanted {
            (self.term, self.wanted) = (Some(term), None);
        }
        is_wanted
    }

    /// When the join window ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.window_ends
    }

    /// A term to be stored.
    pub fn poll_store(&mut self) -> Option<u64> {
        let wanted = self.wanted.filter(|_| !self.is_told)?;
        self.is_told = true;
        Some(wanted)
    }

    fn want(&mut self) {
        self.highest += 1;
        (self.wanted, self.is_told) = (Some(self.highest), false);
    }
}
