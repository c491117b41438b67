//! When it pays to change a placement, in virtual time.

use std::time::{Duration, Instant};

use phalanx_coordinator::control::cluster::{Cluster, Demand};
use phalanx_coordinator::control::loads::{Loads, LoadsSettings};
use phalanx_coordinator::control::policy::{Constraints, Policy};
use phalanx_coordinator::control::rebalance::{Facts, RebalanceSettings, Rebalancer};
use phalanx_coordinator::placement::{NodeId, Placement};
use transport::wire::cluster::{ActorId, Load};

use super::make::{demand, nodes, placed};

const S: Duration = Duration::from_secs(1);

struct World {
    demand: Demand,
    cluster: Cluster,
    placement: Placement,
    loads: Loads,
    rebalancer: Rebalancer,
    now: Instant,
    rows: [u64; 3],
}

/// Three experts of a megabyte on four devices; a row takes 100 us. Looked at every 30 s, for 600 s.
fn world() -> World {
    let (demand, cluster, now) = (demand(0..1, 3, 1_000_000), nodes(4, 1, 1_000_000), Instant::now());
    let placement = placed(Policy::Auto, &demand, &cluster, &Constraints::default()).unwrap();
    let loads = Loads::new(LoadsSettings::default(), &demand);
    let rebalancer = Rebalancer::new(RebalanceSettings::every(30 * S), now);
    World { demand, cluster, placement, loads, rebalancer, now, rows: [0; 3] }
}

impl World {
    /// Experts compute so many rows in each second.
    fn pass(&mut self, seconds: u64, rows: [u64; 3]) {
        for _ in 0..seconds {
            self.now += S;
            let report = |(expert, (total, rows)): (u32, (&mut u64, u64))| {
                *total += rows;
                let actor = ActorId { layer: 0, expert, replica: 0, shard: 0 };
                Load { actor, rows: *total, batches: *total, busy_us: 100 * *total, service_us: 0, queued: 0 }
            };
            let report: Vec<Load> = (0..).zip(self.rows.iter_mut().zip(rows)).map(report).collect();
            self.loads.handle_loads(NodeId(0), &report, self.now);
        }
    }

    fn look(&mut self, is_settled: bool) -> Option<Placement> {
        let facts = Facts {
            policy: Policy::Auto,
            constraints: &Constraints::default(),
            demand: &self.demand,
            cluster: &self.cluster,
            loads: &self.loads,
            previous: &self.placement,
            is_settled,
        };
        self.rebalancer.handle_look(facts, self.now)
    }

    /// A load of so many bytes takes a second.
    fn loaded(&mut self, bytes: u64) {
        for node in 0..4 {
            self.rebalancer.handle_ordered(NodeId(node), bytes, self.now);
            self.rebalancer.handle_held(NodeId(node), self.now + S);
        }
    }
}

/// 1,000 of 1,500 rows a second, 100 us each: a replica saves 50 ms in every second, 30 s within ten minutes, and costs
/// a second to load.
#[test]
fn a_hot_expert_gains_a_replica_when_it_pays() {
    let mut world = world();
    world.loaded(1_000_000);
    world.pass(29, [1000, 250, 250]);
    assert_eq!(world.look(true), None, "not before it is time");
    world.pass(1, [1000, 250, 250]);
    let placement = world.look(true).unwrap();
    assert_eq!(placement.replicas(0, 0).len(), 2);
    let look = world.rebalancer.last();
    let [taken] = &look.taken[..] else { panic!("{look:?}") };
    assert!((taken.saves_s - 30.0).abs() < 3.0, "{taken:?}");
    assert!((taken.costs_s - 1.002).abs() < 1e-6, "{taken:?}");
    assert_eq!((taken.bytes, world.rebalancer.changes()), (1_000_000, 1));
    assert_eq!(world.look(true), None, "the next look comes after a period");
}

/// The same load, and a copy takes a minute: what was reckoned, and why nothing is done, is known.
#[test]
fn a_change_that_costs_too_much_is_not_made() {
    let mut world = world();
    world.loaded(1_000_000 / 60);
    world.pass(30, [1000, 250, 250]);
    assert_eq!(world.look(true), None);
    let look = world.rebalancer.last();
    let left = look.left.as_ref().unwrap();
    assert!(left.saves_s < 2.0 * left.costs_s && left.costs_s > 59.0, "{left:?}");
    assert_eq!(look.why, "it must save 2 times what it costs");
    assert_eq!((look.taken.len(), world.rebalancer.changes()), (0, 0));
}

/// Nothing is done beside another change, nor for what chance may be, nor again for what is even.
#[test]
fn nothing_is_done_without_need() {
    let mut world = world();
    world.loaded(1_000_000);
    world.pass(30, [1, 0, 0]);
    assert_eq!(world.look(true), None);
    assert_eq!(world.rebalancer.last().why, "too few rows since it was last measured");
    world.pass(30, [1000, 250, 250]);
    assert_eq!(world.look(false), None);
    assert_eq!(world.rebalancer.last().why, "another change is under way");
    let mut world = self::world();
    world.pass(30, [500, 500, 500]);
    assert_eq!(world.look(true), None);
    let even = world.rebalancer.last();
    assert_eq!((even.why.as_str(), &even.left), ("no change lowers the peak of a layer", &None));
}

/// When the load has gone elsewhere the replica goes too, and a little use does not bring it back and forth.
#[test]
fn a_replica_goes_when_its_expert_is_cold() {
    let mut world = world();
    world.loaded(1_000_000);
    world.pass(30, [1000, 250, 250]);
    world.placement = world.look(true).unwrap();
    for _ in 0..20 {
        world.pass(30, [1000, 250, 250]);
        assert_eq!(world.look(true), None, "{:?}", world.rebalancer.last());
    }
    let mut replicas = Vec::new();
    for _ in 0..60 {
        world.pass(30, [2, 2, 2]);
        if let Some(placement) = world.look(true) {
            world.placement = placement;
        }
        replicas.push(world.placement.replicas(0, 0).len());
    }
    assert!(replicas.is_sorted_by(|a, b| a >= b), "{replicas:?}");
    assert_eq!(replicas.last(), Some(&1));
}
