//! Decides when what is published is made better: only where that pays.
//!
//! Pure: every instant is passed in. Now and then, and only while nothing is under way, a few changes are looked for that
//! lower the peak of a layer (`policy::improve`). A change saves, in each second, what rows at the peak cost less, for as
//! long as loads are thought to stay as they were; it costs the time that its nodes take to load what they gain, as if
//! nothing were computed meanwhile, and two pauses of the data plane, when the new holder comes and when the old one has
//! gone. All of it is measured: rows, time per row, bytes per second of loads, pauses. What was reckoned is kept for people.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Demand, Statistics};
use super::loads::Loads;
use super::policy::{Constraints, Improved, Policy, Proposal, Request, improve};
use crate::placement::{NodeId, Placement};

/// How it is rebalanced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RebalanceSettings {
    /// How often changes are looked for.
    pub every: Duration,
    /// For how long loads are thought to stay as they were measured.
    pub horizon: Duration,
    /// Changes at once. More of them balance sooner, and load more beside what is computed.
    pub changes_max: usize,
    /// How many times its cost a change must save: what is predicted is not what comes.
    pub margin: f64,
}

impl RebalanceSettings {
    /// Looks so often, and reckons with twenty times as long.
    pub fn every(every: Duration) -> Self {
        Self { every, horizon: every * 20, changes_max: 8, margin: 2.0 }
    }
}

/// Loads of weights where none was measured, in bytes per second.
const LOAD_BYTES_PER_S: f64 = 100e6;
/// A pause of the data plane where none was measured.
const PAUSE: Duration = Duration::from_millis(1);
/// A replica goes when it saves less than this part of what it would cost to load it again.
const COLD_PART: f64 = 0.25;

/// Sums of a look at what is published.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reckoning {
    /// The changes, in words.
    pub changes: Vec<String>,
    /// Seconds of computing at the peak that are saved within the horizon; below 0, they are lost.
    pub saves_s: f64,
    /// Seconds that it costs.
    pub costs_s: f64,
    /// Bytes that are loaded.
    pub bytes: u64,
}

/// What came of the last look.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Look {
    /// What was done.
    pub taken: Vec<Reckoning>,
    /// The best that was left.
    pub left: Option<Reckoning>,
    /// Why nothing was done, or nothing more, in words.
    pub why: String,
}

/// What a look is about.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The layout.
    pub policy: Policy,
    /// What may not be broken.
    pub constraints: &'a Constraints,
    /// What is needed.
    pub demand: &'a Demand,
    /// What there is.
    pub cluster: &'a Cluster,
    /// What was measured.
    pub loads: &'a Loads,
    /// What sits, [`Publisher::previous`](super::publisher::Publisher::previous).
    pub previous: &'a Placement,
    /// Nothing is loaded, waited for or about to go.
    pub is_settled: bool,
}

/// When and what is rebalanced.
#[derive(Debug)]
pub struct Rebalancer {
    settings: RebalanceSettings,
    next: Instant,
    /// Loads under way: bytes, and since when.
    loading: BTreeMap<NodeId, (u64, Instant)>,
    /// Bytes per second of each node's loads.
    speeds: BTreeMap<NodeId, f64>,
    pause: Duration,
    last: Look,
    /// Changes made since the beginning.
    changes: u64,
}

impl Rebalancer {
    /// The first look comes after a period.
    pub fn new(settings: RebalanceSettings, now: Instant) -> Self {
        let next = now + settings.every;
        let why = "nothing has been measured yet".to_owned();
        let last = Look { why, ..Look::default() };
        Self {
            settings,
            next,
            loading: BTreeMap::new(),
            speeds: BTreeMap::new(),
            pause: PAUSE,
            last,
            changes: 0,
        }
    }

    /// A node has been told to load so much; nothing, if it has been told otherwise.
    pub fn handle_ordered(&mut self, node: NodeId, bytes: u64, now: Instant) {
        match bytes {
            0 => self.loading.remove(&node),
            _ => self.loading.insert(node, (bytes, now)),
        };
    }

    /// A node holds what it was told to.
    pub fn handle_held(&mut self, node: NodeId, now: Instant) {
        let Some((bytes, since)) = self.loading.remove(&node) else { return };
        let speed = bytes as f64 / now.saturating_duration_since(since).as_secs_f64().max(1e-6);
        let known = self.speeds.entry(node).or_insert(speed);
        *known = (*known + speed) / 2.0;
    }

