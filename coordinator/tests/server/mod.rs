//! The API over the plain loop in a thread, and a client that is a socket. The tests of the command line use it too.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coordinator::api::{App, Backend, DrainRefused, Health, Keys, Limits, Served, Soon, State, serve};
use coordinator::data::request::{Event, Failure, Missing, OnMissing, RequestId, Submission};
use coordinator::generation::Token;
use coordinator::texts::Texts;
use model::bias::Bias;
use model::experts::LocalExperts;
use model::gate::Choices;
use model::kernel::{Kernels, NumericClass};
use model::kv::{KvCache, Sequence};
use model::load::{Loaded, Opened, Progress, Request, load};
use model::plain::{Observe, Run, step_under};
use model::pool::Pool;
use model::sampler::{Logprobs, Sampling, choose, logprobs};
use model::text::ChatTemplate;
use model::trunk::{Trunk, Workspace};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn demo() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    [here.join("demo-model"), here.join("../demo-model")].into_iter().find(|dir| dir.is_dir()).unwrap()
}

/// The demo model and all that computes it.
struct Plain {
    trunk: Trunk,
    pool: Arc<Pool>,
    work: Workspace,
    cache: KvCache,
    experts: LocalExperts,
}

impl Plain {
    fn new(dir: &Path) -> Self {
        let opened = Opened::open(dir).unwrap();
        let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
        let request = Request {
            kernels,
            threads: 1,
            trunk: true,
            experts: &opened.experts(),
            digests: false,
            known: &Default::default(),
        };
        let Loaded { trunk, experts, .. } = load(&opened, &request, &Progress::default()).unwrap();
        let pool = Arc::new(Pool::new(1, None));
        Self {
            trunk: Trunk::new(Arc::clone(&opened.spec), kernels, trunk.unwrap()),
            work: Workspace::new(kernels),
            cache: KvCache::new(&opened.spec, kernels.class().row_type(), 512 << 20),
            experts: LocalExperts::new(kernels, Arc::clone(&pool), experts),
            pool,
        }
    }

