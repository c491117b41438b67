//! `phalanx chaos`: a cluster of processes under load, to which one thing after another is done.
//!
//! Every answer is compared with the plain loop's, token by token with its probability, while processes are killed,
//! stopped and started again. What is done when is decided by a seed.

mod cluster;
mod plan;
mod streams;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use self::cluster::{Processes, Settings};
use self::plan::{Fault, Plan, longest_gap, usual_gap};
use self::streams::{Heard, Known, listen};
use crate::Failure;
use crate::access::Access;
use crate::answers::{plain, questions};
use crate::arguments::ComputeArguments;
use crate::bench::heard::quantile;
use crate::bench::leftover;
use crate::bench::scratch::Scratch;
use crate::output::show;
use crate::remote::Remote;
use crate::session::open;

/// How long the cluster may take to load at first.
const FORMING_MAX: Duration = Duration::from_secs(600);
/// How long it may take to be whole again after a fault.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Without faults: at first, to know what is usual; and after each has been healed.
const CALM_FIRST: Duration = Duration::from_secs(3);
const CALM: Duration = Duration::from_millis(700);
/// How long a killed node is away, and a frozen one stands.
const AWAY: Duration = Duration::from_secs(1);
const FROZEN: Duration = Duration::from_secs(3);
/// Requests that are asked again and again, and the tokens of their prompts and answers.
const QUESTIONS: u32 = 24;
const PROMPT: u32 = 12;
const ANSWER: u32 = 48;

/// Kill and freeze the processes of a cluster under load, and compare every answer with the one process's.
///
/// The exit code is 2 if an answer was lost or different, or the cluster was not whole again within a minute.
///
/// Examples:
///   phalanx chaos
///   phalanx chaos --minutes 5 --seed 42 --faults kill,freeze
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

    /// What is done, when and to whom.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Kinds of faults.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = Fault::ALL)]
    faults: Vec<Fault>,

    /// Node processes.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=64))]
    nodes: u32,

    /// Devices of each node. Default: enough for three replicas of every expert.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    devices: Option<u32>,

    /// Replicas that every expert must have. With one, what a node alone holds has to be loaded elsewhere when it is gone, and
    /// waited for while it is frozen.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,

    /// Streams that are being answered at once.
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

/// What one fault did.
struct Done {
    fault: Fault,
    node: usize,
    /// The longest time that one of the streams had nothing new, above what is usual.
    stall: Duration,
    /// Until everything was as before; none if it was not within its time.
    healed: Option<Duration>,
}

