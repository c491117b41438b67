//! The command line as a client: `generate --cluster` beside `generate`, `status`, `placement`, and servers that are
//! not there, not ours, not ready, or gone in the middle.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod program;
#[path = "../coordinator/tests/server/mod.rs"]
mod server;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use coordinator::api::State;
use model::bias::Bias;
use program::{Scratch, command, fixture, phalanx};
use serde_json::{Value, json};
use server::{Made, Server, certify};

fn shown(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn stdout(arguments: &[&str]) -> String {
    let output = phalanx(arguments);
    assert!(output.status.success(), "{arguments:?}\n{}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, which must refuse in one message that has all of `says`.
fn refuse(says: &[&str], arguments: &[&str]) -> Output {
    let output = phalanx(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}\n{}", shown(&output));
    assert!(says.iter().all(|say| message.contains(say)), "{says:?} of {arguments:?}\n{message}");
    assert_eq!(message.lines().filter(|line| line.starts_with("error:")).count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    output
}

/// A cluster's answer is this process's, to the letter but for the times.
#[test]
fn generate_by_a_cluster_is_generate() {
    let server = Server::start();
    let url = server.url();
    for arguments in [
        &["--chat", "sort 7315="][..],
        &["--chat", "day Fri+3=", "--system", "x", "--max-tokens", "9", "--ignore-eos"],
        &["--prompt", "rev ab", "--temperature", "2.5", "--seed", "7", "--max-tokens", "40", "--top-k", "50"],
        &[
            "--prompt",
            "x",
            "--temperature",
            "9",
            "--stop",
            "e",
            "--stop",
            "1",
            "--top-p",
            "0.9",
            "--min-p",
            "0.01",
        ],
        &[
            "--tokens",
            "120,61",
            "--temperature",
            "1.5",
            "--repetition-penalty",
            "1.2",
            "--presence-penalty",
            "0.5",
        ],
        &["--prompt", "é", "--temperature", "3", "--ignore-eos", "--max-tokens", "600"],
    ] {
        let here = ["generate", "--numeric-class", "portable"];
        let there = ["generate", "--cluster", &url];
        let text = [&here, arguments].concat();
        assert_eq!(stdout(&[&there, arguments].concat()), stdout(&text), "{arguments:?}");
        let json = |fixed: &[&str]| {
            let text = stdout(&[fixed, arguments, &["--json", "--top-logprobs", "3"]].concat());
            let mut value: Value = serde_json::from_str(&text).unwrap();
            let timing = value["timing"].take();
            assert!(timing["load_s"].is_number() && timing["decode_tokens_per_s"].is_number(), "{timing}");
            value
        };
        let (there, here) = (json(&there), json(&here));
        assert_eq!(there, here, "{arguments:?}");
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&there), keys(&here));
    }
    assert_eq!(server.cancelled(), 0);
}

/// An answer under a bias names it, the cluster gives it as a file, and with that one process answers alike; without, otherwise.
#[test]
fn a_biased_answer_is_computed_again_here() {
    let server = Server::start();
    let layer =
        |layer: usize| (layer, (0..16).map(|expert| ((layer + 5 * expert) % 7) as f32 / 3.0 - 1.0).collect());
    server.set_bias(Some(Arc::new(Bias::new((3..7).map(layer).collect()).unwrap())), &[]);
    let url = server.url();
    let arguments = ["--prompt", "sort 4921=", "--max-tokens", "24", "--ignore-eos", "--json"];
    let json = |fixed: &[&str]| {
        let mut value: Value = serde_json::from_str(&stdout(&[fixed, &arguments].concat())).unwrap();
        value["timing"].take();
        value
    };
    let there = json(&["generate", "--cluster", &url]);
    let digest = there["bias"].as_str().unwrap();
    let scratch = Scratch::new("biased-answer");
    let file = scratch.path().join("bias.json");
    std::fs::write(&file, server.get(&format!("/bias/{digest}")).text()).unwrap();
    let here = ["generate", "--numeric-class", "portable"];
    assert_eq!(json(&[&here[..], &["--bias", file.to_str().unwrap()]].concat()), there);
    let without = json(&here);
    assert_eq!(without.get("bias"), None);
    assert_ne!(without["logprobs"], there["logprobs"], "a bias that changes nothing shows nothing");
    let file = file.to_str().unwrap();
    let forward = |out: &str, more: &[&str]| {
        let out = scratch.path().join(out);
        let fixed = ["forward", "--tokens", "120,61,65", "--out", out.to_str().unwrap()];
        stdout(&[&fixed[..], more].concat());
        std::fs::read(out).unwrap()
    };
    assert_ne!(forward("under", &["--bias", file]), forward("without", &[]));
    refuse(
        &["--bias", "cannot be used with"],
        &["generate", "--cluster", &url, "--prompt", "x", "--bias", file],
    );
    let model = fixture("mixtral");
    let model = model.to_str().unwrap();
    refuse(
        &["bias.json", "of another model"],
        &["generate", "--model", model, "--tokens", "1", "--bias", file],
    );
    refuse(
        &["nowhere", "--bias", "as a coordinator's /bias shows it"],
        &["generate", "--prompt", "x", "--bias", "nowhere"],
    );
}

#[test]
fn what_the_cluster_refuses_is_said() {
    let server = Server::start();
    let url = server.url();
    let mixtral = fixture("mixtral");
    let mixtral = mixtral.to_str().unwrap();
    let ask = |says: &[&str], more: &[&str]| {
        refuse(says, &[&["generate", "--cluster", &url], more].concat());
    };
    ask(&["empty"], &["--prompt", ""]);
    ask(&["99999", "264 tokens"], &["--tokens", "5,99999"]);
    ask(&["600 positions", "context is 512"], &["--tokens", &["65"; 600].join(",")]);
    ask(&["temperature is -1"], &["--prompt", "x", "--temperature", "-1"]);
    ask(&["--max-tokens 0"], &["--prompt", "x", "--max-tokens", "0"]);
    ask(&["not the model", "demo"], &["--prompt", "x", "--model", mixtral]);
    server.set_busy(true);
    ask(&["7 requests wait already"], &["--prompt", "x"]);
    server.set_busy(false);
    let output = phalanx(&["generate", "--cluster", &url, "--prompt", "x", "--threads", "2"]);
    assert_eq!(output.status.code(), Some(2), "compute is the cluster's: {}", shown(&output));
}

/// A cluster that is still loading is waited for, and it is said what for; not for ever.
#[test]
fn a_cluster_that_loads_is_waited_for() {
    let server = Server::start();
    let url = server.url();
    server.set_state(State::Loading, "12 of 64 experts have no holder; nodes: 2");
    refuse(
        &["waiting for the cluster", "still loading after 0 s", "12 of 64 experts"],
        &["generate", "--cluster", &url, "--prompt", "x", "--wait", "0.3"],
    );
    let child = command(&["generate", "--cluster", &url, "--chat", "sort 7315="])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    server.set_state(State::Serving, "");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout == b"1357;\n", "{}", shown(&output));
    server.set_state(State::Stopping, "");
    refuse(&["stopping"], &["generate", "--cluster", &url, "--prompt", "x"]);
}

/// A server of a few words: each connection gets the next answer, whatever it asks.
fn actor(answers: Vec<String>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 65536]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, thread)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn servers_that_are_not_ours_are_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("http://{closed}");
    for one in ["status", "placement", "why"] {
        refuse(&["nothing listens at", "phalanx serve"], &[one, "--cluster", &closed]);
    }
    let prompt = |url: &str, says: &[&str]| refuse(says, &["generate", "--cluster", url, "--prompt", "x"]);
    prompt(&closed, &["nothing listens at", &closed]);
    prompt("ftp://x", &["not the URL of a coordinator"]);
    for answer in [ok("<html>hello</html>"), ok("{\"status\": 7}"), "SSH-2.0-OpenSSH_9\r\n".into(), ok("[]")]
    {
        let (url, thread) = actor(vec![answer.clone()]);
        let output = phalanx(&["generate", "--cluster", &url, "--prompt", "x"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(message.contains("is no phalanx coordinator"), "{answer}: {message}");
        thread.join().unwrap();
    }
}

/// A key opens what is closed without one, by flag and by variable, and is never shown.
#[test]
fn a_key_lets_in() {
    const KEY: &str = "key-of-a-test-0123456789";
    let server = Server::made(Made { keys: Some(KEY), ..Made::default() });
    let url = server.url();
    refuse(&["API key", "--api-key", "PHALANX_API_KEY"], &["status", "--cluster", &url]);
    let ask = ["generate", "--cluster", &url, "--prompt", "sort 7315=", "--max-tokens", "3"];
    let expected = stdout(&["generate", "--prompt", "sort 7315=", "--max-tokens", "3"]);
    let wrong = refuse(&["not known here"], &[&ask[..], &["--api-key", "another-key-0123456789"]].concat());
    assert!(!shown(&wrong).contains("another-key"));
    assert_eq!(stdout(&[&ask[..], &["--api-key", KEY]].concat()), expected);
    let output = command(&ask).env("PHALANX_API_KEY", KEY).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", shown(&output));
    let help = command(&["status", "--help"]).env("PHALANX_API_KEY", KEY).output().unwrap();
    assert!(!shown(&help).contains(KEY));
}

/// A server whose certificate is vouched for is spoken with over TLS, and no other.
#[test]
fn a_server_is_believed_by_its_authority() {
    let folder = Scratch::new("remote-tls");
    certify(folder.path());
    let file = |name: &str| folder.path().join(name);
    let tls = coordinator::api::server_config(&file("cert.pem"), &file("key.pem")).unwrap();
    let server = Server::made(Made { tls: Some(tls), ..Made::default() });
    let port = server.address().port();
    let (url, plain) = (format!("https://localhost:{port}"), format!("http://localhost:{port}"));
    let ca = file("ca.pem").display().to_string();
    let ask = ["generate", "--cluster", &url, "--prompt", "sort 7315=", "--max-tokens", "3"];
    let expected = stdout(&["generate", "--prompt", "sort 7315=", "--max-tokens", "3"]);
    assert_eq!(stdout(&[&ask[..], &["--http-ca", &ca]].concat()), expected);
    refuse(&["--http-ca"], &ask);
    refuse(&["over TLS"], &["status", "--cluster", &format!("https://127.0.0.1:{port}"), "--http-ca", &ca]);
    refuse(&["give a file in PEM"], &["status", "--cluster", &url, "--http-ca", "Cargo.toml"]);
    refuse(&["http://localhost"], &["status", "--cluster", &plain]);
}

/// Half an answer is not an answer: what came is shown, and the exit code says that it is not all.
#[test]
fn a_stream_that_is_cut_is_not_an_answer() {
    let health = ok(&json!({"status": "serving", "missing": [], "model": "m", "numeric_class": "portable",
        "config_digest": "00", "has_tokenizer": true, "max_new_tokens": null})
    .to_string());
    let chunk = |text: &str, finish: Value| {
        let body =
            json!({"choices": [{"text": text, "finish_reason": finish}], "phalanx": {"token_ids": [65]}});
        format!("data: {body}\n\n")
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let piece = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let begun = format!("{head}{}{}", piece(&chunk("Hel", Value::Null)), piece(&chunk("lo", Value::Null)));
    let failed = "data: {\"error\":{\"message\":\"expert 7 of layer 3 is lost\"}}\n\n";
    for (stream, says) in [
        (begun.clone(), "was cut before the answer was complete"),
        (format!("{begun}0\r\n\r\n"), "was cut before the answer was complete"),
        (format!("{begun}{}0\r\n\r\n", piece(failed)), "expert 7 of layer 3 is lost"),
        (format!("{begun}{}0\r\n\r\n", piece("data: [DONE]\n\n")), "without a reason"),
        (format!("{begun}{}0\r\n\r\n", piece("data: {{{\n\n")), "is no answer"),
    ] {
        let (url, thread) = actor(vec![health.clone(), stream]);
        let output = refuse(&["after 2 tokens", says], &["generate", "--cluster", &url, "--prompt", "x"]);
        assert_eq!(output.stdout, b"Hello\n");
        thread.join().unwrap();
    }
    let whole = format!("{begun}{}{}", piece(&chunk("!", json!("stop"))), piece("data: [DONE]\n\n"));
    let (url, thread) = actor(vec![health, whole]);
    assert_eq!(stdout(&["generate", "--cluster", &url, "--prompt", "x"]), "Hello!\n");
    thread.join().unwrap();
}

#[test]
fn status_and_placement_show_the_cluster() {
    let state = json!({"model": "m", "numeric_class": "portable", "epoch": {"term": 1, "number": 2},
        "state": "serving", "missing": [], "nodes": [{"name": "a", "node": 0, "address": "127.0.0.1:1",
        "state": "serving", "devices": [], "labels": {}, "round_trip_us": 80}],
        "experts": {"total": 1, "held": 1, "replicas": 1, "spares": 0},
        "loads": [{"layer": 1, "expert": 0, "replica": 0, "shard": 0, "node": 0, "device": 0, "rows": 5,
        "queued": 0, "busy_us": 9, "service_us": 1.5}], "data": {"running": 0, "tokens": 12}});
    let (url, thread) = actor(vec![ok(&state.to_string()); 4]);
    let text = stdout(&["status", "--cluster", &url]);
    assert!(text.contains("m, portable: serving, epoch 1.2") && text.contains("1 of 1 held"), "{text}");
    let json: Value = serde_json::from_str(&stdout(&["status", "--cluster", &url, "--json"])).unwrap();
    assert_eq!(json, state);
    let text = stdout(&["placement", "--cluster", &url]);
    assert!(text.contains("a device 0\n    layer 1: 0\n"), "{text}");
    let json: Value = serde_json::from_str(&stdout(&["placement", "--cluster", &url, "--json"])).unwrap();
    assert_eq!(json["actors"][0]["node_name"], "a");
    thread.join().unwrap();
}

/// What requests wait for is shown as the cluster says it, one alone too, and one that has ended is refused.
#[test]
fn why_shows_what_requests_wait_for() {
    let server = Server::start();
    let url = server.url();
    for request in [&[][..], &["7"]] {
        let arguments = [&["why", "--cluster", &url][..], request].concat();
        assert_eq!(stdout(&arguments), "request 7: the test holds it\n");
        let json: Value = serde_json::from_str(&stdout(&[&arguments[..], &["--json"]].concat())).unwrap();
        assert_eq!(json["requests"][0]["request"], 7);
    }
    refuse(&["request 8 is not live"], &["why", "8", "--cluster", &url]);
    refuse(&["there is nothing at"], &["why", "--cluster", &format!("{url}/v1")]);
    assert_eq!(phalanx(&["why", "x"]).status.code(), Some(2), "a request has a number");
}

/// `phalanx chat` with its three pipes.
fn chat(server: &Server, arguments: &[&str]) -> Child {
    let mut command = command(&["chat", "--cluster", &server.url(), "--temperature", "0"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What the API answers to a conversation.
fn answered(server: &Server, messages: &Value) -> String {
    let body = json!({"messages": messages, "temperature": 0, "max_tokens": 9}).to_string();
    let answer = server.post("/v1/chat/completions", &body).json();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// A later message is answered with the earlier ones in mind.
#[test]
fn a_chat_keeps_its_conversation() {
    let server = Server::start();
    let mut child = chat(&server, &["--max-tokens", "9"]);
    child.stdin.take().unwrap().write_all(b"sort 7315=\n\nrev abcde=\n").unwrap();
    let mut messages = json!([{"role": "user", "content": "sort 7315="}]);
    let first = answered(&server, &messages);
    assert_eq!(first, "1357;");
    let more =
        [json!({"role": "assistant", "content": first}), json!({"role": "user", "content": "rev abcde="})];
    messages.as_array_mut().unwrap().extend(more);
    let second = answered(&server, &messages);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let expected = if second.is_empty() { format!("{first}\n\n") } else { format!("{first}\n{second}\n") };
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

    // A program hears of what went wrong.
    let mut child = chat(&server, &[]);
    child.stdin.take().unwrap().write_all("x".repeat(600).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
    assert!(shown(&output).contains("context is 512"), "{}", shown(&output));
}

/// Ctrl-C ends the answer and leaves nobody computing it; the next ends the program.
#[test]
fn a_chat_is_interrupted() {
    let server = Server::start();
    let mut child = chat(&server, &[]);
    let interrupt = |child: &Child| {
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    };
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    server.hold_after(2);
    input.write_all(b"sort 7315=\n").unwrap();
    let mut said = [0; 2];
    output.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"13");
    interrupt(&child);
    server.wait("the cancel", |server| server.cancelled() == 1 && server.running() == 0);
    server.hold(false);
    let mut end = [0; 1];
    output.read_exact(&mut end).unwrap();
    assert_eq!(&end, b"\n");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Stands between clients and a server, and cuts the first answers to POST after so many bytes each. Counts those who came to go
/// on.
fn cutting_proxy(server: &Server, cuts: Vec<usize>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let address = server.url().strip_prefix("http://").unwrap().to_owned();
    let resumed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&resumed);
    std::thread::spawn(move || {
        let mut cuts = cuts.into_iter();
        for client in listener.incoming() {
            let (mut client, mut upstream) = (client.unwrap(), TcpStream::connect(&address).unwrap());
            let mut head = vec![0; 64 << 10];
            let length = client.read(&mut head).unwrap();
            let text = String::from_utf8_lossy(&head[..length]).into_owned();
            count.fetch_add(usize::from(text.contains("last-event-id:")), Ordering::SeqCst);
            upstream.write_all(&head[..length]).unwrap();
            let limit = if text.starts_with("POST") { cuts.next() } else { None };
            let (mut asks, mut asked) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
            std::thread::spawn(move || {
                // An error is a client that has heard enough.
                let _ = std::io::copy(&mut (&upstream).take(limit.unwrap_or(usize::MAX) as u64), &mut client);
                let _ = client.shutdown(Shutdown::Both);
                let _ = upstream.shutdown(Shutdown::Both);
            });
        }
    });
    (url, resumed)
}

/// Connections that break now and then are not seen in an answer: the client goes on where it was, and says so beside it.
#[test]
fn a_cut_answer_is_gone_on_with() {
    let server = Server::start();
    let arguments =
        ["--prompt", "x", "--temperature", "4", "--seed", "5", "--max-tokens", "60", "--ignore-eos"];
    let whole = stdout(&[&["generate", "--cluster", &server.url()], &arguments[..]].concat());
    let cuts = vec![900, 1_500, 700, 2_345];
    let (url, resumed) = cutting_proxy(&server, cuts.clone());
    let output = phalanx(&[&["generate", "--cluster", &url], &arguments[..]].concat());
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), whole, "{}", shown(&output));
    let notes = String::from_utf8_lossy(&output.stderr);
    assert_eq!(notes.matches("going on where it was").count(), cuts.len(), "{notes}");

    let mut child = command(&["chat", "--cluster", &url, "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"sort 7315=\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1357;\n", "{}", shown(&output));
    assert_eq!(resumed.load(Ordering::SeqCst), cuts.len());
}
