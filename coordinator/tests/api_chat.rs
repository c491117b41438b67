//! Chats and several choices, as clients meet them: what they get is what completions of the same ids get, which `api.rs`
//! compares with the plain loop.

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::{Value, json};
use server::{Answer, Server};

/// The demo model's template puts this before the question.
const BOS: u32 = 256;

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn ask(server: &Server, body: &Value) -> Answer {
    server.post("/v1/chat/completions", &body.to_string())
}

fn answer(server: &Server, body: &Value) -> Value {
    let answer = ask(server, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The demo model was trained on its template: the right answer comes only through it.
#[test]
fn a_chat_is_answered_rightly() {
    let server = Server::start();
    for (question, expected) in [("sort 7315=", "1357;"), ("add 417+385=", "802;")] {
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": question}]}]);
        for messages in [user(question), parts] {
            let found = answer(&server, &json!({"messages": messages, "temperature": 0, "model": "demo"}));
            assert_eq!(found["object"], "chat.completion");
            let message = json!({"role": "assistant", "content": expected, "refusal": null});
            let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
            assert_eq!(found["choices"], json!([choice]));
        }
    }
    // A second turn reads the first one.
    let turns = json!([{"role": "user", "content": "sort 7315="}, {"role": "assistant", "content": "1357;"},
        {"role": "user", "content": "rev abcde="}]);
    let body = json!({"messages": turns, "temperature": 0, "max_completion_tokens": 1,
        "phalanx": {"return_token_ids": true}});
    let found = answer(&server, &body);
    let mut prompt = vec![BOS];
    prompt.extend(b"sort 7315=1357;".map(u32::from));
    prompt.push(257);
    prompt.extend(b"rev abcde=".map(u32::from));
    assert_eq!(found["phalanx"]["prompt_token_ids"], json!(prompt));
    assert_eq!(found["usage"]["completion_tokens"], 1);
}

/// The same ids, seed and parameters are the same answer, whichever way they are asked for.
#[test]
fn a_chat_is_a_completion_of_its_prompt() {
    let server = Server::start();
    let mut common = json!({"temperature": 2.5, "seed": 9, "max_tokens": 40, "ignore_eos": true, "top_k": 50,
        "presence_penalty": 0.5, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "logit_bias": {"65": 3},
        "stop": ["zz"], "phalanx": {"return_token_ids": true}});
    let mut prompt = vec![BOS];
    prompt.extend(b"day Fri+3=".map(u32::from));
    let mut text = common.clone();
    (text["prompt"], text["logprobs"]) = (json!(prompt), json!(2));
    let text = server.post("/v1/completions", &text.to_string()).json();
    common["messages"] = user("day Fri+3=");
    (common["logprobs"], common["top_logprobs"]) = (json!(true), json!(2));
    let chat = answer(&server, &common);
    assert_eq!(chat["phalanx"], text["phalanx"]);
    assert_eq!(chat["choices"][0]["message"]["content"], text["choices"][0]["text"]);
    assert_eq!(chat["usage"], text["usage"]);
    let content = chat["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let logprobs = &text["choices"][0]["logprobs"];
    assert_eq!(content.len(), 40);
    for (index, token) in content.iter().enumerate() {
        assert_eq!(token["token"], logprobs["tokens"][index]);
        assert_eq!(token["logprob"], logprobs["token_logprobs"][index]);
        let top = token["top_logprobs"].as_array().unwrap();
        let expected = text["phalanx"]["top_logprobs"][index].as_array().unwrap();
        assert_eq!(top.len(), 2);
        for (top, expected) in top.iter().zip(expected) {
            assert_eq!(top["logprob"], expected[1]);
            // The demo model's tokens are bytes; half a character has no text of its own.
            let id = expected[0].as_u64().unwrap();
            let bytes = if id < 128 { json!([id]) } else { Value::Null };
            assert!(top["bytes"] == bytes || id >= 256, "{top} {id}");
        }
    }
}

/// Each choice is the answer of a request alone with the seed that is so much higher, whole and streamed.
#[test]
fn choices_are_answers_of_their_own() {
    let server = Server::start();
    let messages = json!({"messages": user("x"), "temperature": 3, "max_tokens": 30, "ignore_eos": true});
    let prompt = json!({"prompt": "x", "temperature": 3, "max_tokens": 30, "ignore_eos": true});
    for (path, common, text) in
        [("/v1/chat/completions", messages, "/message/content"), ("/v1/completions", prompt, "/text")]
    {
        let alone = |seed: u64| {
            let mut body = common.clone();
            body["seed"] = json!(seed);
            server.post(path, &body.to_string()).json()["choices"][0].pointer(text).unwrap().clone()
        };
        let expected = [alone(40), alone(41), alone(42)];
        assert!(expected[0] != expected[1] && expected[1] != expected[2]);
        let mut body = common.clone();
        (body["seed"], body["n"]) = (json!(40), json!(3));
        let found = server.post(path, &body.to_string()).json();
        for (index, expected) in expected.iter().enumerate() {
            assert_eq!(found["choices"][index].pointer(text), Some(expected));
            assert_eq!(found["choices"][index]["index"], index);
        }
        assert_eq!(found["usage"]["completion_tokens"], 90);
        (body["stream"], body["stream_options"]) = (json!(true), json!({"include_usage": true}));
        let (mut chunks, end) = server.post(path, &body.to_string()).chunks();
        assert_eq!((end.as_str(), &chunks.pop().unwrap()["usage"]), ("[DONE]", &found["usage"]));
        let (mut texts, mut ends) = ([const { String::new() }; 3], 0);
        for chunk in &chunks {
            let choice = &chunk["choices"][0];
            let index = choice["index"].as_u64().unwrap() as usize;
            let piece = choice["text"].as_str().or(choice["delta"]["content"].as_str());
            let is_first = texts[index].is_empty();
            assert!(path == "/v1/completions" || is_first == choice["delta"]["role"].is_string());
            texts[index] += piece.unwrap_or("");
            ends += usize::from(choice["finish_reason"] == "length");
        }
        assert_eq!((json!(texts), ends), (json!(expected), 3));
    }
    server.wait("the end of all", |server| server.running() == 0);
    assert_eq!(server.cancelled(), 0);
}

/// A client that goes takes all its choices with it, and one that is refused takes the others.
#[test]
fn choices_end_together() {
    let server = Server::start();
    server.hold(true);
    let client = server.begin(&json!({"prompt": "x", "n": 3, "max_tokens": 9, "stream": true}).to_string());
    server.wait("three of them", |server| server.running() == 3);
    drop(client);
    server.wait("the cancels", |server| server.cancelled() == 3 && server.running() == 0);
    for stream in [true, false] {
        let body = json!({"messages": user("x"), "n": 2, "stream": stream, "phalanx": {"deadline_ms": 150}});
        let answer = ask(&server, &body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (504, &json!("deadline_exceeded")));
    }
    server.set_busy(true);
    assert_eq!(ask(&server, &json!({"messages": user("x"), "n": 2, "stream": true})).status, 429);
}

/// What comes in pieces is what comes whole; the first says whose turn it is, the last why it ended.
#[test]
fn a_stream_of_a_chat_put_together_is_the_plain_answer() {
    let server = Server::start();
    let mut body = json!({"messages": user("rev abcde="), "temperature": 3, "seed": 11, "max_tokens": 60,
        "stop": ["5"], "ignore_eos": true, "logprobs": true, "top_logprobs": 1});
    let plain = answer(&server, &body);
    body["stream"] = json!(true);
    let stream = ask(&server, &body);
    assert!(stream.headers.contains("text/event-stream"), "{}", stream.headers);
    let (chunks, end) = stream.chunks();
    assert_eq!(end, "[DONE]");
    let choice = &plain["choices"][0];
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), choice["message"]["content"]);
    let likely: Vec<&Value> =
        chunks.iter().flat_map(|c| c["choices"][0]["logprobs"]["content"].as_array().unwrap()).collect();
    assert_eq!(json!(likely), choice["logprobs"]["content"]);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c.get("usage").is_none()));
    let roles = chunks.iter().filter(|c| c["choices"][0]["delta"]["role"] == "assistant").count();
    assert_eq!((roles, &chunks[0]["choices"][0]["delta"]["role"]), (1, &json!("assistant")));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], choice["finish_reason"]);
}

