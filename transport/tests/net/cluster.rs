//! Authorities that live as long as a test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phalanx_transport::security::{Authority, Issuance, Role, Tls, Utc};

/// Credentials of one cluster, one for each name.
pub(crate) fn cluster<const N: usize>(names: [&str; N]) -> [Tls; N] {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("phalanx-net-{}-{count}", std::process::id()));
    let authority = Authority::create(&folder, Utc::now()).unwrap();
    let tls = names.map(|name| {
        let life = Duration::from_secs(3_600);
        let what = Issuance { name, role: Role::Node, life, replace: false };
        Tls::new(authority.issue(what, Utc::now()).unwrap()).unwrap()
    });
    std::fs::remove_dir_all(&folder).unwrap();
    tls
}
