//! One seed, from its beginning to its end, and what was found in it.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::bugs::Bug;
use crate::clients::{Failure, Outcome};
use crate::watch::Violation;
use crate::world::World;

/// What happened in some seeds.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    events: u64,
    dispatches: u64,
    answered: u64,
    cancelled: u64,
    failed: u64,
    poisoned: u64,
    /// Failed for deaths that were not their own doing.
    blamed: u64,
    preempted: u64,
    shared: u64,
    rebalanced: u64,
    asked_again: u64,
    waited: u64,
    unneeded: u64,
    hedged: u64,
    overdue: u64,
    died: u64,
    refused: u64,
}

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
        let mut ran = Self {
            events: world.sky.clock.passed,
            dispatches: world.sky.watch.dispatches,
            answered: count(&|outcome| *outcome == Outcome::Answered),
            cancelled: count(&|outcome| *outcome == Outcome::Cancelled),
            failed: count(&|outcome| matches!(outcome, Outcome::Failed(_))),
            poisoned: count(&|outcome| matches!(outcome, Outcome::Failed(Failure::Row(_)))),
            blamed: world.clients.iter().filter(|client| client.is_blamed()).count() as u64,
            preempted: world.sky.watch.preempted,
            shared: world.sky.watch.shared,
            rebalanced: world.sky.watch.rebalanced,
            asked_again: world.clients.iter().map(|client| u64::from(client.times.saturating_sub(1))).sum(),
            waited: world.sky.network.waited,
            ..Self::default()
        };
        for of in world.coordinators.iter().flatten() {
            let counters = of.data.exchange.counters();
            ran.unneeded += counters.rows_unneeded;
            ran.hedged += counters.hedged;
            ran.overdue += counters.overdue;
            ran.died += counters.died;
            ran.refused += counters.refused.iter().sum::<u64>();
        }
        ran
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.dispatches += other.dispatches;
        self.answered += other.answered;
        self.cancelled += other.cancelled;
        self.failed += other.failed;
        self.poisoned += other.poisoned;
        self.blamed += other.blamed;
        self.preempted += other.preempted;
        self.shared += other.shared;
        self.rebalanced += other.rebalanced;
        self.asked_again += other.asked_again;
        self.waited += other.waited;
        self.unneeded += other.unneeded;
        self.hedged += other.hedged;
        self.overdue += other.overdue;
        self.died += other.died;
        self.refused += other.refused;
    }

    /// A simulation in which something never happens says nothing of it.
    pub(crate) fn check(&self, seeds: u64) {
        if seeds < 200 {
            return;
        }
        let all = [
            ("failed", self.failed),
            ("poisoned", self.poisoned),
            ("preempted", self.preempted),
            ("shared", self.shared),
            ("rebalanced", self.rebalanced),
            ("asked again", self.asked_again),
            ("waited", self.waited),
            ("unneeded", self.unneeded),
            ("hedged", self.hedged),
            ("overdue", self.overdue),
            ("died", self.died),
            ("refused", self.refused),
        ];
        for (what, count) in all {
            assert!(count > 0, "in {seeds} seeds nothing was ever {what}");
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events, {} dispatches, {} answers, {} cancelled, {} failed, {} by a row, {} blamed, {} preempted, {} pages found, \
             {} rebalanced, {} asked again, {} frames waited, {} rows unneeded, {} hedged, {} overdue, {} died, {} refused",
            self.events,
            self.dispatches,
            self.answered,
            self.cancelled,
            self.failed,
            self.poisoned,
            self.blamed,
            self.preempted,
            self.shared,
            self.rebalanced,
            self.asked_again,
            self.waited,
            self.unneeded,
            self.hedged,
            self.overdue,
            self.died,
            self.refused,
        )
    }
}
