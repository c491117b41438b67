//! Scripts: an event goes in, and the whole list of actions that comes out is compared.

use std::time::{Duration, Instant};

use phalanx_transport::Lane;
use phalanx_transport::link::{
    Broken, DispatchRefused, Event, Link, ProbeRefused, SendRefused, Side, State, Why,
};
use phalanx_transport::wire::charge;
use phalanx_transport::wire::control::{CloseReason, Control, Refusal};

use crate::support::*;

const NONE: Option<u64> = None;

/// The event that closes a link, with what `Ended` it carries.
fn ended(link: &Link) -> Event {
    Event::Closed(link.ended().expect("the link is closed").clone())
}

fn why(link: &Link) -> &Why {
    link.ended().expect("the link is closed").why()
}

#[test]
fn the_dialling_end_greets_attaches_and_opens() {
    let start = Instant::now();
    let mut link = new(Side::Dialled, false, start);
    assert_eq!(actions(&mut link, start), expect([Control::Hello(hello(Side::Dialled))], [], 5000));
    link.handle_control(welcome(), start + 10 * MS);
    let dial = Event::DialLanes { session: SESSION, ports: PORTS };
    assert_eq!(actions(&mut link, start), expect([], [dial], 5000));
    assert_eq!(link.handle_send(Lane::Data, 64), Err(SendRefused::NotOpen));
    assert_eq!(link.handle_dispatch(1, start, start), Err(DispatchRefused::NotOpen));
    assert_eq!(link.handle_attached(Lane::Control, start), Err(Refusal::Attach));
    assert_eq!(link.handle_attached(Lane::Weights, start + 20 * MS), Ok(()));
    assert_eq!(
        link.handle_attached(Lane::Weights, start + 20 * MS),
        Err(Refusal::Attach),
        "attached already"
    );
    assert_eq!(actions(&mut link, start), expect([], [], 5000));
    assert_eq!(link.handle_attached(Lane::Data, start + 30 * MS), Ok(()));
    assert_eq!(actions(&mut link, start), expect([], [Event::Open], 130));
    assert_eq!((link.state(), link.peer().unwrap().clone()), (State::Open, hello(Side::Accepted)));
    assert_eq!(&**link.peer_name(), "node b1");
}

#[test]
fn the_accepting_end_waits_for_hello_and_for_both_lanes() {
    let start = Instant::now();
    let mut link = new(Side::Accepted, false, start);
    assert_eq!(actions(&mut link, start), expect([], [], 5000));
    assert_eq!(link.handle_attached(Lane::Data, start), Err(Refusal::Attach), "nobody is known yet");
    link.handle_control(Control::Hello(hello(Side::Dialled)), start + 10 * MS);
    assert_eq!(actions(&mut link, start), expect([welcome()], [], 5000));
    link.handle_attached(Lane::Data, start + 20 * MS).unwrap();
    link.handle_attached(Lane::Weights, start + 20 * MS).unwrap();
    assert_eq!(actions(&mut link, start), expect([], [Event::Open], 120));
}

/// The accepting end is open as soon as it has answered, so what it sends may come before the other is.
#[test]
fn the_dialling_end_takes_messages_and_frames_while_it_attaches() {
    let start = Instant::now();
    let mut link = new(Side::Dialled, false, start);
    actions(&mut link, start);
    link.handle_control(welcome(), start);
    actions(&mut link, start);
    link.handle_control(Control::Heartbeat { sequence: 0, heard: 0 }, start);
    link.handle_control(Control::Drain, start);
    assert_eq!(link.handle_received(Lane::Data, 128), Ok(()));
    assert_eq!(link.handle_dispatched(4), Ok(()));
    assert_eq!(actions(&mut link, start), expect([], [], 5000));
    link.handle_attached(Lane::Data, start).unwrap();
    link.handle_attached(Lane::Weights, start).unwrap();
    assert_eq!(actions(&mut link, start), expect([], [Event::Open, Event::DrainAsked], 100));
    assert!(link.handle_returned(4));
    assert_eq!(actions(&mut link, start), expect([Control::Close(CloseReason::Drained)], [], 100));
}

