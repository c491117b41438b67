//! Who sits where: what a placement, and links that come and go, change for queues and actors.
//!
//! Pure. These steps look at every actor there is. They follow changes of the cluster, not rows.

use std::collections::HashMap;

use super::NONE;
use super::interface::{ExchangeSettings, LinkRoom};
use super::links::Link;
use super::router::{Pause, Router};
use crate::data::ids::LinkId;
use crate::placement::{NodeId, Placement};

use transport::wire::cluster::ActorId;

impl Router {
    /// Takes over a placement. An actor that stays on its node keeps all that is known of it, but for having
    /// said that it does not serve.
    pub(super) fn seat(&mut self, placement: &Placement) {
        let mut replicas = Vec::with_capacity(self.replicas.len());
        let mut seated = vec![false; self.actors.len()];
        let mut lists = vec![(0, 0); self.queues.len()];
        // Those that went, and still have something out, may be back.
        let leaving = (0..).zip(&self.actors).filter(|(_, actor)| actor.is_leaving());
        let leaving: HashMap<_, _> = leaving.map(|(at, actor)| ((actor.id, actor.node), at)).collect();
        for (&layer, experts) in &placement.layers {
            for (expert, of_expert) in experts.iter().enumerate() {
                let expert = expert as u32;
                let first = self.queues_of(layer, expert);
                lists.resize(self.queues.len(), (0, 0));
                for shard in 0..self.shards {
                    let queue = first + shard;
                    let begin = replicas.len() as u32;
                    for replica in of_expert {
                        let Some(&seat) = replica.seats.get(shard as usize) else { continue };
                        let id = ActorId { layer, expert, replica: replica.number, shard: shard as u8 };
                        let known = self.actors_of(queue).iter().copied().find(|at| {
                            let actor = &self.actors[*at as usize];
                            actor.id == id && actor.node == seat.node
                        });
                        let at = known.or_else(|| leaving.get(&(id, seat.node)).copied());
                        let at = at.unwrap_or_else(|| self.add_actor(id, seat.node, queue));
                        self.actors[at as usize].is_gone = false;
                        if seated.len() < self.actors.len() {
                            seated.resize(self.actors.len(), false);
                        }
                        seated[at as usize] = true;
                        self.actors[at as usize].device = seat.device;
                        replicas.push(at);
                    }
                    lists[queue as usize] = (begin, replicas.len() as u32 - begin);
                }
            }
        }
        let gone: Vec<u32> = self.replicas.iter().copied().filter(|at| !seated[*at as usize]).collect();
        for at in gone {
            self.actors[at as usize].is_gone = true;
            self.release_unsent(at);
            self.free_if_gone(at);
        }
        self.replicas = replicas;
        for (queue, (first, len)) in self.queues.iter_mut().zip(lists) {
            (queue.actors_first, queue.actors_len) = (first, len);
        }
        for &at in &self.replicas {
            let actor = &mut self.actors[at as usize];
            if actor.pause == Pause::NotServing {
                actor.pause = Pause::No;
            }
        }
        self.wake_all();
    }

    /// All is offered anew.
    pub(super) fn wake_all(&mut self) {
        for link in 0..self.links.len() as u32 {
            self.clear_lanes(link);
        }
        for queue in 0..self.queues.len() as u32 {
            self.wake(queue);
        }
    }

    /// A link opened. What is sent to its node from now on goes over it.
    pub(super) fn open_link(
        &mut self,
        id: LinkId,
        node: NodeId,
        room: LinkRoom,
        settings: &ExchangeSettings,
    ) {
        // Where nothing could ever be sent the node is no holder of anything.
        let Some(link) = Link::new(id, node, room, self.links_opened, settings) else { return };
        self.links_opened += 1;
        let at = match self.links_free.pop() {
            Some(at) => {
                self.links[at as usize] = link;
                at
            }
            None => {
                self.links.push(link);
                self.links.len() as u32 - 1
            }
        };
        if let Some(older) = self.of_node.insert(node, at) {
            self.clear_lanes(older);
        }
        for actor in self.actors.iter_mut().filter(|actor| actor.node == node) {
            actor.link = at;
        }
        self.wake_all();
    }

    pub(super) fn find_link(&self, id: LinkId) -> Option<u32> {
        self.links.iter().position(|link| link.is_open && link.id == id).map(|at| at as u32)
    }

    /// A link has ended: nothing is sent on it any more. What was out is the caller's, and then the place is free.
    pub(super) fn end_link(&mut self, at: u32) {
        self.clear_lanes(at);
        self.deactivate(at);
        let node = self.links[at as usize].node;
        self.links[at as usize].is_open = false;
        if self.of_node.get(&node) == Some(&at) {
            // An older one may still stand.
            let stands = |(_, link): &(usize, &Link)| link.is_open && link.node == node;
            let others = self.links.iter().enumerate().filter(stands);
            let other = others.max_by_key(|(_, link)| link.opened).map(|(at, _)| at);
            match other {
                Some(other) => self.of_node.insert(node, other as u32),
                None => self.of_node.remove(&node),
            };
        }
        let now_at = self.of_node.get(&node).copied().unwrap_or(NONE);
        let mut released = Vec::new();
        for (index, actor) in self.actors.iter_mut().enumerate() {
            if actor.link == at {
                actor.link = now_at;
                released.push(index as u32);
            }
        }
        for actor in released {
            self.release_unsent(actor);
        }
    }

    /// The place of a link that has ended, when nothing refers to it any more.
    pub(super) fn free_link(&mut self, at: u32) {
        self.links_free.push(at);
        self.wake_all();
    }
}
