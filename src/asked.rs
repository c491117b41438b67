//! A request to a coordinator of this process, of ids and without texts: what measurements and rehearsals ask.

use std::time::{Duration, Instant};

use coordinator::api::Backend;
use coordinator::data::request::{Event, OnMissing, Priority, Submission};
use coordinator::generation::{Generation, Request, Token};
use coordinator::start::Coordinator;
use model::text::StopStream;
use tokio::sync::mpsc;

use crate::Failure;

/// Longer than any of their answers takes.
const WITHIN: Duration = Duration::from_secs(600);

/// A request that was handed in.
pub(crate) struct Asked(mpsc::Receiver<Event>);

impl Asked {
    /// Hands it in.
    pub(crate) async fn hand_in(coordinator: &Coordinator, request: Request) -> Result<Self, Failure> {
        let (events, heard) = mpsc::channel(Submission::events_max(request.tokens_max));
        let submission = Submission {
            trace: None,
            generation: Generation::new(request, None, StopStream::new(Vec::new())?),
            priority: Priority::default(),
            on_missing: OnMissing::Exact,
            deadline: Instant::now() + WITHIN,
            within_ms: WITHIN.as_millis() as u64,
            events,
        };
        coordinator.submit(submission).await;
        Ok(Self(heard))
    }

    /// The next token, or none when the answer is complete.
    pub(crate) async fn next(&mut self) -> Result<Option<Token>, Failure> {
        loop {
            match self.0.recv().await {
                Some(Event::Step { token: Some(token), .. }) => return Ok(Some(token)),
                Some(
                    Event::Step { token: None, .. } | Event::Cached(_) | Event::Missing(_) | Event::Prompt(_),
                ) => {}
                Some(Event::End(_)) => return Ok(None),
                Some(Event::Failed(why)) => return Err(why.to_string().into()),
                None => return Err("a request was dropped: the coordinator has ended".into()),
            }
        }
    }
}
