//! Has experts that are overloaded chosen a little less: `--balance bias`. It changes answers, so nobody does it who was not told to.
//!
//! Pure: every instant is passed in. Now and then the rows of each expert since the last look are compared with those of its layer
//! on average. Whoever has more than the average and what chance explains goes down by a step, and for each of them whoever
//! has the fewest goes up by one. Steps are whole numbers: so the sum of a layer's is zero at all times and nothing drifts, a bias
//! never leaves its bound, and where nobody is overloaded nothing moves.
//!
//! What is measured after a change is partly of answers that began before it and keep to what they began with. So steps are small
//! beside the bound, and one step too many is undone by whoever is overloaded then.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::bias::Bias;

use super::cluster::Demand;
use super::loads::Loads;

/// How far experts' scores may be moved, and how quickly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiasSettings {
    /// The largest bias, up and down, in [units](model::bias::unit). A larger one evens out more, and answers are further from
    /// the model's own.
    pub max: f32,
    /// From one look to the next. Each that changes something is another version: what was kept of prompts under the one before is
    /// not found under it.
    pub every: Duration,
}

impl BiasSettings {
    /// The largest bias where nobody says it: half a logit of an average expert.
    pub const MAX: f32 = 0.5;

    /// Up to so large a bias, with a look every ten seconds.
    pub fn up_to(max: f32) -> Self {
        Self { max, every: Duration::from_secs(10) }
    }
}

/// From nothing to the bound in so many steps.
pub const STEPS: i32 = 16;
/// A layer is looked at once its experts have had so many rows each on average.
pub const ROWS_MIN: u64 = 100;
/// This part above the average is no overload.
const BAND: f64 = 0.1;
/// Nor is what chance alone brings one expert in a thousand: rows come like drops of rain, with the root of their number as deviation.
const DEVIATIONS: f64 = 3.0;

/// A layer's experts.
#[derive(Debug)]
struct Layer {
    steps: Vec<i32>,
    /// Rows up to the last look that counted.
    seen: Vec<u64>,
    imbalance: Option<Imbalance>,
}

/// How uneven a layer's rows are: those of its most loaded expert by those of an average one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Imbalance {
    /// As it was measured first.
    pub before: f64,
    /// As it was measured last.
    pub now: f64,
}

/// When which expert's scores are moved.
#[derive(Debug)]
pub struct Balancer {
    settings: BiasSettings,
    layers: BTreeMap<u32, Layer>,
    next: Instant,
}

impl Balancer {
    /// The first look comes after a period.
    pub fn new(settings: BiasSettings, demand: &Demand, now: Instant) -> Self {
        let has_choice = demand.layers.iter().filter(|(_, of)| !of.is_dense && of.experts > of.top_k);
        let layer = |experts: u32| {
            let experts = experts as usize;
            Layer { steps: vec![0; experts], seen: vec![0; experts], imbalance: None }
        };
        let layers = has_choice.map(|(number, of)| (*number, layer(of.experts))).collect();
        Self { settings, layers, next: now + settings.every }
    }

    /// Goes on from a bias of an earlier life. False: it is not made of such steps, and nothing has changed.
    pub fn take_up(&mut self, bias: &Bias) -> bool {
        let Some(steps) = self.steps_of(bias) else { return false };
        for (layer, steps) in self.layers.values_mut().zip(steps) {
            layer.steps = steps;
        }
        true
    }

    /// The steps of a bias, layer by layer, if it is one that this could have made.
    fn steps_of(&self, bias: &Bias) -> Option<Vec<Vec<i32>>> {
        let of = |(number, layer): (&u32, &Layer)| {
            let values = bias.of(*number as usize).filter(|values| values.len() == layer.steps.len())?;
            let steps = values.iter().map(|value| {
                let steps = (value / self.settings.max * STEPS as f32).round() as i32;
                (steps.abs() <= STEPS && self.value(steps) == *value).then_some(steps)
            });
            steps.collect::<Option<Vec<i32>>>().filter(|steps| steps.iter().sum::<i32>() == 0)
        };
        self.layers.iter().map(of).collect()
    }

    fn value(&self, steps: i32) -> f32 {
        steps as f32 * (self.settings.max / STEPS as f32)
    }

    /// How far it may go.
    pub fn settings(&self) -> BiasSettings {
        self.settings
    }

    /// When [`Balancer::handle_look`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time: another bias, if any expert's is to be another.
    pub fn handle_look(&mut self, loads: &Loads, now: Instant) -> Option<Bias> {
        if now < self.next {
            return None;
        }
        self.next = now + self.settings.every;
        let mut is_moved = false;
        for (number, layer) in &mut self.layers {
            is_moved |= loads.rows(*number).is_some_and(|rows| layer.look(rows));
        }
        is_moved.then(|| self.bias())
    }

    /// As it stands.
    pub fn bias(&self) -> Bias {
        let values = |layer: &Layer| layer.steps.iter().map(|steps| self.value(*steps)).collect();
        let layers = self.layers.iter().map(|(number, layer)| (*number as usize, values(layer)));
        Bias::new(layers.collect()).expect("whole steps of a finite bound are finite")
    }

    /// How uneven each layer is that has been measured.
    pub fn imbalances(&self) -> impl Iterator<Item = (u32, Imbalance)> {
        self.layers.iter().filter_map(|(number, layer)| Some((*number, layer.imbalance?)))
    }

    /// The largest bias of any expert, and that of an average one; neither has a sign.
    pub fn sizes(&self) -> (f32, f32) {
        let steps = || self.layers.values().flat_map(|layer| &layer.steps).map(|steps| steps.abs());
        let mean = steps().sum::<i32>() as f32 / steps().count().max(1) as f32;
        let step = self.settings.max / STEPS as f32;
        (self.value(steps().max().unwrap_or(0)), mean * step)
    }
}

impl Layer {
    /// Compares what its experts have had since the last look that counted; true if any of them moves.
    fn look(&mut self, all: &[u64]) -> bool {
        let rows: Vec<u64> = all.iter().zip(&self.seen).map(|(all, seen)| all - seen).collect();
        let (sum, experts) = (rows.iter().sum::<u64>(), rows.len() as u64);
        if sum < ROWS_MIN * experts {
            return false;
        }
        self.seen.copy_from_slice(all);
        let mean = sum as f64 / experts as f64;
        let now = rows.iter().max().map_or(0.0, |most| *most as f64 / mean);
        self.imbalance.get_or_insert(Imbalance { before: now, now }).now = now;
        let limit = mean * (1.0 + BAND) + DEVIATIONS * mean.sqrt();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|expert| (Reverse(rows[*expert]), *expert));
        let steps = &self.steps;
        let may_fall = |expert: &usize| rows[*expert] as f64 > limit && steps[*expert] > -STEPS;
        let may_rise = |expert: &usize| (rows[*expert] as f64) < mean && steps[*expert] < STEPS;
        let falling = order.iter().copied().filter(may_fall);
        let rising = order.iter().copied().rev().filter(may_rise);
        let moves: Vec<(usize, usize)> = falling.zip(rising).collect();
        for (falls, rises) in &moves {
            self.steps[*falls] -= 1;
            self.steps[*rises] += 1;
        }
        !moves.is_empty()
    }
}
