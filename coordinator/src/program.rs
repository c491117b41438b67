//! A coordinator as a program: opens its model, serves its clients, and ends when it is asked to.
//!
//! A shell, for `phalanx-coordinator` and `phalanx serve`.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use model::kernel::{Admission, KernelError, Kernels, NumericClass};
use model::load::{self, LoadError, Opened, Progress, Request};
use model::pool::Pool;
use model::spec::ShardsError;
use model::text::TextError;
use model::trunk::Trunk;
use model::weights::{DigestCache, ExpertId, Manifest};
use settings::compute::{self, ThreadsError};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use transport::security::{Authority, Credentials, SecurityError, Tls};

use crate::api::{self, App, Exposed, Keys, TlsError};
use crate::assemble::{AssembleError, Assembly, Served};
use crate::config::{BalanceChoice, Config};
use crate::start::Coordinator;
use crate::texts::Texts;
use crate::trace::settings::Said;
use crate::trace::{Exporter, ExporterError, OtlpSettings, Tracer};

/// Experts whose digests are computed at a time, so that a model larger than memory can be hashed.
const HASHED_AT_ONCE: usize = 64;

/// Clients that may have arrived and not been taken in yet; the system has a bound of its own, mostly this.
const ARRIVING_MAX: u32 = 4096;

/// A model's files.
pub struct ModelFiles {
    /// What clients call it.
    pub name: String,
    /// Its weights and specification.
    pub opened: Opened,
    /// Text of its `config.json`.
    pub config: Vec<u8>,
    /// Its tokenizer, template and defaults.
    pub texts: Arc<Texts>,
}

/// Why a coordinator does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Its model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// How it is to be cut.
    #[error(transparent)]
    Shards(#[from] ShardsError),
    /// There are none to have devices of their own.
    #[error("--dense device: this model has no dense layers; leave it out")]
    NoDense,
    /// Its tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// No file that says what the model is.
    #[error("{file}: {why}; give the folder of a Hugging Face checkpoint with --model")]
    File {
        /// The file.
        file: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// What computes.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// How many threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// Certificates.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// Doors without any.
    #[error(
        "--nodes: give certificates with --certs (see `phalanx certs --help`), or --insecure for plaintext on loopback"
    )]
    Unprotected,
    /// With and without.
    #[error("--certs and --insecure: nodes come either with certificates or without; leave one of them out")]
    BothWays,
    /// How far, of nothing.
    #[error("--insecure-anywhere says how far --insecure goes; give both, or neither")]
    Anywhere,
    /// A bound of nothing.
    #[error("--bias-max says how far --balance bias may go; give both, or neither")]
    BiasMax,
    /// An authority without a certificate of its own.
    #[error(
        "--authority admits nodes that come over TLS; give this coordinator's certificate with --certs too"
    )]
    Authority,
    /// Tokens of nobody.
    #[error("--token-file holds join tokens of an authority; give its folder with --authority too")]
    TokenFile,
    /// Nowhere for nodes to come.
    #[error("no door for nodes; give at least one with --nodes HOST:PORT")]
    NoDoor,
    /// An address that others reach.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// Keys of clients.
    #[error("--api-key-file {file}: {why}")]
    Keys {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate for clients.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A collector of traces.
    #[error("--otlp: {0}")]
    Exporter(#[from] ExporterError),
    /// A half of it.
    #[error("--http-cert and --http-key belong together; give both, or neither")]
    HalfTls,
    /// An address that is taken.
    #[error("--http {address}: {why}; is another server there? give another address")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        why: std::io::Error,
    },
    /// Its parts.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Signals cannot be heard.
    #[error("signals cannot be heard: {0}")]
    Signals(std::io::Error),
}

impl ModelFiles {
    /// Opens a folder; its last name is the model's.
    pub fn open(dir: &Path) -> Result<Self, ProgramError> {
        let file = dir.join("config.json");
        let config = std::fs::read(&file)
            .map_err(|why| ProgramError::File { file: file.display().to_string(), why })?;
        let name = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name =
            name.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let (opened, texts) = (Opened::open(dir)?, Arc::new(Texts::open(dir)?));
        Ok(Self { name, opened, config, texts })
    }
}

