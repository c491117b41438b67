//! What a trace is told of a request under way: what it did from when to when, and its dispatches.
//!
//! Pure but for where spans go: instants are arguments, but for the end of a request, which may come in many ways and is the end of
//! its [`Phases`]. Where nobody asked for traces there are none of them, and dispatches are not looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use transport::wire::cluster::ActorId;

use super::exchange::Outgoing;
use super::ids::{LinkId, RowId};
use super::scheduler::RequestId;
use crate::trace::{Kind, SpanId, Trace, Value};

/// The trace that a choice of a request belongs to.
#[derive(Debug, Clone)]
pub struct ChoiceTrace {
    /// The trace.
    pub trace: Arc<Trace>,
    /// Which choice, from 0.
    pub choice: usize,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Prefill,
    Decode,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

/// What a request does now, and since when. Dropped, the request is over.
#[derive(Debug)]
pub(super) struct Phases {
    of: ChoiceTrace,
    request: RequestId,
    phase: Phase,
    span: SpanId,
    since: Instant,
    /// What is known of the phase.
    told: Vec<(&'static str, Value)>,
    tokens: u64,
    /// As long as it is there, dispatches are looked at.
    _follows: Option<Arc<()>>,
}

impl Phases {
    /// A request has come.
    pub(super) fn new(of: ChoiceTrace, request: RequestId, dispatches: &Dispatches, now: Instant) -> Self {
        let follows = of.trace.follows_dispatches().then(|| Arc::clone(&dispatches.followed));
        let (phase, span) = (Phase::Queued, of.trace.span_id());
        Self { of, request, phase, span, since: now, told: Vec::new(), tokens: 0, _follows: follows }
    }

    /// It runs from now on.
    pub(super) fn handle_begun(&mut self, rows: usize, now: Instant) {
        self.enter(Phase::Prefill, now);
        self.told.push(("phalanx.rows", rows.into()));
    }

    /// It has another token. `cached` rows of those that came before the first were there already.
    pub(super) fn handle_token(&mut self, cached: usize) {
        if self.phase == Phase::Prefill {
            self.told.push(("phalanx.rows_cached", cached.into()));
            self.enter(Phase::Decode, Instant::now());
        }
        self.tokens += 1;
    }

    /// It gave way to another one.
    pub(super) fn handle_preempted(&mut self, now: Instant) {
        self.told.push(("phalanx.preempted", Value::Flag(true)));
        self.enter(Phase::Queued, now);
    }

    /// The trace that its dispatches belong to, and the span that they are parts of.
    fn followed(&self) -> Option<(&Arc<Trace>, SpanId)> {
        self.of.trace.follows_dispatches().then_some((&self.of.trace, self.span))
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.tell(now);
        (self.phase, self.since, self.span) = (phase, now, self.of.trace.span_id());
    }

    fn tell(&mut self, end: Instant) {
        let mut told = std::mem::take(&mut self.told);
        told.push(("phalanx.request", self.request.0.into()));
        told.push(("phalanx.choice", self.of.choice.into()));
        if self.phase == Phase::Decode {
            told.push(("phalanx.tokens", std::mem::take(&mut self.tokens).into()));
        }
        let trace = &self.of.trace;
        trace.tell(
            self.span,
            trace.request(),
            self.phase.name(),
            Kind::Internal,
            self.since..end,
            told,
            None,
        );
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.tell(Instant::now());
    }
}

/// Dispatches that are out and have rows of requests that are followed.
#[derive(Debug, Default)]
pub(super) struct Dispatches {
    /// Requests that are followed have it too.
    followed: Arc<()>,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    link: LinkId,
    actor: ActorId,
    node: String,
    rows: usize,
    attempts: u8,
    since: Instant,
    whose: Vec<Whose>,
}

/// A request that has rows in a dispatch.
#[derive(Debug)]
struct Whose {
    trace: Arc<Trace>,
    parent: SpanId,
    rows: usize,
}

impl Dispatches {
    /// Whether anybody wants to know.
    pub(super) fn is_followed(&self) -> bool {
        Arc::strong_count(&self.followed) > 1
    }

