//! The thread that drives a compute pool for all devices that share it.
//!
//! Never wait when idle, never split when busy, once more: it takes all batches that were handed over so far and
//! computes them in one round, then looks again. Batches that one turn of an arbiter hands over (the experts of
//! one dispatch frame, mostly) are handed over together, by a task that runs behind the actors of that
//! turn: else the first of eight small experts would be computed alone, and the seven others after it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use model::kernel::Kernels;
use model::pool::Pool;

use super::Batch;
use super::round::Round;

/// Is told when the devices of a pool begin to compute (`true`) and when nothing is left to do (`false`).
pub type OnBusy = Arc<dyn Fn(bool) + Send + Sync>;

/// The thread of one pool. Dropped, it ends after the round under way.
pub struct Compute {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Vec<Batch>>,
    news: Condvar,
    /// Batches in `queue`, to be looked at without its lock.
    queued: AtomicUsize,
    is_idle: AtomicBool,
    stop: AtomicBool,
}

thread_local! {
    /// What the actors of this arbiter have handed over in this turn, and to whom.
    static TURN: RefCell<Vec<(Arc<Shared>, Batch)>> = const { RefCell::new(Vec::new()) };
}

impl Compute {
    /// A thread that computes with `kernels` on `pool`, which others may use too: they take turns. It looks for
    /// news for `spin` before it sleeps; that is worth it on cores that nobody else wants.
    pub fn start(
        kernels: Kernels,
        pool: Arc<Pool>,
        spin: Duration,
        on_busy: Option<OnBusy>,
    ) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            news: Condvar::new(),
            queued: AtomicUsize::new(0),
            is_idle: AtomicBool::new(true),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new().name("devices".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                pool.pin_caller();
                shared.serve(Round::new(kernels, pool), spin, on_busy);
            }
        })?;
        Ok(Arc::new(Self { shared, thread: Some(thread) }))
    }

    /// Hands a batch over, at the end of this turn of the arbiter.
    pub fn submit(&self, batch: Batch) {
        let is_first = TURN.with_borrow_mut(|turn| {
            turn.push((Arc::clone(&self.shared), batch));
            turn.len() == 1
        });
        if is_first {
            // Behind all actors that have been woken already: theirs are the groups that came with this one's.
            actix::spawn(async { hand_over() });
        }
    }

    /// Whether its devices have nothing to do.
    pub fn is_idle(&self) -> bool {
        self.shared.is_idle.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Compute({} queued)", self.shared.queued.load(Ordering::Relaxed))
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.news.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Panics of rounds are caught inside, so there is no error to pass on.
            let _ = thread.join();
        }
    }
}

/// Hands over what was submitted in this turn.
fn hand_over() {
    let mut turn = TURN.take();
    while let Some((shared, _)) = turn.first() {
        let shared = Arc::clone(shared);
        let mut queue = shared.lock();
        // Mostly all of them: an arbiter has one pool.
        let mine = turn.extract_if(.., |(other, _)| Arc::ptr_eq(other, &shared));
        queue.extend(mine.map(|(_, batch)| batch));
        shared.queued.store(queue.len(), Ordering::Release);
        drop(queue);
        shared.news.notify_one();
    }
    // The memory is kept.
    TURN.with_borrow_mut(|empty| {
        if empty.capacity() == 0 {
            *empty = turn;
        }
    });
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Batch>> {
        // Nothing panics while it holds this.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut round: Round, spin: Duration, on_busy: Option<OnBusy>) {
        let tell = |is_busy: bool| {
            self.is_idle.store(!is_busy, Ordering::Relaxed);
            if let Some(on_busy) = &on_busy {
                on_busy(is_busy);
            }
        };
        let mut batches = Vec::new();
        while self.take(&mut batches, spin) {
            if self.is_idle.load(Ordering::Relaxed) {
                tell(true);
            }
            round.compute(&mut batches);
            if self.queued.load(Ordering::Acquire) == 0 {
                tell(false);
            }
        }
    }

    /// Waits for batches. False: there will be none.
    fn take(&self, batches: &mut Vec<Batch>, spin: Duration) -> bool {
        if !spin.is_zero() {
            let began = Instant::now();
            while self.queued.load(Ordering::Acquire) == 0 && began.elapsed() < spin {
                (0..16).for_each(|_| std::hint::spin_loop());
            }
        }
        let mut queue = self.lock();
        while queue.is_empty() {
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut *queue, batches);
        self.queued.store(0, Ordering::Release);
        true
    }
}
