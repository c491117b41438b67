//! The row table, and in what order the rows of a sequence come.
//!
//! Pure. A row attends after those before it, so of two rows of a sequence the later one is never a stage ahead. Therefore
//! a row is ready at a door when just the one before it has been attended there, whatever the sequence's length: readiness
//! needs neighbours and no table of sequences and stages.

use super::lines::{Line, Links};
use crate::data::ids::{RowId, SequenceId};

/// Where a row is, at its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: the place in the table is free.
    Free,
    /// At the door, whole, behind a row that is not there yet.
    Parked,
    /// At the door, ready, as the first of a run: it stands in the door's line.
    First,
    /// At the door, ready together with the row before it.
    Following,
    /// In the trunk's batch.
    Computing,
    /// Out at the experts.
    Out,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) sequence: SequenceId,
    pub(super) position: u32,
    pub(super) stage: u32,
    pub(super) place: Place,
    pub(super) samples: bool,
    /// The head has something to do for it.
    pub(super) has_head: bool,
    /// It waits for an expert that nobody holds.
    pub(super) is_stranded: bool,
}

impl Row {
    /// It has left the first door.
    pub(super) fn is_inside(&self) -> bool {
        self.stage > 0 || matches!(self.place, Place::Computing | Place::Out)
    }

    /// Whether it waits at the door of `stage` to be computed.
    pub(super) fn is_ready_at(&self, stage: u32) -> bool {
        self.stage == stage && matches!(self.place, Place::First | Place::Following)
    }

    fn is_attended_at(&self, stage: u32) -> bool {
        self.stage > stage || (self.stage == stage && matches!(self.place, Place::Computing | Place::Out))
    }
}

/// One sequence.
#[derive(Debug, Clone, Copy, Default)]
struct Sequence {
    rows: Line,
    next_position: u32,
    is_known: bool,
    is_leaving: bool,
    /// Rows of it that are stranded; as it began to leave, if it leaves.
    stranded: u32,
}

/// All rows and their sequences.
#[derive(Debug)]
pub(super) struct Rows {
    rows: Vec<Row>,
    free: Vec<u32>,
    sequences: Vec<Sequence>,
    /// Rows of a sequence, by position.
    links: Links,
}

impl Rows {
    /// An empty table.
    pub(super) fn new(rows_max: u32, sequences_max: u32) -> Self {
        let nothing = Row {
            sequence: SequenceId(0),
            position: 0,
            stage: 0,
            place: Place::Free,
            samples: false,
            has_head: false,
            is_stranded: false,
        };
        Self {
            rows: vec![nothing; rows_max as usize],
            free: (0..rows_max).rev().collect(),
            sequences: vec![Sequence::default(); sequences_max as usize],
            links: Links::new(rows_max as usize),
        }
    }

    /// Places that are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A row in use.
    pub(super) fn row(&self, row: u32) -> &Row {
        &self.rows[row as usize]
    }

    /// A row in use, to be moved.
    pub(super) fn row_mut(&mut self, row: u32) -> &mut Row {
        &mut self.rows[row as usize]
    }

    /// A sequence goes on, or begins, at `start`.
    pub(super) fn begin_chunk(&mut self, sequence: SequenceId, start: u32) {
        let known = &mut self.sequences[sequence.0 as usize];
        assert!(!known.is_leaving, "{sequence} gets no more rows once it leaves");
        if !known.is_known {
            *known = Sequence { is_known: true, next_position: start, ..Sequence::default() };
        }
        assert_eq!(start, known.next_position, "{sequence} goes on where its last chunk ended");
    }

    /// The next row of a sequence, parked at the first door.
    pub(super) fn add(&mut self, sequence: SequenceId, samples: bool, has_head: bool) -> u32 {
        let row = self.free.pop().expect("rows are admitted only while there is room for them");
        let known = &mut self.sequences[sequence.0 as usize];
        let position = known.next_position;
        known.next_position += 1;
        self.links.push_back(&mut known.rows, row);
        self.rows[row as usize] =
            Row { sequence, position, stage: 0, place: Place::Parked, samples, has_head, is_stranded: false };
        row
    }

