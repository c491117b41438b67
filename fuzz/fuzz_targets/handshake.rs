//! Both sides of the core of a link, told any messages at any times.
//!
//! Each step is a byte that says what, a byte that says how much later, and for a message its length (u16,
//! little-endian) and its bytes, as the control lane would bring them. Whatever comes, nothing panics, what a link
//! asks for in one step is bounded, and a link that is over asks for nothing but its last word.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use phalanx_transport::carrier::Vouched;
use phalanx_transport::link::{Event, Link, Local, Side, State};
use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::cluster::{Ask, Cluster, ToCoordinator, ToNode};
use phalanx_transport::wire::control::CloseReason;
use phalanx_transport::wire::{Control, Lane, codec};
use phalanx_transport::{Limits, link::ProbeRefused};

/// Messages and events that one step may lead to: grants, echoes and what expired are bounded by what came before.
const ASKED_MAX: usize = 4_096;

fuzz_target!(|bytes: &[u8]| {
    for side in [Side::Accepted, Side::Dialled] {
        for lanes_ready in [true, false] {
            run(bytes, side, lanes_ready);
        }
    }
});

fn new(side: Side, lanes_ready: bool, now: Instant) -> Link {
    let role = if side == Side::Accepted { Role::Coordinator } else { Role::Node };
    let peer = PeerName { cluster: ClusterId(std::array::from_fn(|at| at as u8)), role, name: "c0".into() };
    let local = Local {
        peer,
        program: "fuzz".into(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: true,
    };
    Link::new(side, local, Limits::default(), Vouched::Nobody, lanes_ready, [9; 16], [None; 2], now)
}

fn run(mut bytes: &[u8], side: Side, lanes_ready: bool) {
    let mut now = Instant::now();
    let mut link = new(side, lanes_ready, now);
    let mut finishing = false;
    let mut read = 0;
    settle(&mut link, &mut finishing, &mut read, now);
    while let Some(([what, later], rest)) = bytes.split_first_chunk::<2>() {
        bytes = rest;
        // From nothing to nine minutes.
        now += Duration::from_millis(u64::from(*later).pow(2) * u64::from(*later / 64) * 3);
        let lane = Lane::ALL[usize::from(what / 16 % 3)];
        match what % 16 {
            0..7 => {
                let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
                let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
                let (message, rest) = rest.split_at(length);
                bytes = rest;
                match codec::decode::<Control>(message) {
                    Ok(message) if message.check().is_ok() => link.handle_control(message, now),
                    _ => link.handle_close(CloseReason::Broken("noise".into()), now),
                }
            }
            7 => {
                let ask = Cluster::ToCoordinator(ToCoordinator::Ask(Ask { ask: 1, layer: 2, expert: 3 }));
                let not_served =
                    Cluster::ToNode(ToNode::NotServed { ask: 1, why: "x".repeat(usize::from(*later)) });
                let told = link.handle_tell(if what & 64 == 0 { ask } else { not_served });
                assert!(told.is_err() || matches!(link.state(), State::Open | State::Draining));
            }
            8 => link.handle_timeout(now),
            9 => drop(link.handle_attached(lane, now)),
            10 => match link.handle_probe(u64::from(*what), vec![0; usize::from(*later)]) {
                Ok(()) | Err(ProbeRefused::Full { .. } | ProbeRefused::TooLong { .. }) => {}
                Err(_) => assert!(link.state() != State::Open),
            },
            11 => drop(link.handle_renew(vec![1; 10])),
            12 => drop(link.handle_received(lane, 64 + u64::from(*later) * 64)),
            13 => {
                if link.handle_dispatched(u64::from(*later)).is_ok() {
                    assert!(link.handle_returned(u64::from(*later)));
                }
            }
            14 => link.handle_drain(now),
            _ if later % 2 == 0 => drop(link.handle_finished(lane, now)),
            _ => link.handle_lost(lane, "noise".into(), now),
        }
        settle(&mut link, &mut finishing, &mut read, now);
    }
}

/// Carries out what the link asks for, as its shell would.
fn settle(link: &mut Link, finishing: &mut bool, read: &mut u64, now: Instant) {
    let mut asked = 0;
    let mut over = false;
    loop {
        let (message, event) = (link.poll_control(), link.poll_event());
        if message.is_none() && event.is_none() {
            break;
        }
        asked += 1;
        assert!(asked <= ASKED_MAX, "it asks for more and more");
        if let Some(message) = message {
            // What a link says, any other end can read.
            message.check().expect("our own words are within their bounds");
            let encoded = codec::encode(&message).expect("our own message is one");
            assert_eq!(codec::decode(&encoded), Ok(message));
        }
        match event {
            Some(Event::Renew { .. }) => link.handle_renewed(Err("no\u{7}".repeat(2_000))),
            Some(Event::FinishLanes) => {
                assert!(!std::mem::replace(finishing, true), "lanes are finished once");
                Lane::ALL.into_iter().for_each(|lane| link.handle_flushed(lane, now));
            }
            // Long ones are never read.
            Some(Event::Told { charge, .. }) if charge < 1_024 => {
                *read += charge;
                link.handle_released(Lane::Control, *read, now);
            }
            Some(Event::Closed(_)) => over = true,
            Some(_) => assert!(!over, "the end is the last event"),
            None => {}
        }
    }
    match link.ended() {
        Some(ended) => {
            assert!(link.poll_timeout().is_none() && ended.to_string().len() < 4_096);
        }
        None => assert!(link.poll_timeout().is_some(), "a link always waits for something"),
    }
}
