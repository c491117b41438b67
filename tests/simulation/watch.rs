//! The checkers: one for each thing that must never be.
//!
//! Pure. They know what was really sent, taken and said, and ask no core. Each kind of violation has a name, so that a test
//! can say which checker found a bug.

use std::collections::{BTreeMap, BTreeSet};

use transport::wire::cluster::{ActorId, Epoch};

use crate::frame::Dispatch;
use crate::network::{EndId, Network};
use crate::world::Process;

/// Something that must never be.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// Which checker.
    pub(crate) kind: &'static str,
    pub(crate) what: String,
}

/// Ends the run.
pub(crate) fn violation(kind: &'static str, what: String) -> ! {
    std::panic::panic_any(Violation { kind, what })
}

/// A process's life.
pub(crate) type Life = (usize, u32);

#[derive(Debug)]
struct Open {
    end: EndId,
    actor: ActorId,
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Dispatches that are out, by coordinator.
    open: BTreeMap<(Life, u64), Open>,
    /// Of coordinators: the term, and what was published last.
    terms: BTreeMap<Life, u64>,
    gone: BTreeSet<Life>,
    published: BTreeMap<Life, Epoch>,
    /// Of nodes: the highest term that an order came with, and the last order of each coordinator that was obeyed.
    told: BTreeMap<Life, u64>,
    obeyed: BTreeMap<(Life, usize), Epoch>,
    /// When a trunk was done with a batch last.
    pub(crate) progressed: u64,
    pub(crate) preempted: u64,
    pub(crate) shared: u64,
    pub(crate) rebalanced: u64,
    pub(crate) shuffled: u64,
    /// Experts that rows went on without.
    pub(crate) left_out: u64,
    /// Nodes that went as they had wanted.
    pub(crate) let_go: u64,
    pub(crate) refused: u64,
    pub(crate) dispatches: u64,
    /// Of coordinators: what was published last, with its nodes.
    announced: BTreeMap<Life, BTreeSet<(ActorId, usize)>>,
    /// What rows of requests were combined without: rows, by layer and expert.
    lacked: BTreeMap<(usize, u32), BTreeMap<(u32, u32), u64>>,
    /// Links that ended with dispatches out on them, by coordinator.
    deaths: BTreeMap<Life, u64>,
}

impl Watch {
    pub(crate) fn handle_progress(&mut self, nanos: u64) {
        self.progressed = nanos;
    }

    /// A coordinator publishes under a term from now on.
    pub(crate) fn handle_term(&mut self, who: Life, term: u64) {
        let earlier = self.terms.iter().filter(|((at, _), _)| *at == who.0).map(|(_, term)| *term).max();
        if earlier.is_some_and(|earlier| term <= earlier) {
            violation("epochs", format!("coordinator {who:?} takes term {term}, it has had {earlier:?}"));
        }
        self.terms.insert(who, term);
    }

    /// The term of a coordinator.
    pub(crate) fn term(&self, who: Life) -> Option<u64> {
        self.terms.get(&who).copied()
    }

    /// Whether somebody else has a higher term, or had one when he lived: nodes do not obey this one.
    pub(crate) fn is_superseded(&self, who: Life, by_the_living: bool) -> bool {
        let own = self.terms.get(&who);
        let counts = |other: &Life| other.0 != who.0 && !(by_the_living && self.gone.contains(other));
        self.terms.iter().any(|(other, term)| counts(other) && Some(term) > own)
    }

    /// A data plane has a placement from now on.
    pub(crate) fn handle_published(&mut self, who: Life, epoch: Epoch) {
        if self.published.insert(who, epoch).is_some_and(|before| before >= epoch) {
            violation("epochs", format!("coordinator {who:?} goes back to {epoch:?}"));
        }
    }

    /// A control plane has published this.
    pub(crate) fn handle_announced(&mut self, who: Life, actors: BTreeSet<(ActorId, usize)>) {
        self.announced.insert(who, actors);
    }

