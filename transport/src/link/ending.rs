//! Every way in which a link ends: in order, at once, refused, lost.
//!
//! Pure. The order of draining is in `mod.rs`.

use std::time::{Duration, Instant};

use super::ended::{Broken, Ended, Reason, Why};
use super::event::Event;
use super::state::{Link, Phase, Side};
use crate::Lane;
use crate::wire::PerLane;
use crate::wire::control::{CloseReason, Control, Refusal, words};

/// How long a lane that was lost waits for what the peer may have said about it on the control lane. Both are ended
/// within microseconds; this is far above what a busy host takes to tell, and little for whoever waits for a death.
const LAST_WORDS_MAX: Duration = Duration::from_millis(20);

/// How far the end has come.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// This end wants to drain, and the link is not open yet.
    wished: bool,
    /// This end has asked for it, the peer has.
    asked: bool,
    heard: bool,
    /// `Drain` is to be sent.
    drain_due: bool,
    /// When draining is cut.
    deadline: Option<Instant>,
    /// `Close(Drained)` was decided here, is to be sent, was heard from there.
    pub(super) said: bool,
    said_due: bool,
    pub(super) said_by_peer: bool,
    /// The lanes are being finished.
    pub(super) finishing: bool,
    /// Lanes that the peer has finished.
    pub(super) finished: PerLane<bool>,
    /// Lanes that this end has finished.
    flushed: PerLane<bool>,
    /// The first lane that was lost, and when that is the end.
    loss: Option<Loss>,
    /// `Close` or `Refused` of an end that came at once.
    pub(super) last_words: Option<Control>,
}

#[derive(Debug)]
struct Loss {
    lane: Lane,
    why: String,
    deadline: Instant,
}

impl Ending {
    /// The next time at which the link ends, if nothing happens before.
    pub(super) fn next(&self) -> Option<Instant> {
        let loss = self.loss.as_ref().map(|loss| loss.deadline);
        loss.into_iter().chain(self.deadline).min()
    }
}

impl Link {
    /// A lane was cut, or could not be read. Where the peer broke the rules of frames, `handle_close` with
    /// `CloseReason::Broken` tells it so.
    ///
    /// Without the control lane the link is over at once. Another lane of an open link may have gone with a word, which
    /// is heard before the loss counts.
    pub fn handle_lost(&mut self, lane: Lane, why: String, now: Instant) {
        if self.ending.finished[lane] && self.ending.flushed[lane] {
            return;
        }
        let may_hear = matches!(self.phase, Phase::Open) && !self.ending.finished.control;
        if lane == Lane::Control || !may_hear {
            return self.end(Why::Lost { lane, why }, None);
        }
        self.ending.loss.get_or_insert_with(|| Loss { lane, why, deadline: now + LAST_WORDS_MAX });
    }

    /// The peer has ended that lane in order. False if it had no business to: then the lane is lost.
    pub fn handle_finished(&mut self, lane: Lane, now: Instant) -> bool {
        if self.is_closed() {
            return false;
        }
        // It does so once it has heard our `Close(Drained)` and said its own. Its own came before on the control
        // lane; it may still be on its way when another lane ends.
        if !self.ending.said || (lane == Lane::Control && !self.ending.said_by_peer) {
            self.handle_lost(lane, "the peer ended it without a word".to_owned(), now);
            return false;
        }
        self.ending.finished[lane] = true;
        if lane == Lane::Control {
            // Nothing can be said about a loss any more.
            self.end_lost(None);
        }
        self.close_if_finished();
        true
    }

    /// This end has ended that lane in order, as `Event::FinishLanes` asked.
    pub fn handle_flushed(&mut self, lane: Lane, _now: Instant) {
        if self.is_closed() {
            return;
        }
        assert!(self.ending.finishing, "lanes are finished after Event::FinishLanes");
        self.ending.flushed[lane] = true;
        self.close_if_finished();
    }

    /// This end wants to end in order. Before the link is open the wish is kept until it is.
    pub fn handle_drain(&mut self, now: Instant) {
        match self.phase {
            Phase::Greeting | Phase::Attaching => self.ending.wished = true,
            Phase::Open if !self.is_draining() => {
                self.ending.asked = true;
                self.ending.drain_due = true;
                self.ending.deadline = Some(now + self.limits.drain_max);
                self.advance_drain();
            }
            Phase::Open | Phase::Closed(_) => {}
        }
    }

