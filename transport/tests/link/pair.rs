//! Two ends back to back under a scheduler that delays and interleaves as it likes.
//!
//! The world between them is three lanes in each direction, each in order, none ordered with another. Every
//! step is drawn from a seed; a failure prints it, and `SEED` below replays it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use phalanx_transport::link::{Event, Link, SendRefused, Side, State, TellRefused, Why};
use phalanx_transport::wire::control::{CloseReason, Control};
use phalanx_transport::wire::{PerLane, charge};
use phalanx_transport::{Lane, Limits};

use crate::support::*;

/// Set to replay one run.
const SEED: Option<u64> = None;
const US: Duration = Duration::from_micros(1);

#[derive(Debug)]
enum Moving {
    Message(Box<Control>),
    Dispatch { id: u64, charge: u64 },
    Return { id: u64, charge: u64 },
    Weights { charge: u64 },
    Finish,
}

/// One end and the application above it.
struct End {
    link: Link,
    side: Side,
    /// Lanes towards the other end.
    lanes: PerLane<VecDeque<Moving>>,
    finished: bool,
    opened: bool,
    drain_asked: bool,
    ended: Option<String>,
    next_id: u64,
    /// Dispatches sent, to whether they expired, until their return.
    open: BTreeMap<u64, bool>,
    dispatched: u64,
    taken: u64,
    expired: u64,
    /// Dispatches of the peer that wait for an answer, with what their frames cost.
    work: Vec<(u64, u64)>,
    seen: BTreeSet<u64>,
    /// Received frames on the weights and data lane that are held.
    held: Vec<(Lane, u64)>,
    released: PerLane<u64>,
    weights_sent: u64,
    weights_received: u64,
    echoes: u64,
    probes: u64,
    told: u64,
    heard: u64,
    no_credit: bool,
    writable: u64,
}

impl End {
    fn new(side: Side, lanes_ready: bool, now: Instant) -> Self {
        Self {
            link: new(side, lanes_ready, now),
            side,
            lanes: PerLane::default(),
            finished: false,
            opened: false,
            drain_asked: false,
            ended: None,
            next_id: 0,
            open: BTreeMap::new(),
            dispatched: 0,
            taken: 0,
            expired: 0,
            work: Vec::new(),
            seen: BTreeSet::new(),
            held: Vec::new(),
            released: PerLane::default(),
            weights_sent: 0,
            weights_received: 0,
            echoes: 0,
            probes: 0,
            told: 0,
            heard: 0,
            no_credit: false,
            writable: 0,
        }
    }

    fn send(&mut self, lane: Lane, moving: Moving) {
        assert!(!self.finished, "nothing is sent on a lane that was finished");
        self.lanes[lane].push_back(moving);
    }

    /// Carries out what the link wants, as a shell would.
    fn carry_out(&mut self) -> Vec<Event> {
        while let Some(message) = self.link.poll_control() {
            self.send(Lane::Control, Moving::Message(Box::new(message)));
        }
        let events = std::iter::from_fn(|| self.link.poll_event()).collect::<Vec<_>>();
        for event in &events {
            assert!(self.ended.is_none(), "{event:?} after the end");
            match event {
                Event::Open => self.opened = true,
                Event::Expired { dispatch } => {
                    let before = self.open.insert(*dispatch, true);
                    assert_eq!(before, Some(false), "an open dispatch expires, once");
                    self.expired += 1;
                }
                Event::DrainAsked => self.drain_asked = true,
                Event::FinishLanes => {
                    assert!(self.open.is_empty() && self.work.is_empty(), "a drain loses nothing");
                    Lane::ALL.into_iter().for_each(|lane| self.send(lane, Moving::Finish));
                    self.finished = true;
                }
                Event::Echo { id, padding } => {
                    assert_eq!(*id as usize % 900, padding.len());
                    self.echoes += 1;
                }
                Event::Told { message, charge } => {
                    let from = [Side::Dialled, Side::Accepted][usize::from(self.side == Side::Dialled)];
                    assert_eq!(
                        *message,
                        tidings(from, self.heard, self.heard as usize % 900),
                        "in order, once"
                    );
                    self.heard += 1;
                    self.held.push((Lane::Control, *charge));
                }
                Event::Writable(_) => {
                    self.writable += 1;
                    self.no_credit = false;
                }
                Event::Closed(ended) => self.ended = Some(ended.to_string()),
                Event::DialLanes { .. } | Event::Late { .. } | Event::Awake => {}
                Event::Renew { .. } | Event::Renewed { .. } | Event::NotRenewed { .. } => unreachable!(),
            }
        }
        events
    }

