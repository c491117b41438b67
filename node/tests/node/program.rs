//! `phalanx-node` as a person has it: what it says of bad settings, and how it ends.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::{Coordinator, Door, Random, Truth, demo, local, run};
use model::kernel::{Kernels, NumericClass};
use transport::buffer::Pool;
use transport::carrier::tcp::{Plaintext, Protection, TcpAcceptor, TcpCarrier};
use transport::security::{Authority, Issuance, NewToken, Role, Tls, Utc};
use transport::wire::cluster::ToCoordinator;
use transport::wire::control::NumericIdentity;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx-node"));
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PHALANX_NODE_"))
    {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// A folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("phalanx-node-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One message that says what to do, exit code 2 (clap's own messages have several lines).
#[test]
fn bad_settings_are_refused_in_words() {
    let folder = Folder::new("bad");
    let file = folder.path("node.toml");
    std::fs::write(&file, "coordinator = 'c0:7000'\ndevice = 3\n").unwrap();
    let missing = folder.path("nothing");
    let to = ["--coordinator", "127.0.0.1:1", "--insecure"];
    let cases: &[(&[&str], &str)] = &[
        (&["--insecure"], "no coordinator to join; give at least one with --coordinator"),
        (&["--coordinator", "127.0.0.1:1"], "need a certificate; give its folder with --certs DIR"),
        (&["--coordinator", "quic:127.0.0.1:1", "--insecure"], "there is no QUIC without"),
        (&["--coordinator", "nowhere"], "`nowhere` is no coordinator's address"),
        (&["--coordinator", "127.0.0.1:1", "--insecure-anywhere"], "--insecure-anywhere says how far"),
        (&["--coordinator", "127.0.0.1:1", "--certs", &missing], "peer.crt"),
        (&["--coordinator", "127.0.0.1:1", "--token", "phx1.x"], "a join token needs --data DIR"),
        (&["--coordinator", "127.0.0.1:1", "--token", "phx1.x", "--data", &missing], "token"),
        (&["--config", &file], "unknown field `device`"),
        (&["--config", &missing], "give a file of settings"),
        (&[to[0], to[1], to[2], "--devices", "0"], "--devices 0"),
        (&[to[0], to[1], to[2], "--memory", "1000T"], "lower one of them"),
        (&[to[0], to[1], to[2], "--memory", "much"], "`much` is not a size"),
        (&[to[0], to[1], to[2], "--threads", "0"], "--threads 0"),
        (&[to[0], to[1], to[2], "--threads", "3", "--cores", "0,1"], "names 2 cores for 3 threads"),
        (&[to[0], to[1], to[2], "--numeric-class", "bf16"], "bf16"),
        (&[to[0], to[1], to[2], "--numeric-class", "f32", "--kernel-path", "avx512bf16"], "does not compute"),
        (&[to[0], to[1], to[2], "--model", &missing], "config.json"),
        (&[to[0], to[1], to[2], "--label", "rack"], "`rack` is not a label"),
        (&[to[0], to[1], to[2], "--label", "a b=c"], "cannot be one"),
        (&[to[0], to[1], to[2], "--label", "a=1", "--label", "a=2"], "the label a is given twice"),
        (&[to[0], to[1], to[2], "--name", "../x"], "name"),
        (&[to[0], to[1], to[2], "--batch-rows-max", "0"], "allow at least 1"),
        (&[to[0], to[1], to[2], "--log", "xml"], "neither lines nor json"),
        (&[to[0], to[1], to[2], "--log-level", "a=b=c"], "--log-level"),
    ];
    for (arguments, expected) in cases {
        let output = command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("error: ") && said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    let output = command(&to).env("PHALANX_NODE_DEVICE", "3").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PHALANX_NODE_DEVICE is unknown; these are known: PHALANX_NODE_BATCH"), "{said}");
    assert_eq!(output.status.code(), Some(2));
}

/// A program that is killed when the test ends, however it ends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Reads its log until a line has all of `words`.
    fn wait_for(&mut self, words: &[&str]) -> String {
        let mut log = BufReader::new(self.0.stderr.take().unwrap());
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "{words:?} did not come:\n{all}");
            all.push_str(&line);
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn truth() -> (Truth, NumericIdentity) {
    let admission = Kernels::admitted(NumericClass::Portable).unwrap();
    let fingerprint = *admission.fingerprint.as_bytes();
    let numeric = NumericIdentity { class: NumericClass::Portable.to_string(), fingerprint };
    (Truth::new(demo(), admission.kernels), numeric)
}

async fn plain_door(numeric: NumericIdentity) -> Door {
    let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 30));
    let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
    Door::of(Arc::new(carrier), Box::new(acceptor), local("c", Some(numeric)))
}

