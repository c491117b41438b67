//! What goes wrong, and that it ends.
//!
//! Processes die, stand still and go; links break, are held up and slow; actors fall; experts are moved about. At the end
//! everything that stood still goes on, and what is broken is replaced.

use std::rc::Rc;

use coordinator::data::flow::Forwarding;
use coordinator::data::request::OnMissing;
use transport::Lane;

use crate::case::{Asking, Fault};
use crate::clients::Client;
use crate::clock::MS;
use crate::model::Oracle;
use crate::network::EndId;
use crate::operators::Wish;
use crate::world::{Event, Process, Wall, World, live_coordinator};

impl World {
    pub(crate) fn thaw(&mut self, process: Process, life: u32) {
        let Some(host) = self.sky.hosts.get_mut(&process).filter(|host| host.life == life && host.is_frozen)
        else {
            return;
        };
        host.is_frozen = false;
        // What came first is looked at first.
        let now = self.sky.clock.nanos();
        for (at, event) in self.deferred.remove(&process).into_iter().flatten().enumerate() {
            self.sky.clock.at(now + at as u64, event);
        }
    }

    pub(crate) fn fall(&mut self, wall: u64) {
        if let Some(wall) = self.sky.walls.remove(&wall) {
            wall.ends.into_iter().for_each(|end| self.sky.unblock(end));
        }
    }

    /// The links between two that stand.
    fn pipes(&self, node: usize, coordinator: usize) -> Vec<usize> {
        let is_between = |pipe: &usize| {
            let [near, far] = &self.sky.network.ends[*pipe];
            near.owner == Process::Node(node)
                && far.owner == Process::Coordinator(coordinator)
                && !(near.is_over && far.is_over)
        };
        (0..self.sky.network.ends.len()).filter(is_between).collect()
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        let now = self.sky.clock.nanos();
        let end = self.sky.case.faults_end;
        match fault {
            Fault::KillNode { node, back_after } => self.kill(Process::Node(node), back_after),
            Fault::KillCoordinator { coordinator, back_after } => {
                self.kill(Process::Coordinator(coordinator), back_after);
            }
            Fault::FreezeNode { node, lasts } => self.freeze(Process::Node(node), lasts),
            Fault::FreezeCoordinator { coordinator, lasts } => {
                self.freeze(Process::Coordinator(coordinator), lasts);
            }
            Fault::Leave { node, back_after } => {
                let is_frozen = self.sky.hosts.get(&Process::Node(node)).is_some_and(|host| host.is_frozen);
                if let Some(of) = self.nodes[node].as_mut().filter(|_| !is_frozen) {
                    of.leave(&mut self.sky);
                    self.bury_leaver(node);
                    self.sky.clock.at((now + back_after).min(end), Event::Start(Process::Node(node)));
                }
            }
            Fault::Cut { node, coordinator, data_alone } => {
                let lanes = if data_alone { &[Lane::Data][..] } else { &Lane::ALL[..] };
                for pipe in self.pipes(node, coordinator) {
                    self.sky.cut(pipe, lanes);
                }
            }
            Fault::Wall { node, coordinator, ways, lasts } => {
                let mut ends = Vec::new();
                for pipe in self.pipes(node, coordinator) {
                    ends.extend((0..2).filter(|side| ways[*side]).map(|side| EndId { pipe, side }));
                }
                ends.iter().for_each(|end| self.sky.block(*end));
                self.walls += 1;
                self.sky.walls.insert(self.walls, Wall { node, coordinator, ends });
                self.sky.clock.after(lasts, Event::Fall { wall: self.walls });
            }
            Fault::Slow { node, coordinator, slowness, lasts } => {
                let pipes = self.pipes(node, coordinator);
                pipes.iter().for_each(|pipe| self.sky.slow(*pipe, slowness));
                self.sky.clock.after(lasts, Event::Hurry { pipes });
            }
            Fault::Tire { node, slowness, lasts } => {
                self.sky.slowness[node] = slowness;
                self.sky.clock.after(lasts, Event::Rest { node });
            }
            Fault::Strike { node, which, times } => self.strike(node, which, times),
            Fault::Shuffle { coordinator } => {
                let process = Process::Coordinator(coordinator);
                let is_frozen = self.sky.hosts.get(&process).is_some_and(|host| host.is_frozen);
                if let Some(of) = self.coordinators[coordinator].as_mut().filter(|_| !is_frozen) {
                    of.shuffle(&mut self.sky);
                }
            }
            Fault::Forward(forwarding) => self.forward(forwarding),
            Fault::Rival => self.start(Process::Coordinator(1)),
            Fault::Ask { coordinator, node, wish, undone_after } => {
                self.operate(coordinator, &format!("n{node}"), wish);
                if let Some(after) = undone_after {
                    let undo = Fault::Ask { coordinator, node, wish: Wish::Undrain, undone_after: None };
                    self.sky.clock.at((now + after).min(end), Event::Fault(undo));
                }
            }
            Fault::FillDisk { coordinator, lasts } => {
                self.sky.disks[coordinator].is_full = true;
                self.sky.clock.after(lasts, Event::Empty { coordinator });
            }
            Fault::Ambush(ambush) => self.ambushes.push(ambush),
        }
    }

