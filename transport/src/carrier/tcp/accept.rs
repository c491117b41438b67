//! Where peers arrive over TCP.
//!
//! Shell. TLS handshakes run beside one another and beside `accept`, so a peer that sends its handshake a
//! byte a second delays nobody. They are bounded in number and time: when all places are taken the oldest
//! loses its own (`places.rs`), and nobody keeps one for longer than [`CONNECT_MAX`]. Enrolments have places
//! of their own, since they may wait for one another at the authority's disk.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};

use super::{CONNECT_MAX, Enrol, Protection, Stream, Wire, address, socket};
use crate::buffer::Pool;
use crate::carrier::places::Places;
use crate::carrier::{Acceptor, Arrival, ConnectError, Later, OtherLanes, Vouched};
use crate::security::Tls;
use crate::security::handshake::{self, Accepted};

/// Most handshakes at once. Each costs some 20 KiB.
pub const HANDSHAKES_MAX: usize = 256;

/// Most enrolments at once, after their handshakes.
const ENROLMENTS_MAX: usize = 256;

/// How long nobody is accepted when this process can open no more files.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts peers over TCP.
pub struct TcpAcceptor {
    listener: TcpListener,
    protection: Protection,
    pool: Pool,
    enrol: Option<Enrol>,
    handshakes: JoinSet<Result<Handshaken, ConnectError>>,
    places: Places,
    enrolments: JoinSet<Result<(), ConnectError>>,
    enrolment_places: Places,
    ports: [Option<u16>; 2],
    pause: Option<Pin<Box<Sleep>>>,
    dropped: u64,
    failed: u64,
}

impl TcpAcceptor {
    /// Listens at `written`.
    pub(super) async fn listen(
        written: &str,
        protection: Protection,
        pool: Pool,
    ) -> Result<Self, ConnectError> {
        let at = address::resolve(written, "tcp").await?[0];
        protection.permits(at, "tcp")?;
        let cannot = |why: io::Error| address::cannot_listen(written, "tcp", &why);
        let listener = TcpListener::bind(at).await.map_err(cannot)?;
        Ok(Self {
            listener,
            protection,
            pool,
            enrol: None,
            handshakes: JoinSet::new(),
            places: Places::new(HANDSHAKES_MAX),
            enrolments: JoinSet::new(),
            enrolment_places: Places::new(ENROLMENTS_MAX),
            ports: [None; 2],
            pause: None,
            dropped: 0,
            failed: 0,
        })
    }

    /// Hands connections that ask for enrolment to `enrol`, which has as long as a handshake for it.
    pub fn with_enrol(mut self, enrol: Enrol) -> Self {
        self.enrol = Some(enrol);
        self
    }

    /// Tells peers to dial the data and weights lanes at other ports.
    pub(in crate::carrier) fn with_ports(mut self, data: u16, weights: u16) -> Self {
        self.ports = [Some(data), Some(weights)];
        self
    }

    /// Where it listens.
    pub fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Peers that lost their places because all were taken.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Peers whose handshake came to nothing.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    pub(in crate::carrier) fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arrival, ConnectError>> {
        loop {
            while let Poll::Ready(Some(done)) = self.handshakes.poll_join_next(context) {
                match done {
                    Ok(Ok(Handshaken::Link(stream))) => return Poll::Ready(Ok(self.arrival(stream))),
                    Ok(Ok(Handshaken::Enrolment(stream, from))) => self.begin_enrolment(*stream, from),
                    Ok(Err(why)) => self.note(&why),
                    Err(why) => self.note_early(&why),
                }
            }
            while let Poll::Ready(Some(done)) = self.enrolments.poll_join_next(context) {
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => self.note(&why),
                    Err(why) => self.note_early(&why),
                }
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            // Those who come meanwhile wait in the host's queue.
            ready!(self.places.poll_room(context));
            let (socket, from) = match ready!(self.listener.poll_accept(context)) {
                Ok(accepted) => accepted,
                Err(why) => {
                    if why.raw_os_error().is_some_and(address::out_of_descriptors) {
                        warn!(%why, "cannot accept; raise the limit of open files (ulimit -n)");
                        self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                    }
                    // Anything else is about a peer that gave up before it was accepted.
                    continue;
                }
            };
            if let Err(why) = socket::set_up(&socket) {
                debug!(%why, peer = %from, "gone before it was accepted");
                continue;
            }
            match &self.protection {
                Protection::Plaintext(_) => {
                    return Poll::Ready(Ok(self.arrival(Stream::plain(socket, from.to_string()))));
                }
                Protection::Tls(tls) => {
                    let place = self.handshakes.spawn(handshake(tls.clone(), socket, from));
                    let evicted = self.places.take(Instant::now(), place);
                    self.count_dropped(evicted);
                }
            }
        }
    }

