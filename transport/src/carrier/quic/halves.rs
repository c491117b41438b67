//! The two halves of a QUIC stream as the framing wants them.
//!
//! Shell. quinn keeps what it sends until it is acknowledged, so it must own it: header and payload are
//! gathered into one piece of memory that is handed over, one allocation and one copy as in quinn's own
//! `write_all`. What comes is copied once, out of the datagram into its place.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, StoppedError, VarInt};

use super::settings;
use crate::carrier::stream::{ByteSink, ByteSource};

/// Most bytes gathered into one piece: a frame of 1 MiB and what comes with it.
const GATHERED_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Says that the lane did not end in order.
const CUT: VarInt = VarInt::from_u32(1);

type Stopped = dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync;

/// The half that writes.
pub struct WriteHalf {
    stream: SendStream,
    connection: Connection,
    /// What the window was made for: the shortest round trip so far. A full window makes its own round
    /// trips longer, and must not grow by that.
    round_trip: Duration,
    /// Taken, and not yet quinn's.
    waiting: Bytes,
    /// Set once the end was said: ready when the other end has everything.
    acknowledged: Option<Pin<Box<Stopped>>>,
}

/// The half that reads.
pub struct ReadHalf {
    stream: RecvStream,
}

impl WriteHalf {
    /// Over this stream of that connection.
    pub fn new(connection: Connection, stream: SendStream) -> Self {
        let round_trip = connection.rtt();
        connection.set_send_window(settings::unacknowledged_bytes_max(round_trip));
        Self { stream, connection, round_trip, waiting: Bytes::new(), acknowledged: None }
    }

    fn poll_hand_over(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let chunks = std::slice::from_mut(&mut self.waiting);
            let written = pin!(self.stream.write_chunks(chunks)).poll(context)?;
            if written.is_pending() {
                self.fit_window();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The window is what is waited for: it must fit the way.
    fn fit_window(&mut self) {
        let round_trip = self.connection.rtt();
        if round_trip < self.round_trip {
            self.round_trip = round_trip;
            self.connection.set_send_window(settings::unacknowledged_bytes_max(round_trip));
        }
    }
}

impl ByteSink for WriteHalf {
    fn poll_write(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_hand_over(context))?;
        let offered: usize = from.iter().map(|slice| slice.len()).sum();
        let mut gathered = Vec::with_capacity(offered.min(GATHERED_BYTES_MAX));
        for slice in from {
            let room = gathered.capacity() - gathered.len();
            gathered.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let taken = gathered.len();
        self.waiting = Bytes::from(gathered);
        match self.poll_hand_over(context) {
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            // Taken is taken: what found no room now is handed over by the flush.
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_hand_over(context)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.stream;
        let acknowledged = self.acknowledged.get_or_insert_with(|| {
            // An error means that it has ended already, and `stopped` says how.
            let _ = stream.finish();
            Box::pin(stream.stopped())
        });
        // Dropping the connection would drop what is on its way, so the end is only there when the other
        // end has everything.
        match ready!(acknowledged.as_mut().poll(context)) {
            Ok(None) => Poll::Ready(Ok(())),
            Ok(Some(_)) => {
                Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionReset, "the peer reads no further")))
            }
            Err(why) => Poll::Ready(Err(why.into())),
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.acknowledged.is_none() {
            // quinn would say that this is the end in order. An error means that there is nobody to tell.
            let _ = self.stream.reset(CUT);
        }
    }
}

impl ReadHalf {
    /// Over this stream.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream }
    }
}

impl ByteSource for ReadHalf {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut got = 0;
        for slice in into.iter_mut().filter(|slice| !slice.is_empty()) {
            match self.stream.poll_read(context, slice) {
                Poll::Ready(Ok(count)) => {
                    got += count;
                    if count < slice.len() {
                        break;
                    }
                }
                // What came before it is delivered first; the error stays.
                _ if got > 0 => break,
                Poll::Ready(Err(why)) => return Poll::Ready(Err(why.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(got))
    }
}