    /// An operator asks a coordinator, if that hears him.
    fn operate(&mut self, coordinator: usize, name: &str, wish: Wish) {
        let process = Process::Coordinator(coordinator);
        let is_frozen = self.sky.hosts.get(&process).is_some_and(|host| host.is_frozen);
        if let Some(of) = self.coordinators[coordinator].as_mut().filter(|_| !is_frozen) {
            of.ask(name, wish, &mut self.sky);
        }
    }

    /// Somebody is killed a little later.
    pub(crate) fn kill_after(&mut self, process: Process, after: u64, back_after: u64) {
        let fault = match process {
            Process::Node(node) => Fault::KillNode { node, back_after },
            Process::Coordinator(coordinator) => Fault::KillCoordinator { coordinator, back_after },
        };
        let at = (self.sky.clock.nanos() + after).min(self.sky.case.faults_end);
        self.sky.clock.at(at, Event::Fault(fault));
    }

    fn kill(&mut self, process: Process, back_after: u64) {
        if !self.sky.is_faulty || !self.sky.hosts.get(&process).is_some_and(|host| host.is_up) {
            return;
        }
        self.count_kill(process);
        self.stop(process);
        let at = (self.sky.clock.nanos() + back_after).min(self.sky.case.faults_end);
        self.sky.clock.at(at, Event::Start(process));
    }

    fn freeze(&mut self, process: Process, lasts: u64) {
        if let Some(host) = self.sky.hosts.get_mut(&process).filter(|host| host.is_up) {
            host.is_frozen = true;
            let life = host.life;
            self.sky.clock.after(lasts, Event::Thaw { process, life });
        }
    }

    fn strike(&mut self, at: usize, which: u64, times: u32) {
        let Some(node) = &mut self.nodes[at] else { return };
        let standing: Vec<_> = node.floor.standing().collect();
        if standing.is_empty() {
            return;
        }
        let actor = standing[(which % standing.len() as u64) as usize];
        node.strike(actor, &mut self.sky);
        if times > 1 {
            let again = Fault::Strike { node: at, which, times: times - 1 };
            self.sky.clock.after(5 * MS, Event::Fault(again));
        }
    }

    fn forward(&mut self, forwarding: Forwarding) {
        for of in self.coordinators.iter_mut().flatten() {
            of.data.flow.set_forwarding(forwarding);
        }
    }

