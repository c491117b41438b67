//! A placement that is made better by a few changes: which, and that nothing else moves and no rule is broken.

use std::collections::BTreeMap;

use phalanx_coordinator::control::cluster::{Cluster, Demand, LayerDemand, NodeOffer, Statistics};
use phalanx_coordinator::control::diff::diff;
use phalanx_coordinator::control::policy::{Constraints, Improved, Policy, Proposal, Request, improve};
use phalanx_coordinator::placement::{NodeId, Placement};
use proptest::prelude::*;

use super::make::{broken_rule, demand, node, nodes, placed, replica};

fn improved(
    policy: Policy,
    demand: &Demand,
    cluster: &Cluster,
    rows: &[u64],
    previous: &Placement,
    pays: &mut dyn FnMut(&Proposal) -> bool,
) -> Improved {
    let statistics = Statistics { rows: demand.layers.keys().map(|layer| (*layer, rows.to_vec())).collect() };
    let constraints = &Constraints::default();
    let request = Request { demand, cluster, statistics: &statistics, constraints, previous: Some(previous) };
    improve(policy, &request, 4, pays)
}

/// Whatever loads something is taken, and nothing is dropped that need not be.
fn gains(proposal: &Proposal) -> bool {
    !proposal.loads.is_empty()
}

fn changes(improved: &Improved) -> Vec<String> {
    improved.taken.iter().flat_map(|taken| &taken.changes).map(ToString::to_string).collect()
}

fn seated(experts: &[&[(u8, u32, u16)]]) -> Placement {
    let of = |replicas: &&[(u8, u32, u16)]| {
        replicas.iter().map(|(number, node, device)| replica(*number, &[(*node, *device)])).collect()
    };
    Placement { layers: [(0, experts.iter().map(of).collect())].into(), ..Placement::default() }
}

/// Expert 0 has most rows of its layer: its replica goes to the node that has nothing, and a second one helps no more.
#[test]
fn a_hot_expert_gains_a_replica_where_nothing_is() {
    let (demand, cluster) = (demand(0..1, 3, 10), nodes(4, 1, 10));
    let previous = seated(&[&[(0, 0, 0)], &[(0, 1, 0)], &[(0, 2, 0)]]);
    let found = improved(Policy::Auto, &demand, &cluster, &[800, 300, 100], &previous, &mut gains);
    assert_eq!(changes(&found), ["layer 0 expert 0 gains a replica on node 3 device 0"]);
    let expected = seated(&[&[(0, 0, 0), (1, 3, 0)], &[(0, 1, 0)], &[(0, 2, 0)]]);
    assert_eq!(found.placement.unwrap().layers, expected.layers);
    let peaks: Vec<_> = found.taken[0].peaks.values().copied().collect();
    // 800 of 1,200 rows, and half of that.
    assert_eq!(peaks, [(1_333_333, 666_666)]);
    assert_eq!(found.taken[0].loads, [(NodeId(3), 10)].into());
}

/// There is no room: the replica of a cold expert makes some.
#[test]
fn a_cold_replica_makes_room_for_a_hot_one() {
    let (demand, cluster) = (demand(0..1, 3, 10), nodes(4, 1, 10));
    let previous = seated(&[&[(0, 0, 0)], &[(0, 1, 0)], &[(0, 2, 0), (4, 3, 0)]]);
    let found = improved(Policy::Auto, &demand, &cluster, &[800, 300, 100], &previous, &mut gains);
    assert_eq!(
        changes(&found),
        [
            "layer 0 expert 2 loses its replica on node 3 device 0",
            "layer 0 expert 0 gains a replica on node 3 device 0"
        ]
    );
    let expected = seated(&[&[(0, 0, 0), (1, 3, 0)], &[(0, 1, 0)], &[(0, 2, 0)]]);
    assert_eq!(found.placement.unwrap().layers, expected.layers);
}

/// Two experts share the peak of their layer: both gain, or nothing would be gained at all.
#[test]
fn experts_that_share_the_peak_gain_together() {
    let (demand, cluster) = (demand(0..1, 3, 10), nodes(5, 1, 10));
    let previous = seated(&[&[(0, 0, 0)], &[(0, 1, 0)], &[(0, 2, 0)]]);
    let found = improved(Policy::Auto, &demand, &cluster, &[500, 500, 10], &previous, &mut gains);
    assert_eq!((found.taken.len(), found.taken[0].changes.len()), (1, 2));
}

/// Where no replicas are wanted, an expert moves away from the other that has much to do; under a new number, for it
/// lives on where it was until it is there.
#[test]
fn a_hot_expert_moves_away_from_another() {
    let (demand, cluster) = (demand(0..1, 4, 10), nodes(2, 1, 100));
    let previous = seated(&[&[(0, 0, 0)], &[(0, 0, 0)], &[(0, 1, 0)], &[(0, 1, 0)]]);
    let found = improved(Policy::Pack, &demand, &cluster, &[500, 400, 10, 10], &previous, &mut gains);
    assert_eq!(changes(&found)[0], "layer 0 expert 1 moves from node 0 device 0 to node 1 device 0");
    assert_eq!(found.placement.unwrap().replicas(0, 1), [replica(1, &[(1, 0)])]);
}

