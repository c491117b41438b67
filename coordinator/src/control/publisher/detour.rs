//! Ways out where full devices are to exchange what they hold: nobody can load before somebody has dropped.
//!
//! Pure. Found only when nothing else is under way and something waits. One expert that is in the way gives up its seat
//! early: one that others hold too, or else one that a *stand-in* holds in the meantime, a replica wherever there is
//! room. Then what waited is loaded, and by and by everything. Where nobody else holds any of them, and no device has room
//! for a moment, there is no way without a gap: nothing is taken from anybody, and [`Standing::blocked`] says so.
//!
//! [`Standing::blocked`]: super::Standing::blocked

use std::collections::BTreeSet;

use transport::wire::cluster::ActorId;

use super::Publisher;
use super::next::Stage;
use super::node::Held;
use crate::placement::{Placement, Replica, Seat};

/// How an expert makes room before what is wanted of it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detour {
    /// The number of the replica that goes early.
    pub(super) gives_up: u8,
    /// Who holds it in the meantime, where nobody else does.
    pub(super) stand_in: Option<Replica>,
}

impl Publisher {
    /// What is wanted and waits for room.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (ActorId, Seat)> + '_ {
        let wanted = self.wanted.iter().flat_map(Placement::actors);
        wanted.filter(|(actor, seat)| {
            let node = self.nodes.get(&seat.node).filter(|node| node.order.is_some());
            node.is_some_and(|node| node.state(*actor, seat.device) == Held::No)
        })
    }

    /// Whether something waits, and nothing is under way that could end it.
    pub(super) fn is_stuck(&self) -> bool {
        let is_loading = self.nodes.values().any(|node| node.loading().next().is_some());
        !is_loading && self.lingering.is_empty() && self.waiting().next().is_some() && self.due().is_none()
    }

    /// Forgets detours that have led to what is wanted, or cannot any more.
    pub(super) fn end_detours(&mut self) {
        let mut detours = std::mem::take(&mut self.detours);
        detours.retain(|(layer, expert), detour| {
            let is_open = |replica: &Replica| {
                let stage = self.stage(*layer, *expert, replica);
                matches!(stage, Stage::Coming | Stage::Waiting)
            };
            let wanted = self.wanted.as_ref().map_or(&[][..], |wanted| wanted.replicas(*layer, *expert));
            let can_stand = |replica: &Replica| self.stage(*layer, *expert, replica) != Stage::Lost;
            wanted.iter().any(is_open) && detour.stand_in.as_ref().is_none_or(can_stand)
        });
        self.detours = detours;
    }

    /// Has one expert more make room. Whether there is one.
    pub(super) fn find_detour(&mut self) -> bool {
        let in_the_way = self.in_the_way();
        let has_other_holder = |actor: &ActorId| {
            self.published.replicas(actor.layer, actor.expert).iter().any(|other| {
                other.number != actor.replica && self.stage(actor.layer, actor.expert, other) == Stage::Ready
            })
        };
        if let Some(actor) = in_the_way.iter().find(|actor| has_other_holder(actor)) {
            let detour = Detour { gives_up: actor.replica, stand_in: None };
            self.detours.insert((actor.layer, actor.expert), detour);
            return true;
        }
        let found =
            in_the_way.iter().find_map(|actor| Some((actor, self.stand_in(actor.layer, actor.expert)?)));
        let Some((actor, stand_in)) = found else { return false };
        let detour = Detour { gives_up: actor.replica, stand_in: Some(stand_in) };
        self.detours.insert((actor.layer, actor.expert), detour);
        true
    }

    /// What is published, is to go, and sits where something waits to come.
    fn in_the_way(&self) -> Vec<ActorId> {
        let full: BTreeSet<Seat> = self.waiting().map(|(_, seat)| seat).collect();
        let stays: BTreeSet<(ActorId, Seat)> = self.wanted.iter().flat_map(Placement::actors).collect();
        let published = self.published.actors().filter(|at| full.contains(&at.1) && !stays.contains(at));
        let actors = published.map(|(actor, _)| actor);
        actors.filter(|actor| !self.detours.contains_key(&(actor.layer, actor.expert))).collect()
    }

    /// A replica of an expert wherever there is room, of a number that nobody has.
    fn stand_in(&self, layer: u32, expert: u32) -> Option<Replica> {
        let bytes = self.demand.shard_bytes(layer);
        let sets = self.sets(None);
        let mut seats: Vec<Seat> = Vec::new();
        for (&node, of) in self.nodes.iter().filter(|(_, of)| of.order.is_some()) {
            let is_banned = self.banned.contains(&(layer, expert, node));
            for device in (0..of.devices.len() as u16).filter(|_| !is_banned) {
                let used = sets.get(&node).map_or(0, |set| set.used(device));
                let shards = of.memory(device).saturating_sub(used).checked_div(bytes).unwrap_or(0);
                let missing = usize::from(self.demand.shards) - seats.len();
                let count = usize::try_from(shards).unwrap_or(usize::MAX).min(missing);
                seats.extend(std::iter::repeat_n(Seat { node, device }, count));
            }
        }
        let is_whole = seats.len() == usize::from(self.demand.shards);
        let previous = self.previous();
        let taken = previous.replicas(layer, expert);
        let is_free = |number: &u8| taken.iter().all(|replica| replica.number != *number);
        let number = (0..=u8::MAX).find(is_free)?;
        is_whole.then_some(Replica { number, seats })
    }
}
