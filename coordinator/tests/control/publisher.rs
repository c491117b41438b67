//! Whole action lists of the publisher: starts, deaths, loads that fail, moves under way.
//!
//! Actions are written short. `tell 1 #3: 0.2/1@0` tells node 1 by order 3 to hold replica 1 of expert 2 of layer 0
//! on device 0; `publish #4: 0.2/1@1:0` publishes that seat as epoch 4.

use phalanx_coordinator::control::publisher::{Action, Publisher};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};
use transport::wire::cluster::{ActorId, Epoch};

use super::make::demand;

/// A publisher with its term.
fn publisher(experts: u32) -> Publisher {
    let mut publisher = Publisher::new(demand(0..1, experts, 10));
    publisher.handle_term(1);
    publisher
}

fn shown(action: Action) -> String {
    match action {
        Action::Tell { node, epoch, actors } => {
            let actors: Vec<_> = actors
                .iter()
                .map(|(actor, device)| {
                    format!(" {}.{}/{}@{device}", actor.layer, actor.expert, actor.replica)
                })
                .collect();
            format!("tell {} #{}:{}", node.0, epoch.number, actors.concat())
        }
        Action::Publish(placement) => {
            let actors = placement.actors().map(|(actor, seat)| {
                let (layer, expert, replica) = (actor.layer, actor.expert, actor.replica);
                format!(" {layer}.{expert}/{replica}@{}:{}", seat.node.0, seat.device)
            });
            format!("publish #{}:{}", placement.epoch.number, actors.collect::<String>())
        }
        Action::Failed { node, actor, why } => {
            format!("failed {} {}.{}: {why}", node.0, actor.layer, actor.expert)
        }
        Action::Superseded { term } => format!("superseded by {term}"),
    }
}

fn actions(publisher: &mut Publisher) -> Vec<String> {
    std::iter::from_fn(|| publisher.poll_action()).map(shown).collect()
}

/// For each expert of layer 0, replicas as (number, node, device).
fn wanted(experts: &[&[(u8, u32, u16)]]) -> Placement {
    let replica = |&(number, node, device): &(u8, u32, u16)| {
        let seats = vec![Seat { node: NodeId(node), device }];
        Replica { number, seats }
    };
    let experts = experts.iter().map(|replicas| replicas.iter().map(replica).collect()).collect();
    Placement { layers: [(0, experts)].into(), ..Placement::default() }
}

fn joined(publisher: &mut Publisher, nodes: std::ops::Range<u32>, memory: u64) {
    for node in nodes {
        publisher.handle_joined(NodeId(node), vec![memory], &[]);
    }
}

fn epoch(number: u64) -> Epoch {
    Epoch { term: 1, number }
}

fn holding(publisher: &mut Publisher, node: u32, order: u64) {
    publisher.handle_holding(NodeId(node), epoch(order), &[]);
}

fn actor(expert: u32, replica: u8) -> ActorId {
    ActorId { layer: 0, expert, replica, shard: 0 }
}

/// Two experts on nodes 0 and 1, published as epoch 4; node 2 was told to hold nothing.
fn running() -> Publisher {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..3, 30);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 0, 1);
    holding(&mut publisher, 1, 2);
    assert_eq!(
        actions(&mut publisher),
        ["tell 0 #1: 0.0/0@0", "tell 1 #2: 0.1/0@0", "tell 2 #3:", "publish #4: 0.0/0@0:0 0.1/0@1:0"]
    );
    publisher
}

#[test]
fn one_node_is_told_and_published_when_it_holds() {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..1, 100);
    assert_eq!(actions(&mut publisher), [""; 0]);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 0, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 0 #1: 0.0/0@0 0.1/0@0"]);
    holding(&mut publisher, 0, 1);
    assert_eq!(actions(&mut publisher), ["publish #2: 0.0/0@0:0 0.1/0@0:0"]);
    holding(&mut publisher, 0, 1);
    assert_eq!(actions(&mut publisher), [""; 0], "said twice is said once");
}

