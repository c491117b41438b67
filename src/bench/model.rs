//! `phalanx bench model`: prefill and decode, as a share of the roofline of this machine in this run.
//!
//! The roof of a step is the greater of two times: its bytes at the read bandwidth, its
//! multiply-adds at the peak. Bytes are those of the weights that this very run touched (each touched
//! expert once per step, the trunk once) and of the keys and values read. Limits are measured in short
//! windows between the steps, because the speed of a shared machine moves within minutes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use model::experts::{Experts, ExpertsError, Groups};
use model::kernel::{Region, multiply_add_peak, read_bandwidth};
use model::kv::Sequence;
use model::plain::{Run, Unobserved, check_context, step};
use model::rows::RowBuffer;
use model::spec::{Attention, FeedForward, Spec};
use model::weights::TrunkPlan;
use node::host::Host;
use serde_json::{Value, json};

use super::kernel::matrices;
use super::shape::{Shape, parse};
use crate::Failure;
use crate::arguments::{ComputeArguments, size};
use crate::output::show;
use crate::session::{Session, open};

/// Memory that the bandwidth probe reads: far more than the caches hold.
const PROBE_BYTES: usize = 512 << 20;
/// Bytes of one probe window.
const WINDOW_BYTES: usize = 64 << 20;

/// Prefill and decode tokens per second of a model, and the share of the roofline.
///
/// The default is the bench model: Qwen3-MoE, hidden 1024, 16 layers, 64 experts of width 512,
/// top-8, random weights, prompts random and all different.
#[derive(Debug, Args)]
pub(crate) struct Model {
    /// Folder of a checkpoint.
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Or random weights of a shape: layers=4,experts=8,...; what is not named is the bench model's.
    #[arg(long, value_name = "SHAPE", value_parser = parse, default_value = "")]
    shape: Shape,

    #[command(flatten)]
    compute: ComputeArguments,

    /// Decode at these batch sizes.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 32])]
    batch: Vec<usize>,

    /// Prefill so many tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill: usize,

    /// Tokens in a sequence before decode begins.
    #[arg(long, value_name = "N", default_value_t = 64)]
    prompt: usize,

    /// Seconds for each figure.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,

    /// Most memory for keys and values.
    #[arg(long, value_name = "BYTES", default_value = "4G", value_parser = size)]
    kv_memory: u64,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Counts the experts that a step touches.
struct Counting<'a> {
    experts: &'a mut dyn Experts,
    touched: usize,
}

impl Experts for Counting<'_> {
    fn compute(
        &mut self,
        layer: usize,
        rows: &RowBuffer,
        groups: &Groups,
        out: &mut RowBuffer,
    ) -> Result<(), ExpertsError> {
        self.touched += groups.experts.len();
        self.experts.compute(layer, rows, groups, out)
    }
}

/// What a row costs, and what weighs how much.
struct Costs {
    trunk_bytes: f64,
    expert_bytes: f64,
    kv_bytes_per_token: f64,
    /// Multiply-adds of a row without attention over earlier positions and without the head.
    row: f64,
    /// Multiply-adds of a row per position that it attends.
    position: f64,
    head: f64,
}

/// One figure.
struct Figure {
    name: String,
    rows: usize,
    steps: Vec<Step>,
}

struct Step {
    time: Duration,
    roof: f64,
    touched: usize,
    bandwidth: f64,
    peak: f64,
    /// The share of the binding limit's other one: which binds.
    compute_binds: bool,
}

/// The probes.
struct Limits {
    memory: Arc<Region>,
    at: usize,
}

impl Limits {
    fn new() -> Self {
        Self { memory: matrices(1024, 1024).region, at: 0 }
    }

    /// Read bandwidth in bytes/s and multiply-add peak in 1/s, now.
    fn measure(&mut self, session: &Session) -> (f64, f64) {
        self.at = (self.at + WINDOW_BYTES) % PROBE_BYTES;
        let kernels = session.kernels();
        let read = read_bandwidth(kernels, &session.pool, &self.memory, self.at, WINDOW_BYTES);
        let peak = multiply_add_peak(kernels, &session.pool, Duration::from_millis(5));
        (read * 1e9, peak * 0.5e9)
    }
}