    /// This end wants to end at once. The peer is told why, if it can be. `Drained` is no wish but a result, so
    /// it counts as `Wanted`.
    pub fn handle_close(&mut self, reason: CloseReason, _now: Instant) {
        match reason {
            CloseReason::Broken(what) => {
                self.break_off(Broken::Unreadable(what));
            }
            CloseReason::Drained => self.close(CloseReason::Wanted),
            reason => self.close(reason),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.ending.asked || self.ending.heard
    }

    /// Ends the link at once. Only the first end counts.
    pub(super) fn end(&mut self, why: Why, last_words: Option<Control>) {
        if self.is_closed() {
            return;
        }
        // Nobody listens to an end that has not said Hello, nor to one that is finishing its lanes.
        let unheard = self.ending.finishing || matches!(self.handshake, Some(Control::Hello(_)));
        self.ending.last_words = last_words.filter(|_| !unheard);
        self.handshake = None;
        self.charged.clear();
        let ended = Ended::new(&self.peer_name, why);
        self.events.push_back(Event::Closed(ended.clone()));
        self.phase = Phase::Closed(ended);
    }

    /// Ends the link because the peer broke the protocol.
    pub(super) fn break_off(&mut self, broken: Broken) -> Broken {
        let last_words = Control::Close(CloseReason::Broken(words(&broken)));
        self.end(Why::Broken(broken.clone()), Some(last_words));
        broken
    }

    /// The handshake took too long.
    pub(super) fn end_handshake(&mut self) {
        let limit = self.limits.handshake_max;
        let last_words = match (self.side, &self.phase) {
            (Side::Accepted, Phase::Greeting) => {
                Control::Refused(Refusal::Busy(format!("no Hello came within {limit:?}")))
            }
            _ => Control::Close(CloseReason::Silent),
        };
        self.end(Why::HandshakeTooLong { limit }, Some(last_words));
    }

    /// A lane that was lost is the end, if by `now` the peer has said nothing else; without a time at once.
    pub(super) fn end_lost(&mut self, now: Option<Instant>) {
        let is_due = |loss: &mut Loss| now.is_none_or(|now| now >= loss.deadline);
        if let Some(Loss { lane, why, .. }) = self.ending.loss.take_if(is_due) {
            self.end(Why::Lost { lane, why }, None);
        }
    }

    /// Cuts a drain that took too long.
    pub(super) fn end_late_drain(&mut self, now: Instant) {
        if self.ending.deadline.is_some_and(|deadline| now >= deadline) {
            let (limit, sent, received) = (self.limits.drain_max, self.ours.len(), self.theirs.len());
            let last_words = Control::Close(CloseReason::DrainTooLong);
            self.end(Why::DrainTooLong { limit, sent, received }, Some(last_words));
        }
    }

    /// What was asked before the link was open begins now.
    pub(super) fn drain_opened(&mut self, now: Instant) {
        if self.ending.heard {
            self.events.push_back(Event::DrainAsked);
            self.advance_drain();
        } else if self.ending.wished {
            self.handle_drain(now);
        }
    }

    pub(super) fn take_drain(&mut self, now: Instant) -> Result<(), Broken> {
        if self.ending.heard || self.ending.said_by_peer {
            return Err(self.unexpected(&Control::Drain));
        }
        self.ending.heard = true;
        self.ending.deadline.get_or_insert(now + self.limits.drain_max);
        if matches!(self.phase, Phase::Open) {
            self.events.push_back(Event::DrainAsked);
            self.advance_drain();
        }
        Ok(())
    }

    pub(super) fn take_close(&mut self, reason: CloseReason) -> Result<(), Broken> {
        if reason != CloseReason::Drained {
            self.end(Why::ClosedByPeer(reason), None);
            return Ok(());
        }
        if !self.is_draining() || self.ending.said_by_peer {
            return Err(self.unexpected(&Control::Close(reason)));
        }
        self.ending.said_by_peer = true;
        self.advance_drain();
        Ok(())
    }

    /// Goes as far towards the end as what is in flight allows. Probes count: their echoes need grants.
    pub(super) fn advance_drain(&mut self) {
        if !matches!(self.phase, Phase::Open) || !self.is_draining() || self.ending.finishing {
            return;
        }
        let nothing_in_flight = self.ours.len() == 0 && self.theirs.len() == 0;
        if !self.ending.said && nothing_in_flight && self.charged.is_idle() {
            self.ending.said = true;
            self.ending.said_due = true;
        }
        // Not before ours is with the lane: it would be put behind the lane's end.
        let is_told = self.ending.said && !self.ending.said_due;
        if is_told && self.ending.said_by_peer && nothing_in_flight {
            self.ending.finishing = true;
            self.events.push_back(Event::FinishLanes);
        }
    }

    pub(super) fn poll_drain(&mut self) -> Option<Control> {
        std::mem::take(&mut self.ending.drain_due).then_some(Control::Drain)
    }

    pub(super) fn poll_drained(&mut self) -> Option<Control> {
        if !std::mem::take(&mut self.ending.said_due) {
            return None;
        }
        self.advance_drain();
        Some(Control::Close(CloseReason::Drained))
    }

    fn close(&mut self, reason: CloseReason) {
        let last_words = match (self.side, &self.phase) {
            (Side::Accepted, Phase::Greeting) => Control::Refused(Refusal::Busy(words(Reason(&reason)))),
            _ => Control::Close(reason.clone()),
        };
        self.end(Why::Closed(reason), Some(last_words));
    }

    fn close_if_finished(&mut self) {
        let all = |lanes: &PerLane<bool>| lanes.control && lanes.data && lanes.weights;
        if all(&self.ending.finished) && all(&self.ending.flushed) {
            self.end(Why::Drained, None);
        }
    }
}