    /// Nothing goes wrong any more: what stood still goes on, and what is broken is replaced.
    pub(crate) fn heal(&mut self) {
        self.sky.is_faulty = false;
        for process in self.sky.hosts.keys().copied().collect::<Vec<_>>() {
            let life = self.sky.hosts[&process].life;
            self.thaw(process, life);
        }
        for wall in self.sky.walls.keys().copied().collect::<Vec<_>>() {
            self.fall(wall);
        }
        for pipe in 0..self.sky.network.ends.len() {
            self.sky.slow(pipe, 1);
        }
        self.sky.slowness.fill(1);
        self.ambushes.clear();
        self.sky.disks.iter_mut().for_each(|disk| disk.is_full = false);
        // Of two coordinators the one that does not publish is stopped: its clients go to the other.
        // One that was told that it is not the one begins anew.
        let serving = self.serving();
        let is_superseded = self.coordinators[serving]
            .as_ref()
            .is_some_and(|of| self.sky.watch.is_superseded((of.at, of.life), false));
        for at in (0..self.coordinators.len()).filter(|at| *at != serving || is_superseded) {
            self.stop(Process::Coordinator(at));
        }
        self.sole = Some(serving);
        self.start(Process::Coordinator(serving));
        self.replace_damaged();
        // One more request of each kind, to see that the cluster serves.
        self.ask_more(vec![71, 72, 73], OnMissing::Exact);
        self.ask_more(vec![81, 82, 83], OnMissing::Drop);
        // Where nodes are drained so that experts have no holder, that is seen to before they are used again.
        self.lacks_room = !self.fits() && self.sky.random.chance(500);
        self.lacked_room = self.lacks_room;
        if self.lacks_room {
            self.hang_up();
        } else {
            self.undrain();
        }
    }

    /// Of words that no other request has, so that none of its rows is one that fells actors.
    fn ask_more(&mut self, prompt: Vec<u32>, on_missing: OnMissing) {
        let asking = Asking {
            at: 0,
            prompt,
            tokens_max: 3,
            priority: 0,
            on_missing,
            within: None,
            cancelled_after: None,
            poison: None,
        };
        let oracle = Rc::new(Oracle::new(&self.sky.case.model, &asking.prompt, asking.tokens_max));
        let client = self.clients.len();
        self.clients.push(Client::new(asking, oracle, false));
        self.sky.clock.after(500 * MS, Event::Ask { client });
    }

    /// Whether all experts have room on the nodes that are not drained.
    fn fits(&self) -> bool {
        let Some(of) = &self.coordinators[self.serving()] else { return true };
        let drained = of.control.membership.drained();
        self.sky.case.places_without(|node| drained.has(&format!("n{node}")))
    }

    /// Nodes are used again until all experts have room.
    pub(crate) fn undrain(&mut self) {
        self.lacks_room = false;
        while !self.fits() {
            let serving = self.serving();
            let Some(of) = &self.coordinators[serving] else { return };
            let names: Vec<String> = of.control.membership.drained().names().map(str::to_owned).collect();
            let name = &names[self.sky.random.below(names.len() as u64) as usize];
            self.operate(serving, name, Wish::Undrain);
        }
    }

    /// Whoever wants all experts asks again when they are there.
    fn hang_up(&mut self) {
        for client in 0..self.clients.len() {
            let of = &mut self.clients[client];
            if of.asking.on_missing == OnMissing::Drop || of.outcome.is_some() {
                continue;
            }
            of.times += 1;
            if let Some(((at, life), id)) = of.asked.take()
                && let Some(coordinator) = live_coordinator(&mut self.coordinators, at, life)
            {
                coordinator.data.give_up(id, &mut self.sky);
                self.sky.clock.after(MS, Event::Ask { client });
            }
        }
    }

    /// Whoever is broken, or has gone, begins anew. Rows that fell actors may break devices yet.
    pub(crate) fn replace_damaged(&mut self) {
        for at in 0..self.nodes.len() {
            let is_to_go = self.nodes[at].as_ref().is_some_and(|node| node.is_damaged || node.is_leaving);
            if is_to_go {
                self.stop(Process::Node(at));
            }
            self.start(Process::Node(at));
        }
        self.sky.clock.after(500 * MS, Event::Replace);
    }
}
