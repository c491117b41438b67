//! The carrier over TCP: one connection for each lane, with mutual TLS unless plaintext was asked for by
//! name.
//!
//! Shell. [`address`] turns what a person wrote into a socket address, and what the host says into an
//! error with the address in it; [`socket`] sets a connection up, and `attempts` begins anew beside one that hangs;
//! [`tls`] encrypts one; [`accept`] is where peers arrive. Frames are put on the connections by [`stream`](super::stream).

pub mod accept;
pub mod address;
pub mod socket;
pub mod tls;

mod attempts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::stream::descriptor;
use super::stream::{StreamReceiver, StreamSender};
use super::{
    Carrier, ConnectError, Connection, LaneDialler, LaneEnds, LaneSettings, Later, OtherLanes, Vouched,
};
use crate::Lane;
use crate::buffer::Pool;
use crate::security::{Tls, handshake};

pub use accept::TcpAcceptor;

/// Most time for a connection, and as much again for its TLS handshake.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How far plaintext may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    /// Not beyond this host: `--insecure`.
    Loopback,
    /// Anywhere, where everybody can read and forge it: `--insecure-anywhere`.
    Anywhere,
}

/// How connections are protected.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Both ends show certificates.
    Tls(Tls),
    /// Not at all.
    Plaintext(Plaintext),
}

