//! Drained nodes: they stay in and hold nothing, until somebody says otherwise.
//!
//! Pure. A node is drained only where all that it holds has room elsewhere, so that nothing is lost on the way; by force it
//! is so all the same, and experts that find no seat have no holder from then on.

use std::collections::BTreeMap;
use std::fmt;

use super::cluster::{Cluster, Demand, NodeOffer};
use super::diff::diff;
use super::policy::Refused;
use crate::placement::{NodeId, Placement, Seat};

/// Experts that a refusal names; the rest is counted.
const NAMED_MAX: usize = 4;
/// Nodes that a refusal names.
const NAMES_MAX: usize = 16;

/// Which nodes are drained, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained(BTreeMap<String, Manner>);

/// How a node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    /// Nothing that it holds is given up.
    Kindly,
    /// What has no room elsewhere is given up.
    ByForce,
}

impl Drained {
    /// Whether a node of this name is.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether it is, by force.
    pub fn is_forced(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Manner::ByForce)
    }

    /// By name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The same with this one. Who is drained by force stays so.
    pub fn with(&self, name: &str, manner: Manner) -> Self {
        let mut with = self.clone();
        let known = with.0.entry(name.to_owned()).or_insert(manner);
        *known = manner.max(*known);
        with
    }

    /// The same without this one.
    pub fn without(&self, name: &str) -> Self {
        let mut without = self.clone();
        without.0.remove(name);
        without
    }

    /// One line for each.
    pub fn text(&self) -> String {
        let line = |(name, manner): (&String, &Manner)| match manner {
            Manner::Kindly => format!("{name}\n"),
            Manner::ByForce => format!("{name} by force\n"),
        };
        self.0.iter().map(line).collect()
    }

    /// Reads what [`Drained::text`] wrote; a line that is none comes back.
    pub fn read(text: &str) -> Result<Self, &str> {
        let mut drained = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, manner) = match line.split_once(' ') {
                None => (line, Manner::Kindly),
                Some((name, "by force")) if !name.is_empty() => (name, Manner::ByForce),
                Some(_) => return Err(line),
            };
            drained.0.insert(name.to_owned(), manner);
        }
        Ok(drained)
    }
}

/// Why a node is not drained, or not any more. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrainRefused {
    /// Nobody has this name.
    #[error("no node is called {name}; {}", those(.known))]
    Unknown {
        /// As it was asked for.
        name: String,
        /// Names that there are.
        known: Vec<String>,
    },

    /// Nobody else could hold anything.
    #[error("{name} is the only node that may hold experts: add another first, or stop the coordinator")]
    OnlyOne {
        /// Its name.
        name: String,
    },

    /// What it holds has no room elsewhere.
    #[error(
        "{name} cannot be drained, there is no room elsewhere for all that it holds. {held}. Without it, {why}. By force \
         it is drained all the same, and whoever needs an expert without a holder waits for it"
    )]
    NoRoom {
        /// Its name.
        name: String,
        /// What it holds.
        held: Box<Held>,
        /// The sum that is not right.
        why: Box<Refused>,
    },

    /// Another coordinator publishes placements.
    #[error("another coordinator says what nodes hold, this one reads only; ask the other")]
    Superseded,

    /// It cannot be remembered.
    #[error("it cannot be stored that {name} is drained: {why}; is the disk of the data directory full?")]
    NotStored {
        /// Its name.
        name: String,
        /// What the system says.
        why: String,
    },
}

fn those(known: &[String]) -> String {
    match known {
        [] => "none has joined yet".to_owned(),
        [one] => format!("there is {one}"),
        several if several.len() <= NAMES_MAX => format!("there are {}", several.join(", ")),
        several => {
            let more = several.len() - NAMES_MAX;
            format!(
                "there are {} and {more} more; `phalanx status --json` has them all",
                several[..NAMES_MAX].join(", ")
            )
        }
    }
}

/// What a node holds of what is published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Experts, by layer and number, of which it has a replica or a part of one.
    pub experts: Vec<(u32, u32)>,
    /// Of these, those that would have no whole replica without it.
    pub alone: Vec<(u32, u32)>,
}

