//! One TLS handshake over a stream, as either end, and what its failures mean in words.
//!
//! A shell: it reads the clock and waits, each time within a bound. TLS itself is rustls'; what is added is the
//! other end's name, which protocol it wants, and sentences: "the other end's certificate has expired" is not
//! the same trouble as "the other end says that ours has", and both may be a wrong clock.
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate. So [`connect`] may succeed and
//! the refusal arrive with the first read: [`explain`] makes a sentence of that error too.

use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

use super::tls::{ALPN_ENROLMENT, ALPN_LINK, SERVER_NAME};
use super::verifier::{Noted, fault_of};
use super::{CertificateFault, Credentials, PeerName, Purpose, Tls, Utc, peer_name};

/// Why there is no trusted connection. The stream is closed. Shown without the address, which the carrier knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// This end does not take the other's certificate.
    #[error("the certificate of {}: {fault}", Whose(whom))]
    Theirs {
        /// Who it says it is; not to be trusted.
        whom: Option<PeerName>,
        /// What is wrong.
        fault: CertificateFault,
    },
    /// The other end does not take this end's certificate.
    #[error("the other end refuses this end's certificate, that of {whose}: {why}")]
    Ours {
        /// Whose this end's is.
        whose: PeerName,
        /// What the alert means, and what to do.
        why: String,
    },
    /// It speaks something else.
    #[error(
        "the other end does not speak TLS ({0}); check the port, and that both ends run with or both without --insecure"
    )]
    NotTls(String),
    /// It speaks TLS, and then something else.
    #[error(
        "the other end speaks none of this end's protocols; check the port, and run the same version on both"
    )]
    Protocol,
    /// It took too long.
    #[error("the other end did not finish its handshake within {0:?}")]
    Slow(Duration),
    /// It went away.
    #[error("the other end closed the connection during the handshake ({0})")]
    Cut(String),
    /// Anything else that TLS refuses.
    #[error("the handshake failed: {0}")]
    Failed(String),
}

struct Whose<'a>(&'a Option<PeerName>);

impl std::fmt::Display for Whose<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(peer) => peer.fmt(formatter),
            None => formatter.write_str("the other end"),
        }
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Accepted<S> {
    /// A link or a lane of one, from the peer that the certificate names.
    Link {
        /// The connection.
        stream: Box<server::TlsStream<S>>,
        /// Whose.
        peer: PeerName,
    },
    /// Somebody without a certificate who wants one: for `enrol::serve`, and nothing else.
    Enrolment(Box<server::TlsStream<S>>),
}

/// Dials: the client's handshake, at most `within` long. The name is the other end's certificate's.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls,
    stream: S,
    within: Duration,
) -> Result<(client::TlsStream<S>, PeerName), HandshakeError> {
    let (config, noted) = tls.noted_client();
    let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
    let connected = timeout(within, TlsConnector::from(config).connect(name, stream)).await;
    let stream = connected
        .map_err(|_| HandshakeError::Slow(within))?
        .map_err(|why| in_words(&why, Some(&tls.credentials()), Some(&noted)))?;
    let connection = stream.get_ref().1;
    if connection.alpn_protocol() != Some(ALPN_LINK) {
        return Err(HandshakeError::Protocol);
    }
    let peer = peer_name(connection.peer_certificates().unwrap_or_default())
        .map_err(|fault| HandshakeError::Theirs { whom: None, fault })?;
    Ok((stream, peer))
}

/// Accepts: the server's handshake, at most `within` long, for links and for enrolment on one listener.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls,
    stream: S,
    within: Duration,
) -> Result<Accepted<S>, HandshakeError> {
    timeout(within, accepted(tls, stream)).await.map_err(|_| HandshakeError::Slow(within))?
}

