//! Peers that say anything at any time.

use std::time::Instant;

use phalanx_transport::Lane;
use phalanx_transport::link::{Event, Link, Side, State, Why};
use phalanx_transport::wire::control::{Attach, CloseReason, Control, PROTOCOL, Refusal};

use crate::support::*;

/// Every message, well formed, as it might come first in its state.
fn messages() -> Vec<(&'static str, Control)> {
    let attach = Attach { protocol: PROTOCOL, session: SESSION, lane: Lane::Data };
    vec![
        ("hello", Control::Hello(hello(Side::Dialled))),
        ("welcome", welcome()),
        ("refused", Control::Refused(Refusal::Attach)),
        ("attach", Control::Attach(attach)),
        ("attached", Control::Attached),
        ("heartbeat", Control::Heartbeat { sequence: 0, heard: 0 }),
        ("grant", Control::Grant { lane: Lane::Control, total: 8 * 1088 + 128 }),
        ("drain", Control::Drain),
        ("drained", Control::Close(CloseReason::Drained)),
        ("close", Control::Close(CloseReason::Wanted)),
        ("probe", Control::Probe { id: 1, padding: vec![] }),
        ("echo", Control::Echo { id: 1, padding: vec![] }),
        ("renew", Control::Renew { request: vec![] }),
        ("renewed", Control::Renewed { chain: vec![] }),
        ("not renewed", Control::NotRenewed { why: String::new() }),
        ("order", Control::Cluster(tidings(Side::Dialled, 1, 0))),
        ("report", Control::Cluster(tidings(Side::Accepted, 1, 0))),
    ]
}

/// Links in every state, each with the messages that may come there. `open` has a probe and, at the node, a
/// request for a certificate out.
fn states(side: Side, now: Instant) -> Vec<(&'static str, Link, &'static str)> {
    let poll = |link: &mut Link| {
        actions(link, now);
    };
    let asked = |link: &mut Link| {
        link.handle_probe(1, vec![]).expect("an open link is probed");
        if side == Side::Accepted {
            link.handle_renew(vec![]).expect("a node may ask");
        }
        actions(link, now);
    };
    let node = side == Side::Accepted;
    let mut greeting_state = new(side, false, now);
    poll(&mut greeting_state);
    let mut attaching = new(side, false, now);
    poll(&mut attaching);
    attaching.handle_control(greeting(side), now);
    poll(&mut attaching);
    let idle = open(side, now);
    let mut busy = open(side, now);
    asked(&mut busy);
    // This end asks to drain while its probe is out; then the peer does.
    let mut draining = open(side, now);
    asked(&mut draining);
    draining.handle_drain(now);
    poll(&mut draining);
    let mut asked_to_drain = open(side, now);
    asked(&mut asked_to_drain);
    asked_to_drain.handle_control(Control::Drain, now);
    poll(&mut asked_to_drain);
    // The peer has said that it is drained, this end still waits for an echo.
    let mut peer_drained = open(side, now);
    asked(&mut peer_drained);
    peer_drained.handle_control(Control::Drain, now);
    peer_drained.handle_control(Control::Close(CloseReason::Drained), now);
    poll(&mut peer_drained);
    let mut finishing = open(side, now);
    finishing.handle_control(Control::Drain, now);
    finishing.handle_control(Control::Close(CloseReason::Drained), now);
    poll(&mut finishing);
    assert_eq!((draining.state(), finishing.state()), (State::Draining, State::Finishing));
    let pick = |dialled: &'static str, accepted: &'static str| if node { accepted } else { dialled };
    vec![
        ("greeting", greeting_state, pick("welcome refused close", "hello")),
        ("attaching", attaching, pick("heartbeat drain grant! close probe renew report", "refused close")),
        (
            "open",
            idle,
            pick(
                "heartbeat drain grant! close probe renew report",
                "refused heartbeat grant! drain close probe order",
            ),
        ),
        (
            "asked",
            busy,
            pick(
                "heartbeat grant drain close probe echo renew report",
                "refused heartbeat grant drain close probe echo renewed not order",
            ),
        ),
        (
            "draining",
            draining,
            pick(
                "heartbeat grant drain drained close probe echo renew report",
                "refused heartbeat grant drain drained close probe echo renewed not order",
            ),
        ),
        (
            "asked to drain",
            asked_to_drain,
            pick(
                "heartbeat grant drained close probe echo renew report",
                "heartbeat grant drained close probe echo renewed not order",
            ),
        ),
        ("peer drained", peer_drained, "heartbeat grant close echo"),
        ("finishing", finishing, "heartbeat grant! close"),
    ]
}

