//! Whose scores are moved when, in virtual time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::bias::Bias;
use phalanx_coordinator::control::bias::{Balancer, BiasSettings, Imbalance, ROWS_MIN, STEPS};
use phalanx_coordinator::control::cluster::Demand;
use phalanx_coordinator::control::loads::{Loads, LoadsSettings};
use phalanx_coordinator::placement::NodeId;
use proptest::prelude::*;
use transport::wire::cluster::{ActorId, Load};

use super::make::demand;

const EVERY: Duration = Duration::from_secs(10);

struct World {
    demand: Demand,
    loads: Loads,
    balancer: Balancer,
    now: Instant,
    /// Of each expert of each layer, from the first on.
    rows: BTreeMap<u32, Vec<u64>>,
}

/// Steps of a sixteenth.
fn world(layers: u32, experts: u32) -> World {
    let (demand, now) = (demand(0..layers, experts, 1), Instant::now());
    let mut loads = Loads::new(LoadsSettings::default(), &demand);
    let rows: BTreeMap<u32, Vec<u64>> = (0..layers).map(|layer| (layer, vec![0; experts as usize])).collect();
    let none: Vec<(u32, Vec<u64>)> = rows.clone().into_iter().collect();
    none.iter().for_each(|(layer, rows)| report(&mut loads, *layer, rows, now));
    let balancer = Balancer::new(BiasSettings { max: 1.0, every: EVERY }, &demand, now);
    World { demand, loads, balancer, now, rows }
}

fn report(loads: &mut Loads, layer: u32, rows: &[u64], now: Instant) {
    let load = |(expert, rows): (u32, &u64)| {
        let actor = ActorId { layer, expert, replica: 0, shard: 0 };
        Load { actor, rows: *rows, batches: *rows, busy_us: *rows, service_us: *rows, queued: 0 }
    };
    loads.handle_loads(NodeId(0), &(0..).zip(rows).map(load).collect::<Vec<_>>(), now);
}

impl World {
    /// A period with so many rows.
    fn pass(&mut self, layer: u32, rows: &[u64]) {
        let all = self.rows.get_mut(&layer).unwrap();
        all.iter_mut().zip(rows).for_each(|(all, rows)| *all += rows);
        report(&mut self.loads, layer, all, self.now);
    }

    /// The bias of each layer in steps, if it is another one.
    fn look(&mut self) -> Option<Vec<Vec<i32>>> {
        self.now += EVERY;
        let bias = self.balancer.handle_look(&self.loads, self.now)?;
        assert_eq!(bias, self.balancer.bias());
        Some(steps(&bias))
    }
}

fn steps(bias: &Bias) -> Vec<Vec<i32>> {
    let of = |value: &f32| {
        let steps = value * STEPS as f32;
        assert_eq!(steps.fract(), 0.0);
        steps as i32
    };
    bias.layers().map(|(_, values)| values.iter().map(of).collect()).collect()
}

/// For each that is overloaded one that has the fewest rows rises; who is near the average stays where he is.
#[test]
fn for_each_that_falls_another_one_rises() {
    let mut world = world(2, 5);
    world.pass(0, &[3_000, 1_050, 950, 0, 2_000]);
    world.pass(1, &[1_000, 1_000, 1_000, 1_000, 1_000]);
    // 1,400 on average: up to 1,652 is no overload.
    assert_eq!(world.look(), Some(vec![vec![-1, 0, 1, 1, -1], vec![0; 5]]));
    let imbalances: Vec<(u32, Imbalance)> = world.balancer.imbalances().collect();
    let first = Imbalance { before: 3_000.0 / 1_400.0, now: 3_000.0 / 1_400.0 };
    assert_eq!(imbalances, [(0, first), (1, Imbalance { before: 1.0, now: 1.0 })]);
    assert_eq!(world.balancer.sizes(), (1.0 / 16.0, 4.0 / 160.0));
    // One is overloaded, and of those with the fewest the last rises.
    world.pass(0, &[100, 100, 100, 100, 900]);
    assert_eq!(world.look(), Some(vec![vec![-1, 0, 1, 2, -2], vec![0; 5]]));
    world.pass(0, &[1_110, 990, 900, 1_000, 1_000]);
    assert_eq!(world.look(), None, "nobody is overloaded");
    let now = world.balancer.imbalances().next().unwrap().1;
    assert_eq!(now, Imbalance { before: 3_000.0 / 1_400.0, now: 1.11 });
}