#[test]
fn each_end_refuses_the_other_and_says_why() {
    let start = Instant::now();
    let refusal = Refusal::Protocol { theirs: 99, ours: 1 };
    let mut bad = hello(Side::Dialled);
    bad.protocol = 99;
    let mut link = new(Side::Accepted, true, start);
    link.handle_control(Control::Hello(bad), start);
    let closed = ended(&link);
    assert_eq!(actions(&mut link, start), expect([Control::Refused(refusal.clone())], [closed], NONE));
    assert_eq!(why(&link), &Why::Refused(refusal.clone()));

    let mut link = new(Side::Dialled, true, start);
    actions(&mut link, start);
    link.handle_control(Control::Refused(refusal.clone()), start);
    let closed = ended(&link);
    assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
    assert_eq!(why(&link), &Why::RefusedByPeer(refusal.clone()));

    // The accepting end is open when the other refuses its welcome.
    let mut link = open(Side::Accepted, start);
    link.handle_control(Control::Refused(refusal.clone()), start);
    assert_eq!(why(&link), &Why::RefusedByPeer(refusal.clone()));
    let mut link = open(Side::Accepted, start);
    link.handle_control(Control::Heartbeat { sequence: 0, heard: 0 }, start);
    link.handle_control(Control::Refused(refusal), start);
    assert_eq!(why(&link), &Why::Broken(Broken::Unexpected { message: "Refused", state: "open" }));
}

#[test]
fn a_handshake_has_its_time_in_each_state() {
    let start = Instant::now();
    let limit = 5000 * MS;
    let busy = Control::Refused(Refusal::Busy("no Hello came within 5s".into()));
    let silent = Control::Close(CloseReason::Silent);
    for (side, greeted, last_words) in [
        (Side::Accepted, false, &busy),
        (Side::Accepted, true, &silent),
        (Side::Dialled, false, &silent),
        (Side::Dialled, true, &silent),
    ] {
        let mut link = new(side, false, start);
        actions(&mut link, start);
        if greeted {
            link.handle_control(greeting(side), start + 4000 * MS);
            actions(&mut link, start);
        }
        link.handle_timeout(start + 4999 * MS);
        assert_eq!(actions(&mut link, start), expect([], [], 5000));
        link.handle_timeout(start + limit);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([last_words.clone()], [closed], NONE));
        assert_eq!(why(&link), &Why::HandshakeTooLong { limit });
    }
}

#[test]
fn it_beats_notices_that_the_peer_is_late_and_that_it_is_dead() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    let mut sequence = 0;
    let mut beat = |link: &mut Link, at: u64, events: Vec<Event>, timeout_ms: u64| {
        link.handle_timeout(start + at as u32 * MS);
        let controls = vec![Control::Heartbeat { sequence, heard: u64::from(sequence > 2) }];
        assert_eq!(actions(link, start), Actions { controls, events, timeout_ms: Some(timeout_ms) });
        sequence += 1;
    };
    beat(&mut link, 100, vec![], 200);
    beat(&mut link, 200, vec![], 300);
    beat(&mut link, 300, vec![Event::Late { silent: 300 * MS }], 400);
    link.handle_control(Control::Heartbeat { sequence: 0, heard: 3 }, start + 350 * MS);
    assert_eq!(actions(&mut link, start), expect([], [Event::Awake], 400));
    // (100 * 7 + 350) / 8 = 131.25 ms between beats: late after three of them.
    for at in [400, 500, 600] {
        beat(&mut link, at, vec![], at + 100);
    }
    beat(&mut link, 700, vec![], 743);
    link.handle_timeout(start + Duration::from_micros(743_750));
    let late = Event::Late { silent: Duration::from_micros(393_750) };
    assert_eq!(actions(&mut link, start), expect([], [late], 800));
    for at in (800..=10_200).step_by(100) {
        beat(&mut link, at, vec![], at + 100);
    }
    beat(&mut link, 10_300, vec![], 10_350);
    link.handle_timeout(start + 10_350 * MS);
    let closed = ended(&link);
    assert_eq!(actions(&mut link, start), expect([Control::Close(CloseReason::Silent)], [closed], NONE));
    assert_eq!(why(&link), &Why::Silent { silent: 10_000 * MS });
}

