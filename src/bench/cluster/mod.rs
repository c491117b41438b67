//! `phalanx bench cluster`: a cluster beside the same model alone in this process, in turns, as ratios.
//!
//! On a shared machine speed moves within seconds. So both take turns in short windows, every window of the cluster is
//! compared with the mean of those of the model alone before and after it, and the ratio shown is the median. Both
//! are asked the same, and every token is compared.

pub(super) mod alone;
mod formed;
mod nodes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use coordinator::assemble::Assembly;
use coordinator::config::ForwardingChoice;
use coordinator::control::placer::PlacerSettings;
use coordinator::control::policy::{Constraints, Policy};
use coordinator::data::start::DataSettings;
use model::load::Opened;
use model::plain::check_context;
use model::pool::Pool;
use model::weights::Manifest;
use node::host::Host;
use serde_json::{Value, json};
use transport::security::{Authority, Issuance, Role, Tls, Utc};

use self::formed::{FORMING_MAX, Formed};
use self::nodes::{NodeArguments, Nodes};
use super::checkpoint;
use super::leftover;
use super::model::{Random, median};
use super::scratch::Scratch;
use super::shape::{Shape, parse};
use super::transport::{CarrierName, throughput};
use crate::Failure;
use crate::arguments::{ComputeArguments, size};
use crate::formation::{FormationSettings, Served, load_trunk};
use crate::output::show;
use crate::session::{Session, config_text, open};

/// However little time is given.
const ROUNDS_MIN: usize = 3;
/// Decode steps of a window.
const STEPS: std::ops::RangeInclusive<usize> = 24..=256;
/// Of prefill with nodes in processes of their own, where no carrier bounds it.
const PREFILL_BAR: f64 = 0.85;
/// The part of what a carrier leaves that is to be reached.
const OF_BOUND: f64 = 0.9;
/// Certificates live longer than any run.
const LIFE: Duration = Duration::from_secs(7 * 86_400);

/// A cluster beside the same model alone in this process: tokens per second in turns, and their ratio.
///
/// `embedded` is what `phalanx serve` starts: nodes in this process, over memory. The other carriers join node
/// processes, on the same cores: this program must be built with its workspace. Every token is compared.
#[derive(Debug, Args)]
pub(crate) struct Cluster {
    /// Folder of a checkpoint.
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Or random weights of a shape: layers=4,experts=8,...; what is not named is the bench model's. For node processes
    /// they are written to a temporary folder.
    #[arg(long, value_name = "SHAPE", value_parser = parse, default_value = "")]
    shape: Shape,

    #[command(flatten)]
    compute: ComputeArguments,

    /// Which clusters.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "embedded")]
    over: Vec<Over>,

    /// Nodes of each cluster. Default: 4 embedded, 2 processes.
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,

    /// Compute threads of each node process.
    #[arg(long, value_name = "N", default_value_t = 1)]
    node_threads: usize,

    /// Decode at these numbers of concurrent requests.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 32])]
    batch: Vec<usize>,

    /// Prefill so many tokens, of one request and of eight.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill: usize,

    /// Tokens in a sequence before decode begins.
    #[arg(long, value_name = "N", default_value_t = 64)]
    prompt: usize,

    /// Whether rows wait for those of their step.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    forwarding: ForwardingChoice,

    /// Seconds for each figure.
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,

    /// Most memory for keys and values, of both.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = size)]
    kv_memory: u64,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What joins the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Embedded,
    Shm,
    Tcp,
    TcpTls,
    Quic,
}

/// What takes turns.
pub(super) trait Contender {
    /// Answers all prompts at once, with `count` tokens each.
    fn answer(&mut self, prompts: &[Vec<u32>], count: usize) -> Result<Timing, Failure>;
}

/// How an answer went.
pub(super) struct Timing {
    /// Until all had their first token.
    first: Duration,
    /// Tokens after that, while none had ended, and how long they took.
    pub(super) decoded: f64,
    pub(super) decode: Duration,
    tokens: Vec<Vec<u32>>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Decode { batch: usize },
    Prefill { batch: usize },
}

/// One figure: rates of both, and their ratio.
struct Figure {
    over: Over,
    measure: String,
    alone: f64,
    cluster: f64,
    ratio: f64,
    rounds: usize,
    identical: bool,
    bar: Option<f64>,
    /// What bounds the ratio, in words.
    bound: Option<String>,
}

