//! Too much of anything.

use phalanx_transport::Lane;
use phalanx_transport::wire::cluster::{ActorId, Cluster, Fallen, ToCoordinator, ToNode};
use phalanx_transport::wire::control::{CloseReason, Control};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::raw::{Raw, control, dispatch, hear_news, kept, weights};
use crate::target::{Over, Target, attack};

/// Writes until the other end has had enough; true if it ended the connection.
async fn write_until_cut(stream: &mut TcpStream, bytes: &[u8], times: usize) -> bool {
    for _ in 0..times {
        if stream.write_all(bytes).await.is_err() {
            return true;
        }
    }
    false
}

/// They are free, so nothing bounds them but the socket: they cost their sender as much as anybody.
#[test]
fn heartbeats() {
    attack(Over::Plain, async |mut target: Target| {
        let mut raw = Raw::open(&target, "beater").await;
        let mut beats = Vec::new();
        for sequence in 0..50_000 {
            beats.extend(control(&Control::Heartbeat { sequence, heard: 0 }));
        }
        let (sent, ()) = tokio::join!(raw.control.write_all(&beats), target.honest.rounds(20));
        sent.unwrap();
        // One that was said before.
        raw.control.write_all(&control(&Control::Heartbeat { sequence: 7, heard: 0 })).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("heartbeat 7, expected was 50000"), "{end}");
        target
    });
}

/// Each takes room until its echo goes, and echoes wait for credit: whoever gives none is stopped.
#[test]
fn probes_whose_echoes_nobody_lets_go() {
    attack(Over::Plain, async |mut target: Target| {
        let mut raw = Raw::open(&target, "prober").await;
        let probe = control(&Control::Probe { id: 1, padding: vec![3; 20_000] });
        write_until_cut(&mut raw.control, &probe, 1_000).await;
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("on the control lane, where it had credit for"), "{end}");
        target.honest.rounds(10).await;
        // Small ones, as fast as they go.
        let mut raw = Raw::open(&target, "tapper").await;
        let probe = control(&Control::Probe { id: 1, padding: vec![] });
        write_until_cut(&mut raw.control, &probe.repeat(100), 1_000).await;
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("on the control lane, where it had credit for"), "{end}");
        target
    });
}

#[test]
fn grants_beyond_what_can_be() {
    attack(Over::Plain, async |mut target: Target| {
        for (number, total) in [u64::MAX, (256 << 10) + 1, 0].into_iter().enumerate() {
            for lane in Lane::ALL {
                let name = format!("granter-{number}-{lane}");
                let mut raw = Raw::open(&target, &name).await;
                raw.control.write_all(&control(&Control::Grant { lane, total })).await.unwrap();
                let Some(Control::Close(CloseReason::Broken(why))) = hear_news(&mut raw.control).await else {
                    panic!("it hears why")
                };
                assert!(why.contains(&format!("granted {total} bytes in all on the {lane} lane")), "{why}");
                let end = target.end_of(&raw.name).await;
                assert!(end.contains(&why), "{end}");
            }
        }
        target
    });
}

/// The coordinator answers each dispatch, but its answers wait for credit that this peer never gives.
#[test]
fn dispatches_beyond_the_credit_and_beyond_the_number() {
    attack(Over::Plain, async |mut target: Target| {
        let mut raw = Raw::open(&target, "pusher").await;
        let mut flood = Vec::new();
        for id in 0..100 {
            flood.extend(dispatch(id, &[1; 60_000]));
        }
        write_until_cut(&mut raw.data, &flood, 1).await;
        let end = target.end_of(&raw.name).await;
        // Its answers wait for credit, so nothing more of it is read: it stops itself, and is given up.
        assert!(end.contains("was silent for"), "{end}");

        let mut raw = Raw::open(&target, "starter").await;
        let mut flood = Vec::new();
        for id in 0..100_000 {
            flood.extend(kept(id, &[]));
        }
        write_until_cut(&mut raw.data, &flood, 1).await;
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("more than 64 dispatches"), "{end}");

        let mut raw = Raw::open(&target, "stuffer").await;
        for id in 0..10 {
            write_until_cut(&mut raw.data, &kept(id, &[1; 60_000]), 1).await;
        }
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("on the data lane, where it had credit for"), "{end}");

        let mut raw = Raw::open(&target, "twice").await;
        raw.data.write_all(&kept(5, &[1; 10]).repeat(2)).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("dispatch 5 twice"), "{end}");

        let mut raw = Raw::open(&target, "loader").await;
        // Read at once, so credit comes back: what is said wrong is the lane.
        raw.weights.write_all(&dispatch(1, &[1; 100])).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("a Dispatch frame on the weights lane"), "{end}");
        let mut raw = Raw::open(&target, "mixer").await;
        raw.data.write_all(&weights(&[1; 100])).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("a Weights frame on the data lane"), "{end}");
        target
    });
}

/// Everything that is free and has no place there, and what has one only once.
#[test]
fn messages_that_have_no_place() {
    attack(Over::Plain, async |mut target: Target| {
        for (name, message) in [
            ("drain", Control::Drain),
            ("echo", Control::Echo { id: 1, padding: vec![] }),
            ("renewed", Control::Renewed { chain: vec![] }),
            ("not-renewed", Control::NotRenewed { why: String::new() }),
            ("drained", Control::Close(CloseReason::Drained)),
            ("attached", Control::Attached),
            ("order", Control::Cluster(Cluster::ToNode(ToNode::NotJoined { why: "go".into() }))),
            ("renew", Control::Renew { request: vec![1; 100] }),
        ] {
            let mut raw = Raw::open(&target, name).await;
            write_until_cut(&mut raw.control, &control(&message).repeat(200), 50).await;
            let end = target.end_of(&raw.name).await;
            assert!(end.contains("broke the protocol"), "{name}: {end}");
            target.honest.rounds(3).await;
        }
        target
    });
}

/// The coordinator of this test reads no notices. What it is told stays within what it has granted.
#[test]
fn news_that_nobody_reads() {
    attack(Over::Plain, async |mut target: Target| {
        for (name, words) in [("gossip", 0), ("orator", 1000)] {
            let mut raw = Raw::open(&target, name).await;
            let actor = ActorId { layer: 1, expert: 2, replica: 0, shard: 0 };
            let fallen = Fallen { actor, why: "x".repeat(words), restarts: 0, is_lost: false };
            let message = control(&Control::Cluster(Cluster::ToCoordinator(ToCoordinator::Fallen(fallen))));
            write_until_cut(&mut raw.control, &message.repeat(100), 1_000).await;
            let end = target.end_of(&raw.name).await;
            assert!(end.contains("on the control lane, where it had credit for"), "{end}");
            target.honest.rounds(10).await;
        }
        // Orders are not its to give.
        let mut raw = Raw::open(&target, "usurper").await;
        let order = Control::Cluster(Cluster::ToNode(ToNode::NotJoined { why: "go".into() }));
        raw.control.write_all(&control(&order)).await.unwrap();
        let Some(Control::Close(CloseReason::Broken(why))) = hear_news(&mut raw.control).await else {
            panic!("it hears why")
        };
        assert_eq!(why, "it is a node and sent ToNode");
        let end = target.end_of(&raw.name).await;
        assert!(end.contains(&why), "{end}");
        target
    });
}
