//! The text that Prometheus reads, and what of the cluster's state stands in it.
//!
//! Pure. What there may be without bound is bounded here: experts are told one by one up to [`SEATS_MAX`] of them, and where
//! there are more, by layer.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use serde_json::Value;

/// Seats of experts that have a series each. A series costs Prometheus some kilobytes for as long as it keeps anything.
const SEATS_MAX: usize = 4096;

/// Numbers of which there is one: name, kind, where it stands in `/cluster`, and what it is.
const SINGLE: [(&str, &str, &str, &str); 33] = [
    ("phalanx_requests_running", "gauge", "/data/running", "Requests that are being computed."),
    ("phalanx_requests_waiting", "gauge", "/data/waiting", "Requests that wait for room."),
    ("phalanx_tokens_total", "counter", "/data/tokens", "Tokens of answers."),
    ("phalanx_batches_total", "counter", "/data/batches", "Batches of the trunk."),
    ("phalanx_rows_total", "counter", "/data/rows", "Rows in these batches."),
    ("phalanx_groups_total", "counter", "/data/groups", "Groups that were dispatched to experts."),
    ("phalanx_groups_rows_total", "counter", "/data/group_rows", "Rows in these groups."),
    ("phalanx_frames_dispatched_total", "counter", "/data/dispatched_frames", "Frames to nodes."),
    ("phalanx_bytes_dispatched_total", "counter", "/data/dispatched_bytes", "Bytes of frames to nodes."),
    ("phalanx_frames_returned_total", "counter", "/data/returned_frames", "Frames from nodes."),
    ("phalanx_bytes_returned_total", "counter", "/data/returned_bytes", "Bytes of frames from nodes."),
    (
        "phalanx_rows_failed_total",
        "counter",
        "/data/dispatches/rows_failed",
        "Rows that could not be computed.",
    ),
    (
        "phalanx_experts_left_out_total",
        "counter",
        "/data/dispatches/left_out",
        "Experts without a holder that rows went on without, where their request said so.",
    ),
    ("phalanx_kv_pages", "gauge", "/data/kv_pages", "Pages for keys and values."),
    ("phalanx_kv_pages_free", "gauge", "/data/kv_pages_free", "Of these, those that belong to no request."),
    ("phalanx_requests_preempted_total", "counter", "/data/preempted", "Requests that gave way to others."),
    (
        "phalanx_requests_stranded",
        "gauge",
        "/data/stranded",
        "Requests that run and wait for an expert that nobody holds.",
    ),
    (
        "phalanx_requests_aside",
        "gauge",
        "/data/aside",
        "Requests that gave way while they waited for such an expert, and wait for it.",
    ),
    (
        "phalanx_requests_set_aside_total",
        "counter",
        "/data/set_aside",
        "Requests that gave way because nobody held an expert that they needed.",
    ),
    ("phalanx_prefix_pages", "gauge", "/data/prefix_pages", "Pages kept for prompts that begin alike."),
    ("phalanx_prefix_evicted_total", "counter", "/data/prefix_evicted", "Of these, given up for others."),
    ("phalanx_prefix_begun_total", "counter", "/data/prefix_begun", "Sequences that began."),
    ("phalanx_prefix_hits_total", "counter", "/data/prefix_hits", "Sequences that found kept pages."),
    ("phalanx_prefix_tokens_total", "counter", "/data/prefix_tokens", "Tokens not computed for that."),
    ("phalanx_experts", "gauge", "/experts/total", "Experts of the model."),
    ("phalanx_experts_held", "gauge", "/experts/held", "Experts that have a holder."),
    ("phalanx_replicas", "gauge", "/experts/replicas", "Replicas of all experts."),
    ("phalanx_devices_spare", "gauge", "/experts/spares", "Devices without an expert."),
    ("phalanx_bias_version", "gauge", "/bias/version", "Which bias answers begin with; 0 is none."),
    ("phalanx_bias_largest", "gauge", "/bias/largest", "The largest bias of an expert, up or down."),
    ("phalanx_bias_mean", "gauge", "/bias/mean", "That of an average expert, up or down."),
    ("phalanx_epoch_term", "gauge", "/epoch/term", "Under which term placements are published."),
    ("phalanx_epoch_number", "gauge", "/epoch/number", "Which placement of the term is published."),
];

