//! Starts nodes in this process, and holds them from outside of their arbiter.

use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Context, Message};
use tokio::sync::{oneshot, watch};
use transport::link::Local;
use transport::peer::{Endpoint, EndpointError};
use transport::security::{PeerName, Role};
use transport::wire::cluster::{ActorId, Load};

use crate::agent::{Agent, Parts};
use crate::device::{CpuDevice, Device};
use crate::directory::Directory;
use crate::emulation::device::EmulatedDevice;
use crate::emulation::later::Later;
use crate::emulation::wire::Wire;
use crate::expert::Fall;
use crate::fetch::Asks;
use crate::post::post;
use crate::receive::Floor;
use crate::runtime::Runtime;
use crate::session::Sessions;
use crate::settings::{Settings, SettingsError};
use crate::supervisor::DeviceSupervisor;

/// Why a node was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Its name, or the limits of its links.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The thread of what is emulated.
    #[error("the thread of --emulate cannot be started: {0}")]
    Emulation(std::io::Error),
    /// The runtime has ended.
    #[error("the node's threads have ended")]
    Over,
}

/// A node that was started. Dropped, the node stops at once; [`leave`](Self::leave) before that is kinder.
#[derive(Debug)]
pub struct NodeHandle {
    agent: Addr<Agent>,
}

/// To the agent, from outside.
#[derive(Debug)]
pub(crate) enum Command {
    Stop(oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
    Fall { actor: ActorId, when: Fall, done: oneshot::Sender<bool> },
    Status(oneshot::Sender<NodeStatus>),
}

impl Message for Command {
    type Result = ();
}

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Coordinators that have taken it in.
    pub coordinators: usize,
    /// Actors that stand.
    pub standing: Vec<ActorId>,
    /// What they have done.
    pub loads: Vec<Load>,
    /// Bytes of weights on each device.
    pub memory: Vec<u64>,
}

/// Starts a node on an arbiter of `runtime`. Not to be called on one of its arbiters.
pub fn start(runtime: &Runtime, settings: Settings) -> Result<NodeHandle, StartError> {
    settings.check()?;
    let local = Local {
        peer: PeerName { cluster: settings.cluster, role: Role::Node, name: settings.name.clone() },
        program: format!("phalanx-node {}", env!("CARGO_PKG_VERSION")),
        incarnation: settings.incarnation,
        numeric: Some(settings.numeric.clone()),
        row_bytes: 0,
        mixed_classes: false,
    };
    let endpoint = Endpoint::new(local, settings.limits, settings.buffers.clone())?;
    let (compute, loader) = (Arc::clone(runtime.compute()), Arc::clone(runtime.loader()));
    let row = runtime.kernels().class().row_type();
    let (tell, told) = std::sync::mpsc::channel();
    let arbiter = runtime.arbiter();
    let emulated = settings.emulation.map(|emulation| {
        let name = &settings.name;
        tracing::warn!(node = %name, %emulation, "devices are EMULATED: their answers are right, their times made up");
        Later::start().map(|later| (emulation, later, arbiter.clone()))
    });
    let emulated = emulated.transpose().map_err(StartError::Emulation)?;
    let is_there = arbiter.spawn_fn(move || {
        let settings = Arc::new(settings);
        let (is_last_tell, is_last) = watch::channel(false);
        let agent = Agent::create(|context: &mut Context<Agent>| {
            let floor = Rc::new(Floor {
                directory: Directory::default(),
                shape: Default::default(),
                joined: Default::default(),
                is_draining: Default::default(),
                buffers: settings.buffers.clone(),
                compute: Arc::clone(&compute),
                wire: emulated
                    .as_ref()
                    .filter(|(emulation, ..)| !emulation.wire.is_zero())
                    .map(|(emulation, later, _)| Wire::new(emulation.wire, later)),
            });
            let devices = settings.devices.iter().map(|memory_bytes| {
                let mut device: Arc<dyn Device> =
                    Arc::new(CpuDevice::new(*memory_bytes, Arc::clone(&compute)));
                if let Some((emulation, later, arbiter)) = &emulated {
                    device = EmulatedDevice::around(device, *emulation, later, arbiter);
                }
                let fallen = context.address().recipient();
                let directory = floor.directory.clone();
                let supervisor =
                    DeviceSupervisor::new(Arc::clone(&device), settings.batch_rows_max, directory, fallen);
                (device, supervisor.start())
            });
            let devices = devices.collect();
            let agent = context.address();
            let asks = Arc::new(Asks::default());
            let sessions = Rc::new(Sessions {
                endpoint,
                agent,
                floor: Rc::clone(&floor),
                asks: Arc::clone(&asks),
                is_last,
            });
            for coordinator in settings.coordinators.clone() {
                actix::spawn(Rc::clone(&sessions).keep(coordinator));
            }
            Agent::new(Parts { settings, row, loader, devices, floor, asks, is_last: is_last_tell })
        });
        let _ = tell.send(agent);
    });
    match told.recv() {
        Ok(agent) if is_there => Ok(NodeHandle { agent }),
        _ => Err(StartError::Over),
    }
}

impl NodeHandle {
    /// Says that the node wants to leave, and waits until it has: until all coordinators have drained their links, or
    /// the bound of the settings is over.
    pub async fn leave(&self) {
        let (tell, told) = oneshot::channel();
        post(&self.agent, Command::Leave(tell));
        // An error: it has ended already.
        let _ = told.await;
    }

    /// Stops it at once: links are closed, and what was under way is lost.
    pub async fn stop(&self) {
        let (tell, told) = oneshot::channel();
        post(&self.agent, Command::Stop(tell));
        let _ = told.await;
    }

    /// Lets an actor fall, as a fault would. False: there is no such actor.
    pub async fn fall(&self, actor: ActorId, when: Fall) -> bool {
        let (done, told) = oneshot::channel();
        post(&self.agent, Command::Fall { actor, when, done });
        told.await.unwrap_or(false)
    }

    /// How it is; nothing once it has ended.
    pub async fn status(&self) -> NodeStatus {
        let (tell, told) = oneshot::channel();
        post(&self.agent, Command::Status(tell));
        told.await.unwrap_or_default()
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        post(&self.agent, Command::Stop(oneshot::channel().0));
    }
}
