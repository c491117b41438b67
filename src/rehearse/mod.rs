//! `phalanx rehearse`: a cluster of full size in one process, with a model of full depth and a small hidden size.
//!
//! Coordinator, nodes, links and actors are the real ones, over the memory carrier; only rows are short. So what grows
//! with the number of layers, experts, nodes or links shows here before anybody has so many machines. Answers are
//! checked against the plain loop, token by token and probability by probability, and once more while a node falls.

mod report;
mod router;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use coordinator::api::{Backend, State};
use coordinator::assemble::Assembly;
use coordinator::control::placer::PlacerSettings;
use coordinator::control::policy::{Constraints, Policy};
use coordinator::data::flow::Forwarding;
use coordinator::data::forwarding::Choice;
use coordinator::data::start::DataSettings;
use model::kernel::Admission;
use model::load::Opened;
use model::pool::Pool;
use model::weights::Manifest;
use serde_json::Value;

use crate::Failure;
use crate::answers::{Answer, Question, ask_all, questions};
use crate::arguments::ComputeArguments;
use crate::bench::shape::Shape;
use crate::formation::{Formation, FormationSettings, Served, load_trunk};
use crate::output::show;
use report::{Report, resident_bytes, threads_running};

/// Heads of attention: the trunk is not what is rehearsed.
const HEADS: usize = 4;
const HEAD_DIM: usize = 16;
const VOCAB: usize = 512;
/// Longer than any cluster of one machine takes to form.
const FORM_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Run a cluster of full size in this process: every expert an actor, every node an agent, rows kept short.
///
/// The reference plan is 488 nodes of 8 devices for a model of 61 layers: 58 of 64 experts, each on a device of its
/// own, and 3 dense layers on the devices after them. Weights are random and made in memory.
///
/// Examples:
///   phalanx rehearse
///   phalanx rehearse --requests 256 --top-k 8
///   phalanx rehearse --layers 8 --dense 1 --experts 16 --nodes 15
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Rehearse {
    /// Which cluster; the options below change parts of it.
    #[arg(long, value_name = "PLAN", default_value = "reference")]
    plan: Plan,

    /// Nodes. Default: the plan's, 488.
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,

    /// Devices of each node. Default: the plan's, 8.
    #[arg(long, value_name = "N")]
    devices: Option<u32>,

    /// Layers of the model. Default: the plan's, 61.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,

    /// Of these, the first that are dense; each has a device of its own. Default: the plan's, 3.
    #[arg(long, value_name = "N")]
    dense: Option<usize>,

    /// Experts of each other layer. Default: the plan's, 64.
    #[arg(long, value_name = "N")]
    experts: Option<usize>,

    /// Experts that a row takes. Default: the plan's, 2.
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,

    /// Values of a row. The reference model's are 7168; its weights would take 300 GB.
    #[arg(long, value_name = "N", default_value_t = 64)]
    hidden: usize,

    /// Requests, all asked at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests: u32,

    /// Tokens of each prompt.
    #[arg(long, value_name = "N", default_value_t = 16)]
    prompt: u32,

    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 16)]
    tokens: u32,

    #[command(flatten)]
    compute: ComputeArguments,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A cluster of full size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plan {
    /// 488 nodes of 8 devices, 58 layers of 64 experts and 3 dense ones.
    Reference,
}

/// What is rehearsed.
#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: u32,
    devices: u32,
    layers: usize,
    dense: usize,
    experts: usize,
    top_k: usize,
    hidden: usize,
}

impl Plan {
    fn size(self, hidden: usize) -> Size {
        match self {
            Self::Reference => {
                Size { nodes: 488, devices: 8, layers: 61, dense: 3, experts: 64, top_k: 2, hidden }
            }
        }
    }
}

impl Size {
    /// Actors that are needed.
    fn actors(&self) -> usize {
        (self.layers - self.dense) * self.experts + self.dense
    }