    /// A node has gone.
    pub fn handle_gone(&mut self, node: NodeId) {
        self.loading.remove(&node);
        self.speeds.remove(&node);
    }

    /// The data plane took so long to change to another placement.
    pub fn handle_pause(&mut self, took: Duration) {
        self.pause = (self.pause + took) / 2;
    }

    /// When [`Rebalancer::handle_look`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time: another placement, if it pays.
    pub fn handle_look(&mut self, facts: Facts<'_>, now: Instant) -> Option<Placement> {
        if now < self.next {
            return None;
        }
        self.next = now + self.settings.every;
        if !facts.is_settled {
            self.last = Look { why: "another change is under way".into(), ..Look::default() };
            return None;
        }
        let statistics = facts.loads.statistics(now);
        if statistics.rows.is_empty() {
            self.last = Look { why: "too few rows since it was last measured".into(), ..Look::default() };
            return None;
        }
        if facts.policy == Policy::Reference {
            self.last =
                Look { why: "the policy `reference` says where experts sit".into(), ..Look::default() };
            return None;
        }
        let request = Request {
            demand: facts.demand,
            cluster: facts.cluster,
            statistics: &statistics,
            constraints: facts.constraints,
            previous: Some(facts.previous),
        };
        let mut pays =
            |proposal: &Proposal| self.pays(proposal, &self.reckon(proposal, &facts, &statistics, now));
        let Improved { placement, taken, left } =
            improve(facts.policy, &request, self.settings.changes_max, &mut pays);
        let reckon = |proposal: &Proposal| self.reckon(proposal, &facts, &statistics, now);
        let (taken, left): (Vec<_>, _) = (taken.iter().map(reckon).collect(), left.as_ref().map(reckon));
        let why = match (&left, taken.is_empty()) {
            (Some(_), _) => format!("it must save {} times what it costs", self.settings.margin),
            (None, true) => "no change lowers the peak of a layer".to_owned(),
            (None, false) => "nothing more is to be gained".to_owned(),
        };
        self.changes += taken.iter().map(|taken| taken.changes.len() as u64).sum::<u64>();
        self.last = Look { taken, left, why };
        placement
    }

    /// The last look.
    pub fn last(&self) -> &Look {
        &self.last
    }

    /// Changes made since the beginning.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Bytes per second of a node's loads; of the others', where it has loaded nothing yet.
    fn speed(&self, node: NodeId) -> f64 {
        let slowest = || self.speeds.values().copied().reduce(f64::min);
        self.speeds.get(&node).copied().or_else(slowest).unwrap_or(LOAD_BYTES_PER_S)
    }

    fn reckon(
        &self,
        proposal: &Proposal,
        facts: &Facts<'_>,
        statistics: &Statistics,
        now: Instant,
    ) -> Reckoning {
        let saved = proposal.peaks.iter().map(|(layer, (before, after))| {
            let all: u64 = statistics.expected(*layer, &facts.demand.layers[layer]).iter().sum();
            let part = (*before as f64 - *after as f64) / all.max(1) as f64;
            part * facts.loads.rows_per_s(*layer, now) * facts.loads.row_s(*layer)
        });
        let saves_s = saved.sum::<f64>() * self.settings.horizon.as_secs_f64();
        let loading =
            proposal.loads.iter().map(|(node, bytes)| *bytes as f64 / self.speed(*node)).sum::<f64>();
        Reckoning {
            changes: proposal.changes.iter().map(ToString::to_string).collect(),
            saves_s,
            costs_s: loading + 2.0 * self.pause.as_secs_f64(),
            bytes: proposal.loads.values().sum(),
        }
    }

    /// A replica that goes pays by the room that it leaves; it would have to be loaded again, were it missed.
    fn pays(&self, proposal: &Proposal, reckoning: &Reckoning) -> bool {
        if reckoning.bytes == 0 {
            return -reckoning.saves_s < COLD_PART * self.reload_s(proposal);
        }
        reckoning.saves_s > self.settings.margin * reckoning.costs_s
    }

    fn reload_s(&self, proposal: &Proposal) -> f64 {
        let seats = proposal.changes.iter().flat_map(|change| &change.from);
        let slowest = seats.map(|seat| self.speed(seat.node)).reduce(f64::min);
        proposal.freed as f64 / slowest.unwrap_or(LOAD_BYTES_PER_S) + 2.0 * self.pause.as_secs_f64()
    }
}
