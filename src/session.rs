//! A model in this process, ready to compute: what `generate`, `forward` and `bench` share.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::texts::{TextFiles, Texts};
use model::experts::LocalExperts;
use model::kernel::{Kernels, NumericClass, RowType};
use model::kv::{KvCache, Sequence};
use model::load::{self, Opened, Progress, Request};
use model::plain::{Observe, Run, StepError, check_context, step};
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
        step(&self.trunk, &self.pool, &mut self.work, &mut self.cache, runs, &mut self.experts, observe)
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
fn digest_cache(opened: &Opened) -> Option<DigestCache> {
    DigestCache::new(&crate::cache_folder()?.join("digests"), &opened.checkpoint)
}

/// Keeps new digests. A cache that cannot be written costs time at the next start and nothing else.
fn remember(cache: Option<&DigestCache>, known: &Manifest, found: &Manifest) {
    if let Some(cache) = cache
        && found != known
    {
        let _ = cache.store(found);
    }
}

/// All digests, part by part: each is read, packed, hashed and dropped. What is known already is not read.
pub(crate) fn digests(opened: &Opened) -> Result<Manifest, Failure> {
    let cache = digest_cache(opened);
    let known = cache.as_ref().map(DigestCache::load).unwrap_or_default();
    let kernels = Kernels::for_class(NumericClass::Portable)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let progress = Progress::default();
    let mut manifest = known.clone();
    let experts = opened.experts();
    with_progress(&progress, || -> Result<(), Failure> {
        let mut read = |trunk: bool, experts: &[_]| -> Result<(), Failure> {
            let known = &Manifest::default();
            let request = Request { kernels, threads, trunk, experts, digests: true, known };
            manifest.merge(&load::load(opened, &request, &progress)?.manifest);
            Ok(())
        };
        if known.trunk.is_none() {
            read(true, &[])?;
        }
        let missing: Vec<_> = experts.iter().copied().filter(|id| !known.experts.contains_key(id)).collect();
        // Some at a time, so that a model larger than memory can be hashed.
        for some in missing.chunks(64) {
            read(false, some)?;
        }
        Ok(())
    })?;
    manifest.config = Some(opened.config_digest);
    remember(cache.as_ref(), &known, &manifest);
    Ok(manifest)
}
