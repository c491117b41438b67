//! A cluster in this process, put together by hand: nodes over a carrier, the data actor, and a placement of the
//! test's choice. What the control plane would decide, the test decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr};
use coordinator::data::actor::{DataActor, DataLink, Observation, Opened, Published, Submit};
use coordinator::data::ids::LinkId;
use coordinator::data::request::{Event, Missing, OnMissing, Priority, Submission};
use coordinator::data::start::{DataSettings, data_actor, room};
use coordinator::generation::{FinishReason, Generation, Request, Token};
use coordinator::placement::{NodeId, Placement, Replica, Seat};
use model::kernel::Kernels;
use model::load::{self, Opened as Checkpoint, Progress};
use model::pool::Pool;
use model::sampler::Logprobs;
use model::text::StopStream;
use model::trunk::Trunk;
use node::runtime::Actors;
use node::{CoordinatorAddress, NodeHandle, Runtime, RuntimeSettings};
use tokio::sync::mpsc;
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::carrier::memory::MemoryCarrier;
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::carrier::{Acceptor, Carrier};
use transport::link::Local;
use transport::peer::{Endpoint, Listener, Notice, Notices, Peer};
use transport::security::{PeerName, Role};
use transport::wire::cluster::{Assignment, Cluster, Epoch, Hold, Joined, ToCoordinator, ToNode};
use transport::wire::control::NumericIdentity;

use crate::nodes::{CLUSTER, WIDE, start_node};
use crate::unruly::{Manner, Unruly};

/// Over which carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    Tcp,
}

/// How experts are placed: expert and node count to the nodes of its replicas.
pub(crate) type Place = fn(layer: u32, expert: u32, nodes: u32) -> Vec<u32>;

/// A cluster that serves.
pub(crate) struct Conductor {
    pub(crate) data: Addr<DataActor>,
    pub(crate) nodes: Vec<NodeHandle>,
    _observed: mpsc::UnboundedReceiver<Observation>,
    _runtime: Runtime,
    _notices: Vec<Notices>,
}

fn local(role: Role, name: &str, kernels: Kernels) -> Local {
    Local {
        peer: PeerName { cluster: CLUSTER, role, name: name.to_owned() },
        program: "test".to_owned(),
        incarnation: 1,
        numeric: Some(numeric(kernels)),
        row_bytes: 0,
        mixed_classes: false,
    }
}

fn numeric(kernels: Kernels) -> NumericIdentity {
    NumericIdentity { class: kernels.class().to_string(), fingerprint: [1; 32] }
}

impl Conductor {
    /// Starts everything, within a system of actix.
    pub(crate) async fn start(
        opened: &Arc<Checkpoint>,
        config: &[u8],
        kernels: Kernels,
        over: Over,
        nodes: u32,
        settings: DataSettings,
        place: Place,
    ) -> Self {
        Self::start_so(opened, config, kernels, over, nodes, settings, place, Manner::Orderly).await
    }

    /// The same, where returns have a manner of their own.
    #[allow(clippy::too_many_arguments, reason = "a test says all of it")]
    pub(crate) async fn start_so(
        opened: &Arc<Checkpoint>,
        config: &[u8],
        kernels: Kernels,
        over: Over,
        nodes: u32,
        settings: DataSettings,
        place: impl Fn(u32, u32, u32) -> Vec<u32>,
        manner: Manner,
    ) -> Self {
        let pool = Arc::new(Pool::new(2, None));
        let runtime_settings = RuntimeSettings {
            kernels,
            pool: Arc::clone(&pool),
            actors: Actors::Own(1),
            spin: Duration::ZERO,
            on_busy: None,
        };
        let runtime = Runtime::start(runtime_settings).unwrap();
        let buffers = Buffers::new(1 << 30);
        let (carrier, acceptor) = carrier(over, &buffers).await;
        let endpoint =
            Endpoint::new(local(Role::Coordinator, "front", kernels), Limits::default(), buffers).unwrap();
        let mut listener = endpoint.listen(Box::new(Unruly { acceptor, manner, lanes: 0 }));
        let address = CoordinatorAddress { carrier, address: listener.address().to_owned() };
        let handles =
            (0..nodes).map(|n| start_node(&runtime, opened, numeric(kernels), n, WIDE, address.clone()));
        let handles = handles.collect();

        let request = load::Request {
            kernels,
            threads: 1,
            trunk: true,
            experts: &[],
            digests: false,
            known: &Default::default(),
        };
        let loaded = load::load(opened, &request, &Progress::default()).unwrap();
        let trunk = Trunk::new(Arc::clone(&opened.spec), kernels, loaded.trunk.unwrap());
        let (observe, observed) = mpsc::unbounded_channel();
        let data = data_actor(trunk, pool, &settings, observe).unwrap().start();

        let placement = placement(opened, nodes, place);
        let mut notices = Vec::new();
        for link in 0..nodes {
            let joined =
                Joined { node: 0, term: 1, config: config.to_vec(), shards: opened.spec.shards as u8 };
            notices.push(take_in(&mut listener, &data, joined, &placement, LinkId(link)).await);
        }
        data.send(Published(Arc::new(placement))).await.unwrap();
        Self { data, nodes: handles, _observed: observed, _runtime: runtime, _notices: notices }
    }

    /// Asks, and waits for the whole answer.
    pub(crate) async fn ask(&self, request: Request) -> (Vec<Token>, Option<FinishReason>) {
        self.ask_and(request, |_| ()).await
    }

    /// The same; `heard_so_far` is told how many tokens have come.
    pub(crate) async fn ask_and(
        &self,
        request: Request,
        heard_so_far: impl FnMut(usize),
    ) -> (Vec<Token>, Option<FinishReason>) {
        let (_, tokens, finish) = self.hear(request, heard_so_far).await;
        (tokens, finish)
    }

