//! The handle of an open link: sends frames, probes, drains and closes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::inlet::Inlet;
use super::lock;
use super::outlet::Outlet;
use super::shared::{Notices, Renewal, Shared};
use crate::Frame;
use crate::carrier::Vouched;
use crate::link::{
    DispatchRefused, Ended, Link, ProbeRefused, RenewRefused, SendRefused, State, TellRefused,
};
use crate::wire::cluster::Cluster;
use crate::wire::control::{CloseReason, Hello};
use crate::wire::groups::dispatches;
use crate::wire::{Kind, Lane};

/// A link that stands.
pub struct Opened {
    /// To send with, and to end it.
    pub peer: Peer,
    /// Dispatches and returns that come.
    pub data: Inlet,
    /// Tensors that come.
    pub weights: Inlet,
    /// What else happens.
    pub notices: Notices,
}

/// The handle of an open link. Clones are the same link; when the last is dropped the link is closed.
#[derive(Clone)]
pub struct Peer {
    handle: Arc<Handle>,
}

/// Why a frame was not sent. It is handed back.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The peer has given no room yet. [`Peer::send`] waits for it.
    #[error("{peer} has granted no room for {} bytes on the {lane} lane yet", frame.payload.len())]
    NoCredit {
        /// The frame.
        frame: Frame,
        /// The peer.
        peer: Arc<str>,
        /// The lane.
        lane: Lane,
    },
    /// The link is draining: it takes no new dispatches.
    #[error("the link to {peer} is being drained and takes no new dispatches")]
    Draining {
        /// The frame.
        frame: Frame,
        /// The peer.
        peer: Arc<str>,
    },
    /// A dispatch cannot be put in flight.
    #[error("to {peer}: {why}")]
    Dispatch {
        /// The frame.
        frame: Frame,
        /// The peer.
        peer: Arc<str>,
        /// Too many, or an id used twice.
        why: DispatchRefused,
    },
    /// The frame is longer than the peer takes.
    #[error("a payload of {} bytes, {peer} takes {max} on the {lane} lane", frame.payload.len())]
    TooLong {
        /// The frame.
        frame: Frame,
        /// The peer.
        peer: Arc<str>,
        /// The lane.
        lane: Lane,
        /// What it takes.
        max: u64,
    },
    /// The link has ended.
    #[error("{ended}")]
    Ended {
        /// The frame.
        frame: Frame,
        /// How.
        ended: Ended,
    },
}

impl SendError {
    /// The frame that was not sent.
    pub fn into_frame(self) -> Frame {
        match self {
            Self::NoCredit { frame, .. }
            | Self::Draining { frame, .. }
            | Self::Dispatch { frame, .. }
            | Self::TooLong { frame, .. }
            | Self::Ended { frame, .. } => frame,
        }
    }
}

/// Closes the link when its last handle goes.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.with_link(|link, now| {
            // A link that is ending in order goes on doing so; its own bound is `drain_max`.
            if link.state() == State::Open {
                link.handle_close(CloseReason::Wanted, now);
            }
        });
    }
}

#[expect(clippy::result_large_err, reason = "a frame that is not sent is handed back without an allocation")]
impl Peer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { handle: Arc::new(Handle { shared }) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// What the peer said of itself, its name as far as its certificate vouches for it.
    pub fn hello(&self) -> &Hello {
        &self.shared().hello
    }

    /// Who the carrier says that it is: only a certificate makes a name more than a claim.
    pub fn vouched(&self) -> &Vouched {
        &self.shared().vouched
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.shared().address
    }

    /// Names this link; never used again.
    pub fn session(&self) -> [u8; 16] {
        self.shared().session
    }

    /// Sends a frame now, or hands it back: it never waits. The lane follows from the frame's kind.
    pub fn try_send(&self, frame: Frame) -> Result<(), SendError> {
        self.send_as(frame, false)
    }

