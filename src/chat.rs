//! `phalanx chat`: a conversation in the terminal, or through a pipe, with a model that is served.
//!
//! A client of `/v1/chat/completions` like any other: the whole conversation goes along with each question. Lines come
//! from a thread of their own, since one that waits for a person cannot be called back when Ctrl-C comes.

use std::io::{BufRead, IsTerminal, stderr, stdin, stdout};
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::Failure;
use crate::access::Access;
use crate::arguments::seconds;
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, URL, cluster_url};

/// Talk with a model that is served, in the terminal or through a pipe.
///
/// Each line is a message, and the conversation is kept. Ctrl-C ends an answer, and where there is none, the program;
/// so does the end of the input.
///
/// Examples:
///   phalanx chat
///   echo 'sort 4921=' | phalanx chat --temperature 0
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Chat {
    /// The coordinator's URL, as its --http has it.
    #[arg(long, value_name = "URL", value_parser = cluster_url, default_value = URL)]
    cluster: ClusterUrl,

    #[command(flatten)]
    access: Access,

    /// How many seconds to wait for a cluster that is still loading.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    wait: Duration,

    /// What the model is told before the first message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Most tokens of an answer. Default: to the end of the context.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,

    /// 0 takes the likeliest token, more is more varied. Default: 1.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,

    /// Same seed, same conversation, same answers. Default: at random.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Chat {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let remote = Remote::new(&self.cluster, &self.access)?;
        let served = remote.wait_until_served(self.wait)?;
        let is_watched = stdin().is_terminal() && stdout().is_terminal();
        if is_watched && stderr().is_terminal() {
            eprintln!("{} at {}; Ctrl-C ends an answer, Ctrl-D the conversation", served.model, self.cluster);
        }
        remote.wait(async {
            let interrupts = signal(SignalKind::interrupt())?;
            let mut conversation = Conversation::new(self, &remote, interrupts);
            conversation.hold(lines(), is_watched).await
        })
    }

    /// What is asked beside the messages; what nobody says is left to the server.
    fn parameters(&self) -> Map<String, Value> {
        let mut parameters = Map::new();
        let mut set =
            |name: &str, value: Option<Value>| parameters.extend(value.map(|value| (name.to_owned(), value)));
        set("max_completion_tokens", self.max_tokens.map(Value::from));
        set("temperature", self.temperature.map(Value::from));
        set("seed", self.seed.map(Value::from));
        set("stream", Some(true.into()));
        parameters
    }
}

/// The lines of standard input, each as soon as somebody wants it.
fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (lines, read) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in stdin().lock().lines() {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    read
}

/// How an answer ended.
enum Ended {
    Complete,
    Interrupted,
}

struct Conversation<'a> {
    remote: &'a Remote,
    parameters: Map<String, Value>,
    messages: Vec<Value>,
    interrupts: Signal,
}

impl<'a> Conversation<'a> {
    fn new(chat: &Chat, remote: &'a Remote, interrupts: Signal) -> Self {
        let system = chat.system.iter().map(|system| json!({"role": "system", "content": system}));
        Self { remote, parameters: chat.parameters(), messages: system.collect(), interrupts }
    }

    /// Answers line after line, until there is none, or somebody interrupts while nothing is being answered.
    async fn hold(
        &mut self,
        mut lines: mpsc::Receiver<std::io::Result<String>>,
        is_watched: bool,
    ) -> Result<(), Failure> {
        loop {
            if is_watched {
                show("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = self.interrupts.recv() => None,
            };
            let Some(line) = line else { break };
            let line = line.map_err(|error| format!("standard input cannot be read: {error}"))?;
            if line.trim().is_empty() {
                continue;
            }
            match self.answer(line).await {
                Ok(()) => {}
                // A person can change the question; a program has to hear of it.
                Err(failure) if is_watched && !crate::output::is_broken_pipe(&*failure) => {
                    eprintln!("error: {failure}");
                }
                Err(failure) => return Err(failure),
            }
        }
        if is_watched { show("\n") } else { Ok(()) }
    }

    /// Shows the answer to a message and keeps both. A message without any answer is not kept.
    async fn answer(&mut self, message: String) -> Result<(), Failure> {
        let asked = self.messages.len();
        self.messages.push(json!({"role": "user", "content": message}));
        let mut body = self.parameters.clone();
        body.insert("messages".into(), json!(self.messages));
        let body = Value::Object(body);
        let mut text = String::new();
        let ended = {
            let events = self.remote.events("/v1/chat/completions", &body, |event| {
                let piece = piece(event)?;
                show(&piece)?;
                text += &piece;
                Ok(())
            });
            tokio::select! {
                // Looked at first, or an answer that comes quickly could never be ended.
                biased;
                _ = self.interrupts.recv() => Ok(Ended::Interrupted),
                result = events => result.map(|()| Ended::Complete),
            }
        };
        if !text.is_empty() || matches!(ended, Ok(Ended::Complete)) {
            show("\n")?;
        }
        if text.is_empty() {
            self.messages.truncate(asked);
        } else {
            self.messages.push(json!({"role": "assistant", "content": text}));
        }
        ended.map(|_| ())
    }
}

/// The text of a chunk.
fn piece(event: &str) -> Result<String, Failure> {
    let strange = || -> Failure { format!("the coordinator sent what is no answer: {event:.200}").into() };
    let mut chunk: Value = serde_json::from_str(event).map_err(|_| strange())?;
    if let Some(message) = chunk["error"]["message"].as_str() {
        return Err(message.into());
    }
    match chunk.pointer_mut("/choices/0/delta") {
        Some(delta) if delta.is_object() => Ok(delta["content"].as_str().unwrap_or_default().to_owned()),
        _ => Err(strange()),
    }
}
