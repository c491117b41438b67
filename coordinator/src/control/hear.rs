//! What nodes say, and whom it concerns: a link's control lane from its first message to its end.
//!
//! A shell: everything is handed to a core, or to whoever sends weights and renews certificates.

use std::time::{Duration, Instant};

use actix::{Addr, AsyncContext, Context};
use transport::link::{Ended, ProbeRefused};
use transport::peer::{Inlet, Listener, Notice, Notices, Opened, Peer, renewal};
use transport::wire::cluster::{ActorId, Assignment, Cluster as Said, ToCoordinator, ToNode};
use transport::wire::control::CloseReason;

use super::actor::{Came, CameBack, ControlActor, Heard, Over};
use super::events::Kind;
use super::layout::tell_data;
use super::membership::Joining;
use super::trips::Trips;
use crate::data::actor::Silent;
use crate::data::ids::LinkId;
use crate::placement::NodeId;
use crate::weights::LinkWeights;

/// From one message that only measures the way to the next. It is one of some twenty that keep a link alive meanwhile.
const TRIP_EVERY: Duration = Duration::from_secs(2);

/// A link to a node.
pub(super) struct Session {
    pub(super) peer: Peer,
    pub(super) name: String,
    /// Until the data plane has it.
    pub(super) inlet: Option<Inlet>,
    weights: Option<LinkWeights>,
    /// What its devices are.
    pub(super) kinds: Vec<String>,
    /// What it said that it holds as it joined, until it is admitted.
    pub(super) held: Vec<Assignment>,
    /// How long a message takes to it and back.
    pub(super) trips: Trips,
    /// It has been told that the link ends.
    is_draining: bool,
}

impl Session {
    /// Ends the link in order, after all that was told; once.
    pub(super) fn drain(&mut self) {
        if !std::mem::replace(&mut self.is_draining, true) {
            let peer = self.peer.clone();
            actix::spawn(async move { peer.drain().await });
        }
    }
}

impl ControlActor {
    pub(super) fn arrived(&mut self, opened: Opened, context: &mut Context<Self>) {
        let Opened { peer, data, weights, notices } = opened;
        // Nodes send no tensors.
        drop(weights);
        let link = LinkId(self.link_next);
        self.link_next += 1;
        let name = peer.hello().peer.name.clone();
        tracing::info!(%link, %name, address = peer.address(), "a node has come");
        let to_weights = self.parts.weights.as_ref().map(|weights| weights.to(peer.clone()));
        actix::spawn(listen(link, peer.clone(), notices, context.address()));
        actix::spawn(measure(link, peer.clone(), context.address()));
        let session = Session {
            peer,
            name,
            inlet: Some(data),
            weights: to_weights,
            kinds: Vec::new(),
            held: Vec::new(),
            trips: Trips::default(),
            is_draining: false,
        };
        self.sessions.insert(link, session);
    }

    pub(super) fn heard(&mut self, link: LinkId, notice: Notice, now: Instant, context: &mut Context<Self>) {
        match notice {
            Notice::Told(Said::ToCoordinator(said)) => self.told(link, said, now),
            Notice::Told(Said::ToNode(_)) => {}
            Notice::Late { silent } => {
                tracing::warn!(%link, ?silent, "a node is late");
                self.parts.membership.handle_late(link);
                let said = silent.as_millis();
                self.tell_of(link, Kind::Late, |name| format!("{name} is late: silent for {said} ms"), now);
                tell_data(&self.parts.data, Silent { link, is_late: true }, context);
            }
            Notice::Awake => {
                self.parts.membership.handle_awake(link);
                self.tell_of(link, Kind::Awake, |name| format!("{name} is heard again"), now);
                tell_data(&self.parts.data, Silent { link, is_late: false }, context);
            }
            Notice::DrainAsked => self.wants_to_go(link, now),
            Notice::Expired { .. } => {}
            Notice::RenewalAsked { request } => self.renew(link, request),
        }
    }

