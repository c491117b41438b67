//! Prompts that are told with how likely they were: what evaluations ask for, beside the plain loop.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::{Value, json};
use server::{Server, encode, greedy, scored};

const PATH: &str = "/v1/completions";
/// The demo model's end.
const END: u32 = 257;

fn ask(server: &Server, body: &Value) -> Value {
    let answer = server.post(PATH, &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn floats(list: &Value) -> Vec<Option<f64>> {
    list.as_array().unwrap().iter().map(Value::as_f64).collect()
}

/// What the plain loop says of a prompt; the first token has nothing before it.
fn expected(ids: &[u32]) -> Vec<Option<f64>> {
    std::iter::once(None).chain(scored(ids, 0).iter().map(|logprobs| Some(logprobs.chosen))).collect()
}

/// Every token of the prompt has the plain loop's logprob, its likeliest alternatives, and its place in the text; text or ids, one or
/// several, with an answer or without one, whole or streamed.
#[test]
fn a_prompt_is_as_likely_as_in_the_plain_loop() {
    let server = Server::start();
    for (prompt, max_tokens, logprobs) in [("sort 7315=", 3, 2), ("é猫 x", 0, 0), ("a", 0, 1), ("a", 2, 20)]
    {
        let ids = encode(prompt);
        let body = json!({"prompt": prompt, "echo": true, "logprobs": logprobs, "max_tokens": max_tokens, "ignore_eos": true,
            "temperature": 0});
        let found = ask(&server, &body);
        let choice = &found["choices"][0];
        let told = &choice["logprobs"];
        let all = ids.len() + max_tokens;
        assert_eq!(floats(&told["token_logprobs"])[..ids.len()], expected(&ids), "{prompt}");
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(told[list].as_array().unwrap().len(), all, "{prompt}: {list}");
        }
        assert_eq!(told["top_logprobs"][0], Value::Null);
        for (top, oracle) in told["top_logprobs"].as_array().unwrap()[1..].iter().zip(scored(&ids, logprobs))
        {
            let (mut top, mut likeliest): (Vec<f64>, Vec<f64>) = (
                top.as_object().unwrap().values().map(|value| value.as_f64().unwrap()).collect(),
                oracle.top.iter().map(|(_, logprob)| *logprob).chain([oracle.chosen]).collect(),
            );
            top.sort_by(f64::total_cmp);
            likeliest.sort_by(f64::total_cmp);
            // Tokens may be spelled alike, halves of characters are; then the likelier is told.
            assert!(top.iter().all(|logprob| likeliest.contains(logprob)), "{top:?} {likeliest:?}");
            assert_eq!(top.last(), likeliest.last());
        }
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(prompt));
        let usage = json!([ids.len(), max_tokens]);
        assert_eq!(json!([found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]]), usage);
        assert_eq!(choice["finish_reason"], "length");
        if prompt.is_ascii() {
            // A token is a byte here, so each is where its offset says.
            let offsets: Vec<usize> = told["text_offset"]
                .as_array()
                .unwrap()
                .iter()
                .map(|at| at.as_u64().unwrap() as usize)
                .collect();
            assert_eq!(offsets, (0..all).collect::<Vec<_>>());
            for (token, at) in told["tokens"].as_array().unwrap().iter().zip(offsets) {
                assert_eq!(token.as_str().unwrap(), text.chars().nth(at).unwrap().to_string());
            }
        } else {
            // A character that is not whole yet has no place of its own.
            assert_eq!(told["text_offset"], json!([0, 0, 1, 1, 1, 2, 3]));
        }

        let mut as_ids = body.clone();
        as_ids["prompt"] = json!([ids, ids]);
        let both = ask(&server, &as_ids);
        for index in 0..2 {
            assert_eq!(
                (&both["choices"][index]["text"], &both["choices"][index]["logprobs"]),
                (&choice["text"], told)
            );
        }

        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let (chunks, end) = server.post(PATH, &streamed.to_string()).chunks();
        assert_eq!(end, "[DONE]");
        let joined: String =
            chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(joined, text);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let lists =
                chunks.iter().map(|chunk| chunk["choices"][0]["logprobs"][list].as_array().unwrap().clone());
            assert_eq!(Value::from(lists.collect::<Vec<_>>().concat()), told[list], "{prompt}: {list}");
        }
    }
}

/// lm-evaluation-harness asks for one token, drops the last logprob and adds up those behind the context: so there has to be one for
/// that token, also where it ends the answer at once.
#[test]
fn an_answer_that_ends_at_once_has_a_logprob() {
    let server = Server::start();
    let (context, continuation) = greedy("sort 7315=", 4);
    let all = [&context[..], &continuation].concat();
    let sum = |logprobs: &[Option<f64>]| logprobs.iter().map(|logprob| logprob.unwrap()).sum::<f64>();
    let oracle = sum(&expected(&all)[context.len()..]);
    let mut texts = Vec::new();
    for bias in [-100, 100] {
        let body = json!({"prompt": [all], "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234,
            "logit_bias": {END.to_string(): bias}});
        let found = ask(&server, &body);
        let choice = &found["choices"][0];
        let logprobs = floats(&choice["logprobs"]["token_logprobs"]);
        assert_eq!(logprobs.len(), all.len() + 1, "bias {bias}");
        assert_eq!(sum(&logprobs[context.len()..all.len()]), oracle);
        assert_eq!(choice["finish_reason"], if bias > 0 { "stop" } else { "length" });
        texts.push(choice["text"].as_str().unwrap().to_owned());
        // What the harness takes for greedy.
        let greedy = choice["logprobs"]["top_logprobs"].as_array().unwrap()[context.len()..all.len()]
            .iter()
            .all(|top| {
                let top = top.as_object().unwrap();
                top.len() == 1
            });
        assert!(greedy, "no token is likelier");
    }
    assert!(texts[0].starts_with(&texts[1]), "{texts:?}: the end has no text");
}

/// The text of a prompt needs nothing computed but the prompt.
#[test]
fn a_prompt_alone_is_told() {
    let server = Server::start();
    let found = ask(&server, &json!({"prompt": "rev abc=", "echo": true, "max_tokens": 0}));
    assert_eq!(found["choices"][0]["text"], "rev abc=");
    assert_eq!(
        (&found["choices"][0]["logprobs"], &found["usage"]["completion_tokens"]),
        (&Value::Null, &json!(0))
    );
    let refused = server.post(PATH, &json!({"prompt": "x", "max_tokens": 0}).to_string());
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("max_tokens")));
}
