//! The sequences that run, and what each waits for.
//!
//! Pure, and of fixed size but for the blocks that each has.

use super::requests::RANKS;
use crate::data::flow::lines::{Line, Links};
use crate::data::ids::{BlockId, SequenceId};

/// What a sequence waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    /// Nothing: the place is free.
    #[default]
    Free,
    /// Room for the next chunk of its prompt.
    Prefilling,
    /// The token of a row in flight.
    Sampling,
    /// Room for the row of its last token.
    Ready,
    /// A page for it.
    Starved,
    /// Somebody who holds an expert that a row of it needs. It gets no more rows until then, and gives way before all others.
    Stranded,
    /// Its last row to leave.
    Leaving,
}

/// One sequence.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// Whose it is; none once the request is done with.
    pub(super) request: Option<u32>,
    pub(super) state: State,
    /// The position of its next row.
    pub(super) next: u32,
    /// Rows after which the first token is sampled.
    pub(super) target: u32,
    /// Its first pages, which others may have too.
    pub(super) blocks: Vec<BlockId>,
    /// How many of those it found.
    pub(super) found: u32,
    /// Pages after those, which are its own.
    pub(super) own: u32,
    /// How late it gives way.
    pub(super) rank: usize,
    /// Counts sequences in the order in which they began.
    began: u64,
    /// It has been stranded for long.
    is_long: bool,
    /// Whether any row was given to the flow.
    pub(super) has_rows: bool,
}

impl Sequence {
    /// Pages in all.
    pub(super) fn pages(&self) -> u32 {
        self.blocks.len() as u32 + self.own
    }

    /// Rows that have not been given out.
    pub(super) fn left(&self) -> u32 {
        self.target - self.next
    }
}

/// All sequences.
#[derive(Debug)]
pub(super) struct Sequences {
    sequences: Vec<Sequence>,
    free: Vec<u32>,
    /// Those that run, by how late they give way, in the order in which they began.
    running: [Line; RANKS],
    ages: Links,
    /// Those in state `Prefilling`, in the order in which they began.
    pub(super) prefilling: Line,
    /// Those in state `Ready`.
    pub(super) ready: Line,
    /// Those in state `Starved`.
    pub(super) starved: Line,
    links: Links,
    /// How many began.
    begun: u64,
    /// How many are in state `Sampling`: each has one row in flight that is sampled.
    pub(super) sampling: usize,
    /// How many are in state `Leaving`.
    pub(super) leaving: usize,
    /// How many are in state `Stranded`.
    pub(super) stranded: usize,
    /// How many of these have been for long, and the pages that they have.
    long: usize,
    pub(super) pages_long: u32,
}

impl Sequences {
    pub(super) fn new(sequences_max: u32) -> Self {
        let places = sequences_max as usize;
        Self {
            sequences: std::iter::repeat_with(Sequence::default).take(places).collect(),
            free: (0..sequences_max).rev().collect(),
            running: [Line::default(); RANKS],
            ages: Links::new(places),
            prefilling: Line::default(),
            ready: Line::default(),
            starved: Line::default(),
            links: Links::new(places),
            begun: 0,
            sampling: 0,
            leaving: 0,
            stranded: 0,
            long: 0,
            pages_long: 0,
        }
    }

    pub(super) fn get(&self, sequence: SequenceId) -> &Sequence {
        &self.sequences[sequence.0 as usize]
    }

    pub(super) fn get_mut(&mut self, sequence: SequenceId) -> &mut Sequence {
        &mut self.sequences[sequence.0 as usize]
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running.iter().map(Line::len).sum()
    }

    /// How many run and may go on.
    pub(super) fn going(&self) -> usize {
        self.running() - self.stranded
    }

    /// Who gives way first: of the lowest rank whoever began last.
    pub(super) fn first_to_give_way(&self) -> Option<SequenceId> {
        self.running.iter().find_map(Line::last).map(SequenceId)
    }

    /// The same of those that are stranded, or of those that have been for long.
    pub(super) fn first_stranded(&self, is_long: bool) -> Option<SequenceId> {
        if (if is_long { self.long } else { self.stranded }) == 0 {
            return None;
        }
        let from_last = |line: &Line| std::iter::successors(line.last(), |place| self.ages.before(*place));
        let mut places = self.running.iter().flat_map(from_last);
        let is_such = |of: &Sequence| of.state == State::Stranded && (of.is_long || !is_long);
        places.find(|place| is_such(&self.sequences[*place as usize])).map(SequenceId)
    }

