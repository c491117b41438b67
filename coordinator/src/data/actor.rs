//! The data actor: it drives scheduler, flow and exchange, and everything of the data plane passes it.
//!
//! A shell: it decides nothing. One task does it all, [`Pump`]: it takes what the links and the trunk's thread
//! brought, tells the cores, and carries out what they ask for. All that has come is told before anything is carried
//! out, so that what arrives together is computed together.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use actix::{Actor, ActorFuture, AsyncContext, Context, Handler, Message, MessageResult};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use transport::buffer::Pool as Buffers;
use transport::peer::{Inlet, Peer};
use transport::wire::cluster::Epoch;

use super::aside::Aside;
use super::exchange::{Exchange, ExchangeCounters, LinkRoom, LinkSeen};
use super::flow::{Flow, Forwarding};
use super::forwarding::Choice;
use super::frames::{Shape, Source};
use super::ids::{LinkId, RowId, SequenceId};
use super::landing::{Keep, Slot};
use super::pace::Pace;
use super::patience::Patience;
use super::ready::{Bell, Ready};
use super::report::Sizes;
use super::request::{News, Request, RequestId, Submission};
use super::scheduler::{PrefixSeen, Scheduler};
use super::stage::Stage;
use super::steer::Steering;
use super::traced::Dispatches;
use super::trunk::{Answer, Order, TrunkThread, Work};
use crate::placement::{NodeId, Placement};

/// What the data actor is made of.
pub struct DataParts {
    /// Which requests run, and what of them may exist.
    pub scheduler: Scheduler,
    /// Which rows the trunk computes next.
    pub flow: Flow,
    /// How rows go on.
    pub forwarding: Choice,
    /// Rows out, rows back.
    pub exchange: Exchange,
    /// KV pages in all.
    pub pages: u32,
    /// Rows that may exist at once.
    pub rows_max: usize,
    /// Sequences that may exist at once.
    pub sequences_max: usize,
    /// Most experts that a row takes.
    pub top_k_max: usize,
    /// Shards of every expert.
    pub shards: usize,
    /// The stages of the model.
    pub stages: Vec<Stage>,
    /// What rows are made of.
    pub shape: Shape,
    /// What frames are made of.
    pub buffers: Buffers,
    /// What returns are copied to whose frames cannot be kept.
    pub copies: Buffers,
    /// Most time that a dispatch may take, whatever its request allows.
    pub dispatch_max: Duration,
}

impl DataParts {
    /// Slots that a row may fill: one for each shard of each of its experts.
    pub(super) fn slots_per_row(&self) -> usize {
        self.top_k_max * self.shards
    }
}

/// A link to a node, for its dispatches and returns.
pub struct DataLink {
    /// Which.
    pub link: LinkId,
    /// To whom.
    pub node: NodeId,
    /// To send with.
    pub peer: Peer,
    /// What comes.
    pub inlet: Inlet,
    /// What may be under way on it at once.
    pub room: LinkRoom,
    /// What its rows may keep of its window.
    pub keep: Keep,
}

/// What the control plane hears of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A link's data lane has ended.
    LinkEnded(LinkId),
    /// No dispatch of an epoch before this one is under way.
    ClosedThrough(Epoch),
    /// It took so long to change to another placement.
    Changed(Duration),
}

/// A node's link is open.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Opened(pub Box<DataLink>);

/// A placement was published.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Published(pub Arc<Placement>);

/// A node has been silent for longer than usual, or is no more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Silent {
    /// The link to it.
    pub link: LinkId,
    /// Whether it is.
    pub is_late: bool,
}

/// A request comes. Its answer goes to the submission's channel, a refusal too.
#[derive(Message)]
#[rtype(result = "RequestId")]
pub struct Submit(pub Submission);

/// Nobody wants the answer any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Cancel(pub RequestId);

/// How it goes, for people.
#[derive(Message)]
#[rtype(result = "Report")]
pub struct Ask;

