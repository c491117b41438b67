//! The carrier over QUIC: the control lane is a TCP connection with mutual TLS, the data and weights lanes
//! are QUIC connections beside it.
//!
//! Shell. UDP has no reset: a killed QUIC peer is noticed only when its silence has lasted, so the control
//! lane is what `tcp` has, and its end is the end of the link. Each other lane is a connection over an
//! endpoint of its own, because an endpoint is one serial driver, with one long stream on it, framed as
//! everything is by [`stream`](super::stream). [`settings`] is the tuning, [`halves`] the stream,
//! [`accept`] where peers arrive.

pub mod accept;
pub mod halves;
pub mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;

use super::stream::{StreamReceiver, StreamSender};
use super::tcp::{Protection, TcpCarrier, same_peer};
use super::{
    Carrier, ConnectError, Connection, LaneDialler, LaneEnds, LaneSettings, Later, OtherLanes, Vouched,
};
use crate::Lane;
use crate::buffer::Pool;
use crate::security::tls::SERVER_NAME;
use crate::security::{HandshakeError, PeerName, Tls, peer_name};

pub use accept::QuicAcceptor;

/// Most time for the connection of a lane, its handshake and its first bytes.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Reaches peers over QUIC. There is no QUIC without TLS.
#[derive(Debug, Clone)]
pub struct QuicCarrier {
    tls: Tls,
    pool: Pool,
    control: TcpCarrier,
}

impl QuicCarrier {
    /// Dials with these credentials and receives payloads into `pool`.
    pub fn new(tls: Tls, pool: Pool) -> Self {
        Self { control: TcpCarrier::new(Protection::Tls(tls.clone()), pool.clone()), tls, pool }
    }

    /// Listens at `address`: the control lane on that TCP port, the data lane on the UDP port of the same
    /// number and the weights lane on the one above it, or where the host has room if they are taken.
    pub async fn listen(&self, address: &str) -> Result<QuicAcceptor, ConnectError> {
        let control = self.control.listen(address).await?;
        QuicAcceptor::listen(control, self.tls.clone(), self.pool.clone())
    }
}

impl Carrier for QuicCarrier {
    fn dial<'a>(&'a self, address: &'a str) -> Later<'a, Result<Connection, ConnectError>> {
        Box::pin(async move {
            let (stream, at) = self.control.connect(address).await?;
            let dialler = QuicLaneDialler {
                at,
                peer: stream.peer.clone(),
                tls: self.tls.clone(),
                pool: self.pool.clone(),
            };
            Ok(stream.into_connection(OtherLanes::Dialled(Box::new(dialler)), &self.pool))
        })
    }
}

/// Dials the other lanes of a link at the host where its control connection went.
struct QuicLaneDialler {
    at: SocketAddr,
    peer: Vouched,
    tls: Tls,
    pool: Pool,
}

impl LaneDialler for QuicLaneDialler {
    fn dial(&mut self, lane: Lane, port: Option<u16>) -> Later<'_, Result<LaneEnds, ConnectError>> {
        Box::pin(async move {
            let mut at = self.at;
            let Some(port) = port else {
                return Err(ConnectError::Unreachable {
                    address: at.to_string(),
                    why: format!("the peer named no port of its {lane} lane; does it listen with quic?"),
                });
            };
            at.set_port(port);
            let address = format!("{at} (UDP)");
            let (connection, name) = match tokio::time::timeout(CONNECT_MAX, self.connect(at, &address)).await
            {
                Ok(connected) => connected?,
                Err(_) => {
                    let why = format!(
                        "no answer within {CONNECT_MAX:?}; check that UDP port {port} is open on the way, or use tcp"
                    );
                    return Err(ConnectError::Unreachable { address, why });
                }
            };
            same_peer(lane, &self.peer, &Vouched::Certificate(name), &address)?;
            let (sink, source) = connection.open_bi().await.map_err(|why| lost(&address, &why))?;
            Ok(lane_over(connection, sink, source, &self.pool))
        })
    }
}

impl QuicLaneDialler {
    async fn connect(
        &self,
        at: SocketAddr,
        address: &str,
    ) -> Result<(quinn::Connection, PeerName), ConnectError> {
        let path = settings::path_to(at);
        let endpoint =
            settings::endpoint_towards(at).map_err(|why| super::tcp::address::unreachable(address, &why))?;
        // A configuration of this connection alone, so that what was wrong with a certificate is known.
        let (config, noted) = self.tls.noted_client();
        let crypto =
            QuicClientConfig::try_from(config).expect("the provider has the cipher that QUIC begins with");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(settings::transport(path)));
        let connecting = endpoint
            .connect_with(config, at, SERVER_NAME)
            .map_err(|why| ConnectError::Unreachable { address: address.into(), why: why.to_string() })?;
        let connection = connecting.await.map_err(|why| {
            let noted = noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            match noted {
                Some((whom, fault)) => ConnectError::Security {
                    address: address.into(),
                    why: HandshakeError::Theirs { whom, fault }.to_string(),
                },
                None => lost(address, &why),
            }
        })?;
        let name = name_of(&connection, address)?;
        Ok((connection, name))
    }
}

/// Both ends of a lane over one stream.
fn lane_over(
    connection: quinn::Connection,
    sink: quinn::SendStream,
    source: quinn::RecvStream,
    pool: &Pool,
) -> LaneEnds {
    let settings = LaneSettings { pool: pool.clone(), checksum: false };
    LaneEnds {
        sender: Box::new(StreamSender::new(halves::WriteHalf::new(connection, sink), false)),
        receiver: Box::new(StreamReceiver::new(halves::ReadHalf::new(source), settings)),
    }
}

/// Who the certificate of the other end names.
fn name_of(connection: &quinn::Connection, address: &str) -> Result<PeerName, ConnectError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
    peer_name(chain.as_deref().map_or(&[], Vec::as_slice)).map_err(|fault| ConnectError::Security {
        address: address.into(),
        why: HandshakeError::Theirs { whom: None, fault }.to_string(),
    })
}

fn lost(address: &str, why: &quinn::ConnectionError) -> ConnectError {
    let address = address.to_owned();
    match why {
        quinn::ConnectionError::TransportError(_) | quinn::ConnectionError::ConnectionClosed(_) => {
            ConnectError::Security {
                address,
                why: format!("the QUIC handshake failed: {why}; the log of the peer says why"),
            }
        }
        _ => ConnectError::Unreachable { address, why: why.to_string() },
    }
}
