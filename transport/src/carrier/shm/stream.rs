//! The control lane: frames over the Unix socket itself, which is the lifeline of the connection.
//!
//! Not pure: it reads and writes the socket. The kernel ends a stream of a killed process just as one that was
//! closed in order, so a lane that is finished says so: with a header that is no frame's. Anything
//! else that ends the stream is a cut.

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use super::doorbell::Bell;
use super::lane::Life;
use crate::Frame;
use crate::buffer::{Buffer, Payload, Pool};
use crate::carrier::{HANDSHAKE_BYTES_MAX, LaneEnds, LaneError, LaneReceiver, LaneSender, Outbox};
use crate::wire::{HEADER_BYTES, Header};

/// Stands where a header would, and says that nothing follows.
const FINISH: [u8; HEADER_BYTES] = {
    let mut bytes = [0; HEADER_BYTES];
    let word = *b"PHLX-FINISH";
    let mut at = 0;
    while at < word.len() {
        bytes[at] = word[at];
        at += 1;
    }
    bytes
};
/// What is read at once: a few control messages.
const STAGE_BYTES: usize = 4096;

/// The socket of a connection, closed as soon as neither end of the control lane is left.
struct Lifeline {
    stream: Arc<UnixStream>,
    life: Arc<Life>,
    guard: AbortHandle,
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // The guard has a hand on the socket until its runtime lets go, so the peer is told at once.
        let _ = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Both);
        self.guard.abort();
    }
}

/// The control lane over `stream`. `life` ends, and `bell` rings, when the peer closes it.
pub(super) fn control_lane(stream: UnixStream, life: &Arc<Life>, bell: &Arc<Bell>, pool: &Pool) -> LaneEnds {
    let stream = Arc::new(stream);
    let guarded = (Arc::clone(&stream), Arc::clone(life), Arc::clone(bell));
    let guard = tokio::spawn(async move {
        let (stream, life, bell) = guarded;
        // Urgent data is never sent on this socket and not asked for, so this waits for the end alone, whatever
        // is still to be read. A failure is an end too.
        let _ = stream.ready(Interest::PRIORITY).await;
        life.end();
        bell.ring();
    });
    let lifeline = Arc::new(Lifeline { stream, life: Arc::clone(life), guard: guard.abort_handle() });
    LaneEnds {
        sender: Box::new(StreamSender {
            lifeline: Arc::clone(&lifeline),
            current: None,
            ending: Ending::Open,
        }),
        receiver: Box::new(StreamReceiver {
            lifeline,
            pool: pool.clone(),
            payload_bytes_max: HANDSHAKE_BYTES_MAX,
            stage: Box::new([0; STAGE_BYTES]),
            staged: (0, 0),
            current: None,
            is_failed: false,
            is_finished: false,
        }),
    }
}

#[derive(PartialEq, Eq)]
enum Ending {
    Open,
    /// So much of [`FINISH`] is written.
    Finishing(usize),
    Failed,
}

struct StreamSender {
    lifeline: Arc<Lifeline>,
    /// A frame that is begun: its header's bytes, and how much of header and payload is written.
    current: Option<(Frame, [u8; HEADER_BYTES], usize)>,
    ending: Ending,
}

impl StreamSender {
    /// Writes something of `head` and then of `body`.
    fn poll_write(
        lifeline: &Lifeline,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
    ) -> Poll<Result<usize, LaneError>> {
        loop {
            let failed = |why| LaneError::Cut(format!("{}: {why}", lifeline.life.peer));
            ready!(lifeline.stream.poll_write_ready(context)).map_err(failed)?;
            match lifeline.stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(why) => return Poll::Ready(Err(failed(why))),
                Ok(bytes) => return Poll::Ready(Ok(bytes)),
            }
        }
    }

    fn poll_outbox(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        loop {
            let Some((frame, header, written)) = &mut self.current else {
                let Some(frame) = outbox.pop_front() else { return Poll::Ready(Ok(())) };
                let header = frame.header.write();
                self.current = Some((frame, header, 0));
                continue;
            };
            let head = &header[(*written).min(HEADER_BYTES)..];
            let body = &frame.payload[written.saturating_sub(HEADER_BYTES)..];
            *written += ready!(Self::poll_write(&self.lifeline, context, head, body))?;
            if *written == HEADER_BYTES + frame.payload.len() {
                self.current = None;
            }
        }
    }
}

