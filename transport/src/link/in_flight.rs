//! Which dispatches wait for their returns, and whose deadline is next.
//!
//! Pure. A binary heap of slots by deadline, and a map from ids to slots: both ends of a dispatch's life cost
//! O(log n), nothing is allocated but when more are open than ever before, and deadlines pass in order,
//! which a timing wheel would give only up to its tick.
//!
//! A dispatch whose deadline has passed is given up, yet it stays in flight until its return: the peer still
//! works on it, and must never be sent more at once than both ends agreed on.

use std::time::Instant;

use super::ended::Ended;
use super::id_map::{IdMap, NotTaken};

/// Longest search for the place of an id that the peer chose; see `id_map.rs`.
pub(super) const SEARCH_MAX: usize = 1024;

/// Why a dispatch may not be sent now. It is not in flight.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DispatchRefused {
    /// Later: `Event::Writable` of the data lane says when.
    #[error("{max} dispatches wait for their returns already, no more may")]
    InFlightFull {
        /// As many as both ends allow.
        max: u32,
    },
    /// The id is in flight.
    #[error("dispatch {dispatch} is in flight already; ids are never used again")]
    Reused {
        /// The id.
        dispatch: u64,
    },
    /// The handshake is not done.
    #[error("the link is not open yet")]
    NotOpen,
    /// The link is being drained.
    #[error("the link is draining and takes no new dispatches; send it over another")]
    Draining,
    /// It is over.
    #[error("{0}")]
    Closed(Ended),
}

#[derive(Debug)]
struct Slot {
    dispatch: u64,
    deadline: Instant,
    /// Where in `order`.
    at: u32,
}

/// In place of a slot: the deadline has passed.
const EXPIRED: u32 = u32::MAX - 1;

/// What a return was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Returned {
    /// A dispatch that waited for it.
    Open,
    /// A dispatch that had been given up.
    Late,
    /// None.
    Unknown,
}

/// Dispatches without a return, and the deadlines of those not given up.
#[derive(Debug)]
pub(super) struct InFlight {
    max: u32,
    slots: Vec<Slot>,
    /// The numbers of all slots: first the heap, then the free ones.
    order: Vec<u32>,
    heap_len: usize,
    ids: IdMap,
}

impl InFlight {
    pub(super) fn new(max: u32) -> Self {
        // These ids are our own: nobody chooses them to meet.
        Self {
            max: max.min(EXPIRED),
            slots: Vec::new(),
            order: Vec::new(),
            heap_len: 0,
            ids: IdMap::new(usize::MAX),
        }
    }

    /// How many have no return yet.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// Opens a dispatch.
    pub(super) fn insert(&mut self, dispatch: u64, deadline: Instant) -> Result<(), DispatchRefused> {
        if self.len() >= self.max as usize {
            return Err(DispatchRefused::InFlightFull { max: self.max });
        }
        let at = self.heap_len;
        if at == self.order.len() {
            let slot = u32::try_from(at).expect("below `max`, which is 32 bits");
            self.order.push(slot);
            self.slots.push(Slot { dispatch, deadline, at: slot });
        }
        let slot = self.order[at];
        match self.ids.insert(dispatch, slot) {
            Ok(()) => {}
            Err(NotTaken::There) => return Err(DispatchRefused::Reused { dispatch }),
            Err(NotTaken::Crowded) => unreachable!("the search for our own ids has no bound"),
        }
        self.slots[slot as usize] = Slot { dispatch, deadline, at: at as u32 };
        self.heap_len += 1;
        self.rise(at);
        Ok(())
    }

    /// Closes a dispatch.
    pub(super) fn remove(&mut self, dispatch: u64) -> Returned {
        match self.ids.remove(dispatch) {
            None => Returned::Unknown,
            Some(EXPIRED) => Returned::Late,
            Some(slot) => {
                self.take_from_heap(self.slots[slot as usize].at as usize);
                Returned::Open
            }
        }
    }

    /// Gives up the dispatch whose deadline passed first, if one has.
    pub(super) fn expire(&mut self, now: Instant) -> Option<u64> {
        self.next_deadline().filter(|deadline| *deadline <= now)?;
        let dispatch = self.slots[self.order[0] as usize].dispatch;
        self.take_from_heap(0);
        self.ids.set(dispatch, EXPIRED);
        Some(dispatch)
    }

