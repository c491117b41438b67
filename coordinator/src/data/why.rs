//! What every live request waits for, and why: `/why`, and what is said of a request that took too long.
//!
//! Looked up when somebody asks and at no other time. A row that is held up holds up all later rows of its sequence, so
//! the first one of each sequence says what the request waits for; where rows of a step go on together, the row that the
//! step waits for may be another request's.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use actix::{Context, Handler, Message, MessageResult};
use serde_json::{Value, json};

use super::actor::DataActor;
use super::exchange::{self, Wait};
use super::flow::{Forwarding, RowAt, RowSeen};
use super::ids::{RowId, SequenceId};
use super::request::RequestId;
use super::scheduler::Held;
use crate::placement::NodeId;

/// What has been out for less is on its way, and not what others are kept from their turn by.
const STUCK: Duration = Duration::from_millis(100);

/// What requests wait for: one, or all that are live.
#[derive(Message)]
#[rtype(result = "Vec<Waiting>")]
pub struct Why(pub Option<RequestId>);

/// A live request.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Which.
    pub request: RequestId,
    /// It has begun.
    pub runs: bool,
    /// How long ago it came.
    pub age: Duration,
    /// Of its prompt.
    pub prompt_tokens: usize,
    /// Of its answer, so far.
    pub tokens: usize,
    /// What it waits for.
    pub cause: Cause,
}

/// What a request waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// What there is to give: a turn, pages, rows.
    Room {
        /// Of what.
        held: Held,
        /// Whose row is stuck, so that nothing comes free.
        other: Option<Other>,
    },
    /// The trunk computes it, or something else before it.
    Trunk {
        /// Its row, by position.
        row: u32,
        /// The layer that the row is to enter; none at the head.
        layer: Option<u32>,
        /// The trunk has it.
        is_in: bool,
        /// Rows of the batch that the trunk computes.
        batch_rows: usize,
        /// How long it has.
        since: Duration,
    },
    /// An expert.
    Expert(AtExpert),
    /// An expert that nobody holds: it was set aside, and this is what its row waited for.
    Aside(AtExpert),
    /// Its row goes on with others, and one of those is held up.
    Step {
        /// Its own row, by position.
        row: u32,
        /// The one that it waits for.
        other: Other,
    },
}

/// A row that others wait for.
#[derive(Debug, Clone, PartialEq)]
pub struct Other {
    /// Whose; none, where that request has been cancelled.
    pub request: Option<RequestId>,
    /// What it waits for.
    pub at: AtExpert,
}

/// A row at an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct AtExpert {
    /// The row, by position.
    pub row: u32,
    /// What it lacks.
    pub wait: Wait,
    /// The name of the node that it is held up at.
    pub node: Option<String>,
    /// Where nobody holds the expert: who did last, and how long ago that was.
    pub lost: Option<(String, Duration)>,
}

impl Cause {
    /// The expert that is at the bottom of it, if one is.
    pub fn expert(&self) -> Option<&AtExpert> {
        match self {
            Cause::Expert(at) | Cause::Aside(at) | Cause::Step { other: Other { at, .. }, .. } => Some(at),
            Cause::Room { other, .. } => other.as_ref().map(|other| &other.at),
            Cause::Trunk { .. } => None,
        }
    }

    /// The same, where nobody holds it.
    pub fn missing_mut(&mut self) -> Option<&mut AtExpert> {
        let at = match self {
            Cause::Expert(at) | Cause::Aside(at) | Cause::Step { other: Other { at, .. }, .. } => Some(at),
            Cause::Room { other, .. } => other.as_mut().map(|other| &mut other.at),
            Cause::Trunk { .. } => None,
        };
        at.filter(|at| at.wait.held == exchange::Held::NoHolder)
    }

    fn kind(&self) -> &'static str {
        match self {
            Cause::Room { held, .. } => match held {
                Held::Behind { .. } => "queue",
                Held::Places { .. } => "places",
                Held::Pages { .. } => "pages",
                Held::Prompt => "prompt",
                Held::Rows => "rows",
                Held::Aside => "aside",
                Held::Leaving => "leaving",
                Held::Nothing => "nothing",
            },
            Cause::Trunk { .. } => "trunk",
            Cause::Expert(_) => "expert",
            Cause::Aside(_) => "aside",
            Cause::Step { .. } => "step",
        }
    }
}