    /// A frame goes out; `phases_of` says whose a row is.
    pub(super) fn handle_sent<'a>(
        &mut self,
        frame: &Outgoing,
        node: &str,
        phases_of: impl Fn(RowId) -> Option<&'a Phases>,
        now: Instant,
    ) {
        for group in &frame.groups {
            let indices = &frame.indices[group.indices.start as usize..group.indices.end as usize];
            let mut whose: Vec<Whose> = Vec::new();
            let rows = indices.iter().map(|index| frame.rows[*index as usize]);
            for (trace, parent) in rows.filter_map(|row| phases_of(row)?.followed()) {
                match whose.iter_mut().find(|whose| whose.parent == parent) {
                    Some(known) => known.rows += 1,
                    None => whose.push(Whose { trace: Arc::clone(trace), parent, rows: 1 }),
                }
            }
            whose.retain(|whose| whose.trace.takes_dispatch());
            if !whose.is_empty() {
                let open = Open {
                    link: frame.link,
                    actor: group.actor,
                    node: node.to_owned(),
                    rows: indices.len(),
                    attempts: group.attempts,
                    since: now,
                    whose,
                };
                self.open.insert(group.dispatch, open);
            }
        }
    }

    /// It is back: with its rows, or for a reason.
    pub(super) fn handle_ended(&mut self, dispatch: u64, refused: Option<&'static str>, now: Instant) {
        // Mostly nobody wants to know.
        if !self.open.is_empty()
            && let Some(open) = self.open.remove(&dispatch)
        {
            open.tell(dispatch, refused, now);
        }
    }

