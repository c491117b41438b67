//! The cluster's authority: a key that signs certificates, and a folder that it lives in.
//!
//! What is signed, for how long and for whom is decided from arguments, the time among them; reading and writing
//! the folder is the shell's part. Besides the key the folder keeps a ledger (`ledger.rs`): which key has which name,
//! and which tokens are out. It is read anew for each use under a lock, since the command line may change it
//! while a coordinator runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Semaphore;

use super::certificate::sha256;
use super::files::{self, Access};
use super::ledger::{Held, Ledger, Overview, TokenRow};
use super::token::{self, Proof, Token};
use super::{CertificateFault, ClusterId, Credentials, Facts, PeerName, Role, SecurityError, Utc};

/// The authority's certificate.
pub const CERTIFICATE_FILE: &str = "authority.crt";
/// Its key: whoever has it is the authority.
pub const KEY_FILE: &str = "authority.key";
/// Which key has which name, and which tokens are out.
pub const LEDGER_FILE: &str = "ledger";
const LOCK_FILE: &str = "lock";

const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority lives.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(3_652 * 86_400);
/// How long a certificate lives that a person issued: long enough to be renewed by hand.
pub const ISSUED_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// How long a certificate lives that is renewed by itself. There is no list of revoked ones: this is how long
/// a stolen one is of use.
pub const ENROLLED_LIFE: Duration = DAY;
/// The shortest life that makes sense.
pub const LIFE_MIN: Duration = Duration::from_secs(60);
/// An authority that ends sooner than this is spoken of.
pub const AUTHORITY_WARNING: Duration = Duration::from_secs(90 * 86_400);
/// How far clocks may be apart: certificates begin so much before they are made, or a tenth of a short life.
const SKEW_MAX: Duration = Duration::from_secs(3_600);
/// Enrolments that are answered at once. The ledger takes one at a time, so more threads would only wait.
const ENROLMENTS_AT_ONCE_MAX: usize = 4;

/// What a certificate is to say.
#[derive(Debug, Clone, Copy)]
pub struct Issuance<'a> {
    /// The name in the cluster.
    pub name: &'a str,
    /// The role.
    pub role: Role,
    /// How long it is to live; no longer than the authority in any case.
    pub life: Duration,
    /// Whether it may take a name that another key has.
    pub replace: bool,
}

/// What a join token is to allow.
#[derive(Debug, Clone, Copy)]
pub struct NewToken {
    /// How long it can be used.
    pub life: Duration,
    /// How many nodes may join with it; `None` for as many as come in that time.
    pub uses: Option<u32>,
    /// Whether they may take names that other keys have.
    pub replace: bool,
}

/// A cluster's authority. Clones are the same.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    facts: Facts,
    issuer: Issuer<'static, KeyPair>,
    places: Semaphore,
}

impl Authority {
    /// Makes a new one in a folder that is not there, or is empty.
    pub fn create(folder: &Path, now: Utc) -> Result<Self, SecurityError> {
        Self::create_for(folder, now.minus(SKEW_MAX), now.plus(AUTHORITY_LIFE))
    }

    /// The same with its first and last second.
    pub fn create_for(folder: &Path, not_before: Utc, not_after: Utc) -> Result<Self, SecurityError> {
        for file in [KEY_FILE, CERTIFICATE_FILE].map(|file| folder.join(file)) {
            if std::fs::symlink_metadata(&file).is_ok() {
                return Err(SecurityError::Exists(file));
            }
        }
        files::check_empty(folder)?;
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SecurityError::crypto("a key"))?;
        let cluster = super::certificate::cluster_of(&sha256(&pair.subject_public_key_info()));
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("phalanx authority {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        set_life(&mut params, not_before, not_after);
        let certificate = params.self_signed(&pair).map_err(SecurityError::crypto("the authority"))?;
        files::create_all(
            folder,
            &[
                (KEY_FILE, pair.serialize_pem().as_bytes(), Access::Owner),
                (CERTIFICATE_FILE, files::pem(certificate.der()).as_bytes(), Access::All),
            ],
        )?;
        Self::open(folder)
    }

    /// Opens the one in a folder. An expired one opens too, and signs nothing.
    pub fn open(folder: &Path) -> Result<Self, SecurityError> {
        let [certificate_path, key_path] = [CERTIFICATE_FILE, KEY_FILE].map(|file| folder.join(file));
        let certificate = files::read_certificates(&certificate_path)?.swap_remove(0);
        let unusable = |fault| SecurityError::Certificate { path: certificate_path.clone(), fault };
        let facts = Facts::of(&certificate).map_err(unusable)?;
        if !facts.is_authority {
            return Err(unusable(CertificateFault::Purpose("it may not sign others".into())));
        }
        let key: PrivateKeyDer<'static> = files::read_key(&key_path)?;
        let pair = KeyPair::try_from(&key).map_err(|why| SecurityError::Content {
            path: key_path.clone(),
            expected: "key that signs",
            why: why.to_string(),
        })?;
        if sha256(&pair.subject_public_key_info()) != facts.key_sha256 {
            return Err(SecurityError::KeyMismatch { certificate: certificate_path, key: key_path });
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate, pair).map_err(SecurityError::crypto("the authority"))?;
        let places = Semaphore::new(ENROLMENTS_AT_ONCE_MAX);
        Ok(Self(Arc::new(Inner { folder: folder.into(), certificate, facts, issuer, places })))
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.0.facts.cluster()
    }

