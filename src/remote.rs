//! A coordinator that is reached over HTTP: what `generate --cluster`, `chat`, `status`, `drain` and
//! `placement` share.
//!
//! A small client of our own API, over hyper, which the server brings along anyway. Every wait has a bound, and every message says
//! what probably happened and what to try next.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use crate::Failure;
use crate::access::Access;

/// Where a coordinator's API is by default.
pub(crate) const URL: &str = "http://127.0.0.1:8080";

/// To reach a machine that is there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest silence: a coordinator says at least every 15 s that it lives.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The largest answer that is taken: the state of thousands of experts is some megabytes.
const BODY_BYTES_MAX: usize = 64 << 20;
/// How often in a row a stream that was cut is gone on with in vain.
const TRIES_MAX: u32 = 6;
/// Before the first of these tries; before each further one twice as long: some six seconds in all, in which a coordinator
/// that was restarted is there again.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How often a cluster that loads is asked how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The address of a coordinator's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterUrl {
    is_https: bool,
    host: String,
    port: u16,
    /// What comes before our paths: nothing, or a proxy's.
    prefix: String,
}

impl ClusterUrl {
    /// Host and port.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for ClusterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.prefix)
    }
}

/// Reads `http://HOST:PORT` or `https://HOST:PORT`, for the command line.
pub(crate) fn cluster_url(text: &str) -> Result<ClusterUrl, String> {
    let wrong = || format!("`{text}` is not the URL of a coordinator; write for example {URL}");
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = with_scheme.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|host| !host.is_empty());
    // A port that is no port is not passed over.
    let says_port = uri.authority().is_some_and(|authority| {
        let behind_name = authority.as_str().rsplit('@').next().unwrap_or_default();
        behind_name.strip_prefix(authority.host()).is_some_and(|rest| rest.starts_with(':'))
    });
    if says_port && uri.port_u16().is_none() {
        return Err(wrong());
    }
    match (uri.scheme_str(), host, uri.query()) {
        (Some(scheme @ ("http" | "https")), Some(host), None) => Ok(ClusterUrl {
            is_https: scheme == "https",
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 }),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        }),
        _ => Err(wrong()),
    }
}

/// What `/health` says.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) model: String,
    pub(crate) numeric_class: String,
    /// Shards of every expert.
    pub(crate) shards: usize,
    pub(crate) config_digest: String,
    pub(crate) has_tokenizer: bool,
    pub(crate) max_new_tokens: Option<usize>,
}

