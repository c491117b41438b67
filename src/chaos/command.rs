//! Other programs that do something to a cluster: an engine of containers, a filter of packets.

use std::process::Command;

use crate::Failure;

/// What the program is told beside its arguments.
pub(super) type Variables = Vec<(&'static str, String)>;

/// What a command says, or what went wrong with it.
pub(super) fn run(words: &[&str], variables: &[(&'static str, String)]) -> Result<String, Failure> {
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).envs(variables.iter().cloned()).output();
    let output = output.map_err(|why| format!("{}: {why}", words[0]))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let why = why.trim().lines().last().unwrap_or_default().to_owned();
    Err(format!("`{}` has failed ({}): {why}", words.join(" "), output.status).into())
}

/// The same on a thread of its own, so that nobody else waits for it.
pub(super) async fn run_aside(words: Vec<String>, variables: Variables) -> Result<String, Failure> {
    let done = tokio::task::spawn_blocking(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run(&words, &variables)
    });
    done.await.map_err(|why| why.to_string())?
}
