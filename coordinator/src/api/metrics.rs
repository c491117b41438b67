//! `/metrics`: what Prometheus reads.
//!
//! Pure: instants are arguments. Requests are counted here, where clients are; what the data plane counts is taken from
//! the state of the cluster at each look, so that there is one count of each thing. Counters only grow, and each choice of
//! a request counts as one.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::data::request::{Event, Failure};
use crate::generation::FinishReason;

/// Upper bounds of the histograms, in milliseconds: a little more than a doubling each, from one fast step of a small
/// model to what nobody waits for.
const BOUNDS_MS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Stop,
    Length,
    Cancelled,
    /// Before anything was computed: its parameters, or the state of the cluster.
    Refused,
    Busy,
    Late,
    Failed,
}

impl Outcome {
    const NAMES: [&str; 7] = ["stop", "length", "cancelled", "refused", "busy", "late", "failed"];
}

impl From<&Failure> for Outcome {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Refused(_) => Outcome::Refused,
            Failure::Busy { .. } => Outcome::Busy,
            Failure::TooLate { .. } => Outcome::Late,
            Failure::Row(_) | Failure::Stopping => Outcome::Failed,
        }
    }
}

/// What has been counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    outcomes: [AtomicU64; Outcome::NAMES.len()],
    /// From the arrival of a request to its first token.
    first: Histogram,
    /// From a token to the next one.
    next: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    /// How many were within each bound and above the one before; the last is above all.
    counts: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn add(&self, time: Duration) {
        let bucket = BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < time);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Relaxed);
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        head(name, "histogram", help, out);
        let mut count = 0;
        let bounds = BOUNDS_MS.map(|bound| (bound as f64 / 1e3).to_string());
        for (counted, bound) in self.counts.iter().zip(bounds.iter().map(String::as_str).chain(["+Inf"])) {
            count += counted.load(Relaxed);
            line(out, format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
        }
        line(out, format_args!("{name}_sum {}", self.sum_us.load(Relaxed) as f64 / 1e6));
        line(out, format_args!("{name}_count {count}"));
    }
}

impl Metrics {
    /// A request has ended.
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// All of it, with what the cluster says of itself.
    pub(super) fn text(&self, cluster: &Value) -> String {
        let mut out = String::new();
        let name = "phalanx_requests_total";
        head(name, "counter", "Requests by how they ended; each choice is one.", &mut out);
        for (outcome, count) in Outcome::NAMES.iter().zip(&self.outcomes) {
            line(&mut out, format_args!("{name}{{outcome=\"{outcome}\"}} {}", count.load(Relaxed)));
        }
        let first = "From the arrival of a request to its first token.";
        self.first.write("phalanx_token_first_seconds", first, &mut out);
        self.next.write("phalanx_token_next_seconds", "From a token to the next of its answer.", &mut out);
        for (name, kind, place, help) in OF_CLUSTER {
            // A number that the cluster does not know is left out.
            let Some(value) = cluster.pointer(place).filter(|value| value.is_number()) else { continue };
            head(name, kind, help, &mut out);
            line(&mut out, format_args!("{name} {value}"));
        }
        out
    }
}

/// Name, kind, where it stands in `/cluster`, and what it is.
const OF_CLUSTER: [(&str, &str, &str, &str); 21] = [
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
    ("phalanx_kv_pages", "gauge", "/data/kv_pages", "KV pages."),
    ("phalanx_kv_pages_used", "gauge", "/data/kv_pages_used", "KV pages of requests that run."),
    ("phalanx_requests_preempted_total", "counter", "/data/preempted", "Requests that gave way to others."),
    ("phalanx_prefix_pages", "gauge", "/data/prefix_pages", "KV pages kept for prompts that begin alike."),
    ("phalanx_prefix_evicted_total", "counter", "/data/prefix_evicted", "Of these, given up for others."),
    ("phalanx_prefix_begun_total", "counter", "/data/prefix_begun", "Sequences that began."),
    ("phalanx_prefix_hits_total", "counter", "/data/prefix_hits", "Sequences that found kept pages."),
    ("phalanx_prefix_tokens_total", "counter", "/data/prefix_tokens", "Tokens not computed for that."),
    ("phalanx_experts", "gauge", "/experts/total", "Experts of the model."),
    ("phalanx_experts_held", "gauge", "/experts/held", "Experts that have a holder."),
];

