//! What all users of one open link share, and what happens on it beside its frames.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::inlet::Inlet;
use super::lock;
use super::outlet::Outlet;
use crate::buffer::Pool;
use crate::carrier::{LaneError, Vouched};
use crate::frame::{Credit, Meter};
use crate::link::{Ended, Link};
use crate::wire::cluster::Cluster;
use crate::wire::control::{CloseReason, Hello};
use crate::wire::{Lane, PerLane};

/// Notices that nobody has read; what comes then is left out, and the log says so once. Those of the cluster are never
/// left out and do not count: the control lane's window bounds them.
const NOTICES_MAX: usize = 1 << 17;

/// A certificate and what it stands on, DER; or why there is none.
pub type Renewal = Result<Vec<Vec<u8>>, String>;

/// Something that happened to a link beside its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This dispatch has not returned in its time. It counts among those in flight until it does, because the peer still
    /// has it.
    Expired {
        /// Which.
        dispatch: u64,
    },
    /// The peer's heartbeats have missed their own rhythm.
    Late {
        /// How long nothing came.
        silent: Duration,
    },
    /// It beats again.
    Awake,
    /// The peer wants to end: it takes no new dispatches, and the link closes when nothing is in flight.
    DrainAsked,
    /// The peer wants a new certificate; answer with [`Peer::answer_renewal`].
    RenewalAsked {
        /// PKCS #10, DER.
        request: Vec<u8>,
    },
    /// The peer says something of the cluster. The room that it took belongs to the peer again.
    Told(Cluster),
}

/// The notices of one link, for one reader. They must be read as long as the link lives, or the peer cannot say any
/// more of the cluster; where they are dropped, whatever still comes is dropped as well.
pub struct Notices {
    shared: Arc<Shared>,
}

/// The longest messages, as many as may wait for the carrier, and one.
const CONTROL_POOL_BYTES: u64 = 17 * (4 << 20);

/// One open link.
pub(super) struct Shared {
    pub(super) link: Mutex<Link>,
    pub(super) outlets: PerLane<Arc<Outlet>>,
    pub(super) hello: Hello,
    pub(super) vouched: Vouched,
    pub(super) address: String,
    /// The peer, for messages.
    name: Arc<str>,
    pub(super) session: [u8; 16],
    /// Held while what the link says is carried out, so that it is carried out in order.
    pub(super) settling: Mutex<()>,
    /// Wakes the driver: the link has something to say.
    pub(super) driver: Arc<Notify>,
    pub(super) ended: OnceLock<Ended>,
    pub(super) over: watch::Sender<bool>,
    /// Who polls the inlets, to be woken when the link ends beside them.
    inlets: PerLane<Mutex<Option<Waker>>>,
    /// What control messages are sent from: never what the application may have used up.
    pub(super) control_pool: Pool,
    /// Counts the room that was occupied by messages of the cluster.
    pub(super) control_meter: Arc<Meter>,
    /// Inlets that were dropped, for the driver to go on with.
    abandoned: Mutex<Vec<Inlet>>,
    notices: Mutex<NoticeQueue>,
    pub(super) probes: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    pub(super) probe_next: AtomicU64,
    pub(super) renewal: Mutex<Option<oneshot::Sender<Renewal>>>,
}

#[derive(Default)]
struct NoticeQueue {
    notices: VecDeque<(Notice, Option<Credit>)>,
    /// Among them, those that hold no credit.
    free: usize,
    is_left_out: bool,
    /// Nobody will read any.
    is_dropped: bool,
    waker: Option<Waker>,
}

impl Shared {
    pub(super) fn new(
        link: Link,
        outlets: PerLane<Arc<Outlet>>,
        hello: Hello,
        address: String,
        session: [u8; 16],
        control_window: u64,
    ) -> Arc<Self> {
        let driver: Arc<Notify> = Arc::default();
        Arc::new(Self {
            control_meter: Meter::new(control_window / 4, Arc::clone(&driver)),
            vouched: link.vouched().clone(),
            link: Mutex::new(link),
            outlets,
            name: format!("{} at {address}", hello.peer).into(),
            hello,
            address,
            session,
            settling: Mutex::default(),
            driver,
            ended: OnceLock::new(),
            over: watch::Sender::new(false),
            inlets: PerLane::default(),
            control_pool: Pool::new(CONTROL_POOL_BYTES),
            abandoned: Mutex::default(),
            notices: Mutex::default(),
            probes: Mutex::default(),
            probe_next: AtomicU64::new(1),
            renewal: Mutex::default(),
        })
    }

