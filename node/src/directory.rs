//! Which actors a node has, by name: the only way to an expert is its address here.
//!
//! Shared by those who work on one arbiter: device supervisors write it, the receivers of dispatches read it. An
//! actor that was started again stands here under its old name.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use actix::Addr;
use transport::wire::cluster::{ActorId, Load};

use crate::batcher::Work;
use crate::expert::ExpertActor;

/// What an actor has done and what waits for it, written by itself.
#[derive(Debug, Default)]
pub struct LoadCell {
    /// Done so far.
    pub work: Cell<Work>,
    /// Rows that wait.
    pub queued: Cell<u32>,
}

impl LoadCell {
    /// As it is told to coordinators.
    pub fn load(&self, actor: ActorId) -> Load {
        let work = self.work.get();
        Load {
            actor,
            rows: work.rows,
            batches: work.batches,
            busy_us: u64::try_from(work.busy.as_micros()).unwrap_or(u64::MAX),
            service_us: u64::try_from(work.service.as_micros()).unwrap_or(u64::MAX),
            queued: self.queued.get(),
        }
    }
}

/// One actor.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its mailbox.
    pub address: Addr<ExpertActor>,
    /// What it does.
    pub load: Rc<LoadCell>,
}

/// All actors of one node. Clones are the same directory.
#[derive(Debug, Clone, Default)]
pub struct Directory(Rc<RefCell<BTreeMap<ActorId, Entry>>>);

impl Directory {
    /// From now on this is the address of `actor`.
    pub fn insert(&self, actor: ActorId, entry: Entry) {
        self.0.borrow_mut().insert(actor, entry);
    }

    /// There is no such actor any more.
    pub fn remove(&self, actor: ActorId) -> Option<Entry> {
        self.0.borrow_mut().remove(&actor)
    }

    /// The actor, or else another replica of the same expert: all of them give the same bits, and whoever sent the rows
    /// may know it by an older number.
    pub fn find(&self, actor: ActorId) -> Option<Addr<ExpertActor>> {
        find_replica(&self.0.borrow(), actor).map(|(_, entry)| entry.address.clone())
    }

    /// The very actor.
    pub fn get(&self, actor: ActorId) -> Option<Entry> {
        self.0.borrow().get(&actor).cloned()
    }

    /// Their addresses.
    pub fn addresses(&self) -> Vec<Addr<ExpertActor>> {
        self.0.borrow().values().map(|entry| entry.address.clone()).collect()
    }

    /// What each of them has done, and what waits for it.
    pub fn loads(&self) -> Vec<Load> {
        self.0.borrow().iter().map(|(actor, entry)| entry.load.load(*actor)).collect()
    }
}

/// Who serves an actor's rows: the actor, or else another replica of the same shard of its expert.
pub fn find_replica<T>(actors: &BTreeMap<ActorId, T>, actor: ActorId) -> Option<(ActorId, &T)> {
    if let Some(entry) = actors.get(&actor) {
        return Some((actor, entry));
    }
    let first = ActorId { replica: 0, shard: 0, ..actor };
    let last = ActorId { replica: u8::MAX, shard: u8::MAX, ..actor };
    let mut others = actors.range(first..=last).filter(|(other, _)| other.shard == actor.shard);
    others.next().map(|(other, entry)| (*other, entry))
}
