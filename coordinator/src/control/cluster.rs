//! What placement policies are told: what there is, what is needed, and what has been measured.
//!
//! Pure data. Nodes stand in the order of their names, numbers in them compared as numbers, so that a layout does
//! not depend on who dialled first.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use model::spec::{FeedForward, Spec};

use crate::placement::{NodeId, Seat};

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOffer {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Bytes of weights that each of its devices can hold; 0 for a device that is lost.
    pub devices: Vec<u64>,
    /// Topology: `rack`, `host`, and whatever else was given.
    pub labels: BTreeMap<String, String>,
    /// It wants to go, or is drained: nothing new is placed there, and what is there is placed elsewhere.
    pub is_leaving: bool,
}

/// The nodes that are in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    nodes: Vec<NodeOffer>,
}

impl Cluster {
    /// The nodes, brought into the order of their names.
    pub fn new(mut nodes: Vec<NodeOffer>) -> Self {
        nodes.sort_by(|a, b| compare_names(&a.name, &b.name).then(a.id.cmp(&b.id)));
        Self { nodes }
    }

    /// In order.
    pub fn nodes(&self) -> &[NodeOffer] {
        &self.nodes
    }

    /// The node with this number.
    pub fn node(&self, id: NodeId) -> Option<&NodeOffer> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Every device that may be given something, in order, with its memory.
    pub fn open_seats(&self) -> impl Iterator<Item = (Seat, u64)> + '_ {
        self.nodes.iter().filter(|node| !node.is_leaving).flat_map(|node| {
            let seats = node.devices.iter().enumerate();
            seats.filter(|(_, memory)| **memory > 0).map(|(device, memory)| {
                let device = u16::try_from(device).expect("a node has at most 1,024 devices");
                (Seat { node: node.id, device }, *memory)
            })
        })
    }

    /// Bytes that a seat offers; 0 where there is none.
    pub fn memory(&self, seat: Seat) -> u64 {
        let node = self.node(seat.node);
        node.and_then(|node| node.devices.get(usize::from(seat.device))).copied().unwrap_or(0)
    }
}

/// Runs of digits compare as numbers: `node-9` stands before `node-10`.
fn compare_names(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a.as_bytes(), b.as_bytes());
    while let (Some(x), Some(y)) = (a_rest.first(), b_rest.first()) {
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (x, y) = (take_number(&mut a_rest), take_number(&mut b_rest));
            match x.len().cmp(&y.len()).then(x.cmp(y)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        } else if x == y {
            (a_rest, b_rest) = (&a_rest[1..], &b_rest[1..]);
        } else {
            return x.cmp(y);
        }
    }
    a_rest.len().cmp(&b_rest.len()).then(a.cmp(b))
}

/// The digits in front, without zeros that mean nothing.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (mut digits, rest) = text.split_at(end);
    *text = rest;
    while let [b'0', tail @ ..] = digits {
        digits = tail;
    }
    digits
}

/// What a layer needs whose rows go out to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDemand {
    /// How many experts it has.
    pub experts: u32,
    /// How many of them a row takes.
    pub top_k: u32,
    /// Bytes of one shard of one expert, packed.
    pub shard_bytes: u64,
    /// A dense layer that has a device of its own: one expert that every row takes.
    pub is_dense: bool,
}

/// What has to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Every layer whose rows go out.
    pub layers: BTreeMap<u32, LayerDemand>,
    /// Tensor-parallel shards of every expert.
    pub shards: u8,
}

impl Demand {
    /// What a model needs. `element_bytes`: of one weight; `dense_out`: dense layers have devices of their own.
    ///
    /// Bytes are those of the kernels' panels of 16 columns; whoever knows better replaces them.
    pub fn new(spec: &Spec, shards: u8, element_bytes: u64, dense_out: bool) -> Self {
        let bytes = |width: usize| {
            let width = width.div_ceil(usize::from(shards.max(1)));
            let panels = |columns: usize| columns.next_multiple_of(16) as u64;
            let (gate_up, down) = (panels(2 * width), panels(spec.hidden));
            element_bytes * (gate_up * spec.hidden as u64 + down * width as u64)
        };
        let layers = spec.layers.iter().enumerate().filter_map(|(layer, of)| {
            let demand = match &of.feed_forward {
                FeedForward::Moe(moe) => LayerDemand {
                    experts: moe.experts as u32,
                    top_k: moe.top_k as u32,
                    shard_bytes: bytes(moe.width),
                    is_dense: false,
                },
                FeedForward::Dense { width } if dense_out => {
                    LayerDemand { experts: 1, top_k: 1, shard_bytes: bytes(*width), is_dense: true }
                }
                FeedForward::Dense { .. } => return None,
            };
            Some((layer as u32, demand))
        });
        Self { layers: layers.collect(), shards: shards.max(1) }
    }

    /// Experts of all layers.
    pub fn experts(&self) -> u64 {
        self.layers.values().map(|layer| u64::from(layer.experts)).sum()
    }

    /// Bytes of one shard of an expert of this layer.
    pub fn shard_bytes(&self, layer: u32) -> u64 {
        self.layers.get(&layer).map_or(0, |layer| layer.shard_bytes)
    }
}

/// How many rows chose which expert, as far as it has been measured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statistics {
    /// For each layer, rows of each of its experts. A layer that is absent has not been measured.
    pub rows: BTreeMap<u32, Vec<u64>>,
}

/// Rows that each layer is thought to see where nothing was measured.
const ROWS_ASSUMED: u64 = 1_000_000;

impl Statistics {
    /// Rows expected for every expert of a layer, on one scale for all layers: every layer sees the same rows.
    /// What was not measured is taken to be even.
    pub fn expected(&self, layer: u32, demand: &LayerDemand) -> Vec<u64> {
        let experts = demand.experts as usize;
        let all = ROWS_ASSUMED * u64::from(demand.top_k.max(1));
        let measured = self.rows.get(&layer).filter(|rows| rows.len() == experts);
        let total = measured.map_or(0, |rows| rows.iter().map(|rows| u128::from(*rows)).sum::<u128>());
        match measured {
            Some(rows) if total > 0 => {
                let scaled = |rows: &u64| u64::try_from(u128::from(*rows) * u128::from(all) / total);
                rows.iter().map(|rows| scaled(rows).expect("a part is no more than the whole")).collect()
            }
            _ => vec![all / u64::from(demand.experts.max(1)); experts],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `node-10` would otherwise stand between `node-1` and `node-2`, and the reference layout with it.
    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = ["b", "node-10", "node-9", "node-09a", "a", "node-9b", "node-0", "node"];
        names.sort_by(|a, b| compare_names(a, b));
        assert_eq!(names, ["a", "b", "node", "node-0", "node-9", "node-09a", "node-9b", "node-10"]);
    }

    /// A hot layer in the statistics is an artefact of when it was measured: all layers see the same rows.
    #[test]
    fn every_layer_expects_the_same_rows() {
        let layer = LayerDemand { experts: 4, top_k: 2, shard_bytes: 1, is_dense: false };
        let statistics = Statistics { rows: [(3, vec![3, 1, 0, 0]), (4, vec![1]), (5, vec![0; 4])].into() };
        assert_eq!(statistics.expected(3, &layer), [1_500_000, 500_000, 0, 0]);
        for unmeasured in [4, 5, 6] {
            assert_eq!(statistics.expected(unmeasured, &layer), [500_000; 4]);
        }
    }
}
