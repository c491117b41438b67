//! Who stands behind the actors of one device: starts them, and starts them again when they fall.
//!
//! The weights are the supervisor's. An actor borrows them for a life, so a fall costs no loading: the next life has
//! the same name, the same weights and what was waiting. Who falls too often is not started again, and its rows
//! are sent elsewhere: [`Falls`] says when.
//!
//! actix's own supervisor does not survive a panic, hence this one: an actor's drop tells it of the fall.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, AsyncContext, Context, Handler, Message, Recipient};
use model::weights::Block;
use transport::wire::cluster::{ActorId, Fallen};
use transport::wire::groups::Reason;

use crate::batcher::{Waiting, Work};
use crate::device::Device;
use crate::directory::{Directory, Entry, LoadCell};
use crate::expert::{Beginning, ExpertActor, Leave};
use crate::group::Group;
use crate::loader::{Errand, Loader};
use crate::post::{post, post_to};
use crate::restarts::Falls;

/// Supervises the actors of one device.
pub struct DeviceSupervisor {
    device: Arc<dyn Device>,
    rows_max: u32,
    directory: Directory,
    agent: Recipient<ActorFell>,
    seats: HashMap<ActorId, Seat>,
}

struct Seat {
    weights: Arc<Block>,
    falls: Falls,
    load: Rc<LoadCell>,
}

/// Hold this expert.
#[derive(Debug)]
pub struct Take {
    /// Its name.
    pub id: ActorId,
    /// Its weights, for which the device's memory has been taken.
    pub weights: Arc<Block>,
}

impl Message for Take {
    type Result = ();
}

/// Have this loaded: behind all that was to be removed, whose room it may need.
pub struct Fetch {
    /// What.
    pub errand: Errand,
    /// By whom.
    pub loader: Arc<Loader>,
}

impl Message for Fetch {
    type Result = ();
}

/// Do not hold it any more.
#[derive(Debug)]
pub struct Remove(pub ActorId);

impl Message for Remove {
    type Result = ();
}

/// From an actor that fell: its last message.
#[derive(Debug)]
pub struct Fell {
    /// Which.
    pub id: ActorId,
    /// In words.
    pub why: String,
    /// What it had done.
    pub work: Work,
    /// What was waiting.
    pub waiting: Vec<(Waiting, Group)>,
}

impl Message for Fell {
    type Result = ();
}

/// To the agent: what coordinators are told.
#[derive(Debug)]
pub struct ActorFell(pub Fallen);

impl Message for ActorFell {
    type Result = ();
}

impl DeviceSupervisor {
    /// Of `device`, whose actors stand in `directory`.
    pub fn new(
        device: Arc<dyn Device>,
        rows_max: u32,
        directory: Directory,
        agent: Recipient<ActorFell>,
    ) -> Self {
        Self { device, rows_max, directory, agent, seats: HashMap::new() }
    }

    fn start_actor(&self, id: ActorId, work: Work, waiting: Vec<(Waiting, Group)>, context: &Context<Self>) {
        let seat = &self.seats[&id];
        let actor = ExpertActor::begin(Beginning {
            id,
            weights: Arc::clone(&seat.weights),
            device: Arc::clone(&self.device),
            rows_max: self.rows_max,
            load: Rc::clone(&seat.load),
            supervisor: context.address(),
            work,
            waiting,
        });
        let entry = Entry { address: actor.start(), load: Rc::clone(&seat.load) };
        self.directory.insert(id, entry);
    }

    fn forget(&mut self, id: ActorId) {
        if let Some(seat) = self.seats.remove(&id) {
            self.device.memory().give_back(seat.weights.bytes() as u64);
        }
    }
}

impl Actor for DeviceSupervisor {
    type Context = Context<Self>;
}

impl Handler<Take> for DeviceSupervisor {
    type Result = ();

    fn handle(&mut self, Take { id, weights }: Take, context: &mut Self::Context) {
        self.seats.insert(id, Seat { weights, falls: Falls::default(), load: Rc::default() });
        self.start_actor(id, Work::default(), Vec::new(), context);
    }
}

impl Handler<Fetch> for DeviceSupervisor {
    type Result = ();

    fn handle(&mut self, Fetch { errand, loader }: Fetch, _: &mut Self::Context) {
        loader.load(errand);
    }
}

impl Handler<Remove> for DeviceSupervisor {
    type Result = ();

    fn handle(&mut self, Remove(id): Remove, _: &mut Self::Context) {
        if let Some(entry) = self.directory.remove(id) {
            // Behind the groups that it was sent: those are answered first.
            post(&entry.address, Leave);
        }
        self.forget(id);
    }
}

impl Handler<Fell> for DeviceSupervisor {
    type Result = ();

    fn handle(&mut self, fell: Fell, context: &mut Self::Context) {
        let Fell { id, why, work, waiting } = fell;
        let Some(seat) = self.seats.get_mut(&id) else {
            // It was removed meanwhile.
            waiting.into_iter().for_each(|(_, group)| group.refuse(Reason::NotHeld));
            return;
        };
        let restarts = seat.falls.handle_fall(Instant::now());
        let is_lost = seat.falls.is_lost();
        if is_lost {
            tracing::error!(actor = ?id, %why, restarts, "an actor fell too often, it is lost");
            self.directory.remove(id);
            waiting.into_iter().for_each(|(_, group)| group.refuse(Reason::NotHeld));
            self.forget(id);
        } else {
            tracing::warn!(actor = ?id, %why, restarts, waiting = waiting.len(), "an actor fell, it is started again");
            self.start_actor(id, work, waiting, context);
        }
        post_to(&self.agent, ActorFell(Fallen { actor: id, why, restarts, is_lost }));
    }
}
