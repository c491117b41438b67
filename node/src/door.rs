//! `--chaos-door`: what `phalanx chaos` does to a node from inside. One command a line on standard input, one answer a line on
//! standard output.
//!
//! It is open to whoever started the process and holds its pipes, and to nobody else: there is no socket and no file, and
//! neither variables nor a file of settings can open it. What it does is what faults do, an actor that panics and a
//! clock that is set; it gives nobody anything.

use std::io::{BufRead, Write};
use std::str::FromStr;

use phalanx_node::NodeHandle;
use phalanx_node::expert::Fall;
use tokio::sync::mpsc;
use transport::security::Utc;
use transport::wire::cluster::ActorId;

/// Longest line: whoever sends more is not the harness.
const LINE_BYTES_MAX: usize = 256;
/// Lines that wait to be obeyed.
const LINES_MAX: usize = 16;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// `actors`: which stand.
    Actors,
    /// `panic LAYER.EXPERT.REPLICA.SHARD now|batch`: an actor falls, at once or while its next batch is computed.
    Panic(ActorId, Fall),
    /// `clock SECONDS`: the process's clock is so much ahead of the machine's, or behind it.
    Clock(i64),
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let command = match words[..] {
            ["actors"] => Some(Self::Actors),
            ["panic", name, when] => {
                actor(name).zip(fall(when)).map(|(actor, when)| Self::Panic(actor, when))
            }
            ["clock", seconds] => seconds.parse().ok().map(Self::Clock),
            _ => None,
        };
        command.ok_or_else(|| {
            format!(
                "`{}` is none of: actors; panic LAYER.EXPERT.REPLICA.SHARD now|batch; clock SECONDS",
                line.trim()
            )
        })
    }
}

fn actor(name: &str) -> Option<ActorId> {
    let parts: Vec<&str> = name.split('.').collect();
    let [layer, expert, replica, shard] = parts[..] else { return None };
    Some(ActorId {
        layer: layer.parse().ok()?,
        expert: expert.parse().ok()?,
        replica: replica.parse().ok()?,
        shard: shard.parse().ok()?,
    })
}

fn fall(when: &str) -> Option<Fall> {
    match when {
        "now" => Some(Fall::Now),
        "batch" => Some(Fall::NextBatch),
        _ => None,
    }
}

/// Obeys until nobody can ask any more, and then waits for ever: the node goes on.
pub(crate) async fn serve(node: &NodeHandle) {
    tracing::warn!("the door of `phalanx chaos` is open: whoever started this node can fell its experts");
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let answer = match line.and_then(|line| line.parse()) {
            Ok(command) => obey(node, command).await,
            Err(why) => format!("error: {why}"),
        };
        // Whoever does not read does not need to know.
        let _ = writeln!(std::io::stdout(), "{answer}");
    }
    std::future::pending().await
}

async fn obey(node: &NodeHandle, command: Command) -> String {
    match command {
        Command::Actors => {
            let standing = node.status().await.standing;
            let name = |it: &ActorId| format!(" {}.{}.{}.{}", it.layer, it.expert, it.replica, it.shard);
            format!("actors{}", standing.iter().map(name).collect::<String>())
        }
        Command::Panic(actor, when) => match node.fall(actor, when).await {
            true => "done".to_owned(),
            false => "error: there is no such actor".to_owned(),
        },
        Command::Clock(seconds) => {
            Utc::set_ahead(seconds);
            "done".to_owned()
        }
    }
}

/// Lines of standard input, read on a thread that ends with the process: nothing else can end such a read.
fn lines() -> mpsc::Receiver<Result<String, String>> {
    let (tell, told) = mpsc::channel(LINES_MAX);
    let read = move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let bounded = &mut std::io::Read::take(&mut input, LINE_BYTES_MAX as u64);
            let said = match bounded.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(LINE_BYTES_MAX) => Err(format!("a command has less than {LINE_BYTES_MAX} bytes")),
                Ok(_) => String::from_utf8(line).map_err(|_| "a command is text".to_owned()),
            };
            if tell.blocking_send(said).is_err() {
                return;
            }
        }
    };
    if let Err(why) = std::thread::Builder::new().name("door".into()).spawn(read) {
        tracing::error!(%why, "nobody can read what comes through the door");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_whole_or_not_at_all() {
        let id = ActorId { layer: 3, expert: 14, replica: 1, shard: 0 };
        assert_eq!("actors".parse(), Ok(Command::Actors));
        assert_eq!("panic 3.14.1.0 now\n".parse(), Ok(Command::Panic(id, Fall::Now)));
        assert_eq!("panic 3.14.1.0 batch".parse(), Ok(Command::Panic(id, Fall::NextBatch)));
        assert_eq!("clock -3600".parse(), Ok(Command::Clock(-3600)));
        for wrong in [
            "",
            "panic",
            "panic 3.14.1 now",
            "panic 3.14.1.0",
            "panic 3.14.1.300 now",
            "clock",
            "clock x",
            "actors x",
        ] {
            let why = wrong.parse::<Command>().unwrap_err();
            assert!(why.contains("actors; panic"), "{why}");
        }
    }
}
