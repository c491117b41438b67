//! A link: where it stands in its life, what it wants sent, said and waited for.
//!
//! Pure. How it comes to be open is in `opening.rs`, what a frame needs in `traffic.rs`, control messages that are
//! charged in `charged.rs`, every way to end in `ending.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::charged::Charged;
use super::counters::Counters;
use super::credit::{Receiving, Sending};
use super::ended::{Broken, Ended, Why};
use super::ending::Ending;
use super::event::Event;
use super::handshake::{self, Local};
use super::id_map::IdMap;
use super::in_flight::{InFlight, SEARCH_MAX};
use super::rhythm::{Heard, Judgement, Rhythm};
use crate::carrier::Vouched;
use crate::wire::PerLane;
use crate::wire::cluster::Cluster;
use crate::wire::control::{CloseReason, Control, Hello};
use crate::{Lane, Limits};

/// Which end of a link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It dialled, and says `Hello`.
    Dialled,
    /// It was dialled, and answers.
    Accepted,
}

/// Where a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for the peer to say who it is.
    Greeting,
    /// Both know each other; the data and weights lanes are to come.
    Attaching,
    /// Frames go.
    Open,
    /// As open, without new dispatches.
    Draining,
    /// Nothing is in flight, the lanes are being finished.
    Finishing,
    /// Over.
    Closed,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Attaching => "attaching its lanes",
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Finishing => "finishing",
            Self::Closed => "closed",
        }
    }
}

#[derive(Debug)]
pub(super) enum Phase {
    Greeting,
    Attaching,
    Open,
    Closed(Ended),
}

/// One end of a link.
#[derive(Debug)]
pub struct Link {
    pub(super) side: Side,
    pub(super) local: Local,
    pub(super) limits: Limits,
    pub(super) vouched: Vouched,
    pub(super) session: [u8; 16],
    pub(super) ports: [Option<u16>; 2],
    pub(super) phase: Phase,
    pub(super) peer: Option<Hello>,
    pub(super) peer_name: Arc<str>,
    /// Lanes that are there.
    pub(super) attached: PerLane<bool>,
    /// The dialling end has sent something after its `Hello`, so it has taken the `Welcome`.
    confirmed: bool,
    handshake_deadline: Instant,
    /// `Hello` or `Welcome`, until it is sent.
    pub(super) handshake: Option<Control>,
    pub(super) sending: PerLane<Sending>,
    pub(super) receiving: PerLane<Receiving>,
    /// Dispatches of this end.
    pub(super) ours: InFlight,
    /// Somebody waits for room among them.
    pub(super) ours_wanted: bool,
    /// Dispatches of the peer.
    pub(super) theirs: IdMap,
    pub(super) rhythm: Option<Rhythm>,
    pub(super) beat_next: Instant,
    beat_due: bool,
    beats_sent: u64,
    beats_heard: u64,
    pub(super) charged: Charged,
    pub(super) ending: Ending,
    pub(super) events: VecDeque<Event>,
    /// Those that are for the application, until there is one: they come after `Event::Open`.
    pub(super) early: VecDeque<Event>,
    /// When this end last listened.
    listened: Instant,
    pub(super) counters: Counters,
}

impl Link {
    /// One end of a new link. `session` and `ports` are what the accepting end tells the other.
    /// `lanes_ready`: the data and weights lanes came with the connection.
    pub fn new(
        side: Side,
        local: Local,
        limits: Limits,
        vouched: Vouched,
        lanes_ready: bool,
        session: [u8; 16],
        ports: [Option<u16>; 2],
        now: Instant,
    ) -> Self {
        let peer_name = match &vouched {
            Vouched::Certificate(name) => name.to_string(),
            Vouched::User(user) => format!("a process of user {user}"),
            Vouched::Nobody => "the peer".to_owned(),
        };
        let window = limits.window_bytes;
        Self {
            handshake: (side == Side::Dialled).then(|| Control::Hello(handshake::hello(&local, &limits))),
            side,
            local,
            limits,
            vouched,
            session,
            ports,
            phase: Phase::Greeting,
            peer: None,
            peer_name: peer_name.into(),
            attached: PerLane { control: true, data: lanes_ready, weights: lanes_ready },
            confirmed: false,
            handshake_deadline: now + limits.handshake_max,
            sending: PerLane::default(),
            receiving: PerLane {
                control: Receiving::new(window.control),
                data: Receiving::new(window.data),
                weights: Receiving::new(window.weights),
            },
            ours: InFlight::new(0),
            ours_wanted: false,
            theirs: IdMap::new(SEARCH_MAX),
            rhythm: None,
            beat_next: now + limits.heartbeat_every,
            beat_due: false,
            beats_sent: 0,
            beats_heard: 0,
            charged: Charged::default(),
            ending: Ending::default(),
            events: VecDeque::new(),
            early: VecDeque::new(),
            listened: now,
            counters: Counters::default(),
        }
    }

