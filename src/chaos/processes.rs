//! A cluster of processes of this machine, and what is done to them.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use transport::security::{Authority, Issuance, Role, Utc};

use super::door::Door;
use super::hosts::{self, Chain, Hosts};
use super::plan::{Fault, Injection, LASTS, lasts};
use super::relay::{self, Way, Wire};
use crate::Failure;
use crate::answers::Random;
use crate::bench::leftover;
use crate::remote::{ClusterUrl, cluster_url};

/// How nodes are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CarrierName {
    /// All lanes over TCP.
    Tcp,
    /// Data and weights over QUIC, which no relay is on the way of.
    Quic,
}

/// An address, as programs are told it.
fn at(carrier: CarrierName, address: SocketAddr) -> String {
    match carrier {
        CarrierName::Tcp => address.to_string(),
        CarrierName::Quic => format!("quic:{address}"),
    }
}

/// How long a node that was asked to leave may take.
const LEAVE_MAX: Duration = Duration::from_secs(60);
/// How long a killed node is away.
const AWAY: Duration = Duration::from_secs(1);
/// Of what is delayed: the least, and as much again at most; and how much that may change.
const DELAY_MS: u32 = 20;
const JITTER: Duration = Duration::from_millis(30);
/// How long the next bytes, of which a bit is to be turned, may take to come: heartbeats come ten times a second.
const DAMAGED_WITHIN: Duration = Duration::from_secs(3);
/// Certificates of one run.
const LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Seconds that clocks are wrong by.
const CLOCK_WRONG: [i64; 6] = [1_800, -1_800, 129_600, -129_600, 31_536_000, -31_536_000];
/// What a write beyond its process's limit raises is passed over, as it is by whoever knows limits: the write fails.
const NO_SIGNAL: &str = "trap '' XFSZ; exec \"$0\" \"$@\"";

/// What can be done to processes, whatever is between them.
const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Freeze, Fault::Leave, Fault::Coordinator, Fault::Panic, Fault::Clock, Fault::Disk];
/// What a relay can do, and what the kernel can.
const RELAYED: [Fault; 5] = [Fault::Reset, Fault::OneWay, Fault::Cut, Fault::Delay, Fault::Corrupt];
const FILTERED: [Fault; 3] = [Fault::OneWay, Fault::Cut, Fault::Loss];

/// What all processes are told.
pub(super) struct Settings {
    pub(super) model: Option<PathBuf>,
    pub(super) numeric_class: String,
    pub(super) nodes: usize,
    /// Of each node.
    pub(super) devices: usize,
    pub(super) replicas: u8,
    pub(super) carrier: CarrierName,
    /// Links are plaintext, and frames have checksums.
    pub(super) is_insecure: bool,
    /// Nodes are hosts of their own.
    pub(super) has_hosts: bool,
    /// Where they keep what they must remember.
    pub(super) folder: PathBuf,
    pub(super) seed: u64,
}

impl Settings {
    fn certificates(&self, name: &str) -> PathBuf {
        self.folder.join("certificates").join(name)
    }

    fn data(&self, number: usize) -> PathBuf {
        self.folder.join(node_name(number))
    }
}

fn node_name(number: usize) -> String {
    format!("n{number}")
}

/// A coordinator and its nodes.
pub(super) struct Processes {
    settings: Settings,
    coordinator: Child,
    nodes: Vec<Node>,
    /// Where nodes come.
    door: SocketAddr,
    network: Network,
    pub(super) url: ClusterUrl,
}

/// What is between the coordinator and its nodes.
enum Network {
    /// For each node a wire.
    Relay(Vec<Arc<Wire>>),
    Hosts(Hosts),
}

struct Node {
    child: Child,
    door: Door,
}

