//! A wire that is longer than the one there is: every frame is under way for a fixed time, each way.
//!
//! Of the data lane alone. Control and weights are as fast as they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use transport::Frame;
use transport::link::Ended;
use transport::peer::Inlet;

use super::later::Later;

/// A wire.
#[derive(Clone)]
pub(crate) struct Wire {
    delay: Duration,
    later: Arc<Later>,
}

impl Wire {
    pub(crate) fn new(delay: Duration, later: &Arc<Later>) -> Self {
        Self { delay, later: Arc::clone(later) }
    }

    /// Does `what` at the far end.
    pub(crate) fn across(&self, what: impl FnOnce() + Send + 'static) {
        self.later.at(Instant::now() + self.delay, what);
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({:?})", self.delay)
    }
}

/// What comes over a data lane.
pub(crate) enum Arrivals {
    /// As it comes.
    AtOnce(Inlet),
    /// As late as a wire makes it.
    Late(LateInlet),
}

impl Arrivals {
    pub(crate) fn new(inlet: Inlet, wire: Option<&Wire>) -> Self {
        match wire {
            None => Self::AtOnce(inlet),
            Some(wire) => Self::Late(LateInlet::new(inlet, wire.clone())),
        }
    }

    /// The next frame; `None` after the last.
    pub(crate) async fn receive(&mut self) -> Result<Option<Frame>, Ended> {
        match self {
            Self::AtOnce(inlet) => inlet.receive().await,
            Self::Late(late) => late.receive().await,
        }
    }
}

/// The end of an emulated wire.
pub(crate) struct LateInlet {
    inlet: Inlet,
    wire: Wire,
    /// Frames that the wire gives out. Credits bound how many can be on it.
    far_end: mpsc::UnboundedSender<Frame>,
    arrived: mpsc::UnboundedReceiver<Frame>,
    under_way: usize,
    is_over: bool,
}

impl LateInlet {
    fn new(inlet: Inlet, wire: Wire) -> Self {
        let (far_end, arrived) = mpsc::unbounded_channel();
        Self { inlet, wire, far_end, arrived, under_way: 0, is_over: false }
    }

    async fn receive(&mut self) -> Result<Option<Frame>, Ended> {
        loop {
            tokio::select! {
                biased;
                Some(frame) = self.arrived.recv(), if self.under_way > 0 => {
                    self.under_way -= 1;
                    return Ok(Some(frame));
                }
                came = self.inlet.receive(), if !self.is_over => match came? {
                    Some(frame) => {
                        self.under_way += 1;
                        let far_end = self.far_end.clone();
                        // Nobody is there any more: the frame's room goes back with it.
                        self.wire.across(move || drop(far_end.send(frame)));
                    }
                    None => self.is_over = true,
                },
                else => return Ok(None),
            }
        }
    }
}
