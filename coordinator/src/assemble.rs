//! Makes a coordinator of a model and of settings: the doors that nodes come to, the links' end, the actors.
//!
//! A shell. What `phalanx-coordinator`, `phalanx serve` and measurements of clusters start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::Arbiter;
use model::kernel::Admission;
use model::load::Opened;
use model::pool::Pool;
use model::trunk::Trunk;
use model::weights::Manifest;
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::carrier::quic::QuicCarrier;
use transport::carrier::shm::{Doorbell, SPIN, ShmAcceptor, ShmSettings};
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::carrier::{Acceptor, ConnectError};
use transport::peer::Listener;
use transport::security::{Authority, ClusterId, Tls, Utc, token_file};
use transport::wire::control::NumericIdentity;

use crate::control::bias::BiasSettings;
use crate::control::membership::MembershipSettings;
use crate::control::placer::PlacerSettings;
use crate::data::start::DataSettings;
use crate::start::{Arbiters, Coordinator, Settings, StartError, endpoint, start};

/// Its name, where no certificate has one.
const NAME: &str = "coordinator";
/// A cluster without certificates.
const UNNAMED_CLUSTER: ClusterId = ClusterId([0; 16]);
/// Windows that the buffers of links have room for.
const WINDOWS: u64 = 64;

/// What is served, and what computes it here.
pub struct Served {
    /// What it is called.
    pub name: String,
    /// Where its weights are.
    pub opened: Arc<Opened>,
    /// Text of its `config.json`.
    pub config: Vec<u8>,
    /// Digests of experts, for nodes that have another copy, or none.
    pub manifest: Manifest,
    /// What computes, and the digest of its self-test.
    pub admission: Admission,
    /// The trunk's threads.
    pub pool: Arc<Pool>,
    /// Its weights.
    pub trunk: Trunk,
}

/// How it is set up.
pub struct Assembly {
    /// Limits of the data plane.
    pub data: DataSettings,
    /// When and how experts are laid out.
    pub placer: PlacerSettings,
    /// How far experts' scores may be moved against overload; not at all, where answers are the model's own.
    pub bias: Option<BiasSettings>,
    /// Where the coordinator keeps what it must remember.
    pub data_folder: Option<PathBuf>,
    /// Doors for nodes from outside: HOST:PORT, `tcp:`, `quic:`, `shm:`.
    pub nodes: Vec<String>,
    /// Its certificate.
    pub tls: Option<Tls>,
    /// Admits nodes with a token, and renews their certificates.
    pub authority: Option<Authority>,
    /// Where a valid join token always lies.
    pub token_file: Option<PathBuf>,
    /// Plaintext over any network.
    pub insecure_anywhere: bool,
}

/// A coordinator that runs.
pub struct Assembled {
    /// Whom clients' requests go to.
    pub coordinator: Coordinator,
    /// Where nodes from outside come, as they say it.
    pub doors: Vec<String>,
    /// Its cluster.
    pub cluster: ClusterId,
    /// What its numbers are: those of its nodes must be the same.
    pub numeric: NumericIdentity,
    /// The threads of its actors.
    pub arbiters: Arbiters,
}

/// Why there is no coordinator.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Its actors, or its end of links.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A door.
    #[error("--nodes {address}: {why}")]
    Door {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: ConnectError,
    },
    /// What wakes those who wait at shared memory.
    #[error("--nodes {address}: {why}")]
    Doorbell {
        /// As it was given.
        address: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// QUIC without certificates.
    #[error("--nodes {address}: QUIC is always TLS; give certificates with --certs")]
    Quic {
        /// As it was given.
        address: String,
    },
}

