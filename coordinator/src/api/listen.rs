//! Serving connections: how many, how long, and how it ends.
//!
//! A shell. Whatever a client may hold has a bound of its own ([`Limits`]): a connection without a request, headers,
//! a body, an answer that is not read. axum stands on hyper, and hyper is driven here by hand, because these bounds
//! are hyper's and axum's own server does not show them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::paced::Paced;
use super::routes::{App, router};

/// After a connection could not be accepted: the system may lack descriptors, and asking at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What clients may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest body. 4 MiB holds the longest prompt of any released model as ids; as much is held per request.
    pub body_bytes_max: usize,
    /// How long a body may take. Within it a client at 1.2 Mbit/s sends the largest.
    pub body_within: Duration,
    /// The most headers of a request.
    pub headers_max: usize,
    /// The most bytes of a request's line and headers.
    pub header_bytes_max: usize,
    /// How long they may take; a connection without any request is closed as late.
    pub headers_within: Duration,
    /// How long a client may read nothing of what is written to it.
    pub stall_max: Duration,
    /// The most connections at once. Each is a descriptor and some 20 KiB.
    pub connections_max: usize,
    /// How long whatever runs may take to end when the server stops.
    pub stop_within: Duration,
}

/// Descriptors that are kept for anything but clients: files, nodes' links, the system's own.
const OTHER_DESCRIPTORS: u64 = 512;

impl Limits {
    /// The same where a process may have so many descriptors: no more connections than there is room for, and some in any case.
    pub fn within(self, descriptors: Option<u64>) -> Self {
        let room = descriptors
            .map_or(u64::MAX, |most| most.saturating_sub(OTHER_DESCRIPTORS).max(OTHER_DESCRIPTORS / 2));
        let connections_max = usize::try_from(room).unwrap_or(usize::MAX).min(self.connections_max);
        Self { connections_max, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 4 << 20,
            body_within: Duration::from_secs(30),
            headers_max: 64,
            header_bytes_max: 32 << 10,
            headers_within: Duration::from_secs(15),
            stall_max: Duration::from_secs(60),
            connections_max: 16_384,
            stop_within: Duration::from_secs(30),
        }
    }
}

/// An address that others can reach, while nobody is asked who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} can be reached from other machines, and whoever reaches it may use the model; give keys with \
     --api-key-file, listen on 127.0.0.1, or say {flag} if the network is yours alone"
)]
pub struct Exposed {
    /// The address.
    pub address: SocketAddr,
    /// What allows it.
    pub flag: &'static str,
}

/// Whether only this machine reaches an address.
pub fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Refuses an address beyond this machine, unless it is allowed, by keys or by `flag`.
pub fn check_address(address: SocketAddr, is_allowed: bool, flag: &'static str) -> Result<(), Exposed> {
    match is_local(address) || is_allowed {
        true => Ok(()),
        false => Err(Exposed { address, flag }),
    }
}

/// Serves until `stop`, then lets what runs end within [`Limits::stop_within`] and cuts the rest.
///
/// Best in a runtime of its own: reading bodies and making text ids should not share a thread with the data plane.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) {
    let limits = *app.limits();
    let tls = app.tls().cloned().map(TlsAcceptor::from);
    let router = router(app);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // Over TLS it would take a handshake to say so.
            Ok((stream, _)) if connections.len() >= limits.connections_max && tls.is_some() => drop(stream),
            Ok((stream, _)) if connections.len() >= limits.connections_max => turn_away(stream),
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(router.clone());
                // Tokens are small, and each should go at once.
                let _ = stream.set_nodelay(true);
                let stopped = stopped.clone();
                match tls.clone() {
                    None => connections.spawn(connection(stream, service, limits, stopped)),
                    Some(tls) => connections.spawn(tls_connection(tls, stream, service, limits, stopped)),
                };
            }
            Err(error) => {
                // A client that went before it was accepted, or no descriptor left: others may do better.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(limits.stop_within, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were cut while answers were under way");
        connections.shutdown().await;
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection panicked; its request was lost");
    }
}

/// One connection over TLS: its handshake takes no longer than headers may.
async fn tls_connection(
    tls: TlsAcceptor,
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(limits.headers_within, tls.accept(stream)) => accepted,
        _ = stopped.changed() => return,
    };
    match accepted {
        Ok(Ok(stream)) => connection(stream, service, limits, stopped).await,
        // Whoever speaks something else, or does not believe our certificate.
        Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
        Err(_) => tracing::debug!("a handshake took too long"),
    }
}

/// One connection, to its end.
async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    service: TowerToHyperService<axum::Router>,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let stream = Paced::new(stream, limits.stall_max);
    let has_read = stream.has_read();
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers_within)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.header_bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        _ = stopped.changed() => {
            if !has_read.load(Ordering::Relaxed) {
                return;
            }
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        // Clients go, and what they send may be no HTTP: their affair.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Says to one connection too many that it is.
fn turn_away(stream: TcpStream) {
    const BODY: &str = r#"{"error":{"message":"too many connections; try again later","type":"server_error","param":null,"code":"busy"}}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    // A new socket has room for this, so nothing waits; if it has not, the client sees the end alone.
    let _ = stream.into_std().and_then(|mut stream| io::Write::write(&mut stream, answer.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who takes more connections than there are descriptors cannot take nodes any more, nor open a file.
    #[test]
    fn connections_leave_descriptors_for_others() {
        let most = |descriptors| Limits::default().within(descriptors).connections_max;
        assert_eq!((most(None), most(Some(1 << 20))), (16_384, 16_384));
        assert_eq!((most(Some(4096)), most(Some(600)), most(Some(0))), (3584, 256, 256));
    }

    #[test]
    fn only_this_machine_is_reached_unless_allowed() {
        for (address, loopback) in [
            ("127.0.0.1:8080", true),
            ("127.9.9.9:1", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("10.0.0.1:8080", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(check_address(address, false, "--x").is_ok(), loopback, "{address}");
            assert!(check_address(address, true, "--x").is_ok());
        }
        let message = check_address("0.0.0.0:80".parse().unwrap(), false, "--open").unwrap_err().to_string();
        assert!(message.contains("0.0.0.0:80") && message.contains("--open"), "{message}");
    }
}