    /// When the next deadline passes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        (self.heap_len > 0).then(|| self.slots[self.order[0] as usize].deadline)
    }

    /// Moves the last of the heap into the place of one that leaves; its slot is then the first free one.
    fn take_from_heap(&mut self, at: usize) {
        self.heap_len -= 1;
        let last = self.heap_len;
        let (leaving, moved) = (self.order[at], self.order[last]);
        self.place(last, leaving);
        if at < last {
            self.place(at, moved);
            self.sink(at);
            self.rise(at);
        }
    }

    fn place(&mut self, at: usize, slot: u32) {
        self.order[at] = slot;
        self.slots[slot as usize].at = at as u32;
    }

    /// Deadlines in order, and dispatches of the same deadline by their ids, so that no run differs from
    /// another.
    fn key(&self, at: usize) -> (Instant, u64) {
        let slot = &self.slots[self.order[at] as usize];
        (slot.deadline, slot.dispatch)
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let above = (at - 1) / 2;
            if self.key(above) <= self.key(at) {
                break;
            }
            self.swap(at, above);
            at = above;
        }
    }

    fn sink(&mut self, mut at: usize) {
        let len = self.heap_len;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= len {
                break;
            }
            let below = if right < len && self.key(right) < self.key(left) { right } else { left };
            if self.key(at) <= self.key(below) {
                break;
            }
            self.swap(at, below);
            at = below;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        let (slot_a, slot_b) = (self.order[a], self.order[b]);
        self.place(a, slot_b);
        self.place(b, slot_a);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    /// Against a sorted map of the standard library.
    #[test]
    fn deadlines_pass_in_order_whatever_returns_in_between() {
        let start = Instant::now();
        let (mut in_flight, mut expected) = (InFlight::new(300), BTreeMap::<u64, Option<Instant>>::new());
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for step in 0..100_000_u64 {
            match next(9) {
                0..=3 => {
                    let deadline = start + Duration::from_micros(step + next(500));
                    let taken = in_flight.insert(step, deadline);
                    if expected.len() < 300 {
                        assert_eq!(taken, Ok(()));
                        expected.insert(step, Some(deadline));
                    } else {
                        assert_eq!(taken, Err(DispatchRefused::InFlightFull { max: 300 }));
                    }
                }
                4..=7 => {
                    let dispatch = step.saturating_sub(next(400));
                    let returned = match expected.remove(&dispatch) {
                        None => Returned::Unknown,
                        Some(None) => Returned::Late,
                        Some(Some(_)) => Returned::Open,
                    };
                    assert_eq!(in_flight.remove(dispatch), returned, "step {step}");
                }
                _ => {
                    let now = start + Duration::from_micros(step);
                    let due =
                        |(id, at): (&u64, &Option<Instant>)| at.filter(|at| *at <= now).map(|at| (at, *id));
                    let mut due = expected.iter().filter_map(due).collect::<Vec<_>>();
                    due.sort_unstable();
                    for (_, dispatch) in due {
                        assert_eq!(in_flight.expire(now), Some(dispatch), "step {step}");
                        expected.insert(dispatch, None);
                    }
                    assert_eq!(in_flight.expire(now), None);
                }
            }
            assert_eq!(in_flight.next_deadline(), expected.values().copied().flatten().min(), "step {step}");
            assert_eq!(in_flight.len(), expected.len());
        }
    }

    #[test]
    fn an_id_without_a_return_is_not_taken_twice() {
        let now = Instant::now();
        let mut in_flight = InFlight::new(2);
        assert_eq!(in_flight.insert(7, now), Ok(()));
        assert_eq!(in_flight.insert(7, now), Err(DispatchRefused::Reused { dispatch: 7 }));
        assert_eq!(in_flight.expire(now), Some(7));
        assert_eq!(in_flight.insert(7, now), Err(DispatchRefused::Reused { dispatch: 7 }));
        assert_eq!(in_flight.insert(8, now), Ok(()));
        assert_eq!(in_flight.insert(9, now), Err(DispatchRefused::InFlightFull { max: 2 }));
        assert_eq!(
            [7, 7, 8].map(|id| in_flight.remove(id)),
            [Returned::Late, Returned::Unknown, Returned::Open]
        );
        assert_eq!(in_flight.insert(7, now), Ok(()));
    }
}
