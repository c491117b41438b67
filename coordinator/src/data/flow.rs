//! Which rows the trunk computes next.
//!
//! Pure: no clock, no bytes. Flow gives out the rows, knows where each is, and makes the trunk's batches.
//!
//! A **stage** is what the trunk does between two waits: it combines what returned and runs layers until one whose rows
//! must go out to experts. The last stage is the **head**: dense layers that may follow the last experts, then logits and
//! sampling for the rows that sample. Before each stage is a **door**.
//!
//! # Readiness
//!
//! A row is **ready** at a door when it is whole and every earlier position of its sequence has been attended at that stage.
//! Whole rows that are not ready are *parked*: they hold their residual and nothing else. This orders positions of a
//! chunk, chunk c+1 after chunk c, and decode after prefill. A batch computes its runs in order and one batch is under way
//! at a time, so whoever was put into an earlier batch, or earlier into the same, counts as attended.
//!
//! # Batches
//!
//! * [`Forwarding::Partial`]: never wait when idle, never split when busy. All that is ready at one door goes together,
//!   whatever it came with; `doors.rs` says which door.
//! * [`Forwarding::Whole`]: the rows that entered stage 0 together are a step, which moves as one. No row of it enters stage
//!   t + 1 before all of them are whole, and no new step enters while one is under way. When this mode is chosen while rows
//!   are anywhere, these first leave as in the other mode.
//!
//! # Stranded rows
//!
//! A row may wait for an expert that nobody holds, and its sequence with it, for longer than anybody wants to wait for others. The
//! shell tells of such rows, and then nobody does: their step breaks up, its other rows go on as in the other mode, and the next step
//! enters when all rows inside are those of stranded sequences. What comes of a row that has been attended everywhere and is not
//! looked at at the head nobody waits for: it is not [needed](Flow::is_needed).
//!
//! # Why nothing can get stuck
//!
//! The earliest row of a sequence is never parked. So while there are rows, one is ready, computed, or out: something
//! happens that Flow is told of, or [`Flow::poll_batch`] has a batch. A step that is whole is ready, since whatever came before
//! its rows in their sequences is in it or has left.
//!
//! # What it costs
//!
//! Every event costs O(rows it touches), a row getting ready or taken one step in a tournament of doors besides. Nothing is
//! allocated after [`Flow::new`].

mod doors;
pub(crate) mod lines;
mod rows;

use std::collections::VecDeque;
use std::ops::Range;

use self::doors::Doors;
use self::rows::{Place, Rows};
use super::ids::{RowId, SequenceId};

/// How rows go on from stage to stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// A row goes on as soon as it is whole.
    Partial,
    /// A row goes on when all that entered with it are whole.
    Whole,
}

impl Forwarding {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Forwarding::Partial => "partial",
            Forwarding::Whole => "whole",
        }
    }
}

/// What a flow is made for.
#[derive(Debug, Clone)]
pub struct FlowSettings {
    /// Stages, with the head.
    pub stages: u32,
    /// Whether layers follow the last experts. If not, a row that neither samples nor is scored has nothing to do at the head.
    pub head_has_layers: bool,
    /// Rows that may be in flight. Each costs its residual and its landing slots.
    pub rows_max: u32,
    /// Sequences that may have rows.
    pub sequences_max: u32,
    /// Rows of a batch. Runs are cut at it; a step of [`Forwarding::Whole`] is no larger either.
    pub batch_rows_max: u32,
    /// How to begin.
    pub forwarding: Forwarding,
}

/// Consecutive rows of one sequence that enter together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub sequence: SequenceId,
    /// The first position.
    pub start: u32,
    /// Rows, at least one.
    pub count: u32,
    /// Whether the last of them is sampled.
    pub samples: bool,
    /// Whether all of them come to the head, which looks at how likely the next id was.
    pub is_scored: bool,
}

/// What the trunk computes at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The stage.
    pub stage: u32,
    /// Its rows, run after run.
    pub rows: Vec<RowId>,
    /// Its runs, in the order in which they are to be attended.
    pub runs: Vec<BatchRun>,
}

/// Rows of consecutive positions of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRun {
    /// Whose.
    pub sequence: SequenceId,
    /// The first position.
    pub start: u32,
    /// Where its rows are among the batch's.
    pub rows: Range<u32>,
    /// Whether its last row is sampled at the head.
    pub samples: bool,
}

/// A row, as people are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSeen {
    /// Which.
    pub row: RowId,
    /// In its sequence.
    pub position: u32,
    /// The stage that it has come to.
    pub stage: u32,
    /// Where there.
    pub at: RowAt,
}

