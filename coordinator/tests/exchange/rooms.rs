//! Bounds: what may be under way at once, and how what does not fit waits.

use phalanx_coordinator::data::exchange::{ExchangeSettings, LinkRoom};
use transport::wire::charge;

use super::support::{ROW_BYTES, WIDE, World};

/// Of a frame of so many rows and one group, or of few.
fn payload(rows: u64) -> u64 {
    64 + rows * ROW_BYTES
}

/// What a group of so many rows takes on its way back.
fn back(rows: u64) -> u64 {
    128 + rows * ROW_BYTES
}

/// A frame that would be too long is cut by rows, and each part has all that its rows need: no row travels twice.
#[test]
fn a_long_frame_is_cut_by_rows() {
    let room = LinkRoom { payload_bytes: 128 + 2 * ROW_BYTES, ..WIDE };
    let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0], &[0]])]);
    world.chosen(0, 0, &[&[0, 1], &[0, 2], &[1, 2], &[1, 0]]);
    let expected = [
        "link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1], d2 e1.0.0 [0], d3 e2.0.0 [1]",
        "link 10 layer 0 rows 3 2: d4 e0.0.0 [0], d5 e1.0.0 [0, 1], d6 e2.0.0 [1]",
    ];
    assert_eq!(world.sent(), expected);
}

/// A table counts too: 16 bytes a group and 4 an index, in steps of 64.
#[test]
fn the_table_counts() {
    // Three groups of one row are 60 bytes of table; a fourth would be 80 and is given the next step of 64.
    for (payload_bytes, frames) in [(64 + ROW_BYTES, 2), (128 + ROW_BYTES, 1)] {
        let room = LinkRoom { payload_bytes, ..WIDE };
        let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0], &[0], &[0]])]);
        world.chosen(0, 0, &[&[0, 1, 2, 3]]);
        assert_eq!(world.sent().len(), frames);
    }
}

/// Nothing is sent that could not come back at once; what waits goes in the order in which it came.
#[test]
fn landing_room_is_taken_before_anything_is_sent() {
    let room = LinkRoom { back_bytes: back(2), ..WIDE };
    let mut world = World::new().links(1, room).placed(&[(0, &[&[0]])]);
    world.chosen(0, 0, &[&[0], &[0], &[0]]);
    world.chosen(0, 3, &[&[0]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
    world.returned(10, 1, 2);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 2 3: d2 e0.0.0 [0, 1]"]);
    world.returned(10, 2, 2);
    assert_eq!(world.whole(), [0, 1, 2, 3]);
}

/// A group has its own header and table on the way back, since it may come alone.
#[test]
fn every_group_has_its_own_way_back() {
    for (back_bytes, frames) in [(2 * back(1) - 1, 1), (2 * back(1), 1), (back(2), 1)] {
        let room = LinkRoom { back_bytes, ..WIDE };
        let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0]])]);
        world.chosen(0, 0, &[&[0, 1]]);
        let sent = world.sent();
        assert_eq!(sent.len(), frames);
        assert_eq!(sent[0].contains("d2"), back_bytes == 2 * back(1), "{sent:?}");
    }
}

/// A frame's credit comes back with the last of its groups.
#[test]
fn credit_is_taken_as_the_link_counts_it() {
    let room = LinkRoom { out_bytes: 2 * charge(payload(1)), ..WIDE };
    let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0]])]);
    // Half of the credit is one row for each actor.
    world.chosen(0, 0, &[&[0, 1]]);
    world.chosen(0, 1, &[&[0, 1]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d1 e0.0.0 [0], d2 e1.0.0 [0]"]);
    world.returned(10, 1, 1);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d3 e0.0.0 [0]"], "expert 1 still holds its half");
    let link = world.exchange.links().next().unwrap();
    assert_eq!(link.out_used, 2 * charge(payload(1)));
    world.returned(10, 3, 1);
    world.returned(10, 2, 1);
    assert_eq!(world.exchange.links().next().unwrap().out_used, 0);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d4 e1.0.0 [0]"]);
}

/// One slow expert cannot take all the credit: it holds at most half, counted in the frames that cannot be
/// released because of it.
#[test]
fn a_slow_expert_leaves_half_of_the_credit() {
    let room = LinkRoom { out_bytes: 8 * charge(payload(1)), ..WIDE };
    let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0]])]);
    let mut dispatch = 0;
    for row in 0..16 {
        world.chosen(0, row, &[&[0, 1]]);
        for frame in world.sent() {
            for group in frame.split(": ").nth(1).unwrap().split(", d") {
                dispatch += 1;
                // Expert 1 never answers.
                if group.contains("e0.") {
                    world.returned(10, dispatch, 1);
                }
            }
        }
    }
    let outstanding: Vec<_> = world.exchange.actors().map(|actor| actor.outstanding).collect();
    assert_eq!(outstanding, [0, 4]);
    let sent: Vec<_> = world.exchange.actors().map(|actor| actor.rows_sent).collect();
    assert_eq!(sent, [16, 4]);
}

