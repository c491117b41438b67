//! Puts a coordinator together: data plane, control plane, and what clients speak to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Addr, ArbiterHandle};
use model::bias::Bias;
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

use crate::api::{Backend, DrainRefused, Health, Soon};
use crate::control::actor::{ControlActor, ControlParts};
use crate::control::admin::{Drain, Undrain};
use crate::control::balance::BiasOf;
use crate::control::bias::{Balancer, BiasSettings};
use crate::control::cluster::Demand;
use crate::control::drain::{self, Manner};
use crate::control::membership::{Membership, MembershipSettings};
use crate::control::placer::{Placer, PlacerSettings};
use crate::control::publisher::Publisher;
use crate::control::rebalance::Rebalancer;
use crate::control::stop;
use crate::control::store::Store;
use crate::control::versions::Versions;
use crate::control::view;
use crate::data::actor::{Ask, Cancel, DataActor, Submit};
use crate::data::exchange::LinkSeen;
use crate::data::request::{RequestId, Submission};
use crate::data::start::{DataSettings, data_actor};
use crate::data::why::{Waiting, Why};
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
    /// How far experts' scores may be moved against overload; not at all, where answers are the model's own.
    pub bias: Option<BiasSettings>,
    /// Bounds of links.
    pub limits: Limits,
    /// How nodes are admitted.
    pub membership: MembershipSettings,
    /// Where the term is kept, which nodes are drained, and biases.
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
    /// Answers may be computed under a bias.
    may_be_biased: bool,
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
    let store = Store::new(settings.data_folder.as_deref()).map_err(system("the data directory"))?;
    let stored = store.load_term().map_err(system("the stored term"))?;
    let drained = store.load_drained().map_err(system("the drained nodes"))?;
    let biases = store.load_biases().map_err(system("the stored biases"))?;
    // A data directory may have served another model.
    let count = biases.iter().map(|version| version.number).max().unwrap_or(0);
    let biases = biases.into_iter().filter(|version| version.bias.check(&opened.spec).is_ok()).collect();
    let demand = demand(opened, &settings)?;
    let (observe, observed) = mpsc::unbounded_channel();
    let actor = data_actor(trunk, pool, &settings.data, observe).map_err(system("the trunk's thread"))?;
    let data = on(&arbiters.data, move |_| actor);
    let now = Instant::now();
    let mut balancer = settings.bias.map(|bias| Balancer::new(bias, &demand, now));
    let mut versions = Versions::new(biases, count);
    versions.take_up(|newest| balancer.as_mut().is_some_and(|balancer| balancer.take_up(newest)));
    let may_be_biased = balancer.is_some() || versions.count() > 0;
    let parts = ControlParts {
        membership: Membership::new(settings.membership.clone(), stored, now).with_drained(drained),
        publisher: Publisher::new(demand.clone()),
        placer: Placer::new(settings.placer.clone(), now),
        rebalancer: settings.placer.rebalance.map(|rebalance| Rebalancer::new(rebalance, now)),
        balancer,
        versions,
        demand,
        limits: settings.limits,
        config: settings.config.clone(),
        manifest: settings.manifest.clone(),
        weights: settings.gives_weights.then(|| Weights::new(Arc::clone(opened), buffers.clone())),
        authority: settings.authority.clone(),
        store,
        data: data.clone(),
        observed,
        listeners,
    };
    let control = on(&arbiters.control, move |_| ControlActor::new(parts));
    let numeric_class = settings.admission.kernels.class().to_string();
    Ok(Coordinator { data, control, model, numeric_class, shards: opened.spec.shards, may_be_biased })
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

    fn bias(&self, beginning: Option<[u8; 4]>) -> Soon<'_, Option<Arc<Bias>>> {
        if !self.may_be_biased {
            return Box::pin(std::future::ready(None));
        }
        let sent = self.control.send(BiasOf(beginning));
        Box::pin(async move { sent.await.unwrap_or_default() })
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
                node["link"] = over.map_or(Value::Null, LinkSeen::json);
            }
            view["data"] = report.json();
            view
        })
    }

    fn pulse(&self) -> Soon<'_, Value> {
        let (control, data) = (self.control.send(view::Pulse), self.data.send(Ask));
        Box::pin(async move {
            let mut pulse = control.await.unwrap_or_default();
            let report = data.await.unwrap_or_default();
            let link = |link: &LinkSeen| {
                json!({ "node": link.node.0, "bytes": link.bytes_out + link.bytes_back, "returned": link.returned,
                    "service_us": link.service_sum.as_micros() as u64 })
            };
            pulse["links"] = report.over_links.iter().map(link).collect();
            pulse["data"] = report.json();
            pulse
        })
    }

    fn why(&self, request: Option<RequestId>) -> Soon<'_, Value> {
        let asked = self.data.send(Why(request));
        Box::pin(async move {
            let mut waiting = asked.await.unwrap_or_default();
            // The data plane knows that nobody holds an expert, the control plane who did.
            if waiting.iter_mut().any(|waiting| waiting.cause.missing_mut().is_some()) {
                let orphans = self.control.send(view::Orphans).await.unwrap_or_default();
                for at in waiting.iter_mut().filter_map(|waiting| waiting.cause.missing_mut()) {
                    at.lost = orphans.get(&(at.wait.layer, at.wait.expert)).cloned();
                }
            }
            json!({ "requests": waiting.iter().map(Waiting::json).collect::<Vec<_>>() })
        })
    }

    fn drain(&self, node: String, by_force: bool) -> Soon<'_, Result<Value, DrainRefused>> {
        let manner = if by_force { Manner::ByForce } else { Manner::Kindly };
        let sent = self.control.send(Drain { node, manner });
        Box::pin(async move { sent.await.map_err(|_| DrainRefused::Stopping)?.map_err(DrainRefused::from) })
    }

    fn undrain(&self, node: String) -> Soon<'_, Result<Value, DrainRefused>> {
        let sent = self.control.send(Undrain { node });
        Box::pin(async move { sent.await.map_err(|_| DrainRefused::Stopping)?.map_err(DrainRefused::from) })
    }
}

impl From<drain::DrainRefused> for DrainRefused {
    fn from(why: drain::DrainRefused) -> Self {
        let text = why.to_string();
        match why {
            drain::DrainRefused::Unknown { .. } => Self::Unknown(text),
            drain::DrainRefused::NotStored { .. } => Self::NotStored(text),
            drain::DrainRefused::OnlyOne { .. } => Self::OnlyOne(text),
            drain::DrainRefused::NoRoom { .. } => Self::NoRoom(text),
            drain::DrainRefused::Superseded => Self::Superseded(text),
        }
    }
}
