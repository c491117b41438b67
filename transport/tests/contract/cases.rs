//! What every carrier promises.

use std::collections::HashSet;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::link::{Local, TellRefused, Why};
use phalanx_transport::peer::{Inlet, Notice, Notices, Opened, Peer, SendError};
use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::cluster::{
    ActorId, Ask, Assignment, Cluster, Epoch, Hold, Load, ToCoordinator, ToNode,
};
use phalanx_transport::wire::control::{CloseReason, NumericIdentity};
use phalanx_transport::wire::{Header, Kind, Lane, charge};

use crate::AnyPlace;
use crate::places::{Pair, local, pair, pair_of, refused, small_limits};

/// A death on this host is known after at most this. The host may be busy with other tests, so one death of
/// [`DEATHS`] must be told in time, and none much later.
pub(crate) const DEATH_MAX: Duration = Duration::from_millis(100);
/// Far below anything that a timer would tell.
pub(crate) const DEATH_LATEST: Duration = Duration::from_secs(2);
pub(crate) const DEATHS: usize = 4;

/// A generator that needs no crate: the same numbers on every host.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The bytes that frame `number` of a stream has.
fn filled(pool: &Pool, stream: u64, number: u64, bytes: usize) -> phalanx_transport::buffer::Buffer {
    let mut buffer = pool.take(bytes).expect("the pool of a test is large enough");
    let mut numbers = Numbers(stream << 32 ^ number);
    for piece in buffer.chunks_mut(8) {
        let word = numbers.next().to_le_bytes();
        piece.copy_from_slice(&word[..piece.len()]);
    }
    buffer
}

fn is_filled(payload: &[u8], stream: u64, number: u64) -> bool {
    let mut numbers = Numbers(stream << 32 ^ number);
    payload.chunks(8).all(|piece| piece == &numbers.next().to_le_bytes()[..piece.len()])
}

/// A frame of a lane that is neither answered nor waited for. Returns of no dispatch are dropped by the
/// link, so on the data lane these are dispatches.
fn plain(pool: &Pool, lane: Lane, stream: u64, number: u64, bytes: usize) -> Frame {
    let kind = if lane == Lane::Data { Kind::Dispatch } else { Kind::Weights };
    let mut header = Header::of_bytes(kind, number, u32::try_from(bytes).unwrap());
    header.remaining_us = 60_000_000;
    Frame::new(header, filled(pool, stream, number, bytes))
}

/// Sends `count` frames of sizes that `seed` says, and returns.
async fn send_all(peer: Peer, pool: Pool, lane: Lane, stream: u64, count: u64, bytes_max: u64) {
    let mut sizes = Numbers(stream);
    for number in 0..count {
        let bytes = if sizes.below(4) == 0 { sizes.below(bytes_max) } else { sizes.below(2_000) } as usize;
        peer.send(plain(&pool, lane, stream, number, bytes)).await.unwrap();
    }
}

async fn receive_all(inlet: &mut Inlet, stream: u64, count: u64, bytes_max: u64) {
    let mut sizes = Numbers(stream);
    for number in 0..count {
        let bytes = if sizes.below(4) == 0 { sizes.below(bytes_max) } else { sizes.below(2_000) } as usize;
        let frame = inlet.receive().await.unwrap().expect("more was sent");
        assert_eq!(frame.header.dispatch, number, "stream {stream}");
        assert_eq!(frame.payload.len(), bytes, "stream {stream}, frame {number}");
        assert!(is_filled(&frame.payload, stream, number), "stream {stream}, frame {number}");
    }
}

