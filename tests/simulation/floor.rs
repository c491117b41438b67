//! What a node's actors do: dispatches in, batches to the devices, returns out.
//!
//! A shell around the product's `Batcher` and `Falls`, as the node's receivers, actors, supervisors and devices are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use node::batcher::{Action, Batcher, GroupId, Waiting, Work};
use node::device::DeviceMemory;
use node::directory::find_replica;
use node::restarts::Falls;
use transport::wire::cluster::{ActorId, Assignment, Fallen, Load};
use transport::wire::groups::{Group as Entry, Reason};

use crate::bugs::Bug;
use crate::clock::{MS, US};
use crate::frame::{Credit, Dispatch, Moving, ROW_BYTES, Return};
use crate::network::EndId;
use crate::node::{NodeEvent, fallen, link_id};
use crate::world::{Event, Sky};

/// Most rows of a batch.
const BATCH_ROWS_MAX: u32 = 16;

/// A dispatch that came. Its room goes back with the last of its groups.
#[derive(Debug)]
struct Dispatched {
    frame: Dispatch,
    end: EndId,
    _credit: Credit,
}

/// Rows for one actor.
#[derive(Debug)]
struct Group {
    of: Rc<Dispatched>,
    entry: Entry,
    indices: Range<usize>,
}

impl Group {
    fn rows(&self) -> impl Iterator<Item = u64> + '_ {
        self.of.frame.indices[self.indices.clone()].iter().map(|index| self.of.frame.rows[*index as usize])
    }
}

#[derive(Debug)]
struct Actor {
    life: u64,
    batcher: Batcher,
    groups: BTreeMap<u32, Group>,
    group_next: u32,
    /// It has fallen, and its supervisor has not heard of it.
    is_down: bool,
}

/// What a supervisor keeps of an actor.
#[derive(Debug)]
struct Seat {
    device: u16,
    bytes: u64,
    falls: Falls,
}

#[derive(Debug)]
struct Batch {
    actor: ActorId,
    life: u64,
    groups: Vec<Group>,
}

/// Actors and devices of a node.
#[derive(Debug)]
pub(crate) struct Floor {
    pub(crate) devices: Vec<DeviceMemory>,
    actors: BTreeMap<ActorId, Actor>,
    seats: BTreeMap<ActorId, Seat>,
    lives: u64,
    /// Batches that were handed over, and those that are computed.
    handed: Vec<Batch>,
    round: Option<(Vec<Batch>, Duration)>,
    knows_model: bool,
    node: usize,
    life: u32,
    /// It is about to end, and takes nothing more.
    pub(crate) is_draining: bool,
    /// What coordinators know of what actors do.
    pub(crate) loads_told: BTreeMap<ActorId, Load>,
}

impl Floor {
    pub(crate) fn new(node: usize, life: u32, devices: Vec<DeviceMemory>) -> Self {
        Self {
            devices,
            actors: BTreeMap::new(),
            seats: BTreeMap::new(),
            lives: 0,
            handed: Vec::new(),
            round: None,
            knows_model: false,
            node,
            life,
            is_draining: false,
            loads_told: BTreeMap::new(),
        }
    }

    fn later(&self, nanos: u64, what: NodeEvent, sky: &mut Sky) {
        sky.clock.after(nanos, Event::Node { node: self.node, life: self.life, what });
    }

    /// A coordinator has said what the model is.
    pub(crate) fn joined(&mut self) {
        self.knows_model = true;
    }

