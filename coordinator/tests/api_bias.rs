//! Answers under a selection bias: they name it, it can be had, and a stream goes on under the one that it began with or not at all.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use std::sync::Arc;

use model::bias::Bias;
use serde_json::{Value, json};
use server::{Answer, Server, greedy, greedy_under};

const TEXT: &str = "/v1/completions";
const PROMPT: &str = "sort 4921=";

/// A bias for the demo model, whose layers 3 to 6 have 16 experts.
fn bias(seed: usize) -> Arc<Bias> {
    let value = |layer: usize, expert: usize| ((layer * 7 + expert * seed) % 11) as f32 / 5.0 - 1.0;
    let layer = |layer| (layer, (0..16).map(|expert| value(layer, expert)).collect());
    Arc::new(Bias::new((3..7).map(layer).collect()).unwrap())
}

fn body(is_stream: bool) -> Value {
    json!({"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "seed": 5, "ignore_eos": true, "stream": is_stream,
        "phalanx": {"return_token_ids": true}})
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Token ids of a stream, from the events as they are given.
fn told(events: &[(Option<String>, String)]) -> Vec<u32> {
    let chunks = events.iter().filter(|(id, _)| id.is_some());
    chunks
        .flat_map(|(_, data)| ids(&serde_json::from_str::<Value>(data).unwrap()["phalanx"]["token_ids"]))
        .collect()
}

fn resume(server: &Server, id: &str, body: &Value) -> Answer {
    server.post_with(TEXT, &format!("Last-Event-ID: {id}\r\n"), &body.to_string())
}

/// The tokens are those of the plain loop under that bias; without one nothing is said of any, and the fingerprint is as it was.
#[test]
fn an_answer_names_the_bias_that_it_is_computed_under() {
    let server = Server::start();
    let ask = || server.post(TEXT, &body(false).to_string()).json();
    let plain = ask();
    assert_eq!(ids(&plain["phalanx"]["token_ids"]), greedy(PROMPT, 24).1);
    assert_eq!(plain["phalanx"].get("bias"), None);
    let mut seen = vec![plain["phalanx"]["token_ids"].clone()];
    for bias in [bias(3), bias(5)] {
        server.set_bias(Some(Arc::clone(&bias)), &[]);
        let digest = bias.digest().to_string();
        let answer = ask();
        assert_eq!(ids(&answer["phalanx"]["token_ids"]), greedy_under(PROMPT, 24, Some(&bias)).1);
        assert_eq!(answer["phalanx"]["bias"], digest);
        let fingerprint = format!("{}-bias-{:.12}", plain["system_fingerprint"].as_str().unwrap(), digest);
        assert_eq!(answer["system_fingerprint"], fingerprint);
        seen.push(answer["phalanx"]["token_ids"].clone());
        let (chunks, _) = server.post(TEXT, &body(true).to_string()).chunks();
        let named = chunks.iter().map(|chunk| chunk["phalanx"].get("bias").cloned());
        let once = std::iter::once(Some(json!(digest))).chain(std::iter::repeat(None));
        assert!(named.eq(once.take(chunks.len())), "in the first chunk alone: {chunks:?}");
    }
    assert!(
        seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2],
        "a bias that changes nothing shows nothing"
    );
}

/// Whatever answers begin with meanwhile. What is not known any more is refused by its name.
#[test]
fn a_stream_goes_on_under_the_bias_that_it_began_with() {
    let server = Server::start();
    let body = body(true);
    let (first, second) = (bias(3), bias(5));
    let stream = |server: &Server| server.post(TEXT, &body.to_string()).events();
    let without = stream(&server);
    server.set_bias(Some(Arc::clone(&first)), &[]);
    let under = stream(&server);
    assert_ne!(told(&under), told(&without));
    server.set_bias(Some(second), &[first]);
    for events in [&without, &under] {
        let whole = told(events);
        for (at, (id, _)) in events.iter().enumerate() {
            let Some(id) = id else { continue };
            assert_eq!(id.len(), 64);
            let so_far = told(&events[..=at]);
            let mut with_tokens = body.clone();
            with_tokens["phalanx"]["tokens"] = json!(so_far);
            for body in [&body, &with_tokens] {
                let rest = resume(&server, id, body);
                assert_eq!(rest.status, 200, "{}", rest.text());
                assert_eq!([so_far.clone(), told(&rest.events())].concat(), whole, "cut after {at}");
            }
        }
    }
    server.set_bias(Some(bias(7)), &[]);
    let id = |events: &[(Option<String>, String)]| events[4].0.clone().unwrap();
    assert_eq!(resume(&server, &id(&without), &body).status, 200, "nothing has to be known for that");
    let refused = resume(&server, &id(&under), &body);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (409, &json!("bias")));
    assert!(refused.text().contains("began under a selection bias"), "{}", refused.text());
    server.set_bias(None, &[]);
    let refused = resume(&server, &id(&under), &body);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (409, &json!("bias")));
    let mut other = body.clone();
    other["prompt"] = "sort 4922=".into();
    server.set_bias(None, &[bias(3)]);
    let refused = resume(&server, &id(&under), &other);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (409, &json!("prompt")));
}

/// What is had is a file for `phalanx generate --bias`.
#[test]
fn a_bias_can_be_had_by_its_digest() {
    let server = Server::start();
    let none = server.get("/bias");
    assert_eq!(Bias::read(none.text().as_bytes()).unwrap().layers().count(), 0);
    let (first, second) = (bias(3), bias(5));
    server.set_bias(Some(Arc::clone(&second)), &[Arc::clone(&first)]);
    assert_eq!(server.get("/bias").text(), second.text());
    let digest = first.digest().to_string();
    for letters in [8, 12, 64] {
        assert_eq!(server.get(&format!("/bias/{}", &digest[..letters])).text(), first.text());
    }
    let other = if digest.ends_with('0') { "1" } else { "0" };
    for (asked, status, code) in [
        (format!("{}{other}", &digest[..63]), 404, "bias_not_found"),
        (bias(7).digest().to_string(), 404, "bias_not_found"),
        (digest[..7].to_owned(), 400, "invalid_value"),
        (format!("{digest}0"), 400, "invalid_value"),
        (digest.to_uppercase(), 400, "invalid_value"),
        ("latest-one".to_owned(), 400, "invalid_value"),
    ] {
        let answer = server.get(&format!("/bias/{asked}"));
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)), "{asked}");
        assert_eq!(answer.json()["error"]["param"], "digest");
    }
}
