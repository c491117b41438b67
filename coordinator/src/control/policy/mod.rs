//! Where every expert goes: a pure function of what is needed, what there is, and what has been measured.
//!
//! Pure and deterministic: the same request gives the same placement on every host. A policy keeps what already sits
//! well. An actor never has two living seats: a replica that moves gets a number that nobody has had, one of which a
//! shard has died keeps number and survivors.
//!
//! | policy | lays out |
//! |---|---|
//! | `reference` | one after another over the devices in order: `g = moe_index(l) * E + e`, dense layers after them |
//! | `spread` | at most one expert of a layer on a device, one at all where devices suffice; rows even over links |
//! | `pack` | experts outnumber devices: by memory, with rows even over devices |
//! | `replicate` | as `spread`, and what is left over goes to replicas of hot experts |
//! | `auto` | `replicate` where replicas are asked for, else `spread` if devices suffice, else `pack` |

mod board;
mod build;
mod check;
mod improve;
mod keep;
mod polish;
mod reference;
mod refused;
mod room;
mod topology;

use std::collections::BTreeSet;
use std::str::FromStr;

use super::cluster::{Cluster, Demand, Statistics};
use crate::placement::{NodeId, Placement};
use board::Aim;
use build::{Plan, build, build_what_fits};
pub use improve::{Change, Improved, Proposal, improve};
pub use refused::{Refused, Whose};

/// How experts are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after another over the devices in order.
    Reference,
    /// At most one expert of a layer on a device.
    Spread,
    /// By memory and balanced rows.
    Pack,
    /// Hot experts more than once.
    Replicate,
    /// Whichever suits.
    #[default]
    Auto,
}

impl Policy {
    /// Every policy, with the name that people use.
    pub const ALL: [(&str, Policy); 5] = [
        ("auto", Policy::Auto),
        ("reference", Policy::Reference),
        ("spread", Policy::Spread),
        ("pack", Policy::Pack),
        ("replicate", Policy::Replicate),
    ];

    /// The policy of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, policy)| *policy)
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(|(name, _)| name).join(", ");
        Self::named(name).ok_or_else(|| format!("`{name}` is none of {}", names()))
    }
}

/// What a placement may not break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraints {
    /// Experts of one layer on one device. `None`: what the policy thinks right (1 for `spread`).
    pub max_experts_per_device_per_layer: Option<u32>,
    /// Layers that one device serves.
    pub max_layers_per_device: Option<u32>,
    /// The label whose values fail as one. `None`: every node fails by itself. Replicas of an expert never share a
    /// domain; shards of a replica never leave one that is named, and leave a node only where it has too few devices.
    pub failure_domain: Option<String>,
    /// Replicas that every expert must have.
    pub replicas_min: u8,
    /// Replicas that an expert may have: more are dropped, and `replicate` adds none beyond.
    pub replicas_max: u8,
    /// Devices that `replicate` leaves empty.
    pub spares_min: u32,
    /// Labels whose values have one link to the rest, the outermost first.
    pub links: Vec<String>,
    /// Experts, by layer and number, and the nodes that have failed to load them.
    pub banned: BTreeSet<(u32, u32, NodeId)>,
}

impl Default for Constraints {
    fn default() -> Self {
        Self {
            max_experts_per_device_per_layer: None,
            max_layers_per_device: None,
            failure_domain: None,
            replicas_min: 1,
            replicas_max: 4,
            spares_min: 0,
            links: vec!["rack".into(), "host".into()],
            banned: BTreeSet::new(),
        }
    }
}

/// Everything that a policy may look at.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is needed.
    pub demand: &'a Demand,
    /// What there is.
    pub cluster: &'a Cluster,
    /// What has been measured.
    pub statistics: &'a Statistics,
    /// What may not be broken.
    pub constraints: &'a Constraints,
    /// What sits already, for each expert the replicas that are to be kept first in front. Seats of nodes that have
    /// gone may be among them: their numbers are not given out again.
    pub previous: Option<&'a Placement>,
}

/// Lays out the experts. The placement has no epoch yet.
pub fn place(policy: Policy, request: &Request<'_>) -> Result<Placement, Refused> {
    match policy {
        Policy::Reference => reference::place(request),
        Policy::Spread => spread(request, 0),
        Policy::Pack => pack(request),
        Policy::Replicate => replicate(request),
        Policy::Auto if request.constraints.replicas_min > 1 => replicate(request),
        Policy::Auto => match spread(request, 0) {
            Err(Refused::Devices { .. } | Refused::Layers { .. } | Refused::Seat { .. }) => pack(request),
            placed => placed,
        },
    }
}

/// Lays out as many experts as find a seat, where [`place`] is refused: those that sit well stay, the others go wherever
/// there is room, and some have no replica.
pub fn place_what_fits(request: &Request<'_>) -> Placement {
    let per_layer = request.constraints.max_experts_per_device_per_layer;
    build_what_fits(request, &Plan { aim: Aim::Devices, cap: None, per_layer, extras_max: 0 })
}

fn spread(request: &Request<'_>, extras_max: u32) -> Result<Placement, Refused> {
    let per_layer = request.constraints.max_experts_per_device_per_layer.unwrap_or(1);
    check::check(request, Some(per_layer), ", or use the policy `pack`")?;
    let parts = build::parts_min(request);
    let devices = request.cluster.open_seats().count() as u64;
    let even = u32::try_from(parts.div_ceil(devices.max(1)).max(1)).unwrap_or(u32::MAX);
    let plan = |cap| Plan { aim: Aim::Links, cap, per_layer: Some(per_layer), extras_max };
    // Devices too small for their share make the others take more.
    let caps = [Some(even), even.checked_add(1), even.checked_mul(2), None];
    build(request, &caps.map(plan))
}

fn pack(request: &Request<'_>) -> Result<Placement, Refused> {
    let per_layer = request.constraints.max_experts_per_device_per_layer;
    check::check(request, per_layer, ", or raise max_experts_per_device_per_layer")?;
    build(request, &[Plan { aim: Aim::Devices, cap: None, per_layer, extras_max: 0 }])
}

fn replicate(request: &Request<'_>) -> Result<Placement, Refused> {
    match spread(request, u32::MAX) {
        Err(Refused::Devices { .. } | Refused::Layers { .. } | Refused::Seat { .. })
            if request.constraints.max_experts_per_device_per_layer.is_none() =>
        {
            check::check(request, None, "")?;
            let parts = build::parts_min(request);
            let devices = request.cluster.open_seats().count() as u64;
            let even = u32::try_from(parts.div_ceil(devices.max(1)).max(1)).unwrap_or(u32::MAX);
            let plan = |cap| Plan { aim: Aim::Devices, cap, per_layer: None, extras_max: u32::MAX };
            build(request, &[Some(even), even.checked_add(1), even.checked_mul(2), None].map(plan))
        }
        placed => placed,
    }
}
