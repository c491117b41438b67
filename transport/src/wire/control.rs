//! The closed set of control messages.
//!
//! Pure; `codec.rs` turns them into bytes and back, [`control_frame`] and [`read_control`] into frames. Both
//! check that texts and lists are no longer than a message may make them: what a peer says here is written
//! to logs and kept for as long as its link.

use bincode::{Decode, Encode};

use super::cluster::Cluster;
use super::codec::{self, CodecError};
use super::{Header, Kind, PerLane};
use crate::Frame;
use crate::buffer::Pool;
use crate::security::PeerName;

/// The version of the messages. Both ends must speak the same.
pub const PROTOCOL: u32 = 1;

/// Longest name, of a peer or of a numeric class.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest name and version of a program.
pub const PROGRAM_BYTES_MAX: usize = 128;
/// Longest reason in words.
pub const WORDS_BYTES_MAX: usize = 1024;
/// Longest filling of a probe.
pub const PADDING_BYTES_MAX: usize = 1 << 20;
/// Longest certificate, or request for one.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;
/// Certificates in a chain.
pub const CHAIN_MAX: usize = 8;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    /// The first frame of a link, from the end that dialled.
    Hello(Hello),
    /// The answer: the link may go on.
    Welcome(Welcome),
    /// The answer: it may not. The last frame.
    Refused(Refusal),
    /// The first frame of a further lane, from the end that dialled.
    Attach(Attach),
    /// The answer on that lane.
    Attached,
    /// I live.
    Heartbeat {
        /// Counts up.
        sequence: u64,
        /// So many of yours have I heard.
        heard: u64,
    },
    /// You may have sent so much on that lane since the link began.
    Grant {
        /// The lane.
        lane: super::Lane,
        /// All credits so far, in bytes.
        total: u64,
    },
    /// No new dispatches, please: I close when what is in flight has returned.
    Drain,
    /// The end, in order.
    Close(CloseReason),
    /// Send me this back: measures the way.
    Probe {
        /// Whose.
        id: u64,
        /// Filling, up to 1 MiB.
        padding: Vec<u8>,
    },
    /// The probe, sent back.
    Echo {
        /// Whose.
        id: u64,
        /// The same.
        padding: Vec<u8>,
    },
    /// A certificate that lasts longer, please.
    Renew {
        /// PKCS #10, DER.
        request: Vec<u8>,
    },
    /// Here it is.
    Renewed {
        /// The certificate and what it stands on, DER.
        chain: Vec<Vec<u8>>,
    },
    /// There is none, for this reason.
    NotRenewed {
        /// In words.
        why: String,
    },
    /// Of the cluster: who joins, who holds what, how it goes.
    Cluster(Cluster),
}

/// Who dials, and what it can take.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Which program, for messages: name and version.
    pub program: String,
    /// Its name. Where a certificate names it, both must agree.
    pub peer: PeerName,
    /// A random number of this process's life: a newer one replaces the older.
    pub incarnation: u64,
    /// What its numbers are; `None` where it computes nothing.
    pub numeric: Option<NumericIdentity>,
    /// What it takes.
    pub limits: Offer,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The same of the end that was dialled.
    pub hello: Hello,
    /// Names the link; whoever attaches a lane shows it. Random, never reused.
    pub session: [u8; 16],
    /// Ports of the other lanes where they are not the one that was dialled: data, weights.
    pub ports: [Option<u16>; 2],
}

/// A further lane for a link.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Attach {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Of the link.
    pub session: [u8; 16],
    /// Which lane this is.
    pub lane: super::Lane,
}

/// What an end takes: see `Limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Offer {
    /// Longest payloads.
    pub payload_bytes_max: PerLane<u64>,
    /// Credits at the beginning.
    pub window_bytes: PerLane<u64>,
    /// Dispatches in flight.
    pub in_flight_max: u32,
    /// How often it sends a heartbeat.
    pub heartbeat_us: u32,
    /// Bytes of a row that this end will send, 0 if it does not know.
    pub row_bytes: u64,
}

/// Same identity, same bits: design section 5.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NumericIdentity {
    /// The numeric class.
    pub class: String,
    /// The digest of what its kernels computed at start.
    pub fingerprint: [u8; 32],
}

