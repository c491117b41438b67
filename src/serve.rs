//! `phalanx serve`: a coordinator, with nodes in this process or from outside, behind an HTTP API.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser};
use coordinator::api;
use coordinator::config::Config;
use coordinator::program::{Entrance, Signals, Traces, answer};
use model::load::Progress;
use node::Emulation;
use settings::program;

use crate::Failure;
use crate::formation::{Formation, FormationSettings, Served};
use crate::output::{shards, show, with_progress};
use crate::session;

/// Nodes in this process where nobody says how many.
const EMBEDDED_NODES: u32 = 4;

/// Serve a model: a coordinator with its nodes in this process, or with nodes from outside.
///
/// Without --nodes all nodes are in this process; without --model the embedded demo model is served. With --nodes it is
/// what `phalanx-coordinator` is, and takes the same file of settings and variables.
///
/// Examples:
///   phalanx serve
///   phalanx serve --model DIR --embedded 2
///   phalanx serve --model DIR --nodes 127.0.0.1:7070 --insecure
///       (and then: phalanx-node --coordinator 127.0.0.1:7070 --insecure --data DIR)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Serve {
    /// File of settings in TOML: the same keys as the flags below, with `_` for `-`. Flags are above variables of
    /// the environment, these above the file.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_CONFIG")]
    config: Option<PathBuf>,

    /// Nodes in this process. Default: 4 without --nodes, none with it.
    #[arg(long, value_name = "N")]
    embedded: Option<u32>,

    /// Devices of each embedded node. Default: enough for one expert each, or one of its --shards.
    #[arg(long, value_name = "N")]
    devices: Option<u32>,

    /// Emulate devices and a wire that are slower than this machine's, in the nodes of this process: experts compute
    /// their real bits, but answer no earlier. For example device=2ms+4ms/row,wire=5ms: a device takes 2 ms for a
    /// batch and 4 ms for each row of it, a frame is 5 ms under way in each direction.
    #[arg(long, value_name = "WHAT")]
    emulate: Option<Emulation>,

    #[command(flatten)]
    settings: Config,
}

/// Without a command and arguments.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    serve: Serve,
}

impl Serve {
    /// What `phalanx` alone does: what is served where nobody says anything, but for variables of the environment.
    pub(crate) fn by_default() -> Self {
        Alone::parse_from([env!("CARGO_PKG_NAME")]).serve
    }

    pub(crate) fn run(self) -> Result<(), Failure> {
        let arguments = crate::Arguments::command();
        let serve = arguments.find_subcommand("serve").expect("it is the command that runs");
        let config = program::begin(serve, self.settings, self.config.as_deref(), "phalanx_coordinator")?;
        let entrance = config.entrance()?;
        let traces = config.traces(|name| std::env::var(name).ok())?;
        let embedded = self.embedded.unwrap_or(if config.nodes.is_empty() { EMBEDDED_NODES } else { 0 });
        if self.emulate.is_some() && embedded == 0 {
            return Err("--emulate is for nodes of this process, and there are none; ask for some with --embedded, or \
                        give it to each phalanx-node"
                .into());
        }
        let mut assembly = config.assembly(embedded)?;
        // Emulated devices are not the trunk's cores.
        assembly.data.shared_cores &= self.emulate.is_none_or(|emulation| emulation.device.is_none());
        let formation =
            FormationSettings { assembly, embedded, devices: self.devices, emulation: self.emulate };
        let files = session::files(config.model.as_deref())?;
        let (progress, cache) = (Progress::default(), session::digest_cache(&files.opened));
        let loaded = with_progress(&progress, || config.load(files, cache.as_ref(), &progress));
        let (served, clients) = loaded?;
        actix::System::new().block_on(serve_model(&config, entrance, traces, formation, served, clients))
    }
}

/// Answers clients until somebody stops it.
async fn serve_model(
    config: &Config,
    entrance: Entrance,
    traces: Option<Traces>,
    settings: FormationSettings,
    served: Served,
    clients: api::Served,
) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let http = config.bind().await?;
    let formation = Formation::start(settings, served).await?;
    for door in formation.doors() {
        show(&format!("nodes are taken in at {door}\n"))?;
    }
    let address = http.local_addr()?;
    show(&format!(
        "serving {} ({}{}) at {}://{address}\n\n{}\n",
        clients.name,
        clients.numeric_class,
        shards(&clients.spec),
        entrance.scheme(),
        command_to_try(address, &entrance, &clients, config.model.is_none())
    ))?;
    answer(http, entrance, traces, formation.coordinator(), clients, signals).await;
    formation.stop().await;
    Ok(())
}

/// A command whose answer shows that the model works: what it can read at all, and of the demo model, what it was
/// trained on.
fn command_to_try(address: SocketAddr, entrance: &Entrance, clients: &api::Served, is_demo: bool) -> String {
    let (path, body) = match (&clients.texts.tokenizer, &clients.texts.chat) {
        (Some(_), Some(_)) => {
            let content = if is_demo { "sort 4921=" } else { "Hello" };
            let body =
                format!(r#"{{"messages": [{{"role": "user", "content": "{content}"}}], "temperature": 0}}"#);
            ("chat/completions", body)
        }
        (Some(_), None) => {
            ("completions", r#"{"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}"#.into())
        }
        (None, _) => {
            let body = r#"{"prompt": [1], "temperature": 0, "phalanx": {"return_token_ids": true}}"#;
            ("completions", body.into())
        }
    };
    let key = if entrance.wants_key() { "-H \"Authorization: Bearer $PHALANX_API_KEY\" " } else { "" };
    format!(
        "    curl {}://{address}/v1/{path} {key}-H 'Content-Type: application/json' \\\n        -d '{body}'\n",
        entrance.scheme()
    )
}
