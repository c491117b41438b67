//! The data and weights lanes: frames through a ring.
//!
//! Not pure: it rings doorbells. A frame is its header, its payload, and nothing up to the next multiple of
//! 64 bytes; a frame longer than the ring simply takes longer. The consumer begins to copy while the producer
//! still writes. A header is copied out before it is looked at, so that a peer cannot change it afterwards.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::doorbell::{Bell, Doorbell};
use super::end::{End, Life};
use super::ring::{Broken, Consumer, Ending, Producer, Ring, UNIT};
use crate::Frame;
use crate::buffer::{Buffer, Payload, Pool};
use crate::carrier::{HANDSHAKE_BYTES_MAX, LaneEnds, LaneError, LaneReceiver, LaneSender, Outbox};
use crate::wire::{HEADER_BYTES, Header};

/// What both ends of a lane need.
pub(super) struct Ends {
    pub(super) life: Arc<Life>,
    pub(super) doorbell: Doorbell,
    pub(super) peer: Arc<Bell>,
    pub(super) pool: Pool,
}

impl Ends {
    /// A lane over two rings.
    pub(super) fn lane(&self, out: &Arc<Ring>, back: &Arc<Ring>) -> LaneEnds {
        LaneEnds {
            sender: Box::new(RingSender {
                end: End::new(false, out, self),
                producer: Producer::new(Arc::clone(out)),
                current: None,
                is_finished: false,
            }),
            receiver: Box::new(RingReceiver {
                end: End::new(true, back, self),
                consumer: Consumer::new(Arc::clone(back)),
                pool: self.pool.clone(),
                payload_bytes_max: HANDSHAKE_BYTES_MAX,
                current: None,
                is_finished: false,
            }),
        }
    }
}

/// The writing end of a lane.
struct RingSender {
    end: End,
    producer: Producer,
    /// A frame whose header is written, and how much of its payload.
    current: Option<(Frame, usize)>,
    is_finished: bool,
}

impl RingSender {
    fn publish(&mut self) {
        let is_waiting = self.producer.publish();
        self.end.ring_if(is_waiting);
    }

    /// Writes as much as there is room for. Returns whether that was everything.
    fn write(&mut self, outbox: &mut Outbox) -> Result<bool, Broken> {
        loop {
            if let Some((frame, written)) = &mut self.current {
                let left = frame.payload.len() - *written;
                let free =
                    self.producer.free((left as u64).next_multiple_of(UNIT).min(self.producer.piece()))?;
                let bytes = free.min(left as u64).min(self.producer.piece()) as usize;
                if bytes < left && bytes == 0 {
                    return Ok(false);
                }
                self.producer.write(&frame.payload[*written..*written + bytes]);
                *written += bytes;
                if *written == frame.payload.len() {
                    self.producer.pad();
                    self.current = None;
                }
            } else if outbox.is_empty() {
                return Ok(true);
            } else if self.producer.free(UNIT)? < UNIT {
                return Ok(false);
            } else if let Some(frame) = outbox.pop_front() {
                self.producer.write(&frame.header.write());
                self.current = Some((frame, 0));
            }
            if self.producer.is_due() {
                self.publish();
            }
        }
    }

    fn poll_write(&mut self, context: &Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        let mut is_waiting = false;
        loop {
            if self.end.life.is_over() {
                return Poll::Ready(Err(self.end.life.cut()));
            }
            if self.producer.is_consumer_gone() {
                return Poll::Ready(Err(self.end.life.closed()));
            }
            let is_done = self.write(outbox).map_err(|why| self.end.life.broken(&why))?;
            self.publish();
            if is_done {
                return Poll::Ready(Ok(()));
            }
            if is_waiting || !self.end.wait(context)? {
                return Poll::Pending;
            }
            is_waiting = true;
        }
    }
}

