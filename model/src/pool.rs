//! The compute threads: they run one function together, spin briefly between runs, then park.
//!
//! Not pure: it owns threads. The thread that calls [`Pool::run`] is thread 0 and works too, so a pool of
//! one thread has no worker at all. Work is not split here: the function claims its pieces from an atomic
//! counter, so that a core slowed by a neighbour takes fewer of them and does not hold the others.
//!
//! Spinning pays when the next run comes within microseconds (a decode step has some hundred of them), and
//! costs the neighbours when it does not. So threads on shared cores spin for 20 us only; threads that
//! were given cores of their own, or whose callers take turns, spin longer.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it parks, on cores that others use too.
const SPIN_SHARED: Duration = Duration::from_micros(20);

/// The same on cores given to the pool alone.
const SPIN_OWNED: Duration = Duration::from_micros(500);

/// The same where threads take turns at the pool: until the next of them has what it computes. A layer of a cluster in
/// one process is some four such turns, and a worker that has parked is late for each.
const SPIN_TURNS: Duration = Duration::from_micros(150);

/// More threads than this are a mistake in a configuration.
const THREADS_MAX: usize = 1024;

type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that run one function together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    cores: Option<Vec<usize>>,
    /// Held by the caller of a run, so that two callers take turns.
    turn: Mutex<()>,
}

struct Shared {
    /// Counts the runs; a worker that sees it move takes the work.
    run: AtomicUsize,
    /// The function of the run under way. Written by the caller alone, before `run` moves.
    work: UnsafeCell<Option<Work<'static>>>,
    /// Workers that have not finished the run under way.
    busy: AtomicUsize,
    stop: AtomicBool,
    /// One per worker: set while it is parked or about to park.
    parked: Vec<AtomicBool>,
    caller_parked: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spin: Duration,
}

// SAFETY: `work` is written only by the caller that holds `turn`, while no worker runs (`busy` is 0), and
// read by workers only after they have seen `run` move, which releases that write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the reference inside is to a `Sync` function.
unsafe impl Send for Shared {}

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads` threads, of which the caller of [`Pool::run`] is one. With `cores`, worker `t` is
    /// pinned to `cores[t]` (and the calling thread by [`Pool::pin_caller`]); without, nothing is pinned.
    pub fn new(threads: usize, cores: Option<&[usize]>) -> Pool {
        Self::spinning(threads, cores, if cores.is_some() { SPIN_OWNED } else { SPIN_SHARED })
    }

    /// A pool at which a trunk and the devices of nodes take turns.
    pub fn for_turns(threads: usize, cores: Option<&[usize]>) -> Pool {
        Self::spinning(threads, cores, if cores.is_some() { SPIN_OWNED } else { SPIN_TURNS })
    }

    fn spinning(threads: usize, cores: Option<&[usize]>, spin: Duration) -> Pool {
        assert!(
            (1..=THREADS_MAX).contains(&threads),
            "a pool of {threads} threads, expected 1 to {THREADS_MAX}"
        );
        if let Some(cores) = cores {
            assert!(cores.len() >= threads, "{} cores given for {threads} threads", cores.len());
        }
        let shared = Arc::new(Shared {
            run: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            spin,
        });
        let workers = (1..threads)
            .map(|thread| {
                let shared = Arc::clone(&shared);
                let core = cores.map(|cores| cores[thread]);
                std::thread::Builder::new()
                    .name(format!("compute-{thread}"))
                    .spawn(move || {
                        if let Some(core) = core {
                            pin(core);
                        }
                        shared.serve(thread);
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Pool { shared, workers, cores: cores.map(<[usize]>::to_vec), turn: Mutex::new(()) }
    }

    /// How many threads take part in a run, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Pins the calling thread to the first of the cores given, if any were.
    pub fn pin_caller(&self) {
        if let Some(cores) = &self.cores {
            pin(cores[0]);
        }
    }

    /// Runs `work` once on every thread, with the thread's number, and returns when all have finished. A
    /// panic in `work` is passed on to the caller after that. Not to be called from inside `work`.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return work(0);
        }
        assert!(!RUNNING.get(), "a pool was run from inside a run");
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. This function does not return, nor unwind, before every
        // worker has finished with the reference (`busy` is 0).
        let kept = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: `turn` is held and no worker runs, so nothing else touches the cell.
        unsafe { *shared.work.get() = Some(kept) };
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.run.fetch_add(1, Ordering::SeqCst);
        for (index, worker) in self.workers.iter().enumerate() {
            if shared.parked[index + 1].swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        RUNNING.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        RUNNING.set(false);
        shared.wait_for_workers();
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.run.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker ends only here, and its panics were caught, so there is no error to pass on.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life: wait for the next run, do it, say so.
    fn serve(&self, thread: usize) {
        RUNNING.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait_for_run(thread, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: `run` has moved, so the caller has written the cell and will not write it again
            // before `busy` is 0.
            let work = unsafe { *self.work.get() }.expect("work is set before a run begins");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(thread))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            let last = self.busy.fetch_sub(1, Ordering::SeqCst) == 1;
            if last
                && self.caller_parked.swap(false, Ordering::SeqCst)
                && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
            {
                caller.unpark();
            }
        }
    }

    fn wait_for_run(&self, thread: usize, seen: usize) -> usize {
        let moved = || self.run.load(Ordering::SeqCst) != seen;
        if !spin(self.spin, moved) {
            loop {
                self.parked[thread].store(true, Ordering::SeqCst);
                if moved() {
                    break;
                }
                std::thread::park();
            }
            self.parked[thread].store(false, Ordering::SeqCst);
        }
        self.run.load(Ordering::SeqCst)
    }

    fn wait_for_workers(&self) {
        let finished = || self.busy.load(Ordering::SeqCst) == 0;
        if !spin(self.spin, finished) {
            *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
            loop {
                self.caller_parked.store(true, Ordering::SeqCst);
                if finished() {
                    break;
                }
                std::thread::park();
            }
            self.caller_parked.store(false, Ordering::SeqCst);
        }
    }
}

/// Spins until `done` or for as long as `limit`; says whether it is done.
fn spin(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return false;
        }
    }
}

#[cfg(target_os = "linux")]
fn pin(core: usize) {
    if core >= libc::CPU_SETSIZE as usize {
        return;
    }
    // SAFETY: an all-zero set is a valid set; `core` is below its size, and the call reads the set only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        // A core that is not there is refused by the system; the thread then runs unpinned.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_core: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every thread takes part in every run, however the runs are spaced.
    #[test]
    fn every_thread_runs_once_per_run() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads, None);
            let counts: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for round in 0..2000 {
                pool.run(&|thread| {
                    counts[thread].fetch_add(1, Ordering::Relaxed);
                });
                if round % 500 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000), "{threads} threads");
        }
    }

    /// A panic on any thread reaches the caller, and the pool lives on.
    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = Pool::new(3, None);
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread| assert!(thread != bad, "thread {bad} fails"));
            }));
            assert!(result.is_err(), "the panic of thread {bad} was lost");
        }
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    /// Two callers take turns.
    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2, None);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(&|_| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }
}
