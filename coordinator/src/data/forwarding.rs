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
//! A **trial** measures the mode in use and the other one by turns, in windows of [`TOKENS`] tokens of each running
//! request, and lets things settle after each change. A window of the other mode is compared with the mean of those before
//! and after it, so that a machine that becomes slower meanwhile, or contexts that grow, speak for neither. One comparison
//! that is [`CLEAR`] ends the trial; else the median of [`COMPARISONS`] counts, which one disturbance does not move.
//! Windows begin and end with a token that passed, so a step that passes as one is never cut. A trial whose mode is hopeless
//! ends long before. Prompts pass by the hundred and cost less than tokens: a window that met with more than a few of their
//! rows is measured again.
//!
//! A trial that spent `t` in the other mode is followed by [`REST`] `t` without one: that bounds what trials cost to 1% of
//! the time, were the other mode to stand still.
//!
//! What was learnt holds for a **load class**: running requests by powers of two. A class that is new begins with what the
//! nearest known one found, and is tried out soon; one that is known goes on with what it knows. Trials end without
//! a verdict when the load changes under them.

use std::time::{Duration, Instant};

use super::flow::Forwarding;

/// Tokens of each running request in a window. Eight steps of 64 rows measure a rate to 3%, in the emulated cluster.
const TOKENS: u64 = 8;
/// Shortest window: a machine that others use too is not measured in a blink.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// Tokens of each running request before the first trial under a load. A burst of short answers is over by then, and what
/// other loads have taught serves it well enough.
const FIRST_TOKENS: u64 = 64;
/// Tokens of each running request that pass after a change before anything is measured: those under way, and one round.
const SETTLING_TOKENS: u64 = 3;
/// Time in the other mode is followed by that much without it.
const REST: u32 = 100;
/// So much better or worse is believed at once.
const CLEAR: f64 = 1.15;
/// How often the modes are compared where it is less.
const COMPARISONS: usize = 3;
/// The other mode must be so much better to be chosen: a change is not free. Ties go to partial, which answers sooner.
const BETTER: f64 = 1.01;
/// Rows of prompts that a window may meet with: one for so many tokens.
const TOKENS_TO_PROMPT_ROW: u64 = 4;
/// Windows of a trial that may be measured again.
const AGAIN_MAX: u32 = 4;
/// Load classes: up to 1, 2, 4, ... running requests, the last for all above.
const CLASSES: usize = 16;

/// How rows are to go on, as whoever runs a coordinator says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// So, whatever comes of it.
    Always(Forwarding),
    /// As trials show to be better.
    Auto,
}

/// What has passed since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Tokens that were sampled.
    pub tokens: u64,
    /// Rows that entered and are not sampled.
    pub prompt_rows: u64,
}

/// What is known of a load class.
#[derive(Debug, Clone, Copy, Default)]
struct Class {
    /// Tokens per time of whole against partial.
    whole_to_partial: Option<f64>,
    /// When the next trial may begin.
    rested: Option<Instant>,
}

/// Tokens that passed since a moment.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    passed: Passed,
    tokens: u64,
}

impl Window {
    fn is_over(&self, passed: Passed) -> bool {
        passed.tokens - self.passed.tokens >= self.tokens
    }

    /// Prompts passed with the tokens, and nobody knows which time was whose.
    fn is_disturbed(&self, passed: Passed) -> bool {
        let prompt_rows = passed.prompt_rows - self.passed.prompt_rows;
        prompt_rows * TOKENS_TO_PROMPT_ROW > passed.tokens - self.passed.tokens
    }

    fn rate(&self, passed: Passed, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        (passed.tokens - self.passed.tokens) as f64 / seconds.max(1e-9)
    }
}

/// A trial under way.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// Tokens pass without being measured.
    is_settling: bool,
    window: Window,
    /// Rates of the mode in use and the other one, by turns.
    rates: [f64; 2 * COMPARISONS + 1],
    measured: usize,
    /// Running requests when it began.
    running: u32,
    /// When the other mode was begun, while it is in use.
    changed: Option<Instant>,
    /// Time in the other mode before that.
    spent: Duration,
    again: u32,
}