#[test]
fn refusals_of_chats_have_status_and_shape() {
    let server = Server::start();
    let with = |name: &str, value: Value| {
        let mut body = json!({"messages": user("x"), "max_tokens": 1});
        body[name] = value;
        body.to_string()
    };
    for (body, status, code, param) in [
        ("{\"messages\": ".into(), 400, "invalid_json", Value::Null),
        ("x".repeat(5 << 20), 413, "body_too_large", Value::Null),
        (with("messages", json!(7)), 400, "invalid_value", json!("messages")),
        (with("messages", user(&"x".repeat(600))), 400, "context_length_exceeded", json!("messages")),
        (with("messages", user(&"x".repeat(100_000))), 400, "context_length_exceeded", json!("messages")),
        (with("model", json!("gpt-4")), 404, "model_not_found", json!("model")),
        (with("prompt", json!("x")), 400, "unsupported_parameter", json!("prompt")),
        (with("tools", json!([{}])), 400, "invalid_value", json!("tools[0].type")),
        (
            with("response_format", json!({"type": "json_schema", "json_schema": {"schema": {"not": {}}}})),
            400,
            "invalid_value",
            json!("response_format.json_schema.schema"),
        ),
        (with("max_completion_tokens", json!("1")), 400, "invalid_value", json!("max_completion_tokens")),
    ] {
        let answer = server.post("/v1/chat/completions", &body);
        let error = answer.json()["error"].clone();
        assert_eq!(
            (answer.status, &error["code"], &error["param"]),
            (status, &json!(code), &param),
            "{error}"
        );
        assert_eq!(error["type"], "invalid_request_error");
    }
    // Broken brackets deep enough to overflow a stack that follows them.
    let deep = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": {}1{}}}]}}",
        "[".repeat(1 << 20),
        "]".repeat(1 << 20)
    );
    assert_eq!(server.post("/v1/chat/completions", &deep).status, 400);
    assert_eq!(
        answer(&server, &json!({"messages": user("x"), "max_tokens": 1}))["usage"]["completion_tokens"],
        1
    );
}

