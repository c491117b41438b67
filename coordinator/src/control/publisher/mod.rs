//! Turns the placement that is wanted into orders to nodes and epochs for the data plane.
//!
//! Pure, and level-triggered: after every event it compares what is wanted, what is held and what is published, and
//! does what is missing. So it does not matter in which order things happen, nor what happens while something else is
//! under way.
//!
//! 1. What is wanted and not held is ordered, beside what is published, as far as memory goes.
//! 2. When all that was ordered has been answered, what is held is published. Only where nobody held an expert
//!    before, and where a node has died, is that done at once.
//! 3. What an epoch has taken away is held on to until no dispatch under an older one is open.
//! 4. Then it is dropped, which makes room for what did not fit in step 1.
//! 5. Where full devices wait for one another, one expert goes a detour (`detour`).
//!
//! An expert whose holder lives is never without one that is published. A load that fails blocks nobody else.

mod detour;
mod next;
mod node;
mod orders;
mod previous;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use transport::wire::cluster::{ActorId, Epoch, Progress};

use super::cluster::Demand;
use crate::placement::{NodeId, Placement, Seat};
use detour::Detour;
use node::{Held, Node};

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send the node this order, each actor with the digest of its weights.
    Tell {
        /// Whom.
        node: NodeId,
        /// Names the order.
        epoch: Epoch,
        /// All that it is to hold, and on which of its devices, ascending.
        actors: Vec<(ActorId, u16)>,
    },
    /// Give the data plane this placement.
    Publish(Arc<Placement>),
    /// Tell the operator that a node could not load what it was to hold. It will not be asked again while it stays;
    /// [`Publisher::banned`] has the pair, and another placement is needed.
    Failed {
        /// Who.
        node: NodeId,
        /// What.
        actor: ActorId,
        /// In words.
        why: String,
    },
    /// Tell the operator that another coordinator publishes, under this term. This one has stopped.
    Superseded {
        /// The other's.
        term: u64,
    },
}

/// How it stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Actors that are ordered and not there yet.
    pub loading: usize,
    /// Actors that are wanted and wait for room.
    pub waiting: usize,
    /// Actors that are held for dispatches under older epochs alone.
    pub lingering: usize,
    /// Whether what waits does so without an end: full devices are to exchange what they hold, nobody else holds any of
    /// it, and no device has room for a moment.
    pub blocked: bool,
    /// Experts that nobody holds.
    pub missing: usize,
}

/// What it publishes, and what it has ordered.
#[derive(Debug)]
pub struct Publisher {
    demand: Demand,
    term: Option<u64>,
    superseded: bool,
    number: u64,
    nodes: BTreeMap<NodeId, Node>,
    /// What nodes were to hold that have gone. Their actors' numbers are not given to others yet.
    departed: VecDeque<(NodeId, BTreeSet<ActorId>)>,
    wanted: Option<Placement>,
    published: Arc<Placement>,
    /// What an epoch has taken away, until it has closed all older ones.
    lingering: BTreeMap<(ActorId, Seat), Epoch>,
    banned: BTreeSet<(u32, u32, NodeId)>,
    /// Experts that make room for others on full devices, by layer and number.
    detours: BTreeMap<(u32, u32), Detour>,
    actions: VecDeque<Action>,
}

/// Nodes that have gone whose actors' numbers are kept.
const DEPARTED_MAX: usize = 64;

