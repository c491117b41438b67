//! One link as a contestant: dispatches of BF16 rows that come back as returns, and weights that only go.
//!
//! Payloads are shared, never copied, on both ends: a window sends the same rows again and again, and
//! what came is sent back as it lies. Round trips use the data lane; one way uses the weights lane, as
//! nothing returns there but the room for more.

use std::time::{Duration, Instant};

use rustix::thread::Pid;
use tokio::runtime::Runtime;
use transport::buffer::{Payload, Pool};
use transport::carrier::shm::Doorbell;
use transport::link::Local;
use transport::peer::{Endpoint, Inlet, Notices, Opened, Peer};
use transport::security::{ClusterId, PeerName, Role};
use transport::wire::{Element, Header, Kind};
use transport::{Frame, Limits};

use crate::Failure;
use crate::bench::transport::contest::{Contestant, ROW_BYTES};
use crate::bench::transport::process::Process;
use crate::bench::transport::raw::{check, message};

/// More than all lanes of a link may hold.
const POOL_BYTES: u64 = 512 << 20;
/// No window lasts so long.
const REMAINING_US: u32 = 600_000_000;
/// Dispatches whose layer is this are echoed; ...
const ECHO: u32 = 0;
/// ... with this, they say how many weights come and return after the last.
const TAKE: u32 = 1;

/// One end of links, as it is in every measurement.
pub(super) fn endpoint(role: Role, cluster: Option<ClusterId>) -> Result<(Endpoint, Pool), Failure> {
    let name = match role {
        Role::Coordinator => "coordinator",
        Role::Node => "node",
    };
    let local = Local {
        peer: PeerName { cluster: cluster.unwrap_or(ClusterId([0; 16])), role, name: name.to_owned() },
        program: format!("phalanx bench {}", env!("CARGO_PKG_VERSION")),
        incarnation: std::process::id().into(),
        numeric: None,
        row_bytes: ROW_BYTES as u64,
        mixed_classes: false,
    };
    let pool = Pool::new(POOL_BYTES);
    Ok((Endpoint::new(local, Limits::default(), pool.clone())?, pool))
}

/// Obeys what comes over a link, until it ends. However it ends, the end that is measured hears of it too,
/// and it is there that it matters.
pub(super) async fn obey(opened: Opened) {
    let Opened { peer, mut data, mut weights, notices: _notices } = opened;
    while let Ok(Some(frame)) = data.receive().await {
        let Frame { header, payload, .. } = frame;
        if header.layer == TAKE {
            let count = u64::from_le_bytes(payload[..].try_into().expect("the other end is this program"));
            for _ in 0..count {
                let Ok(Some(_)) = weights.receive().await else { return };
            }
        }
        let header = Header { kind: Kind::Return, payload_crc: 0, ..header };
        if peer.send(Frame::new(header, payload)).await.is_err() {
            return;
        }
    }
}

/// What runs the consumer of a link.
pub(super) enum Executor {
    /// The runtime that drives the sockets, on one thread.
    Runtime(Runtime),
    /// The doorbell of shared memory; the control lane has the runtime's own thread.
    Doorbell { doorbell: Doorbell, runtime: Runtime, spins: bool },
}

impl Executor {
    /// Runs a consumer as a program has it: as one task among others, such as an actor is, or in the doorbell's
    /// own thread. (The future that a runtime is blocked on is no task: to wake it costs two system calls.)
    pub(super) fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        match self {
            Self::Runtime(runtime) => {
                runtime.block_on(async { tokio::spawn(future).await }).expect("a measurement does not panic")
            }
            Self::Doorbell { doorbell, runtime, .. } => {
                let _inside = runtime.enter();
                doorbell.block_on(future)
            }
        }
    }
}

/// The end that is measured.
pub(super) struct Ours {
    name: &'static str,
    /// Away while they are measured.
    lanes: Option<Lanes>,
    executor: Executor,
    echoing: Echoing,
}

/// Where the other end is.
pub(super) enum Echoing {
    /// A task of the same thread.
    Task,
    /// Another thread of this process.
    Thread(Pid),
    /// Another process.
    Process(Process),
}

