//! The events of the exchange, and what it asks for.
//!
//! Pure: every instant is passed in, and instants never go back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport::wire::cluster::Epoch;
use transport::wire::groups::Reason;

use super::NONE;
use super::compose::Taken;
use super::counters::ExchangeCounters;
use super::interface::{AttemptEnd, ExchangeSettings, LinkRoom, NOWHERE, Outgoing, Returned, RowFailed};
use super::landing::{Landing, Place, RowState};
use super::ledger::{Entry, Ledger};
use super::router::Router;
use crate::data::ids::{LinkId, RowId, SlotId};
use crate::placement::{NodeId, Placement};

/// Rows out, rows back.
#[derive(Debug)]
pub struct Exchange {
    pub(super) settings: ExchangeSettings,
    pub(super) landing: Landing,
    pub(super) router: Router,
    pub(super) ledger: Ledger,
    pub(super) epochs: Epochs,
    pub(super) counters: ExchangeCounters,
    /// Names the frame that is being made.
    pub(super) mark: u64,
    pub(super) outgoing: Outgoing,
    /// The actors of its groups.
    pub(super) composed: Vec<u32>,
    pub(super) taken: Vec<Taken>,
    /// Of those.
    pub(super) attempts_most: u8,
    /// The rows of the dispatch that was closed last.
    pub(super) entries: Vec<Entry>,
    /// Somebody holds what nobody held.
    pub(super) have_holders_come: bool,
    landed: Vec<SlotId>,
}

impl Exchange {
    /// With neither links nor a placement.
    pub fn new(settings: ExchangeSettings) -> Self {
        assert!(settings.row_bytes > 0, "a row has bytes");
        assert!((1..=256).contains(&settings.shards), "{} shards of an expert", settings.shards);
        assert!(settings.attempts_max > 0 && settings.felled_max > 0, "a row is sent at least once");
        let outgoing = Outgoing {
            link: LinkId(NONE),
            layer: 0,
            groups: Vec::new(),
            rows: Vec::new(),
            indices: Vec::new(),
            remaining: Duration::ZERO,
        };
        Self {
            landing: Landing::new(&settings),
            router: Router::new(settings.shards),
            ledger: Ledger::new(),
            epochs: Epochs::new(),
            counters: ExchangeCounters::default(),
            mark: 0,
            outgoing,
            composed: Vec::new(),
            taken: Vec::new(),
            attempts_most: 0,
            entries: Vec::new(),
            have_holders_come: false,
            landed: Vec::new(),
            settings,
        }
    }

    /// A link to a node opened. What is sent to the node from now on goes over it, also where an older link stands.
    pub fn handle_link(&mut self, link: LinkId, node: NodeId, room: LinkRoom, _now: Instant) {
        self.router.open_link(link, node, room, &self.settings);
        self.see_holders();
    }

    /// A link has ended. All that was out on it goes elsewhere, each dispatch alone: the node may have died under it.
    pub fn handle_link_ended(&mut self, link: LinkId, _now: Instant) {
        let Some(link_at) = self.router.find_link(link) else { return };
        self.router.end_link(link_at);
        self.see_holders();
        let was_only_one = self.router.links[link_at as usize].open == 1;
        while let Some(at) = self.ledger.first_of_link(link_at) {
            let dispatch = self.close(at);
            self.counters.died += 1;
            let is_split = dispatch.is_retry;
            self.settle_fallen(&dispatch, AttemptEnd::LinkEnded, is_split, was_only_one);
            self.router.wake(self.queue_of(&dispatch));
            self.router.free_if_gone(dispatch.actor);
        }
        self.router.free_link(link_at);
        self.leave_out_all();
    }

    /// The placement changed. Dispatches that are out stay so.
    pub fn handle_placement(&mut self, placement: Arc<Placement>, _now: Instant) {
        self.router.seat(&placement);
        self.see_holders();
        self.epochs.begin(placement.epoch);
        self.hedge_all();
        self.leave_out_all();
    }