impl LaneSender for StreamSender {
    fn poll_send(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        match self.ending {
            Ending::Open => {}
            Ending::Failed => return Poll::Ready(Err(self.lifeline.life.failed_before())),
            Ending::Finishing(_) => {
                assert!(outbox.is_empty(), "nothing is sent on a lane that is finished");
                return Poll::Ready(Ok(()));
            }
        }
        let polled = self.poll_outbox(context, outbox);
        if matches!(polled, Poll::Ready(Err(_))) {
            self.ending = Ending::Failed;
        }
        polled
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        ready!(self.poll_send(context, &mut Outbox::new()))?;
        loop {
            let written = match self.ending {
                Ending::Finishing(written) => written,
                _ => 0,
            };
            self.ending = Ending::Finishing(written);
            if written == HEADER_BYTES {
                return Poll::Ready(Ok(()));
            }
            match ready!(Self::poll_write(&self.lifeline, context, &FINISH[written..], &[])) {
                Ok(bytes) => self.ending = Ending::Finishing(written + bytes),
                Err(why) => {
                    self.ending = Ending::Failed;
                    return Poll::Ready(Err(why));
                }
            }
        }
    }
}

struct StreamReceiver {
    lifeline: Arc<Lifeline>,
    pool: Pool,
    payload_bytes_max: u64,
    stage: Box<[u8; STAGE_BYTES]>,
    /// What of the stage is read from the socket and not yet taken.
    staged: (usize, usize),
    /// A frame whose header has come, and how much of its payload.
    current: Option<(Header, Option<Buffer>, usize)>,
    is_failed: bool,
    is_finished: bool,
}

impl StreamReceiver {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        loop {
            let (from, to) = self.staged;
            let staged = &self.stage[from..to];
            if let Some((_, buffer, read)) = &mut self.current {
                let rest = &mut buffer.as_deref_mut().unwrap_or_default()[*read..];
                let bytes = rest.len().min(staged.len());
                rest[..bytes].copy_from_slice(&staged[..bytes]);
                *read += bytes;
                self.staged.0 += bytes;
                let rest = &mut rest[bytes..];
                let missing = rest.len();
                if missing >= STAGE_BYTES {
                    *read += ready!(poll_read(&self.lifeline, context, rest, missing))?;
                    continue;
                }
                if missing == 0
                    && let Some((header, buffer, _)) = self.current.take()
                {
                    let payload = buffer.map_or_else(Payload::default, Payload::from);
                    return Poll::Ready(Ok(Some(Frame::new(header, payload))));
                }
            } else if let Some(bytes) = staged.first_chunk::<HEADER_BYTES>() {
                if *bytes == FINISH {
                    self.is_finished = true;
                    return Poll::Ready(Ok(None));
                }
                let header = Header::read(bytes, self.payload_bytes_max)?;
                self.staged.0 += HEADER_BYTES;
                let buffer = match header.payload_bytes() {
                    0 => None,
                    bytes => Some(self.pool.take(bytes as usize).ok_or(LaneError::NoRoom(bytes))?),
                };
                self.current = Some((header, buffer, 0));
                continue;
            }
            // Less than a header is left: it moves to the front.
            let (from, to) = self.staged;
            self.stage.copy_within(from..to, 0);
            self.staged = (0, to - from);
            let missing = match &self.current {
                Some((_, buffer, read)) => buffer.as_ref().map_or(0, |buffer| buffer.len()) - read,
                None if from < to => HEADER_BYTES - (to - from),
                None => 0,
            };
            let room = &mut self.stage[to - from..];
            self.staged.1 += ready!(poll_read(&self.lifeline, context, room, missing))?;
        }
    }
}

/// Reads something. `missing` is what a frame that is begun still lacks.
fn poll_read(
    lifeline: &Lifeline,
    context: &mut Context<'_>,
    into: &mut [u8],
    missing: usize,
) -> Poll<Result<usize, LaneError>> {
    loop {
        let failed = |why| LaneError::Cut(format!("{}: {why}", lifeline.life.peer));
        ready!(lifeline.stream.poll_read_ready(context)).map_err(failed)?;
        match lifeline.stream.try_read(into) {
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(why) => return Poll::Ready(Err(failed(why))),
            Ok(0) if missing > 0 => {
                return Poll::Ready(Err(LaneError::Truncated { missing: missing as u64 }));
            }
            Ok(0) => return Poll::Ready(Err(lifeline.life.cut())),
            Ok(bytes) => return Poll::Ready(Ok(bytes)),
        }
    }
}

impl LaneReceiver for StreamReceiver {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        if self.is_failed {
            return Poll::Ready(Err(self.lifeline.life.failed_before()));
        }
        if self.is_finished {
            return Poll::Ready(Ok(None));
        }
        let polled = self.poll_frame(context);
        self.is_failed = matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.payload_bytes_max = payload_bytes_max;
    }
}
