//! The layout of the reference cluster: one expert after another over the devices in order.
//!
//! Pure. `g = (moe_index(l) * E + e) * shards + shard`, dense layers that have devices of their own after all of
//! them, further replicas after those. What has been moved away from its place by a death stays where it went: going
//! back would cost a copy and gain nothing.

use std::collections::{BTreeMap, BTreeSet};

use transport::wire::cluster::Epoch;

use super::check::{check, domain_name};
use super::{Refused, Request, Whose};
use crate::placement::{NodeId, Placement, Replica, Seat};

/// Lays out the reference.
pub(super) fn place(request: &Request<'_>) -> Result<Placement, Refused> {
    let (demand, constraints) = (request.demand, request.constraints);
    check(request, Some(1), ", or use the policy `pack`")?;
    let devices: Vec<(Seat, u64)> = request.cluster.open_seats().collect();
    let shards = usize::from(demand.shards.max(1));
    let copies = usize::from(constraints.replicas_min.max(1));
    let parts = demand.experts() * (copies * shards) as u64;
    if parts > devices.len() as u64 {
        return Err(Refused::Devices {
            whose: Whose::AllLayers(demand.layers.len() as u64),
            parts,
            what: if shards > 1 { "shards" } else { "experts" },
            per_device: 1,
            needed: parts,
            offered: devices.len() as u64,
            instead: ", or use the policy `auto`",
        });
    }
    let mut layout = Layout::new(request, devices, shards);
    layout.keep();
    layout.fill()?;
    Ok(Placement { epoch: Epoch::default(), layers: layout.layers })
}

struct Layout<'a> {
    request: &'a Request<'a>,
    devices: Vec<(Seat, u64)>,
    /// What each node fails with.
    domains: BTreeMap<NodeId, String>,
    shards: usize,
    copies: usize,
    taken: BTreeSet<Seat>,
    layers: BTreeMap<u32, Vec<Vec<Replica>>>,
}

impl<'a> Layout<'a> {
    fn new(request: &'a Request<'a>, devices: Vec<(Seat, u64)>, shards: usize) -> Self {
        let copies = usize::from(request.constraints.replicas_min.max(1));
        let of = |experts: u32| vec![Vec::new(); experts as usize];
        let layers = request.demand.layers.iter().map(|(layer, demand)| (*layer, of(demand.experts)));
        let layers = layers.collect();
        let nodes = request.cluster.nodes().iter();
        let domains = nodes.map(|node| (node.id, domain_name(request, node))).collect();
        Self { request, devices, domains, shards, copies, taken: BTreeSet::new(), layers }
    }

    /// Keeps every replica that sits alone on open devices.
    fn keep(&mut self) {
        let Some(previous) = self.request.previous else { return };
        let banned = &self.request.constraints.banned;
        let must_be_one = self.request.constraints.failure_domain.is_some();
        let open: BTreeMap<Seat, u64> = self.devices.iter().copied().collect();
        for (layer, experts) in &mut self.layers {
            let bytes = self.request.demand.shard_bytes(*layer);
            for (expert, replicas) in experts.iter_mut().enumerate() {
                for replica in previous.replicas(*layer, expert as u32) {
                    let is_open = |seat: &Seat| open.get(seat).is_some_and(|memory| *memory >= bytes);
                    let distinct: BTreeSet<Seat> = replica.seats.iter().copied().collect();
                    let may_load = |seat: &Seat| !banned.contains(&(*layer, expert as u32, seat.node));
                    let is_well = replica.seats.len() == self.shards
                        && distinct.len() == self.shards
                        && replica.seats.iter().all(is_open)
                        && replica.seats.iter().all(may_load)
                        && self.taken.is_disjoint(&distinct)
                        && (!must_be_one || fails_as_one(&self.domains, &replica.seats))
                        && fails_apart(&self.domains, replicas, &replica.seats);
                    if is_well && replicas.len() < self.copies {
                        self.taken.extend(distinct);
                        replicas.push(replica.clone());
                    }
                }
            }
        }
    }

