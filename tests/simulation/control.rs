//! The control plane of a coordinator: it strings the product's membership, placer, publisher and rebalancer together.
//!
//! A shell, as `control/actor.rs`, `hear.rs` and `layout.rs` are, without what they keep for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coordinator::control::cluster::Statistics;
use coordinator::control::drain::Drained;
use coordinator::control::loads::{Loads, LoadsSettings};
use coordinator::control::membership::{self, Joining, Member, Membership, MembershipSettings};
use coordinator::control::placer::{Facts, Placer, PlacerSettings};
use coordinator::control::policy::{Request, improve};
use coordinator::control::publisher::{self, Publisher, Standing};
use coordinator::control::rebalance::{self, Rebalancer};
use coordinator::data::ids::LinkId;
use coordinator::data::start::room_between;
use coordinator::placement::{NodeId, Placement, Seat};
use transport::carrier::Vouched;
use transport::link::Event as LinkEvent;
use transport::wire::cluster::{ActorId, Assignment, Cluster, Hold, Joined, ToCoordinator, ToNode};
use transport::wire::control::CloseReason;

use crate::bugs::Bug;
use crate::clock::{MS, US};
use crate::coordinator::{CoordinatorEvent, Observed, ToData};
use crate::frame::Moving;
use crate::network::{EndId, limits};
use crate::node::Node;
use crate::watch::violation;
use crate::world::{Event, Sky};

/// How often statistics and loads are looked at.
const LOOK_EVERY: u64 = 1_000 * MS;

#[derive(Debug)]
struct Session {
    end: EndId,
    held: Vec<Assignment>,
    is_draining: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) at: usize,
    life: u32,
    pub(crate) membership: Membership,
    pub(crate) publisher: Publisher,
    pub(crate) placer: Placer,
    rebalancer: Option<Rebalancer>,
    pub(crate) loads: Loads,
    sessions: BTreeMap<LinkId, Session>,
    link_next: u32,
    /// What the data plane is to be told.
    pub(crate) to_data: Vec<ToData>,
    /// Another coordinator publishes.
    pub(crate) is_superseded: bool,
    /// What is wanted is what was published made better.
    has_rebalanced: bool,
    /// What was published last.
    announced: Arc<Placement>,
    /// Nodes that have lost a device, or something that they had said they hold, since they joined.
    lost: BTreeSet<NodeId>,
    /// Nodes that joined anew since what was published was announced.
    renewed: BTreeSet<NodeId>,
}

impl Control {
    pub(crate) fn new(at: usize, life: u32, sky: &Sky) -> Self {
        let (case, now) = (&sky.case, sky.clock.now());
        let settings = MembershipSettings {
            join_window: Duration::from_millis(300),
            takeovers_max: 50,
            ..MembershipSettings::default()
        };
        let placer = PlacerSettings {
            policy: case.policy,
            constraints: case.constraints.clone(),
            nodes_min: case.nodes.len(),
            start_window: Duration::from_millis(400),
            rebalance: case.rebalance,
        };
        let disk = &sky.disks[at];
        let drained = match sky.has_bug(Bug::ForgetsDrained) {
            true => Drained::default(),
            false => Drained::read(&disk.drained).expect("what was written there"),
        };
        sky.operators.check(at, &drained);
        let membership = Membership::new(settings, disk.term, now).with_drained(drained);
        Self {
            at,
            life,
            membership,
            publisher: Publisher::new(case.demand.clone()),
            placer: Placer::new(placer, now),
            rebalancer: case.rebalance.map(|settings| Rebalancer::new(settings, now)),
            loads: Loads::new(LoadsSettings::default(), &case.demand),
            sessions: BTreeMap::new(),
            link_next: 0,
            to_data: Vec::new(),
            is_superseded: false,
            has_rebalanced: false,
            announced: Arc::default(),
            lost: BTreeSet::new(),
            renewed: BTreeSet::new(),
        }
    }