/// Where a row is at its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAt {
    /// It waits for the trunk.
    Door,
    /// The trunk computes it.
    Trunk,
    /// It is out at its experts.
    Experts,
}

/// See the module.
#[derive(Debug)]
pub struct Flow {
    head: u32,
    head_has_layers: bool,
    batch_rows_max: usize,
    forwarding: Forwarding,
    rows: Rows,
    doors: Doors,
    batch: Batch,
    is_computing: bool,
    /// The batch's rows are on their way already.
    is_sent: bool,
    are_devices_idle: bool,
    /// Rows that have left the first door and not yet the flow.
    entered: usize,
    /// Whether rows are inside that did not enter as one step.
    is_mixed: bool,
    /// Rows of stranded sequences, and how many of them have left the first door.
    stranded: usize,
    stranded_inside: usize,
    left: VecDeque<SequenceId>,
    rows_passed: u64,
}

impl Flow {
    /// An empty flow.
    pub fn new(settings: FlowSettings) -> Self {
        let FlowSettings { stages, head_has_layers, rows_max, sequences_max, batch_rows_max, forwarding } =
            settings;
        assert!(stages > 1 || head_has_layers, "a model has a layer");
        assert!(batch_rows_max > 0, "a batch has at least one row");
        let batch_rows = batch_rows_max.min(rows_max) as usize;
        // A crowd that goes round comes to every door once in so many batches, and takes along who waits.
        let patience = 2 * u64::from(stages);
        let mut doors = Doors::new(stages as usize, rows_max as usize, patience);
        doors.set_entrance_open(forwarding == Forwarding::Partial);
        Self {
            head: stages - 1,
            head_has_layers,
            batch_rows_max: batch_rows,
            forwarding,
            rows: Rows::new(rows_max, sequences_max),
            doors,
            batch: Batch {
                stage: 0,
                rows: Vec::with_capacity(batch_rows),
                runs: Vec::with_capacity(batch_rows),
            },
            is_computing: false,
            is_sent: false,
            are_devices_idle: true,
            entered: 0,
            is_mixed: false,
            stranded: 0,
            stranded_inside: 0,
            left: VecDeque::with_capacity(sequences_max as usize),
            rows_passed: 0,
        }
    }

    /// Rows that may still be brought by [`handle_chunk`](Self::handle_chunk).
    pub fn rows_free(&self) -> usize {
        self.rows.free()
    }

    /// Rows of sequences that are stranded.
    pub fn rows_stranded(&self) -> usize {
        self.stranded
    }

    /// Rows that have gone all the way since the beginning. Those of cancelled sequences do not count.
    pub fn rows_passed(&self) -> u64 {
        self.rows_passed
    }

    /// How rows go on at present.
    pub fn forwarding(&self) -> Forwarding {
        self.forwarding
    }

    /// Whose row this is, and at which position. The row must be in use.
    pub fn position(&self, row: RowId) -> (SequenceId, u32) {
        let row = self.rows.row(row.0);
        assert!(row.place != Place::Free, "a row in use has a position");
        (row.sequence, row.position)
    }

    /// Whether a row is out: of a batch that was attended just now, the rows for which this is false belong to cancelled
    /// sequences or were at the head, and are not to be sent. Ask before the next chunk, which may take their places.
    pub fn is_out(&self, row: RowId) -> bool {
        self.rows.row(row.0).place == Place::Out
    }

    /// Where the first row of a sequence is, which holds up all others of it.
    pub fn first_row(&self, sequence: SequenceId) -> Option<RowSeen> {
        let row = self.rows.first(sequence)?;
        let seen = self.rows.row(row);
        let at = match seen.place {
            Place::Computing => RowAt::Trunk,
            Place::Out => RowAt::Experts,
            Place::First | Place::Following | Place::Parked | Place::Free => RowAt::Door,
        };
        Some(RowSeen { row: RowId(row), position: seen.position, stage: seen.stage, at })
    }

