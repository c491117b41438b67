//! `phalanx inspect`: what a checkpoint is, and what it needs.

use std::path::PathBuf;

use clap::Args;
use model::kernel::RowType;
use model::kv::KvCache;
use model::load::Opened;
use model::spec::{Attention, FeedForward, Quantization, Spec};
use model::weights::{ExpertPlan, Manifest, TrunkPlan};
use serde_json::json;

use crate::Failure;
use crate::output::{bytes, show};
use crate::session::{digests, open};

/// What a checkpoint is, and what it needs.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Folder of a Hugging Face checkpoint. Without it: the embedded demo model.
    dir: Option<PathBuf>,

    /// Show the memory that a sequence of so many tokens needs. Default: the model's context.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,

    /// Show what experts cut into so many shards need.
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,

    /// Read all weights and show the digest of every expert and of the trunk.
    #[arg(long)]
    digests: bool,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// The figures.
struct Figures {
    expert_bytes: u64,
    expert_stored_bytes: u64,
    /// The largest shard's.
    shard_bytes: u64,
    experts: usize,
    trunk_bytes: u64,
    kv_bytes_per_token: u64,
    context: usize,
    kv_bytes_of_context: u64,
    stored_bytes: u64,
}

impl Inspect {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let opened = open(self.dir.as_deref())?.with_shards(self.shards)?;
        let spec = &opened.spec;
        if let Some(context) = self.context {
            model::plain::check_context(spec, context)?;
        }
        let figures = self.figures(&opened)?;
        let manifest = if self.digests { Some(digests(&opened)?) } else { None };
        match self.json {
            true => self.print_json(&opened, &figures, manifest.as_ref()),
            false => self.print(&opened, &figures, manifest.as_ref()),
        }
    }

    fn figures(&self, opened: &Opened) -> Result<Figures, Failure> {
        let spec = &opened.spec;
        let experts = opened.experts();
        let mut expert_bytes = 0;
        let (mut expert_stored_bytes, mut shard_bytes) = (0, 0);
        if let Some(first) = experts.first() {
            let plan = ExpertPlan::new(&opened.checkpoint, spec, *first)?;
            (expert_bytes, expert_stored_bytes) = (plan.bytes(false) as u64, plan.stored_bytes());
            for index in 0..spec.shards {
                let shard = ExpertPlan::shard(&opened.checkpoint, spec, *first, index)?;
                shard_bytes = shard_bytes.max(shard.bytes(false) as u64);
            }
        }
        let context = self.context.unwrap_or(spec.context_max);
        let kv_values: usize = (0..spec.layers.len()).map(|l| spec.kv_values(l)).sum();
        let page = KvCache::page_bytes(spec, RowType::Bf16) as u64;
        Ok(Figures {
            expert_bytes,
            expert_stored_bytes,
            shard_bytes,
            experts: experts.len(),
            trunk_bytes: TrunkPlan::new(&opened.checkpoint, spec).bytes()?,
            kv_bytes_per_token: 2 * kv_values as u64,
            context,
            kv_bytes_of_context: context.div_ceil(model::kv::PAGE) as u64 * page,
            stored_bytes: opened.checkpoint.files().iter().map(|f| f.length()).sum(),
        })
    }

    fn print(&self, opened: &Opened, f: &Figures, manifest: Option<&Manifest>) -> Result<(), Failure> {
        let spec = &opened.spec;
        let mut lines = vec![
            format!("{}", opened.checkpoint.dir().display()),
            format!("  family            {}", spec.family.name()),
            format!(
                "  layers            {} ({} with routed experts)",
                spec.layers.len(),
                spec.moe_layers().count()
            ),
        ];
        if let Some((_, moe)) = spec.moe_layers().next() {
            lines.push(format!(
                "  experts per layer {}, a row takes {}, inner width {}",
                moe.experts, moe.top_k, moe.width
            ));
        }
        lines.push(format!("  attention         {}", attention(spec)));
        lines.push(format!(
            "  hidden, vocab     {}, {}{}",
            spec.hidden,
            spec.vocab,
            if spec.tied { " (tied)" } else { "" }
        ));
        lines.push(format!("  context           {} tokens, rope {}", spec.context_max, spec.rope.kind));
        lines.push(format!(
            "  stored            {} in {} files{}",
            bytes(f.stored_bytes),
            opened.checkpoint.files().len(),
            quantization(spec)
        ));
        lines.push(format!(
            "  one expert        {} in memory ({} stored)",
            bytes(f.expert_bytes),
            bytes(f.expert_stored_bytes)
        ));
        if spec.shards > 1 {
            lines.push(format!("  one of {:10} {}", format!("{} shards", spec.shards), bytes(f.shard_bytes)));
        }
        lines.push(format!(
            "  all {:13} {}",
            format!("{} experts", f.experts),
            bytes(f.experts as u64 * f.expert_bytes)
        ));
        lines.push(format!("  trunk             {}", bytes(f.trunk_bytes)));
        lines.push(format!("  KV                {} per token", bytes(f.kv_bytes_per_token)));
        lines.push(format!(
            "  in one process    {} for one sequence of {} tokens ({} of it KV)",
            bytes(f.experts as u64 * f.expert_bytes + f.trunk_bytes + f.kv_bytes_of_context),
            f.context,
            bytes(f.kv_bytes_of_context)
        ));
        if let Some(manifest) = manifest {
            lines.push("  digests (BLAKE3)".to_string());
            for (name, digest) in [("config", manifest.config), ("trunk", manifest.trunk)] {
                lines.extend(digest.map(|d| format!("    {name:8} {d}")));
            }
            lines.extend(manifest.experts.iter().map(|(id, d)| format!("    {:8} {d}", id.to_string())));
        }
        show(&(lines.join("\n") + "\n"))
    }

    fn print_json(&self, opened: &Opened, f: &Figures, manifest: Option<&Manifest>) -> Result<(), Failure> {
        let spec = &opened.spec;
        let layers: Vec<_> = spec
            .layers
            .iter()
            .map(|layer| match &layer.feed_forward {
                FeedForward::Dense { width } => {
                    json!({ "kind": "dense", "width": width, "window": layer.window })
                }
                FeedForward::Moe(moe) => json!({
                    "kind": "moe", "width": moe.width, "experts": moe.experts, "top_k": moe.top_k,
                    "shared_width": moe.shared.as_ref().map(|s| s.width), "window": layer.window,
                }),
            })
            .collect();
        let moe = spec.moe_layers().next().map(|(_, moe)| moe);
        let mut object = json!({
            "path": opened.checkpoint.dir().display().to_string(),
            "family": spec.family.name(),
            "layers": spec.layers.len(),
            "moe_layers": spec.moe_layers().map(|(l, _)| l).collect::<Vec<_>>(),
            "experts_per_layer": moe.map(|m| m.experts),
            "experts_per_token": moe.map(|m| m.top_k),
            "experts": f.experts,
            "hidden": spec.hidden,
            "vocab": spec.vocab,
            "tied": spec.tied,
            "context_max": spec.context_max,
            "rope": spec.rope.kind,
            "attention": attention(spec),
            "stored_bytes": f.stored_bytes,
            "bytes_per_expert": f.expert_bytes,
            "shards": spec.shards,
            "bytes_per_shard": f.shard_bytes,
            "stored_bytes_per_expert": f.expert_stored_bytes,
            "expert_bytes": f.experts as u64 * f.expert_bytes,
            "trunk_bytes": f.trunk_bytes,
            "kv_bytes_per_token": f.kv_bytes_per_token,
            "context": f.context,
            "kv_bytes": f.kv_bytes_of_context,
            "memory_bytes": f.experts as u64 * f.expert_bytes + f.trunk_bytes + f.kv_bytes_of_context,
            "layer": layers,
        });
        if let Some(manifest) = manifest {
            let experts: serde_json::Map<_, _> =
                manifest.experts.iter().map(|(id, d)| (id.to_string(), json!(d.to_string()))).collect();
            object["digests"] = json!({
                "config": manifest.config.map(|d| d.to_string()),
                "trunk": manifest.trunk.map(|d| d.to_string()),
                "experts": experts,
            });
        }
        show(&format!("{object:#}\n"))
    }
}

fn attention(spec: &Spec) -> String {
    match &spec.layers[0].attention {
        Attention::Grouped(g) => {
            let windows = spec.layers.iter().filter(|l| l.window.is_some()).count();
            let sliding = match windows {
                0 => String::new(),
                n => format!(", {n} layers with a sliding window"),
            };
            format!("{} heads over {} of width {}{sliding}", g.heads, g.kv_heads, g.head_dim)
        }
        Attention::Latent(l) => {
            format!("{} heads over one latent of {} + {}", l.heads, l.latent_rank, l.rotary_dim)
        }
    }
}

fn quantization(spec: &Spec) -> &'static str {
    match spec.quantization {
        None => "",
        Some(Quantization::Fp8 { .. }) => ", FP8, widened to BF16 in memory",
        Some(Quantization::Mxfp4) => ", experts MXFP4, widened to BF16 in memory",
    }
}
