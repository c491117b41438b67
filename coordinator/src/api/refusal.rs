//! A refusal in the shape that OpenAI's clients read, with the status that says whose turn it is.
//!
//! Pure but for becoming a response.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::data::request::Failure;

/// How much of what a client sent a message repeats, in characters.
const QUOTED_MAX: usize = 60;
/// After how long a client may try again where it is too early and nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For programs.
    pub(super) code: &'static str,
    /// For people.
    pub(super) message: String,
    /// The parameter that is to be changed.
    pub(super) param: Option<String>,
    /// When it may be tried again, where that is known.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A parameter's value is wrong.
    pub(super) fn value(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).of(param)
    }

    /// A parameter, or this value of it, is not supported.
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).of(param)
    }

    /// What was begun cannot be gone on with: `what` differs.
    pub(super) fn conflict(what: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "resume_conflict", message).of(what)
    }

    /// Names the parameter.
    pub(super) fn of(mut self, param: &str) -> Self {
        self.param = Some(quote(param));
        self
    }

    /// Says when it may be tried again.
    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Its JSON, which is also what an answer says that has begun.
    pub(super) fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let retry_after = match failure {
            Failure::Busy { retry_after, .. } => Some(retry_after),
            _ => None,
        };
        let (status, code) = match failure {
            Failure::Refused(_) => (StatusCode::BAD_REQUEST, "refused"),
            Failure::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            Failure::TooLate { .. } => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            Failure::Row(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not_computable"),
            Failure::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        };
        Self { retry_after, ..Self::new(status, code, failure.to_string()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.json());
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let after = self.retry_after.unwrap_or(RETRY_AFTER);
            let seconds = HeaderValue::from(after.as_secs_f64().ceil() as u64);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response of JSON.
pub(super) fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("what is told to clients has text as keys");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The beginning of what a client sent.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
