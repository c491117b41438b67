//! What a node costs beside the computing itself: round trips of dispatches over the memory carrier, and the share of
//! `LocalExperts`' speed that is left. Measured in turns on one machine, medians.
//!
//!     cargo run --release -p phalanx-node --example overhead

#[path = "../tests/node/support/mod.rs"]
#[allow(clippy::unwrap_used, reason = "an example that fails has nothing to say")]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::checkpoint::{Checkpoint, Synthetic};
use model::config::Config;
use model::experts::{Experts, Groups, LocalExperts};
use model::family;
use model::kernel::Kernels;
use model::load::{self, Opened, Progress, Request};
use model::pool::Pool;
use model::rows::RowBuffer;
use model::weights::{Digest, Manifest};
use phalanx_node::{Runtime, RuntimeSettings};
use support::{Door, Random, Truth};
use transport::carrier::memory::MemoryCarrier;

const EXPERTS: usize = 64;
const TOP_K: usize = 8;
const ROUNDS: usize = 200;

/// One layer of a Qwen3-MoE.
fn opened(hidden: usize, width: usize) -> (Opened, String) {
    let config = format!(
        r#"{{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
        "hidden_size": {hidden}, "intermediate_size": {width}, "moe_intermediate_size": {width},
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
        "num_experts": {EXPERTS}, "num_experts_per_tok": {TOP_K}, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false}}"#
    );
    let mut tensors = Vec::new();
    for expert in 0..EXPERTS {
        for (name, shape) in
            [("gate_proj", [width, hidden]), ("up_proj", [width, hidden]), ("down_proj", [hidden, width])]
        {
            let name = format!("model.layers.0.mlp.experts.{expert}.{name}.weight");
            tensors.push(Synthetic { name, shape: shape.to_vec() });
        }
    }
    let parsed = Config::parse("config.json".as_ref(), config.as_bytes()).unwrap();
    let spec = family::spec(&parsed).unwrap();
    let checkpoint = Checkpoint::synthetic("synthetic", &tensors, 1);
    (Opened::new(spec, checkpoint, Digest::of(config.as_bytes())), config)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

async fn measure(hidden: usize, width: usize, spin: Duration) {
    let kernels = Kernels::best();
    let (model, config) = opened(hidden, width);
    let opened = Arc::new(model);
    let (ids, known) = (opened.experts(), Manifest::default());
    let request = Request { kernels, threads: 2, trunk: false, experts: &ids, digests: true, known: &known };
    let loaded = load::load(&opened, &request, &Progress::default()).unwrap();
    let pool = Arc::new(Pool::new(2, None));
    let experts = LocalExperts::new(kernels, Arc::clone(&pool), loaded.experts);
    let mut truth = Truth { dir: "synthetic".into(), opened, kernels, experts, manifest: loaded.manifest };

    let mut door = Door::memory(&MemoryCarrier::default(), "c", kernels);
    let settings = RuntimeSettings { kernels, pool, arbiters: 1, spin, on_busy: None };
    let runtime = Runtime::start(settings).unwrap();
    let mut settings = support::settings(&truth, "n0", vec![door.address()]);
    settings.devices = vec![1 << 32; EXPERTS];
    let _node = support::start(&runtime, settings);
    let mut coordinator = door.link().await;
    coordinator.told().await;
    let joined =
        transport::wire::cluster::Joined { node: 0, term: 1, config: config.into_bytes(), shards: 1 };
    coordinator.tell(transport::wire::cluster::ToNode::Joined(joined));
    let actors = (0..EXPERTS as u32).map(|expert| truth.assignment(0, expert, expert as u16)).collect();
    coordinator.hold(1, 1, actors).await;

    println!("hidden {hidden}, width {width}, class {}, spin {spin:?}", kernels.class());
    let mut random = Random::new(1);
    for rows_count in [1, 2, 4, 8, 16, 32, 128] {
        let rows = truth.rows(&mut random, rows_count);
        let (mut locals, mut remotes) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // Other experts each time, so that weights come from memory as they do in a model of many layers.
            let mut taken: Vec<Vec<u32>> = vec![Vec::new(); EXPERTS];
            for row in 0..rows_count as u32 {
                let first = random.below(EXPERTS);
                (0..TOP_K).for_each(|rank| taken[(first + rank * 7) % EXPERTS].push(row));
            }
            let chosen: Vec<(u32, Vec<u32>)> =
                (0..).zip(taken).filter(|(_, rows)| !rows.is_empty()).collect();
            let mut groups = Groups::default();
            for (expert, rows) in &chosen {
                groups.experts.push(*expert);
                groups.starts.push(groups.rows.len());
                groups.rows.extend(rows);
            }
            groups.starts.push(groups.rows.len());
            let mut out = RowBuffer::new(kernels.class().row_type());
            out.reset(groups.rows.len(), hidden);
            let began = Instant::now();
            truth.experts.compute(0, &rows, &groups, &mut out).unwrap();
            locals.push(began.elapsed());
            let (frame, ids) = coordinator.frame(&truth, 0, &rows, &chosen);
            let began = Instant::now();
            coordinator.peer.send(frame).await.unwrap();
            let mut missing = ids.len();
            while missing > 0 {
                let frame = coordinator.data.receive().await.unwrap().unwrap();
                missing -= usize::from(frame.header.groups);
            }
            remotes.push(began.elapsed());
        }
        let (local, remote) = (median(locals), median(remotes));
        let over = remote.saturating_sub(local);
        let share = local.as_secs_f64() / remote.as_secs_f64();
        println!(
            "{rows_count:4} rows: local {local:9.1?}, node {remote:9.1?}, over {over:8.1?}, share {share:.3}"
        );
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for (hidden, width) in [(64, 32), (1024, 512), (2048, 1408)] {
        for spin in [Duration::ZERO, Duration::from_micros(20)] {
            runtime.block_on(async { tokio::spawn(measure(hidden, width, spin)).await.unwrap() });
        }
    }
}
