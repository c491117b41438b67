//! What a rehearsal has shown, for people and for programs.

use std::time::Duration;

use model::kernel::Admission;
use serde_json::{Value, json};

use super::router::Cost;
use super::{Size, number};
use crate::answers::Question;
use crate::output::bytes;

/// What a rehearsal has shown.
pub(super) struct Report {
    pub(super) size: Size,
    numeric_class: String,
    router: Vec<Cost>,
    /// Memory of the process before the cluster was formed, when it stood, and when it had answered.
    pub(super) resident_before: u64,
    pub(super) resident_formed: u64,
    pub(super) resident_served: Resident,
    pub(super) formed_in: Duration,
    pub(super) served_in: Duration,
    /// From a node's fall until every expert had an actor again.
    pub(super) healed_in: Option<Duration>,
    pub(super) stopped_in: Duration,
    pub(super) threads: u64,
    nodes: u64,
    actors: u64,
    pub(super) spares: u64,
    requests: u64,
    prompt_tokens: u64,
    tokens: u64,
    dispatches: u64,
    frames: u64,
    frame_bytes: u64,
    rows: u64,
    batches: u64,
}

/// Memory of this process.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Resident {
    pub(super) now: u64,
    pub(super) peak: u64,
}

impl Report {
    pub(super) fn new(size: Size, admission: &Admission, router: Vec<Cost>) -> Self {
        Self {
            size,
            numeric_class: admission.kernels.class().to_string(),
            router,
            resident_before: 0,
            resident_formed: 0,
            resident_served: Resident::default(),
            formed_in: Duration::ZERO,
            served_in: Duration::ZERO,
            healed_in: None,
            stopped_in: Duration::ZERO,
            threads: 0,
            nodes: 0,
            actors: 0,
            spares: 0,
            requests: 0,
            prompt_tokens: 0,
            tokens: 0,
            dispatches: 0,
            frames: 0,
            frame_bytes: 0,
            rows: 0,
            batches: 0,
        }
    }

    /// Takes what the cluster says of itself before and after it has answered.
    pub(super) fn count(&mut self, before: &Value, after: &Value, questions: &[Question]) {
        let grown = |key: &str| number(&after["data"][key]) - number(&before["data"][key]);
        self.nodes = after["nodes"].as_array().map_or(0, |nodes| nodes.len() as u64);
        self.actors = number(&after["experts"]["replicas"]);
        self.spares = number(&after["experts"]["spares"]);
        self.requests = questions.len() as u64;
        self.prompt_tokens = questions.iter().map(|question| question.prompt.len() as u64).sum();
        self.tokens = grown("tokens");
        self.dispatches = grown("groups");
        self.frames = grown("dispatched_frames") + grown("returned_frames");
        self.frame_bytes = grown("dispatched_bytes") + grown("returned_bytes");
        self.rows = grown("rows");
        self.batches = grown("batches");
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.served_in.as_secs_f64()
    }

    pub(super) fn text(&self) -> String {
        let Size { devices, layers, dense, experts, top_k, hidden, .. } = self.size;
        let mut page = format!(
            "{} nodes of {devices} devices, {layers} layers ({dense} dense, {} of {experts} experts, {top_k} for a \
             row), rows of {hidden}, {}\n\n",
            self.nodes,
            layers - dense,
            self.numeric_class
        );
        let mut line = |name: &str, text: String| page += &format!("{name:<24}{text}\n");
        line(
            "actors",
            format!("{}, each on a device of its own; {} spare devices", self.actors, self.spares),
        );
        line("formed in", format!("{:.1} s", self.formed_in.as_secs_f64()));
        line(
            "answered",
            format!(
                "{} requests of {} + {} tokens in {:.1} s, every token the plain loop's",
                self.requests,
                self.prompt_tokens,
                self.tokens,
                self.served_in.as_secs_f64()
            ),
        );
        line("tokens", format!("{:.0} a second", self.per_second(self.tokens)));
        line(
            "messages",
            format!(
                "{:.0} groups a second to actors, in {:.0} frames a second both ways, {} each",
                self.per_second(self.dispatches),
                self.per_second(self.frames),
                bytes(self.frame_bytes / self.frames.max(1))
            ),
        );
        line(
            "trunk",
            format!(
                "{:.0} rows a second in batches of {:.1}",
                self.per_second(self.rows),
                self.rows_per_batch()
            ),
        );
        for cost in &self.router {
            line(
                &format!("router, {} rows", cost.rows),
                format!(
                    "{:.0} ns a row, {:.0} ns for each of its experts ({:.0} with the experts of one layer alone)",
                    cost.ns_per_row, cost.ns_per_pair, cost.ns_per_pair_small
                ),
            );
        }
        line(
            "memory",
            format!(
                "{} formed, {} when it had answered, {} at most; {} before",
                bytes(self.resident_formed),
                bytes(self.resident_served.now),
                bytes(self.resident_served.peak),
                bytes(self.resident_before)
            ),
        );
        line("threads", self.threads.to_string());
        if let Some(healed_in) = self.healed_in {
            let after = healed_in.as_millis();
            line(
                "a node fell",
                format!("every expert had an actor again after {after} ms, every token the plain loop's"),
            );
        }
        line("stopped in", format!("{:.1} s", self.stopped_in.as_secs_f64()));
        page
    }

    pub(super) fn json(&self) -> Value {
        let Size { devices, layers, dense, experts, top_k, hidden, .. } = self.size;
        let router: Vec<Value> = self
            .router
            .iter()
            .map(|cost| {
                json!({
                    "rows": cost.rows,
                    "ns_per_row": cost.ns_per_row,
                    "ns_per_pair": cost.ns_per_pair,
                    "ns_per_pair_one_layer": cost.ns_per_pair_small,
                })
            })
            .collect();
        json!({
            "nodes": self.nodes,
            "devices_per_node": devices,
            "layers": layers,
            "dense_layers": dense,
            "experts_per_layer": experts,
            "top_k": top_k,
            "hidden": hidden,
            "numeric_class": self.numeric_class,
            "actors": self.actors,
            "spare_devices": self.spares,
            "formed_s": self.formed_in.as_secs_f64(),
            "served_s": self.served_in.as_secs_f64(),
            "stopped_s": self.stopped_in.as_secs_f64(),
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "tokens_per_second": self.per_second(self.tokens),
            "dispatches": self.dispatches,
            "dispatches_per_second": self.per_second(self.dispatches),
            "frames": self.frames,
            "frames_per_second": self.per_second(self.frames),
            "frame_bytes": self.frame_bytes,
            "rows": self.rows,
            "rows_per_batch": self.rows_per_batch(),
            "router": router,
            "threads": self.threads,
            "healed_s": self.healed_in.map(|healed_in| healed_in.as_secs_f64()),
            "resident_bytes_before": self.resident_before,
            "resident_bytes_formed": self.resident_formed,
            "resident_bytes": self.resident_served.now,
            "resident_bytes_peak": self.resident_served.peak,
            "equal_to_plain_loop": true,
        })
    }

    fn rows_per_batch(&self) -> f64 {
        self.rows as f64 / self.batches.max(1) as f64
    }
}

/// Memory of this process, as the system says.
pub(super) fn resident_bytes() -> Resident {
    Resident { now: 1024 * status("VmRSS:"), peak: 1024 * status("VmHWM:") }
}

/// Threads of this process.
pub(super) fn threads_running() -> u64 {
    status("Threads:")
}

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
