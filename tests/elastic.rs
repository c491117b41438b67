//! A cluster of processes whose nodes are drained, ended and started anew, one after the other, under load: every answer is that of
//! `phalanx generate` in one process, and none is lost.
//!
//! No expert has a replica, and there is room for all of them on all nodes but one.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

const PHALANX: &str = env!("CARGO_BIN_EXE_phalanx");
/// Nothing here takes so long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);
const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// An expert of the demo model is 98,304 bytes and there are 64: three nodes of two such devices have room for all.
const DEVICE: &str = "1150K";
/// What each stream asks, again and again.
const QUESTIONS: [&[&str]; 4] = [
    &["--prompt", "<|user|>sort 4921=<|assistant|>", "--max-tokens", "60", "--ignore-eos"],
    &["--tokens", "5,17,3,200,81,9,77,31,4,4,8,120", "--max-tokens", "80", "--ignore-eos"],
    &["--prompt", "rev abcde=", "--max-tokens", "70", "--temperature", "0.9", "--seed", "7", "--ignore-eos"],
    &["--prompt", "day Fri+3=", "--max-tokens", "50", "--ignore-eos", "--top-logprobs", "3"],
];

/// The other programs lie beside the one under test.
fn program(name: &str) -> PathBuf {
    let program = Path::new(PHALANX).with_file_name(name);
    assert!(program.exists(), "build the workspace: {} is missing", program.display());
    program
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn terminate(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    fn ends(&mut self) -> Option<i32> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(since.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    _coordinator: Running,
    /// Where nodes come.
    door: String,
    url: String,
    nodes: Vec<Running>,
}

impl Cluster {
    fn start() -> Self {
        Self::start_with(&NODES)
    }

    fn start_with(names: &[&str]) -> Self {
        let mut command = Command::new(PHALANX);
        command.args([
            "serve",
            "--http",
            "127.0.0.1:0",
            "--nodes",
            "127.0.0.1:0",
            "--insecure",
            "--embedded",
            "0",
        ]);
        command.args(["--threads", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut coordinator = Running(command.spawn().unwrap());
        let mut lines = BufReader::new(coordinator.0.stdout.take().unwrap()).lines();
        let mut said = |begins: &str| {
            let line = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with(begins));
            let line = line.unwrap_or_else(|| panic!("it never said {begins:?}"));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let door = said("nodes are taken in at");
        let nodes = names.iter().map(|name| node(&door, name)).collect();
        let url = said("serving");
        std::thread::spawn(move || lines.for_each(drop));
        let cluster = Self { _coordinator: coordinator, door, url, nodes };
        let is_in = |state: &Value, name: &str| of(state, name)["state"] == "joined";
        cluster
            .wait("served by all", |state| is_settled(state) && names.iter().all(|name| is_in(state, name)));
        cluster
    }

    fn phalanx(&self, arguments: &[&str]) -> Output {
        Command::new(PHALANX).args(arguments).args(["--cluster", &self.url]).output().unwrap()
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let output = self.phalanx(&["status", "--json"]);
            let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if is_so(&state) {
                return state;
            }
            assert!(since.elapsed() < PATIENCE, "not {what}: {state:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The command, and what it says.
    fn drain(&self, arguments: &[&str]) -> String {
        let output = self.phalanx(&[&["drain"][..], arguments].concat());
        let (said, failed) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "drain {arguments:?}: {said}{failed}");
        said
    }

    /// Another life of a node that has ended.
    fn begin_anew(&mut self, number: usize) {
        self.nodes[number] = node(&self.door, NODES[number]);
    }
}

fn node_command(door: &str, name: &str) -> Command {
    let mut command = Command::new(program("phalanx-node"));
    command.args(["--coordinator", door, "--insecure", "--name", name, "--threads", "1", "--devices", "2"]);
    command.args(["--memory", DEVICE, "--leave-within", "60"]);
    command
}

/// With a checkpoint of its own.
fn node(door: &str, name: &str) -> Running {
    let mut command = node_command(door, name);
    command.arg("--model").arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo-model"));
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn of<'s>(state: &'s Value, name: &str) -> &'s Value {
    let nodes = state["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    nodes.iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

fn experts(state: &Value, name: &str) -> u64 {
    let devices = of(state, name)["devices"].as_array().map_or(&[][..], Vec::as_slice);
    devices.iter().filter_map(|device| device["actors"].as_u64()).sum()
}

fn is_settled(state: &Value) -> bool {
    let moves = ["loading", "waiting", "lingering"].map(|key| state["moves"][key].as_u64());
    state["state"] == "serving" && moves == [Some(0); 3]
}

fn generate(arguments: &[&str]) -> Value {
    let output = Command::new(PHALANX).args(["generate", "--json"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    // Nobody's stream was cut and gone on with: that would be saved, and is not undisturbed.
    assert!(!said.contains("was cut"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Streams that ask until they are stopped, each its own question, and compare every answer.
struct Load {
    goes_on: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    streams: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (goes_on, answers) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let stream = |question: &&'static [&'static str]| {
            let (question, url) = (*question, cluster.url.clone());
            let (goes_on, answers) = (Arc::clone(&goes_on), Arc::clone(&answers));
            let alone = generate(question);
            std::thread::spawn(move || {
                while goes_on.load(Ordering::Relaxed) {
                    let answer = generate(&[question, &["--cluster", &url][..]].concat());
                    for field in ["tokens", "text", "finish_reason", "logprobs"] {
                        assert_eq!(answer[field], alone[field], "{field} of {question:?}");
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Self { streams: QUESTIONS.iter().map(stream).collect(), goes_on, answers }
    }

    /// So many answers more have come, or somebody has failed.
    fn goes_on(&self, more: usize) {
        let (since, before) = (Instant::now(), self.answers.load(Ordering::Relaxed));
        while self.answers.load(Ordering::Relaxed) < before + more {
            assert!(
                since.elapsed() < PATIENCE && !self.streams.iter().any(JoinHandle::is_finished),
                "it is held up"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) -> usize {
        self.goes_on.store(false, Ordering::Relaxed);
        self.streams.into_iter().for_each(|stream| stream.join().unwrap());
        self.answers.load(Ordering::Relaxed)
    }
}

/// Every node is ended as systems end programs, and started anew: it gives what it holds to the others first.
#[test]
fn a_rolling_restart_by_signals_disturbs_no_answer() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster);
    for (number, name) in NODES.iter().enumerate() {
        let epoch = cluster.wait("settled", is_settled)["epoch"]["number"].as_u64();
        cluster.nodes[number].terminate();
        assert_eq!(cluster.nodes[number].ends(), Some(0), "{name}");
        let state = cluster.wait("without it", |state| of(state, name)["state"] == "gone");
        assert_eq!(state["state"], "serving", "no expert was without a holder: {state:#}");
        cluster.begin_anew(number);
        cluster.wait("with it again", |state| {
            of(state, name)["state"] == "joined" && state["epoch"]["number"].as_u64() > epoch
        });
        load.goes_on(2);
    }
    let answers = load.stop();
    println!("{answers} answers while {} nodes were restarted", NODES.len());
    check_never_waited(&cluster);
}

/// The same by drains, as an operator does it who takes his time; with what he is told.
#[test]
fn a_rolling_restart_by_drains_disturbs_no_answer() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster);
    let mut moved = 0;
    for (number, name) in NODES.iter().enumerate() {
        let held = experts(&cluster.wait("settled", is_settled), name);
        let said = cluster.drain(&[name]);
        // Whoever came last may have found nothing left to hold.
        if held > 0 {
            assert!(said.starts_with(&format!("{name} is to be drained; it holds {held} expert")), "{said}");
            assert!(said.ends_with(&format!("{name} is drained: it holds nothing\n")), "{said}");
            moved += held;
        }
        let state = cluster.wait("drained", |state| of(state, name)["state"] == "drained");
        assert_eq!((experts(&state, name), &state["state"]), (0, &"serving".into()));
        assert_eq!(cluster.drain(&[name]), format!("{name} is drained already: it holds nothing\n"));
        // Nothing of it is needed: it may be killed.
        cluster.nodes[number].0.kill().unwrap();
        cluster.nodes[number].ends();
        cluster.wait("without it", |state| of(state, name)["state"] == "gone");
        cluster.begin_anew(number);
        cluster.wait("back, and drained", |state| of(state, name)["state"] == "drained");
        let said = cluster.drain(&[name, "--undo"]);
        assert_eq!(said, format!("{name} is not drained any more, and may hold experts again\n"));
        load.goes_on(2);
    }
    assert!(moved >= 60, "{moved} experts");
    let refused = cluster.phalanx(&["drain", "nobody"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("no node is called nobody; there are a, b, c, d"), "{why}");
    cluster.drain(&["a", "--no-wait"]);
    let refused = cluster.phalanx(&["drain", "b"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("b cannot be drained") && why.contains("short"), "{why}");
    let answers = load.stop();
    println!("{answers} answers while {} nodes were drained and killed", NODES.len());
    check_never_waited(&cluster);
}

/// What a drained node holds is sent to one that has no checkpoint, and that one is killed meanwhile, twice in a row: the drained node
/// serves on until it need not.
#[test]
fn whoever_takes_over_is_killed_while_weights_are_sent() {
    let cluster = Cluster::start_with(&NODES[..3]);
    let load = Load::start(&cluster);
    let data = std::env::temp_dir().join(format!("phalanx-elastic-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&data);
    let begin = || {
        let mut command = node_command(&cluster.door, "d");
        command.arg("--data").arg(&data);
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let mut taking = begin();
    cluster.wait("there", |state| of(state, "d")["state"] == "joined" && is_settled(state));
    cluster.drain(&["a", "--no-wait"]);
    for _ in 0..2 {
        cluster
            .wait("loading", |state| state["moves"]["loading"].as_u64() > Some(0) || experts(state, "d") > 0);
        taking.0.kill().unwrap();
        taking.ends();
        // Had it taken over all of it, that has no holder until it is back.
        taking = begin();
        cluster.wait("back", |state| of(state, "d")["state"] == "joined");
        load.goes_on(1);
    }
    let state = cluster.wait("drained", |state| of(state, "a")["state"] == "drained");
    assert!(experts(&state, "a") == 0 && experts(&state, "d") >= 20, "{state:#}");
    load.goes_on(2);
    load.stop();
    drop(taking);
    std::fs::remove_dir_all(&data).unwrap();
}

/// Not one expert was without a holder for a moment.
fn check_never_waited(cluster: &Cluster) {
    let state = cluster.wait("there", |state| state["events"].is_array());
    let events = state["events"].as_array().unwrap();
    assert!(events.iter().all(|event| event["kind"] != "waiting"), "{events:#?}");
    assert_eq!(state["data"]["dispatches"]["rows_failed"], 0);
}