impl Held {
    /// Of a node, where others that are closed do not count.
    pub fn of(node: NodeId, name: &str, published: &Placement, is_closed: impl Fn(NodeId) -> bool) -> Self {
        let mut held = Self { name: name.to_owned(), ..Self::default() };
        for (&layer, experts) in &published.layers {
            for (expert, replicas) in (0..).zip(experts) {
                let is_here = |seat: &Seat| seat.node == node;
                if !replicas.iter().flat_map(|replica| &replica.seats).any(is_here) {
                    continue;
                }
                held.experts.push((layer, expert));
                let stays = |seat: &Seat| !is_here(seat) && !is_closed(seat.node);
                if !replicas.iter().any(|replica| replica.seats.iter().all(stays)) {
                    held.alone.push((layer, expert));
                }
            }
        }
        held
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |count: usize| if count == 1 { "1 expert".into() } else { format!("{count} experts") };
        write!(f, "It holds {}", counted(self.experts.len()))?;
        if self.alone.is_empty() {
            return Ok(());
        }
        let named =
            self.alone.iter().take(NAMED_MAX).map(|(layer, expert)| format!("{expert} of layer {layer}"));
        let more = match self.alone.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = named.collect::<Vec<_>>().join(", ");
        write!(f, ", {} of them alone: expert {named}{more}", self.alone.len())
    }
}

/// The cluster as it would be if this node were drained too.
pub fn closed(cluster: &Cluster, node: NodeId) -> Cluster {
    let close =
        |offer: &NodeOffer| NodeOffer { is_leaving: offer.is_leaving || offer.id == node, ..offer.clone() };
    Cluster::new(cluster.nodes().iter().map(close).collect())
}

/// Experts that each node would come to hold, that it does not hold yet; by node, shards and replicas counted.
pub fn moves(published: &Placement, wanted: &Placement, demand: &Demand) -> BTreeMap<NodeId, usize> {
    let mut moves = BTreeMap::new();
    for (_, seat) in diff(published, wanted, demand).load {
        *moves.entry(seat.node).or_default() += 1;
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Replica;

    #[test]
    fn what_is_written_is_read_again() {
        let drained = Drained::default().with("b", Manner::ByForce).with("a-1", Manner::Kindly);
        assert_eq!(drained.text(), "a-1\nb by force\n");
        assert_eq!(Drained::read(&drained.text()), Ok(drained.clone()));
        assert_eq!(Drained::read(""), Ok(Drained::default()));
        assert_eq!(Drained::read("a\nb by accident\n"), Err("b by accident"));
        assert_eq!(drained.with("b", Manner::Kindly), drained, "who is drained by force stays so");
        assert!(drained.with("a-1", Manner::ByForce).is_forced("a-1"));
        assert_eq!(drained.without("b").names().collect::<Vec<_>>(), ["a-1"]);
    }

    /// A replica on two drained nodes is as good as none, and one of which a shard sits there is not whole.
    #[test]
    fn held_alone_is_what_would_have_no_whole_replica() {
        let replica = |number: u8, nodes: [u32; 2]| Replica {
            number,
            seats: nodes.map(|node| Seat { node: NodeId(node), device: 0 }).to_vec(),
        };
        let experts = vec![
            vec![replica(0, [0, 0])],
            vec![replica(0, [0, 1]), replica(1, [1, 2])],
            vec![replica(0, [1, 0]), replica(1, [3, 3])],
            vec![replica(0, [1, 1])],
        ];
        let published = Placement { layers: [(5, experts)].into(), ..Placement::default() };
        let held = Held::of(NodeId(0), "n0", &published, |node| node == NodeId(3));
        assert_eq!(held.experts, [(5, 0), (5, 1), (5, 2)]);
        assert_eq!(held.alone, [(5, 0), (5, 2)]);
        assert_eq!(
            held.to_string(),
            "It holds 3 experts, 2 of them alone: expert 0 of layer 5, 2 of layer 5"
        );
    }
}
