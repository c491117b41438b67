//! The paths, and what happens on each.
//!
//! A shell: it reads bodies within their bounds, asks the backend, and hands over to `ask`, `answer` and `stream`,
//! which decide.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use model::plain::{check_context, check_tokens};
use model::text::StopStream;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::answer::{Answer, Head, Wanted};
use super::ask::{Asked, Prompt};
use super::refusal::{Refusal, json_response, quote};
use super::stream::{EventStream, Events, Guard, collect, soon};
use super::{Backend, Health, Limits, Served, State};
use crate::data::request::Submission;
use crate::generation::{Generation, Request as Answering};

/// How long a stream's status waits for its first event, so that a refusal has a status of its own. Later ones are
/// told within the stream.
const STATUS_WITHIN: Duration = Duration::from_secs(10);
/// From so many bytes on a prompt is made ids beside the threads that serve clients: some 2 ms of work.
const ENCODED_ASIDE: usize = 8 << 10;
/// So many of them at once.
const ENCODINGS_MAX: usize = 2;
/// How much of a body that is too large is still read, so that its sender reads the refusal and not a reset.
const DRAINED_FACTOR: usize = 4;

/// All that the handlers share.
pub struct App {
    backend: Arc<dyn Backend>,
    served: Served,
    limits: Limits,
    encodings: Arc<Semaphore>,
    /// Makes the names of answers and the seeds of those who name none: keyed at random, and counted.
    random: RandomState,
    count: AtomicU64,
}

impl App {
    /// Serves a model by a backend.
    pub fn new(backend: Arc<dyn Backend>, served: Served, limits: Limits) -> Self {
        let (encodings, random) = (Arc::new(Semaphore::new(ENCODINGS_MAX)), RandomState::new());
        Self { backend, served, limits, encodings, random, count: AtomicU64::new(0) }
    }

    /// What clients may hold.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn random(&self) -> u64 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }
}

/// The paths.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/health", get(health))
        .route("/cluster", get(cluster))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .with_state(app)
}

async fn no_path(uri: Uri) -> Refusal {
    let message =
        format!("there is nothing at {}; there are /v1/completions, /health and /cluster", quote(uri.path()));
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {}", quote(uri.path()), quote(method.as_str()));
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

async fn health(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    let Health { state, missing } = soon(app.backend.health()).await?;
    let served = &app.served;
    let body = json!({
        "status": state.name(),
        "missing": missing,
        "model": served.name,
        "numeric_class": served.numeric_class.to_string(),
        "config_digest": served.config_digest.to_string(),
        "context_max": served.spec.context_max,
        "has_tokenizer": served.texts.tokenizer.is_some(),
        "max_new_tokens": served.texts.defaults.max_new_tokens,
    });
    Ok(match state {
        State::Serving => json_response(StatusCode::OK, &body),
        _ => {
            let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, &body);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
            response
        }
    })
}

async fn cluster(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    Ok(json_response(StatusCode::OK, &soon(app.backend.cluster()).await?))
}

async fn completions(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let body = read_body(&parts.headers, body, &app.limits).await?;
    // A number that survives JavaScript, in which numbers have 53 bits.
    let asked = Asked::read(&body, app.random() >> 11)?;
    drop(body);
    if let Some(model) = asked.model.as_ref().filter(|model| **model != app.served.name) {
        let message = format!("the model served is `{}`, not `{}`", app.served.name, quote(model));
        return Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).of("model"));
    }
    check_health(&soon(app.backend.health()).await?)?;
    let within = asked.deadline;
    let (generation, answer, is_stream) = prepare(&app, asked).await?;
    let (told, events) = mpsc::channel(Submission::events_max(generation.request().tokens_max));
    let submission = Submission {
        generation,
        deadline: started + within,
        within_ms: within.as_millis() as u64,
        events: told,
    };
    let guard = submit(&app, submission).await?;
    let mut events = Events::new(events, guard, within.saturating_sub(started.elapsed()));
    if !is_stream {
        let body = collect(events, answer).await?;
        return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
    }
    events.wait_first(STATUS_WITHIN).await;
    if let Some(failure) = events.take_failure() {
        return Err(failure.into());
    }
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Says to proxies in nginx's manner that tokens are to be passed on as they come.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::new(EventStream::new(events, answer))).into_response())
}

/// Hands a request in. In a task of its own, so that a client who goes away meanwhile is noticed all the same: then
/// nobody takes the guard, and the guard cancels.
async fn submit(app: &App, submission: Submission) -> Result<Guard, Refusal> {
    let backend = Arc::clone(&app.backend);
    let submitted = tokio::spawn(async move {
        let id = backend.submit(submission).await;
        Guard { backend, id, is_over: false }
    });
    soon(submitted).await?.map_err(|_| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "lost", "the request was lost while it was handed in")
    })
}

