//! The memory carrier: peers in one process. Frames are handed over, never copied.
//!
//! A lane is a queue behind a lock. It is never full: the link's credits bound what stands in it. Whoever
//! drops an end without finishing it has died, as far as the other end can tell.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc;

use super::{
    Acceptor, Arrival, Carrier, ConnectError, Connection, LaneEnds, LaneError, LaneReceiver, LaneSender,
    Later, OtherLanes, Outbox, Vouched,
};
use crate::Frame;
use crate::wire::HeaderError;

const NAME: &str = "memory";
/// Dialled connections that nobody has accepted yet; further diallers wait.
const ARRIVALS_MAX: usize = 64;

/// The addresses of one process. Clones know the same addresses.
#[derive(Debug, Clone, Default)]
pub struct MemoryCarrier {
    listeners: Arc<Mutex<HashMap<String, mpsc::Sender<Arrival>>>>,
}

/// Where peers of this process arrive.
pub struct MemoryAcceptor {
    address: String,
    arrivals: mpsc::Receiver<Arrival>,
    carrier: MemoryCarrier,
}

impl MemoryCarrier {
    /// Listens under a name.
    pub fn listen(&self, address: &str) -> Result<MemoryAcceptor, ConnectError> {
        let mut listeners = lock(&self.listeners);
        if listeners.contains_key(address) {
            return Err(ConnectError::InUse { address: address.to_owned() });
        }
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        listeners.insert(address.to_owned(), sender);
        Ok(MemoryAcceptor { address: address.to_owned(), arrivals, carrier: self.clone() })
    }
}

impl Carrier for MemoryCarrier {
    fn dial<'a>(&'a self, address: &'a str) -> Later<'a, Result<Connection, ConnectError>> {
        Box::pin(async move {
            let unreachable = || ConnectError::Unreachable {
                address: address.to_owned(),
                why: "nobody listens under this name in this process".to_owned(),
            };
            let listener = lock(&self.listeners).get(address).cloned().ok_or_else(unreachable)?;
            let (ours, theirs) = connect(address);
            let arrival = Arrival { connection: theirs, lane_only: false };
            listener.send(arrival).await.map_err(|_| unreachable())?;
            Ok(ours)
        })
    }
}

impl Acceptor for MemoryAcceptor {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>> {
        Box::pin(async move {
            // The carrier keeps a sender as long as this acceptor lives.
            Ok(self.arrivals.recv().await.expect("the list of listeners holds a sender"))
        })
    }
}

impl Drop for MemoryAcceptor {
    fn drop(&mut self) {
        lock(&self.carrier.listeners).remove(&self.address);
    }
}

/// Both ends of a connection that needs no listener.
pub fn connect(address: &str) -> (Connection, Connection) {
    let [(control, control_of_peer), (data, data_of_peer), (weights, weights_of_peer)] =
        [lane_pair(), lane_pair(), lane_pair()];
    let connection = |control, data, weights| Connection {
        control,
        lanes: OtherLanes::Ready { data, weights },
        peer: Vouched::Nobody,
        address: format!("{NAME}:{address}"),
    };
    (connection(control, data, weights), connection(control_of_peer, data_of_peer, weights_of_peer))
}

fn lane_pair() -> (LaneEnds, LaneEnds) {
    let [there, back] = [(); 2].map(|()| Arc::new(Mutex::new(Way::default())));
    let ends = |out: &Arc<Mutex<Way>>, home: &Arc<Mutex<Way>>| LaneEnds {
        sender: Box::new(MemorySender { way: Arc::clone(out), finished: false }),
        receiver: Box::new(MemoryReceiver {
            way: Arc::clone(home),
            payload_bytes_max: super::HANDSHAKE_BYTES_MAX,
        }),
    };
    (ends(&there, &back), ends(&back, &there))
}

/// One direction of a lane.
#[derive(Debug, Default)]
struct Way {
    frames: Outbox,
    ended: Option<End>,
    receiver_gone: bool,
    waiting: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Cut,
}

struct MemorySender {
    way: Arc<Mutex<Way>>,
    finished: bool,
}

struct MemoryReceiver {
    way: Arc<Mutex<Way>>,
    payload_bytes_max: u64,
}

impl LaneSender for MemorySender {
    fn poll_send(&mut self, _: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        let mut way = lock(&self.way);
        if way.receiver_gone {
            return Poll::Ready(Err(LaneError::Cut("the peer has dropped it".to_owned())));
        }
        if way.frames.is_empty() {
            std::mem::swap(&mut way.frames, outbox);
        } else {
            way.frames.append(outbox);
        }
        let waiting = way.waiting.take();
        drop(way);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        self.finished = true;
        end(&self.way, End::Finished);
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemorySender {
    fn drop(&mut self) {
        if !self.finished {
            end(&self.way, End::Cut);
        }
    }
}

fn end(way: &Mutex<Way>, how: End) {
    let mut way = lock(way);
    way.ended.get_or_insert(how);
    let waiting = way.waiting.take();
    drop(way);
    if let Some(waiting) = waiting {
        waiting.wake();
    }
}

impl LaneReceiver for MemoryReceiver {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        let mut way = lock(&self.way);
        if let Some(frame) = way.frames.pop_front() {
            let (payload, max) = (frame.payload.len() as u64, self.payload_bytes_max);
            return Poll::Ready(if payload > max {
                Err(HeaderError::TooLong { payload, max }.into())
            } else {
                Ok(Some(frame))
            });
        }
        match way.ended {
            Some(End::Finished) => Poll::Ready(Ok(None)),
            Some(End::Cut) => Poll::Ready(Err(LaneError::Cut("the peer has dropped it".to_owned()))),
            None => {
                match &mut way.waiting {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.payload_bytes_max = payload_bytes_max;
    }
}

impl Drop for MemoryReceiver {
    fn drop(&mut self) {
        let frames = {
            let mut way = lock(&self.way);
            way.receiver_gone = true;
            std::mem::take(&mut way.frames)
        };
        // Outside of the lock: dropping frames runs code of others.
        drop(frames);
    }
}

/// Nothing that holds one of these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
