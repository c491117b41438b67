//! Clusters, demands and the rules that no placement may break, written plainly.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_coordinator::control::cluster::{Cluster, Demand, LayerDemand, NodeOffer, Statistics};
use phalanx_coordinator::control::policy::{Constraints, Policy, Refused, Request, place};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};

/// A node whose devices all have the same memory.
pub(crate) fn node(id: u32, devices: usize, memory: u64) -> NodeOffer {
    let labels = BTreeMap::new();
    NodeOffer {
        id: NodeId(id),
        name: format!("n{id}"),
        devices: vec![memory; devices],
        labels,
        is_leaving: false,
    }
}

pub(crate) fn labelled(mut node: NodeOffer, label: &str, value: &str) -> NodeOffer {
    node.labels.insert(label.into(), value.into());
    node
}

pub(crate) fn nodes(count: u32, devices: usize, memory: u64) -> Cluster {
    Cluster::new((0..count).map(|id| node(id, devices, memory)).collect())
}

/// Layers with as many experts each, all of this many bytes.
pub(crate) fn demand(layers: std::ops::Range<u32>, experts: u32, bytes: u64) -> Demand {
    let layer = LayerDemand { experts, top_k: 2.min(experts), shard_bytes: bytes, is_dense: false };
    Demand { layers: layers.map(|index| (index, layer)).collect(), shards: 1 }
}

/// The reference model: 58 layers of 64 experts, and three dense ones with devices of their own.
pub(crate) fn reference_demand() -> Demand {
    let mut demand = demand(3..61, 64, 58_720_256);
    let dense = LayerDemand { experts: 1, top_k: 1, shard_bytes: 58_720_256, is_dense: true };
    demand.layers.extend((0..3).map(|layer| (layer, dense)));
    demand
}

/// A policy's answer, without statistics or an earlier placement.
pub(crate) fn placed(
    policy: Policy,
    demand: &Demand,
    cluster: &Cluster,
    constraints: &Constraints,
) -> Result<Placement, Refused> {
    let statistics = Statistics::default();
    let previous = None;
    place(policy, &Request { demand, cluster, statistics: &statistics, constraints, previous })
}

pub(crate) fn seat(node: u32, device: u16) -> Seat {
    Seat { node: NodeId(node), device }
}

pub(crate) fn replica(number: u8, seats: &[(u32, u16)]) -> Replica {
    Replica { number, seats: seats.iter().map(|(node, device)| seat(*node, *device)).collect() }
}

/// What a node fails with.
pub(crate) fn domain(cluster: &Cluster, constraints: &Constraints, node: NodeId) -> String {
    let offer = cluster.node(node).unwrap();
    let label = constraints.failure_domain.as_ref().and_then(|label| offer.labels.get(label));
    label.cloned().unwrap_or_else(|| format!("only {}", offer.name))
}

/// Every rule that a placement may break, from its definition. `per_layer`: experts of a layer on one device.
pub(crate) fn broken_rule(
    placement: &Placement,
    demand: &Demand,
    cluster: &Cluster,
    constraints: &Constraints,
    per_layer: Option<u32>,
) -> Result<(), String> {
    let open: BTreeMap<Seat, u64> = cluster.open_seats().collect();
    let mut used: BTreeMap<Seat, u64> = BTreeMap::new();
    let mut layers: BTreeMap<Seat, BTreeSet<u32>> = BTreeMap::new();
    let mut experts: BTreeMap<(Seat, u32), BTreeSet<u32>> = BTreeMap::new();
    if !placement.layers.keys().eq(demand.layers.keys()) {
        return Err("not the layers that were asked for".into());
    }
    for (&layer, of) in &demand.layers {
        if placement.layers[&layer].len() != of.experts as usize {
            return Err(format!("layer {layer} has not its experts"));
        }
        for expert in 0..of.experts {
            let replicas = placement.replicas(layer, expert);
            let (least, most) = (constraints.replicas_min.max(1), constraints.replicas_max);
            if replicas.len() < usize::from(least) || replicas.len() > usize::from(most.max(least)) {
                return Err(format!("{} replicas of {layer}.{expert}", replicas.len()));
            }
            if !replicas.windows(2).all(|pair| pair[0].number < pair[1].number) {
                return Err(format!("numbers of {layer}.{expert}"));
            }
            let mut domains = BTreeSet::new();
            for replica in replicas {
                if replica.seats.len() != usize::from(demand.shards) {
                    return Err(format!("shards of {layer}.{expert}"));
                }
                let own: BTreeSet<String> =
                    replica.seats.iter().map(|seat| domain(cluster, constraints, seat.node)).collect();
                if constraints.failure_domain.is_some() && own.len() > 1 {
                    return Err(format!("a replica of {layer}.{expert} in {own:?}"));
                }
                for domain in own {
                    if !domains.insert(domain.clone()) {
                        return Err(format!("two replicas of {layer}.{expert} in {domain}"));
                    }
                }
                for seat in &replica.seats {
                    if constraints.banned.contains(&(layer, expert, seat.node)) {
                        return Err(format!("{layer}.{expert} on {}, which cannot load it", seat.node));
                    }
                    *used.entry(*seat).or_default() += of.shard_bytes;
                    layers.entry(*seat).or_default().insert(layer);
                    experts.entry((*seat, layer)).or_default().insert(expert);
                }
            }
        }
    }
    for (seat, used) in used {
        match open.get(&seat) {
            None => return Err(format!("{seat:?} is not open")),
            Some(memory) if used > *memory => return Err(format!("{used} bytes on {seat:?} of {memory}")),
            Some(_) => {}
        }
    }
    let is_more = |count: usize, most: Option<u32>| most.is_some_and(|most| count as u64 > u64::from(most));
    if layers.values().any(|layers| is_more(layers.len(), constraints.max_layers_per_device)) {
        return Err("a device has too many layers".into());
    }
    let per_layer = per_layer.or(constraints.max_experts_per_device_per_layer);
    if experts.values().any(|experts| is_more(experts.len(), per_layer)) {
        return Err("a device has too many experts of a layer".into());
    }
    Ok(())
}

/// How many actors sit on every device that has any.
pub(crate) fn crowds(placement: &Placement) -> BTreeMap<Seat, usize> {
    let mut crowds = BTreeMap::new();
    for (_, seat) in placement.actors() {
        *crowds.entry(seat).or_default() += 1;
    }
    crowds
}

/// Rows over every link of one label (`None`: of every node), an expert's rows shared by its replicas.
pub(crate) fn link_rows(
    placement: &Placement,
    demand: &Demand,
    cluster: &Cluster,
    statistics: &Statistics,
    label: Option<&str>,
) -> BTreeMap<String, u64> {
    let mut links = BTreeMap::new();
    for node in cluster.nodes() {
        links.insert(link(node, label), 0);
    }
    for (layer, of) in &demand.layers {
        for (expert, rows) in statistics.expected(*layer, of).into_iter().enumerate() {
            let replicas = placement.replicas(*layer, expert as u32);
            for seat in replicas.iter().flat_map(|replica| &replica.seats) {
                *links.get_mut(&link(cluster.node(seat.node).unwrap(), label)).unwrap() +=
                    rows / replicas.len() as u64;
            }
        }
    }
    links
}

fn link(node: &NodeOffer, label: Option<&str>) -> String {
    let own = || format!("only {}", node.name);
    label.map_or_else(own, |label| node.labels.get(label).cloned().unwrap_or_else(own))
}
