//! The contract that every carrier keeps: the same tests for all of them.
//!
//! `cases/` says what is promised, `places.rs` how two ends meet over each carrier.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

mod cases;
mod child;
mod places;

use places::{Memory, Place, Quic, Shm, Tcp};

/// One test for each case, over one carrier.
macro_rules! contract {
    ($carrier:ident, $place:expr, [$($case:ident),* $(,)?]) => {
        mod $carrier {
            use super::*;
            $(#[test]
            fn $case() {
                places::run(async { cases::$case(&$place.await).await });
            })*
        }
    };
}

/// Every case for every carrier given.
macro_rules! every_case {
    ($($carrier:ident: $place:expr),* $(,)?) => {
        $(contract!($carrier, $place, [
            frames_keep_their_order_and_arrive_once,
            every_size_arrives_as_it_was_sent,
            payloads_are_aligned_for_kernels,
            thousands_of_dispatches_return_both_ways,
            a_slow_reader_bounds_the_senders_memory,
            those_who_wait_for_credit_are_served_in_order,
            a_full_lane_delays_no_other,
            a_drain_loses_nothing,
            a_drain_waits_for_what_is_in_flight,
            both_ends_may_drain_at_once,
            a_dropped_peer_is_noticed_and_everything_pending_ends,
            a_killed_link_can_be_dialled_again,
            a_dispatch_that_does_not_return_expires,
            a_return_comes_once_and_only_for_an_open_dispatch,
            a_frame_longer_than_the_peer_takes_is_refused,
            another_cluster_role_class_or_row_is_refused_with_the_reason,
            probes_come_back,
            what_is_told_arrives_once_and_in_order,
            what_is_told_to_nobody_stops_nobody,
            the_reason_of_a_close_arrives,
            a_link_may_be_dropped_when_its_lane_has_ended,
            a_drain_is_told_to_those_in_line,
            waiting_in_line_takes_of_a_dispatchs_time,
            a_shared_frame_is_room_until_the_last_lets_go,
            a_lane_that_nobody_wants_is_received_all_the_same,
        ]);)*
    };
}

/// What needs a process to kill.
macro_rules! every_process_case {
    ($($carrier:ident: $place:expr),* $(,)?) => {
        $(mod $carrier {
            use super::*;
            #[test]
            fn a_killed_process_is_noticed_at_once() {
                places::run(async { child::a_killed_process_is_noticed_at_once(&$place.await).await });
            }
        })*
    };
}

every_process_case! {
    killed_shm: async { Shm::new() },
    killed_quic: async { Quic::new() },
    killed_tcp: async { Tcp::plain() },
    killed_tcp_tls: async { Tcp::tls() },
}

every_case! {
    memory: async { Memory::new() },
    shm: async { Shm::new() },
    quic: async { Quic::new() },
    tcp: async { Tcp::plain() },
    tcp_tls: async { Tcp::tls() },
}

/// The trait object is what the cases take.
type AnyPlace = dyn Place;