    /// Tells the link something, and its driver that it may have something to say.
    pub(super) fn with_link<T>(&self, tell: impl FnOnce(&mut Link, Instant) -> T) -> T {
        let answer = tell(&mut lock(&self.link), Instant::now());
        self.driver.notify_one();
        answer
    }

    pub(super) fn lane_failed(&self, lane: Lane, error: &LaneError) {
        self.with_link(|link, now| {
            if error.is_breach() {
                // It was not the way that failed but what the peer sent over it.
                link.handle_close(CloseReason::Broken(format!("on the {lane} lane: {error}")), now);
            } else {
                link.handle_lost(lane, error.to_string(), now);
            }
        });
    }

    /// The peer, for messages.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get().cloned()
    }

    /// How the link ended, or `waker` is woken when it does.
    pub(super) fn ended_or_wait(&self, lane: Lane, waker: &Waker) -> Option<Ended> {
        {
            let mut waiting = lock(&self.inlets[lane]);
            match &mut *waiting {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        self.ended()
    }

    /// The link has ended: whoever waits for anything hears of it now.
    pub(super) fn end(&self, ended: Ended) {
        if self.ended.set(ended).is_err() {
            return;
        }
        for lane in Lane::ALL {
            self.outlets[lane].cut();
        }
        self.over.send_replace(true);
        for lane in Lane::ALL {
            if let Some(waker) = lock(&self.inlets[lane]).take() {
                waker.wake();
            }
        }
        lock(&self.probes).clear();
        lock(&self.renewal).take();
        if let Some(waker) = lock(&self.notices).waker.take() {
            waker.wake();
        }
    }

    pub(super) fn notice(&self, notice: Notice) {
        let mut queue = lock(&self.notices);
        if queue.is_dropped {
            return;
        }
        if queue.free < NOTICES_MAX {
            queue.free += 1;
            queue.notices.push_back((notice, None));
        } else if !std::mem::replace(&mut queue.is_left_out, true) {
            tracing::warn!(peer = %self.name, max = NOTICES_MAX, "notices that nobody reads are left out");
        }
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// A message of the cluster, which occupies so much of the peer's credit until it is read.
    pub(super) fn told(&self, message: Cluster, charge: u64) {
        let credit = self.control_meter.hold(charge);
        let mut queue = lock(&self.notices);
        if queue.is_dropped {
            return;
        }
        queue.notices.push_back((Notice::Told(message), Some(credit)));
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn abandon(&self, inlet: Inlet) {
        lock(&self.abandoned).push(inlet);
        self.driver.notify_one();
        if self.ended.get().is_some() {
            // The driver has gone. An inlet and what it is part of must not hold one another.
            drop(self.take_abandoned());
        }
    }

    /// Inlets that were dropped since the last time.
    pub(super) fn take_abandoned(&self) -> Vec<Inlet> {
        std::mem::take(&mut *lock(&self.abandoned))
    }

    pub(super) async fn wait_for_end(&self) -> Ended {
        let mut over = self.over.subscribe();
        // An error would mean that the sender is gone, and `self` holds it.
        let _ = over.wait_for(|over| *over).await;
        self.ended().expect("set before it is told")
    }
}

impl Notices {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The next notice; `None` once the link has ended and all were read.
    pub async fn next(&mut self) -> Option<Notice> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The same, to be polled.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Notice>> {
        let mut queue = lock(&self.shared.notices);
        if let Some((notice, credit)) = queue.notices.pop_front() {
            queue.free -= usize::from(credit.is_none());
            return Poll::Ready(Some(notice));
        }
        if self.shared.ended.get().is_some() {
            return Poll::Ready(None);
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        let unread = {
            let mut queue = lock(&self.shared.notices);
            queue.is_dropped = true;
            std::mem::take(&mut queue.notices)
        };
        drop(unread);
    }
}
