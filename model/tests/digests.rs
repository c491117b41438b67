//! Parts of a model, loaded alone: the same weights and digests as in the whole, from their own bytes. And the cache
//! that keeps digests between runs.

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use phalanx_model::kernel::{Kernels, NumericClass};
use phalanx_model::load::{self, Loaded, Opened, Progress, Request};
use phalanx_model::plain::Unobserved;
use phalanx_model::trunk::Trunk;
use phalanx_model::weights::{Digest, DigestCache, ExpertId, ExpertPlan, Manifest};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use support::blocks::{assert_same_block, bits};
use support::{Loop, Random, TempDir, fixture};

/// One of every way to store an expert: three tensors, fused, fused and turned with biases, MXFP4, FP8, F16. And of
/// every trunk: grouped, latent, tied, several shards.
const FIXTURES: [&str; 8] = [
    "qwen3moe",
    "olmoe",
    "deepseekv2",
    "gptoss",
    "mixtral-v5-fused",
    "gptoss-mxfp4",
    "deepseekv3-fp8",
    "mixtral-f16",
];

fn kernels() -> Kernels {
    Kernels::for_class(NumericClass::Portable).expect("portable runs on every CPU")
}

fn open(dir: &Path) -> Opened {
    Opened::open(dir).unwrap_or_else(|e| panic!("{e}"))
}

/// Loads parts on one thread and hashes them.
fn load(opened: &Opened, trunk: bool, experts: &[ExpertId]) -> Loaded {
    load_with(opened, trunk, experts, kernels(), 1, true, &Manifest::default())
}

