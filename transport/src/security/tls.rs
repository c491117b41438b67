//! What links are opened with: TLS 1.3, both ends with certificates of one authority.
//!
//! Names of peers are no host names, so chains are verified up to the cluster's authority and the name is read
//! from the certificate. Nothing is resumed and nothing is sent early: every connection proves both ends anew,
//! and nothing can be replayed. AES-128-GCM goes first: it is the quickest where the processor has AES.
//! Certificates are swapped while links stand; new connections show the new one.
//!
//! Enrolment is the one thing that a client without a certificate may ask for. It has a configuration of its
//! own whose only protocol is [`ALPN_ENROLMENT`]; the configuration for links always demands a certificate.
//! So no choice of words in a `ClientHello` opens a link without one.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use super::verifier::{Noted, PeerVerifier};
use super::{CertificateFault, Credentials, PeerName, SecurityError, Utc};

/// The protocol of links.
pub const ALPN_LINK: &[u8] = b"phalanx/1";
/// The protocol of enrolment.
pub const ALPN_ENROLMENT: &[u8] = b"phalanx-enrol/1";
/// What clients pass where a library wants the name of a server. It is neither sent nor compared.
pub const SERVER_NAME: &str = "peer.phalanx";

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A link or a lane of one; both ends have certificates.
    Link,
    /// Getting a certificate.
    Enrolment,
}

/// One peer's side of TLS. Clones share the credentials, which can be swapped.
#[derive(Debug, Clone)]
pub struct Tls {
    current: Arc<RwLock<Current>>,
    verifier: Arc<PeerVerifier>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    enrolment: Arc<ServerConfig>,
}

impl Tls {
    /// For these credentials. Refused if they cannot be used now, by this machine's clock.
    pub fn new(credentials: Credentials) -> Result<Self, SecurityError> {
        credentials.check_time(Utc::now())?;
        let cluster = credentials.peer().cluster;
        let verifier = Arc::new(PeerVerifier::new(credentials.authority(), cluster)?);
        let current = Arc::new(RwLock::new(Current::new(credentials)?));
        let leaf = Arc::new(Presented { current: Arc::clone(&current), whole: false });
        let whole = Arc::new(Presented { current: Arc::clone(&current), whole: true });

        let mut client = ClientConfig::builder_with_details(provider(), clock())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_client_cert_resolver(Arc::clone(&leaf) as _);
        client.alpn_protocols = vec![ALPN_LINK.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        let server =
            || ServerConfig::builder_with_details(provider(), clock()).with_protocol_versions(&[&TLS13]);
        let mut link = server()
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::clone(&verifier) as _)
            .with_cert_resolver(leaf);
        link.alpn_protocols = vec![ALPN_LINK.to_vec()];
        let mut enrolment = server().map_err(unusable)?.with_no_client_auth().with_cert_resolver(whole);
        enrolment.alpn_protocols = vec![ALPN_ENROLMENT.to_vec()];
        for config in [&mut link, &mut enrolment] {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config.max_early_data_size = 0;
        }
        let [server, enrolment] = [link, enrolment].map(Arc::new);
        Ok(Self { current, verifier, client: Arc::new(client), server, enrolment })
    }