    /// Those that may go on and have given out their prompt.
    pub(super) fn decoding(&self) -> usize {
        self.going() - self.prefilling.len()
    }

    /// Who in state `Prefilling` began next after this one; without one, first.
    pub(super) fn prefilling_after(&self, sequence: Option<SequenceId>) -> Option<SequenceId> {
        let place = match sequence {
            Some(SequenceId(place)) => self.links.after(place),
            None => self.prefilling.first(),
        };
        place.map(SequenceId)
    }

    /// The place of whoever begins next, if one is free.
    pub(super) fn next_place(&self) -> Option<SequenceId> {
        self.free.last().copied().map(SequenceId)
    }

    /// A request begins in the [next place](Self::next_place).
    pub(super) fn begin(&mut self, request: u32, target: u32, rank: usize) {
        let place = self.free.pop().expect("a place is free");
        let sequence = &mut self.sequences[place as usize];
        (sequence.request, sequence.target, sequence.rank) = (Some(request), target, rank);
        sequence.began = self.begun;
        self.begun += 1;
        self.ages.push_back(&mut self.running[rank], place);
        self.set_state(SequenceId(place), State::Prefilling);
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

    /// A row of it waits for an expert that nobody holds. Whoever has all it needs for its next token does not wait for that.
    pub(super) fn handle_stranded(&mut self, sequence: SequenceId) {
        if matches!(self.get(sequence).state, State::Prefilling | State::Sampling) {
            self.set_state(sequence, State::Stranded);
        }
    }

    /// It has been stranded for long.
    pub(super) fn handle_long(&mut self, sequence: SequenceId) {
        let of = &mut self.sequences[sequence.0 as usize];
        if of.state == State::Stranded && !std::mem::replace(&mut of.is_long, true) {
            self.long += 1;
            self.pages_long += of.pages();
        }
    }

    /// It goes on where it was.
    pub(super) fn handle_found(&mut self, sequence: SequenceId) {
        let of = self.get(sequence);
        if of.state == State::Stranded {
            let is_prompt = of.next < of.target;
            self.set_state(sequence, if is_prompt { State::Prefilling } else { State::Sampling });
        }
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
        let rank = self.get(sequence).rank;
        self.ages.remove(&mut self.running[rank], sequence.0);
        self.set_state(sequence, State::Leaving);
        self.get(sequence).has_rows
    }

    /// Its place is free. What it had of blocks must have been taken.
    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.set_state(sequence, State::Free);
        let blocks = std::mem::take(&mut self.get_mut(sequence).blocks);
        assert!(blocks.is_empty(), "{sequence} has let go of its blocks");
        // Keeps the room of the list.
        *self.get_mut(sequence) = Sequence { blocks, ..Sequence::default() };
        self.free.push(sequence.0);
    }

    fn set_state(&mut self, sequence: SequenceId, state: State) {
        match self.get(sequence).state {
            State::Prefilling => self.links.remove(&mut self.prefilling, sequence.0),
            State::Sampling => self.sampling -= 1,
            State::Ready => self.links.remove(&mut self.ready, sequence.0),
            State::Starved => self.links.remove(&mut self.starved, sequence.0),
            State::Leaving => self.leaving -= 1,
            State::Stranded => {
                self.stranded -= 1;
                if std::mem::take(&mut self.get_mut(sequence).is_long) {
                    self.long -= 1;
                    self.pages_long -= self.get(sequence).pages();
                }
            }
            State::Free => {}
        }
        match state {
            State::Prefilling => {
                // Only one that was stranded is older than any of them.
                let began = self.get(sequence).began;
                let mut later = None;
                let mut last = self.prefilling.last();
                while let Some(other) = last.filter(|other| self.sequences[*other as usize].began > began) {
                    later = Some(other);
                    last = self.links.before(other);
                }
                self.links.insert(&mut self.prefilling, sequence.0, later);
            }
            State::Sampling => self.sampling += 1,
            State::Ready => self.links.push_back(&mut self.ready, sequence.0),
            State::Starved => self.links.push_back(&mut self.starved, sequence.0),
            State::Leaving => self.leaving += 1,
            State::Stranded => self.stranded += 1,
            State::Free => {}
        }
        self.get_mut(sequence).state = state;
    }
}