/// A process that was stopped for a minute finds its peers alive.
#[test]
fn an_end_that_did_not_listen_blames_nobody() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_timeout(start + 60_000 * MS);
    assert_eq!(actions(&mut link, start), expect([Control::Heartbeat { sequence: 0, heard: 0 }], [], 60_100));
}

#[test]
fn a_heartbeat_that_is_lost_or_comes_twice_breaks_the_link() {
    for sequence in [0, 2] {
        let start = Instant::now();
        let mut link = open(Side::Dialled, start);
        link.handle_control(Control::Heartbeat { sequence: 0, heard: 0 }, start);
        link.handle_control(Control::Heartbeat { sequence, heard: 0 }, start);
        assert_eq!(why(&link), &Why::Broken(Broken::Heartbeat { sequence, expected: 1 }));
    }
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_control(Control::Heartbeat { sequence: 0, heard: 1 }, start);
    assert_eq!(why(&link), &Why::Broken(Broken::HeardUnsent { heard: 1, sent: 0 }));
}

/// What is sent to a peer that does not hear comes no sooner than to one that is silent, though it beats as ever.
#[test]
fn a_peer_that_does_not_hear_is_late() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    for sequence in 0..10 {
        let at = (sequence as u32 + 1) * 100;
        link.handle_timeout(start + at * MS);
        let own = Control::Heartbeat { sequence, heard: sequence };
        let next = Some(u64::from(at) + 100);
        assert_eq!(
            actions(&mut link, start),
            Actions { controls: vec![own], events: vec![], timeout_ms: next }
        );
        // It has heard two of them, and later all.
        let heard = if sequence == 9 { 10 } else { sequence.min(2) };
        link.handle_control(Control::Heartbeat { sequence, heard }, start + at * MS);
        let events = match sequence {
            6 => vec![Event::Late { silent: 500 * MS }],
            9 => vec![Event::Awake],
            _ => vec![],
        };
        assert_eq!(actions(&mut link, start), Actions { controls: vec![], events, timeout_ms: next });
    }
}

#[test]
fn credits_run_out_and_come_back() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    let frame = charge(1024);
    for _ in 0..4 {
        assert_eq!(link.handle_send(Lane::Data, frame), Ok(()));
    }
    assert_eq!(link.handle_send(Lane::Data, 64), Err(SendRefused::NoCredit { charge: 64, left: 0 }));
    assert_eq!(link.handle_send(Lane::Weights, frame), Ok(()), "lanes do not wait for one another");
    link.handle_control(Control::Grant { lane: Lane::Data, total: 5 * frame }, start);
    assert_eq!(actions(&mut link, start), expect([], [Event::Writable(Lane::Data)], 100));
    link.handle_control(Control::Grant { lane: Lane::Data, total: 6 * frame }, start);
    assert_eq!(actions(&mut link, start), expect([], [], 100), "nobody waits");
    assert_eq!(link.credit_left(Lane::Data), 2 * frame);
    link.handle_unsent(Lane::Data, frame);
    assert_eq!(link.credit_left(Lane::Data), 3 * frame);
    assert_eq!(
        link.handle_send(Lane::Data, frame + 1),
        Err(SendRefused::TooLong { charge: frame + 1, max: frame })
    );
}

