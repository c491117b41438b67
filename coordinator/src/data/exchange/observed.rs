//! What is seen of actors and links: cheap to read, and nothing is computed for it that is not needed anyway.
//!
//! Pure.

use std::time::Duration;

use transport::wire::cluster::{ActorId, Epoch};

use super::counters::ExchangeCounters;
use super::events::Exchange;
use super::links::Link;
use super::router::{Actor, Pause};
use crate::data::ids::LinkId;
use crate::placement::{NodeId, Seat};

/// An actor, as its rows show it. Totals count from when it was first placed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActorSeen {
    /// Which.
    pub actor: ActorId,
    /// Where.
    pub seat: Seat,
    /// Rows that are out to it.
    pub outstanding: u32,
    /// Rows sent to it.
    pub rows_sent: u64,
    /// Rows that came back.
    pub rows_returned: u64,
    /// Dispatches that came back.
    pub dispatches_returned: u64,
    /// Dispatches that it refused.
    pub refused: u64,
    /// Time from sending to return, summed over dispatches.
    pub service_sum: Duration,
    /// The same, recently: each return moves it by an eighth.
    pub service_recent: Duration,
    /// It gets nothing now: it was busy or late, does not serve, or has not answered in time.
    pub is_paused: bool,
}

/// A link, as what went over it shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSeen {
    /// Which.
    pub link: LinkId,
    /// To whom.
    pub node: NodeId,
    /// Frames sent.
    pub frames: u64,
    /// Bytes sent: headers, tables and rows.
    pub bytes_out: u64,
    /// Bytes that came back, as if every group had come alone.
    pub bytes_back: u64,
    /// Room taken now, of `LinkRoom::out_bytes`.
    pub out_used: u64,
    /// Room taken now, of `LinkRoom::back_bytes`.
    pub back_used: u64,
    /// Dispatches that are out.
    pub dispatches: u32,
    /// Dispatches that came back with rows.
    pub returned: u64,
    /// Time from sending to return, summed over those.
    pub service_sum: Duration,
}

impl Exchange {
    /// Every actor of the placement.
    pub fn actors(&self) -> impl Iterator<Item = ActorSeen> + '_ {
        self.router.replicas.iter().map(|at| seen(&self.router.actors[*at as usize]))
    }

    /// The actors of one expert.
    pub fn actors_of(&self, layer: u32, expert: u32) -> impl Iterator<Item = ActorSeen> + '_ {
        let experts = self.router.layers.get(layer as usize);
        let first = experts.and_then(|experts| experts.get(expert as usize)).copied();
        let queues =
            first.filter(|first| *first != super::NONE).map(|first| first..first + self.router.shards);
        let actors = queues.into_iter().flatten().flat_map(|queue| self.router.actors_of(queue));
        actors.map(|at| seen(&self.router.actors[*at as usize]))
    }

    /// Every link that stands.
    pub fn links(&self) -> impl Iterator<Item = LinkSeen> + '_ {
        self.router.links.iter().filter(|link| link.is_open).map(|link| {
            let Link { id, node, frames, bytes_out, bytes_back, out_used, back_used, open, returned, .. } =
                *link;
            LinkSeen {
                link: id,
                node,
                frames,
                bytes_out,
                bytes_back,
                out_used,
                back_used,
                dispatches: open,
                returned,
                service_sum: Duration::from_nanos(link.service_ns_sum),
            }
        })
    }

    /// What happened since the beginning.
    pub fn counters(&self) -> ExchangeCounters {
        self.counters
    }

    /// Dispatches that are out.
    pub fn dispatches_open(&self) -> u32 {
        self.ledger.open_count()
    }

    /// The oldest placement under which a dispatch is out: what later ones took away may be dropped when it is past.
    pub fn epoch_oldest(&self) -> Option<Epoch> {
        self.epochs.oldest_open()
    }
}

fn seen(actor: &Actor) -> ActorSeen {
    ActorSeen {
        actor: actor.id,
        seat: Seat { node: actor.node, device: actor.device },
        outstanding: actor.outstanding,
        rows_sent: actor.rows_returned + actor.rows_lost + u64::from(actor.outstanding),
        rows_returned: actor.rows_returned,
        dispatches_returned: actor.dispatches_returned,
        refused: u64::from(actor.refused),
        service_sum: Duration::from_nanos(actor.service_ns_sum),
        service_recent: Duration::from_nanos(actor.service_ns_recent),
        is_paused: actor.pause != Pause::No || actor.overdue > 0,
    }
}
