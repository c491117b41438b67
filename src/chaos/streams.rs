//! Those who are being answered all the time, and know what every answer must be.
//!
//! One asks again where it was cut off, as every client of ours may: an answer is a function of its request, so what it has
//! heard already comes again, is compared again, and only what is new counts as news. Most have their answers as streams; some
//! ask for them whole, and send again what was cut.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;
use crate::answers::{Answer, Question, Random};
use crate::remote::Remote;

/// Whoever has no answer by then has lost it.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// Before one asks again, at first and at last.
const AGAIN_MIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// What all of them ask, and what they must hear.
pub(super) struct Known {
    pub(super) questions: Vec<Question>,
    pub(super) answers: Vec<Answer>,
}

/// What became of all that was asked.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Of each stream: when it had something new.
    pub(super) news: Vec<Vec<Instant>>,
    pub(super) answered: usize,
    pub(super) asked_again: usize,
    pub(super) lost: Vec<Wrong>,
    pub(super) different: Vec<Wrong>,
}

/// An answer that did not come, or is not what it must be.
#[derive(Debug)]
pub(super) struct Wrong {
    /// When the last came that was right.
    pub(super) since: Instant,
    /// In words.
    pub(super) what: String,
}

/// One of those who ask, until they are to stop. Whoever has a place among the streams of `heard` is one.
pub(super) async fn listen(
    number: usize,
    remote: Rc<Remote>,
    known: Rc<Known>,
    heard: Rc<RefCell<Heard>>,
    stop: Rc<Cell<bool>>,
    seed: u64,
) {
    let is_stream = number < heard.borrow().news.len();
    let mut random = Random(seed ^ (number as u64 + 1) << 40);
    while !stop.get() {
        let which = random.below(known.questions.len() as u32) as usize;
        let mut listener = Listener {
            number,
            which,
            is_stream,
            known: &known,
            heard: &heard,
            most: 0,
            last_news: Instant::now(),
        };
        let ended = listener.listen(&remote).await;
        let since = listener.last_news;
        let mut heard = heard.borrow_mut();
        match ended {
            Ok(()) => heard.answered += 1,
            Err(Ending::Different(what)) => heard.different.push(Wrong { since, what }),
            Err(Ending::Lost(what)) => heard.lost.push(Wrong { since, what }),
        }
    }
}

enum Ending {
    Different(String),
    Lost(String),
}

struct Listener<'a> {
    number: usize,
    which: usize,
    is_stream: bool,
    known: &'a Known,
    heard: &'a RefCell<Heard>,
    /// Tokens that it has heard at most, of one attempt or another.
    most: usize,
    last_news: Instant,
}

impl Listener<'_> {
    /// One answer, to its end.
    async fn listen(&mut self, remote: &Remote) -> Result<(), Ending> {
        let mut wait = AGAIN_MIN;
        loop {
            let before = self.most;
            match self.attempt(remote).await {
                Ok(()) => return Ok(()),
                Err(Stopped::Different(what)) => return Err(Ending::Different(what)),
                Err(Stopped::Cut(why)) => {
                    if self.most > before {
                        wait = AGAIN_MIN;
                    }
                    if self.last_news.elapsed() > LOST_AFTER {
                        let (number, seconds) = (self.number, LOST_AFTER.as_secs());
                        let message = format!("stream {number}: nothing new for {seconds} s: {why}");
                        return Err(Ending::Lost(message));
                    }
                    self.heard.borrow_mut().asked_again += 1;
                    tokio::time::sleep(wait).await;
                    wait = (2 * wait).min(AGAIN_MAX);
                }
            }
        }
    }

    async fn attempt(&mut self, remote: &Remote) -> Result<(), Stopped> {
        let (known, which) = (self.known, self.which);
        let (question, expected) = (&known.questions[which], &known.answers[which]);
        let body = json!({
            "prompt": question.prompt, "max_tokens": question.tokens_max, "temperature": 0, "ignore_eos": true,
            "logprobs": 0, "stream": self.is_stream, "phalanx": { "return_token_ids": true },
        });
        let (mut count, mut different) = (0, None);
        let take = |event: &Value| -> Result<(), Failure> {
            if let Some(message) = event["error"]["message"].as_str() {
                return Err(message.into());
            }
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            let ids = list(&event["phalanx"]["token_ids"]);
            let logprobs = list(&event["choices"][0]["logprobs"]["token_logprobs"]);
            for (id, logprob) in ids.iter().zip(&logprobs) {
                let wanted = expected.get(count);
                let wanted_logprob =
                    wanted.and_then(|token| token.logprobs.as_ref()).map(|logprobs| logprobs.chosen);
                if wanted.map(|token| u64::from(token.id)) != id.as_u64()
                    || wanted_logprob != logprob.as_f64()
                {
                    let message =
                        format!("token {count} of question {which} is {id} ({logprob}), and not {wanted:?}");
                    different = Some(message.clone());
                    return Err(message.into());
                }
                count += 1;
                if count > self.most {
                    self.most = count;
                    self.last_news = Instant::now();
                    if let Some(news) = self.heard.borrow_mut().news.get_mut(self.number) {
                        news.push(self.last_news);
                    }
                }
            }
            Ok(())
        };
        let result = ask(remote, &body, self.is_stream, take).await;
        match (result, different) {
            (_, Some(what)) => Err(Stopped::Different(what)),
            (Err(why), None) => Err(Stopped::Cut(why.to_string())),
            (Ok(()), None) if count == expected.len() => Ok(()),
            (Ok(()), None) => {
                let message =
                    format!("question {which} was answered with {count} tokens, and not {}", expected.len());
                Err(Stopped::Different(message))
            }
        }
    }
}

/// Asks once, and takes what comes, in pieces or as a whole.
async fn ask(
    remote: &Remote,
    body: &Value,
    is_stream: bool,
    mut take: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    const PATH: &str = "/v1/completions";
    match is_stream {
        true => remote.events(PATH, body, |event| take(&serde_json::from_str(event)?)).await,
        false => take(&remote.answer_now(PATH, body).await?),
    }
}

enum Stopped {
    Different(String),
    Cut(String),
}
