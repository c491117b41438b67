//! What could be published now, and whether it should be.
//!
//! Pure.

use std::collections::BTreeMap;

use super::Publisher;
use super::node::Held;
use crate::placement::{Placement, Replica, Seat};
use transport::wire::cluster::ActorId;

pub(super) type Layers = BTreeMap<u32, Vec<Vec<Replica>>>;

/// How far a replica has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// All its shards are held.
    Ready,
    /// Some are being loaded, and the others held.
    Coming,
    /// Some have not been ordered, for want of room.
    Waiting,
    /// It cannot be: a node is gone, or has failed.
    Lost,
}

impl Publisher {
    pub(super) fn stage(&self, layer: u32, expert: u32, replica: &Replica) -> Stage {
        let of_seat = |(shard, seat): (usize, &Seat)| {
            let actor = ActorId { layer, expert, replica: replica.number, shard: shard as u8 };
            match self.nodes.get(&seat.node).map(|node| node.state(actor, seat.device)) {
                Some(Held::Yes) => Stage::Ready,
                Some(Held::Coming) => Stage::Coming,
                Some(Held::No) => Stage::Waiting,
                Some(Held::Failed) | None => Stage::Lost,
            }
        };
        let shards = usize::from(self.demand.shards);
        let stages = replica.seats.iter().enumerate().map(of_seat);
        if replica.seats.len() == shards { stages.max().unwrap_or(Stage::Lost) } else { Stage::Lost }
    }

    /// What is to be published now, if anything is.
    pub(super) fn due(&self) -> Option<Layers> {
        let wanted = self.wanted.as_ref()?;
        let is_first = self.published.epoch.number == 0;
        let is_settled = self.nodes.values().all(|node| node.loading().next().is_none());
        // The first is published when it is whole or nothing more comes: while nodes load, most answers change nothing.
        if is_first && !is_settled {
            let held: usize = self.nodes.values().map(|node| node.held.len()).sum();
            if (held as u64) < self.demand.experts() {
                return None;
            }
        }
        let standing = self.standing_replicas();
        let (mut layers, mut is_urgent, mut is_whole) = (Layers::new(), false, true);
        for (&layer, demand) in &self.demand.layers {
            let experts = layers.entry(layer).or_insert_with(Vec::new);
            for expert in 0..demand.experts {
                let before = self.published.replicas(layer, expert);
                let replicas = self.next_replicas(wanted, layer, expert, &standing);
                // Who is published and does not stand any more must go at once; who is the first must come.
                let stands = |replica: &Replica| self.stage(layer, expert, replica) == Stage::Ready;
                is_urgent |= !before.iter().all(stands) || (before.is_empty() && !replicas.is_empty());
                is_whole &= !replicas.is_empty();
                experts.push(replicas);
            }
        }
        let is_due = is_settled || if is_first { is_whole } else { is_urgent };
        let is_empty = is_first && layers.values().flatten().all(Vec::is_empty);
        (is_due && !is_empty && layers != self.published.layers).then_some(layers)
    }

    /// The replicas of an expert as they could be published now.
    fn next_replicas(
        &self,
        wanted: &Placement,
        layer: u32,
        expert: u32,
        standing: &BTreeMap<(u32, u32), Vec<Replica>>,
    ) -> Vec<Replica> {
        let (mut next, mut is_coming) = (Vec::new(), false);
        for replica in wanted.replicas(layer, expert) {
            match self.stage(layer, expert, replica) {
                Stage::Ready => next.push(replica.clone()),
                Stage::Coming | Stage::Waiting => is_coming = true,
                Stage::Lost => {}
            }
        }
        // It found no seat, and is given up wherever it was.
        let is_given_up = wanted.replicas(layer, expert).is_empty();
        // What was published stays until all that replaces it is there.
        if (is_coming || next.is_empty()) && !is_given_up {
            let detour = self.detours.get(&(layer, expert));
            let stand_in = detour.and_then(|detour| detour.stand_in.as_ref());
            let published = self.published.replicas(layer, expert).iter();
            // Who makes room goes early, but not as the last one.
            let (stay, go) = published.partition::<Vec<_>, _>(|replica| {
                detour.is_none_or(|detour| detour.gives_up != replica.number)
            });
            for replica in stand_in.into_iter().chain(stay) {
                let is_new = next.iter().all(|other: &Replica| other.number != replica.number);
                if is_new && self.stage(layer, expert, replica) == Stage::Ready {
                    next.push(replica.clone());
                }
            }
            if next.is_empty() {
                let stands = |replica: &&&Replica| self.stage(layer, expert, replica) == Stage::Ready;
                next.extend(go.iter().filter(stands).copied().cloned());
            }
        }
        if next.is_empty() {
            // Somebody who came back still holds it.
            let standing = standing.get(&(layer, expert)).into_iter().flatten();
            next.extend(standing.filter(|replica| !is_given_up || self.has_come_back(replica)).cloned());
        }
        next.sort_by_key(|replica| replica.number);
        next
    }

    /// Every whole replica that is held, whether or not anybody asked for it.
    pub(super) fn standing_replicas(&self) -> BTreeMap<(u32, u32), Vec<Replica>> {
        let mut seats: BTreeMap<(u32, u32, u8), BTreeMap<u8, Seat>> = BTreeMap::new();
        for (&node, of) in &self.nodes {
            for (actor, &device) in &of.held {
                let key = (actor.layer, actor.expert, actor.replica);
                seats.entry(key).or_default().insert(actor.shard, Seat { node, device });
            }
        }
        let mut standing: BTreeMap<(u32, u32), Vec<Replica>> = BTreeMap::new();
        for ((layer, expert, number), seats) in seats {
            let replica = Replica { number, seats: seats.into_values().collect() };
            if self.stage(layer, expert, &replica) == Stage::Ready {
                standing.entry((layer, expert)).or_default().push(replica);
            }
        }
        standing
    }
}
