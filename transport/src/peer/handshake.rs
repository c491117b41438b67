//! From a connection to an open link.
//!
//! The same for both ends: the control lane is pumped until the link says what is next. Nothing is shared
//! yet, so a handshake that fails leaves nothing behind.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::driver;
use super::handle::{Opened, Peer};
use super::inlet::Inlet;
use super::outlet::Outlet;
use super::shared::{Notices, Shared};
use crate::Limits;
use crate::buffer::Pool;
use crate::carrier::{LaneDialler, LaneEnds, LaneError, LaneReceiver, LaneSender, Outbox};
use crate::frame::Meter;
use crate::link::{Ended, Event, Link};
use crate::wire::control::{
    Attach, CloseReason, ControlError, PROTOCOL, Refusal, control_frame, read_control, words,
};
use crate::wire::{Control, Lane, PerLane};

/// How long the last word of a refusal may take to leave.
const LAST_WORD_MAX: Duration = Duration::from_secs(1);

/// A link whose lanes are not all there yet.
pub(super) struct Handshake {
    pub(super) link: Link,
    pub(super) control: LaneEnds,
    pub(super) data: Option<LaneEnds>,
    pub(super) weights: Option<LaneEnds>,
    pub(super) pool: Pool,
    pub(super) limits: Limits,
    pub(super) address: String,
    pub(super) session: [u8; 16],
    /// Where lanes arrive: the accepting end.
    pub(super) arriving: Option<mpsc::Receiver<(Lane, LaneEnds)>>,
    /// What dials lanes: the dialling end.
    pub(super) dialler: Option<Box<dyn LaneDialler>>,
    pub(super) outbox: Outbox,
    /// When all of it must be over.
    pub(super) deadline: Instant,
}

enum Next {
    Event(Event),
    Arrived(Lane, LaneEnds),
}

impl Handshake {
    /// Runs it to its end.
    pub(super) async fn run(mut self) -> Result<Opened, Ended> {
        loop {
            match self.next().await {
                Next::Event(Event::Open) => return Ok(self.open()),
                Next::Event(Event::Closed(ended)) => {
                    self.last_word().await;
                    return Err(ended);
                }
                Next::Event(Event::DialLanes { session, ports }) => self.dial_lanes(session, ports).await,
                // Nothing else concerns a link that is not open.
                Next::Event(_) => {}
                Next::Arrived(lane, ends) => self.take_lane(lane, ends).await,
            }
        }
    }

