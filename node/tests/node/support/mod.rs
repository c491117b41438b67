//! What the tests of this crate share: nodes in this process, and a coordinator that is nothing but this file.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(unreachable_pub, reason = "a test file has no outside")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::experts::{Experts, Groups, LocalExperts};
use model::kernel::{Kernels, NumericClass, RowType, round_bf16};
use model::load::{self, Opened as OpenedModel, Progress, Request};
use model::pool::Pool as ComputePool;
use model::rows::{RowBuffer, ValuesMut};
use model::weights::{ExpertId, Manifest};
use phalanx_node::runtime::Actors;
use phalanx_node::settings::{BATCH_ROWS_MAX, LEAVE_MAX};
use phalanx_node::source::OwnCopy;
use phalanx_node::{CoordinatorAddress, NodeHandle, Runtime, RuntimeSettings, Settings};
use transport::buffer::Pool;
use transport::carrier::memory::MemoryCarrier;
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::carrier::{Acceptor, Carrier, ConnectError};
use transport::link::Local;
use transport::peer::{Endpoint, Inlet, Listener, Notice, Notices, Opened, Peer};
use transport::security::{ClusterId, PeerName, Role};
use transport::wire::cluster::{
    ActorId, Assignment, Cluster, Epoch, Hold, Holding, Join, Joined, ToCoordinator, ToNode,
};
use transport::wire::control::NumericIdentity;
use transport::wire::groups::{Group, Reason, ReturnGroups, dispatch_table_bytes, write_dispatch};
use transport::wire::{Element, Header, Kind};
use transport::{Frame, Limits};

/// Longest that any case may take; it is there so that a hang says where.
const CASE_MAX: Duration = Duration::from_secs(60);
pub const CLUSTER: ClusterId = phalanx_node::settings::UNNAMED_CLUSTER;

/// Runs a case on a runtime of its own.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(CASE_MAX, case).await.expect("the case hangs");
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn demo() -> PathBuf {
    root().join("demo-model")
}

/// Random numbers that a seed repeats.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit as u64) as usize
    }
}

/// A model, with all its experts in this process: what the nodes' rows are held against.
pub struct Truth {
    pub dir: PathBuf,
    pub opened: Arc<OpenedModel>,
    pub kernels: Kernels,
    pub experts: LocalExperts,
    pub manifest: Manifest,
}

impl Truth {
    pub fn new(dir: PathBuf, kernels: Kernels) -> Self {
        let opened = Arc::new(OpenedModel::open(&dir).unwrap());
        let (ids, known) = (opened.experts(), Manifest::default());
        let request =
            Request { kernels, threads: 1, trunk: false, experts: &ids, digests: true, known: &known };
        let loaded = load::load(&opened, &request, &Progress::default()).unwrap();
        let pool = Arc::new(ComputePool::new(1, None));
        let experts = LocalExperts::new(kernels, pool, loaded.experts);
        Self { dir, opened, kernels, experts, manifest: loaded.manifest }
    }

    pub fn of_demo() -> Self {
        Self::new(demo(), Kernels::for_class(NumericClass::Portable).unwrap())
    }

    pub fn hidden(&self) -> usize {
        self.opened.spec.hidden
    }

    /// The first layer with experts, and how many it has.
    pub fn layer(&self) -> (u32, u32) {
        let (layer, moe) = self.opened.spec.moe_layers().next().unwrap();
        (layer as u32, moe.experts as u32)
    }

    pub fn config(&self) -> Vec<u8> {
        std::fs::read(self.dir.join("config.json")).unwrap()
    }

    pub fn rows(&self, random: &mut Random, count: usize) -> RowBuffer {
        let mut rows = RowBuffer::new(self.kernels.class().row_type());
        rows.reset(count, self.hidden());
        let mut value = || random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        match rows.values_mut() {
            ValuesMut::Bf16(values) => values.iter_mut().for_each(|v| *v = round_bf16(value())),
            ValuesMut::F32(values) => values.iter_mut().for_each(|v| *v = value()),
        }
        rows
    }

