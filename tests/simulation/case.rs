//! What a seed is made of: a model, a cluster, who asks for what, and what goes wrong when.
//!
//! Pure. All of it is drawn before anything happens.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use coordinator::control::cluster::{Cluster, Demand, LayerDemand, NodeOffer, Statistics};
use coordinator::control::drain::Manner;
use coordinator::control::policy::{Constraints, Policy, Request, place};
use coordinator::control::rebalance::RebalanceSettings;
use coordinator::data::flow::Forwarding;
use coordinator::data::forwarding::Choice;
use coordinator::data::request::OnMissing;
use coordinator::placement::NodeId;

use crate::clock::MS;
use crate::kills::{Ambush, Amid};
use crate::model::{Layer, Model};
use crate::operators::Wish;
use crate::random::Random;

/// Bytes of a shard of an expert.
const SHARD_BYTES: u64 = 100;

/// What somebody asks for.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    pub(crate) at: u64,
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens_max: u32,
    pub(crate) priority: i64,
    pub(crate) on_missing: OnMissing,
    /// It is given so long; by default longer than a run lasts.
    pub(crate) within: Option<u64>,
    /// It is cancelled after so long.
    pub(crate) cancelled_after: Option<u64>,
    /// A row of it, by position and stage, that fells every actor.
    pub(crate) poison: Option<(u32, usize)>,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// A process dies, and another of the same name begins after so long.
    KillNode {
        node: usize,
        back_after: u64,
    },
    KillCoordinator {
        coordinator: usize,
        back_after: u64,
    },
    /// A process stands still for so long.
    FreezeNode {
        node: usize,
        lasts: u64,
    },
    FreezeCoordinator {
        coordinator: usize,
        lasts: u64,
    },
    /// A node wants to go, and is back after so long.
    Leave {
        node: usize,
        back_after: u64,
    },
    /// A link breaks: all of it, or its data lane.
    Cut {
        node: usize,
        coordinator: usize,
        data_alone: bool,
    },
    /// Nothing goes through, one way or both.
    Wall {
        node: usize,
        coordinator: usize,
        ways: [bool; 2],
        lasts: u64,
    },
    Slow {
        node: usize,
        coordinator: usize,
        slowness: u64,
        lasts: u64,
    },
    /// Devices of a node compute so much slower.
    Tire {
        node: usize,
        slowness: u64,
        lasts: u64,
    },
    /// An actor falls so many times in a row.
    Strike {
        node: usize,
        which: u64,
        times: u32,
    },
    /// Experts are moved about.
    Shuffle {
        coordinator: usize,
    },
    /// Rows go on differently.
    Forward(Forwarding),
    /// Another coordinator begins, and takes over.
    Rival,
    /// An operator wants something of a node, which may be none that there is, and of some drains the contrary later.
    Ask {
        coordinator: usize,
        node: usize,
        wish: Wish,
        undone_after: Option<u64>,
    },
    /// Nothing can be stored for so long.
    FillDisk {
        coordinator: usize,
        lasts: u64,
    },
    /// Somebody is killed when he is amid something.
    Ambush(Ambush),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) model: Rc<Model>,
    pub(crate) demand: Demand,
    /// Memory of each device of each node.
    pub(crate) nodes: Vec<Vec<u64>>,
    /// When each node begins.
    pub(crate) begins: Vec<u64>,
    pub(crate) coordinators: usize,
    pub(crate) policy: Policy,
    pub(crate) constraints: Constraints,
    pub(crate) rebalance: Option<RebalanceSettings>,
    pub(crate) window_rows: u64,
    pub(crate) rows_max: u32,
    pub(crate) sequences_max: u32,
    pub(crate) queue_max: u32,
    pub(crate) pages: u32,
    pub(crate) chunk_rows_max: u32,
    pub(crate) prefix_cache: bool,
    pub(crate) forwarding: Choice,
    pub(crate) shared_cores: bool,
    pub(crate) dispatch_time_max: Duration,
    pub(crate) row_time_max: Duration,
    /// Whether a row's time is so short that it may pass.
    pub(crate) is_short: bool,
    /// Of 1000 links, loads: how many are slow, or fail.
    pub(crate) slow_links: u64,
    pub(crate) slow_loads: u64,
    pub(crate) bad_loads: u64,
    pub(crate) fetches_weights: bool,
    /// How long nodes wait to be let go.
    pub(crate) leave_max: u64,
    pub(crate) asks: Vec<Asking>,
    pub(crate) faults: Vec<(u64, Fault)>,
    pub(crate) faults_end: u64,
}

