//! The name of a peer: which cluster, which role, which name there.
//!
//! Pure. A certificate carries it as an address, `phalanx://<cluster>/<role>/<name>`. The letters of a name are
//! few on purpose: it stands in messages, metrics and file names, and nothing needs escaping there.

use crate::wire::control::NAME_BYTES_MAX;

/// The name of a peer, as its certificate or its handshake has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct PeerName {
    /// Which cluster it belongs to.
    pub cluster: ClusterId,
    /// What it is there.
    pub role: Role,
    /// Its own name: letters, digits, `-`, `_` and `.`, at most 63.
    pub name: String,
}

/// A cluster: for one with an authority, the beginning of the SHA-256 of the authority's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct ClusterId(pub [u8; 16]);

/// What a process is in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Role {
    /// It owns requests.
    Coordinator,
    /// It owns devices.
    Node,
}

const SCHEME: &str = "phalanx://";

/// Why a name cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("the name is empty; give one of letters, digits, `-`, `_` and `.`")]
    Empty,
    /// Too much.
    #[error("the name has {0} bytes, the longest has {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// Something else in it.
    #[error("the name {name:?} has {found:?} in it; use letters, digits, `-`, `_` and `.`")]
    Letter {
        /// The name, shortened.
        name: String,
        /// What it may not have.
        found: char,
    },
    /// It would be a hidden file, or an option of a command.
    #[error("the name {0:?} begins with neither a letter nor a digit")]
    Start(String),
}

/// Checks that `name` may be one.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    if let Some(found) = name.chars().find(|letter| !allowed(*letter)) {
        return Err(NameError::Letter { name: name.into(), found });
    }
    if !name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) {
        return Err(NameError::Start(name.into()));
    }
    Ok(())
}

impl PeerName {
    /// A name, if it may be one.
    pub fn new(cluster: ClusterId, role: Role, name: &str) -> Result<Self, NameError> {
        check_name(name)?;
        Ok(Self { cluster, role, name: name.into() })
    }

    /// As certificates have it.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }

    /// What [`PeerName::uri`] gave; `None` for anything else.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.splitn(3, '/');
        let (cluster, role, name) = (parts.next()?, parts.next()?, parts.next()?);
        let peer = Self::new(cluster.parse().ok()?, role.parse().ok()?, name).ok()?;
        // One spelling only, so that two that differ are two names.
        (peer.uri() == uri).then_some(peer)
    }
}

impl std::str::FromStr for ClusterId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(drop)?;
        Ok(Self(bytes.try_into().map_err(drop)?))
    }
}

impl std::str::FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Coordinator, Self::Node].into_iter().find(|role| role.to_string() == text).ok_or(())
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Node => "node",
        })
    }
}

impl std::fmt::Display for ClusterId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::fmt::Display for PeerName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_address() {
        let peer = PeerName::new(ClusterId(*b"0123456789abcdef"), Role::Node, "rack-3.gpu_0").unwrap();
        assert_eq!(peer.uri(), "phalanx://30313233343536373839616263646566/node/rack-3.gpu_0");
        assert_eq!(PeerName::from_uri(&peer.uri()), Some(peer));
    }

    #[test]
    fn odd_addresses_are_no_names() {
        let id = "30313233343536373839616263646566";
        for uri in [
            "",
            "phalanx://",
            "https://x/node/a",
            &format!("phalanx://{id}/node/"),
            &format!("phalanx://{id}/node/a/b"),
            &format!("phalanx://{id}/Node/a"),
            &format!("phalanx://{id}/chief/a"),
            &format!("phalanx://{}/node/a", &id[1..]),
            &format!("phalanx://{}A/node/a", &id[1..]),
            &format!("PHALANX://{id}/node/a"),
        ] {
            assert_eq!(PeerName::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn odd_names_are_refused_by_what_is_odd() {
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(&"a".repeat(63)), Ok(()));
        assert_eq!(check_name(&"a".repeat(64)), Err(NameError::TooLong(64)));
        assert!(matches!(check_name("a/b"), Err(NameError::Letter { found: '/', .. })));
        assert!(matches!(check_name("a\nb"), Err(NameError::Letter { found: '\n', .. })));
        assert!(matches!(check_name("näher"), Err(NameError::Letter { found: 'ä', .. })));
        for hidden in ["..", "-rf", "_a"] {
            assert_eq!(check_name(hidden), Err(NameError::Start(hidden.into())));
        }
    }
}
