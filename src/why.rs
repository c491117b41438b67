//! `phalanx why`: what every live request waits for, and what is at the bottom of it.
//!
//! It shows `/why` of a coordinator. What a person reads is made by a pure function of that JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use crate::Failure;
use crate::access::Access;
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, URL, cluster_url};
use crate::status::{list, word};

/// Requests that are listed; the rest is counted.
const LISTED_MAX: usize = 40;

/// What live requests wait for: which layer, expert, node and link, since when, or whose turn it is.
///
/// Examples:
///   phalanx why
///   phalanx why 12
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Why {
    /// This request alone, by the number that it has in the list of all.
    #[arg(value_name = "REQUEST")]
    request: Option<u64>,

    /// The coordinator's URL, as its --http has it.
    #[arg(long, value_name = "URL", value_parser = cluster_url, default_value = URL)]
    cluster: ClusterUrl,

    #[command(flatten)]
    access: Access,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let why = Remote::new(&self.cluster, &self.access)?.why(self.request)?;
        match self.json {
            true => show(&format!("{why:#}\n")),
            false => show(&text(&why)),
        }
    }
}

/// What holds several up, with most first, then each request's own reason.
fn text(why: &Value) -> String {
    let requests = list(&why["requests"]);
    if requests.is_empty() {
        return "no request is live\n".into();
    }
    let mut page = String::new();
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    for request in requests.iter().filter(|request| request["expert"].is_number()) {
        *causes.entry(expert(request)).or_default() += 1;
    }
    let mut causes: Vec<(String, usize)> = causes.into_iter().filter(|(_, count)| *count > 1).collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (cause, count) in &causes {
        let _ = writeln!(page, "{count} of {} live requests are held up by {cause}", requests.len());
    }
    if !causes.is_empty() {
        page.push('\n');
    }
    for request in requests.iter().take(LISTED_MAX) {
        let _ = writeln!(page, "request {}: {}", word(&request["request"]), word(&request["why"]));
    }
    if let Some(more) = requests.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        let _ = writeln!(page, "and {more} requests more; --json has them all");
    }
    page
}

fn expert(request: &Value) -> String {
    let name = format!("expert {} of layer {}", word(&request["expert"]), word(&request["layer"]));
    match request["node"].as_str() {
        Some(_) => format!("{name} on node {}", word(&request["node"])),
        None => format!("{name}, which is on no node now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A hundred requests that wait for one expert are one problem.
    #[test]
    fn what_holds_several_up_is_said_first() {
        let at = |request: u64, node: Value, why: &str| json!({"request": request, "kind": "expert", "layer": 4, "expert": 9, "node": node, "why": why});
        let mut requests = vec![
            at(1, json!("n2"), "row 3 waits"),
            at(2, json!("n2"), "row 7\u{1b}[2J waits"),
            at(3, json!(null), "row 0 waits"),
            json!({"request": 4, "kind": "queue", "why": "queued behind 1 other"}),
        ];
        let expected = "2 of 4 live requests are held up by expert 9 of layer 4 on node n2\n\n\
                        request 1: row 3 waits\nrequest 2: row 7[2J waits\nrequest 3: row 0 waits\n\
                        request 4: queued behind 1 other\n";
        assert_eq!(text(&json!({ "requests": requests })), expected);
        requests.extend((5..100).map(|number| json!({"request": number, "why": "queued"})));
        assert!(
            text(&json!({ "requests": requests })).ends_with("and 59 requests more; --json has them all\n")
        );
        assert_eq!(text(&json!({"requests": []})), "no request is live\n");
    }
}
