//! A TCP connection as lanes want it.
//!
//! Shell. Nothing waits for company (`TCP_NODELAY`), and a host that vanished while a lane was idle is
//! found out by probes. There is deliberately no `TCP_USER_TIMEOUT`: it also cuts a connection whose
//! reader is alive and takes its time, and silence is judged by heartbeats on the control lane. Buffers
//! are left to the kernel, which grows them to 32 MiB as they are needed; a fixed size stops that.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::{CONNECT_MAX, address};
use crate::carrier::ConnectError;

/// Idle time before the first probe, as long as the silence that a link allows by default.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES_MAX: u32 = 3;

/// Connects to `at`, called `address` in messages.
pub async fn connect(at: SocketAddr, address: &str) -> Result<TcpStream, ConnectError> {
    let socket = match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(at)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_MAX:?}"))),
    }
    .map_err(|why| address::unreachable(address, &why))?;
    set_up(&socket).map_err(|why| address::unreachable(address, &why))?;
    Ok(socket)
}

/// The options of every connection, dialled or accepted.
pub fn set_up(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let probes =
        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES_MAX);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}
