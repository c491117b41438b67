//! Who has no certificate, the wrong one, or another's session.

use std::sync::Arc;
use std::time::Duration;

use phalanx_transport::Lane;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::quic::QuicCarrier;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Carrier, LaneEnds, Outbox};
use phalanx_transport::peer::{DialError, Endpoint, Opened};
use phalanx_transport::security::{Role, Tls};
use phalanx_transport::wire::control::{Control, Refusal, control_frame, read_control};

use crate::raw::{attach, hello};
use crate::target::{Certificates, Over, Target, attack, limits, local};

fn carrier(over: Over, tls: Tls) -> Arc<dyn Carrier> {
    let pool = Pool::new(1 << 20);
    match over {
        Over::Quic => Arc::new(QuicCarrier::new(tls, pool)),
        _ => Arc::new(TcpCarrier::new(Protection::Tls(tls), pool)),
    }
}

async fn dial(target: &Target, carrier: &dyn Carrier, role: Role, name: &str) -> Result<Opened, DialError> {
    let end = Endpoint::new(local(target.cluster, role, name), limits(), Pool::new(1 << 20)).unwrap();
    end.dial(carrier, &target.address).await
}

fn refused(dialled: Result<Opened, DialError>) -> String {
    dialled.err().expect("it is not let in").to_string()
}

#[test]
fn wrong_certificates() {
    for over in [Over::Tls, Over::Quic] {
        attack(over, async |mut target: Target| {
            let certificates = target.certificates.take().unwrap();
            // Of another cluster; and one that says it is of this one.
            let other = Certificates::new();
            let stranger = carrier(over, other.tls(Role::Node, "stranger"));
            let why = refused(dial(&target, &*stranger, Role::Node, "stranger").await);
            assert!(why.contains("another cluster") || why.contains("another authority"), "{why}");
            // None at all.
            let plain = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 20));
            let why = refused(dial(&target, &plain, Role::Node, "naked").await);
            assert!(!why.is_empty());

            // Its own, and another's name, role or cluster in what it says.
            let bad = carrier(over, certificates.tls(Role::Node, "bad"));
            for (role, name) in
                [(Role::Node, "good"), (Role::Coordinator, "bad"), (Role::Coordinator, "front")]
            {
                let why = refused(dial(&target, &*bad, role, name).await);
                assert!(
                    why.contains("calls itself") && why.contains("its certificate says node bad"),
                    "{why}"
                );
                let end = target.end_of("node bad").await;
                assert!(end.contains("calls itself"), "{end}");
            }
            // A coordinator has no business here.
            let second = carrier(over, certificates.tls(Role::Coordinator, "second"));
            let why = refused(dial(&target, &*second, Role::Coordinator, "second").await);
            assert!(why.contains("no business"), "{why}");
            let end = target.end_of("coordinator second").await;
            assert!(end.contains("no business"), "{end}");
            target.honest.rounds(10).await;
            let took = target.another_comes().await;
            assert!(took < Duration::from_secs(2), "{took:?}");
            target
        });
    }
}

async fn say(ends: &mut LaneEnds, message: &Control) {
    let mut outbox = Outbox::from([control_frame(&Pool::new(1 << 20), message).unwrap()]);
    std::future::poll_fn(|context| ends.sender.poll_send(context, &mut outbox)).await.unwrap();
}

async fn hear(ends: &mut LaneEnds) -> Control {
    let frame = std::future::poll_fn(|context| ends.receiver.poll_receive(context)).await.unwrap().unwrap();
    read_control(&frame).unwrap()
}

/// A session that somebody learned attaches nothing without the certificate of its link.
#[test]
fn a_stolen_session() {
    attack(Over::Tls, async |mut target: Target| {
        let certificates = target.certificates.take().unwrap();
        let (owner, thief) = (
            carrier(Over::Tls, certificates.tls(Role::Node, "owner")),
            carrier(Over::Tls, certificates.tls(Role::Node, "thief")),
        );
        let mut link = owner.dial(&target.address).await.unwrap();
        say(&mut link.control, &Control::Hello(hello(target.cluster, "owner"))).await;
        let Control::Welcome(welcome) = hear(&mut link.control).await else { panic!("it is welcome") };
        let mut stolen = thief.dial(&target.address).await.unwrap();
        say(&mut stolen.control, &attach(welcome.session, Lane::Data)).await;
        assert_eq!(hear(&mut stolen.control).await, Control::Refused(Refusal::Attach));
        // And the lane is still there for whom it belongs to.
        let mut data = owner.dial(&target.address).await.unwrap();
        say(&mut data.control, &attach(welcome.session, Lane::Data)).await;
        assert_eq!(hear(&mut data.control).await, Control::Attached);
        drop((stolen, data, link));
        let end = target.end_of("node owner").await;
        assert!(end.contains("lost"), "{end}");
        target
    });
}