    /// Rows at a layer have chosen their experts: row-major, by rank, no expert twice in a row. All are to be back by
    /// `deadline`.
    pub fn handle_chosen(
        &mut self,
        layer: u32,
        rows: &[RowId],
        top_k: usize,
        experts: &[u32],
        deadline: Instant,
        _now: Instant,
    ) {
        let shards = self.settings.shards;
        assert!(top_k <= self.settings.top_k_max as usize, "{top_k} experts of a row");
        assert_eq!(experts.len(), rows.len() * top_k, "{top_k} experts for each of {} rows", rows.len());
        for (index, &row) in rows.iter().enumerate() {
            let mut slot = self.landing.begin(row, top_k as u32 * shards, deadline);
            for &expert in &experts[index * top_k..][..top_k] {
                let first = self.router.queues_of(layer, expert);
                for queue_at in first..first + shards {
                    self.landing.begin_slot(slot, queue_at, Place::Waiting);
                    let queue = &mut self.router.queues[queue_at as usize];
                    queue.waiting.push_back(&mut self.landing.slots, slot);
                    // Behind others it is offered with them.
                    if queue.is_missing {
                        self.landing.handle_stranded(slot, true);
                    } else if queue.waiting.len == 1 {
                        self.router.offer(queue_at);
                    }
                    slot += 1;
                }
            }
            if self.landing.rows[row.0 as usize].may_leave_out {
                self.leave_out_of(row.0);
            }
        }
    }

    /// A row is not wanted any more: what was not sent is not sent, what is out is waited for, and then it is handed
    /// back by [`Self::poll_whole`]. A row that is not here, or failed, stays as it is.
    pub fn handle_cancelled(&mut self, row: RowId, _now: Instant) {
        if self.landing.rows[row.0 as usize].state == RowState::Moving {
            self.unqueue_row(row.0);
            self.landing.end(row.0, None);
        }
    }

