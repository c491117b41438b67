//! A real cluster of processes: `phalanx serve --nodes` and `phalanx-node`s, over each carrier that joins processes.
//! Its answers are those of `phalanx generate` in one process, token by token, while nodes come and are killed.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

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

/// The node's program lies beside the one under test.
fn node_program() -> PathBuf {
    let program = Path::new(PHALANX).with_file_name("phalanx-node");
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
    _process: Running,
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
        Self { _process: process, nodes, url }
    }

    fn node(&self, name: &str, arguments: &[&str]) -> Running {
        let mut command = Command::new(node_program());
        command.args(["--coordinator", &self.nodes, "--devices", "40", "--memory", "64M", "--threads", "1"]);
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
