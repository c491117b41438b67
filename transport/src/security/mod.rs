//! Who a peer is, and how it proves that.
//!
//! A cluster has one [`Authority`]; whoever holds a certificate of it is a peer, with the name that stands there
//! ([`PeerName`]). [`Credentials`] are one peer's certificate and key, [`Tls`] makes of them what links are
//! opened with, and a [`Token`] lets a machine that has no certificate yet ask for one ([`enrol`]).
//! `docs/security.md` says what protects what.

pub mod authority;
pub mod certificate;
pub mod clock;
pub mod credentials;
pub mod enrol;
mod error;
mod files;
pub mod handshake;
mod ledger;
mod name;
pub mod tls;
pub mod token;
pub mod token_file;
mod verifier;

pub use authority::{Authority, Issuance, NewToken};
pub use certificate::{Facts, peer_name};
pub use clock::Utc;
pub use credentials::Credentials;
pub use enrol::{EnrolError, enrol};
pub use error::{CertificateFault, SecurityError};
pub use files::others_may_read;
pub use handshake::{Accepted, HandshakeError, accept, connect};
pub use ledger::{Overview, TokenState};
pub use name::{ClusterId, NameError, PeerName, Role, check_name};
pub use tls::{Purpose, Tls};
pub use token::{Token, TokenError};
