//! Where an endpoint sleeps, and where its peers wake it: one futex word in a page that is shared with them.
//!
//! Not pure: it sleeps and wakes, and may run a thread. A doorbell belongs to one endpoint of a process, and
//! all rings of its connections share it, so that one thread can wait for all of them at once.
//!
//! # Why no news is missed
//!
//! A lane that finds nothing to do, *waits*: it sets the word for waiting of its end of the ring, fences, and
//! looks at the ring again. The other end publishes its index, fences, and looks at that word; if it is set,
//! it clears it and then rings. Both fences are sequentially consistent, so at least one of the two sees what
//! the other wrote: either the second look finds the news, or the other end finds the word and rings. The
//! word is cleared *before* ringing: if it is found set again afterwards, then by somebody who looked at the
//! ring later.
//!
//! To ring is to add 1 to the bell's count and to wake the futex if somebody is asleep. A sleeper reads the
//! count *before* it polls its lanes, and sleeps only while the count is still that: `asleep` is raised
//! before the kernel compares, and read after the count was raised, so again at least one of the two sees the
//! other. So whoever rings after a lane began to wait ends the sleep that follows, or prevents it.
//!
//! `model` tries all interleavings of this, with store buffers, and finds the gap when either fence is taken
//! out. A peer that writes nonsense into the shared page can at worst delay, by [`NAP_MAX`], those who share
//! it: they are of the same user, or of one that was let in by name.

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::memory::Shared;

/// How long a thread looks for news before it sleeps, where nothing else is said. A wake-up costs about 4 us
/// and the thread's place in the cache; more than a few of those is taken from others on the same cores.
pub const SPIN: Duration = Duration::from_micros(20);
/// Longest sleep without a look. Nothing of ours needs it: it bounds what a hostile peer can do to others.
const NAP_MAX: Duration = Duration::from_millis(100);
/// Bytes of the page.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Looks at the lanes between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 16;

const COUNT: usize = 0;
const ASLEEP: usize = 4;

/// The page of one endpoint, in its own process or in a peer's.
#[derive(Debug)]
pub(super) struct Bell(Shared);

impl Bell {
    pub(super) fn new(shared: Shared) -> Arc<Self> {
        Arc::new(Self(shared))
    }

    /// Wakes whoever sleeps here, and keeps from sleeping whoever is about to.
    pub(super) fn ring(&self) {
        let count = self.0.u32_at(COUNT);
        count.fetch_add(1, Ordering::SeqCst);
        if self.0.u32_at(ASLEEP).load(Ordering::SeqCst) != 0 {
            // It fails only for an address that is none.
            let _ = futex::wake(count, futex::Flags::empty(), i32::MAX as u32);
        }
    }

    fn count(&self) -> u32 {
        self.0.u32_at(COUNT).load(Ordering::SeqCst)
    }

    /// Sleeps unless somebody has rung since the count was `seen`. Returns whether the nap was slept out.
    fn sleep(&self, seen: u32, nap_max: Duration) -> bool {
        let asleep = self.0.u32_at(ASLEEP);
        let nap = futex::Timespec {
            tv_sec: nap_max.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: nap_max.subsec_nanos().into(),
        };
        asleep.fetch_add(1, Ordering::SeqCst);
        // Woken, interrupted or too late: the caller looks at its lanes in any case.
        let slept = futex::wait(self.0.u32_at(COUNT), futex::Flags::empty(), seen, Some(&nap));
        asleep.fetch_sub(1, Ordering::SeqCst);
        slept == Err(rustix::io::Errno::TIMEDOUT)
    }
}

/// Where a thread waits for the lanes of shared memory. Clones are the same doorbell.
#[derive(Debug, Clone)]
pub struct Doorbell(Arc<Owner>);

/// Ends the watcher with the last handle.
#[derive(Debug)]
struct Owner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bell: Arc<Bell>,
    file: OwnedFd,
    spin: Duration,
    nap_max: Duration,
    /// Not in use at the moment; kept so that waiting allocates nothing.
    executors: Mutex<Vec<Executor>>,
    posts: Mutex<Vec<Arc<Post>>>,
    /// Posts that have a waker.
    waiting: AtomicUsize,
    watcher: Mutex<Option<Thread>>,
    is_parked: AtomicBool,
    is_over: AtomicBool,
    naps: AtomicU64,
    scans: AtomicU64,
}

