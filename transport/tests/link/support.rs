//! Ends of a link in any state, and what they want done.

use std::time::{Duration, Instant};

use phalanx_transport::carrier::Vouched;
use phalanx_transport::link::{Event, Link, Local, Side};
use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::cluster::{Ask, Cluster, ToCoordinator, ToNode};
use phalanx_transport::wire::control::{Control, Hello, NumericIdentity, Offer, PROTOCOL, Welcome};
use phalanx_transport::wire::{PerLane, charge};
use phalanx_transport::{Lane, Limits};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SESSION: [u8; 16] = [9; 16];
pub(crate) const PORTS: [Option<u16>; 2] = [Some(4001), Some(4002)];

/// Small enough that a few frames use them up.
pub(crate) fn limits() -> Limits {
    Limits {
        payload_bytes_max: PerLane { control: 1024, data: 1024, weights: 1024 },
        window_bytes: PerLane { control: 8 * 1088, data: 4 * 1088, weights: 2 * 1088 },
        in_flight_max: 3,
        heartbeat_every: 100 * MS,
        silence_max: 10_000 * MS,
        handshake_max: 5_000 * MS,
        drain_max: 30_000 * MS,
    }
}

/// The dialling end is a coordinator, the accepting one a node.
pub(crate) fn role(side: Side) -> Role {
    match side {
        Side::Dialled => Role::Coordinator,
        Side::Accepted => Role::Node,
    }
}

pub(crate) fn local(side: Side) -> Local {
    let name = match side {
        Side::Dialled => "c1",
        Side::Accepted => "b1",
    };
    Local {
        peer: PeerName { cluster: ClusterId([1; 16]), role: role(side), name: name.into() },
        program: "phalanx 0.1".into(),
        incarnation: 7,
        numeric: Some(NumericIdentity { class: "bf16-avx2".into(), fingerprint: [3; 32] }),
        row_bytes: 512,
        mixed_classes: false,
    }
}

/// Written out, so that it does not depend on what a link says of itself.
pub(crate) fn hello(side: Side) -> Hello {
    let Local { peer, program, incarnation, numeric, row_bytes, .. } = local(side);
    let Limits { payload_bytes_max, window_bytes, in_flight_max, .. } = limits();
    let limits = Offer { payload_bytes_max, window_bytes, in_flight_max, heartbeat_us: 100_000, row_bytes };
    Hello { protocol: PROTOCOL, program, peer, incarnation, numeric, limits }
}

pub(crate) fn welcome() -> Control {
    Control::Welcome(Welcome { hello: hello(Side::Accepted), session: SESSION, ports: PORTS })
}

pub(crate) fn new(side: Side, lanes_ready: bool, now: Instant) -> Link {
    Link::new(side, local(side), limits(), Vouched::Nobody, lanes_ready, SESSION, PORTS, now)
}

/// What the other end says to greet this one.
pub(crate) fn greeting(side: Side) -> Control {
    match side {
        Side::Dialled => welcome(),
        Side::Accepted => Control::Hello(hello(Side::Dialled)),
    }
}

/// An open link with nothing left to do.
pub(crate) fn open(side: Side, now: Instant) -> Link {
    let mut link = new(side, true, now);
    while link.poll_control().is_some() {}
    link.handle_control(greeting(side), now);
    while link.poll_control().is_some() {}
    assert_eq!(link.poll_event(), Some(Event::Open));
    assert_eq!(link.poll_event(), None);
    link
}

/// All that a link wants done: messages, events, and when it wants to be asked again.
#[derive(Debug, PartialEq)]
pub(crate) struct Actions {
    pub(crate) controls: Vec<Control>,
    pub(crate) events: Vec<Event>,
    pub(crate) timeout_ms: Option<u64>,
}

pub(crate) fn actions(link: &mut Link, start: Instant) -> Actions {
    let controls = std::iter::from_fn(|| link.poll_control()).collect();
    let events = std::iter::from_fn(|| link.poll_event()).collect();
    let timeout_ms = link.poll_timeout().map(|at| at.duration_since(start).as_millis() as u64);
    Actions { controls, events, timeout_ms }
}

pub(crate) fn expect<const C: usize, const E: usize>(
    controls: [Control; C],
    events: [Event; E],
    timeout_ms: impl Into<Option<u64>>,
) -> Actions {
    Actions { controls: controls.into(), events: events.into(), timeout_ms: timeout_ms.into() }
}

/// What a probe of such a filling costs: tag, id, length, filling.
pub(crate) fn probe_charge(padding: usize) -> u64 {
    charge(4 + 8 + 8 + padding as u64)
}

/// What the end of that side may tell of the cluster, told apart by a number and as long as wanted.
pub(crate) fn tidings(side: Side, number: u64, words: usize) -> Cluster {
    match side {
        Side::Dialled => Cluster::ToNode(ToNode::NotServed { ask: number, why: "x".repeat(words) }),
        Side::Accepted => {
            Cluster::ToCoordinator(ToCoordinator::Ask(Ask { ask: number, layer: 0, expert: words as u32 }))
        }
    }
}

/// What such a message costs.
pub(crate) fn tidings_charge(side: Side, words: usize) -> u64 {
    match side {
        Side::Dialled => charge(4 + 4 + 4 + 8 + 8 + words as u64),
        Side::Accepted => charge(4 + 4 + 4 + 8 + 4 + 4),
    }
}

/// The only closing event among `events`, as words.
pub(crate) fn closed(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match event {
        Event::Closed(ended) => Some(ended.to_string()),
        _ => None,
    })
}

/// A deterministic sequence of numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0 ^ (self.0 >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u64) % bound
    }

    pub(crate) fn lane(&mut self) -> Lane {
        Lane::ALL[self.below(3) as usize]
    }
}
