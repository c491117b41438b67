//! How the data plane is doing, for people: sizes that are counted as they come, and all of it as JSON.
//!
//! Pure.

use serde_json::{Value, json};
use transport::wire::groups::Reason;

use super::actor::Report;
use super::exchange::LinkSeen;
use super::flow::Forwarding;

/// Upper bounds of what is counted together, each twice the one before: 1, 2, 4, and so on.
const BOUNDS: usize = 13;

/// How often something had how many rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The last is above all bounds.
    counts: [u64; BOUNDS + 1],
}

impl Sizes {
    /// Something has so many rows, at least one.
    pub fn add(&mut self, rows: usize) {
        let bound = rows.next_power_of_two().trailing_zeros() as usize;
        self.counts[bound.min(BOUNDS)] += 1;
    }

    /// How often there were at most 1, 2, 4, ... rows and more than the bound before; the last is all the rest.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}

impl Report {
    /// As `docs/api.md` has it.
    pub fn json(&self) -> Value {
        let counters = &self.exchange;
        let refused = Reason::ALL.iter().zip(counters.refused).map(|(reason, count)| (name(*reason), count));
        json!({
            "running": self.running,
            "waiting": self.waiting,
            "tokens": self.tokens,
            "batches": self.batches,
            "rows": self.rows,
            "batch_sizes": self.batch_sizes.counts(),
            "dispatched_frames": self.dispatched_frames,
            "dispatched_bytes": self.dispatched_bytes,
            "returned_frames": self.returned_frames,
            "returned_bytes": self.returned_bytes,
            "groups": self.groups,
            "group_rows": self.group_rows,
            "group_sizes": self.group_sizes.counts(),
            "kv_pages": self.pages,
            "kv_pages_free": self.pages_free,
            "preempted": self.preempted,
            "stranded": self.stranded,
            "aside": self.aside,
            "set_aside": self.set_aside,
            "prefix_pages": self.prefix.pages,
            "prefix_evicted": self.prefix.evicted,
            "prefix_begun": self.prefix.begun,
            "prefix_hits": self.prefix.hits,
            "prefix_tokens": self.prefix.positions,
            "dispatches": {
                "sent": counters.dispatches,
                "returned": counters.returned,
                "refused": refused.collect::<std::collections::BTreeMap<_, _>>(),
                "overdue": counters.overdue,
                "died": counters.died,
                "dropped": counters.late + counters.twice + counters.foreign,
                "rows_unneeded": counters.rows_unneeded,
                "rows_failed": counters.rows_failed,
                "left_out": counters.left_out,
            },
            "forwarding": self.forwarding.map(Forwarding::name),
            "trying": self.trying,
            "trials": self.trials,
        })
    }
}

impl LinkSeen {
    /// As `docs/api.md` has it.
    pub fn json(&self) -> Value {
        json!({
            "frames": self.frames, "bytes_out": self.bytes_out, "bytes_back": self.bytes_back,
            "dispatches": self.dispatches, "returned": self.returned,
            "service_us": self.service_sum.as_micros() as u64,
        })
    }
}

pub(super) fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::NotHeld => "not_held",
        Reason::Stale => "stale",
        Reason::Failed => "failed",
        Reason::Busy => "busy",
        Reason::Draining => "draining",
        Reason::Late => "late",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound belongs to what is below it, as Prometheus has it.
    #[test]
    fn sizes_are_counted_by_powers_of_two() {
        let mut sizes = Sizes::default();
        for rows in [1, 2, 3, 4, 5, 4096, 4097, 1 << 40] {
            sizes.add(rows);
        }
        assert_eq!(sizes.counts(), [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }
}
