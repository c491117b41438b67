//! What actors do, from what their nodes report: rates for people, and statistics for whoever lays experts out.
//!
//! Pure: every instant is passed in. Reports are totals since an actor began, and may leave out who has done nothing
//! since the last one; what lies between two of them is added to sums that fade, so that what was long ago counts less
//! and nothing has to be forgotten. The first report of an actor is where its count begins: how long the work took that is
//! already in it nobody knows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use transport::wire::cluster::{ACTORS_MAX, ActorId, Load};

use super::cluster::{Demand, Statistics};
use crate::placement::NodeId;

/// Over what times is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadsSettings {
    /// Half-life of what people see.
    pub recent: Duration,
    /// Half-life of what placements go by: longer than a burst, shorter than a day's change.
    pub lasting: Duration,
}

impl Default for LoadsSettings {
    fn default() -> Self {
        Self { recent: Duration::from_secs(4), lasting: Duration::from_secs(120) }
    }
}

/// A layer is measured when its experts have had so many rows each on average: chance is then a tenth.
const ROWS_MIN: f64 = 100.0;
/// Parts of a row in statistics, which are whole numbers.
const PARTS: f64 = 16.0;

/// A sum of which half is gone after each half-life.
#[derive(Debug, Clone, Copy)]
struct Faded {
    value: f64,
    at: Instant,
}

impl Faded {
    fn new(now: Instant) -> Self {
        Self { value: 0.0, at: now }
    }

    fn at(&self, now: Instant, half_life: Duration) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.value * (-elapsed / half_life.as_secs_f64()).exp2()
    }

    fn add(&mut self, value: f64, now: Instant, half_life: Duration) {
        *self = Self { value: self.at(now, half_life) + value, at: now };
    }
}

/// Per second, of a sum that has been fading since `since`.
fn rate(sum: f64, since: Instant, now: Instant, half_life: Duration) -> f64 {
    let age = now.saturating_duration_since(since).as_secs_f64();
    let seen = 1.0 - (-age / half_life.as_secs_f64()).exp2();
    if seen <= 0.0 { 0.0 } else { sum * std::f64::consts::LN_2 / half_life.as_secs_f64() / seen }
}

/// An actor.
#[derive(Debug)]
struct Watched {
    load: Load,
    since: Instant,
    rows: Faded,
    busy_us: Faded,
    service_us: Faded,
}

/// A layer over all its actors.
#[derive(Debug)]
struct Layer {
    since: Instant,
    rows: Vec<Faded>,
    /// The same, and nothing fades.
    rows_all: Vec<u64>,
    /// Sums over reports for a line through (batches, rows) -> busy time: of products, of busy time and of rows.
    sums: [Faded; 7],
}

/// How an actor does now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recent {
    /// Rows that it computes in a second.
    pub rows_per_s: f64,
    /// Which part of the time it computes.
    pub busy: f64,
    /// From a row's arrival to its return, on average.
    pub service_us: f64,
}

/// What all actors do.
#[derive(Debug)]
pub struct Loads {
    settings: LoadsSettings,
    experts: BTreeMap<u32, u32>,
    nodes: BTreeMap<NodeId, BTreeMap<ActorId, Watched>>,
    layers: BTreeMap<u32, Layer>,
}

impl Loads {
    /// Nothing is known yet.
    pub fn new(settings: LoadsSettings, demand: &Demand) -> Self {
        let experts = demand.layers.iter().map(|(layer, of)| (*layer, of.experts)).collect();
        Self { settings, experts, nodes: BTreeMap::new(), layers: BTreeMap::new() }
    }

    /// A node says what its actors have done.
    pub fn handle_loads(&mut self, node: NodeId, loads: &[Load], now: Instant) {
        for load in loads {
            let ActorId { layer, expert, .. } = load.actor;
            let is_known = self.experts.get(&layer).is_some_and(|experts| expert < *experts);
            let of = self.nodes.entry(node).or_default();
            if !is_known || (of.len() >= ACTORS_MAX && !of.contains_key(&load.actor)) {
                continue;
            }
            if let Some(done) = watch(of, load, now, self.settings.recent) {
                self.count(&done, now);
            }
        }
    }

