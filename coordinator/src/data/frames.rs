//! From what the exchange wants sent to a frame.
//!
//! Rows are copied once, from where the trunk left them into the frame of their destination: a row that goes to
//! several nodes travels in several frames, and it must stay here for a second attempt anyway.

use transport::Frame;
use transport::buffer::{Payload, Pool};
use transport::wire::groups::{Group, dispatch_table_bytes, write_dispatch};
use transport::wire::{Element, Header, Kind};

use super::exchange::Outgoing;
use super::ids::RowId;

/// Where a row lies as it enters the experts.
#[derive(Debug, Clone)]
pub struct Source {
    /// The rows of its batch, one after the other.
    pub rows: Payload,
    /// Which of them.
    pub index: u32,
}

/// What rows are made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Of a value on its way out.
    pub element: Element,
    /// Of a value on its way back: shards' partial outputs are f32, because they are added before anything is rounded.
    pub back: Element,
    /// Values of a row.
    pub columns: u32,
}

impl Shape {
    /// Bytes of a row on its way out.
    pub fn row_bytes(self) -> usize {
        self.columns as usize * self.element.bytes() as usize
    }

    /// Bytes of a row on its way back.
    pub fn back_row_bytes(self) -> usize {
        self.columns as usize * self.back.bytes() as usize
    }
}

/// The frame of a dispatch. `None`: the pool has no room.
pub fn dispatch_frame(
    pool: &Pool,
    shape: Shape,
    outgoing: &Outgoing,
    sources: &[Option<Source>],
) -> Option<Frame> {
    let row_bytes = shape.row_bytes();
    let table_bytes = dispatch_table_bytes(outgoing.groups.len(), outgoing.indices.len());
    let mut buffer = pool.take(table_bytes + outgoing.rows.len() * row_bytes)?;
    let mut header = Header {
        kind: Kind::Dispatch,
        element: shape.element,
        dispatch: outgoing.groups.iter().map(|group| group.dispatch).min()?,
        layer: outgoing.layer,
        rows: outgoing.rows.len() as u32,
        columns: shape.columns,
        table_bytes: 0,
        groups: 0,
        remaining_us: u32::try_from(outgoing.remaining.as_micros()).unwrap_or(u32::MAX),
        payload_crc: 0,
    };
    let groups = outgoing.groups.iter().map(|group| {
        let indices = &outgoing.indices[group.indices.start as usize..group.indices.end as usize];
        let entry = Group {
            expert: group.actor.expert,
            rows: indices.len() as u32,
            dispatch: group.dispatch,
            replica: group.actor.replica,
            shard: group.actor.shard,
            refused: None,
        };
        (entry, indices)
    });
    write_dispatch(&mut buffer, &mut header, groups).expect("the exchange makes groups that can be written");
    for (to, RowId(row)) in buffer[table_bytes..].chunks_exact_mut(row_bytes).zip(&outgoing.rows) {
        let source = sources[*row as usize].as_ref().expect("a row that is sent has left the trunk");
        to.copy_from_slice(&source.rows[source.index as usize * row_bytes..][..row_bytes]);
    }
    Some(Frame::new(header, buffer))
}