impl Over {
    fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::TcpTls => "tcp-tls",
            Self::Quic => "quic",
        }
    }

    /// What the ratio must reach on the bench model, all under the same cores.
    fn bar(self, measure: Measure) -> Option<f64> {
        match (self, measure) {
            (Self::Embedded, _) => Some(0.95),
            (Self::Shm, Measure::Decode { batch: 1 }) => Some(0.85),
            (Self::Tcp, Measure::Decode { batch: 1 }) => Some(0.75),
            (Self::Shm, Measure::Decode { .. }) => Some(0.92),
            (Self::Tcp, Measure::Decode { .. }) => Some(0.90),
            (Self::Quic, Measure::Decode { batch: 2.. }) => Some(0.87),
            (Self::Shm, Measure::Prefill { .. }) => Some(PREFILL_BAR),
            _ => None,
        }
    }

    /// Whose bytes bound prefill, and are measured for that.
    fn bounded_by(self) -> Option<CarrierName> {
        match self {
            Self::Tcp => Some(CarrierName::Tcp),
            Self::TcpTls => Some(CarrierName::TcpTls),
            Self::Quic => Some(CarrierName::Quic),
            Self::Embedded | Self::Shm => None,
        }
    }
}

impl Measure {
    fn name(self, length: usize) -> String {
        match self {
            Self::Decode { batch } => format!("decode batch {batch}"),
            Self::Prefill { batch: 1 } => format!("prefill {length}"),
            Self::Prefill { batch } => format!("prefill {batch} x {length}"),
        }
    }

    fn batch(self) -> usize {
        match self {
            Self::Decode { batch } | Self::Prefill { batch } => batch,
        }
    }

    /// Tokens per second of an answer.
    fn rate(self, timing: &Timing, length: usize) -> f64 {
        match self {
            Self::Decode { .. } => timing.decoded / timing.decode.as_secs_f64(),
            Self::Prefill { batch } => (batch * length) as f64 / timing.first.as_secs_f64(),
        }
    }
}

const HEAD: &str = "over       figure              alone/s  cluster/s   ratio     bar   windows   tokens\n";

impl Figure {
    fn line(&self) -> String {
        let bar = self.bar.map_or("      ".to_owned(), |bar| format!("{bar:6.2}"));
        let tokens = if self.identical { "identical" } else { "DIFFERENT" };
        let bound = self.bound.as_ref().map(|bound| format!("           {bound}\n")).unwrap_or_default();
        format!(
            "{:10} {:18} {:8.1} {:10.1} {:7.3} {bar}  {:8}   {tokens}\n{bound}",
            self.over.name(),
            self.measure,
            self.alone,
            self.cluster,
            self.ratio,
            self.rounds
        )
    }

    fn json(&self) -> Value {
        json!({
            "over": self.over.name(), "figure": self.measure, "alone_tokens_per_s": self.alone,
            "cluster_tokens_per_s": self.cluster, "ratio": self.ratio, "bar": self.bar,
            "bound": self.bound, "windows": self.rounds, "tokens_identical": self.identical,
        })
    }
}