#[test]
fn room_is_told_in_quarters_and_more_than_granted_breaks_the_link() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    let frame = charge(1024);
    for _ in 0..4 {
        assert_eq!(link.handle_received(Lane::Data, frame), Ok(()));
    }
    link.handle_released(Lane::Data, frame - 1, start);
    assert_eq!(actions(&mut link, start), expect([], [], 100));
    link.handle_released(Lane::Data, 2 * frame, start);
    let grant = Control::Grant { lane: Lane::Data, total: 6 * frame };
    assert_eq!(actions(&mut link, start), expect([grant], [], 100), "one for both");
    assert_eq!(link.handle_received(Lane::Data, 2 * frame), Ok(()));
    let broken = Broken::Credit { lane: Lane::Data, charge: 64, left: 0 };
    assert_eq!(link.handle_received(Lane::Data, 64), Err(broken.clone()));
    let closed = ended(&link);
    let last_words = Control::Close(CloseReason::Broken(broken.to_string()));
    assert_eq!(actions(&mut link, start), expect([last_words], [closed], NONE));
    assert_eq!(link.handle_received(Lane::Data, 64), Err(Broken::Over));
}

#[test]
fn deadlines_pass_in_order_and_a_late_return_ends_its_dispatch() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    for (dispatch, after) in [(1, 30), (2, 10), (3, 20)] {
        assert_eq!(link.handle_dispatch(dispatch, start + after * MS, start), Ok(()));
    }
    assert_eq!(link.handle_dispatch(4, start, start), Err(DispatchRefused::InFlightFull { max: 3 }));
    assert_eq!(link.poll_timeout(), Some(start + 10 * MS));
    link.handle_timeout(start + 25 * MS);
    let expired = [Event::Expired { dispatch: 2 }, Event::Expired { dispatch: 3 }];
    assert_eq!(actions(&mut link, start), expect([], expired, 30));
    assert_eq!((link.in_flight(), link.in_flight_left()), (3, 0), "the peer still has them");
    assert_eq!(link.handle_dispatch(4, start, start), Err(DispatchRefused::InFlightFull { max: 3 }));
    assert!(link.handle_return(2), "late, and out until now");
    assert!(!link.handle_return(2), "twice");
    assert_eq!(actions(&mut link, start), expect([], [Event::Writable(Lane::Data)], 30));
    assert!(link.handle_return(1));
    assert!(!link.handle_return(1), "twice");
    assert_eq!(actions(&mut link, start), expect([], [], 100));
    let counters = link.counters();
    assert_eq!(
        (counters.returns, counters.returns_late, counters.returns_unknown, counters.expired),
        (1, 1, 2, 2)
    );
}

#[test]
fn a_peer_that_sends_too_many_dispatches_or_one_twice_breaks_the_link() {
    let start = Instant::now();
    let mut link = open(Side::Accepted, start);
    for dispatch in 0..3 {
        assert_eq!(link.handle_dispatched(dispatch), Ok(()));
    }
    assert!(link.handle_returned(1));
    assert!(!link.handle_returned(1));
    assert_eq!(link.handle_dispatched(3), Ok(()));
    assert_eq!(link.handle_dispatched(4), Err(Broken::InFlight { max: 3 }));
    assert_eq!(why(&link), &Why::Broken(Broken::InFlight { max: 3 }));
    let mut link = open(Side::Accepted, start);
    link.handle_dispatched(7).unwrap();
    assert_eq!(link.handle_dispatched(7), Err(Broken::Reused { dispatch: 7 }));
    assert_eq!(link.state(), State::Closed);
}