/// A coordinator.
pub(crate) struct Remote {
    url: ClusterUrl,
    authorization: Option<HeaderValue>,
    /// For https.
    tls: Option<TlsConnector>,
    runtime: Runtime,
    /// Whoever asks does not want to hear of answers that were cut and went on.
    is_quiet: bool,
}

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Remote {
    pub(crate) fn new(url: &ClusterUrl, access: &Access) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tls = url.is_https.then(|| access.connector()).transpose()?;
        Ok(Self { url: url.clone(), authorization: access.authorization(), tls, runtime, is_quiet: false })
    }

    /// The same, that says nothing of answers that were cut and went on.
    pub(crate) fn quiet(self) -> Self {
        Self { is_quiet: true, ..self }
    }

    pub(crate) fn url(&self) -> &ClusterUrl {
        &self.url
    }

    /// The state of the cluster, within [`Remote::wait`]; an error if nobody tells it now.
    pub(crate) async fn cluster_now(&self) -> Result<Value, Failure> {
        let response = self.send("GET", "/cluster", None, None).await?;
        Ok(serde_json::from_slice(&self.collect(response).await?)?)
    }

    /// A whole answer to a request, within [`Remote::wait`]; a refusal is an error.
    pub(crate) async fn answer_now(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let response = self.send("POST", path, Some(body.to_string()), None).await?;
        let status = response.status();
        let body = serde_json::from_slice(&self.collect(response).await?).unwrap_or(Value::Null);
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// The state of the cluster.
    pub(crate) fn cluster(&self) -> Result<Value, Failure> {
        let (status, state) = self.get("/cluster")?;
        match status {
            StatusCode::OK if state.get("state").is_some() => Ok(state),
            StatusCode::OK => Err(self.stranger("its /cluster has no state")),
            _ => Err(self.refusal(status, &state)),
        }
    }

    /// What a live request waits for, or each of them.
    pub(crate) fn why(&self, request: Option<u64>) -> Result<Value, Failure> {
        let path = request.map_or_else(|| "/why".to_owned(), |request| format!("/why/{request}"));
        match self.get(&path)? {
            (StatusCode::OK, why) => Ok(why),
            (status, why) => Err(self.refusal(status, &why)),
        }
    }

    /// Asks for something to be done, and gives what is said to it.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        match self.ask("POST", path, Some(body.to_string()))? {
            (StatusCode::OK, answer) => Ok(answer),
            (status, answer) => Err(self.refusal(status, &answer)),
        }
    }

    /// Waits until requests are taken, and says on standard error what is waited for.
    pub(crate) fn wait_until_served(&self, within: Duration) -> Result<Served, Failure> {
        let start = Instant::now();
        let mut said = String::new();
        loop {
            let (status, health) = self.get("/health")?;
            let Some(state) = health["status"].as_str() else {
                let is_ours = health.get("error").is_some();
                return Err(if is_ours {
                    self.refusal(status, &health)
                } else {
                    self.stranger("it has no /health")
                });
            };
            let missing = health["missing"].as_array().map_or(&[][..], Vec::as_slice);
            let missing: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
            let missing = missing.join("; ");
            match state {
                "serving" => return self.served(&health),
                "waiting" => {
                    eprintln!("note: the cluster waits for experts ({missing}); the answer may too");
                    return self.served(&health);
                }
                "loading" if start.elapsed() < within => {
                    let say = format!("waiting for the cluster, it is loading: {missing}");
                    if say != said {
                        eprintln!("{say}");
                        said = say;
                    }
                    std::thread::sleep(ASK_AGAIN);
                }
                "loading" if within.is_zero() => {
                    return Err(
                        format!("{} takes no requests yet, it is loading: {missing}", self.url).into()
                    );
                }
                "loading" => {
                    let message = format!(
                        "{} is still loading after {} s: {missing}; see `phalanx status --cluster {}`, or give it \
                         longer with --wait",
                        self.url,
                        within.as_secs(),
                        self.url
                    );
                    return Err(message.into());
                }
                state => return Err(format!("{} takes no requests: it is {state}", self.url).into()),
            }
        }
    }

    fn served(&self, health: &Value) -> Result<Served, Failure> {
        let text = |key: &str| health[key].as_str().map(str::to_owned);
        match (text("model"), text("numeric_class"), text("config_digest")) {
            (Some(model), Some(numeric_class), Some(config_digest)) => Ok(Served {
                model,
                numeric_class,
                shards: health["shards"].as_u64().map_or(1, |count| count as usize),
                config_digest,
                has_tokenizer: health["has_tokenizer"].as_bool().unwrap_or(true),
                max_new_tokens: health["max_new_tokens"].as_u64().map(|count| count as usize),
            }),
            _ => Err(self.stranger("its /health names no model")),
        }
    }

    /// Waits for something that needs this client's runtime.
    pub(crate) fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// Asks for a stream of events and takes them until it is told that the last has come.
    pub(crate) fn stream(
        &self,
        path: &str,
        body: &Value,
        take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.wait(self.events(path, body, take))
    }

    /// The same within [`Remote::wait`]; whoever drops it ends the answer. A stream that is cut after an event with an id is gone
    /// on with after that event, as if nothing had been.
    pub(crate) async fn events(
        &self,
        path: &str,
        body: &Value,
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (mut last, mut tries) = (None, 0);
        loop {
            let before = last.clone();
            let why = match self.events_after(path, body, &mut last, &mut take).await {
                Ok(()) => return Ok(()),
                Err(Broken::ForGood(why)) => return Err(why),
                Err(Broken::OnTheWay(why)) => why,
            };
            tries = if last == before { tries } else { 0 };
            if last.is_none() || tries == TRIES_MAX {
                return Err(why);
            }
            let pause = TRY_AGAIN * 2_u32.pow(tries);
            tries += 1;
            if self.is_quiet {
                tokio::time::sleep(pause).await;
                continue;
            }
            eprintln!(
                "note: the answer of {} was cut; going on where it was, try {tries} of {TRIES_MAX}",
                self.url
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// One try at it, from after event `last` on, which becomes the last one taken.
    async fn events_after(
        &self,
        path: &str,
        body: &Value,
        last: &mut Option<String>,
        take: &mut impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Broken> {
        let sent = self.send("POST", path, Some(body.to_string()), last.as_deref()).await;
        let response = sent.map_err(Broken::OnTheWay)?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = self.collect(response).await.map_err(Broken::OnTheWay)?;
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let refusal = self.refusal(status, &body);
            return Err(match status {
                StatusCode::SERVICE_UNAVAILABLE => Broken::OnTheWay(refusal),
                _ => Broken::ForGood(refusal),
            });
        }
        let mut body = response.into_body();
        let mut lines = Lines::default();
        let mut id = None;
        loop {
            let frame = match self.in_time(body.frame()).await.map_err(Broken::OnTheWay)? {
                None => return Err(Broken::OnTheWay(self.cut("it ended"))),
                Some(Err(error)) => return Err(Broken::OnTheWay(self.cut(&error.to_string()))),
                Some(Ok(frame)) => frame,
            };
            lines.push(frame.data_ref().map_or(&[], |data| data));
            while let Some(line) = lines.next() {
                if let Some(named) = line.strip_prefix("id:") {
                    id = Some(named.trim().to_owned());
                }
                let Some(data) = line.strip_prefix("data:") else { continue };
                match data.trim_start() {
                    "[DONE]" => return Ok(()),
                    event => take(event).map_err(Broken::ForGood)?,
                }
                *last = id.take().or(last.take());
            }
            if lines.rest.len() > BODY_BYTES_MAX {
                return Err(Broken::ForGood(self.stranger("it sends a line without end")));
            }
        }
    }

    fn get(&self, path: &str) -> Result<(StatusCode, Value), Failure> {
        self.ask("GET", path, None)
    }

    fn ask(&self, method: &str, path: &str, body: Option<String>) -> Result<(StatusCode, Value), Failure> {
        let (status, body) = self.runtime.block_on(async {
            let response = self.send(method, path, body, None).await?;
            Ok::<_, Failure>((response.status(), self.collect(response).await?))
        })?;
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((status, value)),
            Err(_) => Err(self.stranger(&format!("{path}: {status}, and no JSON"))),
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
        last: Option<&str>,
    ) -> Result<Response<Incoming>, Failure> {
        let ClusterUrl { host, port, prefix, .. } = &self.url;
        // An IPv6 address stands in brackets in a URL, and without them everywhere else.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let address = (name, *port);
        let stream = match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.away(&error)),
            Err(_) => {
                let message = format!("{} cannot be reached within {} s", self.url, CONNECT_WITHIN.as_secs());
                return Err(
                    format!("{message}; is the address right, and does a firewall let us through?").into()
                );
            }
        };
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(name.to_owned())?;
                let secured = self.in_time(tls.connect(name, stream)).await?;
                Box::new(secured.map_err(|error| self.not_believed(&error))?)
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        match self.in_time(sender.send_request(request)).await? {
            Ok(response) => Ok(response),
            Err(error) if error.is_parse() => Err(self.stranger("it does not speak HTTP")),
            Err(error) => Err(self.cut(&error.to_string())),
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = http_body_util::Limited::new(response.into_body(), BODY_BYTES_MAX);
        match self.in_time(body.collect()).await? {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(self.cut(&error.to_string())),
        }
    }

    async fn in_time<T>(&self, what: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout(SILENCE_MAX, what).await.map_err(|_| {
            let message = format!("{} has said nothing for {} s", self.url, SILENCE_MAX.as_secs());
            format!("{message}; it may be stuck, or the network between").into()
        })
    }

    fn away(&self, error: &std::io::Error) -> Failure {
        let url = &self.url;
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("nothing listens at {url}; is the coordinator running? `phalanx serve` starts one")
            }
            _ => format!("{url} cannot be reached ({error}); is the address right?"),
        }
        .into()
    }

    fn not_believed(&self, error: &std::io::Error) -> Failure {
        let message = format!("{} cannot be spoken with over TLS: {error}", self.url);
        format!("{message}; is its certificate for this name, and is who vouches for it in --http-ca?").into()
    }

    fn stranger(&self, what: &str) -> Failure {
        format!("{} is no phalanx coordinator ({what}); is the port that of its --http?", self.url).into()
    }

    fn cut(&self, what: &str) -> Failure {
        let message =
            format!("the connection to {} was cut before the answer was complete ({what})", self.url);
        format!("{message}; the coordinator may have ended: see `phalanx status`, and ask again").into()
    }

    /// What the coordinator said instead of an answer.
    fn refusal(&self, status: StatusCode, body: &Value) -> Failure {
        match body["error"]["message"].as_str() {
            Some(message) if status == StatusCode::UNAUTHORIZED => {
                format!("{message}; give it with --api-key, or as PHALANX_API_KEY").into()
            }
            Some(message) => message.into(),
            None => self.stranger(&status.to_string()),
        }
    }
}

