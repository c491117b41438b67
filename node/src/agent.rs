//! The node itself: joins coordinators, does what they order, and says how it goes.
//!
//! An actor on the node's arbiter, and a shell: [`Holdings`] decides what is loaded, started and removed, and what is
//! answered. Sessions tell it what they hear, the loading threads what they have loaded, the device supervisors who
//! fell.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler};
use model::config::Config;
use model::family;
use model::spec::Spec;
use model::weights::{Digest, ExpertId};
use tokio::sync::{oneshot, watch};
use transport::link::TellRefused;
use transport::peer::Peer;
use transport::wire::cluster::{
    ActorId, Assignment, Cluster, Hold, Join, Joined, Load, ToCoordinator, ToNode,
};
use transport::wire::control::{CloseReason, words};

use crate::batcher::LinkId;
use crate::device::Device;
use crate::expert::{Fall, Leave, LinkEnded};
use crate::fetch::{Asks, Fetcher};
use crate::handle::{Command, NodeStatus};
use crate::holdings::{Action, Holdings, LoadFailed};
use crate::loader::{Errand, Loaded, Loader};
use crate::post::post;
use crate::receive::Floor;
use crate::returns::RowShape;
use crate::session::{Linked, Over, Told, Unlinked};
use crate::settings::Settings;
use crate::source::Source;
use crate::supervisor::{ActorFell, DeviceSupervisor, Fetch, Remove, Take};

/// How often coordinators are told what actors do.
const LOADS_EVERY: Duration = Duration::from_millis(250);
/// Messages that wait for room on one control lane; what is told anew anyway is left out before.
const UNSAID_MAX: usize = 4096;

/// A node.
pub struct Agent {
    settings: Arc<Settings>,
    row: model::kernel::RowType,
    loader: Arc<Loader>,
    devices: Vec<(Arc<dyn Device>, Addr<DeviceSupervisor>)>,
    floor: Rc<Floor>,
    holdings: Holdings,
    model: Option<Model>,
    sessions: HashMap<LinkId, Session>,
    /// Errands under way.
    loading: HashMap<u64, (Assignment, Arc<AtomicBool>)>,
    /// What coordinators know of what actors do.
    loads_told: HashMap<ActorId, Load>,
    /// What is asked of coordinators over their weights lanes.
    asks: Arc<Asks>,
    /// Sessions that go on dialling.
    sessions_left: usize,
    is_last: watch::Sender<bool>,
    /// Told when the node is over.
    over: Vec<oneshot::Sender<()>>,
}

/// The model that the coordinators serve.
struct Model {
    config: Digest,
    /// With the cluster's shards.
    spec: Arc<Spec>,
    source: Option<Arc<dyn Source>>,
}

/// One link.
struct Session {
    peer: Peer,
    /// The coordinator has taken this node in.
    is_joined: bool,
    /// What could not be said yet.
    unsaid: VecDeque<ToCoordinator>,
}

impl Session {
    fn name(&self) -> &str {
        &self.peer.hello().peer.name
    }

    fn say(&mut self, what: ToCoordinator) {
        if self.unsaid.len() < UNSAID_MAX {
            self.unsaid.push_back(in_bounds(what));
        } else {
            tracing::warn!(peer = ?self.peer, "the coordinator does not read what this node says");
        }
        self.say_on();
    }

    /// Says what can be said now.
    fn say_on(&mut self) {
        while let Some(what) = self.unsaid.pop_front() {
            match self.peer.tell(Cluster::ToCoordinator(what.clone())) {
                Ok(()) => {}
                Err(TellRefused::Full { .. }) => {
                    self.unsaid.push_front(what);
                    return;
                }
                // Only an end of the link, which is told elsewhere, or a message that no time mends.
                Err(why) if self.peer.ended().is_none() => {
                    tracing::warn!(peer = ?self.peer, %why, "not said to the coordinator");
                }
                Err(_) => return,
            }
        }
    }
}

/// Words that a message may have.
fn in_bounds(what: ToCoordinator) -> ToCoordinator {
    match what {
        ToCoordinator::Holding(mut holding) => {
            holding.failed.iter_mut().for_each(|(_, why)| *why = words(&why));
            ToCoordinator::Holding(holding)
        }
        ToCoordinator::Fallen(mut fallen) => {
            fallen.why = words(&fallen.why);
            ToCoordinator::Fallen(fallen)
        }
        other => other,
    }
}

