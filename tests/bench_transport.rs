//! `phalanx bench transport` runs to its end on this machine, says what it measured in both forms, and
//! leaves no process and no file behind. How fast anything is, is not tested here.

mod program;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use program::{Scratch, command, phalanx};
use serde_json::Value;

/// Every carrier, its contestants, and which of their ratios have a bar: round trips, the row, one way.
const FIELDS: [(&str, &[&str]); 5] = [
    ("memory", &["memory, same thread", "actix, same thread", "memory, two threads", "actix, two arbiters"]),
    ("shm", &["shm, spinning", "bare ring, spinning", "shm, sleeping", "bare ring, sleeping"]),
    ("tcp", &["tcp, plain", "raw tokio"]),
    ("tcp-tls", &["tcp, TLS", "raw tokio-rustls", "tcp, plain"]),
    ("quic", &["quic", "bare quinn, tuned", "bare quinn, default", "tcp, plain"]),
];

/// The measures in their order.
const MEASURES: [(&str, u64); 5] = [
    ("round_trip", 64),
    ("round_trip", 14_336),
    ("round_trip", 1 << 20),
    ("one_way", 14_336),
    ("one_way", 1 << 20),
];

/// Bars as the requirements have them: the pair, the measure, and the limit.
const BARS: [(&str, &str, &str, u64, &str, f64); 20] = [
    ("memory, same thread", "actix, same thread", "round_trip", 64, "at_most", 1.3),
    ("memory, same thread", "actix, same thread", "round_trip", 14_336, "at_most", 1.3),
    ("memory, same thread", "actix, same thread", "round_trip", 1 << 20, "at_most", 1.3),
    ("memory, two threads", "actix, two arbiters", "round_trip", 64, "at_most", 1.3),
    ("memory, two threads", "actix, two arbiters", "round_trip", 14_336, "at_most", 1.3),
    ("memory, two threads", "actix, two arbiters", "round_trip", 1 << 20, "at_most", 1.3),
    ("shm, spinning", "bare ring, spinning", "round_trip", 14_336, "at_most", 2.0),
    ("shm, spinning", "bare ring, spinning", "one_way", 14_336, "at_least", 0.6),
    ("shm, spinning", "bare ring, spinning", "one_way", 1 << 20, "at_least", 0.6),
    ("shm, sleeping", "bare ring, sleeping", "round_trip", 14_336, "at_most", 2.0),
    ("shm, sleeping", "bare ring, sleeping", "one_way", 14_336, "at_least", 0.6),
    ("shm, sleeping", "bare ring, sleeping", "one_way", 1 << 20, "at_least", 0.6),
    ("tcp, plain", "raw tokio", "round_trip", 14_336, "at_most", 1.15),
    ("tcp, plain", "raw tokio", "one_way", 14_336, "at_least", 0.95),
    ("tcp, plain", "raw tokio", "one_way", 1 << 20, "at_least", 0.95),
    ("tcp, TLS", "tcp, plain", "one_way", 14_336, "at_least", 0.5),
    ("tcp, TLS", "tcp, plain", "one_way", 1 << 20, "at_least", 0.5),
    ("quic", "tcp, plain", "round_trip", 14_336, "at_most", 2.5),
    ("quic", "tcp, plain", "one_way", 14_336, "at_least", 0.45),
    ("quic", "tcp, plain", "one_way", 1 << 20, "at_least", 0.45),
];

/// What the benchmark puts into its folder for files that nobody keeps.
fn left_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("the folder is there").count()
}

