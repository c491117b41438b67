//! What every frame asks of its link: may it go, may it have come, is it still waited for.
//!
//! Pure, and the only part that runs once per frame: no allocation in the steady state, O(log n) in the
//! dispatches that are open.

use std::time::Instant;

use super::credit::SendRefused;
use super::ended::Broken;
use super::event::Event;
use super::id_map::NotTaken;
use super::in_flight::{DispatchRefused, Returned};
use super::state::{Link, Phase, Side, State};
use crate::Lane;

/// Stands for a value where only the id matters.
const OPEN: u32 = 0;

impl Link {
    /// Charges a frame that is about to be sent. A frame with dispatches is charged first, and each of them
    /// told to `handle_dispatch` after it; where one of those is refused, `handle_unsent` takes the charge back.
    /// Whoever is refused with `NoCredit` is told by `Event::Writable`.
    ///
    /// Control messages of this module share the control lane's credits and need no call of this.
    pub fn handle_send(&mut self, lane: Lane, charge: u64) -> Result<(), SendRefused> {
        match &self.phase {
            Phase::Open if !self.ending.finishing => {}
            Phase::Open => return Err(SendRefused::Draining),
            Phase::Greeting | Phase::Attaching => return Err(SendRefused::NotOpen),
            Phase::Closed(ended) => return Err(SendRefused::Closed(ended.clone())),
        }
        let taken = self.sending[lane].take(charge);
        if matches!(taken, Err(SendRefused::NoCredit { .. })) {
            self.counters.no_credit[lane] += 1;
        }
        taken
    }

    /// A frame that was charged is not sent after all.
    pub fn handle_unsent(&mut self, lane: Lane, charge: u64) {
        if self.sending[lane].untake(charge) && !self.is_closed() {
            self.events.push_back(Event::Writable(lane));
        }
    }

    /// Whether so many dispatches could be sent now, were there credit. Whoever is refused with `InFlightFull` is
    /// told by `Event::Writable` of the data lane.
    pub fn may_dispatch(&mut self, count: usize) -> Result<(), DispatchRefused> {
        match &self.phase {
            Phase::Open if !self.is_draining() => {}
            Phase::Open => return Err(DispatchRefused::Draining),
            Phase::Greeting | Phase::Attaching => return Err(DispatchRefused::NotOpen),
            Phase::Closed(ended) => return Err(DispatchRefused::Closed(ended.clone())),
        }
        if count > self.in_flight_left() {
            self.ours_wanted = true;
            return Err(DispatchRefused::InFlightFull { max: self.ours.max() });
        }
        Ok(())
    }

    /// A dispatch is about to be sent. It is in flight until its return: past its deadline it is given up
    /// (`Event::Expired`), yet counted, for the peer still has it. So a peer must answer every dispatch.
    pub fn handle_dispatch(
        &mut self,
        dispatch: u64,
        deadline: Instant,
        _now: Instant,
    ) -> Result<(), DispatchRefused> {
        self.may_dispatch(1)?;
        self.ours.insert(dispatch, deadline)?;
        self.counters.dispatches += 1;
        Ok(())
    }

    /// A return came, or a dispatch that `handle_dispatch` took is not sent after all. True if it was in flight, past its
    /// deadline too: whoever sent it still counts it as out, and must hear that it is not. What its rows are good for is his
    /// to say.
    pub fn handle_return(&mut self, dispatch: u64) -> bool {
        if self.is_closed() {
            return false;
        }
        let returned = self.ours.remove(dispatch);
        match returned {
            Returned::Open => self.counters.returns += 1,
            Returned::Late => self.counters.returns_late += 1,
            Returned::Unknown => {
                self.counters.returns_unknown += 1;
                return false;
            }
        }
        if std::mem::take(&mut self.ours_wanted) {
            self.events.push_back(Event::Writable(Lane::Data));
        }
        self.advance_drain();
        true
    }

    /// A dispatch of the peer came. It is open until `handle_returned`.
    pub fn handle_dispatched(&mut self, dispatch: u64) -> Result<(), Broken> {
        self.may_come("a dispatch")?;
        let max = self.limits.in_flight_max;
        let broken = if self.theirs.len() >= max as usize {
            Broken::InFlight { max }
        } else {
            match self.theirs.insert(dispatch, OPEN) {
                Ok(()) => {
                    self.counters.dispatched += 1;
                    return Ok(());
                }
                Err(NotTaken::There) => Broken::Reused { dispatch },
                Err(NotTaken::Crowded) => Broken::Crowded { dispatch },
            }
        };
        Err(self.break_off(broken))
    }

    /// The return of a dispatch of the peer stands in its lane's queue. False if there is no such dispatch: it
    /// was answered before, or the link is over.
    pub fn handle_returned(&mut self, dispatch: u64) -> bool {
        if self.is_closed() || self.theirs.remove(dispatch).is_none() {
            return false;
        }
        self.counters.returned += 1;
        self.advance_drain();
        true
    }

    /// A frame came on the data or weights lane. On an error the link is over and the frame is dropped.
    ///
    /// Control messages are counted by `handle_control`.
    pub fn handle_received(&mut self, lane: Lane, charge: u64) -> Result<(), Broken> {
        self.may_come("a frame")?;
        self.receiving[lane].receive(lane, charge).map_err(|broken| self.break_off(broken))
    }

    /// The application has given back so much of that lane's room since the link began.
    pub fn handle_released(&mut self, lane: Lane, total: u64, _now: Instant) {
        if !self.is_closed() {
            self.receiving[lane].release_total(total);
        }
    }

    /// What may be sent on a lane now, in credits.
    pub fn credit_left(&self, lane: Lane) -> u64 {
        self.sending[lane].left()
    }

    /// Dispatches that may be sent now.
    pub fn in_flight_left(&self) -> usize {
        self.ours.max() as usize - self.ours.len()
    }

    /// Dispatches of this end without a return.
    pub fn in_flight(&self) -> usize {
        self.ours.len()
    }

    /// Dispatches of the peer that are not answered.
    pub fn in_flight_theirs(&self) -> usize {
        self.theirs.len()
    }

    /// Whether a frame that came or went may have left something to be said or carried out.
    pub fn has_output(&self) -> bool {
        !self.events.is_empty() || self.state() != State::Open
    }

    /// The accepting end is open first, so the dialling end may receive once it is welcome.
    fn may_come(&mut self, message: &'static str) -> Result<(), Broken> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Attaching if self.side == Side::Dialled => Ok(()),
            Phase::Closed(_) => Err(Broken::Over),
            _ => {
                let state = self.state().name();
                Err(self.break_off(Broken::Unexpected { message, state }))
            }
        }
    }
}
