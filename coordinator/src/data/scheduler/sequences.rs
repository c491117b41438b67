//! The sequences that run, and what each waits for.
//!
//! Pure, and of fixed size.

use crate::data::flow::lines::{Line, Links};
use crate::data::ids::SequenceId;

/// What a sequence waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: the place is free.
    Free,
    /// Room for the next chunk of its prompt.
    Prefilling,
    /// The token of a row in flight.
    Sampling,
    /// Room for the row of its last token.
    Ready,
    /// A page for it.
    Starved,
    /// Its last row to leave.
    Leaving,
}

/// One sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence {
    /// Whose it is; none once the request is done with.
    pub(super) request: Option<u32>,
    pub(super) state: State,
    /// The position of its next row.
    pub(super) next: u32,
    /// Rows after which the first token is sampled.
    pub(super) target: u32,
    pub(super) pages: u32,
    /// Whether any row was given to the flow.
    has_rows: bool,
}

const NOTHING: Sequence =
    Sequence { request: None, state: State::Free, next: 0, target: 0, pages: 0, has_rows: false };

/// All sequences.
#[derive(Debug)]
pub(super) struct Sequences {
    sequences: Vec<Sequence>,
    free: Vec<u32>,
    /// Those that run, in the order in which their requests came.
    pub(super) running: Line,
    ages: Links,
    /// Those in state `Ready`.
    pub(super) ready: Line,
    /// Those in state `Starved`.
    pub(super) starved: Line,
    links: Links,
    /// The one in state `Prefilling`.
    pub(super) prefilling: Option<SequenceId>,
    /// How many are in state `Sampling`: each has one row in flight that is sampled.
    pub(super) sampling: usize,
}

impl Sequences {
    pub(super) fn new(sequences_max: u32) -> Self {
        let places = sequences_max as usize;
        Self {
            sequences: vec![NOTHING; places],
            free: (0..sequences_max).rev().collect(),
            running: Line::default(),
            ages: Links::new(places),
            ready: Line::default(),
            starved: Line::default(),
            links: Links::new(places),
            prefilling: None,
            sampling: 0,
        }
    }

    pub(super) fn get(&self, sequence: SequenceId) -> &Sequence {
        &self.sequences[sequence.0 as usize]
    }

    pub(super) fn get_mut(&mut self, sequence: SequenceId) -> &mut Sequence {
        &mut self.sequences[sequence.0 as usize]
    }

    /// The one whose request came last.
    pub(super) fn youngest(&self) -> Option<SequenceId> {
        self.running.last().map(SequenceId)
    }

    /// Those that have given out their prompt.
    pub(super) fn decoding(&self) -> usize {
        self.running.len() - usize::from(self.prefilling.is_some())
    }

    /// A request begins, if a place is free.
    pub(super) fn begin(&mut self, request: u32, target: u32, pages: u32) -> Option<SequenceId> {
        assert!(self.prefilling.is_none(), "prompts are given out one after the other");
        let place = self.free.pop()?;
        self.sequences[place as usize] =
            Sequence { request: Some(request), state: State::Prefilling, target, pages, ..NOTHING };
        self.ages.push_back(&mut self.running, place);
        self.prefilling = Some(SequenceId(place));
        Some(SequenceId(place))
    }

    /// Rows of it go to the flow.
    pub(super) fn handle_chunk(&mut self, sequence: SequenceId, count: u32, samples: bool) {
        self.get_mut(sequence).next += count;
        self.get_mut(sequence).has_rows = true;
        if samples {
            self.set_state(sequence, State::Sampling);
        }
    }

    /// Its token is known.
    pub(super) fn handle_token(&mut self, sequence: SequenceId) {
        assert_eq!(self.get(sequence).state, State::Sampling, "{sequence} has a row that is sampled");
        self.set_state(sequence, State::Ready);
    }

    /// There is no page for it.
    pub(super) fn handle_starved(&mut self, sequence: SequenceId) {
        self.set_state(sequence, State::Starved);
    }

    /// Up to so many that had no page try again, in the order in which they found none.
    pub(super) fn retry_starved(&mut self, count: usize) {
        for _ in 0..count.min(self.starved.len()) {
            let first = self.starved.first().expect("counted");
            self.set_state(SequenceId(first), State::Ready);
        }
    }

    /// It runs no more. True if the flow has heard of it.
    pub(super) fn leave(&mut self, sequence: SequenceId) -> bool {
        self.ages.remove(&mut self.running, sequence.0);
        self.set_state(sequence, State::Leaving);
        self.get(sequence).has_rows
    }

    /// Its place is free. Returns its pages.
    pub(super) fn release(&mut self, sequence: SequenceId) -> u32 {
        let pages = self.get(sequence).pages;
        *self.get_mut(sequence) = NOTHING;
        self.free.push(sequence.0);
        pages
    }

    fn set_state(&mut self, sequence: SequenceId, state: State) {
        match self.get(sequence).state {
            State::Prefilling => self.prefilling = None,
            State::Sampling => self.sampling -= 1,
            State::Ready => self.links.remove(&mut self.ready, sequence.0),
            State::Starved => self.links.remove(&mut self.starved, sequence.0),
            State::Free | State::Leaving => {}
        }
        match state {
            State::Sampling => self.sampling += 1,
            State::Ready => self.links.push_back(&mut self.ready, sequence.0),
            State::Starved => self.links.push_back(&mut self.starved, sequence.0),
            State::Prefilling | State::Free | State::Leaving => {}
        }
        self.get_mut(sequence).state = state;
    }
}
