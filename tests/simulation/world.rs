//! Everything at once: processes, links and clients, moved by one clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use coordinator::data::request::OnMissing;
use transport::Lane;
use transport::link::{Event as LinkEvent, Why};

use crate::bugs::Bug;
use crate::case::{Case, Fault};
use crate::clients::{Client, Heard, Outcome};
use crate::clock::{Clock, MS};
use crate::coordinator::{Coordinator, CoordinatorEvent};
use crate::kills::{Ambush, Kills};
use crate::model::Oracle;
use crate::network::{EndId, Network};
use crate::node::{Node, NodeEvent};
use crate::operators::{Disk, Operators};
use crate::random::Random;
use crate::watch::{Watch, violation};

/// Rows that are under way go on within this, where nothing goes wrong.
const STEP: u64 = 20_000 * MS;
/// So long after the last fault everything must be answered.
const PATIENCE: u64 = 60_000 * MS;
/// What is still told after the last answer.
const AFTERWARDS: u64 = 4_000 * MS;
/// So soon a node has dropped what nobody wants of it any more.
const DROPPED_WITHIN: u64 = 500 * MS;

/// A process, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    Node(usize),
    Coordinator(usize),
}

/// Whatever happens.
#[derive(Debug)]
pub(crate) enum Event {
    Arrive { to: EndId, lane: Lane },
    LinkTimer { end: EndId },
    Node { node: usize, life: u32, what: NodeEvent },
    Coordinator { coordinator: usize, life: u32, what: CoordinatorEvent },
    Ask { client: usize },
    Cancel { client: usize },
    Start(Process),
    Fault(Fault),
    Thaw { process: Process, life: u32 },
    Fall { wall: u64 },
    Hurry { pipes: Vec<usize> },
    Rest { node: usize },
    Empty { coordinator: usize },
    Heal,
    Replace,
}

/// How a process is doing, as the host sees it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Host {
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    pub(crate) is_frozen: bool,
}

/// What lies between a node and a coordinator.
#[derive(Debug)]
pub(crate) struct Wall {
    pub(crate) node: usize,
    pub(crate) coordinator: usize,
    pub(crate) ends: Vec<EndId>,
}

/// What all processes stand under: time, chance, the network, and the checkers.
pub(crate) struct Sky {
    pub(crate) case: Rc<Case>,
    pub(crate) bug: Option<Bug>,
    pub(crate) clock: Clock<Event>,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) watch: Watch,
    /// Each coordinator's data directory.
    pub(crate) disks: Vec<Disk>,
    pub(crate) operators: Operators,
    /// Rows over which actors fall.
    pub(crate) poison: BTreeSet<u64>,
    /// Faults may still happen.
    pub(crate) is_faulty: bool,
    /// Everything that happens is shown.
    pub(crate) is_told: bool,
    heard: VecDeque<((usize, u32), Heard)>,
    pub(crate) hosts: BTreeMap<Process, Host>,
    pub(crate) walls: BTreeMap<u64, Wall>,
    pub(crate) slowness: Vec<u64>,
}

impl Sky {
    pub(crate) fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn tell_client(&mut self, client: (usize, u32), heard: Heard) {
        self.heard.push_back((client, heard));
    }

    /// How many times slower a node's devices are.
    pub(crate) fn slowness(&self, node: usize) -> u64 {
        self.slowness[node]
    }

    /// The longest payload that the other end takes.
    pub(crate) fn payload_max(&self, end: EndId) -> u64 {
        self.network.end(end).link.peer().map_or(0, |hello| hello.limits.payload_bytes_max.data)
    }

    /// The coordinator at the other end.
    pub(crate) fn coordinator_of(&self, end: EndId) -> usize {
        match self.network.end(end.other()).owner {
            Process::Coordinator(at) => at,
            Process::Node(_) => unreachable!("nodes dial coordinators"),
        }
    }

