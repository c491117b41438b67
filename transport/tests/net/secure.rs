//! TLS and QUIC between two ends in this process.

use phalanx_transport::Lane;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::quic::{QuicAcceptor, QuicCarrier};
use phalanx_transport::carrier::tcp::{Protection, TcpCarrier};
use phalanx_transport::carrier::{
    Acceptor, Carrier, ConnectError, LaneEnds, LaneError, OtherLanes, Outbox, Vouched,
};
use phalanx_transport::security::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::cluster;
use crate::reference::{contents, frame, payload};
use crate::tcp::{both_ways, receive, send};

fn tcp(tls: &Tls) -> TcpCarrier {
    TcpCarrier::new(Protection::Tls(tls.clone()), Pool::new(1 << 30))
}

fn quic(tls: &Tls) -> QuicCarrier {
    QuicCarrier::new(tls.clone(), Pool::new(1 << 30))
}

/// One lane over QUIC; the first frame makes it arrive.
pub(crate) async fn quic_lane(
    dialler: &mut OtherLanes,
    port: Option<u16>,
    acceptor: &mut QuicAcceptor,
) -> (LaneEnds, LaneEnds) {
    let OtherLanes::Dialled(dialler) = dialler else { panic!("QUIC dials its lanes") };
    let pool = Pool::new(1 << 20);
    let dial = async {
        let mut lane = dialler.dial(Lane::Data, port).await.unwrap();
        send(&mut *lane.sender, &mut Outbox::from([frame(&pool, 99, 10)])).await.unwrap();
        lane
    };
    let (dialled, arrived) = tokio::join!(dial, acceptor.accept());
    let arrived = arrived.unwrap();
    assert!(arrived.lane_only, "nothing else comes over UDP");
    assert!(matches!(&arrived.connection.peer, Vouched::Certificate(peer) if peer.name == "one"));
    let mut arrived = arrived.connection.control;
    let first = receive(&mut *arrived.receiver).await.unwrap().unwrap();
    assert_eq!(contents(&first), (99, payload(99, 10)));
    (dialled, arrived)
}

#[tokio::test]
async fn both_ends_know_whose_certificate_it_was() {
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = tcp(&two).listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let carrier = tcp(&one);
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let (dialled, arrived) = (dialled.unwrap(), arrived.unwrap().connection);
    assert_eq!(dialled.peer, Vouched::Certificate(two.peer()));
    assert_eq!(arrived.peer, Vouched::Certificate(one.peer()));
    both_ways(dialled.control, arrived.control).await;
}

/// QUIC carries the same, and its lanes arrive at the ports that the control lane tells.
#[tokio::test]
async fn frames_go_over_quic() {
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = quic(&two).listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let carrier = quic(&one);
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let (mut dialled, arrived) = (dialled.unwrap(), arrived.unwrap().connection);
    let OtherLanes::Awaited { data: Some(data), weights: Some(weights) } = arrived.lanes else {
        panic!("it has ports of its own for the lanes")
    };
    assert_ne!(data, weights);
    let (near, far) = quic_lane(&mut dialled.lanes, Some(data), &mut acceptor).await;
    both_ways(near, far).await;
    both_ways(dialled.control, arrived.control).await;
}

/// A lane that is dropped was not ended in order, and the other end is told so at once.
#[tokio::test]
async fn a_dropped_quic_lane_is_an_error_at_once() {
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = quic(&two).listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let carrier = quic(&one);
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let OtherLanes::Awaited { data, .. } = arrived.unwrap().connection.lanes else { panic!("awaited") };
    let (near, mut far) = quic_lane(&mut dialled.unwrap().lanes, data, &mut acceptor).await;
    drop(near);
    let end = receive(&mut *far.receiver).await;
    assert!(matches!(end, Err(LaneError::Cut(_))), "{end:?}");
}

/// Refused at the end that dials, in words; the acceptor goes on.
#[tokio::test]
async fn another_cluster_is_refused() {
    let [stranger] = cluster(["one"]);
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = tcp(&two).listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let carriers = (tcp(&stranger), tcp(&one));
    let dials = async {
        let refused = carriers.0.dial(&address).await.err().expect("it is of another cluster");
        assert!(matches!(refused, ConnectError::Security { .. }), "{refused}");
        assert!(refused.to_string().starts_with(&address), "{refused}");
        carriers.1.dial(&address).await.unwrap()
    };
    let (_, arrived) = tokio::join!(dials, acceptor.accept());
    assert_eq!(arrived.unwrap().connection.peer, Vouched::Certificate(one.peer()));
    assert_eq!(acceptor.failed(), 1);
}

/// Peers that say nothing, or a byte, hold only their own places. When all are taken, the oldest loses its own
/// and is counted, and a good peer is served all the same.
#[tokio::test]
async fn a_slow_peer_delays_nobody() {
    use phalanx_transport::carrier::tcp::accept::HANDSHAKES_MAX;
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = tcp(&two).listen("127.0.0.1:0").await.unwrap();
    let address = acceptor.address();
    let come = async {
        let mut slow = Vec::new();
        for _ in 0..HANDSHAKES_MAX - 1 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(&[22]).await.unwrap();
            slow.push(stream);
        }
        slow
    };
    // They are accepted while they come: the host keeps only so many for a listener that does not.
    let mut slow = tokio::select! {
        slow = come => slow,
        _ = acceptor.accept() => panic!("none of them is a peer"),
    };
    let carrier = tcp(&one);
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let (dialled, arrived) = (dialled.unwrap(), arrived.unwrap());
    assert_eq!(acceptor.dropped(), 0);

    // One more takes the last place.
    let last = TcpStream::connect(&address).await.unwrap();
    let (second, arrived_second) = tokio::join!(carrier.dial(&address), acceptor.accept());
    both_ways(second.unwrap().control, arrived_second.unwrap().connection.control).await;
    assert_eq!(acceptor.dropped(), 1);
    let oldest = &mut slow[0];
    assert!(matches!(oldest.read_u8().await, Err(why) if why.kind() != std::io::ErrorKind::TimedOut));
    drop((slow, last));
    both_ways(dialled.control, arrived.connection.control).await;
}

/// TCP that just ends says nothing of the TLS inside: that is no orderly end.
#[tokio::test]
async fn a_cut_below_tls_is_no_end() {
    let [one, two] = cluster(["one", "two"]);
    let mut acceptor = tcp(&two).listen("127.0.0.1:0").await.unwrap();
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = (between.local_addr().unwrap().to_string(), acceptor.address());
    let (cut, told_to_cut) = tokio::sync::oneshot::channel();
    let forward = async {
        let (mut near, _) = between.accept().await.unwrap();
        let mut far = TcpStream::connect(far).await.unwrap();
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut near, &mut far) => panic!("an end left: {copied:?}"),
            told = told_to_cut => told.unwrap(),
        }
    };
    let carrier = tcp(&one);
    let session = async {
        let (dialled, arrived) = tokio::join!(carrier.dial(&near), acceptor.accept());
        let (_dialled, mut arrived) = (dialled.unwrap(), arrived.unwrap().connection.control);
        cut.send(()).unwrap();
        let end = receive(&mut *arrived.receiver).await;
        assert!(matches!(end, Err(LaneError::Cut(_))), "{end:?}");
    };
    tokio::join!(forward, session);
}