#[test]
fn a_drain_waits_for_what_is_in_flight_and_finishes_the_lanes() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_dispatch(1, start + 60 * MS, start).unwrap();
    link.handle_dispatched(5).unwrap();
    link.handle_drain(start + 10 * MS);
    assert_eq!(actions(&mut link, start), expect([Control::Drain], [], 60));
    assert_eq!(link.state(), State::Draining);
    assert_eq!(link.handle_dispatch(2, start, start), Err(DispatchRefused::Draining));
    assert_eq!(link.handle_probe(1, vec![]), Err(ProbeRefused::Draining));
    assert_eq!(link.handle_send(Lane::Data, 128), Ok(()), "returns go on");
    link.handle_returned(5);
    assert_eq!(actions(&mut link, start), expect([], [], 60), "its own has not returned");
    link.handle_dispatched(6).expect("it was on its way when the peer heard of the drain");
    link.handle_return(1);
    assert_eq!(actions(&mut link, start), expect([], [], 100));
    link.handle_returned(6);
    assert_eq!(actions(&mut link, start), expect([Control::Close(CloseReason::Drained)], [], 100));
    assert!(link.handle_finished(Lane::Data, start));
    link.handle_control(Control::Close(CloseReason::Drained), start + 20 * MS);
    // Late after three of its beats; this end beats no more.
    assert_eq!(actions(&mut link, start), expect([], [Event::FinishLanes], 320));
    assert_eq!(link.handle_send(Lane::Data, 128), Err(SendRefused::Draining));
    assert!(link.handle_finished(Lane::Control, start));
    assert_eq!(actions(&mut link, start), expect([], [], 30_010), "nothing more comes, so nothing is missed");
    for lane in Lane::ALL {
        link.handle_flushed(lane, start);
    }
    assert_eq!(actions(&mut link, start), expect([], [], 30_010));
    link.handle_lost(Lane::Data, "reset".into(), start);
    assert_eq!(link.state(), State::Finishing, "a lane that had ended both ways cannot be lost");
    assert!(link.handle_finished(Lane::Weights, start));
    let closed = ended(&link);
    assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
    assert_eq!(why(&link), &Why::Drained);
    assert!(link.ended().unwrap().in_order());
}

#[test]
fn the_end_that_is_asked_to_drain_says_so_and_does_the_same() {
    let start = Instant::now();
    let mut link = open(Side::Accepted, start);
    link.handle_dispatch(1, start + 1000 * MS, start).unwrap();
    link.handle_control(Control::Drain, start);
    assert_eq!(actions(&mut link, start), expect([], [Event::DrainAsked], 100));
    link.handle_drain(start);
    link.handle_control(Control::Close(CloseReason::Drained), start);
    assert_eq!(actions(&mut link, start), expect([], [], 100), "asking back says nothing new");
    link.handle_return(1);
    let actions = actions(&mut link, start);
    assert_eq!(actions, expect([Control::Close(CloseReason::Drained)], [Event::FinishLanes], 300));
}

/// Both drain at once: lanes are finished only behind this end's own word, in whatever order a shell carries things out.
#[test]
fn lanes_are_not_finished_before_the_last_word_is_taken() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_drain(start);
    link.handle_control(Control::Drain, start);
    link.handle_control(Control::Close(CloseReason::Drained), start);
    assert_eq!((link.poll_event(), link.poll_event()), (Some(Event::DrainAsked), None));
    assert_eq!((link.poll_control(), link.poll_event()), (Some(Control::Drain), None));
    assert_eq!(link.poll_control(), Some(Control::Close(CloseReason::Drained)));
    assert_eq!((link.poll_event(), link.poll_control()), (Some(Event::FinishLanes), None));
}

/// Wishes of before are not forgotten.
#[test]
fn a_drain_wanted_before_the_link_is_open_begins_when_it_is() {
    let start = Instant::now();
    let mut link = new(Side::Accepted, true, start);
    link.handle_drain(start);
    link.handle_control(greeting(Side::Accepted), start);
    let controls = [welcome(), Control::Drain, Control::Close(CloseReason::Drained)];
    assert_eq!(actions(&mut link, start), expect(controls, [Event::Open], 100));
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_dispatch(1, start + 1000 * MS, start).unwrap();
    link.handle_drain(start);
    for sequence in 0..300 {
        assert_eq!(link.state(), State::Draining);
        let now = start + (sequence as u32 + 1) * 100 * MS;
        link.handle_control(Control::Heartbeat { sequence, heard: sequence.saturating_sub(1) }, now);
        actions(&mut link, start);
        link.handle_timeout(now);
    }
    let closed = ended(&link);
    assert_eq!(
        actions(&mut link, start),
        expect([Control::Close(CloseReason::DrainTooLong)], [closed], NONE)
    );
    assert_eq!(why(&link), &Why::DrainTooLong { limit: 30_000 * MS, sent: 1, received: 0 });
}

