//! Messages of the cluster: what nodes and coordinators say to one another beside rows.
//!
//! Pure. They are charged on the control lane and wait, in order, until the peer has granted room; how many may wait
//! is bounded, and whoever has more to say hears at once that it is too much. The receiver's room is occupied until its
//! application has read the message, so neither end ever keeps more of them than a window holds.
//!
//! An end that is draining may go on telling until it has said `Close(Drained)`, which it says as soon as nothing is in
//! flight and nothing waits here. So every message that was accepted arrives before an orderly end; whoever tells
//! without end is cut by `Limits::drain_max` like whoever does not answer.

use super::charged::{Waiting, cost};
use super::ended::{Broken, Ended};
use super::event::Event;
use super::state::{Link, Phase, message_name};
use crate::security::Role;
use crate::wire::ControlError;
use crate::wire::cluster::Cluster;
use crate::wire::control::Control;

/// Messages that may wait for room. Orders and reports are whole, so a newer one makes an older one needless; this
/// many at once is somebody who does not look.
const TELLS_MAX: usize = 4096;

/// Why a message of the cluster is not sent. Nothing of it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TellRefused {
    /// Later, when the peer has read what was told before.
    #[error(
        "{messages} messages of {bytes} bytes wait already until the peer has room, another {charge} bytes are too \
         much: at most {messages_max} of {bytes_max} may wait"
    )]
    Full {
        /// How many wait.
        messages: usize,
        /// What they cost.
        bytes: u64,
        /// What this one would cost.
        charge: u64,
        /// How many may wait.
        messages_max: usize,
        /// What they may cost: this end's own window of the control lane.
        bytes_max: u64,
    },
    /// Never: the peer takes no message so long.
    #[error("a message that costs {charge} bytes is too long, at most {max} can go; cut it into several")]
    TooLong {
        /// What it costs.
        charge: u64,
        /// What it may cost.
        max: u64,
    },
    /// Never: a text or a list is beyond its bound, and the peer would close the link for it.
    #[error(transparent)]
    Message(#[from] ControlError),
    /// Never: this end does not say such things.
    #[error("a {role} does not say {message}")]
    WrongWay {
        /// Which message.
        message: &'static str,
        /// Of this end.
        role: Role,
    },
    /// The handshake is not done.
    #[error("the link is not open yet")]
    NotOpen,
    /// This end has said that it is drained.
    #[error("the link is ending in order and this end has said its last; tell it over another")]
    Draining,
    /// It is over.
    #[error("{0}")]
    Closed(Ended),
}

impl Link {
    /// Sends a message of the cluster as soon as there is credit. The peer gets it as `Event::Told`, once and in order.
    pub fn handle_tell(&mut self, message: Cluster) -> Result<(), TellRefused> {
        match &self.phase {
            Phase::Open if !self.ending.said => {}
            Phase::Open => return Err(TellRefused::Draining),
            Phase::Greeting | Phase::Attaching => return Err(TellRefused::NotOpen),
            Phase::Closed(ended) => return Err(TellRefused::Closed(ended.clone())),
        }
        message.check()?;
        let (speaker, role) = (message.speaker(), self.local.peer.role);
        let message = Control::Cluster(message);
        if speaker != role {
            return Err(TellRefused::WrongWay { message: message_name(&message), role });
        }
        let bytes_max = self.limits.window_bytes.control;
        let (charge, max) = (cost(&message), self.sending.control.charge_max().min(bytes_max));
        if charge > max {
            return Err(TellRefused::TooLong { charge, max });
        }
        let (messages, bytes) = (self.charged.tells, self.charged.tells_charge);
        if messages >= TELLS_MAX || bytes + charge > bytes_max {
            return Err(TellRefused::Full { messages, bytes, charge, messages_max: TELLS_MAX, bytes_max });
        }
        self.charged.tells += 1;
        self.charged.tells_charge += charge;
        self.charged.waiting.push_back(Waiting { message, charge, holds: 0 });
        Ok(())
    }

    /// One came, and was charged.
    pub(super) fn take_told(&mut self, message: Cluster, charge: u64) -> Result<(), Broken> {
        let (speaker, ours) = (message.speaker(), self.local.peer.role);
        if speaker == ours {
            let role = if ours == Role::Node { Role::Coordinator } else { Role::Node };
            return Err(Broken::WrongWay { message: message_name(&Control::Cluster(message)), role });
        }
        self.tell_application(Event::Told { message, charge });
        Ok(())
    }

    /// A charged message goes.
    pub(super) fn told_goes(&mut self, message: &Control, charge: u64) {
        if matches!(message, Control::Cluster(_)) {
            self.charged.tells -= 1;
            self.charged.tells_charge -= charge;
        }
    }
}
