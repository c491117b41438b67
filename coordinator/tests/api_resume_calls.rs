//! Streams with calls that were cut, also inside a call: the rest follows as if there had been no cut.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::{Value, json};
use server::{Made, Server};

const CHAT: &str = "/v1/chat/completions";
/// Templates in the manner of Qwen, of GLM and of Llama. Of tools they say how many there are: the demo model has room
/// for few words.
const TEMPLATES: [&str; 3] = [
    "{{ tools | length }}{{ messages[0].content }}={% if false %}<tool_call>{% endif %}",
    "{{ tools | length }}{{ messages[0].content }}={% if false %}<tool_call><arg_key>{% endif %}",
    "{{ tools | length }}{{ messages[0].content }}={% if false %}{\"name\": function name, \"parameters\": {% endif %}",
];

/// A call as its deltas put it together.
#[derive(Debug, Default, Clone, PartialEq)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

/// All that a stream has told.
#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    roles: usize,
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    tokens: Vec<Value>,
    finishes: Vec<Value>,
    is_done: bool,
}

impl Told {
    fn take(&mut self, data: &str) {
        if data == "[DONE]" {
            self.is_done = true;
            return;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        self.roles += usize::from(delta.get("role").is_some());
        self.content += delta["content"].as_str().unwrap_or_default();
        self.reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            assert!(index <= self.calls.len(), "calls come in order: {chunk}");
            if index == self.calls.len() {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                self.calls.push(Call {
                    id: text(&call["id"]),
                    name: text(&call["function"]["name"]),
                    arguments: String::new(),
                });
            } else {
                assert_eq!(
                    (call.get("id"), call["function"].get("name")),
                    (None, None),
                    "said once: {chunk}"
                );
            }
            self.calls[index].arguments += call["function"]["arguments"].as_str().unwrap();
        }
        self.finishes.extend(choice.get("finish_reason").filter(|reason| !reason.is_null()).cloned());
        self.tokens.extend(chunk["phalanx"]["token_ids"].as_array().into_iter().flatten().cloned());
    }
}

fn body(seed: u64, more: &Value) -> Value {
    let parameters = json!({"type": "object", "properties": {"of": {"enum": ["Rom \"x\""]},
        "n": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["of", "n"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    // The demo model likes white space: without it there is room for an answer.
    let mut body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool("f"), tool("g")],
        "tool_choice": "required", "temperature": 2, "seed": seed, "max_tokens": 80, "stream": true,
        "logit_bias": {"9": -100, "13": -100}, "phalanx": {"return_token_ids": true}});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Cuts a stream after each of its events, and goes on with the same body and with the tokens so far.
fn check_every_cut(server: &Server, body: &Value) -> Told {
    let answer = server.post(CHAT, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let events = answer.events();
    let mut whole = Told::default();
    events.iter().for_each(|(_, data)| whole.take(data));
    assert!(whole.is_done);
    let mut so_far = Told::default();
    for (id, data) in &events {
        so_far.take(data);
        let Some(id) = id else { continue };
        let mut with_tokens = body.clone();
        with_tokens["phalanx"]["tokens"] = so_far.tokens.clone().into();
        for body in [body, &with_tokens] {
            let rest = server.post_with(CHAT, &format!("Last-Event-ID: {id}\r\n"), &body.to_string());
            assert_eq!(rest.status, 200, "{}", rest.text());
            let mut both = so_far.clone();
            rest.events().iter().for_each(|(_, data)| both.take(data));
            assert_eq!(both, whole, "cut after {} tokens", so_far.tokens.len());
        }
    }
    whole
}

/// Names, arguments and the ids of calls are those of the unbroken stream, wherever it was cut: in a tag, in a name, in the middle of
/// arguments, between two calls.
#[test]
fn a_call_goes_on_after_every_event() {
    let mut calls = 0;
    for (number, template) in TEMPLATES.into_iter().enumerate() {
        let server = Server::made(Made { template: Some(template), ..Made::default() });
        for (seed, is_parallel) in [(3, false), (4, true)].into_iter().skip(usize::from(number > 0)) {
            let body = body(seed, &json!({"parallel_tool_calls": is_parallel}));
            let told = check_every_cut(&server, &body);
            assert_eq!(told.roles, 1);
            calls += told.calls.len();
            if told.finishes == [json!("tool_calls")] {
                assert!(!told.calls.is_empty() && told.content.is_empty(), "{number}: {told:?}");
                for call in &told.calls {
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!(arguments["n"].as_u64().is_some_and(|n| (1..=7).contains(&n)), "{call:?}");
                }
            }
            // What is told at once is what is told in pieces.
            let mut plain = body.clone();
            (plain["stream"], plain["phalanx"]) = (false.into(), json!({}));
            let plain = server.post(CHAT, &plain.to_string()).json();
            let said = |call: &Value| {
                [&call["function"]["name"], &call["function"]["arguments"]]
                    .map(|text| text.as_str().unwrap().to_owned())
            };
            let plain: Vec<_> = plain["choices"][0]["message"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(said)
                .collect();
            assert_eq!(
                told.calls.iter().map(|call| [call.name.clone(), call.arguments.clone()]).collect::<Vec<_>>(),
                plain
            );
        }
    }
    assert!(calls >= 4, "{calls} calls");
}

/// Of several choices each goes on with its own calls, under the ids that they have.
#[test]
fn a_call_of_another_choice_keeps_its_id() {
    let server = Server::made(Made { template: Some(TEMPLATES[2]), ..Made::default() });
    let body = body(7, &json!({"n": 2, "phalanx": {}}));
    let events = server.post(CHAT, &body.to_string()).events();
    let of_second = |data: &str| {
        data != "[DONE]" && serde_json::from_str::<Value>(data).unwrap()["choices"][0]["index"] == 1
    };
    let second: Vec<_> = events.iter().filter(|(_, data)| of_second(data)).collect();
    let mut whole = Told::default();
    second.iter().for_each(|(_, data)| whole.take(data));
    let mut both = Told::default();
    both.take(&second[0].1);
    let id = second[0].0.as_ref().unwrap();
    let rest = server.post_with(CHAT, &format!("Last-Event-ID: {id}\r\n"), &body.to_string());
    rest.events().iter().filter(|(_, data)| data != "[DONE]").for_each(|(_, data)| both.take(data));
    assert_eq!(both, whole);
    assert_eq!(whole.calls.len(), 1, "{whole:?}");
}

/// Of a template whose answers begin as thoughts they go on as thoughts.
#[test]
fn thoughts_go_on_after_every_event() {
    let template = "{{ messages[0].content }}=<think>";
    let server = Server::made(Made { template: Some(template), ..Made::default() });
    let body = json!({"messages": [{"role": "user", "content": "x"}], "temperature": 2, "seed": 5, "max_tokens": 40,
        "ignore_eos": true, "stream": true, "phalanx": {"return_token_ids": true}});
    let told = check_every_cut(&server, &body);
    assert!(told.content.is_empty() && told.reasoning.chars().count() > 5, "{told:?}");
}
