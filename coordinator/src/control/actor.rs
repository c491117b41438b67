//! The control actor: nodes come and go through it, and it tells the data plane where everything is.
//!
//! A shell around membership, policy and publisher: it owns listeners, links' control lanes, the data directory and the
//! timer, and decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use model::weights::Manifest;
use tokio::sync::mpsc;
use transport::Limits;
use transport::link::Ended;
use transport::peer::{Arrived, Listener, Notice};
use transport::security::Authority;
use transport::wire::cluster::{Joined, ToNode};
use transport::wire::control::CloseReason;

use super::admission::useful;
use super::bias::Balancer;
use super::cluster::Demand;
use super::events::{Events, Kind};
use super::hear::{Session, take};
use super::layout::tell_data;
use super::loads::{Loads, LoadsSettings};
use super::membership::{self, Membership};
use super::placer::Placer;
use super::publisher::Publisher;
use super::rebalance::Rebalancer;
use super::store::Store;
use super::versions::Versions;
use crate::data::actor::{DataActor, DataLink, Observation, Opened};
use crate::data::ids::LinkId;
use crate::data::start::room;
use crate::placement::NodeId;
use crate::weights::Weights;

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
    /// When what is laid out is made better; nobody, where it stays as it is.
    pub rebalancer: Option<Rebalancer>,
    /// Has overloaded experts chosen less; nobody, where rows choose as the model has them.
    pub balancer: Option<Balancer>,
    /// The biases that answers may be computed under.
    pub versions: Versions,
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
    /// Where the term is kept, which nodes are drained, and biases.
    pub store: Store,
    /// The data plane.
    pub data: Addr<DataActor>,
    /// What it sees.
    pub observed: mpsc::UnboundedReceiver<Observation>,
    /// Where nodes come.
    pub listeners: Vec<Listener>,
}

/// Somebody came to a listener.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Came(pub(super) Arrived);

/// Something was heard on a link.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Heard(pub(super) LinkId, pub(super) Notice);

/// A message came back on a link, after so long.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct CameBack(pub(super) LinkId, pub(super) Duration);

/// A link is over.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Over(pub(super) LinkId, pub(super) Ended);

/// The data plane saw something.
#[derive(Message)]
#[rtype(result = "()")]
struct Saw(Observation);

/// The control actor.
pub struct ControlActor {
    pub(super) parts: ControlParts,
    pub(super) sessions: BTreeMap<LinkId, Session>,
    pub(super) link_next: u32,
    pub(super) loads: Loads,
    pub(super) events: Events,
    /// Drained nodes of which it was told that they hold nothing.
    pub(super) drained_told: BTreeSet<NodeId>,
    /// Every expert has had a holder once.
    pub(super) has_served: bool,
    /// The program is about to end.
    pub(super) is_leaving: bool,
}

impl ControlActor {
    /// An actor that has not begun.
    pub fn new(parts: ControlParts) -> Self {
        let loads = Loads::new(LoadsSettings::default(), &parts.demand);
        Self {
            parts,
            sessions: BTreeMap::new(),
            link_next: 0,
            loads,
            events: Events::default(),
            drained_told: BTreeSet::new(),
            has_served: false,
            is_leaving: false,
        }
    }

    /// Carries out what the cores ask for, until nothing is left.
    pub(super) fn carry_out(&mut self, context: &mut Context<Self>) {
        loop {
            if let Some(action) = self.parts.membership.poll_action() {
                self.admit(action, context);
            } else if let Some(action) = self.parts.publisher.poll_action() {
                self.publish(action, context);
            } else {
                break;
            }
        }
        self.release_leavers();
        self.tell_drained();
    }

