//! Digests by which two nodes agree on an expert, and a cache of them.
//!
//! An expert's digest is a BLAKE3 over its raw tensor bytes in a fixed order: gate, up, down (or the
//! fused gate-and-up, then down), each preceded by its scales if it has any, biases last. The trunk's is a
//! BLAKE3 over the digests of its parts (embedding, each layer, head), each of them over the raw
//! bytes in a fixed order: in parts, so that several threads can hash, and nobody hashes what he
//! does not hold. A dense layer's feed-forward has a digest as an expert's, and is part of the trunk's all the same:
//! who keeps dense layers elsewhere and has never read them does not know the trunk's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::expert::ExpertId;
use crate::checkpoint::Checkpoint;

/// A BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub blake3::Hash);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(blake3::Hash::from_bytes(bytes))
    }
}

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }

    /// Of the digests of parts, in order.
    pub fn of_parts(parts: impl IntoIterator<Item = Digest>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part.0.as_bytes());
        }
        Self(hasher.finalize())
    }
}

/// What is known of a checkpoint's digests. Parts that nobody has read are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Of `config.json`.
    pub config: Option<Digest>,
    /// Of the trunk.
    pub trunk: Option<Digest>,
    /// Of experts.
    pub experts: BTreeMap<ExpertId, Digest>,
}

impl Manifest {
    /// Takes over what `other` knows.
    pub fn merge(&mut self, other: &Manifest) {
        self.config = other.config.or(self.config);
        self.trunk = other.trunk.or(self.trunk);
        self.experts.extend(&other.experts);
    }
}

/// Digests kept between runs, valid while path, size and time of last change of every file are the same.
#[derive(Debug)]
pub struct DigestCache {
    file: PathBuf,
    stamps: Vec<Stamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    size: u64,
    modified_ns: i128,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    files: Vec<Stamp>,
    config: Option<String>,
    trunk: Option<String>,
    experts: BTreeMap<String, String>,
}

/// Raised when the order in which bytes are hashed changes.
const VERSION: u32 = 1;

impl DigestCache {
    /// The cache of `checkpoint` in `folder`; `None` for one that is not on disk.
    pub fn new(folder: &Path, checkpoint: &Checkpoint) -> Option<Self> {
        let stamps: Option<Vec<Stamp>> = checkpoint
            .files()
            .iter()
            .map(|file| {
                let (size, modified_ns) = file.stamp()?;
                let path = file.path().canonicalize().ok()?;
                Some(Stamp { path, size, modified_ns })
            })
            .collect();
        let stamps = stamps.filter(|s| !s.is_empty())?;
        let name = Digest::of(stamps[0].path.to_string_lossy().as_bytes()).to_string();
        Some(Self { file: folder.join(format!("{}.json", &name[..32])), stamps })
    }

    /// What is known; nothing if a file has changed or the cache cannot be read.
    pub fn load(&self) -> Manifest {
        self.read().unwrap_or_default()
    }

    fn read(&self) -> Option<Manifest> {
        let stored: Stored = serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()?;
        if stored.version != VERSION || stored.files != self.stamps {
            return None;
        }
        let digest = |text: &str| blake3::Hash::from_hex(text).ok().map(Digest);
        let mut manifest = Manifest {
            config: stored.config.as_deref().and_then(digest),
            trunk: stored.trunk.as_deref().and_then(digest),
            experts: BTreeMap::new(),
        };
        for (id, text) in &stored.experts {
            let (layer, expert) = id.split_once('.')?;
            let id = ExpertId { layer: layer.parse().ok()?, expert: expert.parse().ok()? };
            manifest.experts.insert(id, digest(text)?);
        }
        Some(manifest)
    }

    /// Adds what `manifest` knows. A cache that cannot be written costs time, not correctness, so the
    /// error is for the caller to show or not.
    pub fn store(&self, manifest: &Manifest) -> std::io::Result<()> {
        let mut all = self.load();
        all.merge(manifest);
        let stored = Stored {
            version: VERSION,
            files: self.stamps.clone(),
            config: all.config.map(|d| d.to_string()),
            trunk: all.trunk.map(|d| d.to_string()),
            experts: all.experts.iter().map(|(id, d)| (id.to_string(), d.to_string())).collect(),
        };
        let folder = self.file.parent().expect("the file was joined to a folder");
        std::fs::create_dir_all(folder)?;
        // Written whole under another name, so that a reader never sees half of it.
        let draft = self.file.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&draft, serde_json::to_vec(&stored)?)?;
        std::fs::rename(&draft, &self.file)
    }
}