/// The control lane is the lifeline: without it the link is over at once, whatever the state.
#[test]
fn a_link_without_its_control_lane_is_over_at_once() {
    let start = Instant::now();
    let lane = Lane::Control;
    let mut links = Vec::from([Side::Dialled, Side::Accepted].map(|side| open(side, start)));
    links.extend([Side::Dialled, Side::Accepted].map(|side| {
        let mut link = new(side, false, start);
        actions(&mut link, start);
        link
    }));
    links.push(finishing(start));
    for mut link in links {
        link.handle_lost(lane, "reset".into(), start);
        link.handle_lost(lane, "again".into(), start);
        let closed = ended(&link);
        let Actions { controls, events, timeout_ms } = actions(&mut link, start);
        assert_eq!((controls, events.last(), timeout_ms), (vec![], Some(&closed), None));
        assert_eq!(why(&link), &Why::Lost { lane, why: "reset".into() });
    }
}

/// A link that has asked to drain, been answered, and finishes its lanes.
fn finishing(start: Instant) -> Link {
    let mut link = open(Side::Dialled, start);
    link.handle_drain(start);
    link.handle_control(Control::Close(CloseReason::Drained), start);
    let controls = [Control::Drain, Control::Close(CloseReason::Drained)];
    assert_eq!(actions(&mut link, start), expect(controls, [Event::FinishLanes], 300));
    link
}

/// Nobody can say anything yet, or any more.
#[test]
fn a_lane_is_lost_at_once_where_no_word_can_come() {
    let start = Instant::now();
    for lane in [Lane::Data, Lane::Weights] {
        for side in [Side::Dialled, Side::Accepted] {
            let mut link = new(side, false, start);
            actions(&mut link, start);
            link.handle_lost(lane, "reset".into(), start);
            let closed = ended(&link);
            assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
            assert_eq!(why(&link), &Why::Lost { lane, why: "reset".into() });
        }
        let mut link = finishing(start);
        link.handle_flushed(lane, start);
        assert!(link.handle_finished(Lane::Control, start));
        link.handle_lost(lane, "reset".into(), start);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
        // The other way round: the last that could be said has been, and it was nothing.
        let mut link = finishing(start);
        link.handle_lost(lane, "reset".into(), start);
        assert_eq!(actions(&mut link, start), expect([], [], 20));
        assert!(link.handle_finished(Lane::Control, start));
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
        assert_eq!(why(&link), &Why::Lost { lane, why: "reset".into() });
    }
}

/// Whoever closes a link ends its lanes at the same moment, and they are not ordered with its reason.
#[test]
fn a_lost_lane_waits_for_last_words() {
    let start = Instant::now();
    for (side, lane) in [(Side::Dialled, Lane::Data), (Side::Accepted, Lane::Weights)] {
        // None come.
        let mut link = open(side, start);
        link.handle_lost(lane, "reset".into(), start + 30 * MS);
        link.handle_lost(Lane::Weights, "again".into(), start + 40 * MS);
        assert_eq!(actions(&mut link, start), expect([], [], 50));
        assert_eq!(link.state(), State::Open);
        link.handle_timeout(start + 49 * MS);
        assert_eq!(actions(&mut link, start), expect([], [], 50));
        link.handle_timeout(start + 50 * MS);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
        assert_eq!(why(&link), &Why::Lost { lane, why: "reset".into() });

        // They do.
        let mut link = open(side, start);
        link.handle_lost(lane, "reset".into(), start);
        link.handle_control(Control::Close(CloseReason::Replaced), start + 19 * MS);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
        assert_eq!(why(&link), &Why::ClosedByPeer(CloseReason::Replaced));

        // The control lane follows: then it is the peer that died.
        let mut link = open(side, start);
        link.handle_lost(lane, "reset".into(), start);
        link.handle_lost(Lane::Control, "cut".into(), start + 5 * MS);
        assert_eq!(why(&link), &Why::Lost { lane: Lane::Control, why: "cut".into() });

        // What is due in the same moment comes before the end, and nothing after it.
        let mut link = open(side, start);
        link.handle_dispatch(1, start + 15 * MS, start).unwrap();
        link.handle_lost(lane, "reset".into(), start);
        link.handle_timeout(start + 400 * MS);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [Event::Expired { dispatch: 1 }, closed], NONE));
    }
}

