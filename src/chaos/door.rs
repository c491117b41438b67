//! The harness's end of `phalanx-node --chaos-door`: a line asked, a line answered.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::Failure;

/// How long an answer may take: a node's actors have been busy for seconds where many faults meet.
const WITHIN: Duration = Duration::from_secs(20);

/// To one process.
pub(super) struct Door {
    input: ChildStdin,
    answers: mpsc::UnboundedReceiver<String>,
}

impl Door {
    /// Of a process whose standard input and output are pipes; they are the door's from now on.
    pub(super) fn of(child: &mut Child) -> Self {
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        let (tell, answers) = mpsc::unbounded_channel();
        // It ends with the process.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.for_each(|line| drop(tell.send(line)));
        });
        Self { input, answers }
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&mut self, line: &str) -> Result<String, Failure> {
        writeln!(self.input, "{line}").map_err(|why| format!("the node is not asked `{line}`: {why}"))?;
        match tokio::time::timeout(WITHIN, self.answers.recv()).await {
            Ok(Some(answer)) if !answer.starts_with("error") => Ok(answer),
            Ok(Some(answer)) => Err(format!("the node was asked `{line}`: {answer}").into()),
            Ok(None) => Err(format!("the node ended when it was asked `{line}`").into()),
            Err(_) => Err(format!("the node has not answered `{line}` within {} s", WITHIN.as_secs()).into()),
        }
    }

    /// The names of the actors that stand.
    pub(super) async fn actors(&mut self) -> Result<Vec<String>, Failure> {
        Ok(self.ask("actors").await?.split_whitespace().skip(1).map(str::to_owned).collect())
    }
}
