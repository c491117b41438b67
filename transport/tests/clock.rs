//! A machine whose clock is wrong: what stands goes on, what begins is judged by that clock, and a clock that is set right
//! is all it takes. In a process of its own, since the clock is the whole process's.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

use std::path::Path;
use std::time::Duration;

use phalanx_transport::security::{
    Accepted, Authority, CertificateFault, HandshakeError, Issuance, Role, Tls, Utc, accept, connect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const WITHIN: Duration = Duration::from_secs(20);
const DAY: i64 = 86_400;

async fn linked(
    node: &Tls,
    coordinator: &Tls,
) -> Result<(impl AsyncWriteExt + Unpin, Accepted<DuplexStream>), HandshakeError> {
    let (here, there) = duplex(1 << 16);
    let (dialled, accepted) = tokio::join!(connect(node, here, WITHIN), accept(coordinator, there, WITHIN));
    Ok((dialled?.0, accepted?))
}

#[tokio::test]
async fn certificates_are_judged_by_the_clock_that_messages_show() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}", std::process::id()));
    let start = Utc::now();
    let authority = Authority::create(&folder, start).unwrap();
    let tls = |name, role| {
        let life = Duration::from_secs(DAY as u64);
        Tls::new(authority.issue(Issuance { name, role, life, replace: false }, start).unwrap()).unwrap()
    };
    let (node, coordinator) = (tls("n0", Role::Node), tls("c0", Role::Coordinator));
    std::fs::remove_dir_all(&folder).unwrap();
    let (mut client, stands) = linked(&node, &coordinator).await.unwrap();
    let Accepted::Link { stream: mut server, .. } = stands else { panic!("a link was dialled") };

    for (days, is_late) in [(2, true), (-2, false)] {
        Utc::set_ahead(days * DAY);
        assert!((Utc::now().0 - start.0 - days * DAY).abs() < 60);
        // Nobody compares clocks on a link that stands.
        client.write_u8(7).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), 7);
        let Err(HandshakeError::Theirs { fault, .. }) = linked(&node, &coordinator).await else {
            panic!("a certificate of another day was taken");
        };
        let says = match fault {
            CertificateFault::Expired { now, .. } => is_late.then_some(now),
            CertificateFault::NotYetValid { now, .. } => (!is_late).then_some(now),
            _ => None,
        };
        assert!(says.is_some_and(|says| (says.0 - Utc::now().0).abs() < 60), "{fault:?}");
    }
    // Half an hour is no trouble.
    for seconds in [1_800, -1_800, 0] {
        Utc::set_ahead(seconds);
        assert!(linked(&node, &coordinator).await.is_ok(), "{seconds} s ahead");
    }
}
