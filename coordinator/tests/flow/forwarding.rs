//! `auto` in virtual clusters, from a cold start, against each mode alone.

use std::time::{Duration, Instant};

use phalanx_coordinator::data::flow::Forwarding;
use phalanx_coordinator::data::forwarding::{AutoForwarding, Passed};

use proptest::prelude::*;

use super::simulation::{Cluster, Service, Simulation, clusters};

/// A simulation that is told how to go on.
struct Steered {
    simulation: Simulation,
    auto: AutoForwarding,
    start: Instant,
    /// Time in each mode.
    spent_us: [u64; 2],
}

impl Steered {
    fn new(cluster: Cluster, requests: u32) -> Self {
        let (mut auto, start) = (AutoForwarding::new(cluster.shares_cores), Instant::now());
        auto.handle_running(requests, start);
        let simulation = Simulation::new(cluster, auto.forwarding(), requests, 7);
        Self { simulation, auto, start, spent_us: [0; 2] }
    }

    fn set_requests(&mut self, requests: u32) {
        self.simulation.set_requests(requests);
        self.auto.handle_running(requests, self.now());
        self.steer();
    }

    fn run_until(&mut self, until_us: u64) {
        while self.simulation.now_us < until_us {
            let before = self.simulation.now_us;
            let mode = usize::from(self.simulation.flow.forwarding() == Forwarding::Whole);
            self.simulation.step();
            self.spent_us[mode] += self.simulation.now_us - before;
            self.steer();
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_micros(self.simulation.now_us)
    }

    fn steer(&mut self) {
        let now = self.now();
        self.auto.handle_passed(passed(self.simulation.flow.rows_passed()), now);
        self.auto.handle_timeout(now);
        self.simulation.flow.set_forwarding(self.auto.forwarding());
    }
}

fn passed(tokens: u64) -> Passed {
    Passed { tokens, prompt_rows: 0 }
}

fn alone(cluster: Cluster, forwarding: Forwarding, requests: u32, until_us: u64) -> u64 {
    let mut simulation = Simulation::new(cluster, forwarding, requests, 7);
    simulation.run_until(until_us);
    simulation.tokens
}

fn judged() -> Vec<(&'static str, Cluster, u64)> {
    let all = clusters();
    let short = Cluster {
        layers: 8,
        experts: 64,
        top_k: 4,
        device: Service::of(0.04, 0.002),
        wire_ms: 0.03,
        trunk: Service::of(0.15, 0.002),
        shares_cores: false,
    };
    vec![
        (all[0].0, all[0].1, 80_000_000),
        (all[2].0, all[2].1, 200_000_000),
        ("8 layers, top 4 of 64, the trunk takes 0.15 ms + 2 us/row", short, 4_000_000),
        (all[6].0, all[6].1, 10_000_000),
    ]
}

/// In tokens made from the first moment on, trials and all.
#[test]
fn auto_is_within_three_percent_of_the_better_mode() {
    for (name, cluster, until_us) in judged() {
        println!("{name}");
        for requests in [1, 8, 32, 64] {
            let partial = alone(cluster, Forwarding::Partial, requests, until_us);
            let whole = alone(cluster, Forwarding::Whole, requests, until_us);
            let mut steered = Steered::new(cluster, requests);
            steered.run_until(until_us);
            let auto = steered.simulation.tokens as f64 / partial.max(whole) as f64;
            let seconds = until_us as f64 / 1e6;
            println!(
                "  {requests:>2} requests: partial {:>7.1}, whole {:>7.1} tokens/s; auto {auto:.3} of the better, {} trials, \
                 {:>3.0}% of the time whole",
                partial as f64 / seconds,
                whole as f64 / seconds,
                steered.auto.trials(),
                100.0 * steered.spent_us[1] as f64 / until_us as f64
            );
            assert!(auto >= 0.97, "{name}, {requests} requests: auto makes {auto:.3} of the better");
        }
    }
}

/// A short burst is not spoilt by trying: sixty-four tokens of each of 64 requests, from a cold start.
#[test]
fn a_short_burst_is_not_tried_upon() {
    let (_, cluster) = clusters()[0];
    let mut steered = Steered::new(cluster, 64);
    steered.run_until(5_000_000);
    assert_eq!((steered.auto.trials(), steered.auto.forwarding()), (0, Forwarding::Partial));
}

/// What was learnt of one load is not forgotten under another; a new one is tried out.
#[test]
fn a_load_that_comes_again_is_known() {
    let (_, cluster) = clusters()[2];
    let mut steered = Steered::new(cluster, 64);
    steered.run_until(60_000_000);
    assert_eq!((steered.auto.forwarding(), steered.auto.trials()), (Forwarding::Partial, 1));
    steered.set_requests(8);
    steered.run_until(110_000_000);
    assert_eq!((steered.auto.forwarding(), steered.auto.trials()), (Forwarding::Whole, 2));
    steered.set_requests(64);
    assert_eq!(steered.auto.forwarding(), Forwarding::Partial, "at once");
    steered.run_until(122_000_000);
    assert_eq!(steered.auto.trials(), 2);
}

/// On shared cores there is nothing to try: partial batches could only be smaller.
#[test]
fn shared_cores_are_whole_at_once() {
    let mut auto = AutoForwarding::new(true);
    assert_eq!(auto.forwarding(), Forwarding::Whole);
    let start = Instant::now();
    auto.handle_running(32, start);
    for i in 1..10_000 {
        auto.handle_passed(passed(i), start + Duration::from_millis(i));
    }
    assert_eq!((auto.forwarding(), auto.trials(), auto.is_trying()), (Forwarding::Whole, 0, false));
}

/// An auto in a world where tokens pass one by one, each after the time that its mode takes for one.
struct World {
    auto: AutoForwarding,
    now: Instant,
    passed: Passed,
    /// Time in whole steps.
    whole: Duration,
}

impl World {
    fn new(running: u32) -> Self {
        let (mut auto, now) = (AutoForwarding::new(false), Instant::now());
        auto.handle_running(running, now);
        Self { auto, now, passed: Passed::default(), whole: Duration::ZERO }
    }

