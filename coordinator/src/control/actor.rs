//! The control actor: nodes come and go through it, and it tells the data plane where everything is.
//!
//! A shell around membership, policy and publisher: it owns listeners, links' control lanes, the term's file and the
//! timer, and decides nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message};
use model::weights::{ExpertId, Manifest};
use tokio::sync::mpsc;
use transport::Limits;
use transport::link::Ended;
use transport::peer::{Arrived, Inlet, Listener, Notice, Notices, Opened, Peer, renewal};
use transport::security::Authority;
use transport::wire::cluster::{
    ActorId, Assignment, Cluster as Said, Hold, Joined, Load, ToCoordinator, ToNode,
};
use transport::wire::control::CloseReason;

use super::cluster::{Demand, Statistics};
use super::membership::{self, Joining, Membership};
use super::placer::{Facts, Placer};
use super::publisher::{self, Publisher};
use super::store::TermStore;
use crate::data::actor::{DataActor, DataLink, Observation, Opened as LinkOpened, Published};
use crate::data::ids::LinkId;
use crate::data::start::room;
use crate::placement::NodeId;
use crate::weights::{LinkWeights, Weights};

/// How often statistics and loads are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the control actor is made of.
pub struct ControlParts {
    /// Who is in.
    pub membership: Membership,
    /// What was promised to whom.
    pub publisher: Publisher,
    /// When and how experts are laid out.
    pub placer: Placer,
    /// What has to be laid out.
    pub demand: Demand,
    /// Our own bounds of links.
    pub limits: Limits,
    /// Text of `config.json`.
    pub config: Vec<u8>,
    /// Digests of the experts, as far as they are known.
    pub manifest: Manifest,
    /// The checkpoint, for nodes that have none.
    pub weights: Option<Weights>,
    /// Renews nodes' certificates, if this coordinator may.
    pub authority: Option<Authority>,
    /// Where the term is kept.
    pub terms: TermStore,
    /// The data plane.
    pub data: Addr<DataActor>,
    /// What it sees.
    pub observed: mpsc::UnboundedReceiver<Observation>,
    /// Where nodes come.
    pub listeners: Vec<Listener>,
}

/// A link to a node.
struct Session {
    peer: Peer,
    name: String,
    /// Until the data plane has it.
    inlet: Option<Inlet>,
    weights: Option<LinkWeights>,
    labels: Vec<(String, String)>,
    kinds: Vec<String>,
}

/// Somebody came to a listener.
#[derive(Message)]
#[rtype(result = "()")]
struct Came(Arrived);

/// Something was heard on a link.
#[derive(Message)]
#[rtype(result = "()")]
struct Heard(LinkId, Notice);

/// A link is over.
#[derive(Message)]
#[rtype(result = "()")]
struct Over(LinkId, Ended);

/// The data plane saw something.
#[derive(Message)]
#[rtype(result = "()")]
struct Saw(Observation);

/// The control actor.
pub struct ControlActor {
    pub(super) parts: ControlParts,
    sessions: BTreeMap<LinkId, Session>,
    link_next: u32,
    pub(super) statistics: Statistics,
    pub(super) loads: BTreeMap<NodeId, Vec<Load>>,
    /// Every expert has had a holder once.
    pub(super) has_served: bool,
}

impl ControlActor {
    /// An actor that has not begun.
    pub fn new(parts: ControlParts) -> Self {
        Self {
            parts,
            sessions: BTreeMap::new(),
            link_next: 0,
            statistics: Statistics::default(),
            loads: BTreeMap::new(),
            has_served: false,
        }
    }

    fn arrived(&mut self, opened: Opened, context: &mut Context<Self>) {
        let Opened { peer, data, weights, notices } = opened;
        // Nodes send no tensors.
        drop(weights);
        let link = LinkId(self.link_next);
        self.link_next += 1;
        let name = peer.hello().peer.name.clone();
        tracing::info!(%link, %name, address = peer.address(), "a node has come");
        let to_weights = self.parts.weights.as_ref().map(|weights| weights.to(peer.clone()));
        actix::spawn(listen(link, peer.clone(), notices, context.address()));
        let session = Session {
            peer,
            name,
            inlet: Some(data),
            weights: to_weights,
            labels: Vec::new(),
            kinds: Vec::new(),
        };
        self.sessions.insert(link, session);
    }

