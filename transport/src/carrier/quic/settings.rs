//! How QUIC is tuned, and why: quinn's defaults are for 100 Mbit/s of Internet.
//!
//! Shell: it makes sockets and asks the kernel about routes.
//!
//! Datagrams decide everything: each costs a pass through the protocol, so they are as long as the way
//! takes. The kernel knows the way's MTU; the one probe that quinn then needs is sent at once. Where the
//! MTU is small, the kernel cuts one long send into datagrams instead (GSO), 6,500 bytes at most: quinn
//! hands it 10 at a time, and more than 64 KiB fall back to single sends at a hundredth of the speed. A
//! large `initial_mtu` is never set: it hung.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig,
    VarInt, congestion::CubicConfig,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

/// What QUIC begins with and every way takes.
const DATAGRAM_BYTES_MIN: u16 = 1_200;
/// Longest datagram; the kernel takes 65,507.
const DATAGRAM_BYTES_MAX: u16 = 65_000;
/// Longest datagram with GSO.
const SEGMENT_BYTES_MAX: u16 = 6_500;
/// From this MTU on a datagram of the whole MTU beats GSO.
const WHOLE_FROM: u32 = 16 << 10;
/// IPv6 and UDP headers.
const HEADERS_BYTES: u32 = 48;

/// Unread bytes of the one stream: more than the window of the longest lane, which is 64 MiB with a
/// charge of its own, would never be used.
const STREAM_WINDOW_BYTES: u32 = 32 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Bytes kept until they are acknowledged, on a short way. More would not arrive sooner: they are written,
/// encrypted, and read again when an acknowledgement frees them, and beyond this they have left the caches
/// in between. One way over loopback, 2 MiB moved 1.3-1.8 GB/s where 32 MiB moved 0.7-0.9, and lost 100
/// datagrams in full sockets on top.
const UNACKNOWLEDGED_BYTES_MIN: u64 = 2 << 20;
/// The same on a way of any length.
const UNACKNOWLEDGED_BYTES_MAX: u64 = 32 << 20;
/// What a long way must hold to be full: 16 Gbit/s.
const BYTES_PER_MS: u64 = 2_000_000;
/// The way is a cluster's network, not the Internet.
const FIRST_RTT: Duration = Duration::from_millis(1);
/// Bytes in flight before anything was learned.
const FIRST_WINDOW_BYTES: u64 = 1 << 20;
/// What the sockets ask for.
const SOCKET_BYTES: usize = 8 << 20;
/// Below this, bursts of one window are lost in the socket.
const SOCKET_BYTES_WANTED: usize = 1 << 20;
/// Silence that ends a connection. Generous: the control lane is what judges.
const IDLE_MAX_MS: u32 = 10_000;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);
/// A way whose MTU has shrunk is tried again.
const PROBE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What a way takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Longest datagram.
    pub datagram_bytes_max: u16,
    /// Whether the kernel cuts long sends into datagrams.
    pub segmentation: bool,
}

impl Path {
    /// For a way with that MTU.
    pub fn of_mtu(mtu: u32) -> Self {
        let segmentation = mtu < WHOLE_FROM;
        let most = if segmentation { SEGMENT_BYTES_MAX } else { DATAGRAM_BYTES_MAX };
        let fits = u16::try_from(mtu.saturating_sub(HEADERS_BYTES)).unwrap_or(u16::MAX);
        Self { datagram_bytes_max: fits.clamp(DATAGRAM_BYTES_MIN, most), segmentation }
    }
}

/// What the kernel knows of the way to `peer`; where it knows nothing, what every Ethernet takes.
pub fn path_to(peer: SocketAddr) -> Path {
    const ETHERNET: u32 = 1_500;
    let mtu = || -> io::Result<u32> {
        let socket = UdpSocket::bind(unspecified(peer))?;
        socket.connect(peer)?;
        let mtu = match peer.ip().to_canonical() {
            IpAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket)?,
            IpAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket)?,
        };
        Ok(mtu)
    };
    Path::of_mtu(mtu().unwrap_or(ETHERNET))
}

/// Bytes that may wait for their acknowledgement on a way of that round trip.
pub fn unacknowledged_bytes_max(round_trip: Duration) -> u64 {
    let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    (micros.saturating_mul(BYTES_PER_MS) / 1_000).clamp(UNACKNOWLEDGED_BYTES_MIN, UNACKNOWLEDGED_BYTES_MAX)
}

/// The settings of one connection.
pub fn transport(path: Path) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(path.datagram_bytes_max)
        .interval(PROBE_AGAIN_AFTER)
        .black_hole_cooldown(PROBE_AGAIN_AFTER)
        // The search halves the span until a step is shorter than this, and then tries its upper end. The
        // upper end is what the kernel says the way takes: it is tried first, and a dozen probes, each
        // acknowledged up to 25 ms late, are saved.
        .minimum_change((path.datagram_bytes_max - DATAGRAM_BYTES_MIN) / 2 + 1);
    let mut cubic = CubicConfig::default();
    cubic.initial_window(FIRST_WINDOW_BYTES);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(UNACKNOWLEDGED_BYTES_MIN)
        .initial_rtt(FIRST_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE_EVERY))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))))
        .congestion_controller_factory(Arc::new(cubic))
        .enable_segmentation_offload(path.segmentation)
        .mtu_discovery_config(Some(discovery));
    config
}

/// An endpoint for one lane to `peer`.
pub fn endpoint_towards(peer: SocketAddr) -> io::Result<Endpoint> {
    endpoint(unspecified(peer), None)
}

/// An endpoint for one lane of all peers that arrive at `at`.
pub fn endpoint_at(at: SocketAddr, config: ServerConfig) -> io::Result<Endpoint> {
    endpoint(at, Some(config))
}

fn endpoint(at: SocketAddr, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel gives what it may (net.core.rmem_max, wmem_max) and says how much that was.
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    if got < SOCKET_BYTES_WANTED {
        warn!(
            got_bytes = got,
            wanted_bytes = SOCKET_BYTES_WANTED,
            "small UDP buffers; raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.bind(&at.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).expect("UDP takes it");
    Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))
}

fn unspecified(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never a datagram that the way does not take, and never GSO beyond what quinn's ten segments allow.
    #[test]
    fn a_path_takes_what_its_mtu_leaves() {
        let path = |mtu| {
            let Path { datagram_bytes_max, segmentation } = Path::of_mtu(mtu);
            (datagram_bytes_max, segmentation)
        };
        assert_eq!(path(1_280), (1_232, true));
        assert_eq!(path(1_500), (1_452, true));
        assert_eq!(path(9_000), (6_500, true));
        assert_eq!(path(65_536), (65_000, false));
        assert_eq!(path(0), (1_200, true), "less than QUIC needs is not believed");
    }
    /// A short way stays within the caches, a long one is filled, and none may ask for all memory.
    #[test]
    fn a_longer_way_holds_more() {
        let holds = |micros| unacknowledged_bytes_max(Duration::from_micros(micros));
        assert_eq!(holds(50), 2 << 20);
        assert_eq!(holds(5_000), 10_000_000);
        assert_eq!(holds(100_000), 32 << 20);
        assert_eq!(unacknowledged_bytes_max(Duration::MAX), 32 << 20);
    }
}