    /// The same, with how likely the prompt was.
    pub(crate) async fn hear(
        &self,
        request: Request,
        heard_so_far: impl FnMut(usize),
    ) -> (Option<Vec<Logprobs>>, Vec<Token>, Option<FinishReason>) {
        let Heard { prompt, tokens, finish, missing } =
            self.heard(request, OnMissing::Exact, heard_so_far).await;
        assert_eq!(missing, BTreeMap::new(), "nothing is left out that nobody has said may be");
        (prompt, tokens, finish)
    }

    /// The same, with what becomes of rows whose expert has no holder.
    pub(crate) async fn heard(
        &self,
        request: Request,
        on_missing: OnMissing,
        mut heard_so_far: impl FnMut(usize),
    ) -> Heard {
        let (events, mut heard) = mpsc::channel(Submission::events_max(request.tokens_max));
        let generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let (within_ms, priority) = (60_000, Priority::default());
        let deadline = Instant::now() + Duration::from_millis(within_ms);
        let submission =
            Submission { generation, priority, on_missing, deadline, within_ms, events, trace: None };
        self.data.send(Submit(submission)).await.unwrap();
        let mut all = Heard::default();
        while let Some(event) = heard.recv().await {
            all.take(event);
            if all.finish.is_some() {
                break;
            }
            heard_so_far(all.tokens.len());
        }
        all
    }
}

/// An answer, and what it went on without.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Heard {
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<FinishReason>,
    /// How likely the prompt was, where that was asked for.
    pub(crate) prompt: Option<Vec<Logprobs>>,
    /// Rows, by layer and expert.
    pub(crate) missing: BTreeMap<(u32, u32), u64>,
}

impl Heard {
    pub(crate) fn take(&mut self, event: Event) {
        match event {
            Event::Step { token, .. } => self.tokens.extend(token),
            Event::Cached(_) => {}
            Event::Prompt(logprobs) => {
                assert!(self.tokens.is_empty(), "the prompt comes first");
                assert_eq!(self.prompt.replace(logprobs), None, "once");
            }
            Event::Missing(missing) => {
                for Missing { layer, expert, rows } in missing {
                    *self.missing.entry((layer, expert)).or_default() += rows;
                }
            }
            Event::End(reason) => self.finish = Some(reason),
            Event::Failed(why) => panic!("{why}"),
        }
    }
}

async fn carrier(over: Over, buffers: &Buffers) -> (Arc<dyn Carrier>, Box<dyn Acceptor>) {
    match over {
        Over::Memory => {
            let carrier = MemoryCarrier::default();
            let acceptor = carrier.listen("front").unwrap();
            (Arc::new(carrier), Box::new(acceptor))
        }
        Over::Tcp => {
            let plain = || Protection::Plaintext(Plaintext::Loopback);
            let carrier = TcpCarrier::new(plain(), buffers.clone());
            let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
            (Arc::new(carrier), Box::new(acceptor))
        }
    }
}

/// Shards of a replica sit on one node after the other, and on one device after the other.
fn placement(opened: &Checkpoint, nodes: u32, place: impl Fn(u32, u32, u32) -> Vec<u32>) -> Placement {
    let mut layers = BTreeMap::new();
    for id in opened.experts() {
        let seats = place(id.layer, id.expert, nodes);
        let replicas = (0..).zip(seats).map(|(number, node)| {
            let seat = |shard: u32| Seat {
                node: NodeId((node + shard) % nodes),
                device: ((id.expert + shard) % 2) as u16,
            };
            Replica { number, seats: (0..opened.spec.shards as u32).map(seat).collect() }
        });
        let experts: &mut Vec<Vec<Replica>> = layers.entry(id.layer).or_default();
        experts.push(replicas.collect());
    }
    Placement { epoch: Epoch { term: 1, number: 1 }, layers }
}

/// Lets the next node join, has it hold its part, and gives its link to the data actor.
async fn take_in(
    listener: &mut Listener,
    data: &Addr<DataActor>,
    joined: Joined,
    placement: &Placement,
    link: LinkId,
) -> Notices {
    let opened = listener.next_link().await;
    let (peer, mut notices) = (opened.peer, opened.notices);
    let name = peer.hello().peer.name.clone();
    let node: u32 = name.trim_start_matches('n').parse().unwrap();
    let ToCoordinator::Join(join) = said(&mut notices).await else { panic!("a node joins first") };
    assert_eq!(join.devices.len(), 2);
    tell(&peer, ToNode::Joined(Joined { node, ..joined }));
    let actors = placement.actors().filter(|(_, seat)| seat.node.0 == node);
    let actors = actors.map(|(actor, seat)| Assignment { actor, device: seat.device, digest: None });
    tell(&peer, ToNode::Hold(Hold { epoch: placement.epoch, actors: actors.collect() }));
    loop {
        match said(&mut notices).await {
            ToCoordinator::Holding(holding) => {
                assert_eq!(holding.failed, []);
                break;
            }
            // On a slow machine it says what its actors do before all of them stand.
            ToCoordinator::Progress(_) | ToCoordinator::Loads(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let (room, keep) = room(&peer, &Limits::default());
    let opened = DataLink { link, node: NodeId(node), peer, inlet: opened.data, room, keep };
    data.send(Opened(Box::new(opened))).await.unwrap();
    notices
}

fn tell(peer: &Peer, message: ToNode) {
    peer.tell(Cluster::ToNode(message)).unwrap();
}

async fn said(notices: &mut Notices) -> ToCoordinator {
    loop {
        if let Notice::Told(Cluster::ToCoordinator(said)) = notices.next().await.expect("the link stands") {
            return said;
        }
    }
}
