//! Getting a certificate with a join token, at both ends.
//!
//! The joining machine makes its own key, which never leaves it. It knows the authority by the fingerprint in the
//! token, and talks only to a coordinator whose certificate that authority signed. It then sends a request for
//! its key, the name that it wants, and a proof: an HMAC by a key that only the token gives, over the name, the
//! request and bytes that TLS derives for this connection alone. So a proof that somebody recorded or was tricked
//! into giving is worth nothing on any other connection, for any other name or key.
//!
//! What is decided is in [`answer`]: no clock, no socket. The rest is the shell: it reads one bounded message,
//! within a bounded time, and writes one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, server};

use super::handshake::in_words;
use super::tls::{ALPN_ENROLMENT, SERVER_NAME, clock, provider};
use super::token::{EXPORTER_BYTES, EXPORTER_LABEL, Proof};
use super::verifier::{Noted, PeerVerifier, fault_of, signatures};
use super::{
    Accepted, Authority, CertificateFault, Credentials, Facts, HandshakeError, PeerName, Role, SecurityError,
    Tls, Token, Utc, accept, check_name, credentials,
};
use crate::carrier::tcp::Enrol;
use crate::wire::codec::{CodecError, decode, encode};
use crate::wire::enrolment::{
    ENROLMENT, ENROLMENT_BYTES_MAX, EnrolmentAnswer, EnrolmentRefusal, EnrolmentRequest,
};

/// Most time for a question to arrive, or an answer to be taken.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Most time that a joining machine waits in all. A whole cluster may be joining at once, and each is written to
/// the authority's disk: some thousands at a few milliseconds each.
pub const ENROLMENT_TIME_MAX: Duration = Duration::from_secs(60);
/// Connections that [`listen`] has open at once.
const CONNECTIONS_MAX: usize = 64;

/// Why a machine got no certificate, or a coordinator gave none.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No connection, or not to whom the token names.
    #[error("{address}: {why}")]
    Handshake {
        /// Where.
        address: String,
        /// What.
        why: HandshakeError,
    },
    /// Nobody there.
    #[error("cannot reach {address}: {why}; check the address, and that a coordinator listens there")]
    Unreachable {
        /// Where.
        address: String,
        /// What the host said.
        why: String,
    },
    /// The coordinator said no. The token is as good as before, unless its proof was wrong.
    #[error("not enrolled: {0}")]
    Refused(#[from] EnrolmentRefusal),
    /// What came is no message of this protocol.
    #[error("the other end does not speak the protocol of enrolment: {0}")]
    Message(#[from] CodecError),
    /// A message longer than any.
    #[error("the other end announces a message of {0} bytes, the longest is {ENROLMENT_BYTES_MAX}")]
    TooLong(u64),
    /// It ended too soon.
    #[error("the connection ended before enrolment did: {0}")]
    Cut(String),
    /// It took too long.
    #[error("enrolment did not end within {0:?}")]
    Slow(Duration),
    /// What was issued is not what was asked for.
    #[error("the certificate that was issued cannot be used: {0}")]
    Issued(CertificateFault),
    /// Keys or files.
    #[error(transparent)]
    Security(#[from] SecurityError),
}

/// The answer to a request that came over a connection with these exporter bytes, at `now`.
pub fn answer(
    authority: &Authority,
    request: &EnrolmentRequest,
    exporter: &[u8; EXPORTER_BYTES],
    now: Utc,
) -> EnrolmentAnswer {
    if request.protocol != ENROLMENT {
        let (theirs, ours) = (request.protocol, ENROLMENT);
        return EnrolmentAnswer::Refused(EnrolmentRefusal::Protocol { theirs, ours });
    }
    let EnrolmentRequest { token, name, request, proof, .. } = request;
    let proof = Proof { id: *token, exporter, name, request, proof };
    match authority.enrol(&proof, now) {
        Ok(chain) => EnrolmentAnswer::Enrolled { chain },
        Err(why) => EnrolmentAnswer::Refused(refusal(why)),
    }
}

/// Serves one enrolment on a connection that [`accept`] gave as such. Says who was enrolled.
pub async fn serve_tls<S: AsyncRead + AsyncWrite + Unpin>(
    authority: &Authority,
    stream: &mut server::TlsStream<S>,
) -> Result<PeerName, EnrolError> {
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, None)
        .map_err(|why| EnrolError::Cut(why.to_string()))?;
    serve(authority, stream, &exporter).await
}

/// Serves one enrolment: one question, within [`REQUEST_TIME_MAX`], and one answer. `exporter` binds it to the
/// connection: both ends must have derived the same from TLS.
///
/// A place among those who are answered is taken only once the question is there, so that nobody who dawdles keeps
/// another from being answered.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    authority: &Authority,
    stream: &mut S,
    exporter: &[u8; EXPORTER_BYTES],
) -> Result<PeerName, EnrolError> {
    let slow = |_| EnrolError::Slow(REQUEST_TIME_MAX);
    let request: EnrolmentRequest = timeout(REQUEST_TIME_MAX, read(stream)).await.map_err(slow)??;
    let (name, cluster) = (request.name.clone(), authority.cluster());
    let answered = {
        let _place = authority.place().await;
        let (authority, exporter) = (authority.clone(), *exporter);
        // The ledger is flushed to the disk; nobody else of this thread is to wait for that.
        let answered = move || answer(&authority, &request, &exporter, Utc::now());
        tokio::task::spawn_blocking(answered).await.map_err(|why| EnrolError::Cut(why.to_string()))?
    };
    timeout(REQUEST_TIME_MAX, write(stream, &answered)).await.map_err(slow)??;
    match answered {
        EnrolmentAnswer::Enrolled { .. } => Ok(PeerName { cluster, role: Role::Node, name }),
        EnrolmentAnswer::Refused(why) => Err(why.into()),
    }
}

