//! Makes a node of what a person has said: kernels, threads, memory, certificates, carriers.

use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::load::Opened;
use model::pool::Pool as ComputePool;
use phalanx_node::config::{Address, Bytes, CarrierName, Config};
use phalanx_node::host::Host;
use phalanx_node::runtime::Actors;
use phalanx_node::settings::{BATCH_ROWS_MAX, LEAVE_MAX, UNNAMED_CLUSTER};
use phalanx_node::source::OwnCopy;
use phalanx_node::{CoordinatorAddress, NodeHandle, Runtime, RuntimeSettings, Settings};
use tokio::sync::watch;
use transport::Limits;
use transport::buffer::Pool;
use transport::carrier::Carrier;
use transport::carrier::quic::QuicCarrier;
use transport::carrier::shm::{Doorbell, ShmCarrier, ShmSettings};
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::peer::Peer;
use transport::security::{Credentials, Tls, Token, enrol, token_file};
use transport::wire::control::NumericIdentity;

use crate::Failure;

/// How long threads that have cores of their own look for news before they sleep.
const SPIN_OWNED: Duration = Duration::from_micros(100);
/// Windows of one link that buffers have room for: what came, and as much again for what goes back.
const WINDOWS: u64 = 3;
/// After a token in a file could not be used, at first and at last.
const ENROL_AGAIN_MIN: Duration = Duration::from_millis(200);
const ENROL_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Under the folder of `--data`.
const CERTS_FOLDER: &str = "certs";
const DIGESTS_FOLDER: &str = "digests";

/// A node and what keeps it alive.
pub(crate) struct Assembled {
    // Before the runtime, on whose threads it lives.
    node: NodeHandle,
    _runtime: Runtime,
    renewal: Option<(Tls, Option<PathBuf>, watch::Receiver<Option<Peer>>)>,
}

impl Assembled {
    pub(crate) fn node(&self) -> &NodeHandle {
        &self.node
    }

    /// What keeps its certificate fresh, if it has one.
    pub(crate) fn renewal(&self) -> Option<(Tls, Option<PathBuf>, watch::Receiver<Option<Peer>>)> {
        self.renewal.clone()
    }
}

/// Certificates, and where renewed ones go.
struct Identity {
    tls: Tls,
    folder: PathBuf,
}

/// Starts the node.
pub(crate) async fn node(config: Config) -> Result<Assembled, Failure> {
    if config.coordinators.is_empty() {
        return Err("no coordinator to join; give at least one with --coordinator HOST:PORT".into());
    }
    let host = Host::read();
    let admission = settings::compute::admission(config.numeric_class, config.kernel_path)?;
    admission.messages.iter().for_each(|message| tracing::warn!("{message}"));
    let threads = settings::compute::threads(config.threads, config.cores.as_ref())?;
    let devices = devices(&config, &host)?;
    let own_copy = own_copy(config.model.as_deref(), config.data.as_deref())?;
    // Of an earlier run that was killed.
    if let Some(path) = &config.joined_file {
        let _ = std::fs::remove_file(path);
    }
    let identity = identity(&config).await?;
    let name = match (&config.name, &identity) {
        (Some(name), Some(identity)) if *name != identity.tls.peer().name => {
            let (certified, folder) = (identity.tls.peer().name, identity.folder.display());
            return Err(format!(
                "--name {name}: the certificate in {folder} is of {certified}; leave --name out, or issue another"
            )
            .into());
        }
        (_, Some(identity)) => identity.tls.peer().name,
        (Some(name), None) => name.clone(),
        (None, None) => host_name()?,
    };
    let limits = Limits::default();
    let window = limits.window_bytes.control + limits.window_bytes.data + limits.window_bytes.weights;
    let buffers = Pool::new(WINDOWS * window * config.coordinators.len() as u64);
    let coordinators = carriers(&config, identity.as_ref(), &buffers)?;
    let kernels = admission.kernels;
    let cores = config.cores.as_ref().map(|cores| cores.0.as_slice());
    let runtime = Runtime::start(RuntimeSettings {
        kernels,
        pool: Arc::new(ComputePool::new(threads, cores)),
        actors: Actors::Own(1),
        spin: if cores.is_some() { SPIN_OWNED } else { Duration::ZERO },
        on_busy: None,
    })
    .map_err(|why| format!("the node's threads cannot be started: {why}"))?;
    let (links, links_told) = watch::channel(None);
    let settings = Settings {
        name,
        cluster: identity.as_ref().map_or(UNNAMED_CLUSTER, |identity| identity.tls.peer().cluster),
        incarnation: std::hash::RandomState::new().build_hasher().finish(),
        numeric: NumericIdentity {
            class: kernels.class().to_string(),
            fingerprint: *admission.fingerprint.as_bytes(),
        },
        labels: config.labels.into_iter().map(|label| (label.key, label.value)).collect(),
        devices,
        coordinators,
        own_copy,
        experts_folder: config.data.clone(),
        limits,
        buffers,
        batch_rows_max: config.batch_rows_max.unwrap_or(BATCH_ROWS_MAX),
        leave_max: config.leave_within.map_or(LEAVE_MAX, |seconds| Duration::from_secs(seconds.into())),
        links: Some(links),
        emulation: config.emulate,
    };
    let (name, count, memory) = (settings.name.clone(), settings.devices.len(), settings.devices[0]);
    let node = phalanx_node::start(&runtime, settings)?;
    if let Some(path) = config.joined_file {
        tokio::spawn(keep_joined_file(path, links_told.clone()));
    }
    let class = kernels.class();
    tracing::info!(%name, %class, path = %kernels.path(), threads, devices = count, memory_bytes = memory, "started");
    let renewal = identity.map(|identity| (identity.tls, Some(identity.folder), links_told));
    Ok(Assembled { node, _runtime: runtime, renewal })
}