    /// Gives everybody else his place, or the first that is free.
    fn fill(&mut self) -> Result<(), Refused> {
        let demand = self.request.demand;
        let routed = demand.layers.iter().filter(|(_, of)| !of.is_dense);
        let order = routed.chain(demand.layers.iter().filter(|(_, of)| of.is_dense));
        let order: Vec<(u32, u32)> =
            order.flat_map(|(layer, of)| (0..of.experts).map(|expert| (*layer, expert))).collect();
        let missing = |layout: &Self, layer: u32, expert: u32, copy: usize| {
            layout.layers[&layer][expert as usize].len() <= copy
        };
        let mut late = Vec::new();
        for copy in 0..self.copies {
            for (index, &(layer, expert)) in order.iter().enumerate() {
                let first = (copy * order.len() + index) * self.shards;
                let own = first..first + self.shards;
                if missing(self, layer, expert, copy) && !self.seat(layer, expert, own) {
                    late.push((layer, expert));
                }
            }
        }
        for (layer, expert) in late {
            self.seat_anywhere(layer, expert)?;
        }
        Ok(())
    }

    fn is_free(&self, device: usize, layer: u32) -> bool {
        let bytes = self.request.demand.shard_bytes(layer);
        self.devices.get(device).is_some_and(|(seat, memory)| *memory >= bytes && !self.taken.contains(seat))
    }

    /// Seats a replica on these devices, if all are free.
    fn seat(&mut self, layer: u32, expert: u32, devices: impl Iterator<Item = usize> + Clone) -> bool {
        if !devices.clone().all(|device| self.is_free(device, layer)) {
            return false;
        }
        let seats: Vec<Seat> = devices.map(|device| self.devices[device].0).collect();
        let must_be_one = self.request.constraints.failure_domain.is_some();
        let others = &self.layers[&layer][expert as usize];
        let banned = &self.request.constraints.banned;
        if seats.iter().any(|seat| banned.contains(&(layer, expert, seat.node))) {
            return false;
        }
        let is_one = !must_be_one || fails_as_one(&self.domains, &seats);
        if !is_one || !fails_apart(&self.domains, others, &seats) {
            return false;
        }
        self.taken.extend(seats.iter().copied());
        let before = self.request.previous.map_or(&[][..], |previous| previous.replicas(layer, expert));
        let replicas = self.layers.get_mut(&layer).expect("every layer is laid out");
        let replicas = &mut replicas[expert as usize];
        let is_free =
            |number: &u8| !before.iter().chain(replicas.iter()).any(|replica| replica.number == *number);
        let number = (0..=u8::MAX).find(is_free).expect("an expert has fewer than 256 replicas");
        replicas.push(Replica { number, seats });
        replicas.sort_by_key(|replica| replica.number);
        true
    }

    /// Seats a replica on the first devices that are free and next to one another.
    fn seat_anywhere(&mut self, layer: u32, expert: u32) -> Result<(), Refused> {
        let free: Vec<usize> =
            (0..self.devices.len()).filter(|device| self.is_free(*device, layer)).collect();
        for devices in free.windows(self.shards) {
            if self.seat(layer, expert, devices.iter().copied()) {
                return Ok(());
            }
        }
        let bytes = self.request.demand.shard_bytes(layer);
        let memory = self.devices.iter().filter(|(_, memory)| *memory < bytes).count() as u64;
        let (devices, apart) = (self.devices.len() as u64, free.len() as u64);
        let is_banned = |node| self.request.constraints.banned.contains(&(layer, expert, node));
        let banned = free.iter().filter(|device| is_banned(self.devices[**device].0.node)).count() as u64;
        let (layers, crowded, apart) = (0, devices - memory - apart, apart - banned);
        Err(Refused::Seat { layer, expert, devices, memory, crowded, layers, apart, banned })
    }
}

/// Whether all shards of a replica on these seats would fail together.
fn fails_as_one(domains: &BTreeMap<NodeId, String>, seats: &[Seat]) -> bool {
    seats.windows(2).all(|pair| domains.get(&pair[0].node) == domains.get(&pair[1].node))
}

/// Whether a replica on these seats would fail apart from the others.
fn fails_apart(domains: &BTreeMap<NodeId, String>, others: &[Replica], seats: &[Seat]) -> bool {
    let mut nodes = others.iter().flat_map(|other| &other.seats).map(|seat| seat.node);
    nodes.all(|node| seats.iter().all(|seat| domains.get(&seat.node) != domains.get(&node)))
}
