//! Why a link ended, for whoever waited for something on it.
//!
//! Pure. Every operation that was under way when a link ended gets a clone of the same [`Ended`]: it names the
//! peer, says what happened and what to try. Clones are two counters, so that thousands of pending
//! dispatches cost nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Lane;
use crate::security::Role;
use crate::wire::control::{CloseReason, Refusal};

/// Words of a peer are shown up to this; the rest is cut.
const WORDS_CHARS_MAX: usize = 300;

/// A link is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    peer: Arc<str>,
    why: Arc<Why>,
}

/// What ended it.
#[derive(Debug, PartialEq, Eq)]
pub enum Why {
    /// In order: nothing was lost.
    Drained,
    /// This end closed it.
    Closed(CloseReason),
    /// The peer closed it.
    ClosedByPeer(CloseReason),
    /// This end refused the peer.
    Refused(Refusal),
    /// The peer refused this end.
    RefusedByPeer(Refusal),
    /// A lane ended without a word: the peer's process died, or the way to it.
    Lost {
        /// Which lane.
        lane: Lane,
        /// What the carrier said.
        why: String,
    },
    /// Nothing came for longer than may be, though no lane ended.
    Silent {
        /// For so long.
        silent: Duration,
    },
    /// The handshake did not end in time.
    HandshakeTooLong {
        /// What it may take.
        limit: Duration,
    },
    /// Draining did not end in time.
    DrainTooLong {
        /// What it may take.
        limit: Duration,
        /// Dispatches that had not returned.
        sent: usize,
        /// Dispatches of the peer that were not answered.
        received: usize,
    },
    /// The peer broke the protocol.
    Broken(Broken),
}

/// How a peer broke the protocol. Its link is closed, and nothing of what it sent last was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A message that has no place there.
    #[error("it sent {message} while the link was {state}")]
    Unexpected {
        /// Which message.
        message: &'static str,
        /// Where the link was.
        state: &'static str,
    },
    /// What only the other role says.
    #[error("it is a {role} and sent {message}")]
    WrongWay {
        /// Which message.
        message: &'static str,
        /// Of whoever sent it.
        role: Role,
    },
    /// More than was granted.
    #[error("it sent a frame that costs {charge} bytes on the {lane} lane, where it had credit for {left}")]
    Credit {
        /// The lane.
        lane: Lane,
        /// What the frame costs.
        charge: u64,
        /// What it might have cost.
        left: u64,
    },
    /// A grant that cannot be.
    #[error("it granted {total} bytes in all on the {lane} lane, which can only be {least} to {most}")]
    Grant {
        /// The lane.
        lane: Lane,
        /// What it granted.
        total: u64,
        /// The least that advances.
        least: u64,
        /// All that was sent, and the window.
        most: u64,
    },
    /// A heartbeat was lost or came twice.
    #[error("it sent heartbeat {sequence}, expected was {expected}")]
    Heartbeat {
        /// Its number.
        sequence: u64,
        /// The next one.
        expected: u64,
    },
    /// It says that it has heard more heartbeats than there were.
    #[error("it has heard {heard} heartbeats, {sent} were sent")]
    HeardUnsent {
        /// As it says.
        heard: u64,
        /// As many as there were.
        sent: u64,
    },
    /// More dispatches than it may have in flight.
    #[error("it has sent more than {max} dispatches that wait for their returns")]
    InFlight {
        /// As many as it may.
        max: u32,
    },
    /// The same id again while it is open.
    #[error("it sent dispatch {dispatch} twice")]
    Reused {
        /// The id.
        dispatch: u64,
    },
    /// Ids that were chosen to collide.
    #[error("its dispatch ids collide, {dispatch} among them; they were chosen to")]
    Crowded {
        /// The id.
        dispatch: u64,
    },
    /// An echo that is not the next probe's.
    #[error("it sent back probe {id} with {bytes} bytes, which was not the next one out")]
    Echo {
        /// The echo's.
        id: u64,
        /// Its filling.
        bytes: usize,
    },
    /// A probe that it could not take back.
    #[error("it sent a probe of {bytes} bytes, its own control lane takes {max}")]
    Probe {
        /// Of the message.
        bytes: u64,
        /// What it takes.
        max: u64,
    },
    /// What came is no frame, or no message; the carrier or the codec says why.
    #[error("it sent {0}")]
    Unreadable(String),
    /// Something came after the end. The frame is to be dropped.
    #[error("it came after the end of the link")]
    Over,
}

impl Ended {
    pub(super) fn new(peer: &Arc<str>, why: Why) -> Self {
        Self { peer: Arc::clone(peer), why: Arc::new(why) }
    }

    /// For somebody who came and was never a peer: only its address is known.
    pub(crate) fn stranger(address: &str, why: String) -> Self {
        Self::new(&Arc::from(format!("a stranger at {address}")), Why::Broken(Broken::Unreadable(why)))
    }

    /// The peer, as messages name it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// What happened.
    pub fn why(&self) -> &Why {
        &self.why
    }