impl Authority {
    /// Enrols whoever asks at the port where links arrive: for `with_enrol` of an acceptor. Who was enrolled, and
    /// who was not and why, goes to the log; the other end hears it too.
    pub fn enrolment(&self) -> Enrol {
        let authority = self.clone();
        Arc::new(move |mut stream, from| {
            let authority = authority.clone();
            Box::pin(async move {
                match serve_tls(&authority, &mut stream).await {
                    Ok(peer) => tracing::info!(peer = %peer, address = %from, "enrolled"),
                    Err(why) => tracing::warn!(%why, address = %from, "not enrolled"),
                }
            })
        })
    }

    /// A certificate for the peer of a link that asked for one, or why there is none, in words for that peer. It
    /// waits for its turn, and then for the disk, without holding up its thread.
    pub(crate) async fn renewal(&self, peer: PeerName, request: Vec<u8>) -> Result<Vec<Vec<u8>>, String> {
        let _place = self.place().await;
        let authority = self.clone();
        let renew = move || authority.renew(&peer, &request, Utc::now());
        let renewed = tokio::task::spawn_blocking(renew).await;
        renewed.map_err(|why| why.to_string())?.map_err(|why| refusal(why).to_string())
    }
}

/// What the other end is told.
fn refusal(why: SecurityError) -> EnrolmentRefusal {
    match why {
        SecurityError::Token(why) => EnrolmentRefusal::Token(why.to_string()),
        SecurityError::Name(why) => EnrolmentRefusal::Name(why.to_string()),
        SecurityError::NameHeld { peer, until } => {
            EnrolmentRefusal::NameHeld { name: peer.name, until: until.to_string() }
        }
        why @ SecurityError::Request(_) => EnrolmentRefusal::Request(why.to_string()),
        why @ (SecurityError::AuthorityExpired { .. } | SecurityError::Full { .. }) => {
            EnrolmentRefusal::Authority(why.to_string())
        }
        // Paths and what the disk said are the coordinator's own affair.
        why => {
            tracing::error!(%why, "no certificate could be issued");
            EnrolmentRefusal::Authority("the coordinator's log says why".into())
        }
    }
}