    /// What stands in its certificate.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.0.certificate
    }

    /// What should be said about it at `now`, if anything: it ends soon, and every certificate with it.
    pub fn warning(&self, now: Utc) -> Option<String> {
        let end = self.0.facts.not_after;
        (end < now.plus(AUTHORITY_WARNING)).then(|| {
            format!(
                "the authority of cluster {} ends {end} ({}), and every certificate with it; make a new one with `phalanx certs init` in time",
                self.cluster(),
                end.seen_from(now),
            )
        })
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, what: Issuance<'_>, now: Utc) -> Result<Credentials, SecurityError> {
        self.with_ledger(now, |ledger| self.issued(ledger, what, now))
    }

    /// The same, written into a folder. If that fails, the name is as free as it was.
    pub fn issue_into(
        &self,
        folder: &Path,
        what: Issuance<'_>,
        now: Utc,
    ) -> Result<Credentials, SecurityError> {
        self.with_ledger(now, |ledger| {
            let before = ledger.clone();
            let issued = self.issued(ledger, what, now)?;
            issued.create(folder).inspect_err(|_| *ledger = before)?;
            Ok(issued)
        })
    }

    fn issued(
        &self,
        ledger: &mut Ledger,
        what: Issuance<'_>,
        now: Utc,
    ) -> Result<Credentials, SecurityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SecurityError::crypto("a key"))?;
        let leaf = self.sign_for(ledger, what, &pair, now)?;
        Credentials::new(leaf, PrivateKeyDer::from(pair), self.certificate().clone())
            .map_err(|fault| SecurityError::Certificate { path: self.0.folder.join(CERTIFICATE_FILE), fault })
    }

    /// Signs a certificate for the key of a request (PKCS #10, DER).
    pub fn sign(
        &self,
        what: Issuance<'_>,
        request: &[u8],
        now: Utc,
    ) -> Result<CertificateDer<'static>, SecurityError> {
        let key = requested_key(request)?;
        self.with_ledger(now, |ledger| self.sign_for(ledger, what, &key, now))
    }

    /// A new certificate for a peer that asks over its link, so is who it says. Only for the key that has the name:
    /// one that was replaced is not renewed. The answer is what `Control::Renewed` carries.
    pub fn renew(&self, peer: &PeerName, request: &[u8], now: Utc) -> Result<Vec<Vec<u8>>, SecurityError> {
        if peer.cluster != self.cluster() {
            let fault = CertificateFault::OtherCluster { theirs: peer.cluster, ours: self.cluster() };
            return Err(SecurityError::Own { whose: peer.clone(), fault });
        }
        let what = Issuance { name: &peer.name, role: peer.role, life: ENROLLED_LIFE, replace: false };
        let leaf = self.sign(what, request, now)?;
        Ok(vec![leaf.to_vec(), self.certificate().to_vec()])
    }

    /// Makes a token, and keeps what proofs of it are checked with.
    pub fn new_token(&self, what: NewToken, now: Utc) -> Result<Token, SecurityError> {
        self.check_time(now)?;
        if what.life < LIFE_MIN {
            return Err(SecurityError::Validity(what.life, LIFE_MIN));
        }
        let expires = now.plus(what.life).min(self.0.facts.not_after);
        let token = Token::random(self.0.facts.key_sha256, expires);
        let row = TokenRow {
            id: token.id,
            key: token.proof_key(),
            expires,
            uses_left: what.uses,
            failures: 0,
            replace: what.replace,
        };
        self.with_ledger(now, |ledger| ledger.insert_token(row))?;
        Ok(token)
    }

    /// Who has a name and which tokens are out. Only reads.
    pub fn overview(&self, now: Utc) -> Result<Overview, SecurityError> {
        // Replaced as a whole by whoever writes it, so it needs no lock.
        let path = self.0.folder.join(LEDGER_FILE);
        let mut ledger = read_ledger(&path, &files::read_if_there(&path)?.unwrap_or_default())?;
        ledger.prune(now);
        Ok(ledger.overview(self.cluster()))
    }

    /// Checks a proof of a token, and signs for the key of the request. Whatever is refused uses nothing up, but
    /// a wrong proof is counted against its token.
    pub(crate) fn enrol(&self, proof: &Proof<'_>, now: Utc) -> Result<Vec<Vec<u8>>, SecurityError> {
        super::check_name(proof.name)?;
        // Before the lock: it is the longest piece of work, and wants no ledger.
        let key = requested_key(proof.request);
        self.with_ledger(now, |ledger| {
            let replace = ledger.check_proof(proof, now)?;
            let what = Issuance { name: proof.name, role: Role::Node, life: ENROLLED_LIFE, replace };
            let leaf = self.sign_for(ledger, what, &key?, now)?;
            ledger.use_up(proof.id);
            Ok(vec![leaf.to_vec(), self.certificate().to_vec()])
        })
    }

    /// A place among the enrolments that are answered at once.
    pub(crate) async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.0.places.acquire().await.expect("it is never closed")
    }

    fn check_time(&self, now: Utc) -> Result<(), SecurityError> {
        let not_after = self.0.facts.not_after;
        match self.0.facts.check_time(now) {
            Ok(()) => Ok(()),
            Err(CertificateFault::Expired { .. }) => {
                Err(SecurityError::AuthorityExpired { cluster: self.cluster(), not_after, now })
            }
            Err(fault) => {
                Err(SecurityError::Certificate { path: self.0.folder.join(CERTIFICATE_FILE), fault })
            }
        }
    }

    fn sign_for(
        &self,
        ledger: &mut Ledger,
        what: Issuance<'_>,
        key: &impl PublicKeyData,
        now: Utc,
    ) -> Result<CertificateDer<'static>, SecurityError> {
        let peer = PeerName::new(self.cluster(), what.role, what.name)?;
        self.check_time(now)?;
        if what.life < LIFE_MIN {
            return Err(SecurityError::Validity(what.life, LIFE_MIN));
        }
        // A tenth, so that two thirds of a short life still lie ahead.
        let not_before = now.minus(SKEW_MAX.min(what.life / 10)).max(self.0.facts.not_before);
        let not_after = now.plus(what.life).min(self.0.facts.not_after);

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, what.name);
        let uri = peer.uri().try_into().map_err(SecurityError::crypto("the name"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        set_life(&mut params, not_before, not_after);

        let signed =
            params.signed_by(key, &self.0.issuer).map_err(SecurityError::crypto("the certificate"))?;
        let held = Held { key_sha256: sha256(&key.subject_public_key_info()), until: not_after };
        ledger.take_name(&peer, held, what.replace, now)?;
        Ok(signed.der().clone())
    }

    /// Reads the ledger, changes it and writes it if it changed, while nobody else does. What `change` did to it is
    /// kept even where it refuses: wrong proofs are counted there.
    fn with_ledger<T>(
        &self,
        now: Utc,
        change: impl FnOnce(&mut Ledger) -> Result<T, SecurityError>,
    ) -> Result<T, SecurityError> {
        let path = self.0.folder.join(LEDGER_FILE);
        let _lock = files::lock(&self.0.folder.join(LOCK_FILE))?;
        let before = files::read_if_there(&path)?.unwrap_or_default();
        let mut ledger = read_ledger(&path, &before)?;
        ledger.prune(now);
        let result = change(&mut ledger);
        let after = ledger.write();
        if after.as_bytes() != before {
            files::replace(&path, after.as_bytes(), Access::Owner)?;
        }
        result
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        formatter.debug_struct("Authority").field("cluster", &self.cluster()).finish_non_exhaustive()
    }
}

