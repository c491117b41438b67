//! Whether two ends may have a link: what each says of itself, held against the other.
//!
//! Pure. Both ends check alike, the dialled one the `Hello`, the dialling one the `Hello` inside `Welcome`, so a
//! link is open only when both agree. Every figure of an offer has bounds here, so that no sum of the link can
//! overflow whatever a peer offers.

use std::time::Duration;

use super::rhythm::LATE_INTERVALS_MAX;
use crate::carrier::Vouched;
use crate::security::PeerName;
use crate::wire::ControlError;
use crate::wire::charge;
use crate::wire::control::{
    Control, Hello, NAME_BYTES_MAX, NumericIdentity, Offer, PROGRAM_BYTES_MAX, PROTOCOL, Refusal, is_name,
};
use crate::{Lane, Limits};

/// Longest payload that may be offered: a header counts the bytes of a frame in 32 bits.
const PAYLOAD_BYTES_MAX: u64 = 1 << 32;
/// Every end takes control messages so long: whatever has to be said in words fits.
const CONTROL_PAYLOAD_BYTES_MIN: u64 = 1024;
/// Largest window that may be offered, far below where a sum of two would overflow.
const WINDOW_BYTES_MAX: u64 = 1 << 48;
/// Fastest heartbeat: a faster one is a flood.
const HEARTBEAT_US_MIN: u32 = 1_000;
/// Slowest heartbeat.
const HEARTBEAT_US_MAX: u32 = 60_000_000;
/// The smallest table of groups before the rows of a dispatch.
const TABLE_BYTES_MIN: u64 = 64;

/// What this end says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub peer: PeerName,
    /// Which program: name and version.
    pub program: String,
    /// A random number of this process's life.
    pub incarnation: u64,
    /// What its numbers are; `None` where it computes nothing.
    pub numeric: Option<NumericIdentity>,
    /// Bytes of a row that it will send, 0 if it does not know.
    pub row_bytes: u64,
    /// Whether it works with peers whose numbers have other bits.
    pub mixed_classes: bool,
}

impl Local {
    /// Whether the other end could read it: names, program and class within their bounds.
    pub fn check(&self) -> Result<(), ControlError> {
        Control::Hello(hello(self, &Limits::default())).check()
    }
}

/// What this end says in the handshake.
pub(super) fn hello(local: &Local, limits: &Limits) -> Hello {
    Hello {
        protocol: PROTOCOL,
        program: local.program.clone(),
        peer: local.peer.clone(),
        incarnation: local.incarnation,
        numeric: local.numeric.clone(),
        limits: Offer {
            payload_bytes_max: limits.payload_bytes_max,
            window_bytes: limits.window_bytes,
            in_flight_max: limits.in_flight_max,
            heartbeat_us: u32::try_from(limits.heartbeat_every.as_micros()).unwrap_or(u32::MAX),
            row_bytes: local.row_bytes,
        },
    }
}

/// Checks what the peer says of itself. The order is that of what to mend first.
pub(super) fn check(hello: &Hello, local: &Local, limits: &Limits, vouched: &Vouched) -> Result<(), Refusal> {
    if hello.protocol != PROTOCOL {
        return Err(Refusal::Protocol { theirs: hello.protocol, ours: PROTOCOL });
    }
    check_words(hello)?;
    let (theirs, ours) = (&hello.peer, &local.peer);
    if theirs.cluster != ours.cluster {
        return Err(Refusal::Cluster { theirs: theirs.cluster, ours: ours.cluster });
    }
    if let Vouched::Certificate(certificate) = vouched
        && certificate != theirs
    {
        return Err(Refusal::Name { said: in_full(theirs), certificate: in_full(certificate) });
    }
    if theirs.role == ours.role {
        return Err(Refusal::Role { theirs: theirs.role, ours: ours.role });
    }
    if let (Some(theirs), Some(ours)) = (&hello.numeric, &local.numeric)
        && !local.mixed_classes
    {
        check_numeric(theirs, ours)?;
    }
    check_offer(&hello.limits, limits)?;
    check_rows(&hello.limits, local, limits)
}

/// With the cluster: two names may differ only there.
fn in_full(name: &PeerName) -> String {
    format!("{name} of cluster {}", name.cluster)
}

fn offer(what: impl Into<String>, value: u64) -> Refusal {
    Refusal::Offer { what: what.into(), value }
}

fn check_words(hello: &Hello) -> Result<(), Refusal> {
    if !is_name(&hello.peer.name) {
        return Err(no_name("a peer's name", &hello.peer.name));
    }
    if hello.program.len() > PROGRAM_BYTES_MAX {
        let what = format!("a program's name, which may have {PROGRAM_BYTES_MAX} bytes, with a length");
        return Err(offer(what, length(&hello.program)));
    }
    match &hello.numeric {
        Some(numeric) if !is_name(&numeric.class) => Err(no_name("a numeric class", &numeric.class)),
        _ => Ok(()),
    }
}

