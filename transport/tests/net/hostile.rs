//! Peers that mean harm, over real sockets: each ends its own lane, and another is served beside it.

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier, ConnectError, LaneEnds, LaneError, Outbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::reference::{contents, crc, frame, payload, written_out};
use crate::tcp::{both_ways, plain, receive, send};

/// A socket of the test's own at one end, a lane at the other.
async fn raw() -> (TcpStream, LaneEnds) {
    let mut acceptor = plain().listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let (raw, arrived) = tokio::join!(TcpStream::connect(&address), acceptor.accept());
    (raw.unwrap(), arrived.unwrap().connection.control)
}

/// In the middle of a payload: FIN, and then RST.
#[tokio::test]
async fn a_death_inside_a_frame_is_an_error_at_once() {
    for reset in [false, true] {
        let (mut socket, mut lane) = raw().await;
        let bytes = written_out(1, &payload(1, 10_000), true);
        socket.write_all(&bytes[..5_000]).await.unwrap();
        if reset {
            socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        drop(socket);
        match receive(&mut *lane.receiver).await {
            Err(LaneError::Truncated { missing }) if !reset => assert_eq!(missing, 64 + 10_000 - 5_000),
            Err(LaneError::Cut(_)) if reset => {}
            end => panic!("reset {reset}: {end:?}"),
        }
    }
}

/// Plain TCP notices no damage by itself, so a checksum goes with each payload and is looked at.
#[tokio::test]
async fn damage_on_plain_tcp_is_noticed() {
    let (mut socket, mut lane) = raw().await;
    let pool = Pool::new(1 << 20);
    send(&mut *lane.sender, &mut Outbox::from([frame(&pool, 1, 1_000)])).await.unwrap();
    let expected = written_out(1, &payload(1, 1_000), true);
    let mut came = vec![0; expected.len()];
    socket.read_exact(&mut came).await.unwrap();
    assert_eq!(came, expected);

    came[500] ^= 4;
    socket.write_all(&came).await.unwrap();
    let end = receive(&mut *lane.receiver).await;
    assert!(matches!(end, Err(LaneError::Damaged { bytes: 1_000, .. })), "{end:?}");
}

/// Whoever sends to a peer that is gone hears of it.
#[tokio::test]
async fn sending_to_the_dead_is_an_error() {
    let (socket, mut lane) = raw().await;
    socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(socket);
    assert!(matches!(receive(&mut *lane.receiver).await, Err(LaneError::Cut(_))));
    let pool = Pool::new(1 << 30);
    let end = send(&mut *lane.sender, &mut Outbox::from([frame(&pool, 1, 1 << 20)])).await;
    assert!(matches!(end, Err(LaneError::Cut(_))), "{end:?}");
}

/// Lengths that lie, each sealed with a right checksum, are refused before anything is taken for them.
#[tokio::test]
async fn lying_lengths_are_refused() {
    let sealed = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = written_out(1, &payload(1, 100), true);
        change(&mut bytes);
        let seal = crc(&bytes[..60]);
        bytes[60..64].copy_from_slice(&seal.to_le_bytes());
        bytes
    };
    for lie in [
        sealed(&|bytes| bytes[32..40].copy_from_slice(&u64::MAX.to_le_bytes())),
        sealed(&|bytes| bytes[32..40].copy_from_slice(&99_u64.to_le_bytes())),
        sealed(&|bytes| {
            bytes[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes[32..40].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
        }),
        sealed(&|bytes| bytes[4] = 2),
        sealed(&|bytes| bytes[5] = 0),
    ] {
        let (mut socket, mut lane) = raw().await;
        socket.write_all(&lie).await.unwrap();
        let end = receive(&mut *lane.receiver).await;
        assert!(matches!(end, Err(LaneError::Header(_))), "{end:?}");
    }
}

/// A flood stays in the socket: frames that nobody asked for take no memory of this process but the pool's,
/// and that ends the lane. Another lane of the same acceptor goes on.
#[tokio::test]
async fn a_flood_ends_its_own_lane() {
    let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 20));
    let mut acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let mut socket = TcpStream::connect(&address).await.unwrap();
    let mut flooded = acceptor.accept().await.unwrap().connection.control;
    let friend = plain();
    let (friend, served) = tokio::join!(friend.dial(&address), acceptor.accept());
    let (mut friend, mut served) = (friend.unwrap(), served.unwrap().connection.control);

    let flood = async {
        let one = written_out(1, &payload(1, 16_000), true);
        while socket.write_all(&one).await.is_ok() {}
    };
    let held = async {
        // Kept, as by an application that is behind: nothing is released.
        let mut frames = Vec::new();
        let end = loop {
            match receive(&mut *flooded.receiver).await {
                Ok(frame) => frames.push(frame),
                Err(end) => break end,
            }
        };
        assert!(matches!(end, LaneError::NoRoom(16_000)), "{end}");
        assert!(frames.len() <= 64, "{} frames of 16 KiB in a pool of 1 MiB", frames.len());
        drop((frames, flooded));
    };
    tokio::join!(flood, held);

    let pool = Pool::new(1 << 20);
    send(&mut *friend.control.sender, &mut Outbox::from([frame(&pool, 5, 100)])).await.unwrap();
    let frame = receive(&mut *served.receiver).await.unwrap().unwrap();
    assert_eq!(contents(&frame), (5, payload(5, 100)));
}

/// What a person may get wrong, each said in words with the address.
#[tokio::test]
async fn addresses_that_cannot_be_used_are_explained() {
    let carrier = plain();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let in_use = carrier.listen(&at).await.err().unwrap();
    assert!(matches!(&in_use, ConnectError::InUse { address } if *address == at), "{in_use}");
    drop(taken);

    let refused = carrier.dial(&at).await.err().unwrap().to_string();
    assert!(refused.contains(&at) && refused.contains("nobody listens"), "{refused}");

    for (address, expected) in [
        ("127.0.0.1", "no port"),
        ("host:port", "no port from 0"),
        (":7000", "no host"),
        ("::1:7000", "brackets"),
        ("192.0.2.1:7000", "--insecure-anywhere"),
    ] {
        let why = carrier.dial(address).await.err().unwrap().to_string();
        assert!(why.contains(expected) && why.contains(address), "{why}");
    }
    let why = carrier.listen("0.0.0.0:0").await.err().unwrap().to_string();
    assert!(why.contains("--insecure "), "{why}");
    let anywhere = TcpCarrier::new(Protection::Plaintext(Plaintext::Anywhere), Pool::new(1 << 30));
    let mut acceptor = anywhere.listen("0.0.0.0:0").await.unwrap();
    let address = acceptor.address();
    let (dialled, arrived) = tokio::join!(anywhere.dial(&address), acceptor.accept());
    both_ways(dialled.unwrap().control, arrived.unwrap().connection.control).await;

    let why = carrier.dial("no-such-host.invalid:7000").await.err().unwrap();
    assert!(matches!(&why, ConnectError::Resolve { name, .. } if name == "no-such-host.invalid"), "{why}");
}