fn head(name: &str, kind: &str, help: &str, out: &mut String) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("memory takes everything");
}

/// Follows one request; whoever drops it before its end has cancelled it.
#[derive(Debug)]
pub(super) struct Meter {
    metrics: Arc<Metrics>,
    /// When it came, and from the first token on, when the last one did.
    since: Instant,
    has_token: bool,
    is_over: bool,
}

impl Meter {
    pub(super) fn new(metrics: Arc<Metrics>, since: Instant) -> Self {
        Self { metrics, since, has_token: false, is_over: false }
    }

    pub(super) fn handle_event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Step { token: Some(_), .. } => {
                let histogram = if self.has_token { &self.metrics.next } else { &self.metrics.first };
                histogram.add(now.saturating_duration_since(self.since));
                (self.since, self.has_token) = (now, true);
            }
            Event::Step { token: None, .. } | Event::Cached(_) => {}
            Event::End(FinishReason::Stop) => self.end(Outcome::Stop),
            Event::End(FinishReason::Length) => self.end(Outcome::Length),
            Event::Failed(failure) => self.end(failure.into()),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.metrics.count(outcome);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Token;
    use serde_json::json;

    /// All that Prometheus reads of two requests, to the letter where they left a trace.
    #[test]
    fn requests_leave_their_times_and_outcomes() {
        let metrics = Arc::new(Metrics::default());
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let token = || Event::Step { token: Some(Token { id: 1, logprobs: None }), text: String::new() };
        let mut meter = Meter::new(Arc::clone(&metrics), start);
        for (event, ms) in [
            (token(), 10),
            (token(), 13),
            (token(), 100_000),
            (Event::Step { token: None, text: "x".into() }, 100_001),
            (Event::End(FinishReason::Stop), 100_002),
        ] {
            meter.handle_event(&event, at(ms));
        }
        drop(meter);
        drop(Meter::new(Arc::clone(&metrics), start));
        let late = Failure::TooLate { within_ms: 1, missing: None };
        Meter::new(Arc::clone(&metrics), start).handle_event(&Event::Failed(late), at(1));
        metrics.count(Outcome::Refused);
        let text = metrics.text(&json!({"data": {"tokens": 12, "running": 0, "forwarding": "whole"}}));
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        for (outcome, count) in [("stop", 1), ("length", 0), ("cancelled", 1), ("refused", 1), ("late", 1)] {
            has(&format!("phalanx_requests_total{{outcome=\"{outcome}\"}} {count}"));
        }
        has("# TYPE phalanx_token_first_seconds histogram");
        // A bound belongs to what is below it.
        has("phalanx_token_first_seconds_bucket{le=\"0.005\"} 0");
        has("phalanx_token_first_seconds_bucket{le=\"0.01\"} 1");
        has("phalanx_token_first_seconds_bucket{le=\"+Inf\"} 1");
        has("phalanx_token_first_seconds_sum 0.01");
        has("phalanx_token_next_seconds_bucket{le=\"0.002\"} 0");
        has("phalanx_token_next_seconds_bucket{le=\"0.005\"} 1");
        has("phalanx_token_next_seconds_bucket{le=\"60\"} 1");
        has("phalanx_token_next_seconds_bucket{le=\"+Inf\"} 2");
        has("phalanx_token_next_seconds_count 2");
        has("phalanx_token_next_seconds_sum 99.99");
        has("# TYPE phalanx_tokens_total counter");
        has("phalanx_tokens_total 12");
        has("phalanx_requests_running 0");
        assert!(!text.contains("phalanx_rows_total"), "what is not known is not 0");
    }
}
