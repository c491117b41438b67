//! Rows of one dispatch for one actor, on their way through the node.
//!
//! Rows are not copied on the way: a group names rows of the frame that brought them, and the frame is
//! released, its room granted to the coordinator again, with the last of its groups. Whatever happens to a group,
//! it is answered exactly once: who drops it unanswered has refused it.

use std::sync::Arc;
use std::time::Instant;

use model::kernel::{RowType, RowsRef};
use transport::Frame;
use transport::buffer::view;
use transport::wire::groups::{self, Reason};

use crate::returns::ReturnPath;

/// A dispatch frame that has been checked.
#[derive(Debug)]
pub struct Dispatched {
    /// The frame.
    pub frame: Frame,
    /// Where its returns go.
    pub path: Arc<ReturnPath>,
    /// When it came.
    pub arrived: Instant,
    /// When nobody waits for it any more.
    pub deadline: Instant,
}

impl Dispatched {
    /// All rows of the frame.
    fn rows(&self) -> RowsRef<'_> {
        let bytes = &self.frame.payload[self.frame.header.table_bytes as usize..];
        let stride = self.path.shape.columns as usize;
        // Payloads and tables are multiples of 64 bytes, and elements were checked with the header.
        match self.path.shape.row {
            RowType::Bf16 => RowsRef::Bf16 { data: view::as_u16(bytes).expect("rows are aligned"), stride },
            RowType::F32 => RowsRef::F32 { data: view::as_f32(bytes).expect("rows are aligned"), stride },
        }
    }
}

/// Rows for one actor.
#[derive(Debug)]
pub struct Group {
    dispatched: Arc<Dispatched>,
    entry: groups::Group,
    /// Where in the payload its row indices begin.
    indices_at: usize,
    /// What is said if nothing else is.
    unanswered: Option<Reason>,
}

impl actix::Message for Group {
    type Result = ();
}

impl Group {
    /// The group `entry` of a frame, whose indices begin at byte `indices_at` of the payload.
    pub fn new(dispatched: &Arc<Dispatched>, entry: groups::Group, indices_at: usize) -> Self {
        let unanswered = Some(Reason::Busy);
        Self { dispatched: Arc::clone(dispatched), entry, indices_at, unanswered }
    }

    /// The frame that brought it.
    pub fn dispatched(&self) -> &Arc<Dispatched> {
        &self.dispatched
    }

    /// Where its return goes.
    pub fn path(&self) -> &Arc<ReturnPath> {
        &self.dispatched.path
    }

    /// What the dispatch says of it; the return says the same.
    pub fn entry(&self) -> groups::Group {
        self.entry
    }

    /// Layer of its expert.
    pub fn layer(&self) -> u32 {
        self.dispatched.frame.header.layer
    }

    /// How many rows it has.
    pub fn rows(&self) -> u32 {
        self.entry.rows
    }

    /// All rows of its frame, of which [`Group::indices`] are its own.
    pub fn frame_rows(&self) -> RowsRef<'_> {
        self.dispatched.rows()
    }

    /// Which rows of its frame.
    pub fn indices(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        let bytes = &self.dispatched.frame.payload[self.indices_at..][..4 * self.entry.rows as usize];
        bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Its return is about to be sent, or its link has ended.
    pub fn answered(mut self) {
        self.unanswered = None;
    }

    /// Sends it back without rows.
    pub fn refuse(mut self, reason: Reason) {
        self.unanswered = Some(reason);
    }

    /// From now on whoever drops it has fallen over it.
    pub fn begin(&mut self) {
        self.unanswered = Some(Reason::Failed);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(reason) = self.unanswered.take() {
            self.dispatched.path.refuse(self.layer(), &[(self.entry, reason)]);
        }
    }
}
