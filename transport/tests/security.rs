//! Who is let onto a link, and what is said to those who are not. Every test runs real TLS, over a channel in
//! memory or over QUIC on loopback; certificates that our own code would never use are handed to rustls itself.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_transport::security::{
    Accepted, Authority, CertificateFault, Credentials, Facts, HandshakeError, Issuance, PeerName, Role,
    SecurityError, Tls, Utc, accept, authority, connect, credentials, handshake, peer_name, tls,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const WITHIN: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

/// A folder that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("security-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the target folder can be written");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Cluster {
    authority: Authority,
    scratch: Scratch,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let authority = Authority::create(&scratch.0.join("authority"), Utc::now()).unwrap();
        Self { authority, scratch }
    }

    fn issue_at(&self, name: &str, role: Role, now: Utc) -> Credentials {
        self.authority.issue(Issuance { name, role, life: DAY, replace: true }, now).unwrap()
    }

    fn issue(&self, name: &str, role: Role) -> Credentials {
        self.issue_at(name, role, Utc::now())
    }

    fn tls(&self, name: &str, role: Role) -> Tls {
        Tls::new(self.issue(name, role)).unwrap()
    }

    /// The key of the authority, for signing what it would not.
    fn issuer(&self) -> rcgen::Issuer<'static, rcgen::KeyPair> {
        let key = std::fs::read_to_string(self.scratch.0.join("authority/authority.key")).unwrap();
        let key = rcgen::KeyPair::from_pem(&key).unwrap();
        rcgen::Issuer::from_ca_cert_der(self.authority.certificate(), key).unwrap()
    }

    /// What rustls needs of credentials, the key read back from disk as anybody would.
    fn raw(&self, credentials: &Credentials) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let folder = self.scratch.0.join(format!("raw-{}", credentials.facts().not_after.0));
        credentials.create(&folder).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join(credentials::KEY_FILE)).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        (credentials.certificate().clone(), key)
    }
}

/// Trusts everybody, as a hostile client does.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Shows one certificate, fitting or not.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shows {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn shows(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Arc<Shows> {
    let key = provider().key_provider.load_private_key(key).unwrap();
    Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))))
}

/// A client that is not ours.
fn hostile_client(shown: Option<Arc<Shows>>, protocols: &[&[u8]]) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(shown),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// A server that is not ours; it lets in everybody.
fn hostile_server(shown: Arc<Shows>, protocols: &[&[u8]]) -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// What our server says to a hostile client.
async fn served(tls: &Tls, client: TlsConnector) -> Result<Accepted<DuplexStream>, HandshakeError> {
    let (here, there) = duplex(1 << 16);
    let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
    let (accepted, _client) = tokio::join!(accept(tls, here, WITHIN), client.connect(name, there));
    accepted
}

/// What our client says of a hostile server.
async fn dialled(tls: &Tls, server: TlsAcceptor) -> Result<PeerName, HandshakeError> {
    let (here, there) = duplex(1 << 16);
    let (connected, _server) = tokio::join!(connect(tls, here, WITHIN), server.accept(there));
    connected.map(|(_, peer)| peer)
}

/// Which fault, of whom.
fn theirs(result: Result<impl std::fmt::Debug, HandshakeError>) -> (Option<String>, CertificateFault) {
    match result {
        Err(HandshakeError::Theirs { whom, fault }) => (whom.map(|peer| peer.to_string()), fault),
        other => panic!("expected a refused certificate, got {other:?}"),
    }
}

