//! A stream that the kernel has: a TCP or Unix socket.
//!
//! Shell. One system call a read or write, whatever the number of slices, and none to learn that nothing
//! more is there: a call that took less than it was given has drained (or filled) the socket, so its
//! readiness is cleared at once, as tokio does for single slices only.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::{ByteSink, ByteSource};

/// A socket of tokio's.
pub trait Socket: AsFd + Send + Sync {
    /// Ready when there may be something to read.
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when there may be room to write.
    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Runs `call` if the socket is ready; if it says `WouldBlock`, the socket is ready no more.
    fn try_io(&self, interest: Interest, call: impl FnOnce() -> io::Result<()>) -> io::Result<()>;
}

macro_rules! socket {
    ($type:ty) => {
        impl Socket for $type {
            fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$type>::poll_read_ready(self, context)
            }

            fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                <$type>::poll_write_ready(self, context)
            }

            fn try_io(&self, interest: Interest, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
                <$type>::try_io(self, interest, call)
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// The half that reads.
pub struct ReadHalf<T: Socket>(Arc<T>);

/// The half that writes. Dropped, it tells the other end that nothing follows.
pub struct WriteHalf<T: Socket>(Arc<T>);

/// Both halves of a socket.
pub fn halves<T: Socket>(socket: T) -> (ReadHalf<T>, WriteHalf<T>) {
    let socket = Arc::new(socket);
    (ReadHalf(Arc::clone(&socket)), WriteHalf(socket))
}

/// One vectored read, when there is something.
pub fn poll_read<T: Socket>(
    socket: &T,
    context: &mut Context<'_>,
    into: &mut [IoSliceMut<'_>],
) -> Poll<io::Result<usize>> {
    let room = into.iter().map(|slice| slice.len()).sum();
    loop {
        ready!(socket.poll_read_ready(context))?;
        if let Some(result) = attempt(socket, Interest::READABLE, room, || rustix::io::readv(socket, into)) {
            return Poll::Ready(result);
        }
    }
}

/// One vectored write, when there is room.
pub fn poll_write<T: Socket>(
    socket: &T,
    context: &mut Context<'_>,
    from: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let offered = from.iter().map(|slice| slice.len()).sum();
    loop {
        ready!(socket.poll_write_ready(context))?;
        let send = || {
            // No signal for a peer that is gone: the error says it.
            rustix::net::sendmsg(socket, from, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
        };
        if let Some(result) = attempt(socket, Interest::WRITABLE, offered, send) {
            return Poll::Ready(result);
        }
    }
}

/// One call; `None` if it has to be made again when the socket is ready.
fn attempt<T: Socket>(
    socket: &T,
    interest: Interest,
    whole: usize,
    call: impl FnOnce() -> rustix::io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut taken = None;
    let result = socket.try_io(interest, || match call() {
        Ok(count) => {
            taken = Some(count);
            // Less than asked for: the next call would block. tokio is told so without making it.
            if 0 < count && count < whole { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }
        Err(why) => Err(why.into()),
    });
    match (taken, result) {
        (Some(count), _) => Some(Ok(count)),
        (None, Err(why)) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
        (None, result) => Some(result.map(|()| 0)),
    }
}

/// Says to the other end that nothing follows. One that is gone already need not be told.
pub fn finish<T: Socket>(socket: &T) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(Shutdown::Write) {
        Err(why) if why.kind() != ErrorKind::NotConnected => Err(why),
        _ => Ok(()),
    }
}

impl<T: Socket> ByteSource for ReadHalf<T> {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_read(&*self.0, context, into)
    }
}

impl<T: Socket> ByteSink for WriteHalf<T> {
    fn poll_write(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        poll_write(&*self.0, context, from)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has it, and TCP_NODELAY lets nothing lie.
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(finish(&*self.0))
    }
}

impl<T: Socket> Drop for WriteHalf<T> {
    fn drop(&mut self) {
        // The socket lives as long as the other half. An error leaves nothing to do.
        let _ = finish(&*self.0);
    }
}
