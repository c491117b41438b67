//! Ten thousand connections to the real program: idle ones, half-written ones, and some whose clients have vanished. Whoever asks
//! meanwhile is answered as ever, and what they held comes back.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod program;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Nothing here takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const CONNECTIONS: usize = 10_000;
/// Beside connections: files, pipes, the runtime.
const OTHERS: u64 = 500;
/// So many connections of one address of this machine: then the ports of one are not used up.
const OF_ONE_ADDRESS: usize = 2_500;
/// So many are opened, then those are waited for.
const AT_ONCE: usize = 500;
/// How often all are opened until all are there at once.
const TRIES: usize = 3;
/// What one of them may cost, and what an allocator may keep of it when it has gone.
const CONNECTION_BYTES: u64 = 32 << 10;

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = program::command(&["serve", "--http", "127.0.0.1:0"]);
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let serving = lines.find(|line| line.as_ref().unwrap().starts_with("serving ")).unwrap().unwrap();
        let address = serving.rsplit("http://").next().unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Bytes that it holds in memory.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() << 10
    }

    async fn connect(&self, number: usize) -> TcpStream {
        let from = format!("127.0.0.{}:0", 2 + number / OF_ONE_ADDRESS);
        let until = Instant::now() + PATIENCE;
        loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(from.parse().unwrap()).unwrap();
            match socket.connect(self.address.parse().unwrap()).await {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    async fn ask(&self, what: &str, body: &Value) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{what} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until it serves.
    async fn ready(&self) {
        let until = Instant::now() + PATIENCE;
        while !is_well(&self.ask("GET /ready", &Value::Null).await) {
            assert!(Instant::now() < until, "it is never ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The texts of a stream, one after the other.
    async fn stream(&self) -> String {
        let body = json!({"prompt": "sort 7315=", "max_tokens": 60, "temperature": 1, "seed": 5, "ignore_eos": true,
            "stream": true});
        let answer = self.ask("POST /v1/completions", &body).await;
        assert!(is_well(&answer), "{answer}");
        let events =
            answer.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let text = |data: &str| {
            let chunk: Value = serde_json::from_str(data).unwrap();
            chunk["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        events.map(text).collect()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}: {} descriptors", self.descriptors());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_well(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200")
}

/// Lets this process have as many descriptors as it may; says whether that is enough.
fn raise_limit() -> bool {
    let limit = getrlimit(Resource::Nofile);
    let enough = CONNECTIONS as u64 + OTHERS;
    if limit.maximum.is_some_and(|maximum| maximum < enough) {
        println!("SKIPPED: {:?} descriptors are allowed here, {enough} are needed", limit.maximum);
        return false;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    true
}

/// Opens all of them: a third says nothing, two thirds half a request. The server closes them after 15 s: where that is too soon for
/// all to be there at once they are opened anew, a few times.
async fn open_all(server: &Server, before: usize) -> Option<Vec<TcpStream>> {
    let half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Ty";
    for _ in 0..TRIES {
        let mut open = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let mut stream = server.connect(number).await;
            if number % 3 > 0 {
                // One that was closed for being late is as good.
                let _ = stream.write_all(half).await;
            }
            open.push(stream);
            // More than so many that were not accepted yet, and the system has them come again a second later.
            if open.len().is_multiple_of(AT_ONCE) {
                let caught_up = |server: &Server| server.descriptors() + AT_ONCE / 2 >= before + open.len();
                let until = Instant::now() + Duration::from_secs(1);
                while !caught_up(server) && Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if server.descriptors() >= before + CONNECTIONS {
                return Some(open);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    None
}

#[test]
fn ten_thousand_connections_harm_nobody_and_leave_nothing() {
    if !raise_limit() {
        return;
    }
    let server = Server::start(&["--embedded", "2"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        server.ready().await;
        let expected = server.stream().await;
        assert!(!expected.is_empty());
        let (descriptors, resident) = (server.descriptors(), server.resident());
        let mut after = Vec::new();
        for round in 0..2 {
            let Some(mut open) = open_all(&server, descriptors).await else {
                println!("SKIPPED: this machine is too busy to open {CONNECTIONS} connections before the first are late");
                return;
            };
            let crowded = server.resident();
            let (streamed, health) = tokio::join!(server.stream(), server.ask("GET /health", &Value::Null));
            assert_eq!(streamed, expected, "round {round}");
            assert!(is_well(&health), "{health}");
            // Some vanish without a word.
            for stream in open.drain(..).step_by(3) {
                set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
            drop(open);
            server.until("what they held comes back", |server| server.descriptors() <= descriptors + 8).await;
            assert_eq!(server.stream().await, expected, "round {round}, alone again");
            println!(
                "round {round}: {} MiB before, {} with {CONNECTIONS} connections, {} after",
                resident >> 20,
                crowded >> 20,
                server.resident() >> 20
            );
            let most = CONNECTIONS as u64 * CONNECTION_BYTES;
            assert!(crowded < resident + most, "{crowded} of {resident} bytes");
            after.push(server.resident());
        }
        // An allocator keeps what was used once, and in pieces, so that a few rounds go by before it needs no more; whatever leaks
        // grows by as much each time.
        let (first, second) = (after[0].saturating_sub(resident), after[1].saturating_sub(after[0]));
        assert!(4 * second < 3 * first + (16 << 20), "it grows with every round: {after:?} of {resident}");
    });
}

/// A thousand answers that wait, or that nobody reads: what they cost is measured by the program's own command.
#[test]
fn a_thousand_idle_streams_are_cheap() {
    if !raise_limit() {
        return;
    }
    let out = program::phalanx(&[
        "bench",
        "serve",
        "--model",
        concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model"),
        "--idle-streams",
        "1000",
        "--json",
    ]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let idle = &found["idle_streams"];
    assert_eq!(idle["streams"], 1000, "{found}");
    assert!(idle["grown_bytes"].as_u64().unwrap() < 64 << 20, "{idle}");
}
