//! Puts a coordinator together: data plane, control plane, and what clients speak to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Addr, ArbiterHandle};
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
use crate::control::rebalance::Rebalancer;
use crate::control::stop;
use crate::control::store::TermStore;
use crate::control::view;
use crate::data::actor::{Ask, Cancel, DataActor, Submit};
use crate::data::flow::Forwarding;
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
    /// More shards than actors can be told apart by.
    #[error("{0} shards of every expert, a cluster takes at most {max}; lower --shards", max = u8::MAX)]
    Shards(usize),
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
    shards: usize,
}

/// The threads of the two actors. Never one for both: what the data plane does never delays what nodes say.
#[derive(Debug, Clone)]
pub struct Arbiters {
    /// Of the data actor.
    pub data: ArbiterHandle,
    /// Of the control actor.
    pub control: ArbiterHandle,
}

/// Starts the actors. Within a system of actix.
pub fn start(
    settings: Settings,
    opened: &Arc<Opened>,
    trunk: Trunk,
    pool: Arc<Pool>,
    buffers: &Buffers,
    listeners: Vec<Listener>,
    model: String,
    arbiters: &Arbiters,
) -> Result<Coordinator, StartError> {
    let system = |what: &'static str| move |why: std::io::Error| StartError::System { what, why };
    let terms = TermStore::new(settings.data_folder.as_deref()).map_err(system("the data directory"))?;
    let stored = terms.load().map_err(system("the stored term"))?;
    let demand = demand(opened, &settings)?;
    let (observe, observed) = mpsc::unbounded_channel();
    let actor = data_actor(trunk, pool, &settings.data, observe).map_err(system("the trunk's thread"))?;
    let data = on(&arbiters.data, move |_| actor);
    let now = Instant::now();
    let parts = ControlParts {
        membership: Membership::new(settings.membership.clone(), stored, now),
        publisher: Publisher::new(demand.clone()),
        placer: Placer::new(settings.placer.clone(), now),
        rebalancer: settings.placer.rebalance.map(|rebalance| Rebalancer::new(rebalance, now)),
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
    let control = on(&arbiters.control, move |_| ControlActor::new(parts));
    let numeric_class = settings.admission.kernels.class().to_string();
    Ok(Coordinator { data, control, model, numeric_class, shards: opened.spec.shards })
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
    let spec = &opened.spec;
    let shards = u8::try_from(spec.shards).map_err(|_| StartError::Shards(spec.shards))?;
    let mut demand = Demand::new(spec, shards, 2, settings.data.dense_out);
    for (layer, of) in &mut demand.layers {
        let first = ExpertId { layer: *layer, expert: 0 };
        of.shard_bytes = 0;
        // Shards differ by a unit of the width; room is counted for the largest.
        for shard in 0..spec.shards {
            let plan = ExpertPlan::shard(&opened.checkpoint, spec, first, shard)?;
            of.shard_bytes = of.shard_bytes.max(plan.bytes(exact) as u64);
        }
    }
    Ok(demand)
}

impl Coordinator {
    /// The data actor.
    pub fn data(&self) -> &Addr<DataActor> {
        &self.data
    }

    /// Takes no more requests; those that it has go on.
    pub async fn leave(&self) {
        // An error: it has ended already.
        let _ = self.control.send(stop::Leave).await;
    }

    /// Ends the links to all nodes, in words.
    pub async fn close(&self) {
        let _ = self.control.send(stop::Close).await;
    }
}

impl Backend for Coordinator {
    fn submit(&self, submission: Submission) -> Soon<'_, RequestId> {
        let sent = self.data.send(Submit(submission));
        // A data actor that has gone drops the submission, and its client hears that.
        Box::pin(async move { sent.await.unwrap_or(RequestId(0)) })
    }

    fn cancel(&self, id: RequestId) {
        // Nothing is waited for, and so nothing is spawned: whoever drops a request is in no arbiter, and may be in the
        // middle of an unwinding.
        self.data.do_send(Cancel(id));
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
            view["shards"] = json!(self.shards);
            for node in view["nodes"].as_array_mut().into_iter().flatten() {
                let over = report.over_links.iter().find(|link| node["node"] == link.node.0);
                node["link"] = over.map_or(Value::Null, |link| {
                    json!({
                        "frames": link.frames, "bytes_out": link.bytes_out, "bytes_back": link.bytes_back,
                        "dispatches": link.dispatches,
                    })
                });
            }
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
                "groups": report.groups,
                "group_rows": report.group_rows,
                "kv_pages": report.pages,
                "kv_pages_used": report.pages - report.pages_free,
                "preempted": report.preempted,
                "prefix_pages": report.prefix.pages,
                "prefix_evicted": report.prefix.evicted,
                "prefix_begun": report.prefix.begun,
                "prefix_hits": report.prefix.hits,
                "prefix_tokens": report.prefix.positions,
                "forwarding": report.forwarding.map(Forwarding::name),
                "trying": report.trying,
                "trials": report.trials,
            });
            view
        })
    }
}
