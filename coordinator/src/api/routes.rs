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
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::admin;
use super::answer::{Answer, Form};
use super::ask::Asked;
use super::bias;
use super::form::Forms;
use super::keys::{Allowance, Keys};
use super::metrics::{Meter, Metrics, Outcome};
use super::prepare::prepare;
use super::prompt::Encoder;
use super::refusal::{Refusal, json_response, quote};
use super::resume::{self, EventId};
use super::span::RequestSpan;
use super::stream::{Choices, EventStream, Events, Guard, collect, soon};
use super::tokens::{Detokenize, Tokenize};
use super::watch::{self, Pulse};
use super::{Backend, Health, Limits, Served, State};
use crate::data::request::{OnMissing, Priority, Submission};
use crate::generation::{FinishReason, Generation};
use crate::trace::Tracer;

/// How long a stream's status waits for its first event, so that a refusal has a status of its own. Later ones are
/// told within the stream.
const STATUS_WITHIN: Duration = Duration::from_secs(10);
/// What is told to everybody: how it is, and the page, which asks for a key.
const OPEN_PATHS: [&str; 3] = ["/health", "/ready", "/"];
/// How much of a body that is too large is still read, so that its sender reads the refusal and not a reset.
const DRAINED_FACTOR: usize = 4;

/// All that the handlers share.
pub struct App {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) served: Served,
    limits: Limits,
    pub(super) encoder: Encoder,
    pub(super) forms: Forms,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pulse: Pulse,
    /// Without any, everybody may ask.
    keys: Option<Keys>,
    tls: Option<Arc<ServerConfig>>,
    /// Without one nothing is traced.
    tracer: Option<Tracer>,
    /// Seconds since 1970 when it began, which clients expect of a model.
    created: u64,
    /// Makes the names of answers and the seeds of those who name none: keyed at random, and counted.
    random: RandomState,
    count: AtomicU64,
}

impl App {
    /// Serves a model by a backend.
    pub fn new(backend: Arc<dyn Backend>, served: Served, limits: Limits) -> Self {
        let encoder = Encoder::new(Arc::clone(&served.texts));
        let forms = Forms::new(Arc::clone(&served.texts), served.spec.vocab);
        let (created, random) = (unix_seconds(), RandomState::new());
        Self {
            backend,
            served,
            limits,
            encoder,
            forms,
            metrics: Arc::default(),
            pulse: Pulse::default(),
            keys: None,
            tls: None,
            tracer: None,
            created,
            random,
            count: AtomicU64::new(0),
        }
    }

    /// The same for those who have one of these keys.
    pub fn with_keys(self, keys: Option<Keys>) -> Self {
        Self { keys, ..self }
    }

    /// The same over TLS.
    pub fn with_tls(self, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// The same with traces.
    pub fn with_tracer(self, tracer: Option<Tracer>) -> Self {
        Self { tracer, ..self }
    }

    pub(super) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    /// What clients may hold.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A model by name that is not the one served.
    fn check_model(&self, model: Option<&str>) -> Result<(), Refusal> {
        let Some(model) = model.filter(|model| *model != self.served.name) else { return Ok(()) };
        let message = format!("the model served is `{}`, not `{}`", self.served.name, quote(model));
        Err(Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).of("model"))
    }

    /// A number that nobody guesses.
    pub(super) fn random(&self) -> u64 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
        hasher.finish()
    }
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The paths.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/cluster", get(cluster))
        .route("/cluster/drain", post(admin::drain))
        .route("/cluster/undrain", post(admin::undrain))
        .route("/bias", get(bias::current))
        .route("/bias/{digest}", get(bias::known))
        .route("/metrics", get(metrics))
        .route("/cluster/pulse", get(watch::pulse))
        .route("/why", get(watch::why))
        .route("/why/{request}", get(watch::why_request))
        .route("/openapi.json", get(watch::openapi))
        .route("/", get(watch::page))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&app), check_key))
        .with_state(app)
}

/// Lets those through who have a key, where there are keys. Balancers have none, and hear how it is all the same.
async fn check_key(
    Shared(app): Shared<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Some(keys) = app.keys.as_ref().filter(|_| !OPEN_PATHS.contains(&request.uri().path())) {
        let key = keys.find(request.headers())?;
        request.extensions_mut().insert(key);
    }
    Ok(next.run(request).await)
}

async fn no_path(uri: Uri) -> Refusal {
    let message = format!(
        "there is nothing at {}; there are /v1/chat/completions, /v1/completions, /v1/models, /tokenize, \
         /detokenize, /health, /ready, /metrics, /cluster, /bias, /why and, for people, /; /openapi.json has them all",
        quote(uri.path())
    );
    Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {}", quote(uri.path()), quote(method.as_str()));
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Whether every expert has a holder.
async fn health(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    told_health(&app, |state| state == State::Serving).await
}

/// Whether requests are taken, which is what a balancer wants to know: they are too while an expert is waited for.
async fn ready(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    told_health(&app, State::takes_requests).await
}

async fn told_health(app: &App, is_well: impl Fn(State) -> bool) -> Result<Response, Refusal> {
    let Health { state, missing } = soon(app.backend.health()).await?;
    let served = &app.served;
    let body = json!({
        "status": state.name(),
        "missing": missing,
        "model": served.name,
        "numeric_class": served.numeric_class.to_string(),
        "shards": served.spec.shards,
        "config_digest": served.config_digest.to_string(),
        "context_max": served.spec.context_max,
        "has_tokenizer": served.texts.tokenizer.is_some(),
        "max_new_tokens": served.texts.defaults.max_new_tokens,
    });
    if is_well(state) {
        return Ok(json_response(StatusCode::OK, &body));
    }
    let mut response = json_response(StatusCode::SERVICE_UNAVAILABLE, &body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    Ok(response)
}

/// The one model, as OpenAI's clients list it.
fn model_object(app: &App) -> Value {
    json!({"id": app.served.name, "object": "model", "created": app.created, "owned_by": "phalanx",
        "max_model_len": app.served.spec.context_max})
}

async fn models(Shared(app): Shared<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [model_object(&app)]}))
}

