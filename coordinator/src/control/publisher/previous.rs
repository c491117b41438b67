//! What the next placement is to keep.
//!
//! Pure.

use std::collections::BTreeSet;

use super::Publisher;
use super::next::Stage;
use crate::placement::{Placement, Replica, Seat};

impl Publisher {
    /// What sits, or is about to, for [`Request::previous`](crate::control::policy::Request): what is wanted and
    /// lives; where nothing of that is held, what somebody who came back holds. Other numbers that are in use, or that
    /// somebody may come back with, stand there without seats, so that they are not given out.
    pub fn previous(&self) -> Placement {
        let mut previous = Placement::default();
        let standing = self.standing_replicas();
        for (&layer, demand) in &self.demand.layers {
            let experts = previous.layers.entry(layer).or_default();
            for expert in 0..demand.experts {
                let wanted = self.wanted.as_ref().map_or(&[][..], |wanted| wanted.replicas(layer, expert));
                let held = standing.get(&(layer, expert)).map_or(&[][..], Vec::as_slice);
                experts.push(self.kept(layer, expert, wanted, held));
            }
        }
        self.reserve_departed(&mut previous);
        previous
    }

    fn kept(&self, layer: u32, expert: u32, wanted: &[Replica], held: &[Replica]) -> Vec<Replica> {
        let mut living: Vec<&Replica> =
            wanted.iter().filter(|replica| self.stage(layer, expert, replica) != Stage::Lost).collect();
        living.sort_by_key(|replica| (self.stage(layer, expert, replica), replica.number));
        let others: Vec<&Replica> = held.iter().filter(|replica| !wanted.contains(replica)).collect();
        let has_come_back = |replica: &&Replica| self.has_come_back(replica);
        let is_held = living.first().is_some_and(|first| self.stage(layer, expert, first) == Stage::Ready);
        let kept: Vec<&Replica> = if !is_held && others.iter().any(has_come_back) {
            others.iter().copied().filter(has_come_back).collect()
        } else if living.is_empty() {
            others.clone()
        } else {
            living
        };
        let mut kept: Vec<Replica> = kept.into_iter().cloned().collect();
        // Of a replica that has lost a shard, the rest is worth keeping.
        let is_new = |kept: &[Replica], number: u8| kept.iter().all(|replica| replica.number != number);
        for replica in wanted {
            if is_new(&kept, replica.number) {
                kept.push(replica.clone());
            }
        }
        for replica in held.iter().chain(self.published.replicas(layer, expert)) {
            if is_new(&kept, replica.number) {
                kept.push(Replica { number: replica.number, seats: Vec::new() });
            }
        }
        kept
    }

    /// Whether all of it is on nodes that joined since the last placement was wanted.
    pub(super) fn has_come_back(&self, replica: &Replica) -> bool {
        let is_new = |seat: &Seat| self.nodes.get(&seat.node).is_some_and(|node| !node.is_considered);
        replica.seats.iter().all(is_new)
    }

    fn reserve_departed(&self, previous: &mut Placement) {
        let departed = self.departed.iter().flat_map(|(_, actors)| actors);
        let lingering = self.lingering.keys().map(|(actor, _)| actor);
        let failed =
            self.nodes.values().flat_map(|node| node.order.iter().flat_map(|order| order.actors.keys()));
        let all: BTreeSet<_> = departed.chain(lingering).chain(failed).copied().collect();
        for actor in all {
            let experts = previous.layers.get_mut(&actor.layer);
            let Some(replicas) = experts.and_then(|experts| experts.get_mut(actor.expert as usize)) else {
                continue;
            };
            if replicas.iter().all(|replica| replica.number != actor.replica) {
                replicas.push(Replica { number: actor.replica, seats: Vec::new() });
            }
        }
    }
}
