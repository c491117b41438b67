//! Where peers arrive over QUIC: their control lanes over TCP, the others at two UDP ports.
//!
//! Shell. Handshakes of each port run beside one another, bounded in number and time. When half of the
//! places are taken, an address must first prove that it can be reached, so that nobody fills the rest
//! with forged ones; when all are, the oldest loses its own (`places.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

use quinn::{Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::{CONNECT_MAX, lane_over, lost, name_of, settings};
use crate::buffer::Pool;
use crate::carrier::places::Places;
use crate::carrier::tcp::accept::HANDSHAKES_MAX;
use crate::carrier::tcp::{Enrol, TcpAcceptor, address};
use crate::carrier::{Acceptor, Arrival, ConnectError, Connection, Later, OtherLanes, Vouched};
use crate::security::Tls;

/// Lanes that stand and wait to be taken.
const WAITING_MAX: usize = 16;

/// Accepts peers over QUIC.
pub struct QuicAcceptor {
    control: TcpAcceptor,
    lanes: mpsc::Receiver<Arrival>,
    dropped: Arc<AtomicU64>,
    /// Ends with the acceptor; lanes that stand go on.
    _ports: JoinSet<()>,
}

impl QuicAcceptor {
    pub(super) fn listen(control: TcpAcceptor, tls: Tls, pool: Pool) -> Result<Self, ConnectError> {
        let cannot = |why| address::cannot_listen("the UDP ports of the lanes", "quic", &why);
        let local = control.local_address().map_err(cannot)?;
        let (to, lanes) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut ports = JoinSet::new();
        let mut numbers = [0; 2];
        for (above, number) in numbers.iter_mut().enumerate() {
            let endpoint = bind(local, above as u16, &tls).map_err(cannot)?;
            *number = endpoint.local_addr().map_err(cannot)?.port();
            let port = Port { endpoint, tls: tls.clone(), pool: pool.clone(), dropped: Arc::clone(&dropped) };
            ports.spawn(port.run(to.clone()));
        }
        let [data, weights] = numbers;
        Ok(Self { control: control.with_ports(data, weights), lanes, dropped, _ports: ports })
    }

    /// Hands connections that ask for enrolment to `enrol`, which has as long as a handshake for it.
    pub fn with_enrol(self, enrol: Enrol) -> Self {
        Self { control: self.control.with_enrol(enrol), ..self }
    }

    /// Peers and lanes that were dropped because all places were taken.
    pub fn dropped(&self) -> u64 {
        self.control.dropped() + self.dropped.load(Ordering::Relaxed)
    }
}

/// The UDP port so far above the control lane's, or another that is free.
fn bind(local: SocketAddr, above: u16, tls: &Tls) -> std::io::Result<Endpoint> {
    let mut config = tls.quic_server();
    config.max_incoming(2 * HANDSHAKES_MAX).migration(false);
    let port = local.port().checked_add(above).unwrap_or(0);
    settings::endpoint_at(SocketAddr::new(local.ip(), port), config.clone()).or_else(|why| {
        warn!(%why, port, "the UDP port of a lane is taken, so another is used; a firewall must let it pass");
        settings::endpoint_at(SocketAddr::new(local.ip(), 0), config)
    })
}

impl Acceptor for QuicAcceptor {
    fn address(&self) -> String {
        self.control.address()
    }

    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>> {
        Box::pin(std::future::poll_fn(|context| {
            if let Poll::Ready(Some(arrival)) = self.lanes.poll_recv(context) {
                return Poll::Ready(Ok(arrival));
            }
            self.control.poll_accept(context)
        }))
    }
}

/// One UDP port.
struct Port {
    endpoint: Endpoint,
    tls: Tls,
    pool: Pool,
    dropped: Arc<AtomicU64>,
}

impl Port {
    async fn run(self, to: mpsc::Sender<Arrival>) {
        let mut handshakes = JoinSet::new();
        let mut places = Places::new(HANDSHAKES_MAX);
        while let Some(incoming) = self.endpoint.accept().await {
            while let Some(done) = handshakes.try_join_next() {
                let done: Result<Result<(), ConnectError>, _> = done;
                if let Ok(Err(why)) = done {
                    debug!(%why, "lane refused");
                }
            }
            if handshakes.len() >= HANDSHAKES_MAX / 2 && !incoming.remote_address_validated() {
                // It comes again with a proof. An error means that it could not be asked.
                let _ = incoming.retry();
                continue;
            }
            let now = Instant::now();
            if places.full_until(now).is_some() {
                // It says the same again when nothing answers; by then there is room.
                incoming.ignore();
                self.count_dropped();
                continue;
            }
            let place = handshakes.spawn(arrive(incoming, self.tls.clone(), self.pool.clone(), to.clone()));
            if places.take(now, place) {
                self.count_dropped();
            }
        }
    }
}

impl Port {
    fn count_dropped(&self) {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        warn!(places = HANDSHAKES_MAX, dropped, "an arrival lost its place");
    }
}

/// One lane, from its first datagram to its arrival.
async fn arrive(
    incoming: Incoming,
    tls: Tls,
    pool: Pool,
    to: mpsc::Sender<Arrival>,
) -> Result<(), ConnectError> {
    let from = incoming.remote_address();
    let address = format!("{from} (UDP)");
    let handshake = async {
        let mut config = tls.quic_server();
        config.migration(false).transport_config(Arc::new(settings::transport(settings::path_to(from))));
        let connecting = incoming.accept_with(Arc::new(config)).map_err(|why| lost(&address, &why))?;
        let connection = connecting.await.map_err(|why| lost(&address, &why))?;
        let name = name_of(&connection, &address)?;
        // It comes with the first frame on it.
        let (sink, source) = connection.accept_bi().await.map_err(|why| lost(&address, &why))?;
        Ok((name, lane_over(connection, sink, source, &pool)))
    };
    let (name, control) = match tokio::time::timeout(CONNECT_MAX, handshake).await {
        Ok(done) => done?,
        Err(_) => {
            let why = format!("no lane within {CONNECT_MAX:?}");
            return Err(ConnectError::Unreachable { address, why });
        }
    };
    let lanes = OtherLanes::Awaited { data: None, weights: None };
    let peer = Vouched::Certificate(name);
    let connection = Connection { control, lanes, peer, address };
    // Nobody there any more: the acceptor is gone, and the lane with it.
    let _ = to.send(Arrival { connection, lane_only: true }).await;
    Ok(())
}
