//! A node as its orders see it: what it was told, and what it has said since.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use transport::wire::cluster::{ActorId, Epoch, Progress};

/// The last order.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) epoch: Epoch,
    pub(super) actors: BTreeMap<ActorId, u16>,
    is_answered: bool,
}

/// Whether a node holds an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    /// It has been told to.
    Coming,
    No,
    /// It cannot.
    Failed,
}

#[derive(Debug)]
pub(super) struct Node {
    /// Memory of its devices, 0 for one that is lost.
    pub(super) devices: Vec<u64>,
    /// What stands there, and stays.
    pub(super) held: BTreeMap<ActorId, u16>,
    pub(super) order: Option<Order>,
    failed: BTreeSet<(ActorId, u16)>,
    pub(super) progress: Option<Progress>,
    /// A placement was wanted since it joined. Before that it is told nothing that would take away what it holds.
    pub(super) is_considered: bool,
}

impl Node {
    pub(super) fn new(devices: Vec<u64>, held: BTreeMap<ActorId, u16>) -> Self {
        let (order, failed, progress) = (None, BTreeSet::new(), None);
        Self { devices, held, order, failed, progress, is_considered: false }
    }

    pub(super) fn state(&self, actor: ActorId, device: u16) -> Held {
        if self.failed.contains(&(actor, device)) || self.memory(device) == 0 {
            Held::Failed
        } else if self.held.get(&actor) == Some(&device) {
            Held::Yes
        } else if self.ordered(actor) == Some(device) {
            Held::Coming
        } else {
            Held::No
        }
    }

    pub(super) fn memory(&self, device: u16) -> u64 {
        self.devices.get(usize::from(device)).copied().unwrap_or(0)
    }

    pub(super) fn ordered(&self, actor: ActorId) -> Option<u16> {
        self.order.as_ref().and_then(|order| order.actors.get(&actor).copied())
    }

    /// What it was told to load and has not answered for.
    pub(super) fn loading(&self) -> impl Iterator<Item = (ActorId, u16)> + '_ {
        let actors = self.order.iter().filter(|order| !order.is_answered).flat_map(|order| &order.actors);
        let all = actors.map(|(actor, device)| (*actor, *device));
        all.filter(|(actor, device)| self.state(*actor, *device) == Held::Coming)
    }

    /// Every actor that it holds or was told to.
    pub(super) fn actors(&self) -> BTreeSet<ActorId> {
        let ordered = self.order.iter().flat_map(|order| order.actors.keys());
        ordered.chain(self.held.keys()).copied().collect()
    }

    /// Tells it what to hold. What is not among it does not count as held any more.
    pub(super) fn tell(&mut self, epoch: Epoch, actors: BTreeMap<ActorId, u16>) {
        self.held.retain(|actor, device| actors.get(actor) == Some(device));
        self.order = Some(Order { epoch, actors, is_answered: false });
        self.progress = None;
    }

    /// Takes its answer. Whether it is one to the order that counts.
    pub(super) fn answer(&mut self, epoch: Epoch, failed: &[(ActorId, String)]) -> bool {
        let Some(order) = self.order.as_mut().filter(|order| order.epoch == epoch) else { return false };
        order.is_answered = true;
        self.held = order.actors.clone();
        for (actor, _) in failed {
            if let Some(device) = self.held.remove(actor) {
                self.failed.insert((*actor, device));
            }
        }
        true
    }

    pub(super) fn lose(&mut self, device: u16) {
        if let Some(memory) = self.devices.get_mut(usize::from(device)) {
            *memory = 0;
        }
        self.held.retain(|_, other| *other != device);
    }
}