#[tokio::test]
async fn both_ends_learn_each_others_name_and_bytes_flow() {
    let cluster = Cluster::new("names");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let (here, there) = duplex(1 << 16);
    let (dialled, accepted) = tokio::join!(connect(&node, here, WITHIN), accept(&coordinator, there, WITHIN));
    let (mut client, peer) = dialled.unwrap();
    assert_eq!(peer, coordinator.peer());
    let Ok(Accepted::Link { mut stream, peer }) = accepted else { panic!("{accepted:?}") };
    assert_eq!(peer, node.peer());
    assert_eq!(peer.cluster, cluster.authority.cluster());

    client.write_all(b"row").await.unwrap();
    client.flush().await.unwrap();
    let mut row = [0; 3];
    stream.read_exact(&mut row).await.unwrap();
    assert_eq!(&row, b"row");
    let connection = client.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

/// A resumed session would skip the certificates, and early data could be replayed.
#[tokio::test]
async fn nothing_is_resumed() {
    let cluster = Cluster::new("resumption");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    // Ours as a client, and one that would resume if it could.
    let hostile = {
        let (leaf, key) = cluster.raw(&cluster.issue("n1", Role::Node));
        hostile_client(Some(shows(vec![leaf], key)), &[tls::ALPN_LINK])
    };
    for _ in 0..3 {
        let (here, there) = duplex(1 << 16);
        let (dialled, accepted) =
            tokio::join!(connect(&node, here, WITHIN), accept(&coordinator, there, WITHIN));
        let (client, _) = dialled.unwrap();
        assert_eq!(client.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        drop(accepted);

        // This one reads, so that it would get a ticket if one were sent.
        let (here, there) = duplex(1 << 16);
        let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
        let (accepted, client) =
            tokio::join!(accept(&coordinator, here, WITHIN), hostile.connect(name, there));
        let Ok(Accepted::Link { mut stream, .. }) = accepted else { panic!("{accepted:?}") };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        stream.write_u8(1).await.unwrap();
        stream.flush().await.unwrap();
        let mut client = client.unwrap();
        client.read_u8().await.unwrap();
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
    }
    assert_eq!(coordinator.server_config().max_early_data_size, 0);
    assert_eq!(coordinator.server_config().send_tls13_tickets, 0);
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused_by_both_ends() {
    let (ours, others) = (Cluster::new("ours"), Cluster::new("others"));
    let clusters = (ours.authority.cluster(), others.authority.cluster());
    let expected = CertificateFault::OtherCluster { theirs: clusters.1, ours: clusters.0 };
    let node = ours.tls("n0", Role::Node);
    let (leaf, key) = others.raw(&others.issue("c0", Role::Coordinator));
    let shown = shows(vec![leaf, others.authority.certificate().clone()], key);

    let result = dialled(&node, hostile_server(Arc::clone(&shown), &[tls::ALPN_LINK])).await;
    assert_eq!(theirs(result), (Some("coordinator c0".into()), expected.clone()));
    let result = served(&node, hostile_client(Some(shown), &[tls::ALPN_LINK])).await;
    let message = result.as_ref().unwrap_err().to_string();
    assert_eq!(theirs(result), (Some("coordinator c0".into()), expected));
    assert!(
        message.contains(&clusters.0.to_string()) && message.contains(&clusters.1.to_string()),
        "{message}"
    );

    // Two ends of ours: one sees it, the other hears of it.
    let stranger = others.tls("c0", Role::Coordinator);
    let (here, there) = duplex(1 << 16);
    let (dialled, accepted) = tokio::join!(connect(&node, here, WITHIN), accept(&stranger, there, WITHIN));
    assert!(matches!(dialled, Err(HandshakeError::Theirs { .. })), "{dialled:?}");
    let heard = accepted.unwrap_err();
    assert!(matches!(&heard, HandshakeError::Ours { whose, .. } if *whose == stranger.peer()), "{heard}");
    assert!(heard.to_string().contains("another cluster"), "{heard}");
}

/// A certificate that says it is of our cluster, signed by somebody else with the authority's very name.
#[tokio::test]
async fn a_forged_certificate_is_refused() {
    let cluster = Cluster::new("forged");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let forger =
        rcgen::Issuer::from_ca_cert_der(cluster.authority.certificate(), rcgen::KeyPair::generate().unwrap())
            .unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = coordinator.peer().uri().try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let leaf = params.signed_by(&key, &forger).unwrap().der().clone();
    let shown = shows(vec![leaf], key.into());

    let expected =
        (Some("coordinator c0".into()), CertificateFault::NotSigned { ours: cluster.authority.cluster() });
    let result = dialled(&node, hostile_server(Arc::clone(&shown), &[tls::ALPN_LINK])).await;
    assert_eq!(theirs(result), expected);
    let result = served(&node, hostile_client(Some(shown), &[tls::ALPN_LINK])).await;
    assert_eq!(theirs(result), expected);
}

/// Signed by the authority, but naming another cluster's peer, or none, or being no peer's at all.
#[tokio::test]
async fn what_the_authority_signed_must_name_a_peer_of_its_cluster() {
    let cluster = Cluster::new("unnamed");
    let coordinator = cluster.tls("c0", Role::Coordinator);
    let other = phalanx_transport::security::ClusterId([9; 16]);
    let elsewhere = PeerName::new(other, Role::Node, "n0").unwrap().uri();
    for (uri, expected) in [
        (None, CertificateFault::Unnamed),
        (Some("phalanx://x/node/n0".to_string()), CertificateFault::Unnamed),
        (
            Some(elsewhere),
            CertificateFault::OtherCluster { theirs: other, ours: cluster.authority.cluster() },
        ),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names =
            uri.iter().map(|uri| rcgen::SanType::URI(uri.as_str().try_into().unwrap())).collect();
        let leaf = params.signed_by(&key, &cluster.issuer()).unwrap().der().clone();
        let shown = shows(vec![leaf], key.into());
        let result = served(&coordinator, hostile_client(Some(Arc::clone(&shown)), &[tls::ALPN_LINK])).await;
        assert_eq!(theirs(result).1, expected);
        let result = dialled(&coordinator, hostile_server(shown, &[tls::ALPN_LINK])).await;
        assert_eq!(theirs(result).1, expected);
    }
}

/// A node must not be able to make other peers with its own certificate.
#[tokio::test]
async fn a_peers_certificate_signs_no_other() {
    let cluster = Cluster::new("chain");
    let coordinator = cluster.tls("c0", Role::Coordinator);
    let node = cluster.issue("n0", Role::Node);
    let (node_leaf, node_key) = cluster.raw(&node);
    let node_key = rcgen::KeyPair::try_from(&node_key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&node_leaf, node_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = PeerName { role: Role::Coordinator, ..node.peer().clone() }.uri();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
    let shown = shows(vec![leaf, node_leaf], key.into());
    for result in [
        served(&coordinator, hostile_client(Some(Arc::clone(&shown)), &[tls::ALPN_LINK])).await.map(drop),
        dialled(&coordinator, hostile_server(shown, &[tls::ALPN_LINK])).await.map(drop),
    ] {
        assert!(matches!(result, Err(HandshakeError::Theirs { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn a_certificate_out_of_its_time_names_both_times() {
    let cluster = Cluster::new("expired");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let now = Utc::now();
    // The authority must be as old as what it signs.
    let folder = cluster.scratch.0.join("old");
    let old = Authority::create_for(&folder, now.minus(30 * DAY), now.plus(30 * DAY)).unwrap();
    let old = Cluster { authority: old, scratch: Scratch::new("expired-raw") };
    let trusting = old.tls("c0", Role::Coordinator);
    let at = |issued: Utc| old.issue_at("n0", Role::Node, issued);

    let expired = at(now.minus(3 * DAY));
    let not_after = expired.facts().not_after;
    let (leaf, key) = old.raw(&expired);
    let shown = shows(vec![leaf], key);
    let results = [
        served(&trusting, hostile_client(Some(Arc::clone(&shown)), &[tls::ALPN_LINK])).await.map(drop),
        dialled(&trusting, hostile_server(shown, &[tls::ALPN_LINK])).await.map(drop),
    ];
    for result in results {
        let message = result.as_ref().unwrap_err().to_string();
        let (whom, fault) = theirs(result);
        assert_eq!(whom.as_deref(), Some("node n0"));
        let CertificateFault::Expired { not_after: said, now: clock } = fault else { panic!("{fault:?}") };
        assert_eq!(said, not_after);
        assert!(clock >= now && clock.since(now) < DAY, "{clock}");
        for word in ["node n0", &not_after.to_string(), &clock.to_string(), "clock"] {
            assert!(message.contains(word), "{word} in {message}");
        }
    }

    let early = at(now.plus(3 * DAY));
    let not_before = early.facts().not_before;
    let (leaf, key) = old.raw(&early);
    let result = served(&trusting, hostile_client(Some(shows(vec![leaf], key)), &[tls::ALPN_LINK])).await;
    let (_, fault) = theirs(result);
    assert!(matches!(fault, CertificateFault::NotYetValid { not_before: said, .. } if said == not_before));

    // Neither can be used here in the first place, and the message says whose.
    let why = Tls::new(at(now.minus(3 * DAY))).unwrap_err().to_string();
    assert!(why.contains("this end's certificate, node n0: not valid after"), "{why}");
    assert!(matches!(Tls::new(early), Err(SecurityError::Own { .. })));
    drop((node, coordinator));
}

/// Whatever protocols a client offers, no certificate means no link.
#[tokio::test]
async fn a_client_without_a_certificate_gets_no_link() {
    let cluster = Cluster::new("anonymous");
    let coordinator = cluster.tls("c0", Role::Coordinator);
    let offers: [&[&[u8]]; 5] = [
        &[tls::ALPN_LINK],
        &[],
        &[tls::ALPN_LINK, tls::ALPN_ENROLMENT],
        &[tls::ALPN_ENROLMENT, tls::ALPN_LINK],
        &[b"h2"],
    ];
    for offer in offers {
        let result = served(&coordinator, hostile_client(None, offer)).await;
        match (offer, result) {
            ([b"h2"], Err(HandshakeError::Protocol)) => {}
            (_, Err(HandshakeError::Theirs { fault: CertificateFault::Missing, .. })) => {}
            (_, other) => panic!("{offer:?}: {other:?}"),
        }
    }
    let result = served(&coordinator, hostile_client(None, &[tls::ALPN_ENROLMENT])).await;
    assert!(matches!(result, Ok(Accepted::Enrolment(_))), "{result:?}");
    // With a certificate it is still no link.
    let (leaf, key) = cluster.raw(&cluster.issue("n0", Role::Node));
    let shown = shows(vec![leaf], key);
    let result = served(&coordinator, hostile_client(Some(Arc::clone(&shown)), &[tls::ALPN_ENROLMENT])).await;
    assert!(matches!(result, Ok(Accepted::Enrolment(_))), "{result:?}");
    // A good certificate and no protocol: rustls lets it through, we do not.
    let result = served(&coordinator, hostile_client(Some(shown), &[])).await;
    assert!(matches!(result, Err(HandshakeError::Protocol)), "{result:?}");
}

/// The client hears of its refusal with its first read, and that is a sentence too.
#[tokio::test]
async fn a_refused_client_is_told_why() {
    let cluster = Cluster::new("told");
    let coordinator = cluster.tls("c0", Role::Coordinator);
    let (here, there) = duplex(1 << 16);
    let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
    let client = hostile_client(None, &[tls::ALPN_LINK]);
    let (accepted, connected) = tokio::join!(accept(&coordinator, here, WITHIN), client.connect(name, there));
    assert!(accepted.is_err());
    let why = connected.unwrap().read_u8().await.unwrap_err();
    let node = cluster.tls("n0", Role::Node);
    let told = handshake::explain(&node, &why).expect("TLS is behind it");
    assert!(told.to_string().contains("none was sent"), "{told}");
    let cut = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    assert_eq!(handshake::explain(&node, &cut), None);
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_refused() {
    let cluster = Cluster::new("mismatch");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let thief = rcgen::KeyPair::generate().unwrap();
    let shown = shows(vec![coordinator.credentials().certificate().clone()], thief.into());
    let expected = (Some("coordinator c0".into()), CertificateFault::KeyMismatch);
    let result = dialled(&node, hostile_server(Arc::clone(&shown), &[tls::ALPN_LINK])).await;
    assert_eq!(theirs(result), expected);
    let result = served(&node, hostile_client(Some(shown), &[tls::ALPN_LINK])).await;
    assert_eq!(theirs(result), expected);
}

#[tokio::test]
async fn what_is_not_tls_is_told_apart() {
    let cluster = Cluster::new("plain");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let (here, mut there) = duplex(1 << 16);
    there.write_all(b"PHLX\x01\x03\0\0 plain frames begin so").await.unwrap();
    let why = accept(&coordinator, here, WITHIN).await.unwrap_err();
    assert!(matches!(why, HandshakeError::NotTls(_)) && why.to_string().contains("--insecure"), "{why}");

    let (here, mut there) = duplex(1 << 16);
    there.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let why = connect(&node, here, WITHIN).await.map(drop).unwrap_err();
    assert!(matches!(why, HandshakeError::NotTls(_)), "{why}");

    // Another service of the same cluster.
    let (leaf, key) = cluster.raw(&cluster.issue("c1", Role::Coordinator));
    let shown = shows(vec![leaf], key);
    for protocols in [&[&b"h2"[..]][..], &[]] {
        let why = dialled(&node, hostile_server(Arc::clone(&shown), protocols)).await.unwrap_err();
        assert_eq!(why, HandshakeError::Protocol, "{protocols:?}");
    }

    let (here, there) = duplex(1 << 16);
    drop(there);
    let why = accept(&coordinator, here, WITHIN).await.unwrap_err();
    assert!(matches!(why, HandshakeError::Cut(_)), "{why}");
}

/// Every prefix of a good beginning, and then silence: over when its time is.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_stops_is_given_up() {
    let cluster = Cluster::new("slow");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let mut hello = Vec::new();
    let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
    rustls::ClientConnection::new(node.client_config(), name).unwrap().write_tls(&mut hello).unwrap();
    assert!(hello.len() > 100);
    for length in [0, 1, 5, 6, 50, hello.len() - 1, hello.len()] {
        let (here, mut there) = duplex(1 << 16);
        there.write_all(&hello[..length]).await.unwrap();
        let began = tokio::time::Instant::now();
        let why = accept(&coordinator, here, WITHIN).await.unwrap_err();
        assert_eq!(why, HandshakeError::Slow(WITHIN), "after {length} bytes");
        assert!(began.elapsed() < WITHIN + Duration::from_secs(1));
        // Or it ends there.
        let (here, mut there) = duplex(1 << 16);
        there.write_all(&hello[..length]).await.unwrap();
        drop(there);
        assert!(accept(&coordinator, here, WITHIN).await.is_err(), "after {length} bytes");
    }
    let (here, _there) = duplex(1 << 16);
    let why = connect(&node, here, WITHIN).await.map(drop).unwrap_err();
    assert_eq!(why, HandshakeError::Slow(WITHIN));
}

/// Renewal: new links show the new certificate, those that stand go on.
#[tokio::test]
async fn credentials_are_swapped_while_links_stand() {
    let cluster = Cluster::new("swap");
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let shown = async || {
        let (here, there) = duplex(1 << 16);
        let (dialled, accepted) =
            tokio::join!(connect(&node, here, WITHIN), accept(&coordinator, there, WITHIN));
        let Ok(Accepted::Link { stream, .. }) = accepted else { panic!("{accepted:?}") };
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        (dialled.unwrap().0, stream, leaf.into_owned())
    };
    let (mut client, mut server, first) = shown().await;

    let old = node.credentials();
    let later = Utc::now().plus(Duration::from_secs(600));
    let chain = cluster.authority.renew(old.peer(), &old.request().unwrap(), later).unwrap();
    let renewed = old.renewed(&chain).unwrap();
    assert!(renewed.facts().not_after > old.facts().not_after);
    // Begins in the past, so it can be used at once.
    assert!(renewed.facts().not_before < Utc::now());
    let folder = cluster.scratch.0.join("n0");
    old.create(&folder).unwrap();
    renewed.save_renewed(&folder).unwrap();
    assert_eq!(Credentials::load(&folder).unwrap().facts(), renewed.facts());
    node.swap(renewed).unwrap();

    let (_, _, second) = shown().await;
    assert_ne!(first, second);
    assert_eq!(Facts::of(&first).unwrap().key_sha256, Facts::of(&second).unwrap().key_sha256);
    client.write_all(b"still").await.unwrap();
    client.flush().await.unwrap();
    let mut still = [0; 5];
    server.read_exact(&mut still).await.unwrap();

    // Nobody else's takes the place.
    assert!(matches!(node.swap(cluster.issue("n1", Role::Node)), Err(SecurityError::Own { .. })));
    let other = Cluster::new("swap-other");
    assert!(node.swap(other.issue("n0", Role::Node)).is_err());
    assert!(node.credentials().renewed(&[cluster.issue("n0", Role::Node).certificate().to_vec()]).is_err());
}

/// One that was shut out with `--replace` does not come back by renewing.
#[test]
fn a_replaced_key_is_not_renewed() {
    let cluster = Cluster::new("replaced");
    let (now, first) = (Utc::now(), cluster.issue("n0", Role::Node));
    cluster.authority.renew(first.peer(), &first.request().unwrap(), now).unwrap();
    let second = cluster.issue("n0", Role::Node);
    let why = cluster.authority.renew(first.peer(), &first.request().unwrap(), now).unwrap_err();
    assert!(matches!(why, SecurityError::NameHeld { .. }), "{why}");
    cluster.authority.renew(second.peer(), &second.request().unwrap(), now).unwrap();
    let other = Cluster::new("replaced-other");
    assert!(
        other.authority.renew(first.peer(), &first.request().unwrap(), now).is_err(),
        "another cluster's"
    );
    let mut request = second.request().unwrap();
    let middle = request.len() / 2;
    request[middle] ^= 1;
    let why = cluster.authority.renew(second.peer(), &request, now).unwrap_err();
    assert!(matches!(why, SecurityError::Request(_)), "{why}");
}

#[test]
fn a_certificate_says_what_was_asked_for() {
    let cluster = Cluster::new("issue");
    let now = Utc::now();
    let credentials = cluster.issue("n0", Role::Node);
    let facts = credentials.facts();
    assert_eq!(peer_name(std::slice::from_ref(credentials.certificate())).as_ref(), Ok(credentials.peer()));
    assert!(!facts.is_authority);
    assert!(facts.not_after.since(now) >= DAY && facts.not_after.since(now) < DAY + Duration::from_secs(60));
    assert!(now.since(facts.not_before) > Duration::from_secs(3_000));
    // Two thirds of 25 hours, an hour of which lies behind.
    let ahead = credentials.renew_in(now);
    assert!(ahead > Duration::from_secs(15 * 3_600) && ahead < Duration::from_secs(16 * 3_600), "{ahead:?}");
    assert_eq!(credentials.renew_in(now.plus(DAY)), Duration::ZERO);

    // A short one is not begun so long before that it would be due at once.
    let life = Duration::from_secs(600);
    let what = Issuance { name: "n1", role: Role::Node, life, replace: false };
    let ahead = cluster.authority.issue(what, now).unwrap().renew_in(now);
    assert!(ahead > life / 2 && ahead < life, "{ahead:?}");

    // None outlives its authority, and an expired authority signs nothing.
    let folder = cluster.scratch.0.join("short");
    let short = Authority::create_for(&folder, now.minus(DAY), now.plus(DAY)).unwrap();
    let what = Issuance { name: "n1", role: Role::Node, life: 9 * DAY, replace: false };
    let issued = short.issue(what, now).unwrap();
    assert_eq!(issued.facts().not_after, short.facts().not_after);
    assert!(short.warning(now).is_some_and(|said| said.contains("in 24 hours")), "{:?}", short.warning(now));
    assert_eq!(cluster.authority.warning(now), None);
    let why = short.issue(what, now.plus(2 * DAY)).unwrap_err();
    assert!(matches!(why, SecurityError::AuthorityExpired { .. }), "{why}");
}

#[test]
fn an_authority_is_never_overwritten_and_its_files_are_private() {
    let cluster = Cluster::new("folder");
    let folder = cluster.scratch.0.join("authority");
    let before = std::fs::read(folder.join(authority::KEY_FILE)).unwrap();
    let why = Authority::create(&folder, Utc::now()).unwrap_err();
    assert!(matches!(why, SecurityError::Exists(_)), "{why}");
    assert_eq!(std::fs::read(folder.join(authority::KEY_FILE)).unwrap(), before);
    let used = cluster.scratch.0.join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("notes"), "x").unwrap();
    assert!(matches!(Authority::create(&used, Utc::now()), Err(SecurityError::NotEmpty(_))));

    cluster.issue("n0", Role::Node).create(&cluster.scratch.0.join("n0")).unwrap();
    let why = cluster.issue("n0", Role::Node).create(&cluster.scratch.0.join("n0")).unwrap_err();
    assert!(matches!(why, SecurityError::Exists(_)), "{why}");
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["authority.crt", "authority.key", "ledger", "lock"], "and nothing half-written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.clone()), 0o700);
        for private in ["authority.key", "ledger"] {
            assert_eq!(mode(folder.join(private)), 0o600, "{private}");
        }
        assert_eq!(mode(cluster.scratch.0.join("n0/peer.key")), 0o600);
        assert_eq!(mode(cluster.scratch.0.join("n0")), 0o700);
    }
}

/// Each by its path, and by what is wrong with it.
#[test]
fn files_that_cannot_be_used_are_named() {
    let cluster = Cluster::new("files");
    let folder = cluster.scratch.0.join("n0");
    let path = |name: &str| folder.join(name);
    let fresh = || {
        let _ = std::fs::remove_dir_all(&folder);
        cluster.issue("n0", Role::Node).create(&folder).unwrap();
    };
    let refused = |says: &[&str]| {
        let why = Credentials::load(&folder).unwrap_err().to_string();
        for word in says {
            assert!(why.contains(word), "{word} in {why}");
        }
    };
    fresh();
    std::fs::remove_file(path("peer.key")).unwrap();
    refused(&["peer.key", "no such file"]);
    fresh();
    std::fs::write(path("peer.crt"), "hello").unwrap();
    refused(&["peer.crt", "holds no certificate"]);
    fresh();
    std::fs::copy(path("peer.key"), path("peer.crt")).unwrap();
    refused(&["peer.crt", "holds no certificate"]);
    fresh();
    std::fs::write(path("peer.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    refused(&["peer.crt", "cannot be read"]);
    fresh();
    cluster.issue("n1", Role::Node).create(&cluster.scratch.0.join("n1")).unwrap();
    std::fs::copy(cluster.scratch.0.join("n1/peer.key"), path("peer.key")).unwrap();
    refused(&["peer.key", "peer.crt", "not that of the certificate"]);
    fresh();
    let other = Cluster::new("files-other");
    std::fs::copy(other.scratch.0.join("authority/authority.crt"), path("authority.crt")).unwrap();
    refused(&["peer.crt", "another authority", &other.authority.cluster().to_string()]);
    fresh();
    std::fs::copy(path("peer.crt"), path("authority.crt")).unwrap();
    refused(&["may not sign"]);
    #[cfg(target_os = "linux")]
    {
        fresh();
        std::fs::remove_file(path("peer.key")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("peer.key")).unwrap();
        refused(&["peer.key", "longer than"]);
    }

    let authority = cluster.scratch.0.join("authority");
    std::fs::copy(cluster.scratch.0.join("n1/peer.key"), authority.join("authority.key")).unwrap();
    let why = Authority::open(&authority).unwrap_err();
    assert!(matches!(why, SecurityError::KeyMismatch { .. }), "{why}");
}

/// The same configurations over QUIC: both ends named, a stranger and an anonymous client kept out.
#[tokio::test]
async fn quic_has_the_same_doors() {
    let (cluster, others) = (Cluster::new("quic"), Cluster::new("quic-others"));
    let (node, coordinator) = (cluster.tls("n0", Role::Node), cluster.tls("c0", Role::Coordinator));
    let any = "127.0.0.1:0".parse().unwrap();
    let server = quinn::Endpoint::server(coordinator.quic_server(), any).unwrap();
    let address = server.local_addr().unwrap();
    let client = quinn::Endpoint::client(any).unwrap();
    let identity = |connection: &quinn::Connection| {
        let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        peer_name(&chain).unwrap()
    };
    let both = async |config: quinn::ClientConfig| {
        let dialled = async {
            let connection = client.connect_with(config, address, tls::SERVER_NAME).unwrap().await?;
            // A client learns only from what follows that it was let in.
            connection.accept_uni().await?.read_to_end(9).await.map_err(|_| quinn::ConnectionError::Reset)?;
            Ok::<_, quinn::ConnectionError>(connection)
        };
        let accepted = async {
            let connection = server.accept().await.unwrap().await?;
            let mut stream = connection.open_uni().await?;
            stream.write_all(b"welcome").await.unwrap();
            stream.finish().unwrap();
            Ok::<_, quinn::ConnectionError>(connection)
        };
        tokio::time::timeout(WITHIN, async { tokio::join!(dialled, accepted) }).await.expect("it ends")
    };
    let (dialled, accepted) = both(node.quic_client()).await;
    assert_eq!(identity(&dialled.unwrap()), coordinator.peer());
    assert_eq!(identity(&accepted.unwrap()), node.peer());

    let (dialled, _) = both(others.tls("n0", Role::Node).quic_client()).await;
    assert!(dialled.is_err());
    let mut anonymous = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![tls::ALPN_LINK.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(anonymous).unwrap();
    let (dialled, accepted) = both(quinn::ClientConfig::new(Arc::new(crypto))).await;
    assert!(dialled.is_err() && accepted.is_err());
}
