//! A coordinator that is attacked, and a node that works with it all the while.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::quic::QuicCarrier;
use phalanx_transport::carrier::shm::{Doorbell, ShmAcceptor, ShmCarrier, ShmSettings};
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier};
use phalanx_transport::link::Local;
use phalanx_transport::peer::{Arrived, Endpoint, Opened, Peer};
use phalanx_transport::security::{Authority, ClusterId, Issuance, PeerName, Role, Tls, Utc};
use phalanx_transport::wire::{Header, Kind, PerLane};
use phalanx_transport::{Frame, Limits};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Nothing here takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// More than this process may grow by one attack. Pools of both ends and what the host's libraries keep.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// What the coordinator may have in payloads.
const POOL_BYTES: u64 = 32 << 20;

/// Dispatches of this layer are never answered.
pub(crate) const KEPT: u32 = 99;

/// Small, so that they are reached soon.
pub(crate) fn limits() -> Limits {
    Limits {
        payload_bytes_max: PerLane { control: 32 << 10, data: 64 << 10, weights: 64 << 10 },
        window_bytes: PerLane { control: 128 << 10, data: 256 << 10, weights: 256 << 10 },
        in_flight_max: 64,
        heartbeat_every: Duration::from_millis(50),
        silence_max: Duration::from_secs(2),
        handshake_max: Duration::from_secs(1),
        drain_max: Duration::from_secs(2),
    }
}

pub(crate) fn local(cluster: ClusterId, role: Role, name: &str) -> Local {
    Local {
        peer: PeerName { cluster, role, name: name.to_owned() },
        program: "hostile".to_owned(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: false,
    }
}

/// Numbers that look like chance and are the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// What the target is reached over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Plain,
    Tls,
    Quic,
    Shm,
}

/// Runs an attack, one at a time: memory, descriptors and panics are counted for the whole process.
pub(crate) fn attack<F: Future<Output = Target>>(over: Over, attack: impl FnOnce(Target) -> F) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    count_panics();
    let panics = PANICS.load(Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut target = Target::start(over).await;
        // What is made once for all, the pools' first slabs say, is there before anything is counted.
        target.honest.rounds(50).await;
        let before = (descriptors(), resident_bytes());
        let mut target = tokio::time::timeout(4 * PATIENCE, attack(target)).await.expect("the attack hangs");
        target.honest.rounds(50).await;
        let deadline = Instant::now() + PATIENCE;
        while descriptors() > before.0 {
            assert!(Instant::now() < deadline, "{} descriptors, {} before", descriptors(), before.0);
            target.honest.rounds(1).await;
        }
        let grown = resident_bytes().saturating_sub(before.1);
        assert!(grown <= GROWTH_BYTES_MAX, "the process has grown by {grown} bytes");
        target.end().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    assert_eq!(PANICS.load(Ordering::SeqCst), panics, "something panicked");
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// A task that panics is a task that ended: nobody would see it.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            said(panic);
        }));
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A folder that goes with its test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("phalanx-hostile-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority and what it certifies.
pub(crate) struct Certificates {
    pub(crate) authority: Authority,
    _folder: Folder,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        let authority = Authority::create(&folder.0.join("authority"), Utc::now()).unwrap();
        Self { authority, _folder: folder }
    }

    pub(crate) fn tls(&self, role: Role, name: &str) -> Tls {
        let what = Issuance { name, role, life: Duration::from_secs(3_600), replace: false };
        Tls::new(self.authority.issue(what, Utc::now()).unwrap()).unwrap()
    }
}

/// The coordinator, its good node, and what it said of the others.
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) cluster: ClusterId,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) honest: Honest,
    /// To the coordinator's end of each link that opened, as they come, but for the good one.
    pub(crate) opened: mpsc::UnboundedReceiver<Peer>,
    pool: Pool,
    ends: mpsc::UnboundedReceiver<String>,
    heard: Vec<String>,
    serving: JoinHandle<()>,
    carrier: Box<dyn Carrier>,
    _folder: Folder,
}

