//! A cluster that lasts for one run: an authority and the certificates of two peers, in a folder that
//! goes away.
//!
//! Carriers and what they are measured beside take their TLS from here, so both have the same ciphers.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use transport::security::{Authority, Credentials, Issuance, Role, Tls, Utc};

use crate::Failure;

/// Longer than any run.
const LIFE: Duration = Duration::from_secs(7 * 86_400);

/// A folder for this user alone, removed when this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn create() -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = crate::temporary_folder().join(format!("phalanx-bench-{}-{next}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|why| format!("cannot make the folder {}: {why}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays is a nuisance, not a failure of what was measured.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority, and a coordinator and a node with certificates of it.
pub(super) struct Cluster {
    coordinator: Tls,
    folder: Scratch,
}

impl Cluster {
    pub(super) fn create() -> Result<Self, Failure> {
        let folder = Scratch::create()?;
        let now = Utc::now();
        let authority = Authority::create(&folder.path().join("authority"), now)?;
        let issue = |name, role| authority.issue(Issuance { name, role, life: LIFE, replace: false }, now);
        issue("node", Role::Node)?.create(&folder.path().join("node"))?;
        let coordinator = Tls::new(issue("coordinator", Role::Coordinator)?)?;
        Ok(Self { coordinator, folder })
    }

    /// This end's TLS.
    pub(super) fn coordinator(&self) -> &Tls {
        &self.coordinator
    }

    /// What the other process is told; nothing where there is no TLS.
    pub(super) fn line(cluster: Option<&Self>) -> String {
        cluster.map_or(String::new(), |cluster| cluster.folder.path().join("node").display().to_string())
    }

    /// The other process's TLS, by what it was told.
    pub(super) fn node(line: &str) -> Result<Tls, Failure> {
        Ok(Tls::new(Credentials::load(Path::new(line))?)?)
    }
}
