//! Which links have something to be read.
//!
//! A shell. Every link is polled with a waker of its own, which puts the link on a list and wakes the data actor's
//! task: so a wake costs what has come, and not what stands open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use super::ids::LinkId;

/// The links that are to be polled, in the order in which they asked for it.
#[derive(Debug, Default)]
pub(super) struct Ready {
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    links: Vec<LinkId>,
    /// Who takes the list; none, if it knows already that there is something on it.
    task: Option<Waker>,
}

/// Wakes for one link.
#[derive(Debug)]
pub(super) struct Bell {
    link: LinkId,
    is_listed: AtomicBool,
    list: Arc<Mutex<List>>,
}

impl Ready {
    /// A link comes; it is polled at the next turn.
    pub(super) fn bell(&self, link: LinkId) -> Arc<Bell> {
        let bell = Arc::new(Bell { link, is_listed: AtomicBool::new(false), list: Arc::clone(&self.list) });
        bell.wake_by_ref();
        bell
    }

    /// Takes the links that are to be polled into `links`, which is empty. Whoever asks from now on wakes `task`.
    pub(super) fn take(&self, links: &mut Vec<LinkId>, task: &Waker) {
        let mut list = lock(&self.list);
        std::mem::swap(&mut list.links, links);
        match &mut list.task {
            Some(known) => known.clone_from(task),
            none => *none = Some(task.clone()),
        }
    }
}

impl Bell {
    /// Its link is about to be polled: from now on it may ask again.
    pub(super) fn reset(&self) {
        self.is_listed.store(false, Ordering::Release);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut list = lock(&self.list);
            list.links.push(self.link);
            list.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Nothing that holds this lock can panic half-way.
fn lock(list: &Mutex<List>) -> MutexGuard<'_, List> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn taken(ready: &Ready, task: &Waker) -> Vec<u32> {
        let mut links = Vec::new();
        ready.take(&mut links, task);
        links.iter().map(|link| link.0).collect()
    }

    /// Nobody is lost, nobody stands twice, and the task is woken once for all that came since it looked.
    #[test]
    fn each_link_that_asks_is_listed_once() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let woken = || count.0.swap(0, Ordering::Relaxed);
        let ready = Ready::default();
        let bells: Vec<_> = (0..4).map(|link| ready.bell(LinkId(link))).collect();
        assert_eq!(taken(&ready, &task), [0, 1, 2, 3], "new links are polled first of all");
        assert_eq!(woken(), 0);

        // None of them was polled yet, so they are known to be asked for.
        bells[2].wake_by_ref();
        assert_eq!((taken(&ready, &task), woken()), (vec![], 0));

        bells.iter().for_each(|bell| bell.reset());
        for link in [3, 1, 3, 1, 0] {
            bells[link].wake_by_ref();
        }
        assert_eq!((woken(), taken(&ready, &task)), (1, vec![3, 1, 0]));
    }
}