    /// What is wanted is about to become better than what was published.
    pub(crate) fn is_rebalancing(&self) -> bool {
        self.has_rebalanced && self.publisher.standing() != Standing::default()
    }

    fn later(&self, nanos: u64, what: CoordinatorEvent, sky: &mut Sky) {
        sky.clock.after(nanos, Event::Coordinator { coordinator: self.at, life: self.life, what });
    }

    /// Wakes when membership wants it, and now and then.
    pub(crate) fn watch_time(&mut self, sky: &mut Sky) {
        let now = sky.clock.now();
        self.membership.handle_timeout(now);
        if !self.placer.is_placed() {
            self.lay_out(sky);
        }
        self.rebalance(sky);
        self.carry_out(sky);
        let own = [self.membership.poll_timeout(), self.placer.poll_timeout(now)];
        let rebalance = self.rebalancer.as_ref().map(Rebalancer::poll_timeout);
        let due = own.into_iter().flatten().chain(rebalance).min();
        let wait = due.map_or(LOOK_EVERY, |due| sky.clock.nanos_of(due) - sky.clock.nanos());
        self.later(wait.clamp(MS, LOOK_EVERY), CoordinatorEvent::Watch, sky);
    }

    /// A term is on disk.
    pub(crate) fn stored(&mut self, term: u64, sky: &mut Sky) {
        if sky.disks[self.at].is_full {
            return self.later(LOOK_EVERY, CoordinatorEvent::Stored(term), sky);
        }
        let disk = &mut sky.disks[self.at];
        disk.term = disk.term.max(term);
        self.membership.handle_stored(term);
        self.carry_out(sky);
    }

    pub(crate) fn saw(&mut self, what: Observed, sky: &mut Sky) {
        match what {
            Observed::ClosedThrough(epoch) => self.publisher.handle_closed_through(epoch),
            Observed::Changed(took) => {
                if let Some(rebalancer) = &mut self.rebalancer {
                    rebalancer.handle_pause(took);
                }
            }
        }
        self.carry_out(sky);
    }

    pub(crate) fn link_says(&mut self, end: EndId, event: LinkEvent, sky: &mut Sky) {
        let link = self.sessions.iter().find(|(_, session)| session.end == end).map(|(link, _)| *link);
        match (event, link) {
            (LinkEvent::Open, _) => {
                let link = LinkId(self.link_next);
                self.link_next += 1;
                self.sessions.insert(link, Session { end, held: Vec::new(), is_draining: false });
            }
            (LinkEvent::Told { message, charge }, link) => {
                sky.read(end, charge);
                if let (Cluster::ToCoordinator(said), Some(link)) = (message, link) {
                    self.told(link, said, sky);
                }
            }
            (LinkEvent::Late { .. }, Some(link)) => {
                self.membership.handle_late(link);
                self.to_data.push(ToData::Silent { link, is_late: true });
            }
            (LinkEvent::Awake, Some(link)) => {
                self.membership.handle_awake(link);
                self.to_data.push(ToData::Silent { link, is_late: false });
            }
            (LinkEvent::DrainAsked, Some(link)) => self.membership.handle_leaving(link),
            (LinkEvent::Closed(_), Some(link)) => self.over(link, sky),
            _ => {}
        }
        self.carry_out(sky);
    }