impl Chaos {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        leftover::watch()?;
        let scratch = Scratch::create()?;
        let opened = open(self.model.as_deref())?;
        let asked = questions(QUESTIONS, PROMPT, ANSWER, opened.spec.vocab);
        let answers = plain(&opened, &self.compute, &asked)?;
        let known = Rc::new(Known { questions: asked, answers });
        let experts = opened.experts().len();
        let folder = scratch.path().join("cluster");
        cluster::prepare(&folder)?;
        let devices =
            self.devices.map_or((3 * experts).div_ceil(self.nodes as usize), |devices| devices as usize);
        let settings = Settings {
            model: self.model.clone(),
            numeric_class: self.compute.kernels()?.class().to_string(),
            nodes: self.nodes as usize,
            devices,
            replicas: self.replicas,
            folder,
        };
        let processes = Processes::start(settings)?;
        let remote = Rc::new(Remote::new(&processes.url, &Access::default())?.quiet());
        remote.wait_until_served(FORMING_MAX)?;
        let heard = Heard { news: vec![Vec::new(); self.streams as usize], ..Heard::default() };
        let heard = Rc::new(RefCell::new(heard));
        let done =
            remote.wait(LocalSet::new().run_until(self.conduct(processes, &remote, &known, &heard)))?;
        let heard = heard.take();
        match self.json {
            true => show(&format!("{:#}\n", self.object(&done, &heard)))?,
            false => show(&self.table(&done, &heard))?,
        }
        let unhealed = done.iter().filter(|done| done.healed.is_none()).count();
        match (heard.different.first(), heard.lost.first(), unhealed) {
            (Some(what), ..) => Err(format!("an answer was different: {what}").into()),
            (None, Some(what), _) => Err(format!("an answer was lost: {what}").into()),
            (None, None, 1..) => {
                Err(format!("{unhealed} faults were not healed within {} s", HEALED_WITHIN.as_secs()).into())
            }
            (None, None, 0) => Ok(()),
        }
    }

    /// Keeps the load on, and does one thing after the other.
    async fn conduct(
        &self,
        mut processes: Processes,
        remote: &Rc<Remote>,
        known: &Rc<Known>,
        heard: &Rc<RefCell<Heard>>,
    ) -> Result<Vec<Done>, Failure> {
        self.whole(remote, Instant::now(), heard).await.ok_or("the nodes did not all join")?;
        let stop = Rc::new(Cell::new(false));
        let mut streams = JoinSet::new();
        for number in 0..self.streams as usize {
            let (remote, known, heard, stop) =
                (Rc::clone(remote), Rc::clone(known), Rc::clone(heard), Rc::clone(&stop));
            streams.spawn_local(listen(number, remote, known, heard, stop, self.seed));
        }
        tokio::time::sleep(CALM_FIRST).await;
        let usual = usual_gap(&heard.borrow().news);
        let began = Instant::now();
        let mut plan = Plan::new(self.seed, self.faults.clone(), self.nodes);
        let mut all = Vec::new();
        while began.elapsed().as_secs_f64() < self.minutes * 60.0 && heard.borrow().different.is_empty() {
            let (fault, node) = plan.next();
            let start = Instant::now();
            inject(&mut processes, fault, node).await?;
            let healed = self.whole(remote, start, heard).await;
            // What began at its end is over too.
            tokio::time::sleep(CALM).await;
            let end = Instant::now();
            let stall = heard.borrow().news.iter().map(|news| longest_gap(news, start, end)).max();
            let stall = stall.unwrap_or_default().saturating_sub(usual);
            if !self.json {
                show(&line(fault, node, stall, healed))?;
            }
            all.push(Done { fault, node, stall, healed });
        }
        stop.set(true);
        // Answers under way are heard to their end.
        while streams.join_next().await.is_some() {}
        Ok(all)
    }

    /// Waits until all nodes have joined, every expert is held, and every stream has had something new since.
    async fn whole(&self, remote: &Remote, since: Instant, heard: &RefCell<Heard>) -> Option<Duration> {
        loop {
            let state = remote.cluster_now().await.unwrap_or(Value::Null);
            let joined = |nodes: &Vec<Value>| nodes.iter().filter(|node| node["state"] == "joined").count();
            let moves = ["loading", "waiting"].iter().all(|name| state["moves"][name].as_u64() == Some(0));
            let is_whole = state["state"] == "serving"
                && state["nodes"].as_array().map(joined) == Some(self.nodes as usize)
                && moves;
            let all_heard = {
                let heard = heard.borrow();
                heard.news.iter().all(|news| news.last().is_none_or(|last| *last > since))
            };
            if is_whole && all_heard {
                return Some(since.elapsed());
            }
            if since.elapsed() > HEALED_WITHIN {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn table(&self, done: &[Done], heard: &Heard) -> String {
        let mut text = "\nfault         injected  healed   stall p50      p99      max ms\n".to_owned();
        for kind in self.kinds() {
            let of_kind: Vec<&Done> = done.iter().filter(|done| done.fault == kind).collect();
            let healed = of_kind.iter().filter(|done| done.healed.is_some()).count();
            let [p50, p99, max] = stalls(&of_kind);
            text += &format!(
                "{:12} {:9} {healed:7} {p50:11.0} {p99:8.0} {max:8.0}\n",
                kind.name(),
                of_kind.len()
            );
        }
        text + &format!(
            "\n{} streams, seed {}: {} answers the same, {} different, {} lost; {} requests were sent again\n",
            self.streams,
            self.seed,
            heard.answered,
            heard.different.len(),
            heard.lost.len(),
            heard.asked_again
        )
    }

    fn object(&self, done: &[Done], heard: &Heard) -> Value {
        let class = |kind: Fault| {
            let of_kind: Vec<&Done> = done.iter().filter(|done| done.fault == kind).collect();
            let [p50, p99, max] = stalls(&of_kind);
            json!({
                "fault": kind.name(), "injected": of_kind.len(),
                "healed": of_kind.iter().filter(|done| done.healed.is_some()).count(),
                "stall_ms": { "p50": p50, "p99": p99, "max": max },
            })
        };
        json!({
            "seed": self.seed, "nodes": self.nodes, "streams": self.streams,
            "classes": self.kinds().map(class).collect::<Vec<_>>(),
            "injections": done.iter().map(|done| json!({
                "fault": done.fault.name(), "node": (done.fault != Fault::Coordinator).then_some(done.node),
                "stall_ms": done.stall.as_secs_f64() * 1e3,
                "healed_ms": done.healed.map(|healed| healed.as_secs_f64() * 1e3),
            })).collect::<Vec<_>>(),
            "answers": heard.answered, "different": heard.different, "lost": heard.lost, "sent_again": heard.asked_again,
        })
    }

    /// Each kind that was asked for, once.
    fn kinds(&self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(|kind| self.faults.contains(kind))
    }
}

/// Does it, and undoes what is to be undone; healing is the cluster's.
async fn inject(processes: &mut Processes, fault: Fault, node: usize) -> Result<(), Failure> {
    match fault {
        Fault::Kill => {
            processes.kill(node);
            tokio::time::sleep(AWAY).await;
            processes.start_again(node)
        }
        Fault::Freeze => {
            processes.freeze(node, true)?;
            tokio::time::sleep(FROZEN).await;
            processes.freeze(node, false)
        }
        Fault::Leave => {
            processes.leave(node).await?;
            processes.start_again(node)
        }
        Fault::Coordinator => processes.restart_coordinator(),
    }
}

fn line(fault: Fault, node: usize, stall: Duration, healed: Option<Duration>) -> String {
    let whom = if fault == Fault::Coordinator { String::new() } else { format!(" n{node}") };
    let healed = match healed {
        Some(healed) => format!("whole again after {:.1} s", healed.as_secs_f64()),
        None => "NOT whole again".to_owned(),
    };
    format!("{:16} stalled for {:5} ms, {healed}\n", format!("{}{whom}", fault.name()), stall.as_millis())
}

/// Median, 99th percentile and greatest of what faults held up, in milliseconds.
fn stalls(done: &[&Done]) -> [f64; 3] {
    let mut stalls: Vec<f64> = done.iter().map(|done| done.stall.as_secs_f64() * 1e3).collect();
    [0.5, 0.99, 1.0].map(|part| quantile(&mut stalls, part))
}