    /// Sends a frame as soon as the peer has granted room for it, and for a dispatch as soon as there is room
    /// among those in flight; those who wait are served in order. Cancelled, it has sent nothing.
    ///
    /// A dispatch goes with the time that is left when it goes. Where none is, it goes all the same: its groups are
    /// answered, as `Late` at the latest, like those of any dispatch.
    pub async fn send(&self, frame: Frame) -> Result<(), SendError> {
        let (began, remaining_us) = (Instant::now(), frame.header.remaining_us);
        let mut frame = match later(self.try_send(frame)) {
            Ok(frame) => frame,
            Err(result) => return result,
        };
        let outlet = &self.shared().outlets[lane_of(frame.header.kind)];
        let _in_line = InLine::enter(outlet);
        let _turn = outlet.turn.lock().await;
        loop {
            let room = outlet.credit.notified();
            let waited_us = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
            frame.header.remaining_us = remaining_us.saturating_sub(waited_us);
            frame = match later(self.send_as(frame, true)) {
                Ok(frame) => frame,
                Err(result) => return result,
            };
            room.await;
        }
    }

    fn send_as(&self, frame: Frame, first_in_line: bool) -> Result<(), SendError> {
        let shared = self.shared();
        let lane = lane_of(frame.header.kind);
        let outlet = &shared.outlets[lane];
        let max = shared.hello.limits.payload_bytes_max[lane];
        if frame.payload.len() as u64 > max {
            return Err(SendError::TooLong { frame, peer: shared.name(), lane, max });
        }
        if !first_in_line && outlet.has_line() {
            return Err(SendError::NoCredit { frame, peer: shared.name(), lane });
        }
        // What the link has counted stands in the queue before anybody else asks the link: lanes are finished
        // only behind it.
        let mut link = lock(&shared.link);
        let admitted = admit(&mut link, lane, &frame);
        let (writing, is_nearest) = match admitted {
            Ok(is_nearest) => (outlet.put(frame.without_credit()), is_nearest),
            Err(Refused::Send(SendRefused::NoCredit { .. })) => {
                return Err(SendError::NoCredit { frame, peer: shared.name(), lane });
            }
            Err(Refused::Send(SendRefused::Draining) | Refused::Dispatch(DispatchRefused::Draining)) => {
                return Err(SendError::Draining { frame, peer: shared.name() });
            }
            Err(
                Refused::Send(SendRefused::Closed(ended)) | Refused::Dispatch(DispatchRefused::Closed(ended)),
            ) => {
                return Err(SendError::Ended { frame, ended });
            }
            Err(Refused::Dispatch(why)) => {
                return Err(SendError::Dispatch { frame, peer: shared.name(), why });
            }
            Err(Refused::Send(SendRefused::TooLong { .. } | SendRefused::NotOpen)) => {
                unreachable!("its length was looked at, and only open links are shared")
            }
        };
        // A return may be the last of a drain, and a new deadline the nearest; seldom either.
        let news = is_nearest || link.has_output();
        drop(link);
        if news {
            shared.driver.notify_one();
        }
        if let Err(error) = outlet.flush(writing) {
            // The frame is lost with the link; whoever waits for its return hears of it like everybody.
            shared.lane_failed(lane, &error);
        }
        Ok(())
    }

    /// Says something of the cluster, or refuses to: it never waits. The peer hears it as [`Notice::Told`], once and in
    /// order. It may still be refused or lost when the link ends; what was accepted arrives before an orderly end.
    ///
    /// While the link is draining this end may go on telling as long as something is in flight; see
    /// [`TellRefused::Draining`].
    ///
    /// [`Notice::Told`]: super::Notice::Told
    pub fn tell(&self, message: Cluster) -> Result<(), TellRefused> {
        self.shared().with_link(|link, _| link.handle_tell(message))
    }

    /// How long a control message with so much filling takes to the peer and back.
    pub async fn probe(&self, padding_bytes: usize) -> Result<Duration, ProbeRefused> {
        let shared = self.shared();
        let id = shared.probe_next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        // The link bounds how many are out.
        lock(&shared.probes).insert(id, answer);
        let began = Instant::now();
        if let Err(why) = shared.with_link(|link, _| link.handle_probe(id, vec![0; padding_bytes])) {
            lock(&shared.probes).remove(&id);
            return Err(why);
        }
        match answered.await {
            Ok(()) => Ok(began.elapsed()),
            Err(_) => Err(ProbeRefused::Closed(self.closed().await)),
        }
    }