/// How the data plane is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Of those that run, how many wait for an expert that nobody holds.
    pub stranded: usize,
    /// Of those that wait, how many wait for that, and have given way to others meanwhile.
    pub aside: usize,
    /// How often one did.
    pub set_aside: u64,
    /// KV pages in all.
    pub pages: u32,
    /// Those that no sequence has. Some may be kept for prompts to come.
    pub pages_free: u32,
    /// What the prefix cache has done and holds.
    pub prefix: PrefixSeen,
    /// How often a request gave way to another for want of pages.
    pub preempted: u64,
    /// Links that are open.
    pub links: usize,
    /// Tokens sampled since the beginning.
    pub tokens: u64,
    /// Batches of the trunk.
    pub batches: u64,
    /// Rows in those.
    pub rows: u64,
    /// Frames sent, and bytes.
    pub dispatched_frames: u64,
    /// Bytes of their payloads.
    pub dispatched_bytes: u64,
    /// Frames that came back.
    pub returned_frames: u64,
    /// Bytes of their payloads.
    pub returned_bytes: u64,
    /// What went over each link.
    pub over_links: Vec<LinkSeen>,
    /// Groups of frames sent, one for each actor.
    pub groups: u64,
    /// Rows of those: a row counts for each expert that it goes to.
    pub group_rows: u64,
    /// How many rows groups have, and batches.
    pub group_sizes: Sizes,
    /// Of the trunk.
    pub batch_sizes: Sizes,
    /// What the exchange counts.
    pub exchange: ExchangeCounters,
    /// How rows go on now.
    pub forwarding: Option<Forwarding>,
    /// Whether the trunk computes on the cores of the experts.
    pub shares_cores: bool,
    /// Whether both ways are being compared.
    pub trying: bool,
    /// Trials that ended.
    pub trials: u64,
}

/// The data actor.
pub struct DataActor {
    pub(super) parts: DataParts,
    pub(super) trunk: Option<TrunkThread>,
    pub(super) answers: mpsc::Receiver<Answer>,
    pub(super) observe: mpsc::UnboundedSender<Observation>,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// What nodes are called, also those that have gone: people know them by it.
    pub(super) names: BTreeMap<NodeId, String>,
    /// Links with something to be read, and the list of the turn, which is empty between turns.
    pub(super) ready: Ready,
    pub(super) turn: Vec<LinkId>,
    /// Requests that wait for a place, and those that are set aside.
    pub(super) waiting: HashMap<RequestId, Request>,
    /// What these wait for.
    pub(super) aside: Aside,
    /// Those that wait for such a thing and run.
    pub(super) patience: Patience,
    /// Requests that have one.
    pub(super) running: Vec<Option<Request>>,
    pub(super) deadlines: BTreeMap<(Instant, RequestId), ()>,
    /// How quickly requests begin.
    pub(super) pace: Pace,
    /// What the trunk's thread is to be told next.
    pub(super) orders: Vec<Order>,
    /// What clients are to hear next.
    pub(super) news: News,
    pub(super) request_next: u64,
    /// Where each row lies as it enters its experts.
    pub(super) sources: Vec<Option<Source>>,
    /// What returned, by slot.
    pub(super) slots: Vec<Slot>,
    /// The rows of the batch that the trunk computes, and since when it does.
    pub(super) computing: Vec<RowId>,
    pub(super) computing_since: Option<Instant>,
    /// Buffers of a batch, while the trunk has none.
    pub(super) spare: Work,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) report: Report,
    /// Of requests that are followed.
    pub(super) dispatches: Dispatches,
    pub(super) shared_cores: bool,
    pub(super) steering: Steering,
    /// The epoch that was published last, and the one of which the control plane knows that all older ones are closed.
    pub(super) published: Epoch,
    pub(super) closed_told: Epoch,
}

/// An open link.
pub(super) struct Link {
    pub(super) peer: Peer,
    /// Until it has ended.
    pub(super) inlet: Option<Inlet>,
    /// What its inlet is polled with.
    pub(super) bell: Arc<Bell>,
    /// What its rows keep of its window.
    pub(super) keep: Keep,
}

