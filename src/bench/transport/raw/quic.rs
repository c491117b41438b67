//! Bare quinn, one long stream: as it is by default, and with the very settings of the carrier.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use quinn::Endpoint;
use transport::carrier::quic::settings;

use super::Made;
use super::stream::{Streaming, obey, runtime};
use crate::Failure;
use crate::bench::transport::Program;
use crate::bench::transport::cluster::Cluster;
use crate::bench::transport::process::{Parent, Process};

/// Where the other process listens, on a port that the host chooses.
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// The end that is measured.
pub(in crate::bench::transport) fn dial(cluster: &Cluster, is_tuned: bool) -> Made {
    let runtime = runtime()?;
    let (program, name) = if is_tuned {
        (Program::RawQuic, "bare quinn, tuned")
    } else {
        (Program::RawQuicDefault, "bare quinn, default")
    };
    let (process, address) = Process::start(program, &Cluster::line(Some(cluster)), None)?;
    let address: SocketAddr = address.parse()?;
    let mut client = cluster.coordinator().quic_client();
    if is_tuned {
        client.transport_config(Arc::new(settings::transport(settings::path_to(address))));
    }
    let stream = runtime.block_on(async {
        let endpoint =
            if is_tuned { settings::endpoint_towards(address)? } else { Endpoint::client(ANY_PORT.into())? };
        let connection = endpoint.connect_with(client, address, "node")?.await?;
        let (out, home) = connection.open_bi().await?;
        Ok::<_, Failure>(tokio::io::join(home, out))
    })?;
    Ok(Box::new(Streaming { name, stream, runtime, process }))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent, program: Program) -> Result<(), Failure> {
    let mut server = Cluster::node(&parent.line)?.quic_server();
    runtime()?.block_on(async {
        let endpoint = if program == Program::RawQuic {
            let path = settings::path_to(ANY_PORT.into());
            server.transport_config(Arc::new(settings::transport(path)));
            settings::endpoint_at(ANY_PORT.into(), server)?
        } else {
            Endpoint::server(server, ANY_PORT.into())?
        };
        parent.ready(&endpoint.local_addr()?.to_string())?;
        let arriving = endpoint.accept().await.ok_or("the endpoint is closed")?;
        let connection = arriving.await?;
        // The stream arrives with the first order.
        let (out, home) = connection.accept_bi().await?;
        obey(tokio::io::join(home, out)).await?;
        Ok(())
    })
}
