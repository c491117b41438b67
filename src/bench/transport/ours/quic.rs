//! The carrier over QUIC: one thread at each end, which drives all of its endpoints.

use transport::carrier::quic::QuicCarrier;
use transport::security::Role;

use super::link::{Echoing, Executor, Ours, endpoint, obey};
use crate::Failure;
use crate::bench::transport::Program;
use crate::bench::transport::cluster::Cluster;
use crate::bench::transport::process::{Parent, Process};
use crate::bench::transport::raw::Made;
use crate::bench::transport::raw::stream::runtime;

/// The end that is measured.
pub(in crate::bench::transport) fn dial(cluster: &Cluster) -> Made {
    let (process, address) = Process::start(Program::Quic, &Cluster::line(Some(cluster)), None)?;
    let tls = cluster.coordinator();
    let runtime = runtime()?;
    let (opened, pool) = runtime.block_on(async {
        let (coordinator, pool) = endpoint(Role::Coordinator, Some(tls.peer().cluster))?;
        let carrier = QuicCarrier::new(tls.clone(), pool.clone());
        Ok::<_, Failure>((coordinator.dial(&carrier, &address).await?, pool))
    })?;
    Ok(Box::new(Ours::new("quic", opened, pool, Executor::Runtime(runtime), Echoing::Process(process))))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent) -> Result<(), Failure> {
    let tls = Cluster::node(&parent.line)?;
    runtime()?.block_on(async {
        let (node, pool) = endpoint(Role::Node, Some(tls.peer().cluster))?;
        let acceptor = QuicCarrier::new(tls, pool).listen("127.0.0.1:0").await?;
        let mut listener = node.listen(Box::new(acceptor));
        parent.ready(listener.address())?;
        obey(listener.next_link().await).await;
        Ok(())
    })
}
