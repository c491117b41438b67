//! One end of a ring: whether its peer lives, how it waits, and how it wakes the other.
//!
//! Not pure: it rings doorbells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use super::doorbell::{Bell, Doorbell, News, Poller, Post};
use super::lane::Ends;
use super::ring::{Broken, Ring};
use crate::carrier::LaneError;

/// Whether the socket of a connection still stands.
#[derive(Debug)]
pub(super) struct Life {
    /// Who the peer is, for messages.
    pub(super) peer: String,
    is_over: AtomicBool,
}

impl Life {
    pub(super) fn new(peer: String) -> Arc<Self> {
        Arc::new(Self { peer, is_over: AtomicBool::new(false) })
    }

    /// The peer is gone. The doorbell must be rung afterwards.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    pub(super) fn cut(&self) -> LaneError {
        LaneError::Cut(self.gone())
    }

    /// The same in words.
    pub(super) fn gone(&self) -> String {
        format!("{} is gone", self.peer)
    }

    pub(super) fn closed(&self) -> LaneError {
        LaneError::Cut(format!("{} closed the lane without finishing it", self.peer))
    }

    pub(super) fn broken(&self, why: &Broken) -> LaneError {
        LaneError::Broken(format!("{}: {why}", self.peer))
    }

    pub(super) fn failed_before(&self) -> LaneError {
        LaneError::Cut(format!("the lane with {} failed before", self.peer))
    }
}

/// One end of a ring: how it waits, and how it wakes the other.
#[derive(Debug)]
pub(super) struct End {
    is_consumer: bool,
    ring: Arc<Ring>,
    pub(super) life: Arc<Life>,
    doorbell: Doorbell,
    post: Arc<Post>,
    peer: Arc<Bell>,
    /// Nothing is done any more after an error.
    pub(super) is_failed: bool,
}

#[derive(Debug)]
struct RingNews {
    is_consumer: bool,
    ring: Arc<Ring>,
    life: Arc<Life>,
}

impl News for RingNews {
    fn is_there(&self) -> bool {
        self.ring.waits(self.is_consumer).load(Ordering::Acquire) == 0 || self.life.is_over()
    }
}

impl End {
    /// The end that reads, or the one that writes.
    pub(super) fn new(is_consumer: bool, ring: &Arc<Ring>, ends: &Ends) -> Self {
        let Ends { life, doorbell, peer, .. } = ends;
        let news = RingNews { is_consumer, ring: Arc::clone(ring), life: Arc::clone(life) };
        Self {
            is_consumer,
            ring: Arc::clone(ring),
            life: Arc::clone(life),
            doorbell: doorbell.clone(),
            post: doorbell.post(Box::new(news)),
            peer: Arc::clone(peer),
            is_failed: false,
        }
    }

    /// Sees to it that `context` is woken. Returns whether the ring must be looked at once more.
    pub(super) fn wait(&self, context: &Context<'_>) -> Result<bool, LaneError> {
        match self.doorbell.poller(context) {
            Poller::Spins => return Ok(false),
            Poller::Sleeps => {}
            Poller::Elsewhere => self.doorbell.watch(&self.post, context).map_err(|why| {
                LaneError::Cut(format!("cannot wait for {}: no thread: {why}", self.life.peer))
            })?,
        }
        self.ring.arm(self.is_consumer);
        Ok(true)
    }

    pub(super) fn ring_if(&self, is_waiting: bool) {
        if is_waiting {
            self.peer.ring();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.doorbell.give_up(&self.post);
    }
}
