//! A cluster of containers, as `docker-compose.yml` describes it, and what is done to them by the engine's own commands.
//!
//! Every container is of one project of this run alone, which is taken down with all it has made, also when the run is
//! interrupted. Commands run beside the streams that are being answered, and never hold them up.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{Variables, run, run_aside};
use super::plan::{Fault, Injection, LASTS, lasts};
use crate::Failure;
use crate::bench::leftover;
use crate::remote::{ClusterUrl, cluster_url};

/// How long a killed container is away.
const AWAY: Duration = Duration::from_secs(1);
/// Seconds that a node may take to leave.
const LEAVE_MAX_S: &str = "40";
/// Of what is lost, the part.
const LOST_PART: &str = "0.2";

/// What the engine can do.
const FAULTS: [Fault; 6] =
    [Fault::Kill, Fault::Freeze, Fault::Leave, Fault::Coordinator, Fault::Cut, Fault::Replace];
/// What a filter of packets inside a container's network can do.
const FILTERED: [Fault; 2] = [Fault::OneWay, Fault::Loss];

/// What the containers are told.
pub(super) struct Settings {
    pub(super) file: PathBuf,
    pub(super) model: Option<PathBuf>,
    pub(super) nodes: usize,
    pub(super) devices: usize,
    pub(super) replicas: u8,
}

/// The containers of one project.
pub(super) struct Compose {
    settings: Settings,
    /// `docker compose`, or what came before it, with the project and its file.
    compose: Vec<String>,
    project: String,
    /// What the file is told.
    variables: Variables,
    can_filter: bool,
    pub(super) url: ClusterUrl,
}

