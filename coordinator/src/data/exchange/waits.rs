//! What a row at its experts waits for: asked by people, now and then, and looked up then alone.
//!
//! Pure. Nothing is kept for it that is not needed anyway: a look costs a pass over the dispatches that are open.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::NONE;
use super::events::Exchange;
use super::landing::{Place, RowState};
use super::router::{Actor, Pause};
use super::stranded::Lack;
use crate::data::ids::{LinkId, RowId};
use crate::placement::NodeId;

/// One result that a row lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Of the model.
    pub layer: u32,
    /// Of the layer.
    pub expert: u32,
    /// Of the expert.
    pub shard: u8,
    /// Where it is held up.
    pub held: Held,
}

/// Where a result is held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It was sent and is not back.
    Out {
        /// To which replica.
        replica: u8,
        /// Of which node.
        node: NodeId,
        /// Over which link.
        link: LinkId,
        /// How long ago.
        since: Duration,
        /// How long nothing at all has come back over this link that was to.
        silent: Duration,
        /// It has taken so long that the row may go elsewhere, and nobody else took it yet.
        is_overdue: bool,
    },
    /// No node holds the expert.
    NoHolder,
    /// A node holds it by the placement, and said that it does not serve it, or has no link.
    Away {
        /// Which.
        node: NodeId,
    },
    /// Who holds it was busy or late, and is asked again soon.
    Paused {
        /// Which.
        node: NodeId,
        /// How many rows it has.
        outstanding: u32,
    },
    /// As much is under way to who holds it as may be.
    Room {
        /// To whom.
        node: NodeId,
        /// Over which link.
        link: LinkId,
        /// Dispatches that are out on it.
        dispatches: u32,
        /// How long nothing at all has come back over this link that was to.
        silent: Duration,
    },
    /// An actor fell under it or its like: it is asked for alone, when the actor has nothing else.
    Alone {
        /// Which.
        node: NodeId,
    },
    /// It is about to be sent.
    Next,
}

impl Exchange {
    /// What each row lacks. Rows that are not at their experts lack nothing.
    pub fn waits(&self, rows: &[RowId], now: Instant) -> HashMap<RowId, Vec<Wait>> {
        let is_here = |row: &&RowId| self.landing.rows[row.0 as usize].state == RowState::Moving;
        let mut waits: HashMap<RowId, Vec<Wait>> =
            rows.iter().filter(is_here).map(|row| (*row, Vec::new())).collect();
        // The newest of those who may bring it: an older one is overdue.
        let mut out: HashMap<u32, u32> = HashMap::new();
        for (at, entry) in self.ledger.entries() {
            let row = self.landing.row_of(entry.slot);
            if waits.contains_key(&RowId(row)) && self.landing.rows[row as usize].life == entry.life {
                let newest = out.entry(entry.slot).or_insert(at);
                if self.ledger.get(at).id > self.ledger.get(*newest).id {
                    *newest = at;
                }
            }
        }
        for (row, waits) in &mut waits {
            let first = row.0 * self.landing.slots_per_row;
            let slots = first..first + self.landing.rows[row.0 as usize].slots;
            waits.extend(slots.filter_map(|slot| self.wait(slot, out.get(&slot).copied(), now)));
        }
        waits
    }

    /// What a row waited for that was set aside.
    pub fn wait_for(&self, lack: Lack, now: Instant) -> Wait {
        let Lack { layer, expert, shard } = lack;
        let queue = self.router.find_queue(layer, expert, shard);
        let held = queue.map_or(Held::NoHolder, |queue| self.queued(queue, Place::Waiting, now));
        Wait { layer, expert, shard, held }
    }

    fn wait(&self, slot_at: u32, dispatch: Option<u32>, now: Instant) -> Option<Wait> {
        let slot = &self.landing.slots[slot_at as usize];
        if slot.is_filled {
            return None;
        }
        let queue = &self.router.queues[slot.queue as usize];
        let first = self.router.layers[queue.layer as usize][queue.expert as usize];
        let shard = (slot.queue - first) as u8;
        let held = match dispatch {
            // What is overdue may be sent elsewhere: then what matters is why it is not.
            Some(at) if slot.place == Place::Off => self.out(at, now),
            Some(at) => match self.queued(slot.queue, slot.place, now) {
                Held::Next | Held::Paused { .. } => self.out(at, now),
                other => other,
            },
            None => self.queued(slot.queue, slot.place, now),
        };
        Some(Wait { layer: queue.layer, expert: queue.expert, shard, held })
    }

    fn out(&self, at: u32, now: Instant) -> Held {
        let dispatch = self.ledger.get(at);
        let actor = &self.router.actors[dispatch.actor as usize];
        Held::Out {
            replica: actor.id.replica,
            node: actor.node,
            link: self.router.links[dispatch.link as usize].id,
            since: Duration::from_nanos(self.ledger.nanos(now).saturating_sub(dispatch.sent)),
            silent: self.silent(dispatch.link, now),
            is_overdue: dispatch.is_overdue,
        }
    }

    /// How long nothing has come back over a link while something was out.
    fn silent(&self, link: u32, now: Instant) -> Duration {
        let oldest = self.ledger.first_of_link(link).map(|at| self.ledger.get(at).sent);
        let Some(oldest) = oldest else { return Duration::ZERO };
        let heard = self.router.links[link as usize].heard;
        Duration::from_nanos(self.ledger.nanos(now).saturating_sub(oldest.max(heard)))
    }

    /// Why a slot that waits in its queue is not sent.
    fn queued(&self, queue: u32, place: Place, now: Instant) -> Held {
        let router = &self.router;
        let actors = || router.actors_of(queue).iter().map(|at| &router.actors[*at as usize]);
        let Some(first) = actors().next() else { return Held::NoHolder };
        let Some(holder) = actors().find(|actor| router.is_holder(actor)) else {
            return Held::Away { node: first.node };
        };
        if place == Place::Suspect {
            return Held::Alone { node: holder.node };
        }
        let is_free =
            |actor: &&Actor| router.is_holder(actor) && actor.pause == Pause::No && actor.overdue == 0;
        let Some(free) = actors().find(is_free) else {
            return Held::Paused { node: holder.node, outstanding: holder.outstanding };
        };
        if free.is_reserved {
            return Held::Alone { node: free.node };
        }
        debug_assert_ne!(free.link, NONE, "who holds an expert has a link");
        let link = &router.links[free.link as usize];
        if link.has_room && link.leaves_room(free.held) {
            return Held::Next;
        }
        let silent = self.silent(free.link, now);
        Held::Room { node: free.node, link: link.id, dispatches: link.open, silent }
    }
}