    /// One step of some sequences; the logits of the last row of each.
    fn step(&mut self, runs: &mut [Run<'_>]) -> Vec<Vec<f32>> {
        self.observed(runs, None).0
    }

    /// The same, with the experts of these rows.
    fn observed(&mut self, runs: &mut [Run<'_>], bias: Option<&Bias>) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
        let Self { trunk, pool, work, cache, experts } = self;
        let ends = runs.iter().scan(0, |end, run| {
            *end += run.tokens.len();
            Some(*end)
        });
        let mut visited = Visited { ends: ends.collect(), experts: vec![Vec::new(); runs.len()] };
        step_under(trunk, pool, work, cache, runs, experts, &mut visited, bias).unwrap();
        let mut end = 0;
        let mut logits = Vec::new();
        let rows = runs.iter().map(|run| {
            end += run.tokens.len();
            end - 1
        });
        let rows: Vec<usize> = rows.collect();
        trunk.logits(pool, work, &rows, &mut logits);
        let logits = logits.chunks(logits.len() / rows.len()).map(<[f32]>::to_vec).collect();
        (logits, visited.experts)
    }

    /// How likely each id was after those before it, but the first: computed one row after the other.
    fn scored(&mut self, ids: &[u32], count: usize) -> Vec<Logprobs> {
        let mut sequence = Sequence::default();
        let scored = ids.windows(2).map(|pair| {
            let logits = self.step(&mut [Run { sequence: &mut sequence, tokens: &pair[..1] }]).remove(0);
            logprobs(&logits, pair[1], count).unwrap()
        });
        let scored = scored.collect();
        self.cache.release(sequence);
        scored
    }
}

/// How likely the ids of a prompt were but the first: the oracle, alone and without any server.
pub(crate) fn scored(ids: &[u32], count: usize) -> Vec<Logprobs> {
    oracle().lock().unwrap().scored(ids, count)
}

fn oracle() -> &'static Mutex<Plain> {
    static PLAIN: OnceLock<Mutex<Plain>> = OnceLock::new();
    PLAIN.get_or_init(|| Mutex::new(Plain::new(&demo())))
}

/// What the last row of each run chose.
struct Visited {
    ends: Vec<usize>,
    experts: Vec<Vec<u32>>,
}

impl Observe for Visited {
    fn chosen(&mut self, _: usize, choices: &Choices) {
        for (end, experts) in self.ends.iter().zip(&mut self.experts) {
            experts.extend_from_slice(&choices.experts[(end - 1) * choices.top_k..][..choices.top_k]);
        }
    }
}

/// The ids of a text.
pub(crate) fn encode(text: &str) -> Vec<u32> {
    Texts::open(&demo()).unwrap().tokenizer().unwrap().encode(text, true).unwrap()
}

/// Ids of a prompt and of its likeliest answer: the oracle, alone and without any server.
pub(crate) fn greedy(prompt: &str, count: usize) -> (Vec<u32>, Vec<u32>) {
    greedy_under(prompt, count, None)
}

/// The same under a bias.
pub(crate) fn greedy_under(prompt: &str, count: usize, bias: Option<&Bias>) -> (Vec<u32>, Vec<u32>) {
    let mut plain = oracle().lock().unwrap();
    let prompt = encode(prompt);
    let (mut sequence, mut tokens, mut next) = (Sequence::default(), Vec::new(), prompt.clone());
    for _ in 0..count {
        let mut runs = [Run { sequence: &mut sequence, tokens: &next }];
        let logits = plain.observed(&mut runs, bias).0.remove(0);
        let position = (prompt.len() + tokens.len()) as u64;
        let token = choose(&logits, &prompt, &tokens, &Sampling::greedy(), position).unwrap().token;
        tokens.push(token);
        next = vec![token];
    }
    plain.cache.release(sequence);
    (prompt, tokens)
}

struct Running {
    id: RequestId,
    submission: Submission,
    sequence: Sequence,
}

/// Biases as a test has them.
#[derive(Default)]
struct Biases {
    current: Option<Arc<Bias>>,
    known: Vec<Arc<Bias>>,
}

/// What a test may do to the backend, and see of it.
struct Shared {
    biases: Mutex<Biases>,
    new: Mutex<Vec<(RequestId, Submission)>>,
    cancels: Mutex<Vec<RequestId>>,
    state: Mutex<(State, String)>,
    submitted: AtomicUsize,
    running: AtomicUsize,
    cancelled: AtomicUsize,
    pulses: AtomicUsize,
    is_busy: AtomicBool,
    /// No answer gets longer than this.
    held_after: AtomicUsize,
    is_over: AtomicBool,
}

struct PlainBackend(Arc<Shared>);

impl Backend for PlainBackend {
    fn submit(&self, submission: Submission) -> Soon<'_, RequestId> {
        let id = RequestId(self.0.submitted.fetch_add(1, Ordering::SeqCst) as u64);
        if self.0.is_busy.load(Ordering::SeqCst) {
            let retry_after = Duration::from_secs(9);
            submission.events.try_send(Event::Failed(Failure::Busy { waiting: 7, retry_after })).unwrap();
        } else {
            self.0.running.fetch_add(1, Ordering::SeqCst);
            self.0.new.lock().unwrap().push((id, submission));
        }
        Box::pin(async move { id })
    }

    fn cancel(&self, id: RequestId) {
        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        self.0.cancels.lock().unwrap().push(id);
    }