impl Compose {
    /// Starts them. What is missing of images is built.
    pub(super) fn start(settings: Settings) -> Result<Self, Failure> {
        run(&["docker", "info"], &[]).map_err(|why| format!("no engine of containers answers: {why}"))?;
        let program: &[&str] = match run(&["docker", "compose", "version"], &[]) {
            Ok(_) => &["docker", "compose"],
            Err(_) => &["docker-compose"],
        };
        let project = format!("phalanx-chaos-{}", std::process::id());
        let file = settings.file.canonicalize().map_err(|why| {
            format!("{}: {why}; give the docker-compose.yml of Phalanx", settings.file.display())
        })?;
        let mut compose: Vec<String> = program.iter().map(|word| (*word).to_owned()).collect();
        compose.extend(["--project-name".into(), project.clone(), "--file".into(), text(&file)?]);
        // Nobody else takes it in the moment until the engine does, or else `up` says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut variables = vec![
            ("PHALANX_PORT", port.to_string()),
            ("PHALANX_DEVICES", settings.devices.to_string()),
            ("PHALANX_REPLICAS", settings.replicas.to_string()),
        ];
        if let Some(model) = &settings.model {
            variables.push(("PHALANX_MODEL", text(&model.canonicalize()?)?));
        }
        let url = cluster_url(&format!("http://127.0.0.1:{port}"))?;
        let mut all = Self { settings, compose, project, variables, can_filter: false, url };
        leftover::add_command(all.down());
        all.compose(&all.up())?;
        all.can_filter = all.filter_works();
        Ok(all)
    }

    pub(super) fn faults(&self) -> Vec<Fault> {
        let filtered = if self.can_filter { &FILTERED[..] } else { &[] };
        [&FAULTS[..], filtered].concat()
    }

    /// A node is called as its container is.
    pub(super) async fn name(&self, number: usize) -> Result<String, Failure> {
        let node = self.container("node", number).await?;
        Ok(node[..12.min(node.len())].to_owned())
    }

    /// Does it, and undoes what is to be undone; healing is the cluster's.
    pub(super) async fn inject(&mut self, injection: &mut Injection) -> Result<(), Failure> {
        let Injection { fault, node: number, random, .. } = injection;
        let node = self.container("node", *number).await?;
        let node = node.as_str();
        match fault {
            Fault::Kill => {
                docker(&["kill", "--signal", "KILL", node]).await?;
                tokio::time::sleep(AWAY).await;
                docker(&["start", node]).await?;
            }
            Fault::Freeze => {
                // A signal would stop the container's first process alone, which only waits for the node.
                docker(&["pause", node]).await?;
                tokio::time::sleep(lasts(random)).await;
                docker(&["unpause", node]).await?;
            }
            Fault::Leave => {
                docker(&["stop", "--time", LEAVE_MAX_S, node]).await?;
                docker(&["start", node]).await?;
            }
            Fault::Coordinator => {
                let coordinator = self.container("coordinator", 0).await?;
                docker(&["kill", "--signal", "KILL", &coordinator]).await?;
                docker(&["start", &coordinator]).await?;
            }
            Fault::Cut => {
                let network = format!("{}_cluster", self.project);
                docker(&["network", "disconnect", &network, node]).await?;
                tokio::time::sleep(lasts(random)).await;
                docker(&["network", "connect", &network, node]).await?;
            }
            Fault::Replace => {
                docker(&["rm", "--force", node]).await?;
                let (up, variables) = ([self.compose.clone(), self.up()].concat(), self.variables.clone());
                run_aside(up, variables).await?;
            }
            Fault::OneWay => {
                let chain = ["INPUT", "OUTPUT"][random.below(2) as usize];
                self.filter(node, &[chain, "-j", "DROP"], lasts(random)).await?;
            }
            Fault::Loss => {
                let some = ["INPUT", "-m", "statistic", "--mode", "random", "--probability", LOST_PART];
                self.filter(node, &[&some[..], &["-j", "DROP"]].concat(), LASTS).await?;
            }
            _ => unreachable!("this is done to processes"),
        }
        Ok(())
    }

    /// A filter of packets in a container's network, for a while.
    async fn filter(&self, node: &str, rule: &[&str], lasts: Duration) -> Result<(), Failure> {
        let process = docker(&["inspect", "--format", "{{.State.Pid}}", node]).await?;
        let iptables = |what: &str| {
            let begin = ["nsenter", "--target", process.trim(), "--net", "iptables", what];
            begin.iter().chain(rule).map(|word| (*word).to_owned()).collect::<Vec<_>>()
        };
        run_aside(iptables("--append"), Vec::new()).await?;
        tokio::time::sleep(lasts).await;
        run_aside(iptables("--delete"), Vec::new()).await?;
        Ok(())
    }

    /// Whether there may be one.
    fn filter_works(&self) -> bool {
        let probe = || -> Result<(), Failure> {
            let node = run(&["docker", "ps", "--quiet", "--filter", &self.of("node")], &[])?;
            let node = node.lines().next().ok_or("no node is there")?;
            let process = run(&["docker", "inspect", "--format", "{{.State.Pid}}", node], &[])?;
            run(&["nsenter", "--target", process.trim(), "--net", "iptables", "--list-rules"], &[])?;
            Ok(())
        };
        match probe() {
            Ok(()) => true,
            Err(why) => {
                eprintln!(
                    "note: one-way and loss are left out, since packets cannot be filtered here ({why})"
                );
                false
            }
        }
    }

    fn of(&self, service: &str) -> String {
        format!("name=^{}[-_]{service}[-_]", self.project)
    }

    /// A container of a service, by its place among them; those that have ended are among them too.
    async fn container(&self, service: &str, place: usize) -> Result<String, Failure> {
        let filter = self.of(service);
        let all =
            ["docker", "ps", "--all", "--no-trunc", "--filter", &filter, "--format", "{{.Names}} {{.ID}}"];
        let all = run_aside(all.iter().map(|word| (*word).to_owned()).collect(), Vec::new()).await?;
        let mut all: Vec<&str> = all.lines().collect();
        all.sort();
        let found = all.get(place).and_then(|line| line.split(' ').nth(1));
        Ok(found.ok_or_else(|| format!("there is no container {place} of {service}"))?.to_owned())
    }

    fn up(&self) -> Vec<String> {
        let scale = format!("node={}", self.settings.nodes);
        ["up", "--detach", "--no-recreate", "--scale", &scale].map(str::to_owned).to_vec()
    }

    fn down(&self) -> leftover::Undo {
        let words = ["down", "--volumes", "--timeout", "1"].map(str::to_owned);
        leftover::Undo { words: [&self.compose[..], &words].concat(), variables: self.variables.clone() }
    }

    fn compose(&self, words: &[String]) -> Result<String, Failure> {
        let words: Vec<&str> = self.compose.iter().chain(words).map(String::as_str).collect();
        run(&words, &self.variables)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        leftover::run_command(self.down());
    }
}

async fn docker(words: &[&str]) -> Result<String, Failure> {
    let words = std::iter::once("docker").chain(words.iter().copied()).map(str::to_owned).collect();
    run_aside(words, Vec::new()).await
}

fn text(path: &Path) -> Result<String, Failure> {
    Ok(path.to_str().ok_or_else(|| format!("{} is not text", path.display()))?.to_owned())
}