fn load_with(
    opened: &Opened,
    trunk: bool,
    experts: &[ExpertId],
    kernels: Kernels,
    threads: usize,
    digests: bool,
    known: &Manifest,
) -> Loaded {
    let request = Request { kernels, threads, trunk, experts, digests, known };
    load::load(opened, &request, &Progress::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn whole(opened: &Opened) -> Loaded {
    load(opened, true, &opened.experts())
}

/// All tensors of a fixture, read by the `safetensors` crate.
struct Stored {
    files: Vec<Vec<u8>>,
}

impl Stored {
    fn of(dir: &Path) -> Self {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
            .expect("a fixture")
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .filter(|path| !path.ends_with("expected.safetensors"))
            .collect();
        paths.sort();
        Self { files: paths.iter().map(|path| std::fs::read(path).expect("a shard")).collect() }
    }

    fn tensors(&self) -> BTreeMap<String, TensorView<'_>> {
        let parsed = self.files.iter().map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
        parsed.flat_map(|file| file.tensors()).collect()
    }

    /// Bytes of everything but routed experts.
    fn trunk_bytes(&self) -> u64 {
        let of_trunk = |name: &str| !name.contains(".experts.");
        self.tensors()
            .iter()
            .filter(|(name, _)| of_trunk(name))
            .map(|(_, tensor)| tensor.data().len() as u64)
            .sum()
    }

    /// Everything before the tensors.
    fn header_bytes(&self) -> u64 {
        let length = |file: &Vec<u8>| u64::from_le_bytes(file[..8].try_into().expect("eight bytes"));
        self.files.iter().map(|file| 8 + length(file)).sum()
    }
}

/// What an expert node loads is what everybody else means by that expert.
#[test]
fn an_expert_loaded_alone_is_that_expert_of_the_whole() {
    for name in FIXTURES {
        let opened = open(&fixture(name));
        let all = whole(&opened);
        assert_eq!(all.experts.len(), opened.experts().len());
        for id in opened.experts() {
            let alone = load(&opened, false, &[id]);
            let what = format!("{name}, expert {id}");
            assert!(alone.trunk.is_none(), "{what}");
            assert_eq!(alone.experts.keys().collect::<Vec<_>>(), [&id]);
            assert_same_block(&alone.experts[&id], &all.experts[&id], &what);
            let expected = Manifest {
                config: all.manifest.config,
                trunk: None,
                experts: BTreeMap::from([(id, all.manifest.experts[&id])]),
            };
            assert_eq!(alone.manifest, expected, "{what}");
        }
    }
}

/// What a coordinator loads: with the experts of another load it makes the same model.
#[test]
fn a_trunk_loaded_alone_is_the_trunk_of_the_whole() {
    let mut random = Random::seeded("DIGESTS_SEED");
    for name in FIXTURES {
        let opened = open(&fixture(name));
        let mut model = Loop::with(&fixture(name), kernels(), 1);
        let tokens = random.tokens(40, model.vocab());
        let logits = model.forward(&tokens, &mut Unobserved);
        let alone = load(&opened, true, &[]);
        assert!(alone.experts.is_empty());
        let expected = Manifest { experts: BTreeMap::new(), ..model.manifest.clone() };
        assert_eq!(alone.manifest, expected, "{name}");
        assert!(alone.manifest.trunk.is_some(), "{name}");
        model.trunk = Trunk::new(Arc::clone(&opened.spec), kernels(), alone.trunk.expect("asked for"));
        assert_eq!(bits(&model.forward(&tokens, &mut Unobserved)), bits(&logits), "{name}");
    }
}

/// Digests are of the stored bytes: neither threads, nor what is loaded together, nor the class shows.
#[test]
fn digests_do_not_depend_on_how_they_were_computed() {
    for name in FIXTURES {
        let opened = open(&fixture(name));
        let (all, none) = (opened.experts(), Manifest::default());
        let wanted = whole(&opened).manifest;
        assert_eq!(wanted.experts.len(), all.len(), "{name}");
        for class in [NumericClass::F32, NumericClass::Portable] {
            let kernels = Kernels::for_class(class).expect("it runs on every CPU");
            for threads in [1, 2, 4] {
                let found = load_with(&opened, true, &all, kernels, threads, true, &none).manifest;
                assert_eq!(found, wanted, "{name}, {class}, {threads} threads");
            }
        }
        let mut backwards = all.clone();
        backwards.reverse();
        assert_eq!(load(&opened, true, &backwards).manifest, wanted, "{name}");
        let digests: std::collections::BTreeSet<String> =
            wanted.experts.values().map(Digest::to_string).collect();
        assert_eq!(digests.len(), all.len(), "{name}: experts differ");
    }
}

/// What is known is taken over and not hashed; without hashing nothing else is known.
#[test]
fn known_digests_are_taken_over() {
    let opened = open(&fixture("qwen3moe"));
    let all = opened.experts();
    let wanted = whole(&opened).manifest;
    let odd = Digest::of(b"not the expert's");
    let known =
        Manifest { config: None, trunk: Some(odd), experts: BTreeMap::from([(all[3], odd), (all[4], odd)]) };
    let experts = &all[2..4];
    let found = load_with(&opened, true, experts, kernels(), 1, true, &known).manifest;
    let mut expected = Manifest { trunk: Some(odd), ..wanted.clone() };
    expected.experts = BTreeMap::from([(all[2], wanted.experts[&all[2]]), (all[3], odd)]);
    assert_eq!(found, expected, "expert {} was not asked for", all[4]);

    let found = load_with(&opened, true, &all, kernels(), 2, false, &Manifest::default()).manifest;
    assert_eq!(found, Manifest { config: wanted.config, ..Manifest::default() });
}

/// The order that the manifest's documentation promises, hashed here from what the `safetensors` crate reads.
#[test]
fn an_experts_digest_is_of_its_bytes_in_the_documented_order() {
    // Tensor names without the layer, `{}` for the expert; `[]` marks one that holds all experts.
    let separate = ["gate", "up", "down"];
    let orders: [(&str, Vec<String>); 5] = [
        ("qwen3moe", separate.map(|m| format!("mlp.experts.{{}}.{m}_proj.weight")).into()),
        (
            "deepseekv3-fp8",
            separate
                .iter()
                .flat_map(|m| {
                    ["weight_scale_inv", "weight"].map(|t| format!("mlp.experts.{{}}.{m}_proj.{t}"))
                })
                .collect(),
        ),
        ("mixtral-v5-fused", ["gate_up_proj", "down_proj"].map(|t| format!("mlp.experts.{t}[]")).into()),
        (
            "gptoss",
            ["gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"]
                .map(|t| format!("mlp.experts.{t}[]"))
                .into(),
        ),
        (
            "gptoss-mxfp4",
            [
                "gate_up_proj_scales",
                "gate_up_proj_blocks",
                "down_proj_scales",
                "down_proj_blocks",
                "gate_up_proj_bias",
                "down_proj_bias",
            ]
            .map(|t| format!("mlp.experts.{t}[]"))
            .into(),
        ),
    ];
    for (name, order) in orders {
        let opened = open(&fixture(name));
        let stored = Stored::of(&fixture(name));
        let tensors = stored.tensors();
        let manifest = whole(&opened).manifest;
        assert!(!manifest.experts.is_empty());
        for (id, digest) in &manifest.experts {
            let mut hasher = blake3::Hasher::new();
            for part in &order {
                let tensor =
                    format!("model.layers.{}.{part}", id.layer).replace("{}", &id.expert.to_string());
                let (tensor, fused) =
                    tensor.strip_suffix("[]").map_or((tensor.as_str(), false), |t| (t, true));
                let view = tensors.get(tensor).unwrap_or_else(|| panic!("{name} has {tensor}"));
                let count = if fused { view.shape()[0] } else { 1 };
                let index = if fused { id.expert as usize } else { 0 };
                let size = view.data().len() / count;
                hasher.update(&view.data()[index * size..][..size]);
            }
            assert_eq!(digest.0, hasher.finalize(), "{name}, expert {id}");
        }
        let config = std::fs::read(fixture(name).join("config.json")).expect("a fixture has it");
        assert_eq!(manifest.config.expect("always known").0, blake3::hash(&config), "{name}");
    }
}

/// Writes `tensors` of a checkpoint into `shards` files, one after the other in turn.
fn write_checkpoint(dir: &Path, config: &Path, tensors: &BTreeMap<String, TensorView<'_>>, shards: usize) {
    std::fs::copy(config.join("config.json"), dir.join("config.json")).expect("copied");
    let write = |file: &str, tensors: Vec<(&String, &TensorView<'_>)>| {
        let bytes = safetensors::serialize(tensors, None).expect("tensors fit together");
        std::fs::write(dir.join(file), bytes).expect("written");
    };
    if shards == 1 {
        return write("model.safetensors", tensors.iter().collect());
    }
    let file = |shard: usize| format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let of_shard: Vec<_> = tensors.iter().skip(shard).step_by(shards).collect();
        map.extend(of_shard.iter().map(|(name, _)| ((*name).clone(), file(shard).into())));
        write(&file(shard), of_shard);
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("written");
}

/// The same weights in one file and in many.
#[test]
fn digests_do_not_depend_on_sharding() {
    for name in ["qwen3moe", "deepseekv3-fp8", "gptoss-mxfp4"] {
        let opened = open(&fixture(name));
        let wanted = whole(&opened).manifest;
        let stored = Stored::of(&fixture(name));
        for shards in [1, 2, 7] {
            let dir = TempDir::new(&format!("digests-shards-{name}-{shards}"));
            write_checkpoint(&dir.0, &fixture(name), &stored.tensors(), shards);
            let other = open(&dir.0);
            assert_eq!(other.checkpoint.files().len(), shards);
            assert_eq!(whole(&other).manifest, wanted, "{name} in {shards} files");
        }
    }
}

/// One bit of one tensor shows in the digest of its part, and in no other.
#[test]
fn one_bit_changes_the_digest_of_its_part_alone() {
    let name = "qwen3moe";
    let wanted = whole(&open(&fixture(name))).manifest;
    let stored = Stored::of(&fixture(name));
    let tensors = stored.tensors();
    let id = ExpertId { layer: 2, expert: 5 };
    for (changed, expert) in [
        ("model.layers.2.mlp.experts.5.up_proj.weight", Some(id)),
        ("model.layers.2.mlp.gate.weight", None),
        ("model.layers.0.input_layernorm.weight", None),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ] {
        let mut data = tensors[changed].data().to_vec();
        let last = data.len() - 2;
        data[last] ^= 1;
        let view = TensorView::new(tensors[changed].dtype(), tensors[changed].shape().to_vec(), &data);
        let mut tensors = tensors.clone();
        tensors.insert(changed.to_string(), view.expect("the same size"));
        let dir = TempDir::new("digests-bit");
        write_checkpoint(&dir.0, &fixture(name), &tensors, 1);
        let found = whole(&open(&dir.0)).manifest;
        assert_eq!(found.trunk != wanted.trunk, expert.is_none(), "{changed}");
        for (id, digest) in &found.experts {
            assert_eq!(digest != &wanted.experts[id], expert == Some(*id), "{changed}, expert {id}");
        }
    }
}

/// Bytes that this thread has read from files.
#[cfg(target_os = "linux")]
fn bytes_read() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}