/// Bytes of weights for each device.
fn devices(config: &Config, host: &Host) -> Result<Vec<u64>, Failure> {
    let count = config.devices.unwrap_or(1);
    if count == 0 {
        return Err("--devices 0: a node offers at least one".into());
    }
    let memory = match (config.memory, host.memory_bytes) {
        (Some(Bytes(memory)), Some(all)) if memory.saturating_mul(count as u64) > all => {
            return Err(format!(
                "--memory {memory} for each of {count} devices is {} bytes, this machine has {all}; lower one of them",
                memory.saturating_mul(count as u64)
            )
            .into());
        }
        (Some(Bytes(memory)), _) => memory,
        (None, Some(all)) => all / count as u64,
        (None, None) => {
            return Err(
                "how much memory this machine has is not known; say it with --memory, for example 4G".into(),
            );
        }
    };
    Ok(vec![memory; count])
}

fn own_copy(model: Option<&Path>, data: Option<&Path>) -> Result<Option<Arc<OwnCopy>>, Failure> {
    let Some(dir) = model else { return Ok(None) };
    let opened = Opened::open(dir)?;
    let digests = data.map(|data| data.join(DIGESTS_FOLDER));
    Ok(Some(Arc::new(OwnCopy::new(Arc::new(opened), digests.as_deref()))))
}

/// Where a node has a join token from.
enum TokenFrom<'a> {
    Text(&'a str),
    File(&'a Path),
}

impl TokenFrom<'_> {
    fn read(&self) -> Result<Token, Failure> {
        Ok(match self {
            Self::Text(text) => text.parse()?,
            Self::File(path) => token_file::read(path)?,
        })
    }
}

/// The node's certificate: the one there is, or one that a token gets.
async fn identity(config: &Config) -> Result<Option<Identity>, Failure> {
    let token = match (&config.token, &config.token_file) {
        (Some(_), Some(_)) => {
            return Err("--token and --token-file: one token is enough; leave one of them out".into());
        }
        (Some(text), None) => Some(TokenFrom::Text(text)),
        (None, Some(path)) => Some(TokenFrom::File(path)),
        (None, None) => None,
    };
    let folder = match (&config.certs, &token, &config.data) {
        (Some(_), Some(_), _) => {
            return Err("--certs and a join token: a node has one certificate; leave one of them out".into());
        }
        (Some(folder), None, _) => folder.clone(),
        (None, Some(_), None) => {
            return Err("a join token needs --data DIR, where the certificate that it gets is kept".into());
        }
        (None, _, Some(data)) => data.join(CERTS_FOLDER),
        (None, None, None) => return Ok(None),
    };
    let is_there = folder.join(transport::security::credentials::CERTIFICATE_FILE).exists();
    let credentials = match &token {
        _ if is_there => Credentials::load(&folder)?,
        Some(token) => enrolled(token, config, &folder).await?,
        // What is missing is said there.
        None if config.certs.is_some() => Credentials::load(&folder)?,
        None => return Ok(None),
    };
    if config.insecure {
        return Err(
            "--insecure is for nodes without a certificate, and this one has one; leave it out".into()
        );
    }
    Ok(Some(Identity { tls: Tls::new(credentials)?, folder }))
}

