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

use super::actor::{DataActor, DataParts, Observation};
use super::exchange::{Exchange, ExchangeSettings, LinkRoom};
use super::flow::{Flow, FlowSettings, Forwarding};
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
    /// Bytes for keys and values.
    pub kv_bytes: usize,
    /// How rows go on.
    pub forwarding: Forwarding,
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
            kv_bytes: 2 << 30,
            forwarding: Forwarding::Partial,
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
    Shape { element, columns: trunk.spec().hidden as u32 }
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
    let top_k_max = top_k_max(&stages);
    let cache = KvCache::new(&spec, trunk.kernels().class().row_type(), settings.kv_bytes);
    let (rows_max, sequences_max) = (settings.rows_in_flight_max, settings.sequences_max);
    let chunk_rows_max = settings.chunk_rows_max.min(rows_max - sequences_max);
    let scheduler = Scheduler::new(SchedulerSettings {
        sequences_max,
        queue_max: settings.queue_max,
        pages: u32::try_from(cache.pages()).unwrap_or(u32::MAX).min(u32::MAX / PAGE as u32),
        rows_in_flight_max: rows_max,
        chunk_rows_max,
        prefill_rows_max: chunk_rows_max,
    });
    let head = stages.last().expect("a model has a head");
    let flow = Flow::new(FlowSettings {
        stages: stages.len() as u32,
        head_has_layers: !head.layers.is_empty(),
        rows_max,
        sequences_max,
        batch_rows_max: rows_max,
        forwarding: settings.forwarding,
    });
    let row_bytes = shape.row_bytes() as u64;
    let exchange = Exchange::new(ExchangeSettings::new(rows_max, top_k_max as u32, 1, row_bytes));
    // Every row where the trunk left it, once for each node that it goes to, and as often copied out of returns.
    let buffers = Buffers::new((64 << 20) + u64::from(rows_max) * 2 * row_bytes * (1 + 2 * top_k_max as u64));
    let parts = DataParts {
        scheduler,
        flow,
        exchange,
        rows_max: rows_max as usize,
        sequences_max: sequences_max as usize,
        top_k_max,
        stages,
        shape,
        buffers: buffers.clone(),
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
    let offer = &peer.hello().limits;
    let keep = Keep::new(limits.window_bytes.data);
    let room = LinkRoom {
        // Credits come in quarters of a window.
        out_bytes: offer.window_bytes.data / 4 * 3,
        back_bytes: keep.back_bytes(),
        dispatches: offer.in_flight_max.min(limits.in_flight_max),
        payload_bytes: offer.payload_bytes_max.data.min(limits.payload_bytes_max.data),
    };
    (room, keep)
}