    fn heard(&mut self, link: LinkId, notice: Notice, now: Instant) {
        match notice {
            Notice::Told(Said::ToCoordinator(said)) => self.told(link, said, now),
            Notice::Told(Said::ToNode(_)) => {}
            Notice::Late { silent } => {
                tracing::warn!(%link, ?silent, "a node is late");
                self.parts.membership.handle_late(link);
            }
            Notice::Awake => self.parts.membership.handle_awake(link),
            Notice::DrainAsked => self.parts.membership.handle_leaving(link),
            Notice::Expired { .. } => {}
            Notice::RenewalAsked { request } => self.renew(link, request),
        }
    }

    fn told(&mut self, link: LinkId, said: ToCoordinator, now: Instant) {
        let node = self.parts.membership.node(link);
        match (said, node) {
            (ToCoordinator::Join(join), _) => {
                let Some(session) = self.sessions.get_mut(&link) else { return };
                session.labels.clone_from(&join.labels);
                session.kinds = join.devices.iter().map(|device| device.kind.clone()).collect();
                let joining = Joining {
                    link,
                    name: session.name.clone(),
                    vouched: session.peer.vouched().clone(),
                    incarnation: session.peer.hello().incarnation,
                    join,
                };
                self.parts.membership.handle_join(joining, now);
            }
            (ToCoordinator::Holding(holding), Some(node)) => {
                self.parts.publisher.handle_holding(node, holding.epoch, &holding.failed);
            }
            (ToCoordinator::Progress(progress), Some(node)) => {
                self.parts.publisher.handle_progress(node, progress);
            }
            (ToCoordinator::Fallen(fallen), Some(node)) => {
                let actor = fallen.actor;
                tracing::warn!(%node, ?actor, why = fallen.why, restarts = fallen.restarts, "an actor fell");
                if fallen.is_lost {
                    self.lose_device(node, fallen.actor);
                }
            }
            (ToCoordinator::Loads(loads), Some(node)) => drop(self.loads.insert(node, loads)),
            (ToCoordinator::Ask(ask), Some(_)) => {
                let weights = self.sessions.get(&link).and_then(|session| session.weights.as_ref());
                match weights {
                    Some(weights) => weights.handle_ask(ask),
                    None => {
                        let why = "this coordinator gives no weights; start the node with --model".to_owned();
                        self.tell(link, ToNode::NotServed { ask: ask.ask, why });
                    }
                }
            }
            (ToCoordinator::Leaving, Some(_)) => self.parts.membership.handle_leaving(link),
            (said, None) => {
                tracing::warn!(%link, ?said, "said by a node that has not joined");
            }
        }
    }

    /// An actor that does not stand counts as a device that is lost.
    fn lose_device(&mut self, node: NodeId, actor: ActorId) {
        let seat =
            self.parts.publisher.published().actors().find(|(at, seat)| *at == actor && seat.node == node);
        if let Some((_, seat)) = seat {
            tracing::error!(%node, device = seat.device, "device lost");
            self.parts.membership.handle_device_lost(node, seat.device);
            self.parts.publisher.handle_device_lost(node, seat.device);
        }
    }

    fn over(&mut self, link: LinkId, ended: &Ended, now: Instant) {
        let Some(session) = self.sessions.remove(&link) else { return };
        let name = session.name;
        match ended.in_order() {
            true => tracing::info!(%link, %name, why = %ended, "a node has gone"),
            false => tracing::warn!(%link, %name, why = %ended, "a node is lost"),
        }
        let node = self.parts.membership.node(link);
        self.parts.membership.handle_link_ended(link, now);
        if let Some(node) = node {
            self.loads.remove(&node);
            self.parts.publisher.handle_link_ended(node);
        }
    }

    fn renew(&mut self, link: LinkId, request: Vec<u8>) {
        let Some(session) = self.sessions.get(&link) else { return };
        match self.parts.authority.clone() {
            Some(authority) => {
                let peer = session.peer.clone();
                actix::spawn(async move { renewal::answer(&authority, &peer, request).await });
            }
            None => {
                session.peer.answer_renewal(Err("this coordinator has no --authority to renew with".into()))
            }
        }
    }

    /// Carries out what the cores ask for, until nothing is left.
    fn carry_out(&mut self, context: &mut Context<Self>) {
        let now = Instant::now();
        loop {
            if let Some(action) = self.parts.membership.poll_action() {
                self.admit(action, now, context);
            } else if let Some(action) = self.parts.publisher.poll_action() {
                self.publish(action, context);
            } else {
                break;
            }
        }
        let is_served = self.parts.publisher.standing().missing == 0;
        self.has_served |= is_served && self.parts.publisher.published().epoch.number > 0;
        self.release_leavers(context);
    }

