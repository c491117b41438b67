//! Answers that go on without experts that nobody holds: which bits they have, what they say of it, and that nobody else has
//! anything of them.

use std::rc::Rc;
use std::sync::Arc;

use coordinator::data::flow::Forwarding;
use coordinator::data::request::OnMissing;
use model::kernel::{Kernels, NumericClass};

use crate::conductor::{Conductor, Heard, Over, Place};
use crate::oracle::{Oracle, Random, repository};
use crate::{by_turns, settings};

/// One way to lose experts before anything is asked.
struct Case {
    model: &'static str,
    class: NumericClass,
    shards: usize,
    nodes: u32,
    forwarding: Forwarding,
    /// The node that goes, and the experts that nobody holds then.
    gone: u32,
    is_missing: fn(u32) -> bool,
}

/// Some requests may go without and some wait; those who may not wait are told what they lack, and each is what the plain loop
/// is that leaves out the same experts.
fn goes_on(case: &Case) {
    let Case { model, class, shards, nodes, forwarding, gone, is_missing } = *case;
    let Ok(kernels) = Kernels::for_class(class) else {
        return println!("SKIPPED: class {class} does not run here");
    };
    let mut oracle = Oracle::cut(&repository().join(model), kernels, shards);
    let mut random = Random::new(u64::from(nodes) + 23);
    let mut requests = Vec::new();
    for _ in 0..6 {
        let (prompt, tokens) = (1 + random.below(90), 1 + random.below(20));
        let request = oracle.request(&mut random, prompt, tokens);
        let expected = oracle.without(request.clone(), &|_, _, expert| is_missing(expert));
        requests.push((request, expected));
    }
    assert!(requests.iter().all(|(_, expected)| !expected.missing.is_empty()), "each lacks something");
    actix::System::new().block_on(async {
        let opened = Arc::clone(&oracle.opened);
        let config = &oracle.config;
        let cluster =
            Conductor::start(&opened, config, kernels, Over::Memory, nodes, settings(forwarding), by_turns)
                .await;
        cluster.nodes[gone as usize].stop().await;
        let cluster = Rc::new(cluster);
        // The link's end is known to whoever is asked next, or to the first rows that go out.
        let asked: Vec<_> = requests
            .into_iter()
            .map(|(request, expected)| {
                let cluster = Rc::clone(&cluster);
                actix::spawn(async move {
                    let heard = cluster.heard(request, OnMissing::Drop, |_| ()).await;
                    assert_eq!(heard, expected);
                })
            })
            .collect();
        for asked in asked {
            asked.await.unwrap();
        }
    });
}

#[test]
fn whatever_a_dead_node_held() {
    goes_on(&Case {
        model: "demo-model",
        class: NumericClass::Portable,
        shards: 1,
        nodes: 2,
        forwarding: Forwarding::Partial,
        gone: 1,
        is_missing: |expert| expert % 2 == 1,
    });
}

/// Several ranks of a row at once, and all of them, in whole steps.
#[test]
fn two_of_three_experts_in_whole_steps() {
    goes_on(&Case {
        model: "tests/fixtures/olmoe",
        class: NumericClass::F32,
        shards: 1,
        nodes: 2,
        forwarding: Forwarding::Whole,
        gone: 0,
        is_missing: |expert| expert % 2 == 0,
    });
}

/// A node that has one half of two thirds of all experts.
#[test]
fn experts_of_which_a_shard_is_gone() {
    goes_on(&Case {
        model: "demo-model",
        class: NumericClass::Avx512Bf16,
        shards: 2,
        nodes: 3,
        forwarding: Forwarding::Partial,
        gone: 2,
        is_missing: |expert| expert % 3 != 0,
    });
}

/// A node dies in the middle of an answer: up to some row of some layer nothing is missing, and from there on all that it held.
#[test]
fn from_the_moment_of_its_death() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let request = oracle.request(&mut Random::new(9), 20, 40);
    let place: Place = by_turns;
    let heard: Heard = actix::System::new().block_on(async {
        let settings = settings(Forwarding::Partial);
        let opened = Arc::clone(&oracle.opened);
        let cluster =
            Conductor::start(&opened, &oracle.config, kernels, Over::Memory, 2, settings, place).await;
        let mut cluster = cluster;
        let mut dying = Some(cluster.nodes.pop().unwrap());
        // Dropped, it stops at once.
        let kill_at = |heard: usize| drop((heard == 6).then(|| dying.take()));
        cluster.heard(request.clone(), OnMissing::Drop, kill_at).await
    });
    assert!(!heard.missing.is_empty(), "it was killed in time");
    assert_eq!((heard.tokens.len(), heard.finish.is_some()), (40, true));
    let layers = oracle.opened.spec.layers.len();
    // Of the row that was out as it died some of what it held may have come back: by the numbers of its experts.
    let dies = |position: usize, layer: usize, came: u32| {
        move |at: usize, of: usize, expert: u32| match (at, of).cmp(&(position, layer)) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => expert % 2 == 1 && (came >> expert) & 1 == 0,
            std::cmp::Ordering::Greater => expert % 2 == 1,
        }
    };
    let moments = (20..60).flat_map(|position| (0..layers).map(move |layer| (position, layer)));
    let found = moments.into_iter().any(|(position, layer)| {
        let all = oracle.without(request.clone(), &dies(position, layer, 0));
        if all == heard {
            return true;
        }
        // Only where the whole moment does not explain it.
        (0..16).filter(|expert| expert % 2 == 1).any(|expert| {
            let is_near = all.tokens.iter().zip(&heard.tokens).take_while(|(a, b)| a == b).count() >= 6;
            is_near && oracle.without(request.clone(), &dies(position, layer, 1 << expert)) == heard
        })
    });
    assert!(found, "no moment explains {heard:?}");
}
