//! `phalanx chaos`, shortly: what it does, and what it says of it.

mod program;

use program::command;
use serde_json::Value;

#[test]
fn one_fault_of_each_kind_changes_no_answer() {
    let object = chaos(&["--injections", "1", "--streams", "4", "--nodes", "3", "--seed", "5"]);
    let kinds = [
        "kill",
        "freeze",
        "leave",
        "coordinator",
        "reset",
        "one-way",
        "cut",
        "delay",
        "corrupt",
        "panic",
        "clock",
        "disk",
    ];
    let classes = object["classes"].as_array().expect("a list");
    assert_eq!(classes.iter().map(|class| &class["fault"]).collect::<Vec<_>>(), kinds);
    for class in classes {
        assert_eq!((&class["injected"], &class["recovered"]), (&1.into(), &1.into()), "{object:#}");
    }
    assert!(object["answers"].as_u64() > Some(20), "{object:#}");
}

/// Where frames have checksums instead of TLS, they find what was damaged on the way.
#[test]
fn a_damaged_bit_is_found_without_tls_too() {
    let wishes = ["--faults", "corrupt", "--injections", "6", "--insecure", "--streams", "4", "--nodes", "3"];
    let object = chaos(&wishes);
    assert_eq!(object["classes"][0]["recovered"], 6, "{object:#}");
}

fn chaos(wishes: &[&str]) -> Value {
    let output = command(&[&["chaos", "--json"], wishes].concat()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for wrong in ["different", "lost"] {
        assert_eq!(object[wrong].as_array().map(Vec::len), Some(0), "{object:#}");
    }
    object
}

#[test]
fn odd_wishes_are_refused() {
    for (arguments, expected) in [
        (&["--minutes", "0"][..], "minutes"),
        (&["--faults", "flood"], "flood"),
        (&["--nodes", "1"], "nodes"),
        (&["--faults", "replace"], "it can be done: kill, freeze"),
        (&["--soak", "--injections", "3"], "--injections"),
        (&["--insecure", "--carrier", "quic"], "there is no QUIC without TLS"),
        (&["--compose", "/nowhere/docker-compose.yml"], "docker-compose.yml"),
        (&["--model", "/nowhere"], "/nowhere"),
    ] {
        let output = command(&[&["chaos"], arguments].concat()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
    }
}
