//! The board: devices, what sits on them while a placement is made, and what may not sit where.
//!
//! Pure. A *part* is one shard of one copy of one expert: what an actor will be. Loads are rows: of devices, of nodes,
//! and of every label whose values share a link.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::topology::{below, places_and_groups};
use super::{Constraints, Request};
use crate::placement::{NodeId, Seat};

/// What is made even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// Rows over links, the outermost first.
    Links,
    /// Rows over devices.
    Devices,
}

/// What may not be broken on this board.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) aim: Aim,
    /// Parts on one device.
    pub(super) cap: Option<u32>,
    /// Experts of one layer on one device.
    pub(super) per_layer: Option<u32>,
    pub(super) layers_max: Option<u32>,
    pub(super) is_domain_named: bool,
}

impl Rules {
    pub(super) fn new(aim: Aim, cap: Option<u32>, per_layer: Option<u32>, constraints: &Constraints) -> Self {
        let (layers_max, is_domain_named) =
            (constraints.max_layers_per_device, constraints.failure_domain.is_some());
        Self { aim, cap, per_layer, layers_max, is_domain_named }
    }
}

/// Why a part may not sit on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Barrier {
    Memory,
    Crowded,
    Layers,
    Apart,
    Banned,
}

/// A device.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) seat: Seat,
    memory: u64,
    used: u64,
    /// What an earlier placement still has here, and this one takes away: it goes last, so it needs its memory.
    shadow_bytes: u64,
    shadow_parts: u32,
    pub(super) rows: u64,
    pub(super) parts: Vec<usize>,
    pub(super) domain: usize,
}

/// One shard of one copy of one expert.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) copy: usize,
    pub(super) layer: u32,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) place: Option<usize>,
    /// It sits where it sat before.
    pub(super) is_kept: bool,
}

/// One copy of one expert.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) expert: usize,
    pub(super) number: u8,
    pub(super) parts: std::ops::Range<usize>,
    /// Its shards are in several domains, because no domain has devices enough.
    pub(super) is_wide: bool,
}

/// One expert.
#[derive(Debug, Clone)]
pub(super) struct Expert {
    pub(super) layer: u32,
    pub(super) expert: u32,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) copies: Vec<usize>,
    /// Numbers of copies that are taken, or were by some that may come back.
    numbers: [u64; 4],
}

#[derive(Debug, Clone)]
pub(super) struct Board {
    pub(super) rules: Rules,
    pub(super) places: Vec<Place>,
    pub(super) place_of: BTreeMap<Seat, usize>,
    pub(super) experts: Vec<Expert>,
    pub(super) copies: Vec<Copy>,
    pub(super) parts: Vec<Part>,
    /// For each level of links, the outermost first and nodes last: the group of every device.
    pub(super) groups: Vec<Vec<usize>>,
    /// Rows of every group.
    pub(super) loads: Vec<Vec<u64>>,
    /// The groups of the outermost level.
    roots: Vec<usize>,
    /// For each level, the groups of the level below each of its groups; below nodes are devices.
    below: Vec<Vec<Vec<usize>>>,
    pub(super) shards: u8,
    /// What is not kept still needs its memory until what replaces it stands.
    pub(super) is_beside: bool,
    /// Experts, and the nodes that cannot load them.
    banned: BTreeSet<(usize, NodeId)>,
}

/// The coldest expert counts as this part of an even one: no measurement says that it is never chosen.
const COLD_PART: u64 = 64;

impl Place {
    /// A device with nothing on it.
    pub(super) fn new(seat: Seat, memory: u64, domain: usize) -> Self {
        let (used, shadow_bytes, shadow_parts, rows) = (0, 0, 0, 0);
        Self { seat, memory, used, shadow_bytes, shadow_parts, rows, parts: Vec::new(), domain }
    }
}

