//! A cluster answers as one process does: bit for bit, whatever the carrier, the placement, the company.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test has no outside, and a panic is its answer")]

mod conductor;
mod oracle;

use std::sync::Arc;

use conductor::{Conductor, Over, Place};
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use model::kernel::{Kernels, NumericClass};
use oracle::{Oracle, Random, repository};

fn settings(forwarding: Forwarding) -> DataSettings {
    DataSettings {
        rows_in_flight_max: 256,
        sequences_max: 32,
        chunk_rows_max: 24,
        kv_bytes: 64 << 20,
        forwarding,
        ..DataSettings::default()
    }
}

fn by_turns(_: u32, expert: u32, nodes: u32) -> Vec<u32> {
    vec![expert % nodes]
}

fn twice(layer: u32, expert: u32, nodes: u32) -> Vec<u32> {
    vec![(expert + layer) % nodes, (expert + layer + 1) % nodes]
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
