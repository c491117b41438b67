//! A node obeys, and says what it cannot do.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Door, Random, Truth, actor, root, run, runtime, settings, start};
use model::load::Opened;
use phalanx_node::Settings;
use phalanx_node::source::OwnCopy;
use transport::carrier::memory::MemoryCarrier;
use transport::wire::cluster::{ActorId, Assignment, Joined, ToCoordinator, ToNode};
use transport::wire::control::CloseReason;
use transport::wire::groups::Reason;

/// Whoever is authenticated may dispatch; what is held is what all publishers of the highest term want.
#[test]
fn several_coordinators_share_a_node() {
    let mut truth = Truth::of_demo();
    run(async {
        let carrier = MemoryCarrier::default();
        let mut doors = ["a", "b"].map(|name| Door::memory(&carrier, name, truth.kernels));
        let runtime = runtime(truth.kernels);
        let addresses = doors.iter().map(Door::address).collect();
        let _node = start(&runtime, settings(&truth, "n0", addresses));
        let (mut a, _) = doors[0].joined(&truth).await;
        let (mut b, _) = doors[1].joined(&truth).await;
        let (layer, _) = truth.layer();
        let rows = truth.rows(&mut Random::new(1), 6);
        let seats = |experts: &[u32]| -> Vec<Assignment> {
            experts.iter().map(|expert| truth.assignment(layer, *expert, 0)).collect()
        };
        let (first, second, third) = (seats(&[0, 1]), seats(&[1, 2]), seats(&[5]));
        a.hold(5, 1, first).await;
        b.order(4, 9, third);
        let failed = b.holding().await.failed;
        assert!(failed.len() == 1 && failed[0].1.starts_with("stale: "), "{failed:?}");
        b.check(&mut truth, layer, &rows, &[(0, vec![0, 2]), (1, vec![4])]).await;
        b.hold(5, 1, second).await;
        a.check(&mut truth, layer, &rows, &[(0, vec![1]), (2, vec![3, 4])]).await;
        // Both at once: rows of two links meet in one batch and go back each to its own.
        for _ in 0..20 {
            let groups = [(1, vec![0, 1, 5]), (2, vec![2])];
            let of_a = a.dispatch(&truth, layer, &rows, &groups).await;
            let of_b = b.dispatch(&truth, layer, &rows, &groups).await;
            for (answers, ids) in [(a.answers(&of_a).await, of_a), (b.answers(&of_b).await, of_b)] {
                assert_eq!(answers[&ids[0]], Ok(truth.compute(layer, 1, &rows, &[0, 1, 5])));
                assert_eq!(answers[&ids[1]], Ok(truth.compute(layer, 2, &rows, &[2])));
            }
        }
    });
}

/// A coordinator that is away is dialled until it is there; one that comes back finds what was held.
#[test]
fn a_coordinator_comes_late_and_comes_back() {
    let mut truth = Truth::of_demo();
    run(async {
        let carrier = MemoryCarrier::default();
        let runtime = runtime(truth.kernels);
        let mut door = Door::memory(&carrier, "c", truth.kernels);
        let address = door.address();
        drop(door);
        let _node = start(&runtime, settings(&truth, "n0", vec![address]));
        door = Door::memory(&carrier, "c", truth.kernels);
        let (mut coordinator, join) = door.joined(&truth).await;
        assert_eq!((join.term, join.held), (0, vec![]));
        let config = truth.opened.config_digest;
        assert_eq!(join.checkpoint, Some(*config.0.as_bytes()));
        let (layer, _) = truth.layer();
        coordinator.hold(3, 1, vec![truth.assignment(layer, 1, 0)]).await;
        drop((coordinator, door));
        door = Door::memory(&carrier, "c", truth.kernels);
        let (mut coordinator, join) = door.joined(&truth).await;
        assert_eq!((join.term, join.held), (3, vec![truth.assignment(layer, 1, 0)]));
        coordinator.hold(4, 1, vec![truth.assignment(layer, 1, 0)]).await;
        let rows = truth.rows(&mut Random::new(1), 2);
        coordinator.check(&mut truth, layer, &rows, &[(1, vec![0, 1])]).await;
    });
}

/// One order, and what the node says of the one actor in it.
async fn refusal(
    truth: &Truth,
    settings: impl FnOnce(&mut Settings),
    change: impl FnOnce(&mut Assignment),
) -> String {
    refusal_of(truth, truth.config(), 1, settings, change).await
}

