//! One seed, from its beginning to its end, and what was found in it.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use coordinator::data::exchange::ExchangeCounters;

use crate::bugs::Bug;
use crate::clients::{Client, Failure, Outcome};
use crate::kills::Amid;
use crate::watch::{Violation, Watch};
use crate::world::World;

/// What happened in some seeds: how often, in words.
#[derive(Debug, Default)]
pub(crate) struct Ran(Vec<(u64, &'static str)>);

/// What may never happen, in however many seeds.
const MAY_BE: [&str; 1] = ["blamed"];
/// What happens now and then, so that it takes more seeds.
const RARE: [&str; 4] =
    ["drained already", "drains asked of another", "drains not stored", "too few at the end"];

/// Why a seed failed: a checker, or an assertion of a core.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) kind: String,
    what: String,
    trial: Option<Bug>,
}

impl Found {
    /// With the command that shows it.
    pub(crate) fn words(&self, seed: u64) -> String {
        let Self { kind, what, trial } = self;
        let trial = trial.map_or(String::new(), |bug| format!(" with the planted {bug:?}"));
        format!(
            "seed {seed}{trial}: {kind}: {what}\n\
             PHALANX_SEED={seed} cargo test --release --workspace --test simulation no_seed -- --nocapture"
        )
    }
}

thread_local! {
    /// The last panic of this thread, where it happened.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// Panics of a run are told by its seed, and not by themselves.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IS_RUNNING.with_borrow(|is| *is) {
                PANIC.with_borrow_mut(|last| *last = Some(panic.to_string()));
            } else {
                usual(panic);
            }
        }));
    });
}

/// Runs a seed.
pub(crate) fn run(seed: u64, bug: Option<Bug>, is_told: bool) -> Result<Ran, Found> {
    keep_quiet();
    IS_RUNNING.set(true);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, bug, is_told);
        if is_told {
            eprintln!("{:#?}", world.sky.case);
        }
        world.run();
        Ran::of(&world)
    }));
    IS_RUNNING.set(false);
    ran.map_err(|panic| match panic.downcast::<Violation>() {
        Ok(violation) => Found { kind: violation.kind.to_owned(), what: violation.what, trial: bug },
        Err(_) => {
            let what = PANIC.take().unwrap_or_default();
            Found { kind: "assertion".to_owned(), what, trial: bug }
        }
    })
}

impl Ran {
    fn of(world: &World) -> Self {
        let outcomes = || world.clients.iter().filter_map(|client| client.outcome.as_ref());
        let count = |of: &dyn Fn(&Outcome) -> bool| outcomes().filter(|outcome| of(outcome)).count() as u64;
        let clients = |of: &dyn Fn(&Client) -> bool| world.clients.iter().filter(|client| of(client)).count();
        let counters = || world.coordinators.iter().flatten().map(|of| of.data.exchange.counters());
        let sum = |of: &dyn Fn(ExchangeCounters) -> u64| counters().map(of).sum::<u64>();
        let again = |client: &Client| u64::from(client.times.saturating_sub(1));
        let Watch { preempted, shared, rebalanced, shuffled, left_out, let_go, dispatches, .. } =
            world.sky.watch;
        let asked = &world.sky.operators;
        let [unknown, only_one, no_room, superseded, not_stored] = asked.refused;
        let mut ran = vec![
            (world.sky.clock.passed, "events"),
            (dispatches, "dispatches"),
            (count(&|outcome| *outcome == Outcome::Answered), "answers"),
            (count(&|outcome| *outcome == Outcome::Cancelled), "cancelled"),
            (count(&|outcome| matches!(outcome, Outcome::Failed(_))), "failed"),
            (count(&|outcome| matches!(outcome, Outcome::Failed(Failure::Row(_)))), "failed by a row"),
            // For deaths that were not their own doing.
            (clients(&Client::is_blamed) as u64, "blamed"),
            (preempted, "preempted"),
            (shared, "pages found"),
            (world.clients.iter().map(again).sum(), "asked again"),
            (world.sky.network.waited, "frames waited"),
            (sum(&|of| of.rows_unneeded), "rows unneeded"),
            (sum(&|of| of.hedged), "hedged"),
            (sum(&|of| of.overdue), "overdue"),
            (sum(&|of| of.died), "died"),
            (sum(&|of| of.refused.iter().sum()), "refused"),
            (left_out, "experts left out"),
            (clients(&Client::has_lacked) as u64, "answers that lack something"),
            (rebalanced, "rebalanced"),
            (shuffled, "shuffled"),
            (let_go, "let go"),
            (asked.drained, "drained"),
            (asked.forced, "of them by force"),
            (asked.loading, "of them as they loaded"),
            (asked.drained_again, "drained already"),
            (asked.undrained, "used again"),
            (world.emptied().count() as u64, "drained and empty at the end"),
            (unknown, "drains of nobody"),
            (only_one, "drains of the only one"),
            (no_room, "drains without room"),
            (superseded, "drains asked of another"),
            (not_stored, "drains not stored"),
            (u64::from(world.lacked_room), "too few at the end"),
            (world.kills.all, "killed"),
        ];
        let kills = Amid::ALL.iter();
        ran.extend(kills.map(|(amid, is_node, words)| (world.kills.count(*amid, *is_node), *words)));
        Self(ran)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
        } else {
            self.0.iter_mut().zip(&other.0).for_each(|((own, _), (other, _))| *own += other);
        }
    }

    /// A simulation in which something never happens says nothing of it.
    pub(crate) fn check(&self, seeds: u64) {
        for (count, words) in self.0.iter().filter(|(_, words)| !MAY_BE.contains(words)) {
            let least = if RARE.contains(words) { 1_500 } else { 200 };
            assert!(*count > 0 || seeds < least, "in {seeds} seeds there was never this: {words}");
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(count, words)| format!("{count} {words}")).collect();
        write!(f, "{}", words.join(", "))
    }
}
