//! Rows that wait for an expert that nobody holds, and when that is over.
//!
//! Pure. A slot is *stranded* where it waits in the queue of an expert that is missing, and so is the row that it belongs to: unlike
//! all that waits for room or for an answer, nothing that is under way ends that, and it may last as long as the row's deadline
//! allows. Whoever has rows to give is told, so that those that can go on do not wait behind those that cannot.
//!
//! Which queues are missing changes with links and placements alone, and is looked up then. A row that comes and goes costs one look at
//! a line that is in the cache anyway.

use super::NONE;
use super::events::Exchange;
use super::landing::{Landing, Place};
use super::router::Router;
use crate::data::ids::RowId;

/// A row that waits for a holder from now on, or does so no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranded {
    /// The row.
    pub row: RowId,
    /// Whether it does.
    pub is_stranded: bool,
}

/// One shard of an expert that a row waits for and nobody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lack {
    /// Of the model.
    pub layer: u32,
    /// Of the layer.
    pub expert: u32,
    /// Of the expert.
    pub shard: u8,
}

impl Exchange {
    /// What has changed for a row. To be asked before [`Exchange::poll_whole`].
    pub fn poll_stranded(&mut self) -> Option<Stranded> {
        while let Some(row) = self.landing.stranded.pop_front() {
            let this = &mut self.landing.rows[row.0 as usize];
            this.is_stranding_new = false;
            let is_stranded = this.slots_stranded > 0;
            if std::mem::replace(&mut this.is_told_stranded, is_stranded) != is_stranded {
                return Some(Stranded { row, is_stranded });
            }
        }
        None
    }

    /// Whether somebody has come, since this was asked last, who holds what nobody held.
    pub fn poll_holders(&mut self) -> bool {
        std::mem::take(&mut self.have_holders_come)
    }

    /// What a row waits for that nobody holds.
    pub fn lacks(&self, RowId(row): RowId) -> impl Iterator<Item = Lack> + '_ {
        let first = row * self.landing.slots_per_row;
        let slots = first..first + self.landing.rows[row as usize].slots;
        slots.filter_map(|slot| {
            let slot = &self.landing.slots[slot as usize];
            let queue = self.router.queues.get(slot.queue as usize)?;
            let shard = slot.queue - self.router.layers[queue.layer as usize][queue.expert as usize];
            let is_stranded = slot.place != Place::Off && queue.is_missing;
            is_stranded.then_some(Lack { layer: queue.layer, expert: queue.expert, shard: shard as u8 })
        })
    }

    /// Whether nobody holds it still.
    pub fn is_missing(&self, lack: Lack) -> bool {
        let queue = self.router.find_queue(lack.layer, lack.expert, lack.shard);
        queue.is_none_or(|queue| self.router.queues[queue as usize].is_missing)
    }

    /// Links or the placement changed: who waits in vain now, and who does no more.
    pub(super) fn see_holders(&mut self) {
        let Self { router, landing, .. } = self;
        for queue in 0..router.queues.len() as u32 {
            let is_missing = router.is_missing(queue);
            let of = &mut router.queues[queue as usize];
            if std::mem::replace(&mut of.is_missing, is_missing) == is_missing {
                continue;
            }
            self.have_holders_come |= !is_missing;
            for first in [of.waiting.first, of.suspects.first] {
                let mut slot = first;
                while slot != NONE {
                    landing.handle_stranded(slot, is_missing);
                    slot = landing.after(slot);
                }
            }
        }
    }
}

impl Router {
    /// Nobody who holds what waits in a queue can be reached: no node of the placement that has a link.
    fn is_missing(&self, queue: u32) -> bool {
        self.actors_of(queue).iter().all(|at| self.actors[*at as usize].link == NONE)
    }
}

impl Landing {
    /// A slot waits where nobody takes it, or does so no more.
    pub(super) fn handle_stranded(&mut self, slot: u32, is_stranded: bool) {
        let at = self.row_of(slot);
        let row = &mut self.rows[at as usize];
        match is_stranded {
            true => row.slots_stranded += 1,
            false => row.slots_stranded -= 1,
        }
        let is_any = row.slots_stranded > 0;
        if is_any != row.is_told_stranded && !std::mem::replace(&mut row.is_stranding_new, true) {
            self.stranded.push_back(RowId(at));
        }
    }
}