    fn told(&mut self, link: LinkId, said: ToCoordinator, now: Instant) {
        let node = self.parts.membership.node(link);
        match (said, node) {
            (ToCoordinator::Join(join), _) => {
                let Some(session) = self.sessions.get_mut(&link) else { return };
                session.kinds = join.devices.iter().map(|device| device.kind.clone()).collect();
                session.held.clone_from(&join.held);
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
                self.parts.publisher.handle_stale(holding.epoch.term);
                if self.parts.publisher.loading_bytes(node) == 0
                    && let Some(rebalancer) = &mut self.parts.rebalancer
                {
                    rebalancer.handle_held(node, now);
                }
            }
            (ToCoordinator::Progress(progress), Some(node)) => {
                self.parts.publisher.handle_progress(node, progress);
            }
            (ToCoordinator::Fallen(fallen), Some(node)) => {
                let actor = fallen.actor;
                tracing::warn!(%node, ?actor, why = fallen.why, restarts = fallen.restarts, "an actor fell");
                let (ActorId { layer, expert, .. }, why) = (actor, &fallen.why);
                let what = |name: &str| format!("expert {expert} of layer {layer} fell on {name}: {why}");
                self.tell_of(link, Kind::ActorFell, what, now);
                if fallen.is_lost {
                    self.lose_device(node, fallen.actor, now);
                }
            }
            (ToCoordinator::Loads(loads), Some(node)) => self.loads.handle_loads(node, &loads, now),
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
            (ToCoordinator::Leaving, Some(_)) => self.wants_to_go(link, now),
            (said, None) => {
                tracing::warn!(%link, ?said, "said by a node that has not joined");
            }
        }
    }

    fn wants_to_go(&mut self, link: LinkId, now: Instant) {
        self.parts.membership.handle_leaving(link);
        self.tell_of(link, Kind::Leaving, |name| format!("{name} wants to go"), now);
    }

    /// Keeps for people what happened to a node.
    fn tell_of(&mut self, link: LinkId, kind: Kind, text: impl FnOnce(&str) -> String, now: Instant) {
        if let Some(session) = self.sessions.get(&link) {
            self.events.handle(kind, Some(&session.name), text(&session.name), now);
        }
    }

    /// An actor that does not stand counts as a device that is lost.
    fn lose_device(&mut self, node: NodeId, actor: ActorId, now: Instant) {
        if let Some(device) = self.parts.publisher.device_of(node, actor) {
            tracing::error!(%node, device, "device lost");
            let name = self.parts.membership.name(node);
            let text = format!("device {device} of {name} is lost: its actor does not stand");
            self.events.handle(Kind::DeviceLost, Some(&name), text, now);
            self.parts.membership.handle_device_lost(node, device);
            self.parts.publisher.handle_device_lost(node, device);
        }
    }

    pub(super) fn over(&mut self, link: LinkId, ended: &Ended, now: Instant) {
        let Some(session) = self.sessions.remove(&link) else { return };
        let name = session.name;
        match ended.is_wanted() {
            true => tracing::info!(%link, %name, why = %ended, "a node has gone"),
            false => tracing::warn!(%link, %name, why = %ended, "a node is lost"),
        }
        let node = self.parts.membership.node(link);
        self.parts.membership.handle_link_ended(link, now);
        if let Some(node) = node {
            self.events.handle_gone(node, &name, ended.is_wanted(), &ended.to_string(), now);
            self.loads.handle_gone(node);
            if let Some(rebalancer) = &mut self.parts.rebalancer {
                rebalancer.handle_gone(node);
            }
            // As the program ends nobody takes its place.
            if !self.is_leaving {
                self.parts.publisher.handle_link_ended(node);
            }
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

    pub(super) fn tell(&self, link: LinkId, message: ToNode) {
        let Some(session) = self.sessions.get(&link) else { return };
        if let Err(why) = session.peer.tell(Said::ToNode(message)) {
            // Its link is over, or it does not read what it is told: then it is as good as over.
            tracing::warn!(%link, %why, "a node was not told");
            session.peer.close(CloseReason::Silent);
        }
    }

    /// Everybody who has a link.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.sessions.values().map(|session| &session.peer)
    }

    /// A node's session, for people.
    pub(super) fn session_of(&self, link: LinkId) -> Option<&Session> {
        self.sessions.get(&link)
    }
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

/// Has a message go to the node and back now and then, as long as its link takes any.
async fn measure(link: LinkId, peer: Peer, control: Addr<ControlActor>) {
    loop {
        match peer.probe(0).await {
            Ok(took) => {
                if control.send(CameBack(link, took)).await.is_err() {
                    return;
                }
            }
            Err(ProbeRefused::Full { .. }) => {}
            Err(_) => return,
        }
        tokio::select! {
            _ = peer.closed() => return,
            () = tokio::time::sleep(TRIP_EVERY) => {}
        }
    }
}

/// Hands on whoever comes to a listener.
pub(super) async fn take(mut listener: Listener, control: Addr<ControlActor>) {
    loop {
        let arrived = listener.next().await;
        if control.send(Came(arrived)).await.is_err() {
            return;
        }
    }
}
