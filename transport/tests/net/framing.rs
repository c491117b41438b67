//! Frames on streams that are cut anywhere.

use std::task::{Context, Poll, Waker};

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::stream::{StreamReceiver, StreamSender};
use phalanx_transport::carrier::{
    HANDSHAKE_BYTES_MAX, LaneError, LaneReceiver, LaneSender, LaneSettings, Outbox,
};
use phalanx_transport::wire::HeaderError;
use proptest::prelude::*;

use crate::reference::{Pieces, Taken, drain, finished, frame, payload, send_all, written_out};

const POOL_BYTES: u64 = 256 << 20;

fn pool() -> Pool {
    Pool::new(POOL_BYTES)
}

fn receiver(bytes: Vec<u8>, cuts: Vec<usize>) -> StreamReceiver<Pieces> {
    let mut receiver =
        StreamReceiver::new(Pieces::new(bytes, cuts), LaneSettings { pool: pool(), checksum: true });
    receiver.raise(32 << 20);
    receiver
}

/// Frames and the end mark.
fn stream_of(lengths: &[usize]) -> (Vec<u8>, Vec<(u64, Vec<u8>)>) {
    let frames: Vec<_> =
        lengths.iter().zip(1..).map(|(bytes, about)| (about, payload(about, *bytes))).collect();
    let written = frames.iter().flat_map(|(about, payload)| written_out(*about, payload, true));
    (written.chain(finished()).collect(), frames)
}

/// Lengths on both sides of every bound of the receiver, each after a shorter, an equal and a longer one.
const LENGTHS: [usize; 22] = [
    0, 1, 63, 64, 65, 8_191, 8_192, 8_192, 8_193, 14_336, 14_336, 14_336, 14_400, 8_192, 0, 65_472, 65_472,
    65_471, 65_473, 65_536, 65_600, 3,
];

/// Ends it, polled whether it was woken or not.
fn finish(sender: &mut impl LaneSender) {
    let mut context = Context::from_waker(Waker::noop());
    while sender.poll_finish(&mut context).map(Result::unwrap).is_pending() {}
}

/// The bytes on the stream are the protocol's, however the stream takes them.
#[test]
fn what_is_sent_is_what_the_protocol_says() {
    let expected = stream_of(&LENGTHS).0;
    for cuts in [vec![usize::MAX], vec![1], vec![63, 1, 64, 65, 7], vec![100_000, 1]] {
        let taken = Taken::new(cuts);
        let mut sender = StreamSender::new(taken.clone(), true);
        let pool = pool();
        let mut outbox: Outbox =
            LENGTHS.iter().zip(1..).map(|(bytes, about)| frame(&pool, about, *bytes)).collect();
        send_all(&mut sender, &mut outbox);
        let frames = &expected[..expected.len() - 64];
        assert!(*taken.bytes.lock().unwrap() == frames, "other bytes than the protocol's");
        assert_eq!(*taken.flushed.lock().unwrap(), (frames.len(), false), "all of it is flushed");
        finish(&mut sender);
        assert!(*taken.bytes.lock().unwrap() == expected, "the mark is the last");
        assert_eq!(*taken.flushed.lock().unwrap(), (expected.len(), true), "the end is told");
        finish(&mut sender);
        assert!(*taken.bytes.lock().unwrap() == expected, "once");
    }
}

/// Without a checksum of ours the field is 0, and nobody looks at it.
#[test]
fn a_protected_stream_carries_no_checksum() {
    let taken = Taken::new(vec![usize::MAX]);
    let mut sender = StreamSender::new(taken.clone(), false);
    send_all(&mut sender, &mut Outbox::from([frame(&pool(), 7, 100)]));
    assert_eq!(*taken.bytes.lock().unwrap(), written_out(7, &payload(7, 100), false));
    let bytes = [written_out(7, &payload(7, 100), false), finished()].concat();
    let pieces = Pieces::new(bytes, vec![usize::MAX]);
    let settings = LaneSettings { pool: pool(), checksum: false };
    let (frames, end) = drain(&mut StreamReceiver::new(pieces, settings));
    assert_eq!(frames, [(7, payload(7, 100))]);
    end.unwrap();
}

/// Cut at every place into two pieces.
#[test]
fn a_cut_at_any_place_changes_nothing() {
    let (bytes, expected) = stream_of(&[5, 0, 8_200, 8_200, 8_100, 100, 8_200]);
    for cut in 1..bytes.len() {
        let (frames, end) = drain(&mut receiver(bytes.clone(), vec![cut, usize::MAX]));
        assert!(frames == expected, "cut at {cut}");
        end.unwrap();
    }
}

