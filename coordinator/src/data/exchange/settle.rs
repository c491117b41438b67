//! What follows when a dispatch returned, was refused, died or is overdue.
//!
//! Pure. Closing a dispatch gives its room back. What it did not fill waits again, at the head of its queue because it came
//! before what waits there; unless an actor or a node died under it: then it is retried alone, and if that felled
//! another, row by row. A row under which an actor fell twice, when it was all that the actor had from us, is not
//! sent again. Of a node's death a row is convicted only if nothing else at all was out to the node: a node that is killed
//! takes many dispatches with it, and none of them is to blame.

use transport::wire::groups::Reason;

use super::events::Exchange;
use super::interface::{AttemptEnd, ExchangeSettings, RowFailed};
use super::landing::{Place, RowState};
use super::ledger::{Dispatch, FrameRoom};
use super::links::back_bytes;
use super::router::Pause;
use crate::data::ids::LinkId;

use std::time::{Duration, Instant};

/// How what a dispatch did not fill is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// With whatever else waits.
    Queued,
    /// Alone, all of it together.
    Alone,
    /// Alone, each row.
    RowByRow,
}

impl Exchange {
    /// The dispatch, if it is open on this link. Otherwise it is counted.
    pub(super) fn find_open(&mut self, link: LinkId, dispatch: u64) -> Option<u32> {
        match self.ledger.find(dispatch) {
            Some(at) if self.router.links[self.ledger.get(at).link as usize].id == link => return Some(at),
            Some(_) => self.counters.foreign += 1,
            None if dispatch == 0 || dispatch >= self.ledger.id_next() => self.counters.foreign += 1,
            None if self.router.find_link(link).is_none() => self.counters.late += 1,
            None => self.counters.twice += 1,
        }
        None
    }

    /// Closes a dispatch and gives its room back; its rows are in `entries`, to be settled by the caller.
    pub(super) fn close(&mut self, at: u32) -> Dispatch {
        let dispatch = self.ledger.close(at, &mut self.entries);
        let room = self.ledger.frame_mut(dispatch.frame);
        room.groups_open -= 1;
        let FrameRoom { charge, groups_open } = *room;
        let (mut out, back) = (0, back_bytes(dispatch.rows.into(), self.settings.return_row_bytes));
        if groups_open == 0 {
            out = charge;
            self.ledger.end_frame(dispatch.frame);
        }
        self.router.links[dispatch.link as usize].give_room(out, back);
        let actor = &mut self.router.actors[dispatch.actor as usize];
        actor.outstanding -= dispatch.rows;
        actor.open -= 1;
        actor.held -= charge;
        if dispatch.is_overdue {
            actor.overdue -= 1;
        } else if dispatch.is_retry {
            self.router.release(dispatch.actor);
        }
        self.epochs.close(dispatch.epoch);
        dispatch
    }

    /// Whoever waited for the room of a dispatch that was closed may go on.
    pub(super) fn wake_after(&mut self, dispatch: &Dispatch) {
        self.router.activate(dispatch.link);
        self.router.wake_unplaced();
        self.router.wake(self.queue_of(dispatch));
        self.router.free_if_gone(dispatch.actor);
    }

    /// A dispatch was refused.
    pub(super) fn settle_refused(&mut self, dispatch: &Dispatch, reason: Reason, now: Instant) {
        let actor_at = dispatch.actor;
        let actor = &mut self.router.actors[actor_at as usize];
        actor.refused += 1;
        let alone = if dispatch.is_retry { Again::Alone } else { Again::Queued };
        let end = AttemptEnd::Refused(reason);
        match reason {
            Reason::NotHeld | Reason::Stale | Reason::Draining => {
                self.router.pause(actor_at, Pause::NotServing, now + self.settings.backoff_max);
                self.settle(dispatch, end, alone, false);
            }
            Reason::Busy | Reason::Late => {
                let ExchangeSettings { backoff_min, backoff_max, .. } = self.settings;
                let (least, most) = (backoff_min.as_millis() as u32, backoff_max.as_millis() as u32);
                actor.backoff_ms = (actor.backoff_ms * 2).clamp(least, most.max(least));
                if actor.pause != Pause::NotServing {
                    let until = now + Duration::from_millis(actor.backoff_ms.into());
                    self.router.pause(actor_at, Pause::Busy, until);
                }
                self.settle(dispatch, end, alone, false);
            }
            Reason::Failed => {
                let was_alone = dispatch.was_alone && actor.last_sent == dispatch.id;
                self.settle_fallen(dispatch, end, was_alone, was_alone);
            }
        }
    }