    /// A node that wants to go may: nothing of it is published any more.
    pub(crate) fn check_let_go(&mut self, who: Life, node: usize) {
        let mut announced = self.announced.get(&who).into_iter().flatten();
        if let Some((actor, _)) = announced.find(|(_, at)| *at == node) {
            violation("weights", format!("node {node} may go, {actor:?} is published there"));
        }
        self.let_go += 1;
    }

    /// A row of a request was combined without an expert.
    pub(crate) fn handle_lacked(&mut self, client: (usize, u32), expert: (u32, u32)) {
        *self.lacked.entry(client).or_default().entry(expert).or_default() += 1;
    }

    /// Rows of a request that were combined without experts, by layer and expert.
    pub(crate) fn lacked(&self, client: (usize, u32)) -> impl Iterator<Item = (&(u32, u32), &u64)> {
        self.lacked.get(&client).into_iter().flatten()
    }

    /// A node was given an order.
    pub(crate) fn handle_ordered(&mut self, node: Life, coordinator: usize, epoch: Epoch, is_obeyed: bool) {
        let term = self.told.entry(node).or_default();
        if is_obeyed && epoch.term < *term {
            let what =
                format!("node {node:?} obeys {epoch:?} of coordinator {coordinator} after term {term}");
            violation("publishers", what);
        }
        *term = (*term).max(epoch.term);
        if is_obeyed {
            let before = self.obeyed.insert((node, coordinator), epoch);
            if before.is_some_and(|before| before > epoch) {
                violation("epochs", format!("node {node:?} goes back from {before:?} to {epoch:?}"));
            }
        }
    }

    /// A dispatch frame is on its way.
    pub(crate) fn handle_sent(&mut self, who: Life, end: EndId, frame: &Dispatch) {
        for (group, _) in &frame.groups {
            let actor = ActorId {
                layer: frame.layer,
                expert: group.expert,
                replica: group.replica,
                shard: group.shard,
            };
            self.dispatches += 1;
            if self.open.insert((who, group.dispatch), Open { end, actor }).is_some() {
                violation("once", format!("dispatch {} is sent twice", group.dispatch));
            }
        }
    }

    /// It was answered, or was open no more.
    pub(crate) fn handle_answered(&mut self, who: Life, dispatch: u64) {
        self.open.remove(&(who, dispatch));
    }

    /// A data plane knows that a link is over: nothing is open on it.
    pub(crate) fn handle_link_over(&mut self, who: Life, end: EndId) {
        let before = self.open.len();
        self.open.retain(|(of, _), open| *of != who || open.end != end);
        *self.deaths.entry(who).or_default() += u64::from(self.open.len() < before);
    }

    /// Whether links have ended under dispatches of a coordinator so often that a row may be thought to have felled nodes.
    pub(crate) fn has_seen_deaths(&self, who: Life) -> bool {
        self.deaths.get(&who).is_some_and(|deaths| *deaths >= 2)
    }

    /// A coordinator's process is no more, and nothing is open of it.
    pub(crate) fn forget(&mut self, who: Option<Life>) {
        self.open.retain(|(of, _), _| Some(*of) != who);
        self.gone.extend(who);
    }

    /// A node drops weights. Whoever it obeys must have nothing out for them, over a link that stands, nor have them published.
    pub(crate) fn check_removed(&self, node: Life, term: u64, actor: ActorId, network: &Network) {
        for ((who, dispatch), open) in &self.open {
            let (near, far) = (network.end(open.end), network.end(open.end.other()));
            let is_here = far.owner == Process::Node(node.0) && far.life == node.1;
            if open.actor == actor
                && is_here
                && !near.is_over
                && !far.is_over
                && self.terms.get(who) == Some(&term)
            {
                let what =
                    format!("node {node:?} drops {actor:?}, dispatch {dispatch} of {who:?} is open for it");
                violation("weights", what);
            }
        }
        let obeyed = self.terms.iter().filter(|(who, of)| **of == term && !self.gone.contains(*who));
        for announced in obeyed.filter_map(|(who, _)| self.announced.get(who)) {
            if announced.contains(&(actor, node.0)) {
                violation("weights", format!("node {node:?} drops {actor:?}, which is published there"));
            }
        }
    }
}
