//! The carrier over shared memory: both consumers wait at a doorbell, so no other thread is between ring
//! and consumer.
//!
//! The control lane, which is a Unix socket, has a thread of its own that mostly sleeps.

use std::time::Duration;

use tokio::runtime::Runtime;
use transport::carrier::shm::{Doorbell, ShmAcceptor, ShmCarrier, ShmSettings};
use transport::security::Role;

use super::link::{Echoing, Executor, Ours, endpoint, obey};
use crate::Failure;
use crate::bench::scratch::Scratch;
use crate::bench::transport::process::{Parent, Process};
use crate::bench::transport::raw::Made;
use crate::bench::transport::{Program, SPIN};

/// The end that is measured: both spin, or both sleep at once.
pub(in crate::bench::transport) fn dial(is_spinning: bool) -> Made {
    let (program, spin, name) = if is_spinning {
        (Program::ShmSpinning, SPIN, "shm, spinning")
    } else {
        (Program::ShmSleeping, Duration::ZERO, "shm, sleeping")
    };
    let folder = Scratch::create()?;
    let socket = folder.path().join("socket");
    let line = format!("shm:{}", socket.display());
    let (process, address) = Process::start(program, &line, None)?;
    let (doorbell, runtime) = (Doorbell::new(spin)?, runtime()?);
    let (opened, pool) = runtime.block_on(async {
        let (coordinator, pool) = endpoint(Role::Coordinator, None)?;
        let carrier = ShmCarrier::new(ShmSettings::default(), pool.clone(), &doorbell)?;
        Ok::<_, Failure>((coordinator.dial(&carrier, &address).await?, pool))
    })?;
    let executor = Executor::Doorbell { doorbell, runtime, spins: is_spinning };
    Ok(Box::new(Ours::new(name, opened, pool, executor, Echoing::Process(process))))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent, program: Program) -> Result<(), Failure> {
    let spin = if program == Program::ShmSpinning { SPIN } else { Duration::ZERO };
    let (doorbell, runtime) = (Doorbell::new(spin)?, runtime()?);
    let opened = runtime.block_on(async {
        let (node, pool) = endpoint(Role::Node, None)?;
        let acceptor = ShmAcceptor::bind(&parent.line, ShmSettings::default(), pool, &doorbell)?;
        let mut listener = node.listen(Box::new(acceptor));
        parent.ready(listener.address())?;
        Ok::<_, Failure>(listener.next_link().await)
    })?;
    Executor::Doorbell { doorbell, runtime, spins: !spin.is_zero() }.run(obey(opened));
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}
