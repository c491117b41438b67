//! Where rows go, and where they land, while nothing fails.

use phalanx_coordinator::data::exchange::ExchangeSettings;

use super::support::{ROW_BYTES, WIDE, World, sharded};

/// One frame carries the groups of all experts of a node, and a row that two of them need travels once.
#[test]
fn a_node_gets_one_frame_with_each_row_once() {
    let mut world = World::new().links(2, WIDE).placed(&[(3, &[&[0], &[0], &[1], &[1]])]);
    world.chosen(3, 5, &[&[0, 1], &[1, 2], &[3, 0]]);
    let expected = [
        "link 10 layer 3 rows 5 7 6: d1 e0.0.0 [0, 1], d2 e1.0.0 [0, 2]",
        "link 11 layer 3 rows 6 7: d3 e2.0.0 [0], d4 e3.0.0 [1]",
    ];
    assert_eq!(world.sent(), expected);
}

/// Slots are `(row * top_k_max + rank) * shards + shard`, with four ranks here.
#[test]
fn returns_land_by_rank_and_a_row_is_whole_with_its_last() {
    let mut world = World::new().links(2, WIDE).placed(&[(3, &[&[0], &[0], &[1], &[1]])]);
    world.chosen(3, 5, &[&[0, 1], &[1, 2], &[3, 0]]);
    world.sent();
    assert_eq!(world.returned(11, 4, 1), "28");
    assert_eq!(world.returned(10, 2, 2), "21 24");
    assert!(world.whole().is_empty());
    assert_eq!(world.returned(10, 1, 2), "20 29");
    assert_eq!(world.whole(), [5, 7]);
    assert_eq!(world.returned(11, 3, 1), "25");
    assert_eq!(world.whole(), [6]);
    assert_eq!(world.sent(), [""; 0]);
    assert_eq!(world.exchange.dispatches_open(), 0);
}

/// A frame's rows are in the order in which groups meet them; a later group may need them in another.
#[test]
fn slots_follow_the_order_of_the_rows_that_were_sent() {
    let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0], &[0]])]);
    world.chosen(0, 0, &[&[1], &[0], &[1]]);
    // Row 1 meets expert 0 only after rows of expert 1 were numbered.
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 2 1: d1 e1.0.0 [0, 1], d2 e0.0.0 [2]"]);
    world.returned(10, 1, 2);
    world.returned(10, 2, 1);
    world.whole();
    world.chosen(0, 3, &[&[0, 1], &[1, 0], &[0, 1]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 3 4 5: d3 e0.0.0 [0, 1, 2], d4 e1.0.0 [0, 1, 2]"]);
    assert_eq!(world.returned(10, 4, 3), "13 16 21");
}

/// Experts of different layers never share a frame: a header has one layer.
#[test]
fn a_frame_is_of_one_layer() {
    let mut world = World::new().links(1, WIDE).placed(&[(3, &[&[0]]), (4, &[&[0]])]);
    world.chosen(4, 0, &[&[0]]);
    world.chosen(3, 1, &[&[0]]);
    world.chosen(4, 2, &[&[0]]);
    let expected = ["link 10 layer 4 rows 0 2: d1 e0.0.0 [0, 1]", "link 10 layer 3 rows 1: d2 e0.0.0 [0]"];
    assert_eq!(world.sent(), expected);
}

/// Every shard of an expert has its own seat and its own slot.
#[test]
fn every_shard_gets_the_rows_of_its_expert() {
    let mut world = World::with(ExchangeSettings::new(8, 2, 2, ROW_BYTES)).links(3, WIDE);
    world.exchange.handle_placement(sharded(1, 2, &[(0, &[&[0], &[1]])]), world.now);
    world.chosen(0, 1, &[&[1, 0]]);
    let expected = [
        "link 11 layer 0 rows 1: d1 e1.0.0 [0], d2 e0.0.1 [0]",
        "link 12 layer 0 rows 1: d3 e1.0.1 [0]",
        "link 10 layer 0 rows 1: d4 e0.0.0 [0]",
    ];
    assert_eq!(world.sent(), expected);
    // Rank 0 is expert 1, rank 1 expert 0; four slots a row.
    assert_eq!(world.returned(11, 1, 1), "4");
    assert_eq!(world.returned(11, 2, 1), "7");
    assert_eq!(world.returned(12, 3, 1), "5");
    assert!(world.whole().is_empty());
    assert_eq!(world.returned(10, 4, 1), "6");
    assert_eq!(world.whole(), [1]);
}

/// The rows of one batch for one expert stay together, at the replica that has less to do.
#[test]
fn the_less_loaded_replica_gets_a_whole_group() {
    let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1]])]);
    world.chosen(0, 0, &[&[0], &[0], &[0]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1 2: d1 e0.0.0 [0, 1, 2]"], "ties go to the first");
    world.chosen(0, 3, &[&[0]]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 3: d2 e0.1.0 [0]"]);
    world.chosen(0, 4, &[&[0]]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 4: d3 e0.1.0 [0]"], "one is less than three");
    world.returned(10, 1, 3);
    world.chosen(0, 5, &[&[0]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 5: d4 e0.0.0 [0]"]);
}

/// One row after the other, so that nobody has more to do than the other: how many of them each of two replicas gets.
fn one_by_one(times_ms: [u32; 2], rows: u32) -> [u32; 2] {
    let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1]])]);
    let mut got = [0, 0];
    for dispatch in 1..=u64::from(rows) {
        world.chosen(0, 0, &[&[0]]);
        let sent = world.sent();
        let node = u32::from(sent[0].starts_with("link 11"));
        got[node as usize] += 1;
        world.pass(times_ms[node as usize] * super::support::MS);
        world.returned(10 + node, dispatch, 1);
        world.whole();
    }
    got
}

