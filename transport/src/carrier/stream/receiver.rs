//! Gets frames back out of a stream, wherever it was cut.
//!
//! Pure but for the stream. About one read a frame, and no byte of a long payload is copied twice:
//!
//! - short frames come through a read-ahead of 64 KiB, several with one read;
//! - a long payload is read into the buffer that it stays in, and the header of the next frame with it;
//! - when no header has come yet, the next frame is guessed to be as long as the last, and header and
//!   payload are read together into their places. A wrong guess costs one copy of what came.
//!
//! A stream that ends without the mark that its sender puts last was cut, wherever that was.
//!
//! A buffer is taken for what a header says only after the header was checked against the limit, and a
//! guess is given back while nothing comes: an idle lane holds no room of the pool.

use std::io::IoSliceMut;
use std::task::{Context, Poll, ready};

use super::ByteSource;
use crate::Frame;
use crate::buffer::{Buffer, Payload};
use crate::carrier::{HANDSHAKE_BYTES_MAX, LaneError, LaneReceiver, LaneSettings};
use crate::wire::crc::crc32c_after;
use crate::wire::{FINISH, HEADER_BYTES, Header};

/// Bytes of the read-ahead.
pub const AHEAD_BYTES: usize = 64 << 10;

/// From here on a copy costs more than a read that is aimed.
pub const LONG_BYTES: usize = 8 << 10;

/// A wrong guess must fit into the read-ahead with the header that may follow it.
const GUESS_BYTES_MAX: usize = AHEAD_BYTES - HEADER_BYTES;

/// The receiving end of a lane over a stream.
pub struct StreamReceiver<S> {
    source: S,
    settings: LaneSettings,
    payload_bytes_max: u64,
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// The frame whose header is whole.
    begun: Option<Begun>,
    /// Payload bytes of the frame before.
    last_bytes: usize,
    ahead: Box<[u8]>,
    ahead_start: usize,
    ahead_end: usize,
    /// The end mark has come.
    marked: bool,
    ended: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Finished,
    Failed,
}

struct Begun {
    header: Header,
    payload: Option<Buffer>,
    bytes: usize,
    filled: usize,
    /// Of what is filled, those that are in `checksum`.
    summed: usize,
    checksum: u32,
}

impl Begun {
    /// Takes the checksum of what has come since, while it is in the cache.
    fn sum(&mut self) {
        if let Some(payload) = &self.payload {
            self.checksum = crc32c_after(self.checksum, &payload[self.summed..self.filled]);
            self.summed = self.filled;
        }
    }
}

impl<S: ByteSource> StreamReceiver<S> {
    /// Receives from `source`, payloads of the handshake's length at first.
    pub fn new(source: S, settings: LaneSettings) -> Self {
        Self {
            source,
            settings,
            payload_bytes_max: HANDSHAKE_BYTES_MAX,
            head: [0; HEADER_BYTES],
            head_bytes: 0,
            begun: None,
            last_bytes: 0,
            ahead: vec![0; AHEAD_BYTES].into_boxed_slice(),
            ahead_start: 0,
            ahead_end: 0,
            marked: false,
            ended: None,
        }
    }

    /// The header that is whole, checked, and the place for its payload. `guess` was read into after the
    /// header, `guessed` bytes of it.
    fn begin(&mut self, guess: Option<Buffer>, guessed: usize) -> Result<(), LaneError> {
        let header = match Header::read(&self.head, self.payload_bytes_max) {
            Ok(header) => header,
            Err(_) if self.head == FINISH && guessed == 0 => {
                self.marked = true;
                return Ok(());
            }
            Err(why) => return Err(why.into()),
        };
        let said = header.payload_bytes();
        // It passed the limit, which a buffer of this host has.
        let bytes = usize::try_from(said).map_err(|_| LaneError::NoRoom(said))?;
        self.head_bytes = 0;
        self.last_bytes = bytes;
        let (payload, filled) = match guess {
            Some(buffer) if buffer.len() == bytes => (Some(buffer), guessed),
            other => {
                if let Some(buffer) = other {
                    self.set_aside(&buffer[..guessed]);
                    // Given back before the right one is taken: the room of both was never granted.
                    drop(buffer);
                }
                let payload = match bytes {
                    0 => None,
                    _ => Some(self.settings.pool.take(bytes).ok_or(LaneError::NoRoom(said))?),
                };
                (payload, 0)
            }
        };
        self.begun = Some(Begun { header, payload, bytes, filled, summed: 0, checksum: 0 });
        Ok(())
    }

    /// Bytes that came before those in the read-ahead.
    fn set_aside(&mut self, bytes: &[u8]) {
        assert_eq!(self.ahead_start, 0, "a guess is read when the read-ahead is empty");
        self.ahead.copy_within(..self.ahead_end, bytes.len());
        self.ahead[..bytes.len()].copy_from_slice(bytes);
        self.ahead_end += bytes.len();
    }