/// Gets a certificate. A token in a file may not be there yet, and whoever takes it may be away: that is waited for.
async fn enrolled(token: &TokenFrom<'_>, config: &Config, folder: &Path) -> Result<Credentials, Failure> {
    let name = match &config.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let mut network = config.coordinators.iter().filter(|address| address.carrier != CarrierName::Shm);
    let Some(address) = network.next() else {
        return Err("a token is used over TCP; give a coordinator as HOST:PORT".into());
    };
    let mut wait = ENROL_AGAIN_MIN;
    loop {
        let tried = async { Ok::<_, Failure>(enrol(&token.read()?, &address.place, &name, folder).await?) };
        match (tried.await, token) {
            (Ok(credentials), _) => {
                tracing::info!(peer = %credentials.peer(), folder = %folder.display(), "enrolled");
                return Ok(credentials);
            }
            (Err(why), TokenFrom::Text(_)) => return Err(why),
            (Err(why), TokenFrom::File(_)) => {
                tracing::warn!(%why, again_in_ms = wait.as_millis() as u64, "not enrolled yet");
                tokio::time::sleep(wait).await;
                wait = (2 * wait).min(ENROL_AGAIN_MAX);
            }
        }
    }
}

/// Keeps a file there for as long as a coordinator has the node.
async fn keep_joined_file(path: PathBuf, mut links: watch::Receiver<Option<Peer>>) {
    loop {
        let is_joined = links.borrow_and_update().is_some();
        let done = match is_joined {
            true => std::fs::write(&path, ""),
            false => std::fs::remove_file(&path),
        };
        match done {
            Err(why) if is_joined || why.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %why, "whether the node has joined cannot be shown");
            }
            _ => {}
        }
        if links.changed().await.is_err() {
            return;
        }
    }
}

fn carriers(
    config: &Config,
    identity: Option<&Identity>,
    buffers: &Pool,
) -> Result<Vec<CoordinatorAddress>, Failure> {
    if config.insecure_anywhere && !config.insecure {
        return Err("--insecure-anywhere says how far --insecure goes; give both, or neither".into());
    }
    let mut doorbell = None;
    let mut carrier = |address: &Address| -> Result<Arc<dyn Carrier>, Failure> {
        Ok(match (address.carrier, identity) {
            (CarrierName::Tcp, Some(identity)) => {
                Arc::new(TcpCarrier::new(Protection::Tls(identity.tls.clone()), buffers.clone()))
            }
            (CarrierName::Tcp, None) if config.insecure => {
                let how_far =
                    if config.insecure_anywhere { Plaintext::Anywhere } else { Plaintext::Loopback };
                Arc::new(TcpCarrier::new(Protection::Plaintext(how_far), buffers.clone()))
            }
            (CarrierName::Quic, Some(identity)) => {
                Arc::new(QuicCarrier::new(identity.tls.clone(), buffers.clone()))
            }
            (CarrierName::Tcp | CarrierName::Quic, None) => {
                let insecure = match address.carrier {
                    CarrierName::Tcp => "; --insecure does without on this host",
                    _ => "; there is no QUIC without",
                };
                return Err(format!(
                    "{address}: links over a network need a certificate; give its folder with --certs DIR \
                     (`phalanx certs issue`), or a join token with --token (`phalanx certs token`){insecure}"
                )
                .into());
            }
            (CarrierName::Shm, _) => {
                let doorbell = match &mut doorbell {
                    Some(doorbell) => doorbell,
                    none => none.insert(Doorbell::new(transport::carrier::shm::SPIN)?),
                };
                Arc::new(ShmCarrier::new(ShmSettings::default(), buffers.clone(), doorbell)?)
            }
        })
    };
    config
        .coordinators
        .iter()
        .map(|address| {
            let place = match address.carrier {
                CarrierName::Shm => address.to_string(),
                CarrierName::Tcp | CarrierName::Quic => address.place.clone(),
            };
            Ok(CoordinatorAddress { carrier: carrier(address)?, address: place })
        })
        .collect()
}

/// What the host calls itself, as far as that is a name here.
fn host_name() -> Result<String, Failure> {
    let said = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = said.trim();
    transport::security::check_name(name)
        .map_err(|why| format!("the host's name cannot be the node's: {why}; give one with --name"))?;
    Ok(name.to_owned())
}
