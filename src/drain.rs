//! `phalanx drain`: a node of a cluster holds nothing from now on, and stays in.
//!
//! It asks a coordinator, says what moves, and looks at `/cluster` until the node is empty. What a person reads is made by pure
//! functions of the coordinator's JSON.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::Failure;
use crate::access::Access;
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, URL, cluster_url};
use crate::status::{list, word};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// Have a node hold nothing, so that it can be ended or changed while the cluster serves on.
///
/// What the node holds is loaded elsewhere first, and goes from it then. It stays in the cluster, drained, until --undo,
/// also when it or the coordinator is started anew. A drained node may be ended at any time.
///
/// Examples:
///   phalanx drain rack2-7
///   phalanx drain rack2-7 --undo
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Drain {
    /// The node's name, as `phalanx status` has it.
    #[arg(value_name = "NODE")]
    node: String,

    /// Also where what it holds has no room elsewhere: such experts have no holder then, and who needs them waits.
    #[arg(long)]
    force: bool,

    /// The node may hold experts again.
    #[arg(long, conflicts_with_all = ["force", "no_wait"])]
    undo: bool,

    /// Do not wait until the node is empty. Ctrl-C while waiting does the same.
    #[arg(long)]
    no_wait: bool,

    /// The coordinator's URL, as its --http has it.
    #[arg(long, value_name = "URL", value_parser = cluster_url, default_value = URL)]
    cluster: ClusterUrl,

    #[command(flatten)]
    access: Access,
}