/// Not before every expert has a holder; then at once, although a replica is still being loaded.
#[test]
fn two_nodes_are_published_when_every_expert_has_a_holder() {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..2, 100);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0), (1, 1, 0)], &[(0, 0, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 0 #1: 0.0/0@0 0.1/0@0", "tell 1 #2: 0.0/1@0"]);
    holding(&mut publisher, 0, 1);
    assert_eq!(actions(&mut publisher), ["publish #3: 0.0/0@0:0 0.1/0@0:0"]);
    holding(&mut publisher, 1, 2);
    assert_eq!(actions(&mut publisher), ["publish #4: 0.0/0@0:0 0.0/1@1:0 0.1/0@0:0"]);
}

#[test]
fn five_nodes_are_published_once() {
    let mut publisher = publisher(5);
    joined(&mut publisher, 0..5, 10);
    let seats: Vec<[(u8, u32, u16); 1]> = (0..5).map(|node| [(0, node, 0)]).collect();
    publisher.handle_wanted(wanted(&seats.iter().map(|seats| &seats[..]).collect::<Vec<_>>()));
    let told = actions(&mut publisher);
    assert_eq!((told.len(), &told[4][..]), (5, "tell 4 #5: 0.4/0@0"));
    for node in [3, 1, 4, 0] {
        holding(&mut publisher, node, u64::from(node) + 1);
        assert_eq!(actions(&mut publisher), [""; 0]);
    }
    holding(&mut publisher, 2, 3);
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/0@0:0 0.1/0@1:0 0.2/0@2:0 0.3/0@3:0 0.4/0@4:0"]);
}

/// Nothing may be said before the term is on disk.
#[test]
fn nothing_is_said_without_a_term() {
    let mut publisher = Publisher::new(demand(0..1, 1, 10));
    joined(&mut publisher, 0..1, 10);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)]]));
    assert_eq!(actions(&mut publisher), [""; 0]);
    publisher.handle_term(1);
    assert_eq!(actions(&mut publisher), ["tell 0 #1: 0.0/0@0"]);
}

/// The new one is loaded first; the old one is dropped last, when nothing uses it.
#[test]
fn a_move_loads_publishes_and_only_then_drops() {
    let mut publisher = running();
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0"]);
    holding(&mut publisher, 2, 5);
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/1@2:0 0.1/0@1:0"]);
    assert_eq!(publisher.standing().lingering, 1);
    publisher.handle_closed_through(epoch(4));
    assert_eq!(actions(&mut publisher), [""; 0], "a dispatch under epoch 3 may still be open");
    publisher.handle_closed_through(epoch(6));
    assert_eq!(actions(&mut publisher), ["tell 0 #7:"]);
}

/// Rows go on with the replica; the dead one is out of the placement at once, before anything is found for it.
#[test]
fn a_death_with_a_replica_is_published_at_once() {
    let mut publisher = running();
    publisher.handle_wanted(wanted(&[&[(0, 0, 0), (1, 2, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 2, 5);
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0", "publish #6: 0.0/0@0:0 0.0/1@2:0 0.1/0@1:0"]);
    publisher.handle_link_ended(NodeId(0));
    assert_eq!(actions(&mut publisher), ["publish #7: 0.0/1@2:0 0.1/0@1:0"]);
}

/// The expert has nobody for a while; as soon as a spare holds it, it is published, although others still load.
#[test]
fn a_death_without_a_replica_is_mended_by_a_spare() {
    let mut publisher = running();
    joined(&mut publisher, 3..4, 30);
    publisher.handle_link_ended(NodeId(0));
    assert_eq!(actions(&mut publisher), ["publish #5: 0.1/0@1:0"]);
    assert_eq!(publisher.standing().missing, 1);
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0), (1, 3, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #6: 0.0/1@0", "tell 3 #7: 0.1/1@0"]);
    holding(&mut publisher, 2, 6);
    assert_eq!(actions(&mut publisher), ["publish #8: 0.0/1@2:0 0.1/0@1:0"]);
}

/// It was away for a moment: nothing is loaded anywhere, and what was being loaded elsewhere is not needed.
#[test]
fn a_node_that_comes_back_keeps_what_it_holds() {
    let mut publisher = running();
    publisher.handle_link_ended(NodeId(0));
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["publish #5: 0.1/0@1:0", "tell 2 #6: 0.0/1@0"]);
    publisher.handle_joined(NodeId(0), vec![30], &[(actor(0, 0), 0)]);
    assert_eq!(actions(&mut publisher), ["publish #7: 0.0/0@0:0 0.1/0@1:0"]);
    let kept = publisher.previous();
    assert_eq!(kept.replicas(0, 0)[0], wanted(&[&[(0, 0, 0)]]).replicas(0, 0)[0]);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 0 #8: 0.0/0@0", "tell 2 #9:"]);
}

/// Its link broke while others took over all that it had: it is told to let go of that, although it gets nothing new.
#[test]
fn a_node_that_comes_back_is_told_to_drop_what_others_have() {
    let mut publisher = running();
    publisher.handle_link_ended(NodeId(0));
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 2, 6);
    assert_eq!(
        actions(&mut publisher),
        ["publish #5: 0.1/0@1:0", "tell 2 #6: 0.0/1@0", "publish #7: 0.0/1@2:0 0.1/0@1:0"]
    );
    publisher.handle_joined(NodeId(0), vec![30], &[(actor(0, 0), 0)]);
    assert_eq!(actions(&mut publisher), [""; 0], "nothing before it is known what is wanted of it");
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 0 #8:"]);
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), [""; 0], "once");
}

