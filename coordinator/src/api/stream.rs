//! An answer on its way: events in, bytes of a response out.
//!
//! A shell: it waits, for events, for deadlines and for the client. Whoever drops it cancels the request, be it a
//! client that went away or a connection that was cut. A client that reads slowly holds up nobody: events have room
//! for the whole answer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::StatusCode;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::Backend;
use super::answer::{Answer, Astray};
use super::keys::Allowance;
use super::metrics::Meter;
use super::refusal::Refusal;
use super::span::RequestSpan;
use crate::data::request::{Event, Failure, RequestId};

/// How often a stream without news says that it lives, so that nothing on the way takes it for dead.
const BEAT: Duration = Duration::from_secs(15);
/// How much later than the data plane the API itself gives a request up: only if the former does not answer.
const LATE: Duration = Duration::from_secs(5);
/// The most bytes of one write, so that a slow client's answer is not written out all at once.
const WRITE_BYTES: usize = 16 << 10;

/// Cancels a request unless it is over.
pub(super) struct Guard {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) id: RequestId,
    pub(super) is_over: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_over {
            self.backend.cancel(self.id);
        }
    }
}

/// The events of a request, up to its end.
pub(super) struct Events {
    events: mpsc::Receiver<Event>,
    /// What was looked at and not taken.
    first: Option<Event>,
    guard: Guard,
    meter: Meter,
    allowance: Allowance,
    late: Pin<Box<Sleep>>,
    within_ms: u64,
}

impl Events {
    pub(super) fn new(
        events: mpsc::Receiver<Event>,
        guard: Guard,
        meter: Meter,
        allowance: Allowance,
        within: Duration,
    ) -> Self {
        let late = Box::pin(sleep_until(Instant::now() + within + LATE));
        Self { events, first: None, guard, meter, allowance, late, within_ms: within.as_millis() as u64 }
    }

    /// If a failure is what was looked at.
    fn take_failure(&mut self) -> Option<Failure> {
        match self.first.take() {
            Some(Event::Failed(failure)) => Some(failure),
            other => {
                self.first = other;
                None
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.first.take() {
            return Poll::Ready(event);
        }
        let event = match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => event,
            Poll::Ready(None) => {
                Event::Failed(Failure::Row("the request was lost: its owner has ended".into()))
            }
            Poll::Pending => {
                std::task::ready!(self.late.as_mut().poll(cx));
                // Not over: whoever did not keep the deadline is told that nobody waits.
                let late = Failure::TooLate { within_ms: self.within_ms, missing: None };
                let late = Event::Failed(late);
                self.meter.handle_event(&late, std::time::Instant::now());
                return Poll::Ready(late);
            }
        };
        let now = std::time::Instant::now();
        self.meter.handle_event(&event, now);
        self.allowance.handle_event(&event, now);
        self.guard.is_over |= matches!(event, Event::End(_) | Event::Failed(_));
        Poll::Ready(event)
    }
}

/// The events of all choices of an answer, as they come.
pub(super) struct Choices {
    choices: Vec<Events>,
    /// Who is asked first, so that nobody always waits for another.
    next: usize,
    span: RequestSpan,
}

impl Choices {
    pub(super) fn new(choices: Vec<Events>, span: RequestSpan) -> Self {
        Self { choices, next: 0, span }
    }

    /// Waits, at most so long, until one of them has something to say, without taking it. A failure of any that is
    /// known by then is all that there is.
    pub(super) async fn first_failure(&mut self, within: Duration) -> Option<Failure> {
        let look = std::future::poll_fn(|cx| {
            for events in &mut self.choices {
                if let Poll::Ready(event) = events.poll_next(cx) {
                    events.first = Some(event);
                }
            }
            match self.choices.iter().any(|events| events.first.is_some()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        let _ = tokio::time::timeout(within, look).await;
        let failure = self.choices.iter_mut().find_map(Events::take_failure);
        failure.iter().for_each(|failure| self.span.handle_failure(failure));
        failure
    }

    /// The next event of anybody. After a failure, and after the end of all, there is none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Event)> {
        let count = self.choices.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            let events = &mut self.choices[index];
            // What has been looked at may be the end of one that is over, and still has to be told.
            if events.guard.is_over && events.first.is_none() {
                continue;
            }
            if let Poll::Ready(event) = events.poll_next(cx) {
                self.next = (index + 1) % count;
                self.span.handle_event(&event);
                return Poll::Ready((index, event));
            }
        }
        Poll::Pending
    }
}

/// An answer as server-sent events.
pub(super) struct EventStream {
    choices: Choices,
    answer: Answer,
    beat: Pin<Box<Sleep>>,
    is_over: bool,
}

impl EventStream {
    pub(super) fn new(choices: Choices, answer: Answer) -> Self {
        Self { choices, answer, beat: Box::pin(sleep(BEAT)), is_over: false }
    }

    /// Writes an event of a choice.
    fn handle_event(&mut self, index: usize, event: Event, out: &mut Vec<u8>) {
        if let Err(refusal) = take(&mut self.answer, index, event) {
            out.extend_from_slice(format!("data: {}\n\n", refusal.json()).as_bytes());
            self.is_over = true;
            return;
        }
        if self.answer.has_news(index) {
            self.answer.write_chunk(index, out);
        }
        self.is_over = self.answer.is_complete();
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let mut out = Vec::new();
        // Whatever is there goes out in one write.
        while !this.is_over && out.len() < WRITE_BYTES {
            match this.choices.poll_next(cx) {
                Poll::Ready((index, event)) => this.handle_event(index, event, &mut out),
                Poll::Pending => break,
            }
        }
        if out.is_empty() {
            if this.is_over {
                return Poll::Ready(None);
            }
            std::task::ready!(this.beat.as_mut().poll(cx));
            out.extend_from_slice(b": the answer is still being computed\n\n");
        }
        this.beat.as_mut().reset(Instant::now() + BEAT);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// The whole answer, or why there is none.
pub(super) async fn collect(mut choices: Choices, mut answer: Answer) -> Result<Vec<u8>, Refusal> {
    while !answer.is_complete() {
        let (index, event) = std::future::poll_fn(|cx| choices.poll_next(cx)).await;
        take(&mut answer, index, event)?;
    }
    Ok(answer.write_whole())
}

/// Tells the answer what has happened to a choice.
fn take(answer: &mut Answer, index: usize, event: Event) -> Result<(), Refusal> {
    let taken = match event {
        Event::Step { token, text } => answer.push(index, token, &text),
        Event::Cached(count) => {
            answer.set_cached(index, count);
            Ok(())
        }
        Event::Missing(missing) => {
            answer.take_missing(index, &missing);
            Ok(())
        }
        Event::Prompt(logprobs) => {
            answer.set_prompt(index, logprobs);
            Ok(())
        }
        Event::End(reason) => answer.end(index, reason),
        Event::Failed(failure) => return Err(failure.into()),
    };
    taken.map_err(|Astray| {
        let message = "the tokens computed now are not those that this stream began with; ask again without \
                       `Last-Event-ID`";
        Refusal::conflict("tokens", message)
    })
}

/// A wait for the cluster's own state that is never long.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::time::timeout(LATE, what).await.map_err(|_| {
        let message =
            format!("the coordinator did not answer within {} s; it may be overloaded", LATE.as_secs());
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_answer", message)
    })
}