/// What an agent begins with.
pub(crate) struct Parts {
    pub(crate) settings: Arc<Settings>,
    pub(crate) row: model::kernel::RowType,
    pub(crate) loader: Arc<Loader>,
    pub(crate) devices: Vec<(Arc<dyn Device>, Addr<DeviceSupervisor>)>,
    pub(crate) floor: Rc<Floor>,
    pub(crate) asks: Arc<Asks>,
    pub(crate) is_last: watch::Sender<bool>,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { settings, row, loader, devices, floor, asks, is_last } = parts;
        let sessions_left = settings.coordinators.len();
        Self {
            settings,
            row,
            loader,
            devices,
            floor,
            asks,
            holdings: Holdings::default(),
            model: None,
            sessions: HashMap::new(),
            loading: HashMap::new(),
            loads_told: HashMap::new(),
            sessions_left,
            is_last,
            over: Vec::new(),
        }
    }

    fn join(&self) -> Join {
        Join {
            devices: self.devices.iter().map(|(device, _)| device.offer()).collect(),
            labels: self.settings.labels.clone(),
            term: self.holdings.term(),
            checkpoint: self.settings.own_copy.as_ref().map(|own| *own.config_digest().0.as_bytes()),
            held: self.holdings.held(),
        }
    }

    /// A coordinator took this node in: the model is known from here on.
    fn joined(&mut self, link: LinkId, joined: Joined) -> Result<(), String> {
        let (config, shards) = (Digest::of(&joined.config), usize::from(joined.shards));
        if let Some(model) = self.model.as_ref().filter(|it| it.config != config || it.spec.shards != shards)
        {
            if self.sessions.values().any(|session| session.is_joined) {
                return Err(match model.config == config {
                    true => format!(
                        "this node serves the model in {} shards for another coordinator, this one cuts it into \
                         {shards}; start both with the same --shards",
                        model.spec.shards
                    ),
                    false => "this node serves another model for another coordinator".to_owned(),
                });
            }
            // At once, and not when the supervisors come to it: the next dispatch means the new model's experts.
            for actor in self.holdings.standing() {
                if let Some(entry) = self.floor.directory.remove(actor) {
                    post(&entry.address, Leave);
                }
            }
            self.holdings.handle_other_model();
            self.model = None;
        }
        if self.model.is_none() {
            let spec = Config::parse(Path::new("the coordinator's config.json"), &joined.config)
                .and_then(|config| family::spec(&config))
                .map_err(|why| format!("this node cannot serve the model: {why}"))?
                .with_shards(shards)
                .map_err(|why| format!("this node cannot serve the model: {why}"))?;
            let columns = u32::try_from(spec.hidden).map_err(|_| "rows too long for a frame".to_owned())?;
            self.floor.shape.set(Some(RowShape::new(self.row, columns, shards)));
            let own = self.settings.own_copy.clone().filter(|own| {
                let is_same = own.config_digest() == config;
                if !is_same {
                    tracing::warn!(
                        "this node's own copy of the checkpoint is of another model, it is not used"
                    );
                }
                is_same
            });
            let spec = Arc::new(spec);
            let fetcher = || {
                let folder = self.settings.experts_folder.as_deref()?;
                let fetcher = Fetcher::new(Arc::clone(&self.asks), Arc::clone(&spec), config, folder);
                Some(Arc::new(fetcher) as Arc<dyn Source>)
            };
            let source = own.map(|own| own as Arc<dyn Source>).or_else(fetcher);
            self.model = Some(Model { config, spec, source });
        }
        let Some(session) = self.sessions.get_mut(&link) else { return Ok(()) };
        session.is_joined = true;
        self.floor.joined.borrow_mut().insert(link);
        tracing::info!(coordinator = session.name(), node = joined.node, term = joined.term, "joined");
        self.holdings.handle_linked(session.name());
        // It knows nothing of what actors have done.
        self.loads_told.clear();
        Ok(())
    }

    fn hold(&mut self, link: LinkId, hold: Hold) {
        let Some(session) = self.sessions.get(&link).filter(|session| session.is_joined) else { return };
        tracing::debug!(coordinator = session.name(), epoch = ?hold.epoch, actors = hold.actors.len(), "ordered");
        self.holdings.handle_hold(session.name(), hold);
    }

    /// Does what the core asks for.
    fn carry_out(&mut self, context: &Context<Self>) {
        while let Some(action) = self.holdings.poll_action() {
            match action {
                Action::Load { ticket, assignment } => match self.errand(ticket, assignment, context) {
                    Ok(errand) => {
                        self.loading.insert(ticket, (assignment, Arc::clone(&errand.is_cancelled)));
                        let (_, supervisor) = &self.devices[usize::from(assignment.device)];
                        post(supervisor, Fetch { errand, loader: Arc::clone(&self.loader) });
                    }
                    Err(why) => drop(self.holdings.handle_loaded(ticket, Err(LoadFailed::Because(why)))),
                },
                Action::Cancel { ticket } => {
                    if let Some((_, is_cancelled)) = self.loading.get(&ticket) {
                        is_cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Action::Remove(assignment) => {
                    if let Some((_, supervisor)) = self.devices.get(usize::from(assignment.device)) {
                        post(supervisor, Remove(assignment.actor));
                    }
                }
                Action::Say { to, what } => {
                    let mut joined = self.sessions.values_mut().filter(|session| session.is_joined);
                    if let Some(session) = joined.find(|session| session.name() == to) {
                        session.say(what);
                    }
                }
            }
        }
    }

    /// What it takes to load an actor's weights; or why they cannot be.
    fn errand(&self, ticket: u64, assignment: Assignment, context: &Context<Self>) -> Result<Errand, String> {
        let ActorId { layer, expert, shard, .. } = assignment.actor;
        let Some(model) = &self.model else { return Err("the model is not known".to_owned()) };
        let Some((device, _)) = self.devices.get(usize::from(assignment.device)) else {
            return Err(format!("device {} of {}", assignment.device, self.devices.len()));
        };
        let (shard, shards) = (usize::from(shard), model.spec.shards);
        if shard >= shards {
            return Err(format!("shard {shard} of experts that are cut into {shards}, counted from 0"));
        }
        if !model.spec.has_expert(layer as usize, expert as usize) {
            return Err(format!("the model has no expert {expert} in layer {layer}"));
        }
        let Some(source) = &model.source else {
            return Err("this node has no copy of the checkpoint and no folder to keep what it is sent; start it with \
                        --model DIR, or with --data DIR"
                .to_owned());
        };
        Ok(Errand {
            ticket,
            expert: ExpertId { layer, expert },
            shard,
            spec: Arc::clone(&model.spec),
            digest: assignment.digest,
            device: Arc::clone(device),
            source: Arc::clone(source),
            is_cancelled: Arc::new(AtomicBool::new(false)),
            agent: context.address().recipient(),
        })
    }

    /// Tells coordinators what has changed since they were told.
    fn tell_loads(&mut self) {
        let mut loads = self.floor.directory.loads();
        // They come in the order of their actors.
        self.loads_told.retain(|actor, _| loads.binary_search_by_key(actor, |load| load.actor).is_ok());
        loads.retain(|load| self.loads_told.get(&load.actor) != Some(load));
        let mut is_behind = false;
        for session in self.sessions.values_mut() {
            session.say_on();
            if session.is_joined && session.unsaid.is_empty() && !loads.is_empty() {
                session.say(ToCoordinator::Loads(loads.clone()));
            }
            is_behind |= session.is_joined && !session.unsaid.is_empty();
        }
        // Who is behind is told at the next time; to the others a total says nothing new.
        if !is_behind {
            self.loads_told.extend(loads.into_iter().map(|load| (load.actor, load)));
        }
    }

    /// Says that it wants to leave, and leaves when all links have ended.
    fn leave(&mut self, context: &mut Context<Self>) {
        if self.is_last.send_replace(true) {
            return;
        }
        tracing::info!(links = self.sessions.len(), "leaving");
        for session in self.sessions.values_mut() {
            if session.is_joined {
                session.say(ToCoordinator::Leaving);
            } else {
                session.peer.close(CloseReason::Wanted);
            }
        }
        context.run_later(self.settings.leave_max, |agent, _| {
            tracing::warn!("no coordinator drained the link in time, this node does");
            agent.floor.is_draining.set(true);
            for peer in agent.sessions.values().map(|session| session.peer.clone()) {
                actix::spawn(async move { drop(peer.drain().await) });
            }
        });
        self.end_if_over(context);
    }

    fn end_if_over(&mut self, context: &mut Context<Self>) {
        if self.sessions_left == 0 && self.sessions.is_empty() {
            self.end(context);
        }
    }

    fn end(&mut self, context: &mut Context<Self>) {
        self.is_last.send_replace(true);
        for (_, is_cancelled) in self.loading.values() {
            is_cancelled.store(true, Ordering::Relaxed);
        }
        for session in self.sessions.values() {
            session.peer.close(CloseReason::Wanted);
        }
        for actor in self.holdings.standing() {
            if let Some((_, supervisor)) =
                self.holdings.assignment(actor).and_then(|it| self.devices.get(usize::from(it.device)))
            {
                post(supervisor, Remove(actor));
            }
        }
        for over in self.over.drain(..) {
            // Whoever does not wait any more need not be told.
            let _ = over.send(());
        }
        context.stop();
    }
}

impl Actor for Agent {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(LOADS_EVERY, |agent, _| agent.tell_loads());
    }
}

