//! The wires between nodes and their coordinator, as a relay of the harness: bytes of TCP connections, below TLS.
//!
//! Here a network does what networks do: it says nothing any more in one direction or in both, is late, damages a bit,
//! resets connections. Every node has a wire of its own, on a port of its own. What ends at one side ends at the other in the same
//! way, orderly or not, and an end is held up like the bytes before it: a node that cannot be heard cannot be heard to end.
//!
//! A shell on a thread of its own, so that no stream that is being answered waits for it. Whoever holds a [`Wire`] says how it is.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::Failure;
use crate::answers::Random;

/// Read at once.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that are on their way in one direction of a connection. More are left to the kernels of both ends.
const PIECES_MAX: usize = 64;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the node to its coordinator.
    Up,
    /// And back.
    Down,
}

impl Way {
    pub(super) const BOTH: [Self; 2] = [Self::Up, Self::Down];

    fn other(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// How a wire is.
#[derive(Debug, Clone, Default)]
struct Weather {
    /// Nothing comes through, by direction.
    is_held: [bool; 2],
    /// Everything comes so much later, and by a random time of at most `jitter` later than that.
    delay: Duration,
    jitter: Duration,
}

/// The way of one node to its coordinator and back, over all of its connections.
#[derive(Debug)]
pub(super) struct Wire {
    /// Where the node dials.
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Ends a connection with a reset, by the order in which they were made.
    lines: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
    /// Pieces that are to be damaged, by direction.
    damages: [AtomicU64; 2],
    random: Mutex<Random>,
}

/// Begins to relay to the coordinator at `door`: a wire for each of `nodes`. What is random on them, `seed` decides.
pub(super) fn start(door: SocketAddr, nodes: usize, seed: u64) -> Result<Vec<Arc<Wire>>, Failure> {
    let mut listeners = Vec::new();
    let mut wires = Vec::new();
    for number in 0..nodes as u64 {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let wire = Arc::new(Wire {
            address: listener.local_addr()?,
            weather: watch::Sender::new(Weather::default()),
            lines: Mutex::default(),
            next: AtomicU64::new(0),
            damages: Default::default(),
            random: Mutex::new(Random(seed ^ (number + 1) << 32)),
        });
        listeners.push((listener, Arc::clone(&wire)));
        wires.push(wire);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("relay".into()).spawn(move || {
        runtime.block_on(async {
            for (listener, wire) in listeners {
                let listening = TcpListener::from_std(listener).map(|listener| {
                    tokio::spawn(wire.relay(listener, door));
                });
                let _ = tell.send(listening);
            }
            // For as long as the program runs.
            std::future::pending::<()>().await;
        });
    })?;
    for _ in 0..nodes {
        told.recv().expect("the thread says how each listener is")?;
    }
    Ok(wires)
}

impl Wire {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing comes through in this direction, or everything again. What was sent meanwhile comes then, as TCP
    /// would send it again.
    pub(super) fn hold(&self, way: Way, is_held: bool) {
        self.weather.send_modify(|weather| weather.is_held[way as usize] = is_held);
    }

    /// From now on everything takes so much longer, and up to `jitter` more. A stream's bytes keep their order.
    pub(super) fn delay(&self, delay: Duration, jitter: Duration) {
        self.weather.send_modify(|weather| (weather.delay, weather.jitter) = (delay, jitter));
    }

    /// Resets one of the connections that stand, by its place in the order in which they were made, or all of them. How many
    /// it was.
    pub(super) fn reset(&self, which: Option<usize>) -> usize {
        let lines = self.lines();
        let named = |place: usize| which.is_none_or(|which| which % lines.len() == place);
        let chosen = lines.values().enumerate().filter(|(place, _)| named(*place));
        chosen.map(|(_, line)| line.notify_one()).count()
    }

    /// Turns one bit of the next piece that comes this way.
    pub(super) fn damage(&self, way: Way) {
        self.damages[way as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Pieces that are still to be damaged, of those that were asked for.
    pub(super) fn damages_left(&self, way: Way) -> u64 {
        self.damages[way as usize].load(Ordering::Relaxed)
    }

    /// All as it was: what is to be damaged still is not.
    pub(super) fn clear(&self) {
        self.weather.send_replace(Weather::default());
        self.damages.iter().for_each(|damages| damages.store(0, Ordering::Relaxed));
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self, bound: u32) -> u32 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(bound)
    }

    async fn relay(self: Arc<Self>, listener: TcpListener, door: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((node, _)) => drop(tokio::spawn(Arc::clone(&self).carry(node, door))),
                // No descriptors, for example: the node dials again.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// One connection, to its end.
    async fn carry(self: Arc<Self>, mut node: TcpStream, door: SocketAddr) {
        self.passable(Way::Up).await;
        let dialled = TcpStream::connect(door).await;
        let Ok(mut coordinator) = dialled else {
            self.passable(Way::Down).await;
            // Nobody is there: the node hears it as if it had dialled him.
            let _ = node.set_zero_linger();
            return;
        };
        // Without it small frames wait for the acknowledgement of those before.
        let _ = (node.set_nodelay(true), coordinator.set_nodelay(true));
        let line = Arc::new(Notify::new());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lines().insert(number, Arc::clone(&line));
        let is_orderly = {
            let ((from_node, to_node), (from_coordinator, to_coordinator)) =
                (node.split(), coordinator.split());
            let both = async {
                tokio::try_join!(
                    self.pump(Way::Up, from_node, to_coordinator),
                    self.pump(Way::Down, from_coordinator, to_node)
                )
            };
            tokio::select! {
                done = both => done.is_ok(),
                () = line.notified() => false,
            }
        };
        self.lines().remove(&number);
        if !is_orderly {
            let _ = (node.set_zero_linger(), coordinator.set_zero_linger());
        }
    }

    /// One direction of a connection, to its end. An error is a connection that was reset, told no sooner than it can be heard of.
    async fn pump(&self, way: Way, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let (queue, mut queued) = mpsc::channel(PIECES_MAX);
        let reading = async move {
            let mut piece = vec![0; PIECE_BYTES];
            let mut due = Instant::now();
            loop {
                let length = match from.read(&mut piece).await {
                    Ok(0) => return Ok(()),
                    Ok(length) => length,
                    Err(why) => {
                        self.passable(way).await;
                        return Err(why);
                    }
                };
                self.pass(way, &mut piece[..length]);
                due = due.max(self.due());
                if queue.send((due, piece[..length].to_vec())).await.is_err() {
                    return Ok(());
                }
            }
        };
        let writing = async move {
            while let Some((due, piece)) = queued.recv().await {
                if due > Instant::now() {
                    tokio::time::sleep_until(due).await;
                }
                self.passable(way).await;
                if let Err(why) = to.write_all(&piece).await {
                    self.passable(way.other()).await;
                    return Err(why);
                }
            }
            self.passable(way).await;
            to.shutdown().await
        };
        tokio::try_join!(reading, writing).map(drop)
    }

    /// Waits until something comes through in this direction.
    async fn passable(&self, way: Way) {
        let mut weather = self.weather.subscribe();
        let passable = weather.wait_for(|weather| !weather.is_held[way as usize]).await;
        drop(passable.expect("the wire outlives what it carries"));
    }

    /// When what has come now is to go on.
    fn due(&self) -> Instant {
        let (delay, jitter) = {
            let weather = self.weather.borrow();
            (weather.delay, weather.jitter)
        };
        let jitter_us = u32::try_from(jitter.as_micros()).unwrap_or(u32::MAX);
        Instant::now() + delay + Duration::from_micros(u64::from(self.below(jitter_us.saturating_add(1))))
    }

    /// Damages a piece, if one is to be.
    fn pass(&self, way: Way, piece: &mut [u8]) {
        let damages = &self.damages[way as usize];
        let one_less = |left: u64| left.checked_sub(1);
        if damages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            let bit = self.below(u32::try_from(8 * piece.len()).expect("a piece is short"));
            piece[bit as usize / 8] ^= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A coordinator's door, and a node's connection to it over a wire.
    async fn connected() -> (Arc<Wire>, TcpListener, TcpStream, TcpStream) {
        let door = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let wires = start(door.local_addr().expect("it has one"), 1, 7).expect("it starts");
        let wire = wires.into_iter().next().expect("one was asked for");
        let node = TcpStream::connect(wire.address()).await.expect("it listens");
        let (coordinator, _) = door.accept().await.expect("it is dialled");
        (wire, door, node, coordinator)
    }

    async fn hear(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).await.expect("it comes");
        bytes
    }

    /// Whether nothing comes for a while in which much would have come.
    async fn is_silent(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err()
    }

    #[tokio::test]
    async fn what_is_held_one_way_comes_later_and_whole() {
        let (wire, _door, mut node, mut coordinator) = connected().await;
        let much: Vec<u8> = (0..300_000_u32).map(|at| at as u8).collect();
        node.write_all(&much).await.expect("sent");
        assert_eq!(hear(&mut coordinator, much.len()).await, much);
        wire.hold(Way::Up, true);
        node.write_all(b"held").await.expect("sent");
        coordinator.write_all(b"not held").await.expect("sent");
        assert_eq!(hear(&mut node, 8).await, b"not held");
        assert!(is_silent(&mut coordinator).await);
        wire.hold(Way::Up, false);
        assert_eq!(hear(&mut coordinator, 4).await, b"held");
    }

    /// An end is news like any other, and as orderly at the other side as it was at this one.
    #[tokio::test]
    async fn ends_are_told_as_they_are_and_no_sooner_than_they_can_be() {
        let (wire, door, mut node, mut coordinator) = connected().await;
        wire.hold(Way::Down, true);
        coordinator.write_all(b"last").await.expect("sent");
        drop(coordinator);
        assert!(is_silent(&mut node).await);
        wire.clear();
        let mut last = Vec::new();
        node.read_to_end(&mut last).await.expect("an orderly end");
        assert_eq!(last, b"last");

        let mut node = TcpStream::connect(wire.address()).await.expect("it listens");
        let (coordinator, _) = door.accept().await.expect("it is dialled");
        coordinator.set_zero_linger().expect("it is a socket");
        drop(coordinator);
        let why = node.read(&mut [0]).await.expect_err("no orderly end");
        assert_eq!(why.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_is_one_at_both_ends() {
        let (wire, _door, mut node, mut coordinator) = connected().await;
        node.write_all(b"x").await.expect("sent");
        assert_eq!(hear(&mut coordinator, 1).await, b"x");
        assert_eq!(wire.reset(Some(5)), 1, "the fifth of one is that one");
        for end in [&mut node, &mut coordinator] {
            let why = end.read(&mut [0]).await.expect_err("a reset");
            assert_eq!(why.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn one_bit_is_damaged_and_once() {
        let (wire, _door, mut node, mut coordinator) = connected().await;
        wire.damage(Way::Down);
        assert_eq!(wire.damages_left(Way::Down), 1);
        for turned in [1, 0] {
            coordinator.write_all(&[0; 100]).await.expect("sent");
            let heard = hear(&mut node, 100).await;
            assert_eq!(heard.iter().map(|byte| byte.count_ones()).sum::<u32>(), turned);
        }
        assert_eq!(wire.damages_left(Way::Down), 0);
    }

    #[tokio::test]
    async fn a_delay_is_one_of_each_direction() {
        let (wire, _door, mut node, mut coordinator) = connected().await;
        wire.delay(Duration::from_millis(60), Duration::from_millis(10));
        let began = Instant::now();
        node.write_all(b"?").await.expect("sent");
        hear(&mut coordinator, 1).await;
        coordinator.write_all(b"!").await.expect("sent");
        hear(&mut node, 1).await;
        assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    }

    /// A coordinator that is not there is not there behind the relay either.
    #[tokio::test]
    async fn nobody_behind_it_is_nobody() {
        let (wire, door, node, coordinator) = connected().await;
        drop((door, node, coordinator));
        let mut node = TcpStream::connect(wire.address()).await.expect("the relay listens");
        assert!(node.read(&mut [0]).await.is_err(), "no orderly end");
    }
}
