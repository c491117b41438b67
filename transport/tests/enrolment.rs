//! Who gets a certificate with a join token, and who does not: over real TCP and TLS where the connection matters,
//! over a channel where only the messages do, and without any where only the decision does.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use phalanx_transport::Limits;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::quic::QuicCarrier;
use phalanx_transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use phalanx_transport::carrier::{Acceptor, Carrier};
use phalanx_transport::link::Local;
use phalanx_transport::peer::{Endpoint, Listener, Notice, Opened, Peer, renewal};
use phalanx_transport::security::enrol::{
    EnrolError, REQUEST_TIME_MAX, answer, enrol, enrol_over, listen, serve, serve_tls,
};
use phalanx_transport::security::{
    Accepted, Authority, CertificateFault, ClusterId, Credentials, Facts, HandshakeError, Issuance, NewToken,
    PeerName, Role, SecurityError, Tls, Token, TokenError, Utc, accept, connect,
};
use phalanx_transport::wire::codec::{decode, encode};
use phalanx_transport::wire::enrolment::{ENROLMENT, EnrolmentAnswer, EnrolmentRefusal, EnrolmentRequest};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::watch;

const WITHIN: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3_600);
const EXPORTER: [u8; 32] = [3; 32];

/// A folder that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("enrolment-{name}-{}", std::process::id()));
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

    fn tls(&self, name: &str, role: Role) -> Tls {
        let what = Issuance { name, role, life: HOUR, replace: true };
        Tls::new(self.authority.issue(what, Utc::now()).unwrap()).unwrap()
    }

    fn token(&self, uses: Option<u32>) -> Token {
        self.authority.new_token(NewToken { life: HOUR, uses, replace: false }, Utc::now()).unwrap()
    }

    /// A coordinator that enrols on loopback; it ends with the test's runtime.
    async fn listening(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(listen(self.authority.clone(), self.tls("c0", Role::Coordinator), listener));
        address
    }
}

/// A request for a certificate for a new key, as any other program would make it.
fn key_request() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

/// A question that is right.
fn question(token: &Token, name: &str) -> EnrolmentRequest {
    let request = key_request();
    let proof = token.prove(&EXPORTER, name, &request);
    EnrolmentRequest { protocol: ENROLMENT, token: token.id, name: name.into(), request, proof }
}

fn refusal(answer: EnrolmentAnswer) -> EnrolmentRefusal {
    match answer {
        EnrolmentAnswer::Refused(why) => why,
        EnrolmentAnswer::Enrolled { .. } => panic!("enrolled"),
    }
}