impl Publisher {
    /// It says nothing before it has a term.
    pub fn new(demand: Demand) -> Self {
        Self {
            demand,
            term: None,
            superseded: false,
            number: 0,
            nodes: BTreeMap::new(),
            departed: VecDeque::new(),
            wanted: None,
            published: Arc::default(),
            lingering: BTreeMap::new(),
            banned: BTreeSet::new(),
            detours: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// A term may be used. Every node is told anew under it.
    pub fn handle_term(&mut self, term: u64) {
        if self.term.is_none_or(|own| own < term) {
            (self.term, self.superseded) = (Some(term), false);
            for node in self.nodes.values_mut() {
                node.order = None;
            }
            self.go_on();
        }
    }

    /// A node has joined, with the memory of its devices and what it holds of an earlier session.
    pub fn handle_joined(&mut self, node: NodeId, devices: Vec<u64>, held: &[(ActorId, u16)]) {
        self.forget(node);
        self.departed.retain(|(departed, _)| *departed != node);
        let taken = self.taken();
        let is_ours = |actor: &ActorId, device: u16| {
            let is_known =
                self.demand.layers.get(&actor.layer).is_some_and(|layer| actor.expert < layer.experts);
            let seat = Seat { node, device };
            let is_elsewhere = taken.get(actor).is_some_and(|other| *other != seat);
            is_known
                && actor.shard < self.demand.shards
                && usize::from(device) < devices.len()
                && !is_elsewhere
        };
        let held = held.iter().copied().filter(|(actor, device)| is_ours(actor, *device)).collect();
        self.nodes.insert(node, Node::new(devices, held));
        self.go_on();
    }

    /// A node's link has ended.
    pub fn handle_link_ended(&mut self, node: NodeId) {
        self.forget(node);
        self.go_on();
    }

    /// This is where experts should be.
    pub fn handle_wanted(&mut self, placement: Placement) {
        self.wanted = Some(placement);
        self.detours.clear();
        for node in self.nodes.values_mut() {
            node.is_considered = true;
        }
        self.go_on();
    }

    /// No other placement can be: who joined since the last one has its part in that.
    pub fn handle_refused(&mut self) {
        for node in self.nodes.values_mut() {
            node.is_considered = true;
        }
        self.go_on();
    }

    /// A node has carried out an order, but for what failed.
    pub fn handle_holding(&mut self, node: NodeId, epoch: Epoch, failed: &[(ActorId, String)]) {
        let Some(of) = self.nodes.get_mut(&node) else { return };
        // The answer to an order that has been replaced says nothing of the one that counts.
        if !of.answer(epoch, failed) {
            return;
        }
        for (actor, why) in failed {
            self.banned.insert((actor.layer, actor.expert, node));
            self.actions.push_back(Action::Failed { node, actor: *actor, why: why.clone() });
        }
        // What others are to hold does not depend on it.
        self.go_on_from(Some(node));
    }

    /// How far a node has come with an order.
    pub fn handle_progress(&mut self, node: NodeId, progress: Progress) {
        if let Some(of) = self.nodes.get_mut(&node)
            && of.order.as_ref().is_some_and(|order| order.epoch == progress.epoch)
        {
            of.progress = Some(progress);
        }
    }

    /// A device is lost, and with it what it held.
    pub fn handle_device_lost(&mut self, node: NodeId, device: u16) {
        if let Some(of) = self.nodes.get_mut(&node) {
            of.lose(device);
            self.lingering.retain(|(_, seat), _| *seat != Seat { node, device });
            self.go_on();
        }
    }

    /// The data plane has no dispatch open under an epoch older than this.
    pub fn handle_closed_through(&mut self, epoch: Epoch) {
        self.lingering.retain(|_, taken_away| *taken_away > epoch);
        self.go_on();
    }

    /// A node obeys a higher term than ours.
    pub fn handle_stale(&mut self, term: u64) {
        if self.term.is_some_and(|own| term > own) && !self.superseded {
            self.superseded = true;
            self.actions.push_back(Action::Superseded { term });
        }
    }

    /// Whether another coordinator publishes, and this one does not any more.
    pub fn is_superseded(&self) -> bool {
        self.superseded
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What is published.
    pub fn published(&self) -> &Arc<Placement> {
        &self.published
    }

    /// What is wanted.
    pub fn wanted(&self) -> Option<&Placement> {
        self.wanted.as_ref()
    }

    /// Experts, and the nodes that have failed to load them: for the constraints of the next placement.
    pub fn banned(&self) -> &BTreeSet<(u32, u32, NodeId)> {
        &self.banned
    }

    /// How far a node says that it has come.
    pub fn progress(&self, node: NodeId) -> Option<Progress> {
        self.nodes.get(&node)?.progress
    }

    /// On which of its devices a node has an actor, published or not, or is to have it.
    pub fn device_of(&self, node: NodeId, actor: ActorId) -> Option<u16> {
        let of = self.nodes.get(&node)?;
        of.held.get(&actor).copied().or_else(|| of.ordered(actor))
    }

    /// Bytes that a node has been told to load and has not answered for.
    pub fn loading_bytes(&self, node: NodeId) -> u64 {
        let loading = self.nodes.get(&node).into_iter().flat_map(Node::loading);
        loading.map(|(actor, _)| self.demand.shard_bytes(actor.layer)).sum()
    }

    /// Whether nothing of a node's is published, wanted, or held for older dispatches: one that leaves may go.
    pub fn is_idle(&self, node: NodeId) -> bool {
        let is_there = |placement: &Placement| placement.actors().any(|(_, seat)| seat.node == node);
        !is_there(&self.published)
            && !self.wanted.as_ref().is_some_and(is_there)
            && !self.lingering.keys().any(|(_, seat)| seat.node == node)
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let loading = self.nodes.values().map(|node| node.loading().count()).sum();
        let missing = self.demand.layers.iter().map(|(layer, of)| {
            (0..of.experts).filter(|expert| self.published.replicas(*layer, *expert).is_empty()).count()
        });
        Standing {
            loading,
            waiting: self.waiting().count(),
            lingering: self.lingering.len(),
            blocked: self.is_stuck(),
            missing: missing.sum(),
        }
    }

    /// Does whatever is missing. Nothing is said without a term, or after another has taken over.
    fn go_on(&mut self) {
        self.go_on_from(None);
    }

    /// The same, where something has changed at this node alone.
    fn go_on_from(&mut self, node: Option<NodeId>) {
        let Some(term) = self.term.filter(|_| !self.superseded) else { return };
        // What a node is to hold does not depend on what others have loaded, but where something stands in for something.
        let only = node.filter(|_| self.detours.is_empty());
        self.end_detours();
        self.take_step(term, only);
        if self.is_stuck() && self.find_detour() {
            self.take_step(term, None);
        }
    }

    fn take_step(&mut self, term: u64, only: Option<NodeId>) {
        self.order(term, only);
        if let Some(layers) = self.due() {
            self.publish(term, layers);
            self.order(term, None);
        }
    }

    fn next_epoch(&mut self, term: u64) -> Epoch {
        self.number += 1;
        Epoch { term, number: self.number }
    }

    fn publish(&mut self, term: u64, layers: next::Layers) {
        let epoch = self.next_epoch(term);
        let placement = Arc::new(Placement { epoch, layers });
        let kept: BTreeSet<(ActorId, Seat)> = placement.actors().collect();
        for (actor, seat) in self.published.actors().filter(|actor| !kept.contains(actor)) {
            let is_held =
                self.nodes.get(&seat.node).is_some_and(|node| node.state(actor, seat.device) == Held::Yes);
            if is_held {
                self.lingering.insert((actor, seat), epoch);
            }
        }
        self.lingering.retain(|actor, _| !kept.contains(actor));
        self.published = Arc::clone(&placement);
        self.actions.push_back(Action::Publish(placement));
    }

    /// A session of a node has ended.
    fn forget(&mut self, node: NodeId) {
        let Some(of) = self.nodes.remove(&node) else { return };
        self.lingering.retain(|(_, seat), _| seat.node != node);
        self.banned.retain(|(_, _, banned)| *banned != node);
        self.departed.push_back((node, of.actors()));
        if self.departed.len() > DEPARTED_MAX {
            self.departed.pop_front();
        }
    }

    /// Where every actor sits that is published, lingers, or is wanted on a node that is there.
    fn taken(&self) -> BTreeMap<ActorId, Seat> {
        let wanted = self.wanted.iter().flat_map(Placement::actors);
        let all = wanted.chain(self.lingering.keys().copied()).chain(self.published.actors());
        all.filter(|(_, seat)| self.nodes.contains_key(&seat.node)).collect()
    }
}