impl Handler<Linked> for Agent {
    type Result = ();

    fn handle(&mut self, Linked { link, peer }: Linked, _: &mut Self::Context) {
        if *self.is_last.borrow() {
            peer.close(CloseReason::Wanted);
        }
        if let Some(links) = &self.settings.links {
            links.send_replace(Some(peer.clone()));
        }
        let mut session = Session { peer, is_joined: false, unsaid: VecDeque::new() };
        session.say(ToCoordinator::Join(self.join()));
        self.sessions.insert(link, session);
    }
}

impl Handler<Told> for Agent {
    type Result = ();

    fn handle(&mut self, Told { link, message }: Told, context: &mut Self::Context) {
        match message {
            ToNode::Joined(joined) => {
                if let Err(why) = self.joined(link, joined)
                    && let Some(session) = self.sessions.get(&link)
                {
                    tracing::error!(coordinator = session.name(), %why, "not joined");
                    session.peer.close(CloseReason::Broken(words(why)));
                }
            }
            ToNode::Hold(hold) => self.hold(link, hold),
            // The session says why; the coordinator closes the link.
            ToNode::NotJoined { .. } => {}
            ToNode::NotServed { ask, why } => self.asks.handle_not_served(link, ask, why),
        }
        self.carry_out(context);
    }
}

