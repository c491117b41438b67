//! Every truncated prefix of a session that was real, recorded by a relay between two good ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::peer::Endpoint;
use phalanx_transport::security::Role;
use phalanx_transport::wire::control::{CloseReason, Control, Refusal};
use phalanx_transport::wire::{HEADER_BYTES, Header, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::raw::{Raw, control, hear, hear_news, until_cut, whence};
use crate::target::{Over, PATIENCE, Target, attack, limits, local};

/// What the dialling end of a session sent, on each of its connections: control, data, weights.
pub(crate) struct Recorded(pub(crate) [Vec<u8>; 3]);

/// Where the first frame of a stream ends.
fn first_frame(bytes: &[u8]) -> usize {
    let header = Header::read(bytes.first_chunk::<HEADER_BYTES>().unwrap(), 1 << 20).unwrap();
    HEADER_BYTES + header.payload_bytes() as usize
}

/// Records a short session: dispatches and their returns, weights, a probe, an orderly end.
pub(crate) async fn record(target: &mut Target) -> Recorded {
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = (relay.local_addr().unwrap().to_string(), target.address.clone());
    let streams: [Arc<Mutex<Vec<u8>>>; 3] = Default::default();
    let recording = tokio::spawn({
        let streams = streams.clone();
        async move {
            let mut copies = tokio::task::JoinSet::new();
            for stream in streams {
                let (near, _) = relay.accept().await.unwrap();
                let far = TcpStream::connect(&far).await.unwrap();
                let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                    (near.into_split(), far.into_split());
                copies.spawn(async move {
                    let mut bytes = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = from_near.read(&mut bytes).await {
                        stream.lock().unwrap().extend(&bytes[..count]);
                        to_far.write_all(&bytes[..count]).await.unwrap();
                    }
                    let _ = to_far.shutdown().await;
                });
                copies.spawn(async move {
                    let _ = tokio::io::copy(&mut from_far, &mut to_near).await;
                    let _ = to_near.shutdown().await;
                });
            }
            copies.join_all().await;
        }
    });
    let pool = Pool::new(1 << 20);
    let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), pool.clone());
    let node = Endpoint::new(local(target.cluster, Role::Node, "recorded"), limits(), pool.clone()).unwrap();
    let mut link = node.dial(&carrier, &near).await.unwrap();
    for id in 0..3 {
        let mut header = Header::of_bytes(Kind::Dispatch, id, 40);
        header.remaining_us = 60_000_000;
        link.peer.send(Frame::new(header, pool.copy_of(&[id as u8; 40]).unwrap())).await.unwrap();
        assert_eq!(link.data.receive().await.unwrap().unwrap().payload[..], [id as u8; 40]);
    }
    let header = Header::of_bytes(Kind::Weights, 0, 60);
    link.peer.send(Frame::new(header, pool.copy_of(&[9; 60]).unwrap())).await.unwrap();
    link.peer.probe(10).await.unwrap();
    let (ended, ..) = tokio::join!(link.peer.drain(), link.data.receive(), link.weights.receive());
    assert!(ended.in_order(), "{ended}");
    drop(link);
    recording.await.unwrap();
    let end = target.end_of("node recorded").await;
    assert!(end.contains("in order"), "{end}");
    Recorded(streams.map(|stream| std::mem::take(&mut *stream.lock().unwrap())))
}

/// As somebody who heard them would send them, each on a connection of its own that ends there.
#[test]
fn every_prefix_of_a_session_that_ends() {
    attack(Over::Plain, async |mut target: Target| {
        let Recorded(streams) = record(&mut target).await;
        for (which, stream) in streams.iter().enumerate() {
            let first = first_frame(stream);
            // What follows the first frame of a lane that nobody waits for is not looked at.
            let last = if which == 0 { stream.len() } else { first };
            for length in 0..=last {
                let mut socket = TcpStream::connect(&target.address).await.unwrap();
                let from = whence(&socket);
                socket.write_all(&stream[..length]).await.unwrap();
                socket.shutdown().await.unwrap();
                let answer = hear(&mut socket).await;
                drop(socket);
                let known = which == 0 && length >= first;
                let end = target.end_of(if known { "node recorded" } else { &from }).await;
                let expected = match (length, which) {
                    (0, _) => "ended it without a word",
                    (_, 0) if length > first => "before the end of a frame|while the link was attaching",
                    (_, 0) if length == first => "ended it without a word",
                    _ if length == first => "no link waits for this lane",
                    _ => "before the end of a frame",
                };
                assert!(expected.split('|').any(|words| end.contains(words)), "{which}, {length}: {end}");
                assert_eq!(answer.is_some(), length >= first, "{which}, {length}: {answer:?}");
                if which > 0 && length == first {
                    assert_eq!(answer, Some(Control::Refused(Refusal::Attach)));
                }
            }
        }
        target.honest.rounds(10).await;
        target
    });
}

