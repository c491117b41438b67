//! `phalanx bench serve`: a server as its clients meet it, over HTTP.
//!
//! It is a process of its own, or one that runs somewhere. Where it is our own the same model decodes in this process
//! by turns, without a cluster and without HTTP, so that what serving costs is a ratio of one run.

mod idle;
mod load;
mod server;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use node::host::Host;
use serde_json::{Value, json};

use self::idle::Idle;
use self::load::{Form, Outcome};
use self::server::Server;
use super::cluster::Contender;
use super::heard::{all_run, quantile};
use super::model::{Random, median};
use super::scratch::Scratch;
use super::shape::{Shape, parse};
use super::{checkpoint, leftover};
use crate::Failure;
use crate::access::Access;
use crate::arguments::{ComputeArguments, seconds, size};
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, cluster_url};
use crate::session::{Session, open};

/// Ids that every vocabulary has, for a server whose model is not known here.
const VOCAB_MIN: usize = 200;
/// How long a server may take to load.
const LOADING_MAX: Duration = Duration::from_secs(600);
/// Short prompts that are sent to a busy server.
const SHORT_PROMPTS: usize = 20;

/// A server under load: time to the first token (TTFT) and between tokens (TPOT), tokens per second, goodput.
///
/// By turns with the same model alone in this process, where the server is its own.
///
/// Examples:
///   phalanx bench serve
///   phalanx bench serve --concurrency 64 --turns 5
///   phalanx bench serve --rate 1,2,4 --ttft-max 2s --tpot-max 300ms
///   phalanx bench serve --cluster http://127.0.0.1:8080 --json
///   phalanx bench serve --idle-streams 1000
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Serve {
    /// A server that runs already. Without it one is started, of --model or of a shape.
    #[arg(long, value_name = "URL", value_parser = cluster_url, conflicts_with_all = ["model", "shape"])]
    cluster: Option<ClusterUrl>,

    #[command(flatten)]
    access: Access,

    /// Folder of a checkpoint.
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Random weights of a shape: layers=4,experts=8,...; what is not named is the bench model's.
    #[arg(long, value_name = "SHAPE", value_parser = parse, default_value = "")]
    shape: Shape,

    #[command(flatten)]
    compute: ComputeArguments,

    /// Clients at once, each of which asks again as soon as it has its answer.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Vec<u32>,

    /// Requests of each of these clients.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,

    /// Turns that such clients and the same model alone take: speed moves within seconds where others share the machine. Shown
    /// is the median of their ratios, each to the mean of the turns alone before and after.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,

    /// Requests in a second, which come whether or not earlier ones were answered.
    #[arg(long, value_name = "R,R", value_delimiter = ',', value_parser = rate)]
    rate: Vec<f64>,

    /// How long they come.
    #[arg(long, value_name = "S", default_value = "20", value_parser = seconds)]
    seconds: Duration,

    /// An answer is good if its first token came within this time,
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    ttft_max: Duration,

    /// and each of the others, on average, within this.
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds)]
    tpot_max: Duration,

    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 16)]
    prompt: usize,

    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64)]
    answer: usize,

    /// Also ask with a prompt of so many tokens, twice: the second may find its keys and values.
    #[arg(long, value_name = "N")]
    prefix: Option<usize>,

    /// Measure instead what so many streams cost in memory that wait for their turn, or that nobody reads.
    #[arg(long, value_name = "N", conflicts_with = "cluster", value_parser = clap::value_parser!(u32).range(1..=4096))]
    idle_streams: Option<u32>,

    /// Most memory for keys and values, of both.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = size)]
    kv_memory: u64,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 1e5);
    rate.ok_or_else(|| format!("`{text}` is no number of requests in a second; write for example 2.5"))
}

/// How a load went.
struct Figure {
    name: String,
    requests: usize,
    failed: Vec<String>,
    /// While all clients were being answered.
    tokens_per_s: f64,
    alone: Option<Alone>,
    ttft_ms: [f64; 3],
    tpot_ms: [f64; 3],
    /// Answers in a second that were in time.
    goodput: f64,
    /// Parts of the processor time that threads of the server took.
    cpu: Vec<(String, f64)>,
}

