//! Traces of the real program, as a collector of OpenTelemetry hears them.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod program;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Nothing here takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// How a collector answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    /// At first it asks to come again.
    Busy,
    /// It hears, and says nothing.
    Silent,
}

/// A request to the collector: its head and its body.
type Heard = (String, Value);

struct Collector {
    url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Collector {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let to = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let (head, body) = request(&mut stream);
                let is_busy = manner == Manner::Busy && number == 0;
                let answer = if is_busy { "503 Service Unavailable\r\nRetry-After: 0" } else { "200 OK" };
                if manner == Manner::Silent {
                    held.push(stream);
                    continue;
                }
                if !is_busy {
                    to.lock().unwrap().push((head, serde_json::from_slice(&body).unwrap()));
                }
                let _ =
                    write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
            }
        });
        Self { url, heard }
    }

    /// All spans, each with its resource.
    fn spans(&self) -> Vec<Span> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .flat_map(|(_, body)| body["resourceSpans"].as_array().unwrap().iter().flat_map(spans))
            .collect()
    }
}

fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

/// A span as OTLP's JSON says it; reading it checks what the specification has of its form.
#[derive(Debug, Clone)]
struct Span {
    trace: String,
    id: String,
    parent: Option<String>,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, Value>,
    is_error: bool,
    flags: u64,
}

fn spans(resource: &Value) -> Vec<Span> {
    let attributes = attributes(&resource["resource"]["attributes"]);
    assert_eq!(attributes["service.name"], "phalanx-coordinator");
    assert_eq!(attributes["service.instance.id"].as_str().unwrap().len(), 16);
    let scopes = resource["scopeSpans"].as_array().unwrap();
    scopes.iter().flat_map(|scope| scope["spans"].as_array().unwrap().iter().map(span)).collect()
}

fn attributes(list: &Value) -> BTreeMap<String, Value> {
    let value = |value: &Value| {
        let (kind, inner) = value.as_object().unwrap().iter().next().unwrap();
        match kind.as_str() {
            "stringValue" | "boolValue" => inner.clone(),
            "intValue" => inner.as_str().unwrap().parse::<i64>().unwrap().into(),
            "arrayValue" => {
                inner["values"].as_array().unwrap().iter().map(|one| one["stringValue"].clone()).collect()
            }
            other => panic!("{other}"),
        }
    };
    let all = list.as_array().unwrap().iter();
    all.map(|one| (one["key"].as_str().unwrap().to_owned(), value(&one["value"]))).collect()
}

