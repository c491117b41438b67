//! The task of an open link: it reads the control lane, keeps the link's time, and carries out what the
//! link asks for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::futures::Notified;

use super::lock;
use super::outlet::Outlet;
use super::shared::{Notice, Renewal, Shared};
use crate::carrier::LaneReceiver;
use crate::frame::Meter;
use crate::link::Event;
use crate::wire::control::{CloseReason, control_frame, read_control};
use crate::wire::{Lane, PerLane};

/// Control frames that may wait for the carrier.
const CONTROL_QUEUED_MAX: usize = 16;
/// Control frames that are read before the others get their turn.
const FRAMES_AT_ONCE_MAX: usize = 64;

/// Begins the tasks of a link: one for the control lane, and one for each lane's sending end.
pub(super) fn start(shared: &Arc<Shared>, control: Box<dyn LaneReceiver>, meters: PerLane<Arc<Meter>>) {
    for lane in Lane::ALL {
        tokio::spawn(run_outlet(Arc::clone(shared), Arc::clone(&shared.outlets[lane]), lane));
    }
    tokio::spawn(run(Arc::clone(shared), control, meters));
}

async fn run_outlet(shared: Arc<Shared>, outlet: Arc<Outlet>, lane: Lane) {
    let has_room = || {
        // The driver says nothing on a control lane that is full.
        if lane == Lane::Control {
            shared.driver.notify_one();
        }
    };
    match outlet.run(has_room).await {
        Ok(true) => shared.with_link(|link, now| link.handle_flushed(lane, now)),
        Ok(false) => {}
        Err(error) => shared.lane_failed(lane, &error),
    }
}

async fn run(shared: Arc<Shared>, mut control: Box<dyn LaneReceiver>, meters: PerLane<Arc<Meter>>) {
    let mut timer = pin!(tokio::time::sleep_until(Instant::now().into()));
    let mut open = true;
    // Whatever becomes of this task, nobody waits for ever.
    let _stopped = Stopped(&shared);
    while shared.ended().is_none() {
        let told: Notified<'_> = shared.driver.notified();
        let mut told = pin!(told);
        poll_fn(|context: &mut Context<'_>| {
            // Asked first: what is told from here on wakes this task.
            let again = told.as_mut().poll(context).is_ready();
            for lane in Lane::ALL {
                while let Some(total) = meters[lane].take() {
                    lock(&shared.link).handle_released(lane, total, Instant::now());
                }
            }
            let more = open && receive(&shared, &mut *control, &mut open, context);
            settle(&shared);
            if shared.ended().is_some() || again || more {
                return Poll::Ready(());
            }
            // Only after all that the peer has said: its last words come before what its silence means.
            let Some(at) = lock(&shared.link).poll_timeout() else { return Poll::Pending };
            timer.as_mut().reset(at.into());
            if timer.as_mut().poll(context).is_ready() {
                lock(&shared.link).handle_timeout(Instant::now());
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        for inlet in shared.take_abandoned() {
            tokio::spawn(inlet.discard());
        }
        // Others of this thread run between two rounds, however much the peer sends.
        tokio::task::yield_now().await;
    }
}

/// Ends the link if its driver stops before it: by a panic, or because its runtime was shut down.
struct Stopped<'a>(&'a Shared);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.0.ended().is_none() {
            let why = "the task that drives the link was stopped".to_owned();
            lock(&self.0.link).handle_lost(Lane::Control, why, Instant::now());
            settle(self.0);
        }
        // They hold what holds them.
        drop(self.0.take_abandoned());
    }
}

/// Reads control frames; true if there may be more at once.
fn receive(
    shared: &Shared,
    control: &mut dyn LaneReceiver,
    open: &mut bool,
    context: &mut Context<'_>,
) -> bool {
    for _ in 0..FRAMES_AT_ONCE_MAX {
        match control.poll_receive(context) {
            Poll::Ready(Ok(Some(frame))) => match read_control(&frame) {
                Ok(message) => lock(&shared.link).handle_control(message, Instant::now()),
                Err(error) => {
                    let what = CloseReason::Broken(format!("on the control lane: {error}"));
                    lock(&shared.link).handle_close(what, Instant::now());
                }
            },
            Poll::Ready(Ok(None)) => {
                *open = false;
                lock(&shared.link).handle_finished(Lane::Control, Instant::now());
                return false;
            }
            Poll::Ready(Err(error)) => {
                *open = false;
                shared.lane_failed(Lane::Control, &error);
                return false;
            }
            Poll::Pending => return false,
        }
    }
    true
}

/// Carries out everything that the link asks for.
pub(super) fn settle(shared: &Shared) {
    let _in_order = lock(&shared.settling);
    loop {
        // A peer that does not read its control lane is not talked to meanwhile, or its echoes and our heartbeats
        // would pile up; what ends a link is said all the same.
        let is_full = shared.outlets[Lane::Control].queued() >= CONTROL_QUEUED_MAX;
        let (message, event) = {
            let mut link = lock(&shared.link);
            let message = if is_full && link.ended().is_none() { None } else { link.poll_control() };
            (message, link.poll_event())
        };
        if message.is_none() && event.is_none() {
            return;
        }
        if let Some(message) = message {
            let sent = match control_frame(&shared.control_pool, &message) {
                Ok(frame) => {
                    let outlet = &shared.outlets[Lane::Control];
                    // Only here are control messages put, one thread at a time.
                    let writing = outlet.put(frame);
                    outlet.flush(writing).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = sent {
                lock(&shared.link).handle_lost(Lane::Control, why, Instant::now());
            }
        }
        if let Some(event) = event {
            carry_out(shared, event);
        }
    }
}

fn carry_out(shared: &Shared, event: Event) {
    match event {
        Event::Writable(lane) => shared.outlets[lane].credit.notify_one(),
        Event::Expired { dispatch } => shared.notice(Notice::Expired { dispatch }),
        Event::Late { silent } => shared.notice(Notice::Late { silent }),
        Event::Awake => shared.notice(Notice::Awake),
        Event::DrainAsked => {
            // Dispatches that wait in line are not for this link any more.
            shared.outlets.data.credit.notify_one();
            shared.notice(Notice::DrainAsked);
        }
        Event::FinishLanes => Lane::ALL.into_iter().for_each(|lane| shared.outlets[lane].finish()),
        Event::Echo { id, .. } => {
            if let Some(waiting) = lock(&shared.probes).remove(&id) {
                // Whoever asked may have stopped waiting.
                let _ = waiting.send(());
            }
        }
        Event::Renew { request } => shared.notice(Notice::RenewalAsked { request }),
        Event::Renewed { chain } => renewed(shared, Ok(chain)),
        Event::NotRenewed { why } => renewed(shared, Err(why)),
        Event::Told { message, charge } => shared.told(message, charge),
        Event::Closed(ended) => shared.end(ended),
        // Both belong to the handshake, which is over.
        Event::DialLanes { .. } | Event::Open => {}
    }
}

fn renewed(shared: &Shared, answer: Renewal) {
    if let Some(waiting) = lock(&shared.renewal).take() {
        // Whoever asked may have stopped waiting.
        let _ = waiting.send(answer);
    }
}