/// A node that is far away, or slow, is asked less; and again now and then, for it may have become quicker.
#[test]
fn the_quicker_replica_gets_more() {
    let [slow, quick] = one_by_one([10, 1], 3000);
    assert!((5..=100).contains(&slow), "{slow} to the slow one, {quick} to the other");
    let [one, other] = one_by_one([4, 4], 3000);
    assert!(one.abs_diff(other) < 100, "{one} and {other}");
}

/// A row comes back at its next layer and uses its slots again.
#[test]
fn a_row_goes_from_layer_to_layer() {
    let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0]]), (1, &[&[0]])]);
    for layer in [0, 1] {
        world.chosen(layer, 7, &[&[0]]);
        let dispatch = u64::from(layer) + 1;
        assert_eq!(world.sent(), [format!("link 10 layer {layer} rows 7: d{dispatch} e0.0.0 [0]")]);
        assert_eq!(world.returned(10, dispatch, 1), "28");
        assert_eq!(world.whole(), [7]);
    }
}

/// What is seen of an actor is what went to it and came back.
#[test]
fn actors_and_links_are_observed() {
    let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0], &[0]])]);
    world.chosen(0, 0, &[&[0, 1], &[0, 1]]);
    world.sent();
    world.pass(8 * super::support::MS);
    world.returned(10, 1, 2);
    let seen: Vec<_> = world.exchange.actors().collect();
    let figures = |at: usize| (seen[at].outstanding, seen[at].rows_sent, seen[at].rows_returned);
    assert_eq!([figures(0), figures(1)], [(0, 2, 2), (2, 2, 0)]);
    assert_eq!(seen[0].service_recent, 8 * super::support::MS);
    assert_eq!(seen[0].service_sum, 8 * super::support::MS);
    assert_eq!(world.exchange.actors_of(0, 1).collect::<Vec<_>>(), seen[1..]);
    let link = world.exchange.links().next().unwrap();
    // Header, a table of two entries and four indices, two rows; back: header, table, two rows.
    assert_eq!(link.bytes_out, 64 + 64 + 2 * ROW_BYTES);
    assert_eq!(link.bytes_back, 64 + 64 + 2 * ROW_BYTES);
    assert_eq!(link.dispatches, 1);
}