    /// An actor or a node died under a dispatch. `is_split`: it was sent alone already.
    pub(super) fn settle_fallen(
        &mut self,
        dispatch: &Dispatch,
        end: AttemptEnd,
        is_split: bool,
        is_guilty: bool,
    ) {
        let again = if is_split { Again::RowByRow } else { Again::Alone };
        self.settle(dispatch, end, again, is_guilty && dispatch.rows == 1);
    }

    /// The rows in `entries` of an attempt that has ended: those that nobody else may fill are sent again, or fail.
    fn settle(&mut self, dispatch: &Dispatch, end: AttemptEnd, again: Again, is_convicted: bool) {
        let queue_at = self.queue_of(dispatch);
        self.router.actors[dispatch.actor as usize].rows_lost += u64::from(dispatch.rows);
        let mut begins_group = true;
        let count = self.entries.len();
        for index in 0..count {
            // Those that go to the head of the queue go last first.
            let index = if again == Again::Queued { count - 1 - index } else { index };
            let entry = self.entries[index];
            let row_at = self.landing.row_of(entry.slot);
            let row = &mut self.landing.rows[row_at as usize];
            if row.life != entry.life {
                continue;
            }
            row.open -= 1;
            let slot = &mut self.landing.slots[entry.slot as usize];
            slot.open -= 1;
            if !dispatch.is_overdue {
                slot.live -= 1;
            }
            // Who does not serve it is no holder, and for one rows wait up to their deadline.
            slot.attempts -= u8::from(end.is_not_serving());
            if row.state != RowState::Moving {
                self.landing.leave_if_done(row_at);
                continue;
            }
            if is_convicted && !slot.is_filled {
                slot.felled += 1;
                if slot.felled >= self.settings.felled_max {
                    let (felled, queue) = (slot.felled, &self.router.queues[queue_at as usize]);
                    let (layer, expert) = (queue.layer, queue.expert);
                    self.fail(row_at, RowFailed::Poison { layer, expert, row: row_at, felled });
                    continue;
                }
            }
            if self.send_again(entry.slot, queue_at, end, again, begins_group) {
                begins_group = again == Again::RowByRow;
            }
        }
        self.router.wake(queue_at);
        self.leave_out_waiting(queue_at);
    }

    /// A slot that an attempt has not filled waits again, unless somebody may still fill it.
    fn send_again(
        &mut self,
        slot_at: u32,
        queue_at: u32,
        end: AttemptEnd,
        again: Again,
        begins_group: bool,
    ) -> bool {
        let slot = &mut self.landing.slots[slot_at as usize];
        if slot.is_filled || slot.live > 0 || slot.place != Place::Off {
            return false;
        }
        let queue = &mut self.router.queues[queue_at as usize];
        if slot.attempts >= self.settings.attempts_max {
            if slot.open == 0 {
                let (layer, expert, attempts) = (queue.layer, queue.expert, slot.attempts);
                let row = self.landing.row_of(slot_at);
                self.fail(row, RowFailed::Attempts { layer, expert, attempts, last: end });
            }
            return false;
        }
        if again == Again::Queued {
            slot.place = Place::Waiting;
            queue.waiting.push_front(&mut self.landing.slots, slot_at);
        } else {
            (slot.place, slot.begins_group) = (Place::Suspect, begins_group);
            queue.suspects.push_back(&mut self.landing.slots, slot_at);
        }
        if queue.is_missing {
            self.landing.handle_stranded(slot_at, true);
        }
        true
    }

