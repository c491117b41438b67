//! What every node is told to hold.
//!
//! Pure. First what must be there: published, or used by dispatches under older epochs. Then what is wanted, as far as
//! it fits beside that; the rest waits until something has been dropped.

use std::collections::BTreeMap;

use transport::wire::cluster::ActorId;

use super::node::Held;
use super::{Action, Publisher};
use crate::placement::{NodeId, Placement, Seat};

/// What a node is to hold.
#[derive(Debug, Default)]
pub(super) struct Set {
    actors: BTreeMap<ActorId, u16>,
    /// Bytes on each device.
    bytes: BTreeMap<u16, u64>,
}

impl Set {
    /// Bytes that it takes of a device.
    pub(super) fn used(&self, device: u16) -> u64 {
        self.bytes.get(&device).copied().unwrap_or(0)
    }
}

impl Publisher {
    /// Tells every node, or this one alone, what it does not know yet.
    pub(super) fn order(&mut self, term: u64, only: Option<NodeId>) {
        if self.wanted.is_none() {
            return;
        }
        for (node, Set { actors: set, .. }) in self.sets(only) {
            let of = &self.nodes[&node];
            let is_news = match &of.order {
                Some(order) => order.actors != set,
                // Whatever it has of an earlier session, loaded or on its way, goes if it is not told.
                None => true,
            };
            if is_news && of.is_considered {
                let epoch = self.next_epoch(term);
                let actors = set.iter().map(|(actor, device)| (*actor, *device)).collect();
                self.actions.push_back(Action::Tell { node, epoch, actors });
                self.nodes.get_mut(&node).expect("it was just there").tell(epoch, set);
            }
        }
    }

    /// What each node is to hold, or this one alone.
    pub(super) fn sets(&self, only: Option<NodeId>) -> BTreeMap<NodeId, Set> {
        let is_asked = |node: NodeId| only.is_none_or(|only| only == node);
        let nodes = self.nodes.keys().filter(|node| is_asked(**node));
        let mut sets: BTreeMap<NodeId, Set> = nodes.map(|node| (*node, Set::default())).collect();
        let must = self.published.actors().chain(self.lingering.keys().copied());
        for (actor, seat) in must.filter(|(_, seat)| is_asked(seat.node)) {
            // Whoever does not hold it any more is about to be published without it.
            if self.state(actor, seat) == Held::Yes {
                self.add(&mut sets, actor, seat, true);
            }
        }
        let wanted: Vec<(ActorId, Seat)> =
            self.wanted.iter().flat_map(Placement::actors).filter(|(_, seat)| is_asked(seat.node)).collect();
        // What is being loaded goes on, so that nothing is loaded twice.
        for stage in [Held::Yes, Held::Coming, Held::No] {
            if stage == Held::No {
                self.add_stand_ins(&mut sets);
            }
            for &(actor, seat) in wanted.iter().filter(|(actor, seat)| self.state(*actor, *seat) == stage) {
                self.add(&mut sets, actor, seat, false);
            }
        }
        sets
    }

    fn add_stand_ins(&self, sets: &mut BTreeMap<NodeId, Set>) {
        for (&(layer, expert), detour) in &self.detours {
            let Some(replica) = &detour.stand_in else { continue };
            for (shard, &seat) in (0..).zip(&replica.seats) {
                let actor = ActorId { layer, expert, replica: replica.number, shard };
                self.add(sets, actor, seat, false);
            }
        }
    }

    fn state(&self, actor: ActorId, seat: Seat) -> Held {
        self.nodes.get(&seat.node).map_or(Held::Failed, |node| node.state(actor, seat.device))
    }

    fn add(&self, sets: &mut BTreeMap<NodeId, Set>, actor: ActorId, seat: Seat, must: bool) {
        let Some(set) = sets.get_mut(&seat.node) else { return };
        if set.actors.contains_key(&actor) {
            return;
        }
        let bytes = set.bytes.entry(seat.device).or_default();
        let after = bytes.saturating_add(self.demand.shard_bytes(actor.layer));
        if must || after <= self.nodes[&seat.node].memory(seat.device) {
            *bytes = after;
            set.actors.insert(actor, seat.device);
        }
    }
}