    /// Something of the application.
    fn act(&mut self, random: &mut Random, now: Instant) {
        let charge = charge(random.below(1025));
        match random.below(7) {
            0 if self.link.in_flight_left() > 0 => {
                let id = self.next_id;
                if let Err(refused) = self.link.handle_send(Lane::Data, charge) {
                    return self.refused(&refused);
                }
                let deadline = now + random.below(3000) as u32 * 10 * US;
                match self.link.handle_dispatch(id, deadline, now) {
                    Ok(()) => {
                        self.next_id += 1;
                        self.dispatched += 1;
                        self.open.insert(id, false);
                        self.send(Lane::Data, Moving::Dispatch { id, charge });
                    }
                    Err(_) => self.link.handle_unsent(Lane::Data, charge),
                }
            }
            1 | 2 => self.answer(random),
            3 => match self.link.handle_send(Lane::Weights, charge) {
                Ok(()) => {
                    self.weights_sent += 1;
                    self.send(Lane::Weights, Moving::Weights { charge });
                }
                Err(refused) => self.refused(&refused),
            },
            4 => {
                let padding = self.probes as usize % 900;
                if self.link.handle_probe(self.probes, vec![0; padding]).is_ok() {
                    self.probes += 1;
                }
            }
            5 => match self.link.handle_tell(tidings(self.side, self.told, self.told as usize % 900)) {
                Ok(()) => self.told += 1,
                Err(TellRefused::Full { .. } | TellRefused::Draining) => {}
                Err(other) => panic!("{other}"),
            },
            _ => self.release(random, now),
        }
    }

    fn refused(&mut self, refused: &SendRefused) {
        match refused {
            SendRefused::NoCredit { .. } => self.no_credit = true,
            SendRefused::TooLong { .. } => panic!("no frame of this test is too long"),
            _ => {}
        }
    }

    /// Answers a dispatch of the peer, in no order.
    fn answer(&mut self, random: &mut Random) {
        if self.work.is_empty() {
            return;
        }
        let at = random.below(self.work.len() as u64) as usize;
        let (id, charge) = self.work[at];
        match self.link.handle_send(Lane::Data, charge) {
            Ok(()) => {
                self.send(Lane::Data, Moving::Return { id, charge });
                assert!(self.link.handle_returned(id));
                self.work.swap_remove(at);
            }
            Err(refused) => self.refused(&refused),
        }
    }

    fn release(&mut self, random: &mut Random, now: Instant) {
        if !self.held.is_empty() {
            let (lane, charge) = self.held.swap_remove(random.below(self.held.len() as u64) as usize);
            self.released[lane] += charge;
            self.link.handle_released(lane, self.released[lane], now);
        }
    }

    /// Takes what came on a lane, as a shell would.
    fn take(&mut self, lane: Lane, moving: Moving, now: Instant) {
        match moving {
            Moving::Message(message) => self.link.handle_control(*message, now),
            Moving::Finish => {
                let is_taken = self.link.handle_finished(lane, now);
                assert!(is_taken || self.ended.is_some(), "an honest peer ends no lane before its time");
            }
            Moving::Dispatch { id, charge } => {
                if self.receive(lane, charge, now) {
                    assert!(self.seen.insert(id), "no dispatch comes twice");
                    assert_eq!(self.link.handle_dispatched(id), Ok(()));
                    self.work.push((id, charge));
                }
            }
            Moving::Return { id, charge } => {
                if self.receive(lane, charge, now) {
                    let expired = self.open.remove(&id).expect("a return of a dispatch without one");
                    assert!(self.link.handle_return(id), "in time or not, it was out");
                    self.taken += u64::from(!expired);
                }
            }
            Moving::Weights { charge } => {
                if self.receive(lane, charge, now) {
                    self.weights_received += 1;
                }
            }
        }
    }

    fn receive(&mut self, lane: Lane, charge: u64, _now: Instant) -> bool {
        let taken = self.link.handle_received(lane, charge);
        if self.link.ended().is_none() {
            assert_eq!(taken, Ok(()), "an honest peer never has more than it was granted");
            self.held.push((lane, charge));
        }
        taken.is_ok()
    }
}

