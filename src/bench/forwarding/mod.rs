//! `phalanx bench forwarding`: rows that go on as soon as they are whole, beside rows that go on by steps, and what
//! `auto` makes of both.
//!
//! All are measured by turns in one process, on the same cluster, under the same load: so many clients, each of which
//! asks again as soon as it has its answer. With `--emulate` devices and wires are as slow as it says, several of them by
//! turns too. Every request is asked the same in each turn, and its tokens are compared: a mode that changed them would
//! be no mode.

mod cluster;
mod load;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use coordinator::data::flow::Forwarding as Mode;
use coordinator::data::forwarding::Choice;
use node::Emulation;
use serde_json::{Value, json};

use self::cluster::{Clusters, Over};
use self::load::{Load, Measured};
use super::shape::{Shape, parse};
use crate::Failure;
use crate::arguments::{ComputeArguments, seconds, size};
use crate::bench::leftover;
use crate::output::show;
use crate::session;

/// Tokens per second of `--forwarding partial`, `whole` and `auto`, by turns on one cluster.
///
/// Examples:
///   phalanx bench forwarding
///   phalanx bench forwarding --emulate none --emulate wire=200us --shape layers=16 --requests 32
///   phalanx bench forwarding --emulate none --over tcp --requests 1,8,32,64
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Forwarding {
    /// Folder of a checkpoint. Without it and without --shape: the embedded demo model.
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,

    /// Random weights of a shape: layers=4,experts=8,...; what is not named is the bench model's.
    #[arg(long, value_name = "SHAPE", value_parser = parse)]
    shape: Option<Shape>,

    #[command(flatten)]
    compute: ComputeArguments,

    /// What devices and wires are like: `none` as they are, else as `phalanx serve --emulate` has it. Repeat it to
    /// compare several.
    #[arg(long, value_name = "WHAT", default_value = "device=2ms+4ms/row,wire=5ms", value_parser = emulated)]
    emulate: Vec<Emulated>,

    /// How nodes are reached: in this process, or as processes of their own with one compute thread each.
    #[arg(long, value_name = "CARRIER", default_value = "memory")]
    over: Over,

    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,

    /// Requests at once.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [64], value_parser = clap::value_parser!(u32).range(1..=4096))]
    requests: Vec<u32>,

    /// What is measured.
    #[arg(long, value_name = "MODE,MODE", value_delimiter = ',', default_values_t = [Wanted::Partial, Wanted::Whole, Wanted::Auto])]
    modes: Vec<Wanted>,

    /// Seconds of each turn.
    #[arg(long, value_name = "S", default_value = "4", value_parser = seconds)]
    seconds: Duration,

    /// Turns of each mode.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,

    /// Longest that `auto` is given to find out which mode is better, before its first turn.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    learn: Duration,

    /// Most memory for keys and values.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = size)]
    kv_memory: u64,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// An emulation, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Emulated(Option<Emulation>);

fn emulated(text: &str) -> Result<Emulated, String> {
    match text {
        "none" => Ok(Emulated(None)),
        text => text.parse().map(Some).map(Emulated),
    }
}

impl std::fmt::Display for Emulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("nothing emulated"),
            Some(emulation) => write!(f, "emulating {emulation}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Partial,
    Whole,
    Auto,
}

impl Wanted {
    fn choice(self) -> Choice {
        match self {
            Wanted::Partial => Choice::Always(Mode::Partial),
            Wanted::Whole => Choice::Always(Mode::Whole),
            Wanted::Auto => Choice::Auto,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wanted::Partial => "partial",
            Wanted::Whole => "whole",
            Wanted::Auto => "auto",
        })
    }
}

/// A mode on an emulation under a load: one measurement for each turn.
struct Figure {
    emulated: Emulated,
    wanted: Wanted,
    turns: Vec<Measured>,
}