    /// What an expert makes of some of the rows.
    pub fn compute(&mut self, layer: u32, expert: u32, rows: &RowBuffer, picked: &[u32]) -> Vec<u8> {
        let groups = Groups {
            experts: vec![expert],
            starts: vec![0, picked.len()],
            rows: picked.to_vec(),
            slots: Vec::new(),
        };
        let mut out = RowBuffer::new(self.kernels.class().row_type());
        out.reset(picked.len(), self.hidden());
        self.experts.compute(layer as usize, rows, &groups, &mut out).unwrap();
        bytes_of(&mut out)
    }

    pub fn assignment(&self, layer: u32, expert: u32, device: u16) -> Assignment {
        let digest = self.manifest.experts[&ExpertId { layer, expert }];
        Assignment { actor: actor(layer, expert), device, digest: Some(*digest.0.as_bytes()) }
    }
}

pub fn actor(layer: u32, expert: u32) -> ActorId {
    ActorId { layer, expert, replica: 0, shard: 0 }
}

pub fn bytes_of(rows: &mut RowBuffer) -> Vec<u8> {
    match rows.values_mut() {
        ValuesMut::Bf16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ValuesMut::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// Threads for nodes.
pub fn runtime(kernels: Kernels) -> Runtime {
    let pool = Arc::new(ComputePool::new(2, None));
    let settings =
        RuntimeSettings { kernels, pool, actors: Actors::Own(1), spin: Duration::ZERO, on_busy: None };
    Runtime::start(settings).unwrap()
}

pub fn numeric(kernels: Kernels) -> NumericIdentity {
    NumericIdentity { class: kernels.class().to_string(), fingerprint: [1; 32] }
}

/// A node of the truth's model, with its own copy of it.
pub fn settings(truth: &Truth, name: &str, coordinators: Vec<CoordinatorAddress>) -> Settings {
    Settings {
        name: name.to_owned(),
        cluster: CLUSTER,
        incarnation: 1,
        numeric: numeric(truth.kernels),
        labels: vec![("rack".to_owned(), "r1".to_owned())],
        devices: vec![1 << 30; 2],
        coordinators,
        own_copy: Some(Arc::new(OwnCopy::new(Arc::clone(&truth.opened), None))),
        experts_folder: None,
        limits: Limits::default(),
        buffers: Pool::new(1 << 30),
        batch_rows_max: BATCH_ROWS_MAX,
        leave_max: LEAVE_MAX,
        links: None,
        emulation: None,
    }
}

pub fn start(runtime: &Runtime, settings: Settings) -> NodeHandle {
    phalanx_node::start(runtime, settings).unwrap()
}

/// What a coordinator says of itself.
pub fn local(name: &str, numeric: Option<NumericIdentity>) -> Local {
    Local {
        peer: PeerName { cluster: CLUSTER, role: Role::Coordinator, name: name.to_owned() },
        program: "test".to_owned(),
        incarnation: 1,
        numeric,
        row_bytes: 0,
        mixed_classes: false,
    }
}

/// Where nodes find a coordinator.
pub struct Door {
    pub carrier: Arc<dyn Carrier>,
    pub address: String,
    listener: Listener,
    pool: Pool,
}

impl Door {
    /// In this process, under a name.
    pub fn memory(carrier: &MemoryCarrier, name: &str, kernels: Kernels) -> Self {
        // An earlier listener of this name gives it up as soon as its task has been stopped.
        let mut listened = carrier.listen(name);
        while matches!(listened, Err(ConnectError::InUse { .. })) {
            std::thread::yield_now();
            listened = carrier.listen(name);
        }
        let acceptor = listened.unwrap();
        Self::of(Arc::new(carrier.clone()), Box::new(acceptor), local(name, Some(numeric(kernels))))
    }

    /// Over TCP on loopback.
    pub async fn tcp(kernels: Kernels) -> Self {
        let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 30));
        let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
        Self::of(Arc::new(carrier), Box::new(acceptor), local("tcp", Some(numeric(kernels))))
    }

    pub fn of(carrier: Arc<dyn Carrier>, acceptor: Box<dyn Acceptor>, local: Local) -> Self {
        let pool = Pool::new(1 << 30);
        let listener = Endpoint::new(local, Limits::default(), pool.clone()).unwrap().listen(acceptor);
        let address = listener.address().to_owned();
        Self { carrier, address, listener, pool }
    }

    pub fn address(&self) -> CoordinatorAddress {
        CoordinatorAddress { carrier: Arc::clone(&self.carrier), address: self.address.clone() }
    }

    /// The next node's link, before anything was said.
    pub async fn link(&mut self) -> Coordinator {
        let Opened { peer, data, weights, notices } = self.listener.next_link().await;
        // Nodes send no tensors; the link goes on receiving there until it ends.
        drop(weights);
        Coordinator { peer, data, notices, pool: self.pool.clone(), next: 1 }
    }

    /// The next node, joined, and what it said.
    pub async fn joined(&mut self, truth: &Truth) -> (Coordinator, Join) {
        let mut coordinator = self.link().await;
        let ToCoordinator::Join(join) = coordinator.told().await else { panic!("a node begins with Join") };
        coordinator.tell(ToNode::Joined(Joined { node: 0, term: 1, config: truth.config(), shards: 1 }));
        (coordinator, join)
    }
}

