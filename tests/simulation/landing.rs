//! Rows on their way out and back, as the data plane keeps them.
//!
//! Pure. As in the product what returned stays in the frame that brought it, for at most half of a link's window.

use std::cell::Cell;
use std::rc::Rc;

use coordinator::data::exchange::{Outgoing, OutgoingGroup};
use coordinator::data::ids::{RowId, SlotId};
use transport::wire::groups::Group;

use crate::frame::{Credit, Dispatch};
use crate::model::Model;

/// A row as it goes out, and what it chose.
pub(crate) type Source = (u64, Vec<u32>);

/// A row that returned. It may hold the room of the frame that brought it.
#[derive(Debug, Clone)]
pub(crate) struct Landed {
    pub(crate) value: u64,
    pub(crate) _kept: Option<Rc<Kept>>,
}

/// What has come of a slot.
#[derive(Debug, Clone, Default)]
pub(crate) enum Slot {
    #[default]
    Empty,
    Landed(Landed),
    /// The row goes on without this expert.
    LeftOut,
}

#[derive(Debug)]
pub(crate) struct Kept {
    credit: Credit,
    kept: Rc<Cell<u64>>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kept.set(self.kept.get() - self.credit.charge);
    }
}

/// The room of a link's window that landed rows have.
#[derive(Debug)]
pub(crate) struct Keep {
    kept: Rc<Cell<u64>>,
    max: u64,
}

impl Keep {
    pub(crate) fn new(max: u64) -> Self {
        Self { kept: Rc::default(), max }
    }

    /// Keeps a frame's room; nothing, where as much is kept as may be, and its rows are copied.
    pub(crate) fn take(&self, credit: Credit) -> Option<Rc<Kept>> {
        if self.kept.get() + credit.charge > self.max {
            return None;
        }
        self.kept.set(self.kept.get() + credit.charge);
        Some(Rc::new(Kept { credit, kept: Rc::clone(&self.kept) }))
    }
}

/// What landed for a row is not needed.
pub(crate) fn clear(slots: &mut [Slot], row: RowId, slots_per_row: usize) {
    let first = row.0 as usize * slots_per_row;
    slots[first..first + slots_per_row].fill(Slot::Empty);
}

/// The frame of what the exchange wants sent.
pub(crate) fn dispatch(outgoing: &Outgoing, sources: &[Option<Source>]) -> Dispatch {
    let value =
        |row: &RowId| sources[row.0 as usize].as_ref().expect("a row that is sent has left the trunk").0;
    let group = |group: &OutgoingGroup| {
        let entry = Group {
            expert: group.actor.expert,
            rows: group.indices.len() as u32,
            dispatch: group.dispatch,
            replica: group.actor.replica,
            shard: group.actor.shard,
            refused: None,
        };
        (entry, group.indices.start as usize..group.indices.end as usize)
    };
    Dispatch {
        layer: outgoing.layer,
        groups: outgoing.groups.iter().map(group).collect(),
        rows: outgoing.rows.iter().map(value).collect(),
        indices: outgoing.indices.clone(),
        remaining_us: outgoing.remaining.as_micros() as u64,
    }
}

/// The slots that the rows of a dispatch are for.
pub(crate) fn aims(
    outgoing: &Outgoing,
    dispatch: u64,
    sources: &[Option<Source>],
    model: &Model,
) -> Vec<SlotId> {
    let group = outgoing.groups.iter().find(|group| group.dispatch == dispatch).expect("it is one of them");
    let indices = &outgoing.indices[group.indices.start as usize..group.indices.end as usize];
    let slot = |index: &u32| {
        let row = outgoing.rows[*index as usize].0;
        let chosen = &sources[row as usize].as_ref().expect("it has left the trunk").1;
        let rank = chosen.iter().position(|expert| *expert == group.actor.expert).expect("it was chosen");
        let first = row as usize * model.top_k_max() * model.shards;
        SlotId((first + rank * model.shards + usize::from(group.actor.shard)) as u32)
    };
    indices.iter().map(slot).collect()
}
