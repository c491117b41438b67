//! The coordinator's publisher and the nodes' own holdings, core against core: whatever is lost, late or broken between
//! them, in the end every node holds exactly what the published placement says.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coordinator::control::cluster::{Cluster, Demand, LayerDemand, NodeOffer, Statistics};
use coordinator::control::policy::{Constraints, Policy, Request, place};
use coordinator::control::publisher::{Action, Publisher};
use coordinator::placement::{NodeId, Placement, Replica, Seat};
use node::holdings::{self, Holdings, LoadFailed};
use proptest::prelude::*;
use transport::wire::cluster::{ActorId, Assignment, Hold, ToCoordinator};

const BYTES: u64 = 10;
const COORDINATOR: &str = "front";

/// What happens next, to which node.
#[derive(Debug, Clone)]
enum Happening {
    /// Its link breaks; what is on its way on it is lost.
    Break(usize),
    /// It joins, if its link does not stand.
    Join(usize),
    /// Its process dies, and with it all that it holds.
    Die(usize),
    /// An order arrives.
    Order(usize),
    /// What it said arrives.
    Answer(usize),
    /// A load ends, well or not.
    Loaded(usize, bool),
    /// All older dispatches are back.
    Closed,
    /// Another placement is wanted: by a policy, with hot experts.
    Wanted(usize, Vec<u64>),
    /// Two experts are to change places.
    Exchange(u32, u32),
}

struct Node {
    holdings: Holdings,
    devices: Vec<u64>,
    is_linked: bool,
    loading: VecDeque<u64>,
    orders: VecDeque<Hold>,
    answers: VecDeque<ToCoordinator>,
}

struct World {
    demand: Demand,
    publisher: Publisher,
    nodes: Vec<Node>,
    statistics: Statistics,
    policy: Policy,
}

impl World {
    fn new(layers: u32, experts: u32, nodes: &[Vec<u64>]) -> Self {
        let layer = LayerDemand { experts, top_k: 1, shard_bytes: BYTES, is_dense: false };
        let demand = Demand { layers: (0..layers).map(|index| (index, layer)).collect(), shards: 1 };
        let node = |devices: &Vec<u64>| Node {
            holdings: Holdings::default(),
            devices: devices.clone(),
            is_linked: false,
            loading: VecDeque::new(),
            orders: VecDeque::new(),
            answers: VecDeque::new(),
        };
        let mut publisher = Publisher::new(demand.clone());
        publisher.handle_term(1);
        let nodes = nodes.iter().map(node).collect();
        Self { demand, publisher, nodes, statistics: Statistics::default(), policy: Policy::Auto }
    }

    fn lay_out(&mut self) {
        let offer = |(id, node): (usize, &Node)| {
            let (id, devices) = (NodeId(id as u32), node.devices.clone());
            let offer = NodeOffer {
                id,
                name: format!("n{}", id.0),
                devices,
                labels: BTreeMap::new(),
                is_leaving: false,
            };
            node.is_linked.then_some(offer)
        };
        let cluster = Cluster::new(self.nodes.iter().enumerate().filter_map(offer).collect());
        let previous = self.publisher.previous();
        let constraints = Constraints { banned: self.publisher.banned().clone(), ..Constraints::default() };
        let request = Request {
            demand: &self.demand,
            cluster: &cluster,
            statistics: &self.statistics,
            constraints: &constraints,
            previous: Some(&previous),
        };
        match place(self.policy, &request) {
            Ok(placement) => self.publisher.handle_wanted(placement),
            Err(_) => self.publisher.handle_refused(),
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Break(at) => self.cut(*at),
            Happening::Join(at) => self.join(*at),
            Happening::Die(at) => {
                self.cut(*at);
                (self.nodes[*at].holdings, self.nodes[*at].loading) = Default::default();
            }
            Happening::Order(at) => {
                if let Some(order) = self.nodes[*at].orders.pop_front() {
                    self.nodes[*at].holdings.handle_hold(COORDINATOR, order);
                    self.listen(*at);
                }
            }
            Happening::Answer(at) => self.answer(*at),
            Happening::Loaded(at, is_well) => {
                if let Some(ticket) = self.nodes[*at].loading.pop_front() {
                    let result =
                        if *is_well { Ok(BYTES) } else { Err(LoadFailed::Because("no file".to_owned())) };
                    self.nodes[*at].holdings.handle_loaded(ticket, result);
                    self.listen(*at);
                }
            }
            Happening::Closed => {
                let epoch = self.publisher.published().epoch;
                self.publisher.handle_closed_through(epoch);
            }
            Happening::Wanted(policy, rows) => {
                self.policy = Policy::ALL[*policy].1;
                self.statistics.rows =
                    self.demand.layers.keys().map(|layer| (*layer, rows.clone())).collect();
                self.lay_out();
            }
            Happening::Exchange(one, other) => self.exchange(*one, *other),
        }
        self.carry_out();
    }