    fn told(&mut self, link: LinkId, said: ToCoordinator, sky: &mut Sky) {
        let now = sky.clock.now();
        match (said, self.membership.node(link)) {
            (ToCoordinator::Join(join), _) => {
                let Some(session) = self.sessions.get_mut(&link) else { return };
                session.held.clone_from(&join.held);
                let Some(hello) = sky.network.end(session.end).link.peer() else { return };
                let (name, incarnation) = (hello.peer.name.clone(), hello.incarnation);
                let joining = Joining { link, name, vouched: Vouched::Nobody, incarnation, join };
                self.membership.handle_join(joining, now);
            }
            (ToCoordinator::Holding(holding), Some(node)) => {
                if !holding.failed.is_empty() {
                    self.lost.insert(node);
                }
                self.publisher.handle_holding(node, holding.epoch, &holding.failed);
                self.publisher.handle_stale(holding.epoch.term);
                if self.publisher.loading_bytes(node) == 0
                    && let Some(rebalancer) = &mut self.rebalancer
                {
                    rebalancer.handle_held(node, now);
                }
            }
            (ToCoordinator::Progress(progress), Some(node)) => self.publisher.handle_progress(node, progress),
            (ToCoordinator::Fallen(fallen), Some(node)) if fallen.is_lost => {
                self.lose_device(node, fallen.actor);
            }
            (ToCoordinator::Loads(loads), Some(node)) => self.loads.handle_loads(node, &loads, now),
            (ToCoordinator::Ask(ask), Some(_)) => {
                let Some(session) = self.sessions.get(&link) else { return };
                for piece in 1..=Node::pieces() {
                    let what =
                        Moving::Weights { ask: ask.ask, bytes: 4000, is_last: piece == Node::pieces() };
                    // Whoever asked asks again elsewhere when its link has ended.
                    let _ = sky.send(session.end, what);
                }
            }
            (ToCoordinator::Leaving, Some(_)) => self.membership.handle_leaving(link),
            (_, _) => {}
        }
    }

    /// An actor that does not stand counts as a device that is lost.
    fn lose_device(&mut self, node: NodeId, actor: ActorId) {
        if let Some(device) = self.publisher.device_of(node, actor) {
            self.lost.insert(node);
            self.membership.handle_device_lost(node, device);
            self.publisher.handle_device_lost(node, device);
        }
    }

    fn over(&mut self, link: LinkId, sky: &mut Sky) {
        self.sessions.remove(&link);
        let node = self.membership.node(link);
        self.membership.handle_link_ended(link, sky.clock.now());
        if let Some(node) = node {
            self.loads.handle_gone(node);
            if let Some(rebalancer) = &mut self.rebalancer {
                rebalancer.handle_gone(node);
            }
            self.publisher.handle_link_ended(node);
        }
    }

    pub(crate) fn carry_out(&mut self, sky: &mut Sky) {
        loop {
            if let Some(action) = self.membership.poll_action() {
                self.admit(action, sky);
            } else if let Some(action) = self.publisher.poll_action() {
                self.publish(action, sky);
            } else {
                break;
            }
        }
        self.renewed.clear();
        self.release_leavers(sky);
    }

    fn admit(&mut self, action: membership::Action, sky: &mut Sky) {
        match action {
            membership::Action::Admit { link, node, term } => {
                let joined =
                    Joined { node: node.0, term, config: Vec::new(), shards: sky.case.model.shards as u8 };
                self.tell(link, ToNode::Joined(joined), sky);
                let Some(session) = self.sessions.get_mut(&link) else { return };
                let end = session.end;
                let held: Vec<(ActorId, u16)> =
                    std::mem::take(&mut session.held).iter().map(|held| (held.actor, held.device)).collect();
                let Some(hello) = sky.network.end(end).link.peer() else { return };
                let room = room_between(&hello.limits, &limits(sky.case.window_rows));
                self.to_data.push(ToData::Opened { link, node, end, room });
                self.lost.remove(&node);
                self.renewed.insert(node);
                let devices = self.membership.member(node).map(|member| member.offer.devices.clone());
                self.publisher.handle_joined(node, devices.unwrap_or_default(), &held);
            }
            membership::Action::Refuse { link, why } => {
                sky.watch.refused += 1;
                self.tell(link, ToNode::NotJoined { why }, sky);
                if let Some(session) = self.sessions.get_mut(&link) {
                    session.drain(sky);
                }
            }
            membership::Action::CloseOlder { link, node } => {
                self.publisher.handle_link_ended(node);
                if let Some(session) = self.sessions.remove(&link) {
                    sky.close(session.end, CloseReason::Replaced);
                }
            }
            membership::Action::StoreTerm(term) => {
                let after = 200 * US + sky.random.below(20 * MS);
                self.later(after, CoordinatorEvent::Stored(term), sky);
            }
            membership::Action::TakeTerm(term) => {
                sky.watch.handle_term((self.at, self.life), term);
                self.publisher.handle_term(term);
            }
            membership::Action::Changed => self.lay_out(sky),
        }
    }