/// A node that holds one expert of a terabyte must not read the terabyte.
#[cfg(target_os = "linux")]
#[test]
fn only_the_bytes_of_a_part_are_read() {
    /// The counter's own file, a bias that `stored_bytes` leaves out.
    const SLACK: u64 = 2048;
    if bytes_read().is_none() {
        println!("SKIPPED: /proc/thread-self/io cannot be read");
        return;
    }
    let measure = |work: &mut dyn FnMut()| {
        let before = bytes_read().expect("it could be read");
        work();
        bytes_read().expect("it could be read") - before
    };
    let check = |what: &str, found: u64, wanted: u64| {
        assert!(
            (wanted..=wanted + SLACK).contains(&found),
            "{what}: {found} bytes were read, expected {wanted}"
        );
    };
    for name in FIXTURES {
        let dir = fixture(name);
        let stored = Stored::of(&dir);
        let size = |file: &str| std::fs::metadata(dir.join(file)).map_or(0, |metadata| metadata.len());
        let mut opened = None;
        let found = measure(&mut || opened = Some(open(&dir)));
        let headers = stored.header_bytes() + size("config.json") + size("model.safetensors.index.json");
        check(&format!("{name}, opened"), found, headers);
        let opened = opened.expect("just opened");

        let mut experts = 0;
        for id in opened.experts() {
            let plan =
                ExpertPlan::new(&opened.checkpoint, &opened.spec, id).unwrap_or_else(|e| panic!("{e}"));
            let wanted = plan.stored_bytes();
            experts += wanted;
            let found = measure(&mut || drop(load(&opened, false, &[id])));
            check(&format!("{name}, expert {id}"), found, wanted);
        }
        let found = measure(&mut || drop(load(&opened, true, &[])));
        check(&format!("{name}, trunk"), found, stored.trunk_bytes());
        let found = measure(&mut || drop(load(&opened, true, &opened.experts())));
        let biases = 640 * opened.experts().len() as u64;
        assert!(
            found <= experts + stored.trunk_bytes() + biases,
            "{name}: all of it is read once, not {found} bytes"
        );
        let all: u64 = stored.files.iter().map(|file| file.len() as u64).sum();
        assert!(experts + stored.trunk_bytes() < all, "{name}: {experts} bytes of experts");
    }
}