/// Whoever watches sees each request once, by how it ended.
#[test]
fn requests_are_counted_by_their_end() {
    let server = Server::start();
    let wild = |n: usize| json!({"prompt": "x", "n": n, "max_tokens": 5, "ignore_eos": true}).to_string();
    assert_eq!(server.post("/v1/completions", &wild(3)).status, 200);
    answer(&server, &json!({"messages": user("sort 7315="), "temperature": 0}));
    assert_eq!(server.post("/v1/completions", "{}").status, 400);
    server.set_busy(true);
    assert_eq!(server.post("/v1/completions", &wild(1)).status, 429);
    server.set_busy(false);
    server.hold_after(2);
    let late = json!({"prompt": "x", "ignore_eos": true, "phalanx": {"deadline_ms": 150}}).to_string();
    assert_eq!(server.post("/v1/completions", &late).status, 504);
    let client = server.begin(&wild(2));
    server.wait("two of them", |server| server.running() == 2);
    drop(client);
    server.wait("the cancels", |server| server.cancelled() == 2 && server.running() == 0);
    let metrics = server.get("/metrics");
    assert!(metrics.headers.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.headers);
    let text = metrics.text();
    for (outcome, count) in [
        ("stop", 1),
        ("length", 3),
        ("cancelled", 2),
        ("refused", 1),
        ("busy", 1),
        ("late", 1),
        ("failed", 0),
    ] {
        let line = format!("phalanx_requests_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}_count ")));
        line.unwrap().parse::<usize>().unwrap()
    };
    // Three answers of five tokens and one of five: `1357;`. Of those that were held nobody may have heard.
    assert!((4..=7).contains(&count("phalanx_token_first_seconds")), "{text}");
    assert!((16..=19).contains(&count("phalanx_token_next_seconds")), "{text}");
}