    fn cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if std::mem::take(&mut node.is_linked) {
            node.holdings.handle_unlinked(COORDINATOR);
            node.orders.clear();
            node.answers.clear();
            self.publisher.handle_link_ended(NodeId(at as u32));
            self.lay_out();
        }
    }

    fn join(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if std::mem::replace(&mut node.is_linked, true) {
            return;
        }
        node.holdings.handle_linked(COORDINATOR);
        let held: Vec<_> = node.holdings.held().iter().map(|held| (held.actor, held.device)).collect();
        let devices = node.devices.clone();
        self.publisher.handle_joined(NodeId(at as u32), devices, &held);
        self.lay_out();
    }

    fn answer(&mut self, at: usize) {
        match self.nodes[at].answers.pop_front() {
            Some(ToCoordinator::Holding(holding)) => {
                self.publisher.handle_holding(NodeId(at as u32), holding.epoch, &holding.failed);
            }
            Some(ToCoordinator::Progress(progress)) => {
                self.publisher.handle_progress(NodeId(at as u32), progress);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }

    /// What a node's core wants done.
    fn listen(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while let Some(action) = node.holdings.poll_action() {
            match action {
                holdings::Action::Load { ticket, .. } => node.loading.push_back(ticket),
                holdings::Action::Cancel { ticket } => node.loading.retain(|other| *other != ticket),
                holdings::Action::Remove(_) => {}
                holdings::Action::Say { what, .. } => node.answers.push_back(what),
            }
        }
    }

    /// Two experts of layer 0 are to sit where the other does.
    fn exchange(&mut self, one: u32, other: u32) {
        let previous = self.publisher.previous();
        let Some(mut wanted) = self.publisher.wanted().cloned() else { return };
        let seats =
            [one, other].map(|expert| wanted.replicas(0, expert).first().map(|first| first.seats.clone()));
        let [Some(of_one), Some(of_other)] = seats else { return };
        if one == other || of_one == of_other {
            return;
        }
        for (expert, seats) in [(one, of_other), (other, of_one)] {
            let taken = previous.replicas(0, expert);
            let number =
                (0..=u8::MAX).find(|number| taken.iter().all(|known| known.number != *number)).unwrap();
            let replicas = &mut wanted.layers.get_mut(&0).unwrap()[expert as usize];
            replicas[0] = Replica { number, seats };
            replicas.truncate(1);
        }
        self.publisher.handle_wanted(wanted);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.publisher.poll_action() {
            match action {
                Action::Tell { node, epoch, actors } => {
                    let of = &mut self.nodes[node.0 as usize];
                    assert!(of.is_linked, "an order for one that has gone");
                    let mut used: BTreeMap<u16, u64> = BTreeMap::new();
                    for (_, device) in &actors {
                        *used.entry(*device).or_default() += BYTES;
                    }
                    for (device, used) in used {
                        assert!(used <= of.devices[usize::from(device)], "{node} has not the memory");
                    }
                    let assign = |(actor, device)| Assignment { actor, device, digest: None };
                    let actors = actors.into_iter().map(assign).collect();
                    of.orders.push_back(Hold { epoch, actors });
                }
                Action::Publish(placement) => self.check(&placement),
                Action::Failed { .. } => self.lay_out(),
                Action::Superseded { term } => panic!("term {term}"),
            }
        }
    }

    /// Nothing is published that its node does not hold, or is about to drop.
    fn check(&self, placement: &Placement) {
        for (actor, Seat { node, device }) in placement.actors() {
            let of = &self.nodes[node.0 as usize];
            assert!(of.is_linked, "{actor:?} on {node}, which has gone");
            let stands = of.holdings.held().iter().any(|held| held.actor == actor && held.device == device);
            assert!(stands, "{actor:?} is not on {node}");
            let stays =
                |order: &Hold| order.actors.iter().any(|held| held.actor == actor && held.device == device);
            assert!(of.orders.iter().all(stays), "{actor:?} on {node} is to go");
        }
    }

    /// Experts that have a holder which is published.
    fn served(&self) -> BTreeSet<(u32, u32)> {
        let published = self.publisher.published();
        published.actors().map(|(actor, _)| (actor.layer, actor.expert)).collect()
    }

    /// Everybody is there, and all that is under way comes to its end.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "it comes to no end: {:?}", self.publisher.standing());
            (0..self.nodes.len()).for_each(|at| self.happen(&Happening::Join(at)));
            let before = (self.publisher.published().epoch, self.publisher.standing());
            let mut any = false;
            for at in 0..self.nodes.len() {
                any |= !self.nodes[at].orders.is_empty()
                    || !self.nodes[at].answers.is_empty()
                    || !self.nodes[at].loading.is_empty();
                for happening in [Happening::Order(at), Happening::Loaded(at, true), Happening::Answer(at)] {
                    self.happen(&happening);
                }
            }
            self.happen(&Happening::Closed);
            if !any && before == (self.publisher.published().epoch, self.publisher.standing()) {
                return;
            }
        }
    }
}

