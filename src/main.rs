//! `phalanx`: the command line. One file per command; only here are the environment and arguments read.

mod access;
mod answers;
mod arguments;
mod asked;
mod bench;
mod certs;
mod chaos;
mod chat;
mod demo;
mod drain;
mod formation;
mod forward;
mod generate;
mod generate_remote;
mod inspect;
mod output;
mod placement;
mod rehearse;
mod remote;
mod serve;
mod session;
mod status;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What went wrong, as it is shown. The exit code is 2; where something was looked for and found, 1.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Serves Mixture-of-Experts language models, one expert per device.
///
/// Without a command it is `phalanx serve`: a cluster in this process serves the embedded demo model, a tiny trained
/// Mixture-of-Experts, at http://127.0.0.1:8080, and says what to try.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt or answer a chat message, in one process or by a cluster.
    Generate(Box<generate::Generate>),
    /// Ask the embedded demo model ten questions whose answers can be checked.
    Demo(demo::Demo),
    /// Talk with a model that is served, in the terminal or through a pipe.
    Chat(chat::Chat),
    /// What a cluster is doing: nodes, devices, experts, loads.
    Status(status::Status),
    /// Have a node of a cluster hold nothing, so that it can be ended while the cluster serves on.
    Drain(drain::Drain),
    /// What live requests of a cluster wait for, and why.
    Why(why::Why),
    /// Which device of a cluster holds what.
    Placement(placement::Placement),
    /// One pass over given tokens: logits, routing and hidden states into a file, for comparing
    /// with other implementations.
    Forward(forward::Forward),
    /// What a checkpoint is, and what it needs.
    Inspect(inspect::Inspect),
    /// Serve a model: a coordinator with nodes in this process or from outside, behind an HTTP API.
    Serve(Box<serve::Serve>),
    /// Run a cluster of full size in this process, with short rows: what it costs, and whether it answers rightly.
    Rehearse(Box<rehearse::Rehearse>),
    /// Do to a cluster under load what can befall one, and compare every answer with the one process's.
    Chaos(Box<chaos::Chaos>),
    /// Make a cluster's authority, certificates of peers and join tokens, and look at them.
    #[command(subcommand)]
    Certs(certs::Certs),
    /// Measure kernels and models against what this machine can do.
    #[command(subcommand)]
    Bench(bench::Bench),
}

/// What the program was given, to begin it again elsewhere.
fn arguments_given() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::args_os().skip(1)
}

/// Where the user keeps caches, if there is such a place.
fn cache_folder() -> Option<PathBuf> {
    let place = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|place| place.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(place.join("phalanx"))
}

/// Where files go that nobody keeps.
fn temporary_folder() -> PathBuf {
    std::env::temp_dir()
}

/// Where the user keeps what programs are to remember, if there is such a place.
fn config_folder() -> Option<PathBuf> {
    let place = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|place| place.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(place.join("phalanx"))
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        None => serve::Serve::by_default().run(),
        Some(Command::Generate(command)) => command.run(),
        Some(Command::Demo(command)) => command.run(),
        Some(Command::Chat(command)) => command.run(),
        Some(Command::Status(command)) => command.run(),
        Some(Command::Drain(command)) => command.run(),
        Some(Command::Why(command)) => command.run(),
        Some(Command::Placement(command)) => command.run(),
        Some(Command::Forward(command)) => command.run(),
        Some(Command::Inspect(command)) => command.run(),
        Some(Command::Serve(command)) => command.run(),
        Some(Command::Rehearse(command)) => command.run(),
        Some(Command::Chaos(command)) => command.run(),
        Some(Command::Certs(command)) => command.run(),
        Some(Command::Bench(command)) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone: nothing is left to say, and nobody to say it to.
        Err(failure) if output::is_broken_pipe(&*failure) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(if failure.is::<chaos::Found>() { 1 } else { 2 })
        }
    }
}
