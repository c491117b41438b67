//! Takes what arrives at an acceptor, and tells links from lanes of links.
//!
//! Whoever arrives has a bounded time and a bounded place until it is known. Nobody waits behind it: where
//! all places are taken the oldest arrival loses its own, so that connections which say nothing cannot keep
//! others out for longer than they themselves keep coming.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{JoinHandle, JoinSet};

use super::endpoint::Endpoint;
use super::handle::Opened;
use super::handshake::{hear, part};
use super::lock;
use crate::carrier::places::Places;
use crate::carrier::{Acceptor, Arrival, ConnectError, LaneEnds, Vouched};
use crate::link::{Ended, Side};
use crate::wire::control::{Attach, PROTOCOL, Refusal};
use crate::wire::{Control, Lane};

/// Arrivals that are not links yet.
const HANDSHAKES_MAX: usize = 256;
/// Links that nobody has taken from the listener yet.
const OPENED_MAX: usize = 64;

/// Links as peers open them. Dropped, it listens no more; open links go on.
pub struct Listener {
    address: String,
    arrived: mpsc::Receiver<Arrived>,
    accepting: JoinHandle<()>,
}

/// What came of an arrival.
pub enum Arrived {
    /// A link.
    Opened(Box<Opened>),
    /// Somebody came who was refused or gave up; for the log.
    Refused {
        /// Where from.
        address: String,
        /// Why.
        why: Ended,
    },
    /// Somebody came and the carrier did not take it, or the acceptor itself failed.
    Failed(ConnectError),
}

/// Links that wait for their lanes, by session.
type Waiting = Arc<Mutex<HashMap<[u8; 16], Expecting>>>;

struct Expecting {
    lanes: mpsc::Sender<(Lane, LaneEnds)>,
    peer: Vouched,
    missing: Vec<Lane>,
}

impl Listener {
    pub(super) fn start(endpoint: Endpoint, mut acceptor: Box<dyn Acceptor>) -> Self {
        let address = acceptor.address();
        let (opened, arrived) = mpsc::channel(OPENED_MAX);
        let accepting = tokio::spawn(async move {
            let mut places = Places::new(HANDSHAKES_MAX);
            let mut handshakes = JoinSet::new();
            let waiting = Waiting::default();
            loop {
                while handshakes.try_join_next().is_some() {}
                if let Some(until) = places.full_until(Instant::now()) {
                    let _ = tokio::time::timeout_at(until.into(), handshakes.join_next()).await;
                    continue;
                }
                match acceptor.accept().await {
                    Ok(arrival) => {
                        let (endpoint, opened, waiting) =
                            (endpoint.clone(), opened.clone(), Arc::clone(&waiting));
                        let place = handshakes.spawn(receive(endpoint, arrival, opened, waiting));
                        if places.take(Instant::now(), place) {
                            tracing::warn!(
                                max = HANDSHAKES_MAX,
                                "too many handshakes, the oldest is given up"
                            );
                        }
                    }
                    Err(error) => {
                        // Mostly somebody who came and was none; they may be many, and delay nobody.
                        if let Err(TrySendError::Closed(_)) = opened.try_send(Arrived::Failed(error)) {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        Self { address, arrived, accepting }
    }

    /// Where it listens, as a peer of this host would dial it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What came next, links and refusals.
    pub async fn next(&mut self) -> Arrived {
        match self.arrived.recv().await {
            Some(arrived) => arrived,
            // The runtime that accepted is being shut down: nobody comes any more.
            None => std::future::pending().await,
        }
    }

    /// The next link; who was refused is passed over with a line in the log.
    pub async fn next_link(&mut self) -> Opened {
        loop {
            match self.next().await {
                Arrived::Opened(opened) => return *opened,
                Arrived::Refused { address, why } => tracing::info!(%address, %why, "peer refused"),
                Arrived::Failed(error) => tracing::warn!(%error, "an arrival failed"),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One arrival: a link or a lane, said by its first frame.
async fn receive(endpoint: Endpoint, arrival: Arrival, opened: mpsc::Sender<Arrived>, waiting: Waiting) {
    let Arrival { mut connection, lane_only } = arrival;
    let address = connection.address.clone();
    let first =
        tokio::time::timeout(endpoint.limits().handshake_max, hear(&mut *connection.control.receiver)).await;
    let refused = |why: Ended| Arrived::Refused { address: address.clone(), why };
    let result = match first {
        Ok(Ok(Control::Attach(attach))) => {
            match expected(&waiting, &attach, &connection.peer) {
                Ok(lanes) => {
                    // Nobody there: that link has given up, and this lane goes with it.
                    let _ = lanes.send((attach.lane, connection.control)).await;
                    return;
                }
                Err(refusal) => {
                    let why =
                        format!("it wanted to attach a {} lane, and was refused: {refusal}", attach.lane);
                    part(connection.control, endpoint.pool(), &Control::Refused(refusal)).await;
                    refused(Ended::stranger(&address, why))
                }
            }
        }
        Ok(Ok(message)) if !lane_only => {
            let session = random();
            let peer = connection.peer.clone();
            let mut handshake = endpoint.handshake(Side::Accepted, connection, session);
            let _expecting = (handshake.data.is_none()).then(|| {
                let (lanes, arriving) = mpsc::channel(2);
                handshake.arriving = Some(arriving);
                let missing = vec![Lane::Data, Lane::Weights];
                Registered::new(&waiting, session, Expecting { lanes, peer, missing })
            });
            handshake.link.handle_control(message, Instant::now());
            match handshake.run().await {
                Ok(opened) => Arrived::Opened(Box::new(opened)),
                Err(why) => refused(why),
            }
        }
        Ok(Ok(other)) => refused(Ended::stranger(&address, format!("it began a lane with {other:?}"))),
        Ok(Err(why)) => {
            if let Some(last_word) = why.answer() {
                part(connection.control, endpoint.pool(), &last_word).await;
            }
            refused(Ended::stranger(&address, why.to_string()))
        }
        Err(_) => refused(Ended::stranger(&address, "it did not say who it is in time".to_owned())),
    };
    match result {
        // The listener may be gone: then so is whoever wanted the link.
        Arrived::Opened(_) => drop(opened.send(result).await),
        // Those who are refused may be many, and nobody has to read of them all.
        _ => drop(opened.try_send(result)),
    }
}

/// Where a lane is waited for: once, and from the same peer only.
fn expected(
    waiting: &Waiting,
    attach: &Attach,
    peer: &Vouched,
) -> Result<mpsc::Sender<(Lane, LaneEnds)>, Refusal> {
    if attach.protocol != PROTOCOL {
        return Err(Refusal::Protocol { theirs: attach.protocol, ours: PROTOCOL });
    }
    let mut waiting = lock(waiting);
    let expecting = waiting.get_mut(&attach.session).filter(|expecting| expecting.peer == *peer);
    let expecting = expecting.ok_or(Refusal::Attach)?;
    let place = expecting.missing.iter().position(|lane| *lane == attach.lane).ok_or(Refusal::Attach)?;
    expecting.missing.remove(place);
    Ok(expecting.lanes.clone())
}

/// A session that waits for lanes, until it is dropped.
struct Registered {
    waiting: Waiting,
    session: [u8; 16],
}

impl Registered {
    fn new(waiting: &Waiting, session: [u8; 16], expecting: Expecting) -> Self {
        lock(waiting).insert(session, expecting);
        Self { waiting: Arc::clone(waiting), session }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.session);
    }
}

/// Sixteen bytes that nobody can guess.
fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the operating system gives random bytes");
    bytes
}