/// A checkpoint in a folder of its own and the folder of a cache beside it.
struct Cached {
    dir: TempDir,
    manifest: Manifest,
}

impl Cached {
    fn new(name: &str) -> Self {
        let dir = TempDir::new(name);
        let stored = Stored::of(&fixture("qwen3moe"));
        write_checkpoint(&dir.0, &fixture("qwen3moe"), &stored.tensors(), 2);
        let manifest = whole(&open(&dir.0)).manifest;
        Self { dir, manifest }
    }

    fn folder(&self) -> PathBuf {
        self.dir.0.join("cache/of/digests")
    }

    /// As a later run would make it.
    fn cache(&self) -> DigestCache {
        DigestCache::new(&self.folder(), &open(&self.dir.0).checkpoint).expect("the checkpoint is on disk")
    }

    fn shard(&self) -> PathBuf {
        self.dir.0.join("model-00002-of-00002.safetensors")
    }

    /// The only file of the cache.
    fn file(&self) -> PathBuf {
        let files: Vec<PathBuf> = std::fs::read_dir(self.folder())
            .expect("the cache was stored")
            .map(|entry| entry.expect("readable").path())
            .collect();
        assert_eq!(files.len(), 1, "nothing is left beside the cache: {files:?}");
        files[0].clone()
    }
}

/// What one run has hashed the next one knows; runs that hash different parts add up.
#[test]
fn a_stored_digest_is_known_to_the_next_run() {
    let cached = Cached::new("stored");
    assert_eq!(cached.cache().load(), Manifest::default(), "nothing is stored, not even the folder is there");
    let mut experts = cached.manifest.experts.clone();
    let others = experts.split_off(&ExpertId { layer: 2, expert: 0 });
    let first = Manifest { experts, trunk: None, ..cached.manifest.clone() };
    let second = Manifest { experts: others, config: None, ..cached.manifest.clone() };
    cached.cache().store(&first).expect("stored");
    assert_eq!(cached.cache().load(), first);
    cached.cache().store(&second).expect("stored");
    assert_eq!(cached.cache().load(), cached.manifest);
    cached.file();
}

/// Checkpoints in different folders do not know each other's digests, though they share a cache.
#[test]
fn a_cache_belongs_to_its_path() {
    let (one, other) = (Cached::new("path-one"), Cached::new("path-other"));
    one.cache().store(&one.manifest).expect("stored");
    let elsewhere = DigestCache::new(&one.folder(), &open(&other.dir.0).checkpoint).expect("on disk");
    assert_eq!(elsewhere.load(), Manifest::default());
    elsewhere.store(&Manifest::default()).expect("stored");
    assert_eq!(one.cache().load(), one.manifest, "and is not disturbed by them");
}