async fn refusal_of(
    truth: &Truth,
    config: Vec<u8>,
    shards: u8,
    change_settings: impl FnOnce(&mut Settings),
    change: impl FnOnce(&mut Assignment),
) -> String {
    let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
    let runtime = runtime(truth.kernels);
    let mut settings = settings(truth, "n0", vec![door.address()]);
    change_settings(&mut settings);
    let _node = start(&runtime, settings);
    let mut coordinator = door.link().await;
    let ToCoordinator::Join(_) = coordinator.told().await else { panic!("a node begins with Join") };
    coordinator.tell(ToNode::Joined(Joined { node: 0, term: 1, config, shards }));
    let (layer, _) = truth.layer();
    let mut assignment = truth.assignment(layer, 0, 0);
    change(&mut assignment);
    coordinator.order(1, 1, vec![assignment]);
    let mut failed = coordinator.holding().await.failed;
    assert_eq!(failed.len(), 1);
    let (actor, why) = failed.remove(0);
    assert_eq!(actor, assignment.actor);
    why
}

#[test]
fn what_cannot_be_held_is_said_in_words() {
    let truth = Truth::of_demo();
    run(async {
        let none = |_: &mut Settings| {};
        let why = refusal(&truth, none, |it| it.digest = Some([9; 32])).await;
        assert!(why.contains("have digest") && why.contains("0909") && why.contains("demo-model"), "{why}");
        let why = refusal(&truth, |it| it.devices = vec![1000], |_| {}).await;
        assert!(why.contains("1000 of the device's 1000 are left"), "{why}");
        let why = refusal(&truth, |it| it.own_copy = None, |_| {}).await;
        assert!(why.contains("no copy of the checkpoint"), "{why}");
        let why = refusal(&truth, none, |it| it.device = 2).await;
        assert!(why.contains("device 2 of 2"), "{why}");
        let why = refusal(&truth, none, |it| it.actor.expert = 99).await;
        assert!(why.contains("no expert 99 in layer 3"), "{why}");
        let why = refusal(&truth, none, |it| it.actor.layer = 99).await;
        assert!(why.contains("no expert 0 in layer 99"), "{why}");
        let why = refusal(&truth, none, |it| it.actor.shard = 1).await;
        assert!(why.contains("shard 1 of experts that are cut into 1"), "{why}");
        // An expert of 98,304 bytes in two halves.
        let why =
            refusal_of(&truth, truth.config(), 2, |it| it.devices = vec![1000], |it| it.actor.shard = 1)
                .await;
        assert!(why.contains("it takes 49152 bytes, 1000 of the device's"), "{why}");
        let why = refusal_of(&truth, truth.config(), 2, none, |it| it.actor.shard = 2).await;
        assert!(why.contains("shard 2 of experts that are cut into 2"), "{why}");
        // The same shapes under another configuration are another model.
        let mut config = truth.config();
        config.push(b'\n');
        let why = refusal_of(&truth, config, 1, none, |_| {}).await;
        assert!(why.contains("no copy of the checkpoint"), "{why}");
    });
}

/// A copy whose bytes differ is found out by the digest, also the second time.
#[test]
fn a_damaged_copy_is_not_used() {
    let truth = Truth::of_demo();
    let folder = std::env::temp_dir().join(format!("phalanx-node-copy-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(truth.dir.join("config.json"), folder.join("config.json")).unwrap();
    let mut bytes = std::fs::read(truth.dir.join("model.safetensors")).unwrap();
    let tensor = truth.opened.checkpoint.find("model.layers.3.mlp.experts.0.down_proj.weight").unwrap();
    bytes[tensor.bytes.start as usize + 8] ^= 1;
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    run(async {
        for _ in 0..2 {
            let copy = Opened::open(&folder).unwrap();
            let digests = folder.join("digests");
            let own = |it: &mut Settings| {
                it.own_copy = Some(Arc::new(OwnCopy::new(Arc::new(copy), Some(&digests))))
            };
            let why = refusal(&truth, own, |_| {}).await;
            assert!(why.contains("copy the checkpoint again"), "{why}");
        }
    });
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A model that the node cannot read ends the link, in words, and not the node.
#[test]
fn a_model_that_is_none_ends_the_link() {
    let mut truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let _node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let coordinator = door.link().await;
        let config = b"{\"architectures\": [\"Nobody\"]}".to_vec();
        coordinator.tell(ToNode::Joined(Joined { node: 0, term: 1, config, shards: 1 }));
        let why = coordinator.ended().await;
        assert!(why.contains("cannot serve the model") && why.contains("Nobody"), "{why}");
        let coordinator = door.link().await;
        coordinator.tell(ToNode::NotJoined { why: "there are enough".to_owned() });
        drop(coordinator);
        let (mut coordinator, _) = door.joined(&truth).await;
        let (layer, _) = truth.layer();
        coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 0)]).await;
        let rows = truth.rows(&mut Random::new(1), 2);
        coordinator.check(&mut truth, layer, &rows, &[(0, vec![0])]).await;
    });
}

