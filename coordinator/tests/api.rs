//! The API as clients meet it: raw HTTP over sockets, odd and hostile input too. Whoever computes is the plain loop on
//! the demo model in a thread, so that nothing here depends on a cluster, and tokens have an oracle.

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use coordinator::api::{Limits, State};
use serde_json::{Value, json};
use server::{Answer, Server, greedy};

const PROMPT: &str = "sort 7315=";

fn completion(server: &Server, body: &Value) -> Answer {
    server.post("/v1/completions", &body.to_string())
}

/// Tokens of the plain loop, through HTTP, are the tokens of the plain loop.
#[test]
fn an_answer_is_that_of_the_plain_loop() {
    let server = Server::start();
    let body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "ignore_eos": true, "logprobs": 2,
        "phalanx": {"return_token_ids": true}});
    let answer = completion(&server, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let found = answer.json();
    let (prompt, tokens) = greedy(PROMPT, 12);
    assert_eq!(found["phalanx"]["prompt_token_ids"], json!(prompt));
    assert_eq!(found["phalanx"]["token_ids"], json!(tokens));
    assert_eq!(found["choices"][0]["finish_reason"], "length");
    let usage = json!({"prompt_tokens": prompt.len(), "completion_tokens": 12, "total_tokens": prompt.len() + 12,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(found["usage"], usage);
    assert_eq!((&found["object"], &found["model"]), (&json!("text_completion"), &json!("demo")));
    let logprobs = &found["choices"][0]["logprobs"];
    let (chosen, top) = (&logprobs["token_logprobs"], &found["phalanx"]["top_logprobs"]);
    for (chosen, top) in chosen.as_array().unwrap().iter().zip(top.as_array().unwrap()) {
        assert_eq!((chosen, top.as_array().unwrap().len()), (&top[0][1], 2), "greedy takes the likeliest");
    }
    assert_eq!(logprobs["text_offset"][0], 0);

    // The prompt as ids is the same prompt, and so is one alone in a list.
    for prompt in [json!(prompt), json!([PROMPT]), json!([prompt])] {
        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": true});
        assert_eq!(completion(&server, &body).json()["choices"][0]["text"], found["choices"][0]["text"]);
    }
}

/// All elements of the lists at a place in the chunks of a stream.
fn joined(chunks: &[Value], place: &str) -> Value {
    let lists = chunks.iter().filter_map(|chunk| chunk.pointer(place)?.as_array());
    lists.flatten().cloned().collect()
}

/// What comes in pieces is what comes whole, for text, ids and logprobs, at any temperature.
#[test]
fn a_stream_put_together_is_the_plain_answer() {
    let server = Server::start();
    let mut reasons = Vec::new();
    for (temperature, stop) in [(0.0, vec![]), (3.0, vec![]), (3.0, vec!["5", "e"]), (100.0, vec!["</s>"])] {
        let mut body = json!({"prompt": "rev abcde=", "temperature": temperature, "seed": 11, "max_tokens": 60,
            "stop": stop, "ignore_eos": true, "logprobs": 1, "phalanx": {"return_token_ids": true}});
        let plain = completion(&server, &body).json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let stream = completion(&server, &body);
        assert!(stream.headers.contains("text/event-stream"), "{}", stream.headers);
        let (chunks, end) = stream.chunks();
        assert_eq!(end, "[DONE]");
        let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
        assert_eq!(json!(text), plain["choices"][0]["text"]);
        for place in [
            "/phalanx/token_ids",
            "/choices/0/logprobs/tokens",
            "/choices/0/logprobs/token_logprobs",
            "/choices/0/logprobs/text_offset",
            "/phalanx/top_logprobs",
        ] {
            assert_eq!(Some(&joined(&chunks, place)), plain.pointer(place), "{place}");
        }
        let (usage, told) = chunks.split_last().unwrap();
        assert_eq!(usage["usage"], plain["usage"]);
        assert!(told.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
        let reason = &told.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(reason, &plain["choices"][0]["finish_reason"]);
        reasons.push(reason.as_str().unwrap().to_owned());
    }
    assert!(reasons.contains(&"stop".into()) && reasons.contains(&"length".into()), "{reasons:?}");
}

/// Each prompt of a list has the answers that it has alone, one after the other, whole and streamed, behind its text if that
/// is asked for.
#[test]
fn listed_prompts_are_requests_of_their_own() {
    let server = Server::start();
    let prompts = ["rev abcde=", "sort 7315=", "é="];
    let common = json!({"temperature": 3, "seed": 5, "max_tokens": 25, "ignore_eos": true, "n": 2});
    let ask = |more: Value| {
        let mut body = common.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        completion(&server, &body)
    };
    let texts = |found: &Value| -> Vec<String> {
        let choices = found["choices"].as_array().unwrap();
        assert!(choices.iter().enumerate().all(|(index, choice)| choice["index"] == index));
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    let alone: Vec<Value> = prompts.iter().map(|prompt| ask(json!({"prompt": prompt})).json()).collect();
    let expected: Vec<String> = alone.iter().flat_map(texts).collect();
    let found = ask(json!({"prompt": prompts})).json();
    assert_eq!(texts(&found), expected);
    let sum = |name: &str| alone.iter().map(|one| one["usage"][name].as_u64().unwrap()).sum::<u64>();
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(found["usage"][name], sum(name), "{name}");
    }
    let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| server::encode(prompt)).collect();
    assert_eq!(texts(&ask(json!({"prompt": ids})).json()), expected);
    let behind: Vec<String> =
        expected.iter().enumerate().map(|(index, text)| format!("{}{text}", prompts[index / 2])).collect();
    for prompt in [json!(prompts), json!(ids)] {
        assert_eq!(texts(&ask(json!({"prompt": prompt, "echo": true})).json()), behind);
        let (chunks, end) = ask(json!({"prompt": prompt, "echo": true, "stream": true})).chunks();
        let mut streamed = vec![String::new(); 6];
        for chunk in &chunks {
            let choice = &chunk["choices"][0];
            streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        }
        assert_eq!((streamed, end.as_str()), (behind.clone(), "[DONE]"));
    }
}

/// Whoever names no seed gets another answer each time, and can have it again.
#[test]
fn an_answer_can_be_had_again_by_its_seed() {
    let server = Server::start();
    let body = json!({"prompt": "x", "temperature": 50, "max_tokens": 30, "ignore_eos": true});
    let text = |body: &Value| {
        let found = completion(&server, body).json();
        (found["choices"][0]["text"].clone(), found["phalanx"]["seed"].clone())
    };
    let (first, second) = (text(&body), text(&body));
    assert_ne!(first, second);
    let mut again = body.clone();
    again["seed"] = first.1.clone();
    assert_eq!(text(&again), first);
}

/// An answer may not be longer than the context, whatever a client asks.
#[test]
fn an_answer_ends_with_the_context() {
    let server = Server::start();
    let context = server.context_max;
    let body = |prompt: usize| json!({"prompt": vec![65; prompt], "temperature": 0, "max_tokens": 1u64 << 60, "ignore_eos": true});
    let found = completion(&server, &body(context - 3)).json();
    assert_eq!(found["usage"]["completion_tokens"], 4);
    assert_eq!(found["choices"][0]["finish_reason"], "length");
    let refused = completion(&server, &body(context + 1));
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
}

/// What is refused says why, in OpenAI's shape, and the next request is answered.
#[test]
fn refusals_have_status_and_shape() {
    let server = Server::start();
    let ok = json!({"prompt": "x", "max_tokens": 1});
    let with = |name: &str, value: Value| {
        let mut body = ok.clone();
        body[name] = value;
        body.to_string()
    };
    for (body, status, says) in [
        (String::new(), 400, "JSON"),
        ("{\"prompt\": ".into(), 400, "JSON"),
        ("[1]".into(), 400, "object"),
        ("[".repeat(1 << 20), 400, "object"),
        ("{\"prompt\": ".to_string() + &"[".repeat(1 << 20) + "}", 400, "JSON"),
        ("{}".into(), 400, "prompt"),
        (with("prompt", json!("")), 400, "empty"),
        (with("prompt", json!([])), 400, "empty"),
        (with("prompt", json!([99999])), 400, "vocabulary"),
        (with("prompt", json!(7)), 400, "`prompt` should be"),
        (with("prompt", json!("x".repeat(100_000))), 400, "context"),
        (with("max_tokens", json!(0)), 400, "`max_tokens`"),
        (with("temperature", json!("warm")), 400, "`temperature` should be a number, found a string"),
        (with("top_p", json!(7)), 400, "top_p is 7"),
        (with("logit_bias", json!({"4000": 1})), 400, "vocabulary"),
        (with("n", json!(33)), 400, "`n`"),
        (with("prompt", json!(["x", ""])), 400, "`prompt[1]` is empty"),
        (with("prompt", json!(["x", "x".repeat(600)])), 400, "context"),
        (with("echo", json!(7)), 400, "`echo`"),
        (with("tools", json!([])), 400, "`tools`"),
        (with("phalanx", json!({"on_missing": "wait"})), 400, "exact"),
        (with("model", json!("gpt-4")), 404, "`demo`"),
    ] {
        let answer = server.post("/v1/completions", &body);
        let shown = format!("{} {}", answer.status, answer.text());
        assert_eq!(answer.status, status, "{shown}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(says), "{says}: {shown}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error.get("param").is_some() && error["code"].is_string(), "{shown}");
        assert!(shown.len() < 800, "{shown}");
    }
    let post = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n";
    let plain_text = format!("{post}content-type: text/plain\r\n\r\n{{}}");
    let no_type = format!("{post}\r\n{{}}");
    for (request, status) in [
        ("GET /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405),
        ("DELETE /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405),
        ("GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
        ("GET /index.html HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
        (&plain_text, 415),
        (&no_type, 415),
    ] {
        let answer = server.raw(request.as_bytes());
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.json()["error"]["message"].is_string(), "{request}");
    }
    assert_eq!(completion(&server, &ok).status, 200);
}

/// Bytes that are no HTTP, or too much of it, cost a connection and nothing else.
#[test]
fn hostile_bytes_harm_nobody() {
    let bound = Duration::from_millis(300);
    let server = Server::with(Limits { body_within: bound * 10, headers_within: bound, ..Limits::default() });
    let big = "x".repeat(5 << 20);
    assert_eq!(server.post("/v1/completions", &big).status, 413);
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    assert_eq!(server.raw(chunked.as_bytes()).status, 413);
    assert_eq!(server.raw(format!("{head}content-length: 99999999999\r\n\r\n").as_bytes()).status, 413);
    // A body that does not come.
    let late = server.raw(format!("{head}content-length: 10\r\n\r\n{{").as_bytes());
    assert_eq!((late.status, &late.json()["error"]["code"]), (408, &json!("body_late")));
    // Headers that do not come, are no headers, or are too many.
    let half = server.connect();
    (&half).write_all(b"POST /v1/comp").unwrap();
    let idle = server.connect();
    let start = Instant::now();
    for mut stream in [half, idle] {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(start.elapsed() < Duration::from_secs(20), "both were ended by the server");
    let many: String = (0..100).map(|i| format!("h{i}: 1\r\n")).collect();
    let many = format!("GET /health HTTP/1.1\r\nconnection: close\r\n{many}\r\n");
    assert_eq!(server.raw(many.as_bytes()).status, 431);
    let long = format!("GET /health HTTP/1.1\r\nlong: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!String::from_utf8_lossy(&server.raw_bytes(long.as_bytes())).contains(" 200 "));
    let bad = format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    for noise in [
        b"\0\0\0\0\r\n\r\n",
        &b"\x16\x03\x01\x02\0"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        bad.as_bytes(),
    ] {
        assert!(!String::from_utf8_lossy(&server.raw_bytes(noise)).contains(" 200 "));
    }
    assert_eq!(completion(&server, &json!({"prompt": "x", "max_tokens": 1})).status, 200);
    server.wait("the end of all", |server| server.running() == 0);
}

/// Two requests sent at once on a connection are answered in order.
#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start();
    let request = |count: usize, close: &str| {
        let body =
            json!({"prompt": "x", "max_tokens": count, "temperature": 0, "ignore_eos": true}).to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        format!("{head}{close}content-length: {}\r\n\r\n{body}", body.len())
    };
    let both =
        server.raw_bytes(format!("{}{}", request(2, ""), request(3, "connection: close\r\n")).as_bytes());
    let both = String::from_utf8_lossy(&both);
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
    let (first, second) = (both.find("\"completion_tokens\":2"), both.find("\"completion_tokens\":3"));
    assert!(first.is_some() && first < second, "{both}");
}

/// A client that goes away must not leave its request computing for nobody.
#[test]
fn a_client_that_goes_is_noticed() {
    let server = Server::start();
    for stream in [true, false] {
        server.hold(true);
        let body = json!({"prompt": "x", "max_tokens": 400, "ignore_eos": true, "stream": stream});
        let client = server.begin(&body.to_string());
        server.wait("a request", |server| server.running() == 1);
        drop(client);
        server.wait("the cancel", |server| server.running() == 0);
        server.hold(false);
    }
    assert_eq!(server.cancelled(), 2);
    // In the middle of a stream that is being read too.
    server.hold_after(3);
    let body = json!({"prompt": "x", "max_tokens": 400, "ignore_eos": true, "stream": true});
    let client = server.begin(&body.to_string());
    client.read_some();
    drop(client);
    server.wait("the cancel", |server| server.cancelled() == 3 && server.running() == 0);
    server.hold(false);
    assert_eq!(completion(&server, &json!({"prompt": "x", "max_tokens": 1})).status, 200);
    assert_eq!(server.cancelled(), 3, "an answer that is complete is not cancelled");
}

/// A request that cannot be answered in its time ends with its own status, streamed or not.
#[test]
fn a_deadline_is_kept() {
    let server = Server::start();
    server.hold(true);
    for stream in [true, false] {
        let body = json!({"prompt": "x", "stream": stream, "phalanx": {"deadline_ms": 150}});
        let answer = completion(&server, &body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (504, &json!("deadline_exceeded")));
        assert!(answer.text().contains("150 ms: the test holds it"), "{}", answer.text());
    }
}

/// A failure after the first token has no status left; the stream says it, and does not say that it is complete.
#[test]
fn a_stream_that_fails_says_so() {
    let server = Server::start();
    server.hold_after(3);
    let body = json!({"prompt": "x", "max_tokens": 50, "ignore_eos": true, "stream": true,
        "phalanx": {"deadline_ms": 1000, "return_token_ids": true}});
    let answer = completion(&server, &body);
    assert_eq!(answer.status, 200);
    let (chunks, end) = answer.chunks();
    assert_eq!(joined(&chunks, "/phalanx/token_ids").as_array().unwrap().len(), 3);
    let end: Value = serde_json::from_str(&end).unwrap();
    assert_eq!(end["error"]["code"], "deadline_exceeded");
}

/// Clients list models before they ask, and look one up by a name that may have a slash.
#[test]
fn the_model_is_listed() {
    let server = Server::start();
    let list = server.get("/v1/models").json();
    let one = &list["data"][0];
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 1));
    assert_eq!((&one["id"], &one["object"]), (&json!("demo"), &json!("model")));
    assert_eq!((&one["max_model_len"], &one["owned_by"]), (&json!(server.context_max), &json!("phalanx")));
    assert!(one["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(&server.get("/v1/models/demo").json(), one);
    assert_eq!(&server.get("/v1/models/d%65mo").json(), one);
    for other in ["some/model", "%ff", "demo%2F"] {
        let answer = server.get(&format!("/v1/models/{other}"));
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")));
    }
    assert_eq!(server.post("/v1/models", "{}").status, 405);
}

/// Ids of a text are those that its completion begins with, and their text is that text.
#[test]
fn texts_become_ids_and_ids_become_texts() {
    let server = Server::start();
    for text in [PROMPT, "", "é\u{1F600}\n", "<|bos|>x", &"long ".repeat(5000)] {
        let answer = server.post("/tokenize", &json!({"prompt": text, "model": "demo"}).to_string()).json();
        let ids = server::encode(text);
        assert_eq!(answer["tokens"], json!(ids));
        assert_eq!((&answer["count"], &answer["token_strs"]), (&json!(ids.len()), &Value::Null));
        assert_eq!(answer["max_model_len"], server.context_max);
        let back = server.post("/detokenize", &json!({"tokens": ids}).to_string());
        assert_eq!(back.json(), json!({"prompt": text}));
    }
    let body = json!({"prompt": "a", "return_token_strs": true, "add_special_tokens": false});
    assert_eq!(server.post("/tokenize", &body.to_string()).json()["token_strs"], json!(["a"]));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": [1]}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "tokens": 1}), "tokens"),
        ("/tokenize", json!({"prompt": "x", "add_special_tokens": 1}), "add_special_tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/detokenize", json!({"tokens": [99999]}), "tokens"),
    ] {
        let answer = server.post(path, &body.to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{path} {body}");
    }
    assert_eq!(server.post("/tokenize", &json!({"prompt": "x", "model": "m"}).to_string()).status, 404);
}

/// Busy, loading and stopping are told apart, and each says when to come again.
#[test]
fn who_cannot_be_served_now_hears_when_to_come_again() {
    let server = Server::start();
    let body = json!({"prompt": "x", "max_tokens": 1});
    server.set_busy(true);
    let answer = completion(&server, &body);
    assert_eq!(answer.status, 429);
    assert!(answer.headers.contains("retry-after: 9") && answer.text().contains("rate_limit_error"));
    server.set_busy(false);
    server.set_state(State::Loading, "12 of 64 experts have no holder; nodes: 2");
    let (answer, health) = (completion(&server, &body), server.get("/health"));
    for answer in [&answer, &health, &server.get("/ready")] {
        assert_eq!(answer.status, 503);
        assert!(answer.headers.contains("retry-after: ") && answer.text().contains("12 of 64 experts"));
    }
    assert_eq!(health.json()["status"], "loading");
    // An expert that is lost is waited for by those who need it.
    server.set_state(State::Waiting, "1 of 64 experts has no holder");
    assert_eq!(completion(&server, &body).status, 200);
    assert_eq!((server.get("/health").status, server.get("/ready").status), (503, 200));
    server.set_state(State::Serving, "");
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("serving")));
    assert_eq!(health.json()["context_max"], server.context_max);
    assert_eq!(server.get("/cluster").json()["model"], "demo");
}

/// Clients that do not read hold up nobody else, and their own requests end all the same.
#[test]
fn slow_clients_hold_up_nobody() {
    let server = Server::with(Limits { stall_max: Duration::from_millis(500), ..Limits::default() });
    // Large answers: twenty alternatives of each token, in words and ids.
    let body = json!({"prompt": "x", "max_tokens": 1u64 << 40, "ignore_eos": true, "stream": true, "logprobs": 20,
        "temperature": 100, "phalanx": {"return_token_ids": true}});
    let slow: Vec<_> = (0..40).map(|_| server.begin(&body.to_string())).collect();
    server.wait("all of them", |server| server.submitted() == 40);
    assert_eq!(completion(&server, &json!({"prompt": "x", "max_tokens": 4})).status, 200);
    server.wait("their end", |server| server.running() == 0);
    drop(slow);
}

/// Two hundred at once, each with an answer of its own, all of them those of the plain loop.
#[test]
fn two_hundred_connections() {
    let server = Server::start();
    let prompts = [PROMPT, "rev abcde=", "add 417+385=", "day Fri+3="];
    let oracle: Vec<_> = prompts.iter().map(|prompt| greedy(prompt, 8).1).collect();
    std::thread::scope(|scope| {
        for i in 0..200usize {
            let (server, oracle) = (&server, &oracle);
            scope.spawn(move || {
                let body = json!({"prompt": prompts[i % 4], "temperature": 0, "max_tokens": 8, "ignore_eos": true,
                    "stream": i % 3 == 0, "phalanx": {"return_token_ids": true}});
                let answer = completion(server, &body);
                assert_eq!(answer.status, 200, "{}", answer.text());
                let ids = match i % 3 {
                    0 => joined(&answer.chunks().0, "/phalanx/token_ids"),
                    _ => answer.json()["phalanx"]["token_ids"].clone(),
                };
                assert_eq!(ids, json!(oracle[i % 4]), "client {i}");
            });
        }
    });
    server.wait("the end of all", |server| server.running() == 0);
    assert_eq!(server.cancelled(), 0);
}

/// One connection more than may be is told so, and a place that is free is free.
#[test]
fn too_many_connections_are_turned_away() {
    let server = Server::with(Limits { connections_max: 2, ..Limits::default() });
    let held: Vec<_> = (0..2).map(|_| server.connect()).collect();
    assert!(server.raw_bytes(b"").starts_with(b"HTTP/1.1 503"));
    drop(held);
    server.wait("a free place", |server| {
        let answer = server.raw_bytes(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        answer.starts_with(b"HTTP/1.1 200")
    });
}

/// What runs when the server stops ends well, and a connection without a request is not waited for.
#[test]
fn stopping_lets_what_runs_end() {
    let server = Server::with(Limits { stop_within: Duration::from_secs(40), ..Limits::default() });
    server.hold_after(2);
    let body = json!({"prompt": "x", "max_tokens": 20, "ignore_eos": true, "stream": true}).to_string();
    let (idle, client) = (server.connect(), server.begin(&body));
    server.wait("a request", |server| server.running() == 1);
    let stopping = server.stop();
    server.wait("a closed door", |server| server.try_connect().is_err());
    assert!(!stopping.is_finished(), "a request is under way");
    server.hold(false);
    let (chunks, end) = client.read().chunks();
    assert_eq!(end, "[DONE]", "{chunks:?}");
    let start = Instant::now();
    stopping.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "the idle connection is not waited for");
    drop(idle);
}

/// What never ends is cut when the server stops, and cancelled.
#[test]
fn stopping_cuts_what_does_not_end() {
    let server = Server::with(Limits { stop_within: Duration::from_millis(100), ..Limits::default() });
    server.hold(true);
    let client = server.begin(&json!({"prompt": "x", "max_tokens": 20}).to_string());
    server.wait("a request", |server| server.running() == 1);
    server.stop().join().unwrap();
    server.wait("the cancel", |server| server.running() == 0);
    assert!(client.read_bytes().is_empty(), "it was cut before it began");
}
