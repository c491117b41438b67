//! Clients: they ask, hear, go elsewhere when their coordinator has gone, and hold every answer against the oracle's.

use std::rc::Rc;
use std::time::{Duration, Instant};

use coordinator::data::exchange::RowFailed;
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
        Self { asking, oracle, is_poisoned, tokens: Vec::new(), times: 0, asked: None, outcome: None }
    }

    /// What is asked for now, with the tokens that are known already.
    pub(crate) fn submission(&mut self, client: usize, sky: &Sky) -> Submission {
        self.times += 1;
        let within = self.asking.within.unwrap_or(600_000 * MS);
        Submission {
            client: (client, self.times),
            prompt: self.asking.prompt.clone(),
            tokens: self.tokens.clone(),
            tokens_max: self.asking.tokens_max,
            priority: Priority::new(self.asking.priority).expect("a priority"),
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
            Heard::Token(token) => {
                if self.oracle.answer.get(self.tokens.len()) != Some(&token) {
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

    fn end(&mut self, number: usize, is_full: bool, sky: &Sky) {
        let is_whole = self.tokens == self.oracle.answer;
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

    /// Its answer was complete before its coordinator could say so.
    pub(crate) fn is_complete(&self) -> bool {
        self.tokens.last() == Some(&LAST) || self.tokens.len() == self.asking.tokens_max as usize
    }
}
