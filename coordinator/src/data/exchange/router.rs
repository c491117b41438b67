//! Who takes what waits: queues of experts, their actors, and the links to these.
//!
//! Pure. What waits for an expert is *offered* to the replica that is thought to return it first, by rows that are out to
//! it and by what its dispatches took; it then stands in its link's lane until a
//! frame takes the rows. Where no replica's link has room it is offered to all of them, and the first that gets room
//! takes it. Nothing here looks at an expert that nothing waits for.
//!
//! A group that may have felled its actor is **retried alone**: an actor is reserved for it, gets nothing more until it
//! has nothing left of what it got before, then the group, and then nothing else until that is back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use transport::wire::cluster::ActorId;

use super::NONE;
use super::landing::Line;
use super::links::Link;
use crate::placement::NodeId;

/// By such a part less an actor is thought to take each time that it was passed over: one that was ten times slower than
/// another is tried again after some 150 times.
const PASSED_OVER_PART: u32 = 64;

/// One shard of one expert, and what waits for it.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Queue {
    pub(super) layer: u32,
    pub(super) expert: u32,
    /// In the order of their arrival.
    pub(super) waiting: Line,
    /// To be retried alone, group after group.
    pub(super) suspects: Line,
    /// Its actors are `actors_len` from here, in `Router::replicas`.
    pub(super) actors_first: u32,
    pub(super) actors_len: u32,
    /// The actor that is reserved for the suspects.
    reserved: u32,
    /// Nobody who holds it can be reached, as of the last change of links or placement.
    pub(super) is_missing: bool,
}

/// Why an actor gets nothing for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// It does not.
    No,
    /// It was busy, or late.
    Busy,
    /// It said that it does not serve the expert: it is no holder until the placement changes, or for a while.
    NotServing,
}

/// One actor, seen from here. Of its two cache lines the first is what a dispatch on its way out needs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Actor {
    pub(super) id: ActorId,
    pub(super) queue: u32,
    /// The link to its node.
    pub(super) link: u32,
    /// The next in its lane.
    pub(super) next: u32,
    /// Rows that are out to it.
    pub(super) outstanding: u32,
    /// Dispatches that are out to it.
    pub(super) open: u32,
    /// Of these, overdue.
    pub(super) overdue: u32,
    pub(super) pause: Pause,
    is_in_lane: bool,
    is_fresh: bool,
    pub(super) is_reserved: bool,
    /// What it was reserved for is out.
    pub(super) is_retrying: bool,
    /// The placement has it no more.
    pub(super) is_gone: bool,
    /// Credit of all open frames that it has a part in.
    pub(super) held: u64,
    /// The dispatch that it got last.
    pub(super) last_sent: u64,

    pub(super) rows_returned: u64,
    /// Rows that were sent to it and did not come back.
    pub(super) rows_lost: u64,
    pub(super) dispatches_returned: u64,
    /// What a dispatch to it is thought to take: as long as the recent ones, and less each time that rows went elsewhere
    /// for it, so that one that was slow is tried again; 0, where none has come back.
    pub(super) expected_us: u32,
    pub(super) refused: u32,
    pub(super) service_ns_sum: u64,
    pub(super) service_ns_recent: u64,
    pub(super) node: NodeId,
    /// Names the pause: an older one that ends says nothing.
    pause_number: u32,
    /// The last pause for being busy or late; none since something came back.
    pub(super) backoff_ms: u32,
    pub(super) device: u16,
}

impl Actor {
    /// The placement has it no more, and something refers to it.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_gone && (self.open > 0 || self.is_in_lane || self.is_fresh)
    }
}

