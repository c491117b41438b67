//! Amid what processes are killed: counted, so that a simulation that misses one says so, and waited for by ambushes.
//!
//! Pure. A situation is read from the processes as they are, of which nobody who is killed needs to know anything.

use std::collections::BTreeMap;

use coordinator::control::membership::Member;

use crate::coordinator::Coordinator;
use crate::world::{Process, World};

/// What a process is amid, that others would have to finish without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Amid {
    /// A node: what it holds is going elsewhere, since it is drained.
    Drained,
    /// A node: it loads while another one is drained. A coordinator: it drains one.
    Draining,
    /// A node loads what comes by a rebalance. A coordinator has one under way.
    Rebalance,
    /// A node has dialled, and is not in. A coordinator: some node is about to join it.
    Join,
    /// Tensors go to a node, or come from a coordinator.
    Weights,
    /// A node: it wants to go.
    Leaving,
    /// Another process was killed just before.
    Series,
    /// The same process was killed just before.
    Twice,
}

impl Amid {
    /// All that there are, of nodes and of coordinators.
    pub(crate) const ALL: [(Self, bool, &'static str); 13] = [
        (Self::Drained, true, "killed as they were drained"),
        (Self::Draining, true, "killed as they took over from a drained one"),
        (Self::Draining, false, "coordinators killed during a drain"),
        (Self::Rebalance, true, "killed as they loaded in a rebalance"),
        (Self::Rebalance, false, "coordinators killed during a rebalance"),
        (Self::Join, true, "killed as they joined"),
        (Self::Join, false, "coordinators killed during a join"),
        (Self::Weights, true, "killed as weights came"),
        (Self::Weights, false, "coordinators killed as they sent weights"),
        (Self::Leaving, true, "killed as they wanted to go"),
        (Self::Series, true, "killed right after another process"),
        (Self::Twice, true, "killed twice in a row"),
        (Self::Twice, false, "coordinators killed twice in a row"),
    ];

    /// Those that can be waited for when a node is drained.
    pub(crate) const OF_DRAINS: [(Self, bool); 3] =
        [(Self::Drained, true), (Self::Draining, true), (Self::Draining, false)];

    /// And at any time.
    pub(crate) const AMBUSHES: [(Self, bool); 9] = [
        (Self::Drained, true),
        (Self::Draining, true),
        (Self::Draining, false),
        (Self::Rebalance, true),
        (Self::Rebalance, false),
        (Self::Join, true),
        (Self::Join, false),
        (Self::Weights, true),
        (Self::Weights, false),
    ];
}

/// Somebody is killed a little after he is amid something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ambush {
    pub(crate) amid: Amid,
    pub(crate) is_node: bool,
    pub(crate) after: u64,
    pub(crate) back_after: u64,
    /// It is given up then.
    pub(crate) until: u64,
}

/// Who was killed amid what.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    pub(crate) all: u64,
    amid: BTreeMap<(Amid, bool), u64>,
    last: BTreeMap<Process, u64>,
}

/// Kills within this are one right after the other.
const SERIES: u64 = 300_000_000;
/// So soon a process that was killed has hardly done anything yet.
const AGAIN: u64 = 2_000_000_000;

impl Kills {
    pub(crate) fn count(&self, amid: Amid, is_node: bool) -> u64 {
        self.amid.get(&(amid, is_node)).copied().unwrap_or(0)
    }

    fn handle(&mut self, process: Process, amid: Vec<Amid>, now: u64) {
        let is_node = matches!(process, Process::Node(_));
        let recent = |last: &u64, within: u64| now - *last < within;
        let others = self.last.iter().any(|(other, last)| *other != process && recent(last, SERIES));
        let own = self.last.get(&process).is_some_and(|last| recent(last, AGAIN));
        let amid = amid.into_iter().chain(others.then_some(Amid::Series)).chain(own.then_some(Amid::Twice));
        for amid in amid {
            *self.amid.entry((amid, is_node)).or_default() += 1;
        }
        self.all += 1;
        self.last.insert(process, now);
    }
}

impl World {
    /// A process is about to be killed.
    pub(crate) fn count_kill(&mut self, process: Process) {
        let is_node = matches!(process, Process::Node(_));
        let amid = Amid::ALL
            .iter()
            .filter(|(amid, of_nodes, _)| *of_nodes == is_node && self.is_amid(*amid, process));
        let amid = amid.map(|(amid, ..)| *amid).collect();
        self.kills.handle(process, amid, self.sky.clock.nanos());
    }

    /// Whoever is amid what some ambush waits for: it is killed after a while.
    pub(crate) fn spring(&mut self) {
        let now = self.sky.clock.nanos();
        let ambushes = std::mem::take(&mut self.ambushes);
        for ambush in ambushes {
            let all = self.sky.hosts.iter().filter(|(_, host)| host.is_up).map(|(process, _)| *process);
            let of_kind = |process: &Process| matches!(process, Process::Node(_)) == ambush.is_node;
            let victim = all.filter(of_kind).find(|process| self.is_amid(ambush.amid, *process));
            match victim {
                Some(process) => self.kill_after(process, ambush.after, ambush.back_after),
                None if now < ambush.until => self.ambushes.push(ambush),
                None => {}
            }
        }
    }

    /// Whether a process that is up is amid this.
    fn is_amid(&self, amid: Amid, process: Process) -> bool {
        let living = || self.coordinators.iter().flatten();
        match (amid, process) {
            (Amid::Drained, Process::Node(at)) => {
                living().any(|of| member(of, at).is_some_and(|member| is_drained(of, member)))
            }
            (Amid::Draining, Process::Node(at)) => living().any(|of| drains(of) && loads(of, at)),
            (Amid::Draining, Process::Coordinator(at)) => self.coordinators[at].as_ref().is_some_and(drains),
            (Amid::Rebalance, Process::Node(at)) => {
                living().any(|of| of.control.is_rebalancing() && loads(of, at))
            }
            (Amid::Rebalance, Process::Coordinator(at)) => {
                self.coordinators[at].as_ref().is_some_and(|of| of.control.is_rebalancing())
            }
            (Amid::Join, Process::Node(at)) => {
                self.nodes[at].as_ref().is_some_and(|node| node.joining().next().is_some())
            }
            (Amid::Join, Process::Coordinator(at)) => {
                self.nodes.iter().flatten().any(|node| node.joining().any(|other| other == at))
            }
            (Amid::Weights, Process::Node(at)) => {
                self.nodes[at].as_ref().is_some_and(|node| node.fetches_from(&self.sky).next().is_some())
            }
            (Amid::Weights, Process::Coordinator(at)) => {
                self.nodes.iter().flatten().any(|node| node.fetches_from(&self.sky).any(|from| from == at))
            }
            (Amid::Leaving, Process::Node(at)) => self.nodes[at].as_ref().is_some_and(|node| node.is_leaving),
            (_, _) => false,
        }
    }
}

fn member(of: &Coordinator, node: usize) -> Option<&Member> {
    of.control.membership.named(&format!("n{node}")).filter(|member| member.is_in())
}

fn is_drained(of: &Coordinator, member: &Member) -> bool {
    of.control.membership.drained().has(&member.offer.name) && !of.control.publisher.is_idle(member.node)
}

fn drains(of: &Coordinator) -> bool {
    of.control.membership.members().any(|member| member.is_in() && is_drained(of, member))
}

fn loads(of: &Coordinator, node: usize) -> bool {
    member(of, node).is_some_and(|member| of.control.publisher.loading_bytes(member.node) > 0)
}