/// A listener that does nothing but enrolment, for where no link listens. Never returns by itself; a connection that
/// is slow or hostile holds up no other, and more at once than are served wait in the host's queue.
pub async fn listen(authority: Authority, tls: Tls, listener: TcpListener) -> std::io::Result<()> {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // This connection was given up by its peer, or descriptors ran out for a moment.
            Err(why) => {
                tracing::warn!(%why, "enrolment not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (authority, tls) = (authority.clone(), tls.clone());
        tokio::spawn(async move {
            let _place = place;
            let served = match accept(&tls, stream, REQUEST_TIME_MAX).await {
                Ok(Accepted::Enrolment(mut stream)) => serve_tls(&authority, &mut stream).await,
                Ok(Accepted::Link { .. }) => {
                    Err(EnrolError::Handshake { address: from.to_string(), why: HandshakeError::Protocol })
                }
                Err(why) => Err(EnrolError::Handshake { address: from.to_string(), why }),
            };
            match served {
                Ok(peer) => tracing::info!(peer = %peer, address = %from, "enrolled"),
                Err(why) => tracing::warn!(%why, address = %from, "not enrolled"),
            }
        });
    }
}

/// Joins: gets a certificate for `name` from the coordinator at `address` (`host:port`) and writes it into
/// `folder` with its key. Where this fails nothing is written.
pub async fn enrol(
    token: &Token,
    address: &str,
    name: &str,
    folder: &Path,
) -> Result<Credentials, EnrolError> {
    // First what can be known here, so that no use of the token is lost to it.
    check_name(name).map_err(SecurityError::from)?;
    token.check_time(Utc::now()).map_err(SecurityError::from)?;
    credentials::check_new(folder)?;
    let unreachable = |why: String| EnrolError::Unreachable { address: address.into(), why };
    let stream = timeout(REQUEST_TIME_MAX, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(format!("no answer within {REQUEST_TIME_MAX:?}")))?
        .map_err(|why| unreachable(why.to_string()))?;
    let credentials = enrol_over(token, stream, address, name).await?;
    credentials.create(folder)?;
    Ok(credentials)
}

/// The same over a stream that stands, and without writing anything.
pub async fn enrol_over<S: AsyncRead + AsyncWrite + Unpin>(
    token: &Token,
    stream: S,
    address: &str,
    name: &str,
) -> Result<Credentials, EnrolError> {
    timeout(ENROLMENT_TIME_MAX, enrolled(token, stream, address, name))
        .await
        .map_err(|_| EnrolError::Slow(ENROLMENT_TIME_MAX))?
}

async fn enrolled<S: AsyncRead + AsyncWrite + Unpin>(
    token: &Token,
    stream: S,
    address: &str,
    name: &str,
) -> Result<Credentials, EnrolError> {
    let failed = |why| EnrolError::Handshake { address: address.into(), why };
    let (config, noted) = client_config(token)?;
    let server = ServerName::try_from(SERVER_NAME).expect("it is a name");
    let mut stream = TlsConnector::from(config)
        .connect(server, stream)
        .await
        .map_err(|why| failed(in_words(&why, None, Some(&noted))))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_ENROLMENT) {
        return Err(failed(HandshakeError::Protocol));
    }
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, None)
        .map_err(|why| EnrolError::Cut(why.to_string()))?;

    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SecurityError::crypto("a key"))?;
    let request = credentials::request(&pair)?;
    let proof = token.prove(&exporter, name, &request);
    let question =
        EnrolmentRequest { protocol: ENROLMENT, token: token.id, name: name.into(), request, proof };
    write(&mut stream, &question).await?;
    match read(&mut stream).await? {
        EnrolmentAnswer::Refused(why) => Err(why.into()),
        EnrolmentAnswer::Enrolled { chain } => {
            issued(token, name, &chain, PrivateKeyDer::from(pair), Utc::now()).map_err(EnrolError::Issued)
        }
    }
}

