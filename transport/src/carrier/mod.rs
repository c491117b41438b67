//! What moves frames: memory, shared memory, TCP, QUIC; later InfiniBand verbs.
//!
//! A carrier connects two ends and gives each three lanes. The control lane is always something that has
//! an end of its own which the host reports at once when a process dies: a channel in memory, a Unix
//! socket, a TCP connection. It is the lifeline of the link, the handshake runs over it, and so carriers
//! without a reset (QUIC, verbs) need no second way to notice a death. Lanes know nothing of credits,
//! deadlines or names of peers: that is the link's.

pub mod memory;
pub(crate) mod places;
pub mod quic;
#[cfg(target_os = "linux")]
pub mod shm;
pub mod stream;
pub mod tcp;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use std::collections::VecDeque;

use crate::Frame;
use crate::buffer::Pool;
use crate::security::PeerName;
use crate::wire::HeaderError;

/// Frames that a lane has not yet taken, in order.
pub type Outbox = VecDeque<Frame>;

/// Longest payload before the handshake is done.
pub const HANDSHAKE_BYTES_MAX: u64 = 16 << 10;

/// A future that a trait object returns.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The sending end of a lane. It keeps what is left of a frame that it has begun.
pub trait LaneSender: Send {
    /// Takes frames from the front of `outbox` as long as there is room. Ready once the outbox is empty and
    /// everything is on its way; pending otherwise, and then `context` is woken when there is room.
    fn poll_send(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>>;

    /// Ends the lane in order: the other end receives what was sent, and then that nothing follows.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LaneError>>;
}

/// The receiving end of a lane.
pub trait LaneReceiver: Send {
    /// The next frame, its header checked and its payload whole; `None` once the other end has finished.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>>;

    /// Takes payloads up to this from now on. A lane begins with [`HANDSHAKE_BYTES_MAX`], so that nobody
    /// fills memory before it is known who they are.
    fn raise(&mut self, payload_bytes_max: u64);
}

/// Both ends of one lane that this side has.
pub struct LaneEnds {
    /// To the peer.
    pub sender: Box<dyn LaneSender>,
    /// From the peer.
    pub receiver: Box<dyn LaneReceiver>,
}

/// How the lanes beside the control lane come to be.
pub enum OtherLanes {
    /// They are there with the connection.
    Ready {
        /// Dispatches and returns.
        data: LaneEnds,
        /// Tensors.
        weights: LaneEnds,
    },
    /// The dialling end opens each as a connection of its own, after the handshake.
    Dialled(Box<dyn LaneDialler>),
    /// The accepting end: they will arrive as [`Arrival`]s; these are the ports to tell the peer,
    /// where they are others than the one it dialled.
    Awaited {
        /// For the data lane.
        data: Option<u16>,
        /// For the weights lane.
        weights: Option<u16>,
    },
}

/// A connection whose control lane stands. Nothing of the link's handshake has run yet.
pub struct Connection {
    /// The lifeline.
    pub control: LaneEnds,
    /// The rest.
    pub lanes: OtherLanes,
    /// Who the other end is, as far as the carrier knows.
    pub peer: Vouched,
    /// Where the peer is, for messages.
    pub address: String,
}

/// What a carrier knows of the peer's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vouched {
    /// A certificate of the cluster's authority says so.
    Certificate(PeerName),
    /// The kernel says which user runs it; its name is what it says itself.
    User(u32),
    /// Nobody: plaintext, or the same process.
    Nobody,
}

/// Opens the data and weights lanes of a link that this end dialled.
pub trait LaneDialler: Send {
    /// Connects one lane; `port` is the peer's for this lane, if it told one. The first frame on it must be
    /// `Control::Attach`, which the caller sends.
    fn dial(&mut self, lane: crate::Lane, port: Option<u16>) -> Later<'_, Result<LaneEnds, ConnectError>>;
}

/// Something that arrived at a listener, not yet trusted beyond what `peer` says. The first frame on it
/// decides what it is: `Hello` begins a link, `Attach` adds a lane to one.
pub struct Arrival {
    /// The connection; a lane is the `control` of it, and then `lanes` are never used.
    pub connection: Connection,
    /// The carrier knows by itself that this is a lane and no link (QUIC).
    pub lane_only: bool,
}

/// One way of reaching peers.
pub trait Carrier: Send + Sync {
    /// Connects to a listener at `address`.
    fn dial<'a>(&'a self, address: &'a str) -> Later<'a, Result<Connection, ConnectError>>;
}

/// Where peers arrive.
pub trait Acceptor: Send {
    /// Where it listens, as a peer of this host would dial it.
    fn address(&self) -> String;

    /// The next arrival. Work that takes time, a TLS handshake say, goes on beside it: a peer that is slow
    /// here never delays another. An error is about one arrival; where nobody can be accepted for a while,
    /// as without descriptors, the acceptor itself waits before it says so again.
    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>>;
}

/// Why a lane ended. The link that it belongs to is over.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The other end is gone without a word.
    #[error("the connection was cut: {0}")]
    Cut(String),
    /// What came is not a frame that this lane takes.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// The payload was damaged on the way.
    #[error("a payload of {bytes} bytes has checksum {found:#010x}, its header says {said:#010x}")]
    Damaged {
        /// Its length.
        bytes: u64,
        /// Computed.
        found: u32,
        /// Said.
        said: u32,
    },
    /// The peer sent more than it had credits for, so there is no room.
    #[error("a frame of {0} bytes came for which no room had been granted")]
    NoRoom(u64),
    /// The peer broke the rules of the carrier itself: indices of a ring that cannot be.
    #[error("{0}")]
    Broken(String),
    /// The stream ended inside a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Truncated {
        /// Bytes that did not come.
        missing: u64,
    },
}

impl LaneError {
    /// Whether it was not the way that failed but what the peer sent over it.
    pub fn is_breach(&self) -> bool {
        match self {
            Self::Header(_) | Self::Damaged { .. } | Self::NoRoom(_) | Self::Broken(_) => true,
            Self::Cut(_) | Self::Truncated { .. } => false,
        }
    }
}

/// Why there is no connection. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one of this carrier's.
    #[error("{address:?} is no address for {carrier}: {why}")]
    Address {
        /// What was given.
        address: String,
        /// The carrier.
        carrier: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The name means nothing here.
    #[error("cannot resolve {name:?}: {why}; check the spelling, or give an IP address")]
    Resolve {
        /// The name.
        name: String,
        /// What the resolver said.
        why: String,
    },
    /// Somebody listens there already.
    #[error(
        "cannot listen on {address}: the address is in use; stop what listens there, or choose another port"
    )]
    InUse {
        /// The address.
        address: String,
    },
    /// Nobody answered, or the host refused.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the host said.
        why: String,
    },
    /// TLS said no.
    #[error("{address}: {why}")]
    Security {
        /// The peer's address.
        address: String,
        /// What and what to do.
        why: String,
    },
}

/// What every lane of a connection needs to receive frames.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// Where payloads are received into.
    pub pool: Pool,
    /// Whether payloads carry a checksum.
    pub checksum: bool,
}