    /// A node's link has ended. Where it comes back, its counts begin anew.
    pub fn handle_gone(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Adds to the sums of a layer.
    fn count(&mut self, done: &Load, now: Instant) {
        let ActorId { layer, expert, shard, .. } = done.actor;
        let (experts, half_life) = (self.experts[&layer], self.settings.lasting);
        let of = self.layers.entry(layer).or_insert_with(|| Layer {
            since: now,
            rows: vec![Faded::new(now); experts as usize],
            rows_all: vec![0; experts as usize],
            sums: [Faded::new(now); 7],
        });
        // Every shard of an expert has all its rows.
        if shard == 0 {
            of.rows[expert as usize].add(done.rows as f64, now, half_life);
            of.rows_all[expert as usize] += done.rows;
        }
        let (batches, rows, busy) = (done.batches as f64, done.rows as f64, done.busy_us as f64);
        let terms = [batches * batches, batches * rows, rows * rows, batches * busy, rows * busy, busy, rows];
        for (sum, term) in of.sums.iter_mut().zip(terms) {
            sum.add(term, now, half_life);
        }
    }

    /// The last report of an actor.
    pub fn load(&self, node: NodeId, actor: ActorId) -> Option<&Load> {
        self.nodes.get(&node)?.get(&actor).map(|watched| &watched.load)
    }

    /// How an actor does.
    pub fn recent(&self, node: NodeId, actor: ActorId, now: Instant) -> Option<Recent> {
        let half_life = self.settings.recent;
        let watched = self.nodes.get(&node)?.get(&actor)?;
        let per_s = |sum: &Faded| rate(sum.at(now, half_life), watched.since, now, half_life);
        // Both fade alike, so that the quotient stays what it was when rows last came.
        let rows = watched.rows.value;
        let service_us = if rows > 0.0 { watched.service_us.value / rows } else { 0.0 };
        Some(Recent { rows_per_s: per_s(&watched.rows), busy: per_s(&watched.busy_us) / 1e6, service_us })
    }

    /// Rows of each expert, of layers that have been measured long enough.
    pub fn statistics(&self, now: Instant) -> Statistics {
        let half_life = self.settings.lasting;
        let rows = self.layers.iter().filter_map(|(layer, of)| {
            let rows: Vec<f64> = of.rows.iter().map(|rows| rows.at(now, half_life)).collect();
            let is_measured = rows.iter().sum::<f64>() >= ROWS_MIN * rows.len() as f64;
            is_measured.then(|| (*layer, rows.iter().map(|rows| (rows * PARTS) as u64).collect()))
        });
        Statistics { rows: rows.collect() }
    }

    /// Rows of each expert of a layer from the first report on; nothing, where there was none.
    pub fn rows(&self, layer: u32) -> Option<&[u64]> {
        self.layers.get(&layer).map(|of| of.rows_all.as_slice())
    }

    /// Rows that a layer's experts compute in a second, all of them together.
    pub fn rows_per_s(&self, layer: u32, now: Instant) -> f64 {
        let Some(of) = self.layers.get(&layer) else { return 0.0 };
        let rows = of.rows.iter().map(|rows| rows.at(now, self.settings.lasting)).sum();
        rate(rows, of.since, now, self.settings.lasting)
    }

    /// What one row more costs an expert of a layer, in seconds: a batch costs something however few rows it has, and
    /// that is not saved by sending them elsewhere. So busy time is fitted by a part for each batch and one for each row;
    /// where all batches had one size the two cannot be told apart, and the average is taken.
    pub fn row_s(&self, layer: u32) -> f64 {
        let Some(of) = self.layers.get(&layer) else { return 0.0 };
        let [bb, br, rr, by, ry, busy, rows] = of.sums.map(|sum| sum.value);
        if rows <= 0.0 {
            return 0.0;
        }
        let average = busy / rows;
        let determinant = bb * rr - br * br;
        let slope = if determinant > 1e-3 * bb * rr { (bb * ry - br * by) / determinant } else { average };
        slope.clamp(0.0, average) / 1e6
    }
}

/// Takes a report; what was done since the one before, if there was one.
fn watch(
    of: &mut BTreeMap<ActorId, Watched>,
    load: &Load,
    now: Instant,
    half_life: Duration,
) -> Option<Load> {
    let Some(watched) = of.get_mut(&load.actor) else {
        let none = Faded::new(now);
        let watched = Watched { load: *load, since: now, rows: none, busy_us: none, service_us: none };
        of.insert(load.actor, watched);
        return None;
    };
    let before = watched.load;
    // One that was loaded anew counts from nothing.
    let is_new = load.rows < before.rows || load.batches < before.batches || load.busy_us < before.busy_us;
    let since = |now: u64, before: u64| if is_new { now } else { now.saturating_sub(before) };
    let done = Load {
        rows: since(load.rows, before.rows),
        batches: since(load.batches, before.batches),
        busy_us: since(load.busy_us, before.busy_us),
        service_us: since(load.service_us, before.service_us),
        ..*load
    };
    watched.load = *load;
    watched.rows.add(done.rows as f64, now, half_life);
    watched.busy_us.add(done.busy_us as f64, now, half_life);
    watched.service_us.add(done.service_us as f64, now, half_life);
    Some(done)
}
