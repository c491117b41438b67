//! A connection whose peer has to read.
//!
//! A shell around a socket. A client that opens a stream and then reads nothing would otherwise keep its request's
//! memory for as long as it likes: what cannot be written within a bound ends the connection.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection.
pub(super) struct Paced<S> {
    stream: S,
    stall_max: Duration,
    /// Runs while a write waits.
    stall: Option<Pin<Box<Sleep>>>,
    has_read: Arc<AtomicBool>,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, stall_max: Duration) -> Self {
        Self { stream, stall_max, stall: None, has_read: Arc::default() }
    }

    /// Whether the peer has sent anything yet.
    pub(super) fn has_read(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_read)
    }

    /// Passes a write's result on, unless it has waited too long.
    fn pace<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stall = None;
            return result;
        }
        let until = self.stall_max;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(until)));
        std::task::ready!(stall.as_mut().poll(cx));
        stall.as_mut().reset(Instant::now() + until);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.has_read.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.pace(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.pace(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.pace(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn pair(stall_max: Duration) -> (Paced<TcpStream>, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Paced::new(listener.accept().await.unwrap().0, stall_max), client)
    }

    /// Otherwise an answer that nobody reads would be kept for as long as the client likes.
    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (mut server, client) = pair(Duration::from_millis(50)).await;
        let error = loop {
            if let Err(error) = server.write_all(&[0; 1 << 20]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    /// Slow is not stalled: each write that goes on begins the wait anew.
    #[tokio::test]
    async fn a_peer_that_reads_slowly_is_served() {
        let (mut server, mut client) = pair(Duration::from_secs(2)).await;
        let reader = tokio::spawn(async move {
            let (mut part, mut count) = (vec![0; 4 << 20], 0);
            while let Ok(read @ 1..) = client.read(&mut part).await {
                count += read;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            count
        });
        assert!(!server.has_read().load(Ordering::Relaxed));
        for _ in 0..32 {
            server.write_all(&[0; 1 << 20]).await.unwrap();
        }
        drop(server);
        assert_eq!(reader.await.unwrap(), 32 << 20);
    }
}
