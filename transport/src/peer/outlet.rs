//! The sending end of a lane as many threads use it.
//!
//! Whoever sends also writes: a frame goes to the carrier on the thread that sends it, with no task
//! switch. Where another thread is writing already, the frame is left in a queue which that thread looks
//! at once more before it leaves; where the carrier has no room, the lane's own task goes on when there
//! is. So nobody waits for a system call of somebody else, and frames that pile up go out together.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::Frame;
use crate::carrier::{LaneError, LaneSender, Outbox};

use super::lock;

/// Shared by all that send on a lane.
pub(super) struct Outlet {
    queue: Mutex<Outbox>,
    /// Frames in the queue.
    queued: AtomicUsize,
    writer: Mutex<Writer>,
    /// Those who wait for credits stand in line here.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) waiting: AtomicUsize,
    pub(super) credit: Notify,
}

/// The writer, if this thread has it.
pub(super) struct Writing<'a>(Option<MutexGuard<'a, Writer>>);

struct Writer {
    sender: Option<Box<dyn LaneSender>>,
    outbox: Outbox,
    /// Of the lane's own task, which goes on when the carrier has room again.
    waker: Waker,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The carrier takes frames.
    Free,
    /// The lane's task goes on; others leave their frames in the queue.
    Blocked,
    /// What is there goes out, then the lane ends.
    Finishing,
    /// Nothing goes out any more.
    Over,
}

impl Outlet {
    pub(super) fn new(sender: Box<dyn LaneSender>) -> Self {
        Self {
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            writer: Mutex::new(Writer {
                sender: Some(sender),
                outbox: Outbox::new(),
                waker: Waker::noop().clone(),
                // Until the lane's task has been here once, nobody would be woken.
                state: State::Blocked,
            }),
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            credit: Notify::new(),
        }
    }

    /// Takes a frame: into the hands of this thread where it can write at once, else into the queue. To be
    /// called under the lock of the link, so that frames stand in the order in which they were admitted;
    /// [`Self::flush`] is to follow outside of it.
    pub(super) fn put(&self, frame: Frame) -> Writing<'_> {
        // Whoever queued a frame had the lock of the link before us, so this figure is not behind.
        if let Ok(mut writer) = self.writer.try_lock()
            && writer.state == State::Free
            && self.queued.load(Ordering::Relaxed) == 0
        {
            writer.outbox.push_back(frame);
            return Writing(Some(writer));
        }
        let mut queue = lock(&self.queue);
        queue.push_back(frame);
        self.queued.store(queue.len(), Ordering::Relaxed);
        Writing(None)
    }

    /// Writes what was put, or leaves it to whoever is at it, or to the lane's task where the carrier has no
    /// room. An error ends the link.
    pub(super) fn flush(&self, writing: Writing<'_>) -> Result<(), LaneError> {
        if let Writing(Some(mut writer)) = writing {
            writer.write()?;
        }
        // Whoever finds the writer taken leaves its frame and goes; whoever lets the writer go looks for such a
        // frame afterwards. Of the two fences one comes first, so one of the two sees the other.
        fence(Ordering::SeqCst);
        while self.queued.load(Ordering::Relaxed) > 0 {
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // That thread looks at the queue after it has let go.
                Err(TryLockError::WouldBlock) => return Ok(()),
            };
            if writer.state != State::Free {
                return Ok(());
            }
            self.take_queued(&mut writer);
            writer.write()?;
            drop(writer);
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    fn take_queued(&self, writer: &mut Writer) {
        writer.outbox.append(&mut lock(&self.queue));
        self.queued.store(0, Ordering::Relaxed);
    }

    /// Sends frames when the carrier has room again, and ends the lane once it is asked to; the lane's own task
    /// runs it. True when the lane has ended in order, false when the link was cut. `has_room` is called
    /// whenever the queue was taken.
    pub(super) async fn run(&self, has_room: impl Fn()) -> Result<bool, LaneError> {
        poll_fn(|context| self.poll_run(context, &has_room)).await
    }

    /// Frames that the carrier has not taken yet.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    fn poll_run(&self, context: &mut Context<'_>, has_room: &impl Fn()) -> Poll<Result<bool, LaneError>> {
        loop {
            let mut writer = lock(&self.writer);
            if writer.state == State::Over {
                // Whatever is queued has nowhere to go.
                self.drop_queued();
                return Poll::Ready(Ok(false));
            }
            writer.waker.clone_from(context.waker());
            if writer.state == State::Blocked {
                writer.state = State::Free;
            }
            self.take_queued(&mut writer);
            let finished = writer.write_or_finish()?;
            let blocked = writer.state == State::Blocked;
            drop(writer);
            has_room();
            if finished {
                return Poll::Ready(Ok(true));
            }
            fence(Ordering::SeqCst);
            if blocked || self.queued.load(Ordering::Relaxed) == 0 {
                return Poll::Pending;
            }
        }
    }

    /// Ends the lane in order once everything sent so far is out.
    pub(super) fn finish(&self) {
        let mut writer = lock(&self.writer);
        if writer.state != State::Over {
            writer.state = State::Finishing;
        }
        writer.waker.wake_by_ref();
    }

    /// Ends it now: the connection is dropped with what it still holds. What was queued last, the reason of the
    /// end, goes out if the carrier takes it at once.
    pub(super) fn cut(&self) {
        let dropped = {
            let mut writer = lock(&self.writer);
            self.take_queued(&mut writer);
            if !writer.outbox.is_empty() {
                // It is over either way.
                let _ = writer.write();
            }
            writer.state = State::Over;
            writer.waker.wake_by_ref();
            (
                writer.sender.take(),
                std::mem::take(&mut writer.outbox),
                std::mem::take(&mut *lock(&self.queue)),
            )
        };
        drop(dropped);
        self.credit.notify_waiters();
        self.credit.notify_one();
    }

    fn drop_queued(&self) {
        let mut queue = lock(&self.queue);
        self.queued.store(0, Ordering::Relaxed);
        let dropped = std::mem::take(&mut *queue);
        drop(queue);
        drop(dropped);
    }

    /// Whether somebody stands in line for credits.
    pub(super) fn has_line(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Writer {
    /// Hands the outbox to the carrier.
    fn write(&mut self) -> Result<(), LaneError> {
        let Some(sender) = &mut self.sender else { return Ok(()) };
        match sender.poll_send(&mut Context::from_waker(&self.waker), &mut self.outbox) {
            Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(error)) => {
                self.state = State::Over;
                self.outbox.clear();
                self.sender = None;
                Err(error)
            }
            Poll::Pending => {
                if self.state == State::Free {
                    self.state = State::Blocked;
                }
                Ok(())
            }
        }
    }

    /// The same for the lane's task; true once the lane has been ended in order.
    fn write_or_finish(&mut self) -> Result<bool, LaneError> {
        let finishing = self.state == State::Finishing;
        let Some(sender) = &mut self.sender else { return Ok(true) };
        let mut context = Context::from_waker(&self.waker);
        let sent = sender.poll_send(&mut context, &mut self.outbox);
        let result = match sent {
            Poll::Ready(Ok(())) if finishing => sender.poll_finish(&mut context),
            other => other,
        };
        match result {
            Poll::Ready(Ok(())) => {
                if finishing {
                    self.state = State::Over;
                }
                Ok(finishing)
            }
            Poll::Ready(Err(error)) => {
                self.state = State::Over;
                self.outbox.clear();
                self.sender = None;
                Err(error)
            }
            Poll::Pending => {
                if !finishing {
                    self.state = State::Blocked;
                }
                Ok(false)
            }
        }
    }
}