    /// A dispatch is overdue. It stays open; what it has not filled may go elsewhere.
    pub(super) fn settle_overdue(&mut self, at: u32) {
        let dispatch = self.ledger.set_overdue(at, &mut self.entries);
        self.counters.overdue += 1;
        let actor = &mut self.router.actors[dispatch.actor as usize];
        actor.overdue += 1;
        if dispatch.is_retry {
            self.router.release(dispatch.actor);
        } else {
            self.router.release_unsent(dispatch.actor);
        }
        let again = if dispatch.is_retry { Again::Alone } else { Again::Queued };
        let queue_at = self.queue_of(&dispatch);
        let mut begins_group = true;
        let count = self.entries.len();
        for index in 0..count {
            let index = if again == Again::Queued { count - 1 - index } else { index };
            let entry = self.entries[index];
            let row = &self.landing.rows[self.landing.row_of(entry.slot) as usize];
            if row.life != entry.life {
                continue;
            }
            self.landing.slots[entry.slot as usize].live -= 1;
            if row.state == RowState::Moving
                && self.send_again(entry.slot, queue_at, AttemptEnd::Overdue, again, begins_group)
            {
                begins_group = false;
            }
        }
        self.router.wake(queue_at);
        self.leave_out_waiting(queue_at);
    }

    pub(super) fn queue_of(&self, dispatch: &Dispatch) -> u32 {
        self.router.actors[dispatch.actor as usize].queue
    }

    /// A row cannot become whole.
    pub(super) fn fail(&mut self, row: u32, why: RowFailed) {
        self.counters.rows_failed += 1;
        self.unqueue_row(row);
        self.landing.end(row, Some(why));
    }

    /// None of a row's slots waits any more.
    pub(super) fn unqueue_row(&mut self, row: u32) {
        let first = row * self.landing.slots_per_row;
        for slot in first..first + self.landing.rows[row as usize].slots {
            self.unqueue(slot);
        }
    }

    /// A slot waits no more.
    pub(super) fn unqueue(&mut self, slot_at: u32) {
        let slot = &mut self.landing.slots[slot_at as usize];
        let (queue_at, begins_group) = (slot.queue, slot.begins_group);
        let queue = &mut self.router.queues[queue_at as usize];
        let place = std::mem::replace(&mut slot.place, Place::Off);
        slot.begins_group = false;
        let is_stranded = place != Place::Off && queue.is_missing;
        match place {
            Place::Off => {}
            Place::Waiting => {
                queue.waiting.remove(&mut self.landing.slots, slot_at);
            }
            Place::Suspect => {
                let next = queue.suspects.remove(&mut self.landing.slots, slot_at);
                if let Some(next) = self.landing.slots.get_mut(next as usize) {
                    next.begins_group |= begins_group;
                }
                if queue.suspects.len == 0 {
                    self.router.set_suspects_gone(queue_at);
                }
            }
        }
        if is_stranded {
            self.landing.handle_stranded(slot_at, false);
        }
    }

    /// What a return says of its actor.
    pub(super) fn observe(&mut self, dispatch: &Dispatch, now: Instant) {
        let heard = self.ledger.nanos(now);
        let took = heard.saturating_sub(dispatch.sent);
        let link = &mut self.router.links[dispatch.link as usize];
        link.returned += 1;
        link.service_ns_sum += took;
        link.heard = heard;
        let actor = &mut self.router.actors[dispatch.actor as usize];
        actor.backoff_ms = 0;
        actor.rows_returned += u64::from(dispatch.rows);
        actor.dispatches_returned += 1;
        actor.service_ns_sum += took;
        actor.service_ns_recent = match actor.dispatches_returned {
            1 => took,
            _ => (actor.service_ns_recent * 7 + took) / 8,
        };
        actor.expected_us = u32::try_from(actor.service_ns_recent / 1000).unwrap_or(u32::MAX);
    }
}
