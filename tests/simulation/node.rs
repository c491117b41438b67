//! A node: its sessions with coordinators, what it holds, what it loads.
//!
//! A shell around the product's `Holdings`, as the node's agent is. What its actors do is in `floor.rs`.

use std::collections::{BTreeMap, VecDeque};

use node::batcher::LinkId;
use node::device::DeviceMemory;
use node::holdings::{Action, Holdings, LoadFailed, STALE};
use transport::link::{Event as LinkEvent, TellRefused};
use transport::wire::cluster::{
    ActorId, Assignment, Cluster, DeviceOffer, Fallen, Hold, Join, Load, ToCoordinator, ToNode,
};
use transport::wire::control::CloseReason;

use crate::bugs::Bug;
use crate::clock::{MS, US};
use crate::floor::Floor;
use crate::frame::Credit;
use crate::network::{Delivered, EndId};
use crate::watch::violation;
use crate::world::{Event, Process, Sky};

/// How often coordinators are told what actors do.
const LOADS_EVERY: u64 = 250 * MS;
/// Rows are told as so many, or there would be too few to measure in a life that lasts some seconds.
const LOADS_TIMES: u64 = 500;
/// How a load says that there is no room.
const LEFT: &str = "are left";
/// Frames that the tensors of an expert come in.
const PIECES: u64 = 3;

/// What happens inside a node.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// A coordinator is dialled.
    Dial {
        coordinator: usize,
    },
    /// A loading thread takes an errand.
    Load {
        ticket: u64,
    },
    /// It is done with it.
    Loaded {
        ticket: u64,
        result: Result<u64, LoadFailed>,
    },
    /// The supervisor hears that an actor is to go.
    Remove(Assignment),
    /// It has waited long enough for coordinators to let it go.
    Go,
    /// The supervisor hears that an actor fell.
    Fell {
        actor: ActorId,
        life: u64,
        why: &'static str,
    },
    /// The devices are done with a round.
    Computed,
    TellLoads,
}

/// A node's process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: usize,
    /// Which life of the node this is.
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// It wants to go, or has gone as it wanted.
    pub(crate) is_leaving: bool,
    /// Something about it is broken for as long as it lives: a device is lost, a load has failed.
    pub(crate) is_damaged: bool,
    pub(crate) holdings: Holdings,
    pub(crate) floor: Floor,
    sessions: BTreeMap<EndId, Session>,
    /// What the holdings want done, in order.
    actions: VecDeque<Action>,
    loading: BTreeMap<u64, Errand>,
    /// Pauses between dials, by coordinator.
    pauses: BTreeMap<usize, u64>,
    asks: u64,
    /// Until when its supervisor has to do.
    supervised: u64,
}

#[derive(Debug)]
struct Session {
    coordinator: usize,
    is_joined: bool,
    unsaid: VecDeque<ToCoordinator>,
}

#[derive(Debug)]
struct Errand {
    assignment: Assignment,
    is_cancelled: bool,
    /// Asked for over this link under this number, if it has no copy of its own.
    ask: Option<(EndId, u64)>,
    /// Room that it has on its device.
    bytes: u64,
}

fn name(coordinator: usize) -> String {
    format!("c{coordinator}")
}

impl Node {
    pub(crate) fn new(at: usize, life: u32, sky: &Sky) -> Self {
        let memory = |bytes: &u64| DeviceMemory::new(*bytes);
        Self {
            at,
            life,
            is_up: true,
            is_leaving: false,
            is_damaged: false,
            holdings: Holdings::default(),
            floor: Floor::new(at, life, sky.case.nodes[at].iter().map(memory).collect()),
            sessions: BTreeMap::new(),
            actions: VecDeque::new(),
            loading: BTreeMap::new(),
            pauses: BTreeMap::new(),
            asks: 0,
            supervised: 0,
        }
    }