impl Drain {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let remote = Remote::new(&self.cluster, &self.access)?;
        if self.undo {
            let answer = remote.post("/cluster/undrain", &json!({ "node": self.node }))?;
            return show(&undone(&answer));
        }
        let asked = json!({ "node": self.node, "force": self.force });
        let answer = remote.post("/cluster/drain", &asked)?;
        show(&begun(&answer))?;
        let is_done = ["drained", "gone"].contains(&word(&answer["state"]).as_str());
        if self.no_wait || is_done {
            return Ok(());
        }
        let mut said = String::new();
        loop {
            let state = remote.cluster()?;
            match look(&state, &self.node) {
                Look::Moving(text) => {
                    if text != said {
                        show(&text)?;
                        said = text;
                    }
                }
                Look::Done(text) => return show(&text),
                Look::Undone(text) => return Err(text.into()),
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn counted(count: u64) -> String {
    if count == 1 { "1 expert".into() } else { format!("{count} experts") }
}

/// What a coordinator says that was asked to drain a node.
fn begun(answer: &Value) -> String {
    let (node, state) = (word(&answer["node"]), word(&answer["state"]));
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    if answer["changed"] == false {
        return match state.as_str() {
            "drained" => format!("{node} is drained already: it holds nothing\n"),
            "gone" => format!("{node} is drained already, and not there\n"),
            _ => format!("{node} is being drained already; it holds {}\n", counted(number("experts"))),
        };
    }
    let mut text = match state.as_str() {
        "drained" => format!("{node} is drained: it held nothing\n"),
        "gone" => format!("{node} is drained; it is not there, and gets nothing when it comes back\n"),
        _ => format!("{node} is to be drained; it holds {}\n", counted(number("experts"))),
    };
    for to in list(&answer["moves"]) {
        text += &format!("  {} to {}\n", counted(to["experts"].as_u64().unwrap_or(0)), word(&to["node"]));
    }
    if let Some(why) = answer["refused"].as_str() {
        text += &format!("not all of it has room elsewhere: {}\n", word(&json!(why)));
    }
    if answer["kept"] == false {
        text += "the coordinator has no --data directory: started anew it does not know that the node is drained\n";
    }
    text
}

fn undone(answer: &Value) -> String {
    let node = word(&answer["node"]);
    match answer["changed"] == false {
        true => format!("{node} is not drained\n"),
        false => format!("{node} is not drained any more, and may hold experts again\n"),
    }
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Moving(String),
    Done(String),
    Undone(String),
}

fn look(state: &Value, name: &str) -> Look {
    let node = list(&state["nodes"]).iter().find(|node| node["name"] == name);
    let Some(node) = node else { return Look::Undone(format!("{name} is not known any more")) };
    match node["state"].as_str() {
        Some("drained") => return Look::Done(format!("{name} is drained: it holds nothing\n")),
        Some("gone") => return Look::Done(format!("{name} has gone\n")),
        _ if node["drained"] == false => {
            return Look::Undone(format!("{name} is to be used again: somebody has said so"));
        }
        _ => {}
    }
    let number = &node["node"];
    let here = list(&state["loads"]).iter().filter(|load| load["node"] == *number);
    let mut experts: Vec<_> = here.map(|load| (load["layer"].as_u64(), load["expert"].as_u64())).collect();
    experts.sort_unstable();
    experts.dedup();
    let count = |key: &str| state["moves"][key].as_u64().unwrap_or(0);
    let mut text =
        format!("  {} left on it, {} loading elsewhere\n", counted(experts.len() as u64), count("loading"));
    if let Some(why) = state["refused"].as_str() {
        text += &format!("  it waits for room: {}\n", word(&json!(why)));
    } else if state["moves"]["blocked"] == true {
        text += "  full devices wait for one another: add memory or a device\n";
    }
    Look::Moving(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_said() {
        let answer = json!({"node": "n2", "changed": true, "state": "draining", "experts": 12, "alone": 12,
            "moves": [{"node": "n0", "experts": 7}, {"node": "n1\u{1b}[2J", "experts": 1}], "refused": null, "kept": true});
        assert_eq!(
            begun(&answer),
            "n2 is to be drained; it holds 12 experts\n  7 experts to n0\n  1 expert to n1[2J\n"
        );
        let mut forced = answer.clone();
        (forced["refused"], forced["kept"]) = (json!("8 MB short"), json!(false));
        let text = begun(&forced);
        assert!(text.contains("not all of it has room elsewhere: 8 MB short\n"), "{text}");
        assert!(text.ends_with("does not know that the node is drained\n"), "{text}");
    }

    /// Twice is no mistake.
    #[test]
    fn twice_is_said_once() {
        let answer =
            |state: &str| json!({"node": "n2", "changed": false, "state": state, "experts": 1, "kept": true});
        assert_eq!(begun(&answer("drained")), "n2 is drained already: it holds nothing\n");
        assert_eq!(begun(&answer("draining")), "n2 is being drained already; it holds 1 expert\n");
        assert_eq!(undone(&answer("joined")), "n2 is not drained\n");
    }

    #[test]
    fn how_far_it_is_is_said() {
        let load = |node: u64, expert: u64, shard: u64| json!({"node": node, "layer": 1, "expert": expert, "shard": shard});
        let state = |of: &str, is_drained: bool| {
            json!({"nodes": [{"name": "n2", "node": 2, "state": of, "drained": is_drained}],
                "loads": [load(2, 5, 0), load(2, 5, 1), load(1, 6, 0), load(2, 7, 0)],
                "moves": {"loading": 3, "blocked": false}, "refused": null})
        };
        let left = "  2 experts left on it, 3 loading elsewhere\n".to_owned();
        assert_eq!(look(&state("draining", true), "n2"), Look::Moving(left.clone()));
        assert_eq!(look(&state("late", true), "n2"), Look::Moving(left));
        assert_eq!(
            look(&state("drained", true), "n2"),
            Look::Done("n2 is drained: it holds nothing\n".into())
        );
        assert_eq!(look(&state("gone", true), "n2"), Look::Done("n2 has gone\n".into()));
        assert!(matches!(look(&state("joined", false), "n2"), Look::Undone(_)));
        assert!(matches!(look(&json!({}), "n2"), Look::Undone(_)));
        let mut full = state("draining", true);
        full["refused"] = json!("3.1 MB short");
        let Look::Moving(text) = look(&full, "n2") else { panic!("it goes on") };
        assert!(text.ends_with("  it waits for room: 3.1 MB short\n"), "{text}");
    }
}
