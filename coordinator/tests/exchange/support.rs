//! A small cluster: nodes that hold what they are told to, and frames written down as text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_coordinator::data::exchange::{
    Exchange, ExchangeSettings, Lack, LeftOut, LinkRoom, NOWHERE, Outgoing, Returned, Stranded,
};
use phalanx_coordinator::data::ids::{LinkId, RowId};
use phalanx_coordinator::placement::{NodeId, Placement, Replica, Seat};
use transport::wire::cluster::Epoch;
use transport::wire::groups::Reason;

pub(crate) const MS: Duration = Duration::from_millis(1);
/// Of a row.
pub(crate) const ROW_BYTES: u64 = 1024;
/// Far more than any test uses.
pub(crate) const WIDE: LinkRoom =
    LinkRoom { out_bytes: 1 << 30, back_bytes: 1 << 30, dispatches: 10_000, payload_bytes: 1 << 24 };

/// `of(layer, [[nodes that hold expert 0], [expert 1], ..])`, one shard, one epoch after the other.
pub(crate) fn placement(number: u64, layers: &[(u32, &[&[u32]])]) -> Arc<Placement> {
    sharded(number, 1, layers)
}

/// The same; shard `s` of a replica on node `n` sits on node `n + s`.
pub(crate) fn sharded(number: u64, shards: u32, layers: &[(u32, &[&[u32]])]) -> Arc<Placement> {
    let replica = |number: usize, node: u32| Replica {
        number: number as u8,
        seats: (0..shards).map(|shard| Seat { node: NodeId(node + shard), device: 0 }).collect(),
    };
    let layers = layers.iter().map(|(layer, experts)| {
        let experts = experts
            .iter()
            .map(|nodes| nodes.iter().enumerate().map(|(number, node)| replica(number, *node)).collect());
        (*layer, experts.collect())
    });
    Arc::new(Placement { epoch: Epoch { term: 1, number }, layers: layers.collect() })
}

/// An exchange and its clock.
pub(crate) struct World {
    pub(crate) exchange: Exchange,
    pub(crate) now: Instant,
    start: Instant,
}

impl World {
    /// 64 rows of at most 4 experts of one shard.
    pub(crate) fn new() -> Self {
        Self::with(ExchangeSettings::new(64, 4, 1, ROW_BYTES))
    }

    pub(crate) fn with(settings: ExchangeSettings) -> Self {
        let now = Instant::now();
        Self { exchange: Exchange::new(settings), now, start: now }
    }

    /// Links 10, 11, .. to nodes 0, 1, ..
    pub(crate) fn links(mut self, nodes: u32, room: LinkRoom) -> Self {
        for node in 0..nodes {
            self.link(10 + node, node, room);
        }
        self
    }

    pub(crate) fn link(&mut self, link: u32, node: u32, room: LinkRoom) {
        self.exchange.handle_link(LinkId(link), NodeId(node), room, self.now);
    }

    pub(crate) fn link_ended(&mut self, link: u32) {
        self.exchange.handle_link_ended(LinkId(link), self.now);
    }

    pub(crate) fn late(&mut self, link: u32) {
        self.exchange.handle_late(LinkId(link), self.now);
    }

    pub(crate) fn awake(&mut self, link: u32) {
        self.exchange.handle_awake(LinkId(link), self.now);
    }

    pub(crate) fn placed(mut self, layers: &[(u32, &[&[u32]])]) -> Self {
        self.place(1, layers);
        self
    }

    pub(crate) fn place(&mut self, number: u64, layers: &[(u32, &[&[u32]])]) {
        self.exchange.handle_placement(placement(number, layers), self.now);
    }

    /// These rows, which choose next, go on without experts that nobody holds.
    pub(crate) fn may_leave_out(&mut self, rows: &[u32]) {
        let rows: Vec<RowId> = rows.iter().copied().map(RowId).collect();
        self.exchange.handle_may_leave_out(&rows);
    }