    /// Puts renewed credentials in the place of the ones in use. Links that stand go on.
    pub fn swap(&self, credentials: Credentials) -> Result<(), SecurityError> {
        credentials.check_time(Utc::now())?;
        let (old, new) = (self.credentials(), credentials.peer());
        if *new != *old.peer() || credentials.authority() != old.authority() {
            let fault = CertificateFault::Damaged(format!("it takes the place of that of {}", old.peer()));
            return Err(SecurityError::Own { whose: new.clone(), fault });
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::new(credentials)?;
        Ok(())
    }

    /// The credentials in use.
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).credentials)
    }

    /// Who this end is.
    pub fn peer(&self) -> PeerName {
        self.credentials().peer().clone()
    }

    /// For dialling links.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For accepting links: demands a certificate of this cluster.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For accepting enrolments: asks for no certificate, and speaks nothing else.
    pub fn enrolment_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.enrolment)
    }

    /// For dialling lanes over QUIC, without the carrier's own settings.
    pub fn quic_client(&self) -> quinn::ClientConfig {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(self.client_config())
            .expect("the provider has the cipher that QUIC begins with");
        quinn::ClientConfig::new(Arc::new(crypto))
    }

    /// For accepting lanes over QUIC, without the carrier's own settings.
    pub fn quic_server(&self) -> quinn::ServerConfig {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(self.server_config())
            .expect("the provider has the cipher that QUIC begins with");
        quinn::ServerConfig::with_crypto(Arc::new(crypto))
    }

    /// What a client wants, by the protocols that it offers: enrolment only if it offers nothing else.
    pub fn purpose_of(hello: &ClientHello<'_>) -> Purpose {
        match hello.alpn().map(|offered| offered.eq([ALPN_ENROLMENT])) {
            Some(true) => Purpose::Enrolment,
            _ => Purpose::Link,
        }
    }

    /// The same for one connection, with a place to note whose certificate was refused and why.
    pub(crate) fn noted_client(&self) -> (Arc<ClientConfig>, Noted) {
        let noted = Noted::default();
        let mut config = ClientConfig::clone(&self.client);
        config.dangerous().set_certificate_verifier(Arc::new(self.verifier.noting(&noted)));
        (Arc::new(config), noted)
    }

    /// The same for one connection that was accepted.
    pub(crate) fn noted_server(&self) -> Result<(Arc<ServerConfig>, Noted), SecurityError> {
        let noted = Noted::default();
        let leaf = Arc::new(Presented { current: Arc::clone(&self.current), whole: false });
        let mut config = ServerConfig::builder_with_details(provider(), clock())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(self.verifier.noting(&noted)))
            .with_cert_resolver(leaf);
        config.alpn_protocols.clone_from(&self.server.alpn_protocols);
        config.session_storage = Arc::clone(&self.server.session_storage);
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok((Arc::new(config), noted))
    }
}

/// The provider of everything that is computed, never taken from a place that another library may set.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> = std::sync::LazyLock::new(|| {
        use aws_lc_rs::cipher_suite::{
            TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
        };
        let cipher_suites =
            vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    });
    Arc::clone(&PROVIDER)
}

/// The time of day that certificates are checked against: the one that messages about them show.
pub(crate) fn clock() -> Arc<dyn TimeProvider> {
    #[derive(Debug)]
    struct Clock;

    impl TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(Utc::now().unix())
        }
    }
    Arc::new(Clock)
}

/// Credentials in the form that a handshake wants.
#[derive(Debug)]
struct Current {
    credentials: Arc<Credentials>,
    leaf: Arc<CertifiedKey>,
    whole: Arc<CertifiedKey>,
}

impl Current {
    fn new(credentials: Credentials) -> Result<Self, SecurityError> {
        let leaf = credentials.certificate().clone();
        let key = CertifiedKey::from_der(vec![leaf.clone()], credentials.key().clone_key(), &provider())
            .map_err(unusable)?;
        // A machine that enrols knows the authority by its fingerprint only, so it is shown whole.
        let whole = CertifiedKey::new(vec![leaf, credentials.authority().clone()], Arc::clone(&key.key));
        Ok(Self { credentials: Arc::new(credentials), leaf: Arc::new(key), whole: Arc::new(whole) })
    }
}

/// Shows whatever credentials are current.
#[derive(Debug)]
struct Presented {
    current: Arc<RwLock<Current>>,
    whole: bool,
}

impl Presented {
    fn key(&self) -> Arc<CertifiedKey> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(if self.whole { &current.whole } else { &current.leaf })
    }
}

impl rustls::server::ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

impl rustls::client::ResolvesClientCert for Presented {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

pub(super) fn unusable(why: impl std::fmt::Display) -> SecurityError {
    SecurityError::Crypto { what: "the certificate", why: why.to_string() }
}
