//! A request on its way, and what its client hears of it.
//!
//! Pure data but for the channel to the client, which never holds up the data plane: it has room for all that an
//! answer may say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::sampler::Logprobs;
use tokio::sync::mpsc;

pub use super::scheduler::{Priority, RequestId};
use super::traced::{ChoiceTrace, Phases};
use super::trunk::Sampled;
use crate::generation::{FinishReason, Generation, Token};

/// What becomes of a row whose expert has no holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMissing {
    /// It waits for one, up to the deadline: the answer is the plain loop's.
    #[default]
    Exact,
    /// It goes on without it, and the answer says so.
    Drop,
}

/// An expert that rows of an answer went on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Of the model.
    pub layer: u32,
    /// Of the layer.
    pub expert: u32,
    /// How many rows.
    pub rows: u64,
}

/// What a client hears.
#[derive(Debug)]
pub enum Event {
    /// A step of the answer.
    Step {
        /// The token, unless the answer ended before it.
        token: Option<Token>,
        /// Text that may be shown.
        text: String,
    },
    /// So many positions of the prompt did not have to be computed. At most once, and before the first step.
    Cached(usize),
    /// What was computed since the last step went on without these. Said before the step that it bears on.
    Missing(Vec<Missing>),
    /// How likely each token of the prompt but the first was, if that was asked for. Once, and before the first step.
    Prompt(Vec<Logprobs>),
    /// The answer is complete.
    End(FinishReason),
    /// There will be none, or no more of it.
    Failed(Failure),
}

/// Why an answer ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It can never be computed here.
    #[error("{0}")]
    Refused(String),
    /// Too many wait already.
    #[error("{waiting} requests wait already; try again in {} s", .retry_after.as_secs())]
    Busy {
        /// How many.
        waiting: usize,
        /// When there should be room.
        retry_after: Duration,
    },
    /// It took longer than it was given.
    #[error("the answer was not complete within {within_ms} ms{}", waits_for(.missing))]
    TooLate {
        /// Its time.
        within_ms: u64,
        /// What it waited for, if that is known.
        missing: Option<String>,
    },
    /// A row of it cannot be computed.
    #[error("{0}")]
    Row(String),
    /// The program is ending.
    #[error("the coordinator is stopping")]
    Stopping,
}

fn waits_for(missing: &Option<String>) -> String {
    missing.as_ref().map(|missing| format!(": {missing}")).unwrap_or_default()
}

/// A request that is handed in.
pub struct Submission {
    /// The answer that has not begun.
    pub generation: Generation,
    /// How urgent it is.
    pub priority: Priority,
    /// What becomes of rows whose expert has no holder.
    pub on_missing: OnMissing,
    /// When it is over at the latest, and how long that was from the beginning, for the message.
    pub deadline: Instant,
    /// How long that was from the beginning.
    pub within_ms: u64,
    /// Who hears of it.
    pub events: mpsc::Sender<Event>,
    /// The trace that it is a part of, if anybody wants one.
    pub trace: Option<ChoiceTrace>,
}

impl Submission {
    /// How many events an answer of so many tokens may have: the room that its channel needs.
    pub fn events_max(tokens_max: usize) -> usize {
        // A step for each token, and what it lacks; then text that was held back, what was found computed, how likely the
        // prompt was, and the end.
        2 * tokens_max + 5
    }
}

/// A request that was taken.
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) submission: Submission,
    /// Positions that it found computed when it last began.
    pub(super) cached: usize,
    /// Whether a token was sampled since it came.
    pub(super) has_token: bool,
    /// What rows went on without, by layer and expert, that was not said yet.
    pub(super) missing: BTreeMap<(u32, u32), u64>,
    /// What is known of its prompt, if that is wanted and was not told yet.
    pub(super) scores: Option<Scores>,
    /// What its trace is told of it.
    pub(super) phases: Option<Phases>,
}

/// How likely the tokens of a prompt were, as that becomes known, and the token that waits for it.
#[derive(Debug, Default)]
pub(super) struct Scores {
    known: Vec<Option<Logprobs>>,
    missing: usize,
    pub(super) first: Option<Sampled>,
}

impl Scores {
    /// Nothing is known of a prompt of so many tokens.
    pub(super) fn new(prompt_tokens: usize) -> Self {
        let missing = prompt_tokens - 1;
        Self { known: vec![None; missing], missing, first: None }
    }

    /// Of the token at a position, which is not the first.
    pub(super) fn handle_scored(&mut self, position: u32, logprobs: Logprobs) {
        let place = &mut self.known[position as usize - 1];
        self.missing -= usize::from(place.is_none());
        *place = Some(logprobs);
    }

    /// Whether all is known.
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// All of it.
    pub(super) fn into_logprobs(self) -> Vec<Logprobs> {
        self.known.into_iter().flatten().collect()
    }
}

impl Request {
    /// Says what was left out since it was said last.
    pub(super) fn tell_missing(&mut self, news: &mut News) {
        if !self.missing.is_empty() {
            let missing = std::mem::take(&mut self.missing).into_iter();
            let missing = missing.map(|((layer, expert), rows)| Missing { layer, expert, rows });
            self.tell(news, Event::Missing(missing.collect()));
        }
    }

    /// Whether its prompt is to be looked at: before the first token.
    pub(super) fn wants_scores(&self) -> bool {
        let generation = &self.submission.generation;
        generation.request().prompt_logprobs && generation.tokens().is_empty()
    }

    /// Has the client told. False: nobody listens any more. When it hears of the end, the trace knows of it too.
    pub(super) fn tell(&mut self, news: &mut News, event: Event) -> bool {
        if matches!(event, Event::End(_) | Event::Failed(_)) {
            self.phases = None;
        }
        let events = &self.submission.events;
        news.0.push((events.clone(), event));
        !events.is_closed()
    }
}

/// What clients are about to hear: once the trunk has its next batch, since a word to a client wakes who serves it.
#[derive(Debug, Default)]
pub(super) struct News(Vec<(mpsc::Sender<Event>, Event)>);

impl News {
    /// Tells them.
    pub(super) fn tell(&mut self) {
        for (events, event) in self.0.drain(..) {
            // Full cannot be, by `events_max`; a client that is gone is found out as the next is pushed.
            let _ = events.try_send(event);
        }
    }
}
