//! Control messages that are charged: probes and their echoes, certificates, and those of `told.rs`.
//!
//! Pure. They wait here, in order, until the peer has granted room for them. What makes another end answer
//! is bounded on both ends: probes by a quarter of the peer's window, so that two ends which probe one another
//! as fast as they may always have room left for the echoes; requests for a certificate by one at a time.

use std::collections::VecDeque;

use super::ended::{Broken, Ended};
use super::event::Event;
use super::state::{Link, Phase};
use crate::Lane;
use crate::security::Role;
use crate::wire::control::{Control, PADDING_BYTES_MAX, words};
use crate::wire::{charge, codec};

/// Probes that may be out at once.
const PROBES_MAX: usize = 64;
/// Part of the peer's control window that probes may take.
const PROBE_WINDOW_PARTS: u64 = 4;

/// Whether a control message is charged on the control lane, by the length of its encoding.
pub fn is_charged(message: &Control) -> bool {
    match message {
        Control::Hello(_)
        | Control::Welcome(_)
        | Control::Refused(_)
        | Control::Attach(_)
        | Control::Attached
        | Control::Heartbeat { .. }
        | Control::Grant { .. }
        | Control::Drain
        | Control::Close(_) => false,
        Control::Probe { .. }
        | Control::Echo { .. }
        | Control::Renew { .. }
        | Control::Renewed { .. }
        | Control::NotRenewed { .. }
        | Control::Cluster(_) => true,
    }
}

/// Why a probe is not sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProbeRefused {
    /// Later, when echoes have come back.
    #[error("{probes} probes of {bytes} bytes are out already; wait for their echoes")]
    Full {
        /// How many.
        probes: usize,
        /// What they cost.
        bytes: u64,
    },
    /// Never: it would not fit.
    #[error("a probe that costs {charge} bytes is too long, at most {max} can go")]
    TooLong {
        /// What it costs.
        charge: u64,
        /// What it may cost.
        max: u64,
    },
    /// The handshake is not done.
    #[error("the link is not open yet")]
    NotOpen,
    /// The link is ending in order.
    #[error("the link is draining and is probed no more")]
    Draining,
    /// It is over.
    #[error("{0}")]
    Closed(Ended),
}

/// Why a request for a certificate is not sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RenewRefused {
    /// The one before has not been answered.
    #[error("a certificate was asked for already; wait for the answer")]
    Pending,
    /// A coordinator asks nobody.
    #[error("only a node asks for a certificate, and this end is a coordinator")]
    Coordinator,
    /// The peer takes no message so long.
    #[error("a request that costs {charge} bytes is too long, the peer takes {max}")]
    TooLong {
        /// What it costs.
        charge: u64,
        /// What it may cost.
        max: u64,
    },
    /// The handshake is not done.
    #[error("the link is not open yet")]
    NotOpen,
    /// The link is ending in order.
    #[error("the link is draining; ask over another")]
    Draining,
    /// It is over.
    #[error("{0}")]
    Closed(Ended),
}

/// A probe that has not come back.
#[derive(Debug)]
struct Probe {
    id: u64,
    padding_bytes: usize,
    charge: u64,
}

/// A message that waits for credit.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Control,
    pub(super) charge: u64,
    /// Room of this end that is given back when it goes: that of the probe it answers.
    pub(super) holds: u64,
}

/// What waits, and what was asked.
#[derive(Debug, Default)]
pub(super) struct Charged {
    pub(super) waiting: VecDeque<Waiting>,
    /// Messages of the cluster among them, and what they cost.
    pub(super) tells: usize,
    pub(super) tells_charge: u64,
    probes: VecDeque<Probe>,
    probes_charge: u64,
    /// This end has asked for a certificate, the peer has.
    renew_asked: bool,
    renew_owed: bool,
}

impl Charged {
    /// Nothing waits here, and nothing is to come back that needs a grant.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.probes.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What a control message costs. Both ends must count alike: this is protocol.
pub(super) fn cost(message: &Control) -> u64 {
    // A message that cannot be encoded costs more than any window has.
    codec::encoded_bytes(message).map_or(u64::MAX >> 1, |bytes| charge(bytes as u64))
}

impl Link {
    /// Sends a probe; what comes back is `Event::Echo`.
    pub fn handle_probe(&mut self, id: u64, padding: Vec<u8>) -> Result<(), ProbeRefused> {
        match &self.phase {
            Phase::Open if !self.is_draining() => {}
            Phase::Open => return Err(ProbeRefused::Draining),
            Phase::Greeting | Phase::Attaching => return Err(ProbeRefused::NotOpen),
            Phase::Closed(ended) => return Err(ProbeRefused::Closed(ended.clone())),
        }
        let padding_bytes = padding.len();
        let message = Control::Probe { id, padding };
        let charge = cost(&message);
        let part = self.sending.control.window() / PROBE_WINDOW_PARTS;
        let max = part.min(self.sending.control.charge_max()).min(self.charge_max_here());
        if charge > max || padding_bytes > PADDING_BYTES_MAX {
            return Err(ProbeRefused::TooLong { charge, max });
        }
        let (probes, bytes) = (self.charged.probes.len(), self.charged.probes_charge);
        if probes >= PROBES_MAX || bytes + charge > part {
            return Err(ProbeRefused::Full { probes, bytes });
        }
        self.charged.probes.push_back(Probe { id, padding_bytes, charge });
        self.charged.probes_charge += charge;
        self.charged.waiting.push_back(Waiting { message, charge, holds: 0 });
        Ok(())
    }

