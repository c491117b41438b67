//! The carrier over TCP, plain and with TLS: one thread at each end, as the raw program has it.

use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::security::Role;

use super::link::{Echoing, Executor, Ours, endpoint, obey};
use crate::Failure;
use crate::bench::transport::Program;
use crate::bench::transport::cluster::Cluster;
use crate::bench::transport::process::{Parent, Process};
use crate::bench::transport::raw::Made;
use crate::bench::transport::raw::stream::runtime;

/// The end that is measured; `cluster` where it is to speak TLS.
pub(in crate::bench::transport) fn dial(cluster: Option<&Cluster>) -> Made {
    let (program, name) =
        if cluster.is_some() { (Program::TcpTls, "tcp, TLS") } else { (Program::Tcp, "tcp, plain") };
    let (process, address) = Process::start(program, &Cluster::line(cluster), None)?;
    let tls = cluster.map(Cluster::coordinator);
    let runtime = runtime()?;
    let (opened, pool) = runtime.block_on(async {
        let (coordinator, pool) = endpoint(Role::Coordinator, tls.map(|tls| tls.peer().cluster))?;
        let protection =
            tls.map_or(Protection::Plaintext(Plaintext::Loopback), |tls| Protection::Tls(tls.clone()));
        let carrier = TcpCarrier::new(protection, pool.clone());
        Ok::<_, Failure>((coordinator.dial(&carrier, &address).await?, pool))
    })?;
    Ok(Box::new(Ours::new(name, opened, pool, Executor::Runtime(runtime), Echoing::Process(process))))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent, program: Program) -> Result<(), Failure> {
    let tls = match program {
        Program::TcpTls => Some(Cluster::node(&parent.line)?),
        _ => None,
    };
    runtime()?.block_on(async {
        let (node, pool) = endpoint(Role::Node, tls.as_ref().map(|tls| tls.peer().cluster))?;
        let protection = tls.map_or(Protection::Plaintext(Plaintext::Loopback), Protection::Tls);
        let acceptor = TcpCarrier::new(protection, pool).listen("127.0.0.1:0").await?;
        let mut listener = node.listen(Box::new(acceptor));
        parent.ready(listener.address())?;
        obey(listener.next_link().await).await;
        Ok(())
    })
}