impl Cluster {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.batch.contains(&0) || self.prefill == 0 || self.prompt == 0 {
            return Err("--batch, --prefill and --prompt must be above 0".into());
        }
        if self.nodes == Some(0) || self.node_threads == 0 {
            return Err("--nodes and --node-threads must be above 0".into());
        }
        leftover::watch()?;
        let scratch = Scratch::create()?;
        let folder = self.folder(&scratch)?;
        let opened = Arc::new(match &folder {
            Some(folder) => open(Some(folder))?,
            None => self.shape.open()?,
        });
        check_context(&opened.spec, self.prompt + STEPS.start())?;
        check_context(&opened.spec, self.prefill + 1)?;
        let config = match &folder {
            Some(folder) => config_text(Some(folder))?,
            None => self.shape.config().to_string().into_bytes(),
        };
        let mut alone = Session::load_opened(&opened, &self.compute, self.kv_memory)?;
        let host = Host::read();
        let (threads, kernels) = (alone.pool.threads(), alone.kernels());
        if !self.json {
            let (class, path) = (kernels.class(), kernels.path());
            show(&format!("{}, {threads} threads, class {class}, path {path}\n\n{HEAD}", host.cpu))?;
        }
        let mut figures = Vec::new();
        for over in self.over.iter().copied() {
            let carries = over.bounded_by().map(throughput).transpose()?;
            let (mut cluster, mut nodes) = self.form(over, &opened, &config, folder.as_deref(), &scratch)?;
            let measures = self.batch.iter().map(|&batch| Measure::Decode { batch });
            for measure in measures.chain([1, 8].map(|batch| Measure::Prefill { batch })) {
                let figure =
                    self.measure(over, measure, opened.spec.vocab, &mut alone, &mut cluster, carries)?;
                if let Some(nodes) = &mut nodes {
                    nodes.check()?;
                }
                if !self.json {
                    show(&figure.line())?;
                }
                figures.push(figure);
            }
        }
        if self.json {
            let object = json!({
                "cpu": host.cpu, "threads": threads, "node_threads": self.node_threads,
                "numeric_class": kernels.class().to_string(), "kernel_path": kernels.path().to_string(),
                "figures": figures.iter().map(Figure::json).collect::<Vec<Value>>(),
            });
            show(&format!("{object:#}\n"))?;
        }
        match figures.iter().find(|figure| !figure.identical) {
            Some(figure) => {
                Err(format!("{} over {}: tokens differ", figure.measure, figure.over.name()).into())
            }
            None => Ok(()),
        }
    }

    /// Where the checkpoint lies, if it has to lie anywhere.
    fn folder(&self, scratch: &Scratch) -> Result<Option<PathBuf>, Failure> {
        if self.model.is_some() || self.over.iter().all(|over| *over == Over::Embedded) {
            return Ok(self.model.clone());
        }
        let folder = scratch.path().join("model");
        checkpoint::write(&folder, &self.shape, 2 << 30)?;
        Ok(Some(folder))
    }

    /// Starts a cluster, and waits until it can serve.
    fn form(
        &self,
        over: Over,
        opened: &Arc<Opened>,
        config: &[u8],
        folder: Option<&Path>,
        scratch: &Scratch,
    ) -> Result<(Formed, Option<Nodes>), Failure> {
        let admission = self.compute.admission()?;
        let kernels = admission.kernels;
        let cores = self.compute.cores.as_ref().map(|cores| cores.0.as_slice());
        let threads = self.compute.threads()?;
        let pool = Arc::new(match over {
            Over::Embedded => Pool::for_turns(threads, cores),
            _ => Pool::new(threads, cores),
        });
        let trunk = load_trunk(opened, &admission, threads)?;
        let served = Served {
            name: "bench".into(),
            opened: Arc::clone(opened),
            config: config.to_vec(),
            manifest: Manifest::default(),
            admission,
            pool,
            trunk,
        };
        let door = match over {
            Over::Embedded => None,
            Over::Shm => Some(format!("shm:{}", scratch.path().join("door").display())),
            Over::Tcp | Over::TcpTls => Some("127.0.0.1:0".to_owned()),
            Over::Quic => Some("quic:127.0.0.1:0".to_owned()),
        };
        let count = self.nodes.unwrap_or(if door.is_some() { 2 } else { 4 });
        let certs = match over {
            Over::TcpTls | Over::Quic => Some(scratch.path().join(format!("certs-{}", over.name()))),
            _ => None,
        };
        let tls = certs.as_deref().map(|folder| certificates(folder, count)).transpose()?;
        let embedded = if door.is_some() { 0 } else { count as u32 };
        let formed = Formed::start(self.settings(embedded, count, door.as_ref(), tls), served)?;
        let nodes = match formed.doors.first() {
            None => None,
            Some(door) => {
                let class = kernels.class().to_string();
                let arguments = NodeArguments {
                    coordinator: door,
                    model: folder.expect("it was written for node processes"),
                    certs: certs.as_deref(),
                    devices: opened.experts().len().div_ceil(count),
                    threads: self.node_threads,
                    numeric_class: &class,
                    kernel_path: &kernels.path().to_string(),
                };
                Some(Nodes::start(count, &arguments)?)
            }
        };
        formed.wait_until_ready()?;
        Ok((formed, nodes))
    }

    fn settings(
        &self,
        embedded: u32,
        nodes: usize,
        door: Option<&String>,
        tls: Option<Tls>,
    ) -> FormationSettings {
        let shared_cores = embedded > 0;
        let assembly = Assembly {
            data: DataSettings {
                kv_bytes: usize::try_from(self.kv_memory).unwrap_or(usize::MAX),
                forwarding: self.forwarding.choice(),
                shared_cores,
                // What is measured is computing.
                prefix_cache: false,
                ..DataSettings::default()
            },
            placer: PlacerSettings {
                policy: Policy::Auto,
                constraints: Constraints { replicas_min: 1, ..Constraints::default() },
                nodes_min: nodes,
                start_window: FORMING_MAX,
                rebalance: None,
            },
            bias: None,
            data_folder: None,
            nodes: door.into_iter().cloned().collect(),
            tls,
            authority: None,
            token_file: None,
            insecure_anywhere: false,
        };
        FormationSettings { assembly, embedded, devices: None, emulation: None }
    }

    /// Both in turns.
    fn measure(
        &self,
        over: Over,
        measure: Measure,
        vocab: usize,
        alone: &mut dyn Contender,
        cluster: &mut Formed,
        carries: Option<f64>,
    ) -> Result<Figure, Failure> {
        let mut random = Random(1 + measure.batch() as u64);
        let length = match measure {
            Measure::Decode { .. } => self.prompt,
            Measure::Prefill { .. } => self.prefill,
        };
        let mut prompts = || (0..measure.batch()).map(|_| random.tokens(length, vocab)).collect();
        let rate = |timing: &Timing| measure.rate(timing, length);
        // Both once, for their caches, and to know how long a window is.
        let mut count = match measure {
            Measure::Decode { .. } => *STEPS.start(),
            Measure::Prefill { .. } => 1,
        };
        let asked: Vec<Vec<u32>> = prompts();
        let mut before = alone.answer(&asked, count)?;
        cluster.answer(&asked, count)?;
        if matches!(measure, Measure::Decode { .. }) {
            let steps = rate(&before) / measure.batch() as f64 * self.seconds / (3 * ROUNDS_MIN) as f64;
            count = (steps as usize).clamp(*STEPS.start(), *STEPS.end());
            before = alone.answer(&prompts(), count)?;
        }
        let (mut rates, mut ratios, mut identical) = (Vec::new(), Vec::new(), true);
        let (bytes_before, mut busy) = (cluster.bytes()?, 0.0);
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < self.seconds || ratios.len() < ROUNDS_MIN {
            let asked: Vec<Vec<u32>> = prompts();
            let ours = cluster.answer(&asked, count)?;
            let after = alone.answer(&asked, count)?;
            busy += ours.first.as_secs_f64();
            identical &= ours.tokens == after.tokens;
            // Of two windows of equal work the mean speed is harmonic.
            let beside = 2.0 / (1.0 / rate(&before) + 1.0 / rate(&after));
            rates.push((beside, rate(&ours)));
            ratios.push(rate(&ours) / beside);
            before = after;
        }
        let bound = match (measure, carries) {
            (Measure::Prefill { .. }, Some(carries)) => {
                Some(Bound { bytes: (cluster.bytes()? - bytes_before) as f64, carries, seconds: busy })
            }
            _ => None,
        };
        Ok(Figure {
            over,
            measure: measure.name(length),
            alone: median(rates.iter().map(|(alone, _)| *alone).collect()),
            cluster: median(rates.iter().map(|(_, cluster)| *cluster).collect()),
            rounds: ratios.len(),
            ratio: median(ratios),
            identical,
            bar: bound.as_ref().map(Bound::bar).or(over.bar(measure)).filter(|_| self.model.is_none()),
            bound: bound.as_ref().map(Bound::words),
        })
    }
}