/// Queues, actors and links.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) shards: u32,
    pub(super) queues: Vec<Queue>,
    /// The first queue of each expert of each layer.
    pub(super) layers: Vec<Vec<u32>>,
    pub(super) actors: Vec<Actor>,
    pub(super) actors_free: Vec<u32>,
    pub(super) replicas: Vec<u32>,
    pub(super) links: Vec<Link>,
    pub(super) links_free: Vec<u32>,
    pub(super) links_opened: u64,
    /// The newest open link to each node.
    pub(super) of_node: HashMap<NodeId, u32>,
    /// Links that something waits to be sent on, and that had room.
    active: VecDeque<u32>,
    pauses: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Queues with something to be retried alone that no actor could be reserved for.
    unplaced: VecDeque<u32>,
}

impl Router {
    pub(super) fn new(shards: u32) -> Self {
        Self {
            shards,
            queues: Vec::new(),
            layers: Vec::new(),
            actors: Vec::new(),
            actors_free: Vec::new(),
            replicas: Vec::new(),
            links: Vec::new(),
            links_free: Vec::new(),
            links_opened: 0,
            of_node: HashMap::new(),
            active: VecDeque::new(),
            pauses: BinaryHeap::new(),
            unplaced: VecDeque::new(),
        }
    }

    /// The first queue of an expert, one for each shard; they are made when it is first heard of.
    pub(super) fn queues_of(&mut self, layer: u32, expert: u32) -> u32 {
        let known = self.layers.get(layer as usize).and_then(|experts| experts.get(expert as usize));
        match known {
            Some(&first) if first != NONE => first,
            _ => self.add_queues(layer, expert),
        }
    }

    /// The queue of one shard of an expert, if it was ever heard of.
    pub(super) fn find_queue(&self, layer: u32, expert: u32, shard: u8) -> Option<u32> {
        let first = *self.layers.get(layer as usize)?.get(expert as usize)?;
        (first != NONE).then(|| first + u32::from(shard))
    }

    #[cold]
    fn add_queues(&mut self, layer: u32, expert: u32) -> u32 {
        let first = self.queues.len() as u32;
        if self.layers.len() <= layer as usize {
            self.layers.resize(layer as usize + 1, Vec::new());
        }
        let experts = &mut self.layers[layer as usize];
        if experts.len() <= expert as usize {
            experts.resize(expert as usize + 1, NONE);
        }
        experts[expert as usize] = first;
        self.queues.extend((0..self.shards).map(|_| Queue {
            layer,
            expert,
            waiting: Line::EMPTY,
            suspects: Line::EMPTY,
            actors_first: 0,
            actors_len: 0,
            reserved: NONE,
            is_missing: true,
        }));
        first
    }

    /// An actor nothing is known of yet.
    pub(super) fn add_actor(&mut self, id: ActorId, node: NodeId, queue: u32) -> u32 {
        let link = self.of_node.get(&node).copied().unwrap_or(NONE);
        let mut actor = Actor {
            id,
            node,
            device: 0,
            queue,
            link,
            next: NONE,
            outstanding: 0,
            open: 0,
            overdue: 0,
            held: 0,
            last_sent: 0,
            pause: Pause::No,
            backoff_ms: 0,
            pause_number: 0,
            is_in_lane: false,
            is_fresh: false,
            is_reserved: false,
            is_retrying: false,
            is_gone: false,
            rows_lost: 0,
            rows_returned: 0,
            dispatches_returned: 0,
            expected_us: 0,
            refused: 0,
            service_ns_sum: 0,
            service_ns_recent: 0,
        };
        match self.actors_free.pop() {
            Some(at) => {
                // A pause of the one that had the place before must not end one of this one's.
                actor.pause_number = self.actors[at as usize].pause_number + 1;
                self.actors[at as usize] = actor;
                at
            }
            None => {
                self.actors.push(actor);
                self.actors.len() as u32 - 1
            }
        }
    }

    /// The place of an actor that is gone is free when nothing refers to it any more.
    pub(super) fn free_if_gone(&mut self, at: u32) {
        let actor = &self.actors[at as usize];
        if actor.is_gone && !actor.is_leaving() {
            self.actors_free.push(at);
        }
    }