/// What may come is taken, all else closes the link with a word to the peer and the peer's name to the owner.
#[test]
fn every_message_in_every_state_is_taken_or_breaks_the_link() {
    let now = Instant::now();
    let mut tried = 0;
    for side in [Side::Dialled, Side::Accepted] {
        for at in 0..states(side, now).len() {
            for (name, message) in messages() {
                let (state, mut link, allowed) = states(side, now).swap_remove(at);
                // A grant of what was never sent cannot be true: `grant!` marks where nothing was.
                let taken = allowed.split(' ').any(|word| word == name.split(' ').next().unwrap());
                link.handle_control(message, now);
                let broken = matches!(link.ended().map(|ended| ended.why()), Some(Why::Broken(_)));
                assert_eq!(broken, !taken, "{side:?} {state} {name}: {:?}", link.ended());
                if broken {
                    let done = actions(&mut link, now);
                    let told = matches!(done.controls[..], [Control::Close(CloseReason::Broken(_))]);
                    assert_eq!(told, state != "finishing", "{side:?} {state} {name}");
                    assert!(closed(&done.events).unwrap().contains("broke the protocol"));
                    assert_eq!(done.timeout_ms, None);
                }
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 2 * 8 * 17);
}

/// Whatever comes after the end changes nothing.
#[test]
fn nothing_is_heard_after_the_end() {
    let now = Instant::now();
    for (name, message) in messages() {
        let mut link = open(Side::Dialled, now);
        link.handle_lost(Lane::Control, "reset".into(), now);
        let ended = link.ended().cloned();
        actions(&mut link, now);
        link.handle_control(message, now);
        assert_eq!(actions(&mut link, now), expect([], [], None), "{name}");
        assert_eq!(link.ended(), ended.as_ref());
    }
}

/// A peer that says its whole piece again is a peer that broke the protocol.
#[test]
fn a_replayed_handshake_breaks_the_link() {
    let now = Instant::now();
    for side in [Side::Dialled, Side::Accepted] {
        let mut link = open(side, now);
        link.handle_control(greeting(side), now);
        assert!(matches!(link.ended().unwrap().why(), Why::Broken(_)));
    }
}

/// Random messages, frames, returns and times at links in every state: no panic, at most one end, no word after
/// it, and never more waiting than the limits allow.
#[test]
fn random_input_never_breaks_more_than_the_link() {
    let start = Instant::now();
    let (mut ends, mut survivors) = (0, 0);
    for seed in 0..4000_u64 {
        let mut random = Random(seed);
        let side = [Side::Dialled, Side::Accepted][random.below(2) as usize];
        let at = random.below(8) as usize;
        let (_, mut link, _) = states(side, start).swap_remove(at);
        let mut now = start;
        let mut closings = 0;
        for _ in 0..random.below(30) {
            let messages = messages();
            match random.below(13) {
                0..=3 => {
                    let (_, message) = messages.into_iter().nth(random.below(17) as usize).unwrap();
                    link.handle_control(message, now);
                }
                4 => {
                    let total = [random.below(20_000), u64::MAX - random.below(3)][random.below(2) as usize];
                    link.handle_control(Control::Grant { lane: random.lane(), total }, now);
                }
                5 => {
                    let padding = vec![0; random.below(1100) as usize];
                    link.handle_control(Control::Probe { id: random.below(4), padding }, now);
                }
                6 => drop(link.handle_received(random.lane(), random.below(2000))),
                7 => drop(link.handle_dispatched(random.below(5))),
                8 => drop((link.handle_return(random.below(5)), link.handle_returned(random.below(5)))),
                9 => {
                    now += random.below(400) as u32 * MS;
                    link.handle_timeout(now);
                }
                10 => match random.below(20) {
                    0 => link.handle_lost(random.lane(), "reset".into(), now),
                    1 => drop(link.handle_finished(random.lane(), now)),
                    2 => link.handle_drain(now),
                    3 => drop(link.handle_attached(random.lane(), now)),
                    _ => drop(link.handle_send(random.lane(), 64 + random.below(1024))),
                },
                11 => drop(link.handle_tell(tidings(side, random.below(9), random.below(1100) as usize))),
                _ => drop(link.handle_dispatch(random.below(5), now + random.below(9) as u32 * MS, now)),
            }
            if random.below(3) == 0 {
                let done = actions(&mut link, start);
                assert!(done.controls.len() < 200 && done.events.len() < 200, "seed {seed}: {done:?}");
                closings += done.events.iter().filter(|event| matches!(event, Event::Closed(_))).count();
                assert_eq!(link.state() == State::Closed, closings == 1, "seed {seed}");
            }
            assert!(link.in_flight() <= 3 && link.in_flight_theirs() <= 3, "seed {seed}");
        }
        closings +=
            actions(&mut link, start).events.iter().filter(|event| matches!(event, Event::Closed(_))).count();
        if closings == 1 { ends += 1 } else { survivors += 1 }
    }
    assert!(ends > 1000 && survivors > 20, "{ends} ended, {survivors} did not: both kinds must be seen");
}
