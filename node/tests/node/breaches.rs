//! What a coordinator may not send: the link ends, in words, and the node serves on.

use crate::support::{Coordinator, Door, Random, Truth, run, runtime, settings, start};
use transport::Frame;
use transport::carrier::memory::MemoryCarrier;
use transport::wire::{Element, Header};

/// One link for each breach; after it the node comes back and computes.
async fn check(truth: &mut Truth, breach: impl Fn(&mut Coordinator, &Truth) -> Frame, words: &str) {
    let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
    let runtime = runtime(truth.kernels);
    let _node = start(&runtime, settings(truth, "n0", vec![door.address()]));
    let (layer, _) = truth.layer();
    let (mut coordinator, _) = door.joined(truth).await;
    coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 0)]).await;
    let frame = breach(&mut coordinator, truth);
    coordinator.peer.send(frame).await.unwrap();
    let why = coordinator.ended().await;
    assert!(why.contains(words), "{words}: {why}");
    let (mut coordinator, _) = door.joined(truth).await;
    coordinator.hold(1, 2, vec![truth.assignment(layer, 0, 0)]).await;
    let rows = truth.rows(&mut Random::new(1), 2);
    coordinator.check(truth, layer, &rows, &[(0, vec![0, 1])]).await;
}

fn good(coordinator: &mut Coordinator, truth: &Truth) -> Frame {
    let rows = truth.rows(&mut Random::new(1), 2);
    coordinator.frame(truth, truth.layer().0, &rows, &[(0, vec![0, 1])]).0
}

#[test]
fn rows_of_another_shape_end_the_link() {
    let mut truth = Truth::of_demo();
    run(async {
        let element = |coordinator: &mut Coordinator, truth: &Truth| {
            let Frame { header, payload, .. } = good(coordinator, truth);
            Frame::new(Header { element: Element::F32, columns: header.columns / 2, ..header }, payload)
        };
        check(&mut truth, element, "rows of 64 F32 values, the model's have 128 Bf16 values").await;
        let columns = |coordinator: &mut Coordinator, truth: &Truth| {
            let Frame { header, payload, .. } = good(coordinator, truth);
            Frame::new(Header { columns: header.columns / 2, rows: header.rows * 2, ..header }, payload)
        };
        check(&mut truth, columns, "rows of 64 Bf16 values").await;
    });
}

#[test]
fn a_table_that_cannot_be_read_ends_the_link() {
    let mut truth = Truth::of_demo();
    run(async {
        let index = |coordinator: &mut Coordinator, truth: &Truth| {
            let Frame { header, payload, .. } = good(coordinator, truth);
            let mut bytes = coordinator.pool.copy_of(&payload).unwrap();
            // The second row index of the one group.
            bytes[20] = 9;
            Frame::new(header, bytes)
        };
        check(&mut truth, index, "lists row 9").await;
        let none = |coordinator: &mut Coordinator, truth: &Truth| {
            let Frame { header, payload, .. } = good(coordinator, truth);
            let rows = coordinator.pool.copy_of(&payload[64..]).unwrap();
            Frame::new(Header { groups: 0, table_bytes: 0, ..header }, rows)
        };
        check(&mut truth, none, "a frame without groups").await;
    });
}

/// No breach: its time was simply over. The coordinator's link has given it up by itself and drops the answer, but
/// without one it could never be drained.
#[test]
fn a_dispatch_without_time_is_answered_all_the_same() {
    let truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let (layer, _) = truth.layer();
        let (mut coordinator, _) = door.joined(&truth).await;
        coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 0)]).await;
        let Frame { mut header, payload, .. } = good(&mut coordinator, &truth);
        header.remaining_us = 0;
        coordinator.peer.send(Frame::new(header, payload)).await.unwrap();
        let peer = coordinator.peer.clone();
        let (ended, _) = tokio::join!(peer.drain(), coordinator.ended());
        assert!(ended.in_order(), "{ended}");
        assert_eq!(node.status().await.loads[0].rows, 0, "it was not computed");
    });
}
