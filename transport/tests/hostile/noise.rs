//! Bytes that mean nothing, and lengths that lie.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use phalanx_transport::wire::control::{CloseReason, Control, Refusal};
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::{HEADER_BYTES, codec};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};

use crate::raw::{
    Raw, attach, control, dispatch, hear, hear_news, hello, of_control, until_cut, weights, whence,
};
use crate::target::{Numbers, Over, Target, attack};

/// Each is told apart in the log by where it came from, and hears what was wrong with it.
#[test]
fn random_bytes() {
    attack(Over::Plain, async |mut target: Target| {
        let mut numbers = Numbers(17);
        for _ in 0..200 {
            let count = HEADER_BYTES + numbers.below(2_000) as usize;
            let mut stream = TcpStream::connect(&target.address).await.unwrap();
            stream.write_all(&numbers.bytes(count)).await.unwrap();
            let Some(Control::Close(CloseReason::Broken(why))) = hear(&mut stream).await else {
                panic!("it hears why")
            };
            assert!(why.contains("not a frame"), "{why}");
            let from = whence(&stream);
            drop(stream);
            let end = target.end_of(&from).await;
            assert!(end.contains("not a frame"), "{end}");
        }
        target.honest.rounds(10).await;
        target
    });
}

/// Good frames with payloads that mean nothing: what the codec makes of them comes back in words.
#[test]
fn random_messages() {
    attack(Over::Plain, async |mut target: Target| {
        let mut numbers = Numbers(18);
        let good = codec::encode(&Control::Hello(hello(target.cluster, "bad"))).unwrap();
        for round in 0..200 {
            let count = 1 + numbers.below(600) as usize;
            let payload = match round % 2 {
                0 => numbers.bytes(count),
                _ => {
                    let mut damaged = good.clone();
                    // Behind the variant and the protocol: damage there is another test.
                    let at = 8 + numbers.below(good.len() as u64 - 8) as usize;
                    damaged[at] ^= 1 << numbers.below(8);
                    damaged
                }
            };
            let mut stream = TcpStream::connect(&target.address).await.unwrap();
            stream.write_all(&of_control(&payload)).await.unwrap();
            let expected = match hear(&mut stream).await {
                // A damaged name or figure may be a good one.
                Some(Control::Welcome(_)) if round % 2 == 1 => "lost",
                Some(Control::Refused(_)) if round % 2 == 1 => "was refused",
                Some(Control::Close(CloseReason::Broken(why))) if !why.is_empty() => "broke the protocol",
                other => panic!("{other:?} to {payload:02x?}"),
            };
            drop(stream);
            // Whoever it said it is.
            let end = target.end_of("").await;
            assert!(end.contains(expected), "{end}");
        }
        target
    });
}

/// A peer of another version learns that, as far as its first eight bytes go.
#[test]
fn another_version_is_told_so() {
    attack(Over::Plain, async |mut target: Target| {
        for first in [0_u32, 3] {
            let payload = [&first.to_le_bytes()[..], &9_u32.to_le_bytes(), &[0xee; 40]].concat();
            let mut stream = TcpStream::connect(&target.address).await.unwrap();
            stream.write_all(&of_control(&payload)).await.unwrap();
            let refusal = Refusal::Protocol { theirs: 9, ours: 1 };
            assert_eq!(hear(&mut stream).await, Some(Control::Refused(refusal)));
            let from = whence(&stream);
            drop(stream);
            let end = target.end_of(&from).await;
            assert!(end.contains("protocol 9, this end speaks 1"), "{end}");
        }
        // One that can be read for the rest.
        let mut stream = TcpStream::connect(&target.address).await.unwrap();
        let Control::Attach(mut newer) = attach([1; 16], phalanx_transport::Lane::Data) else {
            unreachable!()
        };
        newer.protocol = 9;
        stream.write_all(&control(&Control::Attach(newer))).await.unwrap();
        let refusal = Refusal::Protocol { theirs: 9, ours: 1 };
        assert_eq!(hear(&mut stream).await, Some(Control::Refused(refusal)));
        target
    });
}

