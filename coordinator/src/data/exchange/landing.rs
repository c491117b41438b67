//! Rows and their slots: what has come, what is missing.
//!
//! Pure. Dense tables, made once: a row is found by its number, a slot by `(row * top_k_max + rank) * shards + shard`.
//! What waits does so in lines that run through the slots themselves, so that no line is ever allocated and every slot
//! can leave from anywhere.

use std::collections::VecDeque;
use std::time::Instant;

use super::NONE;
use super::deadlines::Deadlines;
use super::interface::{ExchangeSettings, RowFailed};
use super::missing::LeftOut;
use crate::data::ids::RowId;

/// Where a slot is that has not been filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In no line: it is out, filled, or nobody wants it.
    Off,
    /// In its queue's line of those that wait.
    Waiting,
    /// In its queue's line of those that are retried alone.
    Suspect,
}

/// One place that a returned row fills.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    next: u32,
    before: u32,
    /// Of its expert and shard.
    pub(super) queue: u32,
    /// How often it was sent.
    pub(super) attempts: u8,
    /// Of these, how many may still come back.
    pub(super) open: u8,
    /// Of these, how many are not overdue.
    pub(super) live: u8,
    /// How many actors fell under it alone.
    pub(super) felled: u8,
    pub(super) place: Place,
    pub(super) is_filled: bool,
    /// The first of those that are retried together.
    pub(super) begins_group: bool,
}

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowState {
    /// Not here.
    Absent,
    /// On its way to being whole.
    Moving,
    /// Failed, which has not been said yet.
    Failed,
    /// Failed or cancelled: it leaves when its last attempt has ended.
    Ending,
}

/// One row at its layer.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) deadline: Option<Instant>,
    /// Counts rows in the order in which they came.
    pub(super) stamp: u64,
    /// The last frame that it was put into...
    pub(super) mark: u64,
    /// ... and its number there.
    pub(super) index: u32,
    /// Which of its lives this is: one for each layer.
    pub(super) life: u32,
    pub(super) slots_unfilled: u32,
    /// Attempts of this life that may still come back.
    pub(super) open: u32,
    /// Slots of this life.
    pub(super) slots: u32,
    /// Its place among the deadlines.
    pub(super) at: u32,
    pub(super) state: RowState,
    /// In this life it goes on without experts that nobody holds.
    pub(super) may_leave_out: bool,
    /// Of its slots, how many wait for experts that nobody holds; whether it was told that any do; and whether that is to be
    /// told anew.
    pub(super) slots_stranded: u32,
    pub(super) is_told_stranded: bool,
    pub(super) is_stranding_new: bool,
}

/// All rows.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) rows: Vec<Row>,
    pub(super) slots: Vec<Slot>,
    pub(super) slots_per_row: u32,
    pub(super) deadlines: Deadlines,
    pub(super) whole: VecDeque<RowId>,
    pub(super) failed: VecDeque<(RowId, RowFailed)>,
    pub(super) left_out: VecDeque<LeftOut>,
    pub(super) stranded: VecDeque<RowId>,
    stamp: u64,
}

impl Landing {
    pub(super) fn new(settings: &ExchangeSettings) -> Self {
        let ExchangeSettings { rows_max, top_k_max, shards, .. } = *settings;
        let slots = u64::from(rows_max) * u64::from(top_k_max) * u64::from(shards);
        assert!(
            slots < u64::from(NONE),
            "{rows_max} rows of {top_k_max} x {shards} slots cannot be numbered"
        );
        let row = Row {
            deadline: None,
            stamp: 0,
            mark: 0,
            index: 0,
            life: 0,
            slots_unfilled: 0,
            open: 0,
            slots: 0,
            at: 0,
            state: RowState::Absent,
            may_leave_out: false,
            slots_stranded: 0,
            is_told_stranded: false,
            is_stranding_new: false,
        };
        let slot = Slot {
            next: NONE,
            before: NONE,
            queue: NONE,
            attempts: 0,
            open: 0,
            live: 0,
            felled: 0,
            place: Place::Off,
            is_filled: false,
            begins_group: false,
        };
        Self {
            rows: vec![row; rows_max as usize],
            slots: vec![slot; slots as usize],
            slots_per_row: top_k_max * shards,
            deadlines: Deadlines::new(rows_max),
            whole: VecDeque::with_capacity(rows_max as usize),
            failed: VecDeque::with_capacity(rows_max as usize),
            left_out: VecDeque::new(),
            stranded: VecDeque::with_capacity(rows_max as usize),
            stamp: 0,
        }
    }

