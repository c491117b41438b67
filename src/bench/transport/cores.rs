//! Where both ends run in a window: nothing is left to the scheduler, whose choice would be most of a ratio.
//!
//! - Ends that spin have a core each: on one they would take turns of whole time slices.
//! - Round trips of ends that sleep happen on one core, as only one of them has work at a time. Waking
//!   another core would add its price to both sides (43 us on one virtual machine, where the same core
//!   takes 5), and hide what the transport costs: a ratio measured here is the worst of any placement.
//! - One way, both have work at once, and each has a core.
//!
//! A host with a single core is left as it is.

use std::time::Duration;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use super::contest::Contestant;
use crate::Failure;

/// Two cores that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cores {
    pub(super) first: usize,
    pub(super) second: usize,
}

impl Cores {
    /// Not two threads of one core, if that can be helped; `None` if there is just one.
    pub(super) fn choose() -> Result<Option<Self>, Failure> {
        let allowed = sched_getaffinity(None)?;
        let allowed = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        Ok(choose(&allowed.collect::<Vec<_>>(), siblings))
    }
}

fn choose(allowed: &[usize], siblings: impl Fn(usize) -> Option<String>) -> Option<Cores> {
    let (first, others) = allowed.split_first()?;
    let with = siblings(*first);
    let second = others.iter().find(|core| with.is_none() || siblings(**core) != with).or(others.first())?;
    Some(Cores { first: *first, second: *second })
}

/// The threads of the core that this one belongs to, as the kernel lists them.
fn siblings(core: usize) -> Option<String> {
    std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")).ok()
}

/// A contestant whose ends are put on their cores before each of its windows.
pub(super) struct Placed {
    pub(super) contestant: Box<dyn Contestant>,
    pub(super) cores: Option<Cores>,
}

impl Placed {
    fn place(&self, is_apart: bool) -> Result<(), Failure> {
        let Some(Cores { first, second }) = self.cores else { return Ok(()) };
        stay_on(None, first)?;
        match self.contestant.peer_thread() {
            Some(peer) => stay_on(Some(peer), if is_apart { second } else { first }),
            None => Ok(()),
        }
    }
}

/// Keeps a thread, this one where it is `None`, on a core.
fn stay_on(thread: Option<Pid>, core: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(thread, &set).map_err(|why| match thread {
        Some(thread) => {
            format!("cannot put the echoing end ({thread:?}) on core {core}: {why}; has it ended?").into()
        }
        None => format!("cannot stay on core {core}: {why}").into(),
    })
}

impl Contestant for Placed {
    fn name(&self) -> &'static str {
        self.contestant.name()
    }

    fn peer_thread(&self) -> Option<Pid> {
        self.contestant.peer_thread()
    }

    fn spins(&self) -> bool {
        self.contestant.spins()
    }

    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        self.place(self.spins())?;
        self.contestant.round_trips(bytes, count)
    }

    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        self.place(true)?;
        self.contestant.one_way(bytes, count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use rustix::thread::gettid;

    use super::*;

    #[test]
    fn ends_that_are_apart_share_no_core() {
        let pairs = |core: usize| Some(format!("{}", core / 2));
        let chosen = |allowed: &[usize]| choose(allowed, pairs).map(|cores| (cores.first, cores.second));
        assert_eq!(chosen(&[0, 1, 2, 3]), Some((0, 2)));
        assert_eq!(chosen(&[2, 3]), Some((2, 3)), "two threads of one core are better than one");
        assert_eq!(chosen(&[7]), None);
        assert_eq!(choose(&[4, 5], |_| None), Some(Cores { first: 4, second: 5 }));
    }

    fn cores_of(thread: Option<Pid>) -> Vec<usize> {
        let set = sched_getaffinity(thread).expect("the kernel says");
        (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
    }

    /// Notes where both of its ends are.
    struct Where {
        peer: Pid,
        spins: bool,
        was: Arc<Mutex<Vec<[Vec<usize>; 2]>>>,
    }

    impl Where {
        fn note(&self) {
            self.was.lock().expect("no panic").push([cores_of(None), cores_of(Some(self.peer))]);
        }
    }

    impl Contestant for Where {
        fn name(&self) -> &'static str {
            "where"
        }

        fn peer_thread(&self) -> Option<Pid> {
            Some(self.peer)
        }

        fn spins(&self) -> bool {
            self.spins
        }

        fn round_trips(&mut self, _: usize, _: usize) -> Result<Vec<Duration>, Failure> {
            self.note();
            Ok(Vec::new())
        }

        fn one_way(&mut self, _: usize, _: usize) -> Result<Duration, Failure> {
            self.note();
            Ok(Duration::ZERO)
        }
    }

    #[test]
    fn ends_are_put_where_their_windows_want_them() {
        let Some(cores) = Cores::choose().expect("the kernel says") else { return };
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let peer = std::thread::spawn(move || {
            tell.send(gettid()).expect("somebody listens");
            let _ = stopped.recv();
        });
        let id = told.recv().expect("it says");
        let was = Arc::default();
        let noted = Arc::clone(&was);
        // In a thread of its own, which is not kept where it was put.
        std::thread::spawn(move || {
            for spins in [false, true] {
                let contestant = Box::new(Where { peer: id, spins, was: Arc::clone(&noted) });
                let mut placed = Placed { contestant, cores: Some(cores) };
                placed.round_trips(0, 0).expect("it is allowed");
                placed.one_way(0, 0).expect("it is allowed");
            }
        })
        .join()
        .expect("no panic");
        let (together, apart) =
            ([vec![cores.first], vec![cores.first]], [vec![cores.first], vec![cores.second]]);
        assert_eq!(*was.lock().expect("no panic"), [together, apart.clone(), apart.clone(), apart]);
        drop(stop);
        peer.join().expect("no panic");
    }
}
