//! The frame: as many groups of one layer for one link as there is room for.
//!
//! Pure. Room is taken in one order: landing room for what comes back, the actors' caps, the link's credit, dispatches.
//! All of it is known before anything is taken, so a frame has all its room or there is no such frame.
//!
//! A row that several experts of a node need travels once. Where more waits than a frame holds, frames are filled by
//! rows and not by experts: the oldest rows go with all that they need here.

use std::time::Instant;

use transport::wire::groups::{ENTRY_BYTES, INDEX_BYTES, TABLE_ALIGNMENT};
use transport::wire::{HEADER_BYTES, charge};

use super::NONE;
use super::events::Exchange;
use super::interface::OutgoingGroup;
use super::landing::{Line, Place, Row};
use super::ledger::{Entry, FrameRoom, To};
use super::links::{back_bytes, payload_bytes};
use crate::data::ids::RowId;

/// A row of the group that is being made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    index: u32,
    entry: Entry,
}

/// What a frame may take, and what it has taken.
struct Frame {
    at: u32,
    /// Of the link, and of each actor with a part in it.
    payload_max: u64,
    back_max: u64,
    groups_max: usize,
    group_rows_max: u64,
    /// Only rows that came no later.
    stamp_max: u64,
    back: u64,
    latest: Option<Instant>,
}

impl Exchange {
    /// Makes a frame for a link that has room. Without one, actors that stood in the lane in vain have left it.
    pub(super) fn compose(&mut self, link_at: u32, layer: u32, now: Instant) -> bool {
        let link = &self.router.links[link_at as usize];
        let payload_max = link.payload_now();
        let mut frame = Frame {
            at: NONE,
            payload_max,
            back_max: link.room.back_bytes - link.back_used,
            group_rows_max: link.group_rows_max,
            groups_max: (link.room.dispatches - link.open).min(u16::MAX.into()) as usize,
            stamp_max: self.stamp_max(link_at, layer, payload_max),
            back: 0,
            latest: None,
        };
        self.mark += 1;
        (self.outgoing.link, self.outgoing.layer) = (link.id, layer);
        self.outgoing.groups.clear();
        self.outgoing.rows.clear();
        self.outgoing.indices.clear();
        self.composed.clear();

        let (mut before, mut at) = (NONE, link.lane(layer).first);
        while at != NONE && self.outgoing.groups.len() < frame.groups_max {
            if self.take_group(&mut frame, at, now) {
                before = at;
                at = self.router.actors[at as usize].next;
            } else {
                self.router.leave_lane(before, at);
                self.router.wake(self.router.actors[at as usize].queue);
                self.router.free_if_gone(at);
                // Who was last may have another behind it now.
                at = match before {
                    NONE => self.router.links[link_at as usize].lane(layer).first,
                    _ => self.router.actors[before as usize].next,
                };
            }
        }
        if self.outgoing.groups.is_empty() {
            return false;
        }
        self.send(link_at, &frame, now);
        true
    }

    /// All that waits may go, if it fits into a frame whatever rows it has in common; otherwise rows that came in time
    /// to be among as many as fit.
    fn stamp_max(&self, link: u32, layer: u32, payload_max: u64) -> u64 {
        let mut at = self.router.links[link as usize].lane(layer).first;
        let (mut groups, mut waiting) = (0, 0);
        while at != NONE {
            let actor = &self.router.actors[at as usize];
            groups += 1;
            waiting += u64::from(self.router.queues[actor.queue as usize].waiting.len);
            at = actor.next;
        }
        let in_common = groups.min(u64::from(self.settings.top_k_max));
        let fits = |rows: u64| {
            let table = groups * ENTRY_BYTES as u64 + rows * in_common * INDEX_BYTES as u64;
            table.next_multiple_of(TABLE_ALIGNMENT as u64) + rows * self.settings.row_bytes <= payload_max
        };
        let mut rows = payload_max / self.settings.row_bytes;
        while rows > 1 && !fits(rows) {
            rows -= rows.div_ceil(16);
        }
        if waiting <= rows {
            return u64::MAX;
        }
        let mut oldest = u64::MAX;
        let mut at = self.router.links[link as usize].lane(layer).first;
        while at != NONE {
            let actor = &self.router.actors[at as usize];
            let first = self.router.queues[actor.queue as usize].waiting.first;
            if first != NONE {
                oldest = oldest.min(self.landing.rows[self.landing.row_of(first) as usize].stamp);
            }
            at = actor.next;
        }
        oldest.saturating_add(rows.saturating_sub(1))
    }