    fn bias(&self, beginning: Option<[u8; 4]>) -> Soon<'_, Option<Arc<Bias>>> {
        let biases = self.0.biases.lock().unwrap();
        let begins = |bias: &&Arc<Bias>, with: [u8; 4]| bias.digest().0.as_bytes().starts_with(&with);
        let bias = match beginning {
            Some(beginning) => biases.known.iter().find(|bias| begins(bias, beginning)),
            None => biases.current.as_ref(),
        };
        let bias = bias.cloned();
        Box::pin(async move { bias })
    }

    fn health(&self) -> Soon<'_, Health> {
        let (state, missing) = self.0.state.lock().unwrap().clone();
        let missing = if missing.is_empty() { Vec::new() } else { vec![missing] };
        Box::pin(async move { Health { state, missing } })
    }

    fn cluster(&self) -> Soon<'_, Value> {
        Box::pin(async { json!({"model": "demo"}) })
    }

    fn pulse(&self) -> Soon<'_, Value> {
        let count = self.0.pulses.fetch_add(1, Ordering::SeqCst) + 1;
        Box::pin(async move { json!({ "pulse": count }) })
    }

    fn why(&self, request: Option<RequestId>) -> Soon<'_, Value> {
        let live = request.is_none_or(|request| request == RequestId(7));
        let requests = if live { json!([{"request": 7, "why": "the test holds it"}]) } else { json!([]) };
        Box::pin(async move { json!({ "requests": requests }) })
    }

    fn drain(&self, node: String, by_force: bool) -> Soon<'_, Result<Value, DrainRefused>> {
        let answer = match (node.as_str(), by_force) {
            ("n1", _) | ("full", true) => Ok(json!({ "node": node, "changed": true, "forced": by_force })),
            ("full", false) => Err(DrainRefused::NoRoom("there is no room".into())),
            ("only", _) => Err(DrainRefused::OnlyOne("it is the only one".into())),
            _ => Err(DrainRefused::Unknown(format!("no node is called {node}"))),
        };
        Box::pin(async move { answer })
    }

    fn undrain(&self, node: String) -> Soon<'_, Result<Value, DrainRefused>> {
        let answer = match node.as_str() {
            "n1" => Ok(json!({ "node": node, "changed": false })),
            _ => Err(DrainRefused::Unknown(format!("no node is called {node}"))),
        };
        Box::pin(async move { answer })
    }
}

/// The plain loop, for whoever is there: one step of all of them after the other.
fn compute(shared: &Shared, dir: &Path) {
    let mut plain = Plain::new(dir);
    let mut running: Vec<Running> = Vec::new();
    while !shared.is_over.load(Ordering::SeqCst) {
        // In this order: a request is never seen later than its cancel.
        let cancels = std::mem::take(&mut *shared.cancels.lock().unwrap());
        let new = std::mem::take(&mut *shared.new.lock().unwrap());
        running.extend(new.into_iter().map(|(id, submission)| Running {
            id,
            submission,
            sequence: Sequence::default(),
        }));
        let now = Instant::now();
        let held = shared.held_after.load(Ordering::SeqCst);
        let is_held = |run: &Running| run.submission.generation.tokens().len() >= held;
        for run in running.extract_if(.., |run| {
            let late = run.submission.deadline <= now;
            if late {
                let (within_ms, missing) = (run.submission.within_ms, Some("the test holds it".into()));
                let _ =
                    run.submission.events.try_send(Event::Failed(Failure::TooLate { within_ms, missing }));
            }
            late || cancels.contains(&run.id) || run.submission.generation.finish_reason().is_some()
        }) {
            plain.cache.release(run.sequence);
            shared.running.fetch_sub(1, Ordering::SeqCst);
        }
        let tokens: Vec<Vec<u32>> = running
            .iter()
            .filter(|run| !is_held(run))
            .map(|run| {
                let generation = &run.submission.generation;
                match run.sequence.is_empty() {
                    // An answer that is gone on with has tokens already.
                    true => [&generation.request().prompt, generation.tokens()].concat(),
                    false => generation.next_tokens().to_vec(),
                }
            })
            .collect();
        if tokens.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        for run in running.iter().filter(|run| run.sequence.is_empty() && !is_held(run)) {
            let request = run.submission.generation.request();
            if request.prompt_logprobs && run.submission.generation.tokens().is_empty() {
                let scored = plain.scored(&request.prompt, request.logprobs.unwrap());
                let _ = run.submission.events.try_send(Event::Prompt(scored));
            }
        }
        let moving = running.iter().filter(|run| !is_held(run));
        let biases: Vec<Option<Arc<Bias>>> =
            moving.map(|run| run.submission.generation.request().bias.clone()).collect();
        let moving = running.iter_mut().filter(|run| !is_held(run));
        let mut runs: Vec<Run<'_>> =
            moving.zip(&tokens).map(|(run, tokens)| Run { sequence: &mut run.sequence, tokens }).collect();
        let (mut logits, mut experts, mut from) = (Vec::new(), Vec::new(), 0);
        for alike in biases.chunk_by(PartialEq::eq) {
            let (some, of) = plain.observed(&mut runs[from..from + alike.len()], alike[0].as_deref());
            from += alike.len();
            logits.extend(some);
            experts.extend(of);
        }
        let moving = running.iter_mut().filter(|run| !is_held(run));
        for ((run, logits), experts) in moving.zip(logits).zip(experts) {
            let Submission { generation, events, on_missing, .. } = &mut run.submission;
            let step = generation.handle_logits(&logits).unwrap();
            // Full may not be: the channel was made for the whole answer. Closed is a client that has gone.
            let full = |event| {
                matches!(events.try_send(event), Err(tokio::sync::mpsc::error::TrySendError::Full(_)))
            };
            // Of those who may lack something the first token lacks nothing, and each later one two experts of its row.
            if *on_missing == OnMissing::Drop && generation.tokens().len() > 1 {
                let lacks = |expert| Missing { layer: 2, expert, rows: 1 };
                assert!(!full(Event::Missing(vec![lacks(5), lacks(9)])));
            }
            let experts = if generation.request().experts { experts } else { Vec::new() };
            let token = step.token.map(|token| Token { experts, ..token });
            assert!(!full(Event::Step { token, text: step.text }));
            assert!(generation.finish_reason().is_none_or(|reason| !full(Event::End(reason))));
        }
    }
}

