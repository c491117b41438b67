//! The cores of coordinators and nodes on a simulated network, clock and scheduler, in one thread.
//!
//! Every run is a seed: it says what the model is, how large the cluster, who asks for what, what goes wrong when, and in
//! which order things happen that happen at once. First there are faults, then none, and then everything must heal and
//! every answer be the one that a plain loop gives. Cores, links' protocol and node's holdings are the product's own; shells
//! around them, devices, trunk and network are simulated.
//!
//! `PHALANX_SEEDS=2000 cargo test --release --workspace --test simulation` runs so many seeds, `PHALANX_SEEDS_FROM=300` from
//! another one on; `PHALANX_SEED=7` runs one and shows all that happens in it.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test has no outside, and a panic is its answer")]

mod bugs;
mod case;
mod clients;
mod clock;
mod control;
mod coordinator;
mod data;
mod floor;
mod frame;
mod holders;
mod kills;
mod landing;
mod missing;
mod model;
mod network;
mod node;
mod operators;
mod quiet;
mod random;
mod returns;
mod run;
mod troubles;
mod trunk;
mod watch;
mod world;

use std::time::Instant;

use bugs::Bug;
use run::{Ran, run};

/// Seeds that are run where nobody says how many.
const SEEDS: u64 = 300;
/// Within so many seeds a planted bug must be found.
const BUG_SEEDS: u64 = 1000;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

#[test]
fn no_seed_breaks_anything() {
    if let Some(seed) = variable("PHALANX_SEED") {
        let ran = run(seed, None, true).unwrap_or_else(|why| panic!("{}", why.words(seed)));
        return println!("seed {seed}: {ran}");
    }
    let seeds = variable("PHALANX_SEEDS").unwrap_or(SEEDS);
    let first = variable("PHALANX_SEEDS_FROM").unwrap_or(0);
    let began = Instant::now();
    let mut ran = Ran::default();
    for seed in first..first + seeds {
        match run(seed, None, false) {
            Ok(of) => ran.add(&of),
            Err(why) => panic!("{}", why.words(seed)),
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!("{seeds} seeds in {took:.1} s, {:.0} a second: {ran}", seeds as f64 / took);
    ran.check(seeds);
}

/// What is planted is found, and by the checker that is there for it.
#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let found = (0..BUG_SEEDS).find_map(|seed| Some((seed, run(seed, Some(bug), false).err()?)));
        let Some((seed, why)) = found else { panic!("{bug:?} is not found in {BUG_SEEDS} seeds") };
        println!("{}", why.words(seed));
        assert!(bug.is_found_by(&why.kind), "{bug:?} is found by another checker: {}", why.words(seed));
    }
}

/// A seed that fails can be looked at only if it always is the same run.
#[test]
fn a_seed_is_always_the_same_run() {
    for seed in 0..20 {
        let twice =
            [0, 1].map(|_| run(seed, None, false).map(|ran| ran.to_string()).map_err(|why| why.words(seed)));
        assert_eq!(twice[0], twice[1], "seed {seed}");
    }
}
