//! What every node is told to hold.
//!
//! Pure. First what must be there: published, or used by dispatches under older epochs. Then what is wanted, as far as
//! it fits beside that; the rest waits until something has been dropped.

use std::collections::BTreeMap;

use transport::wire::cluster::ActorId;

use super::node::Held;
use super::{Action, Publisher};
use crate::placement::{NodeId, Placement, Seat};

#[derive(Debug, Default)]
struct Set {
    actors: BTreeMap<ActorId, u16>,
    /// Bytes on each device.
    bytes: BTreeMap<u16, u64>,
}

impl Publisher {
    /// Tells every node what it does not know yet.
    pub(super) fn order(&mut self, term: u64) {
        if self.wanted.is_none() {
            return;
        }
        for (node, set) in self.sets() {
            let of = &self.nodes[&node];
            let is_news = match &of.order {
                Some(order) => order.actors != set,
                None => of.is_considered && !(set.is_empty() && of.held.is_empty()),
            };
            if is_news && of.is_considered {
                let epoch = self.next_epoch(term);
                let actors = set.iter().map(|(actor, device)| (*actor, *device)).collect();
                self.actions.push_back(Action::Tell { node, epoch, actors });
                self.nodes.get_mut(&node).expect("it was just there").tell(epoch, set);
            }
        }
    }

    /// What each node is to hold.
    fn sets(&self) -> BTreeMap<NodeId, BTreeMap<ActorId, u16>> {
        let mut sets: BTreeMap<NodeId, Set> = self.nodes.keys().map(|node| (*node, Set::default())).collect();
        let must = self.published.actors().chain(self.lingering.keys().copied());
        for (actor, seat) in must {
            // Whoever does not hold it any more is about to be published without it.
            if self.state(actor, seat) == Held::Yes {
                self.add(&mut sets, actor, seat, true);
            }
        }
        let wanted: Vec<(ActorId, Seat)> = self.wanted.iter().flat_map(Placement::actors).collect();
        // What is being loaded goes on, so that nothing is loaded twice.
        for stage in [Held::Yes, Held::Coming, Held::No] {
            for &(actor, seat) in wanted.iter().filter(|(actor, seat)| self.state(*actor, *seat) == stage) {
                self.add(&mut sets, actor, seat, false);
            }
        }
        sets.into_iter().map(|(node, set)| (node, set.actors)).collect()
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