    fn check(&self) -> Result<(), Failure> {
        if self.dense >= self.layers {
            let Self { dense, layers, .. } = self;
            return Err(format!(
                "--dense {dense} of --layers {layers}: at least one layer must have experts"
            )
            .into());
        }
        if self.top_k == 0 || self.top_k > self.experts {
            let Self { top_k, experts, .. } = self;
            return Err(
                format!("--top-k {top_k} of --experts {experts}: a row takes 1 to all of them").into()
            );
        }
        if self.hidden == 0 || !self.hidden.is_multiple_of(32) || self.hidden > 8192 {
            return Err(format!("--hidden {}: a multiple of 32 up to 8192 is possible", self.hidden).into());
        }
        let (actors, offered) = (self.actors() as u64, u64::from(self.nodes) * u64::from(self.devices));
        if actors > offered {
            let Self { nodes, devices, .. } = self;
            return Err(format!(
                "{actors} experts and dense layers need a device each, {nodes} nodes of {devices} have {offered}; raise \
                 --nodes or --devices"
            )
            .into());
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        let numbers = [
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("dense", self.dense),
            ("heads", HEADS),
            ("kv-heads", HEADS / 2),
            ("head-dim", HEAD_DIM),
            ("experts", self.experts),
            ("top-k", self.top_k),
            ("width", (self.hidden / 2).next_multiple_of(32)),
            ("vocab", VOCAB),
        ];
        numbers.into_iter().fold(Shape::default(), |shape, (name, value)| shape.with(name, value))
    }
}

impl Rehearse {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let size = self.size()?;
        let shape = size.shape();
        let config = shape.config().to_string().into_bytes();
        let opened = shape.open()?;
        let questions = questions(self.requests, self.prompt, self.tokens, VOCAB);
        self.say(&format!("the plain loop answers {} requests\n", questions.len()))?;
        let expected = crate::answers::plain(&opened, &self.compute, &questions)?;
        let router = router::measure(&size, &opened)?;
        let admission = self.compute.admission()?;
        let mut report = Report::new(size, &admission, router);
        let system = actix::System::new();
        system.block_on(self.form(opened, config, admission, &questions, &expected, &mut report))?;
        match self.json {
            true => show(&format!("{:#}\n", report.json())),
            false => show(&report.text()),
        }
    }

    fn size(&self) -> Result<Size, Failure> {
        let plan = self.plan.size(self.hidden);
        let size = Size {
            nodes: self.nodes.unwrap_or(plan.nodes),
            devices: self.devices.unwrap_or(plan.devices),
            layers: self.layers.unwrap_or(plan.layers),
            dense: self.dense.unwrap_or(plan.dense),
            experts: self.experts.unwrap_or(plan.experts),
            top_k: self.top_k.unwrap_or(plan.top_k),
            hidden: plan.hidden,
        };
        size.check()?;
        for (flag, value, max) in
            [("requests", self.requests, 1024), ("prompt", self.prompt, 2048), ("tokens", self.tokens, 2048)]
        {
            if !(1..=max).contains(&value) {
                return Err(format!("--{flag} {value}: 1 to {max} are possible").into());
            }
        }
        Ok(size)
    }

