//! Which way rows are to go on where `--forwarding auto` leaves it open: found out by trying.
//!
//! Pure: it is told what passes and when, and names the mode.
//!
//! Where trunk and experts share cores, the trunk could not use the time for which partial batches would free it, and
//! smaller batches only read the weights more often: whole, at once. Elsewhere it depends. Far and slow experts want partial
//! batches (three times the tokens, in the emulated cluster); a trunk that everybody waits for wants whole ones, which
//! are fewer and larger (a sixth more).
//!
//! # Trials
//!
//! A **trial** measures the mode in use for [`TOKENS`] tokens of each running request, changes over, lets things settle, measures
//! the other mode for as long, and keeps the better. Windows begin and end with a row that passed, so a step that passes
//! as one is never cut. A trial whose mode is hopeless ends long
//! before. After a trial that took `t` the next one comes no
//! sooner than `50 t` later: that bounds what trials cost to 2% of the time, were the other mode to stand still.
//!
//! What was learnt holds for a **load class**: running requests by powers of two. A class that is new begins with what the
//! nearest known one found, and is tried out soon; one that is known goes on with what it knows. Trials end without
//! a verdict when the load changes under them.

use std::time::{Duration, Instant};

use super::flow::Forwarding;

/// Tokens of each running request in a window. Sixteen steps of 64 rows measure a rate to 2%, in the emulated cluster.
const TOKENS: u64 = 16;
/// Tokens of each running request before the first trial under a load. A burst of short answers is over by then, and what
/// other loads have taught serves it well enough.
const FIRST_TOKENS: u64 = 64;
/// Tokens of each running request that pass after a change before anything is measured: those under way, and one round.
const SETTLING_TOKENS: u64 = 3;
/// A trial of this length is followed by that many of these without one.
const REST: u32 = 50;
/// The other mode must be so much better to be chosen: a change is not free.
const BETTER: f64 = 1.01;
/// Load classes: up to 1, 2, 4, ... running requests, the last for all above.
const CLASSES: usize = 16;

/// What is known of a load class.
#[derive(Debug, Clone, Copy, Default)]
struct Class {
    /// Rows per time of whole against partial.
    whole_to_partial: Option<f64>,
    /// When the next trial may begin.
    rested: Option<Instant>,
}

/// Rows that passed since a moment.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    passed: u64,
    rows: u64,
}

impl Window {
    fn is_over(&self, passed: u64) -> bool {
        passed - self.passed >= self.rows
    }

    fn rate(&self, passed: u64, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        (passed - self.passed) as f64 / seconds.max(1e-9)
    }
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// No trial.
    Resting,
    /// The mode in use is measured.
    Known(Window),
    /// The other mode has begun; the rate is that of the mode in use before.
    Settling(Window, f64),
    /// The other mode is measured.
    Other(Window, f64),
}

/// See the module.
#[derive(Debug)]
pub struct AutoForwarding {
    shares_cores: bool,
    forwarding: Forwarding,
    running: u32,
    class: usize,
    classes: [Class; CLASSES],
    stage: Stage,
    /// Running requests when the trial began.
    running_then: u32,
    /// When the trial changed over.
    changed: Option<Instant>,
    passed: u64,
    /// No trial begins before so many have passed: those of another load may be among them.
    quiet_until: u64,
    trials: u64,
}

impl AutoForwarding {
    /// Nothing is known yet.
    pub fn new(shares_cores: bool) -> Self {
        Self {
            shares_cores,
            forwarding: if shares_cores { Forwarding::Whole } else { Forwarding::Partial },
            running: 0,
            class: 0,
            classes: [Class::default(); CLASSES],
            stage: Stage::Resting,
            running_then: 0,
            changed: None,
            passed: 0,
            quiet_until: 0,
            trials: 0,
        }
    }

    /// How rows are to go on now.
    pub fn forwarding(&self) -> Forwarding {
        self.forwarding
    }

    /// Trials that were begun.
    pub fn trials(&self) -> u64 {
        self.trials
    }

    /// Whether the trunk's cores also compute experts, from now on. What was learnt otherwise is forgotten.
    pub fn handle_cores_shared(&mut self, shares_cores: bool) {
        if shares_cores != self.shares_cores {
            let (running, passed, trials) = (self.running, self.passed, self.trials);
            *self = Self { passed, trials, ..Self::new(shares_cores) };
            self.handle_running(running);
        }
    }

    /// So many requests run now.
    pub fn handle_running(&mut self, running: u32) {
        let most = running.max(std::mem::replace(&mut self.running, running));
        if belongs(running, self.class) {
            return;
        }
        self.class = class_of(running);
        let is_known = self.classes[self.class].whole_to_partial.is_some();
        let first = if is_known { 0 } else { FIRST_TOKENS * u64::from(running) };
        self.quiet_until = self.passed + first.max(SETTLING_TOKENS * u64::from(most));
        self.settle_for_what_is_known();
    }