    /// Asks the peer for a certificate; the answer is `Event::Renewed` or `Event::NotRenewed`.
    pub fn handle_renew(&mut self, request: Vec<u8>) -> Result<(), RenewRefused> {
        match &self.phase {
            Phase::Open if !self.is_draining() => {}
            Phase::Open => return Err(RenewRefused::Draining),
            Phase::Greeting | Phase::Attaching => return Err(RenewRefused::NotOpen),
            Phase::Closed(ended) => return Err(RenewRefused::Closed(ended.clone())),
        }
        if self.local.peer.role == Role::Coordinator {
            return Err(RenewRefused::Coordinator);
        }
        if self.charged.renew_asked {
            return Err(RenewRefused::Pending);
        }
        let message = Control::Renew { request };
        let (charge, max) = (cost(&message), self.sending.control.charge_max());
        if charge > max {
            return Err(RenewRefused::TooLong { charge, max });
        }
        self.charged.renew_asked = true;
        self.charged.waiting.push_back(Waiting { message, charge, holds: 0 });
        Ok(())
    }

    /// Answers `Event::Renew`. Where the link has ended meanwhile, in order or not, the answer is dropped.
    pub fn handle_renewed(&mut self, answer: Result<Vec<Vec<u8>>, String>) {
        if !matches!(self.phase, Phase::Open) || self.ending.said {
            return;
        }
        // Answered before, or never asked: whoever answers twice has said it already.
        if !std::mem::take(&mut self.charged.renew_owed) {
            return;
        }
        let max = self.sending.control.charge_max();
        let not_renewed = |why: String| Control::NotRenewed { why: words(why) };
        let message = match answer {
            Ok(chain) => Control::Renewed { chain },
            Err(why) => not_renewed(why),
        };
        let message = match cost(&message) {
            charge if charge > max => {
                not_renewed(format!("the certificate costs {charge} bytes of credit, this end takes {max}"))
            }
            _ => message,
        };
        let charge = cost(&message);
        self.charged.waiting.push_back(Waiting { message, charge, holds: 0 });
    }

    /// A message came that is charged, or has no place here at all.
    pub(super) fn take_charged(&mut self, message: Control) -> Result<(), Broken> {
        if !is_charged(&message) {
            return Err(self.unexpected(&message));
        }
        let charge = cost(&message);
        self.receiving.control.receive(Lane::Control, charge)?;
        // Who has said that it is drained answers probes and nothing else.
        if self.ending.said_by_peer && !matches!(message, Control::Echo { .. }) {
            return Err(self.unexpected(&message));
        }
        match message {
            // Its room is held until its echo goes.
            Control::Probe { id, padding } => return self.take_probe(id, padding, charge),
            // And until the application has read it.
            Control::Cluster(message) => return self.take_told(message, charge),
            Control::Echo { id, padding } => self.take_echo(id, padding)?,
            Control::Renew { request } if self.may_be_asked() => {
                self.charged.renew_owed = true;
                self.tell_application(Event::Renew { request });
            }
            Control::Renewed { chain } if std::mem::take(&mut self.charged.renew_asked) => {
                self.events.push_back(Event::Renewed { chain });
            }
            Control::NotRenewed { why } if std::mem::take(&mut self.charged.renew_asked) => {
                self.events.push_back(Event::NotRenewed { why });
            }
            message => return Err(self.unexpected(&message)),
        }
        self.receiving.control.release(charge);
        Ok(())
    }

    /// The next charged message for which there is credit.
    pub(super) fn poll_charged(&mut self) -> Option<Control> {
        let charge = self.charged.waiting.front()?.charge;
        if charge > self.sending.control.left() {
            return None;
        }
        let Waiting { message, holds, .. } = self.charged.waiting.pop_front()?;
        self.sending.control.take(charge).expect("there is credit, and none is queued that is too long");
        self.receiving.control.release(holds);
        self.told_goes(&message, charge);
        self.advance_drain();
        Some(message)
    }

    fn may_be_asked(&self) -> bool {
        self.local.peer.role == Role::Coordinator && !self.charged.renew_owed
    }

    /// What the longest control message may cost that this end takes.
    fn charge_max_here(&self) -> u64 {
        charge(self.limits.payload_bytes_max.control)
    }

    fn take_probe(&mut self, id: u64, padding: Vec<u8>, charge: u64) -> Result<(), Broken> {
        let max = self.sending.control.charge_max();
        if charge > max {
            return Err(Broken::Probe { bytes: charge, max });
        }
        let message = Control::Echo { id, padding };
        self.charged.waiting.push_back(Waiting { message, charge, holds: charge });
        Ok(())
    }

    fn take_echo(&mut self, id: u64, padding: Vec<u8>) -> Result<(), Broken> {
        let bytes = padding.len();
        match self.charged.probes.pop_front() {
            Some(probe) if probe.id == id && probe.padding_bytes == bytes => {
                self.charged.probes_charge -= probe.charge;
                self.events.push_back(Event::Echo { id, padding });
                self.advance_drain();
                Ok(())
            }
            _ => Err(Broken::Echo { id, bytes }),
        }
    }
}
