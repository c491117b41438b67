//! A frame: a header, its payload, and the credits that it holds while it lives.
//!
//! Pure. Whoever drops a received frame gives its room back to the sender; so a frame is kept as long as
//! its rows are needed where they lie, and no longer.
//!
//! The room is the frame's and not its payload's. A payload may be shared by several frames, of several links in one
//! process even, and each of them has its own room at its own receiver; a count in the memory would mix them up. So
//! whoever needs rows in several places holds the frame there, as an `Arc<Frame>`: one allocation where a frame is
//! shared, none where it is not. Whoever clones the payload and drops the frame has memory that the sender counts as
//! free, and may be sent more than its pool holds: then the link is ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::Payload;
use crate::wire::{Header, charge};

/// What lanes carry. A received one holds its room at this end until it is dropped; to hold it in several places, put
/// it into an `Arc`.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub header: Header,
    /// As long as the header says. A clone of it holds no room: see above.
    pub payload: Payload,
    credit: Option<Credit>,
}

impl Frame {
    /// A frame to be sent.
    pub fn new(header: Header, payload: impl Into<Payload>) -> Self {
        let payload = payload.into();
        assert_eq!(header.payload_bytes(), payload.len() as u64, "a header says how long its payload is");
        Self { header, payload, credit: None }
    }

    /// What it costs in credits.
    pub fn charge(&self) -> u64 {
        charge(self.payload.len() as u64)
    }

    /// The same frame, holding credits of the link that received it until it is dropped.
    pub(crate) fn holding(mut self, meter: &Arc<Meter>) -> Self {
        self.credit = Some(meter.hold(self.charge()));
        self
    }

    /// Without credits, so that it can be sent on.
    pub(crate) fn without_credit(mut self) -> Self {
        self.credit = None;
        self
    }
}

/// Room of a receiver that a frame or a message occupies, until it is dropped.
#[derive(Debug)]
pub(crate) struct Credit {
    meter: Arc<Meter>,
    charge: u64,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.meter.release(self.charge);
    }
}

/// Counts what has been released on a lane, and says so once enough has come together to tell the peer.
#[derive(Debug)]
pub(crate) struct Meter {
    released: AtomicU64,
    told: AtomicU64,
    step: u64,
    notify: Arc<tokio::sync::Notify>,
}

impl Meter {
    /// `notify` is woken whenever `step` more bytes have been released than were told.
    pub(crate) fn new(step: u64, notify: Arc<tokio::sync::Notify>) -> Arc<Self> {
        Arc::new(Self { released: AtomicU64::new(0), told: AtomicU64::new(0), step, notify })
    }

    /// So much room is occupied until what is returned is dropped.
    pub(crate) fn hold(self: &Arc<Self>, charge: u64) -> Credit {
        Credit { meter: Arc::clone(self), charge }
    }

    fn release(&self, charge: u64) {
        let released = self.released.fetch_add(charge, Ordering::SeqCst) + charge;
        if released.saturating_sub(self.told.load(Ordering::SeqCst)) >= self.step {
            self.notify.notify_one();
        }
    }

    /// What has been released so far, if that is a step more than was taken the last time. To be asked
    /// until it says no: a release that comes in between may have seen the old figure.
    pub(crate) fn take(&self) -> Option<u64> {
        let released = self.released.load(Ordering::SeqCst);
        if released - self.told.load(Ordering::SeqCst) < self.step {
            return None;
        }
        self.told.store(released, Ordering::SeqCst);
        Some(released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;
    use crate::wire::Kind;

    /// Held in several places and threads, a frame gives its room back once, with the last of them.
    #[test]
    fn a_shared_frame_holds_its_room_until_the_last_lets_go() {
        let meter = Meter::new(1, Arc::default());
        let payload = Pool::new(1 << 20).take(1000).unwrap();
        let frame = Frame::new(Header::of_bytes(Kind::Dispatch, 1, 1000), payload);
        let shared = Arc::new(frame.holding(&meter));
        let elsewhere = Arc::clone(&shared);
        std::thread::spawn(move || drop(elsewhere)).join().unwrap();
        assert_eq!(meter.take(), None);
        drop(shared);
        assert_eq!((meter.take(), meter.take()), (Some(64 + 1024), None));
    }
}
