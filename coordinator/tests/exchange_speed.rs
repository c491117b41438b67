//! What a (row, expert) pair costs in router and exchange, without any tensor.
//!
//! `cargo test --release -p phalanx-coordinator --test exchange_speed -- --ignored --nocapture`

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_coordinator::data::exchange::{Exchange, ExchangeSettings, LinkRoom, NOWHERE};
use phalanx_coordinator::data::ids::{LinkId, RowId};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};
use transport::wire::cluster::Epoch;

const LAYERS: u32 = 58;
const EXPERTS: u32 = 256;
const TOP_K: usize = 8;
const PAIRS: usize = 1_000_000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// The reference layout: expert `e` of layer `l` on device `l * 256 + e`, so many devices on a node.
fn exchange(rows_max: u32, devices: u32, replicas: u8, now: Instant) -> (Exchange, u32) {
    let nodes = (LAYERS * EXPERTS).div_ceil(devices);
    let seat = |device: u32| Seat { node: NodeId(device / devices), device: (device % devices) as u16 };
    let of_layer = |layer: u32| {
        let of_expert = |expert: u32| {
            let replica = |number: u8| {
                let device = layer * EXPERTS + (expert + 128 * u32::from(number)) % EXPERTS;
                Replica { number, seats: vec![seat(device)] }
            };
            (0..replicas).map(replica).collect()
        };
        (layer, (0..EXPERTS).map(of_expert).collect())
    };
    let layers: BTreeMap<_, _> = (0..LAYERS).map(of_layer).collect();
    let mut exchange = Exchange::new(ExchangeSettings::new(rows_max, TOP_K as u32, 1, 14_336));
    exchange.handle_placement(Arc::new(Placement { epoch: Epoch { term: 1, number: 1 }, layers }), now);
    let room =
        LinkRoom { out_bytes: 48 << 20, back_bytes: 32 << 20, dispatches: 65_536, payload_bytes: 16 << 20 };
    for node in 0..nodes {
        exchange.handle_link(LinkId(node), NodeId(node), room, now);
    }
    (exchange, nodes)
}

/// Time that this thread has computed: others share the cores.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Time per pair when batches of so many rows go through layer after layer, and dispatches per pair.
fn measure(batch: u32, devices: u32, replicas: u8) -> (Duration, f64, f64) {
    let mut random = Random(7);
    let mut now = Instant::now();
    let (mut exchange, _) = exchange(batch, devices, replicas, now);
    let rows: Vec<RowId> = (0..batch).map(RowId).collect();
    let choices: Vec<Vec<u32>> = (0..LAYERS)
        .map(|_| {
            let mut experts = Vec::new();
            for _ in 0..batch {
                let first = experts.len();
                while experts.len() < first + TOP_K {
                    let expert = random.below(EXPERTS);
                    if !experts[first..].contains(&expert) {
                        experts.push(expert);
                    }
                }
            }
            experts
        })
        .collect();
    let mut out = Vec::new();
    let mut pass = |pairs: usize| {
        let began = busy();
        let (mut done, mut layer, mut filled) = (0, 0, 0);
        while done < pairs {
            now += Duration::from_micros(10);
            exchange.handle_chosen(
                layer,
                &rows,
                TOP_K,
                &choices[layer as usize],
                now + Duration::from_secs(60),
                now,
            );
            let mut whole = 0;
            while whole < rows.len() {
                while let Some(frame) = exchange.poll_dispatch(now) {
                    let groups = frame.groups.iter();
                    out.extend(groups.map(|group| (frame.link, group.dispatch, group.indices.len() as u32)));
                }
                for index in 0..out.len() {
                    // Returns come in some other order.
                    let other = index + (index * 7 + 3) % (out.len() - index);
                    out.swap(index, other);
                    let (link, dispatch, rows) = out[index];
                    let slots = exchange.handle_return(link, dispatch, rows, now).taken().unwrap();
                    filled += slots.iter().filter(|slot| **slot != NOWHERE).count();
                }
                out.clear();
                whole += std::iter::from_fn(|| exchange.poll_whole()).count();
            }
            done += rows.len() * TOP_K;
            layer = (layer + 1) % LAYERS;
        }
        assert_eq!(filled, done);
        (busy() - began) / done as u32
    };
    pass(PAIRS / 4);
    let times = [pass(PAIRS), pass(PAIRS), pass(PAIRS)];
    let counters = exchange.counters();
    let per_pair = |count: u64| count as f64 / counters.slots_sent as f64;
    (*times.iter().min().unwrap(), per_pair(counters.dispatches), per_pair(counters.frames))
}

#[test]
#[ignore = "a measurement"]
fn a_pair_costs() {
    for (batch, devices, replicas) in [
        (512, 8, 1),
        (64, 8, 1),
        (32, 8, 1),
        (8, 8, 1),
        (1, 8, 1),
        (512, 8, 2),
        (32, 8, 2),
        (512, 7_424, 1),
        (32, 7_424, 1),
    ] {
        let (time, dispatches, frames) = measure(batch, devices, replicas);
        println!(
            "{batch:4} rows, {devices:4} devices a node, {replicas} replicas: {:4} ns a pair, {dispatches:.2} dispatches, {frames:.2} frames",
            time.as_nanos()
        );
    }
}