fn read_ledger(path: &Path, bytes: &[u8]) -> Result<Ledger, SecurityError> {
    let damaged = |why: String| SecurityError::Content {
        path: path.into(),
        expected: "ledger of an authority",
        why: format!("{why}; put a copy back, or move it away to begin a new one"),
    };
    let text = std::str::from_utf8(bytes).map_err(|why| damaged(why.to_string()))?;
    Ledger::read(text).map_err(damaged)
}

/// The key of a request, if its signature shows that whoever made it has the key. Nothing else of it is taken.
fn requested_key(request: &[u8]) -> Result<rcgen::PublicKey, SecurityError> {
    let bad = |why: String| SecurityError::Request(why);
    let parsed =
        CertificateSigningRequestParams::from_der(&request.into()).map_err(|why| bad(why.to_string()))?;
    let key = parsed.public_key;
    // rcgen takes the kind from the signature, so the point is looked at too: uncompressed, two numbers of 32 bytes.
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != 65 {
        return Err(bad("its key is not of the kind ECDSA P-256".into()));
    }
    Ok(key)
}

/// A random number for a certificate; positive, so its first bit is 0.
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    token::fill_random(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The first and last second of a certificate.
fn set_life(params: &mut CertificateParams, not_before: Utc, not_after: Utc) {
    /// The last second of the year 9999: certificates can say no later one.
    const LAST: i64 = 253_402_300_799;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let date = |at: Utc| epoch + Utc(at.0.clamp(0, LAST)).since(Utc(0));
    (params.not_before, params.not_after) = (date(not_before), date(not_after));
}