/// Shards are part of what the model's numbers are: a cut that cannot be, or another one than the coordinator's that the
/// node serves already, ends the link.
#[test]
fn another_cut_ends_the_link() {
    let truth = Truth::of_demo();
    run(async {
        let carrier = MemoryCarrier::default();
        let mut doors = ["a", "b"].map(|name| Door::memory(&carrier, name, truth.kernels));
        let runtime = runtime(truth.kernels);
        let addresses = doors.iter().map(Door::address).collect();
        let node = start(&runtime, settings(&truth, "n0", addresses));
        let joined = |shards| ToNode::Joined(Joined { node: 0, term: 1, config: truth.config(), shards });
        for (shards, words) in [(9, "128 wide inside"), (0, "1 to 8 shards")] {
            let coordinator = doors[0].link().await;
            coordinator.tell(joined(shards));
            let why = coordinator.ended().await;
            assert!(why.contains("cannot serve the model") && why.contains(words), "{why}");
        }
        let mut a = doors[0].link().await;
        let ToCoordinator::Join(_) = a.told().await else { panic!("a node begins with Join") };
        a.tell(joined(2));
        let (layer, _) = truth.layer();
        let half =
            |shard| Assignment { actor: ActorId { shard, ..actor(layer, 0) }, device: 0, digest: None };
        a.hold(1, 1, vec![half(0), half(1)]).await;
        let b = doors[1].link().await;
        b.tell(joined(3));
        let why = b.ended().await;
        assert!(why.contains("in 2 shards for another coordinator, this one cuts it into 3"), "{why}");
        // A coordinator that comes back with another cut finds nothing of the old one, however early it asks.
        a.peer.close(CloseReason::Wanted);
        a.ended().await;
        let mut a = doors[0].link().await;
        let ToCoordinator::Join(_) = a.told().await else { panic!("a node begins with Join") };
        let rows = truth.rows(&mut Random::new(1), 2);
        let ids = a.dispatch(&truth, layer, &rows, &[(0, vec![0])]).await;
        assert_eq!(a.answers(&ids).await[&ids[0]], Err(Reason::Busy));
        a.tell(joined(3));
        a.hold(2, 1, vec![half(2)]).await;
        let ids = a.dispatch(&truth, layer, &rows, &[(0, vec![0])]).await;
        assert_eq!(a.answers(&ids).await[&ids[0]], Err(Reason::NotHeld));
        assert_eq!(node.status().await.standing, [half(2).actor]);
    });
}

/// A dense layer is a layer with one expert; and whoever knows a replica by another number is served as well.
#[test]
fn dense_layers_and_other_replicas_are_served() {
    let truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let _node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let (mut coordinator, _) = door.joined(&truth).await;
        let dense = Assignment { actor: actor(0, 0), device: 0, digest: None };
        let (layer, _) = truth.layer();
        let mut replica = truth.assignment(layer, 3, 1);
        replica.actor = ActorId { replica: 2, ..replica.actor };
        coordinator.hold(1, 1, vec![dense, replica]).await;
        let rows = truth.rows(&mut Random::new(1), 3);
        let ids = coordinator.dispatch(&truth, 0, &rows, &[(0, vec![0, 1, 2])]).await;
        assert!(coordinator.answers(&ids).await[&ids[0]].is_ok());
        let ids = coordinator.dispatch(&truth, layer, &rows, &[(3, vec![0])]).await;
        assert!(coordinator.answers(&ids).await[&ids[0]].is_ok());
    });
}

