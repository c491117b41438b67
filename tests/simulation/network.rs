//! The links between nodes and coordinators: the ends are the product's own, what lies between them is simulated.
//!
//! Each way of a link has three lanes. A lane delivers in order, after a delay of its own, and is not ordered with the
//! others. Nothing is lost but with the link; its death is seen by each end when what carries it says so, or by its silence.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use transport::carrier::Vouched;
use transport::link::{
    DispatchRefused, Event as LinkEvent, Link, Local, SendRefused, Side, State, TellRefused,
};
use transport::security::{ClusterId, PeerName, Role};
use transport::wire::cluster::Cluster;
use transport::wire::control::CloseReason;
use transport::wire::{PerLane, charge};
use transport::{Lane, Limits};

use crate::clock::{MS, US};
use crate::frame::{Credit, Dispatch, Moving, ROW_BYTES, Return};
use crate::world::{Event, Process, Sky};

/// One end of one link. Side 0 is the node's, which dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndId {
    pub(crate) pipe: usize,
    pub(crate) side: usize,
}

impl EndId {
    pub(crate) fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// One end, and the lanes that lead away from it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) link: Link,
    pub(crate) owner: Process,
    pub(crate) life: u32,
    /// When its link wants to be asked.
    timer: Option<u64>,
    /// What waits for room, by lane.
    waiting: PerLane<VecDeque<Moving>>,
    lanes: PerLane<VecDeque<(u64, Moving)>>,
    meters: PerLane<Rc<Cell<u64>>>,
    told: PerLane<u64>,
    /// How many faults hold up what it sends.
    blocked: u32,
    /// How much slower than usual what it sends is.
    slowness: u64,
    /// It has ended, or its process has.
    pub(crate) is_over: bool,
}

/// All links there ever were.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) ends: Vec<[End; 2]>,
    pub(crate) dirty: Rc<RefCell<Vec<EndId>>>,
    /// What links have said to their owners, until these have heard it.
    pub(crate) news: VecDeque<(EndId, LinkEvent)>,
    /// Frames that had to wait for room.
    pub(crate) waited: u64,
}

/// What has come for a process.
#[derive(Debug)]
pub(crate) enum Delivered {
    Dispatch(Dispatch, Credit),
    Return(Return, Credit),
    Weights { ask: u64, is_last: bool, credit: Credit },
}

/// A frame was not sent, and never will be: the link drains, or is over.
#[derive(Debug)]
pub(crate) struct NotSent;

/// The bounds of a link of so many rows at once.
pub(crate) fn limits(rows: u64) -> Limits {
    let payload = (1024 + rows * ROW_BYTES).next_power_of_two();
    // As by default: a quarter that is not granted yet and a half that landed rows keep leave room for the longest frame.
    let data = 4 * charge(payload);
    Limits {
        payload_bytes_max: PerLane { control: 1 << 16, data: payload, weights: 4096 },
        window_bytes: PerLane { control: 1 << 18, data, weights: 4 * charge(4096) },
        in_flight_max: 64,
        heartbeat_every: Duration::from_millis(100),
        silence_max: Duration::from_millis(2_500),
        handshake_max: Duration::from_millis(1_500),
        drain_max: Duration::from_secs(20),
    }
}

fn local(owner: Process, life: u32) -> Local {
    let (role, name) = match owner {
        Process::Node(at) => (Role::Node, format!("n{at}")),
        Process::Coordinator(at) => (Role::Coordinator, format!("c{at}")),
    };
    Local {
        peer: PeerName { cluster: ClusterId([7; 16]), role, name },
        program: "simulation".into(),
        incarnation: life.into(),
        numeric: None,
        row_bytes: ROW_BYTES,
        mixed_classes: false,
    }
}

impl Network {
    pub(crate) fn end(&self, end: EndId) -> &End {
        &self.ends[end.pipe][end.side]
    }

    pub(crate) fn end_mut(&mut self, end: EndId) -> &mut End {
        &mut self.ends[end.pipe][end.side]
    }

    /// How a link stands that has not ended: what waits for room, what is in flight, and what credit is left.
    pub(crate) fn words(&self, pipe: usize) -> String {
        let end = |end: &End| {
            let (waits, left) = (end.waiting.data.len(), end.link.credit_left(Lane::Data));
            let (ours, theirs) = (end.link.in_flight(), end.link.in_flight_theirs());
            format!("{:?}: {waits} frames wait, {left} left, {ours} out, {theirs} to answer", end.owner)
        };
        self.ends[pipe].each_ref().map(end).join(" - ")
    }

