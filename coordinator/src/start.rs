//! Puts a coordinator together: data plane, control plane, and what clients speak to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Addr, Arbiter, ArbiterHandle};
use model::kernel::{Admission, RowType};
use model::load::Opened;
use model::pool::Pool;
use model::trunk::Trunk;
use model::weights::{ExpertId, ExpertPlan, Manifest};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::link::Local;
use transport::peer::{Endpoint, EndpointError, Listener};
use transport::security::{Authority, ClusterId, PeerName, Role};
use transport::wire::control::NumericIdentity;

use crate::api::{Backend, Health, Soon};
use crate::control::actor::{ControlActor, ControlParts};
use crate::control::cluster::Demand;
use crate::control::membership::{Membership, MembershipSettings};
use crate::control::placer::{Placer, PlacerSettings};
use crate::control::publisher::Publisher;
use crate::control::store::TermStore;
use crate::control::view;
use crate::data::actor::{Ask, Cancel, DataActor, Submit};
use crate::data::request::{RequestId, Submission};
use crate::data::start::{DataSettings, data_actor};
use crate::weights::Weights;

/// What a coordinator is.
pub struct Settings {
    /// Its name in the cluster.
    pub name: String,
    /// Its cluster; where there are certificates, theirs.
    pub cluster: ClusterId,
    /// What computes, and the digest of its self-test.
    pub admission: Admission,
    /// Limits of the data plane.
    pub data: DataSettings,
    /// When and how experts are laid out.
    pub placer: PlacerSettings,
    /// Bounds of links.
    pub limits: Limits,
    /// How nodes are admitted.
    pub membership: MembershipSettings,
    /// Where the term is kept.
    pub data_folder: Option<PathBuf>,
    /// Text of `config.json`.
    pub config: Vec<u8>,
    /// Digests of experts, as far as they are known.
    pub manifest: Manifest,
    /// Whether nodes are given weights over their links.
    pub gives_weights: bool,
    /// Renews nodes' certificates.
    pub authority: Option<Authority>,
}

/// Why a coordinator was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its name, or the limits of its links.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The data directory, or a thread.
    #[error("{what}: {why}")]
    System {
        /// What could not be had.
        what: &'static str,
        /// What the system said.
        why: std::io::Error,
    },
    /// The checkpoint lacks an expert.
    #[error(transparent)]
    Checkpoint(#[from] model::checkpoint::CheckpointError),
}

/// One end of links for nodes to come to, before anything else stands.
pub fn endpoint(settings: &Settings, opened: &Opened, buffers: Buffers) -> Result<Endpoint, StartError> {
    let element = match settings.admission.kernels.class().row_type() {
        RowType::Bf16 => 2,
        RowType::F32 => 4,
    };
    let local = Local {
        peer: PeerName { cluster: settings.cluster, role: Role::Coordinator, name: settings.name.clone() },
        program: format!("phalanx-coordinator {}", env!("CARGO_PKG_VERSION")),
        incarnation: incarnation(),
        numeric: Some(NumericIdentity {
            class: settings.admission.kernels.class().to_string(),
            fingerprint: *settings.admission.fingerprint.as_bytes(),
        }),
        row_bytes: opened.spec.hidden as u64 * element,
        mixed_classes: false,
    };
    Ok(Endpoint::new(local, settings.limits, buffers)?)
}

/// A random number of this process's life.
fn incarnation() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A coordinator that runs. Clones are the same.
#[derive(Clone)]
pub struct Coordinator {
    data: Addr<DataActor>,
    control: Addr<ControlActor>,
    model: String,
    numeric_class: String,
}