    /// Asks the peer for a certificate that lasts longer.
    pub async fn renew(&self, request: Vec<u8>) -> Result<Renewal, RenewRefused> {
        let (answer, answered) = oneshot::channel();
        // The answer comes over this task's link, so it cannot come before its place is there.
        self.shared().with_link(|link, _| {
            link.handle_renew(request)?;
            *lock(&self.shared().renewal) = Some(answer);
            Ok(())
        })?;
        match answered.await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(RenewRefused::Closed(self.closed().await)),
        }
    }

    /// The answer to [`Notice::RenewalAsked`].
    pub fn answer_renewal(&self, answer: Renewal) {
        self.shared().with_link(|link, _| link.handle_renewed(answer));
    }

    /// Ends the link in order: no new dispatches either way, then everything in flight returns and
    /// everything sent arrives. Both ends must go on receiving. How it ended is the result.
    pub async fn drain(&self) -> Ended {
        self.shared().with_link(|link, now| link.handle_drain(now));
        // Dispatches that wait in line are not for this link any more.
        self.shared().outlets.data.credit.notify_one();
        self.closed().await
    }

    /// Ends it now and tells the peer why.
    pub fn close(&self, reason: CloseReason) {
        self.shared().with_link(|link, now| link.handle_close(reason, now));
    }

    /// Waits until it has ended.
    pub async fn closed(&self) -> Ended {
        self.shared().wait_for_end().await
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.shared().ended()
    }

    /// Credits left on a lane, in bytes.
    pub fn credit_left(&self, lane: Lane) -> u64 {
        lock(&self.shared().link).credit_left(lane)
    }

    /// Dispatches that wait for their returns.
    pub fn in_flight(&self) -> usize {
        lock(&self.shared().link).in_flight()
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Peer({})", self.shared().name())
    }
}

/// The frame, if there may be room for it later; else what came of it.
#[expect(clippy::result_large_err, reason = "nothing is moved that was not before")]
fn later(result: Result<(), SendError>) -> Result<Frame, Result<(), SendError>> {
    match result {
        Err(SendError::NoCredit { frame, .. }) => Ok(frame),
        // More groups than ever fit wait for nothing.
        Err(SendError::Dispatch { frame, why: DispatchRefused::InFlightFull { max }, .. })
            if u32::from(frame.header.groups) <= max =>
        {
            Ok(frame)
        }
        other => Err(other),
    }
}

enum Refused {
    Send(SendRefused),
    Dispatch(DispatchRefused),
}

/// Takes credits for a frame and puts its dispatches in flight, all or nothing. True if its deadline is nearer
/// than anything that the link waits for.
fn admit(link: &mut Link, lane: Lane, frame: &Frame) -> Result<bool, Refused> {
    let ids = || dispatches(&frame.header, &frame.payload);
    if frame.header.kind == Kind::Dispatch {
        link.may_dispatch(ids().count()).map_err(Refused::Dispatch)?;
    }
    link.handle_send(lane, frame.charge()).map_err(Refused::Send)?;
    match frame.header.kind {
        Kind::Dispatch => {
            let now = Instant::now();
            let deadline = now + Duration::from_micros(frame.header.remaining_us.into());
            let is_nearest = link.poll_timeout().is_some_and(|timer| deadline < timer);
            for (sent, dispatch) in ids().enumerate() {
                if let Err(why) = link.handle_dispatch(dispatch, deadline, now) {
                    // As if it had never been.
                    ids().take(sent).for_each(|undone| {
                        link.handle_return(undone);
                    });
                    link.handle_unsent(lane, frame.charge());
                    return Err(Refused::Dispatch(why));
                }
            }
            return Ok(is_nearest);
        }
        Kind::Return => {
            for dispatch in ids() {
                // A return for nothing is the peer's to drop and count.
                link.handle_returned(dispatch);
            }
        }
        Kind::Control | Kind::Weights => {}
    }
    Ok(false)
}

/// The lane that frames of a kind belong to.
fn lane_of(kind: Kind) -> Lane {
    match kind {
        Kind::Dispatch | Kind::Return => Lane::Data,
        Kind::Weights => Lane::Weights,
        Kind::Control => panic!("control messages are the link's own"),
    }
}

/// Stands in line for credits until it is dropped.
struct InLine<'a>(&'a Outlet);

impl<'a> InLine<'a> {
    fn enter(outlet: &'a Outlet) -> Self {
        outlet.waiting.fetch_add(1, Ordering::Relaxed);
        Self(outlet)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        // Whoever is next may have missed the news that this one was woken for.
        self.0.credit.notify_one();
    }
}