/// What a carrier leaves of prefill's speed: while it moves bytes as fast as it can, nothing else is done.
struct Bound {
    /// Of all windows.
    bytes: f64,
    /// Bytes per second, measured in the same run.
    carries: f64,
    seconds: f64,
}

impl Bound {
    fn left(&self) -> f64 {
        1.0 - self.bytes / self.carries / self.seconds
    }

    fn bar(&self) -> f64 {
        PREFILL_BAR.min(OF_BOUND * self.left())
    }

    fn words(&self) -> String {
        format!(
            "bound: {:.0} MB in {:.1} s at {:.0} MB/s leave {:.3}; {OF_BOUND} of it, and at most {PREFILL_BAR}, is the bar",
            self.bytes / 1e6,
            self.seconds,
            self.carries / 1e6,
            self.left()
        )
    }
}

/// An authority for one run: certificates of all nodes, and this end's TLS.
fn certificates(folder: &Path, nodes: usize) -> Result<Tls, Failure> {
    let now = Utc::now();
    let authority = Authority::create(&folder.join("authority"), now)?;
    let issue = |name: &str, role| authority.issue(Issuance { name, role, life: LIFE, replace: false }, now);
    for number in 0..nodes {
        issue(&nodes::name(number), Role::Node)?.create(&folder.join(nodes::name(number)))?;
    }
    Ok(Tls::new(issue("coordinator", Role::Coordinator)?)?)
}
