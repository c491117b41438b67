//! Rows that go on without experts that nobody holds, and how their clients hear of it.
//!
//! A shell, as `data/carry_out.rs` and `request.rs` are, but for bugs that keep what is lacking or hide that it lacks.

use coordinator::data::exchange::LeftOut;
use coordinator::data::ids::RowId;
use coordinator::data::request::{Missing, OnMissing};

use crate::bugs::Bug;
use crate::clients::Heard;
use crate::data::{Data, Request};
use crate::landing::Slot;
use crate::world::Sky;

impl Data {
    /// A row goes on without an expert. What is computed of its sequence from now on is nobody else's.
    pub(crate) fn leave_out(&mut self, left_out: LeftOut, sky: &mut Sky) {
        self.holders.check(left_out);
        let LeftOut { row, rank, layer, expert } = left_out;
        let shards = sky.case.model.shards;
        let first = row.0 as usize * Self::slots_per_row(sky) + rank as usize * shards;
        self.slots[first..first + shards].fill(Slot::LeftOut);
        if self.flow.is_leaving(row) {
            return;
        }
        sky.watch.left_out += 1;
        let (sequence, _) = self.flow.position(row);
        if !sky.has_bug(Bug::KeepsLeftOut) {
            self.scheduler.handle_left_out(sequence);
        }
        if let Some(request) = &mut self.running[sequence.0 as usize] {
            *request.missing.entry((layer, expert)).or_default() += 1;
            request.has_lacked = true;
        }
    }

    pub(crate) fn look_for_holders(&mut self, sky: &Sky) {
        let linked = self.links.values().filter(|link| !link.is_over).map(|link| link.node).collect();
        self.holders.handle_links(&linked, &sky.case.demand);
    }

    /// Whether the request of a row goes on without experts that nobody holds.
    pub(crate) fn may_leave_out(&self, row: RowId) -> bool {
        let (sequence, _) = self.flow.position(row);
        let request = self.running[sequence.0 as usize].as_ref();
        request.is_some_and(|request| request.submission.on_missing == OnMissing::Drop)
    }
}

impl Request {
    /// Says what was left out since it was said last.
    pub(crate) fn tell_missing(&mut self, sky: &mut Sky) {
        if !self.missing.is_empty() && !sky.has_bug(Bug::HidesMissing) {
            let missing = std::mem::take(&mut self.missing).into_iter();
            let missing = missing.map(|((layer, expert), rows)| Missing { layer, expert, rows });
            sky.tell_client(self.submission.client, Heard::Missing(missing.collect()));
        }
    }
}