impl Config {
    /// Loads what the coordinator computes itself, and knows the digests of what nodes are given. They are kept in
    /// `cache`, if there is one.
    pub fn load(
        &self,
        files: ModelFiles,
        cache: Option<&DigestCache>,
        progress: &Progress,
    ) -> Result<(Served, api::Served), ProgramError> {
        let ModelFiles { name, opened, config, texts } = files;
        let opened = opened.with_shards(self.shards.unwrap_or(1))?.with_dense_out(self.dense_out());
        if opened.dense_out && !opened.spec.has_dense_layers() {
            return Err(ProgramError::NoDense);
        }
        let opened = Arc::new(opened);
        let admission = compute::admission(self.numeric_class, self.kernel_path)?;
        admission.messages.iter().for_each(|message| tracing::warn!("{message}"));
        let threads = compute::threads(self.threads, self.cores.as_ref())?;
        let cores = self.cores.as_ref().map(|cores| cores.0.as_slice());
        let trunk = load_trunk(&opened, &admission, threads, progress)?;
        let manifest = match self.nodes.is_empty() {
            // Its nodes read the very same files.
            true => Manifest::default(),
            false => digests(&opened, cache, threads, progress)?,
        };
        let clients = api::Served {
            name: name.clone(),
            spec: Arc::clone(&opened.spec),
            texts,
            numeric_class: admission.kernels.class(),
            config_digest: opened.config_digest,
        };
        // Without doors its nodes are all here, and take turns with the trunk.
        let pool = match self.nodes.is_empty() {
            true => Pool::for_turns(threads, cores),
            false => Pool::new(threads, cores),
        };
        let served = Served { name, opened, config, manifest, admission, pool: Arc::new(pool), trunk };
        Ok((served, clients))
    }

    /// Who may come, and where. `embedded` nodes are in this process.
    pub fn assembly(&self, embedded: u32) -> Result<Assembly, ProgramError> {
        if self.insecure_anywhere && !self.insecure {
            return Err(ProgramError::Anywhere);
        }
        if self.bias_max.is_some() && self.balance != Some(BalanceChoice::Bias) {
            return Err(ProgramError::BiasMax);
        }
        if self.token_file.is_some() && self.authority.is_none() {
            return Err(ProgramError::TokenFile);
        }
        let tls = match &self.certs {
            Some(_) if self.insecure => return Err(ProgramError::BothWays),
            Some(folder) => Some(Tls::new(Credentials::load(folder)?)?),
            None if self.authority.is_some() => return Err(ProgramError::Authority),
            None if !self.insecure && self.nodes.iter().any(|address| !address.starts_with("shm:")) => {
                return Err(ProgramError::Unprotected);
            }
            None => None,
        };
        if self.nodes.is_empty() && embedded == 0 {
            return Err(ProgramError::NoDoor);
        }
        Ok(Assembly {
            data: self.data_settings(embedded > 0),
            placer: self.placer_settings(embedded as usize),
            bias: self.bias_settings(),
            data_folder: self.data.clone(),
            nodes: self.nodes.clone(),
            tls,
            authority: self.authority.as_deref().map(Authority::open).transpose()?,
            token_file: self.token_file.clone(),
            insecure_anywhere: self.insecure_anywhere,
        })
    }

    /// Who may ask, and over what. An address that others reach is refused unless there are keys, or somebody has allowed
    /// it; what is open there is warned of.
    pub fn entrance(&self) -> Result<Entrance, ProgramError> {
        let address = self.http();
        let keys = self.api_key_file.as_deref().map(read_keys).transpose()?;
        api::check_address(address, self.http_open || keys.is_some(), "--http-open")?;
        let tls = match (&self.http_cert, &self.http_key) {
            (Some(cert), Some(key)) => Some(api::server_config(cert, key)?),
            (None, None) => None,
            _ => return Err(ProgramError::HalfTls),
        };
        if !api::is_local(address) && keys.is_none() {
            tracing::warn!(%address, "whoever reaches this address may use the model; give keys with --api-key-file");
        }
        if !api::is_local(address) && tls.is_none() {
            tracing::warn!(
                %address,
                "what clients send here can be read and changed on the way, keys too; give a certificate with --http-cert"
            );
        }
        Ok(Entrance { keys, tls })
    }

    /// Who hears what becomes of requests, and what says so. `variable` is how the environment is read; `None`, where nobody
    /// wants to know.
    pub fn traces(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Traces>, ProgramError> {
        let said = Said { collector: self.otlp.clone(), share: self.otlp_share, ca: self.otlp_ca.clone() };
        let Some(settings) = OtlpSettings::find(said, variable).unwrap_or_else(|why| {
            tracing::warn!("{why}");
            None
        }) else {
            return Ok(None);
        };
        let (tracer, exporter) = Exporter::new(settings, std::hash::RandomState::new().hash_one(0))?;
        tracing::info!(collector = %exporter.collector(), "traces are sent");
        Ok(Some(Traces { tracer, exporter }))
    }

    /// Listens for clients.
    pub async fn bind(&self) -> Result<TcpListener, ProgramError> {
        let address = self.http();
        listen(address).map_err(|why| ProgramError::Http { address, why })
    }
}

/// A listener as tokio binds one, but for how many clients may arrive at once: those who found no room would try again after a
/// second.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ARRIVING_MAX)
}