    /// Bytes of frames that came on a lane and have not been given back.
    pub(crate) fn held(&self, end: EndId, lane: Lane) -> u64 {
        let of = self.end(end);
        of.link.counters().received_bytes[lane] - of.told[lane]
    }

    fn touch(&self, end: EndId) {
        self.dirty.borrow_mut().push(end);
    }

    /// Every end of a process's life that is not over.
    pub(crate) fn ends_of(&self, owner: Process) -> Vec<EndId> {
        let all = (0..self.ends.len()).flat_map(|pipe| [0, 1].map(|side| EndId { pipe, side }));
        all.filter(|end| self.end(*end).owner == owner && !self.end(*end).is_over).collect()
    }
}

impl Sky {
    /// A node's process has reached a coordinator's.
    pub(crate) fn connect(&mut self, node: (Process, u32), coordinator: (Process, u32)) -> EndId {
        let pipe = self.network.ends.len();
        let now = self.clock.now();
        let limits = limits(self.case.window_rows);
        let slowness = if self.random.chance(self.case.slow_links) { 30 } else { 1 };
        let mut session = [0; 16];
        session[..8].copy_from_slice(&(pipe as u64).to_le_bytes());
        let end = |(owner, life): (Process, u32), side| End {
            link: Link::new(side, local(owner, life), limits, Vouched::Nobody, true, session, [None; 2], now),
            owner,
            life,
            timer: None,
            waiting: PerLane::default(),
            lanes: PerLane::default(),
            meters: PerLane::default(),
            told: PerLane::default(),
            blocked: 0,
            slowness,
            is_over: false,
        };
        self.network.ends.push([end(node, Side::Dialled), end(coordinator, Side::Accepted)]);
        for side in 0..2 {
            self.network.touch(EndId { pipe, side });
        }
        EndId { pipe, side: 0 }
    }

    /// Puts something on a lane.
    fn put(&mut self, from: EndId, lane: Lane, what: Moving) {
        let slowness = self.network.end(from).slowness;
        let usual = match lane {
            Lane::Control => 20 * US + self.random.below(200 * US),
            Lane::Data => 20 * US + self.random.below(400 * US),
            Lane::Weights => 50 * US + self.random.below(2 * MS),
        };
        let end = self.network.end_mut(from);
        let before = end.lanes[lane].back().map_or(0, |(at, _)| *at);
        let at = (self.clock.nanos() + usual * slowness).max(before + 1);
        end.lanes[lane].push_back((at, what));
        self.clock.at(at, Event::Arrive { to: from.other(), lane });
    }

    /// What is first on the lane towards this end arrives, if nothing holds it up.
    pub(crate) fn arrive(&mut self, to: EndId, lane: Lane) -> Option<Delivered> {
        let now = self.clock.nanos();
        let from = self.network.end_mut(to.other());
        if from.blocked > 0 || from.lanes[lane].front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let end = self.network.end(to);
        if end.is_over {
            self.network.end_mut(to.other()).lanes[lane].pop_front();
            return None;
        }
        // A shell reads the other lanes only once the link is open.
        if lane != Lane::Control && matches!(end.link.state(), State::Greeting | State::Attaching) {
            self.clock.after(MS, Event::Arrive { to, lane });
            return None;
        }
        let (_, what) = self.network.end_mut(to.other()).lanes[lane].pop_front()?;
        if self.is_told {
            eprintln!("    {what:?}");
        }
        let delivered = self.take(to, lane, what);
        self.network.touch(to);
        delivered
    }

    fn take(&mut self, to: EndId, lane: Lane, what: Moving) -> Option<Delivered> {
        let now = self.clock.now();
        let charge = what.charge();
        let dirty = Rc::clone(&self.network.dirty);
        let end = self.network.end_mut(to);
        match what {
            Moving::Control(message) => {
                end.link.handle_control(*message, now);
                return None;
            }
            Moving::Finish => {
                end.link.handle_finished(lane, now);
                return None;
            }
            Moving::Cut => {
                end.link.handle_lost(lane, "it was cut".to_owned(), now);
                return None;
            }
            Moving::Dispatch(_) | Moving::Return(_) | Moving::Weights { .. } => {}
        }
        let is_received = end.link.handle_received(lane, charge).is_ok();
        let credit = Credit::new(charge, &end.meters[lane], to, &dirty);
        if !is_received {
            return None;
        }
        match what {
            Moving::Dispatch(frame) => {
                let is_taken =
                    frame.groups.iter().all(|(group, _)| end.link.handle_dispatched(group.dispatch).is_ok());
                is_taken.then_some(Delivered::Dispatch(frame, credit))
            }
            Moving::Return(frame) => {
                let ids = frame.groups.iter().map(|(group, _)| group.dispatch);
                let is_waited_for = ids.fold(false, |open, id| end.link.handle_return(id) | open);
                is_waited_for.then_some(Delivered::Return(frame, credit))
            }
            Moving::Weights { ask, is_last, .. } => Some(Delivered::Weights { ask, is_last, credit }),
            Moving::Control(_) | Moving::Finish | Moving::Cut => None,
        }
    }

