//! A link: where it stands in its life, what it wants sent, said and waited for.
//!
//! Pure. What a frame needs is in `traffic.rs`, control messages that are charged in `charged.rs`, every way
//! to end in `ending.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::charged::Charged;
use super::counters::Counters;
use super::credit::{Receiving, Sending};
use super::ended::{Broken, Ended, Why};
use super::ending::Ending;
use super::handshake::{self, Local};
use super::id_map::IdMap;
use super::in_flight::{InFlight, SEARCH_MAX};
use super::rhythm::{Judgement, Rhythm};
use crate::carrier::Vouched;
use crate::wire::cluster::Cluster;
use crate::wire::control::{CloseReason, Control, Hello, Refusal, Welcome, is_name};
use crate::wire::{PerLane, charge};
use crate::{Lane, Limits};

/// Which end of a link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It dialled, and says `Hello`.
    Dialled,
    /// It was dialled, and answers.
    Accepted,
}

/// What whoever drives a link has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Dial the data and weights lanes, attach each, and tell `handle_attached`.
    DialLanes {
        /// To be shown in `Attach`.
        session: [u8; 16],
        /// Ports of the data and the weights lane, where they are not the one that was dialled.
        ports: [Option<u16>; 2],
    },
    /// Frames may be sent.
    Open,
    /// What was refused on that lane for want of credit, or of room for dispatches (data), can go now.
    Writable(Lane),
    /// The deadline of a dispatch passed without its return. A return that comes yet is not taken.
    Expired {
        /// Its id.
        dispatch: u64,
    },
    /// The peer is silent for longer than its rhythm explains. Nothing is lost yet.
    Late {
        /// For so long.
        silent: Duration,
    },
    /// The peer that was late is heard again.
    Awake,
    /// The peer wants to end in order: no new dispatches on this link.
    DrainAsked,
    /// Finish every lane in order, once what waits on it is sent, and tell `handle_flushed` of each.
    FinishLanes,
    /// A probe came back.
    Echo {
        /// Whose.
        id: u64,
        /// As it went.
        padding: Vec<u8>,
    },
    /// The peer asks for a certificate; answer with `handle_renewed`.
    Renew {
        /// PKCS #10, DER.
        request: Vec<u8>,
    },
    /// Here is the certificate that was asked for.
    Renewed {
        /// The certificate and what it stands on, DER.
        chain: Vec<Vec<u8>>,
    },
    /// There is none.
    NotRenewed {
        /// In the peer's words.
        why: String,
    },
    /// The peer says something of the cluster. Its room is given back with `handle_released` once it was read.
    Told {
        /// What.
        message: Cluster,
        /// What it cost on the control lane.
        charge: u64,
    },
    /// The link is over: the last event. Whatever waits for something on it gets a clone of this.
    Closed(Ended),
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
    vouched: Vouched,
    session: [u8; 16],
    ports: [Option<u16>; 2],
    pub(super) phase: Phase,
    pub(super) peer: Option<Hello>,
    pub(super) peer_name: Arc<str>,
    /// Lanes that are there.
    attached: PerLane<bool>,
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
    rhythm: Option<Rhythm>,
    beat_next: Instant,
    beat_due: bool,
    beats_sent: u64,
    beats_heard: u64,
    pub(super) charged: Charged,
    pub(super) ending: Ending,
    pub(super) events: VecDeque<Event>,
    /// Those that are for the application, until there is one: they come after `Event::Open`.
    early: VecDeque<Event>,
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
                return Some(Control::Heartbeat { sequence });
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

    /// Whether the link waits for that lane to be attached.
    pub fn waits_for(&self, lane: Lane) -> bool {
        matches!(self.phase, Phase::Attaching) && !self.attached[lane]
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

    fn take_greeting(&mut self, message: Control, now: Instant) -> Result<(), Broken> {
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

    fn take_message(&mut self, message: Control, now: Instant) -> Result<(), Broken> {
        let confirmed = std::mem::replace(&mut self.confirmed, true);
        let accepted = self.side == Side::Accepted;
        // The dialling end is open only after this one, so before it can only take the welcome ill, or leave.
        let attaching = accepted && matches!(self.phase, Phase::Attaching);
        if attaching && !matches!(message, Control::Refused(_) | Control::Close(_)) {
            return Err(self.unexpected(&message));
        }
        let awake = match (&mut self.rhythm, &message) {
            (Some(rhythm), Control::Heartbeat { .. }) => rhythm.handle_beat(now),
            (Some(rhythm), _) => rhythm.handle_heard(now),
            (None, _) => false,
        };
        if awake {
            self.events.push_back(Event::Awake);
        }
        match message {
            Control::Refused(refusal) if accepted && !confirmed => {
                self.end(Why::RefusedByPeer(refusal), None);
                Ok(())
            }
            Control::Close(reason) => self.take_close(reason),
            Control::Heartbeat { sequence } => self.take_beat(sequence),
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

    fn take_beat(&mut self, sequence: u64) -> Result<(), Broken> {
        let expected = self.beats_heard;
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
