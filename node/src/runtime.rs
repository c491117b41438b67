//! What the nodes of one process share: arbiters for their actors, the compute pool's thread, loading threads.
//!
//! A node's actors are all on one arbiter, so that what they say to one another costs no wake-up; many nodes of a
//! rehearsal share a few arbiters.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::{Arbiter, ArbiterHandle, System};
use model::kernel::Kernels;
use model::pool::Pool;

use crate::device::Compute;
use crate::device::compute::OnBusy;
use crate::loader::Loader;

/// Threads for actors. One serves some hundred thousand messages a second.
#[derive(Debug, Clone)]
pub enum Actors {
    /// So many of their own.
    Own(usize),
    /// Those of others in this process, who end them.
    On(Vec<ArbiterHandle>),
}

/// How a runtime is set up.
#[derive(Clone)]
pub struct RuntimeSettings {
    /// What computes.
    pub kernels: Kernels,
    /// The compute pool; a trunk in the same process may use it too, and they take turns.
    pub pool: Arc<Pool>,
    /// Which threads have its actors.
    pub actors: Actors,
    /// How long the devices' thread looks for news before it sleeps: zero where others want its core.
    pub spin: Duration,
    /// Is told when the devices begin to compute, and when they have nothing left to do.
    pub on_busy: Option<OnBusy>,
}

/// The threads of one process's nodes. Dropped, they end.
pub struct Runtime {
    kernels: Kernels,
    // Before the devices' thread: what actors hand over still has somebody to take it.
    arbiters: Arbiters,
    compute: Arc<Compute>,
    loader: Arc<Loader>,
    next: AtomicUsize,
}

struct Arbiters {
    handles: Vec<ArbiterHandle>,
    own: Option<(System, JoinHandle<()>)>,
}

impl Runtime {
    /// Starts all threads.
    pub fn start(settings: RuntimeSettings) -> std::io::Result<Self> {
        let RuntimeSettings { kernels, pool, actors, spin, on_busy } = settings;
        let compute = Compute::start(kernels, pool, spin, on_busy)?;
        let arbiters = match actors {
            Actors::Own(count) => Arbiters::start(count.max(1))?,
            Actors::On(handles) => Arbiters { handles, own: None },
        };
        let loader = Arc::new(Loader::start(kernels)?);
        Ok(Self { kernels, arbiters, compute, loader, next: AtomicUsize::new(0) })
    }

    /// What computes here.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The devices' thread.
    pub fn compute(&self) -> &Arc<Compute> {
        &self.compute
    }

    pub(crate) fn loader(&self) -> &Arc<Loader> {
        &self.loader
    }

    /// An arbiter for another node.
    pub(crate) fn arbiter(&self) -> ArbiterHandle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.arbiters.handles[next % self.arbiters.handles.len()].clone()
    }
}

impl Arbiters {
    /// A system of their own, whose thread is the first of them.
    fn start(count: usize) -> std::io::Result<Self> {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name("arbiter-0".to_owned()).spawn(move || {
            let runner = System::new();
            let first = std::iter::once(System::current().arbiter().clone());
            let handles: Vec<_> = first.chain((1..count).map(|_| Arbiter::new().handle())).collect();
            if tell.send((handles, System::current())).is_ok()
                && let Err(why) = runner.run()
            {
                tracing::error!(%why, "the arbiters have ended");
            }
        })?;
        let (handles, system) = told.recv().map_err(std::io::Error::other)?;
        Ok(Self { handles, own: Some((system, thread)) })
    }
}

impl Drop for Arbiters {
    fn drop(&mut self) {
        if let Some((system, thread)) = self.own.take() {
            system.stop();
            // Panics of actors are caught by their tasks.
            let _ = thread.join();
        }
    }
}
