//! The requests that wait or run, and who begins next.
//!
//! Pure, and of fixed size but for the hashes of prompts: as many as may wait, and as many as may run.
//!
//! Each class of priority has a line of its own, in order of arrival. The first of the highest class begins next, unless
//! somebody is *overdue*: so many of higher classes have begun since he came, or he was preempted so often. Then whoever came first of
//! his class and those above it does. So nobody begins before one who came earlier and has the same class or a higher one, and
//! nobody is overtaken by more than [`OVERTAKEN_MAX`] who came later.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher};

use super::PAGE;
use super::prefix::{BlockHash, Chain};
use crate::data::flow::lines::{Line, Links};
use crate::data::ids::SequenceId;

/// So many that came later and are more urgent may begin before a request. More serve the urgent ones sooner; a few
/// dozen are some seconds' work, which whoever is not in a hurry can wait.
pub const OVERTAKEN_MAX: u64 = 32;
/// A request that had to give way so often is as one that is overdue, and gives way after all that are not.
pub const PREEMPTED_MAX: u32 = 3;

/// A request, for as long as a coordinator lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// How urgent a request is: the higher, the sooner it begins and the later it gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Priority(i8);

impl Priority {
    /// The highest; the lowest is its negative.
    pub const MAX: i8 = 3;
    const CLASSES: usize = 2 * Self::MAX as usize + 1;

    /// A priority, if there is such a one.
    pub fn new(priority: i64) -> Option<Self> {
        let priority = i8::try_from(priority).ok()?;
        (-Self::MAX..=Self::MAX).contains(&priority).then_some(Self(priority))
    }

    fn class(self) -> usize {
        (self.0 + Self::MAX) as usize
    }
}

/// How late a running request gives way: its class, or above all of them.
pub(super) const RANKS: usize = Priority::CLASSES + 1;

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

/// What somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// By which name it is known from now on.
    pub request: RequestId,
    /// Ids of its prompt, at least one.
    pub prompt: &'a [u32],
    /// Tokens that its answer has already.
    pub tokens: &'a [u32],
    /// Most tokens of its answer, at least one.
    pub tokens_max: u32,
    /// How urgent it is.
    pub priority: Priority,
    /// It does not wait for pages that another request computes: it may go on where that one waits.
    pub goes_alone: bool,
    /// Whether every row of its prompt is looked at before its first token, and so has to be computed.
    pub is_scored: bool,
    /// The digest of the bias that its rows choose under: it shares no page with who has another one, or none.
    pub bias: Option<[u8; 32]>,
}

/// One request.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) id: u64,
    prompt_tokens: u32,
    tokens_max: u32,
    scores_prompt: bool,
    /// Tokens that it has.
    pub(super) tokens: u32,
    /// As which it runs, or, if it waits, as which it ran and still leaves.
    pub(super) sequence: Option<SequenceId>,
    waits: bool,
    /// It waits in no line, because nobody holds an expert that it needs.
    is_aside: bool,
    class: usize,
    /// The order in which requests came.
    arrival: u64,
    /// How many of higher classes had begun when it came.
    begun_above: u64,
    preempted: u32,
    /// It does not wait for what others compute.
    pub(super) goes_alone: bool,
    /// Names of its whole blocks, where they are kept and found.
    chain: Option<Chain>,
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

    /// The names of its whole blocks.
    pub(super) fn hashes(&self) -> &[BlockHash] {
        self.chain.as_ref().map_or(&[], Chain::hashes)
    }

    /// Whether the rows that it begins with are all looked at. Once it has a token they were.
    pub(super) fn is_scored(&self) -> bool {
        self.scores_prompt && self.tokens == 0
    }

    /// The names of blocks that it may take from others: its last token is computed in any case.
    pub(super) fn hashes_to_find(&self) -> &[BlockHash] {
        let hashes = if self.is_scored() { &[] } else { self.hashes() };
        &hashes[..hashes.len().min(((self.length() - 1) / PAGE) as usize)]
    }
}

/// All requests.
#[derive(Debug)]
pub(super) struct Requests {
    requests: Vec<Request>,
    free: Vec<u32>,
    places: HashMap<RequestId, u32, BuildHasherDefault<DefaultHasher>>,
    waiting: [Line; Priority::CLASSES],
    /// Those that are set aside.
    aside: Line,
    links: Links,
    queue_max: usize,
    arrivals: u64,
    /// By class, how many of higher ones have begun.
    begun_above: [u64; Priority::CLASSES],
    names_blocks: bool,
}

