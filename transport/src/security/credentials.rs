//! One peer's certificate and key, and the authority that it trusts; on the disk three files of a folder.
//!
//! Reading and writing is the shell's part; what is wrong with them is decided from bytes and an instant.
//! A certificate is renewed for the key that it has: then one file changes, and no crash can leave a pair that
//! does not fit. A new key is a new enrolment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::sha256;
use super::files::{self, Access};
use super::verifier;
use super::{CertificateFault, Facts, PeerName, SecurityError, Utc};

/// The peer's certificate.
pub const CERTIFICATE_FILE: &str = "peer.crt";
/// Its key.
pub const KEY_FILE: &str = "peer.key";
/// The authority's certificate.
pub const AUTHORITY_FILE: &str = "authority.crt";

/// One peer's certificate and key, and the authority that it trusts.
pub struct Credentials {
    peer: PeerName,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    authority: CertificateDer<'static>,
    facts: Facts,
    authority_facts: Facts,
}

impl Credentials {
    /// Puts them together if they fit: the key is the certificate's, which names a peer of the authority's
    /// cluster and is signed by it. Time is not looked at; see [`Credentials::check_time`].
    pub fn new(
        leaf: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<Self, CertificateFault> {
        let (facts, authority_facts) = (Facts::of(&leaf)?, Facts::of(&authority)?);
        if !authority_facts.is_authority {
            return Err(CertificateFault::Purpose("the authority's may not sign others".into()));
        }
        let peer = facts.peer.clone().ok_or(CertificateFault::Unnamed)?;
        let ours = authority_facts.cluster();
        if peer.cluster != ours {
            return Err(CertificateFault::OtherCluster { theirs: peer.cluster, ours });
        }
        let pair = KeyPair::try_from(&key).map_err(|_| CertificateFault::KeyMismatch)?;
        if sha256(&pair.subject_public_key_info()) != facts.key_sha256 {
            return Err(CertificateFault::KeyMismatch);
        }
        verifier::check_signed(&leaf, &authority, ours, facts.not_before)?;
        Ok(Self { peer, leaf, key, authority, facts, authority_facts })
    }

    /// Reads those of a folder.
    pub fn load(folder: &Path) -> Result<Self, SecurityError> {
        let path = |name: &str| -> PathBuf { folder.join(name) };
        let (certificate, key) = (path(CERTIFICATE_FILE), path(KEY_FILE));
        let leaf = files::read_certificates(&certificate)?.swap_remove(0);
        let authority = files::read_certificates(&path(AUTHORITY_FILE))?.swap_remove(0);
        let secret = files::read_key(&key)?;
        Self::new(leaf, secret, authority).map_err(|fault| match fault {
            CertificateFault::KeyMismatch => SecurityError::KeyMismatch { certificate, key },
            fault => SecurityError::Certificate { path: certificate, fault },
        })
    }

    /// Writes them into a new folder: none of the files may be there.
    pub fn create(&self, folder: &Path) -> Result<(), SecurityError> {
        let key = self.key_pem()?;
        let (leaf, authority) = (files::pem(&self.leaf), files::pem(&self.authority));
        // The certificate last: where it is, the others are.
        files::create_all(
            folder,
            &[
                (KEY_FILE, key.as_bytes(), Access::Owner),
                (AUTHORITY_FILE, authority.as_bytes(), Access::All),
                (CERTIFICATE_FILE, leaf.as_bytes(), Access::All),
            ],
        )
    }

    /// Writes a renewed certificate over the older one of the same key.
    pub fn save_renewed(&self, folder: &Path) -> Result<(), SecurityError> {
        files::replace(&folder.join(CERTIFICATE_FILE), files::pem(&self.leaf).as_bytes(), Access::All)
    }

    /// Whose they are.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// What stands in the certificate.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What stands in the authority's.
    pub fn authority_facts(&self) -> &Facts {
        &self.authority_facts
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// The authority's certificate.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// Whether they can be used at `now`.
    pub fn check_time(&self, now: Utc) -> Result<(), SecurityError> {
        self.facts.check_time(now).map_err(|fault| SecurityError::Own { whose: self.peer.clone(), fault })
    }

    /// When to ask for a new certificate: two thirds of this one's life are over then, and if a coordinator
    /// is away at that moment, a third is left for trying again.
    pub fn renew_at(&self) -> Utc {
        let life = self.facts.not_after.since(self.facts.not_before);
        self.facts.not_before.plus(life * 2 / 3)
    }

    /// How long to wait at `now` before asking.
    pub fn renew_in(&self, now: Utc) -> Duration {
        self.renew_at().since(now)
    }

    /// A request for a new certificate for the same key: PKCS #10, DER. For `Control::Renew`.
    pub fn request(&self) -> Result<Vec<u8>, SecurityError> {
        let pair = KeyPair::try_from(&self.key).map_err(SecurityError::crypto("the key"))?;
        request(&pair)
    }

    /// These with a certificate that was renewed: for the same key and name, of the same authority, and
    /// lasting longer. `chain` is what `Control::Renewed` brought.
    pub fn renewed(&self, chain: &[Vec<u8>]) -> Result<Self, CertificateFault> {
        let leaf = chain.first().ok_or(CertificateFault::Missing)?;
        let leaf = CertificateDer::from(leaf.clone());
        let renewed = Self::new(leaf, self.key.clone_key(), self.authority.clone())?;
        if renewed.peer != self.peer {
            return Err(CertificateFault::Damaged(format!(
                "it is of {}, not of {}",
                renewed.peer, self.peer
            )));
        }
        let (new, old) = (renewed.facts.not_after, self.facts.not_after);
        if new < old {
            return Err(CertificateFault::Damaged(format!("it ends {new}, the one in use {old}")));
        }
        Ok(renewed)
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    fn key_pem(&self) -> Result<String, SecurityError> {
        Ok(KeyPair::try_from(&self.key).map_err(SecurityError::crypto("the key"))?.serialize_pem())
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        formatter.debug_struct("Credentials").field("peer", &self.peer).field("facts", &self.facts).finish()
    }
}

/// Refuses a folder that holds one of the files already.
pub fn check_new(folder: &Path) -> Result<(), SecurityError> {
    let paths = [CERTIFICATE_FILE, KEY_FILE, AUTHORITY_FILE].map(|file| folder.join(file));
    match paths.into_iter().find(|path| std::fs::symlink_metadata(path).is_ok()) {
        Some(path) => Err(SecurityError::Exists(path)),
        None => Ok(()),
    }
}

/// A request for a certificate for this key. It names nothing: the name is what the link or the token proves.
pub(crate) fn request(pair: &KeyPair) -> Result<Vec<u8>, SecurityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request =
        params.serialize_request(pair).map_err(SecurityError::crypto("a request for a certificate"))?;
    Ok(request.der().to_vec())
}