impl Case {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let random = &mut random;
        let model = Model::draw(random);
        let demand = demand(&model);
        let nodes_count = random.within(2, 5) as usize;
        let policy = if random.chance(700) { Policy::Auto } else { Policy::Replicate };
        let replicas_min = if random.chance(600) { 2 } else { 1 };
        let nodes = devices(&demand, nodes_count, replicas_min, random);
        // Shards of a replica take devices of their own, and replicas nodes of their own: where those are too few, one must do.
        let constraints = |replicas_min| Constraints { replicas_min, ..Constraints::default() };
        let can_be = places(policy, &demand, &nodes, &constraints(replicas_min), |_| false);
        let constraints = constraints(if can_be { replicas_min } else { 1 });
        let mut begin = || {
            let longest = if random.chance(150) { 3_000 } else { 50 };
            random.below(longest) * MS
        };
        let begins: Vec<u64> = (0..nodes_count).map(|_| begin()).collect();
        let coordinators = if random.chance(80) { 2 } else { 1 };
        let faults_end = random.within(2_500, 6_000) * MS;
        let sequences_max = random.within(2, 8) as u32;
        let chunk_rows_max = random.within(2, 24) as u32;
        let asks = asks(&model, faults_end, random);
        let longest = asks.iter().map(|ask| ask.prompt.len() as u32 + ask.tokens_max).max().unwrap_or(1);
        let is_short = random.chance(80);
        let faults = faults(nodes_count, coordinators, faults_end, random);
        Self {
            demand,
            nodes,
            begins,
            coordinators,
            policy,
            constraints,
            rebalance: random.chance(400).then(|| RebalanceSettings::every(Duration::from_millis(700))),
            window_rows: random.within(2, 40),
            rows_max: chunk_rows_max + sequences_max + random.below(40) as u32,
            sequences_max,
            queue_max: random.within(4, 20) as u32,
            // Sometimes just enough for the longest alone.
            pages: longest.div_ceil(64) + random.pick(&[0, 0, 1, 2, 8]),
            chunk_rows_max,
            prefix_cache: random.chance(700),
            forwarding: match random.below(10) {
                0..=5 => Choice::Always(Forwarding::Partial),
                6 | 7 => Choice::Always(Forwarding::Whole),
                _ => Choice::Auto,
            },
            shared_cores: random.chance(150),
            dispatch_time_max: random.pick(&[200, 1_000, 5_000, 30_000].map(Duration::from_millis)),
            row_time_max: if is_short {
                Duration::from_millis(random.within(500, 3_000))
            } else {
                Duration::from_secs(600)
            },
            is_short,
            slow_links: random.pick(&[0, 0, 100]),
            slow_loads: random.pick(&[0, 50, 500]),
            bad_loads: random.pick(&[0, 0, 0, 60]),
            fetches_weights: random.chance(400),
            leave_max: random.pick(&[300, 2_000, 20_000]) * MS,
            asks,
            faults,
            faults_end,
            model: Rc::new(model),
        }
    }
}

impl Case {
    /// Whether everything has its place without these nodes, where all others are there.
    pub(crate) fn places_without(&self, is_drained: impl Fn(usize) -> bool) -> bool {
        places(self.policy, &self.demand, &self.nodes, &self.constraints, is_drained)
    }
}