impl Processes {
    pub(super) fn start(settings: Settings) -> Result<Self, Failure> {
        prepare(&settings)?;
        let hosts = match settings.has_hosts {
            true => Some(Hosts::start(settings.nodes, &settings.folder)?),
            false => None,
        };
        let place = if hosts.is_some() { hosts::COORDINATOR } else { Ipv4Addr::LOCALHOST };
        let door = SocketAddr::from((place, 0));
        let (mut coordinator, door, url) = start_coordinator(&settings, "127.0.0.1:0", door)?;
        let network = || -> Result<_, Failure> {
            let network = match hosts {
                Some(hosts) => Network::Hosts(hosts),
                None => Network::Relay(relay::start(door, settings.nodes, settings.seed)?),
            };
            Ok(network)
        };
        let network = network().inspect_err(|_| leftover::end_process(&mut coordinator))?;
        let mut all = Self { settings, coordinator, nodes: Vec::new(), door, network, url };
        for number in 0..all.settings.nodes {
            let node = all.start_node(number)?;
            all.nodes.push(node);
        }
        Ok(all)
    }

    fn start_node(&self, number: usize) -> Result<Node, Failure> {
        let Settings { model, numeric_class, devices, is_insecure, .. } = &self.settings;
        let program = std::env::current_exe()?.with_file_name("phalanx-node");
        if !program.exists() {
            return Err(format!(
                "{} is missing; build it with `cargo build --release --workspace`",
                program.display()
            )
            .into());
        }
        let (mut words, address) = match &self.network {
            Network::Relay(wires) => (Vec::new(), wires[number].address()),
            Network::Hosts(hosts) => (hosts.on(number), self.door),
        };
        words.extend(["sh", "-c", NO_SIGNAL].map(str::to_owned));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&program).arg("--chaos-door");
        command.args(["--coordinator", &at(self.settings.carrier, address)]);
        command.args(["--name", &node_name(number), "--devices", &devices.to_string()]);
        command.args(["--numeric-class", numeric_class, "--threads", "1", "--log-level", "error"]);
        match is_insecure {
            true => command.arg("--insecure"),
            false => command.arg("--certs").arg(self.settings.certificates(&node_name(number))),
        };
        match model {
            Some(model) => command.arg("--model").arg(model),
            None => command.arg("--data").arg(self.settings.data(number)),
        };
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|why| format!("{}: {why}", words[0]))?;
        leftover::add_process(&child);
        let door = Door::of(&mut child);
        Ok(Node { child, door })
    }

    /// What can be done to them.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let of_network = match &self.network {
            Network::Relay(_) => RELAYED.to_vec(),
            Network::Hosts(hosts) => {
                let filtered = if hosts.can_filter() { &FILTERED[..] } else { &[] };
                let narrowed = if hosts.can_narrow() { &[Fault::Narrow][..] } else { &[] };
                [filtered, narrowed].concat()
            }
        };
        [&FAULTS[..], &of_network].concat()
    }

    /// Names and numbers of the processes that there are.
    pub(super) fn processes(&self) -> Vec<(String, u32)> {
        let nodes = self.nodes.iter().enumerate().map(|(number, node)| (node_name(number), node.child.id()));
        std::iter::once(("coordinator".to_owned(), self.coordinator.id())).chain(nodes).collect()
    }

    /// The names of nodes, as the coordinator knows them.
    pub(super) fn name(&self, number: usize) -> String {
        node_name(number)
    }

    /// Does it, and undoes what is to be undone; healing is the cluster's.
    pub(super) async fn inject(&mut self, injection: &mut Injection) -> Result<(), Failure> {
        let Injection { fault, node: number, random, .. } = injection;
        let number = *number;
        match fault {
            Fault::Kill => {
                leftover::end_process(&mut self.nodes[number].child);
                tokio::time::sleep(AWAY).await;
                self.nodes[number] = self.start_node(number)?;
            }
            Fault::Freeze => {
                let pid = Pid::from_child(&self.nodes[number].child);
                kill_process(pid, Signal::STOP)?;
                tokio::time::sleep(lasts(random)).await;
                kill_process(pid, Signal::CONT)?;
            }
            Fault::Leave => {
                self.leave(number).await?;
                self.nodes[number] = self.start_node(number)?;
            }
            Fault::Coordinator => {
                leftover::end_process(&mut self.coordinator);
                let http = self.url.authority();
                (self.coordinator, ..) = start_coordinator(&self.settings, &http, self.door)?;
            }
            Fault::Panic => {
                let when = if random.below(2) == 0 { "now" } else { "batch" };
                let door = &mut self.nodes[number].door;
                let mut actors = door.actors().await?;
                // Whoever has been moved away meanwhile cannot panic; somebody can.
                loop {
                    if actors.is_empty() {
                        return Err(format!("n{number} holds no expert that could panic").into());
                    }
                    let actor = actors.swap_remove(random.below(actors.len() as u32) as usize);
                    if door.ask(&format!("panic {actor} {when}")).await.is_ok() {
                        break;
                    }
                }
            }
            Fault::Clock => {
                let seconds = CLOCK_WRONG[random.below(CLOCK_WRONG.len() as u32) as usize];
                self.nodes[number].door.ask(&format!("clock {seconds}")).await?;
                tokio::time::sleep(LASTS).await;
                self.nodes[number].door.ask("clock 0").await?;
            }
            Fault::Disk => {
                leftover::end_process(&mut self.nodes[number].child);
                let kept = self.kept(number);
                if kept.exists() {
                    std::fs::remove_dir_all(&kept)?;
                }
                tokio::time::sleep(AWAY).await;
                self.nodes[number] = self.start_node(number)?;
                self.fill_disk(number, true)?;
            }
            _ => match &self.network {
                Network::Relay(wires) => relayed(*fault, &wires[number], random).await?,
                Network::Hosts(hosts) => filtered(*fault, hosts, number, random).await?,
            },
        }
        Ok(())
    }

    /// What is to be undone when the cluster is whole again: a disk stays full for as long as experts are fetched.
    pub(super) fn undo(&mut self, injection: &Injection) -> Result<(), Failure> {
        if injection.fault != Fault::Disk {
            return Ok(());
        }
        let number = injection.node;
        if has_file(&self.kept(number)) {
            return Err(format!("n{number} has kept an expert on a disk that takes nothing").into());
        }
        self.fill_disk(number, false)
    }

    /// Where a node keeps experts that it has received.
    fn kept(&self, number: usize) -> PathBuf {
        self.settings.data(number).join("experts")
    }

    /// From now on the kernel lets a node write nothing more to any file, or everything again.
    fn fill_disk(&self, number: usize, is_full: bool) -> Result<(), Failure> {
        // Nobody may raise what they were given as the most.
        let own = getrlimit(Resource::Fsize);
        let current = if is_full { Some(0) } else { own.current };
        let pid = Pid::from_child(&self.nodes[number].child);
        prlimit(Some(pid), Resource::Fsize, Rlimit { current, ..own })?;
        Ok(())
    }

    /// Asks a node to leave, and waits until it has.
    async fn leave(&mut self, number: usize) -> Result<(), Failure> {
        let began = Instant::now();
        let child = &mut self.nodes[number].child;
        kill_process(Pid::from_child(child), Signal::TERM)?;
        while child.try_wait()?.is_none() {
            if began.elapsed() > LEAVE_MAX {
                return Err(format!("n{number} has not left within {} s", LEAVE_MAX.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        leftover::end_process(child);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(|node| leftover::end_process(&mut node.child));
        leftover::end_process(&mut self.coordinator);
    }
}

fn way(random: &mut Random) -> Way {
    Way::BOTH[random.below(2) as usize]
}

/// What a relay does.
async fn relayed(fault: Fault, wire: &Wire, random: &mut Random) -> Result<(), Failure> {
    match fault {
        Fault::Reset => {
            let which = random.below(4).checked_sub(1).map(|lane| lane as usize);
            if wire.reset(which) == 0 {
                return Err("there is no connection that could be reset".into());
            }
        }
        Fault::OneWay => {
            wire.hold(way(random), true);
            tokio::time::sleep(lasts(random)).await;
        }
        Fault::Cut => {
            Way::BOTH.into_iter().for_each(|way| wire.hold(way, true));
            tokio::time::sleep(lasts(random)).await;
        }
        Fault::Delay => {
            let delay = DELAY_MS + random.below(DELAY_MS);
            wire.delay(Duration::from_millis(delay.into()), JITTER);
            tokio::time::sleep(LASTS).await;
        }
        Fault::Corrupt => damage(wire, way(random)).await?,
        _ => unreachable!("no relay does this"),
    }
    wire.clear();
    Ok(())
}

/// What the kernel does between hosts.
async fn filtered(fault: Fault, hosts: &Hosts, number: usize, random: &mut Random) -> Result<(), Failure> {
    let chain = [Chain::Input, Chain::Output][random.below(2) as usize];
    match fault {
        Fault::OneWay => {
            hosts.drop_all(number, &[chain], true).await?;
            tokio::time::sleep(lasts(random)).await;
            hosts.drop_all(number, &[chain], false).await
        }
        Fault::Cut => {
            let both = [Chain::Input, Chain::Output];
            hosts.drop_all(number, &both, true).await?;
            tokio::time::sleep(lasts(random)).await;
            hosts.drop_all(number, &both, false).await
        }
        Fault::Loss => {
            hosts.drop_some(number, true).await?;
            tokio::time::sleep(LASTS).await;
            hosts.drop_some(number, false).await
        }
        Fault::Narrow => {
            hosts.narrow(number, true).await?;
            tokio::time::sleep(LASTS).await;
            hosts.narrow(number, false).await
        }
        _ => unreachable!("the kernel does not do this"),
    }
}

/// Turns a bit of the next bytes, and waits until they have passed.
async fn damage(wire: &Wire, way: Way) -> Result<(), Failure> {
    wire.damage(way);
    let began = Instant::now();
    while wire.damages_left(way) > 0 {
        if began.elapsed() > DAMAGED_WITHIN {
            return Err("nothing came that could be damaged, not even a heartbeat".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Whether there is a whole expert somewhere below.
fn has_file(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_file(&entry.path()),
        _ => entry.path().extension().is_some_and(|ending| ending == "safetensors"),
    })
}

/// Makes the folder, and an authority and certificates in it.
fn prepare(settings: &Settings) -> Result<(), Failure> {
    let folder = &settings.folder;
    std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    if settings.is_insecure {
        return Ok(());
    }
    std::fs::create_dir_all(settings.certificates(""))?;
    let now = Utc::now();
    let authority = Authority::create(&folder.join("authority"), now)?;
    let issue = |name: &str, role| {
        let what = Issuance { name, role, life: LIFE, replace: false };
        authority.issue_into(&settings.certificates(name), what, now).map(drop)
    };
    issue("coordinator", Role::Coordinator)?;
    for number in 0..settings.nodes {
        issue(&node_name(number), Role::Node)?;
    }
    Ok(())
}

/// The process, where nodes come, and where clients do.
fn start_coordinator(
    settings: &Settings,
    http: &str,
    door: SocketAddr,
) -> Result<(Child, SocketAddr, ClusterUrl), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "--http", http, "--nodes", &at(settings.carrier, door), "--log-level", "error"]);
    command.arg("--data").arg(settings.folder.join("coordinator"));
    command.args(["--numeric-class", &settings.numeric_class, "--replicas", &settings.replicas.to_string()]);
    match settings.is_insecure {
        true => command.arg("--insecure"),
        // With the authority it renews certificates of nodes that ask, as those do whose clock runs ahead.
        false => command
            .arg("--certs")
            .arg(settings.certificates("coordinator"))
            .arg("--authority")
            .arg(settings.folder.join("authority")),
    };
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
    let where_it_is = || -> Result<_, Failure> {
        let place = door.trim_start_matches("quic:").trim_start_matches("tcp:");
        let place =
            place.parse().map_err(|_| format!("nodes are taken in at {door}, which is no address"))?;
        Ok((place, cluster_url(&url)?))
    };
    let (door, url) = where_it_is().inspect_err(|_| leftover::end_process(&mut child))?;
    Ok((child, door, url))
}