/// Devices that serve one expert of each layer go on doing so: the one replica that would lower the peak of layer 0 most
/// would sit beside another expert of layer 0.
#[test]
fn experts_of_a_layer_stay_apart() {
    let (demand, cluster) = (demand(0..2, 2, 10), nodes(2, 1, 100));
    let previous = placed(Policy::Auto, &demand, &cluster, &Constraints::default()).unwrap();
    let found = improved(Policy::Auto, &demand, &cluster, &[900, 100], &previous, &mut gains);
    assert_eq!(changes(&found), [""; 0]);
    let found = improved(Policy::Pack, &demand, &cluster, &[900, 100], &previous, &mut gains);
    assert_eq!(changes(&found), [""; 0], "and it would not help to put both on one device");
    let found = improved(Policy::Auto, &demand, &nodes(3, 1, 100), &[900, 100], &previous, &mut gains);
    assert_eq!(found.taken.len(), 2, "{:?}", changes(&found));
}

/// A replica that saves nothing goes, where whoever asks finds that right; its expert keeps the other.
#[test]
fn a_replica_that_saves_nothing_may_go() {
    let (demand, cluster) = (demand(0..1, 3, 10), nodes(4, 1, 10));
    let previous = seated(&[&[(0, 0, 0)], &[(0, 1, 0)], &[(0, 2, 0), (4, 3, 0)]]);
    let drops = &mut |proposal: &Proposal| proposal.loads.is_empty();
    let found = improved(Policy::Auto, &demand, &cluster, &[400, 400, 300], &previous, drops);
    assert_eq!(changes(&found), ["layer 0 expert 2 loses its replica on node 3 device 0"]);
    assert_eq!(found.taken[0].peaks, BTreeMap::new());
    let found = improved(Policy::Replicate, &demand, &cluster, &[400, 400, 300], &previous, drops);
    assert!(found.placement.is_none(), "`replicate` has every device used");
}

/// Nothing is proposed that was refused, and the best that was is known.
#[test]
fn what_does_not_pay_is_left() {
    let (demand, cluster) = (demand(0..2, 3, 10), nodes(8, 1, 10));
    let previous = placed(Policy::Spread, &demand, &cluster, &Constraints::default()).unwrap();
    let found = improved(Policy::Auto, &demand, &cluster, &[800, 300, 100], &previous, &mut |_| false);
    assert!(found.placement.is_none() && found.taken.is_empty());
    assert_eq!(found.left.unwrap().changes.len(), 1);
}

fn offers() -> impl Strategy<Value = Cluster> {
    prop::collection::vec((1..4_usize, 20..60_u64), 2..6).prop_map(|all| {
        let offer = |(id, (devices, memory)): (usize, (usize, u64))| -> NodeOffer {
            node(id as u32, devices, memory)
        };
        Cluster::new(all.into_iter().enumerate().map(offer).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any placement: a few changes, each as it says, and no rule is broken.
    #[test]
    fn no_improvement_breaks_a_constraint(
        experts in prop::collection::vec(1..6_u32, 1..4),
        cluster in offers(),
        rows in prop::collection::vec(prop::collection::vec(0..1000_u64, 6), 3),
        first in 0..5_usize,
        policy in 0..5_usize,
        per_layer in prop::option::weighted(0.3, 1..3_u32),
        changes_max in 1..6_usize,
        answers in any::<u64>(),
    ) {
        let of = |experts| LayerDemand { experts, top_k: 1, shard_bytes: 10, is_dense: false };
        let layers: BTreeMap<u32, LayerDemand> = (0..).zip(experts).map(|(layer, experts)| (layer, of(experts))).collect();
        let measured = layers.iter().map(|(layer, of)| (*layer, rows[*layer as usize][..of.experts as usize].to_vec()));
        let statistics = Statistics { rows: measured.collect() };
        let demand = Demand { layers, shards: 1 };
        let constraints = Constraints {
            max_experts_per_device_per_layer: per_layer,
            replicas_max: 3,
            ..Constraints::default()
        };
        let Ok(previous) = placed(Policy::ALL[first].1, &demand, &cluster, &constraints) else { return Ok(()) };
        let request = Request {
            demand: &demand,
            cluster: &cluster,
            statistics: &statistics,
            constraints: &constraints,
            previous: Some(&previous),
        };
        let mut asked = 0;
        let mut pays = |_: &Proposal| { asked += 1; answers >> (asked % 64) & 1 == 1 };
        let found = improve(Policy::ALL[policy].1, &request, changes_max, &mut pays);
        let Some(placement) = found.placement else { return Ok(()) };
        let policy = Policy::ALL[policy].1;
        let per_layer = (policy == Policy::Spread).then(|| per_layer.unwrap_or(1));
        prop_assert_eq!(broken_rule(&placement, &demand, &cluster, &constraints, per_layer), Ok(()));
        let moves = diff(&previous, &placement, &demand);
        let changes: Vec<_> = found.taken.iter().flat_map(|taken| &taken.changes).collect();
        prop_assert!(changes.len() <= changes_max + 1, "{:?}", changes);
        prop_assert!(moves.load.len() <= changes.iter().map(|change| change.to.len()).sum());
        prop_assert!(moves.drop.len() <= changes.iter().map(|change| change.from.len()).sum());
        for proposal in &found.taken {
            if !proposal.loads.is_empty() {
                let sums: (u64, u64) = proposal.peaks.values().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
                prop_assert!(proposal.peaks.values().any(|(before, after)| after < before), "{:?}", sums);
            }
        }
    }
}
