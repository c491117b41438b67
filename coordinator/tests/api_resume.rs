//! Streams that were cut: whatever a client has, the rest follows, and the whole is what it would have had without the cut.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use std::path::Path;

use serde_json::{Value, json};
use server::{Answer, Server};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn resume(server: &Server, path: &str, id: &str, body: &Value) -> Answer {
    server.post_with(path, &format!("Last-Event-ID: {id}\r\n"), &body.to_string())
}

/// All that a stream has told of one choice.
#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    text: String,
    tokens: Vec<Value>,
    /// Logprobs, ids and offsets, list by list.
    lists: Vec<Vec<Value>>,
    roles: usize,
    finishes: Vec<Value>,
    usage: Vec<Value>,
    is_done: bool,
}

impl Told {
    fn take(&mut self, data: &str) {
        if data == "[DONE]" {
            self.is_done = true;
            return;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        assert_eq!(chunk.get("error"), None, "{chunk}");
        self.usage.extend(chunk.get("usage").filter(|usage| usage.is_object()).cloned());
        let Some(choice) = chunk["choices"].get(0) else { return };
        let delta = &choice["delta"];
        self.text += choice["text"].as_str().or(delta["content"].as_str()).unwrap_or_default();
        self.roles += usize::from(delta.get("role").is_some());
        self.finishes.extend(choice.get("finish_reason").filter(|reason| !reason.is_null()).cloned());
        let lists = [
            &chunk["phalanx"]["token_ids"],
            &chunk["phalanx"]["prompt_token_ids"],
            &choice["logprobs"]["tokens"],
            &choice["logprobs"]["token_logprobs"],
            &choice["logprobs"]["text_offset"],
            &choice["logprobs"]["content"],
        ];
        self.lists.resize(lists.len(), Vec::new());
        for (all, list) in self.lists.iter_mut().zip(lists) {
            all.extend(list.as_array().into_iter().flatten().cloned());
        }
        self.tokens.extend(chunk["phalanx"]["token_ids"].as_array().into_iter().flatten().cloned());
    }
}

/// Cuts a stream after each of its events, and goes on: with the same body, and where the tokens are known, with them too.
fn check_every_cut(server: &Server, path: &str, body: &Value, what: &str) -> Told {
    let answer = server.post(path, &body.to_string());
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    let events = answer.events();
    let mut whole = Told::default();
    events.iter().for_each(|(_, data)| whole.take(data));
    assert!(whole.is_done, "{what}");
    let mut so_far = Told::default();
    let mut before = String::new();
    for (id, data) in &events {
        so_far.take(data);
        let Some(id) = id else { continue };
        assert!(id.len() <= 64, "{id}");
        assert_ne!(*id, before, "{what}: every event is a place of its own");
        before.clone_from(id);
        let with_tokens = |body: &Value| {
            let mut body = body.clone();
            body["phalanx"]["tokens"] = so_far.tokens.clone().into();
            body
        };
        let knows_tokens = body["phalanx"]["return_token_ids"] == true;
        let bodies = std::iter::once(body.clone()).chain(knows_tokens.then(|| with_tokens(body)));
        for body in bodies {
            let rest = resume(server, path, id, &body);
            assert_eq!(rest.status, 200, "{what}: {}", rest.text());
            let mut both = so_far.clone();
            rest.events().iter().for_each(|(_, data)| both.take(data));
            assert_eq!(both, whole, "{what}: cut after {} tokens, {body}", so_far.tokens.len());
        }
    }
    whole
}

/// Bytes at random, so that characters are cut everywhere; stop strings that are held back half; the end by length, by a stop
/// string, by the model; with and without ids, logprobs and usage.
#[test]
fn a_completion_goes_on_after_every_event() {
    let server = Server::start();
    let mut texts = Vec::new();
    let mut broken = 0;
    for (number, more) in [
        json!({"max_tokens": 40, "temperature": 9, "ignore_eos": true}),
        json!({"max_tokens": 60, "temperature": 4, "stop": ["ab", "\u{fffd}\u{fffd}\u{fffd}9", "e1", "77"]}),
        json!({"max_tokens": 30, "temperature": 0}),
        json!({"max_tokens": 40, "temperature": 2, "logprobs": 2, "frequency_penalty": 0.5, "ignore_eos": true}),
        json!({"max_tokens": 1, "temperature": 1}),
        json!({"max_tokens": 12, "temperature": 2, "echo": true, "logprobs": 1}),
        json!({"max_tokens": 0, "echo": true, "logprobs": 0}),
    ]
    .iter()
    .enumerate()
    {
        for (prompt, seed, extension) in [
            (json!("sort 4921="), 5, json!({"return_token_ids": true})),
            (json!([120, 61]), 6, json!({})),
            (json!("é"), 7, json!({"return_token_ids": true, "priority": 1})),
        ] {
            let mut body = json!({"prompt": prompt, "seed": seed, "stream": true, "phalanx": extension});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            if seed != 5 {
                body["stream_options"] = json!({"include_usage": true});
            }
            let told = check_every_cut(&server, TEXT, &body, &format!("{number}, {seed}"));
            broken += usize::from(told.text.contains(char::REPLACEMENT_CHARACTER));
            texts.push(told.text);
            let mut plain = body.clone();
            plain["stream"] = false.into();
            plain.as_object_mut().unwrap().remove("stream_options");
            assert_eq!(server.post(TEXT, &plain.to_string()).json()["choices"][0]["text"], texts[texts.len() - 1]);
        }
    }
    assert!(broken > 3, "{broken} texts have characters that are none: {texts:?}");
}

/// A seed that nobody named and the time that a template showed are in the id.
#[test]
fn a_chat_goes_on_after_every_event() {
    let server = Server::start();
    for more in [
        json!({"max_tokens": 30, "temperature": 5, "ignore_eos": true, "logprobs": true, "top_logprobs": 1}),
        json!({"temperature": 0, "stream_options": {"include_usage": true}}),
        json!({"temperature": 3, "max_tokens": 20, "phalanx": {"return_token_ids": true}}),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "sort 7315="}], "stream": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let told = check_every_cut(&server, CHAT, &body, &more.to_string());
        assert_eq!((told.roles, told.finishes.len()), (1, 1));
    }
}

