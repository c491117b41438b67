//! Sums that must be right before anything is placed, so that a refusal can say by how much they are not.
//!
//! Pure.

use std::collections::BTreeSet;

use super::refused::Bytes;
use super::{Refused, Request, Whose};
use crate::control::cluster::LayerDemand;

/// Refuses what no layout can do. `instead` is what else helps where too few may share a device.
pub(super) fn check(
    request: &Request<'_>,
    per_layer: Option<u32>,
    instead: &'static str,
) -> Result<(), Refused> {
    let memories: Vec<u64> = request.cluster.open_seats().map(|(_, memory)| memory).collect();
    if memories.is_empty() {
        return Err(Refused::NoDevice);
    }
    check_domains(request)?;
    for (&layer, demand) in &request.demand.layers {
        check_layer(request, layer, demand, per_layer, instead, &memories)?;
    }
    check_all(request, &memories)?;
    check_layers_max(request, per_layer, &memories)
}

fn copies(request: &Request<'_>) -> u64 {
    u64::from(request.constraints.replicas_min.max(1))
}

fn shards(request: &Request<'_>) -> u64 {
    u64::from(request.demand.shards.max(1))
}

/// What the parts are, for people.
fn name(request: &Request<'_>) -> &'static str {
    match (copies(request), shards(request)) {
        (1, 1) => "experts",
        (_, 1) => "replicas",
        _ => "shards",
    }
}

fn check_domains(request: &Request<'_>) -> Result<(), Refused> {
    let domains: BTreeSet<String> = request
        .cluster
        .nodes()
        .iter()
        .filter(|node| !node.is_leaving && node.devices.iter().any(|memory| *memory > 0))
        .map(|node| domain_name(request, node))
        .collect();
    let (needed, offered) = (copies(request), domains.len() as u64);
    if needed > offered {
        let label = request.constraints.failure_domain.clone().unwrap_or_else(|| "node".into());
        return Err(Refused::Domains { label, needed, offered });
    }
    Ok(())
}

/// What a node fails with. A node without the label fails by itself.
pub(super) fn domain_name(request: &Request<'_>, node: &crate::control::cluster::NodeOffer) -> String {
    let label = request.constraints.failure_domain.as_ref().and_then(|label| node.labels.get(label));
    label.map_or_else(|| format!("node {}", node.name), |value| format!("label {value}"))
}

/// How many of `bytes` a device can hold.
fn fits(memory: u64, bytes: u64) -> u64 {
    memory.checked_div(bytes).unwrap_or(u64::MAX)
}

fn check_layer(
    request: &Request<'_>,
    layer: u32,
    demand: &LayerDemand,
    per_layer: Option<u32>,
    instead: &'static str,
    memories: &[u64],
) -> Result<(), Refused> {
    let (bytes, devices) = (demand.shard_bytes, memories.len() as u64);
    let largest = memories.iter().copied().max().unwrap_or(0);
    if bytes > largest {
        let what = if shards(request) > 1 { "a shard of an expert" } else { "an expert" };
        return Err(Refused::Part { layer, what, needed: bytes, offered: largest });
    }
    let experts = u64::from(demand.experts);
    let parts = experts * copies(request) * shards(request);
    let needed = parts * bytes;
    let offered: u64 = memories.iter().map(|memory| fits(*memory, bytes).min(parts) * bytes).sum();
    if needed > offered {
        let what = format!("{} of {}", name(request), Bytes(bytes));
        return Err(Refused::Memory {
            whose: Whose::Layer(layer),
            experts: parts,
            what,
            needed,
            devices,
            offered,
        });
    }
    // Shards of one expert may share a device; they count as one.
    let parts = experts * copies(request);
    if let Some(per_device) = per_layer.map(|most| u64::from(most.max(1))) {
        let needed = parts.div_ceil(per_device);
        let offered = memories.iter().filter(|memory| **memory >= bytes).count() as u64;
        if needed > offered {
            let (whose, what) =
                (Whose::Layer(layer), if copies(request) > 1 { "replicas" } else { "experts" });
            return Err(Refused::Devices { whose, parts, what, per_device, needed, offered, instead });
        }
    }
    Ok(())
}

fn check_all(request: &Request<'_>, memories: &[u64]) -> Result<(), Refused> {
    let layers = &request.demand.layers;
    let parts = |demand: &LayerDemand| u64::from(demand.experts) * copies(request) * shards(request);
    let needed: u64 = layers.values().map(|demand| parts(demand) * demand.shard_bytes).sum();
    let sizes: BTreeSet<u64> = layers.values().map(|demand| demand.shard_bytes).collect();
    let smallest = sizes.first().copied().unwrap_or(0);
    // Where all are of one size, what is left over on a device is of no use.
    let usable = |memory: u64| if sizes.len() == 1 { memory - memory % smallest.max(1) } else { memory };
    let offered = memories.iter().map(|memory| usable(*memory)).fold(0, u64::saturating_add);
    if needed > offered {
        let what = match sizes.len() {
            1 => format!("{} of {}", name(request), Bytes(smallest)),
            _ => format!("{} of {} and more", name(request), Bytes(smallest)),
        };
        let (experts, devices) = (layers.values().map(parts).sum(), memories.len() as u64);
        let whose = Whose::AllLayers(layers.len() as u64);
        return Err(Refused::Memory { whose, experts, what, needed, devices, offered });
    }
    Ok(())
}

fn check_layers_max(request: &Request<'_>, per_layer: Option<u32>, memories: &[u64]) -> Result<(), Refused> {
    let Some(layers_max) = request.constraints.max_layers_per_device.map(u64::from) else { return Ok(()) };
    let most = |bytes: u64| {
        let memory = memories.iter().map(|memory| fits(*memory, bytes)).max().unwrap_or(0);
        // Shards of one expert may share a device.
        memory.min(per_layer.map_or(u64::MAX, |most| u64::from(most.max(1)) * shards(request)))
    };
    let layers = &request.demand.layers;
    let needed = layers.values().map(|demand| {
        let parts = u64::from(demand.experts) * copies(request) * shards(request);
        parts.div_ceil(most(demand.shard_bytes).max(1))
    });
    let (needed, devices) = (needed.sum(), memories.len() as u64);
    let offered = devices.saturating_mul(layers_max);
    if needed > offered {
        return Err(Refused::Layers { layers: layers.len() as u64, needed, devices, layers_max, offered });
    }
    Ok(())
}