/// Makes an authority, and a certificate of it for `localhost`: `ca.pem`, `cert.pem` and `key.pem` in a folder.
pub(crate) fn certify(folder: &Path) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    authority.der().clone()
}

/// How a server is made, where it is not as usual.
#[derive(Default)]
pub(crate) struct Made {
    /// Another model than the demo's: its folder and name.
    pub(crate) model: Option<(PathBuf, &'static str)>,
    pub(crate) limits: Limits,
    /// The demo model's chat template is another.
    pub(crate) template: Option<&'static str>,
    /// A file of API keys.
    pub(crate) keys: Option<&'static str>,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
}

/// A server that lives as long as its test.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<tokio::sync::Notify>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) context_max: usize,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        Self::made(Made { limits, ..Made::default() })
    }

    /// Serves another model.
    pub(crate) fn of(dir: &Path, name: &'static str, limits: Limits) -> Self {
        Self::made(Made { model: Some((dir.to_owned(), name)), limits, ..Made::default() })
    }

    pub(crate) fn made(made: Made) -> Self {
        let Made { model, limits, template, keys, tls } = made;
        let (dir, name) = model.unwrap_or_else(|| (demo(), "demo"));
        let shared = Arc::new(Shared {
            biases: Mutex::default(),
            new: Mutex::default(),
            cancels: Mutex::default(),
            state: Mutex::new((State::Serving, String::new())),
            submitted: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            pulses: AtomicUsize::new(0),
            is_busy: AtomicBool::new(false),
            held_after: AtomicUsize::new(usize::MAX),
            is_over: AtomicBool::new(false),
        });
        let opened = Opened::open(&dir).unwrap();
        let context_max = opened.spec.context_max;
        let mut texts = Texts::open(&dir).unwrap();
        if let Some(template) = template {
            let config = json!({"chat_template": template}).to_string();
            texts.chat = ChatTemplate::from_bytes("test", Some(config.as_bytes()), None, &[]).unwrap();
        }
        let served = Served {
            name: name.into(),
            spec: opened.spec,
            texts: Arc::new(texts),
            numeric_class: NumericClass::Portable,
            config_digest: opened.config_digest,
        };
        let keys = keys.map(|keys| Keys::read(keys, Instant::now()).unwrap());
        let app = App::new(Arc::new(PlainBackend(Arc::clone(&shared))), served, limits);
        let app = Arc::new(app.with_keys(keys).with_tls(tls));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(tokio::sync::Notify::new());
        let computing = Arc::clone(&shared);
        let compute = std::thread::spawn(move || compute(&computing, &dir));
        let stopped = Arc::clone(&stop);
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, app, stopped.notified()).await;
            });
        });
        Self { address, shared, stop, threads: Mutex::new(vec![serving, compute]), context_max }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops serving; the thread ends when the server has.
    pub(crate) fn stop(&self) -> JoinHandle<()> {
        self.stop.notify_one();
        self.threads.lock().unwrap().remove(0)
    }

    pub(crate) fn hold(&self, is_held: bool) {
        self.hold_after(if is_held { 0 } else { usize::MAX });
    }

    pub(crate) fn hold_after(&self, tokens: usize) {
        self.shared.held_after.store(tokens, Ordering::SeqCst);
    }

    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.shared.is_busy.store(is_busy, Ordering::SeqCst);
    }

    pub(crate) fn set_state(&self, state: State, missing: &str) {
        *self.shared.state.lock().unwrap() = (state, missing.into());
    }

    /// Answers begin with this bias from now on, and these are known beside it.
    pub(crate) fn set_bias(&self, current: Option<Arc<Bias>>, known: &[Arc<Bias>]) {
        let known = current.iter().chain(known).cloned().collect();
        *self.shared.biases.lock().unwrap() = Biases { current, known };
    }

    pub(crate) fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    pub(crate) fn submitted(&self) -> usize {
        self.shared.submitted.load(Ordering::SeqCst)
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// How often somebody asked the backend for its pulse.
    pub(crate) fn pulses(&self) -> usize {
        self.shared.pulses.load(Ordering::SeqCst)
    }

    pub(crate) fn wait(&self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_there(self) {
            assert!(start.elapsed() < PATIENCE, "{what} did not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn try_connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        self.try_connect().unwrap()
    }

    /// Sends a completion and reads nothing yet.
    pub(crate) fn begin(&self, body: &str) -> Client {
        let mut stream = self.connect();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n";
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        Client(stream)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.post_with(path, "", body)
    }

    /// The same with more headers, each with its line's end.
    pub(crate) fn post_with(&self, path: &str, headers: &str, body: &str) -> Answer {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nContent-Type: application/json; charset=utf-8\r\nconnection: close\r\n"
        );
        self.raw(format!("{head}{headers}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }

    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        Answer::parse(&self.raw_bytes(request))
    }

    /// Sends bytes and reads all that comes within a while after the last of it.
    pub(crate) fn raw_bytes(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that has heard enough may not read the rest.
        let _ = stream.write_all(request);
        if !String::from_utf8_lossy(&request[..request.len().min(4096)]).contains("connection: close") {
            stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        }
        Client(stream).read_bytes()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.stop.notify_one();
        for thread in self.threads.get_mut().unwrap().drain(..) {
            let _ = thread.join();
        }
    }
}

pub(crate) struct Client(TcpStream);

impl Client {
    pub(crate) fn read_bytes(mut self) -> Vec<u8> {
        let (mut bytes, mut part) = (Vec::new(), [0; 65536]);
        while let Ok(count @ 1..) = self.0.read(&mut part) {
            bytes.extend_from_slice(&part[..count]);
        }
        bytes
    }

    /// Waits for the first bytes.
    pub(crate) fn read_some(&self) {
        assert!((&self.0).read(&mut [0; 1024]).unwrap() > 0);
    }

    pub(crate) fn read(self) -> Answer {
        Answer::parse(&self.read_bytes())
    }
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no response: {:?}", String::from_utf8_lossy(bytes)));
        let headers = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        let body = &bytes[end + 4..];
        let body = if headers.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_vec() };
        Self { status, headers, body }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The chunks of a stream, and its last event.
    pub(crate) fn chunks(&self) -> (Vec<Value>, String) {
        let mut events = self.events();
        let (_, last) = events.pop().unwrap();
        (events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect(), last)
    }

    /// Ids and data of all events of a stream.
    pub(crate) fn events(&self) -> Vec<(Option<String>, String)> {
        let text = self.text();
        let events = text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
        let parts = |event: &str| {
            let (id, data) = match event.strip_prefix("id: ").and_then(|event| event.split_once('\n')) {
                Some((id, data)) => (Some(id.to_owned()), data),
                None => (None, event),
            };
            (id, data.strip_prefix("data: ").unwrap().to_owned())
        };
        events.map(parts).collect()
    }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 2 + size + 2..];
    }
    whole
}
