//! The compute threads: they run one function together, spin briefly between runs, then park.
//!
//! Not pure: it owns threads. The thread that calls [`Pool::run`] is thread 0 and works too, so a pool of
//! one thread has no worker at all. Work is not split here: the function claims its pieces from an atomic
//! counter, so that a core slowed by a neighbour takes fewer of them and does not hold the others.
//!
//! Spinning pays when the next run comes within microseconds (a decode step has some hundred of them), and
//! costs the neighbours when it does not. So threads on shared cores spin for 20 us only; threads that
//! were given cores of their own, or whose callers take turns, spin longer.
//!
//! Threads that are not pinned are where the system puts them, which may be two on one core while another is idle: it leaves them
//! there for milliseconds, and each of them waits for the other. So whoever begins a run moves workers that were last seen on its
//! core, or on one another's, to others, from where the system may move them on as before.

mod place;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::place::{Moving, Place};

/// How long a thread spins before it parks, on cores that others use too.
const SPIN_SHARED: Duration = Duration::from_micros(20);

/// The same on cores given to the pool alone.
const SPIN_OWNED: Duration = Duration::from_micros(500);

/// The same where threads take turns at the pool: until the next of them has what it computes. A layer of a cluster in
/// one process is some four such turns, and a worker that has parked is late for each.
const SPIN_TURNS: Duration = Duration::from_micros(150);

/// Workers are moved at most so often: where others want all cores, moving does not help.
const MOVE_EVERY: Duration = Duration::from_micros(500);

/// More threads than this are a mistake in a configuration.
const THREADS_MAX: usize = 1024;

type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads that run one function together.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    cores: Option<Vec<usize>>,
    /// Held by the caller of a run, so that two callers take turns. When workers were moved last.
    turn: Mutex<Option<Instant>>,
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
    /// One per thread: where it was last seen to work.
    places: Vec<Place>,
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
            places: (0..threads).map(|_| Place::default()).collect(),
        });
        let workers = (1..threads)
            .map(|thread| {
                let shared = Arc::clone(&shared);
                let core = cores.map(|cores| cores[thread]);
                std::thread::Builder::new()
                    .name(format!("compute-{thread}"))
                    .spawn(move || {
                        if let Some(core) = core {
                            place::pin(core);
                        }
                        shared.serve(thread);
                    })
                    .expect("the system can start a thread")
            })
            .collect();
        Pool { shared, workers, cores: cores.map(<[usize]>::to_vec), turn: Mutex::new(None) }
    }

    /// How many threads take part in a run, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Pins the calling thread to the first of the cores given, if any were.
    pub fn pin_caller(&self) {
        if let Some(cores) = &self.cores {
            place::pin(cores[0]);
        }
    }

    /// Runs `work` once on every thread, with the thread's number, and returns when all have finished. A
    /// panic in `work` is passed on to the caller after that. Not to be called from inside `work`.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return work(0);
        }
        assert!(!RUNNING.get(), "a pool was run from inside a run");
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. This function does not return, nor unwind, before every
        // worker has finished with the reference (`busy` is 0).
        let kept = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: `turn` is held and no worker runs, so nothing else touches the cell.
        unsafe { *shared.work.get() = Some(kept) };
        shared.busy.store(self.workers.len(), Ordering::Relaxed);
        shared.run.fetch_add(1, Ordering::SeqCst);
        let moved = if self.cores.is_none() { shared.spread(&mut turn) } else { None };
        for (index, worker) in self.workers.iter().enumerate() {
            if shared.parked[index + 1].swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        drop(moved);
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
        self.places[thread].begin();
        loop {
            seen = self.wait_for_run(thread, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.places[thread].note();
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

    /// Has workers that would wait for a core of the others go to another, once they are woken.
    fn spread(&self, moved: &mut Option<Instant>) -> Option<Vec<Moving>> {
        self.places[0].note();
        let mut workers = (1..self.places.len()).filter(|at| self.places[..*at].contains(&self.places[*at]));
        let first = workers.next()?;
        if moved.is_some_and(|at| at.elapsed() < MOVE_EVERY) {
            return None;
        }
        *moved = Some(Instant::now());
        let others = |worker: usize| (0..self.places.len()).filter(move |at| *at != worker);
        let moving = |worker: usize| {
            self.places[worker].leave(others(worker).filter_map(|other| self.places[other].core()))
        };
        Some(std::iter::once(first).chain(workers).filter_map(moving).collect())
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

/// Spins until `done` or for as long as `limit`; says whether it is done. After [`SPIN_SHARED`] whoever waits for this core has it.
fn spin(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        match start.elapsed() {
            spun if spun >= limit => return false,
            spun if spun >= SPIN_SHARED => std::thread::yield_now(),
            _ => {}
        }
    }
}

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