    /// A message came on the control lane.
    pub fn handle_control(&mut self, message: Control, now: Instant) {
        if self.is_closed() {
            return;
        }
        self.listened = self.listened.max(now);
        let taken = match self.phase {
            Phase::Greeting => self.take_greeting(message, now),
            _ => self.take_message(message, now),
        };
        if let Err(broken) = taken {
            self.break_off(broken);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(due) = self.poll_timeout() else { return };
        // What this end did not hear because it did not listen is nobody's silence.
        let deaf = now.saturating_duration_since(due.max(self.listened));
        if let Some(rhythm) = self.rhythm.as_mut().filter(|_| deaf > self.limits.heartbeat_every) {
            rhythm.handle_deaf(deaf, now);
        }
        self.listened = self.listened.max(now);
        if !matches!(self.phase, Phase::Open) {
            if now >= self.handshake_deadline {
                self.end_handshake();
            }
            return;
        }
        while let Some(dispatch) = self.ours.expire(now) {
            self.counters.expired += 1;
            self.events.push_back(Event::Expired { dispatch });
        }
        self.end_lost(Some(now));
        if self.is_closed() {
            return;
        }
        self.judge(now);
        self.end_late_drain(now);
        if !self.is_closed() && now >= self.beat_next {
            self.beat_due = true;
            self.beat_next = now + self.limits.heartbeat_every;
        }
    }

    /// The next message to be sent on the control lane.
    pub fn poll_control(&mut self) -> Option<Control> {
        if self.is_closed() {
            return self.ending.last_words.take();
        }
        if let Some(message) = self.handshake.take() {
            return Some(message);
        }
        if !matches!(self.phase, Phase::Open) {
            return None;
        }
        if !self.ending.finishing {
            if std::mem::take(&mut self.beat_due) {
                let sequence = self.beats_sent;
                self.beats_sent += 1;
                return Some(Control::Heartbeat { sequence, heard: self.beats_heard });
            }
            for lane in Lane::ALL {
                if let Some(total) = self.receiving[lane].poll_grant() {
                    return Some(Control::Grant { lane, total });
                }
            }
        }
        self.poll_drain().or_else(|| self.poll_charged()).or_else(|| self.poll_drained())
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is to be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Greeting | Phase::Attaching => Some(self.handshake_deadline),
            Phase::Open => {
                let beat = (!self.ending.finishing).then_some(self.beat_next);
                let silence = self.listening().map(Rhythm::next);
                let times = [beat, silence, self.ours.next_deadline(), self.ending.next()];
                times.into_iter().flatten().min()
            }
            Phase::Closed(_) => None,
        }
    }