    fn release_leavers(&mut self, sky: &mut Sky) {
        let leaving = self.membership.members().filter(|member| member.state == membership::State::Leaving);
        let links: Vec<(LinkId, String)> = leaving
            .filter(|member| self.publisher.is_idle(member.node) || sky.has_bug(Bug::LetsGoEarly))
            .filter_map(|member| Some((member.link?, member.offer.name.clone())))
            .collect();
        for (link, name) in links {
            sky.watch.check_let_go((self.at, self.life), node_of(&name));
            if let Some(session) = self.sessions.get_mut(&link) {
                session.drain(sky);
            }
        }
    }

    /// Wants the placement that suits the cluster as it is.
    fn lay_out(&mut self, sky: &mut Sky) {
        let now = sky.clock.now();
        if self.placer.waits(self.membership.nodes_in(), now) {
            return;
        }
        let cluster = self.membership.cluster();
        let previous = self.publisher.previous();
        let forced = match sky.has_bug(Bug::ForcesAll) {
            true => cluster.nodes().iter().filter(|node| node.is_leaving).map(|node| node.id).collect(),
            false => self.membership.forced(),
        };
        let facts = Facts {
            demand: &sky.case.demand,
            cluster: &cluster,
            statistics: &self.loads.statistics(now),
            previous: &previous,
            published: self.publisher.published(),
            banned: self.publisher.banned(),
            forced: &forced,
        };
        if let Some(placement) = self.placer.handle_changed(facts, now) {
            self.has_rebalanced = false;
            self.publisher.handle_wanted(placement);
        } else if self.placer.is_placed() {
            self.publisher.handle_refused();
        }
    }

    fn rebalance(&mut self, sky: &mut Sky) {
        let now = sky.clock.now();
        let Some(rebalancer) = self.rebalancer.as_mut().filter(|own| own.poll_timeout() <= now) else {
            return;
        };
        let cluster = self.membership.cluster();
        let (previous, standing) = (self.publisher.previous(), self.publisher.standing());
        let (policy, constraints) = self.placer.rules(self.publisher.banned());
        let facts = rebalance::Facts {
            policy,
            constraints: &constraints,
            demand: &sky.case.demand,
            cluster: &cluster,
            loads: &self.loads,
            previous: &previous,
            is_settled: standing == Standing::default()
                && cluster.nodes().iter().all(|node| !node.is_leaving || self.publisher.is_idle(node.id)),
        };
        if let Some(placement) = rebalancer.handle_look(facts, now) {
            sky.watch.rebalanced += 1;
            self.has_rebalanced = true;
            self.publisher.handle_wanted(placement);
        }
    }

    /// Has experts moved, whether or not that pays: loads are made up.
    pub(crate) fn shuffle(&mut self, sky: &mut Sky) {
        let rows = sky.case.demand.layers.iter().map(|(layer, of)| {
            (*layer, (0..of.experts).map(|_| sky.random.below(1000) * sky.random.below(1000)).collect())
        });
        let statistics = Statistics { rows: rows.collect() };
        let cluster = self.membership.cluster();
        let previous = self.publisher.previous();
        let (policy, constraints) = self.placer.rules(self.publisher.banned());
        let request = Request {
            demand: &sky.case.demand,
            cluster: &cluster,
            statistics: &statistics,
            constraints: &constraints,
            previous: Some(&previous),
        };
        if let Some(placement) = improve(policy, &request, 4, &mut |_| true).placement {
            sky.watch.shuffled += 1;
            self.has_rebalanced = true;
            self.publisher.handle_wanted(placement);
        }
        self.carry_out(sky);
    }