    pub(crate) fn left_out(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.exchange.poll_left_out())
            .map(|LeftOut { row, rank, layer, expert }| {
                format!("row {} goes without {rank}: expert {expert} of layer {layer}", row.0)
            })
            .collect()
    }

    /// `+1` where row 1 waits for an expert that nobody holds from now on, and `-1` where it does so no more.
    pub(crate) fn stranded(&mut self) -> String {
        let told = |Stranded { row, is_stranded }: Stranded| {
            format!("{}{}", if is_stranded { '+' } else { '-' }, row.0)
        };
        let all: Vec<String> = std::iter::from_fn(|| self.exchange.poll_stranded()).map(told).collect();
        all.join(" ")
    }

    /// What nobody holds that a row waits for: layer, expert and shard.
    pub(crate) fn lacks(&self, row: u32) -> String {
        let told = |Lack { layer, expert, shard }| format!("{layer}.{expert}.{shard}");
        self.exchange.lacks(RowId(row)).map(told).collect::<Vec<_>>().join(" ")
    }

    /// Rows from `first`, each with its experts; a minute is left.
    pub(crate) fn chosen(&mut self, layer: u32, first: u32, experts: &[&[u32]]) {
        self.chosen_until(layer, first, experts, self.now + 60_000 * MS);
    }

    pub(crate) fn chosen_until(&mut self, layer: u32, first: u32, experts: &[&[u32]], deadline: Instant) {
        let rows: Vec<RowId> = (first..first + experts.len() as u32).map(RowId).collect();
        let all: Vec<u32> = experts.iter().flat_map(|of_row| of_row.iter().copied()).collect();
        self.exchange.handle_chosen(layer, &rows, experts[0].len(), &all, deadline, self.now);
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Goes to when something is due, and says how late it is by then.
    pub(crate) fn pass_until_due(&mut self) -> Duration {
        self.now = self.exchange.poll_timeout().expect("something is due").max(self.now);
        self.exchange.handle_timeout(self.now);
        self.now - self.start
    }

    /// All frames that may be sent now.
    pub(crate) fn sent(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = self.exchange.poll_dispatch(self.now) {
            frames.push(text(frame));
        }
        frames
    }

    /// Slots, or what else became of it.
    pub(crate) fn returned(&mut self, link: u32, dispatch: u64, rows: u32) -> String {
        match self.exchange.handle_return(LinkId(link), dispatch, rows, self.now) {
            Returned::Taken(slots) => {
                let slots = slots.iter().map(|slot| match *slot {
                    NOWHERE => "-".to_owned(),
                    slot => slot.0.to_string(),
                });
                slots.collect::<Vec<_>>().join(" ")
            }
            Returned::Dropped => "dropped".to_owned(),
            Returned::Breach { expected, .. } => format!("breach: {expected} were sent"),
        }
    }

    pub(crate) fn refused(&mut self, link: u32, dispatch: u64, reason: Reason) {
        self.exchange.handle_refused(LinkId(link), dispatch, reason, self.now);
    }

    pub(crate) fn whole(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.exchange.poll_whole()).map(|row| row.0).collect()
    }

    pub(crate) fn failed(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.exchange.poll_failed())
            .map(|(row, why)| format!("{}: {why}", row.0))
            .collect()
    }
}

/// `link 10 layer 3 rows 0 1: d1 e0.0.0 [0 1], d2 e4.0.0 [1]`: groups as dispatch, expert.replica.shard, indices.
pub(crate) fn text(frame: &Outgoing) -> String {
    let rows: Vec<_> = frame.rows.iter().map(|row| row.0.to_string()).collect();
    let groups: Vec<_> = frame
        .groups
        .iter()
        .map(|group| {
            let indices = &frame.indices[group.indices.start as usize..group.indices.end as usize];
            assert!(indices.is_sorted_by(|a, b| a < b), "indices ascend: {indices:?}");
            let actor = group.actor;
            assert_eq!(actor.layer, frame.layer);
            format!("d{} e{}.{}.{} {indices:?}", group.dispatch, actor.expert, actor.replica, actor.shard)
        })
        .collect();
    format!("link {} layer {} rows {}: {}", frame.link.0, frame.layer, rows.join(" "), groups.join(", "))
}