    /// So many rows have gone all the way since the beginning ([`Flow::rows_passed`](super::flow::Flow::rows_passed)).
    pub fn handle_passed(&mut self, passed: u64, now: Instant) {
        if passed == self.passed || self.shares_cores {
            return self.passed = passed;
        }
        self.passed = passed;
        let rows = |tokens: u64| tokens * u64::from(self.running);
        let window = |tokens| Window { since: now, passed, rows: rows(tokens) };
        match self.stage {
            Stage::Resting => {
                // One row at a time goes the same way in either mode.
                let rested = self.classes[self.class].rested.is_none_or(|rested| now >= rested);
                if rested && self.running > 1 && passed >= self.quiet_until {
                    self.running_then = self.running;
                    self.stage = Stage::Known(window(TOKENS));
                }
            }
            _ if self.running.abs_diff(self.running_then) * 8 > self.running_then => self.give_up(now),
            Stage::Known(known) if known.is_over(passed) => {
                self.stage = Stage::Settling(window(SETTLING_TOKENS), known.rate(passed, now));
                self.forwarding = other(self.forwarding);
                self.changed = Some(now);
                self.trials += 1;
            }
            Stage::Settling(settling, rate) if settling.is_over(passed) => {
                self.stage = Stage::Other(window(TOKENS), rate);
            }
            Stage::Other(tried, rate) if tried.is_over(passed) => {
                self.judge(tried.rate(passed, now) / rate, now)
            }
            _ => self.handle_timeout(now),
        }
    }

    /// When the trial is hopeless, if nothing passes until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Resting | Stage::Known(_) => None,
            // After two and a half rounds, those under way and the first step have passed, were the modes alike.
            Stage::Settling(window, rate) => Some(self.hopeless(window, rate, 5.0 / 6.0, 0.5)),
            // After four of sixteen steps, at most one has yet to pass.
            Stage::Other(window, rate) => Some(self.hopeless(window, rate, 0.25, 0.7)),
        }
    }

    /// A trial that is hopeless ends.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|timeout| now >= timeout)
            && let Stage::Settling(window, rate) | Stage::Other(window, rate) = self.stage
        {
            self.judge(window.rate(self.passed, now) / rate, now);
        }
    }

    /// When this window will have come to less than a share of what the mode before would have, and is that old.
    fn hopeless(&self, window: Window, rate: f64, age: f64, share: f64) -> Instant {
        let passed = (self.passed - window.passed) as f64;
        window.since + expected((window.rows as f64 * age).max(passed / share), rate)
    }

    /// The mode under trial passed rows at so many times the rate of the one before.
    fn judge(&mut self, ratio: f64, now: Instant) {
        let whole_to_partial = match self.forwarding {
            Forwarding::Whole => ratio,
            Forwarding::Partial => 1.0 / ratio.max(1e-3),
        };
        let class = &mut self.classes[self.class];
        // One trial may have met with chance: what was known counts as much.
        class.whole_to_partial =
            Some(class.whole_to_partial.map_or(whole_to_partial, |known| (known * whole_to_partial).sqrt()));
        self.rest(now);
        self.settle_for_what_is_known();
    }

    /// The trial tells nothing.
    fn give_up(&mut self, now: Instant) {
        if self.changed.is_some() {
            self.rest(now);
        }
        self.settle_for_what_is_known();
    }

    fn rest(&mut self, now: Instant) {
        if let Some(changed) = self.changed.take() {
            self.classes[self.class].rested = Some(now + (now - changed).saturating_mul(REST));
        }
    }

    /// Ends whatever is tried, in the mode that is best as far as anybody knows.
    fn settle_for_what_is_known(&mut self) {
        self.stage = Stage::Resting;
        self.changed = None;
        let known = |class: &usize| self.classes[*class].whole_to_partial.is_some();
        let nearest = (0..CLASSES).filter(known).min_by_key(|class| class.abs_diff(self.class));
        let ratio = nearest.and_then(|class| self.classes[class].whole_to_partial).unwrap_or(1.0);
        let whole = self.shares_cores || ratio > BETTER;
        self.forwarding = if whole { Forwarding::Whole } else { Forwarding::Partial };
    }
}

fn class_of(running: u32) -> usize {
    (running.max(1).next_power_of_two().ilog2() as usize).min(CLASSES - 1)
}

/// Whether so many still are of this class. At its edges the load goes to and fro; an eighth beyond still belongs.
fn belongs(running: u32, class: usize) -> bool {
    let (running, most) = (u64::from(running.max(1)), 1_u64 << class);
    running * 16 > most * 7 && (running * 8 <= most * 9 || class + 1 == CLASSES)
}

fn other(forwarding: Forwarding) -> Forwarding {
    match forwarding {
        Forwarding::Partial => Forwarding::Whole,
        Forwarding::Whole => Forwarding::Partial,
    }
}

/// Time for so many rows.
fn expected(rows: f64, rate: f64) -> Duration {
    Duration::from_secs_f64((rows / rate.max(1e-9)).min(1e6))
}
