//! The two halves of a TLS connection over TCP; its handshake is `security::handshake`'s.
//!
//! Shell. rustls keeps one state for both directions, so the halves share it behind a lock that is held
//! for no longer than a record takes; each half waits for the socket on its own, so neither takes the
//! other's wakening. Ciphertext is read 64 KiB at a time, where rustls alone would ask the kernel for
//! 4 KiB, and records are written as they lie, many with one call.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::net::TcpStream;

use crate::carrier::stream::{ByteSink, ByteSource, descriptor};
use crate::security::Tls;
use crate::security::handshake::explain;

/// Bytes of ciphertext read at once: four records.
const CIPHERTEXT_BYTES: usize = 64 << 10;

/// Bytes of plaintext that may wait encrypted to be written. rustls allocates each record and frees it once
/// it is written. So few are still in the cache then, and stay with the allocator: 256 KiB went back to the
/// kernel at every write and were faulted in again, a third of the throughput.
const UNWRITTEN_BYTES_MAX: usize = 64 << 10;

struct Shared {
    socket: TcpStream,
    connection: Mutex<Connection>,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic inside rustls ended one half; the other finds its own error.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the records that wait.
    fn poll_drain(&self, connection: &mut Connection, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while connection.wants_write() {
            match connection.write_tls(&mut Records { socket: &self.socket, context }) {
                Ok(0) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Poll::Pending,
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The socket as rustls writes to it; `WouldBlock` has stored the waker.
struct Records<'a, 'b> {
    socket: &'a TcpStream,
    context: &'a mut Context<'b>,
}

impl Write for Records<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match descriptor::poll_write(self.socket, self.context, slices) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket for the last words of a half that does not write.
struct Alert<'a>(&'a TcpStream);

impl Write for Alert<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The half that reads.
pub struct TlsReadHalf {
    shared: Arc<Shared>,
    /// To put refusals into words: the peer's come with the first read.
    tls: Tls,
    ciphertext: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The half that writes. Dropped without an orderly end, it leaves the other end to see that there was
/// none.
pub struct TlsWriteHalf {
    shared: Arc<Shared>,
    closing: bool,
}

/// Both halves of a connection whose handshake is done.
pub fn halves(socket: TcpStream, mut connection: Connection, tls: Tls) -> (TlsReadHalf, TlsWriteHalf) {
    connection.set_buffer_limit(Some(UNWRITTEN_BYTES_MAX));
    let shared = Arc::new(Shared { socket, connection: Mutex::new(connection) });
    let ciphertext = vec![0; CIPHERTEXT_BYTES].into_boxed_slice();
    (
        TlsReadHalf { shared: Arc::clone(&shared), tls, ciphertext, start: 0, end: 0 },
        TlsWriteHalf { shared, closing: false },
    )
}

impl ByteSource for TlsReadHalf {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut got = 0;
        let mut slices = into.iter_mut();
        let mut slice: &mut [u8] = &mut [];
        loop {
            let mut connection = self.shared.connection();
            loop {
                // Plaintext that is there.
                let at_end = loop {
                    while slice.is_empty() {
                        match slices.next() {
                            Some(next) => slice = next,
                            None => return Poll::Ready(Ok(got)),
                        }
                    }
                    match connection.reader().read(slice) {
                        Ok(0) => break true,
                        Ok(count) => {
                            got += count;
                            slice = &mut slice[count..];
                        }
                        Err(why) if why.kind() == ErrorKind::WouldBlock => break false,
                        Err(_) if got > 0 => return Poll::Ready(Ok(got)),
                        Err(why) => return Poll::Ready(Err(why)),
                    }
                };
                if at_end {
                    return Poll::Ready(Ok(got));
                }
                // Ciphertext that is there.
                if self.start == self.end {
                    break;
                }
                let mut ciphertext = &self.ciphertext[self.start..self.end];
                self.start += connection.read_tls(&mut ciphertext)?;
                if let Err(why) = connection.process_new_packets() {
                    // The peer is told why, if that can be done at once. Not by way of the other half's
                    // readiness: its waker is there.
                    let _ = connection.write_tls(&mut Alert(&self.shared.socket));
                    let why = io::Error::new(ErrorKind::InvalidData, why);
                    return Poll::Ready(Err(match explain(&self.tls, &why) {
                        Some(words) => io::Error::new(ErrorKind::InvalidData, words),
                        None => why,
                    }));
                }
            }
            if got > 0 {
                return Poll::Ready(Ok(got));
            }
            drop(connection);
            let into = &mut [IoSliceMut::new(&mut self.ciphertext)];
            let count = ready!(descriptor::poll_read(&self.shared.socket, context, into))?;
            (self.start, self.end) = (0, count);
            if count == 0 {
                // rustls knows whether the peer had said that nothing follows.
                let mut connection = self.shared.connection();
                connection.read_tls(&mut io::empty())?;
                return Poll::Ready(connection.reader().read(slice));
            }
        }
    }
}

impl ByteSink for TlsWriteHalf {
    fn poll_write(&mut self, context: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut connection = self.shared.connection();
        // What waited goes first, so no more waits than the limit.
        ready!(self.shared.poll_drain(&mut connection, context))?;
        let taken = connection.writer().write_vectored(from)?;
        match self.shared.poll_drain(&mut connection, context) {
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            // Taken is taken: what could not be written now is by the flush.
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_drain(&mut self.shared.connection(), context)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.shared.connection();
        if !self.closing {
            self.closing = true;
            connection.send_close_notify();
        }
        ready!(self.shared.poll_drain(&mut connection, context))?;
        Poll::Ready(descriptor::finish(&self.shared.socket))
    }
}

impl Drop for TlsWriteHalf {
    fn drop(&mut self) {
        // The socket lives as long as the other half. An error leaves nothing to do.
        let _ = descriptor::finish(&self.shared.socket);
    }
}
