//! What the exchange is told and what it tells: settings, frames to be sent, outcomes.
//!
//! Pure data.

use std::ops::Range;
use std::time::Duration;

use transport::wire::cluster::ActorId;
use transport::wire::groups::Reason;

use crate::data::ids::{LinkId, RowId, SlotId};

/// Where a returned row lands that nobody needs any more: it is not copied.
pub const NOWHERE: SlotId = SlotId(u32::MAX);

/// The bounds of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeSettings {
    /// Rows that may be under way. All tables are made for so many.
    pub rows_max: u32,
    /// Most experts that a row chooses.
    pub top_k_max: u32,
    /// Shards of every expert.
    pub shards: u32,
    /// Bytes of a row on its way out.
    pub row_bytes: u64,
    /// Bytes of a row on its way back: shards answer in f32, so it may be longer.
    pub return_row_bytes: u64,
    /// How often a slot is sent at most to somebody who serves it. Raising it lets rows outlive more deaths, and a broken cluster
    /// be asked longer.
    pub attempts_max: u8,
    /// A row that has felled so many actors is not sent again.
    pub felled_max: u8,
    /// After this a dispatch is overdue: its rows may be sent elsewhere, and its actor gets none until it is back.
    /// It must exceed what a full queue of a slow expert takes, or work is done twice where there is too much already.
    pub dispatch_time_max: Duration,
    /// First pause of an actor that was busy or late; each next is twice as long.
    pub backoff_min: Duration,
    /// Longest pause of an actor that was busy or late, and the pause of one that said that it does not serve.
    pub backoff_max: Duration,
}

impl ExchangeSettings {
    /// The defaults, for rows that are as long on their way back as on their way out.
    pub fn new(rows_max: u32, top_k_max: u32, shards: u32, row_bytes: u64) -> Self {
        Self {
            rows_max,
            top_k_max,
            shards,
            row_bytes,
            return_row_bytes: row_bytes,
            attempts_max: 8,
            felled_max: 2,
            dispatch_time_max: Duration::from_secs(30),
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(250),
        }
    }
}

/// What may be under way at once on a link, and its longest frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkRoom {
    /// Of the node's receive pool, counted as `transport::wire::charge` does, from sending until all groups of a frame
    /// are back. Credits are granted in quarters of a window: give three quarters, or the link may have to wait.
    pub out_bytes: u64,
    /// Of our own receive pool: header, table and rows of every group as if it came back alone. Pools keep frames
    /// in powers of two: give half of what the window has, or a node may have to wait before it returns.
    pub back_bytes: u64,
    /// Dispatches, one for each group.
    pub dispatches: u32,
    /// Longest payload, of a frame either way: a group has no more rows than can return in one.
    pub payload_bytes: u64,
}

/// A frame to be sent at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub link: LinkId,
    /// All its groups are of this layer.
    pub layer: u32,
    /// Their dispatch ids count up by one: the first is the header's.
    pub groups: Vec<OutgoingGroup>,
    /// The rows of the frame, each once.
    pub rows: Vec<RowId>,
    /// The rows of each group, as numbers of rows of the frame: ascending within a group.
    pub indices: Vec<u32>,
    /// What is left of the longest deadline in it.
    pub remaining: Duration,
}

/// The rows of a frame for one actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingGroup {
    /// For whom.
    pub actor: ActorId,
    /// Names it: it comes back with its return or refusal.
    pub dispatch: u64,
    /// Into the indices of the frame.
    pub indices: Range<u32>,
    /// How often the row was sent to this expert, with this, that was sent there most often.
    pub attempts: u8,
}

/// What became of a return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returned<'a> {
    /// Where each of its rows lands, in their order; [`NOWHERE`] if another attempt was faster, or nobody wants it now.
    Taken(&'a [SlotId]),
    /// No such dispatch is open on this link: late, twice or foreign. It was counted.
    Dropped,
    /// The node broke the protocol: close its link. The dispatch stays open until the link has ended.
    Breach {
        /// Whose rows.
        actor: ActorId,
        /// As many as were sent.
        expected: u32,
    },
}

impl<'a> Returned<'a> {
    /// Where its rows land, if it was taken.
    pub fn taken(self) -> Option<&'a [SlotId]> {
        match self {
            Self::Taken(slots) => Some(slots),
            Self::Dropped | Self::Breach { .. } => None,
        }
    }
}

/// Why a row cannot become whole. Its request ends; the row is handed back by [`super::Exchange::poll_whole`] like
/// every other, as soon as none of its dispatches is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowFailed {
    /// It felled one actor after the other, alone.
    #[error(
        "row {row} felled {felled} actors of expert {expert} of layer {layer}, alone, and is not sent again"
    )]
    Poison {
        /// Of the expert.
        layer: u32,
        /// That fell.
        expert: u32,
        /// The row.
        row: u32,
        /// How many.
        felled: u8,
    },
    /// Nobody held an expert that it needs until its deadline.
    #[error("no node held expert {expert} of layer {layer} until the deadline")]
    NoHolder {
        /// Of the expert.
        layer: u32,
        /// That is missing.
        expert: u32,
    },
    /// Its deadline passed.
    #[error("expert {expert} of layer {layer} had not answered by the deadline")]
    TooLate {
        /// Of the expert.
        layer: u32,
        /// That had not answered.
        expert: u32,
    },
    /// It was sent as often as allowed.
    #[error("expert {expert} of layer {layer} was asked {attempts} times; last it was {last}")]
    Attempts {
        /// Of the expert.
        layer: u32,
        /// That was asked.
        expert: u32,
        /// How often.
        attempts: u8,
        /// What came of the last attempt.
        last: AttemptEnd,
    },
}

/// How an attempt ended that did not fill its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The node said why.
    Refused(Reason),
    /// The link ended.
    LinkEnded,
    /// Silence.
    Overdue,
}

impl AttemptEnd {
    /// The node is no holder, or is none any more. Nothing was tried.
    pub(super) fn is_not_serving(self) -> bool {
        matches!(self, Self::Refused(Reason::NotHeld | Reason::Stale | Reason::Draining))
    }
}

impl std::fmt::Display for AttemptEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(Reason::NotHeld) => f.write_str("not held"),
            Self::Refused(Reason::Stale) => f.write_str("refused as stale"),
            Self::Refused(Reason::Failed) => f.write_str("an actor that fell"),
            Self::Refused(Reason::Busy) => f.write_str("busy"),
            Self::Refused(Reason::Draining) => f.write_str("a draining node"),
            Self::Refused(Reason::Late) => f.write_str("too late for the node"),
            Self::LinkEnded => f.write_str("a link that ended"),
            Self::Overdue => f.write_str("silence"),
        }
    }
}
