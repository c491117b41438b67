//! How two ends meet over each carrier.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::memory::MemoryCarrier;
use phalanx_transport::carrier::quic::QuicCarrier;
use phalanx_transport::carrier::shm::{Doorbell, ShmAcceptor, ShmCarrier, ShmSettings};
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier, Later};
use phalanx_transport::link::Local;
use phalanx_transport::peer::{Arrived, DialError, Endpoint, Listener, Opened};
use phalanx_transport::security::{Authority, ClusterId, Credentials, Issuance, PeerName, Role, Tls, Utc};
use phalanx_transport::wire::PerLane;
use phalanx_transport::{Limits, link::Ended};

/// Longest that any case may take; it is there so that a hang says where.
const CASE_MAX: Duration = Duration::from_secs(60);

/// Runs a case on a runtime of its own.
pub(crate) fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(CASE_MAX, case).await.expect("the case hangs");
    });
    // Tasks that block are a bug of their own, and must not hide one.
    runtime.shutdown_timeout(Duration::from_secs(5));
}

/// A carrier and where its peers meet.
pub(crate) trait Place: Sync {
    fn carrier(&self) -> &dyn Carrier;
    /// A fresh acceptor.
    fn accept(&self) -> Later<'_, Box<dyn Acceptor>>;
    /// What a peer in another process needs to dial: the carrier's name, and a folder of credentials.
    fn child(&self) -> (&'static str, PathBuf);
    /// The cluster that certificates would name; anything where there are none.
    fn cluster(&self) -> ClusterId {
        ClusterId([7; 16])
    }
}

/// Small enough that a case fills them quickly.
pub(crate) fn small_limits() -> Limits {
    Limits {
        payload_bytes_max: PerLane { control: 1 << 20, data: 1 << 20, weights: 1 << 20 },
        window_bytes: PerLane { control: 4 << 20, data: 4 << 20, weights: 4 << 20 },
        ..Limits::default()
    }
}

/// What an end says of itself.
pub(crate) fn local(place: &dyn Place, role: Role) -> Local {
    Local {
        peer: PeerName { cluster: place.cluster(), role, name: name_of(role).to_owned() },
        program: "contract".to_owned(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: false,
    }
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Coordinator => "front",
        Role::Node => "node-3",
    }
}

/// Both ends of an open link, each with its memory.
pub(crate) struct Pair {
    pub(crate) node: Opened,
    pub(crate) node_pool: Pool,
    pub(crate) coordinator: Opened,
    pub(crate) coordinator_pool: Pool,
    pub(crate) listener: Listener,
}

/// A node dials a coordinator.
pub(crate) async fn pair(place: &dyn Place, limits: Limits) -> Pair {
    pair_of(place, limits, limits).await
}

pub(crate) async fn pair_of(place: &dyn Place, of_node: Limits, of_coordinator: Limits) -> Pair {
    let (node_pool, coordinator_pool) = (Pool::new(256 << 20), Pool::new(256 << 20));
    let coordinator =
        Endpoint::new(local(place, Role::Coordinator), of_coordinator, coordinator_pool.clone()).unwrap();
    let node = Endpoint::new(local(place, Role::Node), of_node, node_pool.clone()).unwrap();
    let mut listener = coordinator.listen(place.accept().await);
    let address = listener.address().to_owned();
    let (node, coordinator) =
        tokio::join!(async { node.dial(place.carrier(), &address).await.unwrap() }, listener.next_link());
    Pair { node, node_pool, coordinator, coordinator_pool, listener }
}

/// Dials as `node` says, and what both ends make of it when it is not a link.
pub(crate) async fn refused(
    place: &dyn Place,
    node: (Local, Limits),
    coordinator: (Local, Limits),
) -> (Ended, Ended) {
    let endpoint = |(local, limits)| Endpoint::new(local, limits, Pool::new(64 << 20)).unwrap();
    let mut listener = endpoint(coordinator).listen(place.accept().await);
    let address = listener.address().to_owned();
    let node = endpoint(node);
    let (dialled, arrived) = tokio::join!(node.dial(place.carrier(), &address), listener.next());
    let Err(DialError::Ended(ours)) = dialled else { panic!("it was dialled all the same") };
    let Arrived::Refused { why: theirs, .. } = arrived else { panic!("it arrived all the same") };
    (ours, theirs)
}

/// One process, no socket.
pub(crate) struct Memory(MemoryCarrier);

impl Memory {
    pub(crate) fn new() -> Self {
        Self(MemoryCarrier::default())
    }
}

impl Place for Memory {
    fn carrier(&self) -> &dyn Carrier {
        &self.0
    }

    fn accept(&self) -> Later<'_, Box<dyn Acceptor>> {
        // A name of its own each time, as a port would be.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coordinator-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Box::pin(async move { Box::new(self.0.listen(&name).unwrap()) as Box<dyn Acceptor> })
    }

    fn child(&self) -> (&'static str, PathBuf) {
        unreachable!("another process cannot reach this one's memory")
    }
}

/// TCP on loopback, in plain text or with mutual TLS.
pub(crate) struct Tcp {
    node: TcpCarrier,
    coordinator: TcpCarrier,
    cluster: ClusterId,
    certificates: Option<Certificates>,
}