fn message(request: &EnrolmentRequest) -> Vec<u8> {
    let bytes = encode(request).unwrap();
    [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat()
}

/// The whole way of a node that has only a token: to a certificate, to a link, to a longer certificate.
#[tokio::test]
async fn a_token_becomes_a_certificate_that_opens_links() {
    let cluster = Cluster::new("whole");
    let address = cluster.listening().await;
    let token: Token = cluster.token(None).reveal().parse().unwrap();
    let folder = cluster.scratch.0.join("data/n7");
    let credentials = enrol(&token, &address, "n7", &folder).await.unwrap();
    assert_eq!(credentials.peer().to_string(), "node n7");
    let facts = credentials.facts().clone();
    assert!(facts.not_after.since(Utc::now()) <= 24 * HOUR);

    let loaded = Credentials::load(&folder).unwrap();
    assert_eq!(loaded.facts(), &facts);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.join("peer.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let (node, coordinator) = (Tls::new(loaded).unwrap(), cluster.tls("c0", Role::Coordinator));
    let (here, there) = duplex(1 << 16);
    let (dialled, accepted) = tokio::join!(connect(&node, here, WITHIN), accept(&coordinator, there, WITHIN));
    assert_eq!(dialled.unwrap().1, coordinator.peer());
    assert!(matches!(accepted, Ok(Accepted::Link { peer, .. }) if peer == node.peer()));

    // Its name is its own now; and what is there is not overwritten.
    let why = enrol(&token, &address, "n7", &cluster.scratch.0.join("other")).await.unwrap_err();
    assert!(matches!(why, EnrolError::Refused(EnrolmentRefusal::NameHeld { .. })), "{why}");
    assert!(!cluster.scratch.0.join("other").exists(), "nothing half-written");
    let why = enrol(&token, &address, "n8", &folder).await.unwrap_err();
    assert!(matches!(why, EnrolError::Security(SecurityError::Exists(_))), "{why}");
    let chain = cluster.authority.renew(&node.peer(), &node.credentials().request().unwrap(), Utc::now());
    node.credentials().renewed(&chain.unwrap()).unwrap();
}

#[tokio::test]
async fn trouble_is_said_before_the_token_is_spent() {
    let cluster = Cluster::new("trouble");
    let folder = cluster.scratch.0.join("n0");
    let token = cluster.token(Some(1));
    let why = enrol(&token, "127.0.0.1:1", "n0", &folder).await.unwrap_err();
    assert!(
        matches!(why, EnrolError::Unreachable { .. }) && why.to_string().contains("127.0.0.1:1"),
        "{why}"
    );
    let why = enrol(&token, "127.0.0.1:1", "n/0", &folder).await.unwrap_err();
    assert!(matches!(why, EnrolError::Security(SecurityError::Name(_))), "{why}");
    let past = Utc::now().minus(3 * HOUR);
    let old = cluster.authority.new_token(NewToken { life: HOUR, uses: None, replace: false }, past);
    // The authority is younger than that, which it says.
    assert!(matches!(old, Err(SecurityError::Certificate { .. })), "{old:?}");
    let old = cluster.authority.new_token(
        NewToken { life: Duration::from_secs(60), uses: None, replace: false },
        Utc::now().minus(Duration::from_secs(120)),
    );
    let why = enrol(&old.unwrap(), "127.0.0.1:1", "n0", &folder).await.unwrap_err();
    assert!(matches!(why, EnrolError::Security(SecurityError::Token(TokenError::Expired { .. }))), "{why}");
    let address = cluster.listening().await;
    enrol(&token, &address, "n0", &folder).await.expect("it has not been used so far");
}

/// The token names the authority, and only a coordinator of it is spoken to.
#[tokio::test]
async fn only_a_coordinator_of_the_tokens_cluster_is_trusted() {
    let (cluster, others) = (Cluster::new("trust"), Cluster::new("trust-others"));
    let token = cluster.token(None);
    let against = async |tls: Tls| {
        let (here, there) = duplex(1 << 16);
        let (result, _) = tokio::join!(enrol_over(&token, here, "there", "n0"), accept(&tls, there, WITHIN));
        match result {
            Err(EnrolError::Handshake { why: HandshakeError::Theirs { fault, .. }, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    let (ours, theirs) = (cluster.authority.cluster(), others.authority.cluster());
    assert_eq!(
        against(others.tls("c0", Role::Coordinator)).await,
        CertificateFault::OtherCluster { theirs, ours }
    );
    assert_eq!(
        against(cluster.tls("n1", Role::Node)).await,
        CertificateFault::Role { found: Role::Node, expected: Role::Coordinator }
    );
}

/// A coordinator that has gone bad gets a proof, and can do nothing with it elsewhere. Nor can it hand out what it
/// likes.
#[tokio::test]
async fn a_proof_is_worth_nothing_on_another_connection() {
    let cluster = Cluster::new("replay");
    let (bad, good) = (cluster.tls("c9", Role::Coordinator), cluster.tls("c0", Role::Coordinator));
    let token = cluster.token(Some(1));
    let issue = |name: &str| {
        let what = Issuance { name, role: Role::Node, life: HOUR, replace: true };
        cluster.authority.issue(what, Utc::now()).unwrap().certificate().to_vec()
    };
    let other = Cluster::new("replay-other");
    let ours = cluster.authority.certificate().to_vec();
    let mut recorded = Vec::new();
    for chain in [
        vec![],
        vec![issue("n0"), ours.clone()],
        vec![issue("n0"), other.authority.certificate().to_vec()],
        vec![b"rubbish".to_vec(), ours],
    ] {
        let (here, there) = duplex(1 << 16);
        let joining = enrol_over(&token, here, "there", "n0");
        let hostile = async {
            let Ok(Accepted::Enrolment(mut stream)) = accept(&bad, there, WITHIN).await else { panic!() };
            let mut request = vec![0; stream.read_u32_le().await.unwrap() as usize];
            stream.read_exact(&mut request).await.unwrap();
            let answer = encode(&EnrolmentAnswer::Enrolled { chain }).unwrap();
            stream.write_u32_le(answer.len() as u32).await.unwrap();
            stream.write_all(&answer).await.unwrap();
            stream.flush().await.unwrap();
            request
        };
        let (joined, request) = tokio::join!(joining, hostile);
        assert!(matches!(joined, Err(EnrolError::Issued(_))), "{joined:?}");
        recorded = request;
    }

    // The very bytes, on a connection to a good one.
    let (here, there) = duplex(1 << 16);
    let mut config = rustls::ClientConfig::clone(&bad.client_config());
    config.alpn_protocols = vec![phalanx_transport::security::tls::ALPN_ENROLMENT.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let replaying = async {
        let name = "c0".to_string().try_into().unwrap();
        let mut stream = connector.connect(name, here).await.unwrap();
        stream.write_u32_le(recorded.len() as u32).await.unwrap();
        stream.write_all(&recorded).await.unwrap();
        stream.flush().await.unwrap();
        let mut bytes = vec![0; stream.read_u32_le().await.unwrap() as usize];
        stream.read_exact(&mut bytes).await.unwrap();
        decode::<EnrolmentAnswer>(&bytes).unwrap()
    };
    let serving = async {
        let Ok(Accepted::Enrolment(mut stream)) = accept(&good, there, WITHIN).await else { panic!() };
        serve_tls(&cluster.authority, &mut stream).await
    };
    let (answered, served) = tokio::join!(replaying, serving);
    assert!(served.is_err());
    let why = refusal(answered).to_string();
    assert!(why.contains("proof") && why.contains("wrong"), "{why}");
}

#[test]
fn what_is_asked_for_wrongly_is_refused_by_name_and_uses_nothing_up() {
    let cluster = Cluster::new("refusals");
    let now = Utc::now();
    let token = cluster.token(Some(1));
    let ask = |request: &EnrolmentRequest, now: Utc| answer(&cluster.authority, request, &EXPORTER, now);
    let good = question(&token, "n0");

    let other = EnrolmentRequest { protocol: 7, ..good.clone() };
    assert_eq!(refusal(ask(&other, now)), EnrolmentRefusal::Protocol { theirs: 7, ours: ENROLMENT });
    let other = EnrolmentRequest { token: [9; 8], ..good.clone() };
    assert!(refusal(ask(&other, now)).to_string().contains("knows no join token 0909"));
    let other = EnrolmentRequest { name: "n1".into(), ..good.clone() };
    assert!(refusal(ask(&other, now)).to_string().contains("proof"));
    let other = EnrolmentRequest { request: key_request(), ..good.clone() };
    assert!(refusal(ask(&other, now)).to_string().contains("proof"));
    assert!(matches!(refusal(ask(&question(&token, "../n0"), now)), EnrolmentRefusal::Name(_)));
    let late = now.plus(2 * HOUR);
    let why = refusal(ask(&good, late)).to_string();
    assert!(why.contains("expired") && why.contains(&late.to_string()), "{why}");
    let forgotten = refusal(ask(&good, now.plus(30 * HOUR))).to_string();
    assert!(forgotten.contains("knows no join token"), "{forgotten}");
    // That looked at the ledger thirty hours later, when the token was forgotten for good.
    let token = cluster.token(Some(1));

    // With a good proof, but not a request, or one that somebody changed, or a key of another kind.
    let asking = |request: Vec<u8>| {
        let proof = token.prove(&EXPORTER, "n0", &request);
        let question =
            EnrolmentRequest { protocol: ENROLMENT, token: token.id, name: "n0".into(), request, proof };
        refusal(ask(&question, now))
    };
    let mut changed = key_request();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::CertificateParams::default().serialize_request(&p384).unwrap().der().to_vec();
    for request in [vec![], b"rubbish".to_vec(), changed, p384] {
        assert!(matches!(asking(request), EnrolmentRefusal::Request(_)));
    }

    let good = question(&token, "n0");
    assert!(matches!(ask(&good, now), EnrolmentAnswer::Enrolled { .. }), "none of these used it up");
    let why = refusal(ask(&question(&token, "n1"), now)).to_string();
    assert!(why.contains("used as often"), "{why}");
}

#[test]
fn a_request_decides_nothing_but_the_key() {
    let cluster = Cluster::new("greedy");
    let token = cluster.token(None);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(4000, 1, 1);
    let uri = format!("phalanx://{}/coordinator/c0", cluster.authority.cluster());
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    let proof = token.prove(&EXPORTER, "n0", &request);
    let question =
        EnrolmentRequest { protocol: ENROLMENT, token: token.id, name: "n0".into(), request, proof };
    let EnrolmentAnswer::Enrolled { chain } = answer(&cluster.authority, &question, &EXPORTER, Utc::now())
    else {
        panic!("a greedy request is answered with what it may have");
    };
    let facts = Facts::of(&chain[0].clone().into()).unwrap();
    assert!(!facts.is_authority);
    assert_eq!(facts.peer.unwrap().to_string(), "node n0");
    assert!(facts.not_after.since(Utc::now()) <= 24 * HOUR);
}

#[test]
fn a_token_is_blocked_after_too_many_wrong_proofs_and_no_other_is() {
    let cluster = Cluster::new("guesses");
    let (token, other, now) = (cluster.token(None), cluster.token(None), Utc::now());
    let good = question(&token, "n0");
    let wrong = EnrolmentRequest { proof: [0; 32], ..good.clone() };
    for _ in 0..16 {
        let why = refusal(answer(&cluster.authority, &wrong, &EXPORTER, now)).to_string();
        assert!(why.contains("proof"), "{why}");
    }
    let why = refusal(answer(&cluster.authority, &good, &EXPORTER, now)).to_string();
    assert!(why.contains("blocked"), "{why}");
    let answered = answer(&cluster.authority, &question(&other, "n0"), &EXPORTER, now);
    assert!(matches!(answered, EnrolmentAnswer::Enrolled { .. }));
}

#[test]
fn a_name_is_replaced_only_by_a_token_that_may() {
    let cluster = Cluster::new("replace");
    let (token, now) = (cluster.token(None), Utc::now());
    let may = cluster.authority.new_token(NewToken { life: HOUR, uses: None, replace: true }, now).unwrap();
    let ask = |question: &EnrolmentRequest, now: Utc| answer(&cluster.authority, question, &EXPORTER, now);
    let first = question(&token, "n0");
    assert!(matches!(ask(&first, now), EnrolmentAnswer::Enrolled { .. }));
    assert!(matches!(ask(&first, now), EnrolmentAnswer::Enrolled { .. }), "the same key may ask again");
    let why = refusal(ask(&question(&token, "n0"), now));
    assert!(matches!(why, EnrolmentRefusal::NameHeld { .. }), "{why}");
    assert!(matches!(ask(&question(&may, "n0"), now), EnrolmentAnswer::Enrolled { .. }));
    assert!(matches!(refusal(ask(&first, now)), EnrolmentRefusal::NameHeld { .. }), "it was replaced");
    // A coordinator of the same name is somebody else.
    let what = Issuance { name: "n0", role: Role::Coordinator, life: HOUR, replace: false };
    cluster.authority.issue(what, now).unwrap();
}

/// Whoever reads the ledger cannot print the token again.
#[test]
fn the_ledger_holds_no_secret_of_a_token() {
    let cluster = Cluster::new("secret");
    let text = cluster.token(None).reveal();
    let bytes = data_encoding::BASE64URL_NOPAD.decode(&text.as_bytes()[5..]).unwrap();
    let (id, secret) = (&bytes[33..41], &bytes[41..73]);
    let ledger = std::fs::read_to_string(cluster.scratch.0.join("authority/ledger")).unwrap();
    assert!(ledger.contains(&data_encoding::HEXLOWER.encode(id)));
    assert!(!ledger.contains(&data_encoding::HEXLOWER.encode(secret)));
    assert!(!ledger.contains(&text[5..]));
}

/// As many as may come in, however many come at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uses_are_counted_when_all_come_at_once() {
    let cluster = Cluster::new("uses");
    let address = cluster.listening().await;
    let token = cluster.token(Some(3));
    let joining = (0..12).map(|index| {
        let (token, address) = (token.clone(), address.clone());
        let folder = cluster.scratch.0.join(format!("n{index}"));
        tokio::spawn(async move { enrol(&token, &address, &format!("n{index}"), &folder).await })
    });
    let joining: Vec<_> = joining.collect();
    let mut enrolled = 0;
    for joined in joining {
        match joined.await.unwrap() {
            Ok(_) => enrolled += 1,
            Err(why) => assert!(why.to_string().contains("used as often"), "{why}"),
        }
    }
    assert_eq!(enrolled, 3);
}

/// Serves what comes over a channel, without TLS: only the messages matter here.
async fn served(cluster: &Cluster, bytes: &[u8], then_end: bool) -> Result<(), EnrolError> {
    let (mut here, mut there): (DuplexStream, DuplexStream) = duplex(1 << 16);
    there.write_all(bytes).await.unwrap();
    let end = then_end.then(|| there.shutdown());
    if let Some(end) = end {
        end.await.unwrap();
    }
    serve(&cluster.authority, &mut here, &EXPORTER).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_question_that_stops_is_given_up() {
    let cluster = Cluster::new("slow");
    let token = cluster.token(None);
    let whole = message(&question(&token, "n0"));
    for length in 0..whole.len() {
        let why = served(&cluster, &whole[..length], true).await.unwrap_err();
        assert!(matches!(why, EnrolError::Cut(_)), "after {length} bytes: {why}");
        if length % 16 == 0 {
            let began = tokio::time::Instant::now();
            let why = served(&cluster, &whole[..length], false).await.unwrap_err();
            assert!(matches!(why, EnrolError::Slow(REQUEST_TIME_MAX)), "after {length} bytes: {why}");
            assert_eq!(began.elapsed().as_secs(), REQUEST_TIME_MAX.as_secs());
        }
    }
    served(&cluster, &whole, false).await.expect("the whole one is answered");
    // A byte now and then does not make the time longer. As everywhere in this test, time passes by itself only when
    // nobody has anything to do.
    let (mut here, mut there) = duplex(1 << 16);
    let began = tokio::time::Instant::now();
    let dripping = async {
        for byte in &whole {
            if there.write_u8(*byte).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        result = serve(&cluster.authority, &mut here, &EXPORTER) => {
            assert!(matches!(result, Err(EnrolError::Slow(_))), "{result:?}");
        }
        () = dripping => panic!("served a drip of {} bytes", whole.len()),
    }
    assert_eq!(began.elapsed().as_secs(), REQUEST_TIME_MAX.as_secs());
}

#[tokio::test]
async fn lengths_that_lie_are_refused() {
    let cluster = Cluster::new("lengths");
    let whole = message(&question(&cluster.token(None), "n0"));
    for length in [16_385, u32::MAX] {
        let lie = [&length.to_le_bytes()[..], &whole[4..]].concat();
        let why = served(&cluster, &lie, false).await.unwrap_err();
        assert!(matches!(why, EnrolError::TooLong(said) if said == u64::from(length)), "{why}");
    }
    let mut short = whole.clone();
    short[..4].copy_from_slice(&(whole.len() as u32 - 5).to_le_bytes());
    assert!(matches!(served(&cluster, &short, false).await, Err(EnrolError::Message(_))));
    let mut long = whole.clone();
    long[..4].copy_from_slice(&(whole.len() as u32 - 3).to_le_bytes());
    long.push(0);
    assert!(matches!(served(&cluster, &long, false).await, Err(EnrolError::Message(_))));
    // The length of the name, inside: protocol and token come before it.
    let mut inside = whole.clone();
    inside[4 + 12..4 + 20].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(served(&cluster, &inside, false).await, Err(EnrolError::Message(_))));
}

/// Random bytes, and a good question with random bytes in it: no panic, and nobody is let in.
#[test]
fn no_noise_is_enrolled() {
    let cluster = Cluster::new("noise");
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let noise = (prop::collection::vec(any::<u8>(), 0..600), any::<prop::sample::Index>());
    let tried = TestRunner::new(config).run(&noise, |(noise, at)| {
        // A token of its own, so that none is blocked after some wrong proofs.
        let good = encode(&question(&cluster.token(None), "n0")).unwrap();
        let mut damaged = good.clone();
        let from = at.index(damaged.len());
        let count = noise.len().min(damaged.len() - from);
        damaged[from..from + count].copy_from_slice(&noise[..count]);
        for bytes in [&noise, &damaged] {
            if *bytes == good {
                continue;
            }
            if let Ok(request) = decode::<EnrolmentRequest>(bytes) {
                let answered = answer(&cluster.authority, &request, &EXPORTER, Utc::now());
                prop_assert!(matches!(answered, EnrolmentAnswer::Refused(_)));
            }
            let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
            prop_assert!(text.parse::<Token>().is_err());
            let prefixed = ["phx1.", &text].concat();
            prop_assert!(prefixed.parse::<Token>().is_err());
            prop_assert!(Facts::of(&bytes.as_slice().into()).is_err());
        }
        Ok(())
    });
    tried.unwrap();
}

fn endpoint(cluster: ClusterId, role: Role, name: &str) -> Endpoint {
    let local = Local {
        peer: PeerName { cluster, role, name: name.into() },
        program: "enrolment".into(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: false,
    };
    Endpoint::new(local, Limits::default(), Pool::new(64 << 20)).unwrap()
}

/// A coordinator that takes links and enrols at the same port, over TCP or over QUIC.
async fn coordinator(cluster: &Cluster, quic: bool) -> Listener {
    let (tls, pool) = (cluster.tls("c0", Role::Coordinator), Pool::new(64 << 20));
    let enrolment = cluster.authority.enrolment();
    let acceptor: Box<dyn Acceptor> = if quic {
        Box::new(QuicCarrier::new(tls, pool).listen("127.0.0.1:0").await.unwrap().with_enrol(enrolment))
    } else {
        let carrier = TcpCarrier::new(Protection::Tls(tls), pool);
        Box::new(carrier.listen("127.0.0.1:0").await.unwrap().with_enrol(enrolment))
    };
    endpoint(cluster.authority.cluster(), Role::Coordinator, "c0").listen(acceptor)
}

fn carrier(tls: Tls, quic: bool) -> Box<dyn Carrier> {
    let pool = Pool::new(64 << 20);
    if quic {
        Box::new(QuicCarrier::new(tls, pool))
    } else {
        Box::new(TcpCarrier::new(Protection::Tls(tls), pool))
    }
}

/// Both ends of a link to that listener, the node's first.
async fn link(listener: &mut Listener, tls: &Tls, quic: bool) -> (Opened, Opened) {
    let (carrier, address) = (carrier(tls.clone(), quic), listener.address().to_owned());
    let node = endpoint(tls.peer().cluster, Role::Node, &tls.peer().name);
    let dialled = async { node.dial(&*carrier, &address).await.unwrap() };
    tokio::join!(dialled, listener.next_link())
}

/// One port for everything: a token becomes a certificate there, and the certificate a link, while other links
/// go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_enrols_where_links_arrive() {
    for quic in [false, true] {
        let cluster = Cluster::new(if quic { "port-quic" } else { "port-tcp" });
        let mut listener = coordinator(&cluster, quic).await;
        let address = listener.address().to_owned();
        let (first, _first) = link(&mut listener, &cluster.tls("n0", Role::Node), quic).await;

        let (token, folder) = (cluster.token(None), cluster.scratch.0.join("n1"));
        let (enrolled, probed) =
            tokio::join!(enrol(&token, &address, "n1", &folder), first.peer.probe(1_000));
        let (credentials, _) = (enrolled.unwrap(), probed.unwrap());
        let (ours, theirs) = link(&mut listener, &Tls::new(credentials).unwrap(), quic).await;
        assert_eq!(theirs.peer.hello().peer.name, "n1");
        ours.peer.probe(1_000).await.unwrap();

        // A token that is none of this authority's, one that has expired there, a name that is taken.
        let other = Cluster::new(if quic { "port-quic-other" } else { "port-tcp-other" });
        let why = enrol(&other.token(None), &address, "n2", &cluster.scratch.0.join("n2")).await.unwrap_err();
        assert!(why.to_string().contains(&address), "{why}");
        let mut wrong = cluster.token(None);
        wrong.id = [9; 8];
        let why = enrol(&wrong, &address, "n2", &cluster.scratch.0.join("n2")).await.unwrap_err();
        assert!(why.to_string().contains("knows no join token 0909"), "{why}");
        let why = enrol(&token, &address, "n0", &cluster.scratch.0.join("n2")).await.unwrap_err();
        assert!(matches!(why, EnrolError::Refused(EnrolmentRefusal::NameHeld { .. })), "{why}");
        assert!(!cluster.scratch.0.join("n2").exists(), "nothing half-written");
        first.peer.probe(1_000).await.unwrap();
    }
}

/// Answers what the nodes of a link ask for.
async fn answering(authority: Authority, mut opened: Opened) {
    while let Some(notice) = opened.notices.next().await {
        if let Notice::RenewalAsked { request } = notice {
            renewal::answer(&authority, &opened.peer, request).await;
        }
    }
}

/// Waits for the moment in which the certificate of a node has changed.
async fn until_renewed(tls: &Tls, old: Utc) -> Utc {
    let renewed = async {
        loop {
            let end = tls.credentials().facts().not_after;
            if end != old {
                return end;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, renewed).await.expect("it is renewed")
}

/// A certificate in its last third: the node gets another over its link, keeps it on the disk and shows it on the
/// next connection. Without a link nothing happens, and a link that ends before it answers changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_renews_its_certificate_over_its_link() {
    let cluster = Cluster::new("renewal");
    let mut listener = coordinator(&cluster, false).await;
    let folder = cluster.scratch.0.join("n0");
    // Of a minute, and valid still; the loop's clock stands where it is due.
    let (life, then) = (Duration::from_secs(60), Utc::now().minus(Duration::from_secs(10)));
    let what = Issuance { name: "n0", role: Role::Node, life, replace: false };
    let old = cluster.authority.issue_into(&folder, what, then).unwrap();
    let (old_end, due) = (old.facts().not_after, old.renew_at());
    let tls = Tls::new(old).unwrap();

    let (links, receiver) = watch::channel::<Option<Peer>>(None);
    let clock = move || due;
    let keeping = tokio::spawn(renewal::keep(tls.clone(), Some(folder.clone()), receiver, clock));
    // Over a link that ends before it answers.
    let (ours, theirs) = link(&mut listener, &tls, false).await;
    links.send_replace(Some(ours.peer.clone()));
    let mut notices = theirs.notices;
    assert!(matches!(notices.next().await, Some(Notice::RenewalAsked { .. })));
    drop((theirs.peer, theirs.data, theirs.weights, notices));
    ours.peer.closed().await;
    assert_eq!(tls.credentials().facts().not_after, old_end);

    // As after a restart, so that the test need not wait for the next try: that is the schedule's own test.
    keeping.abort();
    let (ours, theirs) = link(&mut listener, &tls, false).await;
    let answering = tokio::spawn(answering(cluster.authority.clone(), theirs));
    links.send_replace(Some(ours.peer.clone()));
    let keeping = tokio::spawn(renewal::keep(tls.clone(), Some(folder.clone()), links.subscribe(), clock));
    let end = until_renewed(&tls, old_end).await;
    assert!(end.since(Utc::now()) > 20 * HOUR, "{end}");
    let (again, _theirs) = link(&mut listener, &tls, false).await;
    again.peer.probe(10).await.unwrap();
    ours.peer.probe(10).await.expect("the link that stood goes on");
    // The loop ends with whoever gives it links; by then the disk has it.
    drop(links);
    tokio::time::timeout(WITHIN, keeping).await.expect("nobody can send another link").unwrap();
    assert_eq!(Credentials::load(&folder).unwrap().facts().not_after, end);
    drop((ours, again));
    answering.await.unwrap();
}

/// A name whose key was replaced is not renewed; a link without a certificate proves no name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_renewed_hears_why() {
    let cluster = Cluster::new("not-renewed");
    let mut listener = coordinator(&cluster, false).await;
    let tls = cluster.tls("n0", Role::Node);
    let (ours, theirs) = link(&mut listener, &tls, false).await;
    let answers = tokio::spawn(answering(cluster.authority.clone(), theirs));
    renewal::ask(&tls.credentials(), &ours.peer).await.expect("it has its name still");
    let _replaced = cluster.tls("n0", Role::Node);
    let why = renewal::ask(&tls.credentials(), &ours.peer).await.unwrap_err().to_string();
    assert!(why.contains("n0") && why.contains("another key"), "{why}");
    drop(ours);
    answers.await.unwrap();

    // The same name, said and not proved.
    let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(1 << 20));
    let acceptor = carrier.listen("127.0.0.1:0").await.unwrap();
    let mut plain = endpoint(cluster.authority.cluster(), Role::Coordinator, "c0").listen(Box::new(acceptor));
    let (node, address) =
        (endpoint(cluster.authority.cluster(), Role::Node, "n0"), plain.address().to_owned());
    let (ours, theirs) = tokio::join!(node.dial(&carrier, &address), plain.next_link());
    let (ours, answers) = (ours.unwrap(), tokio::spawn(answering(cluster.authority.clone(), theirs)));
    let why = renewal::ask(&tls.credentials(), &ours.peer).await.unwrap_err().to_string();
    assert!(why.contains("no certificate"), "{why}");
    drop(ours);
    answers.await.unwrap();
}
