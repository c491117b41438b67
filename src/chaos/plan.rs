//! Which fault comes next, and what it did to those who were being answered.
//!
//! Pure: a seed is a plan, and times are arguments.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::answers::Random;

/// What is done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// A node's process is killed, and started again a second later.
    Kill,
    /// A node's process is stopped for three seconds, as by a debugger or a host that is out of memory.
    Freeze,
    /// A node is asked to leave, and started again: one step of a rolling restart.
    Leave,
    /// The coordinator's process is killed, and started again at once. Clients ask again.
    Coordinator,
}

impl Fault {
    pub(super) const ALL: [Self; 4] = [Self::Kill, Self::Freeze, Self::Leave, Self::Coordinator];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Leave => "leave",
            Self::Coordinator => "coordinator",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Faults without end, each kind as often as the others, in an order and at nodes that a seed decides.
pub(super) struct Plan {
    random: Random,
    kinds: Vec<Fault>,
    round: Vec<Fault>,
    nodes: u32,
}

impl Plan {
    pub(super) fn new(seed: u64, kinds: Vec<Fault>, nodes: u32) -> Self {
        assert!(!kinds.is_empty() && nodes > 0, "something is done to somebody");
        Self { random: Random(seed), kinds, round: Vec::new(), nodes }
    }

    /// The next one, and which node it is for.
    pub(super) fn next(&mut self) -> (Fault, usize) {
        if self.round.is_empty() {
            self.round = self.kinds.clone();
        }
        let fault = self.round.swap_remove(self.random.below(self.round.len() as u32) as usize);
        (fault, self.random.below(self.nodes) as usize)
    }
}

/// The longest time that one who is being answered had nothing new, of the time from `start` to `end`.
pub(super) fn longest_gap(news: &[Instant], start: Instant, end: Instant) -> Duration {
    let touches = |gap: &&[Instant]| gap[1] > start && gap[0] < end;
    let gaps = news.windows(2).filter(touches).map(|gap| gap[1] - gap[0]);
    // Whoever waits still has waited since the last.
    let open = news.last().filter(|last| **last < end).map(|last| end - *last);
    gaps.chain(open).max().unwrap_or_default()
}

/// The usual time between two news, of all who were being answered.
pub(super) fn usual_gap(all: &[Vec<Instant>]) -> Duration {
    let mut gaps: Vec<Duration> =
        all.iter().flat_map(|news| news.windows(2)).map(|gap| gap[1] - gap[0]).collect();
    gaps.sort();
    gaps.get(gaps.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same seed is the same plan; each round has every kind once.
    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| {
            let mut plan = Plan::new(seed, Fault::ALL.to_vec(), 5);
            (0..40).map(|_| plan.next()).collect::<Vec<_>>()
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        for round in plan(7).chunks(Fault::ALL.len()) {
            assert!(Fault::ALL.iter().all(|kind| round.iter().any(|(fault, _)| fault == kind)), "{round:?}");
        }
        let nodes: std::collections::BTreeSet<_> = plan(7).iter().map(|(_, node)| *node).collect();
        assert_eq!(nodes.len(), 5);
    }

    #[test]
    fn a_gap_counts_where_it_touches_the_time() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let news = [0, 10, 20, 120, 130].map(at);
        let gap = |from, to| longest_gap(&news, at(from), at(to)).as_millis();
        assert_eq!(gap(0, 20), 10);
        // It began before and ends within.
        assert_eq!(gap(100, 125), 100);
        assert_eq!(gap(15, 18), 10);
        // Nothing came any more.
        assert_eq!(gap(125, 500), 370);
        assert_eq!(longest_gap(&[], at(0), at(10)), Duration::ZERO);
        assert_eq!(usual_gap(&[news.to_vec()]).as_millis(), 10);
    }
}