impl Trial {
    fn is_other(&self) -> bool {
        self.changed.is_some()
    }

    /// The other mode against the one in use, as often as they were compared; in rising order.
    fn comparisons(&self) -> ([f64; COMPARISONS], usize) {
        let (mut ratios, mut count) = ([0.0; COMPARISONS], 0);
        for rates in self.rates[..self.measured].windows(3).step_by(2) {
            ratios[count] = 2.0 * rates[1] / (rates[0] + rates[2]);
            count += 1;
        }
        ratios[..count].sort_by(f64::total_cmp);
        (ratios, count)
    }

    /// What came of it, once that is known.
    fn verdict(&self) -> Option<f64> {
        let (ratios, count) = self.comparisons();
        match count {
            1 if is_clear(ratios[0]) => Some(ratios[0]),
            COMPARISONS => Some(ratios[COMPARISONS / 2]),
            _ => None,
        }
    }
}

fn is_clear(ratio: f64) -> bool {
    !(1.0 / CLEAR..=CLEAR).contains(&ratio)
}

/// See the module.
#[derive(Debug)]
pub struct AutoForwarding {
    shares_cores: bool,
    /// The mode in use, but for trials.
    known: Forwarding,
    running: u32,
    class: usize,
    classes: [Class; CLASSES],
    trial: Option<Trial>,
    passed: Passed,
    /// No trial begins before so many tokens have passed: those of another load may be among them.
    quiet_until: u64,
    trials: u64,
}

impl AutoForwarding {
    /// Nothing is known yet.
    pub fn new(shares_cores: bool) -> Self {
        Self {
            shares_cores,
            known: if shares_cores { Forwarding::Whole } else { Forwarding::Partial },
            running: 0,
            class: 0,
            classes: [Class::default(); CLASSES],
            trial: None,
            passed: Passed::default(),
            quiet_until: 0,
            trials: 0,
        }
    }

    /// How rows are to go on now.
    pub fn forwarding(&self) -> Forwarding {
        match self.trial {
            Some(trial) if trial.is_other() => other(self.known),
            _ => self.known,
        }
    }

    /// Whether the other mode is being compared with the one in use.
    pub fn is_trying(&self) -> bool {
        self.trial.is_some()
    }

    /// Trials that ended with a verdict.
    pub fn trials(&self) -> u64 {
        self.trials
    }

    /// So many requests run now.
    pub fn handle_running(&mut self, running: u32, now: Instant) {
        if running == self.running {
            return;
        }
        let most = running.max(std::mem::replace(&mut self.running, running));
        if self.trial.is_some_and(|trial| running.abs_diff(trial.running) * 4 > trial.running) {
            self.end_trial(now);
        }
        if belongs(running, self.class) {
            return;
        }
        self.end_trial(now);
        self.class = class_of(running);
        let is_known = self.classes[self.class].whole_to_partial.is_some();
        let first = if is_known { 0 } else { FIRST_TOKENS * u64::from(running) };
        self.quiet_until = self.passed.tokens + first.max(SETTLING_TOKENS * u64::from(most));
        self.settle_for_what_is_known();
    }

