//! A cluster answers as one process does: bit for bit, whatever the carrier, the placement, the company.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test has no outside, and a panic is its answer")]

mod biased;
mod conductor;
mod elastic;
mod forwarding;
mod live;
mod missing;
mod nodes;
mod oracle;
mod pages;
mod prompts;
mod shards;
mod stranded;
mod unruly;
mod why;

use std::sync::Arc;

use conductor::{Conductor, Over, Place};
use coordinator::data::flow::Forwarding;
use coordinator::data::forwarding::Choice;
use coordinator::data::start::DataSettings;
use model::kernel::{Kernels, NumericClass};
use oracle::{Oracle, Random, repository};

fn settings(forwarding: Forwarding) -> DataSettings {
    DataSettings {
        rows_in_flight_max: 256,
        sequences_max: 32,
        chunk_rows_max: 24,
        kv_bytes: 64 << 20,
        forwarding: Choice::Always(forwarding),
        ..DataSettings::default()
    }
}

fn by_turns(_: u32, expert: u32, nodes: u32) -> Vec<u32> {
    vec![expert % nodes]
}

fn twice(layer: u32, expert: u32, nodes: u32) -> Vec<u32> {
    vec![(expert + layer) % nodes, (expert + layer + 1) % nodes]
}

/// A prompt far longer than all rows that may exist at once: its later chunks wait for places that earlier ones leave, and
/// in whole steps all of those leave in one moment.
#[test]
fn a_prompt_longer_than_all_rows_goes_through() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let request = oracle.request(&mut Random::new(3), 300, 4);
    let expected = oracle.answer(request.clone());
    for forwarding in [Forwarding::Partial, Forwarding::Whole] {
        let settings = DataSettings {
            rows_in_flight_max: 28,
            sequences_max: 4,
            chunk_rows_max: 24,
            ..settings(forwarding)
        };
        actix::System::new().block_on(async {
            let opened = Arc::clone(&oracle.opened);
            let cluster =
                Conductor::start(&opened, &oracle.config, kernels, Over::Memory, 2, settings, by_turns).await;
            assert_eq!(cluster.ask(request.clone()).await, expected, "{forwarding:?}");
        });
    }
}

/// Requests of random lengths, all at once; each must be what it is alone.
fn equal(model: &str, class: NumericClass, over: Over, nodes: u32, forwarding: Forwarding, place: Place) {
    let Ok(kernels) = Kernels::for_class(class) else {
        return println!("SKIPPED: class {class} does not run here");
    };
    let mut oracle = Oracle::new(&repository().join(model), kernels);
    let mut random = Random::new(u64::from(nodes) + 7);
    let requests: Vec<_> = (0..12)
        .map(|_| {
            let (prompt, tokens) = (1 + random.below(90), 1 + random.below(20));
            oracle.request(&mut random, prompt, tokens)
        })
        .collect();
    let expected: Vec<_> = requests.iter().map(|request| oracle.answer(request.clone())).collect();
    actix::System::new().block_on(async {
        let cluster = Conductor::start(
            &Arc::clone(&oracle.opened),
            &oracle.config,
            kernels,
            over,
            nodes,
            settings(forwarding),
            place,
        )
        .await;
        let cluster = std::rc::Rc::new(cluster);
        let asked: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let cluster = std::rc::Rc::clone(&cluster);
                actix::spawn(async move { cluster.ask(request).await })
            })
            .collect();
        for (number, (asked, expected)) in asked.into_iter().zip(expected).enumerate() {
            assert_eq!(asked.await.unwrap(), expected, "{model}, {class}, request {number}");
        }
    });
}

#[test]
fn over_memory_with_one_node() {
    equal("demo-model", NumericClass::Portable, Over::Memory, 1, Forwarding::Partial, by_turns);
}

#[test]
fn over_memory_with_five_nodes_and_replicas() {
    equal("demo-model", NumericClass::Avx512Bf16, Over::Memory, 5, Forwarding::Partial, twice);
}

#[test]
fn whole_steps_over_tcp_with_two_nodes() {
    equal("demo-model", NumericClass::Portable, Over::Tcp, 2, Forwarding::Whole, by_turns);
}

#[test]
fn in_class_f32_over_tcp_with_two_nodes() {
    equal("demo-model", NumericClass::F32, Over::Tcp, 2, Forwarding::Partial, twice);
}
