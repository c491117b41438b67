//! Clients: so many at once, or as they come.
//!
//! All are tasks of one thread, over connections of their own; what they hear is noted as it arrives.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

use crate::Failure;
use crate::bench::heard::Heard;
use crate::bench::model::Random;
use crate::remote::Remote;

/// What every request is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// Tokens of a prompt, and of an answer.
    pub(super) prompt: usize,
    pub(super) answer: usize,
    /// Ids are below this.
    pub(super) vocab: usize,
}

/// What became of the requests of a load.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) heard: Vec<Heard>,
    /// Those that were refused or failed, in words.
    pub(super) failed: Vec<String>,
    pub(super) took: Duration,
}

/// One request, to its end.
pub(super) async fn ask(remote: &Remote, prompt: Vec<u32>, answer: usize) -> Result<Heard, Failure> {
    ask_and_tell(remote, prompt, answer, || {}).await
}

/// The same; `begun` is told of the first token.
async fn ask_and_tell(
    remote: &Remote,
    prompt: Vec<u32>,
    answer: usize,
    begun: impl Fn(),
) -> Result<Heard, Failure> {
    let body = json!({
        "prompt": prompt, "max_tokens": answer, "temperature": 0, "ignore_eos": true, "stream": true,
        "phalanx": { "return_token_ids": true },
    });
    let mut heard = Heard::new();
    remote
        .events("/v1/completions", &body, |event| {
            let now = Instant::now();
            let event: Value = serde_json::from_str(event)?;
            if let Some(message) = event["error"]["message"].as_str() {
                return Err(message.into());
            }
            let tokens = event["phalanx"]["token_ids"].as_array().map_or(0, Vec::len);
            if heard.at.is_empty() && tokens > 0 {
                begun();
            }
            heard.at.extend(std::iter::repeat_n(now, tokens));
            Ok(())
        })
        .await?;
    match heard.at.len() {
        found if found == answer => Ok(heard),
        found => Err(format!("an answer of {answer} tokens had {found}").into()),
    }
}

/// So many clients; each asks again as soon as it has its answer, `each` times in all.
pub(super) fn closed(remote: &Rc<Remote>, form: Form, clients: usize, each: usize, seed: u64) -> Outcome {
    run(remote, |remote, all| {
        (0..clients)
            .map(|number| {
                let (remote, all) = (Rc::clone(remote), Rc::clone(all));
                let mut random = Random(seed << 32 | number as u64);
                async move {
                    for _ in 0..each {
                        let prompt = random.tokens(form.prompt, form.vocab);
                        note(&all, ask(&remote, prompt, form.answer).await);
                    }
                }
            })
            .collect()
    })
}

/// Requests that come whether or not earlier ones have been answered: `rate` in a second on average, for as long.
pub(super) fn open(remote: &Rc<Remote>, form: Form, rate: f64, lasts: Duration, seed: u64) -> Outcome {
    let mut random = Random(seed);
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    loop {
        // Between two of them as between any two that know nothing of each other.
        let part = f64::from(random.tokens(1, 1 << 24)[0] + 1) / f64::from(1 << 24);
        at -= part.ln() / rate;
        if at >= lasts.as_secs_f64() {
            break;
        }
        arrivals.push(Duration::from_secs_f64(at));
    }
    run(remote, |remote, all| {
        let began = tokio::time::Instant::now();
        arrivals
            .iter()
            .map(|after| {
                let (remote, all, at) = (Rc::clone(remote), Rc::clone(all), began + *after);
                let prompt = random.tokens(form.prompt, form.vocab);
                async move {
                    tokio::time::sleep_until(at).await;
                    note(&all, ask(&remote, prompt, form.answer).await);
                }
            })
            .collect()
    })
}

/// Short prompts, one after the other, while so many clients are being answered.
pub(super) fn into_busy(
    remote: &Rc<Remote>,
    form: Form,
    clients: usize,
    asked: usize,
) -> (Outcome, Vec<Duration>) {
    let firsts = Rc::new(RefCell::new(Vec::new()));
    let outcome = run(remote, |remote, all| {
        let (begun, ended) = (Rc::new(Semaphore::new(0)), Rc::new(Semaphore::new(0)));
        let mut random = Random(clients as u64);
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for _ in 0..clients {
            let (remote, all) = (Rc::clone(remote), Rc::clone(all));
            let (begun, ended) = (Rc::clone(&begun), Rc::clone(&ended));
            let prompt = random.tokens(form.prompt, form.vocab);
            tasks.push(Box::pin(async move {
                let answer = ask_and_tell(&remote, prompt, form.answer, || begun.add_permits(1)).await;
                if answer.is_err() {
                    begun.add_permits(1); // Nobody waits for it.
                }
                note(&all, answer);
                ended.add_permits(1);
            }));
        }
        let (remote, firsts) = (Rc::clone(remote), Rc::clone(&firsts));
        tasks.push(Box::pin(async move {
            let _all = begun.acquire_many(clients as u32).await;
            for _ in 0..asked {
                let Ok(heard) = ask(&remote, random.tokens(8, form.vocab), 1).await else { return };
                // As long as nobody has ended they are all there.
                match heard.first() {
                    Some(first) if ended.available_permits() == 0 => firsts.borrow_mut().push(first),
                    _ => return,
                }
            }
        }));
        tasks
    });
    let firsts = firsts.take();
    (outcome, firsts)
}

fn note(all: &RefCell<Outcome>, answer: Result<Heard, Failure>) {
    let mut all = all.borrow_mut();
    match answer {
        Ok(heard) => all.heard.push(heard),
        Err(why) => all.failed.push(why.to_string()),
    }
}

/// Runs tasks on this thread until all have ended.
fn run<F: Future<Output = ()> + 'static>(
    remote: &Rc<Remote>,
    tasks: impl FnOnce(&Rc<Remote>, &Rc<RefCell<Outcome>>) -> Vec<F>,
) -> Outcome {
    let all = Rc::new(RefCell::new(Outcome::default()));
    let began = Instant::now();
    remote.wait(LocalSet::new().run_until(async {
        let mut running = JoinSet::new();
        for task in tasks(remote, &all) {
            running.spawn_local(task);
        }
        while let Some(ended) = running.join_next().await {
            if let Err(why) = ended {
                all.borrow_mut().failed.push(why.to_string());
            }
        }
    }));
    let took = began.elapsed();
    Outcome { took, ..all.take() }
}
