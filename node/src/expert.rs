//! One expert, one actor: mailbox -> batcher -> device -> return.
//!
//! Handlers never wait and compute nothing: they tell the batcher what came, and carry out what it asks for. Nothing
//! stays in the mailbox: groups go to the batcher's queue at once, and how many there can be is bounded by the
//! credits that their frames hold.
//!
//! An actor whose batch panicked panics itself, so that nothing of it is used again. Its last act, however it came
//! to that, is to hand what waits, and has done no harm, to its supervisor for the next life.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use model::weights::Block;
use transport::wire::cluster::ActorId;

use crate::batcher::{Action, Batcher, GroupId, LinkId, Waiting, Work};
use crate::device::{Batch, Computed, Device, Ends, Outcome};
use crate::directory::LoadCell;
use crate::group::Group;
use crate::post::post;
use crate::supervisor::{DeviceSupervisor, Fell};

/// Messages that an actor may have: more than the dispatches that links let be under way, so that it is never full.
const MAILBOX_MAX: usize = 1 << 20;

/// An expert.
pub struct ExpertActor {
    id: ActorId,
    weights: Arc<Block>,
    device: Arc<dyn Device>,
    batcher: Batcher,
    /// Groups that wait, by their numbers; the numbers that are free.
    groups: Vec<Option<Group>>,
    free: Vec<GroupId>,
    /// A list for the next batch.
    spare: Vec<Group>,
    load: Rc<LoadCell>,
    supervisor: Addr<DeviceSupervisor>,
    falls_next: bool,
    end: End,
}

/// How an actor comes to its end.
enum End {
    /// It falls, if nobody says otherwise; the words are what is known.
    Fall(String),
    /// It was told to leave.
    Leave,
}

/// What an actor begins its life with.
pub struct Beginning {
    /// Its name.
    pub id: ActorId,
    /// The expert.
    pub weights: Arc<Block>,
    /// What computes it.
    pub device: Arc<dyn Device>,
    /// Most rows of a batch.
    pub rows_max: u32,
    /// Where its work is counted.
    pub load: Rc<LoadCell>,
    /// Who is told when it falls.
    pub supervisor: Addr<DeviceSupervisor>,
    /// What its last life has done.
    pub work: Work,
    /// What its last life left.
    pub waiting: Vec<(Waiting, Group)>,
}

/// A link ended.
#[derive(Debug, Clone, Copy)]
pub struct LinkEnded(pub LinkId);

impl Message for LinkEnded {
    type Result = ();
}

/// The actor is not wanted any more.
#[derive(Debug, Clone, Copy)]
pub struct Leave;

impl Message for Leave {
    type Result = ();
}

/// Lets an actor fall, as a fault would: for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fall {
    /// At once.
    Now,
    /// While its next batch is computed.
    NextBatch,
}

impl Message for Fall {
    type Result = ();
}

impl ExpertActor {
    /// Begins a life.
    pub fn begin(beginning: Beginning) -> Self {
        let Beginning { id, weights, device, rows_max, load, supervisor, work, waiting } = beginning;
        let mut actor = Self {
            id,
            weights,
            device,
            batcher: Batcher::new(rows_max).with_work(work),
            groups: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            load,
            supervisor,
            falls_next: false,
            end: End::Fall("it panicked".to_owned()),
        };
        for (waiting, group) in waiting {
            let group = actor.keep(group);
            actor.batcher.handle_group(Waiting { group, ..waiting });
        }
        actor
    }

    fn keep(&mut self, group: Group) -> GroupId {
        match self.free.pop() {
            Some(id) => {
                self.groups[id.0 as usize] = Some(group);
                id
            }
            None => {
                self.groups.push(Some(group));
                GroupId(u32::try_from(self.groups.len() - 1).expect("credits bound the groups there are"))
            }
        }
    }

    fn release(&mut self, id: GroupId) -> Group {
        self.free.push(id);
        self.groups[id.0 as usize].take().expect("a group is released once")
    }