fn check_health(health: &Health) -> Result<(), Refusal> {
    if health.state.takes_requests() {
        return Ok(());
    }
    let missing = match health.missing.as_slice() {
        [] => String::new(),
        missing => format!(": {}", missing.join("; ")),
    };
    let message = format!("the cluster is {}{missing}", health.state.name());
    Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "not_serving", message))
}

/// A page of a browser may send texts and forms to this machine without asking, but not JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = given.map(|given| given.split(';').next().unwrap_or("").trim());
    match kind {
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => {
            let message = "the body should be JSON: send the header `Content-Type: application/json`";
            Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message))
        }
    }
}

/// A body within its bounds of bytes and time.
async fn read_body(headers: &HeaderMap, mut body: Body, limits: &Limits) -> Result<Vec<u8>, Refusal> {
    let most = limits.body_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let drained = most.saturating_mul(DRAINED_FACTOR);
    if length.is_some_and(|length: usize| length > drained) {
        return Err(too_large(most));
    }
    let reading = async {
        let (mut bytes, mut count) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                let message = "the body ended before it was complete";
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "body_cut", message));
            };
            let Some(data) = frame.data_ref() else { continue };
            count += data.len();
            if count <= most {
                bytes.extend_from_slice(data);
            } else if count > drained {
                break;
            } else {
                bytes = Vec::new();
            }
        }
        if count > most { Err(too_large(most)) } else { Ok(bytes) }
    };
    tokio::time::timeout(limits.body_within, reading).await.unwrap_or_else(|_| {
        let message = format!("the body was not complete within {} s", limits.body_within.as_secs_f64());
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_late", message))
    })
}

fn too_large(most: usize) -> Refusal {
    let message = format!("the body is larger than {most} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

/// Makes an answer that has not begun, and whoever tells it.
async fn prepare(app: &App, asked: Asked) -> Result<(Generation, Answer, bool), Refusal> {
    let Served { name, spec, texts, .. } = &app.served;
    let prompt = prompt_ids(app, asked.prompt).await?;
    if prompt.is_empty() {
        return Err(Refusal::value("prompt", "`prompt` is empty: it has no token to continue"));
    }
    check_tokens(spec, &prompt).map_err(|error| Refusal::value("prompt", error.to_string()))?;
    check_context(spec, prompt.len()).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", error.to_string()).of("prompt")
    })?;
    let fields = asked.sampling.fields();
    if let Some((id, _)) = fields.logit_bias.iter().find(|(id, _)| *id as usize >= spec.vocab) {
        let message = format!("`logit_bias` names token {id}; the vocabulary has {} tokens", spec.vocab);
        return Err(Refusal::value("logit_bias", message));
    }
    if !asked.stop.is_empty() {
        texts.tokenizer().map_err(|error| Refusal::value("stop", error.to_string()))?;
    }
    let wanted = Wanted {
        logprobs: asked.logprobs.is_some(),
        token_ids: asked.return_token_ids,
        usage: asked.include_usage,
    };
    let head = Head {
        id: format!("cmpl-{:016x}", app.random()),
        object: "text_completion",
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        model: name.clone(),
        system_fingerprint: app.served.fingerprint(),
    };
    let skip_special = !asked.ignore_eos;
    let tokenizer = texts.tokenizer.clone();
    let text = tokenizer.as_ref().map(|tokenizer| tokenizer.stream(skip_special));
    let answer = Answer::new(head, wanted, fields.seed, prompt.clone(), tokenizer, skip_special);
    let stop = StopStream::new(asked.stop).map_err(|error| Refusal::value("stop", error.to_string()))?;
    let request = Answering {
        // The last token is chosen from the logits of the last position and not computed itself.
        tokens_max: asked.tokens_max.min(spec.context_max + 1 - prompt.len()),
        prompt,
        sampling: asked.sampling,
        end_ids: if asked.ignore_eos { Vec::new() } else { texts.end_ids() },
        logprobs: asked.logprobs,
    };
    Ok((Generation::new(request, text, stop), answer, asked.stream))
}

async fn prompt_ids(app: &App, prompt: Prompt) -> Result<Vec<u32>, Refusal> {
    let text = match prompt {
        Prompt::Ids(ids) => return Ok(ids),
        Prompt::Text(text) => text,
    };
    let tokenizer =
        app.served.texts.tokenizer().map_err(|error| Refusal::value("prompt", error.to_string()))?;
    let encoded = if text.len() < ENCODED_ASIDE {
        tokenizer.encode(&text, true)
    } else {
        let tokenizer = tokenizer.clone();
        let _permit = app.encodings.acquire().await.expect("it is never closed");
        let encoding = tokio::task::spawn_blocking(move || tokenizer.encode(&text, true));
        encoding.await.map_err(|_| Refusal::value("prompt", "`prompt` cannot be made token ids"))?
    };
    encoded.map_err(|error| Refusal::value("prompt", error.to_string()))
}
