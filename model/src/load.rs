//! Opening and loading: from a folder to a trunk and experts in memory, in parallel, in one pass over
//! the files.
//!
//! Parts (the embedding, each layer of the trunk, the head, each expert) are claimed one by one by the
//! loading threads. Each thread holds one small buffer beside what it packs, so the peak is the packed
//! bytes and little more.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, CheckpointError, Reader};
use crate::config::{Config, ConfigError};
use crate::family;
use crate::kernel::{Kernels, Matrix, Region, RowType};
use crate::spec::{ShardsError, Spec};
use crate::weights::{
    Block, Digest, Embedding, ExpertId, ExpertPlan, Manifest, TrunkLayer, TrunkPlan, TrunkWeights,
};

/// Why a model cannot be loaded. Nothing of it is left in memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file beside them.
    #[error("{file}: cannot be read ({problem}); give the folder of a Hugging Face checkpoint")]
    File {
        /// The file.
        file: String,
        /// What the system said.
        problem: String,
    },
}

/// A model that has been opened: its specification is known, its weights are on disk.
#[derive(Debug)]
pub struct Opened {
    /// What it is.
    pub spec: Arc<Spec>,
    /// Where its weights are.
    pub checkpoint: Checkpoint,
    /// Of `config.json`.
    pub config_digest: Digest,
    /// The feed-forwards of dense layers are experts like the routed ones, and not the trunk's.
    pub dense_out: bool,
}

/// Reads `config.json` of a folder.
pub fn read_spec(dir: &Path) -> Result<(Spec, Digest), LoadError> {
    let file = dir.join("config.json");
    let text = std::fs::read(&file)
        .map_err(|e| LoadError::File { file: file.display().to_string(), problem: e.to_string() })?;
    let spec = family::spec(&Config::parse(&file, &text)?)?;
    Ok((spec, Digest::of(&text)))
}

impl Opened {
    /// Opens a folder.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let (spec, config_digest) = read_spec(dir)?;
        Ok(Self::new(spec, Checkpoint::open(dir)?, config_digest))
    }

    /// Opens a model that is compiled in.
    pub fn embedded(name: &str, config: &[u8], weights: &'static [u8]) -> Result<Self, LoadError> {
        let spec = family::spec(&Config::parse(&Path::new(name).join("config.json"), config)?)?;
        let checkpoint = Checkpoint::in_memory(Path::new(&format!("{name}/model.safetensors")), weights)?;
        Ok(Self::new(spec, checkpoint, Digest::of(config)))
    }

    /// A model of this specification and these weights.
    pub fn new(spec: Spec, checkpoint: Checkpoint, config_digest: Digest) -> Self {
        Self { spec: Arc::new(spec), checkpoint, config_digest, dense_out: false }
    }

    /// The same model with every expert cut into `shards`.
    pub fn with_shards(self, shards: usize) -> Result<Self, ShardsError> {
        Ok(Self { spec: Arc::new(Spec::clone(&self.spec).with_shards(shards)?), ..self })
    }

    /// The same model with the feed-forwards of its dense layers as experts, or as parts of the trunk.
    pub fn with_dense_out(self, dense_out: bool) -> Self {
        Self { dense_out, ..self }
    }

    /// Every expert of the model that is not part of the trunk.
    pub fn experts(&self) -> Vec<ExpertId> {
        self.spec
            .experts_out(self.dense_out)
            .flat_map(|l| (0..l.experts).map(move |e| ExpertId { layer: l.layer as u32, expert: e as u32 }))
            .collect()
    }
}

/// What to load, and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// For which kernels.
    pub kernels: Kernels,
    /// Threads that load.
    pub threads: usize,
    /// Load the trunk.
    pub trunk: bool,
    /// Load these experts.
    pub experts: &'a [ExpertId],
    /// Hash what is read, but for parts that `known` has.
    pub digests: bool,
    /// Digests that need not be computed again.
    pub known: &'a Manifest,
}

/// How far loading has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Parts loaded.
    pub parts: AtomicUsize,
    /// Parts to load.
    pub parts_all: AtomicUsize,
    /// Bytes of weights packed.
    pub bytes: AtomicU64,
}

