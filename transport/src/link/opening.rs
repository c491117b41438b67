//! From nothing to an open link: who the peer is, whether it may, and whether its lanes are there.
//!
//! Pure. What each end says of itself is held against the other in `handshake.rs`.

use std::time::{Duration, Instant};

use super::credit::Sending;
use super::ended::{Broken, Why};
use super::event::Event;
use super::handshake;
use super::in_flight::InFlight;
use super::rhythm::Rhythm;
use super::state::{Link, Phase, Side};
use crate::Lane;
use crate::carrier::Vouched;
use crate::wire::control::{CloseReason, Control, Hello, Refusal, Welcome, is_name};
use crate::wire::{PerLane, charge};

impl Link {
    /// That lane is there: on the dialling end `Attached` came on it, on the accepting end `Attach` did, and
    /// `Attached` is to be answered after this call. Where the link does not wait for that lane, nothing
    /// changes and the refusal is the answer.
    pub fn handle_attached(&mut self, lane: Lane, now: Instant) -> Result<(), Refusal> {
        if !self.waits_for(lane) {
            return Err(Refusal::Attach);
        }
        self.attached[lane] = true;
        self.open_if_attached(now);
        Ok(())
    }

    /// Whether the link waits for that lane to be attached.
    pub fn waits_for(&self, lane: Lane) -> bool {
        matches!(self.phase, Phase::Attaching) && !self.attached[lane]
    }

    pub(super) fn take_greeting(&mut self, message: Control, now: Instant) -> Result<(), Broken> {
        match (self.side, message) {
            (Side::Accepted, Control::Hello(hello)) => self.take_peer(hello, now),
            (Side::Dialled, Control::Welcome(welcome)) if self.handshake.is_none() => {
                let Welcome { hello, session, ports } = welcome;
                (self.session, self.ports) = (session, ports);
                self.take_peer(hello, now);
            }
            (Side::Dialled, Control::Refused(refusal)) => self.end(Why::RefusedByPeer(refusal), None),
            (Side::Dialled, Control::Close(reason)) if reason != CloseReason::Drained => {
                self.end(Why::ClosedByPeer(reason), None);
            }
            (_, message) => return Err(self.unexpected(&message)),
        }
        Ok(())
    }

    fn take_peer(&mut self, hello: Hello, now: Instant) {
        if is_name(&hello.peer.name) && !matches!(self.vouched, Vouched::Certificate(_)) {
            self.peer_name = hello.peer.to_string().into();
        }
        if let Err(refusal) = handshake::check(&hello, &self.local, &self.limits, &self.vouched) {
            self.end(Why::Refused(refusal.clone()), Some(Control::Refused(refusal)));
            return;
        }
        let offer = &hello.limits;
        let sending = |lane| Sending::new(offer.window_bytes[lane], charge(offer.payload_bytes_max[lane]));
        self.sending = PerLane {
            control: sending(Lane::Control),
            data: sending(Lane::Data),
            weights: sending(Lane::Weights),
        };
        self.ours = InFlight::new(offer.in_flight_max.min(self.limits.in_flight_max));
        self.peer = Some(hello);
        self.phase = Phase::Attaching;
        let (session, ports) = (self.session, self.ports);
        match self.side {
            Side::Accepted => {
                let hello = handshake::hello(&self.local, &self.limits);
                self.handshake = Some(Control::Welcome(Welcome { hello, session, ports }));
            }
            Side::Dialled if !self.attached.data => {
                self.events.push_back(Event::DialLanes { session, ports })
            }
            Side::Dialled => {}
        }
        self.open_if_attached(now);
    }

    fn open_if_attached(&mut self, now: Instant) {
        if !(self.attached.data && self.attached.weights) {
            return;
        }
        let offer = &self.peer.as_ref().expect("a link attaches lanes of a peer it knows").limits;
        let interval = Duration::from_micros(offer.heartbeat_us.into());
        self.rhythm = Some(Rhythm::new(interval, self.limits.silence_max, now));
        self.beat_next = now + self.limits.heartbeat_every;
        self.phase = Phase::Open;
        self.events.push_back(Event::Open);
        self.events.append(&mut self.early);
        self.drain_opened(now);
    }

    /// Something for the application. The accepting end is open first, so it may come before there is one here.
    pub(super) fn tell_application(&mut self, event: Event) {
        match self.phase {
            Phase::Open => self.events.push_back(event),
            _ => self.early.push_back(event),
        }
    }
}
