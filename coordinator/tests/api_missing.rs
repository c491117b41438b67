//! What clients hear of answers that went on without experts.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::{Value, json};
use server::Server;

/// A request of so many tokens, of which all but the first lack experts 5 and 9 of layer 2 where it may be so.
fn body(on_missing: &str, tokens: usize, more: &str) -> String {
    format!(
        "{{\"prompt\": [5, 17], \"max_tokens\": {tokens}, \"ignore_eos\": true, \"seed\": 3{more}, \
         \"phalanx\": {{\"on_missing\": \"{on_missing}\"}}}}"
    )
}

fn lacks(rows: u64) -> Value {
    json!([{"layer": 2, "expert": 5, "rows": rows}, {"layer": 2, "expert": 9, "rows": rows}])
}

/// Never silently: the whole answer has all of it, a stream where a choice ends. Who lacks nothing hears nothing of it.
#[test]
fn an_answer_names_what_it_went_on_without() {
    let server = Server::start();
    let whole = |body: &str| server.post("/v1/completions", body).json()["phalanx"].clone();
    assert_eq!(whole(&body("drop", 4, ""))["missing"], lacks(3));
    assert_eq!(whole(&body("drop", 4, ", \"n\": 3"))["missing"], lacks(9), "of all choices together");
    assert_eq!(whole(&body("drop", 1, "")), json!({"seed": 3}));
    assert_eq!(whole(&body("exact", 4, "")), json!({"seed": 3}));

    let stream = server.post("/v1/completions", &body("drop", 4, ", \"n\": 2, \"stream\": true"));
    let (chunks, last) = stream.chunks();
    assert_eq!(last, "[DONE]");
    let mut ends = 0;
    for chunk in chunks {
        let missing = &chunk["phalanx"]["missing"];
        match chunk["choices"][0]["finish_reason"].is_null() {
            true => assert_eq!(*missing, Value::Null, "{chunk}"),
            false => {
                assert_eq!(*missing, lacks(3), "of this choice alone");
                ends += 1;
            }
        }
    }
    assert_eq!(ends, 2);
}

/// What nobody can compute again is not gone on with, and the id says so before anything is computed.
#[test]
fn a_stream_that_lacks_something_is_not_gone_on_with() {
    let server = Server::start();
    // Each token is told at once, also where it has no text of its own.
    let ids = "\"return_token_ids\": true, \"on_missing\"";
    let body = body("drop", 6, ", \"stream\": true").replace("\"on_missing\"", ids);
    let events = server.post("/v1/completions", &body).events();
    let ids: Vec<String> = events.into_iter().filter_map(|(id, _)| id).collect();
    assert!(ids.len() > 3, "{ids:?}");
    let submitted = server.submitted();
    for id in &ids[1..] {
        let refused = server.post_with("/v1/completions", &format!("last-event-id: {id}\r\n"), &body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["param"]), (409, &json!("phalanx.on_missing")), "{error}");
    }
    assert_eq!(server.submitted(), submitted);
    // Up to its first token it lacked nothing.
    let resumed = server.post_with("/v1/completions", &format!("last-event-id: {}\r\n", ids[0]), &body);
    assert_eq!(resumed.status, 200, "{}", resumed.text());
}