/// A number that somebody may come back with is not given out again.
#[test]
fn numbers_of_the_departed_are_reserved() {
    let mut publisher = running();
    publisher.handle_link_ended(NodeId(0));
    let numbers = |publisher: &Publisher| -> Vec<(u8, usize)> {
        let previous = publisher.previous();
        previous.replicas(0, 0).iter().map(|replica| (replica.number, replica.seats.len())).collect()
    };
    assert_eq!(numbers(&publisher), [(0, 1)], "what is wanted and lost keeps its seats, dead or not");
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(numbers(&publisher), [(1, 1), (0, 0)]);
}

/// The order that a node carries out is always the whole: a second one replaces the first.
#[test]
fn a_node_joins_during_a_load() {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..1, 20);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 0, 0)]]));
    joined(&mut publisher, 1..2, 20);
    assert_eq!(actions(&mut publisher), ["tell 0 #1: 0.0/0@0 0.1/0@0"]);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(1, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 0 #2: 0.0/0@0", "tell 1 #3: 0.1/1@0"]);
    holding(&mut publisher, 0, 1);
    holding(&mut publisher, 1, 3);
    assert_eq!(actions(&mut publisher), [""; 0], "the answer to an order that was replaced is not taken");
    holding(&mut publisher, 0, 2);
    assert_eq!(actions(&mut publisher), ["publish #4: 0.0/0@0:0 0.1/1@1:0"]);
}

/// Half way through a move another is wanted: what is published stays published, whatever comes.
#[test]
fn another_placement_is_wanted_in_the_middle() {
    let mut publisher = running();
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(1, 2, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0 0.1/1@0"]);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(1, 2, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #6: 0.1/1@0"]);
    holding(&mut publisher, 2, 6);
    assert_eq!(actions(&mut publisher), ["publish #7: 0.0/0@0:0 0.1/1@2:0"]);
    publisher.handle_closed_through(epoch(7));
    assert_eq!(actions(&mut publisher), ["tell 1 #8:"]);
}

/// The expert keeps its old holder, and the others do not wait for it.
#[test]
fn a_load_that_fails_blocks_nobody() {
    let mut publisher = running();
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(1, 2, 0)]]));
    publisher.handle_holding(NodeId(2), epoch(5), &[(actor(0, 1), "digest differs".into())]);
    assert_eq!(
        actions(&mut publisher),
        [
            "tell 2 #5: 0.0/1@0 0.1/1@0",
            "failed 2 0.0: digest differs",
            "tell 2 #6: 0.1/1@0",
            "publish #7: 0.0/0@0:0 0.1/1@2:0",
        ]
    );
    assert_eq!(publisher.banned().iter().copied().collect::<Vec<_>>(), [(0, 0, NodeId(2))]);
}