/// A link with one node, at the coordinator's end.
pub struct Coordinator {
    pub peer: Peer,
    pub data: Inlet,
    pub notices: Notices,
    pub pool: Pool,
    next: u64,
}

/// What became of a dispatch.
pub type Answer = Result<Vec<u8>, Reason>;

impl Coordinator {
    pub fn tell(&self, message: ToNode) {
        self.peer.tell(Cluster::ToNode(message)).unwrap();
    }

    /// The next thing that the node says.
    pub async fn told(&mut self) -> ToCoordinator {
        loop {
            match self.notices.next().await.expect("the link stands") {
                Notice::Told(Cluster::ToCoordinator(message)) => return message,
                Notice::Told(Cluster::ToNode(message)) => panic!("a node said {message:?}"),
                _ => {}
            }
        }
    }

    /// The next `Holding`; progress and loads are passed over.
    pub async fn holding(&mut self) -> Holding {
        match self.news().await {
            ToCoordinator::Holding(holding) => holding,
            other => panic!("{other:?} instead of Holding"),
        }
    }

    pub fn order(&self, term: u64, number: u64, actors: Vec<Assignment>) {
        self.tell(ToNode::Hold(Hold { epoch: Epoch { term, number }, actors }));
    }

    /// The next thing that the node says of its state; progress and loads are passed over.
    pub async fn news(&mut self) -> ToCoordinator {
        loop {
            match self.told().await {
                ToCoordinator::Progress(_) | ToCoordinator::Loads(_) => {}
                other => return other,
            }
        }
    }

    /// Waits until the link has ended, and says how.
    pub async fn ended(mut self) -> String {
        while let Ok(Some(_)) = self.data.receive().await {}
        self.peer.closed().await.to_string()
    }

    /// Orders, and waits until it is so.
    pub async fn hold(&mut self, term: u64, number: u64, actors: Vec<Assignment>) {
        self.order(term, number, actors);
        let expected = Holding { epoch: Epoch { term, number }, failed: Vec::new() };
        assert_eq!(self.holding().await, expected);
    }