    pub(crate) fn start(&self, sky: &mut Sky) {
        for coordinator in 0..sky.case.coordinators {
            let after = sky.random.below(20 * MS);
            self.later(after, NodeEvent::Dial { coordinator }, sky);
        }
        self.later(LOADS_EVERY, NodeEvent::TellLoads, sky);
    }

    pub(crate) fn later(&self, nanos: u64, what: NodeEvent, sky: &mut Sky) {
        sky.clock.after(nanos, Event::Node { node: self.at, life: self.life, what });
    }

    pub(crate) fn handle(&mut self, what: NodeEvent, sky: &mut Sky) {
        match what {
            NodeEvent::Dial { coordinator } => self.dial(coordinator, sky),
            NodeEvent::Load { ticket } => self.load(ticket, sky),
            NodeEvent::Loaded { ticket, result } => self.loaded(ticket, result),
            NodeEvent::Remove(assignment) => {
                // Where a device is lost its other actors go whatever is out for them, and where somebody else publishes
                // he does not know of it.
                if !self.is_damaged && sky.case.coordinators == 1 {
                    let own = (self.at, self.life);
                    sky.watch.check_removed(own, self.holdings.term(), assignment.actor, &sky.network);
                }
                self.floor.remove(assignment.actor, sky);
            }
            NodeEvent::Fell { actor, life, why } => {
                if let Some(fallen) = self.floor.fell(actor, life, why, sky) {
                    self.is_damaged |= fallen.is_lost;
                    self.holdings.handle_fallen(fallen);
                }
            }
            NodeEvent::Go => {
                self.floor.is_draining = true;
                self.sessions.keys().copied().collect::<Vec<_>>().into_iter().for_each(|end| sky.drain(end));
            }
            NodeEvent::Computed => self.floor.computed(sky),
            NodeEvent::TellLoads => self.tell_loads(sky),
        }
        self.carry_out(sky);
    }

    /// Something came on a link's data or weights lane.
    pub(crate) fn delivered(&mut self, end: EndId, what: Delivered, sky: &mut Sky) {
        match what {
            Delivered::Dispatch(frame, credit) => {
                let is_joined = self.sessions.get(&end).is_some_and(|session| session.is_joined);
                self.floor.receive(end, is_joined, frame, credit, sky);
            }
            Delivered::Weights { ask, is_last, credit } => self.piece(end, ask, is_last, credit, sky),
            Delivered::Return(..) => panic!("a node dispatches nothing"),
        }
        self.carry_out(sky);
    }

    /// A link of its own says something.
    pub(crate) fn link_says(&mut self, end: EndId, event: LinkEvent, sky: &mut Sky) {
        match event {
            LinkEvent::Open => {
                let coordinator = sky.coordinator_of(end);
                let session = Session { coordinator, is_joined: false, unsaid: VecDeque::new() };
                self.sessions.insert(end, session);
                if self.is_leaving {
                    sky.close(end, CloseReason::Wanted);
                }
                let join = ToCoordinator::Join(self.join(sky));
                self.say(end, join, sky);
            }
            LinkEvent::Told { message: Cluster::ToNode(message), charge } => {
                sky.read(end, charge);
                self.told(end, message, sky);
            }
            LinkEvent::Closed(_) => self.unlinked(end, sky),
            _ => {}
        }
        self.carry_out(sky);
    }

    fn join(&self, sky: &Sky) -> Join {
        let device = |bytes: &u64| DeviceOffer { kind: "simulated".into(), memory_bytes: *bytes };
        Join {
            devices: sky.case.nodes[self.at].iter().map(device).collect(),
            labels: Vec::new(),
            term: self.holdings.term(),
            checkpoint: None,
            held: self.holdings.held(),
        }
    }

    fn dial(&mut self, coordinator: usize, sky: &mut Sky) {
        if self.is_leaving {
            return;
        }
        let own = (Process::Node(self.at), self.life);
        if sky.connect_to(own, coordinator).is_none() {
            self.redial(coordinator, sky);
        }
    }

