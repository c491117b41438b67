//! Nodes as hosts of their own, where the kernel loses their packets: `phalanx chaos --hosts`, shortly.

mod program;

use std::process::{Command, Stdio};

use program::command;
use serde_json::Value;

/// Whether this machine lets us have networks of our own: as its root, or as our own.
fn may_have_networks() -> bool {
    let works = |how: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(how).args(["--net", "ip", "link", "set", "lo", "up"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    works(&[]) || works(&["--user", "--map-root-user"])
}

#[test]
fn partitions_and_losses_of_real_hosts_change_no_answer() {
    if !may_have_networks() {
        eprintln!("SKIPPED: this machine lets us have no network namespaces, or has no iproute2");
        return;
    }
    let arguments = ["chaos", "--hosts", "--injections", "1", "--streams", "4", "--nodes", "3", "--json"];
    let output = command(&arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let classes = object["classes"].as_array().expect("a list");
    let names: Vec<&str> = classes.iter().filter_map(|class| class["fault"].as_str()).collect();
    for (fault, without) in [
        ("one-way", "loss are"),
        ("cut", "loss are"),
        ("loss", "loss are"),
        ("narrow", "narrow is"),
        ("kill", ""),
    ] {
        let is_left_out = !without.is_empty() && said.contains(&format!("{without} left out"));
        assert_eq!(names.contains(&fault), !is_left_out, "{fault}: {said}");
    }
    assert!(classes.iter().all(|class| class["recovered"] == 1), "{object:#}");
    for wrong in ["different", "lost"] {
        assert_eq!(object[wrong].as_array().map(Vec::len), Some(0), "{object:#}");
    }
}