    /// So much has passed.
    pub fn handle_passed(&mut self, passed: Passed, now: Instant) {
        let is_token = passed.tokens != self.passed.tokens;
        self.passed = passed;
        if !is_token || self.shares_cores {
            return;
        }
        let window = |tokens: u64| Window { since: now, passed, tokens: tokens * u64::from(self.running) };
        let Some(trial) = &mut self.trial else {
            let rested = self.classes[self.class].rested.is_none_or(|rested| now >= rested);
            // One row at a time goes the same way in either mode.
            if rested && self.running > 1 && passed.tokens >= self.quiet_until {
                self.trial = Some(Trial {
                    is_settling: false,
                    window: window(TOKENS),
                    rates: [0.0; 2 * COMPARISONS + 1],
                    measured: 0,
                    running: self.running,
                    changed: None,
                    spent: Duration::ZERO,
                    again: 0,
                });
            }
            return;
        };
        let is_long = trial.is_settling || now >= trial.window.since + WINDOW_MIN;
        if !trial.window.is_over(passed) || !is_long {
            return self.handle_timeout(now);
        }
        if trial.is_settling {
            (trial.is_settling, trial.window) = (false, window(TOKENS));
            return;
        }
        if trial.window.is_disturbed(passed) {
            trial.again += 1;
            trial.window = window(TOKENS);
            if trial.again > AGAIN_MAX {
                self.end_trial(now);
            }
            return;
        }
        trial.rates[trial.measured] = trial.window.rate(passed, now);
        trial.measured += 1;
        if let Some(ratio) = trial.verdict() {
            return self.judge(ratio, now);
        }
        match trial.changed.take() {
            Some(changed) => trial.spent += now - changed,
            None => trial.changed = Some(now),
        }
        (trial.is_settling, trial.window) = (true, window(SETTLING_TOKENS));
    }

    /// For a while it is not asked.
    pub fn handle_pause(&mut self, now: Instant) {
        self.end_trial(now);
    }

    /// When the trial is hopeless, if nothing passes until then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let trial = self.trial.filter(Trial::is_other)?;
        let rate = trial.rates[trial.measured - 1];
        Some(match trial.is_settling {
            // After two and a half rounds, those under way and the first step have passed, were the modes alike.
            true => self.hopeless(trial.window, rate, 5.0 / 6.0, 0.5),
            // After half of the steps, at most one has yet to pass.
            false => self.hopeless(trial.window, rate, 0.5, 0.7),
        })
    }

    /// A trial that is hopeless ends.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|timeout| now >= timeout)
            && let Some(trial) = self.trial
        {
            let rate = trial.rates[trial.measured - 1];
            self.judge(trial.window.rate(self.passed, now) / rate, now);
        }
    }

    /// When this window will have come to less than a share of what the mode before would have, and is that old.
    fn hopeless(&self, window: Window, rate: f64, age: f64, share: f64) -> Instant {
        let passed = (self.passed.tokens - window.passed.tokens) as f64;
        window.since + expected((window.tokens as f64 * age).max(passed / share), rate)
    }

    /// The other mode passed tokens at so many times the rate of the one in use.
    fn judge(&mut self, ratio: f64, now: Instant) {
        let found = match other(self.known) {
            Forwarding::Whole => ratio,
            Forwarding::Partial => 1.0 / ratio.max(1e-3),
        };
        let class = &mut self.classes[self.class];
        // One trial may have met with chance: what was known counts as much, unless it can only be past.
        class.whole_to_partial = Some(match class.whole_to_partial {
            Some(known) if !is_clear(found) => (known * found).sqrt(),
            _ => found,
        });
        self.trials += 1;
        self.end_trial(now);
        self.settle_for_what_is_known();
    }

    /// Ends what is tried, with or without a verdict, and lets the class rest for what that has cost.
    fn end_trial(&mut self, now: Instant) {
        let Some(trial) = self.trial.take() else { return };
        let spent = trial.spent + trial.changed.map_or(Duration::ZERO, |changed| now - changed);
        self.classes[self.class].rested = Some(now + spent.saturating_mul(REST));
    }

    /// The mode that is best as far as anybody knows.
    fn settle_for_what_is_known(&mut self) {
        let known = |class: &usize| self.classes[*class].whole_to_partial.is_some();
        let nearest = (0..CLASSES).filter(known).min_by_key(|class| class.abs_diff(self.class));
        let ratio = nearest.and_then(|class| self.classes[class].whole_to_partial).unwrap_or(1.0);
        let whole = self.shares_cores || ratio > BETTER;
        self.known = if whole { Forwarding::Whole } else { Forwarding::Partial };
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

/// Time for so many tokens.
fn expected(tokens: f64, rate: f64) -> Duration {
    Duration::from_secs_f64((tokens / rate.max(1e-9)).min(1e6))
}
