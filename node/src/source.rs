//! Where the tensors of an expert come from.
//!
//! [`Source`] is the seat: the node's own copy of the checkpoint ([`OwnCopy`]) is one, the weights lane of a link is
//! another. Whatever it is, digests are checked by the loader, with what the coordinator's order says.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use model::load::Opened;
use model::weights::{Digest, DigestCache, ExpertId, Manifest};

/// Gives the tensors of experts, on a loading thread: it may wait.
pub trait Source: Send + Sync {
    /// Where the tensors of `expert` are; `digest` is theirs, if it is known. The error is in words, for the coordinator.
    fn fetch(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Result<Fetched, String>;

    /// What was computed while tensors were read, for a source that wants to remember it.
    fn learn(&self, found: &Manifest) {
        let _ = found;
    }
}

/// Tensors that can be loaded.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// A checkpoint that has them, and perhaps nothing else.
    pub opened: Arc<Opened>,
    /// Their digest, where it need not be computed again.
    pub known: Option<Digest>,
}

/// The node's own copy of the checkpoint.
#[derive(Debug)]
pub struct OwnCopy {
    opened: Arc<Opened>,
    cache: Option<DigestCache>,
    known: Mutex<Manifest>,
}

impl OwnCopy {
    /// The copy that was opened. Digests are kept in `cache`, if there is such a folder.
    pub fn new(opened: Arc<Opened>, cache: Option<&Path>) -> Self {
        let cache = cache.and_then(|folder| DigestCache::new(folder, &opened.checkpoint));
        let known = cache.as_ref().map(DigestCache::load).unwrap_or_default();
        Self { opened, cache, known: Mutex::new(known) }
    }

    /// The digest of its `config.json`.
    pub fn config_digest(&self) -> Digest {
        self.opened.config_digest
    }
}

impl Source for OwnCopy {
    fn fetch(&self, expert: ExpertId, _: Option<[u8; 32]>) -> Result<Fetched, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).experts.get(&expert).copied();
        Ok(Fetched { opened: Arc::clone(&self.opened), known })
    }

    fn learn(&self, found: &Manifest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = found.experts.iter().any(|(id, digest)| known.experts.get(id) != Some(digest));
        known.experts.extend(&found.experts);
        if let Some(cache) = self.cache.as_ref().filter(|_| is_new)
            && let Err(why) = cache.store(&known)
        {
            tracing::warn!(%why, "digests cannot be kept, they are computed again at the next start");
        }
    }
}
