//! Lets flow go on as was chosen, or as trials show to be better.

use std::time::Instant;

use actix::{Context, Handler, Message};

use super::actor::DataActor;
use super::forwarding::{AutoForwarding, Choice, Passed};

/// Rows are to go on so from now on. Answers do not depend on it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Forward(pub Choice);

/// How rows are to go on, and what is known of that.
#[derive(Debug)]
pub(super) struct Steering {
    pub(super) choice: Choice,
    pub(super) auto: AutoForwarding,
    /// Rows that entered and are not sampled.
    pub(super) prompt_rows: u64,
}

impl Steering {
    pub(super) fn new(choice: Choice, shares_cores: bool) -> Self {
        Self { choice, auto: AutoForwarding::new(shares_cores), prompt_rows: 0 }
    }

    /// When it wants to be looked at though nothing has come.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.choice {
            Choice::Auto => self.auto.poll_timeout(),
            Choice::Always(_) => None,
        }
    }
}

impl DataActor {
    /// Tells flow how rows go on now.
    pub(super) fn steer(&mut self, now: Instant) {
        let Steering { choice, auto, prompt_rows } = &mut self.steering;
        let forwarding = match choice {
            Choice::Always(forwarding) => *forwarding,
            Choice::Auto => {
                auto.handle_running(self.parts.scheduler.running() as u32, now);
                auto.handle_passed(Passed { tokens: self.report.tokens, prompt_rows: *prompt_rows }, now);
                auto.handle_timeout(now);
                auto.forwarding()
            }
        };
        self.parts.flow.set_forwarding(forwarding);
    }
}

impl Handler<Forward> for DataActor {
    type Result = ();

    fn handle(&mut self, Forward(choice): Forward, _: &mut Context<Self>) {
        self.steering.auto.handle_pause(Instant::now());
        self.steering.choice = choice;
    }
}