    pub(super) fn actors_of(&self, queue: u32) -> &[u32] {
        let Queue { actors_first, actors_len, .. } = self.queues[queue as usize];
        &self.replicas[actors_first as usize..][..actors_len as usize]
    }

    /// It holds the expert, as far as is known, and can be reached.
    pub(super) fn is_holder(&self, actor: &Actor) -> bool {
        actor.link != NONE && !actor.is_gone && actor.pause != Pause::NotServing
    }

    /// It may get rows, but for the room.
    fn is_usable(&self, actor: &Actor) -> bool {
        actor.link != NONE && !actor.is_gone && actor.pause == Pause::No && actor.overdue == 0
    }

    /// It may get rows that are not retried alone.
    pub(super) fn takes(&self, actor: &Actor) -> bool {
        self.is_usable(actor) && !actor.is_reserved && self.links[actor.link as usize].leaves_room(actor.held)
    }

    /// Somebody whose link is not late may get rows of a queue.
    pub(super) fn has_awake(&self, queue: u32) -> bool {
        let is_awake = |at: &u32| {
            let actor = &self.actors[*at as usize];
            self.is_usable(actor) && !self.links[actor.link as usize].is_late
        };
        self.actors_of(queue).iter().any(is_awake)
    }

    /// Something waits in a queue, or somebody became able to take it.
    pub(super) fn wake(&mut self, queue: u32) {
        if self.queues[queue as usize].suspects.len > 0 {
            self.reserve(queue);
        }
        if self.queues[queue as usize].waiting.len > 0 {
            self.offer(queue);
        }
    }

    /// Offers what waits to the actor that is thought to return it first among those whose link has room; if no link
    /// has, to all. Late links are no links as long as there are others.
    pub(super) fn offer(&mut self, queue: u32) {
        let Queue { actors_first, actors_len, .. } = self.queues[queue as usize];
        let replicas = actors_first as usize..(actors_first + actors_len) as usize;
        let untried_us = if actors_len > 1 { self.untried_us(replicas.clone()) } else { 1 };
        let mut best: Option<((bool, bool, u64), u32)> = None;
        for &at in &self.replicas[replicas.clone()] {
            let actor = &self.actors[at as usize];
            if !self.takes(actor) {
                continue;
            }
            let each_us =
                if actors_len > 1 && actor.expected_us > 0 { actor.expected_us } else { untried_us };
            let expected = u64::from(actor.outstanding + 1) * u64::from(each_us);
            let link = &self.links[actor.link as usize];
            let key = (link.is_late, !link.has_room, expected);
            if best.is_none_or(|(best, _)| key < best) {
                best = Some((key, at));
            }
        }
        match best {
            None => {}
            Some(((_, false, _), at)) => {
                if actors_len > 1 {
                    self.note_passed_over(replicas, at);
                }
                self.enter_lane(at, true);
            }
            Some(((_, true, _), _)) => self.offer_to_all(queue),
        }
    }

    /// Half of the least that any of them is thought to take: so little, until it is known, that each is tried.
    fn untried_us(&self, replicas: Range<usize>) -> u32 {
        let known = self.replicas[replicas].iter().map(|at| self.actors[*at as usize].expected_us);
        known.filter(|us| *us > 0).min().map_or(1, |us| (us / 2).max(1))
    }

    /// Those with no more to do than the one that was taken have been passed over for being slow.
    fn note_passed_over(&mut self, replicas: Range<usize>, taken: u32) {
        let outstanding = self.actors[taken as usize].outstanding;
        for index in replicas {
            let at = self.replicas[index];
            let actor = &mut self.actors[at as usize];
            if at != taken && actor.outstanding <= outstanding {
                actor.expected_us -= actor.expected_us.div_ceil(PASSED_OVER_PART);
            }
        }
    }

