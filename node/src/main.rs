//! `phalanx-node`: the devices of one machine, offered to a cluster. Only here are arguments, the environment, files of
//! settings and signals read.

mod assemble;
mod door;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use phalanx_node::config::Config;
use settings::program;
use tokio::signal::unix::{SignalKind, signal};
use transport::peer::renewal;
use transport::security::Utc;

use crate::assemble::Assembled;

/// What went wrong, as it is shown. The exit code is 2.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Offers this machine's devices to a Phalanx cluster: experts are placed on them.
///
/// The node joins its coordinators, loads the experts that they order it to hold, and computes rows for them. A
/// coordinator that is away is dialled again until it is back. SIGTERM leaves in order: its experts are given to
/// others first.
#[derive(Debug, Parser)]
#[command(name = "phalanx-node", version, about, max_term_width = 100)]
struct Arguments {
    /// File of settings in TOML: the same keys as the flags, with `_` for `-`. Flags are above variables of the
    /// environment, these above the file.
    #[arg(long, value_name = "FILE", env = "PHALANX_NODE_CONFIG")]
    config: Option<PathBuf>,

    /// Take commands of `phalanx chaos` on standard input, from whoever started this process: fell an expert, set the clock.
    // Not a setting: neither a file nor a variable may open it.
    #[arg(long, hide = true)]
    chaos_door: bool,

    #[command(flatten)]
    settings: Config,
}

fn main() -> ExitCode {
    program::end(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config, chaos_door, settings } = arguments;
    let config = program::begin(&Arguments::command(), settings, config.as_deref(), "phalanx_node")?;
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = waiting.block_on(serve(config, chaos_door))?;
    // Links are closed by the time that threads end.
    drop(node);
    Ok(())
}

/// Until somebody wants it to end.
async fn serve(config: Config, has_door: bool) -> Result<Option<Assembled>, Failure> {
    // Before anything stands that a signal would have to take down.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // It may wait long for somebody who takes its join token.
    let assembled = tokio::select! {
        assembled = assemble::node(config) => assembled?,
        _ = terminate.recv() => return Ok(None),
        _ = interrupt.recv() => return Ok(None),
    };
    if let Some((tls, folder, links)) = assembled.renewal() {
        tokio::spawn(renewal::keep(tls, folder, links, Utc::now));
    }
    let obeyed = async {
        match has_door {
            true => door::serve(assembled.node()).await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = obeyed => {}
    }
    tracing::info!("leaving; once more, and the node stops at once");
    tokio::select! {
        () = assembled.node().leave() => tracing::info!("left"),
        _ = terminate.recv() => assembled.node().stop().await,
        _ = interrupt.recv() => assembled.node().stop().await,
    }
    Ok(Some(assembled))
}