fn no_name(what: &str, name: &str) -> Refusal {
    let what = format!("{what} that is not 1 to {NAME_BYTES_MAX} letters, digits, - _ . and a length");
    offer(what, length(name))
}

fn length(words: &str) -> u64 {
    words.len() as u64
}

fn check_numeric(theirs: &NumericIdentity, ours: &NumericIdentity) -> Result<(), Refusal> {
    if theirs.class != ours.class {
        return Err(Refusal::Class { theirs: theirs.class.clone(), ours: ours.class.clone() });
    }
    if theirs.fingerprint != ours.fingerprint {
        return Err(Refusal::Fingerprint { class: ours.class.clone() });
    }
    Ok(())
}

fn check_offer(theirs: &Offer, ours: &Limits) -> Result<(), Refusal> {
    for lane in Lane::ALL {
        let (payload, window) = (theirs.payload_bytes_max[lane], theirs.window_bytes[lane]);
        if payload == 0 || payload > PAYLOAD_BYTES_MAX {
            return Err(offer(format!("a longest payload on the {lane} lane"), payload));
        }
        if lane == Lane::Control && payload < CONTROL_PAYLOAD_BYTES_MIN {
            return Err(offer(
                format!("a longest control message, which must be at least {CONTROL_PAYLOAD_BYTES_MIN},"),
                payload,
            ));
        }
        if window > WINDOW_BYTES_MAX {
            return Err(offer(format!("a window of the {lane} lane"), window));
        }
        let needed = 2 * charge(payload);
        if window < needed {
            return Err(offer(format!("a window of the {lane} lane, which needs {needed},"), window));
        }
    }
    if theirs.in_flight_max == 0 {
        return Err(offer("a number of dispatches in flight", 0));
    }
    let heartbeat_us = theirs.heartbeat_us;
    if !(HEARTBEAT_US_MIN..=HEARTBEAT_US_MAX).contains(&heartbeat_us) {
        return Err(offer("microseconds between heartbeats", heartbeat_us.into()));
    }
    if Duration::from_micros(heartbeat_us.into()) * LATE_INTERVALS_MAX > ours.silence_max {
        let silence = ours.silence_max;
        let what =
            format!("microseconds between heartbeats, where a peer silent for {silence:?} is given up,");
        return Err(offer(what, heartbeat_us.into()));
    }
    Ok(())
}

