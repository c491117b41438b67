//! What operators hear who have nodes drained.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use serde_json::json;
use server::{Made, Server};

#[test]
fn a_node_is_drained_by_name_and_what_is_refused_has_a_status() {
    let server = Server::start();
    let drained = server.post("/cluster/drain", r#"{"node": "n1"}"#);
    assert_eq!(
        (drained.status, drained.json()),
        (200, json!({"node": "n1", "changed": true, "forced": false}))
    );
    let forced = server.post("/cluster/drain", r#"{"node": "full", "force": true}"#);
    assert_eq!((forced.status, &forced.json()["forced"]), (200, &json!(true)));
    let undrained = server.post("/cluster/undrain", r#"{"node": "n1"}"#);
    assert_eq!((undrained.status, undrained.json()), (200, json!({"node": "n1", "changed": false})));
    for (path, body, status, code) in [
        ("/cluster/drain", r#"{"node": "full"}"#, 409, "no_room"),
        ("/cluster/drain", r#"{"node": "only", "force": true}"#, 409, "only_node"),
        ("/cluster/drain", r#"{"node": "n9"}"#, 404, "node_not_found"),
        ("/cluster/undrain", r#"{"node": "n9"}"#, 404, "node_not_found"),
        ("/cluster/drain", "{}", 400, "invalid_value"),
        ("/cluster/drain", r#"{"node": 7}"#, 400, "invalid_value"),
        ("/cluster/drain", r#"{"node": "n1", "force": "yes"}"#, 400, "invalid_value"),
        ("/cluster/drain", r#"{"node": "n1", "forced": true}"#, 400, "unsupported_parameter"),
        ("/cluster/undrain", r#"{"node": "n1", "force": true}"#, 400, "unsupported_parameter"),
    ] {
        let refused = server.post(path, body);
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (status, &json!(code)),
            "{path} {body}"
        );
    }
    // A page of a browser may send texts without asking, and is not to drain anything by it.
    let text = "POST /cluster/drain HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\nconnection: close\r\n\
                content-length: 14\r\n\r\n{\"node\": \"n1\"}";
    assert_eq!(server.raw(text.as_bytes()).status, 415);
    assert_eq!(server.get("/cluster/drain").status, 405);
}

/// Who may not ask for answers may not take nodes out of use.
#[test]
fn draining_needs_a_key_where_there_are_keys() {
    let keys = "alice-key-0123456789abcdef name=alice\n";
    let server = Server::made(Made { keys: Some(keys), ..Made::default() });
    for path in ["/cluster/drain", "/cluster/undrain"] {
        assert_eq!(server.post(path, r#"{"node": "n1"}"#).status, 401);
        let key = "authorization: Bearer alice-key-0123456789abcdef\r\n";
        assert_eq!(server.post_with(path, key, r#"{"node": "n1"}"#).status, 200);
    }
}