/// Every field that says a length, with checksums that are right, on every lane of an open link and before.
#[test]
fn lying_lengths() {
    /// Puts a lie into a frame's header and seals it.
    fn lying(mut frame: Vec<u8>, at: usize, lie: &[u8]) -> Vec<u8> {
        frame[at..at + lie.len()].copy_from_slice(lie);
        let seal = crc32c(&frame[..60]);
        frame[60..64].copy_from_slice(&seal.to_le_bytes());
        frame
    }
    /// Of the payload, of a row, rows, of the table, groups; then a payload that agrees with its rows and is too long.
    fn lies(frame: &[u8]) -> Vec<Vec<u8>> {
        let one = |at, lie: &[u8]| lying(frame.to_vec(), at, lie);
        let long = one(24, &(1_u32 << 31).to_le_bytes());
        vec![
            one(32, &u64::MAX.to_le_bytes()),
            one(32, &0_u64.to_le_bytes()),
            one(24, &u32::MAX.to_le_bytes()),
            one(20, &u32::MAX.to_le_bytes()),
            one(28, &(u32::MAX - 63).to_le_bytes()),
            one(48, &u16::MAX.to_le_bytes()),
            lying(long, 32, &(1_u64 << 31).to_le_bytes()),
        ]
    }
    attack(Over::Plain, async |mut target: Target| {
        let first = control(&Control::Hello(hello(target.cluster, "liar")));
        for lie in lies(&first) {
            let mut stream = TcpStream::connect(&target.address).await.unwrap();
            stream.write_all(&lie).await.unwrap();
            let from = whence(&stream);
            until_cut(&mut stream).await;
            drop(stream);
            let end = target.end_of(&from).await;
            assert!(end.contains("broke the protocol"), "{end}");
        }
        let frames = [
            control(&Control::Heartbeat { sequence: 0, heard: 0 }),
            dispatch(1, &[5; 100]),
            weights(&[5; 100]),
        ];
        for (lane, frame) in frames.iter().enumerate() {
            for (number, lie) in lies(frame).into_iter().enumerate() {
                let name = format!("liar-{lane}-{number}");
                let mut raw = Raw::open(&target, &name).await;
                let stream = [&mut raw.control, &mut raw.data, &mut raw.weights];
                stream.into_iter().nth(lane).unwrap().write_all(&lie).await.unwrap();
                let Some(Control::Close(CloseReason::Broken(why))) = hear_news(&mut raw.control).await else {
                    panic!("it hears why")
                };
                let whose = ["on the control lane", "on the data lane", "on the weights lane"][lane];
                assert!(why.contains(whose), "{why}");
                let end = target.end_of(&raw.name).await;
                assert!(end.contains(whose) && end.contains("broke the protocol"), "{end}");
            }
        }
        // A payload that is not what its checksum says.
        let mut raw = Raw::open(&target, "damaged").await;
        let mut bytes = dispatch(1, &[5; 100]);
        bytes[100] ^= 1;
        raw.data.write_all(&bytes).await.unwrap();
        let end = target.end_of(&raw.name).await;
        assert!(end.contains("checksum"), "{end}");
        target
    });
}

/// On ports that speak TLS, and on the UDP ports of the lanes.
#[test]
fn random_bytes_where_tls_is_spoken() {
    for over in [Over::Tls, Over::Quic] {
        attack(over, async |mut target: Target| {
            let mut numbers = Numbers(19);
            let at: std::net::SocketAddr = target.address.parse().unwrap();
            let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            for round in 0..60 {
                let count = 1 + numbers.below(1_200) as usize;
                let bytes = numbers.bytes(count);
                let mut stream = TcpStream::connect(at).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                if round % 2 == 0 {
                    stream.shutdown().await.unwrap();
                    until_cut(&mut stream).await;
                }
                let _ = datagrams.send_to(&bytes, (at.ip(), at.port() + round % 2)).await;
                // What looks like the beginning of QUIC.
                let mut initial = bytes;
                initial[0] |= 0xc0;
                initial.resize(1_200, 0);
                initial[1..5].copy_from_slice(&1_u32.to_be_bytes());
                initial[5] = 8;
                let _ = datagrams.send_to(&initial, (at.ip(), at.port())).await;
            }
            target.honest.rounds(10).await;
            target.another_comes().await;
            target
        });
    }
}

/// The socket over which descriptors are passed.
#[test]
fn random_bytes_to_shared_memory() {
    attack(Over::Shm, async |mut target: Target| {
        let path = target.address.strip_prefix("shm:").unwrap().to_owned();
        let mut numbers = Numbers(20);
        let mut silent = Vec::new();
        for round in 0..300 {
            let count = 1 + numbers.below(2_000) as usize;
            let stream = UnixStream::connect(&path).unwrap();
            let bytes = numbers.bytes(count);
            // It may have been ended before everything was written.
            let _ = std::io::Write::write_all(&mut &stream, &bytes);
            if round % 3 == 0 {
                silent.push(UnixStream::connect(&path).unwrap());
            }
        }
        let end = target.end_of("not a peer for shared memory").await;
        assert!(end.contains("process") && end.contains(&path), "{end}");
        target.honest.rounds(10).await;
        let took = target.another_comes().await;
        assert!(took < Duration::from_secs(1), "a good peer waited for {took:?}");
        drop(silent);
        target
    });
}