struct Lanes {
    peer: Peer,
    data: Inlet,
    pool: Pool,
    dispatch: u64,
    _rest: (Inlet, Notices),
}

impl Ours {
    pub(super) fn new(
        name: &'static str,
        opened: Opened,
        pool: Pool,
        executor: Executor,
        echoing: Echoing,
    ) -> Self {
        let Opened { peer, data, weights, notices } = opened;
        let lanes = Lanes { peer, data, pool, dispatch: 0, _rest: (weights, notices) };
        Self { name, lanes: Some(lanes), executor, echoing }
    }
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn peer_thread(&self) -> Option<Pid> {
        match &self.echoing {
            Echoing::Task => None,
            Echoing::Thread(thread) => Some(*thread),
            Echoing::Process(process) => Some(process.thread()),
        }
    }

    fn spins(&self) -> bool {
        matches!(self.executor, Executor::Doorbell { spins: true, .. })
    }

    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        let mut lanes = self.lanes.take().expect("they came back from the last measurement");
        let (lanes, trips) = self.executor.run(async move {
            let trips = lanes.round_trips(bytes, count).await;
            (lanes, trips)
        });
        self.lanes = Some(lanes);
        trips
    }

    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        let mut lanes = self.lanes.take().expect("they came back from the last measurement");
        let (lanes, took) = self.executor.run(async move {
            let took = lanes.one_way(bytes, count).await;
            (lanes, took)
        });
        self.lanes = Some(lanes);
        took
    }
}

impl Lanes {
    async fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        let sent = self.payload(&message(bytes))?;
        // Rows as long as a token's, or as the message if that is shorter.
        let columns =
            (bytes / 2).min(if bytes.is_multiple_of(ROW_BYTES) { ROW_BYTES / 2 } else { 4096 }) as u32;
        let rows = (bytes / 2) as u32 / columns;
        let mut trips = Vec::with_capacity(count);
        let mut returned = None;
        for _ in 0..count {
            // Released here, as a consumer has it: before the next comes.
            drop(returned.take());
            let dispatch = self.next();
            let header = Header { element: Element::Bf16, rows, columns, ..order(dispatch, ECHO, 0) };
            let began = Instant::now();
            self.peer.send(Frame::new(header, sent.clone())).await?;
            let frame = self.returned(dispatch).await?;
            trips.push(began.elapsed());
            returned = Some(frame);
        }
        let returned = returned.ok_or("no round trip was asked for")?;
        check(&sent, &returned.payload)?;
        Ok(trips)
    }

    async fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        let sent = self.payload(&message(bytes))?;
        let how_many = self.payload(&(count as u64).to_le_bytes())?;
        let dispatch = self.next();
        let began = Instant::now();
        self.peer.send(Frame::new(order(dispatch, TAKE, how_many.len() as u32), how_many)).await?;
        for piece in 0..count {
            let header = Header::of_bytes(Kind::Weights, piece as u64, bytes as u32);
            self.peer.send(Frame::new(header, sent.clone())).await?;
        }
        self.returned(dispatch).await?;
        Ok(began.elapsed())
    }

    async fn returned(&mut self, dispatch: u64) -> Result<Frame, Failure> {
        let frame = self.data.receive().await?.ok_or("the echoing end has closed the link")?;
        if frame.header.dispatch != dispatch || frame.header.kind != Kind::Return {
            return Err(format!("dispatch {dispatch} was sent, {:?} came", frame.header).into());
        }
        Ok(frame)
    }

    fn payload(&self, bytes: &[u8]) -> Result<Payload, Failure> {
        let buffer = self.pool.copy_of(bytes).ok_or("the pool is exhausted")?;
        Ok(buffer.into())
    }

    /// Numbers of dispatches are never used twice.
    fn next(&mut self) -> u64 {
        self.dispatch += 1;
        self.dispatch
    }
}

fn order(dispatch: u64, layer: u32, bytes: u32) -> Header {
    Header { layer, remaining_us: REMAINING_US, ..Header::of_bytes(Kind::Dispatch, dispatch, bytes) }
}
