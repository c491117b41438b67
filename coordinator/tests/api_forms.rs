//! Answers that keep to a form, and calls, as clients meet them. The demo model would rather sort numbers: what it says is
//! right by its form and means nothing.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::{Value, json};
use server::{Made, Server};

/// A template in the manner of Qwen.
const HERMES: &str = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.content }}{% endfor %}=\
                      {% if false %}<tool_call>{% endif %}";

fn post(server: &Server, path: &str, body: &Value) -> Value {
    let answer = server.post(path, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99999},
        "word": {"type": "string", "maxLength": 9}, "is": {"type": "boolean"}},
        "required": ["sum", "word", "is"], "additionalProperties": false})
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value["sum"].as_u64().unwrap() <= 99_999 && value["is"].is_boolean(), "{text}");
    assert!(value["word"].as_str().unwrap().chars().count() <= 9, "{text}");
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
}

/// The demo model knows no JSON and likes white space: without it there is room for an answer.
fn tight() -> Value {
    json!({"9": -100, "10": -100, "13": -100, "32": -100})
}

/// At any temperature, of chats and completions, plain and streamed; with the model's own probabilities.
#[test]
fn an_answer_is_what_its_schema_describes() {
    let server = Server::start();
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema()}});
    for (temperature, seed) in [(0.0, 1), (1.0, 2), (3.0, 3), (100.0, 4)] {
        let mut body = json!({"messages": user("add 1+2="), "temperature": temperature, "seed": seed, "max_tokens": 400,
            "response_format": format, "logprobs": true, "top_logprobs": 2, "logit_bias": tight()});
        let plain = post(&server, "/v1/chat/completions", &body);
        let choice = &plain["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{plain}");
        check(choice["message"]["content"].as_str().unwrap());
        // The likeliest token of the model is often not the one that the form allows.
        let told = choice["logprobs"]["content"].as_array().unwrap();
        assert!(told.iter().any(|token| token["token"] != token["top_logprobs"][0]["token"]));
        body["stream"] = json!(true);
        let (chunks, end) = server.post("/v1/chat/completions", &body.to_string()).chunks();
        let text: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!((&json!(text), end.as_str()), (&choice["message"]["content"], "[DONE]"));
    }
    let body = json!({"prompt": "x=", "max_tokens": 400, "temperature": 5, "seed": 9, "n": 4,
        "response_format": format, "logit_bias": tight()});
    for choice in post(&server, "/v1/completions", &body)["choices"].as_array().unwrap() {
        check(choice["text"].as_str().unwrap());
    }
    let body = json!({"messages": user("x"), "max_tokens": 300, "temperature": 0, "seed": 1,
        "response_format": {"type": "json_object"}, "logit_bias": {"125": 50}});
    let found = post(&server, "/v1/chat/completions", &body);
    let text = found["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
    // What is cut is cut: it is no form's end.
    let mut cut = body.clone();
    (cut["max_tokens"], cut["logit_bias"]) = (json!(1), Value::Null);
    assert_eq!(post(&server, "/v1/chat/completions", &cut)["choices"][0]["finish_reason"], "length");
}

/// A schema that nobody can keep to is refused before anything is computed, and others are answered.
#[test]
fn schemas_that_cannot_be_kept_to_are_refused_by_name() {
    let server = Server::start();
    let place = "response_format.json_schema.schema";
    for schema in [
        json!({"not": {}}),
        json!({"type": "spam"}),
        json!({"$ref": "#/nowhere"}),
        json!({"type": "object", "x-guidance": {"lenient": true}}),
        json!({"allOf": [{"type": "string"}, {"type": "null"}]}),
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
        let body = json!({"messages": user("x"), "response_format": format});
        let answer = server.post("/v1/chat/completions", &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(place)), "{schema} {error}");
        assert!(error["message"].as_str().unwrap().len() < 500, "{error}");
    }
    assert_eq!(server.submitted(), 0);
    assert_eq!(server.post("/v1/completions", r#"{"prompt": "x", "max_tokens": 1}"#).status, 200);
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}},
        "required": ["city"], "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "rain", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}}])
}