    /// Actors that stand.
    pub(crate) fn standing(&self) -> impl Iterator<Item = ActorId> + '_ {
        self.seats.keys().copied()
    }

    /// Groups that are here, waiting or computed.
    pub(crate) fn groups(&self) -> usize {
        let waiting: usize = self.actors.values().map(|actor| actor.groups.len()).sum();
        let computed = self.handed.iter().chain(self.round.iter().flat_map(|(batches, _)| batches));
        waiting + computed.map(|batch| batch.groups.len()).sum::<usize>()
    }

    /// The weights of an actor are there.
    pub(crate) fn take(&mut self, assignment: Assignment, bytes: u64) {
        let Assignment { actor, device, .. } = assignment;
        self.seats.insert(actor, Seat { device, bytes, falls: Falls::default() });
        self.start(actor, Work::default(), Vec::new());
    }

    fn start(&mut self, id: ActorId, work: Work, waiting: Vec<(Waiting, Group)>) {
        self.lives += 1;
        let mut actor = Actor {
            life: self.lives,
            batcher: Batcher::new(BATCH_ROWS_MAX).with_work(work),
            groups: BTreeMap::new(),
            group_next: 0,
            is_down: false,
        };
        for (waiting, group) in waiting {
            let group = actor.keep(group);
            actor.batcher.handle_group(Waiting { group, ..waiting });
        }
        self.actors.insert(id, actor);
    }

    /// An actor is not wanted any more.
    pub(crate) fn remove(&mut self, id: ActorId, sky: &mut Sky) {
        if let Some(mut actor) = self.actors.remove(&id) {
            if actor.is_down {
                // Its supervisor will hear that it fell, and finds no seat.
                self.actors.insert(id, actor);
            } else {
                actor.batcher.handle_leave();
                actor.carry_out(id, &mut self.handed, sky);
            }
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ActorId) {
        if let Some(seat) = self.seats.remove(&id) {
            self.devices[usize::from(seat.device)].give_back(seat.bytes);
        }
    }

    /// A dispatch came.
    pub(crate) fn receive(
        &mut self,
        end: EndId,
        is_joined: bool,
        frame: Dispatch,
        credit: Credit,
        sky: &mut Sky,
    ) {
        let arrived = sky.clock.now();
        let deadline = arrived + Duration::from_micros(frame.remaining_us);
        let refuse_all = match (self.is_draining, self.knows_model, is_joined) {
            (true, ..) => Some(Reason::Draining),
            (_, false, _) => Some(Reason::NotHeld),
            (_, true, false) => Some(Reason::Busy),
            (_, true, true) => None,
        };
        let layer = frame.layer;
        let of = Rc::new(Dispatched { frame, end, _credit: credit });
        let (mut refused, mut told) = (Vec::new(), Vec::new());
        for (entry, indices) in of.frame.groups.iter().cloned() {
            let id = ActorId { layer, expert: entry.expert, replica: entry.replica, shard: entry.shard };
            let found = find_replica(&self.actors, id).map(|(found, _)| found);
            let reason = match (refuse_all, found) {
                (Some(reason), _) => reason,
                (None, None) => Reason::NotHeld,
                (None, Some(found)) => {
                    let actor = self.actors.get_mut(&found).expect("it was just found");
                    if !actor.is_down {
                        let rows = entry.rows;
                        let group = actor.keep(Group { of: Rc::clone(&of), entry, indices });
                        let link = link_id(end);
                        actor.batcher.handle_group(Waiting { group, link, rows, arrived, deadline });
                        told.push(found);
                        continue;
                    }
                    Reason::Busy
                }
            };
            refused.push((entry, reason));
        }
        if sky.has_bug(Bug::LeaksCredit) && !refused.is_empty() {
            std::mem::forget(Rc::clone(&of));
        }
        drop(of);
        refuse(end, refused, sky);
        for id in told {
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.carry_out(id, &mut self.handed, sky);
            }
        }
    }

    /// A link has ended: what came over it and waits is dropped.
    pub(crate) fn link_ended(&mut self, end: EndId, sky: &mut Sky) {
        for (id, actor) in self.actors.iter_mut().filter(|(_, actor)| !actor.is_down) {
            actor.batcher.handle_link_ended(link_id(end));
            actor.carry_out(*id, &mut self.handed, sky);
        }
    }

    /// Whatever was handed over is computed, all of it together.
    pub(crate) fn compute(&mut self, sky: &mut Sky) {
        if self.round.is_some() || self.handed.is_empty() {
            return;
        }
        let batches = std::mem::take(&mut self.handed);
        let rows: u32 = batches.iter().flat_map(|batch| &batch.groups).map(|group| group.entry.rows).sum();
        let slowness = sky.slowness(self.node);
        let nanos = (30 * US + u64::from(rows) * 5 * US + sky.random.below(200 * US)) * slowness;
        self.round = Some((batches, Duration::from_nanos(nanos)));
        self.later(nanos, NodeEvent::Computed, sky);
    }

    /// The round is done: rows go back, and who fell over them falls.
    pub(crate) fn computed(&mut self, sky: &mut Sky) {
        let Some((batches, busy)) = self.round.take() else { return };
        let (fell, good): (Vec<Batch>, Vec<Batch>) = batches.into_iter().partition(|batch| {
            batch.groups.iter().flat_map(Group::rows).any(|row| sky.poison.contains(&row))
        });
        self.give_back(&good, sky);
        let now = sky.clock.now();
        for batch in good {
            let Batch { actor: id, life, groups } = batch;
            drop(groups);
            if let Some(actor) = self.actors.get_mut(&id).filter(|actor| actor.life == life && !actor.is_down)
            {
                actor.batcher.handle_computed(busy, now);
                actor.carry_out(id, &mut self.handed, sky);
            }
        }
        for Batch { actor: id, life, groups } in fell {
            for group in groups {
                refuse(group.of.end, vec![(group.entry, Reason::Failed)], sky);
            }
            let is_it = self.actors.get(&id).is_some_and(|actor| actor.life == life && !actor.is_down);
            if is_it {
                self.fall(id, "it fell over a row", sky);
            }
        }
    }

    /// Frames of what was computed: what goes back over one link for one layer goes together, as far as a frame holds it.
    fn give_back(&self, batches: &[Batch], sky: &mut Sky) {
        let mut frames: Vec<(EndId, u32, Return)> = Vec::new();
        for batch in batches {
            for group in &batch.groups {
                let ActorId { layer, expert, shard, .. } = batch.actor;
                let values = group.rows().map(|row| sky.case.model.expert(layer, expert, shard, row));
                let values: Vec<u64> = values.collect();
                let payload_max = sky.payload_max(group.of.end);
                let fits = |(end, of, frame): &(EndId, u32, Return)| {
                    let more = frame.payload_bytes() + 64 + values.len() as u64 * ROW_BYTES;
                    *end == group.of.end && *of == layer && more <= payload_max
                };
                let at = match frames.iter().rposition(fits) {
                    Some(at) => at,
                    None => {
                        frames.push((group.of.end, layer, Return { groups: Vec::new(), rows: Vec::new() }));
                        frames.len() - 1
                    }
                };
                let frame = &mut frames[at].2;
                let first = frame.rows.len();
                frame.rows.extend(values);
                frame.groups.push((group.entry, first..frame.rows.len()));
            }
        }
        for (end, _, frame) in frames {
            // Over a link that has ended meanwhile nobody waits for it.
            let _ = sky.send(end, Moving::Return(frame));
        }
    }

    /// An actor falls while it waits.
    pub(crate) fn strike(&mut self, id: ActorId, why: &'static str, sky: &mut Sky) {
        if self.actors.get(&id).is_some_and(|actor| !actor.is_down) {
            self.fall(id, why, sky);
        }
    }

    fn fall(&mut self, id: ActorId, why: &'static str, sky: &mut Sky) {
        let actor = self.actors.get_mut(&id).expect("only an actor that stands falls");
        actor.is_down = true;
        let life = actor.life;
        let after = sky.random.below(2 * MS);
        self.later(after, NodeEvent::Fell { actor: id, life, why }, sky);
    }

    /// A supervisor hears that an actor fell: it is started again, with what waited, unless that happens too often.
    pub(crate) fn fell(
        &mut self,
        id: ActorId,
        life: u64,
        why: &'static str,
        sky: &mut Sky,
    ) -> Option<Fallen> {
        if self.actors.get(&id).is_none_or(|actor| actor.life != life) {
            return None;
        }
        let mut actor = self.actors.remove(&id)?;
        let work = actor.batcher.work();
        let waiting: Vec<Waiting> = actor.batcher.waiting().copied().collect();
        let waiting: Vec<(Waiting, Group)> = waiting
            .into_iter()
            .filter_map(|waiting| Some((waiting, actor.groups.remove(&waiting.group.0)?)))
            .collect();
        let now = sky.clock.now();
        let Some(seat) = self.seats.get_mut(&id) else {
            waiting
                .into_iter()
                .for_each(|(_, group)| refuse(group.of.end, vec![(group.entry, Reason::NotHeld)], sky));
            return None;
        };
        let restarts = seat.falls.handle_fall(now);
        let is_lost = seat.falls.is_lost();
        if is_lost {
            waiting
                .into_iter()
                .for_each(|(_, group)| refuse(group.of.end, vec![(group.entry, Reason::NotHeld)], sky));
            self.forget(id);
        } else {
            self.start(id, work, waiting);
            let actor = self.actors.get_mut(&id).expect("it was just started");
            actor.carry_out(id, &mut self.handed, sky);
        }
        Some(fallen(id, why, restarts, is_lost))
    }

    /// What each actor has done, in so many times as many rows.
    pub(crate) fn loads(&self, times: u64) -> Vec<Load> {
        let load = |(id, actor): (&ActorId, &Actor)| {
            let work = actor.batcher.work();
            Load {
                actor: *id,
                rows: work.rows * times,
                batches: work.batches * times,
                busy_us: work.busy.as_micros() as u64 * times,
                service_us: work.service.as_micros() as u64 * times,
                queued: actor.batcher.waiting_rows(),
            }
        };
        self.actors.iter().map(load).collect()
    }
}

