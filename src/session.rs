//! A model in this process, ready to compute: what `generate`, `forward` and `bench` share.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::program::{self, ModelFiles, remember};
use coordinator::texts::{TextFiles, Texts};
use model::bias::{Bias, BiasError};
use model::experts::LocalExperts;
use model::kernel::{Kernels, RowType};
use model::kv::{KvCache, Sequence};
use model::load::{self, Opened, Progress, Request};
use model::plain::{Observe, Run, StepError, check_context, step_under};
use model::pool::Pool;
use model::trunk::{Trunk, Workspace};
use model::weights::{DigestCache, ExpertId, ExpertPlan, Manifest, TrunkPlan};
use node::host::Host;

use crate::Failure;
use crate::arguments::{ComputeArguments, ModelArguments};
use crate::output::{bytes, with_progress};

/// Rows of a prefill step: enough that an expert's weights are read once for many rows.
const PREFILL_ROWS: usize = 2048;

const DEMO: &str = "demo-model";

/// A model that computes.
pub(crate) struct Session {
    pub(crate) trunk: Trunk,
    pub(crate) experts: LocalExperts,
    pub(crate) pool: Arc<Pool>,
    pub(crate) work: Workspace,
    pub(crate) cache: KvCache,
    pub(crate) load_time: Duration,
    /// Under which all rows choose.
    pub(crate) bias: Option<Arc<Bias>>,
}

/// Opens a folder, or the demo model.
pub(crate) fn open(model: Option<&Path>) -> Result<Opened, Failure> {
    Ok(match model {
        Some(dir) => Opened::open(dir)?,
        None => Opened::embedded(
            DEMO,
            include_bytes!("../demo-model/config.json"),
            include_bytes!("../demo-model/model.safetensors"),
        )?,
    })
}

/// Text of the model's `config.json`.
pub(crate) fn config_text(model: Option<&Path>) -> Result<Vec<u8>, Failure> {
    match model {
        Some(dir) => Ok(std::fs::read(dir.join("config.json"))?),
        None => Ok(include_bytes!("../demo-model/config.json").to_vec()),
    }
}

/// Opens a folder, or the demo model, with all that serving it needs.
pub(crate) fn files(model: Option<&Path>) -> Result<ModelFiles, Failure> {
    Ok(match model {
        Some(dir) => ModelFiles::open(dir)?,
        None => ModelFiles {
            name: DEMO.to_owned(),
            opened: open(None)?,
            config: include_bytes!("../demo-model/config.json").to_vec(),
            texts: Arc::new(texts(None)?),
        },
    })
}

/// Opens the texts of a folder, or of the demo model.
pub(crate) fn texts(model: Option<&Path>) -> Result<Texts, Failure> {
    let files = TextFiles {
        tokenizer: include_bytes!("../demo-model/tokenizer.json"),
        tokenizer_config: include_bytes!("../demo-model/tokenizer_config.json"),
        generation_config: include_bytes!("../demo-model/generation_config.json"),
    };
    Ok(match model {
        Some(dir) => Texts::open(dir)?,
        None => Texts::from_bytes(DEMO, files)?,
    })
}

/// Reads a bias for a model, if one is named.
pub(crate) fn bias(file: Option<&Path>, opened: &Opened) -> Result<Option<Arc<Bias>>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let wrong = |why: BiasError| -> Failure { format!("--bias {}: {why}", file.display()).into() };
    let bias = Bias::open(file).map_err(wrong)?;
    bias.check(&opened.spec).map_err(wrong)?;
    Ok(Some(Arc::new(bias)))
}

impl Session {
    /// Loads all of a model.
    pub(crate) fn load(arguments: &ModelArguments) -> Result<Self, Failure> {
        let opened = arguments.open()?;
        Self::load_opened(&opened, &arguments.compute, arguments.kv_memory)
    }

    /// Loads all of an opened model.
    pub(crate) fn load_opened(
        opened: &Opened,
        compute: &ComputeArguments,
        kv_memory: u64,
    ) -> Result<Self, Failure> {
        let start = Instant::now();
        let kernels = compute.kernels()?;
        let threads = compute.threads()?;
        let kv_memory = check_memory(opened, kernels, kv_memory)?;
        let cores = compute.cores.as_ref().map(|c| c.0.as_slice());
        let pool = Arc::new(Pool::new(threads, cores));
        pool.pin_caller();
        let (trunk, experts) = load_parts(opened, kernels, threads)?;
        let cache = KvCache::new(&opened.spec, kernels.class().row_type(), usize::try_from(kv_memory)?);
        Ok(Self {
            trunk,
            experts: LocalExperts::new(kernels, Arc::clone(&pool), experts),
            pool,
            work: Workspace::new(kernels),
            cache,
            load_time: start.elapsed(),
            bias: None,
        })
    }