/// Computes, then leaves at SIGTERM: code 0.
async fn serve_and_leave(mut truth: Truth, mut coordinator: Coordinator, mut node: Running) {
    let (layer, experts) = truth.layer();
    coordinator.hold(1, 1, (0..experts).map(|expert| truth.assignment(layer, expert, 0)).collect()).await;
    let rows = truth.rows(&mut Random::new(1), 5);
    coordinator.check(&mut truth, layer, &rows, &[(1, vec![0, 4]), (7, vec![1, 2, 3])]).await;
    node.signal("-TERM");
    assert_eq!(coordinator.news().await, ToCoordinator::Leaving);
    coordinator.check(&mut truth, layer, &rows, &[(3, vec![2])]).await;
    let peer = coordinator.peer.clone();
    let (ended, _) = tokio::join!(peer.drain(), coordinator.ended());
    assert!(ended.in_order(), "{ended}");
    assert_eq!(node.0.wait().unwrap().code(), Some(0));
}

/// Flags are above the environment, which is above the file.
#[test]
fn a_node_serves_and_leaves_at_a_signal() {
    let (truth, numeric) = truth();
    let folder = Folder::new("serve");
    run(async {
        let mut door = plain_door(numeric).await;
        let file = folder.path("node.toml");
        let model = demo().display().to_string();
        let text = format!(
            "coordinator = ['127.0.0.1:1']\nname = 'of-the-file'\ndevices = 7\nmodel = '{model}'\n\
             labels = {{ rack = 'r9' }}\nnumeric_class = 'portable'\nthreads = 1\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = command(&["--config", &file, "--devices", "3", "--insecure", "--memory", "64M"]);
        command.env("PHALANX_NODE_NAME", "of-the-environment").env("PHALANX_NODE_DEVICES", "5");
        command.env("PHALANX_NODE_COORDINATOR", &door.address).env("PHALANX_NODE_LOG", "json");
        let node = Running::start(&mut command);
        let (coordinator, join) = door.joined(&truth).await;
        assert_eq!(coordinator.peer.hello().peer.name, "of-the-environment");
        assert_eq!(join.devices.len(), 3);
        assert!(join.devices.iter().all(|device| device.memory_bytes == 64 << 20));
        assert_eq!(join.labels, [("rack".to_owned(), "r9".to_owned())]);
        serve_and_leave(truth, coordinator, node).await;
    });
}

/// Certificates by a token at the first start, from the folder of data at the second.
#[test]
fn a_node_joins_by_a_token_and_comes_back_with_its_certificate() {
    let (truth, numeric) = truth();
    let folder = Folder::new("token");
    run(async {
        let authority = Authority::create(&folder.0.join("authority"), Utc::now()).unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let what = Issuance { name: "c", role: Role::Coordinator, life: hour, replace: false };
        let tls = Tls::new(authority.issue(what, Utc::now()).unwrap()).unwrap();
        let token =
            authority.new_token(NewToken { life: hour, uses: None, replace: false }, Utc::now()).unwrap();
        let carrier = TcpCarrier::new(Protection::Tls(tls), Pool::new(1 << 30));
        let acceptor: TcpAcceptor = carrier.listen("127.0.0.1:0").await.unwrap();
        let acceptor = acceptor.with_enrol(authority.enrolment());
        let mut local = local("c", Some(numeric));
        local.peer.cluster = authority.cluster();
        let mut door = Door::of(Arc::new(carrier), Box::new(acceptor), local);
        let (data, model, address) =
            (folder.path("data"), demo().display().to_string(), door.address.clone());
        let arguments =
            ["--coordinator", &address, "--data", &data, "--model", &model, "--numeric-class", "portable"];
        let mut first = command(&arguments);
        first.args(["--name", "n7"]).env("PHALANX_NODE_TOKEN", token.reveal());
        let mut node = Running::start(&mut first);
        let (coordinator, _) = door.joined(&truth).await;
        assert_eq!(coordinator.peer.hello().peer.name, "n7");
        node.signal("-KILL");
        node.0.wait().unwrap();
        drop(coordinator);
        let node = Running::start(&mut command(&arguments));
        let (coordinator, _) = door.joined(&truth).await;
        assert_eq!(coordinator.peer.hello().peer.name, "n7");
        serve_and_leave(truth, coordinator, node).await;
    });
}

/// Who started it can fell an expert of it, which is back at once; a file or a variable opens no such door.
#[test]
fn a_door_of_chaos_is_open_to_whoever_started_the_node() {
    let (mut truth, numeric) = truth();
    let folder = Folder::new("door");
    let file = folder.path("node.toml");
    std::fs::write(&file, "coordinator = 'c0:7000'\nchaos_door = true\n").unwrap();
    let output = command(&["--config", &file]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("unknown field `chaos_door`"), "{said}");
    let output = command(&["--coordinator", "c0:1"]).env("PHALANX_NODE_CHAOS_DOOR", "true").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PHALANX_NODE_CHAOS_DOOR is unknown"), "{said}");
    run(async {
        let mut door = plain_door(numeric).await;
        let (model, address) = (demo().display().to_string(), door.address.clone());
        let mut command =
            command(&["--chaos-door", "--coordinator", &address, "--model", &model, "--name", "n0"]);
        command.args(["--insecure", "--memory", "64M", "--numeric-class", "portable", "--threads", "1"]);
        let mut node = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (mut input, output) = (node.0.stdin.take().unwrap(), node.0.stdout.take().unwrap());
        let mut output = BufReader::new(output).lines();
        let mut ask = move |line: &str| {
            writeln!(input, "{line}").unwrap();
            output.next().unwrap().unwrap()
        };
        let (mut coordinator, _) = door.joined(&truth).await;
        let (layer, experts) = truth.layer();
        assert_eq!(ask("actors"), "actors");
        coordinator.hold(1, 1, (0..experts).map(|expert| truth.assignment(layer, expert, 0)).collect()).await;
        let rows = truth.rows(&mut Random::new(1), 5);
        coordinator.check(&mut truth, layer, &rows, &[(1, vec![0, 4])]).await;
        let names: Vec<String> = (0..experts).map(|expert| format!("{layer}.{expert}.0.0")).collect();
        assert_eq!(ask("actors"), format!("actors {}", names.join(" ")));
        assert_eq!(ask(&format!("panic {} now", names[1])), "done");
        let ToCoordinator::Fallen(fallen) = coordinator.news().await else { panic!("nobody fell") };
        assert_eq!((fallen.actor.expert, fallen.restarts, fallen.is_lost), (1, 1, false));
        coordinator.check(&mut truth, layer, &rows, &[(1, vec![0, 4]), (2, vec![1])]).await;
        assert_eq!(ask("panic 9.9.9.9 now"), "error: there is no such actor");
        assert_eq!(ask("clock 3600"), "done");
        assert!(ask("clock").starts_with("error: `clock` is none of: actors;"));
        assert!(ask(&"x".repeat(300)).starts_with("error: "));
        node.signal("-KILL");
    });
}

/// Both ends say what the matter is, and the node goes on trying.
#[test]
fn a_node_of_another_class_is_told_so() {
    let (_, numeric) = truth();
    run(async {
        let door = plain_door(numeric).await;
        let arguments =
            ["--coordinator", &door.address, "--insecure", "--numeric-class", "f32", "--name", "n0"];
        let mut node = Running::start(&mut command(&arguments));
        let said = node.wait_for(&["WARN", "--numeric-class portable"]);
        assert!(said.contains("dialling again"), "{said}");
        // Nobody is there to be told: it ends at once.
        node.signal("-TERM");
        assert_eq!(node.0.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn help_says_what_there_is() {
    let output = command(&["--help"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for word in ["--coordinator", "--memory", "--certs", "--token", "PHALANX_NODE_COORDINATOR", "SIGTERM"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
