//! `phalanx placement`: which device of a cluster holds what.
//!
//! The live placement, read from `/cluster` of a coordinator. The text is a pure function of that JSON.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use crate::Failure;
use crate::access::Access;
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, URL, cluster_url};
use crate::status::{list, node_name, word};

/// A device: its node's name, and its number there.
type Device = (String, u64);
/// Experts of each layer, each with what is to be said of it.
type Layers = BTreeMap<u64, Vec<(u64, String)>>;

/// Columns of a terminal.
const WIDTH: usize = 80;

/// Which device of a cluster holds what.
#[derive(Debug, Args)]
pub(crate) struct Placement {
    /// The coordinator's URL, as its --http has it.
    #[arg(long, value_name = "URL", value_parser = cluster_url, default_value = URL)]
    cluster: ClusterUrl,

    #[command(flatten)]
    access: Access,

    /// One JSON object: the epoch, and for each actor its node and device.
    #[arg(long)]
    json: bool,
}

impl Placement {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let state = Remote::new(&self.cluster, &self.access)?.cluster()?;
        show(&if self.json { format!("{:#}\n", object(&state)) } else { text(&state) })
    }
}

/// The placement alone.
fn object(state: &Value) -> Value {
    const KEYS: [&str; 6] = ["layer", "expert", "replica", "shard", "node", "device"];
    let actors = list(&state["loads"]).iter().map(|load| {
        let mut actor: serde_json::Map<String, Value> =
            KEYS.iter().map(|key| ((*key).to_owned(), load[*key].clone())).collect();
        actor.insert("node_name".into(), node_name(state, &load["node"]).into());
        Value::Object(actor)
    });
    json!({
        "model": state["model"],
        "epoch": state["epoch"],
        "experts": state["experts"],
        "missing": state["missing"],
        "actors": actors.collect::<Vec<_>>(),
    })
}

fn text(state: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    // By node and device, and there by layer: the experts, each with what is not the first of its replicas or shards.
    let mut devices: BTreeMap<Device, Layers> = BTreeMap::new();
    for load in list(&state["loads"]) {
        let mut suffix = String::new();
        for (key, letter) in [("replica", 'r'), ("shard", 's')] {
            match number(&load[key]) {
                0 => {}
                count => suffix += &format!("{letter}{count}"),
            }
        }
        let device = (node_name(state, &load["node"]), number(&load["device"]));
        let layer = devices.entry(device).or_default().entry(number(&load["layer"])).or_default();
        layer.push((number(&load["expert"]), suffix));
    }
    let mut page =
        format!("{}, epoch {}.{}: ", word(&state["model"]), state["epoch"]["term"], state["epoch"]["number"]);
    page += &format!("{} of {} experts held\n", state["experts"]["held"], state["experts"]["total"]);
    for missing in list(&state["missing"]) {
        page += &format!("missing: {}\n", word(missing));
    }
    for ((node, device), layers) in devices {
        let parts: Vec<String> = layers
            .into_iter()
            .map(|(layer, experts)| format!("layer {layer}: {}", ranges(experts)))
            .collect();
        page += &wrapped(&format!("{node} device {device}"), &parts);
    }
    page
}

/// Experts as ranges: `0-15,17,18r1`.
fn ranges(mut experts: Vec<(u64, String)>) -> String {
    experts.sort();
    let mut out: Vec<String> = Vec::new();
    let mut rest = experts.as_slice();
    while let Some((first, suffix)) = rest.first() {
        let follows =
            |(i, (expert, other)): &(usize, &(u64, String))| *expert == first + *i as u64 && other == suffix;
        let count = rest.iter().enumerate().take_while(follows).count();
        out.push(match count {
            1 => format!("{first}{suffix}"),
            _ => format!("{first}-{}{suffix}", first + count as u64 - 1),
        });
        rest = &rest[count..];
    }
    out.join(",")
}

/// A name and its parts, over as many lines as they need.
fn wrapped(name: &str, parts: &[String]) -> String {
    const INDENT: &str = "    ";
    let mut page = format!("{name}\n");
    let mut line = String::new();
    for part in parts {
        if !line.is_empty() && INDENT.len() + line.len() + 2 + part.len() > WIDTH {
            page += &format!("{INDENT}{line}\n");
            line.clear();
        }
        line += if line.is_empty() { "" } else { "  " };
        line += part;
    }
    page + INDENT + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::state;

    #[test]
    fn holders_are_listed_by_device() {
        let expected = "\
demo-model, epoch 3.17: 63 of 64 experts held
missing: 1 of 64 experts has no holder
a device 1
    layer 1: 4,6r1
b[2J device 1
    layer 1: 5
";
        assert_eq!(text(&state()), expected);
        let object = object(&state());
        assert_eq!(object["actors"][1]["node"], 1);
        assert_eq!(object["epoch"]["number"], 17);
        assert!(object["actors"][0].get("queued").is_none());
    }

    #[test]
    fn neighbours_are_ranges() {
        let experts = |list: &[(u64, &str)]| list.iter().map(|(e, s)| (*e, s.to_string())).collect();
        assert_eq!(ranges(experts(&[(3, ""), (0, ""), (1, ""), (2, "")])), "0-3");
        assert_eq!(ranges(experts(&[(0, ""), (1, "r1"), (2, "r1"), (4, "")])), "0,1-2r1,4");
    }

    #[test]
    fn long_lists_are_wrapped() {
        let parts: Vec<String> = (0..20).map(|layer| format!("layer {layer}: 0-15")).collect();
        let page = wrapped("n device 0", &parts);
        assert!(page.lines().count() > 3 && page.lines().all(|line| line.len() <= WIDTH), "{page}");
    }
}
