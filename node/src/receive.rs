//! Takes the dispatches of one link and hands their groups to actors.
//!
//! A task on the node's arbiter polls the data lane itself. A frame is checked once and as a whole; who breaks the
//! protocol loses the link and is told why. What cannot be computed here is refused at once, all of a frame together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::SendError as MailboxError;
use transport::Frame;
use transport::buffer::Pool;
use transport::peer::{Inlet, Peer};
use transport::wire::cluster::ActorId;
use transport::wire::control::{CloseReason, words};
use transport::wire::groups::{DispatchGroups, ENTRY_BYTES, INDEX_BYTES, Reason};
use transport::wire::{Element, Kind};

use crate::batcher::LinkId;
use crate::device::Compute;
use crate::directory::Directory;
use crate::emulation::wire::{Arrivals, Wire};
use crate::group::{Dispatched, Group};
use crate::returns::{ReturnPath, RowShape, element};

/// Frames that are read in a row while the devices compute.
const IN_A_ROW_MAX: u32 = 16;

/// What the receivers of a node's links have in common.
pub(crate) struct Floor {
    /// The actors.
    pub(crate) directory: Directory,
    /// What rows of the model are, once it is known.
    pub(crate) shape: Cell<Option<RowShape>>,
    /// Links whose coordinators have said what the model is, and how it is cut: nobody else is served.
    pub(crate) joined: RefCell<BTreeSet<LinkId>>,
    /// No new work is taken.
    pub(crate) is_draining: Cell<bool>,
    /// Where returns are written.
    pub(crate) buffers: Pool,
    /// What computes.
    pub(crate) compute: Arc<Compute>,
    /// An emulated wire on every way in and out.
    pub(crate) wire: Option<Wire>,
}

/// The receiver of one link.
pub(crate) struct Receiver {
    floor: Rc<Floor>,
    link: LinkId,
    peer: Peer,
    path: RefCell<Option<Arc<ReturnPath>>>,
}

impl Receiver {
    pub(crate) fn new(floor: Rc<Floor>, link: LinkId, peer: Peer) -> Self {
        Self { floor, link, peer, path: RefCell::default() }
    }

    /// Until the link ends.
    pub(crate) async fn run(self, data: Inlet) {
        let mut data = Arrivals::new(data, self.floor.wire.as_ref());
        let mut in_a_row = 0;
        // How it ended is said elsewhere.
        while let Ok(Some(frame)) = data.receive().await {
            if let Err(why) = self.take(frame) {
                tracing::warn!(peer = ?self.peer, %why, "the coordinator broke the protocol");
                self.peer.close(CloseReason::Broken(words(why)));
            }
            in_a_row += 1;
            // Never wait when idle: the actors have their turn before the next frame is looked at.
            if in_a_row == IN_A_ROW_MAX || self.floor.compute.is_idle() {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// One dispatch. An error is a breach.
    fn take(&self, frame: Frame) -> Result<(), String> {
        let (arrived, header) = (Instant::now(), frame.header);
        if header.kind != Kind::Dispatch {
            return Err(format!("a {:?} frame, a node takes dispatches", header.kind));
        }
        let path = self.path(&frame)?;
        let (columns, wanted) = (path.shape.columns, element(path.shape.row));
        if header.element != wanted || header.columns != columns {
            return Err(format!(
                "rows of {} {:?} values, the model's have {columns} {wanted:?} values",
                header.columns, header.element
            ));
        }
        let deadline = arrived + Duration::from_micros(header.remaining_us.into());
        let dispatched = Arc::new(Dispatched { frame, path: Arc::clone(&path), arrived, deadline });
        let groups =
            DispatchGroups::read(&header, &dispatched.frame.payload).map_err(|why| why.to_string())?;
        let refuse_all = match (self.floor.is_draining.get(), self.floor.shape.get()) {
            (true, _) => Some(Reason::Draining),
            (false, None) => Some(Reason::NotHeld),
            // What it means may be another model's expert of the same name.
            (false, Some(_)) if !self.floor.joined.borrow().contains(&self.link) => Some(Reason::Busy),
            (false, Some(_)) => None,
        };
        let mut indices_at = groups.len() * ENTRY_BYTES;
        let mut refused = Vec::new();
        for (entry, _) in groups.iter() {
            let at = indices_at;
            indices_at += entry.rows as usize * INDEX_BYTES;
            let actor = ActorId {
                layer: header.layer,
                expert: entry.expert,
                replica: entry.replica,
                shard: entry.shard,
            };
            let reason = match (refuse_all, self.floor.directory.find(actor)) {
                (Some(reason), _) => reason,
                (None, None) => Reason::NotHeld,
                (None, Some(address)) => match address.try_send(Group::new(&dispatched, entry, at)) {
                    Ok(()) => continue,
                    // It is being started again, or has more to do than it may have: the group was not touched.
                    Err(MailboxError::Closed(group) | MailboxError::Full(group)) => {
                        group.answered();
                        Reason::Busy
                    }
                },
            };
            refused.push((entry, reason));
        }
        path.refuse(header.layer, &refused);
        Ok(())
    }

    /// The way back. Before the model is known nothing is held, but what is refused has the sender's shape.
    fn path(&self, frame: &Frame) -> Result<Arc<ReturnPath>, String> {
        let (floor, link) = (&self.floor, self.link);
        let new = |shape| {
            ReturnPath::new(link, shape, self.peer.clone(), floor.buffers.clone(), floor.wire.clone())
        };
        let mut path = self.path.borrow_mut();
        let Some(shape) = self.floor.shape.get() else {
            let row = match frame.header.element {
                Element::Bf16 => model::kernel::RowType::Bf16,
                Element::F32 => model::kernel::RowType::F32,
                Element::Bytes => return Err("a dispatch of plain bytes".to_owned()),
            };
            return Ok(new(RowShape::new(row, frame.header.columns, 1)));
        };
        if path.as_ref().is_none_or(|path| path.shape != shape) {
            *path = Some(new(shape));
        }
        Ok(Arc::clone(path.as_ref().expect("just made")))
    }
}