    fn offer_to_all(&mut self, queue: u32) {
        let Queue { actors_first, actors_len, .. } = self.queues[queue as usize];
        let is_late = |router: &Self, at: u32| {
            let actor = &router.actors[at as usize];
            router.links[actor.link as usize].is_late
        };
        let is_any_awake = self.has_awake(queue);
        for index in actors_first..actors_first + actors_len {
            let at = self.replicas[index as usize];
            if self.takes(&self.actors[at as usize]) && !(is_any_awake && is_late(self, at)) {
                self.enter_lane(at, false);
            }
        }
    }

    /// Reserves an actor for the suspects of a queue: one whose link has room, or nobody yet.
    fn reserve(&mut self, queue: u32) {
        let reserved = self.queues[queue as usize].reserved;
        if reserved != NONE {
            let actor = &self.actors[reserved as usize];
            if actor.is_retrying || actor.open > 0 {
                return;
            }
            if self.links[actor.link as usize].has_room {
                return self.enter_lane(reserved, true);
            }
            self.release(reserved);
        }
        let key = |at: &u32| {
            let actor = &self.actors[*at as usize];
            let is_usable = self.is_usable(actor);
            let link = || &self.links[actor.link as usize];
            is_usable.then(|| (link().is_late, !link().has_room, actor.outstanding, *at))
        };
        // The first of those with the least; `min_by_key` would do, if keys could be left out.
        let best = self.actors_of(queue).iter().filter_map(key).reduce(|best, other| {
            let key = |one: &(bool, bool, u32, u32)| (one.0, one.1, one.2);
            if key(&other) < key(&best) { other } else { best }
        });
        let at = match best {
            // Whoever becomes usable wakes it.
            None => return,
            Some((_, true, ..)) => {
                if !self.unplaced.contains(&queue) {
                    self.unplaced.push_back(queue);
                }
                return;
            }
            Some((_, false, _, at)) => at,
        };
        self.queues[queue as usize].reserved = at;
        let actor = &mut self.actors[at as usize];
        actor.is_reserved = true;
        if actor.open == 0 {
            self.enter_lane(at, true);
        }
    }

    /// Room came back somewhere: whoever found none for what is retried alone looks again.
    pub(super) fn wake_unplaced(&mut self) {
        for _ in 0..self.unplaced.len() {
            if let Some(queue) = self.unplaced.pop_front() {
                self.wake(queue);
            }
        }
    }

    /// The actor that was reserved is so no more.
    pub(super) fn release(&mut self, at: u32) {
        let actor = &mut self.actors[at as usize];
        if actor.is_reserved {
            (actor.is_reserved, actor.is_retrying) = (false, false);
            self.queues[actor.queue as usize].reserved = NONE;
        }
    }

    /// An actor that was reserved, and got nothing yet, cannot be used now, or need not be.
    pub(super) fn release_unsent(&mut self, at: u32) {
        if !self.actors[at as usize].is_retrying {
            self.release(at);
        }
    }

    /// There are no suspects any more.
    pub(super) fn set_suspects_gone(&mut self, queue: u32) {
        let reserved = self.queues[queue as usize].reserved;
        if reserved != NONE && !self.actors[reserved as usize].is_retrying {
            self.release(reserved);
            self.wake(queue);
        }
    }

    /// `is_only_one`: what waits is offered to nobody else, so it must be if this link turns out to be full.
    fn enter_lane(&mut self, at: u32, is_only_one: bool) {
        let actor = &mut self.actors[at as usize];
        let (link_at, layer) = (actor.link, actor.id.layer);
        let link = &mut self.links[link_at as usize];
        if is_only_one && !actor.is_fresh && self.queues[actor.queue as usize].actors_len > 1 {
            actor.is_fresh = true;
            link.fresh.push(at);
        }
        if !actor.is_in_lane {
            (actor.is_in_lane, actor.next) = (true, NONE);
            let lane = link.lane_listed(layer);
            let last = std::mem::replace(&mut lane.last, at);
            match last {
                NONE => lane.first = at,
                _ => self.actors[last as usize].next = at,
            }
        }
        self.activate(link_at);
    }

