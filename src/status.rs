//! `phalanx status`: what a cluster is doing, at one look.
//!
//! It shows `/cluster` of a coordinator. What a person reads is made by pure functions of that JSON; with `--watch`
//! also of the one before, since a count alone says little and its change a lot.

use std::fmt::Write;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use crate::Failure;
use crate::access::Access;
use crate::output::{bytes, show};
use crate::remote::{ClusterUrl, Remote, URL, cluster_url};

/// Nodes that are listed; the rest is summed up.
const NODES_MAX: usize = 16;
/// What a node is that needs no look.
const SOUND: &str = "joined";
/// Busiest experts that are listed.
const LOADS_MAX: usize = 8;
/// Last events that are listed.
const EVENTS_MAX: usize = 8;
/// Columns of a terminal.
const WIDTH: usize = 80;
/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// What a cluster is doing: nodes, devices, experts, loads.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The coordinator's URL, as its --http has it.
    #[arg(long, value_name = "URL", value_parser = cluster_url, default_value = URL)]
    cluster: ClusterUrl,

    /// Only say whether requests are taken; if not, the exit code is 2. For health checks.
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    check: bool,
    #[command(flatten)]
    access: Access,

    /// Look again every second, until interrupted.
    #[arg(long)]
    watch: bool,

    /// One JSON object; with --watch, one a line.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let remote = Remote::new(&self.cluster, &self.access)?;
        if self.check {
            let served = remote.wait_until_served(Duration::ZERO)?;
            return show(&format!("{} takes requests for {}\n", remote.url(), served.model));
        }
        if !self.watch {
            let state = remote.cluster()?;
            return match self.json {
                true => show(&format!("{state:#}\n")),
                false => show(&text(&state, None, &remote.url().to_string())),
            };
        }
        let mut before: Option<(Value, Instant)> = None;
        loop {
            let now = Instant::now();
            let page = match remote.cluster() {
                Ok(state) if self.json => format!("{state}\n"),
                Ok(state) => {
                    let earlier = before.as_ref().map(|(state, then)| (state, now - *then));
                    let page = text(&state, earlier, &remote.url().to_string());
                    before = Some((state, now));
                    page
                }
                // It may come back, and whoever watches wants to see that.
                Err(failure) => {
                    before = None;
                    unreachable_page(self.json, &failure)
                }
            };
            match stdout().is_terminal() && !self.json {
                true => show(&format!("\x1b[H\x1b[2J{page}"))?,
                false if self.json => show(&page)?,
                false => show(&format!("{page}\n"))?,
            }
            std::thread::sleep(WATCH);
        }
    }
}

/// A failure as a page; beside JSON it must not stand in the output.
fn unreachable_page(json: bool, failure: &Failure) -> String {
    match json {
        true => {
            eprintln!("{failure}");
            String::new()
        }
        false => format!("{failure}\n"),
    }
}