impl Board {
    pub(super) fn new(request: &Request<'_>, rules: Rules) -> Self {
        let (places, groups) = places_and_groups(request);
        let count = |of: &Vec<usize>| of.iter().max().map_or(0, |most| most + 1);
        let loads: Vec<Vec<u64>> = groups.iter().map(|of| vec![0; count(of)]).collect();
        let below = below(&groups, &loads);
        let roots = (0..loads[0].len()).collect();
        let place_of = places.iter().enumerate().map(|(index, place)| (place.seat, index)).collect();
        let mut experts = Vec::new();
        for (&layer, demand) in &request.demand.layers {
            let rows = request.statistics.expected(layer, demand);
            let coldest = rows.iter().sum::<u64>() / u64::from(demand.experts.max(1)) / COLD_PART;
            for (expert, rows) in rows.into_iter().enumerate() {
                let rows = rows.max(coldest).max(1);
                let (expert, bytes) = (expert as u32, demand.shard_bytes);
                experts.push(Expert { layer, expert, bytes, rows, copies: Vec::new(), numbers: [0; 4] });
            }
        }
        let shards = request.demand.shards.max(1);
        let (copies, parts) = (Vec::new(), Vec::new());
        let is_beside = false;
        let banned = experts.iter().enumerate().flat_map(|(index, of): (usize, &Expert)| {
            let first = (of.layer, of.expert, NodeId(0))..=(of.layer, of.expert, NodeId(u32::MAX));
            request.constraints.banned.range(first).map(move |(_, _, node)| (index, *node))
        });
        let banned = banned.collect();
        Self {
            rules,
            places,
            place_of,
            experts,
            copies,
            parts,
            groups,
            loads,
            roots,
            below,
            shards,
            is_beside,
            banned,
        }
    }

    /// What an earlier placement has on a device, until it is kept.
    pub(super) fn add_shadow(&mut self, place: usize, bytes: u64) {
        self.places[place].shadow_bytes = self.places[place].shadow_bytes.saturating_add(bytes);
        self.places[place].shadow_parts += 1;
    }

    pub(super) fn remove_shadow(&mut self, place: usize, bytes: u64) {
        let place = &mut self.places[place];
        place.shadow_bytes = place.shadow_bytes.saturating_sub(bytes);
        place.shadow_parts = place.shadow_parts.saturating_sub(1);
    }

    /// Takes a number of an expert's copy, so that it is not given out.
    pub(super) fn take_number(&mut self, expert: usize, number: u8) {
        self.experts[expert].numbers[usize::from(number) / 64] |= 1 << (number % 64);
    }

    fn is_taken(&self, expert: usize, number: u8) -> bool {
        self.experts[expert].numbers[usize::from(number) / 64] >> (number % 64) & 1 == 1
    }

    /// The lowest number that no copy of this expert has had, if there is one.
    pub(super) fn free_number(&mut self, expert: usize) -> Option<u8> {
        let number = (0..=u8::MAX).find(|number| !self.is_taken(expert, *number))?;
        self.take_number(expert, number);
        Some(number)
    }

    /// Adds a copy of an expert, none of whose parts sits yet. The expert's rows are shared by its copies.
    pub(super) fn add_copy(&mut self, expert: usize, number: u8) -> usize {
        let (copy, first) = (self.copies.len(), self.parts.len());
        let Expert { layer, bytes, .. } = self.experts[expert];
        for _ in 0..self.shards {
            self.parts.push(Part { copy, layer, bytes, rows: 0, place: None, is_kept: false });
        }
        self.copies.push(Copy { expert, number, parts: first..self.parts.len(), is_wide: false });
        self.experts[expert].copies.push(copy);
        self.share_rows(expert);
        copy
    }

    /// Takes back the copy that was added last, none of whose parts sits.
    pub(super) fn remove_last_copy(&mut self) {
        let copy = self.copies.pop().expect("a copy was added");
        self.parts.truncate(copy.parts.start);
        let removed = self.experts[copy.expert].copies.pop();
        debug_assert_eq!(removed, Some(self.copies.len()));
        self.share_rows(copy.expert);
    }