    /// Takes a row out of the table. True if its sequence was leaving and this was the last of it.
    pub(super) fn remove(&mut self, row: u32) -> bool {
        let sequence = self.rows[row as usize].sequence;
        self.rows[row as usize].place = Place::Free;
        self.links.remove(&mut self.sequences[sequence.0 as usize].rows, row);
        self.free.push(row);
        self.forget(sequence)
    }

    /// The sequence leaves. False if it is not known, or leaves already.
    pub(super) fn begin_leaving(&mut self, sequence: SequenceId) -> bool {
        match self.sequences.get_mut(sequence.0 as usize) {
            Some(known) if known.is_known && !known.is_leaving => {
                known.is_leaving = true;
                true
            }
            _ => false,
        }
    }

    /// Forgets a sequence that leaves and has no row any more; its place may be used for another.
    pub(super) fn forget(&mut self, sequence: SequenceId) -> bool {
        let known = &mut self.sequences[sequence.0 as usize];
        let has_left = known.is_leaving && known.rows.is_empty();
        if has_left {
            *known = Sequence::default();
        }
        has_left
    }

    /// Whether the sequence of this row leaves.
    pub(super) fn is_leaving(&self, row: u32) -> bool {
        self.sequences[self.row(row).sequence.0 as usize].is_leaving
    }

    /// Whether a sequence has rows that are stranded.
    pub(super) fn is_stranded(&self, sequence: SequenceId) -> bool {
        self.sequences[sequence.0 as usize].stranded > 0
    }

    /// A row is stranded, or is so no more. True if with it its sequence is, which does not leave.
    pub(super) fn set_stranded(&mut self, row: u32, is_stranded: bool) -> bool {
        let row = &mut self.rows[row as usize];
        let sequence = &mut self.sequences[row.sequence.0 as usize];
        if sequence.is_leaving || std::mem::replace(&mut row.is_stranded, is_stranded) == is_stranded {
            return false;
        }
        let before = sequence.stranded;
        sequence.stranded = if is_stranded { before + 1 } else { before - 1 };
        (before == 0) != (sequence.stranded == 0)
    }

    /// The rows of a sequence, from the last to the first.
    pub(super) fn of(&self, sequence: SequenceId) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.last(sequence), |&row| self.before(row))
    }

    /// The sequence's first row.
    pub(super) fn first(&self, sequence: SequenceId) -> Option<u32> {
        self.sequences.get(sequence.0 as usize)?.rows.first()
    }

    /// The sequence's last row.
    pub(super) fn last(&self, sequence: SequenceId) -> Option<u32> {
        self.sequences.get(sequence.0 as usize)?.rows.last()
    }

    /// The row of the same sequence before this one.
    pub(super) fn before(&self, row: u32) -> Option<u32> {
        self.links.before(row)
    }

    /// The row of the same sequence after this one.
    pub(super) fn after(&self, row: u32) -> Option<u32> {
        self.links.after(row)
    }

    /// Where a row that is whole at its door stands there: alone, behind a ready one, or parked.
    pub(super) fn place_at_door(&self, row: u32) -> Place {
        let stage = self.row(row).stage;
        match self.before(row).map(|before| self.row(before)) {
            Some(before) if before.is_ready_at(stage) => Place::Following,
            Some(before) if !before.is_attended_at(stage) => Place::Parked,
            _ => Place::First,
        }
    }

    /// The rows of a sequence that stand at doors, from the last to the first.
    pub(super) fn at_doors(&self, sequence: SequenceId) -> impl Iterator<Item = RowId> + '_ {
        self.of(sequence)
            .filter(|&row| matches!(self.row(row).place, Place::First | Place::Following | Place::Parked))
            .map(RowId)
    }

    /// The rows of a sequence that are out, from the last to the first.
    pub(super) fn out(&self, sequence: SequenceId) -> impl Iterator<Item = RowId> + '_ {
        self.of(sequence).filter(|&row| self.row(row).place == Place::Out).map(RowId)
    }
}