struct World {
    ends: [End; 2],
    now: Instant,
    random: Random,
    lanes_ready: bool,
    attaching: Vec<(usize, Lane)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut random = Random(seed);
        let lanes_ready = random.below(2) == 0;
        let ends = [Side::Dialled, Side::Accepted].map(|side| End::new(side, lanes_ready, now));
        Self { ends, now, random, lanes_ready, attaching: Vec::new() }
    }

    fn over(&self) -> bool {
        self.ends.iter().all(|end| end.ended.is_some())
    }

    fn step(&mut self, acting: bool) {
        self.now += self.random.below(40) as u32 * US;
        let at = self.random.below(2) as usize;
        match self.random.below(10) {
            0..=1 if acting && self.ends[at].opened && self.ends[at].ended.is_none() => {
                self.ends[at].act(&mut self.random, self.now);
            }
            0..=2 if !acting && self.ends[at].ended.is_none() => {
                self.ends[at].answer(&mut self.random);
                self.ends[at].release(&mut self.random, self.now);
            }
            3 => self.attach(),
            4 => self.flush(at),
            _ => self.deliver(at),
        }
        for end in &mut self.ends {
            if end.link.poll_timeout().is_some_and(|due| due <= self.now) {
                end.link.handle_timeout(self.now);
            }
        }
        self.carry_out();
        self.check();
    }

    fn carry_out(&mut self) {
        for at in 0..2 {
            let events = self.ends[at].carry_out();
            if events.iter().any(|event| matches!(event, Event::DialLanes { .. })) {
                assert!(!self.lanes_ready);
                self.attaching.extend([(1, Lane::Data), (1, Lane::Weights)]);
            }
        }
    }

    /// One lane is attached, first at the accepting end and some time later at the other.
    fn attach(&mut self) {
        if self.attaching.is_empty() {
            return;
        }
        let (end, lane) = self.attaching.swap_remove(self.random.below(self.attaching.len() as u64) as usize);
        self.ends[end].link.handle_attached(lane, self.now).expect("the link waits for it");
        if end == 1 {
            self.attaching.push((0, lane));
        }
    }

    /// The host says that a finished lane is flushed, once all of it has left.
    fn flush(&mut self, at: usize) {
        let lane = self.random.lane();
        if self.ends[at].finished && self.ends[at].lanes[lane].is_empty() {
            self.ends[at].link.handle_flushed(lane, self.now);
        }
    }

    /// What is first on some lane arrives. A shell reads the other lanes only when the link is open.
    fn deliver(&mut self, to: usize) {
        let lane = self.random.lane();
        let from = 1 - to;
        let state = self.ends[to].link.state();
        if lane != Lane::Control && matches!(state, State::Greeting | State::Attaching) {
            return;
        }
        if let Some(moving) = self.ends[from].lanes[lane].pop_front() {
            self.ends[to].take(lane, moving, self.now);
        }
    }

    /// The invariants of every moment, from what was really sent and released.
    fn check(&self) {
        let Limits { window_bytes, in_flight_max, .. } = limits();
        for (at, end) in self.ends.iter().enumerate() {
            let other = &self.ends[1 - at];
            for lane in [Lane::Data, Lane::Weights] {
                let sent = end.link.counters().sent_bytes[lane];
                assert!(sent - other.released[lane] <= window_bytes[lane], "{:?} {lane}", end.side);
            }
            assert!(end.open.len() <= in_flight_max as usize);
            if end.ended.is_none() {
                assert_eq!(end.link.in_flight(), end.open.len());
            }
        }
    }

    fn idle(&self) -> bool {
        self.ends.iter().all(|end| {
            Lane::ALL.iter().all(|lane| end.lanes[*lane].is_empty())
                && end.work.is_empty()
                && end.held.is_empty()
        })
    }

    fn until(&mut self, acting: bool, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..400_000 {
            if done(self) {
                return;
            }
            self.step(acting);
        }
        let states =
            self.ends.each_ref().map(|end| (end.link.state(), end.lanes.clone_len(), end.work.len()));
        panic!("nothing leads to: {what}; {states:?}");
    }
}

trait CloneLen {
    fn clone_len(&self) -> [usize; 3];
}

impl CloneLen for PerLane<VecDeque<Moving>> {
    fn clone_len(&self) -> [usize; 3] {
        Lane::ALL.map(|lane| self[lane].len())
    }
}

fn seeds(count: u64) -> Vec<u64> {
    SEED.map_or_else(|| (0..count).collect(), |seed| vec![seed])
}

/// Prints the seed of a run that fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {}: set SEED in transport/tests/link/pair.rs and run `cargo test --test link`",
                self.0
            );
        }
    }
}