impl Forwarding {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        leftover::watch()?;
        let opened = match &self.shape {
            Some(shape) => shape.open()?,
            None => session::open(self.model.as_deref())?,
        };
        let config = match &self.shape {
            Some(shape) => shape.config().to_string().into_bytes(),
            None => session::config_text(self.model.as_deref())?,
        };
        let mut results = Vec::new();
        actix::System::new().block_on(async {
            let emulations: Vec<_> = self.emulate.iter().map(|emulated| emulated.0).collect();
            let clusters = Clusters::start(self, Arc::new(opened), config, &emulations).await?;
            for requests in &self.requests {
                let figures = self.measure(&clusters, *requests).await?;
                if !self.json {
                    show(&text(*requests, &figures))?;
                }
                results.push(json!({ "requests": requests, "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(), "ratios": ratios(&figures) }));
            }
            clusters.stop().await;
            Ok::<_, Failure>(())
        })?;
        match self.json {
            true => show(&format!(
                "{:#}\n",
                json!({ "over": self.over.to_string(), "nodes": self.nodes, "results": results })
            )),
            false => Ok(()),
        }
    }

    /// All modes on all clusters, by turns.
    async fn measure(&self, clusters: &Clusters, requests: u32) -> Result<Vec<Figure>, Failure> {
        let modes = self.modes.len();
        let mut figures: Vec<Figure> = Vec::new();
        for emulated in &self.emulate {
            let figure = |wanted: &Wanted| Figure { emulated: *emulated, wanted: *wanted, turns: Vec::new() };
            figures.extend(self.modes.iter().map(figure));
        }
        let mut load = Load::new(requests as usize, clusters.vocab());
        for turn in 0..self.turns {
            for at in 0..figures.len() {
                // Who begins changes, so that a machine that gets warm favours nobody.
                let number = (turn as usize + at) % figures.len();
                let figure = &mut figures[number];
                let coordinator = clusters.coordinator(number / modes);
                let is_new = figure.turns.is_empty() && figure.wanted == Wanted::Auto;
                let learn = if is_new { self.learn } else { Duration::ZERO };
                let measured = load.put_on(coordinator, figure.wanted.choice(), self.seconds, learn).await?;
                figure.turns.push(measured);
            }
        }
        Ok(figures)
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

impl Figure {
    fn of(&self, value: impl Fn(&Measured) -> f64) -> f64 {
        median(self.turns.iter().map(value))
    }

    fn json(&self) -> Value {
        json!({
            "emulated": self.emulated.0.map(|emulation| emulation.to_string()),
            "mode": self.wanted.to_string(),
            "tokens_per_s": self.of(Measured::tokens_per_s),
            "turns": self.turns.iter().map(Measured::tokens_per_s).collect::<Vec<_>>(),
            "rows_per_batch": self.of(Measured::rows_per_batch),
            "rows_per_group": self.of(Measured::rows_per_group),
            "whole_share": self.of(|measured| measured.whole_share),
            "trials": self.turns.iter().map(|measured| measured.trials).sum::<u64>(),
        })
    }

    /// How much faster than another it was, turn by turn.
    fn against(&self, other: &Figure) -> f64 {
        let turns = self.turns.iter().zip(&other.turns);
        median(turns.map(|(mine, other)| mine.tokens_per_s() / other.tokens_per_s()))
    }
}

/// What is compared: each mode with the others of its emulation, each emulation with the first.
fn ratios(figures: &[Figure]) -> Value {
    let find = |emulated, wanted| figures.iter().find(|f| f.emulated == emulated && f.wanted == wanted);
    let all = figures.iter().filter_map(|figure| {
        let (emulated, first) = (figure.emulated, figures.first()?.emulated);
        let partial = find(emulated, Wanted::Partial);
        let whole = find(emulated, Wanted::Whole);
        let mut of =
            json!({ "emulated": emulated.0.map(|e| e.to_string()), "mode": figure.wanted.to_string() });
        match (figure.wanted, partial, whole) {
            (Wanted::Partial, _, Some(whole)) => of["to_whole"] = json!(figure.against(whole)),
            (Wanted::Auto, Some(partial), Some(whole)) => {
                of["to_better"] = json!(figure.against(partial).min(figure.against(whole)));
            }
            _ => {}
        }
        if emulated != first {
            of["to_first"] = json!(figure.against(find(first, figure.wanted)?));
        }
        Some(of)
    });
    all.collect()
}

fn text(requests: u32, figures: &[Figure]) -> String {
    let mut page = String::new();
    let ratios = ratios(figures);
    let mut shown = None;
    for (figure, ratios) in figures.iter().zip(ratios.as_array().into_iter().flatten()) {
        if shown.replace(figure.emulated) != Some(figure.emulated) {
            page += &format!("{requests} requests, {}\n", figure.emulated);
        }
        page += &format!(
            "  {:8} {:8.1} tokens/s, {:6.1} rows a batch, {:5.1} rows a group",
            figure.wanted.to_string(),
            figure.of(Measured::tokens_per_s),
            figure.of(Measured::rows_per_batch),
            figure.of(Measured::rows_per_group),
        );
        for (key, words) in
            [("to_whole", "of whole"), ("to_better", "of the better"), ("to_first", "of the first")]
        {
            if let Some(ratio) = ratios[key].as_f64() {
                page += &format!(", {ratio:.3} {words}");
            }
        }
        if figure.wanted == Wanted::Auto {
            page +=
                &format!(", {:.0}% of the time whole", 100.0 * figure.of(|measured| measured.whole_share));
        }
        page.push('\n');
    }
    page
}
