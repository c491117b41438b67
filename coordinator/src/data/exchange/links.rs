//! Links: how much may be under way on each, and who waits to send on it.
//!
//! Pure. On a link the actors that something waits for stand in lanes, one for each layer, because a frame is of one
//! layer; lanes take turns.

use transport::wire::groups::{dispatch_table_bytes, return_table_bytes};
use transport::wire::{HEADER_BYTES, charge};

use super::NONE;
use super::interface::{ExchangeSettings, LinkRoom};
use crate::data::ids::LinkId;
use crate::placement::NodeId;

/// The actors of one layer that may send on a link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    pub(super) first: u32,
    pub(super) last: u32,
    /// The next lane of the link.
    next: u32,
    is_listed: bool,
}

const NO_LANE: Lane = Lane { first: NONE, last: NONE, next: NONE, is_listed: false };

/// One session with one node. Its first cache line is what choosing a replica needs, the second the room.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Link {
    /// Credit of frames that one actor may have a part in: half of it, so that one that is slow leaves room for the
    /// others.
    held_max: u64,
    /// The least that a frame takes.
    out_min: u64,
    pub(super) id: LinkId,
    lane_first: u32,
    lane_last: u32,
    /// A frame of one row may be sent now.
    pub(super) has_room: bool,
    /// It may be sent on, until it has ended.
    pub(super) is_open: bool,
    /// It stands among the links that frames are made for.
    pub(super) is_active: bool,
    /// Its peer has been silent for longer than usual.
    pub(super) is_late: bool,
    lanes: Vec<Lane>,

    pub(super) room: LinkRoom,
    /// Rows of a group whose return is no longer than the longest payload.
    pub(super) group_rows_max: u64,
    pub(super) out_used: u64,
    pub(super) back_used: u64,
    back_min: u64,
    pub(super) open: u32,
    pub(super) node: NodeId,

    pub(super) bytes_out: u64,
    pub(super) bytes_back: u64,
    pub(super) frames: u64,
    /// Dispatches that came back, and what they took, in nanoseconds.
    pub(super) returned: u64,
    pub(super) service_ns_sum: u64,
    /// When the last of them did, in nanoseconds since the first dispatch of all.
    pub(super) heard: u64,
    /// Actors that were offered something alone since the link was last found full, and are not the only ones of their
    /// expert.
    pub(super) fresh: Vec<u32>,
    /// Counts links in the order in which they opened.
    pub(super) opened: u64,
}

/// What a group takes of `back_bytes` when it comes back alone.
pub(super) fn back_bytes(rows: u64, return_row_bytes: u64) -> u64 {
    (HEADER_BYTES + return_table_bytes(1)) as u64 + rows * return_row_bytes
}

/// The payload of a dispatch.
pub(super) fn payload_bytes(groups: usize, indices: usize, rows: usize, row_bytes: u64) -> u64 {
    dispatch_table_bytes(groups, indices) as u64 + rows as u64 * row_bytes
}

/// The longest payload that is charged no more than that: a power of two.
fn payload_within(charge: u64) -> u64 {
    charge.saturating_sub(HEADER_BYTES as u64).checked_ilog2().map_or(0, |log| 1 << log)
}

impl Link {
    /// None, where not even one row fits through.
    pub(super) fn new(
        id: LinkId,
        node: NodeId,
        room: LinkRoom,
        opened: u64,
        settings: &ExchangeSettings,
    ) -> Option<Self> {
        let payload_min = payload_bytes(1, 1, 1, settings.row_bytes);
        let out_min = charge(payload_min);
        let back_min = back_bytes(1, settings.return_row_bytes);
        let back_rows_bytes = room.payload_bytes.saturating_sub(return_table_bytes(1) as u64);
        let group_rows_max = back_rows_bytes / settings.return_row_bytes;
        let carries_a_row = room.out_bytes >= out_min
            && room.back_bytes >= back_min
            && group_rows_max > 0
            && room.payload_bytes >= payload_min
            && room.dispatches > 0;
        carries_a_row.then(|| Self {
            held_max: (room.out_bytes / 2).max(out_min),
            out_min,
            id,
            lane_first: NONE,
            lane_last: NONE,
            has_room: true,
            is_open: true,
            is_active: false,
            is_late: false,
            lanes: Vec::new(),
            room,
            group_rows_max,
            out_used: 0,
            back_used: 0,
            back_min,
            open: 0,
            node,
            bytes_out: 0,
            bytes_back: 0,
            frames: 0,
            returned: 0,
            service_ns_sum: 0,
            heard: 0,
            fresh: Vec::new(),
            opened,
        })
    }

    /// Takes the room of a frame and its groups.
    pub(super) fn take_room(&mut self, out: u64, back: u64, dispatches: u32) {
        self.out_used += out;
        self.back_used += back;
        self.open += dispatches;
        self.see_room();
    }

    /// Gives back the room of a dispatch, and of its frame if it was the last one.
    pub(super) fn give_room(&mut self, out: u64, back: u64) {
        self.out_used -= out;
        self.back_used -= back;
        self.open -= 1;
        self.see_room();
    }

    fn see_room(&mut self) {
        self.has_room = self.room.back_bytes - self.back_used >= self.back_min
            && self.room.out_bytes - self.out_used >= self.out_min
            && self.open < self.room.dispatches;
    }

    /// The longest payload that may be sent now. There is room.
    pub(super) fn payload_now(&self) -> u64 {
        self.room.payload_bytes.min(payload_within(self.room.out_bytes - self.out_used))
    }

    /// An actor that holds so much may have a part in one more frame.
    pub(super) fn leaves_room(&self, held: u64) -> bool {
        held + self.out_min <= self.held_max
    }

    /// The longest payload that an actor that holds so much may have a part in.
    pub(super) fn payload_beside(&self, held: u64) -> u64 {
        payload_within(self.held_max.saturating_sub(held))
    }

    /// The lane of a layer.
    pub(super) fn lane(&self, layer: u32) -> Lane {
        self.lanes.get(layer as usize).copied().unwrap_or(NO_LANE)
    }

    /// The same, to be changed; it takes its turn from now on.
    pub(super) fn lane_listed(&mut self, layer: u32) -> &mut Lane {
        if self.lanes.len() <= layer as usize {
            self.lanes.resize(layer as usize + 1, NO_LANE);
        }
        if !self.lanes[layer as usize].is_listed {
            self.append_lane(layer);
        }
        &mut self.lanes[layer as usize]
    }

    fn append_lane(&mut self, layer: u32) {
        let last = std::mem::replace(&mut self.lane_last, layer);
        match last {
            NONE => self.lane_first = layer,
            _ => self.lanes[last as usize].next = layer,
        }
        let lane = &mut self.lanes[layer as usize];
        (lane.next, lane.is_listed) = (NONE, true);
    }

    /// The layer whose turn it is.
    pub(super) fn lane_first(&mut self) -> Option<u32> {
        while self.lane_first != NONE {
            let layer = self.lane_first;
            if self.lanes[layer as usize].first != NONE {
                return Some(layer);
            }
            self.unlist_first();
        }
        None
    }

    fn unlist_first(&mut self) -> u32 {
        let layer = self.lane_first;
        let lane = &mut self.lanes[layer as usize];
        lane.is_listed = false;
        self.lane_first = lane.next;
        if self.lane_first == NONE {
            self.lane_last = NONE;
        }
        layer
    }

    /// The lane whose turn it was goes behind all others.
    pub(super) fn rotate_lanes(&mut self) {
        let layer = self.unlist_first();
        if self.lanes[layer as usize].first != NONE {
            self.append_lane(layer);
        }
    }
}
