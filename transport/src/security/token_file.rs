//! A join token in a file that always holds a valid one, for nodes that are started by machines, however much later.
//!
//! A shell around [`Authority::new_token`]: a token lives for [`LIFE`], and another takes its place long before, so that
//! one that was just read lasts for as long as a start takes. A node that starts anew makes a new key, so these tokens
//! may take names that other keys have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{self, Access};
use super::{Authority, NewToken, SecurityError, Token, Utc};

/// How long a token lets nodes in.
pub const LIFE: Duration = Duration::from_secs(3600);
/// After this long another takes its place.
pub const RENEW_AFTER: Duration = Duration::from_secs(1200);
/// After a token could not be made or written.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Puts a new token there, readable by its owner only.
pub fn write(authority: &Authority, path: &Path, now: Utc) -> Result<(), SecurityError> {
    let token = authority.new_token(NewToken { life: LIFE, uses: None, replace: true }, now)?;
    files::replace(path, format!("{}\n", token.reveal()).as_bytes(), Access::Owner)
}

/// The token that is there.
pub fn read(path: &Path) -> Result<Token, SecurityError> {
    let bytes = files::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map_err(|why: super::TokenError| SecurityError::Content {
        path: path.into(),
        expected: "join token",
        why: why.to_string(),
    })
}

/// Keeps a valid token there, for as long as this is awaited.
pub async fn keep(authority: Authority, path: PathBuf, clock: fn() -> Utc) {
    loop {
        let (authority, path) = (authority.clone(), path.clone());
        // The disk is waited for elsewhere.
        let written = tokio::task::spawn_blocking(move || write(&authority, &path, clock())).await;
        let wait = match written {
            Ok(Ok(())) => RENEW_AFTER,
            Ok(Err(why)) => {
                tracing::error!(%why, "no new join token was written");
                AGAIN_AFTER
            }
            // It panicked, or the runtime is being shut down.
            Err(why) => {
                tracing::error!(%why, "no new join token was written");
                AGAIN_AFTER
            }
        };
        tokio::time::sleep(wait).await;
    }
}
