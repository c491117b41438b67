//! Streams that are open and idle: what answers that wait, or that nobody reads, cost the server in memory.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::load::{self, Form};
use super::server::Server;
use crate::Failure;
use crate::bench::model::Random;
use crate::output::bytes;
use crate::remote::Remote;

/// Memory for keys and values meanwhile, which is all used before anything is measured.
pub(super) const KV_MEMORY: u64 = 32 << 20;
/// Clients that use all of it, and everything else that is there once: more than are computed at a time, so that rows and logits of
/// the largest batch have their room.
const WARM_CLIENTS: usize = 320;
/// A stream that waits has its status after ten seconds.
const OPEN_WITHIN: Duration = Duration::from_secs(120);
/// What the last of them did settles.
const SETTLES: Duration = Duration::from_secs(1);
/// Tokens of an answer that nobody reads.
const ANSWER: usize = 400;

/// What they cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    streams: usize,
    before: u64,
    held: u64,
    after: u64,
}

impl Idle {
    /// Opens so many, measures, and lets them go.
    pub(super) fn measure(
        server: &Server,
        remote: &Rc<Remote>,
        form: Form,
        streams: usize,
    ) -> Result<Self, Failure> {
        let warm = load::closed(remote, Form { answer: 64, ..form }, WARM_CLIENTS, 1, 1);
        if let Some(why) = warm.failed.first() {
            return Err(why.clone().into());
        }
        let before = server.resident()?;
        let held = remote.wait(async {
            let open = open(remote, form, streams).await?;
            tokio::time::sleep(SETTLES).await;
            let held = server.resident()?;
            drop(open);
            Ok::<_, Failure>(held)
        })?;
        let until = Instant::now() + OPEN_WITHIN;
        while live(&remote.cluster()?) > 0 {
            if Instant::now() > until {
                return Err("answers that nobody wants are still being computed".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { streams, before, held, after: server.resident()? })
    }

    fn grown(&self) -> u64 {
        self.held.saturating_sub(self.before)
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{} idle streams: the server grew by {}, {} each ({} before, {} with them, {} after)\n",
            self.streams,
            bytes(self.grown()),
            bytes(self.grown() / self.streams as u64),
            bytes(self.before),
            bytes(self.held),
            bytes(self.after)
        )
    }

    pub(super) fn json(&self) -> Value {
        json!({ "streams": self.streams, "before_bytes": self.before, "held_bytes": self.held,
            "grown_bytes": self.grown(), "after_bytes": self.after })
    }
}

fn live(cluster: &Value) -> u64 {
    ["running", "waiting"].iter().filter_map(|key| cluster["data"][key].as_u64()).sum()
}

/// Asks for so many streams, and waits until each has its status. Nothing is read of any.
async fn open(remote: &Remote, form: Form, streams: usize) -> Result<Vec<TcpStream>, Failure> {
    let mut random = Random(streams as u64);
    let authority = remote.url().authority();
    let mut open = Vec::with_capacity(streams);
    for _ in 0..streams {
        let body = json!({ "prompt": random.tokens(form.prompt, form.vocab), "max_tokens": ANSWER, "ignore_eos": true,
            "stream": true, "phalanx": { "return_token_ids": true } });
        let body = body.to_string();
        let mut stream = TcpStream::connect(&authority).await?;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
        open.push(stream);
    }
    let all = async {
        for stream in &open {
            let mut status = [0; 12];
            while stream.peek(&mut status).await? < status.len() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if status != *b"HTTP/1.1 200" {
                return Err(format!("a stream was refused: {}", String::from_utf8_lossy(&status)).into());
            }
        }
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(OPEN_WITHIN, all).await.map_err(|_| "streams are not answered in time")??;
    Ok(open)
}
