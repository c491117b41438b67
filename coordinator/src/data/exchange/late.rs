//! Links that are late: silent for longer than their rhythm lets expect, and not ended.
//!
//! Pure. Its process may be stopped, or it may be cut off, and then nothing comes before it goes on or is given up, which may be
//! long. So what is out on such a link also goes to whoever else holds the expert; whichever attempt returns first fills the
//! slot, and the other finds it filled, or its row's life over. Until its peer is awake a late link gets only what nobody
//! else takes. If nobody else does, nothing is sent twice: it is waited for.

use std::time::Instant;

use super::events::Exchange;
use crate::data::ids::LinkId;

impl Exchange {
    /// The peer of a link is late.
    pub fn handle_late(&mut self, link: LinkId, _now: Instant) {
        let Some(at) = self.router.find_link(link) else { return };
        self.router.links[at as usize].is_late = true;
        // What stands in its lanes is offered anew.
        self.router.wake_all();
        self.hedge(at);
    }

    /// It is not late any more. What is still out on it stays so.
    pub fn handle_awake(&mut self, link: LinkId, _now: Instant) {
        let Some(at) = self.router.find_link(link) else { return };
        self.router.links[at as usize].is_late = false;
        self.router.wake_all();
    }

    /// Somebody may hold now what is out on late links.
    pub(super) fn hedge_all(&mut self) {
        for at in 0..self.router.links.len() as u32 {
            let link = &self.router.links[at as usize];
            if link.is_open && link.is_late {
                self.hedge(at);
            }
        }
    }

    /// What is out on a link goes elsewhere too, as far as others take it.
    fn hedge(&mut self, link: u32) {
        let out: Vec<u32> = self.ledger.of_link(link).filter(|at| !self.ledger.get(*at).is_overdue).collect();
        // Each goes to the head of its queue: the oldest last.
        for at in out.into_iter().rev() {
            let queue = self.queue_of(self.ledger.get(at));
            if self.router.has_awake(queue) {
                self.counters.hedged += 1;
                self.settle_overdue(at);
            }
        }
    }
}