/// Nobody holds it at all: the rest is published all the same.
#[test]
fn an_expert_that_nobody_can_load_is_left_out() {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..2, 30);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 1, 2);
    publisher.handle_holding(NodeId(0), epoch(1), &[(actor(0, 0), "no file".into())]);
    assert_eq!(
        actions(&mut publisher)[2..],
        ["failed 0 0.0: no file", "tell 0 #3:", "publish #4: 0.1/0@1:0"]
    );
    publisher.handle_wanted(wanted(&[&[(1, 1, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 1, 5);
    assert_eq!(actions(&mut publisher), ["tell 1 #5: 0.0/1@0 0.1/0@0", "publish #6: 0.0/1@1:0 0.1/0@1:0"]);
}

/// There is room for one: the old one is moved away before the new one comes.
#[test]
fn what_does_not_fit_waits_until_something_was_dropped() {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..3, 10);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 1, 0)]]));
    holding(&mut publisher, 0, 1);
    holding(&mut publisher, 1, 2);
    actions(&mut publisher);
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(1, 0, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0"]);
    assert_eq!(publisher.standing().waiting, 1);
    holding(&mut publisher, 2, 5);
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/1@2:0 0.1/0@1:0"]);
    publisher.handle_closed_through(epoch(6));
    assert_eq!(actions(&mut publisher), ["tell 0 #7: 0.1/1@0"]);
    holding(&mut publisher, 0, 7);
    assert_eq!(actions(&mut publisher), ["publish #8: 0.0/1@2:0 0.1/1@0:0"]);
    publisher.handle_closed_through(epoch(8));
    assert_eq!(actions(&mut publisher), ["tell 1 #9:"]);
    assert!(publisher.is_idle(NodeId(1)));
}

/// Two full devices that are to change places, on node 0 and 1; whoever was told something holds it.
fn exchange(spare: &[u64], replicas: [&[(u8, u32, u16)]; 2]) -> Publisher {
    let mut publisher = publisher(2);
    joined(&mut publisher, 0..2, 10);
    for (node, memory) in (2..).zip(spare) {
        publisher.handle_joined(NodeId(node), vec![*memory], &[]);
    }
    publisher.handle_wanted(wanted(&replicas));
    (0..2 + spare.len() as u32).for_each(|node| holding(&mut publisher, node, u64::from(node) + 1));
    actions(&mut publisher);
    publisher
}

/// Nobody else holds either of them and nobody has room for a moment: nothing is taken from anybody, and that is said.
#[test]
fn an_exchange_without_room_is_not_begun() {
    let mut publisher = exchange(&[], [&[(0, 0, 0)], &[(0, 1, 0)]]);
    publisher.handle_wanted(wanted(&[&[(1, 1, 0)], &[(1, 0, 0)]]));
    assert_eq!(actions(&mut publisher), [""; 0]);
    let standing = publisher.standing();
    assert_eq!((standing.waiting, standing.loading, standing.blocked), (2, 0, true));
}