/// Why a link may not be.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// Another version of the messages.
    #[error("protocol {theirs}, this end speaks {ours}; run the same version on both")]
    Protocol {
        /// Of the end that was refused.
        theirs: u32,
        /// Of the end that refuses.
        ours: u32,
    },
    /// Another cluster.
    #[error("cluster {theirs}, this end belongs to {ours}")]
    Cluster {
        /// Of the end that was refused.
        theirs: crate::security::ClusterId,
        /// Of the end that refuses.
        ours: crate::security::ClusterId,
    },
    /// The name said is not the certificate's.
    #[error("it calls itself {said}, its certificate says {certificate}")]
    Name {
        /// Said.
        said: String,
        /// Certified.
        certificate: String,
    },
    /// Both are nodes, or both coordinators.
    #[error("a {theirs} has no business with a {ours}")]
    Role {
        /// Of the end that was refused.
        theirs: crate::security::Role,
        /// Of the end that refuses.
        ours: crate::security::Role,
    },
    /// Its numbers would be others.
    #[error("numeric class {theirs}, this cluster computes in {ours}; start it with --numeric-class {ours}")]
    Class {
        /// Of the end that was refused.
        theirs: String,
        /// Of the end that refuses.
        ours: String,
    },
    /// The same class, and yet other bits.
    #[error("numeric class {class} has another fingerprint there; the kernels or the processor differ")]
    Fingerprint {
        /// The class of both.
        class: String,
    },
    /// Its limits cannot carry what this end sends.
    #[error(
        "its data lane takes payloads of {payload} bytes, a row of the model takes {row}; raise its limit"
    )]
    Row {
        /// Longest payload.
        payload: u64,
        /// Bytes of a row.
        row: u64,
    },
    /// Its offer makes no sense.
    #[error("{what} of {value} cannot work")]
    Offer {
        /// Which figure.
        what: String,
        /// Its value.
        value: u64,
    },
    /// No such link, or it has that lane.
    #[error("no link waits for this lane")]
    Attach,
    /// Too many links, or the end is about to stop.
    #[error("{0}")]
    Busy(String),
}

/// Why a link was closed in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum CloseReason {
    /// Everything was drained.
    Drained,
    /// The application wanted it.
    Wanted,
    /// The same peer came again, newer.
    Replaced,
    /// The peer broke the protocol; in words.
    Broken(String),
    /// The peer was silent for too long.
    Silent,
    /// Draining took longer than it may.
    DrainTooLong,
}

/// Why a message is refused. The link that brought it is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The frame carries something else.
    #[error("a frame of kind {0:?} is no control message")]
    Kind(Kind),
    /// It cannot be read because it begins a link, or a lane, of another version: to be answered with
    /// [`Refusal::Protocol`].
    #[error("control message: protocol {theirs}, this end speaks {PROTOCOL}; run the same version on both")]
    Protocol {
        /// Of the peer.
        theirs: u32,
    },
    /// Its bytes are no message.
    #[error("control message: {0}")]
    Codec(#[from] CodecError),
    /// A text or list is longer than it may be.
    #[error("control message: {what} of {found}, at most {max} are taken")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Bytes, or certificates.
        found: usize,
        /// The most.
        max: usize,
    },
    /// A name has other characters than a name may have, or none.
    #[error("control message: {what} {text:?}; letters, digits, '-', '_' and '.' make a name")]
    Name {
        /// Which.
        what: &'static str,
        /// What it is.
        text: String,
    },
    /// A text would disturb a log or a terminal.
    #[error("control message: {what} has the control character {character:?}")]
    Character {
        /// Which.
        what: &'static str,
        /// The first of them.
        character: char,
    },
    /// The pool has no room for the message.
    #[error("no room for a control message of {bytes} bytes in a pool of {max}")]
    NoRoom {
        /// Of the message.
        bytes: usize,
        /// Of the pool.
        max: u64,
    },
}

/// The frame of a message. Once the pool has grown, it allocates nothing.
pub fn control_frame(pool: &Pool, message: &Control) -> Result<Frame, ControlError> {
    message.check()?;
    let bytes = codec::encoded_bytes(message)?;
    let Some(mut buffer) = pool.take(bytes) else {
        return Err(ControlError::NoRoom { bytes, max: pool.bytes_max() });
    };
    codec::encode_into(message, &mut buffer)?;
    Ok(Frame::new(Header::of_bytes(Kind::Control, 0, bytes as u32), buffer))
}