fn happening(nodes: usize, experts: u32) -> impl Strategy<Value = Happening> {
    let node = 0..nodes;
    prop_oneof![
        2 => node.clone().prop_map(Happening::Break),
        4 => node.clone().prop_map(Happening::Join),
        1 => node.clone().prop_map(Happening::Die),
        10 => node.clone().prop_map(Happening::Order),
        10 => node.clone().prop_map(Happening::Answer),
        10 => (node, prop::bool::weighted(0.95)).prop_map(|(node, is_well)| Happening::Loaded(node, is_well)),
        4 => Just(Happening::Closed),
        2 => (0..5_usize, prop::collection::vec(0..1000_u64, experts as usize))
            .prop_map(|(policy, rows)| Happening::Wanted(policy, rows)),
        2 => (0..experts, 0..experts).prop_map(|(one, other)| Happening::Exchange(one, other)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_nodes_hold_what_is_published(
        layers in 1..3_u32,
        devices in prop::collection::vec(prop::collection::vec(1..5_u64, 1..3), 2..5),
        happenings in prop::collection::vec(happening(4, 3), 0..200),
    ) {
        let devices: Vec<Vec<u64>> =
            devices.iter().map(|of| of.iter().map(|experts| experts * BYTES).collect()).collect();
        let mut world = World::new(layers, 3, &devices);
        for happening in &happenings {
            let happening = match happening.clone() {
                Happening::Break(at) => Happening::Break(at % devices.len()),
                Happening::Join(at) => Happening::Join(at % devices.len()),
                Happening::Die(at) => Happening::Die(at % devices.len()),
                Happening::Order(at) => Happening::Order(at % devices.len()),
                Happening::Answer(at) => Happening::Answer(at % devices.len()),
                Happening::Loaded(at, is_well) => Happening::Loaded(at % devices.len(), is_well),
                other => other,
            };
            let (before, standing) = (world.served(), world.nodes.iter().all(|node| node.is_linked));
            world.happen(&happening);
            let is_harmless = !matches!(happening, Happening::Break(_) | Happening::Die(_));
            if is_harmless && standing {
                prop_assert!(world.served().is_superset(&before), "an expert whose holder lives has none: {happening:?}");
            }
        }
        world.settle();
        let published = world.publisher.published();
        let standing = world.publisher.standing();
        if world.publisher.wanted().is_none() {
            return Ok(());
        }
        for (at, node) in world.nodes.iter().enumerate() {
            let here = published.actors().filter(|(_, seat)| seat.node.0 == at as u32);
            let here: BTreeSet<(ActorId, u16)> = here.map(|(actor, seat)| (actor, seat.device)).collect();
            let held: BTreeSet<_> = node.holdings.held().iter().map(|held| (held.actor, held.device)).collect();
            prop_assert_eq!(held, here, "node {}: {:?}", at, standing);
        }
        prop_assert_eq!((standing.loading, standing.lingering), (0, 0));
        if standing.waiting > 0 {
            prop_assert!(standing.blocked, "{:?}", standing);
        } else if world.publisher.banned().is_empty() {
            let wanted = world.publisher.wanted().unwrap();
            prop_assert_eq!(&wanted.layers, &published.layers);
        }
    }
}