impl Target {
    async fn start(over: Over) -> Self {
        let (folder, pool) = (Folder::new(), Pool::new(POOL_BYTES));
        let certificates = matches!(over, Over::Tls | Over::Quic).then(Certificates::new);
        let cluster = certificates.as_ref().map_or(ClusterId([7; 16]), |made| made.authority.cluster());
        let tls = |role, name| certificates.as_ref().unwrap().tls(role, name);
        let nodes = Pool::new(POOL_BYTES);
        let (acceptor, carrier): (Box<dyn Acceptor>, Box<dyn Carrier>) = match over {
            Over::Plain | Over::Tls => {
                let protection = |role, name| match over {
                    Over::Plain => Protection::Plaintext(Plaintext::Loopback),
                    _ => Protection::Tls(tls(role, name)),
                };
                let carrier = TcpCarrier::new(protection(Role::Coordinator, "front"), pool.clone());
                let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
                (Box::new(acceptor), Box::new(TcpCarrier::new(protection(Role::Node, "good"), nodes.clone())))
            }
            Over::Quic => {
                let carrier = QuicCarrier::new(tls(Role::Coordinator, "front"), pool.clone());
                let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
                (Box::new(acceptor), Box::new(QuicCarrier::new(tls(Role::Node, "good"), nodes.clone())))
            }
            Over::Shm => {
                let doorbell = Doorbell::new(Duration::from_micros(20)).unwrap();
                let address = format!("shm:{}", folder.0.join("front.sock").display());
                let settings = ShmSettings::default();
                let acceptor = ShmAcceptor::bind(&address, settings, pool.clone(), &doorbell).unwrap();
                let carrier = ShmCarrier::new(ShmSettings::default(), nodes.clone(), &doorbell).unwrap();
                (Box::new(acceptor), Box::new(carrier))
            }
        };
        let coordinator =
            Endpoint::new(local(cluster, Role::Coordinator, "front"), limits(), pool.clone()).unwrap();
        let mut listener = coordinator.listen(acceptor);
        let address = listener.address().to_owned();
        let (says, ends) = mpsc::unbounded_channel();
        let (opens, opened) = mpsc::unbounded_channel();
        let serving = tokio::spawn({
            let pool = pool.clone();
            async move {
                loop {
                    match listener.next().await {
                        Arrived::Opened(opened) => {
                            if opened.peer.hello().peer.name != "good" {
                                let _ = opens.send(opened.peer.clone());
                            }
                            tokio::spawn(serve(*opened, pool.clone(), says.clone()));
                        }
                        Arrived::Refused { why, .. } => drop(says.send(why.to_string())),
                        Arrived::Failed(why) => drop(says.send(why.to_string())),
                    }
                }
            }
        });
        let node = Endpoint::new(local(cluster, Role::Node, "good"), limits(), nodes.clone()).unwrap();
        let link = node.dial(&*carrier, &address).await.unwrap();
        let honest = Honest::start(link, nodes);
        Self {
            address,
            cluster,
            certificates,
            honest,
            opened,
            pool,
            ends,
            heard: Vec::new(),
            serving,
            carrier,
            _folder: folder,
        }
    }

    /// What the coordinator said when the link of `whom`, or the connection from there, ended.
    pub(crate) async fn end_of(&mut self, whom: &str) -> String {
        if let Some(at) = self.heard.iter().position(|end| end.contains(whom)) {
            return self.heard.swap_remove(at);
        }
        let heard = async {
            loop {
                let end = self.ends.recv().await.expect("the coordinator lives");
                if end.contains(whom) {
                    return end;
                }
                self.heard.push(end);
            }
        };
        let waited = tokio::time::timeout(PATIENCE, heard).await;
        waited.unwrap_or_else(|_| panic!("nothing was said of {whom}, only {:?}", self.heard))
    }

