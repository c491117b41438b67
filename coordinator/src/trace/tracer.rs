//! Takes spans from whoever has them, and never waits: what the collector is too slow for is dropped and counted.
//!
//! Pure but for the queue: instants are arguments. A trace ties instants to the wall clock once, when its request comes, so that
//! within it nothing seems to end before it began, whatever is done to the clock meanwhile.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::context::{Parent, SpanId, TraceId};
use super::settings::Share;

/// Spans that wait to be sent; more are dropped. Each is some hundred bytes.
const QUEUE_MAX: usize = 8192;
/// Dispatches of one request that are told. An answer of a thousand tokens has half a million in a large model.
const DISPATCHES_MAX: u32 = 2000;

/// What part a span has in a conversation of programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Within this program.
    Internal,
    /// It answers a client.
    Server,
    /// It waits for another program.
    Client,
}

/// What is known of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
    /// A truth.
    Flag(bool),
    /// Some texts.
    Texts(Vec<String>),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Something that took its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Of which trace.
    pub trace: TraceId,
    /// Its own name.
    pub id: SpanId,
    /// What it is a part of.
    pub parent: Option<SpanId>,
    /// Whether that is another program's.
    pub is_parent_remote: bool,
    /// The trace's `tracestate`.
    pub state: Option<Arc<str>>,
    /// What it is.
    pub name: String,
    /// Its part.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// No earlier.
    pub end_ns: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// It did not do what it was to do; in a word.
    pub error: Option<String>,
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counts {
    /// A collector took them.
    pub exported: AtomicU64,
    /// Nobody did.
    pub dropped: AtomicU64,
}

/// Begins traces and takes their spans. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Span>,
    counts: Arc<Counts>,
    share: Share,
    random: RandomState,
    made: AtomicU64,
}

impl Tracer {
    /// A tracer that follows the dispatches of `share` of all traces, and where its spans come out.
    pub fn new(share: Share) -> (Self, mpsc::Receiver<Span>, Arc<Counts>) {
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let counts = Arc::<Counts>::default();
        let inner = Inner {
            queue,
            counts: Arc::clone(&counts),
            share,
            random: RandomState::new(),
            made: AtomicU64::new(0),
        };
        (Self(Arc::new(inner)), spans, counts)
    }

