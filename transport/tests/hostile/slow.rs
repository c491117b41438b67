//! Peers that take their time.

use std::time::Duration;

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::peer::SendError;
use phalanx_transport::wire::control::Control;
use phalanx_transport::wire::{Header, Kind, charge};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::raw::{Raw, control, hello, until_cut, whence};
use crate::target::{Over, Target, attack, limits};

/// A good peer is a link in this time, whoever else is at the door. A place is safe for 250 ms.
const AT_ONCE: Duration = Duration::from_millis(1_500);
/// More than there are places.
const SILENT: usize = 400;

/// Hundreds of connections that say nothing, or one byte.
#[test]
fn silence() {
    for over in [Over::Plain, Over::Tls, Over::Quic] {
        attack(over, async |mut target: Target| {
            let mut silent = Vec::new();
            for number in 0..SILENT {
                let mut stream = TcpStream::connect(&target.address).await.unwrap();
                if number % 2 == 1 {
                    let _ = stream.write_all(if over == Over::Plain { b"P" } else { &[22] }).await;
                }
                silent.push(stream);
            }
            let took = target.another_comes().await;
            assert!(took < AT_ONCE, "{over:?}: a good peer waited for {took:?}");
            target.honest.rounds(10).await;
            drop(silent);
            target
        });
    }
}

/// A burst of good peers is no attack: nobody is turned away.
#[test]
fn many_good_peers_at_once() {
    attack(Over::Plain, async |mut target: Target| {
        let mut greeted = tokio::task::JoinSet::new();
        for number in 0..SILENT {
            let (address, cluster) = (target.address.clone(), target.cluster);
            greeted.spawn(async move {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                let message = Control::Hello(hello(cluster, &format!("good-{number}")));
                stream.write_all(&control(&message)).await.unwrap();
                matches!(crate::raw::hear(&mut stream).await, Some(Control::Welcome(_)))
            });
        }
        let welcome = greeted.join_all().await.into_iter().filter(|welcome| *welcome).count();
        assert_eq!(welcome, SILENT);
        target.honest.rounds(3).await;
        target
    });
}

/// A byte now and then is not a sign of life: a handshake has its time, whatever comes.
#[test]
fn a_byte_at_a_time() {
    attack(Over::Plain, async |mut target: Target| {
        let whole = control(&Control::Hello(hello(target.cluster, "slow")));
        let mut stream = TcpStream::connect(&target.address).await.unwrap();
        let from = whence(&stream);
        let mut written = 0;
        // As slow as a few rounds of the good link are long, and so that it never gets to the end.
        for byte in whole.iter().cycle() {
            if written < whole.len() - 1 {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                written += 1;
            }
            target.honest.rounds(2).await;
            if written == whole.len() - 1 {
                break;
            }
        }
        let end = target.end_of(&from).await;
        assert!(end.contains("did not say who it is in time"), "{end}");
        until_cut(&mut stream).await;
        // Who says hello and nothing more has as long again.
        let (mut stream, _) = Raw::greet(&target, "half").await;
        let end = target.end_of("node half").await;
        assert!(end.contains("did not finish the handshake"), "{end}");
        until_cut(&mut stream).await;
        target
    });
}

/// Nothing is read on any lane and no room is given: what is sent to such a peer ends with the window, and when
/// it says nothing either, it is given up.
#[test]
fn a_peer_that_does_not_read() {
    attack(Over::Plain, async |mut target: Target| {
        let raw = Raw::open(&target, "deaf").await;
        let peer = target.opened.recv().await.unwrap();
        let pool = Pool::new(8 << 20);
        let frame = |number| {
            Frame::new(Header::of_bytes(Kind::Weights, number, 10_000), pool.copy_of(&[1; 10_000]).unwrap())
        };
        let mut sent = 0;
        let refused = loop {
            match peer.try_send(frame(sent)) {
                Ok(()) => sent += 1,
                Err(SendError::NoCredit { frame, .. }) => break frame,
                Err(other) => panic!("{other}"),
            }
        };
        // Its own offer: 256 KiB.
        assert_eq!(sent, (256 << 10) / charge(10_000));
        let (waited, ()) = tokio::join!(peer.send(refused), target.honest.rounds(50));
        let ended = match waited {
            Err(SendError::Ended { frame, ended }) => {
                drop(frame);
                ended
            }
            other => panic!("{other:?}"),
        };
        assert!(ended.to_string().contains("silent"), "{ended}");
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("was silent for") && end.contains("given up"), "{end}");
        assert_eq!(pool.stats().out_bytes, 0, "what was on its way is given back");
        assert!(limits().silence_max < Duration::from_secs(5));
        target
    });
}
