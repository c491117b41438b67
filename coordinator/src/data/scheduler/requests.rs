//! The requests that wait or run, and their order.
//!
//! Pure, and of fixed size: as many as may wait, and as many as may run.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::data::flow::lines::{Line, Links};
use crate::data::ids::SequenceId;

/// A request, for as long as a coordinator lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// Why a request is not even queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may. It may be asked again later.
    #[error("{waiting} requests wait already, which is as many as may; try again later")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// It would not fit if it were alone.
    #[error(
        "the prompt needs {needed} KV pages and there are {pages} in all; raise --kv-memory, or shorten the prompt"
    )]
    TooLong {
        /// Pages of the prompt.
        needed: u32,
        /// Pages in all.
        pages: u32,
    },
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) id: RequestId,
    prompt_tokens: u32,
    tokens_max: u32,
    /// Tokens that it has.
    pub(super) tokens: u32,
    /// As which it runs, or, if it waits, as which it ran and still leaves.
    pub(super) sequence: Option<SequenceId>,
    waits: bool,
}

impl Request {
    /// Tokens that are known: rows before the next can be sampled.
    pub(super) fn length(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.tokens)
    }

    /// Rows that it may ever have. The last token has none.
    pub(super) fn longest(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.tokens_max - 1).max(self.length())
    }
}

/// All requests.
#[derive(Debug)]
pub(super) struct Requests {
    requests: Vec<Request>,
    free: Vec<u32>,
    places: HashMap<RequestId, u32, BuildHasherDefault<DefaultHasher>>,
    waiting: Line,
    links: Links,
    queue_max: usize,
}

impl Requests {
    pub(super) fn new(queue_max: u32, sequences_max: u32) -> Self {
        let places = queue_max + sequences_max;
        let nothing = Request {
            id: RequestId(0),
            prompt_tokens: 0,
            tokens_max: 0,
            tokens: 0,
            sequence: None,
            waits: false,
        };
        Self {
            requests: vec![nothing; places as usize],
            free: (0..places).rev().collect(),
            // Twice the room, so that it is tidied in place and never grows.
            places: HashMap::with_capacity_and_hasher(2 * places as usize, BuildHasherDefault::default()),
            waiting: Line::default(),
            links: Links::new(places as usize),
            queue_max: queue_max as usize,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn find(&self, id: RequestId) -> Option<u32> {
        self.places.get(&id).copied()
    }

    pub(super) fn get(&self, place: u32) -> &Request {
        &self.requests[place as usize]
    }

    pub(super) fn get_mut(&mut self, place: u32) -> &mut Request {
        &mut self.requests[place as usize]
    }

    /// The one that has waited longest.
    pub(super) fn next(&self) -> Option<u32> {
        self.waiting.first()
    }

    /// Those that wait, in their order.
    pub(super) fn in_line(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.waiting.first(), |place| self.links.after(*place))
    }

    /// A request joins the queue.
    pub(super) fn add(&mut self, id: RequestId, prompt_tokens: u32, tokens_max: u32) -> Result<(), Refused> {
        let waiting = self.waiting.len();
        if waiting >= self.queue_max {
            return Err(Refused::QueueFull { waiting });
        }
        let place = self.free.pop().expect("those who run have places of their own");
        let new = self.places.insert(id, place).is_none();
        assert!(new, "{id} is asked for once");
        let request = Request { id, prompt_tokens, tokens_max, tokens: 0, sequence: None, waits: true };
        self.requests[place as usize] = request;
        self.links.push_back(&mut self.waiting, place);
        Ok(())
    }

    /// It runs from now on.
    pub(super) fn begin(&mut self, place: u32, sequence: SequenceId) {
        self.links.remove(&mut self.waiting, place);
        let request = self.get_mut(place);
        (request.sequence, request.waits) = (Some(sequence), false);
    }

    /// It was preempted and waits again, before all others: they came later.
    pub(super) fn wait_again(&mut self, place: u32) {
        self.links.push_front(&mut self.waiting, place);
        self.get_mut(place).waits = true;
    }

    /// It is done with. Returns the sequence as which it runs or leaves.
    pub(super) fn remove(&mut self, place: u32) -> Option<SequenceId> {
        let Request { id, sequence, waits, .. } = *self.get(place);
        if waits {
            self.links.remove(&mut self.waiting, place);
        }
        self.places.remove(&id);
        self.free.push(place);
        sequence
    }
}
