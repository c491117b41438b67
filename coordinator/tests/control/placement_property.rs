//! Random clusters, demands, constraints and earlier placements: no rule is ever broken, and no seat is missed
//! where the sums say that there is one.

use std::collections::BTreeMap;

use phalanx_coordinator::control::cluster::{Cluster, Demand, LayerDemand, NodeOffer, Statistics};
use phalanx_coordinator::control::policy::{Constraints, Policy, Refused, Request, place};
use phalanx_coordinator::placement::{NodeId, Placement};
use proptest::prelude::*;

use super::make::{broken_rule, placed};

prop_compose! {
    fn an_offer()(
        id in 0..6_u32,
        devices in prop::collection::vec(prop_oneof![1 => Just(0_u64), 9 => 20..60_u64], 1..5),
        rack in prop::option::of(0..3_u8),
        is_leaving in prop::bool::weighted(0.1),
    ) -> NodeOffer {
        let labels = rack.map(|rack| ("rack".to_string(), format!("r{rack}")));
        NodeOffer { id: NodeId(id), name: format!("n{id}"), devices, labels: labels.into_iter().collect(), is_leaving }
    }
}

/// Nodes have one offer each.
fn a_cluster() -> impl Strategy<Value = Cluster> {
    prop::collection::vec(an_offer(), 1..6).prop_map(|offers| {
        let offers: BTreeMap<NodeId, NodeOffer> = offers.into_iter().map(|offer| (offer.id, offer)).collect();
        Cluster::new(offers.into_values().collect())
    })
}

prop_compose! {
    fn a_demand(shards_max: u8)(
        layers in prop::collection::vec((1..7_u32, prop_oneof![3 => Just(10_u64), 1 => 5..15_u64]), 1..4),
        shards in 1..=shards_max,
    ) -> Demand {
        let layers = layers.into_iter().zip(0..).map(|((experts, shard_bytes), layer)| {
            (layer, LayerDemand { experts, top_k: 1, shard_bytes, is_dense: experts == 1 })
        });
        Demand { layers: layers.collect(), shards }
    }
}

prop_compose! {
    fn constraints()(
        per_layer in prop::option::weighted(0.3, 1..3_u32),
        layers in prop::option::weighted(0.2, 1..4_u32),
        is_named: bool,
        replicas_min in prop_oneof![3 => Just(1_u8), 1 => Just(2_u8)],
        spares_min in 0..2_u32,
        banned in prop::collection::btree_set((0..3_u32, 0..6_u32, (0..6_u32).prop_map(NodeId)), 0..3),
    ) -> Constraints {
        Constraints {
            max_experts_per_device_per_layer: per_layer,
            max_layers_per_device: layers,
            failure_domain: is_named.then(|| "rack".into()),
            replicas_min,
            replicas_max: 3,
            spares_min,
            banned,
            ..Constraints::default()
        }
    }
}

fn statistics() -> impl Strategy<Value = Statistics> {
    prop::collection::btree_map(0..4_u32, prop::collection::vec(0..1000_u64, 1..7), 0..4)
        .prop_map(|rows| Statistics { rows })
}

/// Whether uniform experts fit, of each layer at most `per_layer` on a device: always to the device with most room.
fn fits(demand: &Demand, cluster: &Cluster, per_layer: u64) -> bool {
    let bytes = demand.layers.values().next().unwrap().shard_bytes;
    let mut room: Vec<u64> = cluster.open_seats().map(|(_, memory)| memory / bytes).collect();
    demand.layers.values().all(|layer| {
        let mut own = vec![0; room.len()];
        (0..layer.experts).all(|_| {
            let open = (0..room.len()).filter(|device| own[*device] < per_layer && room[*device] > 0);
            let Some(device) = open.max_by_key(|device| room[*device]) else { return false };
            (own[device], room[device]) = (own[device] + 1, room[device] - 1);
            true
        })
    })
}

/// An actor that is somewhere else than before was somewhere that has died: nobody has two living seats.
fn moved_alive(old: &Placement, new: &Placement, cluster: &Cluster) -> Option<String> {
    let old: BTreeMap<_, _> = old.actors().collect();
    let mut moved = new.actors().filter_map(|(actor, seat)| {
        let before = *old.get(&actor)?;
        (before != seat && cluster.memory(before) > 0)
            .then(|| format!("{actor:?} from {before:?} to {seat:?}"))
    });
    moved.next()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_policy_breaks_a_constraint(
        demand in a_demand(2),
        first in a_cluster(),
        second in a_cluster(),
        constraints in constraints(),
        measured in statistics(),
        before in 0..5_usize,
        after in 0..5_usize,
    ) {
        let (before, after) = (Policy::ALL[before].1, Policy::ALL[after].1);
        let previous = placed(before, &demand, &first, &constraints).ok();
        let request = Request {
            demand: &demand,
            cluster: &second,
            statistics: &measured,
            constraints: &constraints,
            previous: previous.as_ref(),
        };
        let placement = place(after, &request);
        prop_assert_eq!(&placement, &place(after, &request), "the same twice");
        if let Ok(placement) = placement {
            let per_layer = matches!(after, Policy::Reference | Policy::Spread).then(|| {
                constraints.max_experts_per_device_per_layer.filter(|_| after == Policy::Spread).unwrap_or(1)
            });
            let broken = broken_rule(&placement, &demand, &second, &constraints, per_layer);
            prop_assert_eq!(broken, Ok(()));
            if let Some(previous) = &previous {
                prop_assert_eq!(moved_alive(previous, &placement, &second), None);
            }
            let settled = place(after, &Request { previous: Some(&placement), ..request });
            prop_assert!(settled.is_ok(), "what was laid out can stay: {:?}", settled);
        }
    }

    #[test]
    fn what_fits_is_placed(
        layers in prop::collection::vec(1..9_u32, 1..5),
        cluster in a_cluster(),
        measured in statistics(),
        per_layer in 1..4_u64,
    ) {
        let of = |experts| LayerDemand { experts, top_k: 1, shard_bytes: 10, is_dense: false };
        let layers = layers.into_iter().zip(0..).map(|(experts, layer)| (layer, of(experts)));
        let demand = Demand { layers: layers.collect(), shards: 1 };
        for (policy, per_layer) in [(Policy::Spread, per_layer), (Policy::Pack, u64::MAX), (Policy::Auto, u64::MAX)] {
            let constraints = Constraints {
                max_experts_per_device_per_layer: u32::try_from(per_layer).ok(),
                ..Constraints::default()
            };
            let (cluster, statistics, constraints) = (&cluster, &measured, &constraints);
            let request = Request { demand: &demand, cluster, statistics, constraints, previous: None };
            let placement = place(policy, &request);
            prop_assert_eq!(placement.is_ok(), fits(&demand, cluster, per_layer), "{:?}", placement);
            if let Err(Refused::Memory { needed, offered, .. }) = placement {
                prop_assert!(needed > offered);
            }
        }
    }
}