    /// Takes a copy off the board, wherever it stands; where its parts sat.
    pub(super) fn take_copy(&mut self, copy: usize) -> Vec<usize> {
        let parts: Vec<usize> = self.copies[copy].parts.clone().collect();
        let places = parts.into_iter().map(|part| self.unseat(part)).collect();
        let expert = self.copies[copy].expert;
        self.experts[expert].copies.retain(|other| *other != copy);
        self.share_rows(expert);
        places
    }

    /// Puts a copy back that was taken off.
    pub(super) fn put_back(&mut self, copy: usize, places: &[usize]) {
        let expert = self.copies[copy].expert;
        self.experts[expert].copies.push(copy);
        self.share_rows(expert);
        for (part, place) in self.copies[copy].parts.clone().zip(places) {
            self.seat(part, *place);
        }
    }

    /// Gives a number back that nobody has used.
    pub(super) fn give_number(&mut self, expert: usize, number: u8) {
        self.experts[expert].numbers[usize::from(number) / 64] &= !(1 << (number % 64));
    }

    fn share_rows(&mut self, expert: usize) {
        let copies = &self.experts[expert].copies;
        let Some(rows) = self.experts[expert].rows.checked_div(copies.len() as u64) else { return };
        let parts: Vec<usize> = copies.iter().flat_map(|copy| self.copies[*copy].parts.clone()).collect();
        for part in parts {
            let place = self.parts[part].place;
            if let Some(place) = place {
                self.add_load(place, self.parts[part].rows, false);
                self.add_load(place, rows, true);
            }
            self.parts[part].rows = rows;
        }
    }

    fn add_load(&mut self, place: usize, rows: u64, add: bool) {
        let change = |load: &mut u64| *load = if add { *load + rows } else { *load - rows };
        change(&mut self.places[place].rows);
        for (groups, loads) in self.groups.iter().zip(&mut self.loads) {
            change(&mut loads[groups[place]]);
        }
    }

    /// Seats a part. The caller has asked [`Board::barrier`].
    pub(super) fn seat(&mut self, part: usize, place: usize) {
        debug_assert!(self.parts[part].place.is_none());
        self.parts[part].place = Some(place);
        self.places[place].parts.push(part);
        self.places[place].used += self.parts[part].bytes;
        self.add_load(place, self.parts[part].rows, true);
    }

    pub(super) fn unseat(&mut self, part: usize) -> usize {
        let place = self.parts[part].place.take().expect("the part sits");
        self.places[place].parts.retain(|other| *other != part);
        self.places[place].used -= self.parts[part].bytes;
        self.add_load(place, self.parts[part].rows, false);
        place
    }

    /// Records that a part has been moved, from where it still has its memory if it was kept there. A copy that was
    /// kept gets a new number: an actor never has two living seats.
    pub(super) fn note_moved(&mut self, part: usize, from: Option<usize>) {
        if !std::mem::take(&mut self.parts[part].is_kept) {
            return;
        }
        let (copy, bytes) = (self.parts[part].copy, self.parts[part].bytes);
        let number = self.free_number(self.copies[copy].expert);
        self.copies[copy].number = number.expect("an expert has had fewer than 256 copies");
        if let Some(from) = from.filter(|_| self.is_beside) {
            self.add_shadow(from, bytes);
        }
    }

    /// Whether as many parts sit on a device as may.
    pub(super) fn is_full(&self, place: usize) -> bool {
        self.rules.cap.is_some_and(|cap| self.places[place].parts.len() as u64 >= u64::from(cap))
    }

    /// What forbids that a part sits on a device, if anything does.
    pub(super) fn barrier(&self, part: usize, place: usize) -> Option<Barrier> {
        let at = &self.places[place];
        self.barrier_beside(part, at, at.shadow_bytes, at.shadow_parts)
    }

    /// What forbids that a part stays on a device: who else was there makes no difference.
    pub(super) fn stay_barrier(&self, part: usize, place: usize) -> Option<Barrier> {
        self.barrier_beside(part, &self.places[place], 0, 0)
    }