/// How clients come in.
#[derive(Debug, Default)]
pub struct Entrance {
    keys: Option<Keys>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Entrance {
    /// How its URLs begin.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether a client needs a key.
    pub fn wants_key(&self) -> bool {
        self.keys.is_some()
    }
}

/// What is told of requests, and to whom.
pub struct Traces {
    tracer: Tracer,
    exporter: Exporter,
}

/// Reads a file of keys, which nobody else should.
fn read_keys(file: &Path) -> Result<Keys, ProgramError> {
    let wrong = |why: String| ProgramError::Keys { file: file.display().to_string(), why };
    let text = std::fs::read_to_string(file).map_err(|why| wrong(why.to_string()))?;
    let keys = Keys::read(&text, Instant::now()).map_err(|why| wrong(why.to_string()))?;
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
    if api::is_shown(mode) {
        tracing::warn!(file = %file.display(), "others may read this file of keys; say chmod 600");
    }
    Ok(keys)
}

/// Answers clients until somebody wants the program to end, then lets answers under way end. Asked once more it cuts
/// them. Links are left as they are.
pub async fn answer(
    http: TcpListener,
    entrance: Entrance,
    traces: Option<Traces>,
    coordinator: &Coordinator,
    served: api::Served,
    mut signals: Signals,
) {
    let limits = api::Limits::default().within(settings::descriptors::raise());
    if limits.connections_max < api::Limits::default().connections_max {
        tracing::info!(
            connections = limits.connections_max,
            "more would need more descriptors: see `ulimit -n`"
        );
    }
    let app = App::new(Arc::new(coordinator.clone()), served, limits);
    let (tracer, exporter) = traces.map(|traces| (traces.tracer, traces.exporter)).unzip();
    let app = app.with_keys(entrance.keys).with_tls(entrance.tls).with_tracer(tracer);
    let (end, ends) = oneshot::channel();
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(ends)));
    let mut first = signals.clone();
    let stop = async {
        first.wait(1).await;
        tracing::info!("leaving; once more, and the coordinator stops at once");
        coordinator.leave().await;
    };
    tokio::select! {
        () = api::serve(http, Arc::new(app), stop) => tracing::info!("every answer is given"),
        () = signals.wait(2) => tracing::warn!("answers were cut"),
    }
    drop(end);
    if let Some(exporting) = exporting {
        // It has a bound of its own, and a panic was shown where it happened.
        let _ = exporting.await;
    }
}

/// How often somebody has asked for the end: Ctrl-C, or a polite kill.
#[derive(Debug, Clone)]
pub struct Signals(watch::Receiver<u32>);

impl Signals {
    /// Listens from now on, within a runtime.
    pub fn listen() -> Result<Self, ProgramError> {
        let hear = |kind| signal(kind).map_err(ProgramError::Signals);
        let (mut terminate, mut interrupt) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
        let (count, counted) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Ok(Self(counted))
    }

    /// Until somebody has asked so often.
    async fn wait(&mut self, times: u32) {
        if self.0.wait_for(|count| *count >= times).await.is_err() {
            // The runtime is being shut down, and this with it.
            std::future::pending().await
        }
    }
}

/// Loads the trunk alone.
pub fn load_trunk(
    opened: &Arc<Opened>,
    admission: &Admission,
    threads: usize,
    progress: &Progress,
) -> Result<Trunk, LoadError> {
    let (kernels, known) = (admission.kernels, Manifest::default());
    let request = Request { kernels, threads, trunk: true, experts: &[], digests: false, known: &known };
    let loaded = load::load(opened, &request, progress)?;
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let weights = loaded.trunk.expect("the trunk was asked for");
    Ok(Trunk::new(Arc::clone(&opened.spec), kernels, weights))
}

/// All digests, part by part: each is read, packed, hashed and dropped. What the cache has is not read.
pub fn digests(
    opened: &Opened,
    cache: Option<&DigestCache>,
    threads: usize,
    progress: &Progress,
) -> Result<Manifest, ProgramError> {
    let known = cache.map(DigestCache::load).unwrap_or_default();
    let kernels = Kernels::for_class(NumericClass::Portable)?;
    let mut manifest = known.clone();
    let mut read = |trunk: bool, experts: &[ExpertId]| -> Result<(), LoadError> {
        let none = Manifest::default();
        let request = Request { kernels, threads, trunk, experts, digests: true, known: &none };
        manifest.merge(&load::load(opened, &request, progress)?.manifest);
        Ok(())
    };
    // Who has not read all its parts cannot know it.
    let is_whole = !(opened.dense_out && opened.spec.has_dense_layers());
    if known.trunk.is_none() && is_whole {
        read(true, &[])?;
    }
    let experts = opened.experts();
    let missing: Vec<_> = experts.into_iter().filter(|id| !known.experts.contains_key(id)).collect();
    for some in missing.chunks(HASHED_AT_ONCE) {
        read(false, some)?;
    }
    manifest.config = Some(opened.config_digest);
    remember(cache, &known, &manifest);
    Ok(manifest)
}

/// Keeps new digests. A cache that cannot be written costs time at the next start and nothing else.
pub fn remember(cache: Option<&DigestCache>, known: &Manifest, found: &Manifest) {
    if let Some(cache) = cache.filter(|_| found != known)
        && let Err(why) = cache.store(found)
    {
        tracing::debug!(%why, "digests are not kept");
    }
}
