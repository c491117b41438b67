//! On which core a thread is, and how it comes to another one.
//!
//! The system is asked through libc. Where there is nobody to ask, threads are where they are.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Where a thread was last seen.
#[derive(Debug)]
pub(super) struct Place {
    core: AtomicUsize,
    /// What the system calls the thread; none before it has begun.
    thread: AtomicI32,
}

/// A thread that is kept off some cores: until this is dropped, by when it has been woken on another one.
#[derive(Debug)]
pub(super) struct Moving {
    #[cfg(target_os = "linux")]
    thread: i32,
    #[cfg(target_os = "linux")]
    allowed: libc::cpu_set_t,
}

const NOWHERE: usize = usize::MAX;

impl Default for Place {
    fn default() -> Self {
        Self { core: AtomicUsize::new(NOWHERE), thread: AtomicI32::new(0) }
    }
}

/// Two are one place if they are known and the same.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.core().is_some_and(|core| other.core() == Some(core))
    }
}

impl Place {
    /// Where the thread was last seen.
    pub(super) fn core(&self) -> Option<usize> {
        Some(self.core.load(Ordering::Relaxed)).filter(|core| *core != NOWHERE)
    }

    /// This is the thread.
    pub(super) fn begin(&self) {
        self.thread.store(system::thread(), Ordering::Relaxed);
    }

    /// This thread is here now.
    pub(super) fn note(&self) {
        self.core.store(system::core().unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// Keeps the thread off these cores, if there are others that it may use.
    pub(super) fn leave(&self, cores: impl Iterator<Item = usize>) -> Option<Moving> {
        match self.thread.load(Ordering::Relaxed) {
            0 => None,
            thread => system::leave(thread, cores),
        }
    }
}

#[cfg(target_os = "linux")]
pub(super) use system::pin;

#[cfg(target_os = "linux")]
mod system {
    use std::mem::size_of;

    use super::Moving;

    /// What the system calls this thread.
    pub(super) fn thread() -> i32 {
        // SAFETY: it takes nothing and cannot fail.
        unsafe { libc::gettid() }
    }

    /// The core that this thread is on at the moment.
    pub(super) fn core() -> Option<usize> {
        // SAFETY: it takes nothing and gives a number, negative where the system cannot say.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// Binds this thread to one core. One that is not there is refused by the system, and the thread then runs unpinned.
    pub(in crate::pool) fn pin(core: usize) {
        let mut set = empty();
        if core < libc::CPU_SETSIZE as usize {
            // SAFETY: `core` is below the size of the set.
            unsafe { libc::CPU_SET(core, &mut set) };
        }
        set_allowed(0, &set);
    }

    pub(super) fn leave(thread: i32, cores: impl Iterator<Item = usize>) -> Option<Moving> {
        let mut allowed = empty();
        // SAFETY: the call writes the set only, whose size it is told.
        if unsafe { libc::sched_getaffinity(thread, size_of::<libc::cpu_set_t>(), &mut allowed) } != 0 {
            return None;
        }
        let mut others = allowed;
        for core in cores.filter(|core| *core < libc::CPU_SETSIZE as usize) {
            // SAFETY: `core` is below the size of the set.
            unsafe { libc::CPU_CLR(core, &mut others) };
        }
        // SAFETY: it reads the set.
        if unsafe { libc::CPU_COUNT(&others) } == 0 {
            return None;
        }
        set_allowed(thread, &others);
        Some(Moving { thread, allowed })
    }

    impl Drop for Moving {
        fn drop(&mut self) {
            set_allowed(self.thread, &self.allowed);
        }
    }

    fn empty() -> libc::cpu_set_t {
        // SAFETY: an all-zero set is a valid set.
        unsafe { std::mem::zeroed() }
    }

    fn set_allowed(thread: i32, set: &libc::cpu_set_t) {
        // SAFETY: the call reads the set only. Refused, it changes nothing.
        unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), set) };
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::Moving;

    pub(super) fn thread() -> i32 {
        0
    }

    pub(super) fn core() -> Option<usize> {
        None
    }

    pub(super) fn leave(_thread: i32, _cores: impl Iterator<Item = usize>) -> Option<Moving> {
        None
    }
}

/// Binds this thread to one core, where the system can do that.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_core: usize) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The cores that this thread may use, as the system says it.
    fn allowed() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    }

    /// On a thread of its own, as it is bound or moved.
    fn on_a_thread(work: impl FnOnce(&Place) + Send) {
        let on_it = || {
            let place = Place::default();
            assert!(place.leave([0].into_iter()).is_none(), "nobody has begun");
            place.begin();
            place.note();
            work(&place);
        };
        std::thread::scope(|scope| scope.spawn(on_it).join().unwrap());
    }

    #[test]
    fn a_thread_is_kept_off_a_core_and_may_come_back() {
        on_a_thread(|place| {
            let (before, here) = (allowed(), place.core().unwrap());
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let moving = place.leave([here, NOWHERE].into_iter());
            place.note();
            match cores {
                1 => assert!(moving.is_none(), "there is nowhere to go"),
                _ => assert_ne!(place.core(), Some(here)),
            }
            drop(moving);
            assert_eq!(allowed(), before);
        });
    }

    #[test]
    fn a_bound_thread_stays() {
        on_a_thread(|place| {
            let here = place.core().unwrap();
            pin(here);
            assert_eq!(allowed(), here.to_string());
            place.note();
            assert!(place.leave(place.core().into_iter()).is_none());
            pin(NOWHERE);
            assert_eq!(allowed(), here.to_string(), "what is no core binds nobody");
        });
    }

    #[test]
    fn unknown_places_are_not_the_same() {
        let (one, other) = (Place::default(), Place::default());
        assert_ne!(one, other);
        one.note();
        assert_ne!(one, other);
        assert_eq!(one, one);
    }
}
