//! What is told of the cluster: whole lists of actions, its bounds, and what a drain makes of it.

use std::time::Instant;

use phalanx_transport::Lane;
use phalanx_transport::link::{Broken, Event, Link, Side, State, TellRefused, Why};
use phalanx_transport::security::Role;
use phalanx_transport::wire::cluster::{Cluster, ToNode};
use phalanx_transport::wire::control::{CloseReason, Control};

use crate::support::*;

const SIDES: [Side; 2] = [Side::Dialled, Side::Accepted];

fn other(side: Side) -> Side {
    SIDES[usize::from(side == Side::Dialled)]
}

fn told(from: Side, number: u64, words: usize) -> Control {
    Control::Cluster(tidings(from, number, words))
}

fn broken(link: &Link) -> &Broken {
    match link.ended().expect("the link is closed").why() {
        Why::Broken(broken) => broken,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_told_goes_costs_and_is_heard() {
    let start = Instant::now();
    for side in SIDES {
        let (mut link, mut peer) = (open(side, start), open(other(side), start));
        for number in 0..3 {
            link.handle_tell(tidings(side, number, 100)).unwrap();
        }
        let charge = tidings_charge(side, 100);
        let sent = actions(&mut link, start);
        assert_eq!(sent, expect([0, 1, 2].map(|number| told(side, number, 100)), [], 100));
        assert_eq!(link.credit_left(Lane::Control), 8 * 1088 - 3 * charge);
        sent.controls.into_iter().for_each(|message| peer.handle_control(message, start));
        let heard = [0, 1, 2].map(|number| Event::Told { message: tidings(side, number, 100), charge });
        assert_eq!(actions(&mut peer, start), expect([], heard, 100));
        // Its room is given back when the application has read it, not before; and is told in quarters.
        peer.handle_released(Lane::Control, charge, start);
        assert_eq!(actions(&mut peer, start), expect([], [], 100));
    }
}

/// The room of what nobody reads stays occupied, and what was read is granted again.
#[test]
fn what_nobody_reads_stops_whoever_tells() {
    let start = Instant::now();
    let (mut link, mut peer) = (open(Side::Dialled, start), open(Side::Accepted, start));
    let charge = tidings_charge(Side::Dialled, 600);
    assert_eq!(charge, 1088);
    let tell = |link: &mut Link, number| link.handle_tell(tidings(Side::Dialled, number, 600)).unwrap();
    (0..8).for_each(|number| tell(&mut link, number));
    let sent = actions(&mut link, start).controls;
    assert_eq!(sent.len(), 8, "as many as the window holds");
    (8..10).for_each(|number| tell(&mut link, number));
    sent.into_iter().for_each(|message| peer.handle_control(message, start));
    assert_eq!(actions(&mut peer, start).events.len(), 8);
    assert_eq!(actions(&mut link, start), expect([], [], 100), "the others wait");
    peer.handle_released(Lane::Control, 2 * charge, start);
    let grant = Control::Grant { lane: Lane::Control, total: 10 * charge };
    assert_eq!(actions(&mut peer, start), expect([grant.clone()], [], 100));
    link.handle_control(grant, start);
    let rest = [8, 9].map(|number| told(Side::Dialled, number, 600));
    assert_eq!(actions(&mut link, start), expect(rest, [], 100));
    // Whoever does not wait is stopped as well.
    for number in 0..2 {
        peer.handle_control(told(Side::Dialled, number, 600), start);
    }
    assert_eq!(peer.state(), State::Open);
    peer.handle_control(told(Side::Dialled, 3, 600), start);
    assert_eq!(broken(&peer), &Broken::Credit { lane: Lane::Control, charge, left: 0 });
}

#[test]
fn what_waits_is_bounded_by_bytes_and_by_number() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    let charge = tidings_charge(Side::Dialled, 600);
    for number in 0..8 {
        link.handle_tell(tidings(Side::Dialled, number, 600)).unwrap();
    }
    let full = |messages, bytes, charge| {
        let (messages_max, bytes_max) = (4096, 8 * 1088);
        Err(TellRefused::Full { messages, bytes, charge, messages_max, bytes_max })
    };
    assert_eq!(link.handle_tell(tidings(Side::Dialled, 8, 0)), full(8, 8 * charge, 128));
    assert_eq!(actions(&mut link, start).controls.len(), 8, "now they have gone");
    link.handle_tell(tidings(Side::Dialled, 8, 0)).unwrap();
}

/// Thousands of short ones are too many, whatever they cost.
#[test]
fn too_many_short_ones_are_refused() {
    let start = Instant::now();
    let mut limits = limits();
    limits.window_bytes.control = 1 << 30;
    let vouched = phalanx_transport::carrier::Vouched::Nobody;
    let mut link =
        Link::new(Side::Dialled, local(Side::Dialled), limits, vouched, true, SESSION, PORTS, start);
    actions(&mut link, start);
    link.handle_control(welcome(), start);
    for number in 0..4096 {
        link.handle_tell(tidings(Side::Dialled, number, 0)).unwrap();
    }
    let refused = link.handle_tell(tidings(Side::Dialled, 0, 0));
    assert!(matches!(refused, Err(TellRefused::Full { messages: 4096, .. })), "{refused:?}");
}

#[test]
fn what_can_never_go_is_refused_at_once() {
    let start = Instant::now();
    let mut link = new(Side::Dialled, true, start);
    assert_eq!(link.handle_tell(tidings(Side::Dialled, 1, 0)), Err(TellRefused::NotOpen));
    let mut link = open(Side::Dialled, start);
    // 1024 bytes of payload are taken, and 28 stand before the words.
    link.handle_tell(tidings(Side::Dialled, 1, 996)).unwrap();
    assert_eq!(
        link.handle_tell(tidings(Side::Dialled, 1, 997)),
        Err(TellRefused::TooLong { charge: 2112, max: 1088 })
    );
    let words = Cluster::ToNode(ToNode::NotJoined { why: "a\u{7}".into() });
    assert!(matches!(link.handle_tell(words), Err(TellRefused::Message(_))));
    assert_eq!(
        link.handle_tell(tidings(Side::Accepted, 1, 0)),
        Err(TellRefused::WrongWay { message: "ToCoordinator", role: Role::Coordinator })
    );
    link.handle_lost(Lane::Control, "reset".into(), start);
    let ended = link.ended().unwrap().clone();
    assert_eq!(link.handle_tell(tidings(Side::Dialled, 1, 0)), Err(TellRefused::Closed(ended)));
}

/// A node has no orders to give, and a coordinator nothing to report.
#[test]
fn the_wrong_way_round_breaks_the_link() {
    let start = Instant::now();
    for (side, message, role) in
        [(Side::Dialled, "ToNode", Role::Node), (Side::Accepted, "ToCoordinator", Role::Coordinator)]
    {
        let mut link = open(side, start);
        link.handle_control(told(side, 1, 0), start);
        assert_eq!(broken(&link), &Broken::WrongWay { message, role });
        let last_words = Control::Close(CloseReason::Broken(broken(&link).to_string()));
        assert_eq!(actions(&mut link, start).controls, [last_words]);
    }
}

/// The accepting end is open first, and may have said something before the other is.
#[test]
fn what_is_told_before_the_link_is_open_is_heard_when_it_is() {
    let start = Instant::now();
    let mut link = new(Side::Dialled, false, start);
    actions(&mut link, start);
    link.handle_control(welcome(), start);
    actions(&mut link, start);
    link.handle_control(told(Side::Accepted, 1, 0), start);
    link.handle_control(Control::Renew { request: vec![1] }, start);
    assert_eq!(actions(&mut link, start), expect([], [], 5000));
    link.handle_attached(Lane::Data, start).unwrap();
    link.handle_attached(Lane::Weights, start).unwrap();
    let charge = tidings_charge(Side::Accepted, 0);
    let heard = Event::Told { message: tidings(Side::Accepted, 1, 0), charge };
    let events = [Event::Open, heard, Event::Renew { request: vec![1] }];
    assert_eq!(actions(&mut link, start), expect([], events, 100));
}

/// A node that is asked to drain still reports, as long as it has something to return.
#[test]
fn a_draining_end_tells_until_it_is_drained() {
    let start = Instant::now();
    let mut link = open(Side::Accepted, start);
    link.handle_dispatched(5).unwrap();
    link.handle_control(Control::Drain, start);
    assert_eq!(actions(&mut link, start), expect([], [Event::DrainAsked], 100));
    link.handle_tell(tidings(Side::Accepted, 0, 0)).unwrap();
    assert_eq!(actions(&mut link, start), expect([told(Side::Accepted, 0, 0)], [], 100));
    // What was accepted goes before the last word.
    link.handle_tell(tidings(Side::Accepted, 1, 0)).unwrap();
    assert!(link.handle_returned(5));
    let controls = [told(Side::Accepted, 1, 0), Control::Close(CloseReason::Drained)];
    assert_eq!(actions(&mut link, start), expect(controls, [], 100));
    assert_eq!(link.handle_tell(tidings(Side::Accepted, 2, 0)), Err(TellRefused::Draining));
    // The peer has not said its last word, and is heard until it does.
    link.handle_control(told(Side::Dialled, 0, 0), start);
    let charge = tidings_charge(Side::Dialled, 0);
    let heard = Event::Told { message: tidings(Side::Dialled, 0, 0), charge };
    assert_eq!(actions(&mut link, start), expect([], [heard], 100));
    link.handle_control(Control::Close(CloseReason::Drained), start);
    assert_eq!(actions(&mut link, start).events, [Event::FinishLanes]);
    link.handle_control(told(Side::Dialled, 1, 0), start);
    assert_eq!(broken(&link), &Broken::Unexpected { message: "ToNode", state: "finishing" });
}

/// Nobody reads what waits, so the drain does not end by itself; it is cut in its time.
#[test]
fn a_drain_behind_what_nobody_reads_is_cut() {
    let start = Instant::now();
    let mut link = open(Side::Dialled, start);
    for number in 0..8 {
        link.handle_tell(tidings(Side::Dialled, number, 600)).unwrap();
    }
    assert_eq!(actions(&mut link, start).controls.len(), 8);
    link.handle_tell(tidings(Side::Dialled, 8, 600)).unwrap();
    link.handle_drain(start);
    assert_eq!(actions(&mut link, start), expect([Control::Drain], [], 100));
    for sequence in 0..300 {
        assert_eq!(link.state(), State::Draining);
        let now = start + (sequence as u32 + 1) * 100 * MS;
        link.handle_control(Control::Heartbeat { sequence, heard: sequence.saturating_sub(1) }, now);
        actions(&mut link, start);
        link.handle_timeout(now);
    }
    assert!(matches!(link.ended().unwrap().why(), Why::DrainTooLong { .. }));
}