/// The end of a lane that the peer had no business to end is its loss.
#[test]
fn a_lane_that_ends_without_a_word_is_lost() {
    let start = Instant::now();
    let without_a_word = "the peer ended it without a word";
    for lane in Lane::ALL {
        let mut link = open(Side::Dialled, start);
        assert!(!link.handle_finished(lane, start));
        link.handle_timeout(start + 20 * MS);
        let closed = ended(&link);
        assert_eq!(actions(&mut link, start), expect([], [closed], NONE));
        assert_eq!(why(&link), &Why::Lost { lane, why: without_a_word.into() });
        assert!(!link.handle_finished(lane, start), "and it stays so");
        // Having said that it is drained, an end still waits for the peer's word on the control lane.
        let mut link = open(Side::Dialled, start);
        link.handle_drain(start);
        actions(&mut link, start);
        assert_eq!(link.handle_finished(lane, start), lane != Lane::Control);
        assert_eq!(link.state() == State::Closed, lane == Lane::Control);
    }
}

#[test]
fn whoever_closes_says_why_and_the_other_hears_it() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_close(CloseReason::Replaced, start);
    let closed = ended(&link);
    assert_eq!(actions(&mut link, start), expect([Control::Close(CloseReason::Replaced)], [closed], NONE));
    assert_eq!(why(&link), &Why::Closed(CloseReason::Replaced));
    link.handle_control(Control::Close(CloseReason::Wanted), start);
    link.handle_drain(start);
    link.handle_lost(Lane::Control, "reset".into(), start);
    link.handle_timeout(start + 60_000 * MS);
    assert_eq!(actions(&mut link, start), expect([], [], NONE), "an end comes once");
    assert!(matches!(link.handle_send(Lane::Data, 64), Err(SendRefused::Closed(_))));
    assert!(matches!(link.handle_dispatch(1, start, start), Err(DispatchRefused::Closed(_))));

    let mut link = open(Side::Accepted, start);
    link.handle_control(Control::Close(CloseReason::Replaced), start);
    assert_eq!(why(&link), &Why::ClosedByPeer(CloseReason::Replaced));

    let mut link = new(Side::Accepted, true, start);
    link.handle_close(CloseReason::Wanted, start);
    let refused = Control::Refused(Refusal::Busy("it was not wanted any more".into()));
    assert_eq!(actions(&mut link, start).controls, [refused]);
    let mut link = new(Side::Dialled, true, start);
    link.handle_close(CloseReason::Wanted, start);
    assert_eq!(actions(&mut link, start).controls, [], "who has not greeted has nothing to end");
    let mut link = open(Side::Accepted, start);
    link.handle_close(CloseReason::Broken("not a frame".into()), start);
    assert_eq!(why(&link), &Why::Broken(Broken::Unreadable("not a frame".into())));
}

#[test]
fn probes_are_echoed_charged_and_bounded() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    link.handle_probe(1, vec![5; 100]).unwrap();
    let probe = Control::Probe { id: 1, padding: vec![5; 100] };
    assert_eq!(actions(&mut link, start), expect([probe], [], 100));
    assert_eq!(link.credit_left(Lane::Control), 8 * 1088 - probe_charge(100));
    link.handle_control(Control::Echo { id: 1, padding: vec![5; 100] }, start);
    assert_eq!(actions(&mut link, start), expect([], [Event::Echo { id: 1, padding: vec![5; 100] }], 100));

    // A quarter of the window is two of the longest.
    let long = vec![0; 1024 - 20];
    assert_eq!(
        link.handle_probe(2, vec![0; 1024 - 19]),
        Err(ProbeRefused::TooLong { charge: 2112, max: 1088 })
    );
    link.handle_probe(2, long.clone()).unwrap();
    link.handle_probe(3, long.clone()).unwrap();
    assert_eq!(link.handle_probe(4, vec![]), Err(ProbeRefused::Full { probes: 2, bytes: 2176 }));
    actions(&mut link, start);
    link.handle_control(Control::Echo { id: 3, padding: long }, start);
    assert_eq!(why(&link), &Why::Broken(Broken::Echo { id: 3, bytes: 1004 }));
}