    fn admit(&mut self, action: membership::Action, now: Instant, context: &mut Context<Self>) {
        match action {
            membership::Action::Admit { link, node, term } => {
                let (config, shards) = (self.parts.config.clone(), self.parts.demand.shards);
                self.tell(link, ToNode::Joined(Joined { node: node.0, term, config, shards }));
                let Some(session) = self.sessions.get_mut(&link) else { return };
                let Some(inlet) = session.inlet.take() else { return };
                let (room, keep) = room(&session.peer, &self.parts.limits);
                let opened = DataLink { link, node, peer: session.peer.clone(), inlet, room, keep };
                tell_data(&self.parts.data, LinkOpened(Box::new(opened)), context);
                let cluster = self.parts.membership.cluster();
                let devices = cluster.node(node).map(|offer| offer.devices.clone()).unwrap_or_default();
                self.parts.publisher.handle_joined(node, devices, &[]);
            }
            membership::Action::Refuse { link, why } => {
                tracing::warn!(%link, %why, "a node was refused");
                self.tell(link, ToNode::NotJoined { why });
                if let Some(session) = self.sessions.get(&link) {
                    // What was told goes out before the end does.
                    let peer = session.peer.clone();
                    actix::spawn(async move { peer.drain().await });
                }
            }
            membership::Action::CloseOlder { link, node } => {
                tracing::warn!(%link, %node, "a newer session of the node has come");
                self.parts.publisher.handle_link_ended(node);
                if let Some(session) = self.sessions.remove(&link) {
                    session.peer.close(CloseReason::Replaced);
                }
            }
            membership::Action::StoreTerm(term) => match self.parts.terms.store(term) {
                Ok(()) => self.parts.membership.handle_stored(term),
                Err(why) => {
                    tracing::error!(%why, term, "the term cannot be stored; is the disk full? no node is admitted");
                    let again = move |actor: &mut Self, context: &mut Context<Self>| {
                        actor.admit(membership::Action::StoreTerm(term), Instant::now(), context);
                        actor.carry_out(context);
                    };
                    context.run_later(LOOK_EVERY, again);
                }
            },
            membership::Action::TakeTerm(term) => {
                tracing::info!(term, "publishing under this term");
                self.parts.publisher.handle_term(term);
            }
            membership::Action::Changed => self.lay_out(),
        }
        let _ = now;
    }

    /// Wants the placement that suits the cluster as it is.
    fn lay_out(&mut self) {
        let now = Instant::now();
        let cluster = self.parts.membership.cluster();
        let previous = self.parts.publisher.previous();
        let facts = Facts {
            demand: &self.parts.demand,
            cluster: &cluster,
            statistics: &self.statistics,
            previous: &previous,
            banned: self.parts.publisher.banned(),
        };
        let refused = self.parts.placer.refused().map(ToString::to_string);
        if let Some(placement) = self.parts.placer.handle_changed(facts, now) {
            self.parts.publisher.handle_wanted(placement);
        }
        if let Some(why) =
            self.parts.placer.refused().map(ToString::to_string).filter(|why| Some(why) != refused.as_ref())
        {
            tracing::warn!(%why, "no placement");
        }
    }

    fn publish(&mut self, action: publisher::Action, context: &mut Context<Self>) {
        match action {
            publisher::Action::Tell { node, epoch, actors } => {
                let assign = |(actor, device): (ActorId, u16)| {
                    let id = ExpertId { layer: actor.layer, expert: actor.expert };
                    let digest = self.parts.manifest.experts.get(&id).map(|digest| *digest.0.as_bytes());
                    Assignment { actor, device, digest }
                };
                let actors = actors.into_iter().map(assign).collect();
                let link = self
                    .sessions
                    .keys()
                    .copied()
                    .find(|link| self.parts.membership.node(*link) == Some(node));
                if let Some(link) = link {
                    self.tell(link, ToNode::Hold(Hold { epoch, actors }));
                }
            }
            publisher::Action::Publish(placement) => {
                let epoch = placement.epoch;
                tracing::info!(term = epoch.term, epoch = epoch.number, "placement published");
                tell_data(&self.parts.data, Published(placement), context);
            }
            publisher::Action::Failed { node, actor, why } => {
                tracing::error!(%node, ?actor, %why, "an expert was not loaded");
                self.lay_out();
            }
            publisher::Action::Superseded { term } => {
                tracing::error!(term, "another coordinator publishes; this one reads only");
            }
        }
    }