    /// Lets tokens pass, each after so many microseconds by partial batches, whole steps.
    fn pass(&mut self, tokens: u64, partial_us: u64, whole_us: u64) {
        for _ in 0..tokens {
            let is_whole = self.auto.forwarding() == Forwarding::Whole;
            let took = Duration::from_micros(if is_whole { whole_us } else { partial_us });
            self.now += took;
            self.whole += if is_whole { took } else { Duration::ZERO };
            self.passed.tokens += 1;
            self.auto.handle_passed(self.passed, self.now);
        }
    }

    /// The same, until a trial has ended.
    fn pass_a_trial(&mut self, partial_us: u64, whole_us: u64) {
        let trials = self.auto.trials();
        while self.auto.trials() == trials {
            self.pass(1, partial_us, whole_us);
        }
    }
}

/// What is much better is believed after one comparison, what is little better after three, and then kept.
#[test]
fn the_better_mode_is_found_and_kept() {
    for (whole_us, windows, found) in [
        (7_000, 1, Forwarding::Whole),
        (9_700, 3, Forwarding::Whole),
        (10_000, 3, Forwarding::Partial),
        (10_400, 3, Forwarding::Partial),
    ] {
        let mut world = World::new(8);
        world.pass_a_trial(10_000, whole_us);
        let window = Duration::from_micros(whole_us) * 8 * (8 + 3);
        assert_eq!(world.auto.forwarding(), found, "{whole_us} us");
        assert_eq!(
            world.whole,
            windows * window,
            "{whole_us} us: windows of eight tokens, settled for three"
        );
        // Not before a hundred times what the other mode was tried.
        let rest = 100 * world.whole;
        let ended = world.now;
        while !world.auto.is_trying() {
            world.pass(1, 10_000, whole_us);
        }
        assert!(world.now - ended >= rest && world.now - ended < rest + Duration::from_millis(20));
        assert_eq!(world.auto.forwarding(), found, "the mode in use is measured first");
    }
}

/// A machine that becomes slower all the time, by a quarter within a trial, speaks for neither mode.
#[test]
fn a_drift_is_not_taken_for_a_difference() {
    for (better, found) in
        [(1.0, Forwarding::Partial), (1.05, Forwarding::Whole), (0.95, Forwarding::Partial)]
    {
        let mut world = World::new(8);
        let mut us = 10_000.0;
        while world.auto.trials() == 0 {
            world.pass(1, us as u64, (us / better) as u64);
            us *= 1.0005;
        }
        assert_eq!(world.auto.forwarding(), found, "whole steps are {better} times as fast");
    }
}

/// Prompts pass by the hundred: rows of one would decide every trial, so they decide none.
#[test]
fn windows_with_prompts_are_measured_again() {
    let mut world = World::new(8);
    while !world.auto.is_trying() {
        world.pass(1, 10_000, 10_000);
    }
    // In the window of partial batches comes a prompt that costs a second.
    world.pass(3, 10_000, 10_000);
    world.passed.prompt_rows += 500;
    world.pass(1, 1_000_000, 1_000_000);
    world.pass_a_trial(10_000, 10_000);
    assert_eq!(world.auto.forwarding(), Forwarding::Partial);
    // Where they come all the time nothing is learnt, and nothing spoilt: the other mode is hardly tried.
    let mut world = World::new(8);
    for _ in 0..10_000 {
        world.passed.prompt_rows += 1;
        world.pass(1, 10_000, 10_000);
    }
    assert_eq!((world.auto.trials(), world.whole), (0, Duration::ZERO));
}

/// A load that changes ends a trial without a verdict, and what the trial has cost is rested for all the same: else loads that
/// come and go would have it begin again and again.
#[test]
fn a_trial_that_is_cut_short_is_rested_for() {
    let mut world = World::new(8);
    while world.auto.forwarding() == Forwarding::Partial {
        world.pass(1, 10_000, 20_000);
    }
    world.pass(20, 10_000, 11_000);
    let spent = world.whole;
    world.auto.handle_running(40, world.now);
    assert_eq!((world.auto.forwarding(), world.auto.trials()), (Forwarding::Partial, 0));
    world.auto.handle_running(8, world.now);
    let ended = world.now;
    while !world.auto.is_trying() {
        world.pass(1, 10_000, 20_000);
    }
    assert!(spent > Duration::ZERO && world.now - ended >= 100 * spent, "{spent:?}");
}

/// What is no longer so is found out at the next trial, where it is clear.
#[test]
fn what_changes_is_noticed() {
    let mut world = World::new(8);
    world.pass_a_trial(10_000, 7_000);
    assert_eq!(world.auto.forwarding(), Forwarding::Whole);
    world.pass_a_trial(10_000, 20_000);
    assert_eq!(world.auto.forwarding(), Forwarding::Partial);
}

/// While nothing passes, a trial ends by the clock: an expert that answers nobody stops every step, but not every row.
#[test]
fn a_trial_under_which_nothing_passes_ends() {
    let mut world = World::new(4);
    while world.auto.forwarding() == Forwarding::Partial {
        world.pass(1, 10_000, 10_000);
    }
    assert_eq!(
        world.passed.tokens,
        64 * 4 + 8 * 4,
        "64 rounds before anything is tried, and a window of 32 tokens"
    );
    let timeout = world.auto.poll_timeout().expect("a trial has an end");
    assert_eq!((timeout - world.now).as_millis(), 100, "two and a half rounds");
    world.auto.handle_timeout(timeout - Duration::from_millis(1));
    assert_eq!(world.auto.forwarding(), Forwarding::Whole);
    world.auto.handle_timeout(timeout);
    assert_eq!((world.auto.forwarding(), world.auto.poll_timeout()), (Forwarding::Partial, None));
}

proptest! {
    /// Whatever the modes are worth, however it drifts, wherever loads go: of the time since the first trial began, hardly
    /// more than a hundredth is spent in a mode that is known to be worse.
    #[test]
    fn trials_cost_little(
        seed in 0_u64..1 << 20,
        whole_us in 2_000_u64..100_000,
        changes in 0_u64..4,
    ) {
        let mut random = seed * 2 + 1;
        let mut world = World::new(8);
        world.pass_a_trial(10_000, whole_us);
        let began = world.now;
        let before = world.whole;
        for _ in 0..40_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if changes > 0 && (random >> 33) % 2_000 < changes {
                world.auto.handle_running(if (random >> 50).is_multiple_of(2) { 8 } else { 7 }, world.now);
            }
            // A tenth of noise.
            let noise = 950 + (random >> 40) % 100;
            world.pass(1, 10 * noise, whole_us * noise / 1000);
        }
        let (all, whole) = (world.now - began, world.whole - before);
        let worse = if whole_us > 10_000 { whole } else { all - whole };
        if whole_us.abs_diff(10_000) > 1_500 {
            prop_assert!(worse.as_secs_f64() <= 0.012 * all.as_secs_f64() + 2.0, "{worse:?} of {all:?}");
        }
    }
}