/// A probe's room is given back only when its echo goes, so echoes never pile up beyond the window.
#[test]
fn a_flood_of_probes_is_stopped_by_credits() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    let probe = |id| Control::Probe { id, padding: vec![0; 1004] };
    for id in 0..8 {
        link.handle_control(probe(id), start);
    }
    assert_eq!(link.state(), State::Open);
    link.handle_control(probe(8), start);
    assert_eq!(why(&link), &Why::Broken(Broken::Credit { lane: Lane::Control, charge: 1088, left: 0 }));

    let mut link = open(Side::Dialled, start);
    for id in 0..8 {
        link.handle_control(probe(id), start);
    }
    // The peer's room is as large, so eight echoes go, and with every second one a grant.
    let controls = actions(&mut link, start).controls;
    let echoes = controls.iter().filter(|message| matches!(message, Control::Echo { .. })).count();
    let grants =
        controls.iter().filter(|message| matches!(message, Control::Grant { .. })).collect::<Vec<_>>();
    assert_eq!(echoes, 8);
    let totals = [10, 12, 14, 16].map(|frames| Control::Grant { lane: Lane::Control, total: frames * 1088 });
    assert_eq!(grants, totals.iter().collect::<Vec<_>>());
    assert_eq!(link.credit_left(Lane::Control), 0);
    // The ninth waits for credit.
    link.handle_control(probe(8), start);
    assert_eq!(actions(&mut link, start), expect([], [], 100));
    link.handle_control(Control::Grant { lane: Lane::Control, total: 10 * 1088 }, start);
    assert_eq!(actions(&mut link, start), expect([Control::Echo { id: 8, padding: vec![0; 1004] }], [], 100));
}

#[test]
fn a_node_asks_for_a_certificate_and_a_coordinator_answers() {
    let start = Instant::now();
    let (mut coordinator, mut node) = (open(Side::Dialled, start), open(Side::Accepted, start));
    assert!(coordinator.handle_renew(vec![1]).is_err());
    for answer in [Ok(vec![vec![2], vec![3]]), Err("the clock is wrong".to_owned())] {
        node.handle_renew(vec![1]).unwrap();
        assert!(node.handle_renew(vec![1]).is_err(), "one at a time");
        let asked = actions(&mut node, start);
        assert_eq!(asked, expect([Control::Renew { request: vec![1] }], [], 100));
        coordinator.handle_control(asked.controls[0].clone(), start);
        assert_eq!(actions(&mut coordinator, start), expect([], [Event::Renew { request: vec![1] }], 100));
        coordinator.handle_renewed(answer.clone());
        let (message, event) = match answer {
            Ok(chain) => (Control::Renewed { chain: chain.clone() }, Event::Renewed { chain }),
            Err(why) => (Control::NotRenewed { why: why.clone() }, Event::NotRenewed { why }),
        };
        assert_eq!(actions(&mut coordinator, start), expect([message.clone()], [], 100));
        node.handle_control(message, start);
        assert_eq!(actions(&mut node, start), expect([], [event], 100));
    }
    // What does not fit is answered in words.
    node.handle_renew(vec![1]).unwrap();
    coordinator.handle_control(Control::Renew { request: vec![1] }, start);
    coordinator.handle_renewed(Ok(vec![vec![0; 2000]]));
    assert!(matches!(coordinator.poll_control(), Some(Control::NotRenewed { .. })));
    coordinator.handle_control(Control::Renewed { chain: vec![] }, start);
    assert_eq!(why(&coordinator), &Why::Broken(Broken::Unexpected { message: "Renewed", state: "open" }));
}