/// Bytes that come one at a time, and everything at once.
#[test]
fn pieces_of_any_length_change_nothing() {
    let (bytes, expected) = stream_of(&LENGTHS);
    for piece in [1, 2, 3, 63, 64, 65, 127, 4_096, 8_256, 14_400, 65_535, 65_536, usize::MAX] {
        let (frames, end) = drain(&mut receiver(bytes.clone(), vec![piece]));
        assert!(frames == expected, "pieces of {piece}");
        end.unwrap();
    }
}

/// One read for many short frames, about one for each long one.
#[test]
fn reads_are_few() {
    for (bytes, count, reads_max) in [(64, 1_000, 4), (14_336, 100, 103), (1 << 20, 10, 13)] {
        let lengths = vec![bytes; count];
        let (stream, expected) = stream_of(&lengths);
        let mut pieces = Pieces::new(stream, vec![usize::MAX]);
        let mut receiver =
            StreamReceiver::new(Counting(&mut pieces), LaneSettings { pool: pool(), checksum: true });
        receiver.raise(1 << 20);
        let (frames, end) = drain(&mut receiver);
        assert!(frames == expected);
        end.unwrap();
        drop(receiver);
        assert!(pieces.reads <= reads_max, "{} reads for {count} frames of {bytes} bytes", pieces.reads);
    }
}

/// A frame that comes alone, as in a round trip, is one read once the length of the last is known.
#[test]
fn a_frame_alone_is_one_read() {
    for bytes in [64, 8_191, 8_192, 14_336, 65_472] {
        let (stream, expected) = stream_of(&[bytes; 10]);
        let mut pieces = Pieces::new(stream, vec![64 + bytes]);
        let mut receiver =
            StreamReceiver::new(Counting(&mut pieces), LaneSettings { pool: pool(), checksum: true });
        receiver.raise(1 << 20);
        let (frames, _) = drain(&mut receiver);
        assert!(frames == expected);
        drop(receiver);
        // One more for the first, one for the end mark and one for the end.
        assert!(pieces.reads <= 13, "{} reads for 10 frames of {bytes} bytes", pieces.reads);
    }
}

struct Counting<'a>(&'a mut Pieces);

impl phalanx_transport::carrier::stream::ByteSource for Counting<'_> {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [std::io::IoSliceMut<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.0.poll_read(context, into)
    }
}

/// Every prefix of a session ends as what it is: cut between two frames, truncated inside one or inside the end mark,
/// with the number of bytes that are missing. A host ends the stream of a process that was killed like any other.
#[test]
fn no_prefix_ends_in_order() {
    let lengths = [5, 0, 8_200, 8_200, 70];
    let (bytes, expected) = stream_of(&lengths);
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |at, bytes| {
            *at += 64 + bytes;
            Some(*at)
        })
        .collect();
    for length in 0..bytes.len() {
        let (frames, end) = drain(&mut receiver(bytes[..length].to_vec(), vec![usize::MAX]));
        let whole = ends.iter().filter(|end| **end <= length).count();
        assert!(frames == expected[..whole], "prefix of {length}");
        let start = if whole == 0 { 0 } else { ends[whole - 1] };
        let missing = if length == start {
            None
        } else if length < start + 64 {
            Some(start + 64 - length)
        } else {
            Some(ends[whole] - length)
        };
        match (missing, end) {
            (None, Err(LaneError::Cut(why))) => assert!(why.contains("without a word"), "{why}"),
            (Some(expected), Err(LaneError::Truncated { missing })) => {
                assert_eq!(missing, expected as u64, "prefix of {length}");
            }
            (_, end) => panic!("prefix of {length} ends with {end:?}"),
        }
    }
}

/// The mark is the end: whatever follows it breaks the lane, though it were a good frame.
#[test]
fn nothing_follows_the_end_mark() {
    for lengths in [&[][..], &[5], &[8_200, 8_200], &[100_000]] {
        let (stream, expected) = stream_of(lengths);
        for behind in [vec![0], finished(), written_out(9, &payload(9, 8_200), true)] {
            for cut in [1, 64, 100, usize::MAX] {
                let (frames, end) = drain(&mut receiver([&stream[..], &behind].concat(), vec![cut]));
                assert!(frames == expected);
                let Err(end) = end else { panic!("an end in order, and {} bytes behind it", behind.len()) };
                assert!(end.is_breach(), "{end}");
            }
        }
    }
}