impl Protection {
    /// Refuses plaintext with an address that it was not allowed for.
    fn permits(&self, address: SocketAddr, carrier: &'static str) -> Result<(), ConnectError> {
        match self {
            Self::Plaintext(Plaintext::Loopback) if !address.ip().to_canonical().is_loopback() => {
                Err(ConnectError::Address {
                    address: address.to_string(),
                    carrier,
                    why: "--insecure sends plaintext to loopback addresses only; use certificates \
                          (`phalanx certs`), or add --insecure-anywhere if everybody on the way may read \
                          and forge it"
                        .into(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// Reaches peers over TCP.
#[derive(Debug, Clone)]
pub struct TcpCarrier {
    protection: Protection,
    pool: Pool,
}

impl TcpCarrier {
    /// Dials with such protection and receives payloads into `pool`.
    pub fn new(protection: Protection, pool: Pool) -> Self {
        Self { protection, pool }
    }

    /// Listens at `address`; port 0 lets the host choose one.
    pub async fn listen(&self, address: &str) -> Result<TcpAcceptor, ConnectError> {
        TcpAcceptor::listen(address, self.protection.clone(), self.pool.clone()).await
    }

    /// The control connection at `address`, and which of its addresses answered.
    pub(super) async fn connect(&self, address: &str) -> Result<(Stream, SocketAddr), ConnectError> {
        let (socket, at) = attempts::first(|| self.reach(address)).await?;
        let stream = Stream::secured(socket, shown(at, address), &self.protection).await?;
        Ok((stream, at))
    }

    /// The first of its addresses that answers.
    async fn reach(&self, address: &str) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let mut refused = None;
        for at in address::resolve(address, "tcp").await? {
            self.protection.permits(at, "tcp")?;
            match socket::connect(at, &shown(at, address)).await {
                Ok(socket) => return Ok((socket, at)),
                Err(why @ ConnectError::Unreachable { .. }) => refused = Some(why),
                Err(why) => return Err(why),
            }
        }
        Err(refused.expect("a name resolves to one address at least"))
    }
}

/// An address as messages have it, which a person wrote as `written`.
fn shown(at: SocketAddr, written: &str) -> String {
    if written == at.to_string() { written.into() } else { format!("{written} ({at})") }
}

impl Carrier for TcpCarrier {
    fn dial<'a>(&'a self, address: &'a str) -> Later<'a, Result<Connection, ConnectError>> {
        Box::pin(async move {
            let (stream, at) = self.connect(address).await?;
            let dialler = TcpLaneDialler {
                at,
                written: address.to_owned(),
                peer: stream.peer.clone(),
                protection: self.protection.clone(),
                pool: self.pool.clone(),
            };
            Ok(stream.into_connection(OtherLanes::Dialled(Box::new(dialler)), &self.pool))
        })
    }
}

/// Dials the other lanes of a link where its control connection went: a name with several addresses must
/// not lead to several hosts.
struct TcpLaneDialler {
    at: SocketAddr,
    written: String,
    peer: Vouched,
    protection: Protection,
    pool: Pool,
}

impl LaneDialler for TcpLaneDialler {
    fn dial(&mut self, lane: Lane, port: Option<u16>) -> Later<'_, Result<LaneEnds, ConnectError>> {
        Box::pin(async move {
            let mut at = self.at;
            if let Some(port) = port {
                at.set_port(port);
            }
            let stream = Stream::dial(at, &self.written, &self.protection).await?;
            same_peer(lane, &self.peer, &stream.peer, &stream.address)?;
            Ok(stream.into_lane(&self.pool))
        })
    }
}

/// Every lane of a link leads to the same peer, or it is none of that link.
pub(super) fn same_peer(
    lane: Lane,
    control: &Vouched,
    other: &Vouched,
    address: &str,
) -> Result<(), ConnectError> {
    if control == other {
        return Ok(());
    }
    let name = |vouched: &Vouched| match vouched {
        Vouched::Certificate(peer) => peer.to_string(),
        Vouched::User(user) => format!("user {user}"),
        Vouched::Nobody => "nobody".into(),
    };
    Err(ConnectError::Security {
        address: address.to_owned(),
        why: format!(
            "the {lane} lane was answered by {}, the control lane by {}; two peers share this address, give \
             each its own",
            name(other),
            name(control)
        ),
    })
}

/// A connection that stands, before it is framed.
pub(super) struct Stream {
    wire: Wire,
    /// Who the other end is.
    pub peer: Vouched,
    /// Where it is, for messages.
    pub address: String,
}

enum Wire {
    Plain(TcpStream),
    Tls(TcpStream, Box<rustls::Connection>, Tls),
}

impl Stream {
    /// Connects to `at`, which a person wrote as `written`.
    async fn dial(at: SocketAddr, written: &str, protection: &Protection) -> Result<Self, ConnectError> {
        let address = shown(at, written);
        let socket = socket::connect(at, &address).await?;
        Self::secured(socket, address, protection).await
    }

    /// A connection that has been made, which messages call `address`.
    async fn secured(
        socket: TcpStream,
        address: String,
        protection: &Protection,
    ) -> Result<Self, ConnectError> {
        match protection {
            Protection::Plaintext(_) => Ok(Self::plain(socket, address)),
            Protection::Tls(tls) => match handshake::connect(tls, socket, CONNECT_MAX).await {
                Ok((stream, name)) => {
                    let (socket, connection) = stream.into_inner();
                    let peer = Vouched::Certificate(name);
                    Ok(Self {
                        wire: Wire::Tls(socket, Box::new(connection.into()), tls.clone()),
                        peer,
                        address,
                    })
                }
                Err(why) => Err(ConnectError::Security { address, why: why.to_string() }),
            },
        }
    }

    fn plain(socket: TcpStream, address: String) -> Self {
        Self { wire: Wire::Plain(socket), peer: Vouched::Nobody, address }
    }

    /// Both ends of a lane over it.
    pub(super) fn into_lane(self, pool: &Pool) -> LaneEnds {
        let settings = |checksum| LaneSettings { pool: pool.clone(), checksum };
        match self.wire {
            Wire::Plain(socket) => {
                let (source, sink) = descriptor::halves(socket);
                LaneEnds {
                    sender: Box::new(StreamSender::new(sink, true)),
                    receiver: Box::new(StreamReceiver::new(source, settings(true))),
                }
            }
            Wire::Tls(socket, connection, tls) => {
                let (source, sink) = tls::halves(socket, *connection, tls);
                LaneEnds {
                    sender: Box::new(StreamSender::new(sink, false)),
                    receiver: Box::new(StreamReceiver::new(source, settings(false))),
                }
            }
        }
    }

    /// A connection with it as the control lane.
    pub(super) fn into_connection(self, lanes: OtherLanes, pool: &Pool) -> Connection {
        let (peer, address) = (self.peer.clone(), self.address.clone());
        let control = self.into_lane(pool);
        Connection { control, lanes, peer, address }
    }
}

/// What is done with a peer that has no certificate yet and asks for one: see `security::enrol`.
pub type Enrol =
    Arc<dyn Fn(tokio_rustls::server::TlsStream<TcpStream>, SocketAddr) -> Later<'static, ()> + Send + Sync>;