fn demand(model: &Model) -> Demand {
    let layers = model.layers.iter().enumerate().filter_map(|(layer, of)| match *of {
        Layer::Dense => None,
        Layer::Routed { experts, top_k } => {
            let (experts, top_k) = (experts as u32, top_k as u32);
            Some((
                layer as u32,
                LayerDemand { experts, top_k, shard_bytes: SHARD_BYTES, is_dense: experts == 1 },
            ))
        }
    });
    Demand { layers: layers.collect::<BTreeMap<_, _>>(), shards: model.shards as u8 }
}

/// Enough for all, with more or less to spare.
fn devices(demand: &Demand, nodes: usize, replicas_min: u8, random: &mut Random) -> Vec<Vec<u64>> {
    let parts = demand.experts() * u64::from(demand.shards) * u64::from(replicas_min);
    let counts: Vec<u64> = (0..nodes).map(|_| random.within(1, 3)).collect();
    // Where a replica may not share a node with another, the smallest must hold its part too.
    let least = counts.iter().min().copied().unwrap_or(1) * nodes as u64;
    let each = (parts * random.within(110, 300) / 100).div_ceil(least) + 2;
    counts.into_iter().map(|count| vec![each * SHARD_BYTES; count as usize]).collect()
}

/// Whether everything has its place where all nodes are there, and these are drained.
fn places(
    policy: Policy,
    demand: &Demand,
    nodes: &[Vec<u64>],
    constraints: &Constraints,
    is_drained: impl Fn(usize) -> bool,
) -> bool {
    let offer = |(node, devices): (usize, &Vec<u64>)| NodeOffer {
        id: NodeId(node as u32),
        name: format!("n{node}"),
        devices: devices.clone(),
        labels: BTreeMap::new(),
        is_leaving: is_drained(node),
    };
    let cluster = Cluster::new(nodes.iter().enumerate().map(offer).collect());
    let statistics = Statistics::default();
    place(
        policy,
        &Request { demand, cluster: &cluster, statistics: &statistics, constraints, previous: None },
    )
    .is_ok()
}

fn asks(model: &Model, faults_end: u64, random: &mut Random) -> Vec<Asking> {
    let count = random.within(1, 12);
    let word = |random: &mut Random| random.within(1, 39) as u32;
    // Some begin alike, for longer than a page.
    let beginning: Vec<u32> = (0..random.within(60, 140)).map(|_| word(random)).collect();
    let is_poisoned = random.chance(150);
    (0..count)
        .map(|_| {
            let mut prompt = if random.chance(150) { beginning.clone() } else { Vec::new() };
            // Some are about to need another page.
            let own = if random.chance(150) { random.within(50, 66) } else { random.within(1, 20) };
            prompt.extend((0..own).map(|_| word(random)));
            let stages = model.stages.len() as u64 - 1;
            let poison = (is_poisoned && random.chance(200))
                .then(|| (random.below(prompt.len() as u64) as u32, random.below(stages) as usize));
            Asking {
                at: random.below(faults_end),
                prompt,
                tokens_max: random.within(1, 14) as u32,
                priority: random.below(7) as i64 - 3,
                on_missing: if random.chance(250) { OnMissing::Drop } else { OnMissing::Exact },
                within: random.chance(80).then(|| random.within(200, 3_000) * MS),
                cancelled_after: random.chance(100).then(|| random.below(1_500) * MS),
                poison,
            }
        })
        .collect()
}