    /// Takes what an actor may get now. Says whether it goes on standing in its lane.
    fn take_group(&mut self, frame: &mut Frame, at: u32, now: Instant) -> bool {
        let actor = &self.router.actors[at as usize];
        let is_retry = actor.is_reserved;
        if if is_retry { actor.is_retrying || actor.open > 0 } else { !self.router.takes(actor) } {
            return false;
        }
        let queue = &self.router.queues[actor.queue as usize];
        let mut line = if is_retry { queue.suspects } else { queue.waiting };
        let beside = self.router.links[actor.link as usize].payload_beside(actor.held);
        let payload_max = frame.payload_max.min(beside);
        let Some(latest) = self.take_rows(frame, &mut line, payload_max, is_retry) else {
            return line.first != NONE;
        };
        frame.payload_max = payload_max;
        frame.latest = frame.latest.max(Some(latest));

        let actor = &mut self.router.actors[at as usize];
        let queue = &mut self.router.queues[actor.queue as usize];
        let stays = if is_retry {
            queue.suspects = line;
            actor.is_retrying = true;
            false
        } else {
            queue.waiting = line;
            line.len > 0
        };
        let rows = self.taken.len() as u32;
        if frame.at == NONE {
            frame.at = self.ledger.begin_frame();
        }
        let to = To {
            link: actor.link,
            actor: at,
            frame: frame.at,
            epoch: self.epochs.newest(),
            was_alone: actor.open == 0,
            is_retry,
            now,
        };
        let dispatch = self.ledger.open(to, self.taken.iter().map(|taken| taken.entry));
        actor.open += 1;
        actor.outstanding += rows;
        actor.last_sent = dispatch;
        frame.back += back_bytes(rows.into(), self.settings.return_row_bytes);
        let first = self.outgoing.indices.len() as u32;
        self.outgoing.indices.extend(self.taken.iter().map(|taken| taken.index));
        let (indices, attempts) = (first..first + rows, self.attempts_most);
        self.outgoing.groups.push(OutgoingGroup { actor: actor.id, dispatch, indices, attempts });
        self.composed.push(at);
        stays
    }

    /// Takes rows from the head of a line into the frame, as many as fit, and says the longest of their deadlines.
    fn take_rows(
        &mut self,
        frame: &Frame,
        line: &mut Line,
        payload_max: u64,
        is_retry: bool,
    ) -> Option<Instant> {
        let groups = self.outgoing.groups.len() + 1;
        let mut latest = None;
        let mut is_ascending = true;
        self.taken.clear();
        self.attempts_most = 0;
        while line.first != NONE {
            let slot_at = line.first;
            let row_at = self.landing.row_of(slot_at);
            let slot = &mut self.landing.slots[slot_at as usize];
            let row = &mut self.landing.rows[row_at as usize];
            if if is_retry {
                slot.begins_group && !self.taken.is_empty()
            } else {
                row.stamp > frame.stamp_max
            } {
                break;
            }
            let is_new = row.mark != self.mark;
            let taken = self.taken.len() + 1;
            let rows = self.outgoing.rows.len() + usize::from(is_new);
            let indices = self.outgoing.indices.len() + taken;
            if taken as u64 > frame.group_rows_max
                || frame.back + back_bytes(taken as u64, self.settings.return_row_bytes) > frame.back_max
                || payload_bytes(groups, indices, rows, self.settings.row_bytes) > payload_max
            {
                break;
            }
            if is_new {
                (row.mark, row.index) = (self.mark, rows as u32 - 1);
                self.outgoing.rows.push(RowId(row_at));
            }
            let Row { index, life, deadline, .. } = *row;
            row.open += 1;
            latest = latest.max(deadline);
            (slot.place, slot.begins_group) = (Place::Off, false);
            slot.attempts += 1;
            self.attempts_most = self.attempts_most.max(slot.attempts);
            slot.open += 1;
            slot.live += 1;
            is_ascending &= self.taken.last().is_none_or(|last| last.index < index);
            self.taken.push(Taken { index, entry: Entry { slot: slot_at, life } });
            line.remove(&mut self.landing.slots, slot_at);
        }
        if is_retry && line.first != NONE && !self.taken.is_empty() {
            // What did not fit is a group of its own now.
            self.landing.slots[line.first as usize].begins_group = true;
        }
        if !is_ascending {
            self.taken.sort_unstable_by_key(|taken| taken.index);
        }
        latest
    }

    /// Takes the room of a frame, all at once.
    fn send(&mut self, link_at: u32, frame: &Frame, now: Instant) {
        let (groups, indices) = (self.outgoing.groups.len(), self.outgoing.indices.len());
        let rows = self.outgoing.rows.len();
        let payload = payload_bytes(groups, indices, rows, self.settings.row_bytes);
        let link = &mut self.router.links[link_at as usize];
        let charge = charge(payload);
        link.take_room(charge, frame.back, groups as u32);
        link.bytes_out += HEADER_BYTES as u64 + payload;
        link.frames += 1;
        for &actor in &self.composed {
            self.router.actors[actor as usize].held += charge;
        }
        *self.ledger.frame_mut(frame.at) = FrameRoom { charge, groups_open: groups as u32 };
        self.epochs.open(groups as u32);
        let latest = frame.latest.map_or(now, |latest| latest.min(now + self.settings.dispatch_time_max));
        self.outgoing.remaining = latest.saturating_duration_since(now);
        self.counters.frames += 1;
        self.counters.dispatches += groups as u64;
        self.counters.slots_sent += indices as u64;
    }
}