fn span(span: &Value) -> Span {
    let id = |key: &str, digits: usize| {
        let id = span[key].as_str()?.to_owned();
        assert!(id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key} {id}");
        assert!(id.bytes().any(|byte| byte != b'0'), "{key} {id}");
        Some(id)
    };
    let time = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    let (start, end) = (time("startTimeUnixNano"), time("endTimeUnixNano"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    assert!(start <= end && end <= now && now - start < 600_000_000_000, "{span}");
    Span {
        trace: id("traceId", 32).unwrap(),
        id: id("spanId", 16).unwrap(),
        parent: id("parentSpanId", 16),
        name: span["name"].as_str().unwrap().to_owned(),
        kind: span["kind"].as_u64().unwrap(),
        start,
        end,
        attributes: attributes(&span["attributes"]),
        is_error: span["status"]["code"] == 2,
        flags: span["flags"].as_u64().unwrap(),
    }
}

impl Span {
    fn number(&self, name: &str) -> u64 {
        self.attributes.get(name).unwrap_or_else(|| panic!("{name}: {self:?}")).as_u64().unwrap()
    }

    fn is_within(&self, whole: &Span) -> bool {
        whole.start <= self.start && self.end <= whole.end
    }
}

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command: Command = program::command(&["serve", "--http", "127.0.0.1:0", "--embedded", "2"]);
        command.args(arguments).envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving = lines.find(|line| line.as_ref().unwrap().starts_with("serving ")).unwrap().unwrap();
        let address = serving.rsplit("http://").next().unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        let server = Self { child, address };
        let until = Instant::now() + PATIENCE;
        while server.ask("GET /ready", "", &Value::Null).0 != 200 {
            assert!(Instant::now() < until, "it is never ready");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn ask(&self, what: &str, headers: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        write!(
            stream,
            "{what} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}Connection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    fn complete(&self, headers: &str, body: &Value) -> (u16, String) {
        self.ask("POST /v1/completions", headers, body)
    }

    /// Ends it politely, and says how long that took.
    fn end(mut self) -> Duration {
        let since = Instant::now();
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return since.elapsed();
            }
            assert!(since.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request that is a part of somebody's trace: it, what it did, and every row that experts computed of it, each a part of what it
/// belongs to, in times that fit, in a form that OTLP has. What was asked is in none of it.
#[test]
fn a_request_is_traced_down_to_its_experts() {
    let collector = Collector::start(Manner::Busy);
    let server =
        Server::start(&["--otlp", &collector.url, "--otlp-share", "1", "--prefix-cache", "off"], &[]);
    let (_, cluster) = server.ask("GET /cluster", "", &Value::Null);
    let cluster: Value = serde_json::from_str(&cluster[cluster.find('{').unwrap()..]).unwrap();
    let layers: BTreeMap<u64, u64> = cluster["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| (layer["layer"].as_u64().unwrap(), layer["top_k"].as_u64().unwrap()))
        .collect();

    let body = json!({"prompt": "sort 7315= sort 7315=", "max_tokens": 5, "temperature": 0, "ignore_eos": true, "n": 2});
    let given = |flags: &str| format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: a=b\r\n");
    let (status, answer) = server.complete(&given("01"), &body);
    assert_eq!(status, 200, "{answer}");
    // One that is its own, one that nobody wants traced, one that is refused, one whose client goes away.
    let mut streamed = body.clone();
    (streamed["stream"], streamed["n"]) = (true.into(), 1.into());
    assert_eq!(server.complete("traceparent: 00-zz\r\n", &streamed).0, 200);
    assert_eq!(server.complete(&given("00"), &body).0, 200);
    assert_eq!(server.complete("", &json!({"prompt": "x", "temperature": -1})).0, 400);
    let mut long = streamed.clone();
    long["max_tokens"] = 400.into();
    let mut gone = TcpStream::connect(&server.address).unwrap();
    let text = long.to_string();
    write!(
        gone,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
    .unwrap();
    assert_eq!(gone.read(&mut [0; 9]).unwrap(), 9, "it is being answered");
    drop(gone);
    // What it did not take at first it is given again, while the program runs as at its end.
    let until = Instant::now() + PATIENCE;
    while collector.heard.lock().unwrap().is_empty() {
        assert!(Instant::now() < until, "it is given nothing again");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.end();

    let heard = collector.heard.lock().unwrap().clone();
    for (head, body) in &heard {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json\r\n"), "{head}");
        assert!(!body.to_string().contains("sort"), "nothing of the prompt is told");
    }
    let spans = collector.spans();
    let mut names: Vec<&String> = spans.iter().map(|span| &span.id).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), spans.len(), "no two spans have one name");
    let requests: Vec<&Span> = spans.iter().filter(|span| span.kind == 2).collect();
    assert_eq!(requests.len(), 4, "one has not been traced: {requests:#?}");
    assert!(requests.iter().all(|span| span.name == "text_completion demo-model"));

    let whole = *requests.iter().find(|span| span.trace == TRACE).unwrap();
    assert_eq!((whole.parent.as_deref(), whole.flags, whole.is_error), (Some(PARENT), 0x301, false));
    let (prompt, tokens) =
        (whole.number("gen_ai.usage.input_tokens"), whole.number("gen_ai.usage.output_tokens"));
    assert_eq!((prompt, tokens), (21, 10));
    assert_eq!(whole.attributes["gen_ai.response.finish_reasons"], json!(["length", "length"]));
    assert_eq!(whole.number("http.response.status_code"), 200);
    let of = |parent: &Span| -> Vec<&Span> {
        spans.iter().filter(|span| span.parent.as_deref() == Some(&parent.id)).collect()
    };
    let mut rows: BTreeMap<u64, u64> = BTreeMap::new();
    for choice in 0..2 {
        let mut parts: Vec<&Span> =
            of(whole).into_iter().filter(|span| span.number("phalanx.choice") == choice).collect();
        parts.sort_by_key(|span| span.start);
        let names: Vec<&str> = parts.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["queued", "prefill", "decode"]);
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:#?}");
        assert!(parts.iter().all(|part| part.is_within(whole) && part.trace == TRACE && part.kind == 1));
        assert_eq!((parts[1].number("phalanx.rows"), parts[2].number("phalanx.tokens")), (prompt, 5));
        assert!(of(parts[0]).is_empty());
        for part in &parts[1..] {
            for dispatch in of(part) {
                assert_eq!(
                    (dispatch.name.as_str(), dispatch.kind, dispatch.trace.as_str()),
                    ("dispatch", 3, TRACE)
                );
                assert!(dispatch.start >= part.start && dispatch.is_within(whole), "{dispatch:#?} {part:#?}");
                assert_eq!((dispatch.number("phalanx.attempts"), dispatch.is_error), (1, false));
                assert_eq!(dispatch.attributes["phalanx.end"], "returned");
                assert!(dispatch.attributes["phalanx.node"].as_str().is_some());
                assert!(dispatch.number("phalanx.rows_own") <= dispatch.number("phalanx.rows"));
                *rows.entry(dispatch.number("phalanx.layer")).or_default() +=
                    dispatch.number("phalanx.rows_own");
            }
        }
    }
    // Every row goes to so many experts at each layer; the last token has none.
    let expected: BTreeMap<u64, u64> =
        layers.iter().map(|(layer, top_k)| (*layer, 2 * (prompt + 4) * top_k)).collect();
    assert_eq!(rows, expected);

    let others: Vec<&&Span> = requests.iter().filter(|span| span.trace != TRACE).collect();
    assert!(others.iter().all(|span| span.parent.is_none() && span.flags == 1));
    let refused = others.iter().find(|span| span.number("http.response.status_code") == 400).unwrap();
    assert_eq!((refused.is_error, &refused.attributes["error.type"]), (true, &json!("invalid_value")));
    assert!(of(refused).is_empty(), "nothing was computed");
    let cut =
        others.iter().find(|span| span.attributes.get("error.type") == Some(&json!("cancelled"))).unwrap();
    assert!(cut.number("gen_ai.usage.output_tokens") < 400 && cut.is_error);
    let own = others.iter().find(|span| !span.is_error).unwrap();
    assert_eq!(own.number("gen_ai.usage.output_tokens"), 5);
}

/// By OpenTelemetry's own variables, for a share of nothing, and counted.
#[test]
fn requests_are_traced_where_the_environment_says_so() {
    let collector = Collector::start(Manner::Takes);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%3Dt"),
    ];
    let server = Server::start(&["--otlp-share", "0"], &variables);
    assert_eq!(server.complete("", &json!({"prompt": "x", "max_tokens": 3, "ignore_eos": true})).0, 200);
    let until = Instant::now() + PATIENCE;
    let count = |name: &str| {
        let (_, text) = server.ask("GET /metrics", "", &Value::Null);
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
        line.unwrap_or_else(|| panic!("{name}: {text}"))
    };
    while count("phalanx_spans_exported_total") < 4 {
        assert!(Instant::now() < until, "nothing is exported");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(count("phalanx_spans_dropped_total"), 0);
    server.end();
    let mut names: Vec<String> = collector.spans().into_iter().map(|span| span.name).collect();
    names.sort();
    assert_eq!(names, ["decode", "prefill", "queued", "text_completion demo-model"]);
    assert!(collector.heard.lock().unwrap().iter().all(|(head, _)| head.contains("api-key: s=t\r\n")));
}

/// A collector that is busy as the program ends has everything nevertheless.
#[test]
fn what_is_left_at_the_end_is_told_again() {
    let collector = Collector::start(Manner::Busy);
    let server = Server::start(&["--otlp", &collector.url, "--otlp-share", "0"], &[]);
    assert_eq!(server.complete("", &json!({"prompt": "x", "max_tokens": 3, "ignore_eos": true})).0, 200);
    // Spans gather for a second: the first that the collector hears of is at the end, and it sends that back.
    server.end();
    assert_eq!(collector.spans().len(), 4);
}

/// Nobody there, and somebody who says nothing: requests are answered as ever, and the program ends soon.
#[test]
fn a_collector_that_is_away_holds_up_nobody() {
    let silent = Collector::start(Manner::Silent);
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let body = json!({"prompt": "rev abc=", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let answers: Vec<String> = [None, Some(nobody.as_str()), Some(silent.url.as_str())]
        .into_iter()
        .map(|otlp| {
            let traced = otlp.map_or(Vec::new(), |url| vec!["--otlp", url, "--otlp-share", "1"]);
            let server = Server::start(&traced, &[]);
            let mut texts = Vec::new();
            for _ in 0..3 {
                let (status, answer) = server.complete("", &body);
                assert_eq!(status, 200, "{answer}");
                let object: Value = serde_json::from_str(&answer[answer.find('{').unwrap()..]).unwrap();
                texts.push(object["choices"][0]["text"].as_str().unwrap().to_owned());
            }
            assert!(server.end() < Duration::from_secs(30), "what nobody takes is not waited for");
            texts.concat()
        })
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}
