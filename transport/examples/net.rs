//! What the network carriers cost beside bare programs of the same kind.
//!
//! Two threads, each with a runtime of its own, one echoing or swallowing what the other sends. Windows of
//! a few milliseconds alternate between all contestants and the best of each is taken, so what else the
//! machine does falls out; only the ratios mean something.
//!
//! `cargo run --release -p phalanx-transport --example net [ROUNDS] [CONTESTANT...]`

use std::future::poll_fn;
use std::time::{Duration, Instant};

use phalanx_transport::Frame;
use phalanx_transport::Lane;
use phalanx_transport::buffer::{Payload, Pool};
use phalanx_transport::carrier::quic::{QuicCarrier, settings};
use phalanx_transport::carrier::stream::{StreamReceiver, StreamSender, descriptor};
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier, LaneEnds, LaneSettings, OtherLanes, Outbox};
use phalanx_transport::security::{Authority, Issuance, Role, Tls, Utc};
use phalanx_transport::wire::{Header, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const CONTESTANTS: [&str; 7] = ["raw-tcp", "tcp", "tcp-unchecked", "raw-tls", "tls", "raw-quic", "quic"];
const POOL_BYTES: u64 = 1 << 30;

enum End {
    Raw(TcpStream),
    RawTls(Box<tokio_rustls::TlsStream<TcpStream>>),
    RawQuic(quinn::SendStream, quinn::RecvStream),
    Lane(LaneEnds),
}

struct Peer {
    end: End,
    pool: Pool,
    buffer: Vec<u8>,
    outbox: Outbox,
    last: Option<Payload>,
}

impl Peer {
    fn new(end: End) -> Self {
        let mut peer = Self {
            end,
            pool: Pool::new(POOL_BYTES),
            buffer: vec![1; 4 << 20],
            outbox: Outbox::with_capacity(64),
            last: None,
        };
        if let End::Lane(lane) = &mut peer.end {
            lane.receiver.raise(16 << 20);
        }
        peer
    }

    async fn send(&mut self, bytes: usize) {
        match &mut self.end {
            End::Raw(stream) => stream.write_all(&self.buffer[..bytes]).await.expect("send"),
            End::RawQuic(stream, _) => stream.write_all(&self.buffer[..bytes]).await.expect("send"),
            End::RawTls(stream) => {
                stream.write_all(&self.buffer[..bytes]).await.expect("send");
                stream.flush().await.expect("send");
            }
            End::Lane(lane) => {
                // As a resend or an echo would: memory that is there already.
                let payload = match &self.last {
                    Some(payload) if payload.len() == bytes => payload.clone(),
                    _ => self.pool.copy_of(&self.buffer[..bytes]).expect("room").into(),
                };
                self.last = Some(payload.clone());
                self.outbox.push_back(Frame::new(Header::of_bytes(Kind::Weights, 1, bytes as u32), payload));
                poll_fn(|context| lane.sender.poll_send(context, &mut self.outbox)).await.expect("send");
            }
        }
    }

    async fn receive(&mut self, bytes: usize) {
        match &mut self.end {
            End::Raw(stream) => {
                stream.read_exact(&mut self.buffer[..bytes]).await.expect("receive");
            }
            End::RawQuic(_, stream) => {
                stream.read_exact(&mut self.buffer[..bytes]).await.expect("receive");
            }
            End::RawTls(stream) => {
                stream.read_exact(&mut self.buffer[..bytes]).await.expect("receive");
            }
            End::Lane(lane) => {
                let frame = poll_fn(|context| lane.receiver.poll_receive(context))
                    .await
                    .expect("receive")
                    .expect("frame");
                assert_eq!(frame.payload.len(), bytes);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Job {
    Echo { contestant: usize, bytes: usize, count: usize },
    Swallow { contestant: usize, bytes: usize, count: usize },
}

fn unchecked(stream: TcpStream, checksum: bool) -> End {
    stream.set_nodelay(true).expect("option");
    let (source, sink) = descriptor::halves(stream);
    End::Lane(LaneEnds {
        sender: Box::new(StreamSender::new(sink, checksum)),
        receiver: Box::new(StreamReceiver::new(
            source,
            LaneSettings { pool: Pool::new(POOL_BYTES), checksum },
        )),
    })
}

/// Credentials of a cluster that lives as long as the program.
fn tls() -> Tls {
    static TLS: std::sync::LazyLock<Tls> = std::sync::LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("phalanx-example-{}", std::process::id()));
        let authority = Authority::create(&folder, Utc::now()).expect("an authority");
        let what =
            Issuance { name: "example", role: Role::Node, life: Duration::from_secs(3_600), replace: false };
        let tls = Tls::new(authority.issue(what, Utc::now()).expect("credentials")).expect("tls");
        std::fs::remove_dir_all(&folder).expect("it was made above");
        tls
    });
    TLS.clone()
}

fn tls_carrier() -> TcpCarrier {
    TcpCarrier::new(Protection::Tls(tls()), Pool::new(POOL_BYTES))
}

fn carrier() -> TcpCarrier {
    TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(POOL_BYTES))
}

async fn accept(name: &str, address: &mpsc::UnboundedSender<String>) -> End {
    match name {
        "raw-tcp" | "tcp-unchecked" => {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
            address.send(listener.local_addr().expect("address").to_string()).expect("client");
            let stream = listener.accept().await.expect("accept").0;
            stream.set_nodelay(true).expect("option");
            if name == "raw-tcp" { End::Raw(stream) } else { unchecked(stream, false) }
        }
        "raw-tls" => {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
            address.send(listener.local_addr().expect("address").to_string()).expect("client");
            let stream = listener.accept().await.expect("accept").0;
            stream.set_nodelay(true).expect("option");
            let acceptor = tokio_rustls::TlsAcceptor::from(tls().server_config());
            End::RawTls(Box::new(acceptor.accept(stream).await.expect("handshake").into()))
        }
        "tcp" | "tls" => {
            let carrier = if name == "tcp" { carrier() } else { tls_carrier() };
            let mut acceptor = carrier.listen("127.0.0.1:0").await.expect("listen");
            address.send(acceptor.address()).expect("client");
            End::Lane(acceptor.accept().await.expect("accept").connection.control)
        }
        "raw-quic" => {
            let any = "127.0.0.1:0".parse().expect("an address");
            let mut config = tls().quic_server();
            config.transport_config(std::sync::Arc::new(settings::transport(settings::Path::of_mtu(65_536))));
            let endpoint = settings::endpoint_at(any, config).expect("listen");
            address.send(endpoint.local_addr().expect("address").to_string()).expect("client");
            let connection = endpoint.accept().await.expect("a peer").await.expect("handshake");
            let (sink, source) = connection.accept_bi().await.expect("stream");
            End::RawQuic(sink, source)
        }
        "quic" => {
            let mut acceptor =
                QuicCarrier::new(tls(), Pool::new(POOL_BYTES)).listen("127.0.0.1:0").await.expect("listen");
            address.send(acceptor.address()).expect("client");
            let control = acceptor.accept().await.expect("accept").connection;
            let OtherLanes::Awaited { data: Some(port), .. } = control.lanes else { panic!("no port") };
            address.send(port.to_string()).expect("client");
            End::Lane(acceptor.accept().await.expect("accept").connection.control)
        }
        other => panic!("no contestant {other}"),
    }
}

async fn connect(name: &str, address: &str, more: &mut mpsc::UnboundedReceiver<String>) -> End {
    match name {
        "raw-tcp" | "tcp-unchecked" => {
            let stream = TcpStream::connect(address).await.expect("connect");
            stream.set_nodelay(true).expect("option");
            if name == "raw-tcp" { End::Raw(stream) } else { unchecked(stream, false) }
        }
        "raw-tls" => {
            let stream = TcpStream::connect(address).await.expect("connect");
            stream.set_nodelay(true).expect("option");
            let connector = tokio_rustls::TlsConnector::from(tls().client_config());
            let name = rustls::pki_types::ServerName::try_from("peer.phalanx").expect("a name");
            End::RawTls(Box::new(connector.connect(name, stream).await.expect("handshake").into()))
        }
        "raw-quic" => {
            let at = address.parse().expect("an address");
            let endpoint = settings::endpoint_towards(at).expect("endpoint");
            let mut config = tls().quic_client();
            config.transport_config(std::sync::Arc::new(settings::transport(settings::path_to(at))));
            let connecting = endpoint.connect_with(config, at, "peer.phalanx").expect("connect");
            let (sink, source) = connecting.await.expect("handshake").open_bi().await.expect("stream");
            End::RawQuic(sink, source)
        }
        "quic" => {
            let control =
                QuicCarrier::new(tls(), Pool::new(POOL_BYTES)).dial(address).await.expect("connect");
            let port = more.recv().await.expect("server").parse().expect("a port");
            let OtherLanes::Dialled(mut dialler) = control.lanes else { panic!("no lanes to dial") };
            End::Lane(dialler.dial(Lane::Data, Some(port)).await.expect("lane"))
        }
        "tls" => End::Lane(tls_carrier().dial(address).await.expect("connect").control),
        "tcp" => End::Lane(carrier().dial(address).await.expect("connect").control),
        other => panic!("no contestant {other}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn serve(
    names: &[String],
    addresses: &mpsc::UnboundedSender<String>,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) {
    runtime().block_on(async {
        let mut peers = Vec::new();
        for name in names {
            let mut peer = Peer::new(accept(name, addresses).await);
            peer.receive(64).await;
            peers.push(peer);
        }
        while let Some(job) = jobs.recv().await {
            match job {
                Job::Echo { contestant, bytes, count } => {
                    for _ in 0..count {
                        peers[contestant].receive(bytes).await;
                        peers[contestant].send(bytes).await;
                    }
                }
                Job::Swallow { contestant, bytes, count } => {
                    for _ in 0..count {
                        peers[contestant].receive(bytes).await;
                    }
                    peers[contestant].send(64).await;
                }
            }
        }
    });
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(100, |rounds| rounds.parse().expect("a number of rounds"));
    let mut names: Vec<String> = arguments.collect();
    if names.is_empty() {
        names = CONTESTANTS.map(String::from).to_vec();
    }
    let (address_to, mut addresses) = mpsc::unbounded_channel();
    let (jobs, jobs_from) = mpsc::unbounded_channel();
    let server = std::thread::spawn({
        let names = names.clone();
        move || serve(&names, &address_to, jobs_from)
    });
    runtime().block_on(async {
        let mut peers = Vec::new();
        for name in &names {
            let address = addresses.recv().await.expect("server");
            let mut peer = Peer::new(connect(name, &address, &mut addresses).await);
            peer.send(64).await;
            peers.push(peer);
        }
        for (bytes, count) in [(64, 100), (14_336, 60), (1 << 20, 4)] {
            let mut best = vec![Duration::MAX; names.len()];
            for _ in 0..rounds {
                for (contestant, peer) in peers.iter_mut().enumerate() {
                    jobs.send(Job::Echo { contestant, bytes, count }).expect("server");
                    let start = Instant::now();
                    for _ in 0..count {
                        peer.send(bytes).await;
                        peer.receive(bytes).await;
                    }
                    best[contestant] = best[contestant].min(start.elapsed() / count as u32);
                }
            }
            for (name, time) in names.iter().zip(&best) {
                let ratio = time.as_secs_f64() / best[0].as_secs_f64();
                println!(
                    "{name:>16} round trip {bytes:>8} B {:>9.2} us  {ratio:.3}",
                    time.as_secs_f64() * 1e6
                );
            }
        }
        for (bytes, count) in [(14_336, 600), (1 << 20, 16)] {
            let mut best = vec![Duration::MAX; names.len()];
            for _ in 0..rounds {
                for (contestant, peer) in peers.iter_mut().enumerate() {
                    jobs.send(Job::Swallow { contestant, bytes, count }).expect("server");
                    let start = Instant::now();
                    for _ in 0..count {
                        peer.send(bytes).await;
                    }
                    peer.receive(64).await;
                    best[contestant] = best[contestant].min(start.elapsed());
                }
            }
            for (name, time) in names.iter().zip(&best) {
                let ratio = best[0].as_secs_f64() / time.as_secs_f64();
                let rate = (bytes * count) as f64 / time.as_secs_f64() / 1e9;
                println!("{name:>16} one way    {bytes:>8} B {rate:>9.2} GB/s {ratio:.3}");
            }
        }
    });
    drop(jobs);
    server.join().expect("server");
}