fn drained(world: &World) {
    for (at, end) in world.ends.iter().enumerate() {
        let other = &world.ends[1 - at];
        assert!(end.link.ended().is_some_and(|ended| ended.in_order()), "{:?}", end.ended);
        assert_eq!(other.seen.len() as u64, end.dispatched, "every dispatch came");
        assert_eq!(end.taken + end.expired, end.dispatched, "every dispatch returned or expired");
        assert_eq!(other.weights_received, end.weights_sent, "every frame came");
        assert_eq!(end.echoes, end.probes, "every probe came back");
        assert_eq!(other.heard, end.told, "everything told was heard");
    }
}

#[test]
fn whatever_the_order_nothing_is_lost_and_both_ends_drain() {
    let (mut dispatched, mut expired, mut writable, mut told) = (0, 0, 0, 0);
    for seed in seeds(300) {
        let _replay = Replay(seed);
        let mut world = World::new(seed);
        world.carry_out();
        world.until(false, "both ends open", |world| world.ends.iter().all(|end| end.opened));
        let steps = world.random.below(4000);
        (0..steps).for_each(|_| world.step(true));
        // One end asks, or the other, or both within a few steps.
        for at in 0..2 {
            if world.random.below(2) == 0 || (at == 1 && !world.ends[0].link.state().eq(&State::Draining)) {
                world.ends[at].link.handle_drain(world.now);
            }
            let between = world.random.below(4);
            (0..between).for_each(|_| world.step(true));
        }
        world.until(true, "both ends closed", World::over);
        drained(&world);
        dispatched += world.ends[0].dispatched + world.ends[1].dispatched;
        expired += world.ends[0].expired + world.ends[1].expired;
        writable += world.ends[0].writable + world.ends[1].writable;
        told += world.ends[0].told + world.ends[1].told;
    }
    assert!(told > 5_000, "{told}");
    assert!(dispatched > 5_000 && expired > 500 && writable > 1000, "{dispatched} {expired} {writable}");
}

/// When all is quiet, what was used is back up to what is not told yet, and whoever waited has been told.
#[test]
fn no_credit_is_ever_lost() {
    for seed in seeds(200) {
        let _replay = Replay(seed);
        let mut world = World::new(seed);
        world.carry_out();
        world.until(false, "both ends open", |world| world.ends.iter().all(|end| end.opened));
        (0..2000).for_each(|_| world.step(true));
        world.until(false, "quiet", World::idle);
        let window = limits().window_bytes;
        for end in &world.ends {
            for lane in Lane::ALL {
                let left = end.link.credit_left(lane);
                assert!(
                    left > window[lane] - window[lane] / 4 && left <= window[lane],
                    "{:?} {lane} {left}",
                    end.side
                );
            }
            assert!(!end.no_credit, "{:?} waits for ever", end.side);
            assert!(end.ended.is_none());
        }
    }
}

/// One end goes at once, with a word or without: the other hears of it, and both say the same.
#[test]
fn an_end_at_any_moment_is_noticed_and_both_agree() {
    for seed in seeds(400) {
        let _replay = Replay(seed);
        let mut world = World::new(seed);
        world.carry_out();
        let steps = world.random.below(1500);
        (0..steps).for_each(|_| world.step(true));
        let at = world.random.below(2) as usize;
        let words = world.random.below(2) == 0;
        if words {
            world.ends[at].link.handle_close(CloseReason::Wanted, world.now);
            world.carry_out();
            let unheard = world.ends[at].lanes.control.is_empty();
            for _ in 0..20_000 {
                if world.over() {
                    break;
                }
                world.deliver(1 - at);
                world.carry_out();
            }
            if unheard {
                continue;
            }
        } else {
            let link = &mut world.ends[1 - at].link;
            link.handle_lost(world.random.lane(), "reset".into(), world.now);
            // The peer says nothing about it.
            link.handle_timeout(world.now + 20 * MS);
            world.carry_out();
        }
        let other = &world.ends[1 - at];
        let why =
            other.link.ended().unwrap_or_else(|| panic!("it is not over: {:?}", other.link.state())).why();
        match why {
            Why::ClosedByPeer(CloseReason::Wanted) | Why::RefusedByPeer(_) => assert!(words),
            Why::Lost { .. } => assert!(!words),
            other => panic!("{other:?}"),
        }
        let name = match (other.link.peer(), other.side) {
            (None, _) => "the peer",
            (_, Side::Dialled) => "node b1",
            (_, Side::Accepted) => "coordinator c1",
        };
        assert!(other.ended.as_ref().unwrap().starts_with(name), "{:?}", other.ended);
    }
}