/// Models of several families with tokenizers of their own, sampled.
#[test]
fn every_fixture_goes_on() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for name in ["mixtral", "deepseekv2", "qwen3moe", "gptoss"] {
        let server = Server::of(&fixtures.join(name), name, Default::default());
        let body = json!({"prompt": "Der Kätzchen 猫 🙂", "max_tokens": 24, "temperature": 1.5, "seed": 3,
            "stream": true, "ignore_eos": true, "phalanx": {"return_token_ids": true}});
        let told = check_every_cut(&server, TEXT, &body, name);
        assert_eq!(told.tokens.len(), 24, "{name}");
    }
}

/// Each choice of several goes on by itself, under its own number.
#[test]
fn one_choice_of_several_goes_on() {
    let server = Server::start();
    let body = json!({"prompt": "rev abc=", "n": 3, "max_tokens": 12, "temperature": 3, "seed": 9, "stream": true,
        "ignore_eos": true});
    let events = server.post(TEXT, &body.to_string()).events();
    let choice = |data: &str| -> (u64, String) {
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap().to_owned())
    };
    for index in 0..3 {
        let all: Vec<_> =
            events.iter().filter(|(id, data)| id.is_some() && choice(data).0 == index).collect();
        let text: String = all.iter().map(|(_, data)| choice(data).1).collect();
        let (id, first) = all[0];
        let rest = resume(&server, TEXT, id.as_ref().unwrap(), &body).events();
        let (done, rest) = rest.split_last().unwrap();
        assert_eq!(done.1, "[DONE]");
        assert!(rest.iter().all(|(_, data)| choice(data).0 == index));
        let gone_on: String = rest.iter().map(|(_, data)| choice(data).1).collect();
        assert_eq!(choice(first).1 + &gone_on, text);
    }
}

/// Nothing goes on with what is not the same, and it is said what differs.
#[test]
fn what_differs_is_refused_by_name() {
    let server = Server::start();
    let body = json!({"prompt": "rev abc=", "max_tokens": 12, "temperature": 3, "seed": 9, "stream": true,
        "ignore_eos": true, "phalanx": {"return_token_ids": true}});
    let events = server.post(TEXT, &body.to_string()).events();
    let id = events[5].0.as_deref().unwrap();
    let with = |name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    let tokens = |tokens: Value| with("phalanx", json!({"return_token_ids": true, "tokens": tokens}));
    for (id, body, status, param) in [
        (id, with("prompt", json!("rev abd=")), 409, "prompt"),
        (id, with("temperature", json!(2)), 409, "parameters"),
        (id, with("stop", json!(["x"])), 409, "parameters"),
        (id, with("n", json!(2)), 400, "phalanx.return_token_ids"),
        (id, with("seed", json!(8)), 409, "seed"),
        (id, with("stream", json!(false)), 400, "Last-Event-ID"),
        (id, tokens(json!([1, 2])), 409, "phalanx.tokens"),
        (id, tokens(json!([1, 2, 3, 4, 5, 6])), 409, "phalanx.tokens"),
        ("7", body.clone(), 400, "Last-Event-ID"),
    ] {
        let answer = resume(&server, TEXT, id, &body);
        assert_eq!(answer.status, status, "{param}: {}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text());
    }
    let answer = server.post(TEXT, &tokens(json!([1])).to_string());
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("phalanx.tokens")));
    // Another model, and the same model under another name.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3moe");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model");
    for (dir, name) in [(fixtures, "demo"), (demo, "other")] {
        let other = Server::of(&dir, name, Default::default());
        let answer = resume(&other, TEXT, id, &body);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (409, &json!("model")));
    }
    // What does not decide over the answer may differ.
    let answer = resume(&server, TEXT, id, &with("stream_options", json!({"include_usage": true})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.cancelled(), 0);
}