/// Starts the actors: the data actor on one arbiter, the control actor on another. Within a system of actix.
pub fn start(
    settings: Settings,
    opened: &Arc<Opened>,
    trunk: Trunk,
    pool: Arc<Pool>,
    buffers: &Buffers,
    listeners: Vec<Listener>,
    model: String,
) -> Result<Coordinator, StartError> {
    let system = |what: &'static str| move |why: std::io::Error| StartError::System { what, why };
    let terms = TermStore::new(settings.data_folder.as_deref()).map_err(system("the data directory"))?;
    let stored = terms.load().map_err(system("the stored term"))?;
    let demand = demand(opened, &settings)?;
    let (observe, observed) = mpsc::unbounded_channel();
    let actor = data_actor(trunk, pool, &settings.data, observe).map_err(system("the trunk's thread"))?;
    let data = on(&Arbiter::new().handle(), move |_| actor);
    let now = Instant::now();
    let parts = ControlParts {
        membership: Membership::new(settings.membership.clone(), stored, now),
        publisher: Publisher::new(demand.clone()),
        placer: Placer::new(settings.placer.clone(), now),
        demand,
        limits: settings.limits,
        config: settings.config.clone(),
        manifest: settings.manifest.clone(),
        weights: settings.gives_weights.then(|| Weights::new(Arc::clone(opened), buffers.clone())),
        authority: settings.authority.clone(),
        terms,
        data: data.clone(),
        observed,
        listeners,
    };
    let control = on(&Arbiter::new().handle(), move |_| ControlActor::new(parts));
    let numeric_class = settings.admission.kernels.class().to_string();
    Ok(Coordinator { data, control, model, numeric_class })
}

fn on<A>(arbiter: &ArbiterHandle, make: impl FnOnce(&mut A::Context) -> A + Send + 'static) -> Addr<A>
where
    A: Actor<Context = actix::Context<A>> + Send,
{
    A::start_in_arbiter(arbiter, make)
}

/// What has to be placed, with the bytes that experts really have.
fn demand(opened: &Opened, settings: &Settings) -> Result<Demand, StartError> {
    let exact = settings.admission.kernels.class().row_type() == RowType::F32;
    let mut demand = Demand::new(&opened.spec, 1, 2, settings.data.dense_out);
    for (layer, of) in &mut demand.layers {
        let first = ExpertId { layer: *layer, expert: 0 };
        of.shard_bytes = ExpertPlan::new(&opened.checkpoint, &opened.spec, first)?.bytes(exact) as u64;
    }
    Ok(demand)
}

impl Coordinator {
    /// The data actor.
    pub fn data(&self) -> &Addr<DataActor> {
        &self.data
    }
}

impl Backend for Coordinator {
    fn submit(&self, submission: Submission) -> Soon<'_, RequestId> {
        let sent = self.data.send(Submit(submission));
        // A data actor that has gone drops the submission, and its client hears that.
        Box::pin(async move { sent.await.unwrap_or(RequestId(0)) })
    }

    fn cancel(&self, id: RequestId) {
        let sent = self.data.send(Cancel(id));
        actix::spawn(async move { sent.await.ok() });
    }

    fn health(&self) -> Soon<'_, Health> {
        let sent = self.control.send(view::Health);
        let stopping = || Health { state: crate::api::State::Stopping, missing: Vec::new() };
        Box::pin(async move { sent.await.unwrap_or_else(|_| stopping()) })
    }

    fn cluster(&self) -> Soon<'_, Value> {
        let (control, data) = (self.control.send(view::View), self.data.send(Ask));
        Box::pin(async move {
            let mut view = control.await.unwrap_or_default();
            let report = data.await.unwrap_or_default();
            view["model"] = json!(self.model);
            view["numeric_class"] = json!(self.numeric_class);
            view["data"] = json!({
                "running": report.running,
                "waiting": report.waiting,
                "tokens": report.tokens,
                "batches": report.batches,
                "rows": report.rows,
                "dispatched_frames": report.dispatched_frames,
                "dispatched_bytes": report.dispatched_bytes,
                "returned_frames": report.returned_frames,
                "returned_bytes": report.returned_bytes,
            });
            view
        })
    }
}
