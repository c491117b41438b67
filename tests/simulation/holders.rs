//! Which experts nobody holds, as a data plane was told: held against what its exchange leaves out.
//!
//! Pure, and reckoned from the placement and the links that stand alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use coordinator::control::cluster::Demand;
use coordinator::data::exchange::LeftOut;
use coordinator::placement::{NodeId, Placement, Seat};

use crate::watch::violation;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    placement: Arc<Placement>,
    missing: BTreeSet<(u32, u32)>,
    /// Those that nobody held at some time since it was looked last.
    lately: BTreeSet<(u32, u32)>,
}

impl Holders {
    /// There is another placement.
    pub(crate) fn handle_placement(&mut self, placement: &Arc<Placement>) {
        self.placement = Arc::clone(placement);
    }

    /// These nodes have links. An expert is missing where all replicas of some shard of it sit on others.
    pub(crate) fn handle_links(&mut self, linked: &BTreeSet<NodeId>, demand: &Demand) {
        self.missing.clear();
        for (&layer, of) in &demand.layers {
            for expert in 0..of.experts {
                let replicas = self.placement.replicas(layer, expert);
                let is_linked = |seat: &Seat| linked.contains(&seat.node);
                let is_held =
                    |shard| replicas.iter().any(|replica| replica.seats.get(shard).is_some_and(is_linked));
                if !(0..usize::from(demand.shards)).all(is_held) {
                    self.missing.insert((layer, expert));
                }
            }
        }
        self.lately.extend(self.missing.iter().copied());
    }

    /// All that was to be left out has been.
    pub(crate) fn handle_looked(&mut self) {
        if self.lately != self.missing {
            self.lately.clone_from(&self.missing);
        }
    }

    /// A row goes on without an expert: nobody must have held it.
    pub(crate) fn check(&self, LeftOut { row, layer, expert, .. }: LeftOut) {
        if !self.lately.contains(&(layer, expert)) {
            let what =
                format!("row {} goes on without expert {expert} of layer {layer}, which is held", row.0);
            violation("missing", what);
        }
    }
}
