//! `/metrics`: what Prometheus reads.
//!
//! Pure: instants are arguments. Requests are counted here, where clients are; what the data plane counts is taken from
//! the state of the cluster at each look, so that there is one count of each thing. Counters only grow, and each choice of
//! a request counts as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::exposition::Exposition;
use crate::data::request::{Event, Failure};
use crate::generation::FinishReason;
use crate::trace::Counts;

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
    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

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

    fn json(&self) -> Value {
        let counts = self.counts.iter().map(|count| count.load(Relaxed)).collect::<Vec<_>>();
        json!({ "counts": counts, "sum_s": self.sum_us.load(Relaxed) as f64 / 1e6 })
    }

    fn write(&self, name: &str, help: &str, text: &mut Exposition) {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let sum = self.sum_us.load(Relaxed) as f64 / 1e6;
        text.histogram(name, help, BOUNDS_MS.iter().map(|bound| *bound as f64 / 1e3), counts, sum);
    }
}

impl Metrics {
    /// A request has ended.
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    /// How long tokens took, for whoever looks at two of them and sees what lies between.
    pub(super) fn latency(&self) -> Value {
        let bounds = BOUNDS_MS.map(|bound| bound as f64 / 1e3);
        json!({ "bounds_s": bounds, "first": self.first.json(), "next": self.next.json() })
    }

    /// All of it, with what the cluster says of itself and what became of spans, where there are any.
    pub(super) fn text(&self, cluster: &Value, spans: Option<&Counts>) -> String {
        let mut text = Exposition::default();
        let name = "phalanx_requests_total";
        text.family(name, "counter", "Requests by how they ended; each choice is one.");
        for (outcome, count) in Outcome::NAMES.iter().zip(&self.outcomes) {
            text.sample(name, &[("outcome", outcome)], count.load(Relaxed));
        }
        let first = "From the arrival of a request to its first token.";
        self.first.write("phalanx_token_first_seconds", first, &mut text);
        self.next.write("phalanx_token_next_seconds", "From a token to the next of its answer.", &mut text);
        if let Some(Counts { exported, dropped }) = spans {
            for (name, help, count) in [
                ("phalanx_spans_exported_total", "Spans that the collector of traces took.", exported),
                ("phalanx_spans_dropped_total", "Spans that it did not take, or not in time.", dropped),
            ] {
                text.family(name, "counter", help);
                text.sample(name, &[], count.load(Relaxed));
            }
        }
        text.cluster(cluster);
        text.into_text()
    }
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
            Event::Step { token: None, .. } | Event::Cached(_) | Event::Missing(_) | Event::Prompt(_) => {}
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
    use super::super::exposition::tests::parsed;
    use super::*;
    use crate::generation::Token;

    /// All that Prometheus reads of two requests, to the letter where they left a trace.
    #[test]
    fn requests_leave_their_times_and_outcomes() {
        let metrics = Arc::new(Metrics::default());
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let token = || Event::Step { token: Some(Token { id: 1, ..Token::default() }), text: String::new() };
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
        let spans = Counts { exported: 7.into(), dropped: 2.into() };
        let cluster = json!({"data": {"tokens": 12, "running": 0, "forwarding": "whole"}});
        let text = metrics.text(&cluster, Some(&spans));
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
        has("phalanx_spans_exported_total 7");
        has("phalanx_spans_dropped_total 2");
        assert!(!metrics.text(&cluster, None).contains("spans"), "nobody asked for any");
        assert!(!text.contains("phalanx_rows_total"), "what is not known is not 0");
        parsed(&text);
    }
}
