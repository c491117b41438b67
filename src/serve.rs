//! `phalanx serve`: a coordinator, with nodes in this process or from outside, behind an HTTP API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use coordinator::api::{self, App, Served};
use coordinator::control::membership::MembershipSettings;
use coordinator::control::placer::PlacerSettings;
use coordinator::control::policy::{Constraints, Policy};
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use coordinator::start::{Coordinator, Settings, endpoint, start};
use model::kernel::Admission;
use model::load::{self, Opened, Progress, Request};
use model::pool::Pool;
use model::trunk::Trunk;
use model::weights::Manifest;
use node::host::Host;
use node::settings::{BATCH_ROWS_MAX, LEAVE_MAX};
use node::source::OwnCopy;
use node::{CoordinatorAddress, NodeHandle, Runtime, RuntimeSettings};
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::carrier::Acceptor;
use transport::carrier::memory::MemoryCarrier;
use transport::carrier::quic::QuicCarrier;
use transport::carrier::shm::{Doorbell, ShmAcceptor, ShmSettings};
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::peer::Listener;
use transport::security::{Authority, ClusterId, Credentials, Tls};
use transport::wire::control::NumericIdentity;

use crate::Failure;
use crate::arguments::ModelArguments;
use crate::output::{show, with_progress};
use crate::session;

/// Nodes in this process where nobody says how many.
const EMBEDDED_NODES: u32 = 4;
/// Name of the coordinator, and the embedded nodes' door.
const NAME: &str = "coordinator";
/// How long nodes are waited for before experts are placed on those that are there.
const START_WINDOW: Duration = Duration::from_secs(2);
/// A cluster without certificates.
const UNNAMED_CLUSTER: ClusterId = ClusterId([0; 16]);
/// Windows that the buffers of links have room for, beside those of embedded nodes.
const WINDOWS: u64 = 64;

/// Serve a model: a coordinator with its nodes in this process, or with nodes from outside.
///
/// Examples:
///   phalanx serve
///   phalanx serve --model DIR --embedded 2
///   phalanx serve --model DIR --nodes 127.0.0.1:7070 --insecure
///       (and then: phalanx-node --coordinator 127.0.0.1:7070 --insecure --data DIR)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Serve {
    #[command(flatten)]
    model: ModelArguments,

    /// Where clients come: OpenAI's completions, /health, /cluster.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http: SocketAddr,

    /// Let --http be an address that other machines reach. There are no API keys yet.
    #[arg(long)]
    http_open: bool,

    /// Where nodes come: HOST:PORT or tcp:HOST:PORT, quic:HOST:PORT, shm:PATH. Can be given several times.
    /// Without it all nodes are in this process.
    #[arg(long, value_name = "ADDRESS")]
    nodes: Vec<String>,

    /// Nodes in this process. Default: 4 without --nodes, none with it.
    #[arg(long, value_name = "N")]
    embedded: Option<u32>,

    /// Devices of each embedded node. Default: enough for one expert each.
    #[arg(long, value_name = "N")]
    devices: Option<u32>,

    /// How experts are laid out.
    #[arg(long, value_name = "POLICY", default_value = "auto", value_parser = policy)]
    policy: Policy,

    /// Replicas that every expert must have.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: u8,

    /// Experts of one layer on one device.
    #[arg(long, value_name = "N")]
    max_experts_per_device_per_layer: Option<u32>,

    /// Layers that one device serves.
    #[arg(long, value_name = "N")]
    max_layers_per_device: Option<u32>,

    /// Label whose values fail as one, for example rack: replicas never share one.
    #[arg(long, value_name = "LABEL")]
    failure_domain: Option<String>,

    /// Whether a row goes on as soon as it is whole, or with all rows of its step. `auto`: whole where
    /// trunk and experts share cores, else partial.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    forwarding: ForwardingChoice,

    /// Rows on their way through the layers at once.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    rows_in_flight: u32,

    /// Where this coordinator keeps what it must remember: its term.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Folder of certificates (`phalanx certs issue`), for nodes from outside.
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    certs: Option<PathBuf>,

    /// Folder of the cluster's authority (`phalanx certs init`): nodes then join with a token, and their
    /// certificates are renewed.
    #[arg(long, value_name = "DIR", requires = "certs")]
    authority: Option<PathBuf>,

    /// Nodes come without certificates, over loopback only.
    #[arg(long)]
    insecure: bool,

    /// With --insecure: over any network, where everybody can read and forge what is sent.
    #[arg(long, requires = "insecure")]
    insecure_anywhere: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ForwardingChoice {
    Partial,
    Whole,
    Auto,
}