    /// Nodes that want to go, and hold nothing that anybody needs, may.
    fn release_leavers(&mut self, _: &mut Context<Self>) {
        let leaving: Vec<LinkId> = self
            .parts
            .membership
            .members()
            .filter(|member| member.state == membership::State::Leaving)
            .filter(|member| self.parts.publisher.is_idle(member.node))
            .filter_map(|member| member.link)
            .collect();
        for link in leaving {
            if let Some(session) = self.sessions.get(&link) {
                let peer = session.peer.clone();
                actix::spawn(async move { peer.drain().await });
            }
        }
    }

    fn tell(&self, link: LinkId, message: ToNode) {
        let Some(session) = self.sessions.get(&link) else { return };
        if let Err(why) = session.peer.tell(Said::ToNode(message)) {
            // Its link is over, or it does not read what it is told: then it is as good as over.
            tracing::warn!(%link, %why, "a node was not told");
            session.peer.close(CloseReason::Silent);
        }
    }

    /// The sessions' addresses and offers, by node, for people.
    pub(super) fn session_of(&self, link: LinkId) -> Option<(&Peer, &[String])> {
        self.sessions.get(&link).map(|session| (&session.peer, session.kinds.as_slice()))
    }
}

/// Tells the data actor, in order.
fn tell_data<M>(data: &Addr<DataActor>, message: M, context: &mut Context<ControlActor>)
where
    M: Message + Send + 'static,
    M::Result: Send,
    DataActor: Handler<M>,
{
    context.spawn(actix::fut::wrap_future::<_, ControlActor>(data.send(message)).map(|_, _, _| ()));
}

/// Hands on what is heard on a link, and then that it is over.
async fn listen(link: LinkId, peer: Peer, mut notices: Notices, control: Addr<ControlActor>) {
    while let Some(notice) = notices.next().await {
        if control.send(Heard(link, notice)).await.is_err() {
            return;
        }
    }
    let ended = peer.closed().await;
    let _ = control.send(Over(link, ended)).await;
}

async fn take(mut listener: Listener, control: Addr<ControlActor>) {
    loop {
        let arrived = listener.next().await;
        if control.send(Came(arrived)).await.is_err() {
            return;
        }
    }
}

impl Actor for ControlActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        for listener in std::mem::take(&mut self.parts.listeners) {
            actix::spawn(take(listener, context.address()));
        }
        let (_, none) = mpsc::unbounded_channel();
        let mut observed = std::mem::replace(&mut self.parts.observed, none);
        let own = context.address();
        actix::spawn(async move {
            while let Some(seen) = observed.recv().await {
                if own.send(Saw(seen)).await.is_err() {
                    return;
                }
            }
        });
        self.watch_time(context);
    }
}

impl ControlActor {
    /// Wakes when membership wants it, and now and then.
    fn watch_time(&mut self, context: &mut Context<Self>) {
        let now = Instant::now();
        let due =
            self.parts.membership.poll_timeout().into_iter().chain(self.parts.placer.poll_timeout(now)).min();
        let wait =
            due.map_or(LOOK_EVERY, |due| due.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
        context.run_later(wait.max(Duration::from_millis(1)), |actor, context| {
            actor.parts.membership.handle_timeout(Instant::now());
            if !actor.parts.placer.is_placed() {
                actor.lay_out();
            }
            actor.carry_out(context);
            actor.watch_time(context);
        });
    }
}

impl Handler<Came> for ControlActor {
    type Result = ();

    fn handle(&mut self, Came(arrived): Came, context: &mut Self::Context) {
        match arrived {
            Arrived::Opened(opened) => self.arrived(*opened, context),
            Arrived::Refused { address, why } => tracing::warn!(%address, %why, "a peer was refused"),
            Arrived::Failed(why) => tracing::warn!(%why, "an arrival failed"),
        }
    }
}

impl Handler<Heard> for ControlActor {
    type Result = ();

    fn handle(&mut self, Heard(link, notice): Heard, context: &mut Self::Context) {
        self.heard(link, notice, Instant::now());
        self.carry_out(context);
    }
}

impl Handler<Over> for ControlActor {
    type Result = ();

    fn handle(&mut self, Over(link, ended): Over, context: &mut Self::Context) {
        self.over(link, &ended, Instant::now());
        self.carry_out(context);
    }
}

impl Handler<Saw> for ControlActor {
    type Result = ();

    fn handle(&mut self, Saw(seen): Saw, context: &mut Self::Context) {
        match seen {
            // The link's own end says so too.
            Observation::LinkEnded(_) => {}
            Observation::ClosedThrough(epoch) => self.parts.publisher.handle_closed_through(epoch),
        }
        self.carry_out(context);
    }
}
