//! Refusals, deaths, silence and ends: every rule as a whole list of what follows.

use transport::wire::cluster::Epoch;
use transport::wire::groups::Reason;

use super::support::{MS, WIDE, World};

const NOTHING: [&str; 0] = [""; 0];

/// One expert on two nodes.
fn two_replicas() -> World {
    World::new().links(2, WIDE).placed(&[(0, &[&[0, 1]])])
}

/// One expert on one node.
fn one_replica() -> World {
    World::new().links(1, WIDE).placed(&[(0, &[&[0]])])
}

mod refusals {
    use super::*;

    /// Whoever does not serve an expert is not asked again, and its rows go to another replica at once.
    #[test]
    fn rows_that_are_not_served_go_elsewhere_at_once() {
        for reason in [Reason::NotHeld, Reason::Stale, Reason::Draining] {
            let mut world = two_replicas();
            world.chosen(0, 0, &[&[0], &[0]]);
            assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
            world.refused(10, 1, reason);
            assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d2 e0.1.0 [0, 1]"], "{reason:?}");
            // Replica 0 has nothing to do, but does not serve.
            world.chosen(0, 2, &[&[0]]);
            assert_eq!(world.sent(), ["link 11 layer 0 rows 2: d3 e0.1.0 [0]"]);
            assert_eq!(world.returned(11, 2, 2), "0 4");
            assert_eq!(world.whole(), [0, 1]);
        }
    }

    /// ... until the placement changes, or a while has passed.
    #[test]
    fn a_new_placement_or_time_lets_a_holder_be_asked_again() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.refused(10, 1, Reason::NotHeld);
        assert_eq!(world.sent(), NOTHING);
        assert_eq!(world.pass_until_due(), 250 * MS);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d2 e0.0.0 [0]"]);
        world.refused(10, 2, Reason::Draining);
        assert_eq!(world.sent(), NOTHING);
        world.place(2, &[(0, &[&[0]])]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d3 e0.0.0 [0]"]);
    }

    /// Five milliseconds, doubled to 250; what comes back ends it.
    #[test]
    fn a_busy_actor_is_left_alone_for_longer_and_longer() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0]]);
        let mut waited = Vec::new();
        let mut before = std::time::Duration::ZERO;
        for dispatch in 1..=7 {
            assert_eq!(world.sent(), [format!("link 10 layer 0 rows 0: d{dispatch} e0.0.0 [0]")]);
            world.refused(10, dispatch, if dispatch % 2 == 0 { Reason::Busy } else { Reason::Late });
            assert_eq!(world.sent(), NOTHING);
            let at = world.pass_until_due();
            waited.push((at - before).as_millis());
            before = at;
        }
        assert_eq!(waited, [5, 10, 20, 40, 80, 160, 250]);
        world.sent();
        world.returned(10, 8, 1);
        world.chosen(0, 1, &[&[0]]);
        world.sent();
        world.refused(10, 9, Reason::Busy);
        assert_eq!(world.pass_until_due() - before, 5 * MS);
    }

    /// Eight times, and no more.
    #[test]
    fn attempts_are_bounded() {
        let mut world = one_replica();
        world.chosen(0, 3, &[&[0]]);
        for dispatch in 1..=8 {
            assert_eq!(world.sent().len(), 1);
            world.refused(10, dispatch, Reason::Busy);
            if dispatch < 8 {
                world.pass_until_due();
            }
        }
        assert!(world.whole().is_empty(), "not before it was said why");
        assert_eq!(world.failed(), ["3: expert 0 of layer 0 was asked 8 times; last it was busy"]);
        assert_eq!(world.whole(), [3]);
        assert_eq!(world.sent(), NOTHING);
    }

    /// A node that is asked for what it is still loading serves it by and by: as long as it says that it does not, its rows
    /// wait for a holder, as others do for which nobody is asked.
    #[test]
    fn who_does_not_serve_is_asked_up_to_the_deadline() {
        let mut world = one_replica();
        let begun = world.now;
        world.chosen_until(0, 3, &[&[0]], begun + 10_100 * MS);
        for dispatch in 1..=40 {
            assert_eq!(world.sent(), [format!("link 10 layer 0 rows 3: d{dispatch} e0.0.0 [0]")]);
            world.refused(10, dispatch, Reason::NotHeld);
            world.pass_until_due();
            assert_eq!(world.now - begun, 250 * MS * dispatch as u32);
        }
        assert_eq!(world.sent(), ["link 10 layer 0 rows 3: d41 e0.0.0 [0]"]);
        world.refused(10, 41, Reason::Draining);
        world.pass_until_due();
        assert_eq!(world.failed(), ["3: no node held expert 0 of layer 0 until the deadline"]);
        assert_eq!((world.whole(), world.now - begun), (vec![3], 10_100 * MS));
        assert_eq!(world.sent(), NOTHING);
    }

    /// Rows that were refused came before those that wait.
    #[test]
    fn refused_rows_wait_at_the_head() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0], &[0]]);
        world.sent();
        world.refused(10, 1, Reason::Busy);
        world.chosen(0, 2, &[&[0]]);
        world.pass_until_due();
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1 2: d2 e0.0.0 [0, 1, 2]"]);
    }
}