impl LaneSender for RingSender {
    fn poll_send(&mut self, context: &mut Context<'_>, outbox: &mut Outbox) -> Poll<Result<(), LaneError>> {
        if self.end.is_failed {
            return Poll::Ready(Err(self.end.life.failed_before()));
        }
        assert!(!self.is_finished || outbox.is_empty(), "nothing is sent on a lane that is finished");
        if self.is_finished {
            return Poll::Ready(Ok(()));
        }
        let polled = self.poll_write(context, outbox);
        self.end.is_failed = matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LaneError>> {
        let polled = self.poll_send(context, &mut Outbox::new());
        if matches!(polled, Poll::Ready(Ok(()))) && !self.is_finished {
            self.is_finished = true;
            let is_waiting = self.producer.end(true);
            self.end.ring_if(is_waiting);
        }
        polled
    }
}

impl Drop for RingSender {
    fn drop(&mut self) {
        if !self.is_finished {
            let is_waiting = self.producer.end(false);
            self.end.ring_if(is_waiting);
        }
    }
}

/// The reading end of a lane.
struct RingReceiver {
    end: End,
    consumer: Consumer,
    pool: Pool,
    payload_bytes_max: u64,
    current: Option<Incoming>,
    is_finished: bool,
}

/// A frame of which the header has come.
struct Incoming {
    header: Header,
    buffer: Option<Buffer>,
    read: usize,
}

impl RingReceiver {
    fn publish(&mut self) {
        let is_waiting = self.consumer.publish();
        self.end.ring_if(is_waiting);
    }

    /// Reads up to the end of a frame, or as far as it goes.
    fn read(&mut self) -> Result<Option<Frame>, LaneError> {
        loop {
            let broken = |why| self.end.life.broken(&why);
            if let Some(incoming) = &mut self.current {
                let buffer = incoming.buffer.as_deref_mut().unwrap_or_default();
                let left = buffer.len() - incoming.read;
                if left > 0 {
                    let piece = self.consumer.piece().min(left as u64);
                    let available = self.consumer.available(piece).map_err(broken)?;
                    let bytes = piece.min(available) as usize;
                    if bytes == 0 {
                        return Ok(None);
                    }
                    self.consumer.read(&mut buffer[incoming.read..incoming.read + bytes]);
                    incoming.read += bytes;
                }
                let is_whole = incoming.read == buffer.len();
                if is_whole {
                    self.consumer.pad();
                }
                if self.consumer.is_due() {
                    self.publish();
                }
                if is_whole && let Some(Incoming { header, buffer, .. }) = self.current.take() {
                    return Ok(Some(Frame::new(header, buffer.map_or_else(Payload::default, Payload::from))));
                }
            } else {
                if self.consumer.available(UNIT).map_err(broken)? < UNIT {
                    return Ok(None);
                }
                let mut bytes = [0; HEADER_BYTES];
                self.consumer.read(&mut bytes);
                let header = Header::read(&bytes, self.payload_bytes_max)?;
                let bytes = header.payload_bytes();
                let buffer = match bytes {
                    0 => None,
                    _ => Some(self.pool.take(bytes as usize).ok_or(LaneError::NoRoom(bytes))?),
                };
                self.current = Some(Incoming { header, buffer, read: 0 });
            }
        }
    }

    /// What it means that there is nothing to read, when `ending` and `is_over` were asked before looking.
    fn end(&self, ending: Ending, is_over: bool) -> Option<Result<(), LaneError>> {
        let missing = self.current.as_ref().map(|incoming| {
            incoming.buffer.as_ref().map_or(0, |buffer| (buffer.len() - incoming.read) as u64)
        });
        match (ending, missing) {
            (Ending::Finished, None) => Some(Ok(())),
            (Ending::Finished, Some(missing)) => Some(Err(LaneError::Truncated { missing })),
            _ if is_over => Some(Err(self.end.life.cut())),
            (Ending::Gone, _) => Some(Err(self.end.life.closed())),
            (Ending::Open, _) => None,
        }
    }

    fn poll_read(&mut self, context: &Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        let mut is_waiting = false;
        loop {
            // Before the look at the ring: what was written before the end is still received.
            let (ending, is_over) = (self.consumer.ending(), self.end.life.is_over());
            if let Some(frame) = self.read()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            self.publish();
            if let Some(end) = self.end(ending, is_over) {
                self.is_finished = end.is_ok();
                return Poll::Ready(end.map(|()| None));
            }
            if is_waiting || !self.end.wait(context)? {
                return Poll::Pending;
            }
            is_waiting = true;
        }
    }
}

impl LaneReceiver for RingReceiver {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        if self.end.is_failed {
            return Poll::Ready(Err(self.end.life.failed_before()));
        }
        if self.is_finished {
            return Poll::Ready(Ok(None));
        }
        let polled = self.poll_read(context);
        self.end.is_failed = matches!(polled, Poll::Ready(Err(_)));
        polled
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.payload_bytes_max = payload_bytes_max;
    }
}