    /// Hands the device whatever the core releases. `Computed` comes back as a message.
    fn carry_out(&mut self, now: Instant, context: &mut Context<Self>) {
        while let Some(action) = self.batcher.poll_action(now) {
            match action {
                Action::Compute => {
                    let mut groups = std::mem::take(&mut self.spare);
                    for at in 0..self.batcher.batch().len() {
                        let id = self.batcher.batch()[at].group;
                        groups.push(self.release(id));
                    }
                    let (weights, actor) = (Arc::clone(&self.weights), context.address());
                    let falls = std::mem::take(&mut self.falls_next);
                    let ends = Ends::here();
                    self.device.submit(Batch {
                        weights,
                        groups,
                        actor,
                        ends,
                        falls,
                        busy_min: Duration::ZERO,
                    });
                }
                answer => self.answer(answer),
            }
        }
        self.load.queued.set(self.batcher.waiting_rows());
    }

    fn answer(&mut self, action: Action) {
        match action {
            Action::Refuse(id, reason) => self.release(id).refuse(reason),
            Action::Drop(id) => self.release(id).answered(),
            Action::Compute => unreachable!("a batch answers nobody"),
        }
    }

    fn fall(&mut self, why: String) -> ! {
        self.end = End::Fall(why);
        // Not `panic!`: the hook would print what the supervisor logs.
        std::panic::resume_unwind(Box::new("the actor fell"))
    }
}

impl Actor for ExpertActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_MAX);
        self.carry_out(Instant::now(), context);
    }
}

impl Handler<Group> for ExpertActor {
    type Result = ();

    fn handle(&mut self, group: Group, context: &mut Self::Context) {
        let dispatched = group.dispatched();
        let (link, arrived, deadline) = (group.path().link, dispatched.arrived, dispatched.deadline);
        let rows = group.rows();
        let group = self.keep(group);
        self.batcher.handle_group(Waiting { group, link, rows, arrived, deadline });
        self.carry_out(Instant::now(), context);
    }
}

impl Handler<Computed> for ExpertActor {
    type Result = ();

    fn handle(&mut self, computed: Computed, context: &mut Self::Context) {
        let Computed { groups, outcome } = computed;
        match outcome {
            Outcome::Returned(busy) => {
                let now = Instant::now();
                self.spare = groups;
                self.batcher.handle_computed(busy, now);
                self.load.work.set(self.batcher.work());
                self.carry_out(now, context);
            }
            Outcome::Fell(why) => {
                let ids: Vec<GroupId> = self.batcher.batch().iter().map(|waiting| waiting.group).collect();
                for (id, group) in ids.into_iter().zip(groups) {
                    self.groups[id.0 as usize] = Some(group);
                    self.free.retain(|free| *free != id);
                }
                self.batcher.handle_fallen();
                while let Some(answer) = self.batcher.poll_answer() {
                    self.answer(answer);
                }
                self.fall(why);
            }
        }
    }
}

impl Handler<LinkEnded> for ExpertActor {
    type Result = ();

    fn handle(&mut self, LinkEnded(link): LinkEnded, context: &mut Self::Context) {
        self.batcher.handle_link_ended(link);
        self.carry_out(Instant::now(), context);
    }
}

impl Handler<Leave> for ExpertActor {
    type Result = ();

    fn handle(&mut self, _: Leave, context: &mut Self::Context) {
        self.batcher.handle_leave();
        self.carry_out(Instant::now(), context);
        self.end = End::Leave;
        context.stop();
    }
}

impl Handler<Fall> for ExpertActor {
    type Result = ();

    fn handle(&mut self, when: Fall, _: &mut Self::Context) {
        match when {
            Fall::Now => self.fall("it was told to fall".to_owned()),
            Fall::NextBatch => self.falls_next = true,
        }
    }
}

impl Drop for ExpertActor {
    /// Runs while a panic unwinds, so nothing in it may panic.
    fn drop(&mut self) {
        let End::Fall(why) = &mut self.end else { return };
        let why = std::mem::take(why);
        let mut waiting = Vec::new();
        for entry in self.batcher.waiting() {
            if let Some(group) = self.groups.get_mut(entry.group.0 as usize).and_then(Option::take) {
                waiting.push((*entry, group));
            }
        }
        post(&self.supervisor, Fell { id: self.id, why, work: self.batcher.work(), waiting });
    }
}