/// The same model alone, at that batch.
struct Alone {
    per_s: f64,
    /// What clients had of that, turn by turn.
    ratio: f64,
}

const PARTS: [f64; 3] = [0.5, 0.95, 0.99];
const HEAD: &str = "load              requests  tokens/s  of alone  goodput/s   TTFT p50      p95      p99   \
                    TPOT p50      p95      p99 ms\n";

impl Serve {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.prompt == 0 || self.answer < 2 {
            return Err("--prompt must be above 0, and --answer above 1".into());
        }
        leftover::watch()?;
        let scratch = Scratch::create()?;
        if let Some(streams) = self.idle_streams {
            return self.idle(&scratch, streams as usize);
        }
        let (server, mut alone, vocab) = self.contenders(&scratch)?;
        let url = match (&server, &self.cluster) {
            (Some(server), _) => &server.url,
            (None, Some(url)) => url,
            (None, None) => unreachable!("without a URL a server is started"),
        };
        let remote = Rc::new(Remote::new(url, &self.access)?);
        remote.wait_until_served(LOADING_MAX)?;
        let form = Form { prompt: self.prompt, answer: self.answer, vocab };
        let host = Host::read();
        if !self.json {
            show(&format!(
                "{}\n{}, prompts of {}, answers of {} tokens\n\n{HEAD}",
                host.cpu,
                remote.url(),
                self.prompt,
                self.answer
            ))?;
        }
        // Once, for all caches.
        load::closed(&remote, Form { answer: 2, ..form }, 1, 2, 0);
        let mut figures = Vec::new();
        for &clients in &self.concurrency {
            let before = server.as_ref().map(Server::cpu);
            let mut figure = self.in_turns(&remote, form, clients as usize, alone.as_mut())?;
            figure.cpu = shares(before, server.as_ref().map(Server::cpu));
            self.add(&mut figures, figure)?;
        }
        for &rate in &self.rate {
            let outcome = load::open(&remote, form, rate, self.seconds, rate.to_bits());
            let figure = self.figure(format!("{rate} a second"), outcome);
            self.add(&mut figures, figure)?;
        }
        let clients = self.concurrency.iter().max().copied().unwrap_or(1) as usize;
        let (busy, firsts) = load::into_busy(&remote, form, clients, SHORT_PROMPTS);
        let step = busy.heard.iter().filter_map(|heard| heard.each()).map(|each| each.as_secs_f64() * 1e3);
        let step = quantile(&mut step.collect::<Vec<_>>(), 0.5);
        let first =
            quantile(&mut firsts.iter().map(|first| first.as_secs_f64() * 1e3).collect::<Vec<_>>(), 0.5);
        let prefix = self.prefix.map(|length| self.prefix(&remote, length, vocab)).transpose()?;
        if !self.json {
            show(&format!(
                "\na short prompt beside {clients} clients: first token after {first:.0} ms, {:.2} of a step ({step:.0} ms)\n",
                first / step
            ))?;
            if let Some([cold, warm]) = prefix {
                show(&format!(
                    "a prompt of {} tokens: first token after {cold:.1} ms, again after {warm:.1} ms: {:.1} times sooner\n",
                    self.prefix.unwrap_or_default(),
                    cold / warm
                ))?;
            }
            return check(&figures);
        }
        show(&format!(
            "{:#}\n",
            json!({
                "cpu": host.cpu, "url": remote.url().to_string(), "prompt": self.prompt, "answer": self.answer,
                "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
                "short_prompt": { "clients": clients, "ttft_ms": first, "step_ms": step },
                "prefix": prefix.map(|[cold, warm]| json!({ "tokens": self.prefix, "cold_ms": cold, "warm_ms": warm })),
            })
        ))?;
        check(&figures)
    }

    /// What idle streams cost.
    fn idle(&self, scratch: &Scratch, streams: usize) -> Result<(), Failure> {
        settings::descriptors::raise();
        let folder = self.folder(scratch)?;
        let vocab = open(Some(&folder))?.spec.vocab;
        let server = Server::start(&folder, &self.compute, idle::KV_MEMORY)?;
        let remote = Rc::new(Remote::new(&server.url, &self.access)?);
        remote.wait_until_served(LOADING_MAX)?;
        let form = Form { prompt: self.prompt, answer: self.answer, vocab };
        let idle = Idle::measure(&server, &remote, form, streams)?;
        match self.json {
            true => show(&format!("{:#}\n", json!({ "cpu": Host::read().cpu, "idle_streams": idle.json() }))),
            false => show(&idle.line()),
        }
    }

    /// The server, the model in this process, and how many ids there are.
    fn contenders(&self, scratch: &Scratch) -> Result<(Option<Server>, Option<Session>, usize), Failure> {
        if self.cluster.is_some() {
            return Ok((None, None, VOCAB_MIN));
        }
        let folder = self.folder(scratch)?;
        let opened = Arc::new(open(Some(&folder))?);
        let vocab = opened.spec.vocab;
        let alone = Session::load_opened(&opened, &self.compute, self.kv_memory)?;
        Ok((Some(Server::start(&folder, &self.compute, self.kv_memory)?), Some(alone), vocab))
    }

    /// The checkpoint that is served.
    fn folder(&self, scratch: &Scratch) -> Result<PathBuf, Failure> {
        match &self.model {
            Some(folder) => Ok(folder.clone()),
            None => {
                let folder = scratch.path().join("model");
                checkpoint::write(&folder, &self.shape, 2 << 30)?;
                Ok(folder)
            }
        }
    }

    /// So many clients, by turns with the same model alone where it is at hand.
    fn in_turns(
        &self,
        remote: &Rc<Remote>,
        form: Form,
        clients: usize,
        mut alone: Option<&mut Session>,
    ) -> Result<Figure, Failure> {
        let mut alone = || alone.as_mut().map(|alone| self.alone(alone, clients, form.vocab)).transpose();
        let mut all = Outcome::default();
        let (mut rates, mut alones, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = alone()?;
        let turns = before.map_or(1, |_| u64::from(self.turns));
        for turn in 0..turns {
            let outcome =
                load::closed(remote, form, clients, self.requests as usize, turn << 16 | clients as u64);
            let rate = self.tokens_per_s(&outcome);
            rates.push(rate);
            if let (Some(earlier), Some(later)) = (before, alone()?) {
                ratios.push(2.0 * rate / (earlier + later));
                alones.extend([earlier, later]);
                before = Some(later);
            }
            all.heard.extend(outcome.heard);
            all.failed.extend(outcome.failed);
            all.took += outcome.took;
        }
        let mut figure = self.figure(format!("{clients} clients"), all);
        figure.tokens_per_s = median(rates);
        figure.alone = (!ratios.is_empty()).then(|| Alone { per_s: median(alones), ratio: median(ratios) });
        Ok(figure)
    }

    /// Tokens in a second while all clients were being answered.
    fn tokens_per_s(&self, Outcome { heard, took, .. }: &Outcome) -> f64 {
        match all_run(heard).filter(|_| self.requests == 1) {
            Some((start, end)) => {
                heard.iter().map(|heard| heard.between(start, end)).sum::<f64>() / (end - start).as_secs_f64()
            }
            None => heard.iter().map(|heard| heard.at.len()).sum::<usize>() as f64 / took.as_secs_f64(),
        }
    }

    /// Tokens per second of the same model without a server.
    fn alone(&self, alone: &mut Session, batch: usize, vocab: usize) -> Result<f64, Failure> {
        let mut random = Random(batch as u64);
        let prompts: Vec<_> = (0..batch).map(|_| random.tokens(self.prompt, vocab)).collect();
        let timing = alone.answer(&prompts, self.answer)?;
        Ok(timing.decoded / timing.decode.as_secs_f64())
    }

    /// A long prompt, and again: milliseconds to the first token.
    fn prefix(&self, remote: &Remote, length: usize, vocab: usize) -> Result<[f64; 2], Failure> {
        let mut random = Random(length as u64);
        let prompt = random.tokens(length, vocab);
        let ask = || -> Result<f64, Failure> {
            let heard = remote.wait(load::ask(remote, prompt.clone(), 1))?;
            Ok(heard.first().unwrap_or_default().as_secs_f64() * 1e3)
        };
        Ok([ask()?, ask()?])
    }

    fn figure(&self, name: String, outcome: Outcome) -> Figure {
        let tokens_per_s = self.tokens_per_s(&outcome);
        let Outcome { heard, failed, took } = outcome;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut firsts: Vec<f64> = heard.iter().filter_map(|heard| heard.first().map(ms)).collect();
        let mut each: Vec<f64> = heard.iter().filter_map(|heard| heard.each().map(ms)).collect();
        let good = heard.iter().filter(|heard| {
            heard.first().is_some_and(|first| first <= self.ttft_max)
                && heard.each().is_none_or(|each| each <= self.tpot_max)
        });
        let goodput = good.count() as f64 / took.as_secs_f64();
        Figure {
            name,
            requests: heard.len() + failed.len(),
            failed,
            tokens_per_s,
            alone: None,
            ttft_ms: PARTS.map(|part| quantile(&mut firsts, part)),
            tpot_ms: PARTS.map(|part| quantile(&mut each, part)),
            goodput,
            cpu: Vec::new(),
        }
    }

    fn add(&self, figures: &mut Vec<Figure>, figure: Figure) -> Result<(), Failure> {
        if !self.json {
            show(&figure.line())?;
        }
        figures.push(figure);
        Ok(())
    }
}

