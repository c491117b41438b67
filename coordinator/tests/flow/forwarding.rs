//! `auto` in virtual clusters, from a cold start, against each mode alone.

use std::time::{Duration, Instant};

use phalanx_coordinator::data::flow::Forwarding;
use phalanx_coordinator::data::forwarding::AutoForwarding;

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
        let mut auto = AutoForwarding::new(cluster.shares_cores);
        auto.handle_running(requests);
        let simulation = Simulation::new(cluster, auto.forwarding(), requests, 7);
        Self { simulation, auto, start: Instant::now(), spent_us: [0; 2] }
    }

    fn set_requests(&mut self, requests: u32) {
        self.simulation.set_requests(requests);
        self.auto.handle_running(requests);
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

    fn steer(&mut self) {
        let now = self.start + Duration::from_micros(self.simulation.now_us);
        self.auto.handle_passed(self.simulation.flow.rows_passed(), now);
        if self.auto.poll_timeout().is_some_and(|timeout| timeout <= now) {
            self.auto.handle_timeout(now);
        }
        self.simulation.flow.set_forwarding(self.auto.forwarding());
    }
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
    auto.handle_running(32);
    for i in 1..10_000 {
        auto.handle_passed(i, start + Duration::from_millis(i));
    }
    assert_eq!((auto.forwarding(), auto.trials()), (Forwarding::Whole, 0));
    auto.handle_cores_shared(false);
    assert_eq!(auto.forwarding(), Forwarding::Partial);
}

/// While nothing passes, a trial ends by the clock: an expert that answers nobody stops every step, but not every row.
#[test]
fn a_trial_under_which_nothing_passes_ends() {
    let mut auto = AutoForwarding::new(false);
    let start = Instant::now();
    auto.handle_running(4);
    let mut passed = 0;
    while auto.forwarding() == Forwarding::Partial {
        passed += 1;
        auto.handle_passed(passed, start + Duration::from_millis(10 * passed));
    }
    assert_eq!(passed, 64 * 4 + 16 * 4, "64 rounds before anything is tried, and a window of 64 rows");
    let timeout = auto.poll_timeout().expect("a trial has an end");
    let changed = start + Duration::from_millis(10 * passed);
    assert_eq!((timeout - changed).as_millis(), 100, "two and a half rounds");
    auto.handle_timeout(timeout - Duration::from_millis(1));
    assert_eq!(auto.forwarding(), Forwarding::Whole);
    auto.handle_timeout(timeout);
    assert_eq!((auto.forwarding(), auto.poll_timeout()), (Forwarding::Partial, None));
    let rested = timeout + 50 * (timeout - changed);
    auto.handle_passed(passed + 1, rested - Duration::from_millis(1));
    auto.handle_passed(passed + 2, rested);
    auto.handle_passed(passed + 66, rested + Duration::from_millis(640));
    assert_eq!((auto.forwarding(), auto.trials()), (Forwarding::Whole, 2), "the next trial, and not before");
}
