//! What people watch a cluster with, as clients meet it: the page, the pulse, why, and the experts of a token.

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use server::Server;

/// One response with all that it needs, which may run its own scripts and nobody else's.
#[test]
fn the_page_is_complete_in_itself() {
    let server = Server::start();
    let pages = [server.get("/"), server.get("/")];
    let nonces = pages.each_ref().map(|page| {
        assert_eq!(page.status, 200);
        let text = page.text();
        assert!(page.headers.contains("content-type: text/html"), "{}", page.headers);
        let policy = page.headers.lines().find(|line| line.starts_with("content-security-policy: ")).unwrap();
        for needed in
            ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
        {
            assert!(policy.contains(needed), "{policy}");
        }
        let nonce = policy.split_once("script-src 'nonce-").unwrap().1.split_once('\'').unwrap().0.to_owned();
        // Every style and script carries it, and nothing else is to be put in.
        let carries = text.matches(&format!("nonce=\"{nonce}\"")).count();
        assert_eq!((carries, text.matches("<script").count(), text.matches("<style").count()), (2, 1, 1));
        assert!(!["{nonce}", "{style}", "{script}"].iter().any(|left| text.contains(left)));
        // An address of a name space is none that is asked for.
        let inside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!inside.contains("//www") && !inside.contains("http:") && !inside.contains("https:"));
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
        nonce
    });
    assert!(nonces[0] != nonces[1] && nonces[0].len() == 32, "{nonces:?}");
}

/// However many look at once, the cluster is asked a few times.
#[test]
fn a_pulse_is_made_for_all_who_ask_together() {
    let server = Server::start();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let pulse = server.get("/cluster/pulse");
                assert_eq!(pulse.status, 200, "{}", pulse.text());
                let latency = &pulse.json()["latency"];
                let bounds = latency["bounds_s"].as_array().unwrap().len();
                for of in ["first", "next"] {
                    assert_eq!(latency[of]["counts"].as_array().unwrap().len(), bounds + 1);
                }
            });
        }
    });
    assert!(server.pulses() < 16, "{} times", server.pulses());
}

#[test]
fn why_is_told_of_live_requests_only() {
    let server = Server::start();
    assert_eq!(server.get("/why").json()["requests"][0]["request"], 7);
    assert_eq!(server.get("/why/7").json()["requests"][0]["why"], "the test holds it");
    for gone in ["8", "-1", "x", "99999999999999999999", "7%2f", "%ff"] {
        let answer = server.get(&format!("/why/{gone}"));
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("not_found")), "{gone}");
    }
    assert_eq!(server.post("/why", "{}").status, 405);
}

/// The experts of each token are in whole answers and in chunks alike, and only where somebody asks.
#[test]
fn the_experts_of_tokens_are_told() {
    let server = Server::start();
    let mut body = json!({"prompt": "sort 7315=", "temperature": 0, "max_tokens": 6, "ignore_eos": true,
        "phalanx": {"return_experts": true}});
    let plain = server.post("/v1/completions", &body.to_string()).json();
    let told = &plain["phalanx"];
    let layers = told["expert_layers"].as_array().unwrap().len();
    let tokens = told["experts"].as_array().unwrap();
    assert!(layers > 1 && tokens.len() == 6, "{told}");
    for token in tokens {
        assert_eq!(token.as_array().unwrap().len(), layers, "{told}");
        for experts in token.as_array().unwrap() {
            let experts: BTreeSet<u64> =
                experts.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
            assert!(experts.len() > 1, "each as many as the model takes, none twice: {told}");
        }
    }
    assert!(told.get("token_ids").is_none() && told["seed"].is_u64(), "{told}");

    body["stream"] = json!(true);
    let (chunks, end) = server.post("/v1/completions", &body.to_string()).chunks();
    assert_eq!(end, "[DONE]");
    let streamed = chunks.iter().flat_map(|chunk| chunk["phalanx"]["experts"].as_array().unwrap());
    assert_eq!(&streamed.cloned().collect::<Vec<_>>(), tokens);
    let has_layers: Vec<bool> =
        chunks.iter().map(|chunk| chunk["phalanx"]["expert_layers"].is_array()).collect();
    assert!(has_layers[0] && !has_layers[1..].contains(&true), "in the first chunk");

    body["phalanx"] = json!({});
    let (chunks, _) = server.post("/v1/completions", &body.to_string()).chunks();
    assert!(chunks.iter().all(|chunk| chunk["phalanx"].get("experts").is_none()));
}
