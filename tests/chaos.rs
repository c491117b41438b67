//! `phalanx chaos`, shortly: one fault of each kind, and what it says of them.

mod program;

use program::command;
use serde_json::Value;

#[test]
fn one_fault_of_each_kind_changes_no_answer() {
    let arguments = ["chaos", "--minutes", "0.1", "--streams", "4", "--nodes", "3", "--seed", "5", "--json"];
    let output = command(&arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for kind in ["kill", "freeze", "leave", "coordinator"] {
        let classes = object["classes"].as_array().expect("a list");
        let class = classes.iter().find(|class| class["fault"] == kind).expect("all kinds");
        assert_eq!(class["injected"], class["healed"], "{object:#}");
    }
    assert!(object["injections"].as_array().is_some_and(|all| all.len() >= 2), "{object:#}");
    assert!(object["answers"].as_u64() > Some(20), "{object:#}");
    for wrong in ["different", "lost"] {
        assert_eq!(object[wrong].as_array().map(Vec::len), Some(0), "{object:#}");
    }
}

#[test]
fn odd_wishes_are_refused() {
    for (arguments, expected) in [
        (&["--minutes", "0"][..], "minutes"),
        (&["--faults", "flood"], "flood"),
        (&["--nodes", "1"], "nodes"),
        (&["--model", "/nowhere"], "/nowhere"),
    ] {
        let output = command(&[&["chaos"], arguments].concat()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
    }
}