    fn redial(&mut self, coordinator: usize, sky: &mut Sky) {
        let pause = self.pauses.entry(coordinator).or_insert(50 * MS);
        let after = *pause;
        *pause = (after * 2).min(250 * MS);
        self.later(after, NodeEvent::Dial { coordinator }, sky);
    }

    fn told(&mut self, end: EndId, message: ToNode, sky: &mut Sky) {
        let Some(session) = self.sessions.get_mut(&end) else { return };
        match message {
            ToNode::Joined(_) => {
                session.is_joined = true;
                let coordinator = session.coordinator;
                self.pauses.remove(&coordinator);
                self.floor.joined();
                self.holdings.handle_linked(&name(coordinator));
                self.floor.loads_told.clear();
            }
            ToNode::Hold(hold) if session.is_joined => {
                let coordinator = session.coordinator;
                self.hold(coordinator, hold, sky);
            }
            ToNode::NotServed { ask, why } => {
                let of = |(_, errand): &(&u64, &Errand)| errand.ask == Some((end, ask));
                if let Some(ticket) = self.loading.iter().find(of).map(|(ticket, _)| *ticket) {
                    self.later(0, NodeEvent::Loaded { ticket, result: Err(LoadFailed::Because(why)) }, sky);
                }
            }
            ToNode::Hold(_) | ToNode::NotJoined { .. } => {}
        }
    }

    fn hold(&mut self, coordinator: usize, mut hold: Hold, sky: &mut Sky) {
        let said = hold.epoch;
        if sky.has_bug(Bug::ObeysTwoTerms) && hold.epoch.term < self.holdings.term() {
            hold.epoch.term = self.holdings.term();
        }
        self.holdings.handle_hold(&name(coordinator), hold);
        self.actions.extend(std::iter::from_fn(|| self.holdings.poll_action()));
        let is_obeyed = self.actions.iter().any(|action| !matches!(action, Action::Say { .. }));
        sky.watch.handle_ordered((self.at, self.life), coordinator, said, is_obeyed);
    }

    /// A link is over.
    fn unlinked(&mut self, end: EndId, sky: &mut Sky) {
        let coordinator = match self.sessions.remove(&end) {
            Some(session) => {
                let is_same = |other: &Session| other.is_joined && other.coordinator == session.coordinator;
                if !self.sessions.values().any(is_same) {
                    self.holdings.handle_unlinked(&name(session.coordinator));
                }
                session.coordinator
            }
            None => sky.coordinator_of(end),
        };
        self.floor.link_ended(end, sky);
        let waits = |errand: &Errand| errand.ask.is_some_and(|(over, _)| over == end);
        let again: Vec<u64> =
            self.loading.iter().filter(|(_, errand)| waits(errand)).map(|(ticket, _)| *ticket).collect();
        for ticket in again {
            if let Some(errand) = self.loading.get_mut(&ticket) {
                errand.ask = None;
            }
            self.fetch(ticket, sky);
        }
        if self.is_leaving && self.sessions.is_empty() {
            self.is_up = false;
        } else {
            self.redial(coordinator, sky);
        }
    }

    fn carry_out(&mut self, sky: &mut Sky) {
        while let Some(action) = self.actions.pop_front().or_else(|| self.holdings.poll_action()) {
            match action {
                Action::Load { ticket, assignment } => {
                    self.loading
                        .insert(ticket, Errand { assignment, is_cancelled: false, ask: None, bytes: 0 });
                    let after = self.supervisor_after(sky) + sky.random.below(300 * US);
                    self.later(after, NodeEvent::Load { ticket }, sky);
                }
                Action::Cancel { ticket } => {
                    if let Some(errand) = self.loading.get_mut(&ticket) {
                        errand.is_cancelled = true;
                    }
                }
                Action::Remove(assignment) => {
                    let after = self.supervisor_after(sky);
                    self.later(after, NodeEvent::Remove(assignment), sky);
                }
                Action::Say { to, what } => {
                    self.check_said(&what, sky);
                    let is_it = |session: &Session| session.is_joined && name(session.coordinator) == to;
                    let end = self.sessions.iter().find(|(_, session)| is_it(session)).map(|(end, _)| *end);
                    if let Some(end) = end {
                        self.say(end, what, sky);
                    }
                }
            }
        }
        self.floor.compute(sky);
    }