/// A device that has room holds one of them while the two change places; every expert has a holder all the time.
#[test]
fn an_exchange_goes_through_spare_room() {
    let mut publisher = exchange(&[10], [&[(0, 0, 0)], &[(0, 1, 0)]]);
    publisher.handle_wanted(wanted(&[&[(1, 1, 0)], &[(1, 0, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/2@0"]);
    assert!(!publisher.standing().blocked);
    holding(&mut publisher, 2, 5);
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/2@2:0 0.1/0@1:0"]);
    publisher.handle_closed_through(epoch(6));
    assert_eq!(actions(&mut publisher), ["tell 0 #7: 0.1/1@0"]);
    holding(&mut publisher, 0, 7);
    assert_eq!(actions(&mut publisher), ["publish #8: 0.0/2@2:0 0.1/1@0:0"]);
    publisher.handle_closed_through(epoch(8));
    assert_eq!(actions(&mut publisher), ["tell 1 #9: 0.0/1@0"]);
    holding(&mut publisher, 1, 9);
    assert_eq!(actions(&mut publisher), ["publish #10: 0.0/1@1:0 0.1/1@0:0"]);
    publisher.handle_closed_through(epoch(10));
    assert_eq!(actions(&mut publisher), ["tell 2 #11:"]);
    let standing = publisher.standing();
    assert_eq!((standing.waiting, standing.lingering, standing.blocked), (0, 0, false));
}

/// One of them has another holder: it goes early, and nothing is loaded twice for it.
#[test]
fn an_exchange_begins_with_what_others_hold_too() {
    let mut publisher = exchange(&[10], [&[(0, 0, 0), (1, 2, 0)], &[(0, 1, 0)]]);
    publisher.handle_wanted(wanted(&[&[(1, 2, 0), (2, 1, 0)], &[(1, 0, 0)]]));
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/1@2:0 0.1/0@1:0"]);
    publisher.handle_closed_through(epoch(6));
    assert_eq!(actions(&mut publisher), ["tell 0 #7: 0.1/1@0"]);
    holding(&mut publisher, 0, 7);
    assert_eq!(actions(&mut publisher), ["publish #8: 0.0/1@2:0 0.1/1@0:0"]);
    publisher.handle_closed_through(epoch(8));
    assert_eq!(actions(&mut publisher), ["tell 1 #9: 0.0/2@0"]);
    holding(&mut publisher, 1, 9);
    assert_eq!(actions(&mut publisher), ["publish #10: 0.0/1@2:0 0.0/2@1:0 0.1/1@0:0"]);
}

/// Nodes obey the highest term that they have seen: everybody is told anew under a new one.
#[test]
fn a_new_term_is_told_to_everybody() {
    let mut publisher = running();
    publisher.handle_term(7);
    let all: Vec<_> = std::iter::from_fn(|| publisher.poll_action()).collect();
    let terms: Vec<_> = all
        .iter()
        .map(|action| match action {
            Action::Tell { node, epoch, .. } => (node.0, epoch.term, epoch.number),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(terms, [(0, 7, 5), (1, 7, 6), (2, 7, 7)]);
    publisher.handle_holding(NodeId(0), epoch(1), &[(actor(0, 0), "of another life".into())]);
    assert_eq!(actions(&mut publisher), [""; 0], "an answer under the old term is stale");
}

/// It stops and says so, once; a higher term of its own lets it go on.
#[test]
fn another_publisher_stops_this_one() {
    let mut publisher = running();
    publisher.handle_stale(1);
    assert_eq!(actions(&mut publisher), [""; 0], "that is our own term");
    publisher.handle_stale(4);
    publisher.handle_stale(5);
    publisher.handle_link_ended(NodeId(0));
    assert_eq!(actions(&mut publisher), ["superseded by 4"]);
    publisher.handle_term(6);
    assert_eq!(actions(&mut publisher), ["tell 1 #5: 0.1/0@0", "tell 2 #6:", "publish #7: 0.1/0@1:0"]);
}

/// An actor may be lost before it is published: as one that came with its node, or of a replica whose other shards are still
/// to come.
#[test]
fn where_an_actor_sits_is_known_before_it_is_published() {
    let mut publisher = publisher(2);
    publisher.handle_joined(NodeId(0), vec![10, 10], &[(actor(0, 3), 1)]);
    assert_eq!(publisher.published().actors().count(), 0);
    assert_eq!(publisher.device_of(NodeId(0), actor(0, 3)), Some(1), "it came with it");
    publisher.handle_wanted(wanted(&[&[(3, 0, 1)], &[(0, 0, 0)]]));
    assert_eq!(publisher.device_of(NodeId(0), actor(1, 0)), Some(0), "it was told to");
    assert_eq!(publisher.device_of(NodeId(0), actor(1, 1)), None);
    assert_eq!(publisher.device_of(NodeId(1), actor(1, 0)), None);
}

/// What a device held is gone at once, while its node stays.
#[test]
fn a_lost_device_is_published_at_once() {
    let mut publisher = publisher(2);
    publisher.handle_joined(NodeId(0), vec![10, 10], &[]);
    publisher.handle_wanted(wanted(&[&[(0, 0, 0)], &[(0, 0, 1)]]));
    holding(&mut publisher, 0, 1);
    actions(&mut publisher);
    publisher.handle_device_lost(NodeId(0), 0);
    assert_eq!(actions(&mut publisher), ["tell 0 #3: 0.1/0@1", "publish #4: 0.1/0@0:1"]);
}

/// A coordinator that restarts finds what nodes hold, and loads nothing.
#[test]
fn what_nodes_hold_at_the_start_is_published_at_once() {
    let mut publisher = publisher(2);
    publisher.handle_joined(NodeId(0), vec![30], &[(actor(0, 3), 0)]);
    publisher.handle_joined(NodeId(1), vec![30], &[(actor(1, 2), 0), (actor(9, 0), 0), (actor(1, 0), 7)]);
    let previous = publisher.previous();
    assert_eq!(previous.layers, wanted(&[&[(3, 0, 0)], &[(2, 1, 0)]]).layers);
    publisher.handle_wanted(previous);
    assert_eq!(
        actions(&mut publisher),
        ["tell 0 #1: 0.0/3@0", "tell 1 #2: 0.1/2@0", "publish #3: 0.0/3@0:0 0.1/2@1:0"]
    );
}

/// Of what is to find no seat, nothing is given up before all else is where it should be; and then at once.
#[test]
fn what_found_no_seat_is_given_up_when_the_rest_has_moved() {
    let mut publisher = running();
    // Node 0 is drained by force: expert 0 has room on node 2, expert 1 stays. Then node 1 too, and there is no room.
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0"]);
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[]]));
    assert_eq!(actions(&mut publisher), [""; 0], "node 2 loads");
    assert!(!publisher.is_idle(NodeId(0)) && !publisher.is_idle(NodeId(1)));
    holding(&mut publisher, 2, 5);
    assert_eq!(actions(&mut publisher), ["publish #6: 0.0/1@2:0"]);
    assert_eq!(publisher.standing().missing, 1);
    publisher.handle_closed_through(epoch(6));
    assert_eq!(actions(&mut publisher), ["tell 0 #7:", "tell 1 #8:"]);
    assert!(publisher.is_idle(NodeId(0)) && publisher.is_idle(NodeId(1)));
    // Undone: it is loaded again where it was, under a number that nobody has.
    publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(1, 1, 0)]]));
    assert_eq!(actions(&mut publisher), ["tell 1 #9: 0.1/1@0"]);
    holding(&mut publisher, 0, 7);
    holding(&mut publisher, 1, 9);
    assert_eq!(actions(&mut publisher), ["publish #10: 0.0/1@2:0 0.1/1@1:0"]);
}