    /// Rows came back. Whatever it says holds now: the rows must be copied, or be kept, before the next event.
    pub fn handle_return(&mut self, link: LinkId, dispatch: u64, rows: u32, now: Instant) -> Returned<'_> {
        let Some(at) = self.find_open(link, dispatch) else { return Returned::Dropped };
        let open = self.ledger.get(at);
        if open.rows != rows {
            self.counters.breaches += 1;
            let actor = self.router.actors[open.actor as usize].id;
            return Returned::Breach { actor, expected: open.rows };
        }
        let dispatch = self.close(at);
        self.counters.returned += 1;
        self.router.links[dispatch.link as usize].bytes_back +=
            super::links::back_bytes(rows.into(), self.settings.return_row_bytes);
        self.observe(&dispatch, now);
        self.landed.clear();
        for index in 0..self.entries.len() {
            let Entry { slot, life } = self.entries[index];
            let lands = self.land(slot, life, dispatch.is_overdue);
            self.landed.push(if lands { SlotId(slot) } else { NOWHERE });
        }
        self.wake_after(&dispatch);
        Returned::Taken(&self.landed)
    }

    /// A row came back for a slot: whether it fills it.
    fn land(&mut self, slot_at: u32, life: u32, is_overdue: bool) -> bool {
        let row_at = self.landing.row_of(slot_at);
        let row = &mut self.landing.rows[row_at as usize];
        if row.life != life {
            self.counters.rows_unneeded += 1;
            return false;
        }
        row.open -= 1;
        let slot = &mut self.landing.slots[slot_at as usize];
        slot.open -= 1;
        if !is_overdue {
            slot.live -= 1;
        }
        if row.state != RowState::Moving || slot.is_filled {
            self.counters.rows_unneeded += 1;
            self.landing.leave_if_done(row_at);
            return false;
        }
        slot.is_filled = true;
        self.counters.slots_filled += 1;
        row.slots_unfilled -= 1;
        let is_whole = row.slots_unfilled == 0;
        if slot.place != Place::Off {
            self.unqueue(slot_at);
        }
        if is_whole {
            self.landing.leave(row_at);
        }
        true
    }

    /// A group came back without rows.
    pub fn handle_refused(&mut self, link: LinkId, dispatch: u64, reason: Reason, now: Instant) {
        let Some(at) = self.find_open(link, dispatch) else { return };
        let dispatch = self.close(at);
        let number = Reason::ALL.iter().position(|other| *other == reason);
        self.counters.refused[number.expect("all reasons are there")] += 1;
        self.settle_refused(&dispatch, reason, now);
        self.wake_after(&dispatch);
    }

    /// Time passed: deadlines of rows, overdue dispatches, pauses of actors.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(row) = self.landing.deadlines.first() {
            if self.landing.rows[row as usize].deadline.is_some_and(|deadline| deadline > now) {
                break;
            }
            let why = self.why_late(row);
            self.fail(row, why);
        }
        let time_max = self.settings.dispatch_time_max;
        while self.ledger.next_overdue(time_max).is_some_and(|at| at <= now) {
            let Some(at) = self.ledger.first() else { break };
            self.settle_overdue(at);
        }
        while let Some(queue) = self.router.poll_pause(now) {
            self.router.wake(queue);
        }
    }

    /// What a row waits for that its deadline has passed on: first of all an expert without a holder.
    fn why_late(&self, row: u32) -> RowFailed {
        let first = row * self.landing.slots_per_row;
        let mut late = None;
        for slot in first..first + self.landing.rows[row as usize].slots {
            let slot = &self.landing.slots[slot as usize];
            if slot.is_filled {
                continue;
            }
            let queue = &self.router.queues[slot.queue as usize];
            let (layer, expert) = (queue.layer, queue.expert);
            let mut actors = self.router.actors_of(slot.queue).iter();
            if !actors.any(|at| self.router.is_holder(&self.router.actors[*at as usize])) {
                return RowFailed::NoHolder { layer, expert };
            }
            late = late.or(Some(RowFailed::TooLate { layer, expert }));
        }
        late.expect("a row under way has a slot that is not filled")
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let row = self.landing.deadlines.first();
        let deadline = row.and_then(|row| self.landing.rows[row as usize].deadline);
        let overdue = self.ledger.next_overdue(self.settings.dispatch_time_max);
        [deadline, overdue, self.router.next_pause()].into_iter().flatten().min()
    }

    /// The next frame to be sent: at once, and in this order.
    pub fn poll_dispatch(&mut self, now: Instant) -> Option<&Outgoing> {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.handle_timeout(now);
        }
        while let Some(at) = self.router.first_active() {
            let link = &mut self.router.links[at as usize];
            let Some(layer) = link.lane_first() else {
                self.router.rotate_active();
                continue;
            };
            if !link.has_room {
                self.router.block_first();
                continue;
            }
            if self.compose(at, layer, now) {
                self.router.links[at as usize].rotate_lanes();
                self.router.rotate_active();
                return Some(&self.outgoing);
            }
        }
        None
    }

    /// A row whose slots are all filled, or that failed or was cancelled and that nothing can come back for. Every row
    /// comes here once, and one that failed not before [`Self::poll_failed`] has said so.
    pub fn poll_whole(&mut self) -> Option<RowId> {
        self.landing.whole.pop_front()
    }

    /// A row that cannot become whole, and why.
    pub fn poll_failed(&mut self) -> Option<(RowId, RowFailed)> {
        self.landing.poll_failed()
    }
}

/// Under which placements dispatches are open.
#[derive(Debug)]
pub(super) struct Epochs {
    /// The number of the first of them.
    first: u32,
    open: VecDeque<(Epoch, u32)>,
}

impl Epochs {
    fn new() -> Self {
        Self { first: 0, open: VecDeque::from([(Epoch::default(), 0)]) }
    }

    fn begin(&mut self, epoch: Epoch) {
        self.open.push_back((epoch, 0));
        self.forget();
    }

    pub(super) fn newest(&self) -> u32 {
        self.first.wrapping_add(self.open.len() as u32 - 1)
    }

    pub(super) fn open(&mut self, dispatches: u32) {
        if let Some((_, open)) = self.open.back_mut() {
            *open += dispatches;
        }
    }

    pub(super) fn close(&mut self, number: u32) {
        let (_, open) = &mut self.open[number.wrapping_sub(self.first) as usize];
        *open -= 1;
        if *open == 0 {
            self.forget();
        }
    }

    /// Older ones under which nothing is open.
    fn forget(&mut self) {
        while self.open.len() > 1 && self.open[0].1 == 0 {
            self.open.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// The oldest under which something is open.
    pub(super) fn oldest_open(&self) -> Option<Epoch> {
        self.open.iter().find(|(_, open)| *open > 0).map(|(epoch, _)| *epoch)
    }
}
