//! `phalanx-coordinator` as a person has it: what it says of bad settings. How it serves and ends is tested with nodes, in
//! the workspace's own tests.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx-coordinator"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PHALANX_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().unwrap()
}

/// One message that says what to do, exit code 2.
#[test]
fn bad_settings_are_refused_in_words() {
    let folder = std::env::temp_dir().join(format!("phalanx-coordinator-bad-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (file, missing) = (folder.join("c.toml"), folder.join("nothing"));
    std::fs::write(&file, "node = 'c0:7000'\n").unwrap();
    let (file, missing) = (file.to_str().unwrap(), missing.to_str().unwrap());
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model");
    let open = ["--model", demo, "--nodes", "127.0.0.1:0", "--insecure", "--http", "127.0.0.1:0"];
    let with = |more: &[&'static str]| [&open[..], more].concat();
    let cases: &[(&[&str], &str)] = &[
        (
            &["--nodes", "127.0.0.1:0", "--insecure"],
            "no model to serve; give the folder of a checkpoint with --model",
        ),
        (&["--model", demo], "no door for nodes; give at least one with --nodes"),
        (&["--model", missing, "--nodes", "127.0.0.1:0", "--insecure"], "config.json"),
        (&["--model", demo, "--nodes", "127.0.0.1:0"], "give certificates with --certs"),
        (&["--model", demo, "--nodes", "quic:127.0.0.1:0", "--insecure"], "QUIC is always TLS"),
        (&["--model", demo, "--nodes", "nowhere", "--insecure"], "--nodes nowhere"),
        (&["--model", demo, "--nodes", "127.0.0.1:0", "--certs", missing], "peer.crt"),
        (&["--model", demo, "--authority", missing], "give this coordinator's certificate with --certs too"),
        (&with(&["--token-file", "x"]), "give its folder with --authority too"),
        (&with(&["--certs", "x"]), "leave one of them out"),
        (
            &["--model", demo, "--nodes", "127.0.0.1:0", "--insecure-anywhere"],
            "--insecure-anywhere says how far",
        ),
        (&["--model", demo, "--http", "0.0.0.0:0"], "--http-open"),
        (&["--model", demo, "--api-key-file", missing], "--api-key-file"),
        (&["--model", demo, "--api-key-file", file], "line 1: a key is 16 to 256 letters"),
        (&["--model", demo, "--http-cert", file], "--http-cert and --http-key belong together"),
        (
            &["--model", demo, "--http-cert", file, "--http-key", file],
            "it has no certificate; give a file in PEM",
        ),
        (&["--config", file], "unknown field `node`"),
        (&["--config", missing], "give a file of settings"),
        (&with(&["--policy", "best"]), "`best` is none of auto, reference"),
        (&with(&["--kv-memory", "much"]), "`much` is not a size"),
        (&with(&["--threads", "0"]), "--threads 0"),
        (&with(&["--threads", "3", "--cores", "0,1"]), "names 2 cores for 3 threads"),
        (&with(&["--numeric-class", "bf16"]), "bf16"),
        (&with(&["--log", "xml"]), "neither lines nor json"),
        (&with(&["--log-level", "a=b=c"]), "--log-level"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("error: ") && said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx-coordinator"));
    let output = command.env("PHALANX_COORDINATOR_NODE", "3").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains(
            "PHALANX_COORDINATOR_NODE is unknown; these are known: PHALANX_COORDINATOR_API_KEY_FILE"
        ),
        "{said}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