    fn barrier_beside(&self, part: usize, at: &Place, bytes: u64, parts: u32) -> Option<Barrier> {
        let part = &self.parts[part];
        if !self.banned.is_empty() && self.banned.contains(&(self.copies[part.copy].expert, at.seat.node)) {
            return Some(Barrier::Banned);
        }
        let bytes = at.used.saturating_add(bytes).saturating_add(part.bytes);
        if bytes > at.memory {
            return Some(Barrier::Memory);
        }
        if let Some(cap) = self.rules.cap
            && at.parts.len() as u64 + u64::from(parts) >= u64::from(cap)
        {
            return Some(Barrier::Crowded);
        }
        self.neighbours_barrier(part, at).or_else(|| self.apart_barrier(part, at))
    }

    /// Experts and layers that sit there already.
    fn neighbours_barrier(&self, part: &Part, at: &Place) -> Option<Barrier> {
        if self.rules.per_layer.is_none() && self.rules.layers_max.is_none() {
            return None;
        }
        let expert_of = |part: &Part| self.copies[part.copy].expert;
        let (mut layers, mut experts) = (Vec::new(), Vec::new());
        for other in at.parts.iter().map(|other| &self.parts[*other]) {
            if !layers.contains(&other.layer) {
                layers.push(other.layer);
            }
            if other.layer == part.layer && !experts.contains(&expert_of(other)) {
                experts.push(expert_of(other));
            }
        }
        let is_full =
            |count: usize, most: Option<u32>| most.is_some_and(|most| count as u64 >= u64::from(most));
        if !experts.contains(&expert_of(part)) && is_full(experts.len(), self.rules.per_layer) {
            return Some(Barrier::Crowded);
        }
        if !layers.contains(&part.layer) && is_full(layers.len(), self.rules.layers_max) {
            return Some(Barrier::Layers);
        }
        None
    }

    /// Copies fail apart; shards of one together.
    fn apart_barrier(&self, part: &Part, at: &Place) -> Option<Barrier> {
        let copies = &self.experts[self.copies[part.copy].expert].copies;
        if copies.len() == 1 && self.shards == 1 {
            return None;
        }
        for &copy in copies {
            let is_own = copy == part.copy;
            let must_join = is_own && !self.copies[copy].is_wide;
            for other in &self.parts[self.copies[copy].parts.clone()] {
                let Some(place) = other.place else { continue };
                let is_joined = self.places[place].domain == at.domain;
                if (is_own && must_join && !is_joined) || (!is_own && is_joined) {
                    return Some(Barrier::Apart);
                }
            }
        }
        None
    }

    /// The best device for a part among those that `may` take it and that nothing forbids.
    pub(super) fn best(&self, part: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        let is_open = |place: usize| may(place) && self.barrier(part, place).is_none();
        match self.rules.aim {
            Aim::Links => self.best_below(&self.roots, 0, &is_open),
            Aim::Devices => self.least_loaded(&is_open),
        }
    }

    /// Down from the least loaded group, and from the next one where that has nothing open.
    fn best_below(&self, groups: &[usize], level: usize, is_open: &dyn Fn(usize) -> bool) -> Option<usize> {
        let load = |group: usize| match self.loads.get(level) {
            Some(loads) => (loads[group], 0, group),
            None => (self.places[group].rows, self.places[group].parts.len(), group),
        };
        let mut rest: BinaryHeap<_> = groups.iter().map(|group| Reverse(load(*group))).collect();
        while let Some(Reverse((_, _, group))) = rest.pop() {
            let found = match self.below.get(level) {
                Some(below) => self.best_below(&below[group], level + 1, is_open),
                None => is_open(group).then_some(group),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The least loaded device, of equal ones that of the least loaded node.
    fn least_loaded(&self, is_open: &dyn Fn(usize) -> bool) -> Option<usize> {
        let nodes = self.groups.len() - 1;
        let load = |place: usize| {
            let of = &self.places[place];
            (of.rows, of.parts.len(), self.loads[nodes][self.groups[nodes][place]], place)
        };
        let mut best = None;
        for place in 0..self.places.len() {
            let own = load(place);
            if best.is_none_or(|best| own < best) && is_open(place) {
                best = Some(own);
            }
        }
        best.map(|(_, _, _, place)| place)
    }
}
