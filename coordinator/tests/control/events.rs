//! What people are told has happened, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_coordinator::control::events::{Events, Kind};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};
use transport::wire::cluster::Epoch;

/// One layer; for each expert the nodes of its replicas.
fn placement(number: u64, experts: &[&[u32]]) -> Arc<Placement> {
    let replica =
        |(number, node): (u8, &u32)| Replica { number, seats: vec![Seat { node: NodeId(*node), device: 0 }] };
    let experts = experts.iter().map(|nodes| (0..).zip(nodes.iter()).map(replica).collect()).collect();
    Arc::new(Placement { epoch: Epoch { term: 1, number }, layers: BTreeMap::from([(3, experts)]) })
}

fn name(node: NodeId) -> String {
    format!("n{}", node.0)
}

/// The events after a number, as kind and text.
fn after(events: &Events, number: u64) -> Vec<String> {
    let new = events.kept().filter(|event| event.number > number);
    new.map(|event| format!("{}: {}", event.kind.name(), event.text)).collect()
}

/// A node dies that held one expert alone and one with another: who goes on, what waits, who takes over, and when all is
/// well again.
#[test]
fn a_death_is_told_to_its_end() {
    let now = Instant::now();
    let mut events = Events::default();
    for node in 0..3 {
        events.handle_joined(NodeId(node), &name(NodeId(node)), 2, now);
    }
    events.handle_published(&placement(1, &[&[0], &[]]), name, now);
    events.handle_published(&placement(2, &[&[0], &[0, 1]]), name, now);
    let expected = [
        "joined: n0 joined with 2 devices",
        "joined: n1 joined with 2 devices",
        "joined: n2 joined with 2 devices",
        "epoch: epoch 1.1, came: 1 at n0",
        "epoch: epoch 1.2, came: 1 at n0, 1 at n1",
        "serving: all 2 experts have a holder",
    ];
    assert_eq!(after(&events, 0), expected);

    let told = events.count();
    events.handle_gone(NodeId(0), "n0", false, "its link was cut", now + Duration::from_secs(1));
    let at = now + Duration::from_secs(2);
    events.handle_published(&placement(3, &[&[], &[1]]), name, at);
    let expected = [
        "lost: n0 is lost: its link was cut",
        "took_over: other replicas go on with 1 expert of n0",
        "waiting: 1 expert has no holder: n0 held it last",
        "epoch: epoch 1.3, went: 1 at n0",
    ];
    assert_eq!(after(&events, told), expected);
    let orphan = &events.orphans()[&(3, 0)];
    assert_eq!((orphan.node.as_str(), orphan.since), ("n0", at));

    let told = events.count();
    events.handle_published(&placement(4, &[&[2], &[1]]), name, at);
    let expected = [
        "took_over: n2 took over 1 expert of n0",
        "epoch: epoch 1.4, came: 1 at n2",
        "serving: all 2 experts have a holder",
    ];
    assert_eq!(after(&events, told), expected);
    assert!(events.orphans().is_empty());
}

/// A cluster may live for years, and an epoch may concern hundreds of nodes.
#[test]
fn what_is_kept_and_what_is_named_is_bounded() {
    let now = Instant::now();
    let mut events = Events::default();
    events.handle_joined(NodeId(1), "n1", 1, now);
    for _ in 1..500 {
        events.handle(Kind::Late, Some("n1"), "n1 is late: ".to_owned() + &"é".repeat(1000), now);
    }
    // Who comes and goes all night does not drive out the others.
    let numbers: Vec<u64> = events.kept().map(|event| event.number).collect();
    assert_eq!(numbers, [1].into_iter().chain(437..=500).collect::<Vec<_>>());
    assert!(events.kept().all(|event| event.text.chars().count() <= 401));
    for kind in [Kind::Awake, Kind::Lost, Kind::Left, Kind::Leaving] {
        (0..125).for_each(|_| events.handle(kind, None, "x", now));
    }
    assert_eq!((events.kept().count(), events.count()), (256, 1000));

    let nodes: Vec<Vec<u32>> = (0..300).map(|node| vec![node % 100]).collect();
    let nodes: Vec<&[u32]> = nodes.iter().map(Vec::as_slice).collect();
    events.handle_published(&placement(1, &nodes), name, now);
    let text = &after(&events, 1000)[0];
    assert_eq!(text, "epoch: epoch 1.1, came: 3 at n0, 3 at n1, 3 at n10, 3 at n11, 288 at 96 other nodes");
}
