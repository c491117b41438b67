//! Does things later: a thread with a clock that is finer than a runtime's, whose timers round to milliseconds.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

type What = Box<dyn FnOnce() + Send>;

/// The thread. Dropped, it ends, and what was still to be done is dropped with it.
pub(crate) struct Later {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// What credits let be under way bounds it: a few entries for each dispatch.
    waiting: BinaryHeap<Due>,
    count: u64,
    stop: bool,
}

struct Due {
    at: Instant,
    /// What is due at the same moment is done in the order in which it came.
    number: u64,
    what: What,
}

impl Due {
    /// The earliest is the greatest.
    fn key(&self) -> (std::cmp::Reverse<Instant>, std::cmp::Reverse<u64>) {
        (std::cmp::Reverse(self.at), std::cmp::Reverse(self.number))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Later {
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("emulation".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve()
        })?;
        Ok(Arc::new(Self { shared, thread: Some(thread) }))
    }

    /// Does `what` at that moment, or soon after; on another thread, which it must not keep waiting.
    pub(crate) fn at(&self, at: Instant, what: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.count += 1;
        let due = Due { at, number: state.count, what: Box::new(what) };
        let is_next = state.waiting.peek().is_none_or(|next| at < next.at);
        state.waiting.push(due);
        drop(state);
        if is_next {
            self.shared.news.notify_one();
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.news.notify_one();
        if let Some(thread) = self.thread.take()
            // What is done there may hold the last of whoever holds this.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds this.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.stop {
            let wait = state.waiting.peek().map(|next| next.at.saturating_duration_since(Instant::now()));
            state = match wait {
                None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) if !wait.is_zero() => {
                    self.news.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let due = state.waiting.pop().expect("just looked at");
                    drop(state);
                    (due.what)();
                    self.lock()
                }
            };
        }
        // Outside of the lock: what is dropped may answer its sender.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// In the order of their times, none before its own.
    #[test]
    fn things_are_done_when_they_are_due() {
        let later = Later::start().unwrap();
        let (tell, told) = mpsc::channel();
        let began = Instant::now();
        for ms in [5, 1, 3, 1] {
            let tell = tell.clone();
            let at = began + Duration::from_millis(ms);
            later.at(at, move || tell.send((ms, Instant::now() >= at)).unwrap());
        }
        let done: Vec<_> = told.iter().take(4).collect();
        assert_eq!(done, [(1, true), (1, true), (3, true), (5, true)]);
    }

    /// A batch that is held back answers its sender when the node ends, which its drop does.
    #[test]
    fn what_is_left_is_dropped_with_it() {
        let later = Later::start().unwrap();
        let (tell, told) = mpsc::channel::<()>();
        later.at(Instant::now() + Duration::from_secs(3600), move || drop(tell));
        drop(later);
        assert_eq!(told.recv(), Err(mpsc::RecvError));
    }
}
