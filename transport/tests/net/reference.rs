//! What stands on a stream, written out from the table in the protocol and nothing else; and streams that
//! are cut as a test wants.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::stream::{ByteSink, ByteSource};
use phalanx_transport::carrier::{LaneError, LaneReceiver, LaneSender, Outbox};
use phalanx_transport::wire::{Element, Header, Kind};

/// CRC-32C a bit at a time.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// A frame of bytes as it stands on the wire.
pub(crate) fn written_out(about: u64, payload: &[u8], checksum: bool) -> Vec<u8> {
    let mut bytes = vec![0_u8; 64];
    bytes[..4].copy_from_slice(b"PHLX");
    bytes[4..7].copy_from_slice(&[1, 4, 3]);
    bytes[8..16].copy_from_slice(&about.to_le_bytes());
    bytes[20..24].copy_from_slice(&1_u32.to_le_bytes());
    bytes[24..28].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    if checksum {
        bytes[44..48].copy_from_slice(&crc(payload).to_le_bytes());
    }
    let seal = crc(&bytes[..60]);
    bytes[60..].copy_from_slice(&seal.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What a sender puts last.
pub(crate) fn finished() -> Vec<u8> {
    let mut bytes = b"PHLX-FINISH".to_vec();
    bytes.resize(64, 0);
    bytes
}

/// Bytes that differ from place to place and from frame to frame.
pub(crate) fn payload(about: u64, bytes: usize) -> Vec<u8> {
    let mut state = about.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A frame with that payload.
pub(crate) fn frame(pool: &Pool, about: u64, bytes: usize) -> Frame {
    let header = Header::of_bytes(Kind::Weights, about, u32::try_from(bytes).unwrap());
    Frame::new(header, pool.copy_of(&payload(about, bytes)).unwrap())
}

/// The number and the payload of a received frame, which must be of the kind that [`frame`] makes.
pub(crate) fn contents(frame: &Frame) -> (u64, Vec<u8>) {
    let bytes = u32::try_from(frame.payload.len()).unwrap();
    assert_eq!(frame.header, Header::of_bytes(Kind::Weights, frame.header.dispatch, bytes));
    assert_eq!(frame.header.element, Element::Bytes);
    (frame.header.dispatch, frame.payload.to_vec())
}

/// A source that gives out `bytes` in pieces of the given lengths, over and over, and then ends. Between
/// two pieces it says once that nothing is there.
pub(crate) struct Pieces {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: usize,
    pub(crate) cuts: Vec<usize>,
    pub(crate) turn: usize,
    pub(crate) paused: bool,
    pub(crate) reads: usize,
}

impl Pieces {
    pub(crate) fn new(bytes: Vec<u8>, cuts: Vec<usize>) -> Self {
        Self { bytes, at: 0, cuts, turn: 0, paused: false, reads: 0 }
    }
}

impl ByteSource for Pieces {
    fn poll_read(&mut self, _: &mut Context<'_>, into: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        self.paused = !self.paused;
        if self.paused {
            return Poll::Pending;
        }
        self.reads += 1;
        let mut left = self.cuts[self.turn % self.cuts.len()];
        self.turn += 1;
        let mut count = 0;
        for slice in into {
            let part = slice.len().min(left).min(self.bytes.len() - self.at);
            slice[..part].copy_from_slice(&self.bytes[self.at..self.at + part]);
            self.at += part;
            left -= part;
            count += part;
        }
        Poll::Ready(Ok(count))
    }
}

/// A sink that takes pieces of the given lengths, over and over.
#[derive(Clone)]
pub(crate) struct Taken {
    pub(crate) bytes: Arc<Mutex<Vec<u8>>>,
    pub(crate) cuts: Vec<usize>,
    pub(crate) turn: usize,
    pub(crate) paused: bool,
    pub(crate) flushed: Arc<Mutex<(usize, bool)>>,
}

impl Taken {
    pub(crate) fn new(cuts: Vec<usize>) -> Self {
        Self { bytes: Arc::default(), cuts, turn: 0, paused: false, flushed: Arc::default() }
    }
}

impl ByteSink for Taken {
    fn poll_write(&mut self, _: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.paused = !self.paused;
        if self.paused {
            return Poll::Pending;
        }
        let mut left = self.cuts[self.turn % self.cuts.len()];
        self.turn += 1;
        let mut bytes = self.bytes.lock().unwrap();
        let before = bytes.len();
        for slice in from {
            let part = slice.len().min(left);
            bytes.extend_from_slice(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(bytes.len() - before))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed.lock().unwrap().0 = self.bytes.lock().unwrap().len();
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed.lock().unwrap().1 = true;
        Poll::Ready(Ok(()))
    }
}

/// What a frame is about, and its payload.
pub(crate) type Contents = (u64, Vec<u8>);

/// Everything that a receiver gives until it ends, polled whether it was woken or not.
pub(crate) fn drain(receiver: &mut impl LaneReceiver) -> (Vec<Contents>, Result<(), LaneError>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut frames = Vec::new();
    loop {
        match receiver.poll_receive(&mut context) {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(frame))) => frames.push(contents(&frame)),
            Poll::Ready(Ok(None)) => return (frames, Ok(())),
            Poll::Ready(Err(why)) => return (frames, Err(why)),
        }
    }
}

/// Sends all of it, polled whether it was woken or not.
pub(crate) fn send_all(sender: &mut impl LaneSender, outbox: &mut Outbox) {
    let mut context = Context::from_waker(Waker::noop());
    while sender.poll_send(&mut context, outbox).map(Result::unwrap).is_pending() {}
    assert!(outbox.is_empty());
}