impl Waiting {
    /// As `docs/api.md` has it.
    pub fn json(&self) -> Value {
        let seconds = |time: Duration| time.as_micros() as f64 / 1e6;
        let mut json = json!({
            "request": self.request.0,
            "state": if self.runs { "running" } else { "waiting" },
            "age_s": seconds(self.age),
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "why": self.cause.to_string(),
            "kind": self.cause.kind(),
        });
        match &self.cause {
            Cause::Room { other, .. } => other.iter().for_each(|other| other.add_to(&mut json)),
            Cause::Trunk { row, layer, since, .. } => {
                json["row"] = json!(row);
                json["layer"] = json!(layer);
                json["since_s"] = json!(seconds(*since));
            }
            Cause::Expert(at) | Cause::Aside(at) => at.add_to(&mut json),
            Cause::Step { row, other } => {
                other.add_to(&mut json);
                json["row"] = json!(row);
            }
        }
        json
    }
}

impl Other {
    fn add_to(&self, json: &mut Value) {
        self.at.add_to(json);
        json["other"] = json!({ "request": self.request.map(|request| request.0), "row": self.at.row });
        json["row"] = Value::Null;
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.request {
            Some(request) => write!(f, "row {} of {request}", self.at.row),
            None => write!(f, "a row of a cancelled request"),
        }
    }
}

impl AtExpert {
    /// Whether it is held up, and not just on its way.
    fn is_stuck(&self) -> bool {
        match self.wait.held {
            exchange::Held::Out { since, .. } => since >= STUCK,
            exchange::Held::Room { silent, .. } => silent >= STUCK,
            exchange::Held::Next | exchange::Held::Alone { .. } => false,
            exchange::Held::NoHolder | exchange::Held::Away { .. } | exchange::Held::Paused { .. } => true,
        }
    }

    fn add_to(&self, json: &mut Value) {
        let Wait { layer, expert, shard, held } = self.wait;
        json["row"] = json!(self.row);
        json["layer"] = json!(layer);
        json["expert"] = json!(expert);
        json["shard"] = json!(shard);
        json["node"] = json!(self.node);
        if let exchange::Held::Out { replica, link, since, silent, .. } = held {
            json["replica"] = json!(replica);
            json["link"] = json!(link.0);
            json["since_s"] = json!(since.as_micros() as f64 / 1e6);
            json["silent_s"] = json!(silent.as_micros() as f64 / 1e6);
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Room { held, other: None } => write_room(held, f),
            Cause::Room { held, other: Some(other) } => {
                write_room(held, f)?;
                write!(f, "; {other} waits {}", other.at)
            }
            Cause::Trunk { row, layer, is_in, batch_rows, since } => {
                match layer {
                    Some(layer) => write!(f, "row {row} waits at layer {layer} for the trunk")?,
                    None => write!(f, "row {row} waits at the head for the trunk")?,
                }
                match (is_in, batch_rows) {
                    (_, 0) => write!(f, ", which takes it next"),
                    (true, 1) => write!(f, ", which has computed it for {}", Shown(*since)),
                    (true, rows) => {
                        write!(f, ", which has computed it with {} others for {}", rows - 1, Shown(*since))
                    }
                    (false, rows) => {
                        write!(f, ", which has computed {rows} other rows for {}", Shown(*since))
                    }
                }
            }
            Cause::Expert(at) => write!(f, "row {} waits {at}", at.row),
            Cause::Aside(at) => write!(f, "has given way: row {} waits {at}", at.row),
            Cause::Step { row, other } => {
                write!(f, "row {row} goes on with {other}, which waits {}", other.at)
            }
        }
    }
}

fn write_room(held: &Held, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match held {
        Held::Behind { ahead: 1 } => write!(f, "queued behind 1 other"),
        Held::Behind { ahead } => write!(f, "queued behind {ahead} others"),
        Held::Places { running } => {
            write!(f, "waits for a place: {running} requests run, which is as many as may")
        }
        Held::Pages { needed, free, pages } => {
            write!(f, "waits for KV pages: it needs {needed}, and {free} of {pages} are free")
        }
        Held::Prompt => write!(f, "waits for its turn: the prompt of another request goes first"),
        Held::Rows => write!(f, "waits for room among the rows that are under way"),
        Held::Aside => write!(f, "has given way, and waits for an expert that nobody holds"),
        Held::Leaving => {
            write!(f, "was interrupted for want of KV pages, and waits for its last rows to come back")
        }
        Held::Nothing => write!(f, "waits for nothing: it goes on at once"),
    }
}

