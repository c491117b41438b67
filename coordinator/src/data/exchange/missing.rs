//! Rows that go on without experts that nobody holds, because their request says so.
//!
//! Pure. An expert is *missing* where none of its replicas in the present placement, of any one of its shards, is on a node that
//! has a link: exactly where other rows wait for a holder to come. A node that is late, busy, or has just said that it does not
//! serve the expert is waited for by everybody. What is still out to somebody is waited for too, and is missing only once that
//! has failed. A row is then whole without the expert, and whoever combines it is told.

use super::NONE;
use super::events::Exchange;
use super::landing::Place;
use crate::data::ids::RowId;

/// An expert that a row goes on without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut {
    /// The row, which is handed back later than this is told.
    pub row: RowId,
    /// Which of its experts.
    pub rank: u32,
    /// Of the model.
    pub layer: u32,
    /// Of the layer.
    pub expert: u32,
}

impl Exchange {
    /// These rows, whose experts are told next, go on without those that nobody holds. So it is for this layer alone.
    pub fn handle_may_leave_out(&mut self, rows: &[RowId]) {
        for row in rows {
            self.landing.rows[row.0 as usize].may_leave_out = true;
        }
    }

    /// What a row goes on without. To be asked before [`Exchange::poll_whole`].
    pub fn poll_left_out(&mut self) -> Option<LeftOut> {
        self.landing.left_out.pop_front()
    }

    /// A row has chosen: it does not wait for experts that are missing.
    pub(super) fn leave_out_of(&mut self, row: u32) {
        let first = row * self.landing.slots_per_row;
        for slot in first..first + self.landing.rows[row as usize].slots {
            let of = &self.landing.slots[slot as usize];
            if !of.is_filled && self.router.queues[of.queue as usize].is_missing {
                self.leave_out(slot);
            }
        }
    }

    /// Nobody may hold any more what some queues wait for.
    pub(super) fn leave_out_all(&mut self) {
        for queue in 0..self.router.queues.len() as u32 {
            self.leave_out_waiting(queue);
        }
    }

    /// What waits in a queue, if nobody is left to take it.
    pub(super) fn leave_out_waiting(&mut self, queue: u32) {
        let of = &self.router.queues[queue as usize];
        if of.waiting.len + of.suspects.len == 0 || !of.is_missing {
            return;
        }
        for first in [of.waiting.first, of.suspects.first] {
            let mut next = first;
            while next != NONE {
                let slot = next;
                // A row takes an expert once: whatever leaves with this slot stands in other queues.
                next = self.landing.after(slot);
                if self.landing.rows[self.landing.row_of(slot) as usize].may_leave_out {
                    self.leave_out(slot);
                }
            }
        }
    }

    /// A row goes on without the expert of this slot, with all its shards.
    fn leave_out(&mut self, slot: u32) {
        let shards = self.settings.shards;
        let row = self.landing.row_of(slot);
        let rank = (slot - row * self.landing.slots_per_row) / shards;
        let queue = &self.router.queues[self.landing.slots[slot as usize].queue as usize];
        let (layer, expert) = (queue.layer, queue.expert);
        let first = row * self.landing.slots_per_row + rank * shards;
        for slot in first..first + shards {
            if self.landing.slots[slot as usize].place != Place::Off {
                self.unqueue(slot);
            }
            let this = &mut self.landing.slots[slot as usize];
            if !std::mem::replace(&mut this.is_filled, true) {
                self.landing.rows[row as usize].slots_unfilled -= 1;
            }
        }
        self.counters.left_out += 1;
        self.landing.left_out.push_back(LeftOut { row: RowId(row), rank, layer, expert });
        if self.landing.rows[row as usize].slots_unfilled == 0 {
            self.landing.leave(row);
        }
    }
}