    /// Nothing comes back on this link any more.
    pub(super) fn handle_link_ended(&mut self, link: LinkId, now: Instant) {
        for (dispatch, open) in self.open.extract_if(|_, open| open.link == link) {
            open.tell(dispatch, Some("link_ended"), now);
        }
    }
}

impl Open {
    fn tell(self, dispatch: u64, error: Option<&'static str>, end: Instant) {
        let Self {
            link,
            actor: ActorId { layer, expert, replica, shard },
            node,
            rows,
            attempts,
            since,
            whose,
        } = self;
        for Whose { trace, parent, rows: own } in whose {
            let told = vec![
                ("phalanx.layer", layer.into()),
                ("phalanx.expert", expert.into()),
                ("phalanx.replica", u64::from(replica).into()),
                ("phalanx.shard", u64::from(shard).into()),
                ("phalanx.node", node.as_str().into()),
                ("phalanx.link", link.0.into()),
                ("phalanx.dispatch", dispatch.into()),
                ("phalanx.rows", rows.into()),
                ("phalanx.rows_own", own.into()),
                ("phalanx.attempts", u64::from(attempts).into()),
                ("phalanx.end", error.unwrap_or("returned").into()),
            ];
            let error = error.map(str::to_owned);
            trace.tell(trace.span_id(), parent, "dispatch", Kind::Client, since..end, told, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tokio::sync::mpsc;

    use super::super::exchange::OutgoingGroup;
    use super::*;
    use crate::trace::{Share, Span, Tracer};

    const MS: Duration = Duration::from_millis(1);

    fn number(span: &Span, name: &str) -> u64 {
        match span
            .attributes
            .iter()
            .find(|(key, _)| *key == name)
            .unwrap_or_else(|| panic!("{name}: {span:?}"))
            .1
        {
            Value::Number(number) => number,
            ref other => panic!("{name} is {other:?}"),
        }
    }

    fn taken(spans: &mut mpsc::Receiver<Span>) -> Vec<Span> {
        std::iter::from_fn(|| spans.try_recv().ok()).collect()
    }

    fn actor(expert: u32) -> ActorId {
        ActorId { layer: 3, expert, replica: 1, shard: 0 }
    }

    /// Two requests in one frame, of which each hears of its own rows; what is refused, sent again and lost with its link says so.
    #[test]
    fn dispatches_are_parts_of_what_their_requests_do() {
        let (tracer, mut spans, _) = Tracer::new(Share::ALL);
        let start = Instant::now();
        let mut dispatches = Dispatches::default();
        assert!(!dispatches.is_followed());
        let phases = |id: u64| {
            let of = ChoiceTrace { trace: tracer.begin(None, start, UNIX_EPOCH).unwrap(), choice: 0 };
            let mut phases = Phases::new(of, RequestId(id), &dispatches, start);
            phases.handle_begun(20, start + MS);
            phases
        };
        let both = [phases(1), phases(2)];
        assert!(dispatches.is_followed());
        let queued = taken(&mut spans);
        assert_eq!(queued.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["queued"; 2]);
        let group = |dispatch: u64, indices: std::ops::Range<u32>, attempts: u8| OutgoingGroup {
            actor: actor(dispatch as u32),
            dispatch,
            indices,
            attempts,
        };
        let frame = |link: u32, groups: Vec<OutgoingGroup>, rows: &[u32], indices: &[u32]| Outgoing {
            link: LinkId(link),
            layer: 3,
            groups,
            rows: rows.iter().map(|row| RowId(*row)).collect(),
            indices: indices.to_vec(),
            remaining: MS,
        };
        // Rows 0 to 9 are the first one's, 10 to 19 the second one's, others are of nobody who wants to know.
        let of = |row: RowId| both.get(row.0 as usize / 10);
        let groups = vec![group(7, 0..3, 1), group(8, 3..4, 1), group(9, 4..5, 2)];
        dispatches.handle_sent(
            &frame(4, groups, &[1, 12, 2, 30], &[0, 1, 2, 1, 3]),
            "n1",
            of,
            start + 2 * MS,
        );
        dispatches.handle_sent(&frame(5, vec![group(10, 0..1, 3)], &[11], &[0]), "n2", of, start + 3 * MS);
        dispatches.handle_ended(7, None, start + 5 * MS);
        dispatches.handle_ended(7, None, start + 6 * MS);
        dispatches.handle_ended(9, None, start + 6 * MS);
        dispatches.handle_ended(8, Some("busy"), start + 7 * MS);
        dispatches.handle_link_ended(LinkId(4), start + 8 * MS);
        dispatches.handle_link_ended(LinkId(5), start + 9 * MS);
        let told = taken(&mut spans);
        let brief: Vec<_> = told
            .iter()
            .map(|span| {
                let own = both.iter().position(|phases| span.parent == Some(phases.span)).unwrap();
                let of = |name| number(span, name);
                let time = (span.end_ns - span.start_ns) / 1_000_000;
                (
                    own,
                    of("phalanx.expert"),
                    of("phalanx.rows"),
                    of("phalanx.rows_own"),
                    of("phalanx.attempts"),
                    time,
                )
            })
            .collect();
        assert_eq!(brief, [(0, 7, 3, 2, 1, 3), (1, 7, 3, 1, 1, 3), (1, 8, 1, 1, 1, 5), (1, 10, 1, 1, 3, 6)]);
        let errors: Vec<_> = told.iter().map(|span| span.error.as_deref()).collect();
        assert_eq!(errors, [None, None, Some("busy"), Some("link_ended")]);
        assert!(told.iter().all(|span| span.kind == Kind::Client && number(span, "phalanx.layer") == 3));
        drop(both);
        assert!(!dispatches.is_followed() && dispatches.open.is_empty());
        assert_eq!(taken(&mut spans).iter().filter(|span| span.name == "prefill").count(), 2);
    }

    /// What a request did, one thing behind the other, also where it had to give way.
    #[test]
    fn a_request_does_one_thing_after_the_other() {
        let (tracer, mut spans, _) = Tracer::new("0".parse().unwrap());
        let start = Instant::now();
        let trace = tracer.begin(None, start, UNIX_EPOCH).unwrap();
        let request = trace.request();
        let dispatches = Dispatches::default();
        let of = ChoiceTrace { trace, choice: 2 };
        let mut phases = Phases::new(of, RequestId(5), &dispatches, start);
        assert!(!dispatches.is_followed(), "of this request dispatches are not told");
        phases.handle_begun(30, Instant::now());
        phases.handle_token(20);
        phases.handle_token(20);
        phases.handle_preempted(Instant::now());
        phases.handle_begun(32, Instant::now());
        drop(phases);
        let told = taken(&mut spans);
        let names: Vec<_> = told.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["queued", "prefill", "decode", "queued", "prefill"]);
        assert!(told.windows(2).all(|pair| pair[0].end_ns == pair[1].start_ns), "{told:#?}");
        assert!(told.iter().all(|span| span.parent == Some(request) && number(span, "phalanx.choice") == 2));
        assert_eq!((number(&told[1], "phalanx.rows"), number(&told[1], "phalanx.rows_cached")), (30, 20));
        assert_eq!(number(&told[2], "phalanx.tokens"), 2);
        assert!(told[2].attributes.contains(&("phalanx.preempted", Value::Flag(true))));
    }
}
