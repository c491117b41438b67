//! Messages over a stream of bytes, whatever the stream is: `write_all` and `read_exact`, one buffer
//! each way.

use std::io;
use std::time::{Duration, Instant};

use rustix::thread::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;

use super::{ORDER_BYTES, Order, WORD, check, message};
use crate::Failure;
use crate::bench::transport::contest::Contestant;
use crate::bench::transport::process::Process;

/// Obeys the orders that come over a stream, until it ends.
pub(super) async fn obey(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut order = [0; ORDER_BYTES];
    loop {
        match stream.read_exact(&mut order).await {
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let order = Order::read(order);
        buffer.resize(order.bytes, 0);
        for _ in 0..order.count {
            stream.read_exact(&mut buffer).await?;
            if order.is_echo {
                stream.write_all(&buffer).await?;
                stream.flush().await?;
            }
        }
        if !order.is_echo {
            stream.write_all(&WORD).await?;
            stream.flush().await?;
        }
    }
}

/// The end that gives the orders and holds the watch.
pub(super) struct Streaming<S> {
    pub(super) name: &'static str,
    pub(super) stream: S,
    pub(super) runtime: Runtime,
    /// The other end.
    pub(super) process: Process,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Contestant for Streaming<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn peer_thread(&self) -> Option<Pid> {
        Some(self.process.thread())
    }

    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        let stream = &mut self.stream;
        self.runtime.block_on(async {
            let sent = message(bytes);
            let mut returned = vec![0; bytes];
            let mut trips = Vec::with_capacity(count);
            stream.write_all(&Order { is_echo: true, bytes, count }.write()).await?;
            for _ in 0..count {
                let began = Instant::now();
                stream.write_all(&sent).await?;
                stream.flush().await?;
                stream.read_exact(&mut returned).await?;
                trips.push(began.elapsed());
            }
            check(&sent, &returned)?;
            Ok(trips)
        })
    }

    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        let stream = &mut self.stream;
        self.runtime.block_on(async {
            let sent = message(bytes);
            let mut word = [0; WORD.len()];
            let began = Instant::now();
            stream.write_all(&Order { is_echo: false, bytes, count }.write()).await?;
            for _ in 0..count {
                stream.write_all(&sent).await?;
            }
            stream.flush().await?;
            stream.read_exact(&mut word).await?;
            check(&WORD, &word)?;
            Ok(began.elapsed())
        })
    }
}

/// A runtime of one thread, as both ends have it.
pub(in crate::bench::transport) fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both kinds of order, one after the other, over a pipe in memory that is smaller than a message.
    #[test]
    fn orders_are_obeyed() {
        let runtime = runtime().expect("a runtime");
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(100);
            let mut ours = ours;
            let obeying = tokio::spawn(obey(theirs));
            let sent = message(1_000);
            let mut returned = vec![0; 1_000];
            ours.write_all(&Order { is_echo: true, bytes: 500, count: 2 }.write()).await.expect("written");
            for piece in 0..2 {
                ours.write_all(&sent[piece * 500..][..500]).await.expect("written");
                ours.read_exact(&mut returned[piece * 500..][..500]).await.expect("echoed");
            }
            check(&sent, &returned).expect("the same");
            ours.write_all(&Order { is_echo: false, bytes: 500, count: 2 }.write()).await.expect("written");
            ours.write_all(&sent).await.expect("written");
            let mut word = [0; WORD.len()];
            ours.read_exact(&mut word).await.expect("a word");
            assert_eq!(word, WORD);
            drop(ours);
            obeying.await.expect("no panic").expect("an orderly end");
        });
    }
}