    fn begin_enrolment(&mut self, stream: TlsStream<TcpStream>, from: SocketAddr) {
        let address = from.to_string();
        let Some(enrol) = self.enrol.clone() else {
            let why = "it asks for a certificate, and this end issues none".into();
            return self.note(&ConnectError::Security { address, why });
        };
        let now = Instant::now();
        if self.enrolment_places.full_until(now).is_some() {
            // All are busy and none is old: this one comes again.
            return self.count_dropped(true);
        }
        let place = self.enrolments.spawn(async move {
            tokio::time::timeout(CONNECT_MAX, enrol(stream, from)).await.map_err(|_| {
                let why = format!("enrolment was not done within {CONNECT_MAX:?}");
                ConnectError::Security { address, why }
            })
        });
        let evicted = self.enrolment_places.take(now, place);
        self.count_dropped(evicted);
    }

    fn count_dropped(&mut self, dropped: bool) {
        if dropped {
            self.dropped += 1;
            warn!(places = HANDSHAKES_MAX, dropped = self.dropped, "an arrival lost its place");
        }
    }

    fn note(&mut self, why: &ConnectError) {
        self.failed += 1;
        debug!(%why, "handshake failed");
    }

    fn note_early(&mut self, why: &JoinError) {
        // Who lost its place has been counted.
        if !why.is_cancelled() {
            self.failed += 1;
            error!(%why, "handshake ended early");
        }
    }

    fn arrival(&self, stream: Stream) -> Arrival {
        let [data, weights] = self.ports;
        let connection = stream.into_connection(OtherLanes::Awaited { data, weights }, &self.pool);
        Arrival { connection, lane_only: false }
    }
}

/// What came of a handshake.
enum Handshaken {
    /// A link, or a lane of one.
    Link(Stream),
    /// Somebody without a certificate who wants one.
    Enrolment(Box<TlsStream<TcpStream>>, SocketAddr),
}

/// Runs one handshake to its end, or to the end of its time.
async fn handshake(tls: Tls, socket: TcpStream, from: SocketAddr) -> Result<Handshaken, ConnectError> {
    let address = from.to_string();
    let accepted = match handshake::accept(&tls, socket, CONNECT_MAX).await {
        Ok(accepted) => accepted,
        Err(why) => return Err(ConnectError::Security { address, why: why.to_string() }),
    };
    match accepted {
        Accepted::Link { stream, peer } => {
            let (socket, connection) = stream.into_inner();
            let wire = Wire::Tls(socket, Box::new(connection.into()), tls);
            Ok(Handshaken::Link(Stream { wire, peer: Vouched::Certificate(peer), address }))
        }
        Accepted::Enrolment(stream) => Ok(Handshaken::Enrolment(stream, from)),
    }
}

impl Acceptor for TcpAcceptor {
    fn address(&self) -> String {
        let local = self.listener.local_addr().expect("a listener has an address");
        address::as_dialled(local).to_string()
    }

    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>> {
        Box::pin(std::future::poll_fn(|context| self.poll_accept(context)))
    }
}