impl Actor {
    fn keep(&mut self, group: Group) -> GroupId {
        self.group_next += 1;
        self.groups.insert(self.group_next, group);
        GroupId(self.group_next)
    }

    fn carry_out(&mut self, id: ActorId, handed: &mut Vec<Batch>, sky: &mut Sky) {
        let now = sky.clock.now();
        while let Some(action) = self.batcher.poll_action(now) {
            match action {
                Action::Compute => {
                    let ids: Vec<GroupId> =
                        self.batcher.batch().iter().map(|waiting| waiting.group).collect();
                    let groups =
                        ids.iter().map(|id| self.groups.remove(&id.0).expect("released once")).collect();
                    handed.push(Batch { actor: id, life: self.life, groups });
                }
                Action::Refuse(group, reason) => {
                    let group = self.groups.remove(&group.0).expect("released once");
                    refuse(group.of.end, vec![(group.entry, reason)], sky);
                }
                Action::Drop(group) => drop(self.groups.remove(&group.0)),
            }
        }
    }
}

/// Sends groups back without rows.
fn refuse(end: EndId, groups: Vec<(Entry, Reason)>, sky: &mut Sky) {
    if groups.is_empty() {
        return;
    }
    let refused = |(entry, reason)| (Entry { rows: 0, refused: Some(reason), ..entry }, 0..0);
    let frame = Return { groups: groups.into_iter().map(refused).collect(), rows: Vec::new() };
    // Over a link that has ended meanwhile nobody waits for it.
    let _ = sky.send(end, Moving::Return(frame));
}
