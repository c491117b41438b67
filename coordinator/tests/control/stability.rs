//! A policy keeps what already sits well: how many actors move when nodes come and go.

use phalanx_coordinator::control::cluster::{Cluster, Demand, Statistics};
use phalanx_coordinator::control::diff::{Moves, diff};
use phalanx_coordinator::control::policy::{Constraints, Policy, Request, place};
use phalanx_coordinator::placement::{NodeId, Placement};
use transport::wire::cluster::ActorId;

use super::make::{broken_rule, demand, node, nodes, placed, reference_demand, replica, seat};

fn next(policy: Policy, demand: &Demand, cluster: &Cluster, previous: &Placement) -> Placement {
    let (statistics, constraints) = (&Statistics::default(), &Constraints::default());
    place(policy, &Request { demand, cluster, statistics, constraints, previous: Some(previous) }).unwrap()
}

fn without(cluster: &Cluster, gone: u32) -> Cluster {
    Cluster::new(cluster.nodes().iter().filter(|node| node.id != NodeId(gone)).cloned().collect())
}

/// Only what the dead node held is loaded, wherever there is room.
#[test]
fn a_death_moves_only_what_died() {
    let (demand, cluster) = (reference_demand(), nodes(488, 8, 64_000_000_000));
    let spread = [Policy::Reference, Policy::Spread, Policy::Pack, Policy::Auto];
    for policy in spread {
        let before = placed(policy, &demand, &cluster, &Constraints::default()).unwrap();
        let dead = before.actors().filter(|(_, seat)| seat.node == NodeId(7)).count();
        let after = next(policy, &demand, &without(&cluster, 7), &before);
        let moves = diff(&before, &after, &demand);
        assert_eq!((moves.load.len(), moves.drop.len()), (dead, dead), "{policy:?}");
        assert_eq!(moves.bytes, dead as u64 * 58_720_256);
        let back = next(policy, &demand, &cluster, &after);
        assert_eq!(diff(&after, &back, &demand).load.len(), 0, "{policy:?}: who comes back is a spare");
    }
}

/// A fifth device beside four: it takes its share and nobody else moves.
#[test]
fn a_node_that_joins_takes_no_more_than_its_share() {
    let demand = demand(0..4, 16, 10);
    for policy in [Policy::Pack, Policy::Auto] {
        let before = placed(policy, &demand, &nodes(4, 1, 1000), &Constraints::default()).unwrap();
        let after = next(policy, &demand, &nodes(5, 1, 1000), &before);
        let moves = diff(&before, &after, &demand);
        assert!(moves.load.iter().all(|(_, seat)| seat.node == NodeId(4)), "{policy:?}");
        assert!((6..=13).contains(&moves.load.len()), "{policy:?}: {} of 64", moves.load.len());
        assert_eq!(moves.load.len(), moves.drop.len());
    }
}

/// Two experts shared a device for want of another. Now there is one, and only one of them has to move; as it
/// lives on while it is copied, the copy has another number.
#[test]
fn a_new_device_ends_the_sharing_of_one() {
    let demand = demand(0..2, 1, 10);
    let before = placed(Policy::Spread, &demand, &nodes(1, 1, 100), &Constraints::default()).unwrap();
    let after = next(Policy::Spread, &demand, &nodes(2, 1, 100), &before);
    let actor = |replica| ActorId { layer: 1, expert: 0, replica, shard: 0 };
    assert_eq!(
        diff(&before, &after, &demand),
        Moves { load: vec![(actor(1), seat(1, 0))], drop: vec![(actor(0), seat(0, 0))], bytes: 10 }
    );
}

/// What leaves goes elsewhere, and nothing else does.
#[test]
fn a_leaving_node_is_emptied() {
    let demand = demand(0..2, 4, 10);
    let before = placed(Policy::Auto, &demand, &nodes(3, 2, 100), &Constraints::default()).unwrap();
    let mut offers = nodes(3, 2, 100).nodes().to_vec();
    offers[1].is_leaving = true;
    let after = next(Policy::Auto, &demand, &Cluster::new(offers), &before);
    let there = |placement: &Placement| placement.actors().filter(|(_, seat)| seat.node == NodeId(1)).count();
    assert_eq!(there(&after), 0);
    let moves = diff(&before, &after, &demand);
    assert_eq!(moves.drop.len(), there(&before));
    assert_eq!(moves.load.len(), there(&before));
}

/// A replica that loses one shard loads one shard.
#[test]
fn a_replica_that_loses_a_shard_keeps_the_others() {
    let mut demand = demand(0..1, 1, 10);
    demand.shards = 3;
    let before = placed(Policy::Spread, &demand, &nodes(1, 4, 10), &Constraints::default()).unwrap();
    let mut offer = node(0, 4, 10);
    offer.devices[1] = 0;
    let after = next(Policy::Spread, &demand, &Cluster::new(vec![offer]), &before);
    assert_eq!(before.replicas(0, 0), [replica(0, &[(0, 0), (0, 1), (0, 2)])]);
    assert_eq!(after.replicas(0, 0), [replica(0, &[(0, 0), (0, 3), (0, 2)])]);
}

/// Where nothing has room for both, what stays is moved before what comes is refused.
#[test]
fn a_full_cluster_is_laid_out_anew_rather_than_refused() {
    let demand = demand(0..2, 2, 10);
    let constraints = Constraints { max_experts_per_device_per_layer: Some(1), ..Constraints::default() };
    let cluster = nodes(2, 1, 20);
    let statistics = &Statistics::default();
    // Layer 0's experts sit on one device, which the constraint forbids, and there is no spare memory.
    let wrong = [
        (0, vec![vec![replica(0, &[(0, 0)])], vec![replica(0, &[(0, 0)])]]),
        (1, vec![vec![replica(0, &[(1, 0)])], vec![replica(0, &[(1, 0)])]]),
    ];
    let previous = Placement { layers: wrong.into(), ..Placement::default() };
    let request = Request {
        demand: &demand,
        cluster: &cluster,
        statistics,
        constraints: &constraints,
        previous: Some(&previous),
    };
    let placement = place(Policy::Pack, &request).unwrap();
    broken_rule(&placement, &demand, &cluster, &constraints, Some(1)).unwrap();
    assert_eq!(diff(&previous, &placement, &demand).load.len(), 2);
}

/// Replicas that hot experts have gained are not lost because a node comes.
#[test]
fn replicas_that_were_gained_stay() {
    let demand = demand(0..1, 2, 10);
    let gained = [(0, vec![vec![replica(0, &[(0, 0)]), replica(3, &[(1, 0)])], vec![replica(0, &[(2, 0)])]])];
    let previous = Placement { layers: gained.into(), ..Placement::default() };
    let after = next(Policy::Auto, &demand, &nodes(4, 2, 100), &previous);
    assert_eq!(after, previous);
}