    /// A row comes, with so many slots. Says the number of the first of them.
    pub(super) fn begin(&mut self, RowId(row): RowId, slots: u32, deadline: Instant) -> u32 {
        let this = &mut self.rows[row as usize];
        assert!(this.state == RowState::Absent, "row {row} is at its experts already");
        this.state = RowState::Moving;
        this.deadline = Some(deadline);
        this.stamp = self.stamp;
        (this.slots, this.slots_unfilled, this.open) = (slots, slots, 0);
        self.stamp += 1;
        self.deadlines.insert(&mut self.rows, row);
        if slots == 0 {
            self.leave(row);
        }
        row * self.slots_per_row
    }

    /// A slot of a new life. The caller puts it into its line.
    pub(super) fn begin_slot(&mut self, slot: u32, queue: u32, place: Place) {
        self.slots[slot as usize] = Slot {
            next: NONE,
            before: NONE,
            queue,
            attempts: 0,
            open: 0,
            live: 0,
            felled: 0,
            place,
            is_filled: false,
            begins_group: false,
        };
    }

    /// Who stands behind a slot in its line.
    pub(super) fn after(&self, slot: u32) -> u32 {
        self.slots[slot as usize].next
    }

    pub(super) fn row_of(&self, slot: u32) -> u32 {
        slot / self.slots_per_row
    }

    /// The row is handed back: nothing can fill its slots any more.
    pub(super) fn leave(&mut self, row: u32) {
        let this = &mut self.rows[row as usize];
        if this.state == RowState::Moving {
            self.deadlines.remove(&mut self.rows, row);
        }
        let this = &mut self.rows[row as usize];
        (this.state, this.may_leave_out) = (RowState::Absent, false);
        this.life = this.life.wrapping_add(1);
        self.whole.push_back(RowId(row));
    }

    /// The row is not wanted any more. None of its slots waits.
    pub(super) fn end(&mut self, row: u32, failed: Option<RowFailed>) {
        self.deadlines.remove(&mut self.rows, row);
        let this = &mut self.rows[row as usize];
        match failed {
            Some(why) => {
                this.state = RowState::Failed;
                self.failed.push_back((RowId(row), why));
            }
            None => {
                this.state = RowState::Ending;
                self.leave_if_done(row);
            }
        }
    }

    /// An attempt of a row that is ending has ended.
    pub(super) fn leave_if_done(&mut self, row: u32) {
        let this = &self.rows[row as usize];
        if this.state == RowState::Ending && this.open == 0 {
            self.leave(row);
        }
    }

    /// Says that a row failed. From now on it may be handed back.
    pub(super) fn poll_failed(&mut self) -> Option<(RowId, RowFailed)> {
        let (row, why) = self.failed.pop_front()?;
        self.rows[row.0 as usize].state = RowState::Ending;
        self.leave_if_done(row.0);
        Some((row, why))
    }
}

/// A line of slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) first: u32,
    last: u32,
    pub(super) len: u32,
}

impl Line {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE, len: 0 };

    pub(super) fn push_back(&mut self, slots: &mut [Slot], slot: u32) {
        let last = std::mem::replace(&mut self.last, slot);
        let this = &mut slots[slot as usize];
        (this.before, this.next) = (last, NONE);
        match last {
            NONE => self.first = slot,
            _ => slots[last as usize].next = slot,
        }
        self.len += 1;
    }

    pub(super) fn push_front(&mut self, slots: &mut [Slot], slot: u32) {
        let first = std::mem::replace(&mut self.first, slot);
        let this = &mut slots[slot as usize];
        (this.before, this.next) = (NONE, first);
        match first {
            NONE => self.last = slot,
            _ => slots[first as usize].before = slot,
        }
        self.len += 1;
    }

    /// Takes a slot out, and says which comes after it.
    pub(super) fn remove(&mut self, slots: &mut [Slot], slot: u32) -> u32 {
        let Slot { before, next, .. } = slots[slot as usize];
        match before {
            NONE => self.first = next,
            _ => slots[before as usize].next = next,
        }
        match next {
            NONE => self.last = before,
            _ => slots[next as usize].before = before,
        }
        self.len -= 1;
        next
    }
}
