//! Sends spans to a collector: some at a time, and if it is away, later.
//!
//! A shell. It waits for nobody but its collector, and nobody waits for it: while a collector is away spans gather in the tracer's
//! queue, and what is too much is dropped there. After a few tries the oldest are given up.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::otlp;
use super::settings::{Collector, OtlpSettings};
use super::tracer::{Counts, Span, Tracer, Value};

/// Spans of one request to the collector.
const SPANS_MAX: usize = 512;
/// How long spans gather.
const EVERY: Duration = Duration::from_secs(1);
/// How long a collector may take for one request.
const WITHIN: Duration = Duration::from_secs(10);
/// How often a request is tried.
const TRIES_MAX: u32 = 4;
/// Before the second try; before each further one twice as long.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The longest pause that a collector may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long what is left may take when the program ends.
const REST_WITHIN: Duration = Duration::from_secs(2);
/// Before it is tried again then, at least.
const TRY_REST_AGAIN: Duration = Duration::from_millis(100);
/// The most of a response that is read.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Where systems keep the certificates that they believe in.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why spans cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Nobody vouches for the collector.
    #[error("{file}: {why}; give the certificates that vouch for the collector's, in PEM, with --otlp-ca")]
    Certificates {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The library refuses.
    #[error("TLS to the collector: {0}")]
    Tls(#[from] rustls::Error),
}

/// Sends what a tracer takes.
pub struct Exporter {
    collector: Collector,
    tls: Option<TlsConnector>,
    headers: Vec<(axum::http::HeaderName, HeaderValue)>,
    resource: Vec<(&'static str, Value)>,
    spans: mpsc::Receiver<Span>,
    counts: Arc<Counts>,
    is_away: bool,
}

/// What came of a try.
enum Sent {
    /// The collector has them, but for so many that it refused.
    Taken { rejected: u64 },
    /// It may take them later; one that is there has said so itself.
    Later { why: String, after: Option<Duration>, is_there: bool },
    /// It never will.
    Refused { why: String },
}

impl Exporter {
    /// A tracer, and who sends its spans once it runs. `instance` names this process.
    pub fn new(settings: OtlpSettings, instance: u64) -> Result<(Tracer, Self), ExporterError> {
        let OtlpSettings { collector, share, ca, headers, service } = settings;
        let tls = collector.is_https.then(|| connector(ca.as_deref())).transpose()?;
        let (tracer, spans, counts) = Tracer::new(share);
        let resource = vec![
            ("service.name", Value::Text(service)),
            ("service.version", env!("CARGO_PKG_VERSION").into()),
            ("service.instance.id", Value::Text(format!("{instance:016x}"))),
        ];
        Ok((tracer, Self { collector, tls, headers, resource, spans, counts, is_away: false }))
    }

    /// To whom.
    pub fn collector(&self) -> &Collector {
        &self.collector
    }

    /// Sends until `stop`, and then what is left as far as there is time.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut some = Vec::new();
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => break,
                count = self.spans.recv_many(&mut some, SPANS_MAX) => if count == 0 { break },
            }
            let until = Instant::now() + EVERY;
            while some.len() < SPANS_MAX {
                let room = SPANS_MAX - some.len();
                match timeout_at(until, self.spans.recv_many(&mut some, room)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            tokio::select! {
                biased;
                _ = &mut stop => break,
                () = self.send(&some) => some.clear(),
            }
        }
        self.send_rest(some).await;
    }

    /// Sends what is left as far as there is time. A collector that is away is not waited for.
    async fn send_rest(&mut self, mut some: Vec<Span>) {
        let until = Instant::now() + REST_WITHIN;
        loop {
            while some.len() < SPANS_MAX
                && let Ok(span) = self.spans.try_recv()
            {
                some.push(span);
            }
            if some.is_empty() {
                return;
            }
            match timeout_at(until, self.send_to_the_end(&some)).await {
                Ok(Sent::Taken { rejected }) => self.count(some.len(), rejected),
                _ => self.drop_all(some.len()),
            }
            some.clear();
        }
    }

    /// Tries as long as the collector says that it may take them later.
    async fn send_to_the_end(&self, spans: &[Span]) -> Sent {
        loop {
            match self.try_send(spans).await {
                Sent::Later { after, is_there: true, .. } => {
                    tokio::time::sleep(after.unwrap_or_default().max(TRY_REST_AGAIN)).await;
                }
                sent => return sent,
            }
        }
    }

    fn count(&self, all: usize, rejected: u64) {
        let rejected = rejected.min(all as u64);
        self.counts.exported.fetch_add(all as u64 - rejected, Relaxed);
        self.counts.dropped.fetch_add(rejected, Relaxed);
    }

    fn drop_all(&self, count: usize) {
        self.counts.dropped.fetch_add(count as u64, Relaxed);
    }

    /// Sends some spans, or gives them up.
    async fn send(&mut self, spans: &[Span]) {
        let mut pause = TRY_AGAIN;
        for is_last in (1..=TRIES_MAX).map(|tried| tried == TRIES_MAX) {
            match self.try_send(spans).await {
                Sent::Taken { rejected } => {
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(collector = %self.collector, "traces are taken again");
                    }
                    return self.count(spans.len(), rejected);
                }
                Sent::Refused { why } => {
                    tracing::warn!(collector = %self.collector, %why, spans = spans.len(), "traces were refused");
                    return self.drop_all(spans.len());
                }
                Sent::Later { why, after, .. } => {
                    if !std::mem::replace(&mut self.is_away, true) {
                        tracing::warn!(collector = %self.collector, %why, "traces are not taken; requests go on");
                    }
                    if !is_last {
                        tokio::time::sleep(after.unwrap_or(pause).min(PAUSE_MAX)).await;
                        pause *= 2;
                    }
                }
            }
        }
        self.drop_all(spans.len());
    }

    async fn try_send(&self, spans: &[Span]) -> Sent {
        let later = |why: String| Sent::Later { why, after: None, is_there: false };
        match tokio::time::timeout(WITHIN, self.post(spans)).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(why)) => later(why.to_string()),
            Err(_) => later(format!("no answer within {} s", WITHIN.as_secs())),
        }
    }

    /// One request over a connection of its own: there is one in a second at most.
    async fn post(&self, spans: &[Span]) -> Result<Sent, Box<dyn std::error::Error + Send + Sync>> {
        let Collector { host, port, path, .. } = &self.collector;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, *port)).await?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(ServerName::try_from(bare.to_owned())?, stream).await?),
        };
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the sender.
        tokio::spawn(connection);
        let body = otlp::request(&self.resource, spans).to_string();
        let mut request = Request::post(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("phalanx/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))?;
        request.headers_mut().extend(self.headers.iter().cloned());
        let response = sender.send_request(request).await?;
        let (status, after) = (response.status(), retry_after(response.headers()));
        let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
        Ok(match status {
            status if status.is_success() => {
                let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                Sent::Taken { rejected: otlp::rejected(&body) }
            }
            // Those that OTLP has tried again.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Sent::Later { why: status.to_string(), after, is_there: true },
            status => Sent::Refused { why: status.to_string() },
        })
    }
}

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn retry_after(headers: &axum::http::HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What checks a collector's certificate.
fn connector(ca: Option<&Path>) -> Result<TlsConnector, ExporterError> {
    let system = || SYSTEM.map(Path::new).into_iter().find(|file| file.exists());
    let file = ca.or_else(system).unwrap_or(Path::new(SYSTEM[0]));
    let wrong = |why: String| ExporterError::Certificates { file: file.display().to_string(), why };
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(file).map_err(|why| wrong(why.to_string()))? {
        let added = roots.add(cert.map_err(|why| wrong(why.to_string()))?);
        // Of the system's some may be of a kind that is not known.
        if ca.is_some() {
            added.map_err(|why| wrong(why.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(wrong("it has no certificate".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