    /// Pumps the control lane until something happens.
    async fn next(&mut self) -> Next {
        let mut timer = pin!(tokio::time::sleep_until(Instant::now().into()));
        poll_fn(|context| {
            loop {
                if let Some(ready) = self.poll_next(context) {
                    return Poll::Ready(ready);
                }
                let Some(at) = self.link.poll_timeout() else { return Poll::Pending };
                timer.as_mut().reset(at.into());
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.link.handle_timeout(Instant::now());
            }
        })
        .await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Option<Next> {
        loop {
            while let Some(message) = self.link.poll_control() {
                // A full pool is found out by the deadline of the handshake.
                self.outbox.extend(control_frame(&self.pool, &message));
            }
            if self.link.peer().is_some() {
                // What is sent now may let the peer send what only an open link takes.
                self.control.receiver.raise(self.limits.payload_bytes_max.control);
            }
            if let Poll::Ready(Err(error)) = self.control.sender.poll_send(context, &mut self.outbox) {
                self.link.handle_lost(Lane::Control, error.to_string(), Instant::now());
            }
            if let Some(event) = self.link.poll_event() {
                return Some(Next::Event(event));
            }
            if let Some(arriving) = &mut self.arriving
                && let Poll::Ready(Some((lane, ends))) = arriving.poll_recv(context)
            {
                return Some(Next::Arrived(lane, ends));
            }
            match self.control.receiver.poll_receive(context) {
                Poll::Ready(Ok(Some(frame))) => match read_control(&frame) {
                    Ok(message) => self.link.handle_control(message, Instant::now()),
                    Err(error) => self.broken(&error),
                },
                Poll::Ready(Ok(None)) => {
                    self.link.handle_lost(
                        Lane::Control,
                        "it ended the connection".to_owned(),
                        Instant::now(),
                    );
                }
                Poll::Ready(Err(error)) if error.is_breach() => self.broken(&error),
                Poll::Ready(Err(error)) => {
                    self.link.handle_lost(Lane::Control, error.to_string(), Instant::now())
                }
                Poll::Pending => return None,
            }
        }
    }

    fn broken(&mut self, what: &impl std::fmt::Display) {
        self.link.handle_close(CloseReason::Broken(what.to_string()), Instant::now());
    }

    /// Says why, if that is still possible, so that the other end can show it.
    async fn last_word(&mut self) {
        while let Some(message) = self.link.poll_control() {
            self.outbox.extend(control_frame(&self.pool, &message));
        }
        let Self { control, outbox, .. } = self;
        let said = async {
            poll_fn(|context| control.sender.poll_send(context, outbox)).await?;
            poll_fn(|context| control.sender.poll_finish(context)).await?;
            // The peer closes when it has read it. To close first could destroy what it has not read.
            while poll_fn(|context| control.receiver.poll_receive(context)).await?.is_some() {}
            Ok::<_, LaneError>(())
        };
        // It is a courtesy: the link is over either way.
        let _ = tokio::time::timeout(LAST_WORD_MAX, said).await;
    }

    /// The dialling end: connects the lanes that are connections of their own.
    async fn dial_lanes(&mut self, session: [u8; 16], ports: [Option<u16>; 2]) {
        self.session = session;
        let Some(mut dialler) = self.dialler.take() else { return };
        let deadline = self.deadline;
        for (lane, port) in [(Lane::Data, ports[0]), (Lane::Weights, ports[1])] {
            let attached = tokio::time::timeout_at(deadline.into(), async {
                let mut ends = dialler.dial(lane, port).await.map_err(|error| error.to_string())?;
                let attach = Control::Attach(Attach { protocol: PROTOCOL, session, lane });
                say(&mut *ends.sender, &self.pool, &attach).await?;
                match hear(&mut *ends.receiver).await.map_err(|why| why.to_string())? {
                    Control::Attached => Ok(ends),
                    Control::Refused(refusal) => Err(refusal.to_string()),
                    other => Err(format!("it answered with {other:?}")),
                }
            });
            match attached.await {
                Ok(Ok(ends)) => self.attached(lane, ends),
                Ok(Err(why)) => return self.link.handle_lost(lane, why, Instant::now()),
                Err(_) => {
                    let why = "it could not be connected in the time that a handshake has".to_owned();
                    return self.link.handle_lost(lane, why, Instant::now());
                }
            }
        }
    }

    /// The accepting end: a lane has come.
    async fn take_lane(&mut self, lane: Lane, mut ends: LaneEnds) {
        // The link knows it before the peer is answered: the answer lets the peer send.
        let attached = self.link.handle_attached(lane, Instant::now());
        let answer = attached.map_or_else(Control::Refused, |()| Control::Attached);
        ends.receiver.raise(self.limits.payload_bytes_max[lane]);
        let deadline = self.deadline;
        match tokio::time::timeout_at(deadline.into(), say(&mut *ends.sender, &self.pool, &answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.link.handle_lost(lane, why, Instant::now()),
            Err(_) => self.link.handle_lost(lane, "it took no answer in time".to_owned(), Instant::now()),
        }
        self.keep(lane, ends);
    }

    /// The dialling end: a lane was answered.
    fn attached(&mut self, lane: Lane, mut ends: LaneEnds) {
        ends.receiver.raise(self.limits.payload_bytes_max[lane]);
        // A link that has ended meanwhile says so by its next event.
        let _ = self.link.handle_attached(lane, Instant::now());
        self.keep(lane, ends);
    }

    fn keep(&mut self, lane: Lane, ends: LaneEnds) {
        let place = match lane {
            Lane::Data => &mut self.data,
            Lane::Weights => &mut self.weights,
            Lane::Control => return,
        };
        *place = Some(ends);
    }

    /// The link is open: from here on it is shared.
    fn open(self) -> Opened {
        let Self { link, mut control, data, weights, limits, address, session, outbox, .. } = self;
        debug_assert!(outbox.is_empty() || outbox.len() < 16, "a handshake says little");
        let (mut data, mut weights) =
            (data.expect("open with all lanes"), weights.expect("open with all lanes"));
        for (ends, lane) in
            [(&mut control, Lane::Control), (&mut data, Lane::Data), (&mut weights, Lane::Weights)]
        {
            ends.receiver.raise(limits.payload_bytes_max[lane]);
        }
        let hello = link.peer().expect("open links know their peer").clone();
        let outlets = PerLane {
            control: Arc::new(Outlet::new(control.sender)),
            data: Arc::new(Outlet::new(data.sender)),
            weights: Arc::new(Outlet::new(weights.sender)),
        };
        let shared = Shared::new(link, outlets, hello, address, session, limits.window_bytes.control);
        let meter = |lane| Meter::new(limits.window_bytes[lane] / 4, Arc::clone(&shared.driver));
        let meters = PerLane {
            control: Arc::clone(&shared.control_meter),
            data: meter(Lane::Data),
            weights: meter(Lane::Weights),
        };
        let inlet = |lane, receiver: Box<dyn LaneReceiver>| {
            Inlet::new(lane, receiver, Arc::clone(&meters[lane]), Arc::clone(&shared))
        };
        let opened = Opened {
            data: inlet(Lane::Data, data.receiver),
            weights: inlet(Lane::Weights, weights.receiver),
            notices: Notices::new(Arc::clone(&shared)),
            peer: Peer::new(Arc::clone(&shared)),
        };
        // What the carrier had no room for yet goes out with the lane's own task.
        outbox.into_iter().for_each(|frame| drop(shared.outlets[Lane::Control].put(frame)));
        driver::start(&shared, control.receiver, meters);
        opened
    }
}

/// Sends one message on a lane that is not a link's yet.
pub(super) async fn say(sender: &mut dyn LaneSender, pool: &Pool, message: &Control) -> Result<(), String> {
    let frame = control_frame(pool, message).map_err(|error| error.to_string())?;
    let mut outbox = Outbox::from([frame]);
    poll_fn(|context| sender.poll_send(context, &mut outbox)).await.map_err(|error| error.to_string())
}

/// Why no message was heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unheard {
    /// What came is none.
    #[error("{0}")]
    Message(#[from] ControlError),
    /// The lane failed, or what came is no frame.
    #[error("{0}")]
    Lane(#[from] LaneError),
    /// Nothing came.
    #[error("it ended the connection")]
    Ended,
}

impl Unheard {
    /// What to say to a peer that somebody can still learn from; nothing where the way itself is gone.
    pub(super) fn answer(&self) -> Option<Control> {
        match self {
            Self::Message(ControlError::Protocol { theirs }) => {
                Some(Control::Refused(Refusal::Protocol { theirs: *theirs, ours: PROTOCOL }))
            }
            Self::Message(why) => Some(Control::Close(CloseReason::Broken(words(why)))),
            Self::Lane(why) if why.is_breach() => Some(Control::Close(CloseReason::Broken(words(why)))),
            Self::Lane(_) | Self::Ended => None,
        }
    }
}

/// Receives one.
pub(super) async fn hear(receiver: &mut dyn LaneReceiver) -> Result<Control, Unheard> {
    match poll_fn(|context| receiver.poll_receive(context)).await? {
        Some(frame) => Ok(read_control(&frame)?),
        None => Err(Unheard::Ended),
    }
}

/// Says a last word to a connection that becomes neither a link nor a lane.
pub(super) async fn part(mut ends: LaneEnds, pool: &Pool, last_word: &Control) {
    let said = async {
        say(&mut *ends.sender, pool, last_word).await?;
        poll_fn(|context| ends.sender.poll_finish(context)).await.map_err(|error| error.to_string())?;
        while hear(&mut *ends.receiver).await.is_ok() {}
        Ok::<_, String>(())
    };
    // As above: a courtesy.
    let _ = tokio::time::timeout(LAST_WORD_MAX, said).await;
}
