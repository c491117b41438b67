//! `phalanx rehearse`: a cluster in one process whose answers are checked by the command itself, against the plain loop.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod program;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use program::{command, phalanx};
use serde_json::Value;

const SIGINT: i32 = 2;

/// Every expert is an actor on a device of its own, dense layers too, and every answer is right, also while a node falls.
#[test]
fn a_small_plan_is_rehearsed() {
    let plan = "--layers 6 --dense 2 --experts 16 --top-k 3 --nodes 10 --requests 6 --prompt 9 --tokens 7";
    let arguments = format!("rehearse --json --numeric-class portable {plan}");
    let output = phalanx(&arguments.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((said["actors"].as_u64(), said["spare_devices"].as_u64()), (Some(4 * 16 + 2), Some(14)));
    assert_eq!((said["nodes"].as_u64(), said["tokens"].as_u64()), (Some(10), Some(6 * 7)));
    assert_eq!(said["equal_to_plain_loop"], true);
    // Every row of every request went out from each layer, and came back: a frame each way at the least.
    assert!(said["frames"].as_u64() >= Some(2 * 6), "{said}");
    assert!(said["dispatches"].as_u64() >= Some(6), "{said}");
    assert!(said["healed_s"].is_number(), "a node fell: {said}");
    assert_eq!(said["router"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_plan_that_cannot_be_is_refused() {
    for (arguments, says) in [
        (
            &["--nodes", "8", "--devices", "8"][..],
            "3715 experts and dense layers need a device each, 8 nodes of 8 have 64",
        ),
        (&["--dense", "61"], "--dense 61 of --layers 61"),
        (&["--top-k", "65"], "--top-k 65 of --experts 64"),
        (&["--hidden", "100"], "--hidden 100: a multiple of 32"),
        (&["--requests", "0"], "--requests 0: 1 to 1024"),
        (&["--plan", "other"], "invalid value 'other'"),
    ] {
        let output = phalanx(&[&["rehearse"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{arguments:?}: {said}");
    }
}

/// Ctrl-C ends it at once, whatever it is doing: nothing of it is on disk.
#[test]
fn it_can_be_interrupted() {
    let mut child = command(&["rehearse", "--layers", "9", "--requests", "512", "--nodes", "100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("the plain loop answers"));
    assert!(lines.next().unwrap().unwrap().starts_with("forming"));
    let since = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(SIGINT));
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}