/// Nothing is looked at before its time, nor where too few rows have come; those that came are not forgotten.
#[test]
fn few_rows_say_nothing_until_they_are_many() {
    let mut world = world(1, 4);
    world.pass(0, &[ROWS_MIN, 0, 0, ROWS_MIN]);
    assert_eq!(world.look(), None);
    world.pass(0, &[ROWS_MIN, 0, 0, ROWS_MIN - 1]);
    assert_eq!(world.look(), None, "a row is missing");
    world.pass(0, &[1, 0, 0, 0]);
    let early = world.now + EVERY / 2;
    assert_eq!(world.balancer.handle_look(&world.loads, early), None);
    assert_eq!(world.balancer.poll_timeout(), world.now + EVERY);
    assert_eq!(world.look(), Some(vec![vec![-1, 1, 1, -1]]));
    assert_eq!(world.look(), None, "what was looked at does not count again");
}

/// The bound holds, and whoever is at it makes room for nobody.
#[test]
fn nothing_goes_beyond_the_bound() {
    let mut world = world(1, 3);
    let mut last = Vec::new();
    for look in 1..=3 * STEPS {
        world.pass(0, &[10_000, 10, 20]);
        match world.look() {
            Some(steps) => last = steps[0].clone(),
            // The hot one is at its bound, and nobody else is overloaded.
            None => assert!(look > STEPS, "{look}"),
        }
    }
    assert_eq!(last, [-STEPS, STEPS, 0]);
    assert_eq!(world.balancer.sizes().0, 1.0);
}

/// A later life goes on from a bias of the same steps, and from no other.
#[test]
fn a_bias_of_an_earlier_life_is_taken_up() {
    let mut before = world(2, 5);
    before.pass(0, &[3_000, 1_050, 950, 0, 2_000]);
    before.look().unwrap();
    let bias = before.balancer.bias();
    let mut after = world(2, 5);
    assert!(after.balancer.take_up(&bias));
    assert_eq!(after.balancer.bias(), bias);
    after.pass(0, &[100, 100, 100, 100, 900]);
    assert_eq!(after.look(), Some(vec![vec![-1, 0, 1, 2, -2], vec![0; 5]]));
    for max in [0.5, 0.3, 3.0] {
        let settings = BiasSettings { max, every: EVERY };
        let mut other = Balancer::new(settings, &after.demand, after.now);
        // What is one step there is two of half the size.
        let is_whole = max == 0.5;
        assert_eq!(other.take_up(&bias), is_whole, "{max}");
        assert_eq!(other.bias() == bias, is_whole, "{max}");
    }
    let uneven = Bias::new([(0, vec![0.0625, 0.0, 0.0, 0.0, 0.0]), (1, vec![0.0; 5])].into()).unwrap();
    let short = Bias::new([(0, vec![0.0; 4]), (1, vec![0.0; 5])].into()).unwrap();
    let missing = Bias::new([(0, vec![0.0; 5])].into()).unwrap();
    for other in [uneven, short, missing] {
        assert!(!after.balancer.take_up(&other), "{other:?}");
    }
}

struct Random(u64);

