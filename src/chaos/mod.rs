//! `phalanx chaos`: a cluster under load, to which one thing after another is done.
//!
//! Every answer is compared with the plain loop's, token by token with its probability, while processes are killed, stopped and
//! started again, and while the network between them does what networks do. What is done when is decided by a seed.

mod cluster;
mod command;
mod compose;
mod door;
mod hosts;
mod plan;
mod processes;
mod relay;
mod report;
mod soak;
mod streams;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use self::cluster::Cluster;
use self::compose::Compose;
use self::plan::{Fault, Injection, Plan, longest_gap, usual_gap};
use self::processes::{CarrierName, Processes};
use self::report::{Class, Done};
use self::soak::Soak;
use self::streams::{Heard, Known, listen};
use crate::Failure;
use crate::access::Access;
use crate::answers::{plain, questions};
use crate::arguments::ComputeArguments;
use crate::bench::leftover;
use crate::bench::scratch::Scratch;
use crate::output::show;
use crate::remote::Remote;
use crate::session::open;

/// How long the cluster may take to load at first.
const FORMING_MAX: Duration = Duration::from_secs(600);
/// How long it may take to be whole again after a fault.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// Without faults: at first, to know what is usual; and after each has been recovered from.
const CALM_FIRST: Duration = Duration::from_secs(3);
const CALM: Duration = Duration::from_millis(700);
/// Requests that are asked again and again, and the tokens of their prompts and answers.
const QUESTIONS: u32 = 24;
const PROMPT: u32 = 12;
const ANSWER: u32 = 48;
/// To so many streams, one who asks for whole answers.
const STREAMS_TO_WHOLE: u32 = 8;

/// Do to a cluster under load what can befall one, and compare every answer with the one process's.
///
/// The exit code is 1 if an answer was lost or different, or the cluster was not whole again within a minute. A stall is the
/// longest time from one token to the next of any stream, above what is usual.
///
/// Examples:
///   phalanx chaos
///   phalanx chaos --minutes 5 --seed 42 --faults kill,freeze
///   phalanx chaos --faults reset --injections 100
///   phalanx chaos --compose docker-compose.yml
///   phalanx chaos --hosts
///   phalanx chaos --soak --minutes 30
///   phalanx chaos --model DIR --nodes 3 --streams 4 --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Chaos {
    /// Folder of a checkpoint. Without it: the embedded demo model.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    #[command(flatten)]
    compute: ComputeArguments,

    /// How long.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,

    /// Instead of a time: so many of each kind.
    #[arg(long, value_name = "N", conflicts_with_all = ["minutes", "soak"], value_parser = clap::value_parser!(u32).range(1..))]
    injections: Option<u32>,

    /// What is done, when and to whom.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Kinds of faults. Default: all that this cluster can be done.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    faults: Vec<Fault>,

    /// Containers instead of processes, as this file describes them; Docker's engine runs them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["soak", "insecure"])]
    compose: Option<PathBuf>,

    /// Nodes as hosts of their own: network namespaces on one bridge, where the kernel itself drops packets. All of it is in a
    /// namespace of this run.
    #[arg(long, conflicts_with_all = ["compose", "insecure"])]
    hosts: bool,

    // The program has begun itself again in that namespace.
    #[arg(long, hide = true)]
    is_apart: bool,

    /// How nodes are reached. With quic, data and weights go beside the relay that damages, delays and loses what is on its way;
    /// with --hosts they do not.
    #[arg(long, value_name = "NAME", default_value = "tcp", conflicts_with = "compose")]
    carrier: CarrierName,

    /// Links without TLS, whose frames have checksums instead.
    #[arg(long)]
    insecure: bool,

    /// See whether memory and descriptors of all processes stay as they are: no more than 5 % growth (or a huge page) from the
    /// second sixth of the time to the last, or the exit code is 1. Faults that end a process are left out unless they are named.
    #[arg(long)]
    soak: bool,

    /// Fail too where a kind of fault held answers up for longer than is promised of it: 99 in 100, on a machine that does
    /// nothing else.
    #[arg(long)]
    strict: bool,

    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=64))]
    nodes: u32,

    /// Devices of each node. Default: enough for three replicas of every expert.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    devices: Option<u32>,

    /// Replicas that every expert must have. With one, what a node alone holds has to be loaded elsewhere when it is gone, and
    /// waited for while it is frozen.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,

    /// Streams that are being answered at once. To eight of them comes one who asks for whole answers.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: u32,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes: &f64| *minutes > 0.0 && *minutes <= 10_000.0);
    minutes.ok_or_else(|| format!("`{text}` is not a number of minutes; write for example 5"))
}