#[test]
fn loads_are_told_as_they_change() {
    let truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let _node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let (mut coordinator, _) = door.joined(&truth).await;
        let (layer, _) = truth.layer();
        coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 0), truth.assignment(layer, 1, 1)]).await;
        let rows = truth.rows(&mut Random::new(1), 9);
        let mut ids = coordinator.dispatch(&truth, layer, &rows, &[(0, (0..9).collect())]).await;
        coordinator.answers(&ids).await;
        ids = coordinator.dispatch(&truth, layer, &rows, &[(0, vec![1])]).await;
        coordinator.answers(&ids).await;
        let load = loop {
            if let ToCoordinator::Loads(loads) = coordinator.told().await
                && let Some(load) = loads.iter().find(|load| load.actor == actor(layer, 0) && load.rows == 10)
            {
                break *load;
            }
        };
        assert_eq!((load.batches, load.queued), (2, 0));
        assert!(load.service_us >= load.busy_us, "{load:?}");
    });
}

/// Leaving in order: it says so, serves on, and ends when the coordinator has drained the link.
#[test]
fn a_node_that_leaves_serves_until_its_links_are_drained() {
    let mut truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let node = start(&runtime, settings(&truth, "n0", vec![door.address()]));
        let (mut coordinator, _) = door.joined(&truth).await;
        let (layer, _) = truth.layer();
        coordinator.hold(1, 1, vec![truth.assignment(layer, 0, 0)]).await;
        let leaving = tokio::spawn(async move {
            node.leave().await;
            node
        });
        assert_eq!(coordinator.news().await, ToCoordinator::Leaving);
        let rows = truth.rows(&mut Random::new(1), 3);
        coordinator.check(&mut truth, layer, &rows, &[(0, vec![0, 2])]).await;
        let peer = coordinator.peer.clone();
        let (ended, why) = tokio::join!(peer.drain(), coordinator.ended());
        assert!(ended.in_order(), "{why}");
        let node = leaving.await.unwrap();
        assert_eq!(node.status().await, Default::default(), "it is over");
    });
}

/// A coordinator that does nothing about it does not keep a node for ever.
#[test]
fn a_node_leaves_also_where_nobody_drains_its_link() {
    let truth = Truth::of_demo();
    run(async {
        let mut door = Door::memory(&MemoryCarrier::default(), "c", truth.kernels);
        let runtime = runtime(truth.kernels);
        let mut settings = settings(&truth, "n0", vec![door.address()]);
        settings.leave_max = Duration::from_millis(50);
        let node = start(&runtime, settings);
        let (coordinator, _) = door.joined(&truth).await;
        tokio::join!(node.leave(), coordinator.ended());
    });
}

/// Two fixtures that differ are two models: the second is served once nobody serves the first.
#[test]
fn a_node_serves_one_model_at_a_time() {
    let truth = Truth::of_demo();
    let other = Truth::new(root().join("tests/fixtures/mixtral"), truth.kernels);
    run(async {
        let carrier = MemoryCarrier::default();
        let mut doors = ["a", "b"].map(|name| Door::memory(&carrier, name, truth.kernels));
        let runtime = runtime(truth.kernels);
        let addresses = doors.iter().map(Door::address).collect();
        let node = start(&runtime, settings(&truth, "n0", addresses));
        let (mut a, _) = doors[0].joined(&truth).await;
        let (layer, _) = truth.layer();
        a.hold(1, 1, vec![truth.assignment(layer, 0, 0)]).await;
        let (b, _) = doors[1].joined(&other).await;
        assert!(b.ended().await.contains("another model"));
        drop((a, doors));
        let mut door = Door::memory(&carrier, "b", truth.kernels);
        loop {
            // It may come before the node has noticed that the first is gone.
            let (mut b, _) = door.joined(&other).await;
            let rows = other.rows(&mut Random::new(1), 1);
            let (frame, ids) = b.frame(&other, other.layer().0, &rows, &[(0, vec![0])]);
            b.order(2, 1, Vec::new());
            if tokio::time::timeout(Duration::from_secs(5), b.notices.next())
                .await
                .is_ok_and(|it| it.is_some())
            {
                b.peer.send(frame).await.unwrap();
                assert_eq!(b.answers(&ids).await[&ids[0]], Err(Reason::NotHeld));
                break;
            }
        }
        assert_eq!(node.status().await.standing, []);
    });
}
