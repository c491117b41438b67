//! Finds out ahead which tokens a form allows next.
//!
//! A shell: a thread of its own and a lock for each answer. As soon as a token is known, what may follow it can be found out,
//! and the token's row is on its way through the layers meanwhile. So a mask is there when the logits are; where it is not,
//! whoever samples makes it, and waits for nobody but a mask that is being made.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::choice::{self, ChoiceError, Chosen, History};
use crate::grammar::{Grammar, Guide};

/// The guide of an answer. What stands in it is known from the answer's tokens, whoever finds it out first.
#[derive(Debug, Clone)]
pub(super) struct Guided(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// A grammar, and the tokens that the answer has already.
    New(Grammar, Vec<u32>),
    /// Led so far.
    Led(Box<Guide>),
}

impl State {
    fn guide(&mut self) -> &mut Guide {
        if let State::New(grammar, tokens) = self {
            *self = State::Led(Box::new(Guide::new(grammar, tokens)));
        }
        match self {
            State::Led(guide) => guide,
            State::New(..) => unreachable!("it is led now"),
        }
    }
}

impl Guided {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that is ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    orders: Option<SyncSender<Guided>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// The thread, for so many answers at once. Without one, whoever samples makes the masks.
    pub(super) fn new(answers_max: usize) -> Self {
        // An answer wants one mask at a time.
        let (orders, told) = sync_channel(answers_max);
        let thread = std::thread::Builder::new().name("masks".into()).spawn(move || serve(&told)).ok();
        Self { orders: Some(orders), thread }
    }

    /// An answer begins that keeps to a form, or goes on after these tokens.
    pub(super) fn begin(&self, grammar: &Grammar, tokens: &[u32]) -> Guided {
        let guided = Guided(Arc::new(Mutex::new(State::New(grammar.clone(), tokens.to_vec()))));
        self.prepare(&guided);
        guided
    }

    /// Chooses the next token of an answer, and has the mask of the one after it made.
    pub(super) fn choose(
        &self,
        guided: &Guided,
        logits: &[f32],
        history: History<'_>,
    ) -> Result<Chosen, ChoiceError> {
        let chosen = choice::choose(Some(guided.lock().guide()), logits, history)?;
        if !chosen.is_last {
            self.prepare(guided);
        }
        Ok(chosen)
    }

    fn prepare(&self, guided: &Guided) {
        // Full or gone: it is made when it is needed.
        let orders = self.orders.as_ref().expect("open until it is dropped");
        let _ = orders.try_send(guided.clone());
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was shown where it happened.
            let _ = thread.join();
        }
    }
}

fn serve(told: &Receiver<Guided>) {
    while let Ok(guided) = told.recv() {
        guided.lock().guide().prepare();
    }
}