    /// The frame of a dispatch: rows and, for each group, who takes which of them. And its ids.
    pub fn frame(
        &mut self,
        truth: &Truth,
        layer: u32,
        rows: &RowBuffer,
        groups: &[(u32, Vec<u32>)],
    ) -> (Frame, Vec<u64>) {
        let indices = groups.iter().map(|(_, rows)| rows.len()).sum();
        let table = dispatch_table_bytes(groups.len(), indices);
        let bytes = bytes_of(&mut rows.clone());
        let mut payload = self.pool.take(table + bytes.len()).unwrap();
        payload[table..].copy_from_slice(&bytes);
        let mut header = Header {
            kind: Kind::Dispatch,
            element: match truth.kernels.class().row_type() {
                RowType::Bf16 => Element::Bf16,
                RowType::F32 => Element::F32,
            },
            dispatch: self.next,
            layer,
            rows: rows.rows() as u32,
            columns: rows.columns() as u32,
            table_bytes: 0,
            groups: 0,
            remaining_us: 60_000_000,
            payload_crc: 0,
        };
        let ids: Vec<u64> = (self.next..).take(groups.len()).collect();
        self.next += groups.len() as u64;
        let entries: Vec<_> = groups
            .iter()
            .zip(&ids)
            .map(|((expert, rows), id)| {
                let rows_count = rows.len() as u32;
                let group = Group {
                    expert: *expert,
                    rows: rows_count,
                    dispatch: *id,
                    replica: 0,
                    shard: 0,
                    refused: None,
                };
                (group, rows.as_slice())
            })
            .collect();
        write_dispatch(&mut payload, &mut header, entries).unwrap();
        (Frame::new(header, payload), ids)
    }

    /// Sends a dispatch.
    pub async fn dispatch(
        &mut self,
        truth: &Truth,
        layer: u32,
        rows: &RowBuffer,
        groups: &[(u32, Vec<u32>)],
    ) -> Vec<u64> {
        let (frame, ids) = self.frame(truth, layer, rows, groups);
        self.peer.send(frame).await.unwrap();
        ids
    }

    /// Answers as they come, until there is one for each of `ids`.
    pub async fn answers(&mut self, ids: &[u64]) -> BTreeMap<u64, Answer> {
        let mut answers = BTreeMap::new();
        while ids.iter().any(|id| !answers.contains_key(id)) {
            for (id, answer) in self.next_return().await {
                assert!(answers.insert(id, answer).is_none(), "dispatch {id} was answered twice");
            }
        }
        answers
    }

    /// What the next return brings.
    pub async fn next_return(&mut self) -> Vec<(u64, Answer)> {
        let frame = self.data.receive().await.expect("the link stands").expect("the link stands");
        let groups = ReturnGroups::read(&frame.header, &frame.payload).expect("a return can be read");
        groups
            .iter()
            .map(|(group, _, rows)| (group.dispatch, group.refused.map_or_else(|| Ok(rows.to_vec()), Err)))
            .collect()
    }

    /// Sends one dispatch, and checks what returns against the truth, bit for bit.
    pub async fn check(
        &mut self,
        truth: &mut Truth,
        layer: u32,
        rows: &RowBuffer,
        groups: &[(u32, Vec<u32>)],
    ) {
        let ids = self.dispatch(truth, layer, rows, groups).await;
        let answers = self.answers(&ids).await;
        for (id, (expert, picked)) in ids.iter().zip(groups) {
            let wanted = truth.compute(layer, *expert, rows, picked);
            assert_eq!(answers[id].as_ref(), Ok(&wanted), "expert {layer}.{expert}, {} rows", picked.len());
        }
    }
}

/// One dispatch's groups: some experts, each with some of the rows, ascending.
pub fn odd_groups(random: &mut Random, experts: u32, rows: usize, groups: usize) -> Vec<(u32, Vec<u32>)> {
    let mut chosen: HashMap<u32, Vec<u32>> = HashMap::new();
    while chosen.len() < groups.min(experts as usize) {
        let picked: Vec<u32> = (0..rows as u32).filter(|_| random.below(3) == 0).collect();
        if !picked.is_empty() {
            chosen.insert(random.below(experts as usize) as u32, picked);
        }
    }
    let mut groups: Vec<_> = chosen.into_iter().collect();
    groups.sort();
    for at in (1..groups.len()).rev() {
        groups.swap(at, random.below(at + 1));
    }
    groups
}
