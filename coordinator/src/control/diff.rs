//! What has to be moved to get from one placement to another.
//!
//! Pure. An actor is known by its name and its seat together: policies give a replica that moves another number.

use std::collections::BTreeSet;

use transport::wire::cluster::ActorId;

use super::cluster::Demand;
use crate::placement::{Placement, Seat};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moves {
    /// To be loaded, ascending.
    pub load: Vec<(ActorId, Seat)>,
    /// To be dropped, ascending.
    pub drop: Vec<(ActorId, Seat)>,
    /// Bytes that are loaded.
    pub bytes: u64,
}

/// What leads from `old` to `new`.
pub fn diff(old: &Placement, new: &Placement, demand: &Demand) -> Moves {
    let old: BTreeSet<_> = old.actors().collect();
    let new: BTreeSet<_> = new.actors().collect();
    let load: Vec<_> = new.difference(&old).copied().collect();
    let bytes = load.iter().map(|(actor, _)| demand.shard_bytes(actor.layer)).sum();
    Moves { load, drop: old.difference(&new).copied().collect(), bytes }
}
