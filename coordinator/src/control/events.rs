//! What has happened in the cluster, for people: the last events in words, newest last.
//!
//! Pure: instants and names are arguments, and what is kept is bounded. Nothing goes by it; whoever looks at a cluster learns
//! from it who joined, who died, who took over, and when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::placement::{NodeId, Placement};

/// Events that are kept. Each is a line of text.
const EVENTS_MAX: usize = 256;
/// Of these, so many of one kind: whoever knocks at a door all night, or comes and goes, does not drive out what others did.
const OF_KIND_MAX: usize = 64;
/// Characters of a text. What peers say of themselves is part of it.
const TEXT_MAX: usize = 400;
/// Nodes that one event names; the rest is counted.
const NAMED_MAX: usize = 4;

/// What sort of event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node is in.
    Joined,
    /// A node or a peer was not let in.
    Refused,
    /// A node has missed its rhythm.
    Late,
    /// It beats again.
    Awake,
    /// It wants to go.
    Leaving,
    /// It is to hold nothing.
    Draining,
    /// It holds nothing.
    Drained,
    /// It may hold experts again.
    Undrained,
    /// It has gone as it said.
    Left,
    /// Its link was cut.
    Lost,
    /// A device computes no more.
    DeviceLost,
    /// An actor fell, and was restarted.
    ActorFell,
    /// A node could not load what it was to hold.
    NotLoaded,
    /// Others hold what a node held that has gone.
    TookOver,
    /// Experts have no holder.
    Waiting,
    /// Every expert has a holder.
    Serving,
    /// A better placement is being carried out.
    Rebalanced,
    /// Answers begin with another bias.
    Biased,
    /// A placement was published.
    Epoch,
    /// Another coordinator publishes.
    Superseded,
    /// The program is about to end.
    Stopping,
}

impl Kind {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Joined => "joined",
            Kind::Refused => "refused",
            Kind::Late => "late",
            Kind::Awake => "awake",
            Kind::Leaving => "leaving",
            Kind::Draining => "draining",
            Kind::Drained => "drained",
            Kind::Undrained => "undrained",
            Kind::Left => "left",
            Kind::Lost => "lost",
            Kind::DeviceLost => "device_lost",
            Kind::ActorFell => "actor_fell",
            Kind::NotLoaded => "not_loaded",
            Kind::TookOver => "took_over",
            Kind::Waiting => "waiting",
            Kind::Serving => "serving",
            Kind::Rebalanced => "rebalanced",
            Kind::Biased => "biased",
            Kind::Epoch => "epoch",
            Kind::Superseded => "superseded",
            Kind::Stopping => "stopping",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts events from 1.
    pub number: u64,
    /// When.
    pub at: Instant,
    /// What sort.
    pub kind: Kind,
    /// The node that it is about, by name.
    pub node: Option<String>,
    /// In words.
    pub text: String,
}

/// An expert that nobody holds, and who did last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// By name.
    pub node: String,
    /// Since when nobody does.
    pub since: Instant,
}

/// The last events.
#[derive(Debug, Default)]
pub struct Events {
    count: u64,
    kept: VecDeque<Event>,
    /// What was published last.
    published: Arc<Placement>,
    /// Nodes that have gone and still stand in it.
    gone: BTreeMap<NodeId, String>,
    orphans: BTreeMap<(u32, u32), Orphan>,
    is_serving: bool,
}

