//! A peer in a process of its own, so that it can be killed.
//!
//! The process is this test binary again, told by an environment variable to be the peer.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::peer::{Endpoint, Opened, SendError};
use phalanx_transport::security::Role;
use phalanx_transport::wire::{Header, Kind};

use crate::AnyPlace;
use crate::cases::{DEATH_LATEST, DEATH_MAX, DEATHS};
use crate::places::{self, local, small_limits};

/// What the peer is to dial, and how: carrier, address, and a folder of credentials.
const PEER: &str = "PHALANX_CONTRACT_PEER";

/// Killed when the test ends, however it ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other process: it returns dispatches until it is killed, but for the last one, which it keeps.
#[test]
fn peer_process() {
    let Ok(told) = std::env::var(PEER) else { return };
    let [carrier, address, folder] = told.split('|').collect::<Vec<_>>()[..] else { panic!("{told}") };
    places::run(async {
        let place = places::of_child(carrier, std::path::Path::new(folder));
        let pool = Pool::new(256 << 20);
        let endpoint = Endpoint::new(local(&*place, Role::Node), small_limits(), pool.clone()).unwrap();
        // The weights lane is kept and not read, so that it fills up.
        let Opened { peer, mut data, weights: _unread, .. } =
            endpoint.dial(place.carrier(), address).await.unwrap();
        while let Ok(Some(frame)) = data.receive().await {
            if frame.header.dispatch == u64::from(u32::MAX) {
                // Kept: its return is what the other end waits for when this process is killed.
                std::mem::forget(frame);
                continue;
            }
            let header = Header { kind: Kind::Return, payload_crc: 0, ..frame.header };
            let back = pool.copy_of(&frame.payload).unwrap();
            peer.send(Frame::new(header, back)).await.unwrap();
        }
    });
}

/// The process is killed in the middle of work; whoever waits for it hears so at once, by its name.
pub(crate) async fn a_killed_process_is_noticed_at_once(place: &AnyPlace) {
    let pool = Pool::new(256 << 20);
    let endpoint = Endpoint::new(local(place, Role::Coordinator), small_limits(), pool.clone()).unwrap();
    let mut listener = endpoint.listen(place.accept().await);
    let (carrier, folder) = place.child();
    let mut quickest = DEATH_LATEST;
    for _ in 0..DEATHS {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::peer_process", "--nocapture"])
            .env(PEER, format!("{carrier}|{}|{}", listener.address(), folder.display()))
            .stdout(Stdio::null())
            .spawn();
        let mut child = Killed(child.unwrap());
        let Opened { peer, mut data, mut weights, .. } = listener.next_link().await;
        for id in 0..50 {
            peer.send(dispatch(&pool, id)).await.unwrap();
            assert_eq!(data.receive().await.unwrap().unwrap().header.dispatch, id);
        }
        // One that never returns, and a lane that nobody reads there, full.
        peer.send(dispatch(&pool, u32::MAX.into())).await.unwrap();
        let full = loop {
            let header = Header::of_bytes(Kind::Weights, 0, 1 << 20);
            match peer.try_send(Frame::new(header, pool.take(1 << 20).unwrap())) {
                Ok(()) => {}
                Err(SendError::NoCredit { frame, .. }) => break frame,
                Err(other) => panic!("{other}"),
            }
        };
        let kill = async {
            tokio::task::yield_now().await;
            child.0.kill().unwrap();
            Instant::now()
        };
        let (data, weights, sent, drained, killed) = tokio::join!(
            async { (data.receive().await.unwrap_err().to_string(), Instant::now()) },
            async { (weights.receive().await.unwrap_err().to_string(), Instant::now()) },
            async { (peer.send(full).await.unwrap_err().to_string(), Instant::now()) },
            async { (peer.drain().await.to_string(), Instant::now()) },
            kill
        );
        for (what, (why, at)) in [("data", data), ("weights", weights), ("send", sent), ("drain", drained)] {
            assert!(why.contains("node-3"), "{what}: {why}");
            let took = at.saturating_duration_since(killed);
            assert!(took < DEATH_LATEST, "{what} was told after {took:?}");
            if what == "drain" {
                quickest = quickest.min(took);
            }
        }
        let late = peer.try_send(dispatch(&pool, 7));
        assert!(matches!(late, Err(SendError::Ended { .. })), "{late:?}");
    }
    assert!(quickest < DEATH_MAX, "the quickest death was told after {quickest:?}");
}

fn dispatch(pool: &Pool, id: u64) -> Frame {
    let mut header = Header::of_bytes(Kind::Dispatch, id, 14_336);
    header.remaining_us = 60_000_000;
    Frame::new(header, pool.take(14_336).unwrap())
}
