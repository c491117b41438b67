//! What is made of nodes' reports, in virtual time.

use std::time::{Duration, Instant};

use phalanx_coordinator::control::cluster::Statistics;
use phalanx_coordinator::control::loads::{Loads, LoadsSettings};
use phalanx_coordinator::placement::NodeId;
use transport::wire::cluster::{ActorId, Load};

use super::make::demand;

const S: Duration = Duration::from_secs(1);
const SETTINGS: LoadsSettings =
    LoadsSettings { recent: Duration::from_secs(4), lasting: Duration::from_secs(60) };

fn actor(expert: u32, replica: u8) -> ActorId {
    ActorId { layer: 0, expert, replica, shard: 0 }
}

fn load(expert: u32, rows: u64, batches: u64, busy_us: u64) -> Load {
    Load { actor: actor(expert, 0), rows, batches, busy_us, service_us: 3 * busy_us, queued: 0 }
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 0.02 * expected.abs().max(0.01), "{found}, expected {expected}");
}

/// 100 and 300 rows a second for some seconds; each batch of ten takes 1 ms.
fn watched(seconds: u32) -> (Loads, Instant) {
    let mut now = Instant::now();
    let mut loads = Loads::new(SETTINGS, &demand(0..1, 2, 10));
    for second in 0..=u64::from(seconds) {
        let report = [(0, 100), (1, 300)].map(|(expert, rows)| {
            let rows = 5_000_000 + rows * second;
            load(expert, rows, rows / 10, rows * 100)
        });
        loads.handle_loads(NodeId(3), &report, now);
        now += S;
    }
    (loads, now - S)
}

/// What was done before the first report is no rate, and a rate is right from the first second.
#[test]
fn rates_are_those_of_late() {
    for seconds in [1, 2, 30, 300] {
        let (loads, now) = watched(seconds);
        let recent = loads.recent(NodeId(3), actor(1, 0), now).unwrap();
        // A report is a sum at its end: the last one has not faded at all.
        let lump = if seconds < 3 { 0.2 } else { 0.1 };
        assert!((recent.rows_per_s - 300.0).abs() < 300.0 * lump, "{seconds} s: {recent:?}");
        assert!((recent.busy - 0.03).abs() < 0.03 * lump, "{seconds} s: {recent:?}");
        near(recent.service_us, 300.0);
    }
    let (loads, now) = watched(30);
    let idle = loads.recent(NodeId(3), actor(1, 0), now + 40 * S).unwrap();
    assert!(idle.rows_per_s < 1.0, "{idle:?}");
    near(idle.service_us, 300.0);
    assert_eq!(loads.load(NodeId(3), actor(1, 0)).unwrap().rows, 5_000_000 + 300 * 30);
}

/// Rows of all replicas count; shares follow what is chosen now and forget what was chosen once.
#[test]
fn statistics_follow_the_load() {
    let (mut loads, mut now) = watched(900);
    let shares = |statistics: &Statistics| {
        let rows = &statistics.rows[&0];
        rows[1] as f64 / rows.iter().sum::<u64>() as f64
    };
    near(shares(&loads.statistics(now)), 0.75);
    near(loads.rows_per_s(0, now), 400.0);
    // From now on expert 0 alone is chosen, as replica 1 on another node.
    for second in 0..=240_u64 {
        let report = Load { actor: actor(0, 1), ..load(0, 400 * second, 40 * second, 0) };
        loads.handle_loads(NodeId(4), &[report], now);
        now += S;
    }
    // Four half-lives.
    near(shares(&loads.statistics(now - S)), 0.75 / 16.0);
    assert_eq!(
        loads.statistics(now + 3600 * S),
        Statistics::default(),
        "an hour without rows measures nothing"
    );
}

/// An actor that was loaded anew counts from nothing, a node that comes back begins anew, and what is not of the model is
/// not counted at all.
#[test]
fn counts_that_begin_anew_are_no_rows() {
    let mut now = Instant::now();
    let mut loads = Loads::new(SETTINGS, &demand(0..1, 2, 10));
    let mut say = |loads: &mut Loads, rows: u64| {
        loads.handle_loads(NodeId(0), &[load(1, rows, rows, rows)], now);
        now += S / 100;
        loads.statistics(now).rows.get(&0).map_or(0, |rows| rows[1] / 16)
    };
    assert_eq!(say(&mut loads, 1 << 40), 0);
    assert_eq!(say(&mut loads, (1 << 40) + 1000), 999);
    assert_eq!(say(&mut loads, 500), 1499, "loaded anew: 500 since then");
    loads.handle_gone(NodeId(0));
    assert_eq!(say(&mut loads, 1 << 50), 1499);
    assert_eq!((loads.rows(0), loads.rows(1)), (Some(&[0, 1500][..]), None), "and nothing fades");
    let foreign = Load { actor: ActorId { layer: 7, ..actor(0, 0) }, ..load(0, 9, 9, 9) };
    loads.handle_loads(NodeId(0), &[foreign, load(2, 9, 9, 9)], now);
    assert_eq!((loads.load(NodeId(0), foreign.actor), loads.load(NodeId(0), actor(2, 0))), (None, None));
}

/// 1 ms for a batch and 50 us for a row of it: what a row costs is not the average.
#[test]
fn a_row_costs_less_than_its_part_of_a_batch() {
    let mut now = Instant::now();
    let mut loads = Loads::new(SETTINGS, &demand(0..1, 2, 10));
    let (mut rows, mut batches, mut busy) = (0, 0, 0);
    for step in 0..100_u64 {
        loads.handle_loads(NodeId(0), &[load(0, rows, batches, busy)], now);
        let (more, of) = (3 + step % 5, 1 + step % 7);
        (rows, batches, busy) = (rows + more * of, batches + more, busy + more * (1000 + 50 * of));
        now += S / 4;
    }
    near(loads.row_s(0) * 1e6, 50.0);
    // All batches alike: they cannot be told apart, so it is the average.
    let (loads, _) = watched(10);
    near(loads.row_s(0) * 1e6, 100.0);
    assert_eq!(loads.row_s(1), 0.0);
}