impl DataActor {
    /// The actor. `start` makes the trunk's thread, given where its answers go. `shared_cores`: the trunk computes on
    /// the cores of the experts, so it is not idle while they compute.
    pub fn new(
        parts: DataParts,
        shared_cores: bool,
        observe: mpsc::UnboundedSender<Observation>,
        start: impl FnOnce(mpsc::Sender<Answer>) -> std::io::Result<TrunkThread>,
    ) -> std::io::Result<Self> {
        // A batch has two answers, and there is one batch at a time.
        let (answer, answers) = mpsc::channel(4);
        let trunk = start(answer)?;
        let slots = parts.rows_max * parts.slots_per_row();
        Ok(Self {
            trunk: Some(trunk),
            answers,
            observe,
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            ready: Ready::default(),
            turn: Vec::new(),
            waiting: HashMap::new(),
            aside: Aside::default(),
            patience: Patience::default(),
            running: std::iter::repeat_with(|| None).take(parts.sequences_max).collect(),
            deadlines: BTreeMap::new(),
            pace: Pace::default(),
            orders: Vec::new(),
            news: News::default(),
            request_next: 1,
            sources: vec![None; parts.rows_max],
            slots: vec![Slot::Empty; slots],
            computing: Vec::new(),
            computing_since: None,
            spare: Work::default(),
            timer: None,
            report: Report::default(),
            dispatches: Dispatches::default(),
            shared_cores,
            steering: Steering::new(parts.forwarding, shared_cores),
            published: Epoch::default(),
            closed_told: Epoch::default(),
            parts,
        })
    }

    /// The request of a sequence, wherever it stands.
    pub(super) fn request_of(&self, sequence: SequenceId) -> Option<&Request> {
        self.running[sequence.0 as usize].as_ref()
    }

    pub(super) fn trunk(&self) -> &TrunkThread {
        self.trunk.as_ref().expect("it stands as long as the actor")
    }
}

impl Actor for DataActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.spawn(Pump);
    }
}

impl Handler<Opened> for DataActor {
    type Result = ();

    fn handle(&mut self, Opened(opened): Opened, _: &mut Self::Context) {
        let DataLink { link, node, peer, inlet, room, keep } = *opened;
        self.parts.exchange.handle_link(link, node, room, Instant::now());
        let bell = self.ready.bell(link);
        self.names.insert(node, peer.hello().peer.name.clone());
        self.links.insert(link, Link { peer, inlet: Some(inlet), bell, keep });
    }
}

impl Handler<Published> for DataActor {
    type Result = ();

    fn handle(&mut self, Published(placement): Published, _: &mut Self::Context) {
        self.published = placement.epoch;
        let began = Instant::now();
        self.parts.exchange.handle_placement(placement, began);
        // The control plane may have gone already, when the program ends.
        let _ = self.observe.send(Observation::Changed(began.elapsed()));
    }
}

impl Handler<Silent> for DataActor {
    type Result = ();

    fn handle(&mut self, Silent { link, is_late }: Silent, _: &mut Self::Context) {
        let now = Instant::now();
        match is_late {
            true => self.parts.exchange.handle_late(link, now),
            false => self.parts.exchange.handle_awake(link, now),
        }
    }
}

impl Handler<Submit> for DataActor {
    type Result = MessageResult<Submit>;

    fn handle(&mut self, Submit(submission): Submit, _: &mut Self::Context) -> Self::Result {
        let id = RequestId(self.request_next);
        self.request_next += 1;
        self.take(id, submission);
        MessageResult(id)
    }
}

impl Handler<Cancel> for DataActor {
    type Result = ();

    fn handle(&mut self, Cancel(id): Cancel, _: &mut Self::Context) {
        self.give_up(id);
    }
}

impl Handler<Ask> for DataActor {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, _: Ask, _: &mut Self::Context) -> Self::Result {
        let running = self.running.iter().flatten().count();
        let report = Report {
            running,
            waiting: self.waiting.len(),
            stranded: self.parts.scheduler.stranded(),
            aside: self.parts.scheduler.set_aside(),
            prefix: self.parts.scheduler.prefix_seen(),
            links: self.links.len(),
            over_links: self.parts.exchange.links().collect(),
            pages: self.parts.scheduler.pages(),
            pages_free: self.parts.scheduler.pages_free(),
            exchange: self.parts.exchange.counters(),
            forwarding: Some(self.parts.flow.forwarding()),
            shares_cores: self.shared_cores,
            trying: self.steering.auto.is_trying(),
            trials: self.steering.auto.trials(),
            ..self.report.clone()
        };
        MessageResult(report)
    }
}

/// The task of the actor: polled whenever a message, a frame, an answer of the trunk or a deadline has come.
struct Pump;

impl ActorFuture<DataActor> for Pump {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        actor: &mut DataActor,
        _: &mut Context<DataActor>,
        task: &mut TaskContext<'_>,
    ) -> Poll<()> {
        actor.pump(task);
        Poll::Pending
    }
}