/// Starts everything, within a system of actix. Nodes of this process come to `inside`.
pub async fn assemble(
    settings: Assembly,
    served: Served,
    inside: Option<Box<dyn Acceptor>>,
) -> Result<Assembled, AssembleError> {
    let Served { name: model, opened, config, manifest, admission, pool, trunk } = served;
    let tls = settings.tls.as_ref();
    let cluster = tls.map_or(UNNAMED_CLUSTER, |tls| tls.peer().cluster);
    let limits = Limits::default();
    let window = limits.window_bytes.control + limits.window_bytes.data + limits.window_bytes.weights;
    let buffers = Buffers::new(WINDOWS * window);
    let from_outside = !settings.nodes.is_empty();
    if let Some(BiasSettings { max, .. }) = settings.bias {
        tracing::warn!(
            max,
            "--balance bias: experts that are overloaded are chosen less, so answers differ from the model's own; each names its \
             bias as `phalanx.bias`"
        );
    }
    let coordinator = Settings {
        name: tls.map_or_else(|| NAME.to_owned(), |tls| tls.peer().name),
        cluster,
        data: settings.data.clone(),
        placer: settings.placer.clone(),
        bias: settings.bias,
        limits,
        membership: MembershipSettings {
            checkpoint: Some(*opened.config_digest.0.as_bytes()),
            // Nobody else can have admitted nodes of this process, so there is no term to wait for.
            join_window: if from_outside { Duration::from_secs(1) } else { Duration::ZERO },
            ..MembershipSettings::default()
        },
        data_folder: settings.data_folder.clone(),
        config,
        manifest,
        gives_weights: from_outside,
        authority: settings.authority.clone(),
        admission,
    };
    let numeric = NumericIdentity {
        class: coordinator.admission.kernels.class().to_string(),
        fingerprint: *coordinator.admission.fingerprint.as_bytes(),
    };
    let end = endpoint(&coordinator, &opened, buffers.clone())?;
    let mut listeners: Vec<Listener> = Vec::new();
    let mut doors = Vec::new();
    for address in &settings.nodes {
        let listener = end.listen(acceptor(address, &settings, &buffers).await?);
        let carrier = if address.starts_with("quic:") { "quic:" } else { "" };
        doors.push(format!("{carrier}{}", listener.address()));
        listeners.push(listener);
    }
    listeners.extend(inside.map(|inside| end.listen(inside)));
    // Whoever has read it can come at once.
    if let (Some(authority), Some(path)) = (&settings.authority, &settings.token_file) {
        actix::spawn(token_file::keep(authority.clone(), path.clone(), Utc::now));
    }
    let arbiters = Arbiters { data: Arbiter::new().handle(), control: Arbiter::new().handle() };
    let coordinator = start(coordinator, &opened, trunk, pool, &buffers, listeners, model, &arbiters)?;
    Ok(Assembled { coordinator, doors, cluster, numeric, arbiters })
}

/// Where nodes from outside come.
async fn acceptor(
    address: &str,
    settings: &Assembly,
    buffers: &Buffers,
) -> Result<Box<dyn Acceptor>, AssembleError> {
    let door = |why| AssembleError::Door { address: address.to_owned(), why };
    if address.starts_with("shm:") {
        let doorbell = Doorbell::new(SPIN)
            .map_err(|why| AssembleError::Doorbell { address: address.to_owned(), why })?;
        let acceptor = ShmAcceptor::bind(address, ShmSettings::default(), buffers.clone(), &doorbell);
        return Ok(Box::new(acceptor.map_err(door)?));
    }
    let authority = settings.authority.as_ref();
    if let Some(place) = address.strip_prefix("quic:") {
        let Some(tls) = &settings.tls else {
            return Err(AssembleError::Quic { address: address.to_owned() });
        };
        let acceptor = QuicCarrier::new(tls.clone(), buffers.clone()).listen(place).await.map_err(door)?;
        return Ok(match authority {
            Some(authority) => Box::new(acceptor.with_enrol(authority.enrolment())),
            None => Box::new(acceptor),
        });
    }
    let place = address.strip_prefix("tcp:").unwrap_or(address);
    let protection = match &settings.tls {
        Some(tls) => Protection::Tls(tls.clone()),
        None if settings.insecure_anywhere => Protection::Plaintext(Plaintext::Anywhere),
        None => Protection::Plaintext(Plaintext::Loopback),
    };
    let acceptor = TcpCarrier::new(protection, buffers.clone()).listen(place).await.map_err(door)?;
    Ok(match authority {
        Some(authority) => Box::new(acceptor.with_enrol(authority.enrolment())),
        None => Box::new(acceptor),
    })
}