/// What was issued, if it is what was asked for: signed by the token's authority, for this name and this key.
fn issued(
    token: &Token,
    name: &str,
    chain: &[Vec<u8>],
    key: PrivateKeyDer<'static>,
    now: Utc,
) -> Result<Credentials, CertificateFault> {
    let [leaf, authority] = chain else {
        return Err(CertificateFault::Damaged(format!("{} certificates came, expected 2", chain.len())));
    };
    let authority = CertificateDer::from(authority.clone());
    if Facts::of(&authority)?.key_sha256 != token.authority {
        return Err(CertificateFault::NotSigned { ours: token.cluster() });
    }
    let credentials = Credentials::new(CertificateDer::from(leaf.clone()), key, authority)?;
    credentials.facts().check_time(now)?;
    let (got, wanted) =
        (credentials.peer(), PeerName { cluster: token.cluster(), role: Role::Node, name: name.into() });
    if *got != wanted {
        return Err(CertificateFault::Damaged(format!("it is of {got}, not of {wanted}")));
    }
    Ok(credentials)
}

fn client_config(token: &Token) -> Result<(Arc<ClientConfig>, Noted), EnrolError> {
    let noted = Noted::default();
    let verifier = CoordinatorOf { token: token.clone(), noted: Arc::clone(&noted) };
    let mut config = ClientConfig::builder_with_details(provider(), clock())
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| SecurityError::Crypto { what: "TLS", why: why.to_string() })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLMENT.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok((Arc::new(config), noted))
}

/// Takes a server for a coordinator of the token's cluster: its chain brings an authority with the token's
/// fingerprint, which signed its certificate.
#[derive(Debug)]
struct CoordinatorOf {
    token: Token,
    noted: Noted,
}

impl CoordinatorOf {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), (CertificateFault, rustls::Error)> {
        let ours = self.token.cluster();
        let peer = Facts::of(leaf).ok().and_then(|facts| facts.peer);
        let refused = |why: rustls::Error| (fault_of(&why, peer.as_ref(), ours, Utc::of_unix(now)), why);
        let is_ours = |certificate: &&CertificateDer<'_>| {
            Facts::of(certificate)
                .is_ok_and(|facts| facts.is_authority && facts.key_sha256 == self.token.authority)
        };
        let Some(authority) = between.iter().find(is_ours) else {
            return Err(refused(CertificateError::UnknownIssuer.into()));
        };
        let verifier = PeerVerifier::new(authority, ours).map_err(|why| {
            (CertificateFault::Damaged(why.to_string()), CertificateError::BadEncoding.into())
        })?;
        verifier.server_chain(leaf, &[], now).map_err(refused)?;
        match &peer {
            Some(peer) if peer.cluster == ours && peer.role == Role::Coordinator => Ok(()),
            Some(peer) if peer.cluster == ours => Err((
                CertificateFault::Role { found: peer.role, expected: Role::Coordinator },
                CertificateError::ApplicationVerificationFailure.into(),
            )),
            _ => Err(refused(CertificateError::UnknownIssuer.into())),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
            .inspect_err(|_| self.note(leaf, CertificateFault::KeyMismatch))
    }

    fn note(&self, leaf: &CertificateDer<'_>, fault: CertificateFault) {
        let whom = Facts::of(leaf).ok().and_then(|facts| facts.peer);
        *self.noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((whom, fault));
    }
}

impl ServerCertVerifier for CoordinatorOf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.judge(leaf, between, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err((fault, why)) => {
                self.note(leaf, fault);
                Err(why)
            }
        }
    }

    signatures!();
}

/// Reads one message. Memory is taken as bytes come, not as they are announced.
async fn read<S: AsyncRead + Unpin, T: bincode::Decode<()>>(stream: &mut S) -> Result<T, EnrolError> {
    let cut = |why: std::io::Error| EnrolError::Cut(why.to_string());
    let length = stream.read_u32_le().await.map_err(cut)?;
    if length as usize > ENROLMENT_BYTES_MAX {
        return Err(EnrolError::TooLong(length.into()));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.map_err(cut)?;
    Ok(decode(&bytes)?)
}

/// Writes one message.
async fn write<S: AsyncWrite + Unpin, T: bincode::Encode>(
    stream: &mut S,
    message: &T,
) -> Result<(), EnrolError> {
    let cut = |why: std::io::Error| EnrolError::Cut(why.to_string());
    let bytes = encode(message)?;
    let length = u32::try_from(bytes.len()).expect("messages are short");
    stream.write_all(&[&length.to_le_bytes()[..], &bytes].concat()).await.map_err(cut)?;
    stream.flush().await.map_err(cut)
}