/// How many rows groups and batches have: name, where the counts stand, where the sum, and what it is.
const SIZES: [(&str, &str, &str, &str); 2] = [
    ("phalanx_batch_rows", "/data/batch_sizes", "/data/rows", "Rows of a batch of the trunk."),
    ("phalanx_group_rows", "/data/group_sizes", "/data/group_rows", "Rows of a group to one expert."),
];

/// Why dispatches did not come back as they should, beside refusals.
const FAILED: [&str; 2] = ["overdue", "died"];

/// What is known of links: name, kind, which field of a link, its factor, and what it is.
const OF_LINKS: [(&str, &str, &str, &str); 4] = [
    ("phalanx_link_frames_total", "counter", "frames", "Frames sent over a node's link."),
    ("phalanx_link_bytes_out_total", "counter", "bytes_out", "Bytes sent over a node's link."),
    ("phalanx_link_bytes_back_total", "counter", "bytes_back", "Bytes that came back over a node's link."),
    ("phalanx_link_dispatches", "gauge", "dispatches", "Dispatches that are out on a node's link."),
];

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family: all its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("memory takes everything");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if number == 0 { '{' } else { ',' };
            write!(self.0, "{before}{label}=\"{text}\"").expect("memory takes everything");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        writeln!(self.0, "{end} {value}").expect("memory takes everything");
    }

    /// A histogram: `counts` are within each bound and above the one before, the last above all of them.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        bounds: impl Iterator<Item = f64>,
        counts: impl Iterator<Item = u64>,
        sum: impl Display,
    ) {
        self.family(name, "histogram", help);
        let (bucket, mut count) = (format!("{name}_bucket"), 0);
        let bounds = bounds.map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
        for (counted, bound) in counts.zip(bounds) {
            count += counted;
            self.sample(&bucket, &[("le", &bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[], sum);
        self.sample(&format!("{name}_count"), &[], count);
    }

    /// What the cluster says of itself. What it does not know is left out, and is not 0.
    pub(super) fn cluster(&mut self, cluster: &Value) {
        for (name, kind, place, help) in SINGLE {
            let Some(value) = cluster.pointer(place).filter(|value| value.is_number()) else { continue };
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
        for (name, counts, sum, help) in SIZES {
            let (Some(counts), Some(sum)) =
                (cluster.pointer(counts).and_then(Value::as_array), cluster.pointer(sum))
            else {
                continue;
            };
            let bounds = (0..counts.len() as i32 - 1).map(|power| 2f64.powi(power));
            self.histogram(name, help, bounds, counts.iter().filter_map(Value::as_u64), sum);
        }
        self.dispatches(&cluster["data"]["dispatches"]);
        self.nodes(list(&cluster["nodes"]));
        self.imbalance(list(&cluster["bias"]["layers"]));
        self.experts(cluster);
    }

    fn dispatches(&mut self, dispatches: &Value) {
        let Some(refused) = dispatches["refused"].as_object() else { return };
        let name = "phalanx_dispatches_total";
        self.family(
            name,
            "counter",
            "Dispatches to experts: groups that were sent, again or for the first time.",
        );
        self.sample(name, &[], &dispatches["sent"]);
        let name = "phalanx_dispatches_failed_total";
        self.family(name, "counter", "Dispatches whose rows had to be sent again, by what became of them.");
        let others = FAILED.map(|why| (why, &dispatches[why]));
        for (why, count) in refused.iter().map(|(why, count)| (why.as_str(), count)).chain(others) {
            self.sample(name, &[("why", &why)], count);
        }
    }

    fn nodes(&mut self, nodes: &[Value]) {
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for state in nodes.iter().filter_map(|node| node["state"].as_str()) {
            *states.entry(state).or_default() += 1;
        }
        self.family("phalanx_nodes", "gauge", "Nodes that are known, by their state.");
        for (state, count) in states {
            self.sample("phalanx_nodes", &[("state", &state)], count);
        }
        let linked = || nodes.iter().filter_map(|node| Some((node["name"].as_str()?, &node["link"])));
        for (name, kind, field, help) in OF_LINKS {
            self.family(name, kind, help);
            for (node, link) in linked().filter(|(_, link)| link[field].is_number()) {
                self.sample(name, &[("node", &node)], &link[field]);
            }
        }
        let name = "phalanx_link_round_trip_seconds";
        self.family(
            name,
            "summary",
            "How long a message takes to a node and back; the quantile is of the last nine.",
        );
        for node in nodes {
            let label = &node["name"].as_str().unwrap_or("");
            if let Some(middle) = node["round_trip_us"].as_u64() {
                self.sample(name, &[("node", label), ("quantile", &0.5)], middle as f64 / 1e6);
            }
            let trips = &node["round_trips"];
            if let (Some(sum), Some(count)) = (trips["sum_us"].as_u64(), trips["count"].as_u64()) {
                self.sample(&format!("{name}_sum"), &[("node", label)], sum as f64 / 1e6);
                self.sample(&format!("{name}_count"), &[("node", label)], count);
            }
        }
        let name = "phalanx_link_dispatch_seconds";
        self.family(name, "summary", "From sending a dispatch over a node's link to its return.");
        for (node, link) in linked() {
            if let (Some(sum), Some(count)) = (link["service_us"].as_u64(), link["returned"].as_u64()) {
                self.sample(&format!("{name}_sum"), &[("node", &node)], sum as f64 / 1e6);
                self.sample(&format!("{name}_count"), &[("node", &node)], count);
            }
        }
    }

    fn imbalance(&mut self, layers: &[Value]) {
        if layers.is_empty() {
            return;
        }
        let name = "phalanx_layer_imbalance";
        self.family(name, "gauge", "Rows of a layer's most loaded expert by those of an average one.");
        for layer in layers {
            self.sample(name, &[("layer", &layer["layer"])], &layer["now"]);
        }
    }

    fn experts(&mut self, cluster: &Value) {
        let loads = list(&cluster["loads"]);
        let mut layers: BTreeMap<u64, f64> = BTreeMap::new();
        for load in loads.iter().filter(|load| load["shard"] == 0) {
            *layers.entry(load["layer"].as_u64().unwrap_or(0)).or_default() +=
                load["rows_per_s"].as_f64().unwrap_or(0.0);
        }
        let name = "phalanx_layer_rows_per_second";
        self.family(name, "gauge", "Rows that the experts of a layer computed in a second of the last few.");
        for (layer, rows) in layers {
            self.sample(name, &[("layer", &layer)], (rows * 1e3).round() / 1e3);
        }
        let rows = [
            (
                "phalanx_expert_rows_total",
                "rows",
                "Rows that an expert has computed at a node, from the node's start.",
            ),
            ("phalanx_expert_batches_total", "batches", "Batches of these rows."),
        ];
        if loads.len() > SEATS_MAX {
            return;
        }
        let names: BTreeMap<u64, &str> = list(&cluster["nodes"])
            .iter()
            .filter_map(|node| Some((node["node"].as_u64()?, node["name"].as_str()?)))
            .collect();
        for (name, field, help) in rows {
            self.family(name, "counter", help);
            for load in loads {
                let node = load["node"].as_u64().and_then(|node| names.get(&node)).copied().unwrap_or("");
                let [layer, expert, replica, shard] =
                    ["layer", "expert", "replica", "shard"].map(|key| &load[key]);
                let labels: [(&str, &dyn Display); 5] = [
                    ("layer", layer),
                    ("expert", expert),
                    ("replica", replica),
                    ("shard", shard),
                    ("node", &node),
                ];
                self.sample(name, &labels, &load[field]);
            }
        }
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A sample's labels and value.
    type Sample = (BTreeMap<String, String>, f64);

    /// Reads the format as its description has it, and nothing beyond: families in one piece, each with help and type
    /// before its samples, no sample twice, buckets that grow to the count.
    pub(crate) fn parsed(text: &str) -> BTreeMap<String, Vec<Sample>> {
        let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        let (mut family, mut kind, mut seen) = (String::new(), String::new(), Vec::new());
        assert!(text.ends_with('\n'), "the last line ends too");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && !seen.contains(&name.to_owned()), "{line}");
                seen.push(name.to_owned());
                (family, kind) = (name.to_owned(), String::new());
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, of) = rest.split_once(' ').unwrap();
                assert!(name == family && kind.is_empty(), "{line}");
                assert!(["counter", "gauge", "histogram", "summary"].contains(&of), "{line}");
                kind = of.to_owned();
                continue;
            }
            let (name, labels, value) = sample(line);
            let suffixes: &[&str] = match kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                "summary" => &["", "_sum", "_count"],
                _ => &[""],
            };
            let is_of_family = suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(&family));
            assert!(is_of_family, "{line} among {family}");
            assert!(kind != "summary" || (name == family) == labels.contains_key("quantile"), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            let others = samples.entry(name).or_default();
            assert!(others.iter().all(|(other, _)| *other != labels), "twice: {line}");
            others.push((labels, value));
        }
        for (name, buckets) in &samples {
            let Some(family) = name.strip_suffix("_bucket") else { continue };
            assert!(buckets.is_sorted_by_key(|(_, value)| *value), "{buckets:?}");
            let bound = |sample: &Sample| sample.0["le"].replace("+Inf", "inf").parse::<f64>().unwrap();
            assert!(buckets.is_sorted_by(|a, b| bound(a) < bound(b)), "{buckets:?}");
            let last = buckets.last().unwrap();
            assert_eq!((bound(last), last.1), (f64::INFINITY, samples[&format!("{family}_count")][0].1));
        }
        samples
    }

    fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let end = line.find(|c| !is_name(c)).unwrap();
        let (name, mut rest) = line.split_at(end);
        assert!(!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                let (label, quoted) = rest.split_once("=\"").unwrap();
                assert!(label.chars().all(is_name), "{line}");
                let (mut value, mut chars) = (String::new(), quoted.char_indices());
                let end = loop {
                    match chars.next().unwrap() {
                        (at, '"') => break at,
                        (_, '\\') => value.push(match chars.next().unwrap().1 {
                            'n' => '\n',
                            c @ ('\\' | '"') => c,
                            other => panic!("\\{other} in {line}"),
                        }),
                        (_, c) => value.push(c),
                    }
                };
                assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
                match quoted[end + 1..].split_at(1) {
                    (",", more) => rest = more,
                    ("}", after) => {
                        rest = after;
                        break;
                    }
                    other => panic!("{other:?} in {line}"),
                }
            }
        }
        (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
    }

    fn cluster(loads: usize) -> Value {
        let load = |at: usize| {
            json!({"layer": at / 64, "expert": at % 64, "replica": 0, "shard": 0, "node": 1, "rows": at,
                "batches": 1, "rows_per_s": 0.5})
        };
        let loads: Vec<Value> = (0..loads).map(load).collect();
        json!({
            "epoch": {"term": 2, "number": 9}, "experts": {"total": 64, "held": 63, "replicas": 70, "spares": null},
            "nodes": [
                {"name": "n\"0\\", "node": 0, "state": "gone", "link": null},
                {"name": "n1", "node": 1, "state": "joined", "round_trip_us": 250,
                    "round_trips": {"count": 4, "sum_us": 3000}, "link": {"frames": 3, "bytes_out": 4, "bytes_back": 5,
                    "dispatches": 1, "returned": 2, "service_us": 1500}},
            ],
            "bias": {"version": 3, "largest": 0.25, "mean": 0.125, "layers": [{"layer": 5, "before": 3.0, "now": 1.5}]},
            "data": {"running": 1, "rows": 37, "group_rows": 9, "batch_sizes": [1, 0, 2, 3], "group_sizes": [9, 0],
                "dispatches": {"sent": 20, "refused": {"busy": 2, "late": 0}, "overdue": 1, "died": 4, "rows_failed": 0}},
            "loads": loads,
        })
    }

    fn of(cluster: &Value) -> BTreeMap<String, Vec<Sample>> {
        let mut text = Exposition::default();
        text.cluster(cluster);
        parsed(&text.into_text())
    }

    /// What a cluster says is there under its name, and what it does not know is not there at all.
    #[test]
    fn a_cluster_is_told_in_valid_text() {
        let samples = of(&cluster(2));
        let value = |name: &str, labels: &[(&str, &str)]| {
            let wanted: BTreeMap<String, String> =
                labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
            let found = samples[name].iter().find(|(labels, _)| *labels == wanted);
            found.unwrap_or_else(|| panic!("{name} {labels:?} in {:?}", samples[name])).1
        };
        assert_eq!(value("phalanx_requests_running", &[]), 1.0);
        assert!(!samples.contains_key("phalanx_devices_spare"));
        assert_eq!(value("phalanx_batch_rows_bucket", &[("le", "4")]), 3.0);
        assert_eq!(
            (value("phalanx_batch_rows_sum", &[]), value("phalanx_batch_rows_count", &[])),
            (37.0, 6.0)
        );
        assert_eq!(value("phalanx_dispatches_failed_total", &[("why", "busy")]), 2.0);
        assert_eq!(value("phalanx_dispatches_failed_total", &[("why", "died")]), 4.0);
        assert_eq!(value("phalanx_nodes", &[("state", "gone")]), 1.0);
        assert_eq!(value("phalanx_link_bytes_back_total", &[("node", "n1")]), 5.0);
        assert_eq!(value("phalanx_link_dispatch_seconds_sum", &[("node", "n1")]), 0.0015);
        let trip = "phalanx_link_round_trip_seconds";
        assert_eq!(value(trip, &[("node", "n1"), ("quantile", "0.5")]), 0.00025);
        let of_all =
            [format!("{trip}_sum"), format!("{trip}_count")].map(|name| value(&name, &[("node", "n1")]));
        assert_eq!((of_all, samples[trip].len()), ([0.003, 4.0], 1));
        assert_eq!(samples["phalanx_link_frames_total"].len(), 1, "a node without a link has none");
        assert_eq!(value("phalanx_layer_rows_per_second", &[("layer", "0")]), 1.0);
        assert_eq!(value("phalanx_bias_version", &[]), 3.0);
        assert_eq!((value("phalanx_bias_largest", &[]), value("phalanx_bias_mean", &[])), (0.25, 0.125));
        assert_eq!(value("phalanx_layer_imbalance", &[("layer", "5")]), 1.5);
        let labels = [("layer", "0"), ("expert", "1"), ("replica", "0"), ("shard", "0"), ("node", "n1")];
        assert_eq!(value("phalanx_expert_rows_total", &labels), 1.0);
    }

    /// A large cluster does not fill a Prometheus with series.
    #[test]
    fn many_experts_are_told_by_layer() {
        let samples = of(&cluster(SEATS_MAX + 1));
        assert!(!samples.contains_key("phalanx_expert_rows_total"));
        assert_eq!(samples["phalanx_layer_rows_per_second"].len(), 65);
        assert_eq!(of(&cluster(SEATS_MAX))["phalanx_expert_rows_total"].len(), SEATS_MAX);
    }

    /// Without `--balance bias` there is nothing of it.
    #[test]
    fn no_bias_has_no_series() {
        let mut text = Exposition::default();
        text.cluster(&json!({ "bias": null }));
        let text = text.into_text();
        assert!(!text.contains("bias") && !text.contains("imbalance"), "{text}");
    }

    /// A name may be anything that a node calls itself.
    #[test]
    fn labels_are_escaped() {
        let mut text = Exposition::default();
        text.family("x", "gauge", "X.");
        text.sample("x", &[("name", &"a\"b\\c\nd"), ("le", &1)], 2);
        let samples = parsed(&text.into_text());
        assert_eq!(samples["x"][0].0["name"], "a\"b\\c\nd");
    }
}
