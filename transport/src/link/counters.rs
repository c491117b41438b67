//! What a link has seen, for whoever watches it.
//!
//! Pure.

use crate::wire::PerLane;

/// Totals since the link began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Credits used, in bytes.
    pub sent_bytes: PerLane<u64>,
    /// Credits that the peer used, in bytes.
    pub received_bytes: PerLane<u64>,
    /// Frames refused for want of credit: each waited.
    pub no_credit: PerLane<u64>,
    /// Dispatches sent.
    pub dispatches: u64,
    /// Their returns.
    pub returns: u64,
    /// Returns that came after their dispatch had been given up.
    pub returns_late: u64,
    /// Returns of no dispatch of this link.
    pub returns_unknown: u64,
    /// Dispatches whose deadline passed.
    pub expired: u64,
    /// Dispatches of the peer.
    pub dispatched: u64,
    /// Those answered.
    pub returned: u64,
    /// Times the peer was late.
    pub late: u64,
    /// Heartbeats of the peer.
    pub heartbeats: u64,
}
