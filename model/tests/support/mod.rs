//! What the tests of this crate share: fixtures, their expected outputs, and a loop over a whole model.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(unreachable_pub, reason = "a test file has no outside")]

pub mod blocks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use phalanx_model::experts::{Experts, ExpertsError, Groups, LocalExperts, compute_blocks};
use phalanx_model::kernel::{Kernels, NumericClass, Path as KernelPath};
use phalanx_model::kv::{KvCache, Sequence};
use phalanx_model::load::{self, Opened, Progress, Request};
use phalanx_model::plain::{Observe, Run, Unobserved, step};
use phalanx_model::pool::Pool;
use phalanx_model::rows::{RowBuffer, write_row};
use phalanx_model::trunk::{Trunk, Workspace};
use phalanx_model::weights::{Block, ExpertId, Manifest};
use serde_json::Value;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The seven public fixtures, by family.
pub fn families() -> Vec<PathBuf> {
    folders(&root().join("tests/fixtures"))
}

/// All fixtures and the demo model.
pub fn fixtures() -> Vec<PathBuf> {
    let mut all = families();
    all.extend(folders(&root().join("tests/fixtures/extra")));
    all.push(root().join("demo-model"));
    all
}

/// One fixture, of the seven or of the extra ones.
pub fn fixture(name: &str) -> PathBuf {
    let dir = root().join("tests/fixtures");
    [dir.join(name), dir.join("extra").join(name)]
        .into_iter()
        .find(|dir| dir.join("config.json").exists())
        .unwrap_or_else(|| panic!("no fixture {name} in {}", dir.display()))
}

/// The last part of a folder's path.
pub fn name_of(dir: &Path) -> &str {
    dir.file_name().and_then(|name| name.to_str()).expect("a fixture's folder has a name")
}

/// The paths that compute `class` at speed and that this CPU runs, fastest first; says which it lacks.
pub fn kernels_of(class: NumericClass) -> Vec<Kernels> {
    class
        .paths()
        .iter()
        .filter_map(|&path: &KernelPath| match Kernels::new(class, path) {
            Ok(kernels) => Some(kernels),
            Err(_) => {
                let feature =
                    path.missing_feature().expect("a path of the class can fail for no other reason");
                println!("SKIPPED: {class} on {path}: {feature} is missing");
                None
            }
        })
        .collect()
}

