//! The way back of rows: returns over the link that their dispatch came over.
//!
//! A shell over one [`Peer`]. It never waits: the coordinator keeps room for every return before it sends a
//! dispatch, so a return goes at once, from whatever thread made it; should there be none after all, a task
//! waits for it and nobody else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::kernel::RowType;
use tokio::runtime::Handle;
use transport::Frame;
use transport::buffer::{Buffer, Pool};
use transport::peer::{Peer, SendError};
use transport::wire::control::{CloseReason, words};
use transport::wire::groups::{self, Group, Reason};
use transport::wire::{Element, Header, Kind};

use crate::batcher::LinkId;
use crate::emulation::wire::Wire;

/// What rows of the model look like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Their values' type as they come.
    pub row: RowType,
    /// And as they return: shards' partial outputs are f32, because they are added before anything is rounded.
    pub back: RowType,
    /// Values of a row.
    pub columns: u32,
}

impl RowShape {
    /// Rows of a model whose experts are cut into so many shards.
    pub fn new(row: RowType, columns: u32, shards: usize) -> Self {
        let back = if shards > 1 { RowType::F32 } else { row };
        Self { row, back, columns }
    }

    /// Bytes of a row on its way back.
    pub fn back_bytes(self) -> usize {
        self.columns as usize * self.back.bytes()
    }
}

/// A row type as headers say it.
pub fn element(row: RowType) -> Element {
    match row {
        RowType::Bf16 => Element::Bf16,
        RowType::F32 => Element::F32,
    }
}

/// The way back over one link.
#[derive(Debug)]
pub struct ReturnPath {
    /// Which link.
    pub link: LinkId,
    /// What its rows are.
    pub shape: RowShape,
    peer: Peer,
    pool: Pool,
    /// Where a task waits for room, should there be none.
    waiting: Handle,
    was_short: AtomicBool,
    /// An emulated wire.
    wire: Option<Wire>,
}

impl ReturnPath {
    /// The way back to `peer`, in buffers of `pool`. Must be called inside a runtime that outlives the link.
    pub(crate) fn new(
        link: LinkId,
        shape: RowShape,
        peer: Peer,
        pool: Pool,
        wire: Option<Wire>,
    ) -> Arc<Self> {
        let was_short = AtomicBool::new(false);
        Arc::new(Self { link, shape, peer, pool, waiting: Handle::current(), was_short, wire })
    }

    /// Longest payload that the other end takes.
    pub fn payload_bytes_max(&self) -> usize {
        usize::try_from(self.peer.hello().limits.payload_bytes_max.data).unwrap_or(usize::MAX)
    }

    /// A buffer for the return of so many groups and rows; `None` where the pool has no more.
    pub fn buffer(&self, groups: usize, rows: usize) -> Option<Buffer> {
        self.pool.take(groups::return_table_bytes(groups) + rows * self.shape.back_bytes())
    }

    /// Sends what is written in `buffer`: room for a table, and then the rows of `groups` one after the other.
    pub fn send(
        self: &Arc<Self>,
        layer: u32,
        mut buffer: Buffer,
        groups: impl ExactSizeIterator<Item = Group> + Clone,
    ) {
        let mut header = Header {
            kind: Kind::Return,
            element: element(self.shape.back),
            dispatch: groups.clone().map(|group| group.dispatch).min().expect("a return has a group"),
            layer,
            rows: groups.clone().map(|group| group.rows).sum(),
            columns: self.shape.columns,
            table_bytes: 0,
            groups: 0,
            remaining_us: 0,
            payload_crc: 0,
        };
        groups::write_return(&mut buffer, &mut header, groups).expect("the groups of a return are in order");
        let frame = Frame::new(header, buffer);
        match &self.wire {
            None => self.transmit(frame),
            Some(wire) => {
                let path = Arc::clone(self);
                wire.across(move || path.transmit(frame));
            }
        }
    }

    fn transmit(self: &Arc<Self>, frame: Frame) {
        match self.peer.try_send(frame) {
            Ok(()) => {}
            Err(SendError::NoCredit { frame, .. }) => {
                if !self.was_short.swap(true, Ordering::Relaxed) {
                    tracing::warn!(peer = ?self.peer, "a return has to wait: the coordinator kept no room");
                }
                let path = Arc::clone(self);
                // Whoever ends the link has told the coordinator, so nothing more is to be said of it here.
                self.waiting.spawn(async move { drop(path.peer.send(frame).await) });
            }
            Err(SendError::Ended { .. }) => {}
            Err(why) => tracing::warn!(peer = ?self.peer, %why, "a return was not sent"),
        }
    }

    /// Sends groups back without rows. `groups` name them as their dispatch did.
    pub fn refuse(self: &Arc<Self>, layer: u32, groups: &[(Group, Reason)]) {
        if groups.is_empty() || self.peer.ended().is_some() {
            return;
        }
        // Dispatch ids of one return lie within 2^32 of one another; those of a frame do.
        let Some(buffer) = self.buffer(groups.len(), 0) else {
            // Without a table nobody can be answered, and whoever is not answered waits for ever.
            self.close("the node has no memory left for returns");
            return;
        };
        let refused = groups.iter().map(|&(group, reason)| Group { rows: 0, refused: Some(reason), ..group });
        self.send(layer, buffer, refused);
    }

    /// Ends the link because of what came over it.
    pub fn close(&self, why: impl std::fmt::Display) {
        self.peer.close(CloseReason::Broken(words(why)));
    }
}