/// A mark with a wrong bit is neither an end nor a frame.
#[test]
fn a_damaged_end_mark_is_none() {
    let stream = stream_of(&[5]).0;
    for bit in 0..64 * 8 {
        let mut bad = stream.clone();
        bad[64 + 5 + bit / 8] ^= 1 << (bit % 8);
        let (frames, end) = drain(&mut receiver(bad, vec![usize::MAX]));
        assert!(frames.len() == 1 && matches!(end, Err(LaneError::Header(_))), "bit {bit}: {end:?}");
    }
}

/// No damaged bit of a payload is delivered, wherever the stream was cut.
#[test]
fn a_damaged_payload_is_noticed() {
    for bytes in [1, 100, 8_200] {
        for at in [0, bytes / 2, bytes - 1] {
            let mut stream = stream_of(&[bytes, bytes, 10]).0;
            stream[64 + bytes + 64 + at] ^= 0x10;
            for cut in [1, 100, usize::MAX] {
                let mut receiver = receiver(stream.clone(), vec![cut]);
                let (frames, end) = drain(&mut receiver);
                assert_eq!(frames.len(), 1, "the frame before it is delivered");
                let said = crate::reference::crc(&payload(2, bytes));
                assert!(
                    matches!(end, Err(LaneError::Damaged { bytes: found, said: s, .. }) if found == bytes as u64 && s == said),
                    "{end:?}"
                );
                assert!(drain(&mut receiver).1.is_err(), "nothing follows an error");
            }
        }
    }
}

/// Before the handshake nobody is given room for more than a handshake takes.
#[test]
fn a_long_payload_waits_for_the_handshake() {
    let bytes = HANDSHAKE_BYTES_MAX as usize + 1;
    let pieces = || Pieces::new(stream_of(&[bytes - 1, bytes]).0, vec![1_000]);
    let settings = || LaneSettings { pool: pool(), checksum: true };
    let (frames, end) = drain(&mut StreamReceiver::new(pieces(), settings()));
    assert_eq!(frames.len(), 1);
    assert!(
        matches!(&end, Err(LaneError::Header(HeaderError::TooLong { payload, max }))
            if *payload == bytes as u64 && *max == HANDSHAKE_BYTES_MAX),
        "{end:?}"
    );
    let mut receiver = StreamReceiver::new(pieces(), settings());
    receiver.raise(bytes as u64);
    let (frames, end) = drain(&mut receiver);
    assert_eq!(frames.len(), 2);
    end.unwrap();
}

/// A pool without room ends the lane, and says for how much there was none.
#[test]
fn a_frame_without_room_ends_the_lane() {
    let pieces = Pieces::new(stream_of(&[100, 10_000]).0, vec![usize::MAX]);
    let mut receiver = StreamReceiver::new(pieces, LaneSettings { pool: Pool::new(8_192), checksum: true });
    let (frames, end) = drain(&mut receiver);
    assert_eq!(frames.len(), 1);
    assert!(matches!(end, Err(LaneError::NoRoom(10_000))), "{end:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any frames in any pieces, through the sender and the receiver.
    #[test]
    fn any_frames_in_any_pieces_arrive(
        lengths in prop::collection::vec(prop_oneof![0_usize..200, 8_000..8_400_usize, 0..70_000_usize], 0..20),
        written in prop::collection::vec(prop_oneof![1_usize..100, 1..20_000_usize, Just(usize::MAX)], 1..8),
        read in prop::collection::vec(prop_oneof![1_usize..100, 1..20_000_usize, Just(usize::MAX)], 1..8),
    ) {
        let taken = Taken::new(written);
        let pool = pool();
        let mut sender = StreamSender::new(taken.clone(), true);
        let mut outbox: Outbox =
            lengths.iter().zip(1..).map(|(bytes, about)| frame(&pool, about, *bytes)).collect();
        send_all(&mut sender, &mut outbox);
        finish(&mut sender);
        let (bytes, expected) = stream_of(&lengths);
        prop_assert!(*taken.bytes.lock().unwrap() == bytes);
        let (frames, end) = drain(&mut receiver(bytes, read));
        prop_assert!(frames == expected);
        prop_assert!(end.is_ok());
    }

    /// Bytes that mean nothing: an error, never an end in order, a frame that was not sent and never a panic.
    #[test]
    fn random_bytes_are_no_frames(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(1_usize..100, 1..4),
    ) {
        let (frames, end) = drain(&mut receiver(bytes, cuts));
        prop_assert!(frames.is_empty());
        prop_assert!(end.is_err());
    }
}
