//! Rows that wait for experts that nobody holds: when it is said that they do, and when that it is over.

use phalanx_coordinator::data::exchange::{ExchangeSettings, Lack};
use phalanx_coordinator::data::ids::RowId;
use transport::wire::groups::Reason;

use super::support::{MS, ROW_BYTES, WIDE, World, sharded};

/// Experts 0 and 1 on nodes 0 and 1, expert 2 on nobody.
fn world() -> World {
    World::new().links(2, WIDE).placed(&[(0, &[&[0], &[1], &[]])])
}

/// It is said once for a row, whatever it lacks, and that it is over once it lacks nothing; not of rows that lack nothing.
#[test]
fn who_waits_for_nobody_is_stranded_until_somebody_comes() {
    let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0], &[1], &[], &[]])]);
    world.chosen(0, 0, &[&[2, 0], &[0, 1], &[3, 2]]);
    assert_eq!((world.stranded().as_str(), world.stranded().as_str()), ("+0 +2", ""));
    assert_eq!([world.lacks(0), world.lacks(1), world.lacks(2)], ["0.2.0", "", "0.3.0 0.2.0"]);
    assert_eq!(world.sent().len(), 2, "what somebody holds is asked for");
    world.returned(10, 1, 2);
    world.returned(11, 2, 1);
    assert_eq!((world.stranded().as_str(), world.whole()), ("", vec![1]));
    world.exchange.poll_holders();
    world.place(2, &[(0, &[&[0], &[1], &[1], &[]])]);
    assert_eq!((world.stranded(), world.lacks(2)), ("-0".to_owned(), "0.3.0".to_owned()));
    assert!(world.exchange.poll_holders() && !world.exchange.poll_holders(), "it is said once");
    assert_eq!(world.sent(), ["link 11 layer 0 rows 0 2: d3 e2.0.0 [0, 1]"]);
    world.returned(11, 3, 2);
    assert_eq!((world.whole(), world.stranded()), (vec![0], String::new()));
    // It lacks one of two, and then the node is gone that held the other: nothing has changed for it.
    world.link_ended(11);
    assert_eq!(world.stranded(), "");
    assert!(!world.exchange.poll_holders());
    world.place(3, &[(0, &[&[0], &[0], &[0], &[0]])]);
    assert_eq!((world.stranded(), world.lacks(2)), ("-2".to_owned(), String::new()));
    let known = Lack { layer: 0, expert: 1, shard: 0 };
    assert!(!world.exchange.is_missing(known));
    assert!(world.exchange.is_missing(Lack { expert: 9, ..known }), "nobody has heard of it");
}

/// With the last holder all that was out to him is stranded, and what waits behind it; with his next link it is over.
#[test]
fn who_loses_the_last_holder_is_stranded() {
    let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1], &[0]])]);
    world.chosen(0, 0, &[&[0, 1], &[0, 1]]);
    assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1], d2 e1.0.0 [0, 1]"]);
    world.chosen(0, 2, &[&[1]]);
    world.link_ended(10);
    assert_eq!(world.stranded(), "+2 +0 +1");
    assert_eq!([world.lacks(0), world.lacks(2)], ["0.1.0", "0.1.0"]);
    assert_eq!(
        world.sent(),
        ["link 11 layer 0 rows 0 1: d3 e0.1.0 [0, 1]"],
        "the other one has another holder"
    );
    world.chosen(0, 3, &[&[1]]);
    world.link(12, 0, WIDE);
    assert_eq!(
        world.stranded(),
        "-2 -0 -1",
        "the last was stranded for so short a time that nobody heard of it"
    );
    assert!(world.exchange.poll_holders());
    // Two died under it, and are asked for alone first.
    assert_eq!(world.sent(), ["link 12 layer 0 rows 0 1: d4 e1.0.0 [0, 1]"]);
}

/// Cancelled, failed at its deadline, or gone on without it: what is not wanted any more waits for nobody.
#[test]
fn who_ends_is_stranded_no_more() {
    let mut world = world();
    world.chosen(0, 0, &[&[2], &[2]]);
    world.chosen_until(0, 2, &[&[2, 0]], world.now + 5 * MS);
    world.may_leave_out(&[3]);
    world.chosen(0, 3, &[&[2, 0]]);
    assert_eq!(world.stranded(), "+0 +1 +2");
    world.exchange.handle_cancelled(RowId(1), world.now);
    assert_eq!((world.stranded(), world.lacks(1)), ("-1".to_owned(), String::new()));
    assert_eq!(world.whole(), [1], "nothing of it was out");
    world.pass_until_due();
    assert_eq!(world.stranded(), "-2");
    assert_eq!(world.failed(), ["2: no node held expert 2 of layer 0 until the deadline"]);
    // The same row in another life.
    world.chosen(0, 1, &[&[0]]);
    world.chosen_until(0, 4, &[&[2]], world.now + 5 * MS);
    assert_eq!(world.stranded(), "+4");
}

/// A node that is busy, says that it does not serve, or is late, holds it.
#[test]
fn who_waits_for_somebody_is_not_stranded() {
    for reason in [Reason::Busy, Reason::NotHeld, Reason::Draining, Reason::Failed] {
        let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0]])]);
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.late(10);
        world.refused(10, 1, reason);
        assert_eq!((world.stranded().as_str(), world.lacks(0).as_str()), ("", ""), "{reason:?}");
    }
}

/// It waits for a holder, as nobody knows whether the old one answers; when he does it waits no more.
#[test]
fn an_overdue_answer_that_comes_after_all_ends_it() {
    let mut world = world();
    world.chosen(0, 0, &[&[1]]);
    assert_eq!(world.sent(), ["link 11 layer 0 rows 0: d1 e1.0.0 [0]"]);
    world.place(2, &[(0, &[&[0], &[], &[]])]);
    assert_eq!((world.stranded().as_str(), world.lacks(0).as_str()), ("", ""), "it is out");
    world.pass_until_due();
    assert_eq!((world.stranded().as_str(), world.lacks(0).as_str()), ("+0", "0.1.0"));
    assert_eq!(world.returned(11, 1, 1), "0");
    assert_eq!((world.stranded(), world.whole()), ("-0".to_owned(), vec![0]));
}

/// One shard is enough to wait for, and it is named.
#[test]
fn a_shard_that_nobody_holds_strands_the_row() {
    let mut world = World::with(ExchangeSettings::new(64, 2, 2, ROW_BYTES)).links(3, WIDE);
    world.exchange.handle_placement(sharded(1, 2, &[(0, &[&[0], &[1]])]), world.now);
    world.chosen(0, 0, &[&[0, 1]]);
    world.sent();
    world.link_ended(12);
    assert_eq!((world.stranded(), world.lacks(0)), ("+0".to_owned(), "0.1.1".to_owned()));
    world.returned(10, 1, 1);
    world.returned(11, 2, 1);
    world.returned(11, 3, 1);
    assert_eq!((world.stranded(), world.whole()), (String::new(), vec![]));
    world.link(13, 2, WIDE);
    assert_eq!(world.stranded(), "-0");
}
