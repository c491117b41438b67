//! A real cluster of processes: `phalanx serve --nodes` or `phalanx-coordinator`, and `phalanx-node`s, over each carrier
//! that joins processes.
//! Its answers are those of `phalanx generate` in one process, token by token, while nodes come and are killed.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use transport::wire::control::{Control, PROTOCOL, Refusal};
use transport::wire::crc::crc32c;
use transport::wire::{HEADER_BYTES, Header, Kind, codec};

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");
/// Nothing here takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Prompts, each with options that `generate` takes alone and as a client alike.
const QUESTIONS: [&[&str]; 4] = [
    &["--prompt", "<|user|>sort 4921=<|assistant|>", "--max-tokens", "24"],
    &["--tokens", "5,17,3,200,81,9,77,31,4,4,8,120", "--max-tokens", "40", "--ignore-eos"],
    &["--prompt", "rev abcde=", "--max-tokens", "32", "--temperature", "0.9", "--seed", "7", "--ignore-eos"],
    &["--prompt", "day Fri+3=", "--max-tokens", "9", "--top-logprobs", "3"],
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The other programs lie beside the one under test.
fn program(name: &str) -> PathBuf {
    let program = Path::new(PHALANX).with_file_name(name);
    assert!(program.exists(), "build the workspace: {} is missing", program.display());
    program
}

/// A process that ends with the test.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self { child: command.stdin(Stdio::null()).spawn().unwrap() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&mut self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn ends(&mut self) -> Option<i32> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(since.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of this test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("phalanx-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A coordinator with an API.
struct Coordinator {
    process: Running,
    /// Where nodes come.
    nodes: String,
    url: String,
}

impl Coordinator {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(PHALANX);
        command.args(["serve", "--http", "127.0.0.1:0"]).args(arguments);
        let mut process = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let mut lines = BufReader::new(process.child.stdout.take().unwrap()).lines();
        let mut said = |begins: &str| {
            let line = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with(begins));
            let line = line.unwrap_or_else(|| panic!("it never said {begins:?}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let nodes =
            if arguments.contains(&"--nodes") { said("nodes are taken in at") } else { String::new() };
        let url = said("serving");
        // What it says later is read to the end, so that it is never held up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, nodes, url }
    }

    /// The same, by the program that does nothing else, told by a file; its log says where it is.
    fn of_file(folder: &Folder, settings: &str) -> Self {
        let file = folder.at("coordinator.toml");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(program("phalanx-coordinator"));
        command.args(["--config", &file, "--log", "json"]).env("PHALANX_COORDINATOR_HTTP", "127.0.0.1:0");
        let mut process = Running::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
        let mut lines = BufReader::new(process.child.stderr.take().unwrap()).lines();
        let mut said = |message: &str, field: &str| {
            let entries = lines.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
            let entry = entries.into_iter().find(|entry| entry["message"] == message);
            let entry = entry.unwrap_or_else(|| panic!("it never said {message:?}"));
            entry[field].as_str().unwrap().to_owned()
        };
        let nodes = said("nodes are taken in", "address");
        let url = format!("http://{}", said("serving", "http"));
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, nodes, url }
    }

    fn node(&self, name: &str, arguments: &[&str]) -> Running {
        self.node_of(["40", "64M"], name, arguments)
    }

    /// With so many devices of so much memory.
    fn node_of(&self, [devices, memory]: [&str; 2], name: &str, arguments: &[&str]) -> Running {
        let mut command = Command::new(program("phalanx-node"));
        command.args(["--coordinator", &self.nodes, "--devices", devices, "--memory", memory]);
        command.args(["--threads", "1"]);
        if !name.is_empty() {
            command.args(["--name", name]);
        }
        Running::start(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Waits until the state of the cluster is such.
    fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let output =
                Command::new(PHALANX).args(["status", "--json", "--cluster", &self.url]).output().unwrap();
            let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if is_so(&state) {
                return state;
            }
            assert!(since.elapsed() < PATIENCE, "not {what}: {state:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_nodes(&self, count: usize) {
        self.wait(&format!("serving by {count} nodes"), |state| {
            let joined = |node: &&Value| {
                let actors = |device: &Value| device["actors"].as_u64().unwrap_or(0);
                node["state"] == "joined"
                    && node["devices"].as_array().is_some_and(|all| all.iter().map(actors).sum::<u64>() > 0)
            };
            state["state"] == "serving"
                && state["nodes"].as_array().is_some_and(|nodes| nodes.iter().filter(joined).count() == count)
        });
    }

    /// Asks everything; each answer must be the one process's.
    fn check(&self, alone: &[Value]) {
        for (question, alone) in QUESTIONS.iter().zip(alone) {
            let answer = generate(&[question, &["--cluster", &self.url][..]].concat());
            for field in ["prompt_tokens", "tokens", "text", "finish_reason", "logprobs"] {
                assert_eq!(answer[field], alone[field], "{field} of {question:?}");
            }
        }
    }
}

fn generate(arguments: &[&str]) -> Value {
    let output = Command::new(PHALANX).args(["generate", "--json"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn alone() -> Vec<Value> {
    QUESTIONS.iter().map(|question| generate(question)).collect()
}

fn alone_in(shards: &str) -> Vec<Value> {
    QUESTIONS.iter().map(|question| generate(&[question, &["--shards", shards][..]].concat())).collect()
}

fn demo() -> String {
    root().join("demo-model").display().to_string()
}

/// Two nodes with copies of the checkpoint; one is killed, and the other takes over; a third comes.
#[test]
fn a_node_is_killed_and_the_answers_stay() {
    let alone = alone();
    let cluster = Coordinator::start(&["--nodes", "127.0.0.1:0", "--insecure"]);
    let model = demo();
    let own = ["--insecure", "--model", &model];
    let mut first = cluster.node("a", &own);
    let _second = cluster.node("b", &own);
    cluster.wait_for_nodes(2);
    cluster.check(&alone);
    first.kill();
    cluster.check(&alone);
    cluster.wait_for_nodes(1);
    let mut third = cluster.node("c", &own);
    cluster.wait_for_nodes(2);
    cluster.check(&alone);
    // A polite end gives its experts to others first.
    third.signal("-TERM");
    assert_eq!(third.ends(), Some(0));
    cluster.check(&alone);
}

/// A node without a checkpoint is given what it is to hold.
#[test]
fn weights_come_over_the_link() {
    let alone = alone();
    let folder = Folder::new("weights");
    let cluster = Coordinator::start(&["--nodes", "127.0.0.1:0", "--insecure"]);
    let data = folder.at("node");
    let mut node = cluster.node("a", &["--insecure", "--data", &data]);
    cluster.wait_for_nodes(1);
    cluster.check(&alone);
    node.kill();
    // Another life finds them on its disk.
    let _node = cluster.node("a", &["--insecure", "--data", &data]);
    cluster.wait_for_nodes(1);
    cluster.check(&alone);
}

#[test]
fn over_shared_memory() {
    let alone = alone();
    let folder = Folder::new("shm");
    let cluster = Coordinator::start(&["--nodes", &format!("shm:{}", folder.at("front.sock"))]);
    let model = demo();
    let _nodes = [cluster.node("a", &["--model", &model]), cluster.node("b", &["--model", &model])];
    cluster.wait_for_nodes(2);
    cluster.check(&alone);
}

/// With certificates, over TCP and QUIC; one node has a certificate, the other joins with a token.
#[test]
fn with_certificates_over_tcp_and_quic() {
    let alone = alone();
    let folder = Folder::new("certs");
    let authority = folder.at("authority");
    let certs = |arguments: &[&str]| {
        let output = Command::new(PHALANX).arg("certs").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    certs(&["init", &authority]);
    let issue = |role: &str, name: &str| {
        let out = folder.at(name);
        certs(&["issue", "--authority", &authority, "--role", role, "--out", &out, name]);
        out
    };
    let (front, by_hand) = (issue("coordinator", "front"), issue("node", "a"));
    let token = certs(&["token", "--authority", &authority]).trim().to_owned();
    let model = demo();
    for carrier in ["", "quic:"] {
        let address = format!("{carrier}127.0.0.1:0");
        let arguments = ["--nodes", &address, "--certs", &front, "--authority", &authority];
        let cluster = Coordinator::start(&arguments);
        let _first = cluster.node("", &["--certs", &by_hand, "--model", &model]);
        let data = folder.at(&format!("data{}", carrier.len()));
        let name = format!("b{}", carrier.len());
        let _second = cluster.node(&name, &["--token", &token, "--data", &data, "--model", &model]);
        cluster.wait_for_nodes(2);
        cluster.check(&alone);
    }
}

/// Nodes that machines start: they wait for a token in a file, come again with a new key under the same name, and show
/// whether a coordinator has them.
#[test]
fn nodes_join_by_a_token_in_a_file() {
    let alone = alone();
    let folder = Folder::new("token-file");
    let authority = folder.at("authority");
    let certs = |arguments: &[&str]| {
        assert!(Command::new(PHALANX).arg("certs").args(arguments).output().unwrap().status.success());
    };
    certs(&["init", &authority]);
    let front = folder.at("front");
    certs(&["issue", "--authority", &authority, "--role", "coordinator", "--out", &front, "front"]);
    let (kept, given, joined) = (folder.at("kept"), folder.at("given"), folder.at("joined"));
    let cluster = Coordinator::start(&[
        "--nodes",
        "127.0.0.1:0",
        "--certs",
        &front,
        "--authority",
        &authority,
        "--token-file",
        &kept,
    ]);
    let node = |data: &str| {
        let data = folder.at(data);
        cluster.node("n", &["--token-file", &given, "--joined-file", &joined, "--data", &data])
    };
    let is_there = |path: &str, wanted: bool| {
        let since = Instant::now();
        while Path::new(path).exists() != wanted {
            assert!(since.elapsed() < PATIENCE, "{path} is not as it should be");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut first = node("first");
    is_there(&kept, true);
    assert!(!Path::new(&joined).exists(), "nobody can have joined");
    std::fs::copy(&kept, &given).unwrap();
    is_there(&joined, true);
    cluster.wait_for_nodes(1);
    cluster.check(&alone);
    first.kill();
    cluster.wait("without it", |state| state["state"] == "waiting");
    let _second = node("second");
    cluster.wait_for_nodes(1);
    cluster.check(&alone);
    is_there(&joined, true);
    drop(cluster);
    is_there(&joined, false);
}

/// Shards of experts, and dense layers, on nodes of which one is sent what it holds; the other is killed.
#[test]
fn shards_and_dense_layers() {
    let alone = alone_in("3");
    let folder = Folder::new("shards");
    let options = ["--nodes", "127.0.0.1:0", "--insecure", "--shards", "3", "--dense", "device"];
    let cluster = Coordinator::start(&options);
    let (model, data) = (demo(), folder.at("node"));
    let mut own = cluster.node("a", &["--insecure", "--model", &model]);
    let _sent = cluster.node("b", &["--insecure", "--data", &data]);
    cluster.wait_for_nodes(2);
    cluster.check(&alone);
    let answer = generate(&[QUESTIONS[0], &["--cluster", &cluster.url]].concat());
    assert_eq!((&answer["shards"], &alone[0]["shards"]), (&Value::from(3), &Value::from(3)));
    own.kill();
    cluster.check(&alone);
    cluster.wait_for_nodes(1);
    let state = cluster.wait("all held", |state| state["state"] == "serving");
    // 16 experts in each of 4 sparse layers, and 3 dense layers.
    assert_eq!((&state["experts"]["held"], &state["shards"]), (&Value::from(67), &Value::from(3)));
}

/// Devices on which half an expert fits and a whole one does not; then too few of them, which is said with how much is
/// missing, and enough again.
#[test]
fn shards_fit_where_experts_do_not() {
    let cluster = Coordinator::start(&["--nodes", "127.0.0.1:0", "--insecure"]);
    let model = demo();
    let own = ["--insecure", "--model", &model];
    // An expert is 3 matrices of 128 x 128 values of two bytes: 98,304 bytes.
    let _node = cluster.node_of(["128", "60K"], "a", &own);
    cluster.wait("refused", |state| {
        says(state, "an expert of 98 kB does not fit any device, the largest offers")
    });

    let cluster = Coordinator::start(&["--nodes", "127.0.0.1:0", "--insecure", "--shards", "2"]);
    let _first = cluster.node_of(["64", "60K"], "a", &own);
    cluster.wait("refused", |state| {
        says(state, "128 shards of 49 kB need 6.3 MB, 64 devices have room for 3.1 MB")
    });
    let mut second = cluster.node_of(["64", "60K"], "b", &own);
    cluster.wait_for_nodes(2);
    let alone = alone_in("2");
    cluster.check(&alone);
    second.kill();
    cluster.wait("waiting", |state| {
        state["state"] == "waiting" && says(state, "3.1 MB short; add devices or memory")
    });
    let _third = cluster.node_of(["64", "60K"], "c", &own);
    cluster.wait_for_nodes(2);
    cluster.check(&alone);
}

fn says(state: &Value, words: &str) -> bool {
    let missing = state["missing"].as_array().map_or(&[][..], Vec::as_slice);
    missing.iter().filter_map(Value::as_str).any(|line| line.contains(words))
}

/// A node of an older protocol is told so, and nobody else hears of it.
#[test]
fn a_node_of_an_older_protocol_is_refused_in_words() {
    let cluster = Coordinator::start(&["--nodes", "127.0.0.1:0", "--insecure", "--embedded", "1"]);
    let mut stream = std::net::TcpStream::connect(&cluster.nodes).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Variant and protocol stand where they stand in every version; what follows is another version's own.
    let hello = [&0_u32.to_le_bytes()[..], &(PROTOCOL - 1).to_le_bytes(), b"whatever it was"].concat();
    let header = Header::of_bytes(Kind::Control, 0, hello.len() as u32);
    let header = Header { payload_crc: crc32c(&hello), ..header };
    stream.write_all(&[&header.write()[..], &hello].concat()).unwrap();
    let mut heard = [0; HEADER_BYTES];
    stream.read_exact(&mut heard).unwrap();
    let mut refused = vec![0; Header::read(&heard, 1 << 20).unwrap().payload_bytes() as usize];
    stream.read_exact(&mut refused).unwrap();
    let expected = Control::Refused(Refusal::Protocol { theirs: PROTOCOL - 1, ours: PROTOCOL });
    assert_eq!(codec::decode::<Control>(&refused).unwrap(), expected);
    cluster.wait_for_nodes(1);
    cluster.check(&alone());
}

/// The program for bare metal: its answers are right, and asked to end it gives those under way first.
#[test]
fn a_coordinator_of_its_own_leaves_in_order() {
    let (alone, folder) = (alone(), Folder::new("coordinator"));
    let model = demo();
    let settings = format!("model = '{model}'\nnodes = '127.0.0.1:0'\ninsecure = true\nthreads = 1");
    let mut cluster = Coordinator::of_file(&folder, &settings);
    let own = ["--insecure", "--model", &model];
    let _nodes = [cluster.node("a", &own), cluster.node("b", &own)];
    cluster.wait_for_nodes(2);
    cluster.check(&alone);

    let long = ["--tokens", "5,17,3", "--max-tokens", "400", "--ignore-eos"];
    let expected = generate(&long);
    let url = cluster.url.clone();
    let asking = std::thread::spawn(move || generate(&[&long[..], &["--cluster", &url]].concat()));
    cluster.wait("answering", |state| state["data"]["running"].as_u64() > Some(0));
    cluster.process.signal("-TERM");
    assert_eq!(asking.join().unwrap()["tokens"], expected["tokens"]);
    assert_eq!(cluster.process.ends(), Some(0));
}

/// An answer that cannot come holds the end up, until it is asked for again.
#[test]
fn asked_twice_a_coordinator_ends_at_once() {
    let folder = Folder::new("twice");
    let settings = format!("model = '{}'\nnodes = '127.0.0.1:0'\ninsecure = true", demo());
    let mut cluster = Coordinator::of_file(&folder, &settings);
    let mut node = cluster.node("a", &["--insecure", "--model", &demo()]);
    cluster.wait_for_nodes(1);
    node.kill();
    cluster.wait("without the node", |state| state["state"] == "waiting");
    let mut client = Command::new(PHALANX);
    client.args(["generate", "--tokens", "5", "--max-tokens", "4", "--cluster", &cluster.url]);
    let _client = Running::start(client.stdout(Stdio::null()).stderr(Stdio::null()));
    cluster.wait("answering", |state| state["data"]["running"].as_u64() > Some(0));
    cluster.process.signal("-TERM");
    cluster.wait("stopping", |state| state["state"] != "waiting");
    assert_eq!(cluster.process.child.try_wait().unwrap(), None, "it gives the answer its time");
    let since = Instant::now();
    cluster.process.signal("-TERM");
    assert_eq!(cluster.process.ends(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}