fn check_rows(theirs: &Offer, local: &Local, limits: &Limits) -> Result<(), Refusal> {
    let fits = |row: u64, payload: u64| row == 0 || row.saturating_add(TABLE_BYTES_MIN) <= payload;
    let (row, payload) = (local.row_bytes, theirs.payload_bytes_max.data);
    if !fits(row, payload) {
        return Err(Refusal::Row { payload, row });
    }
    let (row, payload) = (theirs.row_bytes, limits.payload_bytes_max.data);
    if !fits(row, payload) {
        let what = format!("bytes of a row and its table, where a data lane takes payloads of {payload},");
        return Err(offer(what, row));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{ClusterId, Role};

    fn name(cluster: u8, role: Role, name: &str) -> PeerName {
        PeerName { cluster: ClusterId([cluster; 16]), role, name: name.into() }
    }

    fn local(role: Role) -> Local {
        Local {
            peer: name(1, role, "a"),
            program: "phalanx 0.1".into(),
            incarnation: 7,
            numeric: Some(NumericIdentity { class: "bf16-avx2".into(), fingerprint: [3; 32] }),
            row_bytes: 14_336,
            mixed_classes: false,
        }
    }

    fn checked(
        change: impl FnOnce(&mut Hello, &mut Local, &mut Limits, &mut Vouched),
    ) -> Result<(), Refusal> {
        let (mut limits, mut vouched, mut ours) =
            (Limits::default(), Vouched::Nobody, local(Role::Coordinator));
        let mut hello = hello(&local(Role::Node), &limits);
        change(&mut hello, &mut ours, &mut limits, &mut vouched);
        check(&hello, &ours, &limits, &vouched)
    }

    #[test]
    fn what_fits_is_taken() {
        assert_eq!(checked(|_, _, _, _| ()), Ok(()));
        assert_eq!(checked(|_, _, _, v| *v = Vouched::Certificate(name(1, Role::Node, "a"))), Ok(()));
        assert_eq!(checked(|_, _, _, v| *v = Vouched::User(1000)), Ok(()));
        assert_eq!(checked(|h, _, _, _| h.numeric = None), Ok(()));
        assert_eq!(checked(|_, l, _, _| l.numeric = None), Ok(()));
        let other = || Some(NumericIdentity { class: "f32".into(), fingerprint: [4; 32] });
        assert_eq!(
            checked(|h, l, _, _| {
                h.numeric = other();
                l.mixed_classes = true;
            }),
            Ok(())
        );
    }

    #[test]
    fn each_disagreement_has_its_refusal() {
        assert_eq!(
            checked(|h, _, _, _| h.protocol = 9),
            Err(Refusal::Protocol { theirs: 9, ours: PROTOCOL })
        );
        assert_eq!(
            checked(|h, _, _, _| h.peer.cluster = ClusterId([2; 16])),
            Err(Refusal::Cluster { theirs: ClusterId([2; 16]), ours: ClusterId([1; 16]) })
        );
        let certified = |certificate: PeerName| {
            let said = "node a of cluster 01010101010101010101010101010101".to_owned();
            let refusal = Refusal::Name { said, certificate: in_full(&certificate) };
            assert_eq!(checked(|_, _, _, v| *v = Vouched::Certificate(certificate)), Err(refusal));
        };
        certified(name(1, Role::Node, "b"));
        certified(name(1, Role::Coordinator, "a"));
        certified(name(2, Role::Node, "a"));
        assert_eq!(
            checked(|h, _, _, _| h.peer.role = Role::Coordinator),
            Err(Refusal::Role { theirs: Role::Coordinator, ours: Role::Coordinator })
        );
        let numeric = |class: &str, fingerprint| Some(NumericIdentity { class: class.into(), fingerprint });
        assert_eq!(
            checked(|h, _, _, _| h.numeric = numeric("f32", [3; 32])),
            Err(Refusal::Class { theirs: "f32".into(), ours: "bf16-avx2".into() })
        );
        assert_eq!(
            checked(|h, _, _, _| h.numeric = numeric("bf16-avx2", [4; 32])),
            Err(Refusal::Fingerprint { class: "bf16-avx2".into() })
        );
        assert_eq!(
            checked(|_, l, _, _| l.row_bytes = 1 << 24),
            Err(Refusal::Row { payload: 1 << 24, row: 1 << 24 })
        );
    }

    /// The last of these would overflow a sum if it were not refused.
    #[test]
    fn offers_that_cannot_work_are_refused() {
        type Change = fn(&mut Offer);
        let bad: [(Change, u64); 13] = [
            (|o| o.payload_bytes_max.data = 0, 0),
            (|o| o.payload_bytes_max.weights = u64::MAX, u64::MAX),
            (|o| o.payload_bytes_max.weights = (1 << 32) + 1, (1 << 32) + 1),
            (|o| o.window_bytes.data = 2 * charge(16 << 20) - 1, 2 * charge(16 << 20) - 1),
            (|o| o.window_bytes.control = 0, 0),
            (|o| o.window_bytes.control = u64::MAX, u64::MAX),
            (|o| o.in_flight_max = 0, 0),
            (|o| o.heartbeat_us = 0, 0),
            (|o| o.heartbeat_us = 999, 999),
            (|o| o.heartbeat_us = 60_000_001, 60_000_001),
            (|o| o.heartbeat_us = 3_333_334, 3_333_334),
            (|o| o.row_bytes = (16 << 20) - 63, (16 << 20) - 63),
            (|o| o.row_bytes = u64::MAX, u64::MAX),
        ];
        for (at, (change, bad_value)) in bad.into_iter().enumerate() {
            match checked(|h, _, _, _| change(&mut h.limits)) {
                Err(Refusal::Offer { value, .. }) => assert_eq!(value, bad_value, "change {at}"),
                other => panic!("change {at}: {other:?}"),
            }
        }
        let good: [Change; 4] = [
            |o| o.window_bytes.data = 2 * charge(16 << 20),
            |o| o.heartbeat_us = 3_333_333,
            |o| o.row_bytes = (16 << 20) - 64,
            |o| o.in_flight_max = u32::MAX,
        ];
        for (at, change) in good.into_iter().enumerate() {
            assert_eq!(checked(|h, _, _, _| change(&mut h.limits)), Ok(()), "change {at}");
        }
    }

    #[test]
    fn names_are_plain_and_words_are_short() {
        for bad in ["", "a b", "a\n", "ä", "a/b", &"x".repeat(64)] {
            assert!(
                matches!(checked(|h, _, _, _| h.peer.name = bad.into()), Err(Refusal::Offer { .. })),
                "{bad:?}"
            );
        }
        assert_eq!(checked(|h, _, _, _| h.peer.name = "x".repeat(63)), Ok(()));
        assert_eq!(checked(|h, _, _, _| h.program = "x".repeat(128)), Ok(()));
        assert!(checked(|h, _, _, _| h.program = "x".repeat(129)).is_err());
        for bad in ["", "a b", "\u{7}", &"x".repeat(64)] {
            let refused = checked(|h, _, _, _| h.numeric.as_mut().unwrap().class = bad.into());
            assert!(matches!(refused, Err(Refusal::Offer { .. })), "{bad:?}: {refused:?}");
        }
    }
}