    fn publish(&mut self, action: publisher::Action, sky: &mut Sky) {
        match action {
            publisher::Action::Tell { node, epoch, actors } => {
                let assign = |(actor, device)| Assignment { actor, device, digest: None };
                let mut actors: Vec<Assignment> = actors.into_iter().map(assign).collect();
                match sky.bug.filter(|_| self.membership.drained().has(&self.membership.name(node))) {
                    Some(Bug::DropsDrained) => actors.clear(),
                    Some(Bug::KeepsDrained) => return,
                    _ => {}
                }
                let link = self.membership.member(node).and_then(|member| member.link);
                let loading = self.publisher.loading_bytes(node);
                if let Some(rebalancer) = &mut self.rebalancer {
                    rebalancer.handle_ordered(node, loading, sky.clock.now());
                }
                if let Some(link) = link {
                    self.tell(link, ToNode::Hold(Hold { epoch, actors }), sky);
                }
            }
            publisher::Action::Publish(placement) => {
                if sky.is_told {
                    eprintln!("    published: {:?}", placement.actors().collect::<Vec<_>>());
                }
                // Who was overruled does not publish what becomes of his nodes.
                if sky.case.coordinators == 1 {
                    self.check_kept(&placement);
                }
                let on = |seat: Seat| node_of(&self.membership.name(seat.node));
                let actors = placement.actors().map(|(actor, seat)| (actor, on(seat)));
                sky.watch.handle_announced((self.at, self.life), actors.collect());
                self.announced = Arc::clone(&placement);
                self.to_data.push(ToData::Published(placement));
            }
            publisher::Action::Failed { .. } => self.lay_out(sky),
            publisher::Action::Superseded { .. } => self.is_superseded = true,
        }
    }

    /// An expert whose holders live stays published, but where somebody drains one of them by force.
    fn check_kept(&self, placement: &Placement) {
        let lives = |seat: &Seat| {
            let member = self.membership.member(seat.node);
            let has_link =
                member.and_then(|member| member.link).is_some_and(|link| self.sessions.contains_key(&link));
            let is_whole = !self.lost.contains(&seat.node) && !self.renewed.contains(&seat.node);
            has_link && member.is_some_and(Member::is_in) && is_whole
        };
        let drained = self.membership.drained();
        let is_forced = |seat: &Seat| drained.is_forced(&self.membership.name(seat.node));
        for (&layer, experts) in &self.announced.layers {
            for (expert, replicas) in (0..).zip(experts) {
                let had = replicas
                    .iter()
                    .find(|replica| replica.seats.iter().all(lives) && !replica.seats.iter().any(is_forced));
                if placement.replicas(layer, expert).is_empty()
                    && let Some(had) = had
                {
                    let what = format!("expert {expert} of layer {layer} is given up, {had:?} holds it");
                    violation("holders", what);
                }
            }
        }
    }

    fn tell(&self, link: LinkId, message: ToNode, sky: &mut Sky) {
        let Some(session) = self.sessions.get(&link) else { return };
        if sky.tell(session.end, Cluster::ToNode(message)).is_err() {
            sky.close(session.end, CloseReason::Silent);
        }
    }
}

/// Which node has this name.
pub(crate) fn node_of(name: &str) -> usize {
    name.strip_prefix('n').and_then(|at| at.parse().ok()).expect("nodes are called so")
}

impl Session {
    fn drain(&mut self, sky: &mut Sky) {
        if !std::mem::replace(&mut self.is_draining, true) {
            sky.drain(self.end);
        }
    }
}
