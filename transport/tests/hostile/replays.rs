//! Handshakes that were said before.

use phalanx_transport::Lane;
use phalanx_transport::wire::control::{CloseReason, Control, Refusal};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::prefixes::{Recorded, record};
use crate::raw::{Raw, attach, control, dispatch, hear, hello, until_cut, whence};
use crate::target::{Over, Target, attack};

/// Whoever recorded a session and sends it again gets no further than the first answer: its lanes are
/// nobody's.
#[test]
fn a_whole_session_again() {
    attack(Over::Plain, async |mut target: Target| {
        let Recorded([control, data, weights]) = record(&mut target).await;
        for _ in 0..20 {
            let mut first = TcpStream::connect(&target.address).await.unwrap();
            first.write_all(&control).await.unwrap();
            assert!(matches!(hear(&mut first).await, Some(Control::Welcome(_))));
            for lane in [&data, &weights] {
                let mut stream = TcpStream::connect(&target.address).await.unwrap();
                stream.write_all(lane).await.unwrap();
                assert_eq!(hear(&mut stream).await, Some(Control::Refused(Refusal::Attach)));
                let from = whence(&stream);
                drop(stream);
                let end = target.end_of(&from).await;
                assert!(end.contains("no link waits for this lane"), "{end}");
            }
            until_cut(&mut first).await;
            drop(first);
            let end = target.end_of("node recorded").await;
            assert!(end.contains("while the link was attaching"), "{end}");
        }
        target
    });
}

#[test]
fn hello_twice() {
    attack(Over::Plain, async |mut target: Target| {
        let again = control(&Control::Hello(hello(target.cluster, "twice")));
        let (mut stream, _) = Raw::greet(&target, "twice").await;
        stream.write_all(&again).await.unwrap();
        let Some(Control::Close(CloseReason::Broken(why))) = hear(&mut stream).await else {
            panic!("it hears why")
        };
        assert!(why.contains("Hello"), "{why}");
        drop(stream);
        let end = target.end_of("node twice").await;
        assert!(end.contains("it sent Hello while the link was attaching"), "{end}");

        let mut raw = Raw::open(&target, "thrice").await;
        raw.control.write_all(&control(&Control::Hello(hello(target.cluster, "thrice")))).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("it sent Hello while the link was open"), "{end}");

        // What may come first on another connection may not come here.
        for (name, message) in [
            ("attacher", attach([0; 16], Lane::Data)),
            ("attached", Control::Attached),
            ("beater", Control::Heartbeat { sequence: 0, heard: 0 }),
        ] {
            let (mut stream, _) = Raw::greet(&target, name).await;
            stream.write_all(&control(&message)).await.unwrap();
            until_cut(&mut stream).await;
            drop(stream);
            let end = target.end_of(&format!("node {name}")).await;
            assert!(end.contains("while the link was attaching"), "{end}");
        }
        target
    });
}

/// A session attaches each lane once, and only while its link waits for it.
#[test]
fn sessions_that_are_taken_or_over() {
    attack(Over::Plain, async |mut target: Target| {
        let (first, welcome) = Raw::greet(&target, "taken").await;
        let address = target.address.clone();
        let refused = async |session: [u8; 16], lane: Lane| {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(&control(&attach(session, lane))).await.unwrap();
            // A frame behind it is nobody's either.
            let _ = stream.write_all(&dispatch(1, &[1; 100])).await;
            assert_eq!(hear(&mut stream).await, Some(Control::Refused(Refusal::Attach)));
        };
        let session = welcome.session;
        refused(session, Lane::Control).await;
        let mut near = session;
        near[15] ^= 1;
        refused(near, Lane::Data).await;
        let mut data = TcpStream::connect(&target.address).await.unwrap();
        data.write_all(&control(&attach(session, Lane::Data))).await.unwrap();
        assert_eq!(hear(&mut data).await, Some(Control::Attached));
        refused(session, Lane::Data).await;
        let mut weights = TcpStream::connect(&target.address).await.unwrap();
        weights.write_all(&control(&attach(session, Lane::Weights))).await.unwrap();
        assert_eq!(hear(&mut weights).await, Some(Control::Attached));
        // The link is open now, and after that it is over.
        refused(session, Lane::Data).await;
        refused(session, Lane::Weights).await;
        data.write_all(&dispatch(1, &[1; 100])).await.unwrap();
        drop((first, data, weights));
        let end = target.end_of("node taken").await;
        assert!(end.contains("lost"), "{end}");
        refused(session, Lane::Data).await;
        target
    });
}
