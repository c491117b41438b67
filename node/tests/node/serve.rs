//! A node computes what it is ordered to hold, for whoever dispatches, bit for bit as one process would.

use crate::support::{Door, Random, Truth, odd_groups, root, run, runtime, settings, start};
use model::kernel::{Kernels, NumericClass};
use phalanx_node::CoordinatorAddress;
use transport::carrier::memory::MemoryCarrier;
use transport::wire::groups::Reason;

/// All experts of all layers, over both devices; then random groups of random rows, several dispatches at once.
async fn check(truth: &mut Truth, door: &mut Door, coordinators: Vec<CoordinatorAddress>, rounds: usize) {
    let runtime = runtime(truth.kernels);
    let node = start(&runtime, settings(truth, "n0", coordinators));
    let (mut coordinator, join) = door.joined(truth).await;
    assert_eq!(join.devices.len(), 2);
    assert_eq!(join.labels, [("rack".to_owned(), "r1".to_owned())]);
    let all: Vec<_> = truth.opened.experts();
    let actors = all.iter().enumerate().map(|(at, id)| truth.assignment(id.layer, id.expert, at as u16 % 2));
    coordinator.hold(1, 1, actors.collect()).await;
    let mut random = Random::new(5);
    let layers: Vec<_> =
        truth.opened.spec.moe_layers().map(|(l, moe)| (l as u32, moe.experts as u32)).collect();
    for _ in 0..rounds {
        // Several frames are under way at once, so that groups of different frames meet in batches.
        let mut sent = Vec::new();
        for _ in 0..1 + random.below(4) {
            let (layer, experts) = layers[random.below(layers.len())];
            let count = 1 + random.below(24);
            let rows = truth.rows(&mut random, count);
            let count = 1 + random.below(6);
            let groups = odd_groups(&mut random, experts, rows.rows(), count);
            let ids = coordinator.dispatch(truth, layer, &rows, &groups).await;
            sent.push((layer, rows, groups, ids));
        }
        let ids: Vec<u64> = sent.iter().flat_map(|(.., ids)| ids.clone()).collect();
        let answers = coordinator.answers(&ids).await;
        for (layer, rows, groups, ids) in sent {
            for (id, (expert, picked)) in ids.iter().zip(&groups) {
                let wanted = truth.compute(layer, *expert, &rows, picked);
                assert_eq!(answers[id], Ok(wanted), "expert {layer}.{expert}, {} rows", picked.len());
            }
        }
    }
    node.stop().await;
}

#[test]
fn rows_are_the_local_experts_bit_for_bit_over_memory() {
    for class in NumericClass::ALL {
        let Ok(kernels) = Kernels::for_class(class) else { continue };
        for dir in ["demo-model", "tests/fixtures/gptoss", "tests/fixtures/qwen3moe"] {
            let mut truth = Truth::new(root().join(dir), kernels);
            run(async {
                let carrier = MemoryCarrier::default();
                let mut door = Door::memory(&carrier, "c", kernels);
                let coordinators = vec![door.address()];
                check(&mut truth, &mut door, coordinators, 30).await;
            });
        }
    }
}

#[test]
fn rows_are_the_local_experts_bit_for_bit_over_tcp() {
    let mut truth = Truth::of_demo();
    run(async {
        let mut door = Door::tcp(truth.kernels).await;
        let coordinators = vec![door.address()];
        check(&mut truth, &mut door, coordinators, 30).await;
    });
}

/// What is not held is refused at once, in one return, and the rest of the frame is computed all the same.
#[test]
fn what_is_not_held_is_refused_and_the_rest_computed() {
    let mut truth = Truth::of_demo();
    run(async {
        let carrier = MemoryCarrier::default();
        let mut door = Door::memory(&carrier, "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let _node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let (mut coordinator, _) = door.joined(&truth).await;
        let (layer, _) = truth.layer();
        let rows = truth.rows(&mut Random::new(3), 4);
        let groups = [(2, vec![0, 1]), (0, vec![1, 3]), (5, vec![2])];
        let ids = coordinator.dispatch(&truth, layer, &rows, &groups).await;
        let refused: Vec<_> = ids.iter().map(|id| (*id, Err(Reason::NotHeld))).collect();
        assert_eq!(coordinator.next_return().await, refused, "before anything is held");
        coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 1)]).await;
        let ids = coordinator.dispatch(&truth, layer, &rows, &groups).await;
        let answers = coordinator.answers(&ids).await;
        assert_eq!(answers[&ids[0]], Err(Reason::NotHeld));
        assert_eq!(answers[&ids[1]], Ok(truth.compute(layer, 0, &rows, &[1, 3])));
        assert_eq!(answers[&ids[2]], Err(Reason::NotHeld));
    });
}
