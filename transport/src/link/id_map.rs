//! Dispatch ids that are open, and where each is kept.
//!
//! Pure. The ids of one direction are chosen by the peer, and this module has no randomness to hide
//! behind: whoever knows the hash can choose ids that all meet. So the search for a place is bounded. At most
//! half of the places are taken, where the longest search among 65,536 ids that were not chosen for it is about
//! 60 places; an id that would need more than the bound is refused, and its sender has broken the protocol.
//!
//! Nothing is allocated but when the map grows, and nothing is left behind by a removal.

/// Marks an empty place.
const EMPTY: u32 = u32::MAX;
/// Places of a map that has held anything.
const PLACES_MIN: usize = 64;

/// Why an id was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It is there already.
    There,
    /// Too many others want its place.
    Crowded,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    id: u64,
    value: u32,
}

/// From ids to small numbers: open addressing, linear probing.
#[derive(Debug)]
pub(super) struct IdMap {
    places: Vec<Place>,
    len: usize,
    search_max: usize,
}

impl IdMap {
    pub(super) fn new(search_max: usize) -> Self {
        Self { places: Vec::new(), len: 0, search_max }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `value` is below `u32::MAX`.
    pub(super) fn insert(&mut self, id: u64, value: u32) -> Result<(), NotTaken> {
        if self.len * 2 >= self.places.len() {
            self.grow();
        }
        let mask = self.places.len() - 1;
        let mut at = home(id) & mask;
        for _ in 0..self.search_max {
            let place = &mut self.places[at];
            if place.value == EMPTY {
                *place = Place { id, value };
                self.len += 1;
                return Ok(());
            }
            if place.id == id {
                return Err(NotTaken::There);
            }
            at = (at + 1) & mask;
        }
        Err(NotTaken::Crowded)
    }

    /// Changes what an id that is there stands for.
    pub(super) fn set(&mut self, id: u64, value: u32) {
        let at = self.find(id).expect("only ids that are there are changed");
        self.places[at].value = value;
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<u32> {
        let mut hole = self.find(id)?;
        let mask = self.places.len() - 1;
        let value = self.places[hole].value;
        self.len -= 1;
        // Whoever was pushed past the hole moves back into it, so that every search still ends at the first
        // empty place.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let place = self.places[at];
            if place.value == EMPTY {
                break;
            }
            let from_home = at.wrapping_sub(home(place.id)) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.places[hole] = place;
                hole = at;
            }
        }
        self.places[hole].value = EMPTY;
        Some(value)
    }

    fn find(&self, id: u64) -> Option<usize> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = home(id) & mask;
        loop {
            match self.places[at] {
                Place { value: EMPTY, .. } => return None,
                place if place.id == id => return Some(at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(PLACES_MIN);
        let old = std::mem::replace(&mut self.places, vec![Place { id: 0, value: EMPTY }; places]);
        let mask = places - 1;
        for place in old.into_iter().filter(|place| place.value != EMPTY) {
            let mut at = home(place.id) & mask;
            while self.places[at].value != EMPTY {
                at = (at + 1) & mask;
            }
            self.places[at] = place;
        }
    }
}

/// Where an id would like to be: the finaliser of MurmurHash3, every bit of the id reaches every bit of it.
fn home(id: u64) -> usize {
    let mut hash = id;
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash ^ (hash >> 33)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Against the standard library's map, with few ids so that they meet often.
    #[test]
    fn it_does_what_the_standard_map_does() {
        let (mut map, mut expected) = (IdMap::new(usize::MAX), HashMap::new());
        let mut random = 0x9e37_79b9_u64;
        for step in 0..200_000_u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (random >> 33) % 700;
            if random >> 63 == 0 {
                let taken = map.insert(id, step);
                assert_eq!(taken.is_ok(), !expected.contains_key(&id), "step {step}");
                expected.entry(id).or_insert(step);
            } else {
                assert_eq!(map.remove(id), expected.remove(&id), "step {step}");
            }
            assert_eq!(map.len(), expected.len());
        }
    }

    /// Ids that were chosen to meet are refused, not searched for.
    #[test]
    fn ids_chosen_to_meet_are_refused() {
        let mut map = IdMap::new(64);
        let bad = (0_u64..).filter(|id| home(*id) & 0xfff == 7).take(65).collect::<Vec<_>>();
        // Enough places that the ids meet only because they were chosen to.
        for id in 0..1000 {
            map.insert(u64::MAX - id, 0).unwrap();
        }
        for id in 0..1000 {
            assert_eq!(map.remove(u64::MAX - id), Some(0));
        }
        assert_eq!(map.places.len(), 2048);
        let taken = bad.iter().map(|id| map.insert(*id, 1)).collect::<Vec<_>>();
        assert!(taken[..64].iter().all(Result::is_ok));
        assert_eq!(taken[64], Err(NotTaken::Crowded));
    }

    /// What the bound must never hit: ids as honest senders choose them.
    #[test]
    fn honest_ids_never_meet_the_bound() {
        for step in [1_u64, 2, 64, 1 << 16, 1 << 32, 1 << 40, 0x1_0000_0001] {
            let mut map = IdMap::new(crate::link::in_flight::SEARCH_MAX);
            for id in 0..65_536_u64 {
                assert_eq!(map.insert(id.wrapping_mul(step).wrapping_add(12_345), 0), Ok(()), "step {step}");
            }
        }
    }
}