/// The same, all at once, and none of them ends: each is ended in its time, and good peers come in beside them.
#[test]
fn every_prefix_of_a_session_that_is_held() {
    attack(Over::Plain, async |mut target: Target| {
        let Recorded(streams) = record(&mut target).await;
        let mut held = Vec::new();
        for stream in &streams {
            for length in 0..=stream.len() {
                let mut socket = TcpStream::connect(&target.address).await.unwrap();
                // Where it has been ended already, there is nobody to write to.
                let _ = socket.write_all(&stream[..length]).await;
                held.push(socket);
            }
        }
        let took = target.another_comes().await;
        assert!(took < Duration::from_secs(1), "a good peer waited for {took:?} behind {}", held.len());
        for socket in &mut held {
            until_cut(socket).await;
        }
        target.honest.rounds(10).await;
        target
    });
}

/// On a link that is open: what was recorded on a lane, cut after every byte, and the lane ends.
#[test]
fn every_prefix_of_a_lane() {
    attack(Over::Plain, async |mut target: Target| {
        let Recorded(streams) = record(&mut target).await;
        for (which, stream) in streams.iter().enumerate() {
            let frames = &stream[first_frame(stream)..];
            for length in 0..=frames.len() {
                let name = format!("cut-{which}-{length}-");
                let raw = Raw::open(&target, &name).await;
                let mut sockets = [raw.control, raw.data, raw.weights];
                sockets[which].write_all(&frames[..length]).await.unwrap();
                sockets[which].shutdown().await.unwrap();
                let end = target.end_of(&raw.name).await;
                let lane = ["the control lane", "the data lane", "the weights lane"][which];
                // On the control lane the recorded session may say more than this one's state lets it.
                let broken = which == 0 && end.contains("broke the protocol");
                // All of it is an orderly end, and the other lanes' are waited for; unless its probe is still under way.
                let cut = which == 0 && length == frames.len() && end.contains("draining was cut");
                let lost = end.contains(lane) && end.contains("lost");
                assert!(lost || broken || cut, "{which}, {length} of {}: {end}", frames.len());
            }
        }
        target
    });
}

/// A process that is killed while the last of an orderly end is under way: its host ends its streams as if it had done
/// so itself. Only whoever has sent its marks has gone in order.
#[test]
fn a_death_at_the_end_of_a_drain() {
    attack(Over::Plain, async |mut target: Target| {
        let finish = {
            let mut bytes = b"PHLX-FINISH".to_vec();
            bytes.resize(HEADER_BYTES, 0);
            bytes
        };
        // How much of the mark each lane has sent when the process dies: control, data, weights.
        let all = HEADER_BYTES;
        for (number, sent) in [
            [0, 0, 0],
            [all, 0, 0],
            [0, all, all],
            [all, all, 0],
            [all, 0, all],
            [all, all, all - 1],
            [63, all, all],
            [all, all, all],
        ]
        .into_iter()
        .enumerate()
        {
            let mut raw = Raw::open(&target, &format!("dying-{number}")).await;
            raw.control.write_all(&control(&Control::Drain)).await.unwrap();
            let drained = hear_news(&mut raw.control).await;
            assert_eq!(drained, Some(Control::Close(CloseReason::Drained)));
            raw.control.write_all(&control(&Control::Close(CloseReason::Drained))).await.unwrap();
            // Its lanes are finished: they say so, and so it knows that ours were heard.
            for stream in [&mut raw.control, &mut raw.data, &mut raw.weights] {
                until_finished(stream, &finish).await;
            }
            for (stream, bytes) in [&mut raw.data, &mut raw.weights, &mut raw.control]
                .into_iter()
                .zip([sent[1], sent[2], sent[0]])
            {
                stream.write_all(&finish[..bytes]).await.unwrap();
            }
            let Raw { name, control, data, weights } = raw;
            drop((data, weights, control));
            let end = target.end_of(&name).await;
            let in_order = sent == [all; 3];
            assert_eq!(end.contains("in order"), in_order, "{sent:?}: {end}");
            assert!(in_order || end.contains("lost"), "{sent:?}: {end}");
        }
        target
    });
}

/// Reads a stream up to its end, which must be the mark.
async fn until_finished(stream: &mut TcpStream, finish: &[u8]) {
    let mut heard = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
    read.expect("the lane is finished").unwrap();
    assert!(heard.ends_with(finish), "a lane that was finished ends with its mark");
}
