//! The clusters of a measurement: one for each emulation, all in this process or with nodes in processes of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use coordinator::assemble::Assembly;
use coordinator::control::placer::PlacerSettings;
use coordinator::control::policy::{Constraints, Policy};
use coordinator::data::start::DataSettings;
use coordinator::start::Coordinator;
use model::load::Opened;
use model::pool::Pool;
use model::weights::Manifest;
use node::Emulation;

use super::Forwarding;
use crate::Failure;
use crate::bench::leftover;
use crate::formation::{Formation, FormationSettings, Served, load_trunk};
use crate::session;

/// How long nodes may take to join and to load.
const FORMING_MAX: Duration = Duration::from_secs(300);
/// How long the first of several nodes is waited with.
const START_WINDOW: Duration = Duration::from_secs(5);
/// Rows on their way at once: all requests, and their prompts.
const ROWS_MAX: u32 = 8192;

/// How nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Over {
    Memory,
    Tcp,
    Shm,
}

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Over::Memory => "memory",
            Over::Tcp => "tcp",
            Over::Shm => "shm",
        })
    }
}

/// One cluster for each emulation.
pub(super) struct Clusters {
    formed: Vec<Formed>,
    vocab: usize,
}

struct Formed {
    formation: Formation,
    _nodes: Vec<NodeProcess>,
}

/// A node in a process of its own, which ends with this.
struct NodeProcess {
    child: Child,
    folder: PathBuf,
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        leftover::end_process(&mut self.child);
        leftover::remove_folder(std::mem::take(&mut self.folder));
    }
}

impl Clusters {
    pub(super) async fn start(
        asked: &Forwarding,
        opened: Arc<Opened>,
        config: Vec<u8>,
        emulations: &[Option<Emulation>],
    ) -> Result<Self, Failure> {
        let admission = asked.compute.admission()?;
        let threads = asked.compute.threads()?;
        let cores = asked.compute.cores.as_ref().map(|cores| cores.0.as_slice());
        // Only one cluster computes at a time.
        let pool = Arc::new(Pool::new(threads, cores));
        let mut formed = Vec::new();
        for (number, emulation) in emulations.iter().enumerate() {
            let manifest = match asked.over {
                Over::Memory => Manifest::default(),
                Over::Tcp | Over::Shm => session::digests(&opened)?,
            };
            let served = Served {
                name: "bench".to_owned(),
                trunk: load_trunk(&opened, &admission, threads)?,
                opened: Arc::clone(&opened),
                config: config.clone(),
                manifest,
                admission: admission.clone(),
                pool: Arc::clone(&pool),
            };
            let formation = Formation::start(settings(asked, *emulation, number)?, served).await?;
            let nodes = processes(asked, *emulation, &formation, &opened)?;
            let one = Formed { formation, _nodes: nodes };
            one.formation.until_serving(FORMING_MAX).await?;
            formed.push(one);
        }
        Ok(Self { formed, vocab: opened.spec.vocab })
    }

    /// Whom the requests of one of them go to.
    pub(super) fn coordinator(&self, number: usize) -> &Coordinator {
        self.formed[number].formation.coordinator()
    }

    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    pub(super) async fn stop(self) {
        for one in self.formed {
            one.formation.stop().await;
        }
    }
}

fn settings(
    asked: &Forwarding,
    emulation: Option<Emulation>,
    number: usize,
) -> Result<FormationSettings, Failure> {
    let is_embedded = asked.over == Over::Memory;
    let requests = asked.requests.iter().max().copied().unwrap_or(1);
    let shared_cores = is_embedded && emulation.is_none_or(|emulation| emulation.device.is_none());
    let assembly = Assembly {
        data: DataSettings {
            rows_in_flight_max: ROWS_MAX,
            sequences_max: requests.max(256),
            kv_bytes: usize::try_from(asked.kv_memory)?,
            shared_cores,
            // What is measured is computing.
            prefix_cache: false,
            ..DataSettings::default()
        },
        placer: PlacerSettings {
            policy: Policy::Auto,
            constraints: Constraints::default(),
            nodes_min: asked.nodes as usize,
            start_window: START_WINDOW,
            rebalance: None,
        },
        bias: None,
        data_folder: None,
        nodes: match asked.over {
            Over::Memory => Vec::new(),
            Over::Tcp => vec!["127.0.0.1:0".to_owned()],
            Over::Shm => {
                let name = format!("phalanx-bench-{}-{number}.sock", std::process::id());
                vec![format!("shm:{}", crate::temporary_folder().join(name).display())]
            }
        },
        tls: None,
        authority: None,
        token_file: None,
        insecure_anywhere: false,
    };
    let embedded = if is_embedded { asked.nodes } else { 0 };
    Ok(FormationSettings { assembly, embedded, devices: None, emulation })
}

/// The nodes, where they are processes: `phalanx-node`, from beside this program.
fn processes(
    asked: &Forwarding,
    emulation: Option<Emulation>,
    formation: &Formation,
    opened: &Opened,
) -> Result<Vec<NodeProcess>, Failure> {
    let [door] = formation.doors() else { return Ok(Vec::new()) };
    let program = std::env::current_exe()?.with_file_name("phalanx-node");
    let devices = opened.experts().len().div_ceil(asked.nodes as usize);
    let name = door.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    (0..asked.nodes)
        .map(|number| {
            let folder = crate::temporary_folder().join(format!("phalanx-bench-{name}-{number}"));
            let mut command = Command::new(&program);
            command.args(["--coordinator", door, "--insecure", "--threads", "1", "--log-level", "error"]);
            command.args(["--name", &format!("n{number}"), "--devices", &devices.to_string()]);
            match &asked.model {
                Some(model) => command.arg("--model").arg(model),
                None => command.arg("--data").arg(&folder),
            };
            if let Some(emulation) = emulation {
                command.args(["--emulate", &emulation.to_string()]);
            }
            let child = command.env_clear().stdin(Stdio::null()).spawn().map_err(|why| {
                format!("{}: {why}; build it with `cargo build --release --workspace`", program.display())
            })?;
            leftover::add_process(&child);
            leftover::add_folder(folder.clone());
            Ok(NodeProcess { child, folder })
        })
        .collect()
}