/// Four streams at once, two lanes in both directions, thousands of frames.
pub(crate) async fn frames_keep_their_order_and_arrive_once(place: &AnyPlace) {
    const FRAMES: u64 = 3_000;
    const BYTES_MAX: u64 = 200_000;
    let Pair { node, node_pool, coordinator, coordinator_pool, listener } = pair(place, small_limits()).await;
    let mut tasks = Vec::new();
    for (opened, pool, stream) in [(&node, &node_pool, 1), (&coordinator, &coordinator_pool, 3)] {
        for (lane, stream) in [(Lane::Data, stream), (Lane::Weights, stream + 1)] {
            let sending = send_all(opened.peer.clone(), pool.clone(), lane, stream, FRAMES, BYTES_MAX);
            tasks.push(tokio::spawn(sending));
        }
    }
    // Kept until everything has come: a dropped peer is a closed link.
    let peers = [node.peer.clone(), coordinator.peer.clone()];
    for (opened, stream) in [(coordinator, 1), (node, 3)] {
        for (mut inlet, stream) in [(opened.data, stream), (opened.weights, stream + 1)] {
            tasks.push(tokio::spawn(async move {
                receive_all(&mut inlet, stream, FRAMES, BYTES_MAX).await;
                drop(inlet);
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    drop((peers, listener));
}

pub(crate) async fn every_size_arrives_as_it_was_sent(place: &AnyPlace) {
    let limits = small_limits();
    let mut pair = pair(place, limits).await;
    let max = limits.payload_bytes_max.data as usize;
    let sizes = [0, 1, 2, 63, 64, 65, 127, 128, 4_095, 4_096, 14_336, 65_535, 65_536, 65_537, max - 1, max];
    for lane in [Lane::Data, Lane::Weights] {
        for (number, bytes) in (0..).zip(sizes) {
            let frame = plain(&pair.node_pool, lane, 9, number + (lane as u64) * 100, bytes);
            let header = frame.header;
            let (sent, received) = tokio::join!(
                pair.node.peer.send(frame),
                match lane {
                    Lane::Data => pair.coordinator.data.receive(),
                    _ => pair.coordinator.weights.receive(),
                }
            );
            sent.unwrap();
            let received = received.unwrap().unwrap();
            // A checksum may have been added; nothing else is touched.
            assert_eq!(Header { payload_crc: 0, ..received.header }, header, "{bytes} bytes on {lane}");
            assert_eq!(received.payload.len(), bytes);
            assert!(is_filled(&received.payload, 9, header.dispatch), "{bytes} bytes on {lane}");
        }
    }
}

/// A kernel reads rows where they were received.
pub(crate) async fn payloads_are_aligned_for_kernels(place: &AnyPlace) {
    let mut pair = pair(place, small_limits()).await;
    for number in 0..50 {
        let bytes = 64 + 37 * number as usize;
        pair.node.peer.send(plain(&pair.node_pool, Lane::Data, 5, number, bytes)).await.unwrap();
        let frame = pair.coordinator.data.receive().await.unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr().align_offset(64), 0, "{bytes} bytes");
    }
}

/// Echoes dispatches as returns, a few at a time and out of order.
async fn echo(peer: Peer, pool: Pool, mut inlet: Inlet, seed: u64) {
    let mut held = Vec::new();
    let mut numbers = Numbers(seed);
    loop {
        // Nobody waits while something is held.
        let next = poll_fn(|context| match inlet.poll_receive(context) {
            Poll::Pending if !held.is_empty() => Poll::Ready(None),
            polled => polled.map(Some),
        });
        match next.await {
            Some(Ok(Some(frame))) => {
                held.push(frame);
                if held.len() < 1 + numbers.below(8) as usize && numbers.below(16) != 0 {
                    continue;
                }
            }
            Some(_) => return,
            None => {}
        }
        // What is held goes back in any order.
        while !held.is_empty() {
            let frame = held.swap_remove(numbers.below(held.len() as u64) as usize);
            let header = Header { kind: Kind::Return, payload_crc: 0, ..frame.header };
            let back = pool.copy_of(&frame.payload).unwrap();
            drop(frame);
            if peer.send(Frame::new(header, back)).await.is_err() {
                return;
            }
        }
    }
}

pub(crate) async fn thousands_of_dispatches_return_both_ways(place: &AnyPlace) {
    const DISPATCHES: u64 = 4_000;
    const SENDERS: u64 = 16;
    let Pair { node, node_pool, coordinator, coordinator_pool, listener } = pair(place, small_limits()).await;
    let peer = coordinator.peer.clone();
    let echoing = tokio::spawn(echo(node.peer.clone(), node_pool, node.data, 11));
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let (peer, pool) = (peer.clone(), coordinator_pool.clone());
        senders.push(tokio::spawn(async move {
            let mut numbers = Numbers(sender);
            for number in 0..DISPATCHES / SENDERS {
                let id = number * SENDERS + sender;
                let bytes = numbers.below(20_000) as usize;
                peer.send(plain(&pool, Lane::Data, 21, id, bytes)).await.unwrap();
            }
        }));
    }
    let mut inlet = coordinator.data;
    let mut returned = HashSet::new();
    while returned.len() < DISPATCHES as usize {
        let frame = inlet.receive().await.unwrap().unwrap();
        assert!(returned.insert(frame.header.dispatch), "dispatch {} twice", frame.header.dispatch);
        assert!(is_filled(&frame.payload, 21, frame.header.dispatch));
    }
    assert!(returned.iter().all(|id| *id < DISPATCHES));
    for sender in senders {
        sender.await.unwrap();
    }
    echoing.abort();
    drop((listener, node.peer));
}

/// The reader does not read. What the sender holds stays under the window, and goes on when room is given.
pub(crate) async fn a_slow_reader_bounds_the_senders_memory(place: &AnyPlace) {
    const BYTES: usize = 10_000;
    let limits = small_limits();
    let mut pair = pair(place, limits).await;
    let window = limits.window_bytes.weights;
    let mut sent = 0;
    let refused = loop {
        match pair.node.peer.try_send(plain(&pair.node_pool, Lane::Weights, 31, sent, BYTES)) {
            Ok(()) => sent += 1,
            Err(SendError::NoCredit { frame, .. }) => break frame,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(sent, window / charge(BYTES as u64), "as many as the window holds, and not one more");
    let held = pair.node_pool.stats().out_bytes;
    assert!(held <= window + charge(BYTES as u64), "{held} bytes are held for a window of {window}");

    // Received, but kept: still no room.
    let mut kept = Vec::new();
    for number in 0..sent {
        let frame = pair.coordinator.weights.receive().await.unwrap().unwrap();
        assert!(is_filled(&frame.payload, 31, number));
        kept.push(frame);
    }
    pair.node.peer.probe(0).await.unwrap();
    let refused = match pair.node.peer.try_send(refused) {
        Err(SendError::NoCredit { frame, .. }) => frame,
        other => panic!("frames that are kept are room that is taken: {other:?}"),
    };
    // The sender's memory is free again although the reader keeps its own; memory hands over the same.
    drop(kept);
    pair.node.peer.send(refused).await.unwrap();
    let frame = pair.coordinator.weights.receive().await.unwrap().unwrap();
    assert!(is_filled(&frame.payload, 31, sent));
    drop(frame);
}

/// A large frame is not overtaken for ever by small ones.
pub(crate) async fn those_who_wait_for_credit_are_served_in_order(place: &AnyPlace) {
    let limits = small_limits();
    let Pair { node, node_pool, mut coordinator, listener, coordinator_pool: _pool } =
        pair(place, limits).await;
    let mut filling = 0;
    while node.peer.try_send(plain(&node_pool, Lane::Weights, 41, filling, 100_000)).is_ok() {
        filling += 1;
    }
    let mut waiting = Vec::new();
    for (number, bytes) in [(1_000, 1 << 20), (1_001, 10), (1_002, 1 << 20), (1_003, 10)] {
        let mut sending = Box::pin({
            let (peer, frame) = (node.peer.clone(), plain(&node_pool, Lane::Weights, 41, number, bytes));
            async move { peer.send(frame).await }
        });
        // Polled once, so that it stands in line before the next comes.
        poll_fn(|context| {
            assert!(sending.as_mut().poll(context).is_pending(), "there is no room");
            Poll::Ready(())
        })
        .await;
        waiting.push(tokio::spawn(sending));
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        let frame = coordinator.weights.receive().await.unwrap().unwrap();
        order.extend((frame.header.dispatch >= 1_000).then_some(frame.header.dispatch));
    }
    assert_eq!(order, [1_000, 1_001, 1_002, 1_003]);
    for sending in waiting {
        sending.await.unwrap().unwrap();
    }
    drop((listener, coordinator.peer, node));
}

/// Weights are stuffed and nobody reads them; dispatches and control messages go on.
pub(crate) async fn a_full_lane_delays_no_other(place: &AnyPlace) {
    let mut pair = pair(place, small_limits()).await;
    let mut number = 0;
    while pair.node.peer.try_send(plain(&pair.node_pool, Lane::Weights, 51, number, 1 << 20)).is_ok() {
        number += 1;
    }
    let began = Instant::now();
    for number in 0..100 {
        pair.node.peer.send(plain(&pair.node_pool, Lane::Data, 52, number, 14_336)).await.unwrap();
        let frame = pair.coordinator.data.receive().await.unwrap().unwrap();
        assert!(is_filled(&frame.payload, 52, number));
    }
    pair.node.peer.probe(1_000).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a hundred frames took {:?}", began.elapsed());
}

pub(crate) async fn a_drain_loses_nothing(place: &AnyPlace) {
    const FRAMES: u64 = 500;
    let Pair { mut node, node_pool, mut coordinator, listener, .. } = pair(place, small_limits()).await;
    let sending = tokio::spawn({
        let peer = node.peer.clone();
        async move {
            send_all(peer.clone(), node_pool, Lane::Weights, 61, FRAMES, 100_000).await;
            peer.drain().await
        }
    });
    // The end that asked goes on receiving too, so that it sees the end of the other's lanes.
    let ours = tokio::spawn(async move {
        let (data, weights) = tokio::join!(node.data.receive(), node.weights.receive());
        assert!(data.unwrap().is_none() && weights.unwrap().is_none());
        node.peer.closed().await
    });
    let (_, theirs) = tokio::join!(
        async {
            receive_all(&mut coordinator.weights, 61, FRAMES, 100_000).await;
            assert!(coordinator.weights.receive().await.unwrap().is_none(), "after the last comes the end");
        },
        async {
            assert!(coordinator.data.receive().await.unwrap().is_none());
            coordinator.peer.closed().await
        }
    );
    let (sent, ours) = (sending.await.unwrap(), ours.await.unwrap());
    for ended in [sent, ours, theirs] {
        assert!(ended.in_order(), "{ended}");
    }
    drop(listener);
}

pub(crate) async fn a_drain_waits_for_what_is_in_flight(place: &AnyPlace) {
    let Pair { mut node, node_pool, mut coordinator, coordinator_pool, listener } =
        pair(place, small_limits()).await;
    coordinator.peer.send(plain(&coordinator_pool, Lane::Data, 71, 1, 5_000)).await.unwrap();
    let dispatched = node.data.receive().await.unwrap().unwrap();
    let draining = tokio::spawn({
        let peer = coordinator.peer.clone();
        async move { peer.drain().await }
    });
    assert_eq!(node.notices.next().await, Some(Notice::DrainAsked));
    // Neither end takes a new one now.
    let refused = node.peer.try_send(plain(&node_pool, Lane::Data, 71, 2, 10));
    assert!(matches!(refused, Err(SendError::Draining { .. })), "{refused:?}");
    let refused = coordinator.peer.try_send(plain(&coordinator_pool, Lane::Data, 71, 3, 10));
    assert!(matches!(refused, Err(SendError::Draining { .. })), "{refused:?}");
    assert!(!draining.is_finished() && coordinator.peer.in_flight() == 1);

    let header = Header { kind: Kind::Return, payload_crc: 0, ..dispatched.header };
    let back = node_pool.copy_of(&dispatched.payload).unwrap();
    drop(dispatched);
    node.peer.send(Frame::new(header, back)).await.unwrap();
    let returned = coordinator.data.receive().await.unwrap().unwrap();
    assert!(is_filled(&returned.payload, 71, 1));
    drop(returned);
    let ends = tokio::join!(
        node.data.receive(),
        node.weights.receive(),
        coordinator.data.receive(),
        coordinator.weights.receive()
    );
    assert!(matches!(ends, (Ok(None), Ok(None), Ok(None), Ok(None))), "{ends:?}");
    assert!(draining.await.unwrap().in_order());
    assert!(node.peer.closed().await.in_order());
    drop(listener);
}

pub(crate) async fn both_ends_may_drain_at_once(place: &AnyPlace) {
    let Pair { mut node, mut coordinator, listener, .. } = pair(place, small_limits()).await;
    let (a, b, ..) = tokio::join!(
        node.peer.drain(),
        coordinator.peer.drain(),
        node.data.receive(),
        node.weights.receive(),
        coordinator.data.receive(),
        coordinator.weights.receive()
    );
    assert!(a.in_order() && b.in_order(), "{a} / {b}");
    drop(listener);
}

/// What dies is named, by everything that waited for it, and soon.
pub(crate) async fn a_dropped_peer_is_noticed_and_everything_pending_ends(place: &AnyPlace) {
    let mut quickest = DEATH_LATEST;
    for _ in 0..DEATHS {
        quickest = quickest.min(drop_a_peer(place).await);
    }
    assert!(quickest < DEATH_MAX, "the quickest death was told after {quickest:?}");
}

/// How long it took until the last of those who waited was told.
async fn drop_a_peer(place: &AnyPlace) -> Duration {
    let Pair { node, mut coordinator, coordinator_pool, listener, .. } = pair(place, small_limits()).await;
    coordinator.peer.send(plain(&coordinator_pool, Lane::Data, 81, 1, 100)).await.unwrap();
    let mut number = 0;
    while coordinator.peer.try_send(plain(&coordinator_pool, Lane::Weights, 81, number, 1 << 20)).is_ok() {
        number += 1;
    }
    let blocked = plain(&coordinator_pool, Lane::Weights, 81, number, 1 << 20);
    let peer = coordinator.peer.clone();
    let died = async {
        // Every pending operation is polled before the peer goes.
        tokio::task::yield_now().await;
        let died = Instant::now();
        drop(node);
        died
    };
    let (data, weights, sent, drained, died) = tokio::join!(
        async { (coordinator.data.receive().await, Instant::now()) },
        async { (coordinator.weights.receive().await, Instant::now()) },
        async { (peer.send(blocked).await, Instant::now()) },
        async { (peer.closed().await, Instant::now()) },
        died
    );
    let (data, at_data) = data;
    let (weights, at_weights) = weights;
    let (sent, at_sent) = sent;
    let (closed, at_closed) = drained;
    let mut slowest = Duration::ZERO;
    for (what, at) in [("data", at_data), ("weights", at_weights), ("send", at_sent), ("closed", at_closed)] {
        assert!(at - died < DEATH_LATEST, "{what} was told after {:?}", at - died);
        slowest = slowest.max(at - died);
    }
    let Err(SendError::Ended { ended: sent, .. }) = sent else { panic!("{sent:?}") };
    for ended in [sent, closed] {
        assert!(ended.to_string().contains("node-3"), "{ended}");
    }
    // Not in order, whatever the carrier makes of it.
    for received in [data, weights] {
        let ended = received.unwrap_err();
        assert!(ended.to_string().contains("node-3"), "{ended}");
    }
    assert!(coordinator.notices.next().await.is_none());
    assert!(peer.probe(10).await.is_err());
    drop(listener);
    slowest
}

pub(crate) async fn a_killed_link_can_be_dialled_again(place: &AnyPlace) {
    let Pair { node, coordinator, mut listener, .. } = pair(place, small_limits()).await;
    drop((node, coordinator));
    for round in 0..5 {
        let pool = Pool::new(64 << 20);
        let node =
            phalanx_transport::peer::Endpoint::new(local(place, Role::Node), small_limits(), pool.clone())
                .unwrap();
        let address = listener.address().to_owned();
        let (node, mut coordinator) =
            tokio::join!(async { node.dial(place.carrier(), &address).await.unwrap() }, listener.next_link());
        node.peer.send(plain(&pool, Lane::Data, 91, round, 3_000)).await.unwrap();
        let frame = coordinator.data.receive().await.unwrap().unwrap();
        assert!(is_filled(&frame.payload, 91, round));
    }
}

pub(crate) async fn a_dispatch_that_does_not_return_expires(place: &AnyPlace) {
    let mut pair = pair(place, small_limits()).await;
    for (id, remaining_us) in [(1, 60_000_000), (2, 30_000), (3, 10_000)] {
        let mut frame = plain(&pair.coordinator_pool, Lane::Data, 1, id, 64);
        frame.header.remaining_us = remaining_us;
        pair.coordinator.peer.send(frame).await.unwrap();
    }
    for id in [3, 2] {
        assert_eq!(pair.coordinator.notices.next().await, Some(Notice::Expired { dispatch: id }));
    }
    // What has expired may still be computed there, so it counts until it has returned.
    assert_eq!(pair.coordinator.peer.in_flight(), 3);
    // Its return is handed on, or whoever sent it would count it as out for ever.
    for _ in 0..3 {
        let header = pair.node.data.receive().await.unwrap().unwrap().header;
        if header.dispatch == 3 {
            let header = Header { kind: Kind::Return, payload_crc: 0, ..header };
            pair.node.peer.send(Frame::new(header, filled(&pair.node_pool, 1, 3, 64))).await.unwrap();
        }
    }
    let frame = pair.coordinator.data.receive().await.unwrap().unwrap();
    assert_eq!((frame.header.kind, frame.header.dispatch), (Kind::Return, 3));
    assert_eq!(pair.coordinator.peer.in_flight(), 2);
}

pub(crate) async fn a_return_comes_once_and_only_for_an_open_dispatch(place: &AnyPlace) {
    let mut pair = pair(place, small_limits()).await;
    pair.coordinator.peer.send(plain(&pair.coordinator_pool, Lane::Data, 1, 7, 64)).await.unwrap();
    let dispatched = pair.node.data.receive().await.unwrap().unwrap();
    // One for a dispatch that never was, the right one twice, and one more to see the end by.
    pair.coordinator.peer.send(plain(&pair.coordinator_pool, Lane::Data, 1, 8, 64)).await.unwrap();
    let second = pair.node.data.receive().await.unwrap().unwrap();
    for (header, number) in
        [(dispatched.header, 99), (dispatched.header, 7), (dispatched.header, 7), (second.header, 8)]
    {
        let header = Header { kind: Kind::Return, dispatch: number, payload_crc: 0, ..header };
        pair.node.peer.send(Frame::new(header, filled(&pair.node_pool, 1, number, 64))).await.unwrap();
    }
    for expected in [7, 8] {
        let frame = pair.coordinator.data.receive().await.unwrap().unwrap();
        assert_eq!(frame.header.dispatch, expected);
    }
    assert_eq!(pair.coordinator.peer.in_flight(), 0);
}

pub(crate) async fn a_frame_longer_than_the_peer_takes_is_refused(place: &AnyPlace) {
    let (mut narrow, wide) = (small_limits(), small_limits());
    narrow.payload_bytes_max.data = 1_000;
    let pair = pair_of(place, wide, narrow).await;
    let refused = pair.node.peer.try_send(plain(&pair.node_pool, Lane::Data, 1, 1, 1_001));
    let Err(error @ SendError::TooLong { .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("1001") && error.to_string().contains("1000"), "{error}");
}

/// Whoever does not belong together is told so, and why, at both ends.
pub(crate) async fn another_cluster_role_class_or_row_is_refused_with_the_reason(place: &AnyPlace) {
    let (node, coordinator) = (local(place, Role::Node), local(place, Role::Coordinator));
    let numeric =
        |class: &str, digest| Some(NumericIdentity { class: class.to_owned(), fingerprint: [digest; 32] });
    let with_numeric =
        |local: &Local, class, digest| Local { numeric: numeric(class, digest), ..local.clone() };
    let named = |role| PeerName { role, ..node.peer.clone() };
    let narrow = {
        let mut limits = small_limits();
        limits.payload_bytes_max.data = 1_000;
        limits
    };
    let wide = small_limits();
    let elsewhere = PeerName { cluster: ClusterId([9; 16]), ..node.peer.clone() };
    let cases = [
        ("cluster", (Local { peer: elsewhere, ..node.clone() }, wide), (coordinator.clone(), wide)),
        (
            "has no business|calls itself",
            (Local { peer: named(Role::Coordinator), ..node.clone() }, wide),
            (coordinator.clone(), wide),
        ),
        ("class", (with_numeric(&node, "f32", 1), wide), (with_numeric(&coordinator, "portable", 1), wide)),
        (
            "fingerprint",
            (with_numeric(&node, "portable", 1), wide),
            (with_numeric(&coordinator, "portable", 2), wide),
        ),
        ("2000", (Local { row_bytes: 2_000, ..node.clone() }, wide), (coordinator.clone(), narrow)),
        ("2000", (node.clone(), narrow), (Local { row_bytes: 2_000, ..coordinator.clone() }, wide)),
    ];
    for (what, node, coordinator) in cases {
        let (ours, theirs) = refused(place, node, coordinator).await;
        for ended in [&ours, &theirs] {
            assert!(matches!(ended.why(), Why::Refused(_) | Why::RefusedByPeer(_)), "{what}: {ended}");
            let said = ended.to_string();
            assert!(what.split('|').any(|words| said.contains(words)), "{what}: {ended}");
        }
    }
}

pub(crate) async fn probes_come_back(place: &AnyPlace) {
    let pair = pair(place, small_limits()).await;
    let peer = pair.node.peer.clone();
    for bytes in [0, 1, 1_000, 100_000] {
        let took = peer.probe(bytes).await.unwrap();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    drop(pair.coordinator.peer);
}

/// Message `number` of an end: mostly short, now and then as long as a model's experts are many.
fn tidings(role: Role, number: u64) -> Cluster {
    let actor = ActorId { layer: number as u32, expert: 1, replica: 0, shard: 0 };
    let many = if number % 50 == 7 { 10_000 } else { number as usize % 3 };
    match (role, number % 2) {
        (Role::Node, 0) => {
            Cluster::ToCoordinator(ToCoordinator::Ask(Ask { ask: number, layer: 1, expert: 2 }))
        }
        (Role::Node, _) => {
            let load = Load { actor, rows: number, batches: 1, busy_us: 1, service_us: 1, queued: 1 };
            Cluster::ToCoordinator(ToCoordinator::Loads(vec![load; many]))
        }
        (Role::Coordinator, 0) => {
            let why = "x".repeat(number as usize % 1024);
            Cluster::ToNode(ToNode::NotServed { ask: number, why })
        }
        (Role::Coordinator, _) => {
            let assignment = Assignment { actor, device: 0, digest: Some([number as u8; 32]) };
            let epoch = Epoch { term: 1, number };
            Cluster::ToNode(ToNode::Hold(Hold { epoch, actors: vec![assignment; many] }))
        }
    }
}

/// Says so many, then drains.
async fn tell_all(peer: Peer, role: Role, count: u64) {
    for number in 0..count {
        loop {
            match peer.tell(tidings(role, number)) {
                Ok(()) => break,
                // The other end reads, so there is room soon.
                Err(TellRefused::Full { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

async fn hear_all(notices: &mut Notices, role: Role, count: u64) {
    let mut heard = 0;
    while let Some(notice) = notices.next().await {
        if let Notice::Told(message) = notice {
            assert_eq!(message, tidings(role, heard));
            heard += 1;
        }
    }
    assert_eq!(heard, count, "everything that was told, to the end of the link");
}

/// Hundreds both ways, and the link is drained behind them: all of them come before its end.
pub(crate) async fn what_is_told_arrives_once_and_in_order(place: &AnyPlace) {
    const MESSAGES: u64 = 400;
    let Pair { node, coordinator, listener, .. } = pair(place, small_limits()).await;
    let ends = [(node, Role::Node, Role::Coordinator), (coordinator, Role::Coordinator, Role::Node)];
    let done = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let ends = ends.map(|(opened, ours, theirs)| {
        let done = std::sync::Arc::clone(&done);
        tokio::spawn(async move {
            let Opened { peer, mut data, mut weights, mut notices } = opened;
            let telling = async {
                tell_all(peer.clone(), ours, MESSAGES).await;
                // Whoever is drained first may not be told anything new.
                done.wait().await;
                peer.drain().await
            };
            let (ended, (), data, weights) = tokio::join!(
                telling,
                hear_all(&mut notices, theirs, MESSAGES),
                data.receive(),
                weights.receive()
            );
            assert!(ended.in_order() && data.unwrap().is_none() && weights.unwrap().is_none(), "{ended}");
            assert!(matches!(peer.tell(tidings(ours, 0)), Err(TellRefused::Closed(_))));
        })
    });
    for end in ends {
        end.await.unwrap();
    }
    drop(listener);
}

/// Whoever does not care what happens drops its notices, and the peer is not held up by that.
pub(crate) async fn what_is_told_to_nobody_stops_nobody(place: &AnyPlace) {
    let Pair { mut node, mut coordinator, listener, .. } = pair(place, small_limits()).await;
    drop((node.notices, coordinator.notices));
    // Together they cost several windows.
    tell_all(node.peer.clone(), Role::Node, 2_000).await;
    node.peer.probe(10).await.unwrap();
    let (ended, ..) = tokio::join!(
        node.peer.drain(),
        node.data.receive(),
        node.weights.receive(),
        coordinator.data.receive(),
        coordinator.weights.receive()
    );
    assert!(ended.in_order(), "{ended}");
    drop(listener);
}

/// Whoever does not care for a lane need not read it, and the peer is not held up by that.
pub(crate) async fn a_lane_that_nobody_wants_is_received_all_the_same(place: &AnyPlace) {
    let limits = small_limits();
    let Pair { node, node_pool, mut coordinator, listener, .. } = pair(place, limits).await;
    drop(coordinator.weights);
    let frames = 3 * limits.window_bytes.weights / charge(100_000);
    for number in 0..frames {
        node.peer.send(plain(&node_pool, Lane::Weights, 95, number, 100_000)).await.unwrap();
    }
    node.peer.send(plain(&node_pool, Lane::Data, 95, 1, 1_000)).await.unwrap();
    let frame = coordinator.data.receive().await.unwrap().unwrap();
    assert!(is_filled(&frame.payload, 95, 1));
    drop((listener, coordinator.peer));
}

/// Why a link was closed is known at the other end, though its lanes end at the same moment.
pub(crate) async fn the_reason_of_a_close_arrives(place: &AnyPlace) {
    for _ in 0..10 {
        let Pair { node, mut coordinator, listener, .. } = pair(place, small_limits()).await;
        node.peer.close(CloseReason::Replaced);
        let (data, weights, closed) = tokio::join!(
            coordinator.data.receive(),
            coordinator.weights.receive(),
            coordinator.peer.closed()
        );
        for ended in [data.unwrap_err(), weights.unwrap_err(), closed] {
            assert_eq!(*ended.why(), Why::ClosedByPeer(CloseReason::Replaced), "{ended}");
        }
        drop((listener, node));
    }
}

/// A receive loop that returns when its lane has ended takes its link with it, and that harms no drain.
pub(crate) async fn a_link_may_be_dropped_when_its_lane_has_ended(place: &AnyPlace) {
    for _ in 0..10 {
        let Pair { mut node, node_pool, coordinator, listener, .. } = pair(place, small_limits()).await;
        let consumer = tokio::spawn(async move {
            let Opened { peer, mut data, weights, notices } = coordinator;
            while let Ok(Some(_)) = data.receive().await {}
            drop((peer, data, weights, notices));
        });
        node.peer.send(plain(&node_pool, Lane::Weights, 96, 1, 500_000)).await.unwrap();
        let (drained, ..) = tokio::join!(node.peer.drain(), node.data.receive(), node.weights.receive());
        assert!(drained.in_order(), "{drained}");
        consumer.await.unwrap();
        drop(listener);
    }
}

/// Whoever stands in line for room hears of a drain, and need not wait for the room.
pub(crate) async fn a_drain_is_told_to_those_in_line(place: &AnyPlace) {
    let Pair { node, node_pool, coordinator, listener, .. } = pair(place, small_limits()).await;
    let mut number = 0;
    while node.peer.try_send(plain(&node_pool, Lane::Data, 97, number, 1 << 20)).is_ok() {
        number += 1;
    }
    let waiting = {
        let (peer, frame) = (node.peer.clone(), plain(&node_pool, Lane::Data, 97, number, 1 << 20));
        tokio::spawn(async move { peer.send(frame).await })
    };
    let draining = {
        let peer = node.peer.clone();
        tokio::spawn(async move { peer.drain().await })
    };
    let refused = waiting.await.unwrap();
    assert!(matches!(refused, Err(SendError::Draining { .. })), "{refused:?}");
    // What is in flight never returns here.
    draining.abort();
    drop((listener, coordinator));
}

/// Time spent in line is time: what goes says how much of it is left, be it nothing.
pub(crate) async fn waiting_in_line_takes_of_a_dispatchs_time(place: &AnyPlace) {
    const IN_LINE: Duration = Duration::from_millis(20);
    let Pair { node, node_pool, mut coordinator, listener, .. } = pair(place, small_limits()).await;
    let mut number = 0;
    while node.peer.try_send(plain(&node_pool, Lane::Data, 98, number, 1 << 20)).is_ok() {
        number += 1;
    }
    let mut waiting = Vec::new();
    for remaining_us in [60_000_000, 1_000] {
        let (peer, mut frame) = (node.peer.clone(), plain(&node_pool, Lane::Data, 98, number, 1 << 20));
        frame.header.remaining_us = remaining_us;
        number += 1;
        let mut sending = Box::pin(async move { peer.send(frame).await });
        poll_fn(|context| {
            assert!(sending.as_mut().poll(context).is_pending(), "there is no room");
            Poll::Ready(())
        })
        .await;
        waiting.push(sending);
    }
    let began = Instant::now();
    while began.elapsed() < IN_LINE {
        node.peer.probe(10).await.unwrap();
    }
    let waiting = tokio::spawn(async move {
        for sending in waiting {
            sending.await.unwrap();
        }
        node
    });
    let mut remaining = Vec::new();
    for about in 0..number {
        let frame = coordinator.data.receive().await.unwrap().unwrap();
        assert_eq!(frame.header.dispatch, about);
        remaining.push(frame.header.remaining_us);
    }
    let (last, first) = (remaining.pop().unwrap(), remaining.pop().unwrap());
    assert!(remaining.iter().all(|left| *left == 60_000_000), "those that did not wait: {remaining:?}");
    assert!((1..60_000_000 - IN_LINE.as_micros() as u32).contains(&first), "{first}");
    assert_eq!(last, 0);
    drop((waiting.await.unwrap(), listener));
}

/// Rows that several hold are one frame, and its room is given back with the last of them.
pub(crate) async fn a_shared_frame_is_room_until_the_last_lets_go(place: &AnyPlace) {
    const BYTES: usize = 1 << 20;
    let Pair { node, node_pool, mut coordinator, listener, .. } = pair(place, small_limits()).await;
    let mut sent = 0;
    let refused = loop {
        match node.peer.try_send(plain(&node_pool, Lane::Weights, 99, sent, BYTES)) {
            Ok(()) => sent += 1,
            Err(SendError::NoCredit { frame, .. }) => break frame,
            Err(other) => panic!("{other}"),
        }
    };
    let mut held = Vec::new();
    for _ in 0..sent {
        held.push(std::sync::Arc::new(coordinator.weights.receive().await.unwrap().unwrap()));
    }
    let others = held.clone();
    drop(held);
    // What was released would be told before an echo of the peer's next probe.
    coordinator.peer.probe(0).await.unwrap();
    let refused = match node.peer.try_send(refused) {
        Err(SendError::NoCredit { frame, .. }) => frame,
        other => panic!("somebody holds them: {other:?}"),
    };
    for (frame, number) in others.iter().zip(0..) {
        assert!(is_filled(&frame.payload, 99, number));
    }
    drop(others);
    node.peer.send(refused).await.unwrap();
    drop((listener, coordinator));
}
