//! Shards of an expert on devices, and dense layers on devices of their own: the bits of the plain loop that cuts its
//! experts the same way and has its dense layers in the trunk.

use std::rc::Rc;
use std::sync::Arc;

use coordinator::data::actor::Ask;
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use model::kernel::{Kernels, NumericClass};
use model::load::Opened;
use model::weights::ExpertId;
use node::expert::Fall;
use transport::wire::cluster::ActorId;

use super::conductor::{Conductor, Over, Place};
use super::oracle::{Oracle, Random, repository};
use super::{by_turns, settings, twice};

/// One way to serve a model.
struct Case {
    model: &'static str,
    shards: usize,
    class: NumericClass,
    over: Over,
    nodes: u32,
    forwarding: Forwarding,
    dense_out: bool,
    place: Place,
    /// Tokens after which a node is stopped.
    stop_at: Option<u64>,
    /// The actors of this shard fall over the first batch that they get.
    falls: Option<u8>,
}

/// Two nodes in this process, dense layers in the trunk.
const PLAIN: Case = Case {
    model: "demo-model",
    shards: 2,
    class: NumericClass::Portable,
    over: Over::Memory,
    nodes: 2,
    forwarding: Forwarding::Partial,
    dense_out: false,
    place: by_turns,
    stop_at: None,
    falls: None,
};

/// Requests of random lengths, all at once: tokens and probabilities are the plain loop's.
fn equal(case: &Case) {
    let Case { model, shards, class, dense_out, .. } = *case;
    let Ok(kernels) = Kernels::for_class(class) else {
        return println!("SKIPPED: class {class} does not run here");
    };
    let dir = repository().join(model);
    let mut oracle = Oracle::cut(&dir, kernels, shards);
    let served = Opened::open(&dir).unwrap().with_shards(shards).unwrap().with_dense_out(dense_out);
    let dense = served.experts().len() - oracle.opened.experts().len();
    assert_eq!(dense > 0, dense_out, "{model} has dense layers");
    let mut random = Random::new(shards as u64 + 70);
    let requests: Vec<_> = (0..8)
        .map(|_| {
            let (prompt, mut tokens) = (1 + random.below(60), 4 + random.below(14));
            if case.stop_at.is_some() {
                // Far longer than stopping a node takes.
                tokens += 40;
            }
            oracle.request(&mut random, prompt, tokens)
        })
        .collect();
    let expected: Vec<_> = requests.iter().map(|request| oracle.answer(request.clone())).collect();
    actix::System::new().block_on(async {
        let data = DataSettings { dense_out, ..settings(case.forwarding) };
        let (served, config) = (Arc::new(served), &oracle.config);
        let cluster =
            Conductor::start(&served, config, kernels, case.over, case.nodes, data, case.place).await;
        for ExpertId { layer, expert } in case.falls.iter().flat_map(|_| oracle.opened.experts()) {
            let shard = case.falls.unwrap();
            let actor = ActorId { layer, expert, replica: 0, shard };
            let node = (case.place)(layer, expert, case.nodes)[0] + u32::from(shard);
            assert!(cluster.nodes[(node % case.nodes) as usize].fall(actor, Fall::NextBatch).await);
        }
        let cluster = Rc::new(cluster);
        let asked: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let cluster = Rc::clone(&cluster);
                actix::spawn(async move { cluster.ask(request).await })
            })
            .collect();
        if let Some(tokens) = case.stop_at {
            while cluster.data.send(Ask).await.unwrap().tokens < tokens {
                tokio::task::yield_now().await;
            }
            cluster.nodes[1].stop().await;
            let report = cluster.data.send(Ask).await.unwrap();
            assert!(report.running > 0, "it was stopped in the middle");
        }
        for (number, (asked, expected)) in asked.into_iter().zip(expected).enumerate() {
            assert_eq!(asked.await.unwrap(), expected, "{model} in {shards} shards, request {number}");
        }
    });
}

/// Every way to store an expert, cut evenly and unevenly: 96 wide in 4 is 16, 32, 16 and 32; 24 in 2 is 16 and 8; 40 in
/// 3 is 16, 16 and 8.
#[test]
fn every_family_in_shards() {
    for (model, shards) in [
        ("tests/fixtures/mixtral", 4),
        ("tests/fixtures/qwen2moe", 3),
        ("tests/fixtures/deepseekv2", 2),
        ("tests/fixtures/extra/gptoss-mxfp4", 2),
        ("tests/fixtures/extra/deepseekv3-fp8", 2),
    ] {
        equal(&Case { model, shards, ..PLAIN });
        // Nothing is rounded here, so that every sum in another order shows.
        equal(&Case { model, shards, class: NumericClass::F32, ..PLAIN });
    }
}

#[test]
fn in_whole_steps_with_replicas() {
    let class = NumericClass::F32;
    equal(&Case { shards: 3, class, nodes: 5, forwarding: Forwarding::Whole, place: twice, ..PLAIN });
}

#[test]
fn over_tcp() {
    equal(&Case { model: "tests/fixtures/gptoss", shards: 3, over: Over::Tcp, ..PLAIN });
}

#[test]
fn in_the_other_classes() {
    equal(&Case { shards: 8, class: NumericClass::F32, ..PLAIN });
    equal(&Case { shards: 4, class: NumericClass::Avx512Bf16, ..PLAIN });
}

/// Dense layers before the sparse ones, and between them; whole, and cut as experts are.
#[test]
fn dense_layers_on_devices() {
    equal(&Case { shards: 1, dense_out: true, ..PLAIN });
    equal(&Case { shards: 1, dense_out: true, model: "tests/fixtures/qwen2moe", over: Over::Tcp, ..PLAIN });
    for model in ["tests/fixtures/deepseekv3-seed", "tests/fixtures/extra/qwen3moe-yarn-mixed"] {
        equal(&Case { model, dense_out: true, forwarding: Forwarding::Whole, ..PLAIN });
    }
}

/// Rows over which the actor of one shard fell are sent again to it alone; the other shard's have come and stay.
#[test]
fn actors_of_one_shard_fall() {
    equal(&Case { falls: Some(1), ..PLAIN });
}

/// Every replica of an expert loses a shard, and what is left of one and the other is an expert: shards are asked for one
/// by one, and retried so.
#[test]
fn a_node_is_stopped_in_the_middle() {
    let stopped = Case { dense_out: true, place: twice, stop_at: Some(12), ..PLAIN };
    equal(&Case { shards: 3, class: NumericClass::F32, ..stopped });
    equal(&Case { forwarding: Forwarding::Whole, ..stopped });
}