/// One object with every figure and every ratio, each with its bar and whether it is reached.
#[test]
fn every_carrier_is_measured_beside_a_bare_program() {
    let scratch = Scratch::new("bench-transport");
    let output = command(&["bench", "transport", "--seconds", "0.005", "--json"])
        .env("TMPDIR", scratch.path())
        .output()
        .expect("the program was built for this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(object["cpu"].is_string());
    let cores = object["cores"].as_u64().expect("a number");
    let used = object["cores_used"].as_array().expect("a list").len();
    assert_eq!(used, if cores > 1 { 2 } else { 0 }, "both ends, or none");

    let figures = object["figures"].as_array().expect("a list");
    let mut expected = Vec::new();
    for (carrier, contestants) in FIELDS {
        for (measure, bytes) in MEASURES {
            expected.extend(contestants.iter().map(|contestant| (carrier, *contestant, measure, bytes)));
        }
    }
    let found: Vec<_> = figures
        .iter()
        .map(|figure| {
            let text = |field: &str| figure[field].as_str().expect("text");
            (
                text("carrier"),
                text("contestant"),
                text("measure"),
                figure["bytes"].as_u64().expect("a number"),
            )
        })
        .collect();
    assert_eq!(found, expected);
    for figure in figures {
        let number =
            |field: &str| figure[field].as_f64().filter(|number| *number > 0.0 && number.is_finite());
        if figure["measure"] == "round_trip" {
            assert!(number("us_p50").is_some() && number("us_p99") >= number("us_p50"), "{figure}");
            assert!(figure.get("gb_per_s").is_none());
        } else {
            assert!(number("gb_per_s").is_some() && figure.get("us_p50").is_none(), "{figure}");
        }
        assert!(figure["windows"].as_u64() > Some(0), "{figure}");
    }

    let ratios = object["ratios"].as_array().expect("a list");
    let mut bars = Vec::new();
    for ratio in ratios {
        let value = ratio["ratio"].as_f64().expect("a number");
        assert!(value > 0.0, "{ratio}");
        let (at_most, at_least) = (ratio["at_most"].as_f64(), ratio["at_least"].as_f64());
        let reached = match (at_most, at_least) {
            (Some(limit), None) => Some(value <= limit),
            (None, Some(limit)) => Some(value >= limit),
            (None, None) => None,
            both => panic!("{both:?}"),
        };
        assert_eq!(ratio["reached"].as_bool(), reached, "{ratio}");
        let text = |field: &str| ratio[field].as_str().expect("text");
        let bytes = ratio["bytes"].as_u64().expect("a number");
        let sides = [("at_most", at_most), ("at_least", at_least)];
        bars.extend(sides.into_iter().filter_map(|(side, limit)| {
            Some((text("contestant"), text("beside"), text("measure"), bytes, side, limit?))
        }));
    }
    let order = |bars: &mut Vec<(_, _, _, _, _, f64)>| bars.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    let mut expected = BARS.to_vec();
    order(&mut expected);
    order(&mut bars);
    assert_eq!(bars, expected);
    assert_eq!(left_in(scratch.path()), 0, "sockets, keys and certificates are removed");
}

/// Lines for each contestant, and for each ratio with its bar and a mark.
#[test]
fn the_table_has_a_line_for_each_figure_and_ratio() {
    let output = phalanx(&["bench", "transport", "--carrier", "tcp", "--seconds", "0.005"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = |begin: &str| table.lines().filter(|line| line.starts_with(begin)).collect::<Vec<_>>();
    for measure in
        ["round trip 64 B", "round trip 14 KiB", "round trip 1 MiB", "one way 14 KiB", "one way 1 MiB"]
    {
        let lines = lines(&format!("tcp       {measure:<23}"));
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[0].contains("tcp, plain") && lines[1].contains("raw tokio"), "{table}");
        assert!(lines[2].contains("tcp, plain / raw tokio"), "{table}");
        let is_barred = measure == "round trip 14 KiB" || measure.starts_with("one way");
        assert_eq!(lines[2].ends_with("reached") || lines[2].ends_with("MISSED"), is_barred, "{table}");
    }
    assert!(lines("carrier").len() == 1 && lines("memory").is_empty(), "{table}");
}

#[test]
fn wrong_flags_are_refused_with_what_would_be_right() {
    for (says, flags) in [
        (&["pigeon", "memory", "tcp-tls"][..], ["--carrier", "tcp,pigeon"]),
        (&["`0` is no time"], ["--seconds", "0"]),
        (&["`nan` is no time"], ["--seconds", "nan"]),
        (&["`1e9` is no time", "60"], ["--seconds", "1e9"]),
    ] {
        let output = phalanx(&["bench", "transport", flags[0], flags[1]]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(says.iter().all(|say| message.contains(say)) && !message.contains("panicked"), "{message}");
    }
}

/// The hidden flag is for the benchmark itself: by hand it says so and ends, and does not wait for ever.
#[test]
fn the_echoing_process_is_not_for_people() {
    let output =
        command(&["bench", "transport", "--echo", "raw-tcp"]).stdin(Stdio::null()).output().expect("it ran");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--echo") && message.contains("without"), "{message}");
    let help = phalanx(&["bench", "transport", "--help"]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("--echo"), "it is hidden");
}

/// However the parent ends, the processes that it started end with it: also those that sleep in a bare ring,
/// where no socket tells them.
#[test]
fn echoing_processes_die_with_a_killed_parent() {
    let mut parent = command(&["bench", "transport", "--carrier", "shm", "--seconds", "0.5"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program was built for this test");
    // With its first figure all of them are at work, and it is far from its last.
    let table = BufReader::new(parent.stdout.take().expect("it is piped"));
    assert!(table.lines().map_while(Result::ok).any(|line| line.starts_with("shm")), "no figure came");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", parent.id()));
    let children: Vec<u32> = children
        .expect("the parent runs")
        .split_whitespace()
        .map(|child| child.parse().expect("a number"))
        .collect();
    assert_eq!(children.len(), 4, "two of ours and two bare rings");
    // The kernel's word for killing: nothing of ours runs any more in the parent.
    parent.kill().expect("it runs");
    parent.wait().expect("it is ours");
    let deadline = Instant::now() + Duration::from_secs(10);
    for child in children {
        while is_alive(child) {
            assert!(Instant::now() < deadline, "process {child} outlives its parent");
            std::thread::yield_now();
        }
    }
}

/// Neither gone nor a zombie that its new parent has not looked at yet.
fn is_alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| {
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
    })
}