    /// Rows of a sequence that are out, which the exchange may be told of when the sequence is cancelled.
    pub fn rows_out(&self, sequence: SequenceId) -> impl Iterator<Item = RowId> + '_ {
        self.rows.out(sequence)
    }

    /// Rows of a sequence that stand at doors: what has landed for them is not needed when the sequence is cancelled.
    pub fn rows_at_doors(&self, sequence: SequenceId) -> impl Iterator<Item = RowId> + '_ {
        self.rows.at_doors(sequence)
    }

    /// Whether anybody waits for what comes of a row that is out.
    pub fn is_needed(&self, row: RowId) -> bool {
        let row = self.rows.row(row.0);
        self.head_has_layers || row.has_head || row.stage + 1 < self.head
    }

    /// A row that is out and needed waits for an expert that nobody holds, or does so no more. Names its sequence if that makes it a
    /// stranded one, or ends that.
    pub fn handle_stranded(&mut self, row: RowId, is_stranded: bool) -> Option<SequenceId> {
        if !self.rows.set_stranded(row.0, is_stranded) {
            return None;
        }
        let sequence = self.rows.row(row.0).sequence;
        let rows = self.rows.of(sequence).count();
        let inside = self.rows.of(sequence).filter(|row| self.rows.row(*row).is_inside()).count();
        if is_stranded {
            self.stranded += rows;
            self.stranded_inside += inside;
            // Its step does not go on as one.
            self.is_mixed = true;
        } else {
            self.stranded -= rows;
            self.stranded_inside -= inside;
        }
        Some(sequence)
    }

    /// Whether the sequence of this row, which is in use, leaves.
    pub fn is_leaving(&self, row: RowId) -> bool {
        self.rows.is_leaving(row.0)
    }

    /// Rows arrive at the first door. There must be room for them, and they must go on where the sequence's last chunk
    /// ended; a sequence that is new here, or new again, may begin anywhere.
    pub fn handle_chunk(&mut self, chunk: Chunk) {
        let Chunk { sequence, start, count, samples, is_scored } = chunk;
        assert!(count > 0, "a chunk of {sequence} has at least one row");
        self.rows.begin_chunk(sequence, start);
        for i in 0..count {
            let samples = samples && i + 1 == count;
            let row = self.rows.add(sequence, samples, samples || is_scored);
            self.stranded += usize::from(self.rows.is_stranded(sequence));
            self.arrive(row);
        }
    }

    /// What is to be computed now, if anything. The trunk is busy with it until
    /// [`handle_attended`](Self::handle_attended).
    pub fn poll_batch(&mut self) -> Option<&Batch> {
        if self.is_computing || !self.are_devices_idle {
            return None;
        }
        let stage = self.choose()?;
        self.fill(stage);
        self.is_computing = true;
        Some(&self.batch)
    }

    /// The batch polled last. Of use until the next one is polled.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The rows of the batch polled last are on their way out, though the trunk is not done with the batch: it has
    /// shared experts to compute. Never at the head.
    pub fn handle_sent(&mut self) {
        assert!(self.is_computing && !self.is_sent, "a batch is sent once, and before it is done");
        assert!(self.batch.stage != self.head, "no rows go out at the head");
        self.is_sent = true;
        self.let_out();
    }

    /// The batch polled last is done: its rows are out, or gone if it was at the head.
    pub fn handle_attended(&mut self) {
        assert!(self.is_computing, "a batch is done once");
        if !std::mem::take(&mut self.is_sent) {
            self.let_out();
        }
        self.is_computing = false;
    }

    fn let_out(&mut self) {
        for i in 0..self.batch.rows.len() {
            let row = self.batch.rows[i].0;
            if self.batch.stage == self.head || self.rows.is_leaving(row) {
                self.remove(row);
            } else {
                self.rows.row_mut(row).place = Place::Out;
            }
        }
    }

    /// All returns of a row are there: it is at the next door. A row that failed comes back so too, after its sequence
    /// was cancelled. False: it has left, and nobody wants what returned for it.
    pub fn handle_whole(&mut self, row: RowId) -> bool {
        let row = row.0;
        assert!(self.rows.row(row).place == Place::Out, "row {row} is out before it is whole");
        if self.rows.is_leaving(row) {
            self.remove(row);
            return false;
        }
        self.rows.row_mut(row).stage += 1;
        self.arrive(row);
        self.rows.row(row).place != Place::Free
    }

    /// A sequence was cancelled, preempted or has ended: its rows leave, those at doors at once, the others as they come
    /// back. Harmless for a sequence that is not here, or leaves already.
    pub fn handle_cancel(&mut self, sequence: SequenceId) {
        if !self.rows.begin_leaving(sequence) {
            return;
        }
        let mut next = self.rows.last(sequence);
        while let Some(row) = next {
            next = self.rows.before(row);
            let (place, stage) = (self.rows.row(row).place, self.rows.row(row).stage);
            match place {
                Place::First => {
                    self.doors.remove(stage, row);
                    self.doors.handle_gone(stage);
                }
                Place::Following => self.doors.handle_gone(stage),
                Place::Parked => {}
                Place::Computing | Place::Out | Place::Free => continue,
            }
            self.remove(row);
            if next.is_none() {
                return; // The last row was reported by its removal.
            }
        }
        if self.rows.forget(sequence) {
            self.left.push_back(sequence);
        }
    }

    /// Where trunk and experts share cores: the trunk is not idle while those compute, so nothing starts until they are.
    pub fn handle_devices(&mut self, idle: bool) {
        self.are_devices_idle = idle;
    }

    /// Rows are to go on differently from now on. Those inside lose nothing.
    pub fn set_forwarding(&mut self, forwarding: Forwarding) {
        if forwarding == self.forwarding {
            return;
        }
        self.forwarding = forwarding;
        self.is_mixed = self.entered > 0;
        self.doors.set_entrance_open(forwarding == Forwarding::Partial);
    }

    /// A sequence that was cancelled and has no row here any more. Each is named once, and its place may be used again.
    pub fn poll_left(&mut self) -> Option<SequenceId> {
        self.left.pop_front()
    }

    /// A whole row stands at the door of its stage, and perhaps makes those behind it ready.
    fn arrive(&mut self, row: u32) {
        let stage = self.rows.row(row).stage;
        if stage == self.head && !self.head_has_layers {
            // Nothing is attended here, so nobody waits for anybody.
            if !self.rows.row(row).has_head {
                return self.remove(row);
            }
            self.rows.row_mut(row).place = Place::First;
            self.doors.push(stage, row);
            return self.doors.handle_ready(stage);
        }
        let place = self.rows.place_at_door(row);
        self.rows.row_mut(row).place = place;
        match place {
            Place::Parked => return,
            Place::First => self.doors.push(stage, row),
            _ => {}
        }
        self.doors.handle_ready(stage);
        let mut behind = self.rows.after(row);
        while let Some(row) = behind {
            let parked = self.rows.row_mut(row);
            if parked.stage != stage || parked.place != Place::Parked {
                return;
            }
            parked.place = Place::Following;
            self.doors.handle_ready(stage);
            behind = self.rows.after(row);
        }
    }

    fn choose(&mut self) -> Option<u32> {
        if self.forwarding == Forwarding::Partial {
            return self.doors.best();
        }
        if self.entered == self.stranded_inside && self.doors.is_anyone_outside() {
            return Some(0);
        }
        (self.is_mixed || self.doors.ready_inside() == self.entered).then(|| self.doors.best()).flatten()
    }

    fn fill(&mut self, stage: u32) {
        self.batch.stage = stage;
        self.batch.rows.clear();
        self.batch.runs.clear();
        while self.batch.rows.len() < self.batch_rows_max {
            let Some(first) = self.doors.take(stage) else { break };
            self.take_run(stage, first);
        }
        self.doors.end_batch(stage);
        if stage == 0 {
            self.is_mixed &= self.entered > 0;
            self.entered += self.batch.rows.len();
        }
    }

    fn take_run(&mut self, stage: u32, first: u32) {
        let mut next = Some(first);
        let mut begins = true;
        while let Some(row) = next {
            if self.batch.rows.len() == self.batch_rows_max {
                self.rows.row_mut(row).place = Place::First;
                return self.doors.put_back(stage, row);
            }
            self.rows.row_mut(row).place = Place::Computing;
            self.doors.handle_gone(stage);
            let at = self.batch.rows.len() as u32;
            self.batch.rows.push(RowId(row));
            let taken = self.rows.row(row);
            if stage == 0 && self.rows.is_stranded(taken.sequence) {
                self.stranded_inside += 1;
            }
            if begins {
                let (sequence, start) = (taken.sequence, taken.position);
                self.batch.runs.push(BatchRun { sequence, start, rows: at..at, samples: false });
            }
            let run = self.batch.runs.last_mut().expect("a run was begun");
            run.rows.end = at + 1;
            run.samples = taken.samples;
            begins = taken.samples; // So that at most the last row of a run is sampled.
            let after = self.rows.after(row);
            next = after
                .filter(|&row| self.rows.row(row).stage == stage)
                .filter(|&row| self.rows.row(row).place == Place::Following);
        }
    }

    fn remove(&mut self, row: u32) {
        let of = self.rows.row(row);
        let (sequence, inside) = (of.sequence, usize::from(of.is_inside()));
        self.entered -= inside;
        if self.rows.is_stranded(sequence) {
            self.stranded -= 1;
            self.stranded_inside -= inside;
        }
        self.rows_passed += u64::from(!self.rows.is_leaving(row));
        if self.rows.remove(row) {
            self.left.push_back(sequence);
        }
    }
}
