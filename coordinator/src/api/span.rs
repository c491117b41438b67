//! The span of a whole request, from its arrival to its last byte or to whatever ended it.
//!
//! Names are those of OpenTelemetry's conventions for models and HTTP where it has any. Nothing that a client said is in it.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, StatusCode};

use super::answer::Form;
use super::metrics::Outcome;
use super::refusal::Refusal;
use crate::data::request::{Event, Failure};
use crate::data::traced::ChoiceTrace;
use crate::trace::{Parent, Trace, Tracer, Value};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// A request that is traced, or none. Dropped, it is over.
#[derive(Debug, Default)]
pub(super) struct RequestSpan(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    trace: Arc<Trace>,
    form: Form,
    model: String,
    prompt_tokens: usize,
    choices: usize,
    tokens: usize,
    finishes: Vec<String>,
    status: StatusCode,
    error: Option<String>,
}

impl RequestSpan {
    /// A request came.
    pub(super) fn begin(
        tracer: Option<&Tracer>,
        form: Form,
        model: &str,
        headers: &HeaderMap,
        now: Instant,
    ) -> Self {
        let Some(tracer) = tracer else { return Self(None) };
        let Some(trace) = tracer.begin(parent(headers), now, SystemTime::now()) else { return Self(None) };
        Self(Some(Box::new(Open {
            trace,
            form,
            model: model.to_owned(),
            prompt_tokens: 0,
            choices: 0,
            tokens: 0,
            finishes: Vec::new(),
            status: StatusCode::OK,
            error: None,
        })))
    }

    /// It is computed: so many choices of prompts of so many tokens together.
    pub(super) fn set_asked(&mut self, choices: usize, prompt_tokens: usize) {
        if let Some(open) = &mut self.0 {
            (open.choices, open.prompt_tokens) = (choices, prompt_tokens);
        }
    }

    /// What a choice is handed in with.
    pub(super) fn of_choice(&self, choice: usize) -> Option<ChoiceTrace> {
        self.0.as_ref().map(|open| ChoiceTrace { trace: Arc::clone(&open.trace), choice })
    }

    /// Something happened to one of its choices.
    pub(super) fn handle_event(&mut self, event: &Event) {
        let Some(open) = &mut self.0 else { return };
        match event {
            Event::Step { token, .. } => open.tokens += usize::from(token.is_some()),
            Event::End(reason) => open.finishes.push(reason.name().to_owned()),
            Event::Failed(failure) => self.handle_failure(failure),
            Event::Cached(_) | Event::Prompt(_) | Event::Missing(_) => {}
        }
    }

    /// It cannot be answered, or not to its end.
    pub(super) fn handle_failure(&mut self, failure: &Failure) {
        if let Some(open) = &mut self.0 {
            open.error.get_or_insert_with(|| Outcome::from(failure).name().to_owned());
        }
    }

    /// It is refused, with a status of its own.
    pub(super) fn handle_refusal(&mut self, refusal: &Refusal) {
        if let Some(open) = &mut self.0 {
            open.status = refusal.status;
            open.error.get_or_insert_with(|| refusal.code.to_owned());
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { trace, form, model, prompt_tokens, choices, tokens, finishes, status, error } = *open;
        let (operation, path) = match form {
            Form::Text => ("text_completion", "/v1/completions"),
            Form::Chat => ("chat", "/v1/chat/completions"),
        };
        // Whoever wants no more of it goes away before all of it is there.
        let is_cut = finishes.len() < choices;
        let error = error.or_else(|| is_cut.then(|| Outcome::Cancelled.name().to_owned()));
        let name = format!("{operation} {model}");
        let mut told: Vec<(&'static str, Value)> = vec![
            ("gen_ai.operation.name", operation.into()),
            ("gen_ai.request.model", Value::Text(model)),
            ("gen_ai.usage.input_tokens", prompt_tokens.into()),
            ("gen_ai.usage.output_tokens", tokens.into()),
            ("gen_ai.response.finish_reasons", Value::Texts(finishes)),
            ("http.request.method", "POST".into()),
            ("url.path", path.into()),
            ("http.response.status_code", u64::from(status.as_u16()).into()),
        ];
        if let Some(error) = &error {
            told.push(("error.type", error.as_str().into()));
        }
        if trace.dispatches_untold() > 0 {
            told.push(("phalanx.dispatches_untold", trace.dispatches_untold().into()));
        }
        trace.tell_request(name, Instant::now(), told, error);
    }
}

/// The span of whoever asks. Said twice it is not known.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    let mut parents = headers.get_all(PARENT).iter();
    let (parent, None) = (parents.next()?, parents.next()) else { return None };
    let state: Vec<&str> = headers.get_all(STATE).iter().filter_map(|value| value.to_str().ok()).collect();
    Parent::read(parent.to_str().ok()?, Some(&state.join(",")))
}