impl Events {
    /// Something happened, to a node of this name if to any.
    pub fn handle(&mut self, kind: Kind, node: Option<&str>, text: impl Into<String>, at: Instant) {
        self.count += 1;
        let mut of_kind = (0..self.kept.len()).filter(|place| self.kept[*place].kind == kind);
        let oldest = of_kind.next().filter(|_| of_kind.count() + 1 >= OF_KIND_MAX);
        if let Some(place) = oldest.or((self.kept.len() >= EVENTS_MAX).then_some(0)) {
            self.kept.remove(place);
        }
        let (node, mut text) = (node.map(str::to_owned), text.into());
        if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
            text.replace_range(end.., "…");
        }
        self.kept.push_back(Event { number: self.count, at, kind, node, text });
    }

    /// A node's link has ended. Whoever takes over from it is told of when that is published.
    pub fn handle_gone(&mut self, node: NodeId, name: &str, wanted: bool, why: &str, at: Instant) {
        let kind = if wanted { Kind::Left } else { Kind::Lost };
        let what = if wanted { "has gone" } else { "is lost" };
        self.handle(kind, Some(name), format!("{name} {what}: {why}"), at);
        self.gone.insert(node, name.to_owned());
    }

    /// A node is in.
    pub fn handle_joined(&mut self, node: NodeId, name: &str, devices: usize, at: Instant) {
        self.gone.remove(&node);
        self.handle(
            Kind::Joined,
            Some(name),
            format!("{name} joined with {}", counted(devices, "device")),
            at,
        );
    }

    /// A placement was published: who took over what, and what is missing.
    pub fn handle_published(
        &mut self,
        placement: &Arc<Placement>,
        name: impl Fn(NodeId) -> String,
        at: Instant,
    ) {
        let before = std::mem::replace(&mut self.published, Arc::clone(placement));
        let mut changes = Changes::default();
        for (layer, expert) in experts(&before).chain(experts(placement)).collect::<BTreeSet<_>>() {
            self.compare(&before, layer, expert, &name, at, &mut changes);
        }
        let Changes { went_on, orphaned, taken, came, left } = changes;
        for (node, count) in went_on {
            let text = format!("other replicas go on with {} of {node}", counted(count, "expert"));
            self.handle(Kind::TookOver, Some(&node), text, at);
        }
        for (node, count) in orphaned {
            let have = if count == 1 { "has" } else { "have" };
            let text = format!("{} {have} no holder: {node} held them last", counted(count, "expert"));
            let text = if count == 1 { text.replace("held them", "held it") } else { text };
            self.handle(Kind::Waiting, Some(&node), text, at);
        }
        for ((node, from), count) in taken {
            let text = format!("{node} took over {} of {from}", counted(count, "expert"));
            self.handle(Kind::TookOver, Some(&node), text, at);
        }
        let epoch = placement.epoch;
        let mut text = format!("epoch {}.{}", epoch.term, epoch.number);
        for (what, by_node) in [("came", came), ("went", left)] {
            if !by_node.is_empty() {
                text += &format!(", {what}: {}", by_nodes(by_node.into_iter().collect()));
            }
        }
        self.handle(Kind::Epoch, None, text, at);
        let is_serving =
            !placement.layers.is_empty() && placement.layers.values().flatten().all(|of| !of.is_empty());
        if is_serving && !self.is_serving {
            let count = placement.layers.values().map(Vec::len).sum();
            self.handle(Kind::Serving, None, format!("all {} have a holder", counted(count, "expert")), at);
        }
        self.is_serving = is_serving;
        let seated: BTreeSet<NodeId> = placement.actors().map(|(_, seat)| seat.node).collect();
        self.gone.retain(|node, _| seated.contains(node));
    }

    fn compare(
        &mut self,
        before: &Placement,
        layer: u32,
        expert: u32,
        name: impl Fn(NodeId) -> String,
        at: Instant,
        changes: &mut Changes,
    ) {
        let nodes = |placement: &Placement| -> BTreeSet<NodeId> {
            let seats = placement.replicas(layer, expert).iter().flat_map(|replica| &replica.seats);
            seats.map(|seat| seat.node).collect()
        };
        let (old, new) = (nodes(before), nodes(&self.published));
        for node in new.difference(&old) {
            *changes.came.entry(name(*node)).or_default() += 1;
        }
        for node in old.difference(&new) {
            match self.gone.get(node) {
                Some(gone) if !new.is_empty() => *changes.went_on.entry(gone.clone()).or_default() += 1,
                _ => *changes.left.entry(name(*node)).or_default() += 1,
            }
        }
        if let (Some(node), true) = (old.first(), new.is_empty()) {
            let node = name(*node);
            *changes.orphaned.entry(node.clone()).or_default() += 1;
            self.orphans.insert((layer, expert), Orphan { node, since: at });
        }
        if let Some(node) = new.first()
            && let Some(orphan) = self.orphans.remove(&(layer, expert))
        {
            *changes.taken.entry((name(*node), orphan.node)).or_default() += 1;
        }
    }

    /// Those that are kept, oldest first.
    pub fn kept(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.kept.iter()
    }

    /// How many there have been, which is the number of the last.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Experts, by layer and number, that have had a holder and have none.
    pub fn orphans(&self) -> &BTreeMap<(u32, u32), Orphan> {
        &self.orphans
    }
}

/// What is different in a new placement, by nodes' names.
#[derive(Debug, Default)]
struct Changes {
    went_on: BTreeMap<String, usize>,
    orphaned: BTreeMap<String, usize>,
    /// Who holds now, and who held.
    taken: BTreeMap<(String, String), usize>,
    came: BTreeMap<String, usize>,
    left: BTreeMap<String, usize>,
}

fn experts(placement: &Placement) -> impl Iterator<Item = (u32, u32)> + '_ {
    placement
        .layers
        .iter()
        .flat_map(|(layer, experts)| (0..experts.len() as u32).map(move |expert| (*layer, expert)))
}

/// So many of something.
fn counted(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// What came to, or went from, which node; those with most come first.
fn by_nodes(mut nodes: Vec<(String, usize)>) -> String {
    nodes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest = nodes.len().saturating_sub(NAMED_MAX);
    let named = nodes.iter().take(NAMED_MAX).map(|(node, count)| format!("{count} at {node}"));
    let mut text = named.collect::<Vec<_>>().join(", ");
    if rest > 0 {
        let count: usize = nodes[NAMED_MAX..].iter().map(|(_, count)| count).sum();
        text += &format!(", {count} at {}", counted(rest, "other node"));
    }
    text
}