impl Random {
    fn below_one(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// What makes the highest of some numbers be drawn as a softmax of them would.
    fn noise(&mut self) -> f64 {
        -(-(self.below_one() + 1e-300).ln()).ln()
    }
}

/// A router that likes some experts more than others: rows of each when so many choose, under a bias.
fn chosen(random: &mut Random, liking: &[f64], bias: &[f32], rows: usize, top_k: usize) -> Vec<u64> {
    let mut count = vec![0; liking.len()];
    for _ in 0..rows {
        let scores = liking.iter().zip(bias).map(|(liking, bias)| liking + f64::from(*bias) + random.noise());
        let mut scores: Vec<(f64, usize)> = scores.zip(0..).collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores[..top_k].iter().for_each(|(_, expert)| count[*expert] += 1);
    }
    count
}

fn imbalance(rows: &[u64]) -> f64 {
    *rows.iter().max().unwrap() as f64 * rows.len() as f64 / rows.iter().sum::<u64>() as f64
}

/// Three experts of 32 have more than three times their part. It becomes less than one and a half of it and stays so, also where
/// half of the rows are of answers that began under the bias before; and the bias comes to rest.
#[test]
fn a_skewed_router_becomes_even() {
    for (seed, half) in [(1, false), (2, true)] {
        let (mut world, mut random) = (world(1, 32), Random(seed));
        world.balancer = Balancer::new(BiasSettings { max: 2.0, every: EVERY }, &world.demand, world.now);
        let liking: Vec<f64> = (0..32).map(|expert| if expert % 11 == 5 { 2.0 } else { 0.0 }).collect();
        let (mut before, mut bias) = (vec![0.0; 32], vec![0.0; 32]);
        let mut seen = Vec::new();
        for _ in 0..60 {
            let rows = chosen(&mut random, &liking, &bias, 2_000, 4);
            seen.push(imbalance(&rows));
            let late = chosen(&mut random, &liking, if half { &before } else { &bias }, 2_000, 4);
            let rows: Vec<u64> = rows.iter().zip(&late).map(|(now, late)| now + late).collect();
            world.pass(0, &rows);
            world.now += EVERY;
            before.clone_from(&bias);
            if let Some(new) = world.balancer.handle_look(&world.loads, world.now) {
                bias = new.of(0).unwrap().to_vec();
            }
        }
        let changes_late = {
            let last = world.balancer.bias();
            for _ in 0..10 {
                world.pass(0, &chosen(&mut random, &liking, &bias, 4_000, 4));
                world.look();
            }
            usize::from(world.balancer.bias() != last)
        };
        println!("{seen:.2?}");
        assert!(seen[0] > 3.0, "{seen:?}");
        assert!(seen[30..].iter().all(|now| *now < 1.5), "{seen:?}");
        assert!(changes_late <= 1, "it comes to rest");
    }
}

/// Chance is no overload: an even router is left alone, whatever the number of rows.
#[test]
fn an_even_router_is_left_alone() {
    for (rows, experts) in [(900, 32), (20_000, 32), (4_000, 128)] {
        let (mut world, mut random) = (world(1, experts), Random(5));
        let liking = vec![0.0; experts as usize];
        let mut moved = 0;
        for _ in 0..40 {
            world.pass(0, &chosen(&mut random, &liking, &vec![0.0; experts as usize], rows, 4));
            moved += usize::from(world.look().is_some());
        }
        assert!(moved <= 1, "{rows} rows, {experts} experts: moved {moved} times");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    /// Whatever comes: no bias beyond its bound, none of a layer's sum but zero, no expert by more than a step at once, nobody
    /// raised who has more than the average or lowered who has less, and nothing said where nothing moved.
    #[test]
    fn whatever_comes_the_rules_hold(
        periods in prop::collection::vec(prop::collection::vec(0..2_000_u64, 6), 1..80)
    ) {
        let mut world = world(1, 6);
        let (mut before, mut held) = (vec![0; 6], vec![0; 6]);
        for rows in periods {
            world.pass(0, &rows);
            held.iter_mut().zip(&rows).for_each(|(held, rows)| *held += rows);
            let sum: u64 = held.iter().sum();
            let Some(now) = world.look().map(|layers| layers[0].clone()) else {
                prop_assert_eq!(&steps(&world.balancer.bias())[0], &before);
                if sum >= 6 * ROWS_MIN {
                    held.fill(0);
                }
                continue;
            };
            prop_assert_ne!(&now, &before);
            prop_assert_eq!(now.iter().sum::<i32>(), 0);
            prop_assert!(now.iter().all(|steps| steps.abs() <= STEPS), "{:?}", now);
            for ((now, before), rows) in now.iter().zip(&before).zip(&held) {
                match now - before {
                    0 => {}
                    -1 => prop_assert!(rows * 60 > sum * 11, "{} of {} rows fall", rows, sum),
                    1 => prop_assert!(rows * 6 < sum, "{} of {} rows rise", rows, sum),
                    many => prop_assert!(false, "{} steps at once", many),
                }
            }
            before = now;
            held.fill(0);
        }
    }
}