fn policy(name: &str) -> Result<Policy, String> {
    let names = || Policy::ALL.map(|(name, _)| name).join(", ");
    Policy::named(name).ok_or_else(|| format!("`{name}` is none of {}", names()))
}

impl Serve {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
            // Whoever read standard error may have gone; that is no reason to end.
            .log_internal_errors(false)
            .with_writer(std::io::stderr)
            .init();
        api::check_address(self.http, self.http_open, "--http-open")?;
        if self.model.shards != 1 {
            return Err("--shards: a cluster serves whole experts so far; `phalanx generate --shards` computes shards in \
                        one process"
                .into());
        }
        let opened = Arc::new(session::open(self.model.model.as_deref())?);
        let texts = Arc::new(session::texts(self.model.model.as_deref())?);
        let admission = self.model.compute.admission()?;
        let threads = self.model.compute.threads()?;
        let cores = self.model.compute.cores.as_ref().map(|cores| cores.0.as_slice());
        let pool = Arc::new(Pool::new(threads, cores));
        let trunk = load_trunk(&opened, &admission, threads)?;
        let manifest = match self.nodes.is_empty() {
            // Its nodes read the very same files.
            true => Manifest::default(),
            false => session::digests(&opened)?,
        };
        let served = Served {
            name: self.model_name(),
            spec: Arc::clone(&opened.spec),
            texts,
            numeric_class: admission.kernels.class(),
            config_digest: opened.config_digest,
        };
        actix::System::new().block_on(self.serve(opened, admission, pool, trunk, manifest, served))
    }

    async fn serve(
        &self,
        opened: Arc<Opened>,
        admission: Admission,
        pool: Arc<Pool>,
        trunk: Trunk,
        manifest: Manifest,
        served: Served,
    ) -> Result<(), Failure> {
        let http = tokio::net::TcpListener::bind(self.http).await.map_err(|why| {
            format!("--http {}: {why}; is another server there? give another address", self.http)
        })?;
        let tls = self.tls()?;
        let cluster = tls.as_ref().map_or(UNNAMED_CLUSTER, |tls| tls.peer().cluster);
        let name = tls.as_ref().map_or_else(|| NAME.to_owned(), |tls| tls.peer().name);
        let limits = Limits::default();
        let window = limits.window_bytes.control + limits.window_bytes.data + limits.window_bytes.weights;
        let buffers = Buffers::new(WINDOWS * window);
        let settings = Settings {
            name,
            cluster,
            data: self.data_settings(),
            placer: PlacerSettings {
                policy: self.policy,
                constraints: self.constraints(),
                nodes_min: self.embedded() as usize,
                start_window: START_WINDOW,
            },
            limits,
            membership: MembershipSettings {
                checkpoint: Some(*opened.config_digest.0.as_bytes()),
                // Nobody else can have admitted embedded nodes, so there is no term to wait for.
                join_window: if self.nodes.is_empty() { Duration::ZERO } else { Duration::from_secs(1) },
                ..MembershipSettings::default()
            },
            data_folder: self.data.clone(),
            config: session::config_text(self.model.model.as_deref())?,
            manifest,
            gives_weights: !self.nodes.is_empty(),
            authority: self.authority.as_deref().map(Authority::open).transpose()?,
            admission,
        };
        let end = endpoint(&settings, &opened, buffers.clone())?;
        let mut listeners: Vec<Listener> = Vec::new();
        let authority = settings.authority.clone();
        for address in &self.nodes {
            let acceptor = acceptor(address, self, tls.as_ref(), authority.as_ref(), &buffers).await?;
            let listener = end.listen(acceptor);
            let carrier = if address.starts_with("quic:") { "quic:" } else { "" };
            show(&format!("nodes are taken in at {carrier}{}\n", listener.address()))?;
            listeners.push(listener);
        }
        let carrier = MemoryCarrier::default();
        listeners.push(end.listen(Box::new(carrier.listen(NAME)?)));
        let numeric = NumericIdentity {
            class: settings.admission.kernels.class().to_string(),
            fingerprint: *settings.admission.fingerprint.as_bytes(),
        };
        let kernels = settings.admission.kernels;
        let model = served.name.clone();
        let shared = Arc::clone(&pool);
        let coordinator = start(settings, &opened, trunk, pool, &buffers, listeners, model)?;
        let runtime = Runtime::start(RuntimeSettings {
            kernels,
            pool: shared,
            arbiters: 1,
            spin: Duration::ZERO,
            on_busy: None,
        })?;
        let mut nodes = Vec::new();
        for number in 0..self.embedded() {
            let settings = self.node(number, cluster, &numeric, &opened, &carrier)?;
            nodes.push(node::start(&runtime, settings)?);
        }
        self.answer(http, coordinator, served, nodes).await?;
        drop(runtime);
        Ok(())
    }

    /// Answers clients until somebody stops it.
    async fn answer(
        &self,
        http: tokio::net::TcpListener,
        coordinator: Coordinator,
        served: Served,
        nodes: Vec<NodeHandle>,
    ) -> Result<(), Failure> {
        let address = http.local_addr()?;
        show(&format!(
            "serving {} ({}) at http://{address}\n\n    curl http://{address}/v1/completions -H 'Content-Type: \
             application/json' \\\n        -d '{{\"prompt\": \"sort 4921=\", \"max_tokens\": 16, \"temperature\": 0}}'\n\n",
            served.name, served.numeric_class
        ))?;
        let app = App::new(Arc::new(coordinator), served, api::Limits::default());
        api::serve(http, Arc::new(app), stopped()).await;
        for node in nodes {
            node.stop().await;
        }
        Ok(())
    }

    fn model_name(&self) -> String {
        let folder = self.model.model.as_deref().and_then(std::path::Path::file_name);
        folder.map_or_else(|| "demo-model".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    fn embedded(&self) -> u32 {
        self.embedded.unwrap_or(if self.nodes.is_empty() { EMBEDDED_NODES } else { 0 })
    }

    fn data_settings(&self) -> DataSettings {
        let shared_cores = self.embedded() > 0;
        DataSettings {
            rows_in_flight_max: self.rows_in_flight,
            kv_bytes: usize::try_from(self.model.kv_memory).unwrap_or(usize::MAX),
            forwarding: match self.forwarding {
                ForwardingChoice::Partial => Forwarding::Partial,
                ForwardingChoice::Whole => Forwarding::Whole,
                ForwardingChoice::Auto if shared_cores => Forwarding::Whole,
                ForwardingChoice::Auto => Forwarding::Partial,
            },
            shared_cores,
            ..DataSettings::default()
        }
    }

    fn constraints(&self) -> Constraints {
        Constraints {
            max_experts_per_device_per_layer: self.max_experts_per_device_per_layer,
            max_layers_per_device: self.max_layers_per_device,
            failure_domain: self.failure_domain.clone(),
            replicas_min: self.replicas,
            ..Constraints::default()
        }
    }

    fn tls(&self) -> Result<Option<Tls>, Failure> {
        let Some(folder) = &self.certs else {
            if self.nodes.iter().any(|address| !address.starts_with("shm:")) && !self.insecure {
                return Err("--nodes: give certificates with --certs (see `phalanx certs --help`), or --insecure for \
                            plaintext on loopback"
                    .into());
            }
            return Ok(None);
        };
        Ok(Some(Tls::new(Credentials::load(folder)?)?))
    }

    /// One of the nodes in this process.
    fn node(
        &self,
        number: u32,
        cluster: ClusterId,
        numeric: &NumericIdentity,
        opened: &Arc<Opened>,
        carrier: &MemoryCarrier,
    ) -> Result<node::Settings, Failure> {
        let experts = opened.experts().len() as u32;
        let devices = self.devices.unwrap_or_else(|| experts.div_ceil(self.embedded())).max(1);
        let memory = Host::read().memory_bytes.unwrap_or(u64::MAX / 2);
        let limits = Limits::default();
        Ok(node::Settings {
            name: format!("embedded-{number}"),
            cluster,
            incarnation: u64::from(std::process::id()),
            numeric: numeric.clone(),
            labels: Vec::new(),
            devices: vec![memory / u64::from(devices * self.embedded()); devices as usize],
            coordinators: vec![CoordinatorAddress {
                carrier: Arc::new(carrier.clone()),
                address: NAME.to_owned(),
            }],
            own_copy: Some(Arc::new(OwnCopy::new(Arc::clone(opened), None))),
            experts_folder: None,
            limits,
            buffers: Buffers::new(4 * limits.window_bytes.data),
            batch_rows_max: BATCH_ROWS_MAX,
            leave_max: LEAVE_MAX,
            links: None,
        })
    }
}

fn load_trunk(opened: &Arc<Opened>, admission: &Admission, threads: usize) -> Result<Trunk, Failure> {
    let (kernels, known) = (admission.kernels, Manifest::default());
    let request = Request { kernels, threads, trunk: true, experts: &[], digests: false, known: &known };
    let progress = Progress::default();
    let loaded = with_progress(&progress, || load::load(opened, &request, &progress))?;
    loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    let weights = loaded.trunk.expect("the trunk was asked for");
    Ok(Trunk::new(Arc::clone(&opened.spec), kernels, weights))
}

/// Where nodes from outside come.
async fn acceptor(
    address: &str,
    serve: &Serve,
    tls: Option<&Tls>,
    authority: Option<&Authority>,
    buffers: &Buffers,
) -> Result<Box<dyn Acceptor>, Failure> {
    if address.starts_with("shm:") {
        let doorbell = Doorbell::new(Duration::from_micros(20))?;
        return Ok(Box::new(ShmAcceptor::bind(address, ShmSettings::default(), buffers.clone(), &doorbell)?));
    }
    if let Some(address) = address.strip_prefix("quic:") {
        let Some(tls) = tls else {
            return Err("--nodes quic: is always TLS; give certificates with --certs".into());
        };
        let acceptor = QuicCarrier::new(tls.clone(), buffers.clone()).listen(address).await?;
        return Ok(match authority {
            Some(authority) => Box::new(acceptor.with_enrol(authority.enrolment())),
            None => Box::new(acceptor),
        });
    }
    let address = address.strip_prefix("tcp:").unwrap_or(address);
    let protection = match tls {
        Some(tls) => Protection::Tls(tls.clone()),
        None if serve.insecure_anywhere => Protection::Plaintext(Plaintext::Anywhere),
        None => Protection::Plaintext(Plaintext::Loopback),
    };
    let acceptor = TcpCarrier::new(protection, buffers.clone()).listen(address).await?;
    Ok(match authority {
        Some(authority) => Box::new(acceptor.with_enrol(authority.enrolment())),
        None => Box::new(acceptor),
    })
}

/// Ctrl-C, or a polite kill.
async fn stopped() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(signal) => signal,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