impl Drop for RingReceiver {
    fn drop(&mut self) {
        let is_waiting = self.consumer.leave();
        self.end.ring_if(is_waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::super::memory::Shared;
    use super::super::ring::memory_bytes;
    use super::*;
    use crate::wire::Kind;

    const SIZE: u64 = 4096;

    fn ring() -> Arc<Ring> {
        Ring::new(Shared::create("test", memory_bytes(SIZE)).unwrap().1, SIZE)
    }

    /// Both ends of a lane, each with a doorbell at which naps are so long that a missed wake-up shows.
    fn lane(spin: Duration) -> [(LaneEnds, Doorbell, Arc<Life>); 2] {
        let doorbells = [(); 2].map(|()| Doorbell::with_naps(spin, Duration::from_secs(60)).unwrap());
        let rings = [ring(), ring()];
        [0, 1].map(|end| {
            let life = Life::new(format!("end {}", 1 - end));
            let ends = Ends {
                life: Arc::clone(&life),
                doorbell: doorbells[end].clone(),
                peer: Arc::clone(doorbells[1 - end].bell()),
                pool: Pool::new(1 << 20),
            };
            (ends.lane(&rings[end], &rings[1 - end]), doorbells[end].clone(), life)
        })
    }

    fn frame(about: u64, bytes: usize) -> Frame {
        let payload = Pool::new(1 << 20).copy_of(&vec![about as u8; bytes]).unwrap();
        Frame::new(Header::of_bytes(Kind::Weights, about, bytes as u32), payload)
    }

    async fn exchange(ends: &mut LaneEnds, rounds: u64, begins: bool) {
        let mut outbox = Outbox::new();
        for round in 0..rounds {
            for is_sending in [begins, !begins] {
                if is_sending {
                    // Some need the other end to make room, twice.
                    outbox.push_back(frame(round, if round % 64 == 0 { 9000 } else { round as usize % 200 }));
                    poll_fn(|context| ends.sender.poll_send(context, &mut outbox)).await.unwrap();
                } else {
                    let received = poll_fn(|context| ends.receiver.poll_receive(context)).await;
                    let received = received.unwrap().expect("nobody finishes");
                    assert_eq!(received.header.dispatch, round);
                    assert!(received.payload.iter().all(|byte| *byte == round as u8));
                }
            }
        }
    }

    /// With naps of a minute, a single missed wake-up among these is a failure.
    #[test]
    fn no_wake_up_is_missed() {
        const ROUNDS: u64 = 5_000;
        let began = Instant::now();
        for spin in [Duration::ZERO, Duration::from_micros(3), Duration::MAX] {
            let [one, other] = lane(spin);
            std::thread::scope(|scope| {
                for (begins, (mut ends, doorbell, _)) in [(true, one), (false, other)] {
                    let rounds = if spin == Duration::MAX { ROUNDS / 10 } else { ROUNDS };
                    scope.spawn(move || doorbell.block_on(exchange(&mut ends, rounds, begins)));
                }
            });
        }
        assert!(began.elapsed() < Duration::from_secs(50), "a wake-up was missed");
    }

    /// The same where other executors poll, and the watcher wakes their tasks.
    #[test]
    fn no_wake_up_of_a_task_is_missed() {
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let [(mut one, bell, _), (mut other, _other_bell, _)] = lane(Duration::ZERO);
        runtime.block_on(async {
            let other = tokio::spawn(async move { exchange(&mut other, 5_000, false).await });
            exchange(&mut one, 5_000, true).await;
            other.await.unwrap();
        });
        assert!(bell.naps_and_scans().1 > 0, "the watcher was needed");
        assert!(began.elapsed() < Duration::from_secs(50), "a wake-up was missed");
    }

    /// Whoever waits when the socket ends is woken, and first receives what was written before.
    #[test]
    fn the_end_of_the_socket_wakes_and_cuts_after_the_last_frame() {
        for is_task in [false, true] {
            let [(mut one, ..), (mut other, doorbell, life)] = lane(Duration::ZERO);
            let mut context = Context::from_waker(std::task::Waker::noop());
            let mut outbox = Outbox::from([frame(7, 100)]);
            assert!(one.sender.poll_send(&mut context, &mut outbox).is_ready());
            let receiver = &mut other.receiver;
            let mut is_first = true;
            let waits = poll_fn(|context| {
                let polled = receiver.poll_receive(context);
                if is_first && matches!(polled, Poll::Ready(Ok(Some(_)))) {
                    is_first = false;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                polled
            });
            std::thread::scope(|scope| {
                let (ringer, naps) = (doorbell.clone(), doorbell.clone());
                scope.spawn(move || {
                    // It waits, or is about to: both must do.
                    while !is_task && naps.naps_and_scans().0 == 0 {
                        std::thread::yield_now();
                    }
                    life.end();
                    ringer.bell().ring();
                });
                let received = if is_task {
                    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(waits)
                } else {
                    doorbell.block_on(waits)
                };
                assert!(matches!(received, Err(LaneError::Cut(_))), "{received:?}");
            });
            assert!(!is_first, "the frame was received");
        }
    }

    /// Indices that an honest peer never writes end the lane, at either end.
    #[test]
    fn indices_that_cannot_be_are_refused() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        for tail in [1, 63, 65, SIZE + 64, u64::MAX, u64::MAX - 63, 1 << 63] {
            let ends = Ends {
                life: Life::new("the peer".into()),
                doorbell: Doorbell::new(Duration::ZERO).unwrap(),
                peer: Arc::clone(Doorbell::new(Duration::ZERO).unwrap().bell()),
                pool: Pool::new(1 << 20),
            };
            let (out, back) = (ring(), ring());
            let mut lane = ends.lane(&out, &back);
            back.raw(0).store(tail, Ordering::SeqCst);
            let polled = lane.receiver.poll_receive(&mut context);
            assert!(matches!(polled, Poll::Ready(Err(LaneError::Broken(_)))), "tail {tail}: {polled:?}");
            assert!(lane.receiver.poll_receive(&mut context).is_ready(), "and it stays so");

            out.raw(128).store(tail, Ordering::SeqCst);
            let mut outbox = Outbox::from([frame(0, 9000)]);
            let polled = lane.sender.poll_send(&mut context, &mut outbox);
            assert!(matches!(polled, Poll::Ready(Err(LaneError::Broken(_)))), "head {tail}: {polled:?}");
        }
    }

    thread_local! {
        static MEANWHILE: std::cell::RefCell<Option<Box<dyn FnOnce()>>> = const { std::cell::RefCell::new(None) };
    }

    /// A waker that does something when it is cloned, which is between the first look and the second.
    fn meddler() -> std::task::Waker {
        use std::task::{RawWaker, RawWakerVTable, Waker};
        static TABLE: RawWakerVTable = RawWakerVTable::new(
            |_| {
                if let Some(meanwhile) = MEANWHILE.take() {
                    meanwhile();
                }
                RawWaker::new(std::ptr::null(), &TABLE)
            },
            |_| {},
            |_| {},
            |_| {},
        );
        // SAFETY: there is no data, so nothing can be done wrongly with it.
        unsafe { Waker::new(std::ptr::null(), &TABLE) }
    }

    /// What comes after the first look and before the word for waiting is set rings nobody: the second look
    /// must find it.
    #[test]
    fn news_between_two_looks_is_seen() {
        let [(one, ..), (mut other, ..)] = lane(Duration::ZERO);
        let (waker, mut sender, mut receiver) = (meddler(), one.sender, one.receiver);
        MEANWHILE.set(Some(Box::new(move || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(sender.poll_send(&mut context, &mut Outbox::from([frame(7, 100)])).is_ready());
            std::mem::forget(sender);
        })));
        let polled = other.receiver.poll_receive(&mut Context::from_waker(&waker));
        assert!(matches!(polled, Poll::Ready(Ok(Some(_)))), "{polled:?}");

        MEANWHILE.set(Some(Box::new(move || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            while let Poll::Ready(frame) = receiver.poll_receive(&mut context) {
                assert!(frame.unwrap().is_some());
            }
            std::mem::forget(receiver);
        })));
        let mut outbox: Outbox = (0..5).map(|about| frame(about, 1000)).collect();
        let polled = other.sender.poll_send(&mut Context::from_waker(&waker), &mut outbox);
        assert!(matches!(polled, Poll::Ready(Ok(()))), "{polled:?}, {} left", outbox.len());
    }
}
