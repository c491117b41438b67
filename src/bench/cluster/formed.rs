//! A cluster on threads of its own, and the client that asks it.

use std::sync::mpsc as ended;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coordinator::api::Backend;
use coordinator::generation::Request;
use coordinator::start::Coordinator;
use model::sampler::Sampling;
use tokio::sync::{mpsc, oneshot};

use super::{Contender, Timing};
use crate::Failure;
use crate::asked::Asked;
use crate::bench::heard::{Heard, all_run};
use crate::formation::{Formation, FormationSettings, Served};

/// How long nodes may take to join and to load.
pub(super) const FORMING_MAX: Duration = Duration::from_secs(300);

/// A cluster that runs. Dropped, it ends.
pub(super) struct Formed {
    asks: Option<mpsc::UnboundedSender<Ask>>,
    /// Where nodes from outside come.
    pub(super) doors: Vec<String>,
    thread: Option<JoinHandle<()>>,
}

struct Ask {
    what: What,
    answer: ended::Sender<Result<Answer, Failure>>,
}

enum What {
    Answer { prompts: Vec<Vec<u32>>, count: usize },
    Ready,
    Bytes,
}

enum Answer {
    Timing(Timing),
    Ready,
    Bytes(u64),
}

impl Formed {
    /// Starts it; nodes may still be on their way.
    pub(super) fn start(settings: FormationSettings, served: Served) -> Result<Self, Failure> {
        let (asks, asked) = mpsc::unbounded_channel();
        let (tell, told) = ended::channel();
        let thread = std::thread::Builder::new().name("cluster".into()).spawn(move || {
            actix::System::new().block_on(serve(settings, served, asked, tell));
        })?;
        let doors = told.recv().map_err(|_| "the cluster's thread has ended")??;
        Ok(Self { asks: Some(asks), doors, thread: Some(thread) })
    }

    fn ask(&self, what: What) -> Result<Answer, Failure> {
        let (answer, told) = ended::channel();
        let asks = self.asks.as_ref().expect("open until it is dropped");
        asks.send(Ask { what, answer }).map_err(|_| "the cluster has ended")?;
        told.recv().map_err(|_| "the cluster has ended")?
    }

    /// Bytes that its carrier has brought to nodes and back.
    pub(super) fn bytes(&self) -> Result<u64, Failure> {
        match self.ask(What::Bytes)? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Timing(_) | Answer::Ready => unreachable!("each question has its own answer"),
        }
    }

    /// Waits until every expert has a holder.
    pub(super) fn wait_until_ready(&self) -> Result<(), Failure> {
        self.ask(What::Ready).map(drop)
    }
}

impl Drop for Formed {
    fn drop(&mut self) {
        drop(self.asks.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was shown where it happened.
            let _ = thread.join();
        }
    }
}

impl Contender for Formed {
    fn answer(&mut self, prompts: &[Vec<u32>], count: usize) -> Result<Timing, Failure> {
        match self.ask(What::Answer { prompts: prompts.to_vec(), count })? {
            Answer::Timing(timing) => Ok(timing),
            Answer::Ready | Answer::Bytes(_) => unreachable!("each question has its own answer"),
        }
    }
}

async fn serve(
    settings: FormationSettings,
    served: Served,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    tell: ended::Sender<Result<Vec<String>, Failure>>,
) {
    let formation = match Formation::start(settings, served).await {
        Ok(formation) => formation,
        Err(why) => return drop(tell.send(Err(why))),
    };
    // Whoever asks waits for each answer; an error means that it has given up.
    let _ = tell.send(Ok(formation.doors().to_vec()));
    while let Some(Ask { what, answer }) = asked.recv().await {
        let coordinator = formation.coordinator();
        let said = match what {
            What::Answer { prompts, count } => all(coordinator, prompts, count).await.map(Answer::Timing),
            What::Ready => formation.until_serving(FORMING_MAX).await.map(|()| Answer::Ready),
            What::Bytes => {
                let data = &coordinator.cluster().await["data"];
                let bytes =
                    ["dispatched_bytes", "returned_bytes"].map(|name| data[name].as_u64().unwrap_or(0));
                Ok(Answer::Bytes(bytes.iter().sum()))
            }
        };
        let _ = answer.send(said);
    }
    formation.stop().await;
}

/// What one request brought.
struct Answered {
    tokens: Vec<u32>,
    heard: Heard,
}

/// Asks all at once.
async fn all(coordinator: &Coordinator, prompts: Vec<Vec<u32>>, count: usize) -> Result<Timing, Failure> {
    let began = Instant::now();
    let mut waiting = Vec::new();
    for prompt in prompts {
        waiting.push(submit(coordinator, prompt, count).await?);
    }
    let (mut heard, mut tokens) = (Vec::new(), Vec::new());
    for done in waiting {
        let answered = done.await.map_err(|_| "a request was dropped")??;
        heard.push(answered.heard);
        tokens.push(answered.tokens);
    }
    let first =
        heard.iter().filter_map(|heard| heard.at.first()).max().map_or(Duration::ZERO, |at| *at - began);
    let (decoded, decode) = match all_run(&heard) {
        Some((start, end)) => (heard.iter().map(|heard| heard.between(start, end)).sum(), end - start),
        None if count == 1 => (0.0, Duration::ZERO),
        None => {
            return Err(
                format!("{count} tokens are too few: the first answer ended before the last began").into()
            );
        }
    };
    Ok(Timing { first, decoded, decode, tokens })
}

async fn submit(
    coordinator: &Coordinator,
    prompt: Vec<u32>,
    count: usize,
) -> Result<oneshot::Receiver<Result<Answered, Failure>>, Failure> {
    let request = Request {
        prompt,
        sampling: Sampling::greedy(),
        tokens_max: count,
        end_ids: Vec::new(),
        logprobs: None,
        prompt_logprobs: false,
        experts: false,
        grammar: None,
        bias: None,
    };
    let mut asked = Asked::hand_in(coordinator, request).await?;
    let (tell, told) = oneshot::channel();
    actix::spawn(async move {
        let mut answered = Answered { tokens: Vec::new(), heard: Heard::new() };
        let end = loop {
            match asked.next().await {
                Ok(Some(token)) => {
                    answered.heard.at.push(Instant::now());
                    answered.tokens.push(token.id);
                }
                Ok(None) => break Ok(answered),
                Err(why) => break Err(why),
            }
        };
        // An error: whoever asked has given up.
        let _ = tell.send(end);
    });
    Ok(told)
}
