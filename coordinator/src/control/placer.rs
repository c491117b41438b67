//! Decides when experts are placed: first when enough nodes are there, then whenever the cluster has changed.
//!
//! Pure. Without a wait at the start the first node would be given everything, and the second would take half of it
//! away again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Demand, Statistics};
use super::policy::{Constraints, Policy, Refused, Request, place, place_what_fits};
use super::rebalance::RebalanceSettings;
use crate::placement::{NodeId, Placement, Seat};

/// How it places.
#[derive(Debug, Clone, Default)]
pub struct PlacerSettings {
    /// The layout.
    pub policy: Policy,
    /// What may not be broken.
    pub constraints: Constraints,
    /// Nodes that are waited for.
    pub nodes_min: usize,
    /// How long they are waited for; from then on, whoever is there is enough.
    pub start_window: Duration,
    /// When what is laid out is made better; `None`: it stays until the cluster changes.
    pub rebalance: Option<RebalanceSettings>,
}

/// What a placement is made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What is needed.
    pub demand: &'a Demand,
    /// What there is.
    pub cluster: &'a Cluster,
    /// What has been measured.
    pub statistics: &'a Statistics,
    /// What sits, or is about to: [`Publisher::previous`](super::publisher::Publisher::previous).
    pub previous: &'a Placement,
    /// What is served from.
    pub published: &'a Placement,
    /// What cannot be: [`Publisher::banned`](super::publisher::Publisher::banned).
    pub banned: &'a BTreeSet<(u32, u32, NodeId)>,
    /// Nodes that are drained by force: what they hold alone may go without a seat.
    pub forced: &'a BTreeSet<NodeId>,
}

/// When and how experts are placed.
#[derive(Debug)]
pub struct Placer {
    settings: PlacerSettings,
    window_ends: Instant,
    is_placed: bool,
    refused: Option<Refused>,
}

impl Placer {
    /// The start window begins.
    pub fn new(settings: PlacerSettings, now: Instant) -> Self {
        let window_ends = now + settings.start_window;
        Self { settings, window_ends, is_placed: false, refused: None }
    }

    /// Something has changed, or the start window has ended: what is wanted now, if that can be said. What was
    /// wanted before stays so where nothing can be placed; [`Placer::refused`] says why, also where experts were left out.
    pub fn handle_changed(&mut self, facts: Facts<'_>, now: Instant) -> Option<Placement> {
        if self.waits(facts.cluster.nodes().len(), now) {
            return None;
        }
        match self.look(facts) {
            Ok(placement) => {
                (self.is_placed, self.refused) = (true, None);
                Some(placement)
            }
            Err(refused) => {
                self.refused = Some(refused);
                // Nothing was served yet: whoever is still to come may bring the room.
                let may_leave_out = self.is_placed && !facts.forced.is_empty();
                may_leave_out.then(|| {
                    let (_, constraints) = self.rules(facts.banned);
                    let mut placement = place_what_fits(&request(&facts, &constraints));
                    stay(&mut placement, &facts);
                    placement
                })
            }
        }
    }

    /// What would be wanted of such a cluster. Nothing changes.
    pub fn look(&self, facts: Facts<'_>) -> Result<Placement, Refused> {
        let (policy, constraints) = self.rules(facts.banned);
        place(policy, &request(&facts, &constraints))
    }

    /// Whether more nodes are waited for, where so many are there: then facts need not be gathered.
    pub fn waits(&self, nodes: usize, now: Instant) -> bool {
        !self.is_placed && (nodes == 0 || (nodes < self.settings.nodes_min && now < self.window_ends))
    }

    /// The layout, and what may not be broken.
    pub fn rules(&self, banned: &BTreeSet<(u32, u32, NodeId)>) -> (Policy, Constraints) {
        let constraints = Constraints { banned: banned.clone(), ..self.settings.constraints.clone() };
        (self.settings.policy, constraints)
    }

    /// Whether experts have been placed once.
    pub fn is_placed(&self) -> bool {
        self.is_placed
    }

    /// Why the last placement could not be.
    pub fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    /// When [`Placer::handle_changed`] is due without a change.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        Some(self.window_ends).filter(|end| !self.is_placed && *end > now)
    }
}

/// What found no seat stays on nodes that are drained kindly or want to go: they are waited for. Of what is wanted there is no
/// telling: what they hold was wanted elsewhere.
fn stay(placement: &mut Placement, facts: &Facts<'_>) {
    let sits = |seat: &Seat| facts.cluster.memory(*seat) > 0 && !facts.forced.contains(&seat.node);
    for (&layer, experts) in &mut placement.layers {
        for (expert, replicas) in (0..).zip(experts).filter(|(_, replicas)| replicas.is_empty()) {
            let published = facts.published.replicas(layer, expert).iter();
            replicas.extend(published.filter(|replica| replica.seats.iter().all(sits)).cloned());
        }
    }
}

fn request<'a>(facts: &Facts<'a>, constraints: &'a Constraints) -> Request<'a> {
    Request {
        demand: facts.demand,
        cluster: facts.cluster,
        statistics: facts.statistics,
        constraints,
        previous: Some(facts.previous),
    }
}
