//! The memory carrier: both ends in one process, on one thread or on two.

use std::sync::mpsc;

use rustix::thread::gettid;
use transport::carrier::memory::MemoryCarrier;
use transport::security::Role;

use super::link::{Echoing, Executor, Ours, endpoint, obey};
use crate::Failure;
use crate::bench::transport::raw::Made;
use crate::bench::transport::raw::stream::runtime;

const ADDRESS: &str = "node";

/// Both ends are tasks of one thread.
pub(in crate::bench::transport) fn same_thread() -> Made {
    let runtime = runtime()?;
    let (opened, pool) = runtime.block_on(async {
        let carrier = MemoryCarrier::default();
        let mut listener = endpoint(Role::Node, None)?.0.listen(Box::new(carrier.listen(ADDRESS)?));
        let (coordinator, pool) = endpoint(Role::Coordinator, None)?;
        tokio::spawn(async move { obey(listener.next_link().await).await });
        Ok::<_, Failure>((coordinator.dial(&carrier, ADDRESS).await?, pool))
    })?;
    Ok(Box::new(Ours::new("memory, same thread", opened, pool, Executor::Runtime(runtime), Echoing::Task)))
}

/// Each end has a thread. That of the echoing end stops with the link.
pub(in crate::bench::transport) fn two_threads() -> Made {
    let carrier = MemoryCarrier::default();
    let (ready, is_ready) = mpsc::channel();
    let theirs = carrier.clone();
    std::thread::spawn(move || {
        let echoing = || -> Result<(), Failure> {
            runtime()?.block_on(async {
                let mut listener = endpoint(Role::Node, None)?.0.listen(Box::new(theirs.listen(ADDRESS)?));
                // Whoever waits for this has not gone.
                let _ = ready.send(Ok(gettid()));
                obey(listener.next_link().await).await;
                Ok(())
            })
        };
        if let Err(why) = echoing() {
            // Only before it was ready is there anybody to tell; afterwards the link's end says it.
            let _ = ready.send(Err(why.to_string()));
        }
    });
    let thread = is_ready.recv()??;
    let runtime = runtime()?;
    let (opened, pool) = runtime.block_on(async {
        let (coordinator, pool) = endpoint(Role::Coordinator, None)?;
        Ok::<_, Failure>((coordinator.dial(&carrier, ADDRESS).await?, pool))
    })?;
    Ok(Box::new(Ours::new(
        "memory, two threads",
        opened,
        pool,
        Executor::Runtime(runtime),
        Echoing::Thread(thread),
    )))
}
