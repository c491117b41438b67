//! Clients: they ask, hear, go elsewhere when their coordinator has gone, and hold every answer against the oracle's.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coordinator::data::exchange::RowFailed;
use coordinator::data::request::{Missing, OnMissing};
use coordinator::data::scheduler::{Priority, RequestId};

use crate::case::Asking;
use crate::clock::MS;
use crate::model::{LAST, Oracle};
use crate::watch::{Life, violation};
use crate::world::Sky;

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    Token(u32),
    /// What was computed since the last token went on without these.
    Missing(Vec<Missing>),
    /// The answer is complete, or as long as there are pages.
    End {
        is_full: bool,
    },
    Failed(Failure),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    TooLong,
    QueueFull,
    TooLate,
    Row(RowFailed),
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    /// Who asks, and for which time.
    pub(crate) client: (usize, u32),
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) tokens_max: u32,
    pub(crate) priority: Priority,
    pub(crate) on_missing: OnMissing,
    pub(crate) deadline: Instant,
    pub(crate) oracle: Rc<Oracle>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) asking: Asking,
    pub(crate) oracle: Rc<Oracle>,
    /// Some row of it fells whoever computes it.
    is_poisoned: bool,
    tokens: Vec<u32>,
    /// What its tokens were computed without, as it was told: rows, by layer and expert.
    lacks: BTreeMap<(u32, u32), u64>,
    /// How often it was asked.
    pub(crate) times: u32,
    /// Where it was asked last.
    pub(crate) asked: Option<(Life, RequestId)>,
    pub(crate) outcome: Option<Outcome>,
}

/// How a request has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Cancelled,
    Failed(Failure),
}

impl Client {
    pub(crate) fn new(asking: Asking, oracle: Rc<Oracle>, is_poisoned: bool) -> Self {
        let (tokens, lacks) = (Vec::new(), BTreeMap::new());
        Self { asking, oracle, is_poisoned, tokens, lacks, times: 0, asked: None, outcome: None }
    }

    /// What is asked for now, with the tokens that are known already.
    pub(crate) fn submission(&mut self, client: usize, sky: &Sky) -> Submission {
        self.times += 1;
        // What lacks something cannot be gone on with: it is asked for anew.
        if !self.lacks.is_empty() {
            self.tokens.clear();
            self.lacks.clear();
        }
        let within = self.asking.within.unwrap_or(600_000 * MS);
        Submission {
            client: (client, self.times),
            prompt: self.asking.prompt.clone(),
            tokens: self.tokens.clone(),
            tokens_max: self.asking.tokens_max,
            priority: Priority::new(self.asking.priority).expect("a priority"),
            on_missing: self.asking.on_missing,
            deadline: sky.clock.now() + Duration::from_nanos(within),
            oracle: Rc::clone(&self.oracle),
        }
    }

    /// Something of the answer. True: it is to be asked again, a little later.
    pub(crate) fn hear(&mut self, number: usize, heard: Heard, sky: &Sky) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        match heard {
            Heard::Missing(missing) => {
                self.hear_missing(number, &missing, sky);
                return false;
            }
            Heard::Token(token) => {
                self.check_lacks(number, sky);
                if self.lacks.is_empty() && self.oracle.answer.get(self.tokens.len()) != Some(&token) {
                    let at = self.tokens.len();
                    violation(
                        "oracle",
                        format!("client {number} hears {token} as token {at} of {:?}", self.oracle.answer),
                    );
                }
                self.tokens.push(token);
                return false;
            }
            Heard::End { is_full } => self.end(number, is_full, sky),
            Heard::Failed(Failure::QueueFull) => {
                self.asked = None;
                return true;
            }
            // Nodes obey another coordinator: that one is asked.
            Heard::Failed(Failure::Row(_))
                if self.asked.is_some_and(|(who, _)| sky.watch.is_superseded(who, !sky.is_faulty)) =>
            {
                self.asked = None;
                return true;
            }
            Heard::Failed(why) => {
                let is_allowed = match &why {
                    Failure::TooLate => self.asking.within.is_some(),
                    // A row that was alone on two nodes as they died is taken for what felled them.
                    Failure::Row(RowFailed::Poison { .. }) => {
                        self.is_poisoned || self.asked.is_some_and(|(who, _)| sky.watch.has_seen_deaths(who))
                    }
                    Failure::Row(RowFailed::NoHolder { .. } | RowFailed::TooLate { .. }) => sky.case.is_short,
                    Failure::Row(RowFailed::Attempts { .. }) => self.is_poisoned,
                    Failure::TooLong | Failure::QueueFull => false,
                };
                if !is_allowed {
                    violation("lost", format!("client {number} is told: {why:?}"));
                }
                self.outcome = Some(Outcome::Failed(why));
            }
        }
        false
    }

    fn hear_missing(&mut self, number: usize, missing: &[Missing], sky: &Sky) {
        let is_one = |of: &Missing| {
            let demand = sky.case.demand.layers.get(&of.layer);
            demand.is_some_and(|demand| of.expert < demand.experts) && of.rows > 0
        };
        let is_asked_for = self.asking.on_missing == OnMissing::Drop;
        if !is_asked_for || missing.is_empty() || !missing.iter().all(is_one) {
            violation("missing", format!("client {number} is told that this was left out: {missing:?}"));
        }
        for Missing { layer, expert, rows } in missing {
            *self.lacks.entry((*layer, *expert)).or_default() += rows;
        }
    }

    /// What its rows were combined without was told before the token that it bears on.
    fn check_lacks(&self, number: usize, sky: &Sky) {
        let lacked = sky.watch.lacked((number, self.times));
        let mut untold =
            lacked.filter(|(expert, rows)| self.lacks.get(*expert).is_none_or(|told| told < *rows));
        if let Some((expert, rows)) = untold.next() {
            let told = &self.lacks;
            let what =
                format!("client {number}: {rows} rows went on without {expert:?}, it was told {told:?}");
            violation("missing", what);
        }
    }

    /// Something was left out of its answer.
    pub(crate) fn has_lacked(&self) -> bool {
        !self.lacks.is_empty()
    }

    fn end(&mut self, number: usize, is_full: bool, sky: &Sky) {
        self.check_lacks(number, sky);
        // Where something was left out the trunk has seen to it that each token is what follows without it.
        let is_whole =
            if self.lacks.is_empty() { self.tokens == self.oracle.answer } else { self.is_complete() };
        let is_as_long_as_may_be =
            self.asking.prompt.len() + self.tokens.len() > sky.case.pages as usize * 64;
        let is_right = if is_full { is_as_long_as_may_be } else { is_whole };
        if !is_right {
            let (found, wanted) = (&self.tokens, &self.oracle.answer);
            violation("oracle", format!("client {number} has {found:?} of {wanted:?} at the end"));
        }
        self.outcome = Some(Outcome::Answered);
    }

    /// It failed as one whose row fells nodes, and has no such row.
    pub(crate) fn is_blamed(&self) -> bool {
        let poison =
            |outcome: &Outcome| matches!(outcome, Outcome::Failed(Failure::Row(RowFailed::Poison { .. })));
        !self.is_poisoned && self.outcome.as_ref().is_some_and(poison)
    }

    /// It has no answer, though it waits for nobody.
    pub(crate) fn waits_though_it_may_drop(&self) -> bool {
        self.outcome.is_none() && self.asking.on_missing == OnMissing::Drop
    }

    /// Its answer was complete before its coordinator could say so.
    pub(crate) fn is_complete(&self) -> bool {
        self.tokens.last() == Some(&LAST) || self.tokens.len() == self.asking.tokens_max as usize
    }
}
