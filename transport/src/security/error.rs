//! What is wrong with a certificate, a key or a file of them, said so that a person can act.

use std::path::PathBuf;

use super::{ClusterId, NameError, PeerName, Role, TokenError, Utc};

/// What is wrong with a certificate. Where it stands, or whose it is, is for whoever shows this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Nobody could read it.
    #[error("it cannot be read ({0}); issue it again")]
    Damaged(String),
    /// It is not one of Phalanx.
    #[error(
        "it names no peer: no phalanx://cluster/role/name stands in it; issue one with `phalanx certs issue`"
    )]
    Unnamed,
    /// Its time is over, or a clock is wrong.
    #[error(
        "not valid after {not_after}, this machine's clock says {now}; renew it, or set the clock if that is wrong"
    )]
    Expired {
        /// Its last second.
        not_after: Utc,
        /// Here and now.
        now: Utc,
    },
    /// Its time has not begun, so a clock is wrong.
    #[error(
        "not valid before {not_before}, this machine's clock says {now}; compare this clock with that of the machine that issued it"
    )]
    NotYetValid {
        /// Its first second.
        not_before: Utc,
        /// Here and now.
        now: Utc,
    },
    /// Another cluster's.
    #[error(
        "it is of another authority: its cluster is {theirs}, this end belongs to {ours}; use certificates of one authority"
    )]
    OtherCluster {
        /// As it says itself.
        theirs: ClusterId,
        /// Here.
        ours: ClusterId,
    },
    /// It says that it is this cluster's, and the authority never signed it.
    #[error("it is not signed by the authority of cluster {ours}; issue it again with that authority")]
    NotSigned {
        /// Here.
        ours: ClusterId,
    },
    /// The peer could not prove that it has the key.
    #[error(
        "the key that was used is not the certificate's; use the key that the certificate was issued for"
    )]
    KeyMismatch,
    /// It may not be used for links.
    #[error("it is not for links between peers ({0}); issue one with `phalanx certs issue`")]
    Purpose(String),
    /// Right cluster, wrong role.
    #[error("it is of a {found}, a {expected} is needed here")]
    Role {
        /// In it.
        found: Role,
        /// Needed.
        expected: Role,
    },
    /// There is none.
    #[error(
        "none was sent; give that end its certificate (`phalanx certs issue`) or a join token (`phalanx certs token`)"
    )]
    Missing,
}

/// Why something about the security of a cluster could not be done. Nothing half-written is left.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the host said, and what to try.
        why: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {why}", path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What the host said.
        why: String,
    },
    /// A file exists that would be overwritten.
    #[error("{} exists, and is never overwritten; name another folder, or move it away", .0.display())]
    Exists(PathBuf),
    /// A folder for something new holds something.
    #[error("{} is not empty; name a new folder", .0.display())]
    NotEmpty(PathBuf),
    /// The file holds something else.
    #[error("{} holds no {expected}: {why}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What was found.
        why: String,
    },
    /// A certificate in a file cannot be used.
    #[error("the certificate in {}: {fault}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        fault: CertificateFault,
    },
    /// Certificate and key are not a pair.
    #[error("the key in {} is not that of the certificate in {}; put both back as they were issued", key.display(), certificate.display())]
    KeyMismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// This peer's own certificate cannot be used.
    #[error("this end's certificate, {whose}: {fault}")]
    Own {
        /// Its name.
        whose: PeerName,
        /// What is wrong.
        fault: CertificateFault,
    },
    /// The authority itself is over.
    #[error(
        "the authority of cluster {cluster} was valid until {not_after}, this machine's clock says {now}; make a new one (`phalanx certs init`) and issue every certificate again"
    )]
    AuthorityExpired {
        /// Whose.
        cluster: ClusterId,
        /// Its last second.
        not_after: Utc,
        /// Here and now.
        now: Utc,
    },
    /// The time asked for cannot be.
    #[error("a validity of {0:?} makes no certificate; give at least {1:?}")]
    Validity(std::time::Duration, std::time::Duration),
    /// No name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name belongs to somebody.
    #[error(
        "{peer} has a certificate for another key until {until}; give this one another name, or issue with --replace to shut the other out from then on"
    )]
    NameHeld {
        /// The name.
        peer: PeerName,
        /// Until when.
        until: Utc,
    },
    /// Too many.
    #[error("the authority keeps {count} {what} already, its bound is {max}; wait until some have expired")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A request for a certificate is none.
    #[error("the request for a certificate cannot be read: {0}")]
    Request(String),
    /// No token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A library refused.
    #[error("{what}: {why}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// What it said.
        why: String,
    },
}

impl SecurityError {
    pub(crate) fn crypto(what: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |why| Self::Crypto { what, why: why.to_string() }
    }
}