    /// A link from a node to a coordinator, if that can be reached.
    pub(crate) fn connect_to(&mut self, own: (Process, u32), coordinator: usize) -> Option<EndId> {
        let host = self.hosts.get(&Process::Coordinator(coordinator)).filter(|host| host.is_up)?;
        let life = host.life;
        let Process::Node(node) = own.0 else { return None };
        if self.walls.values().any(|wall| (wall.node, wall.coordinator) == (node, coordinator)) {
            return None;
        }
        Some(self.connect(own, (Process::Coordinator(coordinator), life)))
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) sky: Sky,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) coordinators: Vec<Option<Coordinator>>,
    pub(crate) clients: Vec<Client>,
    /// What happens to processes that stand still, until they go on.
    pub(crate) deferred: BTreeMap<Process, Vec<Event>>,
    pub(crate) walls: u64,
    /// The coordinator that is left when nothing goes wrong any more.
    pub(crate) sole: Option<usize>,
    /// Nothing goes wrong any more, but so many nodes are drained that there is no room for all experts.
    pub(crate) lacks_room: bool,
    pub(crate) lacked_room: bool,
    pub(crate) ambushes: Vec<Ambush>,
    pub(crate) kills: Kills,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, is_told: bool) -> Self {
        let case = Rc::new(Case::draw(seed));
        let mut clock = Clock::new(seed);
        let oracles: Vec<Rc<Oracle>> = case
            .asks
            .iter()
            .map(|ask| Rc::new(Oracle::new(&case.model, &ask.prompt, ask.tokens_max)))
            .collect();
        let poisoned = case.asks.iter().zip(&oracles).filter_map(|(ask, oracle)| {
            let (position, stage) = ask.poison?;
            oracle.sent(position, stage)
        });
        let poison: BTreeSet<u64> = poisoned.collect();
        let clients: Vec<Client> = case
            .asks
            .iter()
            .zip(oracles)
            .map(|(ask, oracle)| {
                let is_poisoned = oracle.rows().any(|row| poison.contains(&row));
                Client::new(ask.clone(), oracle, is_poisoned)
            })
            .collect();
        for (client, ask) in case.asks.iter().enumerate() {
            clock.at(ask.at, Event::Ask { client });
        }
        clock.at(0, Event::Start(Process::Coordinator(0)));
        for (node, at) in case.begins.iter().enumerate() {
            clock.at(*at, Event::Start(Process::Node(node)));
        }
        for (at, fault) in &case.faults {
            clock.at(*at, Event::Fault(*fault));
        }
        clock.at(case.faults_end, Event::Heal);
        let nodes = case.nodes.len();
        let sky = Sky {
            bug,
            clock,
            random: Random::new(seed, 2),
            network: Network::default(),
            watch: Watch::default(),
            disks: vec![Disk::default(); case.coordinators],
            operators: Operators::default(),
            poison,
            is_faulty: true,
            is_told,
            heard: VecDeque::new(),
            hosts: BTreeMap::new(),
            walls: BTreeMap::new(),
            slowness: vec![1; nodes],
            case: Rc::clone(&case),
        };
        Self {
            sky,
            nodes: (0..nodes).map(|_| None).collect(),
            coordinators: (0..case.coordinators).map(|_| None).collect(),
            clients,
            deferred: BTreeMap::new(),
            walls: 0,
            sole: None,
            lacks_room: false,
            lacked_room: false,
            ambushes: Vec::new(),
            kills: Kills::default(),
        }
    }

    /// Faults, then none, then every answer; and then nothing may be left over.
    pub(crate) fn run(&mut self) {
        let mut end = self.sky.case.faults_end;
        while self.sky.is_faulty || self.clients.iter().any(|client| client.outcome.is_none()) {
            self.step();
            if self.sky.clock.nanos() > end + PATIENCE {
                violation("waits", self.who_waits());
            }
            self.check_going_on(end);
            if self.lacks_room && !self.clients.iter().any(Client::waits_though_it_may_drop) {
                self.undrain();
                end = self.sky.clock.nanos();
            }
        }
        let last = self.sky.clock.nanos() + AFTERWARDS;
        while self.sky.clock.nanos() < last || !self.is_settled() {
            self.step();
            if self.sky.clock.nanos() > last + PATIENCE {
                violation("heals", self.what_is_missing());
            }
        }
        let last = self.sky.clock.nanos() + DROPPED_WITHIN;
        while self.sky.clock.nanos() < last {
            self.step();
        }
        self.check_quiet();
    }

    /// While a row is in flight something happens that leads it on.
    fn check_going_on(&self, end: u64) {
        let is_under_way = |of: &Coordinator| of.data.flow.rows_free() < self.sky.case.rows_max as usize;
        let since = self.sky.watch.progressed.max(end);
        if self.sky.clock.nanos() > since + STEP && self.coordinators.iter().flatten().any(is_under_way) {
            violation("events", format!("no row goes on: {}", self.what_is_missing()));
        }
    }

    fn step(&mut self) {
        let Some(event) = self.sky.clock.next() else {
            violation("events", "nothing can happen any more".into())
        };
        if let Some(process) = self.whose(&event)
            && self.sky.hosts.get(&process).is_some_and(|host| host.is_frozen)
        {
            self.deferred.entry(process).or_default().push(event);
            return;
        }
        if self.sky.is_told {
            eprintln!("{:>12.3} ms {event:?}", self.sky.clock.nanos() as f64 / MS as f64);
        }
        self.happen(event);
        self.settle();
        if !self.ambushes.is_empty() {
            self.spring();
        }
        if self.sky.clock.passed.is_multiple_of(64) {
            self.check_rooms();
        }
    }

    /// To whom an event happens, if it waits while he stands still.
    fn whose(&self, event: &Event) -> Option<Process> {
        match event {
            Event::Arrive { to: end, .. } | Event::LinkTimer { end } => {
                Some(self.sky.network.end(*end).owner)
            }
            Event::Node { node, .. } => Some(Process::Node(*node)),
            Event::Coordinator { coordinator, .. } => Some(Process::Coordinator(*coordinator)),
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) {
        let sky = &mut self.sky;
        match event {
            Event::Arrive { to, lane } => {
                if let Some(delivered) = sky.arrive(to, lane) {
                    let (owner, life) = (sky.network.end(to).owner, sky.network.end(to).life);
                    match owner {
                        Process::Node(at) => {
                            if let Some(node) = live_node(&mut self.nodes, at, life) {
                                node.delivered(to, delivered, sky);
                            }
                        }
                        Process::Coordinator(at) => {
                            if let Some(coordinator) = live_coordinator(&mut self.coordinators, at, life) {
                                coordinator.delivered(to, delivered, sky);
                            }
                        }
                    }
                }
            }
            Event::LinkTimer { end } => sky.link_timer(end),
            Event::Node { node, life, what } => {
                if let Some(node) = live_node(&mut self.nodes, node, life) {
                    node.handle(what, sky);
                }
            }
            Event::Coordinator { coordinator, life, what } => {
                if let Some(coordinator) = live_coordinator(&mut self.coordinators, coordinator, life) {
                    coordinator.handle(what, sky);
                }
            }
            Event::Ask { client } => self.ask(client),
            Event::Cancel { client } => self.cancel(client),
            Event::Start(process) => self.start(process),
            Event::Fault(fault) => self.fault(fault),
            Event::Thaw { process, life } => self.thaw(process, life),
            Event::Fall { wall } => self.fall(wall),
            Event::Hurry { pipes } => pipes.into_iter().for_each(|pipe| sky.slow(pipe, 1)),
            Event::Rest { node } => sky.slowness[node] = 1,
            Event::Empty { coordinator } => sky.disks[coordinator].is_full = false,
            Event::Heal => self.heal(),
            Event::Replace => self.replace_damaged(),
        }
    }

    /// Links say what they have to say, processes hear it, and clients hear of their answers.
    fn settle(&mut self) {
        loop {
            self.sky.settle();
            if let Some((end, event)) = self.sky.network.news.pop_front() {
                self.check_honest(&event);
                let (owner, life) = (self.sky.network.end(end).owner, self.sky.network.end(end).life);
                match owner {
                    Process::Node(at) => {
                        if let Some(node) = live_node(&mut self.nodes, at, life) {
                            node.link_says(end, event, &mut self.sky);
                        }
                        self.bury_leaver(at);
                    }
                    Process::Coordinator(at) => {
                        if let Some(coordinator) = live_coordinator(&mut self.coordinators, at, life) {
                            coordinator.link_says(end, event, &mut self.sky);
                        }
                    }
                }
                continue;
            }
            let Some(((client, times), heard)) = self.sky.heard.pop_front() else { return };
            if self.clients[client].times == times && self.clients[client].hear(client, heard, &self.sky) {
                self.clients[client].times += 1;
                self.sky.clock.after(50 * MS, Event::Ask { client });
            }
        }
    }

    /// Nobody here lies, so no link may end for a breach.
    fn check_honest(&self, event: &LinkEvent) {
        if let LinkEvent::Closed(ended) = event
            && let Why::Broken(broken) = ended.why()
        {
            violation("memory", format!("a link ended for a breach: {broken}"));
        }
    }

    /// A node that wanted to go has gone.
    pub(crate) fn bury_leaver(&mut self, at: usize) {
        if self.nodes[at].as_ref().is_some_and(|node| !node.is_up) {
            self.stop(Process::Node(at));
        }
    }

    pub(crate) fn start(&mut self, process: Process) {
        let is_other = matches!((process, self.sole), (Process::Coordinator(at), Some(sole)) if at != sole);
        let host = self.sky.hosts.entry(process).or_default();
        if host.is_up || is_other {
            return;
        }
        host.life += 1;
        (host.is_up, host.is_frozen) = (true, false);
        let life = host.life;
        match process {
            Process::Node(at) => {
                let node = Node::new(at, life, &self.sky);
                node.start(&mut self.sky);
                self.nodes[at] = Some(node);
            }
            Process::Coordinator(at) => {
                self.coordinators[at] = Some(Coordinator::start(at, life, &mut self.sky));
            }
        }
    }

    /// A process dies, with all that it knew.
    pub(crate) fn stop(&mut self, process: Process) {
        let Some(host) = self.sky.hosts.get_mut(&process).filter(|host| host.is_up) else { return };
        (host.is_up, host.is_frozen) = (false, false);
        self.deferred.remove(&process);
        for end in self.sky.network.ends_of(process) {
            self.sky.abandon(end);
        }
        match process {
            Process::Node(at) => self.nodes[at] = None,
            Process::Coordinator(at) => {
                let gone = self.coordinators[at].take();
                let life = gone.as_ref().map(|gone| (at, gone.life));
                drop(gone);
                // Whoever asked there asks again.
                for (client, of) in self.clients.iter_mut().enumerate() {
                    if of.outcome.is_none() && of.asked.is_some_and(|(asked, _)| Some(asked) == life) {
                        of.asked = None;
                        of.times += 1;
                        let after = MS + self.sky.random.below(200 * MS);
                        self.sky.clock.after(after, Event::Ask { client });
                    }
                }
                self.sky.watch.forget(life);
            }
        }
    }

    /// Who is asked: of the coordinators that live the one that nodes obey.
    pub(crate) fn serving(&self) -> usize {
        let living = self.coordinators.iter().flatten();
        let term = |of: &Coordinator| self.sky.watch.term((of.at, of.life));
        living.max_by_key(|of| (term(of), of.at)).map_or(0, |of| of.at)
    }

    fn ask(&mut self, client: usize) {
        let at = self.serving();
        let is_frozen =
            self.sky.hosts.get(&Process::Coordinator(at)).is_none_or(|host| !host.is_up || host.is_frozen);
        let of = &mut self.clients[client];
        if of.outcome.is_some() {
            return;
        }
        if self.lacks_room && of.asking.on_missing == OnMissing::Exact {
            self.sky.clock.after(100 * MS, Event::Ask { client });
            return;
        }
        if of.is_complete() {
            of.outcome = Some(Outcome::Answered);
            return;
        }
        let Some(coordinator) = self.coordinators[at].as_mut().filter(|_| !is_frozen) else {
            self.sky.clock.after(40 * MS, Event::Ask { client });
            return;
        };
        let submission = of.submission(client, &self.sky);
        let id = coordinator.data.submit(submission, &mut self.sky);
        of.asked = Some(((at, coordinator.life), id));
        if let Some(after) = of.asking.cancelled_after.take() {
            self.sky.clock.after(after, Event::Cancel { client });
        }
    }

    fn cancel(&mut self, client: usize) {
        let of = &mut self.clients[client];
        if of.outcome.is_some() {
            return;
        }
        of.outcome = Some(Outcome::Cancelled);
        if let Some(((at, life), id)) = of.asked
            && let Some(coordinator) = live_coordinator(&mut self.coordinators, at, life)
        {
            coordinator.data.give_up(id, &mut self.sky);
        }
    }
}

pub(crate) fn live_node(nodes: &mut [Option<Node>], at: usize, life: u32) -> Option<&mut Node> {
    nodes[at].as_mut().filter(|node| node.life == life && node.is_up)
}

pub(crate) fn live_coordinator(
    all: &mut [Option<Coordinator>],
    at: usize,
    life: u32,
) -> Option<&mut Coordinator> {
    all[at].as_mut().filter(|coordinator| coordinator.life == life)
}
