//! Which device holds what: the only thing that the control plane tells the data plane.
//!
//! Pure data, immutable once published: a change is another placement with a later epoch.

use std::collections::BTreeMap;
use std::fmt;

use transport::wire::cluster::{ActorId, Epoch};

/// A node's number. The same name has the same number for as long as a coordinator lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A device of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// The node.
    pub node: NodeId,
    /// Its device.
    pub device: u16,
}

/// One replica of an expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Which: it keeps its number while others come and go.
    pub number: u8,
    /// Where it sits: one seat for each shard.
    pub seats: Vec<Seat>,
}

/// Where every expert is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// When.
    pub epoch: Epoch,
    /// For each layer that sends rows out, for each of its experts, the replicas that there are; none, where nobody
    /// holds it now.
    pub layers: BTreeMap<u32, Vec<Vec<Replica>>>,
}

impl Placement {
    /// The replicas of an expert.
    pub fn replicas(&self, layer: u32, expert: u32) -> &[Replica] {
        let experts = self.layers.get(&layer).map_or(&[][..], Vec::as_slice);
        experts.get(expert as usize).map_or(&[], Vec::as_slice)
    }

    /// Every actor and its seat.
    pub fn actors(&self) -> impl Iterator<Item = (ActorId, Seat)> + '_ {
        self.layers.iter().flat_map(|(&layer, experts)| {
            experts.iter().enumerate().flat_map(move |(expert, replicas)| {
                replicas.iter().flat_map(move |replica| {
                    replica.seats.iter().enumerate().map(move |(shard, &seat)| {
                        let (expert, shard) = (expert as u32, shard as u8);
                        (ActorId { layer, expert, replica: replica.number, shard }, seat)
                    })
                })
            })
        })
    }
}
