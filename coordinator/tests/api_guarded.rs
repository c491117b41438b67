//! Keys, their limits, and TLS, as clients meet them.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name that the command line's tests, which share `server`, know it by.
extern crate phalanx_coordinator as coordinator;

mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use coordinator::api::server_config;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;
use server::{Answer, Made, Server, certify};

const ALICE: &str = "alice-key-0123456789abcdef";
const BOB: &str = "bob-key-0123456789abcdefgh";
const KEYS: &str = "# keys of a test\nalice-key-0123456789abcdef name=alice requests=2\n\
                    bob-key-0123456789abcdefgh name=bob tokens-per-minute=60\n";

fn request(method: &str, path: &str, key: Option<&str>, body: &str) -> String {
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\n{key}content-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn ask(server: &Server, path: &str, key: Option<&str>, body: &str) -> Answer {
    let method = if body.is_empty() { "GET" } else { "POST" };
    server.raw(request(method, path, key, body).as_bytes())
}

/// Whoever has no key hears that he needs one, wherever he asks but for whether the server is well.
#[test]
fn only_those_with_a_key_are_answered() {
    let server = Server::made(Made { keys: Some(KEYS), ..Made::default() });
    let body = r#"{"prompt": "x", "max_tokens": 1}"#;
    for (path, body) in [
        ("/v1/completions", body),
        ("/v1/chat/completions", "{}"),
        ("/tokenize", r#"{"prompt": "x"}"#),
        ("/v1/models", ""),
        ("/cluster", ""),
        ("/metrics", ""),
        ("/nothing", ""),
    ] {
        for key in [None, Some("wrong-key-0123456789abcdef"), Some(""), Some(&ALICE[..ALICE.len() - 1])] {
            let refused = ask(&server, path, key, body);
            let error = &refused.json()["error"];
            assert_eq!((refused.status, &error["code"]), (401, &json!("invalid_api_key")), "{path}");
            assert_eq!(error["type"], "invalid_request_error");
            assert!(refused.headers.contains("www-authenticate: bearer"), "{}", refused.headers);
        }
    }
    for path in ["/health", "/ready"] {
        assert_eq!(ask(&server, path, None, "").status, 200);
    }
    for key in [ALICE, BOB] {
        assert_eq!(ask(&server, "/v1/completions", Some(key), body).status, 200);
        assert_eq!(ask(&server, "/v1/models", Some(key), "").status, 200);
    }
    assert_eq!(ask(&server, "/nothing", Some(ALICE), "").status, 404);
}

/// One key's limit is nobody else's, and what it holds comes back when its answer has ended or its client has gone.
#[test]
fn keys_have_limits_of_their_own() {
    let server = Server::made(Made { keys: Some(KEYS), ..Made::default() });
    server.hold(true);
    let body = r#"{"prompt": "x", "max_tokens": 5, "ignore_eos": true, "stream": true}"#;
    let begin = |key: &str| {
        let mut client = server.connect();
        client.write_all(request("POST", "/v1/completions", Some(key), body).as_bytes()).unwrap();
        client
    };
    let clients = [begin(ALICE), begin(ALICE)];
    server.wait("two of them", |server| server.running() == 2);
    let refused = ask(&server, "/v1/completions", Some(ALICE), body);
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["code"]), (429, &json!("rate_limit_exceeded")), "{error}");
    assert!(refused.headers.contains("retry-after: 1"), "{}", refused.headers);
    let bob = begin(BOB);
    server.wait("another's", |server| server.running() == 3);
    drop(clients);
    server.wait("the cancels", |server| server.cancelled() == 2 && server.running() == 1);
    server.hold(false);
    drop(bob);
    assert_eq!(ask(&server, "/v1/completions", Some(ALICE), body).status, 200);

    // A minute's tokens are gone with one answer.
    let long = r#"{"prompt": "x", "max_tokens": 90, "ignore_eos": true}"#;
    assert_eq!(ask(&server, "/v1/completions", Some(BOB), long).status, 200);
    let refused = ask(&server, "/v1/completions", Some(BOB), long);
    assert_eq!(refused.status, 429, "{}", refused.text());
    let after = refused.headers.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((10..=60).contains(&after.parse::<u64>().unwrap()), "{after}");
    assert_eq!(ask(&server, "/v1/models", Some(BOB), "").status, 200, "what costs no tokens is answered");
}

/// A client that believes the authority is answered, one that does not is not, and plain words are no handshake.
#[test]
fn clients_come_over_tls() {
    let folder = std::env::temp_dir().join(format!("phalanx-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let authority = certify(&folder);
    let (cert_file, key_file) = (folder.join("cert.pem"), folder.join("key.pem"));
    for (cert, key, says) in [
        (&key_file, &key_file, "key.pem: it has no certificate"),
        (&cert_file, &cert_file, "cert.pem"),
        (&folder.join("none"), &key_file, "none"),
    ] {
        let message = server_config(cert, key).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let tls = server_config(&cert_file, &key_file).unwrap();
    let another = certify(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let server = Server::made(Made { keys: Some(KEYS), tls: Some(tls), ..Made::default() });

    let speak = |roots: RootCertStore, request: &str| -> std::io::Result<String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(client, TcpStream::connect(server.address())?);
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let body = r#"{"prompt": "sort 7315=", "temperature": 0, "stream": true}"#;
    let text = speak(roots.clone(), &request("POST", "/v1/completions", Some(ALICE), body)).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]"), "{text}");
    assert!(speak(roots, &request("GET", "/v1/models", None, "")).unwrap().starts_with("HTTP/1.1 401"));
    let mut others = RootCertStore::empty();
    others.add(another).unwrap();
    assert!(speak(others, &request("GET", "/health", None, "")).is_err());
    let plain = server.raw_bytes(request("GET", "/health", None, "").as_bytes());
    assert!(!String::from_utf8_lossy(&plain).contains("HTTP/1.1"), "{plain:?}");
}
