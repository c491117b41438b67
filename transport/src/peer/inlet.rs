//! The receiving end of a lane, polled by whoever consumes its frames.
//!
//! The consumer's own task or thread reads from the carrier: there is no queue and no other task between.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::lock;
use super::shared::Shared;
use crate::Frame;
use crate::carrier::LaneReceiver;
use crate::frame::Meter;
use crate::link::Ended;
use crate::wire::control::CloseReason;
use crate::wire::groups::dispatches;
use crate::wire::{Kind, Lane};

/// A lane that always has a frame would keep its thread from the tasks that grant credits and beat.
const IN_A_ROW_MAX: u32 = 64;

/// Frames of one lane as they come. It must be polled as long as the link lives, even if nothing is
/// expected: a link is drained only when both ends have seen the end of every lane. Where it is dropped, the
/// link goes on, and whatever still comes on the lane is received and dropped as well.
pub struct Inlet {
    lane: Lane,
    /// Frames since the last wait.
    in_a_row: u32,
    /// The peer has ended the lane in order.
    is_finished: bool,
    receiver: Option<Box<dyn LaneReceiver>>,
    meter: Arc<Meter>,
    shared: Arc<Shared>,
}

impl Inlet {
    pub(super) fn new(
        lane: Lane,
        receiver: Box<dyn LaneReceiver>,
        meter: Arc<Meter>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { lane, in_a_row: 0, is_finished: false, receiver: Some(receiver), meter, shared }
    }

    /// The next frame. `None`: the peer has ended the link in order, and everything it sent has come.
    /// Its room belongs to the peer again once the frame is dropped.
    pub async fn receive(&mut self) -> Result<Option<Frame>, Ended> {
        if self.in_a_row == IN_A_ROW_MAX {
            self.in_a_row = 0;
            tokio::task::yield_now().await;
        }
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// The same, to be polled.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, Ended>> {
        loop {
            let Some(receiver) = &mut self.receiver else {
                return self.poll_end(context);
            };
            match receiver.poll_receive(context) {
                Poll::Ready(Ok(Some(frame))) => {
                    self.in_a_row += 1;
                    if let Some(frame) = self.taken(frame) {
                        return Poll::Ready(Ok(Some(frame)));
                    }
                }
                Poll::Ready(Ok(None)) => {
                    self.receiver = None;
                    self.is_finished =
                        self.shared.with_link(|link, now| link.handle_finished(self.lane, now));
                }
                Poll::Ready(Err(error)) => {
                    self.receiver = None;
                    self.shared.lane_failed(self.lane, &error);
                }
                Poll::Pending => {
                    self.in_a_row = 0;
                    // Only now does it matter whether the link ended beside this lane.
                    return match self.shared.ended_or_wait(self.lane, context.waker()) {
                        Some(ended) if !ended.in_order() => {
                            self.receiver = None;
                            Poll::Ready(Err(ended))
                        }
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }

    /// What the link says to a frame: the frame, or nothing if it is not for us any more.
    fn taken(&mut self, frame: Frame) -> Option<Frame> {
        let charge = frame.charge();
        let mut link = lock(&self.shared.link);
        let accepted = link.handle_received(self.lane, charge).is_ok()
            && match (self.lane, frame.header.kind) {
                (Lane::Data, Kind::Dispatch) => dispatches(&frame.header, &frame.payload)
                    .all(|dispatch| link.handle_dispatched(dispatch).is_ok()),
                // Twice, or for nothing: no dispatch of it is in flight, so nobody waits for it.
                (Lane::Data, Kind::Return) => dispatches(&frame.header, &frame.payload)
                    .fold(false, |open, dispatch| link.handle_return(dispatch) | open),
                (Lane::Weights, Kind::Weights) => true,
                (lane, kind) => {
                    let what = format!("a {kind:?} frame on the {lane} lane");
                    link.handle_close(CloseReason::Broken(what), Instant::now());
                    false
                }
            };
        let news = link.has_output();
        drop(link);
        if news {
            self.shared.driver.notify_one();
        }
        let frame = frame.holding(&self.meter);
        accepted.then_some(frame)
    }

    /// Nothing comes any more: because the peer has finished, or because of what the link is about to say.
    fn poll_end(&self, context: &mut Context<'_>) -> Poll<Result<Option<Frame>, Ended>> {
        match self.shared.ended_or_wait(self.lane, context.waker()) {
            Some(ended) if !ended.in_order() => Poll::Ready(Err(ended)),
            None if !self.is_finished => Poll::Pending,
            _ => Poll::Ready(Ok(None)),
        }
    }

    /// The lane.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Receives what nobody wants any more, until the lane ends.
    pub(super) async fn discard(mut self) {
        while let Ok(Some(_)) = self.receive().await {}
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take()
            && self.shared.ended().is_none()
        {
            let (meter, shared) = (Arc::clone(&self.meter), Arc::clone(&self.shared));
            self.shared.abandon(Self {
                lane: self.lane,
                in_a_row: 0,
                is_finished: false,
                receiver: Some(receiver),
                meter,
                shared,
            });
        }
    }
}