/// A file that was touched may have changed, any of the shards.
#[test]
fn a_touched_file_makes_the_cache_forget() {
    let cached = Cached::new("touched");
    cached.cache().store(&cached.manifest).expect("stored");
    let later = SystemTime::now() + Duration::from_secs(5);
    let file = File::options().write(true).open(cached.shard()).expect("a shard");
    file.set_modified(later).expect("touched");
    assert_eq!(cached.cache().load(), Manifest::default());
    cached.cache().store(&cached.manifest).expect("stored again");
    assert_eq!(cached.cache().load(), cached.manifest);
}

/// A file that grew has changed, even if its time was put back.
#[test]
fn a_file_of_another_size_makes_the_cache_forget() {
    let cached = Cached::new("grown");
    cached.cache().store(&cached.manifest).expect("stored");
    let modified =
        std::fs::metadata(cached.shard()).and_then(|metadata| metadata.modified()).expect("a time");
    // Bytes behind the last tensor belong to nobody.
    let mut bytes = std::fs::read(cached.shard()).expect("a shard");
    bytes.extend([0; 8]);
    std::fs::write(cached.shard(), bytes).expect("written");
    let file = File::options().write(true).open(cached.shard()).expect("a shard");
    file.set_modified(modified).expect("put back");
    assert_eq!(cached.cache().load(), Manifest::default());
}

/// Half a cache, another version's, or no JSON at all: nothing is known, and storing makes it whole again.
#[test]
fn a_corrupt_cache_is_ignored() {
    let cached = Cached::new("corrupt");
    cached.cache().store(&cached.manifest).expect("stored");
    let whole = std::fs::read_to_string(cached.file()).expect("just stored");
    let expert = cached.manifest.experts[&ExpertId { layer: 1, expert: 1 }].to_string();
    for corrupt in [
        String::new(),
        "\u{0}\u{1}".to_string(),
        "[]".to_string(),
        whole[..whole.len() / 2].to_string(),
        whole.replace("\"version\":1", "\"version\":999"),
        whole.replace("\"1.1\"", "\"1,1\""),
        whole.replace("\"1.1\"", "\"1.-1\""),
        whole.replace(&expert, "0123"),
        whole.replace(&expert, &expert.replace(|c: char| c.is_ascii_hexdigit(), "z")),
    ] {
        assert_ne!(corrupt, whole, "the cache looks as this test expects");
        std::fs::write(cached.file(), &corrupt).expect("written");
        assert_eq!(cached.cache().load(), Manifest::default(), "{corrupt:.60}");
        cached.cache().store(&cached.manifest).expect("stored over it");
        assert_eq!(cached.cache().load(), cached.manifest);
    }
    std::fs::write(cached.file(), [0xff, 0xfe, 0x00]).expect("written");
    assert_eq!(cached.cache().load(), Manifest::default(), "not even UTF-8");
}

/// A cache that cannot be kept costs time only: an error to be shown, and nothing is known.
#[test]
fn a_cache_that_cannot_be_written_is_an_error_and_no_panic() {
    let cached = Cached::new("unwritable");
    let checkpoint = open(&cached.dir.0).checkpoint;
    // Permissions do not hold back root, a file where a folder should be does.
    let under_a_file = cached.dir.0.join("config.json/cache");
    let cache = DigestCache::new(&under_a_file, &checkpoint).expect("the checkpoint is on disk");
    assert_eq!(cache.load(), Manifest::default());
    assert!(cache.store(&cached.manifest).is_err());
    assert_eq!(cache.load(), Manifest::default());

    // A folder where the file should be.
    cached.cache().store(&cached.manifest).expect("stored");
    let file = cached.file();
    std::fs::remove_file(&file).expect("removed");
    std::fs::create_dir(&file).expect("made");
    assert_eq!(cached.cache().load(), Manifest::default());
    assert!(cached.cache().store(&cached.manifest).is_err());
    assert!(std::fs::metadata(&file).expect("still there").is_dir());
}

/// What is not on disk has no path by which to remember it.
#[test]
fn an_embedded_model_has_no_cache() {
    let dir = support::root().join("demo-model");
    let read = |name: &str| std::fs::read(dir.join(name)).expect("the demo model");
    let weights: &'static [u8] = Box::leak(read("model.safetensors").into_boxed_slice());
    let embedded = Opened::embedded("demo", &read("config.json"), weights).unwrap_or_else(|e| panic!("{e}"));
    assert!(DigestCache::new(&std::env::temp_dir(), &embedded.checkpoint).is_none());
    // It is the same model all the same.
    let id = embedded.experts()[7];
    assert_eq!(load(&embedded, true, &[id]).manifest, load(&open(&dir), true, &[id]).manifest);
}
