//! Rows that may go on without experts that nobody holds: when they do, and when they wait like all others.

use transport::wire::groups::Reason;

use super::support::{MS, ROW_BYTES, WIDE, World, sharded};

const NOTHING: [&str; 0] = [""; 0];

/// Experts 0 and 1 on nodes 0 and 1, expert 2 on nobody.
fn world() -> World {
    World::new().links(2, WIDE).placed(&[(0, &[&[0], &[1], &[]])])
}

/// Nobody holds it, so nobody is asked; the other row has no such request, and waits.
#[test]
fn what_nobody_holds_is_left_out_at_once() {
    let mut world = world();
    world.may_leave_out(&[0]);
    world.chosen(0, 0, &[&[2, 0], &[2, 0]]);
    assert_eq!(world.left_out(), ["row 0 goes without 0: expert 2 of layer 0"]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
    assert_eq!(world.returned(10, 1, 2), "1 5");
    assert_eq!(world.whole(), [0]);
    // It is so for one layer: the same row, without it being said again, waits like the other.
    world.chosen(0, 0, &[&[2, 1]]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 0: d2 e1.0.0 [0]"]);
    world.returned(11, 2, 1);
    assert_eq!((world.left_out(), world.whole()), (vec![], vec![]));
    world.place(2, &[(0, &[&[0], &[1], &[1]])]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 1 0: d3 e2.0.0 [0, 1]"]);
    assert_eq!(world.returned(11, 3, 2), "4 0");
    assert_eq!(world.whole(), [1, 0]);
    assert_eq!(world.exchange.counters().left_out, 1);
}

#[test]
fn a_row_may_lack_all_of_its_experts() {
    let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[], &[]])]);
    world.may_leave_out(&[3]);
    world.chosen(0, 3, &[&[1, 0]]);
    assert_eq!(
        world.left_out(),
        ["row 3 goes without 0: expert 1 of layer 0", "row 3 goes without 1: expert 0 of layer 0"]
    );
    assert_eq!((world.whole(), world.sent()), (vec![3], vec![]));
    assert_eq!(world.exchange.poll_timeout(), None, "nothing of it is left");
}

/// Both what was out and what waited behind it, when the last holder dies; not while another replica stands.
#[test]
fn what_is_out_is_left_out_when_its_last_holder_dies() {
    let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1], &[0]])]);
    world.may_leave_out(&[0, 1]);
    world.chosen(0, 0, &[&[0, 1], &[0, 1], &[0, 1]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1 2: d1 e0.0.0 [0, 1, 2], d2 e1.0.0 [0, 1, 2]"]);
    world.link_ended(10);
    assert_eq!(
        world.left_out(),
        ["row 0 goes without 1: expert 1 of layer 0", "row 1 goes without 1: expert 1 of layer 0"]
    );
    assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1 2: d3 e0.1.0 [0, 1, 2]"], "the other has a holder");
    assert!(world.whole().is_empty());
    world.returned(11, 3, 3);
    assert_eq!(world.whole(), [0, 1]);
    // What comes from the dead link after all finds nobody.
    assert_eq!(world.returned(10, 2, 3), "dropped");
    assert!(world.whole().is_empty());
}

/// A placement that gives an expert up takes nothing from those who are being served.
#[test]
fn what_is_out_to_somebody_who_is_given_up_is_waited_for() {
    let mut world = world();
    world.may_leave_out(&[0, 1]);
    world.chosen(0, 0, &[&[0, 1]]);
    assert_eq!(world.sent().len(), 2);
    world.place(2, &[(0, &[&[], &[1], &[]])]);
    world.chosen(0, 1, &[&[0, 1]]);
    assert_eq!(world.left_out(), ["row 1 goes without 0: expert 0 of layer 0"]);
    assert_eq!(world.returned(10, 1, 1), "0", "what was out before counts");
    world.returned(11, 2, 1);
    assert_eq!((world.left_out(), world.whole()), (vec![], vec![0]));
    assert_eq!(world.sent(), ["link 11 layer 0 rows 1: d3 e1.0.0 [0]"]);
    world.returned(11, 3, 1);
    assert_eq!(world.whole(), [1]);
    // And when it comes to nothing, there is nobody else.
    let mut world = self::world();
    world.may_leave_out(&[0]);
    world.chosen(0, 0, &[&[0, 1]]);
    world.sent();
    world.place(2, &[(0, &[&[], &[1], &[]])]);
    world.refused(10, 1, Reason::NotHeld);
    assert_eq!(world.left_out(), ["row 0 goes without 0: expert 0 of layer 0"]);
}

/// A node that is busy, that says that it does not serve, or that is late, is there.
#[test]
fn a_holder_that_does_not_answer_is_no_missing_one() {
    for reason in [Reason::Busy, Reason::NotHeld, Reason::Draining, Reason::Failed] {
        let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0]])]);
        world.may_leave_out(&[0]);
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.late(10);
        world.refused(10, 1, reason);
        assert_eq!((world.left_out(), world.whole()), (vec![], vec![]), "{reason:?}");
        world.awake(10);
        world.pass(250 * MS);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d2 e0.0.0 [0]"], "{reason:?}");
        world.returned(10, 2, 1);
        assert_eq!(world.whole(), [0]);
    }
}

/// Half an expert is none: what has come of it goes too.
#[test]
fn an_expert_of_which_a_shard_is_missing_is_left_out_whole() {
    let settings = phalanx_coordinator::data::exchange::ExchangeSettings::new(64, 2, 2, ROW_BYTES);
    let mut world = World::with(settings).links(3, WIDE);
    // Shards of expert 0 on nodes 0 and 1, of expert 1 on nodes 1 and 2.
    world.exchange.handle_placement(sharded(1, 2, &[(0, &[&[0], &[1]])]), world.now);
    world.may_leave_out(&[0]);
    world.chosen(0, 0, &[&[0, 1]]);
    assert_eq!(
        world.sent(),
        [
            "link 10 layer 0 rows 0: d1 e0.0.0 [0]",
            "link 11 layer 0 rows 0: d2 e0.0.1 [0], d3 e1.0.0 [0]",
            "link 12 layer 0 rows 0: d4 e1.0.1 [0]",
        ]
    );
    assert_eq!(world.returned(11, 2, 1), "1");
    world.link_ended(10);
    assert_eq!(world.left_out(), ["row 0 goes without 0: expert 0 of layer 0"]);
    world.returned(11, 3, 1);
    assert!(world.whole().is_empty());
    world.returned(12, 4, 1);
    assert_eq!(world.whole(), [0]);
    // One that is out to a holder that stands is not waited for where its other half cannot come.
    world.may_leave_out(&[1]);
    world.chosen(0, 1, &[&[0]]);
    assert_eq!(world.left_out(), ["row 1 goes without 0: expert 0 of layer 0"]);
    assert_eq!((world.whole(), world.sent()), (vec![1], vec![]));
}

/// A row that ended otherwise goes without nothing.
#[test]
fn who_was_cancelled_lacks_nothing() {
    let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0]])]);
    world.may_leave_out(&[0]);
    world.chosen(0, 0, &[&[0]]);
    world.sent();
    world.exchange.handle_cancelled(phalanx_coordinator::data::ids::RowId(0), world.now);
    world.link_ended(10);
    assert_eq!((world.left_out(), world.whole()), (vec![], vec![0]));
    assert_eq!(world.sent(), NOTHING);
}
