//! Raw tokio over TCP, plain and with tokio-rustls: one thread at each end, `TCP_NODELAY`, nothing else.
//!
//! Kernel buffers are left to the kernel, as the carrier leaves them. TLS is set up by the transport's own
//! security, so that both have the same cipher and differ only in how they use it.

use std::net::{Ipv4Addr, SocketAddr};

use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Made;
use super::stream::{Streaming, obey, runtime};
use crate::Failure;
use crate::bench::transport::Program;
use crate::bench::transport::cluster::Cluster;
use crate::bench::transport::process::{Parent, Process};

/// The end that is measured; `cluster` where it is to speak TLS.
pub(in crate::bench::transport) fn dial(cluster: Option<&Cluster>) -> Made {
    let runtime = runtime()?;
    let program = if cluster.is_some() { Program::RawTls } else { Program::RawTcp };
    let (process, address) = Process::start(program, &Cluster::line(cluster), None)?;
    let address: SocketAddr = address.parse()?;
    let stream = runtime.block_on(async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, Failure>(stream)
    })?;
    let Some(cluster) = cluster else {
        return Ok(Box::new(Streaming { name: "raw tokio", stream, runtime, process }));
    };
    let connector = TlsConnector::from(cluster.coordinator().client_config());
    let stream = runtime.block_on(connector.connect(ServerName::from(address.ip()), stream))?;
    Ok(Box::new(Streaming { name: "raw tokio-rustls", stream, runtime, process }))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent, program: Program) -> Result<(), Failure> {
    let tls = match program {
        Program::RawTls => Some(TlsAcceptor::from(Cluster::node(&parent.line)?.server_config())),
        _ => None,
    };
    runtime()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        parent.ready(&listener.local_addr()?.to_string())?;
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match tls {
            Some(tls) => obey(tls.accept(stream).await?).await?,
            None => obey(stream).await?,
        }
        Ok(())
    })
}