mod falls {
    use super::*;

    /// Other work for the expert waits, or goes elsewhere, until it is clear that the group is innocent.
    #[test]
    fn a_group_that_an_actor_fell_over_is_retried_alone() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0], &[0]]);
        world.sent();
        world.chosen(0, 2, &[&[0]]);
        world.sent();
        world.chosen(0, 3, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 3: d3 e0.0.0 [0]"]);
        world.refused(10, 1, Reason::Failed);
        world.chosen(0, 4, &[&[0]]);
        assert_eq!(world.sent(), NOTHING, "two others are out yet");
        world.returned(10, 2, 1);
        assert_eq!(world.sent(), NOTHING);
        world.returned(10, 3, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d4 e0.0.0 [0, 1]"]);
        world.chosen(0, 5, &[&[0]]);
        assert_eq!(world.sent(), NOTHING, "alone");
        world.returned(10, 4, 2);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 4 5: d5 e0.0.0 [0, 1]"]);
        world.returned(10, 5, 2);
        assert_eq!(world.whole(), [2, 3, 0, 1, 4, 5]);
    }

    /// Meanwhile another replica does what else there is.
    #[test]
    fn another_replica_goes_on_while_one_is_reserved() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0], &[0]]);
        world.sent();
        world.refused(10, 1, Reason::Failed);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d2 e0.0.0 [0]"]);
        world.chosen(0, 2, &[&[0], &[0], &[0]]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 2 3 4: d3 e0.1.0 [0, 1, 2]"]);
        world.returned(10, 2, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d4 e0.0.0 [0]"]);
        world.returned(10, 4, 1);
        world.chosen(0, 5, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 5: d5 e0.0.0 [0]"]);
    }

    /// Alone, row by row, and the one that did it twice alone is not sent again. The others are answered.
    #[test]
    fn a_poisonous_row_is_found_and_fails() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0], &[0], &[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1 2: d1 e0.0.0 [0, 1, 2]"]);
        // It was alone already: nothing else was out to the actor.
        world.refused(10, 1, Reason::Failed);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d2 e0.0.0 [0]"]);
        world.returned(10, 2, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d3 e0.0.0 [0]"]);
        world.refused(10, 3, Reason::Failed);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 2: d4 e0.0.0 [0]"]);
        world.returned(10, 4, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d5 e0.0.0 [0]"]);
        world.refused(10, 5, Reason::Failed);
        assert_eq!(world.sent(), NOTHING);
        let expected = "1: row 1 felled 2 actors of expert 0 of layer 0, alone, and is not sent again";
        assert_eq!(world.failed(), [expected]);
        assert_eq!(world.whole(), [0, 2, 1]);
    }

    /// Being in the company of one that fell is no guilt, however often.
    #[test]
    fn company_is_no_guilt() {
        let mut world = one_replica();
        for row in 0..3 {
            world.chosen(0, row, &[&[0]]);
            world.sent();
        }
        for dispatch in 1..=3 {
            world.refused(10, dispatch, Reason::Failed);
        }
        // One after the other, although nothing had been sent alone.
        for (dispatch, row) in [(4, 0), (5, 1), (6, 2)] {
            assert_eq!(world.sent(), [format!("link 10 layer 0 rows {row}: d{dispatch} e0.0.0 [0]")]);
            world.returned(10, dispatch, 1);
        }
        assert_eq!(world.whole(), [0, 1, 2]);
        assert_eq!(world.failed(), NOTHING);
    }

    /// A retry that finds its actor busy stays one.
    #[test]
    fn a_retry_that_is_refused_stays_alone() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.chosen(0, 1, &[&[0]]);
        world.sent();
        world.refused(10, 1, Reason::Failed);
        world.returned(10, 2, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d3 e0.0.0 [0]"]);
        world.refused(10, 3, Reason::Busy);
        world.chosen(0, 2, &[&[0]]);
        assert_eq!(world.pass_until_due(), 5 * MS);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d4 e0.0.0 [0]"]);
        world.returned(10, 4, 1);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 2: d5 e0.0.0 [0]"]);
    }
}

mod links {
    use super::*;

    /// What was out on a dead link goes to the replicas, each dispatch alone; what waited goes with the rest.
    #[test]
    fn what_was_out_on_a_dead_link_goes_elsewhere() {
        let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1], &[0, 1]])]);
        world.chosen(0, 0, &[&[0, 1], &[0, 1]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1], d2 e1.0.0 [0, 1]"]);
        world.link_ended(10);
        world.chosen(0, 2, &[&[0, 1]]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d3 e0.1.0 [0, 1], d4 e1.1.0 [0, 1]"]);
        world.returned(11, 3, 2);
        world.returned(11, 4, 2);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 2: d5 e0.1.0 [0], d6 e1.1.0 [0]"]);
        assert_eq!(world.whole(), [0, 1]);
        assert_eq!(world.exchange.links().count(), 1);
    }

    /// A return of a link that has ended finds nothing, whatever became of its rows.
    #[test]
    fn a_late_return_is_dropped() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.link_ended(10);
        assert_eq!(world.returned(10, 1, 1), "dropped");
        world.refused(10, 1, Reason::Busy);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0: d2 e0.1.0 [0]"]);
        assert_eq!(world.returned(11, 1, 1), "dropped", "not of this link, and not open");
        assert_eq!(world.returned(11, 2, 1), "0");
        assert_eq!(world.returned(11, 2, 1), "dropped");
        assert_eq!(world.returned(11, 3, 1), "dropped");
        let counters = world.exchange.counters();
        assert_eq!((counters.late, counters.twice, counters.foreign), (2, 2, 1));
    }

    /// Another link's dispatch cannot be answered.
    #[test]
    fn a_foreign_return_is_dropped() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        assert_eq!(world.returned(11, 1, 1), "dropped");
        world.refused(11, 1, Reason::Failed);
        assert_eq!(world.exchange.counters().foreign, 2);
        assert_eq!(world.returned(10, 1, 1), "0");
        assert_eq!(world.whole(), [0]);
    }

    /// None of the rows is used, and the shell hears of it; the dispatch is open until the link has ended.
    #[test]
    fn a_wrong_number_of_rows_is_a_breach() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0], &[0]]);
        world.sent();
        for rows in [1, 3, 0] {
            assert_eq!(world.returned(10, 1, rows), "breach: 2 were sent");
        }
        assert_eq!(world.exchange.counters().breaches, 3);
        assert_eq!(world.sent(), NOTHING);
        world.link_ended(10);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d2 e0.1.0 [0, 1]"]);
    }

    /// A group under which two nodes died goes row by row.
    #[test]
    fn a_group_that_outlived_two_nodes_goes_row_by_row() {
        let mut world = World::new().links(3, WIDE).placed(&[(0, &[&[0, 1, 2]])]);
        world.chosen(0, 0, &[&[0], &[0]]);
        world.sent();
        world.link_ended(10);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d2 e0.1.0 [0, 1]"]);
        world.link_ended(11);
        assert_eq!(world.sent(), ["link 12 layer 0 rows 0: d3 e0.2.0 [0]"]);
        world.returned(12, 3, 1);
        assert_eq!(world.sent(), ["link 12 layer 0 rows 1: d4 e0.2.0 [0]"]);
        world.returned(12, 4, 1);
        assert_eq!(world.whole(), [0, 1]);
    }

    /// Whoever was all that two nodes had, when they died, is not sent to a third.
    #[test]
    fn a_row_that_felled_two_nodes_alone_fails() {
        let mut world = World::new().links(3, WIDE).placed(&[(7, &[&[0, 1, 2]])]);
        world.chosen(7, 9, &[&[0]]);
        world.sent();
        world.link_ended(10);
        assert_eq!(world.sent(), ["link 11 layer 7 rows 9: d2 e0.1.0 [0]"]);
        world.link_ended(11);
        assert_eq!(world.sent(), NOTHING);
        let expected = "9: row 9 felled 2 actors of expert 0 of layer 7, alone, and is not sent again";
        assert_eq!(world.failed(), [expected]);
    }

    /// A node that comes back, or another that holds the expert now, gets what waits.
    #[test]
    fn rows_without_a_holder_wait_for_one() {
        let mut world = World::new();
        world.chosen(0, 0, &[&[1]]);
        assert_eq!(world.sent(), NOTHING, "there is not even a placement");
        world.place(1, &[(0, &[&[0], &[0]])]);
        assert_eq!(world.sent(), NOTHING, "nor a link");
        world.link(20, 0, WIDE);
        assert_eq!(world.sent(), ["link 20 layer 0 rows 0: d1 e1.0.0 [0]"]);
        world.link_ended(20);
        assert_eq!(world.sent(), NOTHING);
        world.place(2, &[(0, &[&[0], &[4]])]);
        world.link(21, 4, WIDE);
        assert_eq!(world.sent(), ["link 21 layer 0 rows 0: d2 e1.0.0 [0]"]);
        assert_eq!(world.returned(21, 2, 1), "0");
        assert_eq!(world.whole(), [0]);
    }

    /// A second session replaces the first for what is sent, and the first may still return.
    #[test]
    fn a_newer_link_to_a_node_replaces_the_older() {
        let mut world = one_replica();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.chosen(0, 1, &[&[0]]);
        world.link(11, 0, WIDE);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 1: d2 e0.0.0 [0]"]);
        assert_eq!(world.returned(10, 1, 1), "0");
        world.link_ended(10);
        world.chosen(0, 2, &[&[0]]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 2: d3 e0.0.0 [0]"]);
        // And where the newer one ends first, the older is used again.
        world.link(12, 0, WIDE);
        world.link_ended(12);
        world.returned(11, 3, 1);
        world.chosen(0, 3, &[&[0]]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 3: d4 e0.0.0 [0]"]);
    }
}

mod time {
    use super::*;

    /// A row is not waited for after its deadline; who was missing is said.
    #[test]
    fn a_row_fails_at_its_deadline() {
        let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0], &[1]])]);
        let now = world.now;
        world.chosen_until(0, 0, &[&[0]], now + 20 * MS);
        world.chosen_until(0, 1, &[&[0, 1]], now + 10 * MS);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
        assert_eq!(world.pass_until_due(), 10 * MS);
        assert_eq!(world.failed(), ["1: no node held expert 1 of layer 0 until the deadline"]);
        assert_eq!(world.pass_until_due(), 20 * MS);
        assert_eq!(world.failed(), ["0: expert 0 of layer 0 had not answered by the deadline"]);
        assert!(world.whole().is_empty(), "their attempt is still out");
        assert_eq!(world.returned(10, 1, 2), "- -");
        assert_eq!(world.whole(), [0, 1]);
        assert_eq!(world.exchange.poll_timeout(), None);
    }

    /// The node is told how long it has.
    #[test]
    fn a_frame_has_the_longest_deadline_of_its_rows() {
        let mut world = one_replica();
        let now = world.now;
        world.chosen_until(0, 0, &[&[0]], now + 20 * MS);
        world.chosen_until(0, 1, &[&[0]], now + 30 * MS);
        assert_eq!(world.exchange.poll_dispatch(now + 5 * MS).unwrap().remaining, 25 * MS);
        world.chosen_until(0, 2, &[&[0]], now + 600_000 * MS);
        // Or as long as a dispatch may take at all.
        assert_eq!(world.exchange.poll_dispatch(now).unwrap().remaining, 30_000 * MS);
    }

    /// Whoever is overdue gets nothing more; its rows go elsewhere, and are taken from whoever is first.
    #[test]
    fn an_overdue_dispatch_may_be_overtaken() {
        for is_old_first in [true, false] {
            let mut world = two_replicas();
            world.chosen(0, 0, &[&[0]]);
            assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d1 e0.0.0 [0]"]);
            assert_eq!(world.pass_until_due(), 30_000 * MS);
            assert_eq!(world.sent(), ["link 11 layer 0 rows 0: d2 e0.1.0 [0]"]);
            world.chosen(0, 1, &[&[0]]);
            assert_eq!(
                world.sent(),
                ["link 11 layer 0 rows 1: d3 e0.1.0 [0]"],
                "although the other has less"
            );
            let order = if is_old_first { [(10, 1), (11, 2)] } else { [(11, 2), (10, 1)] };
            assert_eq!(world.returned(order[0].0, order[0].1, 1), "0");
            assert_eq!(world.whole(), [0], "whole at once");
            assert_eq!(world.returned(order[1].0, order[1].1, 1), "-");
            assert!(world.whole().is_empty());
            world.chosen(0, 2, &[&[0]]);
            assert_eq!(world.sent(), ["link 10 layer 0 rows 2: d4 e0.0.0 [0]"], "it is back");
        }
    }

    /// A row may be at its next layer when an attempt of the last one comes back: it finds no slot.
    #[test]
    fn an_attempt_of_an_earlier_layer_finds_no_slot() {
        let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0, 1]]), (1, &[&[0, 1]])]);
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.pass_until_due();
        world.sent();
        world.returned(11, 2, 1);
        assert_eq!(world.whole(), [0]);
        world.chosen(1, 0, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 1 rows 0: d3 e0.0.0 [0]"]);
        assert_eq!(world.returned(10, 1, 1), "-");
        assert_eq!(world.returned(10, 3, 1), "0");
        assert_eq!(world.whole(), [0]);
    }

    /// With nobody else, an overdue dispatch is waited for: its actor is not asked twice for the same.
    #[test]
    fn an_overdue_dispatch_without_another_replica_is_waited_for() {
        let mut world = one_replica();
        world.chosen_until(0, 0, &[&[0]], world.now + 60_000 * MS);
        world.sent();
        assert_eq!(world.pass_until_due(), 30_000 * MS);
        assert_eq!(world.sent(), NOTHING);
        assert_eq!(world.exchange.counters().overdue, 1);
        assert_eq!(world.returned(10, 1, 1), "0");
        assert_eq!(world.whole(), [0]);
        assert_eq!(world.sent(), NOTHING);
    }
}