    /// What computes.
    pub(crate) fn kernels(&self) -> Kernels {
        self.trunk.kernels()
    }

    /// Computes the next tokens of a sequence, in steps; the last residuals are left in `work`.
    pub(crate) fn advance(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        observe: &mut dyn Observe,
    ) -> Result<(), StepError> {
        // All or nothing: a prompt that does not fit is refused before any of it is computed.
        let needed = self.cache.pages_needed(sequence, tokens.len());
        if needed > self.cache.free() {
            let (free, total) = (self.cache.free(), self.cache.pages());
            return Err(model::kv::KvFull { needed, free, total }.into());
        }
        check_context(self.trunk.spec(), sequence.len() + tokens.len())?;
        for tokens in tokens.chunks(PREFILL_ROWS) {
            self.step(&mut [Run { sequence, tokens }], observe)?;
        }
        Ok(())
    }

    /// One step of several sequences.
    pub(crate) fn step(&mut self, runs: &mut [Run<'_>], observe: &mut dyn Observe) -> Result<(), StepError> {
        let Self { trunk, pool, work, cache, experts, bias, .. } = self;
        step_under(trunk, pool, work, cache, runs, experts, observe, bias.as_deref())
    }

    /// Logits of rows of the last step.
    pub(crate) fn logits(&mut self, rows: &[usize], logits: &mut Vec<f32>) {
        self.trunk.logits(&self.pool, &mut self.work, rows, logits);
    }
}

/// Refuses a model that this machine cannot hold, before minutes of loading end in the system's
/// killing the process. Returns the memory for keys and values, at most what the machine has.
fn check_memory(opened: &Opened, kernels: Kernels, kv_memory: u64) -> Result<u64, Failure> {
    let Some(memory) = Host::read().memory_bytes else { return Ok(kv_memory) };
    let exact = kernels.class().row_type() == RowType::F32;
    let mut needed = TrunkPlan::new(&opened.checkpoint, &opened.spec).bytes()?;
    for (layer, moe) in opened.spec.moe_layers() {
        let first = ExpertId { layer: layer as u32, expert: 0 };
        let plan = ExpertPlan::new(&opened.checkpoint, &opened.spec, first)?;
        needed += plan.bytes(exact) as u64 * moe.experts as u64;
    }
    if needed > memory {
        return Err(format!(
            "{}: its weights need {} in memory, this machine has {}; use a machine with more, or a smaller model",
            opened.checkpoint.dir().display(),
            bytes(needed),
            bytes(memory)
        )
        .into());
    }
    Ok(kv_memory.min(memory))
}

type Parts = (Trunk, std::collections::HashMap<model::weights::ExpertId, Arc<model::weights::Block>>);

fn load_parts(opened: &Opened, kernels: Kernels, threads: usize) -> Result<Parts, Failure> {
    let cache = digest_cache(opened);
    let known = cache.as_ref().map(DigestCache::load).unwrap_or_default();
    let experts = opened.experts();
    let progress = Progress::default();
    let request = Request { kernels, threads, trunk: true, experts: &experts, digests: true, known: &known };
    let loaded = with_progress(&progress, || load::load(opened, &request, &progress))?;
    loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    remember(cache.as_ref(), &known, &loaded.manifest);
    let weights = loaded.trunk.expect("the trunk was asked for");
    Ok((Trunk::new(Arc::clone(&opened.spec), kernels, weights), loaded.experts))
}

/// Where digests are kept between runs, if the user has a place for caches.
pub(crate) fn digest_cache(opened: &Opened) -> Option<DigestCache> {
    DigestCache::new(&crate::cache_folder()?.join("digests"), &opened.checkpoint)
}

/// All digests of a model, those that are kept from earlier runs and all others.
pub(crate) fn digests(opened: &Opened) -> Result<Manifest, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (progress, cache) = (Progress::default(), digest_cache(opened));
    Ok(with_progress(&progress, || program::digests(opened, cache.as_ref(), threads, &progress))?)
}
