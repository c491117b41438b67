//! The control lane: frames over the Unix socket itself, which is the lifeline of the connection.
//!
//! Not pure: it reads and writes the socket. Frames and the end mark are those of every stream
//! ([`stream`](crate::carrier::stream)); but the socket stays whole when the lane is finished, for it
//! vouches for the rings beside it until they are finished too.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use super::doorbell::Bell;
use super::end::Life;
use crate::buffer::Pool;
use crate::carrier::stream::{ByteSink, ByteSource, StreamReceiver, StreamSender, descriptor};
use crate::carrier::{LaneEnds, LaneSettings};

/// The socket of a connection, closed as soon as neither end of the control lane is left.
struct Lifeline {
    stream: Arc<UnixStream>,
    life: Arc<Life>,
    guard: AbortHandle,
}

impl Lifeline {
    /// What the host says, with the peer's name.
    fn named(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        polled.map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", self.life.peer)))
    }
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
    let settings = LaneSettings { pool: pool.clone(), checksum: false };
    LaneEnds {
        sender: Box::new(StreamSender::new(Sink(Arc::clone(&lifeline)), false)),
        receiver: Box::new(StreamReceiver::new(Source(lifeline), settings)),
    }
}

struct Sink(Arc<Lifeline>);

impl ByteSink for Sink {
    fn poll_write(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.named(descriptor::poll_write(&*self.0.stream, context, from))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Source(Arc<Lifeline>);

impl ByteSource for Source {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.named(descriptor::poll_read(&*self.0.stream, context, into))
    }

    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // The mark is the end of the lane, and the socket goes on.
        Poll::Ready(Ok(true))
    }

    fn cut(&self) -> String {
        self.0.life.gone()
    }
}
