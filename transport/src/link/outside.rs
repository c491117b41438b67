//! What the shell needs beside the messages of the protocol.
//!
//! Pure.

use std::sync::Arc;

use crate::Lane;

use super::ended::{Broken, Ended, Why};
use super::state::{Link, State};

impl Link {
    /// Whether the peer may end that lane in order now. Else its end is a loss, though what it said about it may
    /// still be on the control lane.
    pub fn may_finish(&self, lane: Lane) -> bool {
        self.ending.said && (lane != Lane::Control || self.ending.said_by_peer)
    }

    /// Whether a frame that came or went may have left something to be said or carried out.
    pub fn has_output(&self) -> bool {
        !self.events.is_empty() || self.state() != State::Open
    }
}

impl Ended {
    /// For somebody who came and was never a peer: only its address is known.
    pub(crate) fn stranger(address: &str, why: String) -> Self {
        Self::new(&Arc::from(format!("a stranger at {address}")), Why::Broken(Broken::Unreadable(why)))
    }
}