fn faults(nodes: usize, coordinators: usize, end: u64, random: &mut Random) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    if coordinators > 1 {
        faults.push((random.within(500, end / MS) * MS, Fault::Rival));
    }
    for _ in 0..random.below(9) {
        let mut at = random.below(end);
        let first = fault(nodes, coordinators, at, end, random);
        faults.push((at, first));
        match first {
            // Whoever was killed is killed again as soon as he is back.
            Fault::KillNode { back_after, .. } | Fault::KillCoordinator { back_after, .. }
                if random.chance(150) =>
            {
                let again = at + back_after + random.below(500 * MS);
                faults.push((again.min(end - 1), first));
            }
            // Whoever gives away what he holds is killed before he is done, or somebody who takes it.
            Fault::Ask { wish: Wish::Drain(_), .. } if random.chance(400) => {
                faults.push((at, ambush(random.pick(&Amid::OF_DRAINS), at, random)));
            }
            Fault::Shuffle { .. } if random.chance(300) => {
                faults.push((at, ambush((Amid::Rebalance, random.chance(500)), at, random)));
            }
            Fault::Leave { .. } if random.chance(250) => {
                faults.push((at, ambush((Amid::Leaving, true), at, random)));
            }
            _ => {}
        }
        // Troubles come in company: while one is dealt with another one comes.
        while random.chance(350) {
            let pause = random.pick(&[2, 30, 300]) * MS;
            at = (at + random.below(pause)).min(end - 1);
            faults.push((at, fault(nodes, coordinators, at, end, random)));
        }
    }
    faults
}

fn fault(nodes: usize, coordinators: usize, at: u64, end: u64, random: &mut Random) -> Fault {
    let node = random.below(nodes as u64) as usize;
    let longest = random.pick(&[20, 400, 4_000]) * MS;
    let lasts = (MS + random.below(longest)).min(end - at);
    let coordinator = 0;
    match random.below(42) {
        0..=6 => Fault::KillNode { node, back_after: lasts },
        7 | 8 => Fault::KillCoordinator { coordinator, back_after: lasts },
        9..=11 => Fault::FreezeNode { node, lasts },
        12 => Fault::FreezeCoordinator { coordinator, lasts },
        13 | 14 => Fault::Leave { node, back_after: lasts.max(300 * MS) },
        15..=17 => Fault::Cut { node, coordinator, data_alone: random.chance(300) },
        18 | 19 => {
            let ways = random.pick(&[[true, true], [true, false], [false, true]]);
            Fault::Wall { node, coordinator, ways, lasts }
        }
        20 => Fault::Slow { node, coordinator, slowness: random.within(5, 300), lasts },
        21..=23 => Fault::Tire { node, slowness: random.pick(&[20, 500, 10_000]), lasts },
        24 | 25 => Fault::Strike { node, which: random.next(), times: random.pick(&[1, 1, 2, 6]) },
        26 | 27 => Fault::Shuffle { coordinator },
        28 => Fault::Forward(random.pick(&[Forwarding::Partial, Forwarding::Whole])),
        29 => Fault::Shuffle { coordinator },
        30..=36 => ask(nodes, coordinators, lasts, random),
        37 => Fault::FillDisk { coordinator, lasts },
        _ => ambush(random.pick(&Amid::AMBUSHES), at, random),
    }
}

/// What an operator wants. Mostly of nodes that there are.
fn ask(nodes: usize, coordinators: usize, lasts: u64, random: &mut Random) -> Fault {
    let named = if random.chance(50) { nodes + 1 } else { nodes };
    let wish = match random.below(10) {
        0..=5 => Wish::Drain(Manner::Kindly),
        6 | 7 => Wish::Drain(Manner::ByForce),
        _ => Wish::Undrain,
    };
    Fault::Ask {
        coordinator: random.below(coordinators as u64) as usize,
        node: random.below(named as u64) as usize,
        wish,
        undone_after: random.chance(400).then_some(lasts),
    }
}

fn ambush((amid, is_node): (Amid, bool), at: u64, random: &mut Random) -> Fault {
    let (longest, pause) = (random.pick(&[1, 3, 40]) * MS, random.pick(&[20, 400, 4_000]) * MS);
    let (after, back_after) = (random.below(longest), MS + random.below(pause));
    Fault::Ambush(Ambush { amid, is_node, after, back_after, until: at + 3_000 * MS })
}
