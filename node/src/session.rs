//! Keeps a link with one coordinator: dials, hears, and dials again.
//!
//! A shell: what is heard goes to the agent as messages. A coordinator that is away is dialled again and again, at most
//! 250 ms apart, so that a cluster is whole again as soon as it is back; the log says why once for each cause.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Addr, Message};
use tokio::sync::watch;
use transport::link::Ended;
use transport::peer::{Endpoint, Inlet, Notice, Opened, Peer};
use transport::wire::cluster::{Cluster, ToNode};
use transport::wire::control::{CloseReason, words};

use crate::agent::Agent;
use crate::batcher::LinkId;
use crate::fetch::Asks;
use crate::post::post;
use crate::receive::{Floor, Receiver};
use crate::settings::CoordinatorAddress;

/// After the first failure; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// At most so long from one try to the next.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// A link stands; nobody has joined yet.
pub(crate) struct Linked {
    pub(crate) link: LinkId,
    pub(crate) peer: Peer,
}

impl Message for Linked {
    type Result = ();
}

/// The coordinator said something.
pub(crate) struct Told {
    pub(crate) link: LinkId,
    pub(crate) message: ToNode,
}

impl Message for Told {
    type Result = ();
}

/// A link ended.
pub(crate) struct Unlinked {
    pub(crate) link: LinkId,
}

impl Message for Unlinked {
    type Result = ();
}

/// A coordinator is not dialled any more, and its link has ended.
pub(crate) struct Over;

impl Message for Over {
    type Result = ();
}

/// What all sessions of a node share.
pub(crate) struct Sessions {
    pub(crate) endpoint: Endpoint,
    pub(crate) agent: Addr<Agent>,
    pub(crate) floor: Rc<Floor>,
    pub(crate) asks: Arc<Asks>,
    /// True: the link that stands is the last.
    pub(crate) is_last: watch::Receiver<bool>,
}

/// Numbers links: never the same twice in a process.
fn next_link() -> LinkId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    LinkId(NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Sessions {
    /// Until this is to be the last link, and it has ended.
    pub(crate) async fn keep(self: Rc<Self>, coordinator: CoordinatorAddress) {
        let mut is_last = self.is_last.clone();
        let mut pause = PAUSE_MIN;
        let mut said = String::new();
        while !*is_last.borrow_and_update() {
            let dialled = tokio::select! {
                dialled = self.endpoint.dial(&*coordinator.carrier, &coordinator.address) => dialled,
                _ = is_last.changed() => break,
            };
            let why = match dialled {
                Err(why) => why.to_string(),
                Ok(opened) => {
                    let Heard { why, was_joined } = self.hear(opened).await;
                    if was_joined {
                        pause = PAUSE_MIN;
                        said.clear();
                    }
                    why
                }
            };
            if why != said && !*is_last.borrow() {
                let address = &coordinator.address;
                tracing::warn!(%address, %why, "no coordinator there, dialling again");
                said = why;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = PAUSE_MAX.min(pause * 2),
                _ = is_last.changed() => {}
            }
        }
        post(&self.agent, Over);
    }

    /// All that happens on one link.
    async fn hear(&self, opened: Opened) -> Heard {
        let Opened { peer, data, weights, mut notices } = opened;
        let link = next_link();
        let receiver = Receiver::new(Rc::clone(&self.floor), link, peer.clone());
        let receiving = actix::spawn(receiver.run(data));
        self.asks.handle_link(link, peer.clone());
        actix::spawn(hand_on(weights, link, Arc::clone(&self.asks)));
        post(&self.agent, Linked { link, peer: peer.clone() });
        let (mut was_joined, mut not_joined) = (false, None);
        while let Some(notice) = notices.next().await {
            match notice {
                Notice::Told(Cluster::ToNode(message)) => {
                    match &message {
                        ToNode::Joined(_) => was_joined = true,
                        ToNode::NotJoined { why } => not_joined = Some(why.clone()),
                        ToNode::Hold(_) | ToNode::NotServed { .. } => {}
                    }
                    // It is waited for, so that the control lane's credits bound what is unheard. An error: the node has ended.
                    let _ = self.agent.send(Told { link, message }).await;
                }
                Notice::Told(Cluster::ToCoordinator(_)) => {
                    peer.close(CloseReason::Broken(words("a node was told what nodes say")));
                }
                Notice::Late { silent } => {
                    tracing::warn!(?peer, ?silent, "the coordinator's heartbeats are late");
                }
                Notice::Awake => tracing::info!(?peer, "the coordinator's heartbeats are back"),
                Notice::DrainAsked => tracing::info!(?peer, "the coordinator drains the link"),
                // A node dispatches nothing and gives nobody certificates.
                Notice::Expired { .. } | Notice::RenewalAsked { .. } => {}
            }
        }
        let ended: Ended = peer.closed().await;
        self.asks.handle_link_ended(link);
        // What it still has to receive is received: groups are counted by the link until its end.
        let _ = receiving.await;
        post(&self.agent, Unlinked { link });
        tracing::info!(?peer, %ended, "link ended");
        let why = not_joined.map_or_else(|| ended.to_string(), |why| format!("not joined: {why}"));
        Heard { why, was_joined }
    }
}

/// Gives what comes over a weights lane to whoever asked for it.
async fn hand_on(mut weights: Inlet, link: LinkId, asks: Arc<Asks>) {
    while let Ok(Some(frame)) = weights.receive().await {
        asks.handle_frame(link, frame);
    }
}

struct Heard {
    why: String,
    was_joined: bool,
}
