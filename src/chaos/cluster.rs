//! A cluster of processes, which are killed, stopped and started again.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Failure;
use crate::bench::leftover;
use crate::remote::{ClusterUrl, cluster_url};

/// How long a node that was asked to leave may take.
const LEAVE_MAX: Duration = Duration::from_secs(60);

/// What all processes are told.
pub(super) struct Settings {
    pub(super) model: Option<PathBuf>,
    pub(super) numeric_class: String,
    pub(super) nodes: usize,
    /// Of each node.
    pub(super) devices: usize,
    pub(super) replicas: u8,
    /// Where they keep what they must remember.
    pub(super) folder: PathBuf,
}

/// A coordinator and its nodes.
pub(super) struct Processes {
    settings: Settings,
    coordinator: Child,
    nodes: Vec<Child>,
    /// Where nodes come.
    door: String,
    pub(super) url: ClusterUrl,
}

impl Processes {
    pub(super) fn start(settings: Settings) -> Result<Self, Failure> {
        let (coordinator, door, url) = start_coordinator(&settings, "127.0.0.1:0", "127.0.0.1:0")?;
        let mut all = Self { settings, coordinator, nodes: Vec::new(), door, url };
        for number in 0..all.settings.nodes {
            let node = all.start_node(number)?;
            all.nodes.push(node);
        }
        Ok(all)
    }

    fn start_node(&self, number: usize) -> Result<Child, Failure> {
        let program = std::env::current_exe()?.with_file_name("phalanx-node");
        let mut command = Command::new(&program);
        command.args(["--coordinator", &self.door, "--insecure", "--threads", "1", "--log-level", "error"]);
        command.args(["--name", &format!("n{number}"), "--devices", &self.settings.devices.to_string()]);
        command.args(["--numeric-class", &self.settings.numeric_class]);
        match &self.settings.model {
            Some(model) => command.arg("--model").arg(model),
            None => command.arg("--data").arg(self.settings.folder.join(format!("n{number}"))),
        };
        let child =
            command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|why| {
            format!("{}: {why}; build it with `cargo build --release --workspace`", program.display())
        })?;
        leftover::add_process(&child);
        Ok(child)
    }

    /// Kills a node.
    pub(super) fn kill(&mut self, number: usize) {
        leftover::end_process(&mut self.nodes[number]);
    }

    /// Starts a node that has ended.
    pub(super) fn start_again(&mut self, number: usize) -> Result<(), Failure> {
        self.nodes[number] = self.start_node(number)?;
        Ok(())
    }

    /// Stops a node's process where it stands, or has it go on.
    pub(super) fn freeze(&self, number: usize, is_frozen: bool) -> Result<(), Failure> {
        let signal = if is_frozen { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&self.nodes[number]), signal)?)
    }

    /// Asks a node to leave, and waits until it has.
    pub(super) async fn leave(&mut self, number: usize) -> Result<(), Failure> {
        let began = Instant::now();
        kill_process(Pid::from_child(&self.nodes[number]), Signal::TERM)?;
        while self.nodes[number].try_wait()?.is_none() {
            if began.elapsed() > LEAVE_MAX {
                return Err(format!("n{number} has not left within {} s", LEAVE_MAX.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        leftover::end_process(&mut self.nodes[number]);
        Ok(())
    }

    /// Kills the coordinator, and starts it again at the same addresses.
    pub(super) fn restart_coordinator(&mut self) -> Result<(), Failure> {
        leftover::end_process(&mut self.coordinator);
        let http = self.url.authority();
        (self.coordinator, ..) = start_coordinator(&self.settings, &http, &self.door)?;
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(leftover::end_process);
        leftover::end_process(&mut self.coordinator);
    }
}

/// The process, where nodes come, and where clients do.
fn start_coordinator(
    settings: &Settings,
    http: &str,
    door: &str,
) -> Result<(Child, String, ClusterUrl), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "--http", http, "--nodes", door, "--insecure", "--log-level", "error"]);
    command.arg("--data").arg(settings.folder.join("coordinator"));
    command.args(["--numeric-class", &settings.numeric_class, "--replicas", &settings.replicas.to_string()]);
    if let Some(model) = &settings.model {
        command.arg("--model").arg(model);
    }
    let mut child = command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    leftover::add_process(&child);
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut said = |begins: &str| -> Option<String> {
        let line = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(begins))?;
        Some(line.rsplit(' ').next()?.to_owned())
    };
    let (door, url) = (said("nodes are taken in at"), said("serving "));
    let (Some(door), Some(url)) = (door, url) else {
        leftover::end_process(&mut child);
        return Err("the coordinator has ended; its message is above".into());
    };
    // What it says later is read, so that it is never held up.
    std::thread::spawn(move || lines.for_each(drop));
    Ok((child, door, cluster_url(&url)?))
}

/// Whether a folder can be made and written, before anything is started there.
pub(super) fn prepare(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()).into())
}