    /// Where the link stands.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Greeting => State::Greeting,
            Phase::Attaching => State::Attaching,
            Phase::Open if self.ending.finishing => State::Finishing,
            Phase::Open if self.is_draining() => State::Draining,
            Phase::Open => State::Open,
            Phase::Closed(_) => State::Closed,
        }
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// What the peer said of itself, once it has been accepted.
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }

    /// Who the carrier says that the peer is.
    pub fn vouched(&self) -> &Vouched {
        &self.vouched
    }

    /// The peer, as messages name it.
    pub fn peer_name(&self) -> &Arc<str> {
        &self.peer_name
    }

    /// The session: of the accepting end at once, of the dialling end once it is welcome.
    pub fn session(&self) -> [u8; 16] {
        self.session
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.phase {
            Phase::Closed(ended) => Some(ended),
            _ => None,
        }
    }

    /// What the link has seen.
    pub fn counters(&self) -> Counters {
        let of = |total: fn(&Self, Lane) -> u64| PerLane {
            control: total(self, Lane::Control),
            data: total(self, Lane::Data),
            weights: total(self, Lane::Weights),
        };
        Counters {
            sent_bytes: of(|link, lane| link.sending[lane].sent()),
            received_bytes: of(|link, lane| link.receiving[lane].received()),
            ..self.counters
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    pub(super) fn unexpected(&self, message: &Control) -> Broken {
        Broken::Unexpected { message: message_name(message), state: self.state().name() }
    }

    fn take_message(&mut self, message: Control, now: Instant) -> Result<(), Broken> {
        let confirmed = std::mem::replace(&mut self.confirmed, true);
        let accepted = self.side == Side::Accepted;
        // The dialling end is open only after this one, so before it can only take the welcome ill, or leave.
        let attaching = accepted && matches!(self.phase, Phase::Attaching);
        if attaching && !matches!(message, Control::Refused(_) | Control::Close(_)) {
            return Err(self.unexpected(&message));
        }
        let unheard = |heard: u64| self.beats_sent.saturating_sub(heard);
        let news = match (&mut self.rhythm, &message) {
            (Some(rhythm), Control::Heartbeat { heard, .. }) => rhythm.handle_beat(unheard(*heard), now),
            (Some(rhythm), _) => match rhythm.handle_heard(now) {
                true => Heard::Awake,
                false => Heard::Same,
            },
            (None, _) => Heard::Same,
        };
        match (news, &message) {
            (Heard::Awake, _) => self.events.push_back(Event::Awake),
            (Heard::Deaf, Control::Heartbeat { heard, .. }) => {
                self.counters.late += 1;
                let beats = u32::try_from(self.beats_sent.saturating_sub(*heard)).unwrap_or(u32::MAX);
                let silent = self.limits.heartbeat_every.saturating_mul(beats);
                self.events.push_back(Event::Late { silent });
            }
            _ => {}
        }
        match message {
            Control::Refused(refusal) if accepted && !confirmed => {
                self.end(Why::RefusedByPeer(refusal), None);
                Ok(())
            }
            Control::Close(reason) => self.take_close(reason),
            Control::Heartbeat { sequence, heard } => self.take_beat(sequence, heard),
            Control::Grant { lane, total } => {
                if self.sending[lane].grant(lane, total)? {
                    self.events.push_back(Event::Writable(lane));
                }
                Ok(())
            }
            Control::Drain => self.take_drain(now),
            message => self.take_charged(message),
        }
    }

    fn take_beat(&mut self, sequence: u64, heard: u64) -> Result<(), Broken> {
        let (expected, sent) = (self.beats_heard, self.beats_sent);
        if heard > sent {
            return Err(Broken::HeardUnsent { heard, sent });
        }
        if sequence != expected {
            return Err(Broken::Heartbeat { sequence, expected });
        }
        self.beats_heard += 1;
        self.counters.heartbeats += 1;
        Ok(())
    }

    /// The rhythm, as long as anything can come on the control lane.
    fn listening(&self) -> Option<&Rhythm> {
        self.rhythm.as_ref().filter(|_| !self.ending.finished.control)
    }

    fn judge(&mut self, now: Instant) {
        if self.ending.finished.control {
            return;
        }
        match self.rhythm.as_mut().map_or(Judgement::Same, |rhythm| rhythm.handle_timeout(now)) {
            Judgement::Same => {}
            Judgement::Late(silent) => {
                self.counters.late += 1;
                self.events.push_back(Event::Late { silent });
            }
            Judgement::Dead(silent) => {
                self.end(Why::Silent { silent }, Some(Control::Close(CloseReason::Silent)));
            }
        }
    }
}

pub(super) fn message_name(message: &Control) -> &'static str {
    match message {
        Control::Hello(_) => "Hello",
        Control::Welcome(_) => "Welcome",
        Control::Refused(_) => "Refused",
        Control::Attach(_) => "Attach",
        Control::Attached => "Attached",
        Control::Heartbeat { .. } => "Heartbeat",
        Control::Grant { .. } => "Grant",
        Control::Drain => "Drain",
        Control::Close(_) => "Close",
        Control::Probe { .. } => "Probe",
        Control::Echo { .. } => "Echo",
        Control::Renew { .. } => "Renew",
        Control::Renewed { .. } => "Renewed",
        Control::NotRenewed { .. } => "NotRenewed",
        Control::Cluster(Cluster::ToNode(_)) => "ToNode",
        Control::Cluster(Cluster::ToCoordinator(_)) => "ToCoordinator",
    }
}