impl fmt::Display for AtExpert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { layer, expert, shard, held } = self.wait;
        write!(f, "at layer {layer} for expert {expert}")?;
        if shard > 0 {
            write!(f, " shard {shard}")?;
        }
        let node = self.node.as_deref().unwrap_or("?");
        match held {
            exchange::Held::Out { since, silent, is_overdue, .. } => {
                write!(f, " on node {node} since {} (", Shown(since))?;
                if is_overdue {
                    write!(f, "overdue, and nobody else can take it; ")?;
                }
                write!(f, "link silent for {})", Shown(silent))
            }
            exchange::Held::NoHolder => {
                write!(f, ", which has no holder")?;
                match &self.lost {
                    Some((node, ago)) => write!(f, ": node {node} left {} ago", Shown(*ago)),
                    None => Ok(()),
                }
            }
            exchange::Held::Away { .. } => {
                write!(f, ": node {node}, which should hold it, does not serve it now")
            }
            exchange::Held::Paused { outstanding, .. } => {
                write!(
                    f,
                    " on node {node}, which was busy or late and is asked again soon; {outstanding} rows are out to it"
                )
            }
            exchange::Held::Room { dispatches, silent, .. } => {
                let silent = Shown(silent);
                write!(
                    f,
                    ": as much is under way to node {node} as may be, {dispatches} dispatches (link silent for {silent})"
                )
            }
            exchange::Held::Alone { .. } => {
                write!(f, " on node {node}: an actor fell under it or its like, so it is asked for alone")
            }
            exchange::Held::Next => write!(f, ", to which it is sent next"),
        }
    }
}

/// A time as people say it.
struct Shown(Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_secs_f64() * 1e3;
        match ms {
            _ if ms < 10.0 => write!(f, "{ms:.1} ms"),
            _ if ms < 1_000.0 => write!(f, "{ms:.0} ms"),
            _ => write!(f, "{:.1} s", ms / 1e3),
        }
    }
}

impl Handler<Why> for DataActor {
    type Result = MessageResult<Why>;

    fn handle(&mut self, Why(request): Why, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.why(|id| request.is_none_or(|request| request == id), Instant::now()))
    }
}

impl DataActor {
    /// What the requests wait for that somebody wants to know of, those that run first, then in the order of their turn.
    pub(super) fn why(&self, is_wanted: impl Fn(RequestId) -> bool, now: Instant) -> Vec<Waiting> {
        let flow = &self.parts.flow;
        let sequences = || (0..self.running.len() as u32).map(SequenceId);
        let rows: Vec<RowId> = sequences().flat_map(|sequence| flow.rows_out(sequence)).collect();
        let waits = self.parts.exchange.waits(&rows, now);
        let last = self.last_of_all(&waits);
        let running = sequences().filter_map(|sequence| Some((sequence, self.request_of(sequence)?.id)));
        let running = running.filter(|(_, id)| is_wanted(*id)).filter_map(|(sequence, id)| {
            let cause = self.cause(sequence, &waits, last.as_ref(), now);
            self.waiting_of(id, Some(sequence), cause, now)
        });
        let held = self.parts.scheduler.held_requests().filter(|(id, _)| is_wanted(*id));
        let held = held.filter_map(|(id, held)| {
            let cause = self.cause_aside(id, now).unwrap_or_else(|| room(held, last.as_ref()));
            self.waiting_of(id, None, cause, now)
        });
        running.chain(held).collect()
    }

