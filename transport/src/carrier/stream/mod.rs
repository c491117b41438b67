//! Frames over any stream of bytes: plain TCP, TLS, a QUIC stream, a Unix socket.
//!
//! A stream keeps order and loses nothing, but it cuts where it likes: a read brings a part of a frame or
//! several. [`sender`] puts headers and payloads of many frames into one write, [`receiver`] gets them
//! back out, long payloads straight into the buffer that they will stay in. Both are pure but for the
//! stream that they are given, so every way of cutting can be tried without a socket. [`descriptor`] is
//! the stream that the kernel has.

pub mod descriptor;
pub mod receiver;
pub mod sender;

use std::io;
use std::task::{Context, Poll, ready};

pub use receiver::StreamReceiver;
pub use sender::StreamSender;

/// Where bytes come from.
pub trait ByteSource: Send {
    /// Fills the slices, one after the other, with what is there. 0 once nothing comes any more; an error if
    /// the stream knows that it was cut.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// The end mark has come: ready once the stream itself has ended behind it, with false if something else comes
    /// instead. So whoever waits for the stream to be taken whole is not cut off by an end that leaves early.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let count = ready!(self.poll_read(context, &mut [io::IoSliceMut::new(&mut [0])]))?;
        Poll::Ready(Ok(count == 0))
    }

    /// Nothing comes any more, and no end mark has: in words.
    fn cut(&self) -> String {
        "the peer ended it without a word".into()
    }
}

/// Where bytes go.
pub trait ByteSink: Send {
    /// Takes bytes from the slices, one after the other, and says how many: at least one.
    fn poll_write(&mut self, context: &mut Context<'_>, from: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Ready once everything that was taken is on its way.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the stream. Everything was flushed before, the end mark last.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}