impl Model {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.batch.contains(&0) || self.prefill == 0 || self.prompt == 0 {
            return Err("--batch, --prefill and --prompt must be above 0".into());
        }
        let opened = match &self.model {
            Some(dir) => open(Some(dir))?,
            None => self.shape.open()?,
        };
        // At least one step of each kind must fit.
        check_context(&opened.spec, self.prompt + 1)?;
        check_context(&opened.spec, self.prefill)?;
        let costs = costs(&opened.spec, TrunkPlan::new(&opened.checkpoint, &opened.spec).bytes()?);
        let mut session = Session::load_opened(&opened, &self.compute, self.kv_memory)?;
        let mut limits = Limits::new();
        let mut figures = Vec::new();
        for &batch in &self.batch {
            figures.push(self.decode(&mut session, &costs, &mut limits, batch)?);
        }
        for batch in [1, 8] {
            figures.push(self.prefill(&mut session, &costs, &mut limits, batch)?);
        }
        let host = Host::read();
        let threads = session.pool.threads();
        match self.json {
            true => {
                let rows: Vec<Value> = figures.iter().map(Figure::json).collect();
                let object = json!({
                    "cpu": host.cpu, "threads": threads,
                    "numeric_class": session.kernels().class().to_string(),
                    "kernel_path": session.kernels().path().to_string(),
                    "load_s": session.load_time.as_secs_f64(),
                    "figures": rows,
                });
                show(&format!("{object:#}\n"))
            }
            false => {
                let mut text = format!(
                    "{}, {threads} threads, class {}, path {}, loaded in {:.1} s\n\n",
                    host.cpu,
                    session.kernels().class(),
                    session.kernels().path(),
                    session.load_time.as_secs_f64()
                );
                text += "                    tokens/s    roof   share   bound by    experts   read GB/s   GFLOP/s\n";
                figures.iter().for_each(|figure| text += &figure.line());
                show(&text)
            }
        }
    }

    fn decode(
        &self,
        session: &mut Session,
        costs: &Costs,
        limits: &mut Limits,
        batch: usize,
    ) -> Result<Figure, Failure> {
        let vocab = session.trunk.spec().vocab;
        let mut random = Random(batch as u64);
        let mut sequences = Vec::new();
        for _ in 0..batch {
            let mut sequence = Sequence::default();
            let tokens = random.tokens(self.prompt, vocab);
            session.advance(&mut sequence, &tokens, &mut Unobserved)?;
            sequences.push(sequence);
        }
        let mut tokens = random.tokens(batch, vocab);
        let rows: Vec<usize> = (0..batch).collect();
        let mut logits = Vec::new();
        let mut figure = Figure { name: format!("decode batch {batch}"), rows: batch, steps: Vec::new() };
        let begin = Instant::now();
        let mut before = limits.measure(session);
        while begin.elapsed().as_secs_f64() < self.seconds || figure.steps.len() < 8 {
            if sequences[0].len() >= session.trunk.spec().context_max {
                break;
            }
            // Some steps between two probes, so that the probe's traces in the caches do not count.
            let count = if batch == 1 { 8 } else { 4 };
            let (mut touched, mut positions) = (0, 0);
            let start = Instant::now();
            let mut done = 0;
            for _ in 0..count {
                if sequences[0].len() >= session.trunk.spec().context_max {
                    break;
                }
                let mut runs: Vec<Run<'_>> = sequences
                    .iter_mut()
                    .zip(&tokens)
                    .map(|(sequence, token)| Run { sequence, tokens: std::slice::from_ref(token) })
                    .collect();
                touched += counted(session, &mut runs)?;
                positions += runs.iter().map(|run| run.sequence.len()).sum::<usize>();
                session.logits(&rows, &mut logits);
                for (token, logits) in tokens.iter_mut().zip(logits.chunks(vocab)) {
                    *token = likeliest(logits);
                }
                done += 1;
            }
            let time = start.elapsed() / done.max(1);
            let after = limits.measure(session);
            let (touched, positions) = (touched as f64 / f64::from(done), positions as f64 / f64::from(done));
            let bytes =
                costs.trunk_bytes + touched * costs.expert_bytes + positions * costs.kv_bytes_per_token;
            let adds = batch as f64 * (costs.row + costs.head) + positions * costs.position;
            figure.steps.push(Step::new(time, touched, bytes, adds, before, after));
            before = after;
        }
        sequences.into_iter().for_each(|s| session.cache.release(s));
        Ok(figure)
    }

    fn prefill(
        &self,
        session: &mut Session,
        costs: &Costs,
        limits: &mut Limits,
        batch: usize,
    ) -> Result<Figure, Failure> {
        let vocab = session.trunk.spec().vocab;
        let length = self.prefill;
        let mut random = Random(1000 + batch as u64);
        let name =
            if batch == 1 { format!("prefill {length}") } else { format!("prefill {batch} x {length}") };
        let mut figure = Figure { name, rows: batch * length, steps: Vec::new() };
        let mut logits = Vec::new();
        let begin = Instant::now();
        let mut before = limits.measure(session);
        while begin.elapsed().as_secs_f64() < self.seconds || figure.steps.len() < 3 {
            let prompts: Vec<Vec<u32>> = (0..batch).map(|_| random.tokens(length, vocab)).collect();
            let mut sequences: Vec<Sequence> = (0..batch).map(|_| Sequence::default()).collect();
            let start = Instant::now();
            let mut runs: Vec<Run<'_>> = sequences
                .iter_mut()
                .zip(&prompts)
                .map(|(sequence, tokens)| Run { sequence, tokens })
                .collect();
            let touched = counted(session, &mut runs)?;
            let rows: Vec<usize> = (1..=batch).map(|b| b * length - 1).collect();
            session.logits(&rows, &mut logits);
            let time = start.elapsed();
            let after = limits.measure(session);
            let positions = (batch * length) as f64 * (length + 1) as f64 / 2.0;
            let bytes = costs.trunk_bytes + touched as f64 * costs.expert_bytes;
            let adds =
                (batch * length) as f64 * costs.row + positions * costs.position + batch as f64 * costs.head;
            figure.steps.push(Step::new(time, touched as f64, bytes, adds, before, after));
            before = after;
            sequences.into_iter().for_each(|s| session.cache.release(s));
        }
        Ok(figure)
    }
}

