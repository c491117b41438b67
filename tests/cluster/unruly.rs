//! Carriers whose returns come late, in another order, or not before a test lets them.
//!
//! Around the door of the coordinator, so that nodes and links under test are what they are anywhere.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use transport::Frame;
use transport::carrier::{
    Acceptor, Arrival, ConnectError, LaneEnds, LaneError, LaneReceiver, Later, OtherLanes,
};
use transport::wire::Kind;
use transport::wire::groups::ReturnGroups;

use crate::oracle::Random;

/// Longest that a return is held back: so often its lane is looked at.
const LOOKS_MAX: usize = 40;

/// What becomes of returns.
#[derive(Clone)]
pub(crate) enum Manner {
    /// They come as they are sent.
    Orderly,
    /// They come late and in any order, as a seed says.
    Shuffled(u64),
    /// Those of one expert come when a gate is opened.
    Held(Arc<Gate>),
}

/// Holds back what one expert of one layer returns.
pub(crate) struct Gate {
    layer: u32,
    expert: u32,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    is_open: bool,
    held: usize,
    waiting: Vec<Waker>,
}

impl Gate {
    /// Closed.
    pub(crate) fn new(layer: u32, expert: u32) -> Arc<Self> {
        Arc::new(Self { layer, expert, state: Mutex::default() })
    }

    pub(crate) fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_open = true;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Returns that were held back so far.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    fn is_meant(&self, frame: &Frame) -> bool {
        frame.header.kind == Kind::Return
            && frame.header.layer == self.layer
            && ReturnGroups::read(&frame.header, &frame.payload)
                .unwrap()
                .iter()
                .any(|(group, ..)| group.expert == self.expert)
    }
}

/// A door whose lanes have a manner.
pub(crate) struct Unruly {
    pub(crate) acceptor: Box<dyn Acceptor>,
    pub(crate) manner: Manner,
    pub(crate) lanes: u64,
}

impl Unruly {
    fn around(&mut self, ends: LaneEnds) -> LaneEnds {
        self.lanes += 1;
        let receiver: Box<dyn LaneReceiver> = match &self.manner {
            Manner::Orderly => ends.receiver,
            Manner::Shuffled(seed) => Box::new(Shuffled {
                inner: ends.receiver,
                random: Random::new(seed + 1000 * self.lanes),
                kept: Vec::new(),
                is_over: false,
            }),
            Manner::Held(gate) => {
                Box::new(Held { inner: ends.receiver, gate: Arc::clone(gate), kept: Vec::new() })
            }
        };
        LaneEnds { receiver, ..ends }
    }
}

impl Acceptor for Unruly {
    fn address(&self) -> String {
        self.acceptor.address()
    }

    fn accept(&mut self) -> Later<'_, Result<Arrival, ConnectError>> {
        Box::pin(async move {
            let Arrival { mut connection, lane_only } = self.acceptor.accept().await?;
            connection.control = self.around(connection.control);
            connection.lanes = match connection.lanes {
                OtherLanes::Ready { data, weights } => {
                    OtherLanes::Ready { data: self.around(data), weights: self.around(weights) }
                }
                others => others,
            };
            Ok(Arrival { connection, lane_only })
        })
    }
}

/// Late and in any order.
struct Shuffled {
    inner: Box<dyn LaneReceiver>,
    random: Random,
    /// With the looks that each has yet to wait for.
    kept: Vec<(usize, Frame)>,
    is_over: bool,
}

impl LaneReceiver for Shuffled {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        while !self.is_over {
            match self.inner.poll_receive(context) {
                Poll::Ready(Ok(Some(frame))) if frame.header.kind == Kind::Return => {
                    let looks = self.random.below(LOOKS_MAX);
                    self.kept.push((looks, frame));
                }
                Poll::Ready(Ok(None)) => self.is_over = true,
                Poll::Pending => break,
                other => return other,
            }
        }
        if self.kept.is_empty() {
            return if self.is_over { Poll::Ready(Ok(None)) } else { Poll::Pending };
        }
        self.kept.iter_mut().for_each(|(looks, _)| *looks = looks.saturating_sub(1));
        let ready: Vec<usize> = (0..self.kept.len()).filter(|at| self.kept[*at].0 == 0).collect();
        if ready.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let at = ready[self.random.below(ready.len())];
        Poll::Ready(Ok(Some(self.kept.swap_remove(at).1)))
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.inner.raise(payload_bytes_max);
    }
}

/// As they come, but for those that wait for the gate.
struct Held {
    inner: Box<dyn LaneReceiver>,
    gate: Arc<Gate>,
    kept: Vec<Frame>,
}

impl LaneReceiver for Held {
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, LaneError>> {
        loop {
            let is_open = self.gate.state.lock().unwrap().is_open;
            if let Some(frame) = self.kept.pop_if(|_| is_open) {
                return Poll::Ready(Ok(Some(frame)));
            }
            let polled = self.inner.poll_receive(context);
            let mut state = self.gate.state.lock().unwrap();
            match polled {
                Poll::Ready(Ok(Some(frame))) if !state.is_open && self.gate.is_meant(&frame) => {
                    state.held += 1;
                    self.kept.push(frame);
                }
                Poll::Pending if state.is_open && !self.kept.is_empty() => {}
                Poll::Pending => {
                    state.waiting.push(context.waker().clone());
                    return Poll::Pending;
                }
                other => return other,
            }
        }
    }

    fn raise(&mut self, payload_bytes_max: u64) {
        self.inner.raise(payload_bytes_max);
    }
}