/// One [`Doorbell::block_on`], current or to come.
#[derive(Debug, Clone)]
struct Executor {
    sleeper: Arc<Sleeper>,
    waker: Waker,
}

#[derive(Debug)]
struct Sleeper {
    bell: Arc<Bell>,
    is_spinning: AtomicBool,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.bell.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bell.ring();
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Executor>> = const { RefCell::new(None) };
}

/// Who polls a lane, and so what the lane must do before it may say that it is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poller {
    /// A thread that will look again at once: nothing.
    Spins,
    /// A thread that will sleep at this doorbell: let the peer ring.
    Sleeps,
    /// Somebody else: let the peer ring, and the watcher wake them.
    Elsewhere,
}

/// Where a lane that waits leaves its waker.
#[derive(Debug)]
pub(super) struct Post {
    waker: Mutex<Option<Waker>>,
    news: Box<dyn News>,
}

/// What can be asked of a lane by the watcher.
pub(super) trait News: Send + Sync + std::fmt::Debug {
    /// Whether it should be polled again.
    fn is_there(&self) -> bool;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these, save for want of memory.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Doorbell {
    /// A doorbell at which threads look for news for `spin` before they sleep: [`SPIN`] where cores are shared,
    /// zero to sleep at once, `Duration::MAX` for a thread that has a core of its own.
    pub fn new(spin: Duration) -> std::io::Result<Self> {
        Self::with_naps(spin, NAP_MAX)
    }

    /// Tests let threads sleep so long that a missed wake-up is noticed.
    pub(super) fn with_naps(spin: Duration, nap_max: Duration) -> std::io::Result<Self> {
        let (file, shared) = Shared::create("phalanx-doorbell", PAGE_BYTES)?;
        Ok(Self(Arc::new(Owner(Arc::new(Inner {
            bell: Bell::new(shared),
            file,
            spin,
            nap_max,
            executors: Mutex::default(),
            posts: Mutex::default(),
            waiting: AtomicUsize::new(0),
            watcher: Mutex::default(),
            is_parked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            naps: AtomicU64::new(0),
            scans: AtomicU64::new(0),
        })))))
    }

    /// Runs `future` on this thread: looks for news for a while, then sleeps until a peer rings or something
    /// else wakes the future. This is the quick way to wait for lanes of shared memory; polled by any other
    /// executor they work too, woken by a thread. It does not drive sockets: those of the control lanes need
    /// their runtime to run on other threads.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let inner = &self.0.0;
        let mut future = pin!(future);
        let executor = lock(&inner.executors).pop().unwrap_or_else(|| {
            let sleeper =
                Arc::new(Sleeper { bell: Arc::clone(&inner.bell), is_spinning: AtomicBool::new(false) });
            Executor { waker: Waker::from(Arc::clone(&sleeper)), sleeper }
        });
        let entered = Entered { inner, outer: CURRENT.replace(Some(executor.clone())), executor };
        let Executor { sleeper, waker } = &entered.executor;
        let mut context = Context::from_waker(waker);
        let mut is_slept_out = false;
        loop {
            // After a nap without news there is no reason to expect some in the next microseconds.
            if !inner.spin.is_zero() && !is_slept_out {
                sleeper.is_spinning.store(true, Ordering::Relaxed);
                let mut began = None;
                for look in 1_u32.. {
                    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                        return output;
                    }
                    if look.is_multiple_of(LOOKS_PER_CLOCK)
                        && began.get_or_insert_with(Instant::now).elapsed() >= inner.spin
                    {
                        break;
                    }
                    std::hint::spin_loop();
                }
            }
            sleeper.is_spinning.store(false, Ordering::Relaxed);
            let seen = inner.bell.count();
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            inner.naps.fetch_add(1, Ordering::Relaxed);
            is_slept_out = inner.bell.sleep(seen, inner.nap_max);
        }
    }

    /// How often a thread went to sleep here, and how often the watcher looked through the lanes.
    pub fn naps_and_scans(&self) -> (u64, u64) {
        let inner = &self.0.0;
        (inner.naps.load(Ordering::Relaxed), inner.scans.load(Ordering::Relaxed))
    }

    /// What peers map to ring here.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.0.0.file
    }

    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.0.0.bell
    }

    /// Who polls with this context.
    pub(super) fn poller(&self, context: &Context<'_>) -> Poller {
        CURRENT.with_borrow(|current| match current {
            Some(Executor { sleeper, waker })
                if Arc::ptr_eq(&sleeper.bell, self.bell()) && waker.will_wake(context.waker()) =>
            {
                if sleeper.is_spinning.load(Ordering::Relaxed) { Poller::Spins } else { Poller::Sleeps }
            }
            _ => Poller::Elsewhere,
        })
    }

    /// A place for the waker of a lane. It is to be given up with [`Doorbell::give_up`].
    pub(super) fn post(&self, news: Box<dyn News>) -> Arc<Post> {
        let post = Arc::new(Post { waker: Mutex::default(), news });
        lock(&self.0.0.posts).push(Arc::clone(&post));
        post
    }

    pub(super) fn give_up(&self, post: &Arc<Post>) {
        lock(&self.0.0.posts).retain(|other| !Arc::ptr_eq(other, post));
        if lock(&post.waker).take().is_some() {
            self.0.0.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Has the watcher wake `context` when there is news. The lane must say that it waits *after* this, and
    /// then look again.
    pub(super) fn watch(&self, post: &Post, context: &Context<'_>) -> std::io::Result<()> {
        let inner = &self.0.0;
        let mut waker = lock(&post.waker);
        match &*waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            Some(_) => *waker = Some(context.waker().clone()),
            None => {
                *waker = Some(context.waker().clone());
                inner.waiting.fetch_add(1, Ordering::SeqCst);
            }
        }
        drop(waker);
        let mut watcher = lock(&inner.watcher);
        if let Some(thread) = &*watcher {
            if inner.is_parked.load(Ordering::SeqCst) {
                thread.unpark();
            }
        } else {
            let watched = Arc::clone(inner);
            let thread =
                std::thread::Builder::new().name("phalanx-shm".into()).spawn(move || watched.keep_watch())?;
            *watcher = Some(thread.thread().clone());
        }
        Ok(())
    }
}

