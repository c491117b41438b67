//! How a coordinator ends: first it takes no more requests, then it ends its links in words.

use std::time::Instant;

use actix::{Handler, Message, ResponseFuture};
use tokio::time::{Duration, timeout};
use transport::peer::Peer;
use transport::wire::control::CloseReason;

use super::actor::ControlActor;
use super::events::Kind;

/// Nodes that do not read what they are told are not waited for longer.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The program is about to end: requests are refused from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave;

/// Ends all links, and tells nodes that it is meant so.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Close;

impl Handler<Leave> for ControlActor {
    type Result = ();

    fn handle(&mut self, _: Leave, _: &mut Self::Context) {
        self.is_leaving = true;
        self.events.handle(Kind::Stopping, None, "this coordinator is about to end", Instant::now());
    }
}

impl Handler<Close> for ControlActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Close, _: &mut Self::Context) -> Self::Result {
        let peers: Vec<Peer> = self.peers().cloned().collect();
        Box::pin(async move {
            peers.iter().for_each(|peer| peer.close(CloseReason::Wanted));
            let all = async {
                for peer in &peers {
                    peer.closed().await;
                }
            };
            if timeout(CLOSE_MAX, all).await.is_err() {
                tracing::warn!("some nodes were not told that this coordinator ends");
            }
        })
    }
}
