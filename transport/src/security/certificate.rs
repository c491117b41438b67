//! What stands in a certificate.
//!
//! Pure but for [`Facts::read`], and no judgement: whether to believe it is decided where chains are verified, in `tls.rs`.

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateFault, ClusterId, PeerName, SecurityError, Utc};

/// What stands in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The peer that it names; an authority's names none.
    pub peer: Option<PeerName>,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// First second of its life.
    pub not_before: Utc,
    /// Last second of its life.
    pub not_after: Utc,
    /// SHA-256 of its public key, with the key's kind.
    pub key_sha256: [u8; 32],
}

impl Facts {
    /// Reads them.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        let damaged = |why: String| CertificateFault::Damaged(why);
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|why| damaged(why.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged(format!("{} bytes follow it", rest.len())));
        }
        let names = parsed.subject_alternative_name().map_err(|why| damaged(why.to_string()))?;
        let mut peers = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
            let GeneralName::URI(uri) = name else { return None };
            PeerName::from_uri(uri)
        });
        let peer = peers.next();
        if peers.next().is_some() {
            return Err(damaged("it names more than one peer".into()));
        }
        Ok(Self {
            peer,
            is_authority: parsed.is_ca(),
            not_before: Utc(parsed.validity().not_before.timestamp()),
            not_after: Utc(parsed.validity().not_after.timestamp()),
            key_sha256: sha256(parsed.public_key().raw),
        })
    }

    /// Those of the certificates in a PEM file.
    pub fn read(path: &std::path::Path) -> Result<Vec<Self>, SecurityError> {
        let facts = |certificate: &CertificateDer<'_>| {
            Self::of(certificate).map_err(|fault| SecurityError::Certificate { path: path.into(), fault })
        };
        super::files::read_certificates(path)?.iter().map(facts).collect()
    }

    /// The cluster that an authority with this key makes.
    pub fn cluster(&self) -> ClusterId {
        cluster_of(&self.key_sha256)
    }

    /// Whether `now` lies in its life.
    pub fn check_time(&self, now: Utc) -> Result<(), CertificateFault> {
        let (not_before, not_after) = (self.not_before, self.not_after);
        if now < not_before {
            return Err(CertificateFault::NotYetValid { not_before, now });
        }
        if now > not_after {
            return Err(CertificateFault::Expired { not_after, now });
        }
        Ok(())
    }
}

/// The peer that a chain names: its first certificate does. The chain must have been verified by whoever asks.
pub fn peer_name(chain: &[CertificateDer<'_>]) -> Result<PeerName, CertificateFault> {
    let leaf = chain.first().ok_or(CertificateFault::Missing)?;
    Facts::of(leaf)?.peer.ok_or(CertificateFault::Unnamed)
}

/// The cluster whose authority has a key with this digest.
pub(crate) fn cluster_of(key_sha256: &[u8; 32]) -> ClusterId {
    let mut id = [0; 16];
    id.copy_from_slice(&key_sha256[..16]);
    ClusterId(id)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}
