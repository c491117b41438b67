//! Addresses as people write them, and what the host says of them as errors.
//!
//! Shell: a name is looked up. Every message names the address and says what to try next.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::carrier::ConnectError;

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// The addresses that `host:port` means, one at least.
pub async fn resolve(address: &str, carrier: &'static str) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(at) = address.parse() {
        return Ok(vec![at]);
    }
    let wrong = |why: &str| ConnectError::Address { address: address.into(), carrier, why: why.into() };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("it has no port; write host:port"))?;
    let port: u16 =
        port.parse().map_err(|_| wrong("what follows the last colon is no port from 0 to 65535"))?;
    if host.is_empty() {
        return Err(wrong("it has no host; write host:port"));
    }
    if host.contains(':') {
        return Err(wrong("an IPv6 address stands in brackets: [::1]:7000"));
    }
    let unknown = |why: String| ConnectError::Resolve { name: host.into(), why };
    let found = tokio::net::lookup_host((host, port)).await.map_err(|why| unknown(why.to_string()))?;
    let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
    if found.is_empty() { Err(unknown("the name has no address".into())) } else { Ok(found) }
}

/// Where a peer of this host reaches what listens at `local`.
pub fn as_dialled(mut local: SocketAddr) -> SocketAddr {
    match local.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => local.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => local.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    local
}

/// Why nobody was reached at `address`.
pub fn unreachable(address: &str, why: &io::Error) -> ConnectError {
    let why = match why.kind() {
        ErrorKind::ConnectionRefused => {
            format!("{why}; nobody listens there: check that the peer runs, and its port")
        }
        ErrorKind::TimedOut => format!("{why}; check that the host is up and no firewall is between"),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            format!("{why}; check the address and this host's routes")
        }
        _ if why.raw_os_error().is_some_and(out_of_descriptors) => {
            format!("{why}; raise the limit of open files (ulimit -n)")
        }
        _ => why.to_string(),
    };
    ConnectError::Unreachable { address: address.into(), why }
}

/// Why nobody can listen at `address`.
pub fn cannot_listen(address: &str, carrier: &'static str, why: &io::Error) -> ConnectError {
    let why = match why.kind() {
        ErrorKind::AddrInUse => return ConnectError::InUse { address: address.into() },
        ErrorKind::AddrNotAvailable => {
            format!("{why}; this host has no such address, listen on one it has or on 0.0.0.0")
        }
        ErrorKind::PermissionDenied => format!("{why}; ports below 1024 need a privilege, choose another"),
        _ => why.to_string(),
    };
    ConnectError::Address { address: address.into(), carrier, why }
}

/// Whether this or the host's table of open files is full. It may pass by itself.
pub fn out_of_descriptors(code: i32) -> bool {
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code)
}