async fn model(
    Shared(app): Shared<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    // A name that is no UTF-8 is no model's.
    let name = name.map_or_else(|_| "?".into(), |Path(name)| name);
    app.check_model(Some(&name))?;
    Ok(json_response(StatusCode::OK, &model_object(&app)))
}

async fn tokenize(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let asked = Tokenize::read(&body_of(request, &app.limits).await?)?;
    app.check_model(asked.model.as_deref())?;
    let answer = asked.answer(&app.encoder, &app.served.texts, &app.served.spec).await?;
    Ok(json_response(StatusCode::OK, &answer))
}

async fn detokenize(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let asked = Detokenize::read(&body_of(request, &app.limits).await?)?;
    app.check_model(asked.model.as_deref())?;
    Ok(json_response(StatusCode::OK, &asked.answer(&app.served.texts, &app.served.spec)?))
}

async fn cluster(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    Ok(json_response(StatusCode::OK, &soon(app.backend.cluster()).await?))
}

async fn metrics(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    let spans = app.tracer.as_ref().map(Tracer::counts);
    let text = app.metrics.text(&soon(app.backend.cluster()).await?, spans);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn completions(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    answered(&app, Form::Text, request).await
}

async fn chat(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    answered(&app, Form::Chat, request).await
}

async fn answered(app: &App, form: Form, request: Request) -> Result<Response, Refusal> {
    let started = Instant::now();
    let mut span =
        RequestSpan::begin(app.tracer.as_ref(), form, &app.served.name, request.headers(), started);
    let response = answer(app, form, request, started, &mut span).await;
    response.inspect_err(|refusal| span.handle_refusal(refusal))
}

/// The same; the span goes with the answer once it is under way.
async fn answer(
    app: &App,
    form: Form,
    request: Request,
    started: Instant,
    span: &mut RequestSpan,
) -> Result<Response, Refusal> {
    let allowance = Allowance::begin(request.extensions().get(), started)
        .inspect_err(|_| app.metrics.count(Outcome::Busy))?;
    let asked = ask(app, form, request).await.inspect_err(|_| app.metrics.count(Outcome::Refused))?;
    let (to_do, mut answer, Told { within, is_stream, priority, on_missing }) = asked;
    let generations = match to_do {
        ToDo::Compute(generations) => generations,
        ToDo::Tell(reason) => return Ok(event_stream(Body::from(answer.write_rest(reason)))),
    };
    allowance.take(answer.prompt_tokens(), Instant::now());
    span.set_asked(generations.len(), answer.prompt_tokens());
    let mut choices = Vec::with_capacity(generations.len());
    for (choice, generation) in generations.into_iter().enumerate() {
        let (told, events) = mpsc::channel(Submission::events_max(generation.request().tokens_max));
        let submission = Submission {
            generation,
            priority,
            on_missing,
            deadline: started + within,
            within_ms: within.as_millis() as u64,
            events: told,
            trace: span.of_choice(choice),
        };
        // Whoever was handed in before one that cannot be is cancelled by its guard.
        let guard = submit(app, submission).await?;
        let meter = Meter::new(Arc::clone(&app.metrics), started);
        let within = within.saturating_sub(started.elapsed());
        choices.push(Events::new(events, guard, meter, allowance.clone(), within));
    }
    let mut choices = Choices::new(choices, std::mem::take(span));
    if !is_stream {
        let body = collect(choices, answer).await?;
        return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
    }
    if let Some(failure) = choices.first_failure(STATUS_WITHIN).await {
        return Err(failure.into());
    }
    Ok(event_stream(Body::new(EventStream::new(choices, answer))))
}

fn event_stream(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Says to proxies in nginx's manner that tokens are to be passed on as they come.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

/// What is left of an answer.
pub(super) enum ToDo {
    /// These are to be computed.
    Compute(Vec<Generation>),
    /// Its client has all of it but its end, or that too.
    Tell(Option<FinishReason>),
}

/// How an answer is to be told.
struct Told {
    within: Duration,
    is_stream: bool,
    priority: Priority,
    on_missing: OnMissing,
}

/// What is asked for, with nothing computed yet.
async fn ask(app: &App, form: Form, request: Request) -> Result<(ToDo, Answer, Told), Refusal> {
    let resumed = match request.headers().get(resume::HEADER) {
        Some(id) => Some(EventId::read(id.to_str().unwrap_or_default())?),
        None => None,
    };
    let body = body_of(request, &app.limits).await?;
    // A number that survives JavaScript, in which numbers have 53 bits.
    let seed = resumed.map_or_else(|| app.random() >> 11, |id| id.stream.seed);
    let asked = Asked::read(form, &body, seed)?;
    drop(body);
    app.check_model(asked.model.as_deref())?;
    check_health(&soon(app.backend.health()).await?)?;
    let Asked { deadline: within, stream: is_stream, priority, on_missing, .. } = asked;
    let told = Told { within, is_stream, priority, on_missing };
    let (to_do, answer) = prepare(app, form, asked, resumed).await?;
    Ok((to_do, answer, told))
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

/// The body of a request, which should be JSON.
pub(super) async fn body_of(request: Request, limits: &Limits) -> Result<Vec<u8>, Refusal> {
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    read_body(&parts.headers, body, limits).await
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
