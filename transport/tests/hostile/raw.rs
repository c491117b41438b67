//! A peer that is nothing but sockets, over plain TCP: it can say anything.

use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::control::{Attach, Control, Hello, Offer, PROTOCOL, Welcome};
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::{HEADER_BYTES, Header, Kind, Lane, PerLane, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::target::{KEPT, PATIENCE, Target};

/// A frame as it stands on the wire.
pub(crate) fn frame(mut header: Header, payload: &[u8]) -> Vec<u8> {
    header.payload_crc = if payload.is_empty() { 0 } else { crc32c(payload) };
    [&header.write()[..], payload].concat()
}

pub(crate) fn dispatch(id: u64, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::of_bytes(Kind::Dispatch, id, payload.len() as u32);
    header.remaining_us = 60_000_000;
    frame(header, payload)
}

/// One that the coordinator keeps.
pub(crate) fn kept(id: u64, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::of_bytes(Kind::Dispatch, id, payload.len() as u32);
    (header.layer, header.remaining_us) = (KEPT, 60_000_000);
    frame(header, payload)
}

pub(crate) fn weights(payload: &[u8]) -> Vec<u8> {
    frame(Header::of_bytes(Kind::Weights, 0, payload.len() as u32), payload)
}

pub(crate) fn of_control(payload: &[u8]) -> Vec<u8> {
    frame(Header::of_bytes(Kind::Control, 0, payload.len() as u32), payload)
}

pub(crate) fn control(message: &Control) -> Vec<u8> {
    of_control(&codec::encode(message).unwrap())
}

pub(crate) fn hello(cluster: ClusterId, name: &str) -> Hello {
    const WINDOW: u64 = 256 << 10;
    Hello {
        protocol: PROTOCOL,
        program: "raw".into(),
        peer: PeerName { cluster, role: Role::Node, name: name.into() },
        incarnation: 3,
        numeric: None,
        limits: Offer {
            payload_bytes_max: PerLane { control: 32 << 10, data: 64 << 10, weights: 64 << 10 },
            window_bytes: PerLane { control: WINDOW, data: WINDOW, weights: WINDOW },
            in_flight_max: 1_000,
            heartbeat_us: 50_000,
            row_bytes: 0,
        },
    }
}

pub(crate) fn attach(session: [u8; 16], lane: Lane) -> Control {
    Control::Attach(Attach { protocol: PROTOCOL, session, lane })
}

/// The next control message; `None` where the connection ends.
pub(crate) async fn hear(stream: &mut TcpStream) -> Option<Control> {
    let heard = async {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).await.ok()?;
        let header = Header::read(&header, 1 << 20).unwrap();
        let mut payload = vec![0; header.payload_bytes() as usize];
        stream.read_exact(&mut payload).await.ok()?;
        assert_eq!(header.kind, Kind::Control);
        Some(codec::decode(&payload).unwrap())
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("an answer or an end comes")
}

/// The next that is no heartbeat and no grant.
pub(crate) async fn hear_news(stream: &mut TcpStream) -> Option<Control> {
    loop {
        match hear(stream).await {
            Some(Control::Heartbeat { .. } | Control::Grant { .. }) => {}
            news => return news,
        }
    }
}

/// Reads to the end of a connection, however it ends.
pub(crate) async fn until_cut(stream: &mut TcpStream) {
    let mut heard = vec![0; 64 << 10];
    let ended = async { while matches!(stream.read(&mut heard).await, Ok(1..)) {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the connection is ended");
}

/// Where this end of a connection is, as the other names it.
pub(crate) fn whence(stream: &TcpStream) -> String {
    stream.local_addr().unwrap().to_string()
}

/// A link whose bytes are ours.
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) control: TcpStream,
    pub(crate) data: TcpStream,
    pub(crate) weights: TcpStream,
}

impl Raw {
    /// Says hello and hears the welcome.
    pub(crate) async fn greet(target: &Target, name: &str) -> (TcpStream, Welcome) {
        let mut stream = TcpStream::connect(&target.address).await.unwrap();
        stream.write_all(&control(&Control::Hello(hello(target.cluster, name)))).await.unwrap();
        match hear(&mut stream).await {
            Some(Control::Welcome(welcome)) => (stream, welcome),
            other => panic!("{other:?}"),
        }
    }

    /// A whole link.
    pub(crate) async fn open(target: &Target, name: &str) -> Self {
        let (control_stream, welcome) = Self::greet(target, name).await;
        let mut lanes = Vec::new();
        for lane in [Lane::Data, Lane::Weights] {
            let mut stream = TcpStream::connect(&target.address).await.unwrap();
            stream.write_all(&control(&attach(welcome.session, lane))).await.unwrap();
            assert_eq!(hear(&mut stream).await, Some(Control::Attached));
            lanes.push(stream);
        }
        let [data, weights] = <[TcpStream; 2]>::try_from(lanes).unwrap();
        Self { name: format!("node {name}"), control: control_stream, data, weights }
    }
}