    /// Sends a frame now, or as soon as there is room for it.
    pub(crate) fn send(&mut self, from: EndId, what: Moving) -> Result<(), NotSent> {
        let lane = match what {
            Moving::Weights { .. } => Lane::Weights,
            _ => Lane::Data,
        };
        self.network.touch(from);
        if self.network.end(from).waiting[lane].is_empty() {
            match self.admit(from, lane, &what) {
                Admitted::Yes => {
                    self.put(from, lane, what);
                    return Ok(());
                }
                Admitted::Never => return Err(NotSent),
                Admitted::Later => {}
            }
        }
        self.network.waited += 1;
        self.network.end_mut(from).waiting[lane].push_back(what);
        Ok(())
    }

    fn admit(&mut self, from: EndId, lane: Lane, what: &Moving) -> Admitted {
        let now = self.clock.now();
        let charge = what.charge();
        let end = self.network.end_mut(from);
        if end.is_over {
            return Admitted::Never;
        }
        if let Moving::Dispatch(frame) = what {
            match end.link.may_dispatch(frame.groups.len()) {
                Ok(()) => {}
                Err(DispatchRefused::InFlightFull { .. }) => return Admitted::Later,
                Err(_) => return Admitted::Never,
            }
        }
        match end.link.handle_send(lane, charge) {
            Ok(()) => {}
            Err(SendRefused::NoCredit { .. }) => return Admitted::Later,
            Err(SendRefused::TooLong { charge, max }) => {
                panic!("a frame that costs {charge} is sent where {max} is the most")
            }
            Err(_) => return Admitted::Never,
        }
        match what {
            Moving::Dispatch(frame) => {
                let deadline = now + Duration::from_micros(frame.remaining_us);
                for (group, _) in &frame.groups {
                    let taken = end.link.handle_dispatch(group.dispatch, deadline, now);
                    taken.expect("there is room for it, and its id is new");
                }
            }
            Moving::Return(frame) => {
                for (group, _) in &frame.groups {
                    end.link.handle_returned(group.dispatch);
                }
            }
            _ => {}
        }
        Admitted::Yes
    }

    /// Sends what waited for room, as far as there is some now.
    fn send_waiting(&mut self, from: EndId, lane: Lane) {
        while let Some(what) = self.network.end_mut(from).waiting[lane].pop_front() {
            match self.admit(from, lane, &what) {
                Admitted::Yes => self.put(from, lane, what),
                Admitted::Never => {}
                Admitted::Later => {
                    self.network.end_mut(from).waiting[lane].push_front(what);
                    return;
                }
            }
        }
    }

    pub(crate) fn tell(&mut self, from: EndId, what: Cluster) -> Result<(), TellRefused> {
        self.network.touch(from);
        self.network.end_mut(from).link.handle_tell(what)
    }

    pub(crate) fn close(&mut self, end: EndId, why: CloseReason) {
        let now = self.clock.now();
        self.network.touch(end);
        self.network.end_mut(end).link.handle_close(why, now);
    }

    pub(crate) fn drain(&mut self, end: EndId) {
        let now = self.clock.now();
        self.network.touch(end);
        self.network.end_mut(end).link.handle_drain(now);
        self.send_waiting(end, Lane::Data);
    }

    /// A message of the cluster has been read: its room belongs to the peer again.
    pub(crate) fn read(&mut self, end: EndId, charge: u64) {
        let meter = &self.network.end(end).meters.control;
        meter.set(meter.get() + charge);
        self.network.touch(end);
    }

