//! What travels between two processes.
//!
//! Pure. Frames are charged as those of the wire are, by the bytes that their table and rows would take, and hold the room of
//! their receiver until they are dropped.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use transport::wire::charge;
use transport::wire::control::Control;
use transport::wire::groups::{Group, dispatch_table_bytes, return_table_bytes};

use crate::network::EndId;

/// What a row takes on the wire, either way.
pub(crate) const ROW_BYTES: u64 = 256;

/// One thing on one lane.
#[derive(Debug)]
pub(crate) enum Moving {
    Control(Box<Control>),
    Dispatch(Dispatch),
    Return(Return),
    /// A piece of an expert's tensors.
    Weights {
        ask: u64,
        bytes: u64,
        is_last: bool,
    },
    /// The lane ends in order.
    Finish,
    /// The lane is cut.
    Cut,
}

/// Groups on their way to a node.
#[derive(Debug, Clone)]
pub(crate) struct Dispatch {
    pub(crate) layer: u32,
    /// Each with its part of `indices`.
    pub(crate) groups: Vec<(Group, Range<usize>)>,
    pub(crate) rows: Vec<u64>,
    /// Of rows, group after group.
    pub(crate) indices: Vec<u32>,
    pub(crate) remaining_us: u64,
}

/// Groups on their way back.
#[derive(Debug, Clone)]
pub(crate) struct Return {
    /// Each with its part of `rows`, which is empty where it was refused.
    pub(crate) groups: Vec<(Group, Range<usize>)>,
    pub(crate) rows: Vec<u64>,
}

impl Moving {
    /// What a frame costs. Control messages are counted by the link.
    pub(crate) fn charge(&self) -> u64 {
        match self {
            Self::Dispatch(frame) => {
                let table = dispatch_table_bytes(frame.groups.len(), frame.indices.len()) as u64;
                charge(table + frame.rows.len() as u64 * ROW_BYTES)
            }
            Self::Return(frame) => charge(frame.payload_bytes()),
            Self::Weights { bytes, .. } => charge(*bytes),
            Self::Control(_) | Self::Finish | Self::Cut => 0,
        }
    }
}

impl Return {
    pub(crate) fn payload_bytes(&self) -> u64 {
        return_table_bytes(self.groups.len()) as u64 + self.rows.len() as u64 * ROW_BYTES
    }
}

/// Room of a receiver, until it is dropped.
#[derive(Debug)]
pub(crate) struct Credit {
    pub(crate) charge: u64,
    meter: Rc<Cell<u64>>,
    end: EndId,
    dirty: Rc<RefCell<Vec<EndId>>>,
}

impl Credit {
    pub(crate) fn new(
        charge: u64,
        meter: &Rc<Cell<u64>>,
        end: EndId,
        dirty: &Rc<RefCell<Vec<EndId>>>,
    ) -> Self {
        Self { charge, meter: Rc::clone(meter), end, dirty: Rc::clone(dirty) }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.meter.set(self.meter.get() + self.charge);
        self.dirty.borrow_mut().push(self.end);
    }
}
