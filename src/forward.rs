//! `phalanx forward`: one pass over given tokens, with everything inside it, into a safetensors file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use model::gate::Choices;
use model::kv::Sequence;
use model::plain::{Observe, check_context, check_tokens};
use safetensors::tensor::{Dtype, TensorView};

use crate::Failure;
use crate::arguments::{ModelArguments, Tokens, token_ids};
use crate::output::{shards, show};
use crate::session::{self, Session};

/// One pass over given tokens, for comparing with other implementations.
///
/// Writes `logits` F32 [n, vocab], `router_ids` I32 and `router_weights` F32 [MoE layers, n, k] (by
/// falling weight), and `hidden` F32 [layers + 2, n, hidden]: the input of the first layer, the
/// residual stream after each layer, and the result of the last norm.
#[derive(Debug, Args)]
pub(crate) struct Forward {
    #[command(flatten)]
    model: ModelArguments,

    /// Token ids, for example 5,17,3.
    #[arg(long, value_name = "IDS", value_parser = token_ids)]
    tokens: Tokens,

    /// File to write. It appears whole or not at all.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Choose experts under this selection bias: a file as a coordinator's /bias shows it.
    #[arg(long, value_name = "FILE")]
    bias: Option<PathBuf>,
}

/// Everything inside a pass, in the order in which it happens.
#[derive(Default)]
struct Inside {
    layers: usize,
    /// Per layer, so that steps of a long prompt can be put together.
    residuals: Vec<Vec<f32>>,
    ids: BTreeMap<usize, Vec<i32>>,
    weights: BTreeMap<usize, Vec<f32>>,
    top_k: usize,
}

impl Observe for Inside {
    fn residual(&mut self, layer: usize, rows: &[f32]) {
        self.layers = self.layers.max(layer);
        self.residuals.resize(self.layers + 1, Vec::new());
        self.residuals[layer].extend_from_slice(rows);
    }

    fn chosen(&mut self, layer: usize, choices: &Choices) {
        self.top_k = choices.top_k;
        let ids = self.ids.entry(layer).or_default();
        let weights = self.weights.entry(layer).or_default();
        let rows = choices.experts.chunks(choices.top_k).zip(choices.weights.chunks(choices.top_k));
        for (experts, row) in rows {
            let mut pairs: Vec<(f32, u32)> = row.iter().copied().zip(experts.iter().copied()).collect();
            pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            ids.extend(pairs.iter().map(|(_, expert)| *expert as i32));
            weights.extend(pairs.iter().map(|(weight, _)| *weight));
        }
    }
}

impl Forward {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let tokens = &self.tokens.0;
        // Before minutes of loading.
        self.check_out()?;
        let opened = self.model.open()?;
        check_tokens(&opened.spec, tokens)?;
        check_context(&opened.spec, tokens.len())?;
        let bias = session::bias(self.bias.as_deref(), &opened)?;
        let mut session = Session::load_opened(&opened, &self.model.compute, self.model.kv_memory)?;
        session.bias = bias;
        let (vocab, hidden) = (session.trunk.spec().vocab, session.trunk.spec().hidden);
        let mut inside = Inside::default();
        let mut logits = Vec::with_capacity(tokens.len() * vocab);
        let mut sequence = Sequence::default();
        let mut some = Vec::new();
        for chunk in tokens.chunks(512) {
            session.advance(&mut sequence, chunk, &mut inside)?;
            let rows: Vec<usize> = (0..chunk.len()).collect();
            session.logits(&rows, &mut some);
            logits.extend_from_slice(&some);
        }
        let last = inside.residuals.last().expect("a model has layers").clone();
        let mut normed = vec![0.0; last.len()];
        for (from, to) in last.chunks(hidden).zip(normed.chunks_mut(hidden)) {
            session.trunk.last_norm(from, to);
        }
        inside.residuals.push(normed);
        self.write(&inside, &logits, vocab, hidden)?;
        show(&format!(
            "{} tokens, numeric class {}{}: {}\n",
            tokens.len(),
            session.kernels().class(),
            shards(session.trunk.spec()),
            self.out.display()
        ))
    }

    fn check_out(&self) -> Result<(), Failure> {
        let folder =
            self.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        match (folder.is_dir(), self.out.is_dir()) {
            (false, _) => {
                Err(format!("--out {}: there is no folder {}", self.out.display(), folder.display()).into())
            }
            (_, true) => {
                Err(format!("--out {}: is a folder, expected a file name", self.out.display()).into())
            }
            _ => Ok(()),
        }
    }

    fn write(&self, inside: &Inside, logits: &[f32], vocab: usize, hidden: usize) -> Result<(), Failure> {
        let n = self.tokens.0.len();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let ids: Vec<u8> = inside.ids.values().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let weights: Vec<f32> = inside.weights.values().flatten().copied().collect();
        let residuals: Vec<f32> = inside.residuals.concat();
        let (logits, weights, residuals) = (bytes(logits), bytes(&weights), bytes(&residuals));
        let routed = vec![inside.ids.len(), n, inside.top_k];
        let tensors = [
            ("logits", TensorView::new(Dtype::F32, vec![n, vocab], &logits)?),
            ("router_ids", TensorView::new(Dtype::I32, routed.clone(), &ids)?),
            ("router_weights", TensorView::new(Dtype::F32, routed, &weights)?),
            ("hidden", TensorView::new(Dtype::F32, vec![inside.residuals.len(), n, hidden], &residuals)?),
        ];
        let file = safetensors::serialize(tensors, None)?;
        let name = self.out.file_name().ok_or("--out needs a file name")?.to_string_lossy();
        let draft = self.out.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let written = std::fs::write(&draft, &file).and_then(|()| std::fs::rename(&draft, &self.out));
        written.map_err(|e| {
            // Whatever was written of the draft is of no use to anybody.
            let _ = std::fs::remove_file(&draft);
            format!("{}: cannot be written ({e}); is the disk full?", self.out.display()).into()
        })
    }
}