    /// A node has room for whatever a coordinator tells it to hold, unless two of them do.
    fn check_said(&mut self, what: &ToCoordinator, sky: &Sky) {
        let ToCoordinator::Holding(holding) = what else { return };
        self.is_damaged |= holding.failed.iter().any(|(_, why)| !why.starts_with(STALE));
        let no_room = holding.failed.iter().find(|(_, why)| why.ends_with(LEFT));
        if let Some((actor, why)) = no_room.filter(|_| sky.case.coordinators == 1) {
            let at = self.at;
            violation("memory", format!("node {at} cannot hold {actor:?}, which it was told to: {why}"));
        }
    }

    /// When the supervisor comes to what it is told now, behind all that it was told before.
    fn supervisor_after(&mut self, sky: &mut Sky) -> u64 {
        let now = sky.clock.nanos();
        self.supervised = self.supervised.max(now) + 1 + sky.random.below(50 * US);
        self.supervised - now
    }

    fn say(&mut self, end: EndId, what: ToCoordinator, sky: &mut Sky) {
        if let Some(session) = self.sessions.get_mut(&end) {
            session.unsaid.push_back(what);
            session.say_on(end, sky);
        }
    }

    /// A loading thread begins: room on the device first, then the tensors.
    fn load(&mut self, ticket: u64, sky: &mut Sky) {
        let Some(errand) = self.loading.get(&ticket) else { return };
        if errand.is_cancelled {
            let result = Err(LoadFailed::Because("it is not wanted any more".to_owned()));
            return self.later(0, NodeEvent::Loaded { ticket, result }, sky);
        }
        let Assignment { actor, device, .. } = errand.assignment;
        let bytes = sky.case.demand.shard_bytes(actor.layer);
        if let Err(left) = self.floor.devices[usize::from(device)].take(bytes) {
            let result = Err(LoadFailed::NoRoom(format!("it takes {bytes} bytes, {left} {LEFT}")));
            return self.later(0, NodeEvent::Loaded { ticket, result }, sky);
        }
        if let Some(errand) = self.loading.get_mut(&ticket) {
            errand.bytes = bytes;
        }
        self.fetch(ticket, sky);
    }

    /// The tensors: from its own disk, or from a coordinator if there is one.
    fn fetch(&mut self, ticket: u64, sky: &mut Sky) {
        let Some(errand) = self.loading.get_mut(&ticket) else { return };
        let actor = errand.assignment.actor;
        let bytes = sky.case.demand.shard_bytes(actor.layer);
        let end = self.sessions.iter().rfind(|(_, session)| session.is_joined).map(|(end, _)| *end);
        if let Some(end) = end.filter(|_| sky.case.fetches_weights) {
            self.asks += 1;
            errand.ask = Some((end, self.asks));
            let ask =
                transport::wire::cluster::Ask { ask: self.asks, layer: actor.layer, expert: actor.expert };
            return self.say(end, ToCoordinator::Ask(ask), sky);
        }
        let slowest = if sky.random.chance(sky.case.slow_loads) { 3_000 * MS } else { 30 * MS };
        let after = MS + sky.random.below(slowest);
        let result = if sky.is_faulty && sky.random.chance(sky.case.bad_loads) {
            Err(LoadFailed::Because("its tensors have another digest".to_owned()))
        } else {
            Ok(bytes)
        };
        self.later(after, NodeEvent::Loaded { ticket, result }, sky);
    }