/// The node that takes over dies while it loads, and so does the drained one: what lives is served, whatever the order.
#[test]
fn deaths_during_a_drain_take_nothing_from_those_who_live() {
    for drained_dies_first in [true, false] {
        let mut publisher = running();
        publisher.handle_wanted(wanted(&[&[(1, 2, 0)], &[(0, 1, 0)]]));
        assert_eq!(actions(&mut publisher), ["tell 2 #5: 0.0/1@0"]);
        if drained_dies_first {
            publisher.handle_link_ended(NodeId(0));
            assert_eq!(actions(&mut publisher), ["publish #6: 0.1/0@1:0"], "nobody holds expert 0");
            holding(&mut publisher, 2, 5);
            assert_eq!(actions(&mut publisher), ["publish #7: 0.0/1@2:0 0.1/0@1:0"]);
            continue;
        }
        publisher.handle_link_ended(NodeId(2));
        assert_eq!(actions(&mut publisher), [""; 0], "the drained one serves on");
        publisher.handle_wanted(wanted(&[&[(2, 1, 0)], &[(0, 1, 0)]]));
        assert_eq!(actions(&mut publisher), ["tell 1 #6: 0.0/2@0 0.1/0@0"]);
        holding(&mut publisher, 1, 6);
        assert_eq!(actions(&mut publisher), ["publish #7: 0.0/2@1:0 0.1/0@1:0"]);
        publisher.handle_closed_through(epoch(7));
        assert_eq!(actions(&mut publisher), ["tell 0 #8:"]);
    }
}