    /// Another good peer comes, works and goes; how long it took until its link was open.
    pub(crate) async fn another_comes(&mut self) -> Duration {
        let began = Instant::now();
        let pool = Pool::new(POOL_BYTES);
        let node = Endpoint::new(local(self.cluster, Role::Node, "good"), limits(), pool.clone()).unwrap();
        let link = node.dial(&*self.carrier, &self.address).await.unwrap();
        let took = began.elapsed();
        let mut honest = Honest::start(link, pool);
        honest.rounds(3).await;
        honest.stop().await;
        took
    }

    /// Everything is given back.
    async fn end(self) {
        let Self { honest, pool, serving, .. } = self;
        honest.stop().await;
        serving.abort();
        let _ = serving.await;
        let deadline = Instant::now() + PATIENCE;
        while pool.stats().out_bytes > 0 {
            assert!(Instant::now() < deadline, "still out: {:?}", pool.stats());
            tokio::task::yield_now().await;
        }
    }
}

/// Sends back what comes, until the link ends.
async fn serve(opened: Opened, pool: Pool, says: mpsc::UnboundedSender<String>) {
    let Opened { peer, mut data, mut weights, notices: _notices } = opened;
    let receiving = tokio::spawn(async move { while let Ok(Some(_)) = weights.receive().await {} });
    let mut kept = Vec::new();
    while let Ok(Some(frame)) = data.receive().await {
        if frame.header.layer == KEPT {
            kept.push(frame);
            continue;
        }
        let header = Header { kind: Kind::Return, payload_crc: 0, ..frame.header };
        let Some(back) = pool.copy_of(&frame.payload) else { break };
        drop(frame);
        if peer.send(Frame::new(header, back)).await.is_err() {
            break;
        }
    }
    let ended = peer.closed().await;
    receiving.await.unwrap();
    let _ = says.send(ended.to_string());
}

/// A node whose rows go to and fro.
pub(crate) struct Honest {
    rounds: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    working: JoinHandle<()>,
}

impl Honest {
    fn start(link: Opened, pool: Pool) -> Self {
        let (told, rounds) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let working = tokio::spawn(work(link, pool, told, stopped));
        Self { rounds, stop, working }
    }

    /// Waits for so many more.
    pub(crate) async fn rounds(&mut self, count: u64) {
        let until = *self.rounds.borrow() + count;
        let waited = tokio::time::timeout(PATIENCE, self.rounds.wait_for(|rounds| *rounds >= until)).await;
        waited.expect("the good link stands still").expect("the good link was disturbed");
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.working).await.expect("the good link hangs").unwrap();
    }
}

async fn work(mut link: Opened, pool: Pool, told: watch::Sender<u64>, stopped: watch::Receiver<bool>) {
    const AT_ONCE: u64 = 4;
    let mut numbers = Numbers(1);
    let mut round = 0;
    while !*stopped.borrow() {
        let mut sent = Vec::new();
        for at in 0..AT_ONCE {
            let length = numbers.below(8_000) as usize;
            let rows = numbers.bytes(length);
            let dispatch = round * AT_ONCE + at;
            let mut header = Header::of_bytes(Kind::Dispatch, dispatch, rows.len() as u32);
            header.remaining_us = 60_000_000;
            link.peer.send(Frame::new(header, pool.copy_of(&rows).unwrap())).await.unwrap();
            sent.push((dispatch, rows));
        }
        for (dispatch, rows) in sent {
            let frame = link.data.receive().await.unwrap().expect("it is answered");
            assert_eq!(frame.header.dispatch, dispatch);
            assert!(frame.payload[..] == rows[..], "other rows came back");
        }
        round += 1;
        told.send_replace(round);
    }
    let Opened { peer, mut data, mut weights, .. } = link;
    let (ended, ..) = tokio::join!(peer.drain(), data.receive(), weights.receive());
    assert!(ended.in_order(), "{ended}");
}