    /// Takes an actor out of its lane; `before` stands before it there. Says who comes after.
    pub(super) fn leave_lane(&mut self, before: u32, at: u32) -> u32 {
        let actor = &mut self.actors[at as usize];
        actor.is_in_lane = false;
        let (link, layer, next) = (actor.link, actor.id.layer, actor.next);
        let lane = self.links[link as usize].lane_listed(layer);
        if lane.last == at {
            lane.last = before;
        }
        match before {
            NONE => lane.first = next,
            _ => self.actors[before as usize].next = next,
        }
        next
    }

    /// All leave a link's lanes. Their queues are woken by the caller.
    pub(super) fn clear_lanes(&mut self, link: u32) {
        while let Some(layer) = self.links[link as usize].lane_first() {
            let at = self.links[link as usize].lane(layer).first;
            self.leave_lane(NONE, at);
            self.free_if_gone(at);
        }
        while let Some(at) = self.links[link as usize].fresh.pop() {
            self.actors[at as usize].is_fresh = false;
            self.free_if_gone(at);
        }
    }

    /// A link has room, or got something to send.
    pub(super) fn activate(&mut self, at: u32) {
        let link = &mut self.links[at as usize];
        if !link.is_active && link.has_room && link.lane_first().is_some() {
            link.is_active = true;
            self.active.push_back(at);
        }
    }

    /// The link whose turn it is to send.
    pub(super) fn first_active(&self) -> Option<u32> {
        self.active.front().copied()
    }

    /// The link whose turn it was goes behind all others, if it has something to send.
    pub(super) fn rotate_active(&mut self) {
        if let Some(at) = self.active.pop_front() {
            let link = &mut self.links[at as usize];
            link.is_active = link.lane_first().is_some();
            if link.is_active {
                self.active.push_back(at);
            }
        }
    }

    /// The link whose turn it is has no room: what was offered to it alone is offered to all.
    pub(super) fn block_first(&mut self) {
        let Some(at) = self.active.pop_front() else { return };
        self.links[at as usize].is_active = false;
        while let Some(actor) = self.links[at as usize].fresh.pop() {
            let this = &mut self.actors[actor as usize];
            this.is_fresh = false;
            let Actor { is_in_lane, is_reserved, queue, .. } = *this;
            if is_in_lane && is_reserved {
                self.wake(queue);
            } else if is_in_lane && self.queues[queue as usize].waiting.len > 0 {
                self.offer_to_all(queue);
            }
            self.free_if_gone(actor);
        }
    }

    /// A link is no more among those that frames are made for.
    pub(super) fn deactivate(&mut self, at: u32) {
        if std::mem::take(&mut self.links[at as usize].is_active) {
            self.active.retain(|link| *link != at);
        }
    }

    /// An actor gets nothing until `until`.
    pub(super) fn pause(&mut self, at: u32, why: Pause, until: Instant) {
        let actor = &mut self.actors[at as usize];
        actor.pause = why;
        actor.pause_number += 1;
        self.pauses.push(Reverse((until, at, actor.pause_number)));
        self.release_unsent(at);
    }

    /// When the next pause ends.
    pub(super) fn next_pause(&self) -> Option<Instant> {
        self.pauses.peek().map(|Reverse((until, ..))| *until)
    }

    /// Ends a pause that is over, and says whose queue may go on.
    pub(super) fn poll_pause(&mut self, now: Instant) -> Option<u32> {
        while self.next_pause().is_some_and(|until| until <= now) {
            let Some(Reverse((_, at, number))) = self.pauses.pop() else { break };
            let actor = &mut self.actors[at as usize];
            if actor.pause_number == number && !actor.is_gone {
                actor.pause = Pause::No;
                return Some(actor.queue);
            }
        }
        None
    }
}