/// What was looked for, and found: the exit code is 1.
#[derive(Debug)]
pub(crate) struct Found(String);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Found {}

/// How the cluster was before a fault, as far as it must be otherwise after it.
#[derive(Debug, Clone, PartialEq)]
struct Before {
    name: String,
    /// Of the node's link.
    address: Value,
    /// Of the coordinator's life.
    term: Value,
}

impl Before {
    fn of(state: &Value, name: String) -> Self {
        let node = nodes(state).find(|node| node["name"] == name.as_str());
        let address = node.map_or(Value::Null, |node| node["address"].clone());
        Self { name, address, term: state["epoch"]["term"].clone() }
    }

    /// Whether `state` is one after the fault: what it must have ended has ended.
    fn is_over(&self, fault: Fault, state: &Value) -> bool {
        let now = Self::of(state, self.name.clone());
        match fault {
            Fault::Coordinator => now.term != self.term,
            Fault::Replace => {
                !nodes(state).any(|node| node["name"] == self.name && node["state"] == "joined")
            }
            fault => !fault.ends_link() || now.address != self.address,
        }
    }
}

fn nodes(state: &Value) -> impl Iterator<Item = &Value> {
    state["nodes"].as_array().into_iter().flatten()
}

impl Chaos {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.hosts && !self.is_apart {
            return Err(hosts::enter(crate::arguments_given()));
        }
        leftover::watch()?;
        let scratch = Scratch::create()?;
        let opened = open(self.model.as_deref())?;
        let asked = questions(QUESTIONS, PROMPT, ANSWER, opened.spec.vocab);
        let answers = plain(&opened, &self.compute, &asked)?;
        let known = Rc::new(Known { questions: asked, answers });
        let numeric_class = self.compute.kernels()?.class().to_string();
        let cluster = self.start(&scratch.path().join("cluster"), opened.experts().len(), &numeric_class)?;
        let kinds = self.kinds(&cluster)?;
        let remote = Rc::new(Remote::new(cluster.url(), &Access::default())?.quiet());
        let served = wait_until_served(&remote)?;
        if served != numeric_class {
            return Err(format!(
                "the cluster computes in {served}, and this process in {numeric_class}; give --numeric-class {served}"
            )
            .into());
        }
        let heard = Heard { news: vec![Vec::new(); self.streams as usize], ..Heard::default() };
        let heard = Rc::new(RefCell::new(heard));
        let conduct = self.conduct(cluster, kinds.clone(), &remote, &known, &heard);
        let (done, soak, lasted) = remote.wait(LocalSet::new().run_until(conduct))?;
        let heard = heard.take();
        let classes = report::classes(&kinds, &done, &heard);
        let growth = if self.soak { soak.growth(lasted)? } else { Vec::new() };
        if self.json {
            let [by_kind, injections] = report::object(&classes, &done);
            let words = |all: &[streams::Wrong]| all.iter().map(|wrong| json!(wrong.what)).collect::<Value>();
            let object = json!({
                "seed": self.seed, "nodes": self.nodes, "streams": self.streams, "classes": by_kind,
                "injections": injections, "answers": heard.answered, "different": words(&heard.different),
                "lost": words(&heard.lost), "sent_again": heard.asked_again,
                "processes": growth.iter().map(soak::Growth::object).collect::<Value>(),
            });
            show(&format!("{object:#}\n"))?;
        } else {
            show(&report::table(&classes))?;
            if self.soak {
                show(&soak::table(&growth))?;
            }
            show(&self.sum(&heard))?;
        }
        match self.found(&classes, &growth, &heard) {
            Some(found) => Err(Box::new(Found(found))),
            None => Ok(()),
        }
    }

    fn start(&self, folder: &Path, experts: usize, numeric_class: &str) -> Result<Cluster, Failure> {
        if self.insecure && self.carrier == CarrierName::Quic {
            return Err("--insecure: there is no QUIC without TLS; take --carrier tcp".into());
        }
        let (nodes, model) = (self.nodes as usize, self.model.clone());
        let devices = self.devices.map_or((3 * experts).div_ceil(nodes), |devices| devices as usize);
        let replicas = self.replicas;
        if let Some(file) = &self.compose {
            let settings = compose::Settings { file: file.clone(), model, nodes, devices, replicas };
            return Ok(Cluster::Compose(Box::new(Compose::start(settings)?)));
        }
        let settings = processes::Settings {
            model,
            numeric_class: numeric_class.to_owned(),
            nodes,
            devices,
            replicas,
            carrier: self.carrier,
            is_insecure: self.insecure,
            has_hosts: self.hosts,
            folder: folder.to_owned(),
            seed: self.seed,
        };
        Ok(Cluster::Processes(Box::new(Processes::start(settings)?)))
    }

    /// What is done: what was asked for, or all that can be.
    fn kinds(&self, cluster: &Cluster) -> Result<Vec<Fault>, Failure> {
        // A node with a copy of the checkpoint keeps nothing on its disk.
        let is_possible = |fault: &Fault| *fault != Fault::Disk || self.model.is_none();
        let possible: Vec<Fault> = cluster.faults().into_iter().filter(is_possible).collect();
        if let Some(fault) = self.faults.iter().find(|fault| !possible.contains(fault)) {
            let names: Vec<&str> = possible.iter().map(|fault| fault.name()).collect();
            return Err(format!(
                "--faults {fault}: this cluster cannot be done that; it can be done: {}",
                names.join(", ")
            )
            .into());
        }
        let is_wanted = |fault: &Fault| match self.faults.is_empty() {
            true => !(self.soak && fault.ends_process()),
            false => self.faults.contains(fault),
        };
        let all = Fault::value_variants().iter().copied();
        Ok(all.filter(|fault| possible.contains(fault) && is_wanted(fault)).collect())
    }

    /// Keeps the load on, and does one thing after the other. What was done, what processes had meanwhile, and how long it took.
    async fn conduct(
        &self,
        mut cluster: Cluster,
        kinds: Vec<Fault>,
        remote: &Rc<Remote>,
        known: &Rc<Known>,
        heard: &Rc<RefCell<Heard>>,
    ) -> Result<(Vec<Done>, Soak, Duration), Failure> {
        let start = Instant::now();
        self.whole(remote, start, start, heard, |_| true).await.ok_or("the nodes did not all join")?;
        let stop = Rc::new(Cell::new(false));
        let mut all_who_ask = JoinSet::new();
        for number in 0..(self.streams + self.streams.div_ceil(STREAMS_TO_WHOLE)) as usize {
            let (remote, known, heard, stop) =
                (Rc::clone(remote), Rc::clone(known), Rc::clone(heard), Rc::clone(&stop));
            all_who_ask.spawn_local(listen(number, remote, known, heard, stop, self.seed));
        }
        tokio::time::sleep(CALM_FIRST).await;
        let usual = usual_gap(&heard.borrow().news);
        let began = Instant::now();
        let mut plan = Plan::new(self.seed, kinds, self.nodes);
        let (mut all, mut soak) = (Vec::new(), Soak::default());
        loop {
            let injection = plan.next();
            let is_enough = match self.injections {
                Some(count) => injection.earlier == count,
                None => began.elapsed().as_secs_f64() >= self.minutes * 60.0,
            };
            if is_enough || !heard.borrow().different.is_empty() {
                break;
            }
            let done = self.one(&mut cluster, injection, remote, heard, usual).await?;
            if !self.json {
                show(&done.line())?;
            }
            let is_recovered = done.recovered.is_some();
            all.push(done);
            if self.soak {
                soak.look(began, &cluster.processes())?;
            }
            if !is_recovered {
                break;
            }
        }
        let lasted = began.elapsed();
        stop.set(true);
        // Answers under way are heard to their end.
        while all_who_ask.join_next().await.is_some() {}
        Ok((all, soak, lasted))
    }

    /// One fault, until it is over and was recovered from.
    async fn one(
        &self,
        cluster: &mut Cluster,
        mut injection: Injection,
        remote: &Remote,
        heard: &RefCell<Heard>,
        usual: Duration,
    ) -> Result<Done, Failure> {
        let fault = injection.fault;
        let name = cluster.name(injection.node).await?;
        let before = Before::of(&remote.cluster_now().await?, name.clone());
        let start = Instant::now();
        cluster.inject(&mut injection).await.map_err(|why| format!("{fault} {name}: {why}"))?;
        let injected = Instant::now();
        let is_over = |state: &Value| before.is_over(fault, state);
        let recovered = self.whole(remote, start, injected, heard, is_over).await;
        cluster.undo(&injection).map_err(|why| format!("{fault} {name}: {why}"))?;
        // What began at its end is over too.
        tokio::time::sleep(CALM).await;
        let end = Instant::now();
        let mut heard = heard.borrow_mut();
        let stall = heard.news.iter().map(|news| longest_gap(news, start, end)).max().unwrap_or_default();
        // Of what was before this only the last is asked for again.
        heard.news.iter_mut().for_each(|news| drop(news.drain(..news.len().saturating_sub(1))));
        let node = (fault != Fault::Coordinator).then_some(name);
        Ok(Done { fault, node, end, stall: stall.saturating_sub(usual), recovered })
    }

    /// Waits until all nodes have joined, every expert is held, what a fault ends has ended, and every stream has had something
    /// new since `injected`. How long after `start` that was.
    async fn whole(
        &self,
        remote: &Remote,
        start: Instant,
        injected: Instant,
        heard: &RefCell<Heard>,
        is_over: impl Fn(&Value) -> bool,
    ) -> Option<Duration> {
        loop {
            let state = remote.cluster_now().await.unwrap_or(Value::Null);
            let moves = ["loading", "waiting"].iter().all(|name| state["moves"][name].as_u64() == Some(0));
            let joined = nodes(&state).filter(|node| node["state"] == "joined").count();
            let is_whole = state["state"] == "serving" && joined == self.nodes as usize && moves;
            let all_heard = {
                let heard = heard.borrow();
                heard.news.iter().all(|news| news.last().is_none_or(|last| *last > injected))
            };
            if is_whole && all_heard && is_over(&state) {
                return Some(start.elapsed());
            }
            if injected.elapsed() > RECOVERED_WITHIN {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn sum(&self, heard: &Heard) -> String {
        let (answered, again) = (heard.answered, heard.asked_again);
        let (different, lost) = (heard.different.len(), heard.lost.len());
        format!(
            "\n{} streams, seed {}: {answered} answers the same, {different} different, {lost} lost; {again} requests were \
             sent again\n",
            self.streams, self.seed
        )
    }

    /// What must not be, in words.
    fn found(&self, classes: &[Class], growth: &[soak::Growth], heard: &Heard) -> Option<String> {
        let unrecovered: usize = classes.iter().map(|class| class.injected - class.recovered).sum();
        let grown = growth.iter().filter(|growth| !growth.is_flat()).count();
        let slow = classes.iter().find(|class| !class.is_within()).filter(|_| self.strict);
        match (heard.different.first(), heard.lost.first()) {
            (Some(wrong), _) => Some(format!("an answer was different: {}", wrong.what)),
            (None, Some(wrong)) => Some(format!("an answer was lost: {}", wrong.what)),
            _ if unrecovered > 0 => {
                let seconds = RECOVERED_WITHIN.as_secs();
                Some(format!("{unrecovered} faults were not recovered from within {seconds} s"))
            }
            _ if grown > 0 => Some(format!("{grown} processes have grown")),
            _ => slow.map(|class| format!("{} held answers up for longer than is promised", class.fault)),
        }
    }
}

/// Waits, and says the numeric class. Containers are there before what runs in them is.
fn wait_until_served(remote: &Remote) -> Result<String, Failure> {
    let began = Instant::now();
    loop {
        match remote.wait_until_served(FORMING_MAX.saturating_sub(began.elapsed())) {
            Ok(served) => return Ok(served.numeric_class),
            Err(why) if began.elapsed() > FORMING_MAX => return Err(why),
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that is reset stands again at once, and is another: that it stands says nothing.
    #[test]
    fn what_a_fault_ends_has_ended_before_it_is_over() {
        let state = |address: &str, term: u64, state: &str| json!({ "epoch": { "term": term }, "nodes": [{ "name": "n1", "address": address, "state": state }] });
        let before = Before::of(&state("127.0.0.1:9", 3, "joined"), "n1".to_owned());
        let same = state("127.0.0.1:9", 3, "joined");
        let other = state("127.0.0.1:7", 3, "joined");
        for fault in Fault::value_variants() {
            let lasts = fault.ends_link() || matches!(fault, Fault::Coordinator | Fault::Replace);
            assert_eq!(before.is_over(*fault, &same), !lasts, "{fault}");
        }
        for fault in [Fault::Kill, Fault::Reset, Fault::Corrupt, Fault::Leave, Fault::Disk] {
            assert!(before.is_over(fault, &other), "{fault}");
        }
        assert!(!before.is_over(Fault::Coordinator, &other));
        assert!(before.is_over(Fault::Coordinator, &state("127.0.0.1:7", 4, "joined")));
        assert!(before.is_over(Fault::Replace, &state("127.0.0.1:9", 3, "gone")));
        assert!(before.is_over(Fault::Replace, &json!({ "nodes": [] })));
    }
}
