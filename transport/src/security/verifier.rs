//! Who is at the other end of a connection: its chain, its name, its signature.
//!
//! Pure but for the notes: the time is an argument. rustls keeps of a refusal only what TLS may tell the other end, so
//! what was really wrong, and with whose certificate, is noted beside it for the log of this end.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore};

use super::tls::{provider, unusable};
use super::{CertificateFault, ClusterId, Facts, PeerName, SecurityError, Utc};

/// What the handshake found wrong with a peer's certificate, and whose it says it is.
pub(crate) type Noted = Arc<Mutex<Option<(Option<PeerName>, CertificateFault)>>>;

/// What every verifier says of signatures, whichever of rustls' traits it is for: those of TLS 1.3 are checked by its
/// `signature`, and no other version is even offered.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _leaf: &::rustls::pki_types::CertificateDer<'_>,
            _signed: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            Err(::rustls::Error::General("only TLS 1.3 is spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &::rustls::pki_types::CertificateDer<'_>,
            signed: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            self.signature(message, leaf, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<::rustls::SignatureScheme> {
            $crate::security::tls::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(super) use signatures;

/// Whether `leaf` is signed by `authority`, for use by both ends, at `at`.
pub(super) fn check_signed(
    leaf: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    ours: ClusterId,
    at: Utc,
) -> Result<(), CertificateFault> {
    let verifier =
        PeerVerifier::new(authority, ours).map_err(|why| CertificateFault::Damaged(why.to_string()))?;
    for result in [verifier.server_chain(leaf, &[], at.unix()), verifier.client_chain(leaf, &[], at.unix())] {
        let whom = Facts::of(leaf).ok().and_then(|facts| facts.peer);
        result.map_err(|why| fault_of(&why, whom.as_ref(), ours, at))?;
    }
    Ok(())
}

/// What a refusal of rustls means here.
pub(super) fn fault_of(
    why: &rustls::Error,
    whom: Option<&PeerName>,
    ours: ClusterId,
    now: Utc,
) -> CertificateFault {
    let rustls::Error::InvalidCertificate(why) = why else {
        return match why {
            rustls::Error::NoCertificatesPresented => CertificateFault::Missing,
            other => CertificateFault::Damaged(other.to_string()),
        };
    };
    match why {
        CertificateError::ExpiredContext { time, not_after } => {
            CertificateFault::Expired { not_after: Utc::of_unix(*not_after), now: Utc::of_unix(*time) }
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            CertificateFault::NotYetValid { not_before: Utc::of_unix(*not_before), now: Utc::of_unix(*time) }
        }
        CertificateError::Expired => CertificateFault::Expired { not_after: now, now },
        CertificateError::NotValidYet => CertificateFault::NotYetValid { not_before: now, now },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match whom {
            Some(whom) if whom.cluster != ours => {
                CertificateFault::OtherCluster { theirs: whom.cluster, ours }
            }
            Some(_) => CertificateFault::NotSigned { ours },
            None => CertificateFault::Unnamed,
        },
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::Purpose(why.to_string())
        }
        CertificateError::ApplicationVerificationFailure => CertificateFault::Unnamed,
        other => CertificateFault::Damaged(other.to_string()),
    }
}

/// Verifies the other end, whichever it is: a chain to the authority, and a name of this cluster.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    cluster: ClusterId,
    noted: Option<Noted>,
}

impl PeerVerifier {
    pub(super) fn new(authority: &CertificateDer<'_>, cluster: ClusterId) -> Result<Self, SecurityError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(unusable)?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|why| SecurityError::Crypto { what: "the authority", why: why.to_string() })?;
        Ok(Self { roots, clients, cluster, noted: None })
    }

    pub(super) fn noting(&self, noted: &Noted) -> Self {
        Self {
            roots: Arc::clone(&self.roots),
            clients: Arc::clone(&self.clients),
            cluster: self.cluster,
            noted: Some(Arc::clone(noted)),
        }
    }

    pub(super) fn server_chain(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = provider().signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, algorithms)
    }

    fn client_chain(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.clients.verify_client_cert(leaf, between, now).map(drop)
    }

    /// The name is believed only after the chain. Whatever is refused is noted.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: Result<(), rustls::Error>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let facts = Facts::of(leaf);
        let whom = facts.as_ref().ok().and_then(|facts| facts.peer.clone());
        let fault = match (chain, facts) {
            (Err(why), _) => Some((fault_of(&why, whom.as_ref(), self.cluster, Utc::of_unix(now)), why)),
            (Ok(()), Err(fault)) => Some((fault, CertificateError::BadEncoding.into())),
            (Ok(()), Ok(facts)) => match facts.peer {
                Some(peer) if peer.cluster == self.cluster => None,
                Some(peer) => Some((
                    CertificateFault::OtherCluster { theirs: peer.cluster, ours: self.cluster },
                    CertificateError::UnknownIssuer.into(),
                )),
                None => {
                    Some((CertificateFault::Unnamed, CertificateError::ApplicationVerificationFailure.into()))
                }
            },
        };
        let Some((fault, why)) = fault else { return Ok(()) };
        self.note(whom, fault);
        Err(why)
    }

    fn note(&self, whom: Option<PeerName>, fault: CertificateFault) {
        if let Some(noted) = &self.noted {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some((whom, fault));
        }
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
            .inspect_err(|_| {
                let whom = Facts::of(leaf).ok().and_then(|facts| facts.peer);
                self.note(whom, CertificateFault::KeyMismatch);
            })
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, self.server_chain(leaf, between, now), now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, self.client_chain(leaf, between, now), now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}