impl Inner {
    /// What the watcher does: wakes the lanes for which there is news whenever somebody has rung.
    fn keep_watch(&self) {
        let mut awakened = Vec::new();
        let mut last_used = Instant::now();
        loop {
            let seen = self.bell.count();
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            self.scans.fetch_add(1, Ordering::Relaxed);
            for post in lock(&self.posts).iter() {
                let mut waker = lock(&post.waker);
                if waker.is_some() && post.news.is_there() {
                    awakened.extend(waker.take());
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                }
            }
            // With no lock held: a waker may drop its task, and with it a lane.
            let is_used = !awakened.is_empty();
            awakened.drain(..).for_each(Waker::wake);
            // A lane that was woken soon waits again; only when none has for a whole nap is there no reason to
            // be woken by every ring that is for somebody else.
            if is_used || self.waiting.load(Ordering::SeqCst) != 0 {
                last_used = Instant::now();
            } else if last_used.elapsed() > self.nap_max {
                self.is_parked.store(true, Ordering::SeqCst);
                while self.waiting.load(Ordering::SeqCst) == 0 && !self.is_over.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.is_parked.store(false, Ordering::SeqCst);
                continue;
            }
            self.bell.sleep(seen, self.nap_max);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        self.0.bell.ring();
        if let Some(thread) = &*lock(&self.0.watcher) {
            thread.unpark();
        }
    }
}

/// Puts back what was current before, also when the future panics.
struct Entered<'a> {
    inner: &'a Inner,
    outer: Option<Executor>,
    executor: Executor,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let executor = CURRENT.replace(self.outer.take());
        lock(&self.inner.executors).extend(executor);
    }
}
