//! An actor falls, and nothing else does.

use crate::support::{Coordinator, Door, Random, Truth, actor, run, runtime, settings, start};
use phalanx_node::expert::Fall;
use phalanx_node::restarts::FALLS_MAX;
use phalanx_node::{NodeHandle, Runtime};
use transport::carrier::memory::MemoryCarrier;
use transport::wire::cluster::{Fallen, ToCoordinator};
use transport::wire::groups::Reason;

/// A node that holds experts 0 to 3 of the first layer, on two devices.
async fn begin(truth: &Truth) -> (Runtime, NodeHandle, Coordinator, Door) {
    let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
    let runtime = runtime(truth.kernels);
    let node = start(&runtime, settings(truth, "n0", vec![door.address()]));
    let (mut coordinator, _) = door.joined(truth).await;
    let (layer, _) = truth.layer();
    let actors = (0..4).map(|expert| truth.assignment(layer, expert, expert as u16 % 2));
    coordinator.hold(1, 1, actors.collect()).await;
    (runtime, node, coordinator, door)
}

async fn fallen(coordinator: &mut Coordinator) -> Fallen {
    match coordinator.news().await {
        ToCoordinator::Fallen(fallen) => fallen,
        other => panic!("{other:?} instead of Fallen"),
    }
}

/// The batch that fell is refused as such, those computed beside it are what they always are, and the actor is there
/// again under its name, with its weights.
#[test]
fn only_the_batch_that_fell_is_refused() {
    let mut truth = Truth::of_demo();
    run(async {
        let (_runtime, node, mut coordinator, _door) = begin(&truth).await;
        let (layer, _) = truth.layer();
        let rows = truth.rows(&mut Random::new(1), 8);
        assert!(node.fall(actor(layer, 0), Fall::NextBatch).await);
        assert!(!node.fall(actor(layer, 9), Fall::NextBatch).await, "there is no such actor");
        let groups = [(1, vec![0, 7]), (0, vec![0, 1, 2]), (3, vec![5])];
        let ids = coordinator.dispatch(&truth, layer, &rows, &groups).await;
        let answers = coordinator.answers(&ids).await;
        assert_eq!(answers[&ids[0]], Ok(truth.compute(layer, 1, &rows, &[0, 7])));
        assert_eq!(answers[&ids[1]], Err(Reason::Failed));
        assert_eq!(answers[&ids[2]], Ok(truth.compute(layer, 3, &rows, &[5])));
        let why = "it was told to fall".to_owned();
        let expected = Fallen { actor: actor(layer, 0), why, restarts: 1, is_lost: false };
        assert_eq!(fallen(&mut coordinator).await, expected);
        coordinator.check(&mut truth, layer, &rows, &groups).await;
    });
}

/// What waits has done no harm: it is computed by the next life, and not refused as if it had.
#[test]
fn what_waits_is_not_refused_for_a_fall() {
    let mut truth = Truth::of_demo();
    run(async {
        let (_runtime, node, mut coordinator, _door) = begin(&truth).await;
        let (layer, _) = truth.layer();
        let rows = truth.rows(&mut Random::new(2), 64);
        let all: Vec<u32> = (0..64).collect();
        for round in 0..3 {
            let mut ids = Vec::new();
            for _ in 0..200 {
                ids.extend(coordinator.dispatch(&truth, layer, &rows, &[(0, all.clone())]).await);
            }
            assert!(node.fall(actor(layer, 0), Fall::Now).await);
            assert_eq!(fallen(&mut coordinator).await.restarts, round + 1);
            let wanted = truth.compute(layer, 0, &rows, &all);
            let answers = coordinator.answers(&ids).await;
            // Busy: it was in the mailbox of the life that ended, or came between two lives.
            let is_fine = |answer: &_| *answer == Ok(wanted.clone()) || *answer == Err(Reason::Busy);
            assert!(answers.values().all(is_fine));
            assert!(answers.values().any(|answer| *answer == Ok(wanted.clone())));
        }
    });
}

/// Five falls in ten seconds are a device that is broken. Its actor is given up, and nobody else is.
#[test]
fn an_actor_that_falls_again_and_again_is_lost() {
    let mut truth = Truth::of_demo();
    run(async {
        let (_runtime, node, mut coordinator, _door) = begin(&truth).await;
        let (layer, _) = truth.layer();
        let rows = truth.rows(&mut Random::new(3), 4);
        let before = node.status().await.memory;
        for fall in 1..=FALLS_MAX {
            assert!(node.fall(actor(layer, 2), Fall::NextBatch).await);
            let ids = coordinator.dispatch(&truth, layer, &rows, &[(2, vec![0])]).await;
            assert_eq!(coordinator.answers(&ids).await[&ids[0]], Err(Reason::Failed));
            let fallen = fallen(&mut coordinator).await;
            assert_eq!((fallen.restarts, fallen.is_lost), (fall, fall == FALLS_MAX));
        }
        let ids = coordinator.dispatch(&truth, layer, &rows, &[(2, vec![0]), (0, vec![1])]).await;
        let answers = coordinator.answers(&ids).await;
        assert_eq!(answers[&ids[0]], Err(Reason::NotHeld));
        assert_eq!(answers[&ids[1]], Ok(truth.compute(layer, 0, &rows, &[1])));
        let status = node.status().await;
        assert_eq!(status.standing, [0, 1, 3].map(|expert| actor(layer, expert)));
        assert!(status.memory[0] < before[0], "its memory is free for another");
        assert_eq!(status.memory[1], before[1]);
        coordinator.order(
            1,
            2,
            (0..4).map(|expert| truth.assignment(layer, expert, expert as u16 % 2)).collect(),
        );
        let failed = coordinator.holding().await.failed;
        assert_eq!(failed.len(), 1);
        assert!(failed[0].0 == actor(layer, 2) && failed[0].1.starts_with("lost: "), "{failed:?}");
        // Given up and wanted again: whoever wants that has seen to the device.
        coordinator.hold(1, 3, vec![truth.assignment(layer, 0, 0)]).await;
        coordinator.hold(1, 4, vec![truth.assignment(layer, 0, 0), truth.assignment(layer, 2, 0)]).await;
        coordinator.check(&mut truth, layer, &rows, &[(2, vec![1, 3])]).await;
    });
}