/// Dispatches are counted one for each group, as the link does.
#[test]
fn dispatches_in_flight_are_bounded() {
    let room = LinkRoom { dispatches: 3, ..WIDE };
    let mut world = World::new().links(1, room).placed(&[(0, &[&[0], &[0]])]);
    world.chosen(0, 0, &[&[0, 1]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d1 e0.0.0 [0], d2 e1.0.0 [0]"]);
    world.chosen(0, 1, &[&[1, 0]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d3 e1.0.0 [0]"]);
    world.returned(10, 1, 1);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d4 e0.0.0 [0]"]);
}

/// What exceeds an actor's cap goes to the next replica.
#[test]
fn what_would_overload_a_replica_goes_to_another() {
    let room = LinkRoom { out_bytes: 4 * charge(payload(1)), payload_bytes: payload(1), ..WIDE };
    let mut world = World::new().links(2, room).placed(&[(0, &[&[0, 1]])]);
    world.chosen(0, 0, &[&[0], &[0], &[0]]);
    let expected = [
        "link 10 layer 0 rows 0: d1 e0.0.0 [0]",
        "link 10 layer 0 rows 1: d2 e0.0.0 [0]",
        "link 11 layer 0 rows 2: d3 e0.1.0 [0]",
    ];
    assert_eq!(world.sent(), expected);
}

/// What waits for a full link goes elsewhere as soon as another replica's link has room.
#[test]
fn whoever_has_room_first_takes_what_waits() {
    let room = LinkRoom { dispatches: 1, ..WIDE };
    let mut world = World::new().links(2, room).placed(&[(0, &[&[0, 1]])]);
    world.chosen(0, 0, &[&[0]]);
    world.chosen(0, 1, &[&[0]]);
    let expected = ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"];
    assert_eq!(world.sent(), expected);
    world.chosen(0, 2, &[&[0]]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 2: d2 e0.1.0 [0]"]);
    world.chosen(0, 3, &[&[0]]);
    assert_eq!(world.sent(), [""; 0]);
    world.returned(10, 1, 2);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 3: d3 e0.0.0 [0]"]);
    world.chosen(0, 4, &[&[0]]);
    world.returned(11, 2, 1);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 4: d4 e0.1.0 [0]"]);
}

/// A link on which not even one row fits is no way to its node.
#[test]
fn a_link_too_narrow_for_a_row_is_not_used() {
    for narrow in [
        LinkRoom { payload_bytes: payload(1) - 1, ..WIDE },
        LinkRoom { back_bytes: back(1) - 1, ..WIDE },
        LinkRoom { out_bytes: charge(payload(1)) - 1, ..WIDE },
        LinkRoom { dispatches: 0, ..WIDE },
    ] {
        let mut world = World::new().links(1, narrow).placed(&[(0, &[&[0]])]);
        world.chosen_until(0, 0, &[&[0]], world.now + super::support::MS);
        assert_eq!(world.sent(), [""; 0]);
        world.pass_until_due();
        assert_eq!(world.failed(), ["0: no node held expert 0 of layer 0 until the deadline"]);
    }
}

/// Shards answer in f32: what comes back may be longer than what went out, and must fit into one frame too.
#[test]
fn the_way_back_has_its_own_row() {
    let mut settings = ExchangeSettings::new(8, 1, 1, ROW_BYTES);
    settings.return_row_bytes = 2 * ROW_BYTES;
    let room = LinkRoom { back_bytes: 128 + 5 * ROW_BYTES, ..WIDE };
    let mut world = World::with(settings.clone()).links(1, room).placed(&[(0, &[&[0]])]);
    world.chosen(0, 0, &[&[0], &[0], &[0]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);

    let room = LinkRoom { payload_bytes: payload(5), ..WIDE };
    let mut world = World::with(settings.clone()).links(1, room).placed(&[(0, &[&[0]])]);
    world.chosen(0, 0, &[&[0], &[0], &[0]]);
    let expected = ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]", "link 10 layer 0 rows 2: d2 e0.0.0 [0]"];
    assert_eq!(world.sent(), expected);

    // A row that could go out, and never come back.
    let room = LinkRoom { payload_bytes: payload(1), ..WIDE };
    let mut world = World::with(settings).links(1, room).placed(&[(0, &[&[0]])]);
    world.chosen(0, 0, &[&[0]]);
    assert_eq!(world.sent(), [""; 0]);
}