    /// Forms the cluster, asks it, and stops it.
    async fn form(
        &self,
        opened: Opened,
        config: Vec<u8>,
        admission: Admission,
        questions: &[Question],
        expected: &[Answer],
        report: &mut Report,
    ) -> Result<(), Failure> {
        let Size { nodes, devices, .. } = report.size;
        self.say(&format!("forming {nodes} nodes of {devices} devices\n"))?;
        let opened = Arc::new(opened.with_dense_out(true));
        let threads = self.compute.threads()?;
        let cores = self.compute.cores.as_ref().map(|cores| cores.0.as_slice());
        let trunk = load_trunk(&opened, &admission, threads)?;
        let served = Served {
            name: "rehearsal".to_owned(),
            opened,
            config,
            manifest: Manifest::default(),
            admission,
            pool: Arc::new(Pool::new(threads, cores)),
            trunk,
        };
        report.resident_before = resident_bytes().now;
        let began = Instant::now();
        let formation = Formation::start(self.settings(&report.size), served).await?;
        formation.until_serving(FORM_MAX).await?;
        report.formed_in = began.elapsed();
        report.resident_formed = resident_bytes().now;
        self.say(&format!("formed in {:.1} s\n", report.formed_in.as_secs_f64()))?;

        let before = formation.coordinator().cluster().await;
        let began = Instant::now();
        let answers = ask_all(formation.coordinator(), questions).await?;
        report.served_in = began.elapsed();
        let after = formation.coordinator().cluster().await;
        report.resident_served = resident_bytes();
        report.threads = threads_running();
        report.count(&before, &after, questions);
        check(&answers, expected)?;
        // Somebody must be able to take over what the node held.
        if report.spares >= u64::from(devices) {
            self.say("the same again, while a node falls\n")?;
            let asked = ask_all(formation.coordinator(), questions);
            let (answers, healed_in) = tokio::try_join!(asked, self.fall(&formation, &after))?;
            check(&answers, expected)?;
            report.healed_in = Some(healed_in);
        }
        let began = Instant::now();
        formation.stop().await;
        report.stopped_in = began.elapsed();
        Ok(())
    }

    fn settings(&self, size: &Size) -> FormationSettings {
        let rows = self.requests * 2 + 512;
        FormationSettings {
            assembly: Assembly {
                data: DataSettings {
                    rows_in_flight_max: rows,
                    sequences_max: self.requests,
                    queue_max: self.requests,
                    chunk_rows_max: 512,
                    kv_bytes: 1 << 30,
                    forwarding: Choice::Always(Forwarding::Whole),
                    shared_cores: true,
                    dense_out: true,
                    // What is measured is computing.
                    prefix_cache: false,
                    ..DataSettings::default()
                },
                placer: PlacerSettings {
                    policy: Policy::Reference,
                    constraints: Constraints::default(),
                    nodes_min: size.nodes as usize,
                    start_window: FORM_MAX,
                    rebalance: None,
                },
                bias: None,
                data_folder: None,
                nodes: Vec::new(),
                tls: None,
                authority: None,
                token_file: None,
                insecure_anywhere: false,
            },
            embedded: size.nodes,
            devices: Some(size.devices),
            emulation: None,
        }
    }

    /// Kills the first node as soon as every request may have a token more than `before`: how long it takes until every
    /// expert has an actor again.
    async fn fall(&self, formation: &Formation, before: &Value) -> Result<Duration, Failure> {
        let coordinator = formation.coordinator();
        let tokens = number(&before["data"]["tokens"]) + u64::from(self.requests);
        while number(&coordinator.cluster().await["data"]["tokens"]) < tokens {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let began = Instant::now();
        formation.stop_node(0).await;
        let epoch = number(&before["epoch"]["number"]);
        loop {
            let state = coordinator.cluster().await;
            if number(&state["epoch"]["number"]) > epoch && state["state"] == State::Serving.name() {
                return Ok(began.elapsed());
            }
            if began.elapsed() > FORM_MAX {
                let missing = &state["missing"];
                return Err(format!("a node's experts had no holder for {FORM_MAX:?}: {missing}").into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How far it is, for people.
    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { show(text) }
    }
}

/// Refuses an answer that is not the plain loop's.
fn check(answers: &[Answer], expected: &[Answer]) -> Result<(), Failure> {
    match answers.iter().zip(expected).position(|(answer, expected)| answer != expected) {
        None => Ok(()),
        Some(number) => Err(format!(
            "request {number} was answered {:?}, the plain loop says {:?}: the cluster is wrong",
            answers[number], expected[number]
        )
        .into()),
    }
}

/// A number out of the JSON of a cluster's state.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}
