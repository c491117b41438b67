//! What a frame costs in allocations, counted on the thread that runs both ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::IoSlice;

use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::quic::{QuicCarrier, settings};
use phalanx_transport::carrier::tcp::{Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier, LaneEnds, OtherLanes, Outbox};
use phalanx_transport::security::Tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::cluster;
use crate::reference::frame;
use crate::secure::quic_lane;
use crate::tcp::{pair, plain};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's; counting touches a plain cell of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ROUNDS: u64 = 200;

/// Allocations of so many frames, one after the other across, after as many to warm up.
async fn of_lane(near: &mut LaneEnds, far: &mut LaneEnds, bytes: usize) -> u64 {
    let pool = Pool::new(64 << 20);
    far.receiver.raise(16 << 20);
    // A sender has its payload already; clones are the same memory.
    let made = frame(&pool, 1, bytes);
    let mut outbox = Outbox::with_capacity(4);
    let mut before = 0;
    for round in 0..2 * ROUNDS {
        if round == ROUNDS {
            before = COUNT.get();
        }
        outbox.push_back(phalanx_transport::Frame::new(made.header, made.payload.clone()));
        let sends = poll_fn(|context| near.sender.poll_send(context, &mut outbox));
        let receives = poll_fn(|context| far.receiver.poll_receive(context));
        let (sent, received) = tokio::join!(sends, receives);
        sent.unwrap();
        assert_eq!(received.unwrap().unwrap().payload.len(), bytes);
    }
    COUNT.get() - before
}

/// The same of a bare program that has a header and a payload to send: with one vectored write where the
/// library has that, else in one piece.
async fn of_bare(
    near: &mut (impl AsyncWrite + Unpin),
    far: &mut (impl AsyncRead + Unpin),
    bytes: usize,
) -> u64 {
    let (message, mut place) = (vec![1; 64 + bytes], vec![0; 64 + bytes]);
    let mut before = 0;
    for round in 0..2 * ROUNDS {
        if round == ROUNDS {
            before = COUNT.get();
        }
        let sends = async {
            let mut at = 0;
            while at < message.len() {
                let (header, payload) = (&message[at.min(64)..64], &message[at.max(64)..]);
                at += match near.is_write_vectored() {
                    true => {
                        near.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)]).await.unwrap()
                    }
                    false => near.write(&message[at..]).await.unwrap(),
                };
            }
            near.flush().await.unwrap();
        };
        tokio::join!(sends, far.read_exact(&mut place)).1.unwrap();
    }
    COUNT.get() - before
}

#[tokio::test]
async fn a_frame_over_tcp_costs_no_allocation() {
    let (mut dialled, mut arrived) = pair(&plain()).await;
    for bytes in [0, 64, 14_336, 1 << 20] {
        let count = of_lane(&mut dialled.control, &mut arrived.control, bytes).await;
        assert_eq!(count, 0, "for {ROUNDS} frames of {bytes} bytes");
    }
}

#[tokio::test]
async fn a_frame_over_tls_costs_no_more_than_tokio_rustls() {
    let [one, two] = cluster(["one", "two"]);
    let tcp = |tls: &Tls| TcpCarrier::new(Protection::Tls(tls.clone()), Pool::new(1 << 30));
    let mut acceptor = tcp(&two).listen("127.0.0.1:0").await.unwrap();
    let (address, carrier) = (acceptor.address(), tcp(&one));
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let (mut near, mut far) = (dialled.unwrap().control, arrived.unwrap().connection.control);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let connector = tokio_rustls::TlsConnector::from(one.client_config());
    let bare_acceptor = tokio_rustls::TlsAcceptor::from(two.server_config());
    let name = rustls::pki_types::ServerName::try_from("peer.phalanx").unwrap();
    let (mut bare_near, mut bare_far) = tokio::join!(
        async { connector.connect(name, TcpStream::connect(at).await.unwrap()).await.unwrap() },
        async { bare_acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() },
    );
    for bytes in [64, 14_336, 1 << 20] {
        let ours = of_lane(&mut near, &mut far, bytes).await;
        let bare = of_bare(&mut bare_near, &mut bare_far, bytes).await;
        println!("tls {bytes}: {ours} allocations, bare {bare}");
        assert!(ours <= bare, "{ours} allocations for {ROUNDS} frames of {bytes} bytes, bare {bare}");
    }
}

#[tokio::test]
async fn a_frame_over_quic_costs_no_more_than_quinn() {
    let [one, two] = cluster(["one", "two"]);
    let quic = |tls: &Tls| QuicCarrier::new(tls.clone(), Pool::new(1 << 30));
    let mut acceptor = quic(&two).listen("127.0.0.1:0").await.unwrap();
    let (address, carrier) = (acceptor.address(), quic(&one));
    let (dialled, arrived) = tokio::join!(carrier.dial(&address), acceptor.accept());
    let (mut dialled, arrived) = (dialled.unwrap(), arrived.unwrap());
    let OtherLanes::Awaited { data, .. } = arrived.connection.lanes else { panic!("awaited") };
    let (mut near, mut far) = quic_lane(&mut dialled.lanes, data, &mut acceptor).await;

    let transport = || std::sync::Arc::new(settings::transport(settings::Path::of_mtu(65_536)));
    let mut server = two.quic_server();
    server.transport_config(transport());
    let there = settings::endpoint_at("127.0.0.1:0".parse().unwrap(), server).unwrap();
    let at = there.local_addr().unwrap();
    let here = settings::endpoint_towards(at).unwrap();
    let mut client = one.quic_client();
    client.transport_config(transport());
    let (bare, bare_arrived) = tokio::join!(
        async { here.connect_with(client, at, "peer.phalanx").unwrap().await.unwrap() },
        async { there.accept().await.unwrap().await.unwrap() },
    );
    let (mut bare_near, _) = bare.open_bi().await.unwrap();
    bare_near.write_all(b"first").await.unwrap();
    let (_, mut bare_far) = bare_arrived.accept_bi().await.unwrap();
    bare_far.read_exact(&mut [0; 5]).await.unwrap();
    for bytes in [64, 14_336, 1 << 20] {
        let ours = of_lane(&mut near, &mut far, bytes).await;
        let bare = of_bare(&mut bare_near, &mut bare_far, bytes).await;
        println!("quic {bytes}: {ours} allocations, bare {bare}");
        // How datagrams fall varies from run to run, in both.
        assert!(
            ours <= bare + bare / 10 + ROUNDS / 10,
            "{ours} allocations for {ROUNDS} frames of {bytes} bytes, bare {bare}"
        );
    }
}