    pub(crate) fn link_timer(&mut self, end: EndId) {
        let (nanos, now) = (self.clock.nanos(), self.clock.now());
        let of = self.network.end_mut(end);
        if !of.is_over && of.timer.take_if(|at| *at <= nanos).is_some() {
            of.link.handle_timeout(now);
            self.network.touch(end);
        }
    }

    /// Carries out what the links want that something happened to.
    pub(crate) fn settle(&mut self) {
        loop {
            let Some(end) = self.network.dirty.borrow_mut().pop() else { return };
            self.settle_end(end);
        }
    }

    fn settle_end(&mut self, id: EndId) {
        let now = self.clock.now();
        if self.network.end(id).is_over {
            return;
        }
        for lane in Lane::ALL {
            let end = self.network.end_mut(id);
            let total = end.meters[lane].get();
            if total > end.told[lane] {
                end.told[lane] = total;
                end.link.handle_released(lane, total, now);
            }
        }
        loop {
            let message = self.network.end_mut(id).link.poll_control();
            let event = self.network.end_mut(id).link.poll_event();
            if message.is_none() && event.is_none() {
                break;
            }
            if let Some(message) = message {
                self.put(id, Lane::Control, Moving::Control(Box::new(message)));
            }
            match event {
                None => {}
                Some(LinkEvent::Writable(lane)) => self.send_waiting(id, lane),
                Some(LinkEvent::FinishLanes) => {
                    for lane in Lane::ALL {
                        self.put(id, lane, Moving::Finish);
                        self.network.end_mut(id).link.handle_flushed(lane, now);
                    }
                }
                Some(LinkEvent::Closed(ended)) => {
                    if !ended.in_order() {
                        Lane::ALL.into_iter().for_each(|lane| self.put(id, lane, Moving::Cut));
                    }
                    let end = self.network.end_mut(id);
                    end.is_over = true;
                    end.waiting = PerLane::default();
                    self.network.news.push_back((id, LinkEvent::Closed(ended)));
                    return;
                }
                Some(event) => {
                    if event == LinkEvent::DrainAsked {
                        self.send_waiting(id, Lane::Data);
                    }
                    self.network.news.push_back((id, event));
                }
            }
        }
        let due = self.network.end(id).link.poll_timeout().map(|due| self.clock.nanos_of(due));
        let end = self.network.end_mut(id);
        if end.timer != due {
            end.timer = due;
            if let Some(due) = due {
                self.clock.at(due, Event::LinkTimer { end: id });
            }
        }
    }

    /// What carries the link breaks, both ways or one lane of it; what was on its way may be lost.
    pub(crate) fn cut(&mut self, pipe: usize, lanes: &[Lane]) {
        for side in 0..2 {
            let id = EndId { pipe, side };
            for &lane in lanes {
                if self.random.chance(500) {
                    let left = self.random.below(3) as usize;
                    self.network.end_mut(id).lanes[lane].truncate(left);
                }
                self.put(id, lane, Moving::Cut);
            }
        }
    }

    /// The process of an end is no more: its peer hears of it as its host says so.
    pub(crate) fn abandon(&mut self, id: EndId) {
        for lane in Lane::ALL {
            if self.random.chance(300) {
                let left = self.random.below(3) as usize;
                self.network.end_mut(id).lanes[lane].truncate(left);
            }
            self.put(id, lane, Moving::Cut);
        }
        let end = self.network.end_mut(id);
        end.is_over = true;
        end.waiting = PerLane::default();
    }

    /// What an end sends is held up from now on.
    pub(crate) fn block(&mut self, end: EndId) {
        self.network.end_mut(end).blocked += 1;
    }

    /// What an end sends goes on, unless another fault holds it up.
    pub(crate) fn unblock(&mut self, id: EndId) {
        let end = self.network.end_mut(id);
        end.blocked -= 1;
        if end.blocked > 0 {
            return;
        }
        let mut at = self.clock.nanos();
        for lane in Lane::ALL {
            let mut times = Vec::new();
            for (when, _) in &mut self.network.end_mut(id).lanes[lane] {
                at = (at + 10 * US).max(*when);
                *when = at;
                times.push(at);
            }
            for at in times {
                self.clock.at(at, Event::Arrive { to: id.other(), lane });
            }
        }
    }

    /// How much slower than usual what goes over a link is.
    pub(crate) fn slow(&mut self, pipe: usize, slowness: u64) {
        self.network.ends[pipe].iter_mut().for_each(|end| end.slowness = slowness);
    }
}

enum Admitted {
    Yes,
    Later,
    Never,
}