async fn accepted<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls,
    stream: S,
) -> Result<Accepted<S>, HandshakeError> {
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream)
        .await
        .map_err(|why| in_words(&why, Some(&tls.credentials()), None))?;
    let purpose = Tls::purpose_of(&hello.client_hello());
    let (config, noted) = match purpose {
        Purpose::Enrolment => (tls.enrolment_config(), Noted::default()),
        Purpose::Link => tls.noted_server().map_err(|why| HandshakeError::Failed(why.to_string()))?,
    };
    let stream = hello
        .into_stream(config)
        .await
        .map_err(|why| in_words(&why, Some(&tls.credentials()), Some(&noted)))?;
    let connection = stream.get_ref().1;
    // A client may offer no protocol at all, which rustls lets pass.
    match (purpose, connection.alpn_protocol()) {
        (Purpose::Enrolment, Some(ALPN_ENROLMENT)) => Ok(Accepted::Enrolment(Box::new(stream))),
        (Purpose::Link, Some(ALPN_LINK)) => {
            let peer = peer_name(connection.peer_certificates().unwrap_or_default())
                .map_err(|fault| HandshakeError::Theirs { whom: None, fault })?;
            Ok(Accepted::Link { stream: Box::new(stream), peer })
        }
        _ => Err(HandshakeError::Protocol),
    }
}

/// What an error of a connection that already stood means, if TLS is behind it.
pub fn explain(tls: &Tls, why: &io::Error) -> Option<HandshakeError> {
    tls_error(why)?;
    Some(in_words(why, Some(&tls.credentials()), None))
}

fn tls_error(why: &io::Error) -> Option<&rustls::Error> {
    why.get_ref()?.downcast_ref()
}

/// The sentence for an error of a handshake; `own` is what this end showed, if anything.
pub(crate) fn in_words(why: &io::Error, own: Option<&Credentials>, noted: Option<&Noted>) -> HandshakeError {
    let noted = noted.and_then(|noted| noted.lock().unwrap_or_else(PoisonError::into_inner).take());
    if let Some((whom, fault)) = noted {
        return HandshakeError::Theirs { whom, fault };
    }
    let Some(error) = tls_error(why) else {
        return HandshakeError::Cut(why.to_string());
    };
    match error {
        rustls::Error::AlertReceived(alert) => of_alert(*alert, own),
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            let ours = own.map_or(super::ClusterId([0; 16]), |own| own.peer().cluster);
            HandshakeError::Theirs { whom: None, fault: fault_of(error, None, ours, Utc::now()) }
        }
        rustls::Error::InvalidMessage(what) => HandshakeError::NotTls(format!("{what:?}")),
        rustls::Error::NoApplicationProtocol => HandshakeError::Protocol,
        other => HandshakeError::Failed(other.to_string()),
    }
}

fn of_alert(alert: AlertDescription, own: Option<&Credentials>) -> HandshakeError {
    let refused = |why: String| match own {
        Some(own) => HandshakeError::Ours { whose: own.peer().clone(), why },
        None => HandshakeError::Failed(why),
    };
    match alert {
        AlertDescription::CertificateExpired => {
            let now = Utc::now();
            refused(match own.map(|own| (own.facts(), own.facts().check_time(now))) {
                Some((facts, Ok(()))) => format!(
                    "its clock finds it expired or not yet valid. It is valid from {} until {}, and this machine's clock says {now}: one of both clocks is wrong",
                    facts.not_before, facts.not_after
                ),
                Some((_, Err(fault))) => fault.to_string(),
                None => "its clock finds it expired or not yet valid; compare both clocks".into(),
            })
        }
        AlertDescription::UnknownCA => {
            let ours = own.map(|own| format!(" {}", own.peer().cluster)).unwrap_or_default();
            refused(format!(
                "it belongs to another cluster than this end's{ours}; use certificates of one authority"
            ))
        }
        AlertDescription::CertificateRequired => {
            refused("it wants one and none was sent; give this end a certificate or a join token".into())
        }
        AlertDescription::DecryptError => refused(
            "the key that this end used is not the certificate's; put both back as they were issued".into(),
        ),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::AccessDenied => {
            refused(format!("{alert:?}; look at it with `phalanx certs show` and issue it again"))
        }
        AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion => {
            HandshakeError::Protocol
        }
        other => HandshakeError::Failed(format!("the other end said {other:?}")),
    }
}