    /// A piece of an expert came.
    fn piece(&mut self, end: EndId, ask: u64, is_last: bool, credit: Credit, sky: &mut Sky) {
        // It is written to a disk before its room goes back; that takes no time here.
        drop(credit);
        let of = |(_, errand): &(&u64, &Errand)| errand.ask == Some((end, ask));
        let found = self.loading.iter().find(of);
        let Some((ticket, layer)) = found.map(|(ticket, errand)| (*ticket, errand.assignment.actor.layer))
        else {
            return;
        };
        if is_last {
            let bytes = sky.case.demand.shard_bytes(layer);
            self.later(MS, NodeEvent::Loaded { ticket, result: Ok(bytes) }, sky);
        }
    }

    fn loaded(&mut self, ticket: u64, result: Result<u64, LoadFailed>) {
        let Some(errand) = self.loading.remove(&ticket) else { return };
        let device = usize::from(errand.assignment.device);
        match self.holdings.handle_loaded(ticket, result) {
            Some(assignment) => self.floor.take(assignment, errand.bytes),
            None => self.floor.devices[device].give_back(errand.bytes),
        }
    }

    fn tell_loads(&mut self, sky: &mut Sky) {
        self.later(LOADS_EVERY, NodeEvent::TellLoads, sky);
        let mut loads: Vec<Load> = self.floor.loads(LOADS_TIMES);
        let told = &mut self.floor.loads_told;
        loads.retain(|load| told.get(&load.actor) != Some(load));
        let mut is_behind = false;
        for (end, session) in &mut self.sessions {
            session.say_on(*end, sky);
            if session.is_joined && session.unsaid.is_empty() && !loads.is_empty() {
                session.unsaid.push_back(ToCoordinator::Loads(loads.clone()));
                session.say_on(*end, sky);
            }
            is_behind |= session.is_joined && !session.unsaid.is_empty();
        }
        if !is_behind {
            told.extend(loads.into_iter().map(|load| (load.actor, load)));
        }
    }

    /// It wants to go: it says so, and goes when its links have ended.
    pub(crate) fn leave(&mut self, sky: &mut Sky) {
        self.is_leaving = true;
        let ends: Vec<(EndId, bool)> =
            self.sessions.iter().map(|(end, session)| (*end, session.is_joined)).collect();
        if ends.is_empty() {
            self.is_up = false;
        }
        for (end, is_joined) in ends {
            match is_joined {
                true => self.say(end, ToCoordinator::Leaving, sky),
                false => sky.close(end, CloseReason::Wanted),
            }
        }
        self.later(sky.case.leave_max, NodeEvent::Go, sky);
    }

    /// Coordinators that it has dialled, and that have not taken it in.
    pub(crate) fn joining(&self) -> impl Iterator<Item = usize> + '_ {
        self.sessions.values().filter(|session| !session.is_joined).map(|session| session.coordinator)
    }

    /// Coordinators that send it tensors.
    pub(crate) fn fetches_from<'a>(&'a self, sky: &'a Sky) -> impl Iterator<Item = usize> + 'a {
        self.loading.values().filter_map(|errand| errand.ask).map(|(end, _)| sky.coordinator_of(end))
    }

    /// An actor falls, as by a fault of the device.
    pub(crate) fn strike(&mut self, actor: ActorId, sky: &mut Sky) {
        self.floor.strike(actor, "it was struck", sky);
    }

    /// Frames of the tensors of an expert.
    pub(crate) fn pieces() -> u64 {
        PIECES
    }
}

impl Session {
    fn say_on(&mut self, end: EndId, sky: &mut Sky) {
        while let Some(what) = self.unsaid.pop_front() {
            match sky.tell(end, Cluster::ToCoordinator(what.clone())) {
                Ok(()) => {}
                Err(TellRefused::Full { .. }) => {
                    self.unsaid.push_front(what);
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

/// The link of an end, as batchers know it.
pub(crate) fn link_id(end: EndId) -> LinkId {
    LinkId(end.pipe as u64)
}

/// What is said of an actor that fell.
pub(crate) fn fallen(actor: ActorId, why: &str, restarts: u32, is_lost: bool) -> Fallen {
    Fallen { actor, why: why.to_owned(), restarts, is_lost }
}