/// What is put together from a stream's pieces, as clients do it.
fn put_together(chunks: &[Value]) -> Value {
    let mut calls: Vec<Value> = Vec::new();
    for call in chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten() {
        let index = call["index"].as_u64().unwrap() as usize;
        if index == calls.len() {
            assert!(call["id"].is_string() && call["function"]["name"].is_string(), "{call}");
            let mut call = call.clone();
            call.as_object_mut().unwrap().remove("index");
            calls.push(call);
        } else {
            assert!(call.get("id").is_none() && call["function"].get("name").is_none(), "{call}");
            let more = call["function"]["arguments"].as_str().unwrap();
            let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
            calls[index]["function"]["arguments"] = json!(so_far + more);
        }
    }
    json!(calls)
}

#[test]
fn a_forced_answer_is_a_call() {
    let server = Server::made(Made { template: Some(HERMES), ..Made::default() });
    let named = json!({"type": "function", "function": {"name": "rain"}});
    for (choice, seed) in [(json!("required"), 1), (json!("required"), 2), (named.clone(), 3), (named, 4)] {
        let mut body = json!({"messages": user("x"), "tools": tools(), "tool_choice": choice, "temperature": 2,
            "seed": seed, "parallel_tool_calls": false, "max_tokens": 200, "logit_bias": tight()});
        let plain = post(&server, "/v1/chat/completions", &body);
        let (message, reason) =
            (&plain["choices"][0]["message"], plain["choices"][0]["finish_reason"].as_str().unwrap());
        assert_eq!((reason, &message["content"]), ("tool_calls", &Value::Null), "{plain}");
        let call = &message["tool_calls"][0];
        assert_eq!(call["type"], "function");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        match call["function"]["name"].as_str().unwrap() {
            "rain" => assert!(arguments["city"].as_str().unwrap().chars().count() <= 6),
            name => assert!(name == "now" && choice == "required" && arguments == json!({}), "{call}"),
        }
        body["stream"] = json!(true);
        let (chunks, end) = server.post("/v1/chat/completions", &body.to_string()).chunks();
        let mut calls = put_together(&chunks);
        // A call's name is its answer's own.
        calls[0]["id"] = call["id"].clone();
        assert_eq!((&calls, end.as_str()), (&message["tool_calls"], "[DONE]"));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

/// An offer changes the prompt and nothing else, unless something is called.
#[test]
fn a_free_answer_is_that_of_its_prompt() {
    let server = Server::made(Made { template: Some(HERMES), ..Made::default() });
    let mut body = json!({"messages": user("x"), "tools": tools(), "temperature": 3, "seed": 3, "max_tokens": 40,
        "phalanx": {"return_token_ids": true}});
    let chat = post(&server, "/v1/chat/completions", &body);
    let prompt = chat["phalanx"]["prompt_token_ids"].clone();
    let text = json!({"prompt": prompt, "temperature": 3, "seed": 3, "max_tokens": 40,
        "phalanx": {"return_token_ids": true}});
    let text = post(&server, "/v1/completions", &text);
    assert_eq!(chat["phalanx"], text["phalanx"]);
    assert_eq!(chat["choices"][0]["message"]["content"], text["choices"][0]["text"]);
    assert!(chat["choices"][0]["message"].get("tool_calls").is_none());
    // Nothing may be called: nothing is shown.
    body["tool_choice"] = json!("none");
    let none = post(&server, "/v1/chat/completions", &body);
    assert!(none["usage"]["prompt_tokens"].as_u64() < chat["usage"]["prompt_tokens"].as_u64());
}

#[test]
fn tools_that_cannot_be_called_are_refused_by_name() {
    let plain = Server::start();
    let hermes = Server::made(Made { template: Some(HERMES), ..Made::default() });
    let with = |name: &str, value: Value| {
        let mut body = json!({"messages": user("x"), "tools": tools(), "max_tokens": 1});
        body[name] = value;
        body
    };
    let spam = json!([{"type": "function", "function": {"name": "a"}},
        {"type": "function", "function": {"name": "b", "parameters": {"type": "spam"}}}]);
    let mut forced = with("tool_choice", json!("required"));
    forced["tools"] = spam;
    for (server, body, param) in [
        (&plain, with("n", json!(1)), "tools"),
        (&hermes, with("tool_choice", json!("perhaps")), "tool_choice"),
        (&hermes, with("tools", json!([{"type": "function"}])), "tools[0].function"),
        (&hermes, with("ignore_eos", json!(true)), "ignore_eos"),
        // This model's tags are letters, which any text may have.
        (&hermes, with("parallel_tool_calls", json!(false)), "parallel_tool_calls"),
        (&hermes, forced, "tools[1].function.parameters"),
    ] {
        let answer = server.post("/v1/chat/completions", &body.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
    }
}