impl Tcp {
    pub(crate) fn plain() -> Self {
        let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(256 << 20));
        Self { node: carrier.clone(), coordinator: carrier, cluster: ClusterId([7; 16]), certificates: None }
    }

    pub(crate) fn tls() -> Self {
        let certificates = Certificates::new();
        let carrier = |role| {
            let tls = certificates.tls(role);
            TcpCarrier::new(Protection::Tls(tls), Pool::new(256 << 20))
        };
        Self {
            node: carrier(Role::Node),
            coordinator: carrier(Role::Coordinator),
            cluster: certificates.authority.cluster(),
            certificates: Some(certificates),
        }
    }
}

impl Place for Tcp {
    fn carrier(&self) -> &dyn Carrier {
        &self.node
    }

    fn accept(&self) -> Later<'_, Box<dyn Acceptor>> {
        Box::pin(async {
            Box::new(self.coordinator.listen("127.0.0.1:0").await.unwrap()) as Box<dyn Acceptor>
        })
    }

    fn child(&self) -> (&'static str, PathBuf) {
        match &self.certificates {
            Some(certificates) => ("tcp-tls", certificates.node_folder()),
            None => ("tcp", PathBuf::new()),
        }
    }

    fn cluster(&self) -> ClusterId {
        self.cluster
    }
}

/// QUIC on loopback: always with TLS, and with a TCP connection beside it.
pub(crate) struct Quic {
    node: QuicCarrier,
    coordinator: QuicCarrier,
    cluster: ClusterId,
    certificates: Option<Certificates>,
}

impl Quic {
    pub(crate) fn new() -> Self {
        let certificates = Certificates::new();
        let carrier = |role| QuicCarrier::new(certificates.tls(role), Pool::new(256 << 20));
        Self {
            node: carrier(Role::Node),
            coordinator: carrier(Role::Coordinator),
            cluster: certificates.authority.cluster(),
            certificates: Some(certificates),
        }
    }
}

impl Place for Quic {
    fn carrier(&self) -> &dyn Carrier {
        &self.node
    }

    fn accept(&self) -> Later<'_, Box<dyn Acceptor>> {
        Box::pin(async {
            Box::new(self.coordinator.listen("127.0.0.1:0").await.unwrap()) as Box<dyn Acceptor>
        })
    }

    fn child(&self) -> (&'static str, PathBuf) {
        let certificates = self.certificates.as_ref().expect("the parent has them");
        ("quic", certificates.node_folder())
    }

    fn cluster(&self) -> ClusterId {
        self.cluster
    }
}

/// Shared memory, with its socket in a folder of its own.
pub(crate) struct Shm {
    carrier: ShmCarrier,
    doorbell: Doorbell,
    folder: Folder,
}

impl Shm {
    pub(crate) fn new() -> Self {
        let doorbell = Doorbell::new(Duration::from_micros(20)).unwrap();
        let carrier = ShmCarrier::new(ShmSettings::default(), Pool::new(256 << 20), &doorbell).unwrap();
        Self { carrier, doorbell, folder: Folder::new() }
    }
}

impl Place for Shm {
    fn carrier(&self) -> &dyn Carrier {
        &self.carrier
    }

    fn accept(&self) -> Later<'_, Box<dyn Acceptor>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}.sock", NEXT.fetch_add(1, Ordering::Relaxed));
        let address = format!("shm:{}", self.folder.0.join(name).display());
        Box::pin(async move {
            let pool = Pool::new(256 << 20);
            let acceptor = ShmAcceptor::bind(&address, ShmSettings::default(), pool, &self.doorbell).unwrap();
            Box::new(acceptor) as Box<dyn Acceptor>
        })
    }

    fn child(&self) -> (&'static str, PathBuf) {
        ("shm", PathBuf::new())
    }
}

/// A folder of one test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("phalanx-contract-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority of one test, and what it certifies.
pub(crate) struct Certificates {
    authority: Authority,
    folder: Folder,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        let authority = Authority::create(&folder.0.join("authority"), Utc::now()).unwrap();
        Self { authority, folder }
    }

    pub(crate) fn tls(&self, role: Role) -> Tls {
        let name = name_of(role);
        let what = Issuance { name, role, life: Duration::from_secs(3_600), replace: false };
        Tls::new(self.authority.issue(what, Utc::now()).unwrap()).unwrap()
    }
}

impl Certificates {
    /// Credentials of the node, for another process.
    fn node_folder(&self) -> PathBuf {
        let folder = self.folder.0.join("node-of-child");
        let what =
            Issuance { name: "node-3", role: Role::Node, life: Duration::from_secs(3_600), replace: true };
        self.authority.issue(what, Utc::now()).unwrap().create(&folder).unwrap();
        folder
    }
}

/// The dialling end of a place, in another process.
pub(crate) fn of_child(carrier: &str, folder: &Path) -> Box<dyn Place> {
    let pool = Pool::new(256 << 20);
    match carrier {
        "tcp" => Box::new(Tcp::plain()),
        "tcp-tls" => {
            let credentials = Credentials::load(folder).unwrap();
            let cluster = credentials.peer().cluster;
            let carrier = TcpCarrier::new(Protection::Tls(Tls::new(credentials).unwrap()), pool);
            Box::new(Tcp { node: carrier.clone(), coordinator: carrier, cluster, certificates: None })
        }
        "quic" => {
            let credentials = Credentials::load(folder).unwrap();
            let cluster = credentials.peer().cluster;
            let carrier = QuicCarrier::new(Tls::new(credentials).unwrap(), pool);
            Box::new(Quic { node: carrier.clone(), coordinator: carrier, cluster, certificates: None })
        }
        "shm" => Box::new(Shm::new()),
        other => panic!("no such carrier: {other}"),
    }
}
