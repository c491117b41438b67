//! What routing costs at this size: router and exchange of the data plane with the very placement of the rehearsal,
//! driven without any tensor, so that the figure holds nothing but them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::control::cluster::{Cluster, Demand, NodeOffer, Statistics};
use coordinator::control::policy::{Constraints, Policy, Request, place};
use coordinator::data::exchange::{Exchange, ExchangeSettings, LinkRoom};
use coordinator::data::ids::{LinkId, RowId};
use coordinator::placement::{NodeId, Placement};
use model::load::Opened;
use transport::Limits;
use transport::wire::cluster::Epoch;

use super::Size;
use crate::Failure;
use crate::answers::Random;

/// Rows that are routed together: where many requests run, and where one does.
const BATCHES: [u32; 2] = [64, 1];
/// (Row, expert) pairs that are timed.
const PAIRS: usize = 200_000;
const DEADLINE: Duration = Duration::from_secs(600);

/// The cost of one batch size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) rows: u32,
    pub(super) ns_per_row: f64,
    pub(super) ns_per_pair: f64,
    /// The same where the cluster has no more experts than one layer.
    pub(super) ns_per_pair_small: f64,
}

/// Places the experts and measures.
pub(super) fn measure(size: &Size, opened: &Opened) -> Result<Vec<Cost>, Failure> {
    let demand = Demand::new(&opened.spec, 1, 2, false);
    let placement = reference(size, &demand)?;
    let first = demand.layers.keys().next().copied().unwrap_or_default();
    let one =
        Demand { layers: demand.layers.range(..=first).map(|(l, of)| (*l, *of)).collect(), ..demand.clone() };
    let small = Placement {
        layers: placement.layers.range(..=first).map(|(l, of)| (*l, of.clone())).collect(),
        ..placement.clone()
    };
    let cost = |rows| {
        let all = pair(size, &demand, &placement, rows);
        let small = pair(size, &one, &small, rows);
        let ns = |time: Duration| time.as_nanos() as f64 / PAIRS as f64;
        let (ns_per_pair, ns_per_pair_small) = (ns(all), ns(small));
        Cost { rows, ns_per_row: ns_per_pair * size.top_k as f64, ns_per_pair, ns_per_pair_small }
    };
    Ok(BATCHES.into_iter().map(cost).collect())
}

fn reference(size: &Size, demand: &Demand) -> Result<Placement, Failure> {
    let node = |number| NodeOffer {
        id: NodeId(number),
        name: format!("node-{number}"),
        devices: vec![u64::MAX / 2; size.devices as usize],
        labels: BTreeMap::new(),
        is_leaving: false,
    };
    let (cluster, statistics) = (Cluster::new((0..size.nodes).map(node).collect()), Statistics::default());
    let constraints = Constraints::default();
    let request = Request {
        demand,
        cluster: &cluster,
        statistics: &statistics,
        constraints: &constraints,
        previous: None,
    };
    Ok(Placement { epoch: Epoch { term: 1, number: 1 }, ..place(Policy::Reference, &request)? })
}

/// The best of a few passes of [`PAIRS`], batches of so many rows going through layer after layer.
fn pair(size: &Size, demand: &Demand, placement: &Placement, rows: u32) -> Duration {
    let limits = Limits::default();
    let now = Instant::now();
    let mut exchange =
        Exchange::new(ExchangeSettings::new(rows, size.top_k as u32, 1, 2 * size.hidden as u64));
    exchange.handle_placement(Arc::new(placement.clone()), now);
    let room = LinkRoom {
        out_bytes: limits.window_bytes.data / 4 * 3,
        back_bytes: limits.window_bytes.data / 2,
        dispatches: limits.in_flight_max,
        payload_bytes: limits.payload_bytes_max.data,
    };
    for node in 0..size.nodes {
        exchange.handle_link(LinkId(node), NodeId(node), room, now);
    }
    let layers: Vec<u32> = demand.layers.keys().copied().collect();
    let ids: Vec<RowId> = (0..rows).map(RowId).collect();
    let choices: Vec<Vec<u32>> = choices(size, &layers, rows);
    let (mut out, mut layer) = (Vec::new(), 0);
    let mut pass = || {
        let (began, mut done) = (Instant::now(), 0);
        while done < PAIRS {
            let chosen = &choices[layer % choices.len()];
            exchange.handle_chosen(
                layers[layer % layers.len()],
                &ids,
                size.top_k,
                chosen,
                now + DEADLINE,
                now,
            );
            while let Some(frame) = exchange.poll_dispatch(now) {
                let groups = frame.groups.iter();
                out.extend(groups.map(|group| (frame.link, group.dispatch, group.indices.len() as u32)));
            }
            for (link, dispatch, rows) in out.drain(..) {
                exchange.handle_return(link, dispatch, rows, now);
            }
            while exchange.poll_whole().is_some() {}
            (done, layer) = (done + chosen.len(), layer + 1);
        }
        began.elapsed()
    };
    // The first makes the tables.
    pass();
    [pass(), pass(), pass()].into_iter().min().unwrap_or_default()
}

/// Random experts for every row, none twice; as many layers' worth as the reference model has, for a small cluster too.
fn choices(size: &Size, layers: &[u32], rows: u32) -> Vec<Vec<u32>> {
    let mut random = Random(7);
    let mut of_layer = || {
        let mut experts: Vec<u32> = Vec::new();
        for _ in 0..rows {
            let first = experts.len();
            while experts.len() < first + size.top_k {
                let expert = random.below(size.experts as u32);
                if !experts[first..].contains(&expert) {
                    experts.push(expert);
                }
            }
        }
        experts
    };
    (0..layers.len().max(size.layers)).map(|_| of_layer()).collect()
}