    /// Moves what has been read ahead to where it belongs. The frame, if that makes it whole.
    fn advance(&mut self) -> Result<Option<Frame>, LaneError> {
        if self.begun.is_none() {
            let ahead = &self.ahead[self.ahead_start..self.ahead_end];
            let taken = ahead.len().min(HEADER_BYTES - self.head_bytes);
            self.head[self.head_bytes..][..taken].copy_from_slice(&ahead[..taken]);
            self.head_bytes += taken;
            self.ahead_start += taken;
            if self.head_bytes < HEADER_BYTES {
                return Ok(None);
            }
            self.begin(None, 0)?;
            if self.marked {
                return Ok(None);
            }
        }
        let begun = self.begun.as_mut().expect("begun above, or before");
        if let Some(payload) = &mut begun.payload {
            let ahead = &self.ahead[self.ahead_start..self.ahead_end];
            let taken = ahead.len().min(begun.bytes - begun.filled);
            payload[begun.filled..][..taken].copy_from_slice(&ahead[..taken]);
            begun.filled += taken;
            self.ahead_start += taken;
        }
        if self.settings.checksum {
            begun.sum();
        }
        if begun.filled < begun.bytes {
            return Ok(None);
        }
        let Begun { mut header, payload, checksum, bytes, .. } = self.begun.take().expect("it is there");
        if self.settings.checksum && checksum != header.payload_crc {
            let (found, said) = (checksum, header.payload_crc);
            return Err(LaneError::Damaged { bytes: bytes as u64, found, said });
        }
        let payload = payload.map(Payload::from).unwrap_or_default();
        // The checksum was the lane's, so the frame is as its sender made it.
        header.payload_crc = 0;
        Ok(Some(Frame::new(header, payload)))
    }

    /// One read, to where the bytes will most likely belong. False at the end of the stream.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, LaneError>> {
        assert_eq!(self.ahead_start, self.ahead_end, "all of the read-ahead was used");
        (self.ahead_start, self.ahead_end) = (0, 0);
        let cut = |why: std::io::Error| LaneError::Cut(why.to_string());
        // After a long payload only the header of the next is read, so that its payload can be aimed too.
        let ahead_bytes = if self.last_bytes < LONG_BYTES { AHEAD_BYTES } else { HEADER_BYTES };

        if let Some(begun) = &mut self.begun {
            let payload = begun.payload.as_mut().expect("a frame without payload is whole at once");
            let missing = begun.bytes - begun.filled;
            let into = &mut [
                IoSliceMut::new(&mut payload[begun.filled..]),
                IoSliceMut::new(&mut self.ahead[..ahead_bytes]),
            ];
            let count = ready!(self.source.poll_read(context, into)).map_err(cut)?;
            begun.filled += count.min(missing);
            self.ahead_end = count.saturating_sub(missing);
            return Poll::Ready(Ok(count > 0));
        }

        let head_missing = HEADER_BYTES - self.head_bytes;
        let guess = match self.last_bytes {
            LONG_BYTES..=GUESS_BYTES_MAX => self.settings.pool.take(self.last_bytes),
            _ => None,
        };
        let Some(mut guess) = guess else {
            let into = &mut [
                IoSliceMut::new(&mut self.head[self.head_bytes..]),
                // Nothing is read beyond the header of what may be longer than the read-ahead.
                IoSliceMut::new(
                    &mut self.ahead[..if self.last_bytes < LONG_BYTES { AHEAD_BYTES } else { 0 }],
                ),
            ];
            let count = ready!(self.source.poll_read(context, into)).map_err(cut)?;
            self.head_bytes += count.min(head_missing);
            self.ahead_end = count.saturating_sub(head_missing);
            if self.head_bytes == HEADER_BYTES {
                self.begin(None, 0)?;
            }
            return Poll::Ready(Ok(count > 0));
        };
        let into = &mut [
            IoSliceMut::new(&mut self.head[self.head_bytes..]),
            IoSliceMut::new(&mut guess),
            IoSliceMut::new(&mut self.ahead[..HEADER_BYTES]),
        ];
        let count = ready!(self.source.poll_read(context, into)).map_err(cut)?;
        self.head_bytes += count.min(head_missing);
        let behind = count.saturating_sub(head_missing);
        let guessed = behind.min(guess.len());
        self.ahead_end = behind - guessed;
        if self.head_bytes == HEADER_BYTES {
            self.begin(Some(guess), guessed)?;
        }
        Poll::Ready(Ok(count > 0))
    }

    /// What follows the end mark: nothing.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        let cut = |why: std::io::Error| LaneError::Cut(why.to_string());
        if self.ahead_start < self.ahead_end || !ready!(self.source.poll_end(context)).map_err(cut)? {
            return Poll::Ready(Err(LaneError::Broken("something follows the end mark".into())));
        }
        Poll::Ready(Ok(None))
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        loop {
            if !self.marked
                && let Some(frame) = self.advance()?
            {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.marked {
                return self.poll_end(context);
            }
            if !ready!(self.poll_fill(context))? {
                let missing = match &self.begun {
                    Some(begun) => begun.bytes - begun.filled,
                    None if self.head_bytes == 0 => {
                        return Poll::Ready(Err(LaneError::Cut(self.source.cut())));
                    }
                    None => HEADER_BYTES - self.head_bytes,
                };
                return Poll::Ready(Err(LaneError::Truncated { missing: missing as u64 }));
            }
        }
    }
}

impl<S: ByteSource> LaneReceiver for StreamReceiver<S> {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        match self.ended {
            None => {}
            // Asked again, and still so.
            Some(End::Finished) => return Poll::Ready(Ok(None)),
            Some(End::Failed) => return Poll::Ready(Err(LaneError::Cut("the lane failed before".into()))),
        }
        let next = ready!(self.poll_next(context));
        self.ended = match next {
            Ok(Some(_)) => None,
            Ok(None) => Some(End::Finished),
            Err(_) => Some(End::Failed),
        };
        Poll::Ready(next)
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.payload_bytes_max = payload_bytes_max;
    }
}
