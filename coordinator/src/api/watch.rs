//! What people watch a cluster with: the page, its pulse, and why a request waits.
//!
//! A shell. Nothing here costs anything while nobody looks. The page asks again each second rather than being sent a stream:
//! whoever reads slowly holds up himself alone, a page that is hidden asks for nothing, and after a break there is nothing
//! to be resumed. However many watch, a pulse is made but a few times a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use super::refusal::{Refusal, json_response, quote};
use super::routes::App;
use super::stream::soon;
use super::{openapi, page};
use crate::data::request::RequestId;

/// For so long a pulse is as good as a new one.
const FRESH: Duration = Duration::from_millis(250);

/// The pulse that was made last.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Held while one is made, so that many who ask at once wait for one.
    made: Mutex<Option<(Instant, Bytes)>>,
}

pub(super) async fn page(Shared(app): Shared<Arc<App>>) -> Response {
    page::response(&format!("{:016x}{:016x}", app.random(), app.random()))
}

pub(super) async fn pulse(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    let mut made = app.pulse.made.lock().await;
    let fresh = made.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
    let body = match fresh {
        Some((_, body)) => body.clone(),
        None => {
            let mut pulse = soon(app.backend.pulse()).await?;
            pulse["latency"] = app.metrics.latency();
            let body = Bytes::from(pulse.to_string());
            *made = Some((Instant::now(), body.clone()));
            body
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response())
}

pub(super) async fn why(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    Ok(json_response(StatusCode::OK, &soon(app.backend.why(None)).await?))
}

/// One request's alone.
pub(super) async fn why_request(
    Shared(app): Shared<Arc<App>>,
    request: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let given = request.map_or_else(|_| "?".into(), |Path(request)| request);
    let not_live = || {
        let message = format!("request {} is not live: it has ended, or never was; see /why", quote(&given));
        Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
    };
    let request = given.parse().map_err(|_| not_live())?;
    let why = soon(app.backend.why(Some(RequestId(request)))).await?;
    match why["requests"].as_array().is_none_or(Vec::is_empty) {
        true => Err(not_live()),
        false => Ok(json_response(StatusCode::OK, &why)),
    }
}

/// The document of all this for programs.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::DOCUMENT).into_response()
}