/// Random numbers that a seed repeats.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// From the environment's `variable`, or always the same. It is printed, with the way to replay it.
    pub fn seeded(variable: &str) -> Self {
        let seed = std::env::var(variable).ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260_726);
        println!("replay with {variable}={seed}");
        Self::new(seed)
    }

    pub fn new(seed: u64) -> Self {
        // Neither zero nor nearly so: the generator takes long to leave it.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// From 0 to `limit - 1`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// From -1 to 1.
    pub fn signed(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A folder that is removed at the end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("phalanx-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What cannot be removed is left for the system to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("fixtures are in the repository")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.join("expected.json").exists())
        .collect();
    all.sort();
    assert!(all.len() >= 7, "{} fixtures in {}", all.len(), dir.display());
    all
}

/// A prompt with what the reference said of it.
pub struct Prompt {
    pub name: String,
    pub ids: Vec<u32>,
    pub greedy_f32: Vec<u32>,
    pub min_margin_f32: f64,
}

/// `expected.json` and `expected.safetensors`.
pub struct Expected {
    pub json: Value,
    bytes: Vec<u8>,
}

impl Expected {
    pub fn open(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read(dir.join(name)).expect("a fixture has its expectations");
        let json = serde_json::from_slice(&read("expected.json")).expect("JSON");
        Self { json, bytes: read("expected.safetensors") }
    }

    pub fn prompts(&self) -> Vec<Prompt> {
        let ids = |v: &Value| -> Vec<u32> {
            v.as_array().expect("ids").iter().map(|x| x.as_u64().expect("id") as u32).collect()
        };
        self.json["prompts"]
            .as_array()
            .expect("prompts")
            .iter()
            .map(|p| Prompt {
                name: p["name"].as_str().expect("name").to_string(),
                ids: ids(&p["ids"]),
                greedy_f32: ids(&p["f32"]["greedy"]),
                min_margin_f32: p["f32"]["min_margin"].as_f64().expect("margin"),
            })
            .collect()
    }

    pub fn find_f32(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = safetensors::SafeTensors::deserialize(&self.bytes).expect("safetensors");
        let tensor = tensors.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        Some(tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.find_f32(name).unwrap_or_else(|| panic!("{name} is expected"))
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        let tensors = safetensors::SafeTensors::deserialize(&self.bytes).expect("safetensors");
        let tensor = tensors.tensor(name).expect("a tensor that is expected");
        tensor.data().as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }
}

/// A whole model and what a step needs.
pub struct Loop {
    pub trunk: Trunk,
    pub experts: LocalExperts,
    pub pool: Arc<Pool>,
    pub work: Workspace,
    pub cache: KvCache,
    pub warnings: Vec<String>,
    pub manifest: Manifest,
}

impl Loop {
    pub fn open(dir: &Path, class: NumericClass, threads: usize) -> Self {
        Self::with(dir, Kernels::for_class(class).expect("the class runs here"), threads)
    }

    pub fn with(dir: &Path, kernels: Kernels, threads: usize) -> Self {
        Self::of(&Opened::open(dir).unwrap_or_else(|e| panic!("{e}")), kernels, threads)
    }

    pub fn of(opened: &Opened, kernels: Kernels, threads: usize) -> Self {
        let all = opened.experts();
        let request = Request {
            kernels,
            threads,
            trunk: true,
            experts: &all,
            digests: true,
            known: &Manifest::default(),
        };
        let loaded = load::load(opened, &request, &Progress::default()).unwrap_or_else(|e| panic!("{e}"));
        let pool = Arc::new(Pool::new(threads, None));
        let cache = KvCache::new(&opened.spec, kernels.class().row_type(), 64 << 20);
        Self {
            trunk: Trunk::new(Arc::clone(&opened.spec), kernels, loaded.trunk.expect("asked for")),
            experts: LocalExperts::new(kernels, Arc::clone(&pool), loaded.experts),
            pool,
            work: Workspace::new(kernels),
            cache,
            warnings: loaded.warnings,
            manifest: loaded.manifest,
        }
    }

    pub fn vocab(&self) -> usize {
        self.trunk.spec().vocab
    }

    /// One step of several runs; the logits of the last row of each.
    pub fn step(&mut self, runs: &mut [Run<'_>]) -> Vec<f32> {
        self.step_observed(runs, None, &mut Unobserved)
    }

    fn step_observed(
        &mut self,
        runs: &mut [Run<'_>],
        rows: Option<&[usize]>,
        observe: &mut dyn Observe,
    ) -> Vec<f32> {
        let mut end = 0;
        let last: Vec<usize> = runs
            .iter()
            .map(|run| {
                end += run.tokens.len();
                end - 1
            })
            .collect();
        let experts: &mut dyn Experts = &mut self.experts;
        step(&self.trunk, &self.pool, &mut self.work, &mut self.cache, runs, experts, observe)
            .unwrap_or_else(|e| panic!("{e}"));
        let mut logits = Vec::new();
        self.trunk.logits(&self.pool, &mut self.work, rows.unwrap_or(&last), &mut logits);
        logits
    }

    /// One step of several runs; the logits of all rows.
    pub fn step_all(&mut self, runs: &mut [Run<'_>]) -> Vec<f32> {
        let rows: Vec<usize> = (0..runs.iter().map(|run| run.tokens.len()).sum()).collect();
        self.step_observed(runs, Some(&rows), &mut Unobserved)
    }

    /// Everything that the cache keeps of a sequence from `from` on, position after position, layer after layer.
    pub fn kept(&self, sequence: &Sequence, from: usize) -> Vec<f32> {
        let layers = self.trunk.spec().layers.len();
        (from..sequence.len())
            .flat_map(|position| (0..layers).map(move |layer| (layer, position)))
            .flat_map(|(layer, position)| self.cache.read(layer, sequence, position))
            .collect()
    }

    /// All logits of a fresh sequence.
    pub fn forward(&mut self, tokens: &[u32], observe: &mut dyn Observe) -> Vec<f32> {
        let mut sequence = Sequence::default();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let logits = self.step_observed(&mut [Run { sequence: &mut sequence, tokens }], Some(&rows), observe);
        self.cache.release(sequence);
        logits
    }

    /// Greedy continuation with the cache.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut sequence = Sequence::default();
        let mut logits = self.step(&mut [Run { sequence: &mut sequence, tokens: prompt }]);
        let mut tokens = Vec::new();
        loop {
            tokens.push(argmax(&logits));
            if tokens.len() == count {
                break;
            }
            let last = tokens[tokens.len() - 1];
            logits = self.step(&mut [Run { sequence: &mut sequence, tokens: &[last] }]);
        }
        self.cache.release(sequence);
        tokens
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// |a - b| / |b|
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (off / all).sqrt()
}

/// The seven families, and options that change what a row sees or how it is summed: windows, a head width that is
/// no multiple of sixteen, odd sizes, clamps, weights that only class `f32` keeps whole.
pub const FIXTURES: [&str; 15] = [
    "mixtral",
    "qwen3moe",
    "qwen2moe",
    "olmoe",
    "deepseekv2",
    "deepseekv3-seed",
    "gptoss",
    "mixtral-v5-sliding",
    "qwen2moe-sliding-linear",
    "gptoss-clamp",
    "deepseekv3-yarn-mtp",
    "deepseekv2-greedy",
    "olmoe-clip",
    "mixtral-f16",
    "qwen2moe-f32",
];

/// The plain path of `avx512bf16` is slow; here it stands in for the path where that does not run.
pub const SMALL: &str = "deepseekv2-greedy";

/// A class with its paths that run here.
pub struct Class {
    pub class: NumericClass,
    pub paths: Vec<Kernels>,
}

impl Class {
    pub fn all() -> Vec<Class> {
        NumericClass::ALL.into_iter().map(|class| Class { class, paths: kernels_of(class) }).collect()
    }

    pub fn plain(&self) -> Kernels {
        Kernels::new(self.class, KernelPath::Plain).expect("the plain path runs on every CPU")
    }

    /// The paths that compute the fixture.
    pub fn paths_for(&self, name: &str) -> Vec<Kernels> {
        if self.paths.is_empty() && name == SMALL { vec![self.plain()] } else { self.paths.clone() }
    }

    /// What they are compared with.
    pub fn oracle_for(&self, name: &str) -> Kernels {
        match self.class {
            NumericClass::Avx512Bf16 if name != SMALL => self.paths[0],
            _ => self.plain(),
        }
    }
}

/// Experts that know no batch: the last group first, one row at a time, in buffers that are new each time.
pub struct OneByOne<'a> {
    pub kernels: Kernels,
    pub pool: &'a Pool,
    pub blocks: &'a HashMap<ExpertId, Arc<Block>>,
    pub calls: usize,
}

impl OneByOne<'_> {
    pub fn row(&mut self, block: &Block, values: &[f32]) -> Vec<f32> {
        self.calls += 1;
        let row_type = self.kernels.class().row_type();
        let buffer = |columns: usize| {
            let mut buffer = RowBuffer::new(row_type);
            buffer.reset(1, columns);
            buffer
        };
        let (mut input, mut inner, mut out) = (buffer(values.len()), buffer(0), buffer(values.len()));
        write_row(self.kernels, &mut input.out(), 0, values);
        compute_blocks(self.kernels, self.pool, &[(block, None, 1)], &input, &mut inner, &mut out);
        out.row_f32(0)
    }
}

impl Experts for OneByOne<'_> {
    fn compute(
        &mut self,
        layer: usize,
        rows: &RowBuffer,
        groups: &Groups,
        out: &mut RowBuffer,
    ) -> Result<(), ExpertsError> {
        for group in (0..groups.experts.len()).rev() {
            let id = ExpertId { layer: layer as u32, expert: groups.experts[group] };
            let block = Arc::clone(&self.blocks[&id]);
            for slot in (groups.starts[group]..groups.starts[group + 1]).rev() {
                let values = self.row(&block, &rows.row_f32(groups.rows[slot] as usize));
                write_row(self.kernels, &mut out.out(), slot, &values);
            }
        }
        Ok(())
    }
}

pub fn assert_bits(found: &[f32], wanted: &[f32], width: usize, first: usize, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let different = found.iter().zip(wanted).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = different {
        let (row, column) = (first + at / width, at % width);
        panic!("{what}, row {row}, column {column}: {:e}, expected {:e}", found[at], wanted[at]);
    }
}