/// One step; returns the experts it touched.
fn counted(session: &mut Session, runs: &mut [Run<'_>]) -> Result<usize, Failure> {
    let Session { trunk, experts, pool, work, cache, .. } = session;
    let mut counting = Counting { experts, touched: 0 };
    step(trunk, pool, work, cache, runs, &mut counting, &mut Unobserved)?;
    Ok(counting.touched)
}

pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::MIN), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
    best.0 as u32
}

fn costs(spec: &Spec, trunk_bytes: u64) -> Costs {
    let mut row = 0;
    let mut position = 0;
    let mut expert_bytes = 0;
    for layer in &spec.layers {
        match &layer.attention {
            Attention::Grouped(g) => {
                row += spec.hidden * g.head_dim * (2 * g.heads + 2 * g.kv_heads);
                position += 2 * g.heads * g.head_dim;
            }
            Attention::Latent(l) => {
                let queries = l.heads * (l.plain_dim + l.rotary_dim);
                row += match l.query_rank {
                    None => spec.hidden * queries,
                    Some(rank) => rank * (spec.hidden + queries),
                };
                row += spec.hidden * (l.latent_rank + l.rotary_dim);
                row += l.heads * l.latent_rank * (l.plain_dim + l.value_dim);
                row += spec.hidden * l.heads * l.value_dim;
                position += l.heads * (2 * l.latent_rank + l.rotary_dim);
            }
        }
        match &layer.feed_forward {
            FeedForward::Dense { width } => row += 3 * spec.hidden * width,
            FeedForward::Moe(moe) => {
                let shared = moe.shared.as_ref().map_or(0, |s| s.width);
                row += spec.hidden * (moe.experts + 3 * (moe.top_k * moe.width + shared));
                expert_bytes = 2 * 3 * spec.hidden * moe.width;
            }
        }
    }
    let embedding = if spec.tied { 0 } else { 2 * spec.vocab * spec.hidden };
    let kv: usize = (0..spec.layers.len()).map(|l| spec.kv_values(l)).sum();
    Costs {
        // A step reads a row of the embedding for each token, not the embedding.
        trunk_bytes: trunk_bytes as f64 - embedding as f64,
        expert_bytes: expert_bytes as f64,
        kv_bytes_per_token: 2.0 * kv as f64,
        row: row as f64,
        position: position as f64,
        head: (spec.vocab * spec.hidden) as f64,
    }
}

impl Step {
    fn new(
        time: Duration,
        touched: f64,
        bytes: f64,
        adds: f64,
        before: (f64, f64),
        after: (f64, f64),
    ) -> Self {
        // What a probe measures is a speed: the mean of two windows of equal work is harmonic.
        let mean = |a: f64, b: f64| 2.0 / (1.0 / a + 1.0 / b);
        let (bandwidth, peak) = (mean(before.0, after.0), mean(before.1, after.1));
        let (reading, computing) = (bytes / bandwidth, adds / peak);
        Self {
            time,
            roof: reading.max(computing),
            touched: touched.round() as usize,
            bandwidth,
            peak,
            compute_binds: computing > reading,
        }
    }

    fn share(&self) -> f64 {
        self.roof / self.time.as_secs_f64()
    }
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Figure {
    fn of(&self, value: impl Fn(&Step) -> f64) -> f64 {
        median(self.steps.iter().map(value).collect())
    }

    fn tokens_per_s(&self) -> f64 {
        self.rows as f64 / self.of(|s| s.time.as_secs_f64())
    }

    fn line(&self) -> String {
        format!(
            "{:18} {:9.1} {:8.1} {:6.1}%   {:9} {:8.0} {:10.1} {:9.0}\n",
            self.name,
            self.tokens_per_s(),
            self.rows as f64 / self.of(|s| s.roof),
            100.0 * self.of(Step::share),
            self.bound(),
            self.of(|s| s.touched as f64),
            self.of(|s| s.bandwidth) * 1e-9,
            self.of(|s| s.peak) * 2e-9,
        )
    }

    fn bound(&self) -> &'static str {
        if self.of(|s| f64::from(u8::from(s.compute_binds))) > 0.5 { "compute" } else { "reading" }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "tokens_per_s": self.tokens_per_s(),
            "roof_tokens_per_s": self.rows as f64 / self.of(|s| s.roof),
            "share": self.of(Step::share),
            "bound_by": self.bound(),
            "experts_touched_per_step": self.of(|s| s.touched as f64),
            "read_gb_per_s": self.of(|s| s.bandwidth) * 1e-9,
            "peak_gflop_per_s": self.of(|s| s.peak) * 2e-9,
            "windows": self.steps.len(),
        })
    }
}

/// Random tokens (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.0;
                z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ z >> 31) % vocab as u64) as u32
            })
            .collect()
    }
}