/// The message of a frame.
pub fn read_control(frame: &Frame) -> Result<Control, ControlError> {
    if frame.header.kind != Kind::Control {
        return Err(ControlError::Kind(frame.header.kind));
    }
    let message: Control =
        codec::decode(&frame.payload).map_err(|why| match protocol_said(&frame.payload) {
            Some(theirs) if theirs != PROTOCOL => ControlError::Protocol { theirs },
            _ => why.into(),
        })?;
    message.check()?;
    Ok(message)
}

/// The protocol that a `Hello` or an `Attach` of whatever version begins with: these 8 bytes never change, so
/// that two versions can tell one another apart in words.
fn protocol_said(bytes: &[u8]) -> Option<u32> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    let protocol = u32::from_le_bytes(*rest.first_chunk::<4>()?);
    [0, 3].contains(&u32::from_le_bytes(*first)).then_some(protocol)
}

/// A reason in words that [`Control::check`] takes: cut to its bound, blanks for control characters.
pub fn words(why: impl std::fmt::Display) -> String {
    let mut words = String::new();
    for character in why.to_string().chars() {
        let character = if character.is_control() { ' ' } else { character };
        if words.len() + character.len_utf8() > WORDS_BYTES_MAX {
            break;
        }
        words.push(character);
    }
    words
}

impl Control {
    /// Checks that texts and lists are within their bounds. Senders and receivers check the same.
    pub fn check(&self) -> Result<(), ControlError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Welcome(welcome) => welcome.hello.check(),
            Self::Refused(refusal) => refusal.check(),
            Self::Close(CloseReason::Broken(why)) => text("a reason", why, WORDS_BYTES_MAX),
            Self::NotRenewed { why } => text("a reason", why, WORDS_BYTES_MAX),
            Self::Probe { padding, .. } | Self::Echo { padding, .. } => {
                bound("padding", padding.len(), PADDING_BYTES_MAX)
            }
            Self::Renew { request } => bound("a request", request.len(), CERTIFICATE_BYTES_MAX),
            Self::Renewed { chain } => {
                bound("a chain", chain.len(), CHAIN_MAX)?;
                chain.iter().try_for_each(|it| bound("a certificate", it.len(), CERTIFICATE_BYTES_MAX))
            }
            Self::Cluster(message) => message.check(),
            Self::Attach(_)
            | Self::Attached
            | Self::Heartbeat { .. }
            | Self::Grant { .. }
            | Self::Drain
            | Self::Close(_) => Ok(()),
        }
    }
}

impl Hello {
    fn check(&self) -> Result<(), ControlError> {
        text("a program", &self.program, PROGRAM_BYTES_MAX)?;
        name("a peer's name", &self.peer.name)?;
        self.numeric.as_ref().map_or(Ok(()), |numeric| name("a numeric class", &numeric.class))
    }
}

impl Refusal {
    fn check(&self) -> Result<(), ControlError> {
        match self {
            // Not names: they are what was said, and that may be what was wrong.
            Self::Name { said, certificate } => {
                text("a name said", said, WORDS_BYTES_MAX)?;
                text("a certificate's name", certificate, WORDS_BYTES_MAX)
            }
            Self::Class { theirs, ours } => {
                name("a numeric class", theirs)?;
                name("a numeric class", ours)
            }
            Self::Fingerprint { class } => name("a numeric class", class),
            Self::Offer { what, .. } => text("a figure", what, WORDS_BYTES_MAX),
            Self::Busy(why) => text("a reason", why, WORDS_BYTES_MAX),
            Self::Protocol { .. }
            | Self::Cluster { .. }
            | Self::Role { .. }
            | Self::Row { .. }
            | Self::Attach => Ok(()),
        }
    }
}

/// Whether a text is a name: letters, digits, `-`, `_` and `.`, 1 to [`NAME_BYTES_MAX`] of them.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(fits)
}

pub(super) fn bound(what: &'static str, found: usize, max: usize) -> Result<(), ControlError> {
    if found > max { Err(ControlError::TooLong { what, found, max }) } else { Ok(()) }
}

pub(super) fn text(what: &'static str, text: &str, max: usize) -> Result<(), ControlError> {
    bound(what, text.len(), max)?;
    match text.chars().find(|character| character.is_control()) {
        Some(character) => Err(ControlError::Character { what, character }),
        None => Ok(()),
    }
}

pub(super) fn name(what: &'static str, text: &str) -> Result<(), ControlError> {
    bound(what, text.len(), NAME_BYTES_MAX)?;
    if !is_name(text) {
        return Err(ControlError::Name { what, text: text.into() });
    }
    Ok(())
}
