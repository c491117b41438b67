//! What a link asks for beside what it says.
//!
//! Pure.

use std::time::Duration;

use super::ended::Ended;
use crate::Lane;
use crate::wire::cluster::Cluster;

/// What whoever drives a link has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Dial the data and weights lanes, attach each, and tell `handle_attached`.
    DialLanes {
        /// To be shown in `Attach`.
        session: [u8; 16],
        /// Ports of the data and the weights lane, where they are not the one that was dialled.
        ports: [Option<u16>; 2],
    },
    /// Frames may be sent.
    Open,
    /// What was refused on that lane for want of credit, or of room for dispatches (data), can go now.
    Writable(Lane),
    /// The deadline of a dispatch passed without its return. A return that comes yet is handed on like any
    /// other.
    Expired {
        /// Its id.
        dispatch: u64,
    },
    /// The peer is silent for longer than its rhythm explains, or says that this end is. Nothing is lost yet.
    Late {
        /// For so long.
        silent: Duration,
    },
    /// The peer that was late is heard again, and hears.
    Awake,
    /// The peer wants to end in order: no new dispatches on this link.
    DrainAsked,
    /// Finish every lane in order, once what waits on it is sent, and tell `handle_flushed` of each.
    FinishLanes,
    /// A probe came back.
    Echo {
        /// Whose.
        id: u64,
        /// As it went.
        padding: Vec<u8>,
    },
    /// The peer asks for a certificate; answer with `handle_renewed`.
    Renew {
        /// PKCS #10, DER.
        request: Vec<u8>,
    },
    /// Here is the certificate that was asked for.
    Renewed {
        /// The certificate and what it stands on, DER.
        chain: Vec<Vec<u8>>,
    },
    /// There is none.
    NotRenewed {
        /// In the peer's words.
        why: String,
    },
    /// The peer says something of the cluster. Its room is given back with `handle_released` once it was read.
    Told {
        /// What.
        message: Cluster,
        /// What it cost on the control lane.
        charge: u64,
    },
    /// The link is over: the last event. Whatever waits for something on it gets a clone of this.
    Closed(Ended),
}
