//! Puts frames onto a stream.
//!
//! Pure but for the stream. Headers are written beside the payloads, never before them into one buffer:
//! a payload is handed to the stream where it lies. What is begun is kept in a fixed number of places, so
//! a frame costs no allocation.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::task::{Context, Poll, ready};

use super::ByteSink;
use crate::buffer::Payload;
use crate::carrier::{LaneError, LaneSender, Outbox};
use crate::wire::crc::crc32c;
use crate::wire::{FINISH, HEADER_BYTES};

/// Most frames in one write: with their headers 64 slices, which the kernel copies to its stack; beyond
/// that nothing is gained even for the shortest frames.
const FRAMES_MAX: usize = 32;

/// No further frame is begun while so much waits to be written. The checksum brings a payload into the
/// cache, and it must still be there when the kernel copies it.
const BEGUN_BYTES_MAX: usize = 256 << 10;

/// The sending end of a lane over a stream.
pub struct StreamSender<S> {
    sink: S,
    checksum: bool,
    begun: VecDeque<Begun>,
    /// Of everything begun, with headers.
    begun_bytes: usize,
    /// Of the first of them.
    written: usize,
    unflushed: bool,
    /// The end mark is among what is begun, or gone.
    finishing: bool,
    ended: bool,
}

struct Begun {
    header: [u8; HEADER_BYTES],
    payload: Payload,
}

impl<S: ByteSink> StreamSender<S> {
    /// Sends on `sink`, with a checksum of each payload if the stream has none.
    pub fn new(sink: S, checksum: bool) -> Self {
        Self {
            sink,
            checksum,
            begun: VecDeque::with_capacity(FRAMES_MAX),
            begun_bytes: 0,
            written: 0,
            unflushed: false,
            finishing: false,
            ended: false,
        }
    }

    /// Begins as many frames as one write is worth.
    fn begin(&mut self, outbox: &mut Outbox) {
        while self.begun.len() < FRAMES_MAX && self.begun_bytes < BEGUN_BYTES_MAX {
            let Some(frame) = outbox.pop_front() else { return };
            let mut header = frame.header;
            header.payload_crc = if self.checksum { crc32c(&frame.payload) } else { 0 };
            self.begun_bytes += HEADER_BYTES + frame.payload.len();
            self.begun.push_back(Begun { header: header.write(), payload: frame.payload });
        }
    }

    /// One write of what is begun.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); 2 * FRAMES_MAX];
        let mut count = 0;
        // Only of the first frame has anything gone.
        let mut skip = self.written;
        for begun in &self.begun {
            for part in [&begun.header[..], &begun.payload[..]] {
                let passed = skip.min(part.len());
                skip -= passed;
                if passed < part.len() {
                    slices[count] = IoSlice::new(&part[passed..]);
                    count += 1;
                }
            }
        }
        let taken = ready!(self.sink.poll_write(context, &slices[..count]))?;
        if taken == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.written += taken;
        while let Some(first) = self.begun.front() {
            let bytes = HEADER_BYTES + first.payload.len();
            if self.written < bytes {
                break;
            }
            self.written -= bytes;
            self.begun_bytes -= bytes;
            // The payload goes back to its pool as soon as the stream has it.
            self.begun.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes everything, then flushes.
    fn poll_all(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<std::io::Result<()>> {
        loop {
            self.begin(outbox);
            if self.begun.is_empty() {
                break;
            }
            ready!(self.poll_write(context))?;
        }
        if self.unflushed {
            ready!(self.sink.poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// No error is followed by anything but errors: the stream may have been cut inside a frame.
    fn end_on_error(&mut self, result: std::io::Result<()>) -> Result<(), LaneError> {
        result.map_err(|why| {
            self.ended = true;
            LaneError::Cut(why.to_string())
        })
    }
}

impl<S: ByteSink> LaneSender for StreamSender<S> {
    fn poll_send(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        if self.ended {
            return Poll::Ready(Err(LaneError::Cut("this end has ended the lane".into())));
        }
        assert!(!self.finishing || outbox.is_empty(), "nothing is sent on a lane that is finished");
        let result = ready!(self.poll_all(context, outbox));
        Poll::Ready(self.end_on_error(result))
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        if !self.finishing {
            self.finishing = true;
            self.begun_bytes += HEADER_BYTES;
            self.begun.push_back(Begun { header: FINISH, payload: Payload::default() });
        }
        let mut result = ready!(self.poll_all(context, &mut Outbox::new()));
        if result.is_ok() {
            result = ready!(self.sink.poll_finish(context));
        }
        self.ended = true;
        Poll::Ready(self.end_on_error(result))
    }
}