/// A state as text, with rates where it is known how it was a while ago.
fn text(state: &Value, earlier: Option<(&Value, Duration)>, url: &str) -> String {
    let mut page = String::new();
    let number = |place: &str| state.pointer(place).and_then(Value::as_u64).unwrap_or(0);
    let rate = |place: &str| {
        let (earlier, elapsed) = earlier?;
        let before = earlier.pointer(place).and_then(Value::as_u64)?;
        Some(number(place).saturating_sub(before) as f64 / elapsed.as_secs_f64().max(1e-3))
    };
    let title = format!(
        "{}, {}{}: {}, epoch {}.{}",
        word(&state["model"]),
        word(&state["numeric_class"]),
        match number("/shards") {
            0 | 1 => String::new(),
            shards => format!(", experts in {shards} shards"),
        },
        word(&state["state"]),
        number("/epoch/term"),
        number("/epoch/number")
    );
    let gap = WIDTH.saturating_sub(title.chars().count() + url.len()).max(2);
    let _ = writeln!(page, "{title}{:gap$}{url}", "");
    for missing in list(&state["missing"]) {
        let _ = writeln!(page, "missing    {}", word(missing));
    }
    // A drained node may wait for room while all is served.
    let is_said = |why: &&Value| list(&state["missing"]).contains(why);
    if let Some(why) = Some(&state["refused"]).filter(|why| why.is_string() && !is_said(why)) {
        let _ = writeln!(page, "no room    {}", word(why));
    }
    let _ = writeln!(
        page,
        "experts    {} of {} held, {} replicas; {} spare devices",
        number("/experts/held"),
        number("/experts/total"),
        number("/experts/replicas"),
        number("/experts/spares")
    );
    let tokens = match rate("/data/tokens") {
        Some(rate) => format!("{rate:.0} tokens/s"),
        None => format!("{} tokens so far", number("/data/tokens")),
    };
    let (running, waiting) = (number("/data/running"), number("/data/waiting"));
    let _ = writeln!(page, "requests   {running} running, {waiting} waiting; {tokens}");
    let (rows, batches) = match (rate("/data/rows"), rate("/data/batches")) {
        (Some(rows), Some(batches)) => (rows, batches),
        _ => (number("/data/rows") as f64, number("/data/batches") as f64),
    };
    let traffic = |way: &str| match rate(&format!("/data/{way}_bytes")) {
        Some(rate) => format!("{}/s", bytes(rate as u64)),
        None => bytes(number(&format!("/data/{way}_bytes"))),
    };
    let forwarding = match (state["data"]["forwarding"].as_str(), &state["data"]["trying"]) {
        (Some(forwarding), Value::Bool(true)) => format!(", {forwarding} (being compared)"),
        (Some(forwarding), _) => format!(", {forwarding}"),
        (None, _) => String::new(),
    };
    let _ = writeln!(
        page,
        "trunk      {:.1} rows a batch{forwarding}; {} out to experts, {} back",
        if batches > 0.0 { rows / batches } else { 0.0 },
        traffic("dispatched"),
        traffic("returned")
    );
    page += &moves(state);
    page += &bias(state);
    let kinds = list(&state["nodes"])
        .iter()
        .flat_map(|node| list(&node["devices"]))
        .map(|device| word(&device["kind"]));
    if let Some(emulated) = kinds.into_iter().find(|kind| kind.contains(" emulating ")) {
        let _ = writeln!(page, "EMULATED   {}", short(&emulated, WIDTH - 11));
    }
    page += &nodes(state);
    page += &loads(state, earlier.map(|(earlier, elapsed)| (&earlier["loads"], elapsed)));
    page += &events(state, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    page
}

/// What moves, and what a better placement would bring; nothing, where all stays as it is.
fn moves(state: &Value) -> String {
    let mut page = String::new();
    let count = |key: &str| state["moves"][key].as_u64().unwrap_or(0);
    let (loading, waiting, lingering) = (count("loading"), count("waiting"), count("lingering"));
    if loading + waiting + lingering > 0 {
        let _ =
            write!(page, "moves      {loading} loading, {waiting} wait for room, {lingering} about to go");
        let is_blocked = state["moves"]["blocked"] == true;
        let _ = writeln!(page, "{}", if is_blocked { "; blocked: add memory or a device" } else { "" });
    }
    let rebalance = &state["rebalance"];
    if rebalance.is_object() {
        let changes = rebalance["changes"].as_u64().unwrap_or(0);
        let _ = writeln!(page, "rebalance  {changes} changes so far; {}", word(&rebalance["why"]));
    }
    let taken = list(&rebalance["taken"]).iter().map(|reckoning| ("+", reckoning));
    let left = Some(&rebalance["left"]).filter(|left| left.is_object()).map(|left| ("-", left));
    for (sign, reckoning) in taken.chain(left) {
        let seconds = |key: &str| reckoning[key].as_f64().unwrap_or(0.0);
        let (saves, costs) = (seconds("saves_s"), seconds("costs_s"));
        for change in list(&reckoning["changes"]) {
            let _ = writeln!(page, "         {sign} {}", word(change));
        }
        let _ = writeln!(page, "           saves {saves:.1} s, costs {costs:.1} s");
    }
    page
}

/// How far answers are from the model's own, and what that has evened out; nothing, where they are its own.
fn bias(state: &Value) -> String {
    let bias = &state["bias"];
    let number = |key: &str| bias[key].as_f64().unwrap_or(0.0);
    if !bias.is_object() {
        return String::new();
    }
    let worst = |key: &str| {
        let of = list(&bias["layers"]).iter().filter_map(|layer| layer[key].as_f64());
        of.reduce(f64::max).map_or("?".to_owned(), |most| format!("{most:.2}"))
    };
    let even = format!("most loaded expert {} of the mean, was {}", worst("now"), worst("before"));
    let even = if list(&bias["layers"]).is_empty() { "too few rows yet".to_owned() } else { even };
    match &bias["digest"] {
        Value::String(digest) => format!(
            "BIASED     version {} ({digest:.12}), up to {:.3} of {:.3}; {even}\n",
            bias["version"],
            number("largest"),
            number("max"),
        ),
        _ => format!("bias       none yet, up to {:.3} allowed; {even}\n", number("max")),
    }
}

fn nodes(state: &Value) -> String {
    let mut nodes: Vec<&Value> = list(&state["nodes"]).iter().collect();
    if nodes.is_empty() {
        return "\nno node has joined\n".into();
    }
    // Those that need a look come first; the order is otherwise theirs.
    nodes.sort_by_key(|node| word(&node["state"]) == SOUND);
    let mut rows =
        vec![row(&["NODE", "STATE", "DEVICES", "ACTORS", "MEMORY USED", "TRIP", "TRAFFIC", "ADDRESS"])];
    for node in nodes.iter().take(NODES_MAX) {
        let devices = list(&node["devices"]);
        let sum = |key: &str| devices.iter().filter_map(|device| device[key].as_u64()).sum::<u64>();
        let (used, all) = (sum("used_bytes"), sum("memory_bytes"));
        let over = |key: &str| node["link"][key].as_u64();
        // Both ways; --json has each.
        let traffic = over("bytes_out").zip(over("bytes_back")).map(|(out, back)| out + back);
        rows.push(vec![
            short(&word(&node["name"]), 16),
            short(&word(&node["state"]), 10),
            devices.len().to_string(),
            sum("actors").to_string(),
            of(bytes(used), bytes(all)),
            node["round_trip_us"].as_f64().map_or("-".into(), time),
            traffic.map_or("-".into(), bytes),
            short(&word(&node["address"]), 21),
        ]);
    }
    let mut page = format!("\n{}", table(&rows, "llrrrrrl"));
    if let Some(more) = nodes.len().checked_sub(NODES_MAX).filter(|more| *more > 0) {
        let sound = nodes[NODES_MAX..].iter().all(|node| word(&node["state"]) == SOUND);
        let sound = if sound { ", all joined" } else { "" };
        let _ = writeln!(page, "and {more} nodes more{sound}; --json has them all");
    }
    page
}

/// A part and the whole, with their unit once where they have the same.
fn of(part: String, whole: String) -> String {
    let number = part.split_once(' ').zip(whole.split_once(' '));
    match number.filter(|(part, whole)| part.1 == whole.1) {
        Some(((part, _), _)) => format!("{part} of {whole}"),
        None => format!("{part} of {whole}"),
    }
}

/// What happened last, and how long ago.
fn events(state: &Value, now: Duration) -> String {
    let events = list(&state["events"]);
    let rows: Vec<Vec<String>> = events
        .iter()
        .take(EVENTS_MAX)
        .map(|event| {
            let ago = (now.as_secs_f64() - event["at"].as_f64().unwrap_or(0.0)).max(0.0);
            let ago = match ago {
                _ if ago < 120.0 => format!("{ago:.0} s ago"),
                _ if ago < 7200.0 => format!("{:.0} min ago", ago / 60.0),
                _ => format!("{:.0} h ago", ago / 3600.0),
            };
            vec![ago, word(&event["text"])]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    // Events say who and why, so they are not cut; a terminal goes on in the next line.
    format!("\n{}", table(&[vec![row(&["", "LAST EVENTS"])], rows].concat(), "rl"))
}

/// The busiest experts.
fn loads(state: &Value, earlier: Option<(&Value, Duration)>) -> String {
    let all = list(&state["loads"]);
    let who =
        |load: &Value| ["layer", "expert", "replica", "shard"].map(|key| load[key].as_u64().unwrap_or(0));
    let before: std::collections::HashMap<_, _> =
        earlier.iter().flat_map(|(loads, _)| list(loads)).map(|load| (who(load), load)).collect();
    let count = |load: &Value, key: &str| load[key].as_u64().unwrap_or(0);
    let change = |load: &Value, key: &str| {
        let was = before.get(&who(load)).map_or(0, |was| count(was, key));
        count(load, key).saturating_sub(was)
    };
    let mut busiest: Vec<&Value> =
        all.iter().filter(|load| change(load, "rows") + count(load, "queued") > 0).collect();
    busiest.sort_by_key(|load| {
        std::cmp::Reverse((count(load, "queued"), change(load, "busy_us"), change(load, "rows")))
    });
    if busiest.is_empty() {
        return String::new();
    }
    let rows_title = if earlier.is_some() { "ROWS/S" } else { "ROWS" };
    let mut rows = vec![row(&["BUSIEST EXPERT", "NODE", "DEVICE", rows_title, "QUEUED", "BUSY", "PER ROW"])];
    for load in busiest.iter().take(LOADS_MAX) {
        let (rows_moved, busy) = (change(load, "rows"), change(load, "busy_us") as f64);
        let (rows_shown, busy_shown) = match earlier {
            Some((_, elapsed)) => {
                let seconds = elapsed.as_secs_f64().max(1e-3);
                (format!("{:.0}", rows_moved as f64 / seconds), format!("{:.0}%", busy / seconds / 1e4))
            }
            None => (rows_moved.to_string(), time(busy)),
        };
        rows.push(vec![
            actor(who(load)),
            short(&node_name(state, &load["node"]), 16),
            word(&load["device"]),
            rows_shown,
            count(load, "queued").to_string(),
            busy_shown,
            load["service_us"].as_f64().map_or("-".into(), time),
        ]);
    }
    format!("\n{}", table(&rows, "llrrrrr"))
}

/// An actor for people: layer and expert, and replica and shard where there are several.
pub(crate) fn actor([layer, expert, replica, shard]: [u64; 4]) -> String {
    let mut name = format!("layer {layer} expert {expert}");
    if replica > 0 {
        let _ = write!(name, " replica {replica}");
    }
    if shard > 0 {
        let _ = write!(name, " shard {shard}");
    }
    name
}

/// The name of a node of which the number is given, or what is given.
pub(crate) fn node_name(state: &Value, node: &Value) -> String {
    let named = list(&state["nodes"]).iter().find(|entry| entry["node"] == *node);
    word(named.map_or(node, |entry| &entry["name"]))
}

/// The elements of a list; none, where there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as one word.
pub(crate) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        // What comes from the network does not steer this terminal.
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        other => other.to_string(),
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// The beginning of a text.
fn short(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.into(),
    }
}

fn time(us: f64) -> String {
    match us {
        _ if us < 9.95 => format!("{us:.1} us"),
        _ if us < 9_950.0 => format!("{us:.0} us"),
        _ if us < 9_950_000.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.0} s", us / 1e6),
    }
}

/// Columns as wide as they need to be, `l`eft or `r`ight.
pub(crate) fn table(rows: &[Vec<String>], sides: &str) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..sides.len()).map(width).collect();
    let mut page = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), side) in row.iter().zip(&widths).zip(sides.chars()) {
            let _ = match side {
                'r' => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:<width$}  "),
            };
        }
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn state() -> Value {
        let device =
            json!({"kind": "cpu", "memory_bytes": 4u64 << 30, "used_bytes": 1u64 << 30, "actors": 32});
        let node = |name: &str, number: u32, state: &str| {
            json!({"name": name, "node": number, "address": "127.0.0.1:40001", "state": state,
                "devices": [device, device], "labels": {"rack": "r1"}, "round_trip_us": if number == 0 { json!(84) } else { Value::Null },
                "link": {"frames": 7, "bytes_out": 9_600_000, "bytes_back": 8_100_000, "dispatches": 2}})
        };
        let load = |expert: u32, replica: u32, node: u32, queued: u32| {
            json!({"layer": 1, "expert": expert, "replica": replica, "shard": 0, "node": node, "device": 1,
                "rows": 100 + expert, "queued": queued, "busy_us": 5000, "service_us": 41.7})
        };
        json!({
            "model": "demo-model", "numeric_class": "portable", "epoch": {"term": 3, "number": 17},
            "state": "waiting", "missing": ["1 of 64 experts has no holder"],
            "nodes": [node("a", 0, "joined"), node("b\u{1b}[2J", 1, "leaving")],
            "experts": {"total": 64, "held": 63, "replicas": 80, "spares": 2},
            "loads": [load(4, 0, 0, 0), load(5, 0, 1, 7), load(6, 1, 0, 0)],
            "data": {"running": 3, "waiting": 1, "tokens": 1200, "batches": 100, "rows": 340,
                "dispatched_frames": 10, "dispatched_bytes": 12_000_000, "returned_frames": 9,
                "returned_bytes": 11_000_000, "forwarding": "partial", "trying": false},
        })
    }

    #[test]
    fn the_state_is_seen_at_one_look() {
        let page = text(&state(), None, "http://127.0.0.1:8080");
        let expected = "\
demo-model, portable: waiting, epoch 3.17                  http://127.0.0.1:8080
missing    1 of 64 experts has no holder
experts    63 of 64 held, 80 replicas; 2 spare devices
requests   3 running, 1 waiting; 1200 tokens so far
trunk      3.4 rows a batch, partial; 12.0 MB out to experts, 11.0 MB back

NODE  STATE    DEVICES  ACTORS    MEMORY USED   TRIP  TRAFFIC  ADDRESS
b[2J  leaving        2      64  2.1 of 8.6 GB      -  17.7 MB  127.0.0.1:40001
a     joined         2      64  2.1 of 8.6 GB  84 us  17.7 MB  127.0.0.1:40001

BUSIEST EXPERT              NODE  DEVICE  ROWS  QUEUED     BUSY  PER ROW
layer 1 expert 5            b[2J       1   105       7  5000 us    42 us
layer 1 expert 6 replica 1  a          1   106       0  5000 us    42 us
layer 1 expert 4            a          1   104       0  5000 us    42 us
";
        assert_eq!(page, expected);
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH));
    }

    /// A node that cannot be emptied says why, once.
    #[test]
    fn what_has_no_room_is_said_once() {
        let mut state = state();
        state["nodes"][1]["state"] = json!("draining");
        state["refused"] = json!("all 4 layers: 8 MB short; add devices or memory");
        let page = text(&state, None, "x");
        assert!(page.contains("no room    all 4 layers: 8 MB short;") && page.contains("draining"), "{page}");
        state["missing"] = json!(["1 of 64 experts has no holder", state["refused"]]);
        let page = text(&state, None, "x");
        assert!(page.contains("missing    all 4 layers: 8 MB short;") && !page.contains("no room"), "{page}");
    }

    /// What is made up must not be taken for what this machine can do.
    #[test]
    fn emulated_devices_are_named() {
        let mut state = state();
        state["nodes"][1]["devices"][0]["kind"] = json!("cpu emulating wire=5ms");
        state["data"]["trying"] = json!(true);
        let page = text(&state, None, "x");
        assert!(page.contains("EMULATED   cpu emulating wire=5ms"), "{page}");
        assert!(page.contains("a batch, partial (being compared);"), "{page}");
    }

    /// A count alone says little; how it changes says a lot.
    #[test]
    fn watched_counts_become_rates() {
        let (before, mut now) = (state(), state());
        now["data"]["tokens"] = json!(1500);
        now["data"]["rows"] = json!(440);
        now["data"]["batches"] = json!(120);
        now["loads"][0]["rows"] = json!(304);
        now["loads"][0]["busy_us"] = json!(505_000);
        let page = text(&now, Some((&before, Duration::from_secs(2))), "http://x:1");
        assert!(page.contains("150 tokens/s") && page.contains("5.0 rows a batch"), "{page}");
        let row = page.lines().find(|line| line.starts_with("layer 1 expert 4 ")).unwrap();
        assert!(row.contains(" 100 ") && row.contains(" 25% "), "{page}");
    }

    /// What was reckoned stands beside what was done, and what is left says why.
    #[test]
    fn moves_and_reckonings_are_shown() {
        let reckoning = |change: &str, saves: f64| json!({"changes": [change], "saves_s": saves, "costs_s": 2.0, "bytes": 1});
        let state = json!({
            "moves": {"loading": 1, "waiting": 2, "lingering": 0, "blocked": true},
            "rebalance": {"changes": 7, "taken": [reckoning("layer 1 expert 2 gains a replica on node 3 device 0", 30.0)],
                "left": reckoning("layer 1 expert 4 moves", 3.0), "why": "it must save 2 times what it costs"},
        });
        let expected = "\
moves      1 loading, 2 wait for room, 0 about to go; blocked: add memory or a device
rebalance  7 changes so far; it must save 2 times what it costs
         + layer 1 expert 2 gains a replica on node 3 device 0
           saves 30.0 s, costs 2.0 s
         - layer 1 expert 4 moves
           saves 3.0 s, costs 2.0 s
";
        assert_eq!(moves(&state), expected);
        assert_eq!(moves(&json!({"rebalance": null})), "");
    }

    /// That answers are not the model's own is said as soon as they are not.
    #[test]
    fn a_bias_is_shown() {
        let of = |bias: Value| super::bias(&json!({ "bias": bias }));
        assert_eq!(of(Value::Null), "");
        let none = json!({"version": 0, "digest": null, "max": 0.5, "largest": 0.0, "layers": []});
        assert_eq!(of(none), "bias       none yet, up to 0.500 allowed; too few rows yet\n");
        let layers =
            json!([{"layer": 1, "before": 3.1, "now": 1.25}, {"layer": 2, "before": 2.0, "now": 1.5}]);
        let some = json!({"version": 7, "digest": "0123456789abcdef", "max": 0.5, "largest": 0.25, "layers": layers});
        let expected = "BIASED     version 7 (0123456789ab), up to 0.250 of 0.500; most loaded expert 1.50 of the mean, was 3.10\n";
        assert_eq!(of(some), expected);
    }

    /// Who joined, died and took over stands with how long ago it was, newest first.
    #[test]
    fn the_last_events_are_shown() {
        let event = |at: f64, text: &str| json!({"at": at, "text": text});
        let state = json!({"events": [
            event(1e6 - 3.2, "n1 took over 4 experts of n2"),
            event(1e6 - 600.0, "n2 is lost:\u{1b}[2J cut"),
            event(1e6 - 9000.0, "n2 joined with 2 devices"),
        ]});
        let expected = "
           LAST EVENTS
  3 s ago  n1 took over 4 experts of n2
10 min ago  n2 is lost:[2J cut
  2 h ago  n2 joined with 2 devices
";
        let found = events(&state, Duration::from_secs(1_000_000));
        let unspaced = |text: &str| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
        assert_eq!(unspaced(&found), unspaced(expected));
        assert_eq!(events(&json!({}), Duration::ZERO), "");
    }

    /// A cluster of many nodes does not scroll away what matters, and an empty one says so.
    #[test]
    fn many_nodes_are_summed_up_and_none_is_said() {
        let mut many = state();
        let mut nodes = vec![many["nodes"][0].clone(); 487];
        nodes.push(many["nodes"][1].clone());
        many["nodes"] = json!(nodes);
        let page = text(&many, None, "x");
        assert!(page.lines().count() < 40 && page.contains("and 472 nodes more, all joined"), "{page}");
        assert!(page.find("leaving") < page.find("joined  "), "{page}");
        let page = text(&json!({"state": "loading", "model": "m"}), None, "x");
        assert!(page.contains("no node has joined") && page.contains("0 of 0 held"), "{page}");
    }
}
