//! A coordinator, the doors by which nodes come to it, and the nodes of its own process: what `serve` and the
//! measurements of clusters start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::api::{Backend, State};
pub(crate) use coordinator::assemble::Served;
use coordinator::assemble::{Assembled, Assembly, assemble};
use coordinator::program;
use coordinator::start::Coordinator;
use model::kernel::Admission;
use model::load::{Opened, Progress};
use model::trunk::Trunk;
use node::host::Host;
use node::runtime::Actors;
use node::settings::{BATCH_ROWS_MAX, LEAVE_MAX};
use node::source::OwnCopy;
use node::{CoordinatorAddress, Emulation, NodeHandle, Runtime, RuntimeSettings};
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::carrier::memory::MemoryCarrier;
use transport::security::ClusterId;
use transport::wire::control::NumericIdentity;

use crate::Failure;
use crate::output::with_progress;

/// The embedded nodes' door.
const NAME: &str = "coordinator";

/// How often it is looked whether it can serve.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// How a formation is set up.
pub(crate) struct FormationSettings {
    /// The coordinator.
    pub(crate) assembly: Assembly,
    /// Nodes in this process.
    pub(crate) embedded: u32,
    /// Devices of each; enough for one shard of an expert each where nobody says.
    pub(crate) devices: Option<u32>,
    /// What they emulate.
    pub(crate) emulation: Option<Emulation>,
}

/// A coordinator that runs, with the nodes of its process.
pub(crate) struct Formation {
    coordinator: Coordinator,
    /// Where nodes from outside come, as they say it.
    doors: Vec<String>,
    nodes: Vec<NodeHandle>,
    // After the nodes, which live on its threads.
    _runtime: Runtime,
}

impl Formation {
    /// Starts everything, within a system of actix.
    pub(crate) async fn start(settings: FormationSettings, served: Served) -> Result<Self, Failure> {
        let carrier = MemoryCarrier::default();
        let inside = carrier.listen(NAME)?;
        let (kernels, pool) = (served.admission.kernels, Arc::clone(&served.pool));
        let opened = Arc::clone(&served.opened);
        let FormationSettings { assembly, embedded: count, devices, emulation } = settings;
        let assembled = assemble(assembly, served, Some(Box::new(inside))).await?;
        let Assembled { coordinator, doors, cluster, numeric, arbiters } = assembled;
        // Embedded nodes' actors share the data actor's thread: what is sent in one turn arrives in the next, all at
        // once, and nobody has to be woken for it.
        let runtime = Runtime::start(RuntimeSettings {
            kernels,
            pool,
            actors: Actors::On(vec![arbiters.data]),
            spin: Duration::ZERO,
            on_busy: None,
        })?;
        let embedded = Embedded { count, devices, emulation, cluster, numeric, opened, carrier };
        let nodes = (0..count).map(|number| node::start(&runtime, embedded.settings(number)));
        let nodes = nodes.collect::<Result<_, _>>()?;
        Ok(Self { coordinator, doors, nodes, _runtime: runtime })
    }

    /// Whom clients' requests go to.
    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Where nodes from outside come.
    pub(crate) fn doors(&self) -> &[String] {
        &self.doors
    }

    /// Until every expert has a holder; an error, if that takes longer than `most`.
    pub(crate) async fn until_serving(&self, most: Duration) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let health = self.coordinator.health().await;
            if health.state == State::Serving {
                return Ok(());
            }
            if began.elapsed() > most {
                let (state, missing) = (health.state.name(), health.missing.join("; "));
                return Err(
                    format!("the cluster is still {state} after {} s: {missing}", most.as_secs()).into()
                );
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Stops one of the nodes of this process, as if it had been killed.
    pub(crate) async fn stop_node(&self, number: usize) {
        if let Some(node) = self.nodes.get(number) {
            node.stop().await;
        }
    }

    /// Stops the nodes of this process, and ends the links to all others.
    pub(crate) async fn stop(self) {
        self.coordinator.leave().await;
        for node in self.nodes {
            node.stop().await;
        }
        self.coordinator.close().await;
    }
}

/// Loads the trunk alone, and shows how far it is.
pub(crate) fn load_trunk(
    opened: &Arc<Opened>,
    admission: &Admission,
    threads: usize,
) -> Result<Trunk, Failure> {
    let progress = Progress::default();
    Ok(with_progress(&progress, || program::load_trunk(opened, admission, threads, &progress))?)
}

/// The nodes in this process.
struct Embedded {
    count: u32,
    devices: Option<u32>,
    emulation: Option<Emulation>,
    cluster: ClusterId,
    numeric: NumericIdentity,
    opened: Arc<Opened>,
    carrier: MemoryCarrier,
}

impl Embedded {
    fn settings(&self, number: u32) -> node::Settings {
        let (experts, shards) = (self.opened.experts().len() as u32, self.opened.spec.shards as u32);
        // Shards of an expert on devices of one node, where nobody says otherwise.
        let devices = self.devices.unwrap_or_else(|| experts.div_ceil(self.count) * shards).max(1);
        let memory = Host::read().memory_bytes.unwrap_or(u64::MAX / 2);
        let limits = Limits::default();
        node::Settings {
            name: format!("embedded-{number}"),
            cluster: self.cluster,
            incarnation: u64::from(std::process::id()),
            numeric: self.numeric.clone(),
            labels: Vec::new(),
            devices: vec![memory / u64::from(devices * self.count); devices as usize],
            coordinators: vec![CoordinatorAddress {
                carrier: Arc::new(self.carrier.clone()),
                address: NAME.to_owned(),
            }],
            own_copy: Some(Arc::new(OwnCopy::new(Arc::clone(&self.opened), None))),
            experts_folder: None,
            limits,
            buffers: Buffers::new(4 * limits.window_bytes.data),
            batch_rows_max: BATCH_ROWS_MAX,
            leave_max: LEAVE_MAX,
            links: None,
            emulation: self.emulation,
        }
    }
}