    fn cause(
        &self,
        sequence: SequenceId,
        waits: &HashMap<RowId, Vec<Wait>>,
        last: Option<&Other>,
        now: Instant,
    ) -> Cause {
        let Some(RowSeen { row, position, stage, at }) = self.parts.flow.first_row(sequence) else {
            return room(self.parts.scheduler.held_sequence(sequence), last);
        };
        let is_computing = self.computing_since.is_some();
        // Where rows go on together anybody's may be the one that all wait for.
        let go_together = self.shared_cores || self.parts.flow.forwarding() == Forwarding::Whole;
        match (at, waits.get(&row).and_then(|waits| worst(waits)), last) {
            (RowAt::Experts, Some(wait), _) => Cause::Expert(self.at_expert(position, wait)),
            (RowAt::Door, _, Some(other)) if go_together && !is_computing => {
                Cause::Step { row: position, other: other.clone() }
            }
            _ => {
                let layers = self.parts.stages[stage as usize].layers.clone();
                let since =
                    self.computing_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                let batch_rows = if is_computing { self.computing.len() } else { 0 };
                let layer = (!layers.is_empty()).then_some(layers.start as u32);
                Cause::Trunk { row: position, layer, is_in: at == RowAt::Trunk, batch_rows, since }
            }
        }
    }

    /// What a request waits for that was set aside.
    fn cause_aside(&self, request: RequestId, now: Instant) -> Option<Cause> {
        let exchange = &self.parts.exchange;
        let (row, lack) = self.aside.lack(request, |lack| exchange.is_missing(lack))?;
        Some(Cause::Aside(self.at_expert(row, exchange.wait_for(lack, now))))
    }

    /// The row that has been out longest, or that nobody can take, of all there are.
    fn last_of_all(&self, waits: &HashMap<RowId, Vec<Wait>>) -> Option<Other> {
        let all = waits.iter().filter_map(|(row, waits)| Some((*row, worst(waits)?)));
        let (row, wait) = all.max_by_key(|(row, wait)| (weight(wait), std::cmp::Reverse(*row)))?;
        let (sequence, position) = self.parts.flow.position(row);
        let request = self.request_of(sequence).map(|request| request.id);
        Some(Other { request, at: self.at_expert(position, wait) })
    }

    fn at_expert(&self, row: u32, wait: Wait) -> AtExpert {
        let node = match wait.held {
            exchange::Held::Out { node, .. }
            | exchange::Held::Away { node }
            | exchange::Held::Paused { node, .. }
            | exchange::Held::Room { node, .. }
            | exchange::Held::Alone { node } => Some(self.name_of(node)),
            exchange::Held::NoHolder | exchange::Held::Next => None,
        };
        AtExpert { row, wait, node, lost: None }
    }

    fn name_of(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.0.to_string())
    }

    fn waiting_of(
        &self,
        id: RequestId,
        sequence: Option<SequenceId>,
        cause: Cause,
        now: Instant,
    ) -> Option<Waiting> {
        let submission = match sequence {
            Some(sequence) => &self.request_of(sequence)?.submission,
            None => &self.waiting.get(&id)?.submission,
        };
        let within = Duration::from_millis(submission.within_ms);
        let left = submission.deadline.saturating_duration_since(now);
        Some(Waiting {
            request: id,
            runs: sequence.is_some(),
            age: within.saturating_sub(left),
            prompt_tokens: submission.generation.request().prompt.len(),
            tokens: submission.generation.tokens().len(),
            cause,
        })
    }
}

/// A want of room, and the row that is stuck meanwhile, if one is.
fn room(held: Held, last: Option<&Other>) -> Cause {
    let waits_for_others = !matches!(held, Held::Nothing);
    Cause::Room { held, other: last.filter(|last| waits_for_others && last.at.is_stuck()).cloned() }
}

/// What holds a row up most: that nobody can bring it, else what has been out longest.
fn worst(waits: &[Wait]) -> Option<Wait> {
    waits.iter().copied().max_by_key(weight)
}

fn weight(wait: &Wait) -> (u8, Duration) {
    match wait.held {
        exchange::Held::NoHolder => (6, Duration::ZERO),
        exchange::Held::Away { .. } => (5, Duration::ZERO),
        exchange::Held::Paused { .. } => (4, Duration::ZERO),
        exchange::Held::Room { silent, .. } => (3, silent),
        exchange::Held::Out { since, .. } => (2, since),
        exchange::Held::Alone { .. } => (1, Duration::ZERO),
        exchange::Held::Next => (0, Duration::ZERO),
    }
}