/// Why a stream has not come to its end.
enum Broken {
    /// It may be gone on with.
    OnTheWay(Failure),
    /// It would end so again.
    ForGood(Failure),
}

/// The lines of a body that comes in pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    /// So much of `rest` has been given out.
    given: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.rest.drain(..self.given);
        self.given = 0;
        self.rest.extend_from_slice(bytes);
    }

    /// The next line that is complete.
    fn next(&mut self) -> Option<String> {
        let rest = &self.rest[self.given..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.given += end + 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        let show = |text: &str| cluster_url(text).map(|url| url.to_string());
        for (text, url) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("localhost:8080", "http://localhost:8080"),
            ("box", "http://box:80"),
            ("https://box", "https://box:443"),
            ("https://box:8443/", "https://box:8443"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://proxy/phalanx/", "http://proxy:80/phalanx"),
        ] {
            assert_eq!(show(text), Ok(url.into()));
        }
        for bad in ["", "http://", "ftp://x", "http://x:99999", "http://x/?q", "a b", "::1"] {
            assert!(show(bad).is_err(), "{bad}: {:?}", show(bad));
        }
    }

    /// A network cuts where it likes, in the middle of a character too.
    #[test]
    fn lines_come_in_pieces() {
        let bytes = "data: é\n\n: beat\r\ndata: x\n".as_bytes();
        for cut in 0..bytes.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for part in [&bytes[..cut], &bytes[cut..]] {
                lines.push(part);
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            assert_eq!(found, ["data: é", "", ": beat", "data: x"]);
        }
    }
}