/// What was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The trunk, if it was asked for.
    pub trunk: Option<TrunkWeights>,
    /// The experts asked for.
    pub experts: HashMap<ExpertId, Arc<Block>>,
    /// Digests of what was read.
    pub manifest: Manifest,
    /// One line each: what a person should know of the weights.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Embedding,
    Layer(usize),
    Head,
    Expert(ExpertId),
}

type NormAndHead = (Vec<f32>, Matrix);

/// What the threads put together.
#[derive(Default)]
struct Gathered {
    embedding: Option<(Embedding, Option<Digest>)>,
    layers: Vec<Option<(TrunkLayer, Option<Digest>)>>,
    head: Option<(NormAndHead, Option<Digest>)>,
    experts: HashMap<ExpertId, Arc<Block>>,
    digests: HashMap<ExpertId, Digest>,
    nan: Vec<String>,
    rounded: Vec<String>,
    error: Option<CheckpointError>,
}

/// Loads what `request` asks for.
pub fn load(opened: &Opened, request: &Request<'_>, progress: &Progress) -> Result<Loaded, LoadError> {
    let layers = opened.spec.layers.len();
    let mut parts = Vec::new();
    if request.trunk {
        // Large parts first, so that the last ones are short.
        parts.extend([Part::Head, Part::Embedding]);
        parts.extend((0..layers).map(Part::Layer));
    }
    parts.extend(request.experts.iter().copied().map(Part::Expert));
    progress.parts_all.fetch_add(parts.len(), Ordering::Relaxed);

    let exact = exact(request.kernels);
    let regions = expert_regions(opened, request, exact)?;
    let gathered =
        Mutex::new(Gathered { layers: (0..layers).map(|_| None).collect(), ..Gathered::default() });
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let trunk_known = request.known.trunk.is_some();
        let mut hashing = Reader::new(exact, true);
        let mut reading = Reader::new(exact, false);
        while let Some(&part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let known = match part {
                Part::Expert(id) => request.known.experts.contains_key(&id),
                _ => trunk_known,
            };
            let reader = if request.digests && !known { &mut hashing } else { &mut reading };
            let result = load_part(opened, part, &regions, reader, &gathered, progress);
            let mut gathered = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.nan.append(&mut reader.nan_tensors);
            gathered.rounded.append(&mut reader.rounded_tensors);
            if let Err(error) = result {
                failed.store(true, Ordering::Relaxed);
                gathered.error.get_or_insert(error);
                break;
            }
            progress.parts.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..request.threads.min(parts.len()).max(1) {
            scope.spawn(work);
        }
        work();
    });
    regions.values().for_each(|region| region.settle());
    let gathered = gathered.into_inner().unwrap_or_else(PoisonError::into_inner);
    finish(opened, request, gathered)
}

/// One shard of an expert, loaded.
#[derive(Debug)]
pub struct LoadedShard {
    /// It.
    pub block: Block,
    /// The whole expert's digest, if it was asked for.
    pub digest: Option<Digest>,
    /// One line each: what a person should know of the weights.
    pub warnings: Vec<String>,
}

/// Loads shard `index` of expert `id` on this thread: what one device holds. Where `spec` does not cut experts, that is
/// all of it. With `digest` the whole expert is read and hashed, however small the shard.
///
/// Panics if the model has no such shard.
pub fn load_shard(
    checkpoint: &Checkpoint,
    spec: &Spec,
    kernels: Kernels,
    id: ExpertId,
    index: usize,
    digest: bool,
) -> Result<LoadedShard, LoadError> {
    let exact = exact(kernels);
    let plan = ExpertPlan::shard(checkpoint, spec, id, index)?;
    let mut reader = Reader::new(exact, digest);
    let region = Arc::new(Region::new(plan.bytes(exact)));
    let (block, digest) = plan.load(&region, &mut reader)?;
    region.settle();
    let warnings = warnings(reader.nan_tensors, reader.rounded_tensors);
    Ok(LoadedShard { block, digest, warnings })
}

/// Class `f32` keeps values exactly as stored.
fn exact(kernels: Kernels) -> bool {
    kernels.class().row_type() == RowType::F32
}