/// Parts of the processor time that threads have used between two looks, greatest first.
fn shares(
    before: Option<std::collections::BTreeMap<String, f64>>,
    after: Option<std::collections::BTreeMap<String, f64>>,
) -> Vec<(String, f64)> {
    let (Some(before), Some(after)) = (before, after) else { return Vec::new() };
    let used = after.iter().map(|(name, seconds)| (name.clone(), seconds - before.get(name).unwrap_or(&0.0)));
    let mut used: Vec<_> = used.filter(|(_, seconds)| *seconds > 0.0).collect();
    let all: f64 = used.iter().map(|(_, seconds)| seconds).sum();
    used.iter_mut().for_each(|(_, seconds)| *seconds /= all);
    used.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    used
}

/// Requests that failed make a measurement none.
fn check(figures: &[Figure]) -> Result<(), Failure> {
    match figures.iter().find(|figure| !figure.failed.is_empty()) {
        Some(figure) => Err(format!(
            "{}: {} of {} requests failed, the first with: {}",
            figure.name,
            figure.failed.len(),
            figure.requests,
            figure.failed[0]
        )
        .into()),
        None => Ok(()),
    }
}

impl Figure {
    fn line(&self) -> String {
        let alone = match &self.alone {
            Some(alone) => format!("{:9.3}", alone.ratio),
            None => format!("{:>9}", "-"),
        };
        let [first, first_95, first_99] = self.ttft_ms;
        let [each, each_95, each_99] = self.tpot_ms;
        let mut line = format!(
            "{:16} {:9} {:9.1} {alone} {:10.2} {first:10.0} {first_95:8.0} {first_99:8.0} {each:10.1} {each_95:8.1} {each_99:8.1}\n",
            self.name, self.requests, self.tokens_per_s, self.goodput
        );
        if !self.cpu.is_empty() {
            let parts = self.cpu.iter().take(5).map(|(name, part)| format!("{name} {:.1}%", part * 100.0));
            line += &format!("    processor time: {}\n", parts.collect::<Vec<_>>().join(", "));
        }
        line
    }

    fn json(&self) -> Value {
        let parts = |values: [f64; 3]| json!({ "p50": values[0], "p95": values[1], "p99": values[2] });
        json!({
            "load": self.name, "requests": self.requests, "failed": self.failed.len(),
            "tokens_per_s": self.tokens_per_s, "alone_tokens_per_s": self.alone.as_ref().map(|alone| alone.per_s),
            "ratio": self.alone.as_ref().map(|alone| alone.ratio),
            "goodput_per_s": self.goodput, "ttft_ms": parts(self.ttft_ms), "tpot_ms": parts(self.tpot_ms),
            "cpu": self.cpu.iter().map(|(name, part)| (name.clone(), json!(part))).collect::<serde_json::Map<_, _>>(),
        })
    }
}