    /// What became of spans.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// A request came at `now`, which is `wall`, as a part of `parent`. None, where its caller wants no spans of it.
    pub fn begin(&self, parent: Option<Parent>, now: Instant, wall: SystemTime) -> Option<Arc<Trace>> {
        if parent.as_ref().is_some_and(|parent| !parent.is_sampled) {
            return None;
        }
        let id = parent.as_ref().map_or_else(
            || TraceId(u128::from(self.random()) << 64 | u128::from(self.random())),
            |parent| parent.trace,
        );
        let unix = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Arc::new(Trace {
            tracer: self.clone(),
            id,
            span: self.span_id(),
            parent: parent.as_ref().map(|parent| parent.span),
            state: parent.and_then(|parent| parent.state).map(Into::into),
            began: now,
            began_unix: unix,
            follows: self.0.share.takes(id),
            dispatches: AtomicU32::new(0),
        }))
    }

    /// A number that no other span has, and never 0.
    fn random(&self) -> u64 {
        let mut hasher = self.0.random.build_hasher();
        hasher.write_u64(self.0.made.fetch_add(1, Relaxed));
        hasher.finish().max(1)
    }

    fn span_id(&self) -> SpanId {
        SpanId(self.random())
    }

    fn take(&self, span: Span) {
        if self.0.queue.try_send(span).is_err() {
            self.0.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The trace of one request.
#[derive(Debug)]
pub struct Trace {
    tracer: Tracer,
    id: TraceId,
    /// The request's own span, told when it is over.
    span: SpanId,
    parent: Option<SpanId>,
    state: Option<Arc<str>>,
    began: Instant,
    began_unix: Duration,
    follows: bool,
    dispatches: AtomicU32,
}

impl Trace {
    /// The span of the request.
    pub fn request(&self) -> SpanId {
        self.span
    }

    /// A name for a span that is told later.
    pub fn span_id(&self) -> SpanId {
        self.tracer.span_id()
    }

    /// Whether its dispatches are told.
    pub fn follows_dispatches(&self) -> bool {
        self.follows
    }

    /// Whether one dispatch more is told. They are counted.
    pub fn takes_dispatch(&self) -> bool {
        self.dispatches.fetch_add(1, Relaxed) < DISPATCHES_MAX
    }

    /// Dispatches that were more than are told.
    pub fn dispatches_untold(&self) -> u32 {
        self.dispatches.load(Relaxed).saturating_sub(DISPATCHES_MAX)
    }

    /// The request is over.
    pub fn tell_request(
        &self,
        name: String,
        end: Instant,
        told: Vec<(&'static str, Value)>,
        error: Option<String>,
    ) {
        let is_parent_remote = self.parent.is_some();
        let span = self.make(self.span, self.parent, name, Kind::Server, self.began..end, told);
        self.tracer.take(Span { is_parent_remote, error, ..span });
    }

    /// A part of it is over.
    pub fn tell(
        &self,
        id: SpanId,
        parent: SpanId,
        name: &'static str,
        kind: Kind,
        time: std::ops::Range<Instant>,
        told: Vec<(&'static str, Value)>,
        error: Option<String>,
    ) {
        let span = self.make(id, Some(parent), name.to_owned(), kind, time, told);
        self.tracer.take(Span { error, ..span });
    }

    fn make(
        &self,
        id: SpanId,
        parent: Option<SpanId>,
        name: String,
        kind: Kind,
        time: std::ops::Range<Instant>,
        attributes: Vec<(&'static str, Value)>,
    ) -> Span {
        let unix = |at: Instant| {
            let since = self.began_unix + at.saturating_duration_since(self.began);
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        Span {
            trace: self.id,
            id,
            parent,
            is_parent_remote: false,
            state: self.state.clone(),
            name,
            kind,
            start_ns: unix(time.start),
            end_ns: unix(time.end.max(time.start)),
            attributes,
            error: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn parent(is_sampled: bool) -> Parent {
        Parent { trace: TraceId(7), span: SpanId(9), is_sampled, state: Some("a=b".into()) }
    }

    /// A request is a part of whoever asked, its own parts are parts of it, and all times are of one clock.
    #[test]
    fn spans_have_their_parents_and_times() {
        let (tracer, mut spans, _) = Tracer::new(Share::ALL);
        let now = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_000);
        let trace = tracer.begin(Some(parent(true)), now, wall).unwrap();
        let (id, request) = (trace.span_id(), trace.request());
        trace.tell(
            id,
            request,
            "queued",
            Kind::Internal,
            now + MS..now + 3 * MS,
            vec![("a", 1_u64.into())],
            None,
        );
        trace.tell_request("chat m".into(), now + 5 * MS, Vec::new(), Some("late".into()));
        let part = spans.try_recv().unwrap();
        assert_eq!((part.trace, part.parent, part.is_parent_remote), (TraceId(7), Some(request), false));
        assert_eq!((part.start_ns, part.end_ns), (1_000_001_000_000, 1_000_003_000_000));
        let whole = spans.try_recv().unwrap();
        assert_eq!((whole.id, whole.parent, whole.is_parent_remote), (request, Some(SpanId(9)), true));
        assert_eq!((whole.start_ns, whole.end_ns), (1_000_000_000_000, 1_000_005_000_000));
        assert_eq!((whole.state.as_deref(), whole.error.as_deref()), (Some("a=b"), Some("late")));
        assert!(tracer.begin(Some(parent(false)), now, wall).is_none(), "its caller wants none");
        let own = tracer.begin(None, now, wall).unwrap();
        own.tell_request("x".into(), now, Vec::new(), None);
        let own = spans.try_recv().unwrap();
        assert_eq!(own.parent, None);
        assert!(own.trace != TraceId(7) && own.trace.0 >> 64 != 0 && own.id != request);
    }

    /// A collector that has gone costs spans and nothing else, and it is known how many.
    #[test]
    fn what_nobody_takes_is_counted() {
        let (tracer, spans, counts) = Tracer::new(Share::ALL);
        let now = Instant::now();
        let trace = tracer.begin(None, now, UNIX_EPOCH).unwrap();
        for _ in 0..QUEUE_MAX + 5 {
            trace.tell(trace.span_id(), trace.request(), "x", Kind::Internal, now..now, Vec::new(), None);
        }
        assert_eq!(counts.dropped.load(Relaxed), 5);
        drop(spans);
        trace.tell_request("x".into(), now, Vec::new(), None);
        assert_eq!(counts.dropped.load(Relaxed), 6);
    }

    /// Of a long answer the first dispatches are told, and how many were not.
    #[test]
    fn dispatches_of_a_request_are_bounded() {
        let (tracer, _spans, _) = Tracer::new(Share::ALL);
        let trace = tracer.begin(None, Instant::now(), UNIX_EPOCH).unwrap();
        assert!((0..DISPATCHES_MAX).all(|_| trace.takes_dispatch()));
        assert_eq!(trace.dispatches_untold(), 0);
        assert!(!trace.takes_dispatch() && !trace.takes_dispatch());
        assert_eq!(trace.dispatches_untold(), 2);
    }
}