    fn admit(&mut self, action: membership::Action, context: &mut Context<Self>) {
        match action {
            membership::Action::Admit { link, node, term } => {
                let (config, shards) = (self.parts.config.clone(), self.parts.demand.shards);
                self.tell(link, ToNode::Joined(Joined { node: node.0, term, config, shards }));
                let Some(session) = self.sessions.get_mut(&link) else { return };
                let Some(inlet) = session.inlet.take() else { return };
                let (room, keep) = room(&session.peer, &self.parts.limits);
                let opened = DataLink { link, node, peer: session.peer.clone(), inlet, room, keep };
                let held = useful(&std::mem::take(&mut session.held), &self.parts.manifest);
                tell_data(&self.parts.data, Opened(Box::new(opened)), context);
                let member = self.parts.membership.member(node);
                let devices = member.map(|member| member.offer.devices.clone()).unwrap_or_default();
                let name = self.parts.membership.name(node);
                self.events.handle_joined(node, &name, devices.len(), Instant::now());
                self.parts.publisher.handle_joined(node, devices, &held);
            }
            membership::Action::Refuse { link, why } => {
                tracing::warn!(%link, %why, "a node was refused");
                let name = self.sessions.get(&link).map(|session| session.name.clone());
                let text = format!("node {} was refused: {why}", name.as_deref().unwrap_or("?"));
                self.events.handle(Kind::Refused, name.as_deref(), text, Instant::now());
                self.tell(link, ToNode::NotJoined { why });
                if let Some(session) = self.sessions.get_mut(&link) {
                    // What was told goes out before the end does.
                    session.drain();
                }
            }
            membership::Action::CloseOlder { link, node } => {
                tracing::warn!(%link, %node, "a newer session of the node has come");
                let (name, why) = (self.parts.membership.name(node), "a newer session of it has come");
                self.events.handle_gone(node, &name, false, why, Instant::now());
                self.parts.publisher.handle_link_ended(node);
                if let Some(session) = self.sessions.remove(&link) {
                    session.peer.close(CloseReason::Replaced);
                }
            }
            membership::Action::StoreTerm(term) => match self.parts.store.store_term(term) {
                Ok(()) => self.parts.membership.handle_stored(term),
                Err(why) => {
                    tracing::error!(%why, term, "the term cannot be stored; is the disk full? no node is admitted");
                    let again = move |actor: &mut Self, context: &mut Context<Self>| {
                        actor.admit(membership::Action::StoreTerm(term), context);
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
    }

    /// Nodes that want to go, and hold nothing that anybody needs, may.
    fn release_leavers(&mut self) {
        let leaving: Vec<LinkId> = self
            .parts
            .membership
            .members()
            .filter(|member| member.state == membership::State::Leaving)
            .filter(|member| self.parts.publisher.is_idle(member.node))
            .filter_map(|member| member.link)
            .collect();
        for link in leaving {
            if let Some(session) = self.sessions.get_mut(&link) {
                session.drain();
            }
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
        let own = [self.parts.membership.poll_timeout(), self.parts.placer.poll_timeout(now)];
        let rebalance = self.parts.rebalancer.as_ref().map(Rebalancer::poll_timeout);
        let due = own.into_iter().flatten().chain(rebalance).chain(self.balance_due()).min();
        let wait =
            due.map_or(LOOK_EVERY, |due| due.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
        context.run_later(wait.max(Duration::from_millis(1)), |actor, context| {
            actor.parts.membership.handle_timeout(Instant::now());
            if !actor.parts.placer.is_placed() {
                actor.lay_out();
            }
            actor.rebalance(Instant::now());
            actor.balance(Instant::now());
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
            Arrived::Refused { address, why } => {
                tracing::warn!(%address, %why, "a peer was refused");
                let text = format!("a peer at {address} was refused: {why}");
                self.events.handle(Kind::Refused, None, text, Instant::now());
            }
            Arrived::Failed(why) => tracing::warn!(%why, "an arrival failed"),
        }
    }
}

impl Handler<Heard> for ControlActor {
    type Result = ();

    fn handle(&mut self, Heard(link, notice): Heard, context: &mut Self::Context) {
        self.heard(link, notice, Instant::now(), context);
        self.carry_out(context);
    }
}

impl Handler<CameBack> for ControlActor {
    type Result = ();

    fn handle(&mut self, CameBack(link, took): CameBack, _: &mut Self::Context) {
        if let Some(session) = self.sessions.get_mut(&link) {
            session.trips.handle_trip(took);
        }
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
            Observation::Changed(took) => {
                if let Some(rebalancer) = &mut self.parts.rebalancer {
                    rebalancer.handle_pause(took);
                }
            }
        }
        self.carry_out(context);
    }
}
