//! Puts the data plane together: from a loaded trunk and a few limits to its actor.

use std::sync::Arc;
use std::time::Duration;

use model::kernel::RowType;
use model::kv::{KvCache, PAGE};
use model::pool::Pool;
use model::trunk::Trunk;
use tokio::sync::mpsc;
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::peer::Peer;
use transport::wire::Element;
use transport::wire::control::Offer;

use super::actor::{DataActor, DataParts, Observation};
use super::exchange::{Exchange, ExchangeSettings, LinkRoom};
use super::flow::{Flow, FlowSettings, Forwarding};
use super::forwarding::{AutoForwarding, Choice};
use super::frames::Shape;
use super::landing::Keep;
use super::scheduler::{Scheduler, SchedulerSettings};
use super::stage::{stages, top_k_max};
use super::trunk::{Parts, TrunkThread};

/// The limits of a data plane. Each bounds memory or waiting; the defaults suit one machine.
#[derive(Debug, Clone)]
pub struct DataSettings {
    /// Rows that may be on their way through the layers at once. Each costs its residual (4 bytes a value) and room
    /// for what its experts return.
    pub rows_in_flight_max: u32,
    /// Sequences that may be computed at once.
    pub sequences_max: u32,
    /// Requests that may wait for that; more are turned away.
    pub queue_max: u32,
    /// Rows of a prompt that enter together. More read the weights less often, and delay others longer.
    pub chunk_rows_max: u32,
    /// Whether pages of prompts and answers are kept for those that begin alike.
    pub prefix_cache: bool,
    /// Bytes for keys and values.
    pub kv_bytes: usize,
    /// How rows go on.
    pub forwarding: Choice,
    /// The trunk computes on the cores of the experts.
    pub shared_cores: bool,
    /// Dense layers' feed-forwards have devices of their own.
    pub dense_out: bool,
    /// Most time from a row's choice of experts to all that it returns.
    pub dispatch_max: Duration,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            rows_in_flight_max: 4096,
            sequences_max: 256,
            queue_max: 4096,
            chunk_rows_max: 2048,
            prefix_cache: true,
            kv_bytes: 2 << 30,
            forwarding: Choice::Always(Forwarding::Partial),
            shared_cores: false,
            dense_out: false,
            dispatch_max: Duration::from_secs(600),
        }
    }
}

/// What rows of a trunk are made of on their way.
pub fn shape(trunk: &Trunk) -> Shape {
    let element = match trunk.kernels().class().row_type() {
        RowType::Bf16 => Element::Bf16,
        RowType::F32 => Element::F32,
    };
    let back = if trunk.spec().shards > 1 { Element::F32 } else { element };
    Shape { element, back, columns: trunk.spec().hidden as u32 }
}

/// The data actor of a trunk, not started yet.
pub fn data_actor(
    trunk: Trunk,
    pool: Arc<Pool>,
    settings: &DataSettings,
    observe: mpsc::UnboundedSender<Observation>,
) -> std::io::Result<DataActor> {
    let spec = Arc::clone(trunk.spec());
    let shape = shape(&trunk);
    let stages = stages(&spec, settings.dense_out);
    let (top_k_max, shards) = (top_k_max(&stages), spec.shards);
    let cache = KvCache::new(&spec, trunk.kernels().class().row_type(), settings.kv_bytes);
    let (rows_max, sequences_max) = (settings.rows_in_flight_max, settings.sequences_max);
    let chunk_rows_max = settings.chunk_rows_max.min(rows_max - sequences_max);
    let pages = u32::try_from(cache.pages()).unwrap_or(u32::MAX).min(u32::MAX / PAGE as u32);
    let scheduler = Scheduler::new(SchedulerSettings {
        sequences_max,
        queue_max: settings.queue_max,
        pages,
        rows_in_flight_max: rows_max,
        chunk_rows_max,
        prefill_rows_max: chunk_rows_max,
        prefix_cache: settings.prefix_cache,
    });
    let head = stages.last().expect("a model has a head");
    let flow = Flow::new(FlowSettings {
        stages: stages.len() as u32,
        head_has_layers: !head.layers.is_empty(),
        rows_max,
        sequences_max,
        batch_rows_max: rows_max,
        forwarding: match settings.forwarding {
            Choice::Always(forwarding) => forwarding,
            Choice::Auto => AutoForwarding::new(settings.shared_cores).forwarding(),
        },
    });
    let (row_bytes, return_row_bytes) = (shape.row_bytes() as u64, shape.back_row_bytes() as u64);
    let exchange = ExchangeSettings::new(rows_max, top_k_max as u32, shards as u32, row_bytes);
    let exchange = Exchange::new(ExchangeSettings { return_row_bytes, ..exchange });
    // What the trunk leaves and what is sent has no bound here, but by the rows in flight and the windows of links: there
    // is nothing to do but to go on. Copies of returns have one: beyond it frames are kept as they came.
    let buffers = Buffers::new(u64::MAX / 2);
    let slots = u64::from(rows_max) * (top_k_max * shards) as u64;
    let copies = Buffers::new((64 << 20) + slots * 2 * return_row_bytes);
    let parts = DataParts {
        scheduler,
        flow,
        forwarding: settings.forwarding,
        exchange,
        pages,
        rows_max: rows_max as usize,
        sequences_max: sequences_max as usize,
        top_k_max,
        shards,
        stages,
        shape,
        buffers: buffers.clone(),
        copies,
        dispatch_max: settings.dispatch_max,
    };
    let (rows_max, sequences_max, dense_out) = (parts.rows_max, parts.sequences_max, settings.dense_out);
    DataActor::new(parts, settings.shared_cores, observe, move |answers| {
        let thread = Parts { trunk, pool, cache, rows_max, sequences_max, buffers, dense_out };
        TrunkThread::start(thread, move |answer| {
            // It has room for all answers of a batch; the actor may have gone, when the program ends.
            let _ = answers.try_send(answer);
        })
    })
}

/// What may be under way on a link with that peer, where `limits` are our own.
pub fn room(peer: &Peer, limits: &Limits) -> (LinkRoom, Keep) {
    (room_between(&peer.hello().limits, limits), Keep::new(limits.window_bytes.data))
}

/// What may be under way on a link whose peer takes what it offers, where `limits` are our own.
pub fn room_between(offer: &Offer, limits: &Limits) -> LinkRoom {
    LinkRoom {
        // Credits come in quarters of a window.
        out_bytes: offer.window_bytes.data / 4 * 3,
        back_bytes: Keep::new(limits.window_bytes.data).back_bytes(),
        dispatches: offer.in_flight_max.min(limits.in_flight_max),
        payload_bytes: offer.payload_bytes_max.data.min(limits.payload_bytes_max.data),
    }
}