mod ends {
    use super::*;

    /// What was not sent is not sent, what is out is waited for, and then the row is handed back once.
    #[test]
    fn a_cancelled_row_leaves_when_nothing_of_it_is_out() {
        let mut world = World::new().links(1, WIDE).placed(&[(0, &[&[0], &[1]])]);
        world.chosen(0, 0, &[&[0, 1], &[0, 1]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
        world.exchange.handle_cancelled(phalanx_coordinator::data::ids::RowId(0), world.now);
        world.link(11, 1, WIDE);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 1: d2 e1.0.0 [0]"]);
        assert!(world.whole().is_empty());
        assert_eq!(world.returned(10, 1, 2), "- 4");
        assert_eq!(world.whole(), [0]);
        world.returned(11, 2, 1);
        assert_eq!(world.whole(), [1]);
    }

    /// Nothing is out: it leaves at once. Twice, or for a row that is not here, it means nothing.
    #[test]
    fn a_cancelled_row_that_was_not_sent_leaves_at_once() {
        let mut world = World::new().placed(&[(0, &[&[0]])]);
        world.chosen(0, 0, &[&[0]]);
        for _ in 0..2 {
            world.exchange.handle_cancelled(phalanx_coordinator::data::ids::RowId(0), world.now);
        }
        world.exchange.handle_cancelled(phalanx_coordinator::data::ids::RowId(1), world.now);
        assert_eq!(world.whole(), [0]);
        assert_eq!(world.exchange.poll_timeout(), None);
    }

    /// A cancelled row's refusal is its end, too.
    #[test]
    fn a_cancelled_row_is_not_sent_again() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.exchange.handle_cancelled(phalanx_coordinator::data::ids::RowId(0), world.now);
        world.refused(10, 1, Reason::NotHeld);
        assert_eq!(world.sent(), NOTHING);
        assert_eq!(world.whole(), [0]);
    }

    /// Other rows of a failed row's dispatch are answered as ever.
    #[test]
    fn a_failed_row_takes_nobody_with_it() {
        let mut world = one_replica();
        let now = world.now;
        world.chosen_until(0, 0, &[&[0]], now + 10 * MS);
        world.chosen_until(0, 1, &[&[0]], now + 99 * MS);
        world.sent();
        world.pass_until_due();
        assert_eq!(world.failed().len(), 1);
        world.refused(10, 1, Reason::Busy);
        assert_eq!(world.whole(), [0]);
        world.pass_until_due();
        assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d2 e0.0.0 [0]"]);
        assert_eq!(world.returned(10, 2, 1), "4");
        assert_eq!(world.whole(), [1]);
    }

    /// What an earlier placement took away may be dropped only when nothing is out under it.
    #[test]
    fn the_oldest_epoch_with_something_out_is_known() {
        let mut world = one_replica();
        let epoch = |number| Some(Epoch { term: 1, number });
        assert_eq!(world.exchange.epoch_oldest(), None);
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.place(2, &[(0, &[&[0]])]);
        world.place(3, &[(0, &[&[1]])]);
        world.link(11, 1, WIDE);
        world.chosen(0, 1, &[&[0]]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 1: d2 e0.0.0 [0]"]);
        assert_eq!(world.exchange.epoch_oldest(), epoch(1));
        assert_eq!(world.returned(10, 1, 1), "0", "a node serves what it was sent under an older one");
        assert_eq!(world.exchange.epoch_oldest(), epoch(3));
        world.returned(11, 2, 1);
        assert_eq!(world.exchange.epoch_oldest(), None);
    }
}

mod silence {
    use super::*;

    /// What is out to a node that has gone silent goes to another holder too; whoever returns first fills the slots, and until
    /// the node is awake the other gets all.
    #[test]
    fn rows_of_a_late_link_go_to_another_holder_too() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0], &[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0 1: d1 e0.0.0 [0, 1]"]);
        world.late(10);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d2 e0.1.0 [0, 1]"]);
        assert_eq!(world.exchange.counters().hedged, 1);
        assert_eq!(world.returned(11, 2, 2), "0 4");
        assert_eq!(world.whole(), [0, 1]);
        // Replica 0 would have less to do.
        world.chosen(1, 0, &[&[0]]);
        world.chosen(0, 2, &[&[0]]);
        world.chosen(0, 3, &[&[0]]);
        assert_eq!(
            world.sent(),
            ["link 11 layer 0 rows 2 3: d3 e0.1.0 [0, 1]"],
            "nobody holds layer 1, and link 10 is late"
        );
        // It wakes: its return is of a row's earlier life.
        world.awake(10);
        assert_eq!(world.returned(10, 1, 2), "- -");
        world.chosen(0, 4, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 4: d4 e0.0.0 [0]"]);
    }

    /// The one that was late may still be the first.
    #[test]
    fn a_late_return_that_comes_first_counts() {
        let mut world = two_replicas();
        world.chosen(0, 0, &[&[0]]);
        world.sent();
        world.late(10);
        world.sent();
        assert_eq!(world.returned(10, 1, 1), "0");
        assert_eq!(world.whole(), [0]);
        assert_eq!(world.returned(11, 2, 1), "-");
    }

    /// Nobody else holds it: it is waited for, new rows go there as before, and whoever comes to hold it gets all.
    #[test]
    fn without_another_holder_a_late_link_is_waited_for() {
        let mut world = World::new().links(2, WIDE).placed(&[(0, &[&[0]])]);
        world.chosen(0, 0, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d1 e0.0.0 [0]"]);
        world.late(10);
        assert_eq!(world.sent(), NOTHING);
        world.chosen(0, 1, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 1: d2 e0.0.0 [0]"]);
        world.place(2, &[(0, &[&[0, 1]])]);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0 1: d3 e0.1.0 [0, 1]"]);
        assert_eq!(world.exchange.counters().hedged, 2);
    }

    /// Both are late: what is out stays where it is.
    #[test]
    fn two_late_links_do_not_play_ball() {
        let mut world = two_replicas();
        world.late(11);
        world.chosen(0, 0, &[&[0]]);
        assert_eq!(world.sent(), ["link 10 layer 0 rows 0: d1 e0.0.0 [0]"]);
        world.late(10);
        assert_eq!(world.sent(), NOTHING);
        world.link_ended(10);
        assert_eq!(world.sent(), ["link 11 layer 0 rows 0: d2 e0.1.0 [0]"]);
    }
}
