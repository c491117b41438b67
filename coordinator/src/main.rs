//! `phalanx-coordinator`: whole requests of one model, computed with the experts of nodes. Only here are arguments, the
//! environment, files of settings and signals read.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use model::load::Progress;
use model::weights::DigestCache;
use phalanx_coordinator::assemble::{Served, assemble};
use phalanx_coordinator::config::Config;
use phalanx_coordinator::program::{Entrance, ModelFiles, Signals, Traces, answer};
use settings::program;

/// What went wrong, as it is shown. The exit code is 2.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Under the folder of `--data`.
const DIGESTS_FOLDER: &str = "digests";

/// Serves a Mixture-of-Experts model with the devices of nodes, behind an HTTP API.
///
/// Nodes (`phalanx-node`) come to the doors of --nodes and are given experts; clients come to --http. It computes all
/// of the model but the experts. SIGTERM leaves in order: answers under way are given first.
#[derive(Debug, Parser)]
#[command(name = "phalanx-coordinator", version, about, max_term_width = 100)]
struct Arguments {
    /// File of settings in TOML: the same keys as the flags, with `_` for `-`. Flags are above variables of the
    /// environment, these above the file.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Config,
}

fn main() -> ExitCode {
    program::end(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config, settings } = arguments;
    let config = program::begin(&Arguments::command(), settings, config.as_deref(), "phalanx_coordinator")?;
    let entrance = config.entrance()?;
    let traces = config.traces(|name| std::env::var(name).ok())?;
    let Some(dir) = &config.model else {
        return Err("no model to serve; give the folder of a checkpoint with --model DIR".into());
    };
    // Before minutes of loading.
    config.assembly(0)?;
    let files = ModelFiles::open(dir)?;
    let cache = config
        .data
        .as_ref()
        .and_then(|data| DigestCache::new(&data.join(DIGESTS_FOLDER), &files.opened.checkpoint));
    tracing::info!(model = %files.name, "loading");
    let (served, clients) = config.load(files, cache.as_ref(), &Progress::default())?;
    actix::System::new().block_on(serve(config, entrance, traces, served, clients))
}

/// Until somebody wants it to end.
async fn serve(
    config: Config,
    entrance: Entrance,
    traces: Option<Traces>,
    served: Served,
    clients: phalanx_coordinator::api::Served,
) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let http = config.bind().await?;
    let (model, class) = (served.name.clone(), served.admission.kernels.class());
    let assembled = assemble(config.assembly(0)?, served, None).await?;
    for door in &assembled.doors {
        tracing::info!(address = door, "nodes are taken in");
    }
    tracing::info!(%model, %class, http = %http.local_addr()?, "serving");
    answer(http, entrance, traces, &assembled.coordinator, clients, signals).await;
    assembled.coordinator.close().await;
    tracing::info!("left");
    Ok(())
}