impl Handler<Unlinked> for Agent {
    type Result = ();

    fn handle(&mut self, Unlinked { link }: Unlinked, context: &mut Self::Context) {
        self.floor.joined.borrow_mut().remove(&link);
        if let Some(session) = self.sessions.remove(&link) {
            let name = session.name();
            if !self.sessions.values().any(|other| other.is_joined && other.name() == name) {
                self.holdings.handle_unlinked(name);
            }
        }
        if let Some(links) = &self.settings.links {
            links.send_replace(self.sessions.values().next().map(|session| session.peer.clone()));
        }
        for actor in self.floor.directory.addresses() {
            post(&actor, LinkEnded(link));
        }
        self.carry_out(context);
        if *self.is_last.borrow() {
            self.end_if_over(context);
        }
    }
}

impl Handler<Over> for Agent {
    type Result = ();

    fn handle(&mut self, _: Over, context: &mut Self::Context) {
        self.sessions_left -= 1;
        self.end_if_over(context);
    }
}

impl Handler<Loaded> for Agent {
    type Result = ();

    fn handle(&mut self, Loaded { ticket, result }: Loaded, context: &mut Self::Context) {
        let Some((assignment, _)) = self.loading.remove(&ticket) else { return };
        let (device, supervisor) = &self.devices[usize::from(assignment.device)];
        let bytes = result.as_ref().map(|weights| weights.bytes() as u64).map_err(Clone::clone);
        if let Err(why) = &bytes {
            tracing::error!(actor = ?assignment.actor, %why, "an expert was not loaded");
        }
        let wanted = self.holdings.handle_loaded(ticket, bytes);
        match (result, wanted) {
            (Ok(weights), Some(Assignment { actor, .. })) => post(supervisor, Take { id: actor, weights }),
            (Ok(weights), None) => device.memory().give_back(weights.bytes() as u64),
            (Err(_), _) => {}
        }
        self.carry_out(context);
    }
}

impl Handler<ActorFell> for Agent {
    type Result = ();

    fn handle(&mut self, ActorFell(fallen): ActorFell, context: &mut Self::Context) {
        self.holdings.handle_fallen(fallen);
        self.carry_out(context);
    }
}

impl Handler<Command> for Agent {
    type Result = ();

    fn handle(&mut self, command: Command, context: &mut Self::Context) {
        match command {
            Command::Stop(over) => {
                self.over.push(over);
                self.end(context);
            }
            Command::Leave(over) => {
                self.over.push(over);
                self.leave(context);
            }
            Command::Fall { actor, when, done } => {
                let entry = self.floor.directory.get(actor);
                let _ = done.send(entry.is_some());
                if let Some(entry) = entry {
                    let when: Fall = when;
                    post(&entry.address, when);
                }
            }
            Command::Status(answer) => {
                let status = NodeStatus {
                    coordinators: self.sessions.values().filter(|it| it.is_joined).count(),
                    standing: self.holdings.standing(),
                    loads: self.floor.directory.loads(),
                    memory: self.devices.iter().map(|(device, _)| device.memory().used()).collect(),
                };
                let _ = answer.send(status);
            }
        }
    }
}