/// One region for the experts of each layer: experts that lie together share huge pages.
fn expert_regions(
    opened: &Opened,
    request: &Request<'_>,
    exact: bool,
) -> Result<HashMap<u32, Arc<Region>>, LoadError> {
    let mut bytes: HashMap<u32, usize> = HashMap::new();
    for &id in request.experts {
        let plan = ExpertPlan::new(&opened.checkpoint, &opened.spec, id)?;
        *bytes.entry(id.layer).or_default() += plan.bytes(exact);
    }
    Ok(bytes.into_iter().map(|(layer, bytes)| (layer, Arc::new(Region::new(bytes)))).collect())
}

fn load_part(
    opened: &Opened,
    part: Part,
    regions: &HashMap<u32, Arc<Region>>,
    reader: &mut Reader,
    gathered: &Mutex<Gathered>,
    progress: &Progress,
) -> Result<(), CheckpointError> {
    let plan = TrunkPlan::new(&opened.checkpoint, &opened.spec).with_dense_out(opened.dense_out);
    let lock = || gathered.lock().unwrap_or_else(PoisonError::into_inner);
    match part {
        Part::Embedding => {
            let embedding = plan.embedding(reader)?;
            lock().embedding = Some(embedding);
        }
        Part::Layer(layer) => {
            let loaded = plan.layer(layer, reader)?;
            lock().layers[layer] = Some(loaded);
        }
        Part::Head => {
            let head = plan.head(reader)?;
            progress.bytes.fetch_add(head.0.1.bytes() as u64, Ordering::Relaxed);
            lock().head = Some(head);
        }
        Part::Expert(id) => {
            let expert = ExpertPlan::new(&opened.checkpoint, &opened.spec, id)?;
            let region = &regions[&id.layer];
            let (block, digest) = expert.load(region, reader)?;
            progress.bytes.fetch_add(block.bytes() as u64, Ordering::Relaxed);
            let mut gathered = lock();
            gathered.experts.insert(id, Arc::new(block));
            if let Some(digest) = digest {
                gathered.digests.insert(id, digest);
            }
        }
    }
    Ok(())
}

fn finish(opened: &Opened, request: &Request<'_>, gathered: Gathered) -> Result<Loaded, LoadError> {
    if let Some(error) = gathered.error {
        return Err(error.into());
    }
    let mut manifest = Manifest { config: Some(opened.config_digest), ..Manifest::default() };
    manifest.experts = gathered.digests.into_iter().collect();
    for id in request.experts {
        if let Some(digest) = request.known.experts.get(id) {
            manifest.experts.insert(*id, *digest);
        }
    }
    let trunk = request.trunk.then(|| {
        let (embedding, first) = gathered.embedding.expect("no part failed");
        let ((norm, head), last) = gathered.head.expect("no part failed");
        let mut digests = vec![first];
        let layers = gathered
            .layers
            .into_iter()
            .map(|layer| {
                let (layer, digest) = layer.expect("no part failed");
                digests.push(digest);
                layer
            })
            .collect();
        digests.push(last);
        let dense_missing = opened.dense_out && opened.spec.has_dense_layers();
        // The trunk's digest is of all its parts, wherever they are computed: who has not read them cannot know it.
        let all: Option<Vec<Digest>> = digests.into_iter().map(|d| d.filter(|_| !dense_missing)).collect();
        manifest.trunk = request.known.trunk.or(all.map(Digest::of_parts));
        TrunkWeights { embedding, layers, norm, head }
    });
    let warnings = warnings(gathered.nan, gathered.rounded);
    Ok(Loaded { trunk, experts: gathered.experts, manifest, warnings })
}

/// What a person should know of tensors in which NaN was seen, or whose values were rounded.
fn warnings(nan: Vec<String>, rounded: Vec<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |mut tensors: Vec<String>, what: &str| {
        tensors.sort();
        tensors.dedup();
        if let Some(first) = tensors.first() {
            let others = match tensors.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            warnings.push(format!("tensor `{first}`{others} {what}"));
        }
    };
    warn(nan, "holds NaN: answers will be NaN where it is used; the file is damaged or the model diverged");
    warn(
        rounded,
        "is stored with more precision than BF16 and was rounded; numeric class f32 keeps it exactly",
    );
    warnings
}