    /// Whether everything that was accepted for sending has arrived.
    pub fn in_order(&self) -> bool {
        matches!(*self.why, Why::Drained)
    }

    /// Whether one of both ends has wanted it: no news for whoever looks after the cluster, though what was under way is lost.
    pub fn is_wanted(&self) -> bool {
        let wanted = |reason: &CloseReason| matches!(reason, CloseReason::Wanted);
        match &*self.why {
            Why::Drained => true,
            Why::Closed(reason) | Why::ClosedByPeer(reason) => wanted(reason),
            _ => false,
        }
    }
}

impl std::error::Error for Ended {}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = &self.peer;
        match &*self.why {
            Why::Drained => {
                write!(out, "{peer}: the link was drained and closed in order; dial it again if need be")
            }
            Why::Closed(CloseReason::Replaced) => {
                write!(out, "{peer}: it came again on a newer link, use that one")
            }
            Why::Closed(reason) => write!(out, "{peer}: this end closed the link: {}", Reason(reason)),
            Why::ClosedByPeer(CloseReason::Broken(words)) => write!(
                out,
                "{peer} closed the link because this end broke the protocol: {}; run the same version on both",
                Words(words)
            ),
            Why::ClosedByPeer(CloseReason::Replaced) => write!(
                out,
                "{peer} closed the link: another one of the same name took its place; if no process was \
                 restarted, two have the same name"
            ),
            Why::ClosedByPeer(reason) => {
                write!(out, "{peer} closed the link: {}; dial it again", Reason(reason))
            }
            Why::Refused(refusal) => write!(out, "{peer} was refused: {}", Words(&refusal.to_string())),
            Why::RefusedByPeer(refusal) => {
                write!(out, "{peer} refused this end: {}", Words(&refusal.to_string()))
            }
            Why::Lost { lane, why } => write!(
                out,
                "{peer}: the {lane} lane was lost: {}; see whether its process lives, what was in flight may be \
                 sent to another",
                Words(why)
            ),
            Why::Silent { silent } => write!(
                out,
                "{peer} was silent for {silent:?} and was given up; see whether its host and the network live"
            ),
            Why::HandshakeTooLong { limit } => write!(
                out,
                "{peer} did not finish the handshake within {limit:?}; see whether something else listens there, or \
                 raise the limit"
            ),
            Why::DrainTooLong { limit, sent, received } => write!(
                out,
                "{peer}: draining was cut after {limit:?} with {sent} dispatches that had not returned and \
                 {received} not answered; raise the limit if that is normal"
            ),
            Why::Broken(broken) => write!(
                out,
                "{peer} broke the protocol and was closed: {}; run the same version on both",
                Words(&broken.to_string())
            ),
        }
    }
}

/// A reason in words.
pub(super) struct Reason<'a>(pub(super) &'a CloseReason);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            CloseReason::Drained => out.write_str("everything was drained"),
            CloseReason::Wanted => out.write_str("it was not wanted any more"),
            CloseReason::Replaced => out.write_str("a newer one took its place"),
            CloseReason::Broken(words) => write!(out, "the protocol was broken: {}", Words(words)),
            CloseReason::Silent => out.write_str("nothing was heard for too long"),
            CloseReason::DrainTooLong => out.write_str("draining took too long"),
        }
    }
}

/// Words that may come from a peer: neither long nor able to pass for something else on a terminal.
struct Words<'a>(&'a str);

impl fmt::Display for Words<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, char) in self.0.chars().enumerate() {
            if at == WORDS_CHARS_MAX {
                return out.write_str("...");
            }
            if char.is_control() { write!(out, "{}", char.escape_default())? } else { write!(out, "{char}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_peer_and_what_to_do() {
        let peer = Arc::from("node b1");
        let said = |why| Ended::new(&peer, why).to_string();
        assert_eq!(
            said(Why::Broken(Broken::Credit { lane: Lane::Data, charge: 128, left: 64 })),
            "node b1 broke the protocol and was closed: it sent a frame that costs 128 bytes on the data lane, \
             where it had credit for 64; run the same version on both"
        );
        assert_eq!(
            said(Why::Lost { lane: Lane::Control, why: "reset".into() }),
            "node b1: the control lane was lost: reset; see whether its process lives, what was in flight may be \
             sent to another"
        );
        assert_eq!(
            said(Why::RefusedByPeer(Refusal::Row { payload: 4096, row: 14_336 })),
            "node b1 refused this end: its data lane takes payloads of 4096 bytes, a row of the model takes 14336; \
             raise its limit"
        );
    }

    /// A peer's words go to logs and terminals.
    #[test]
    fn a_peers_words_are_short_and_tame() {
        let words = format!("\u{1b}[2J\r\n{}", "x".repeat(100_000));
        let said =
            Ended::new(&Arc::from("node b1"), Why::ClosedByPeer(CloseReason::Broken(words))).to_string();
        assert!(said.len() < 500 && !said.chars().any(char::is_control), "{said}");
        assert!(said.contains("\\u{1b}[2J\\r\\nxxx"), "{said}");
    }
}