impl Requests {
    pub(super) fn new(queue_max: u32, sequences_max: u32, names_blocks: bool) -> Self {
        let places = queue_max + sequences_max;
        Self {
            requests: std::iter::repeat_with(Request::default).take(places as usize).collect(),
            free: (0..places).rev().collect(),
            // Twice the room, so that it is tidied in place and never grows.
            places: HashMap::with_capacity_and_hasher(2 * places as usize, BuildHasherDefault::default()),
            waiting: [Line::default(); Priority::CLASSES],
            aside: Line::default(),
            links: Links::new(places as usize),
            queue_max: queue_max as usize,
            arrivals: 0,
            begun_above: [0; Priority::CLASSES],
            names_blocks,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().map(Line::len).sum::<usize>() + self.aside.len()
    }

    /// Of those that wait, how many are set aside.
    pub(super) fn aside(&self) -> usize {
        self.aside.len()
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

    /// Who begins next.
    pub(super) fn next(&self) -> Option<u32> {
        let firsts = || self.waiting.iter().filter_map(Line::first);
        let arrival = |place: &u32| self.get(*place).arrival;
        let overdue = firsts().filter(|place| self.is_overdue(self.get(*place))).min_by_key(arrival);
        match overdue.map(|place| self.get(place).class) {
            Some(class) => firsts().filter(|place| self.get(*place).class >= class).min_by_key(arrival),
            None => firsts().next_back(),
        }
    }

    fn is_overdue(&self, request: &Request) -> bool {
        request.preempted >= PREEMPTED_MAX
            || self.begun_above[request.class] - request.begun_above >= OVERTAKEN_MAX
    }

    /// Those that wait, in the order in which they would begin now: whoever is next, then by class and arrival.
    pub(super) fn in_line(&self) -> impl Iterator<Item = u32> + '_ {
        let next = self.next();
        let of_class = |line: &Line| std::iter::successors(line.first(), |place| self.links.after(*place));
        let others = self.waiting.iter().rev().flat_map(of_class).filter(move |place| Some(*place) != next);
        next.into_iter().chain(others)
    }

    /// Those that are set aside.
    pub(super) fn all_aside(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.aside.first(), |place| self.links.after(*place))
    }

    /// A request joins the queue.
    pub(super) fn add(&mut self, asked: Asked<'_>) -> Result<(), Refused> {
        let waiting = self.waiting();
        if waiting >= self.queue_max {
            return Err(Refused::QueueFull { waiting });
        }
        let Asked { request: id, prompt, tokens, tokens_max, priority, goes_alone, is_scored, bias } = asked;
        let place = self.free.pop().expect("those who run have places of their own");
        let new = self.places.insert(id, place).is_none();
        assert!(new, "{id} is asked for once");
        let prompt_tokens = prompt.len() as u32;
        let class = priority.class();
        let mut request = Request {
            id: id.0,
            prompt_tokens,
            tokens_max,
            scores_prompt: is_scored,
            tokens: tokens.len() as u32,
            waits: true,
            class,
            arrival: self.arrivals,
            begun_above: self.begun_above[class],
            goes_alone,
            ..Request::default()
        };
        if self.names_blocks {
            let mut chain = Chain::with_capacity(request.longest() as usize, PAGE as usize, bias);
            prompt.iter().chain(tokens).for_each(|id| chain.push(*id, PAGE as usize));
            request.chain = Some(chain);
        }
        self.arrivals += 1;
        self.requests[place as usize] = request;
        self.links.push_back(&mut self.waiting[class], place);
        Ok(())
    }

    /// It has another token.
    pub(super) fn handle_token(&mut self, place: u32, token: u32) {
        let request = self.get_mut(place);
        request.tokens += 1;
        if let Some(chain) = &mut request.chain {
            chain.push(token, PAGE as usize);
        }
    }

    /// What is computed of it is not what its ids say: it has no blocks from now on.
    pub(super) fn handle_left_out(&mut self, place: u32) {
        self.get_mut(place).chain = None;
    }

    /// It runs from now on. Returns how late it gives way.
    pub(super) fn begin(&mut self, place: u32, sequence: SequenceId) -> usize {
        let class = self.get(place).class;
        let rank = if self.is_overdue(self.get(place)) { RANKS - 1 } else { class };
        self.links.remove(&mut self.waiting[class], place);
        self.begun_above[..class].iter_mut().for_each(|begun| *begun += 1);
        let request = self.get_mut(place);
        (request.sequence, request.waits) = (Some(sequence), false);
        rank
    }

    /// It was preempted and waits again.
    pub(super) fn wait_again(&mut self, place: u32) {
        self.get_mut(place).preempted += 1;
        self.join(place);
    }

    /// It ran, and waits in no line.
    pub(super) fn set_aside(&mut self, place: u32) {
        self.get_mut(place).is_aside = true;
        self.links.push_back(&mut self.aside, place);
    }

    /// It waits in its line again, if it was set aside.
    pub(super) fn call_back(&mut self, place: u32) {
        if std::mem::take(&mut self.get_mut(place).is_aside) {
            self.links.remove(&mut self.aside, place);
            self.join(place);
        }
    }

    /// It joins its line where it came.
    fn join(&mut self, place: u32) {
        let Request { class, arrival, .. } = *self.get(place);
        let line = &mut self.waiting[class];
        // Those before are few: they came earlier, and had to give way too.
        let mut later = line.first();
        while let Some(other) = later.filter(|other| self.requests[*other as usize].arrival < arrival) {
            later = self.links.after(other);
        }
        self.links.insert(line, place, later);
        self.get_mut(place).waits = true;
    }

    /// It is done with. Returns the sequence as which it runs or leaves.
    pub(super) fn remove(&mut self, place: u32) -> Option<SequenceId> {
        let request = std::mem::take(self.get_mut(place));
        if request.waits {
            self.links.remove(&mut self.waiting[request.class], place);
        }
        if request.is_aside {
            self.links.remove(&mut self.aside, place);
        }
        self.places.remove(&RequestId(request.id));
        self.free.push(place);
        request.sequence
    }
}
