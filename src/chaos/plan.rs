//! Which fault comes next, and what it did to those who were being answered.
//!
//! Pure: a seed is a plan, and times are arguments.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::answers::Random;

/// How long what lasts lasts: mostly shorter than the silence after which a link is given up, and sometimes longer.
pub(super) const LASTS: Duration = Duration::from_secs(3);
const LASTS_LONG: Duration = Duration::from_secs(12);
/// One in so many lasts long.
const LONG_EACH: u32 = 4;

/// What is done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// A node is killed, and started again a second later.
    Kill,
    /// A node is stopped for three seconds or twelve, as by a debugger or a host that is out of memory.
    Freeze,
    /// A node is asked to leave, and started again: one step of a rolling restart.
    Leave,
    /// The coordinator is killed, and started again at once. Clients ask again.
    Coordinator,
    /// Connections of a node are reset: one lane's, or all of its link.
    Reset,
    /// Nothing comes through from a node to its coordinator, or nothing back, for three seconds or twelve.
    OneWay,
    /// Nothing comes through in either direction, for three seconds or twelve, and nobody is told.
    Cut,
    /// What a node sends and is sent is late, by a time that changes, for three seconds.
    Delay,
    /// A bit of what is on its way is turned, below TLS.
    Corrupt,
    /// An expert's actor panics, at once or while it computes.
    Panic,
    /// A node's clock is half an hour, a day and a half or a year wrong, for three seconds.
    Clock,
    /// A node comes back with nothing kept, and a disk that takes nothing.
    Disk,
    /// A fifth of a node's packets are lost, for three seconds.
    Loss,
    /// A node's wire carries two megabits a second, for three seconds.
    Narrow,
    /// A node is gone for good, and a new one of another name and address comes.
    Replace,
}

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Leave => "leave",
            Self::Coordinator => "coordinator",
            Self::Reset => "reset",
            Self::OneWay => "one-way",
            Self::Cut => "cut",
            Self::Delay => "delay",
            Self::Corrupt => "corrupt",
            Self::Panic => "panic",
            Self::Clock => "clock",
            Self::Disk => "disk",
            Self::Loss => "loss",
            Self::Narrow => "narrow",
            Self::Replace => "replace",
        }
    }

    /// Whether the node's link ends by it, so that it is whole again only with another one.
    pub(super) fn ends_link(self) -> bool {
        matches!(self, Self::Kill | Self::Leave | Self::Reset | Self::Corrupt | Self::Disk)
    }

    /// Whether a process ends by it, so that nothing can be said of how its memory grows.
    pub(super) fn ends_process(self) -> bool {
        matches!(self, Self::Kill | Self::Leave | Self::Coordinator | Self::Disk | Self::Replace)
    }

    /// How long the stall may be, of 99 in 100, where every expert has another holder.
    pub(super) fn stall_max(self) -> Duration {
        Duration::from_millis(match self {
            Self::Kill | Self::Leave | Self::Reset | Self::Corrupt | Self::Disk | Self::Replace => 300,
            Self::Freeze | Self::OneWay | Self::Cut | Self::Delay | Self::Loss | Self::Narrow => 1_000,
            Self::Coordinator => 3_000,
            Self::Panic | Self::Clock => 100,
        })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How long it lasts this time.
pub(super) fn lasts(random: &mut Random) -> Duration {
    if random.below(LONG_EACH) == 0 { LASTS_LONG } else { LASTS }
}

/// One of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Injection {
    pub(super) fault: Fault,
    /// Whom it is for.
    pub(super) node: usize,
    /// Of the same kind before it.
    pub(super) earlier: u32,
    /// Decides whatever else there is to be decided about it.
    pub(super) random: Random,
}

/// Faults without end, each kind as often as the others, in an order and at nodes that a seed decides.
pub(super) struct Plan {
    random: Random,
    kinds: Vec<Fault>,
    round: Vec<Fault>,
    rounds: u32,
    nodes: u32,
}

impl Plan {
    pub(super) fn new(seed: u64, kinds: Vec<Fault>, nodes: u32) -> Self {
        assert!(!kinds.is_empty() && nodes > 0, "something is done to somebody");
        Self { random: Random(seed), kinds, round: Vec::new(), rounds: 0, nodes }
    }

    pub(super) fn next(&mut self) -> Injection {
        if self.round.is_empty() {
            self.round = self.kinds.clone();
            self.rounds += 1;
        }
        let fault = self.round.swap_remove(self.random.below(self.round.len() as u32) as usize);
        let node = self.random.below(self.nodes) as usize;
        let random = Random(u64::from(self.random.below(u32::MAX)));
        Injection { fault, node, earlier: self.rounds - 1, random }
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

    const KINDS: usize = 15;

    /// The names that people give are those that are shown.
    #[test]
    fn a_kind_is_called_the_same_everywhere() {
        assert_eq!(Fault::value_variants().len(), KINDS);
        for kind in Fault::value_variants() {
            assert_eq!(Fault::from_str(kind.name(), false), Ok(*kind));
        }
    }

    /// The same seed is the same plan; each round has every kind once.
    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| {
            let mut plan = Plan::new(seed, Fault::value_variants().to_vec(), 5);
            (0..KINDS * 10).map(|_| plan.next()).collect::<Vec<_>>()
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        for (number, round) in plan(7).chunks(KINDS).enumerate() {
            let has = |kind| round.iter().any(|it| it.fault == kind && it.earlier == number as u32);
            assert!(Fault::value_variants().iter().all(|kind| has(*kind)), "{round:?}");
        }
        let nodes: std::collections::BTreeSet<_> = plan(7).iter().map(|it| it.node).collect();
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
