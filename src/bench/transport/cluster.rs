//! A cluster that lasts for one run: an authority and the certificates of two peers, in a folder that
//! goes away.
//!
//! Carriers and what they are measured beside take their TLS from here, so both have the same ciphers.

use std::path::Path;
use std::time::Duration;

use transport::security::{Authority, Credentials, Issuance, Role, Tls, Utc};

use crate::Failure;
use crate::bench::scratch::Scratch;

/// Longer than any run.
const LIFE: Duration = Duration::from_secs(7 * 86_400);

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
