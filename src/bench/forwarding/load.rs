//! The load of a measurement: clients that ask again as soon as they have their answers, and what came of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coordinator::data::actor::{Ask, Report};
use coordinator::data::flow::Forwarding as Mode;
use coordinator::data::forwarding::Choice;
use coordinator::data::steer::Forward;
use coordinator::generation::Request;
use coordinator::start::Coordinator;
use model::sampler::{Sampling, SamplingFields};
use tokio::sync::mpsc;

use crate::Failure;
use crate::asked::Asked;

/// Tokens of a prompt: few, since prompts are not what is measured.
const PROMPT: u64 = 4;
/// Tokens of an answer: from this, and up to as many more, so that they do not end together.
const ANSWER: u64 = 64;
/// How often it is looked how rows go on.
const LOOK: Duration = Duration::from_millis(20);
/// Before a turn is measured, at least, and in tokens of each request.
const SETTLE: Duration = Duration::from_millis(500);
const SETTLE_TOKENS: u64 = 4;

/// What a turn brought.
pub(super) struct Measured {
    elapsed: Duration,
    tokens: u64,
    batches: u64,
    rows: u64,
    groups: u64,
    group_rows: u64,
    /// Of the time.
    pub(super) whole_share: f64,
    /// That ended in it.
    pub(super) trials: u64,
}

impl Measured {
    pub(super) fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64()
    }

    /// Of the trunk.
    pub(super) fn rows_per_batch(&self) -> f64 {
        self.rows as f64 / self.batches.max(1) as f64
    }

    /// Of an expert in a dispatch.
    pub(super) fn rows_per_group(&self) -> f64 {
        self.group_rows as f64 / self.groups.max(1) as f64
    }
}

/// Tokens of each client's requests, as far as they are known.
type Answers = Rc<RefCell<HashMap<(usize, usize), Vec<u32>>>>;

/// Clients. What they ask is the same in every turn.
pub(super) struct Load {
    clients: usize,
    vocab: usize,
    answers: Answers,
}

impl Load {
    pub(super) fn new(clients: usize, vocab: usize) -> Self {
        Self { clients, vocab, answers: Rc::default() }
    }

    /// Puts the load on a cluster whose rows go on so, and measures for a while. `learn` is how long trials are waited for
    /// before that.
    pub(super) async fn put_on(
        &mut self,
        coordinator: &Coordinator,
        choice: Choice,
        seconds: Duration,
        learn: Duration,
    ) -> Result<Measured, Failure> {
        coordinator.data().send(Forward(choice)).await?;
        let (failed, mut failures) = mpsc::channel(self.clients);
        let clients: Vec<_> = (0..self.clients)
            .map(|number| {
                let client = Client { number, vocab: self.vocab, answers: Rc::clone(&self.answers) };
                let (coordinator, failed) = (coordinator.clone(), failed.clone());
                actix::spawn(async move {
                    if let Err(why) = client.ask_on(&coordinator).await {
                        let _ = failed.try_send(why);
                    }
                })
            })
            .collect();
        let measured = tokio::select! {
            measured = measure(coordinator, self.clients as u64, seconds, learn) => measured,
            why = failures.recv() => Err(why.unwrap_or_else(|| "all clients have ended".into())),
        };
        // Whoever is not listened to any more ends at its next token.
        clients.iter().for_each(|client| client.abort());
        while report(coordinator).await?.running > 0 {
            tokio::time::sleep(LOOK).await;
        }
        measured
    }
}

async fn report(coordinator: &Coordinator) -> Result<Report, Failure> {
    Ok(coordinator.data().send(Ask).await?)
}

async fn measure(
    coordinator: &Coordinator,
    clients: u64,
    seconds: Duration,
    learn: Duration,
) -> Result<Measured, Failure> {
    let (began, start) = (Instant::now(), report(coordinator).await?);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = report(coordinator).await?;
        let is_settled = began.elapsed() >= SETTLE && now.tokens - start.tokens >= SETTLE_TOKENS * clients;
        // One row at a time goes the same way in either mode, and so do all where cores are shared.
        let can_learn = clients > 1 && !now.shares_cores && began.elapsed() < learn;
        let learns = can_learn && (now.trials == start.trials || now.trying);
        if is_settled && !learns {
            break;
        }
    }
    let (began, start) = (Instant::now(), report(coordinator).await?);
    let (mut looks, mut whole) = (0, 0);
    while began.elapsed() < seconds {
        tokio::time::sleep(LOOK).await;
        looks += 1;
        whole += u32::from(report(coordinator).await?.forwarding == Some(Mode::Whole));
    }
    let end = report(coordinator).await?;
    Ok(Measured {
        elapsed: began.elapsed(),
        tokens: end.tokens - start.tokens,
        batches: end.batches - start.batches,
        rows: end.rows - start.rows,
        groups: end.groups - start.groups,
        group_rows: end.group_rows - start.group_rows,
        whole_share: f64::from(whole) / f64::from(looks.max(1)),
        trials: end.trials - start.trials,
    })
}

struct Client {
    number: usize,
    vocab: usize,
    answers: Answers,
}

impl Client {
    /// Asks one request after the other.
    async fn ask_on(&self, coordinator: &Coordinator) -> Result<(), Failure> {
        for request in 0.. {
            let asked = self.request(request)?;
            let mut asked = Asked::hand_in(coordinator, asked).await?;
            let mut at = 0;
            while let Some(token) = asked.next().await? {
                self.check(request, at, token.id)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// Random, but always the same.
    fn request(&self, request: usize) -> Result<Request, Failure> {
        let mut random = mix((self.number as u64) << 32 | request as u64);
        let mut next = move || {
            random = mix(random);
            random
        };
        let prompt = (0..PROMPT).map(|_| (next() % self.vocab as u64) as u32).collect();
        let fields =
            SamplingFields { temperature: 1.0, seed: next() >> 1, ..Sampling::greedy().fields().clone() };
        let tokens_max = (ANSWER + next() % ANSWER) as usize;
        Ok(Request {
            prompt,
            sampling: Sampling::new(fields)?,
            tokens_max,
            end_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: false,
            experts: false,
            grammar: None,
            bias: None,
        })
    }

    /// A token must be what it was in every other turn.
    fn check(&self, request: usize, at: usize, token: u32) -> Result<(), Failure> {
        let mut answers = self.answers.borrow_mut();
        let known = answers.entry((self.number, request)).or_default();
        match known.get(at) {
            Some(known) if *known != token => Err(format!(
                "token {at} of request {request} of client {} is {token}, and was {known} in another turn: the \
                 answer depends on how rows go on, which is a fault",
                self.number
            )
            .into()),
            Some(_) => Ok(()),
            None => {
                known.push(token);
                Ok(())
            }
        }
    }
}

/// splitmix64.
fn mix(from: u64) -> u64 {
    let mut z = from.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
