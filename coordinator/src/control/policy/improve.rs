//! Makes what sits better by a few changes: a hot expert gains a replica or moves, a cold one loses a replica.
//!
//! Pure. A layer is done when its most loaded device is: its *peak* is the rows of that device. Layer by layer the
//! changes are sought that lower the peak; whoever asks says which of them pay. Nothing else is touched, and no
//! constraint is broken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use super::board::{Aim, Board, Rules};
use super::build::{placement, seat_copy};
use super::keep::{Keeps, keep_extras, keep_first, note_previous};
use super::{Policy, Request};
use crate::placement::{NodeId, Placement, Seat};

/// The peak must fall to so much of itself, in percent, or it may be chance.
const CALM_PERCENT: u64 = 97;
/// Experts of the peak that are looked at, and replicas that may make room for others.
const LOOKED_AT_MAX: usize = 8;

/// What one expert does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of the model.
    pub layer: u32,
    /// Of the layer.
    pub expert: u32,
    /// Where it is no more.
    pub from: Vec<Seat>,
    /// Where it will be.
    pub to: Vec<Seat>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |seats: &[Seat]| {
            let seats = seats.iter().map(|seat| format!("{} device {}", seat.node, seat.device));
            seats.collect::<Vec<_>>().join(", ")
        };
        write!(f, "layer {} expert {} ", self.layer, self.expert)?;
        match (&self.from[..], &self.to[..]) {
            ([], to) => write!(f, "gains a replica on {}", shown(to)),
            (from, []) => write!(f, "loses its replica on {}", shown(from)),
            (from, to) => write!(f, "moves from {} to {}", shown(from), shown(to)),
        }
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proposal {
    /// One after another.
    pub changes: Vec<Change>,
    /// For each layer that is touched, its peak before and after, in rows of the statistics' scale.
    pub peaks: BTreeMap<u32, (u64, u64)>,
    /// Bytes that are loaded, by node.
    pub loads: BTreeMap<NodeId, u64>,
    /// Bytes that are dropped.
    pub freed: u64,
}

/// What is better.
#[derive(Debug, Clone, Default)]
pub struct Improved {
    /// The placement, if anything pays.
    pub placement: Option<Placement>,
    /// What was taken.
    pub taken: Vec<Proposal>,
    /// The best that was not.
    pub left: Option<Proposal>,
}

/// Improves `request.previous` by at most `changes_max` changes, each part of a proposal that `pays`. Cold experts may lose
/// replicas where the policy adds none by itself.
pub fn improve(
    policy: Policy,
    request: &Request<'_>,
    changes_max: usize,
    pays: &mut dyn FnMut(&Proposal) -> bool,
) -> Improved {
    let mut improved = Improved::default();
    let Some(mut board) = seated(policy, request) else { return improved };
    let replicates = matches!(policy, Policy::Auto | Policy::Replicate);
    let limits = Limits {
        copies_min: usize::from(request.constraints.replicas_min.max(1)),
        copies_max: if replicates { usize::from(request.constraints.replicas_max) } else { 0 },
        spares_min: request.constraints.spares_min as usize,
    };
    let layers = measured(&board, request);
    let mut left = changes_max;
    while left > 0 {
        let mut found: Vec<(u64, u32, Range<usize>)> = Vec::new();
        for (layer, experts) in &layers {
            let before = peak(&board, experts).0;
            let steps = plan(&mut board, experts, &limits, left);
            let after = peak(&board, experts).0;
            revert(&mut board, &steps);
            if !steps.is_empty() {
                found.push((before - after, *layer, experts.clone()));
            }
        }
        found.sort_by_key(|(saved, layer, _)| (Reverse(*saved), *layer));
        let mut is_taken = false;
        for (_, _, experts) in found {
            let before = peaks(&board, &layers);
            let steps = plan(&mut board, &experts, &limits, left);
            let proposal = proposal(&board, &steps, &before, &peaks(&board, &layers));
            if pays(&proposal) {
                left -= steps.len().min(left);
                improved.taken.push(proposal);
                is_taken = true;
                break;
            }
            revert(&mut board, &steps);
            improved.left.get_or_insert(proposal);
        }
        if !is_taken {
            break;
        }
    }
    if policy == Policy::Auto {
        lose(&mut board, &layers, &limits, left, pays, &mut improved);
    }
    improved.placement = (!improved.taken.is_empty()).then(|| placement(&board));
    improved
}

struct Limits {
    copies_min: usize,
    copies_max: usize,
    spares_min: usize,
}

/// One change on the board.
#[derive(Debug)]
enum Step {
    Moved { part: usize, from: usize, to: usize, number: u8 },
    Gained { copy: usize },
    Lost { copy: usize, places: Vec<usize> },
}

/// The board as it is, if all that sits may stay.
fn seated(policy: Policy, request: &Request<'_>) -> Option<Board> {
    let previous = request.previous?;
    let mut crowds: BTreeMap<Seat, u32> = BTreeMap::new();
    previous.actors().for_each(|(_, seat)| *crowds.entry(seat).or_default() += 1);
    // One expert on a device stays one; where several share one already, memory says how many.
    let is_bound = |most: &u32| *most == 1 || policy == Policy::Spread;
    let cap = crowds.values().max().copied().filter(is_bound);
    // And so does one expert of a layer on a device, where the policy had it so.
    let of_layers: BTreeSet<(Seat, u32, u32)> =
        previous.actors().map(|(actor, seat)| (seat, actor.layer, actor.expert)).collect();
    let mut pairs = of_layers.iter().zip(of_layers.iter().skip(1));
    let is_spread = pairs.all(|(one, next)| (one.0, one.1) != (next.0, next.1));
    let per_layer = match policy {
        Policy::Reference => return None,
        Policy::Spread => Some(1),
        Policy::Pack => None,
        Policy::Replicate | Policy::Auto => is_spread.then_some(1),
    };
    let per_layer = request.constraints.max_experts_per_device_per_layer.or(per_layer);
    let mut board = Board::new(request, Rules::new(Aim::Devices, cap, per_layer, request.constraints));
    let order: Vec<usize> = (0..board.experts.len()).collect();
    note_previous(&mut board, request, Keeps::Instead);
    keep_first(&mut board, request, Keeps::Instead, &order, 1);
    keep_extras(&mut board, request, Keeps::Instead, &order, usize::from(u8::MAX));
    let replicas = previous.layers.values().flatten().flatten().filter(|replica| !replica.seats.is_empty());
    let is_whole = board.experts.iter().all(|expert| !expert.copies.is_empty());
    (is_whole && board.copies.len() == replicas.count()).then_some(board)
}

/// Experts of each layer of which rows have been measured, as they stand on the board.
fn measured(board: &Board, request: &Request<'_>) -> BTreeMap<u32, Range<usize>> {
    let mut layers: BTreeMap<u32, Range<usize>> = BTreeMap::new();
    for (index, expert) in board.experts.iter().enumerate() {
        if request.statistics.rows.contains_key(&expert.layer) {
            layers.entry(expert.layer).or_insert(index..index).end = index + 1;
        }
    }
    layers
}

/// Rows of a layer on each device that has any.
fn rows_on(board: &Board, experts: &Range<usize>) -> BTreeMap<usize, u64> {
    let mut rows = BTreeMap::new();
    let copies = board.experts[experts.clone()].iter().flat_map(|expert| &expert.copies);
    for part in copies.flat_map(|copy| board.copies[*copy].parts.clone()) {
        let part = &board.parts[part];
        if let Some(place) = part.place {
            *rows.entry(place).or_default() += part.rows;
        }
    }
    rows
}

/// The most loaded device of a layer.
fn peak(board: &Board, experts: &Range<usize>) -> (u64, usize) {
    let rows = rows_on(board, experts);
    let most = rows.into_iter().max_by_key(|(place, rows)| (*rows, Reverse(*place)));
    most.map_or((0, 0), |(place, rows)| (rows, place))
}

fn peaks(board: &Board, layers: &BTreeMap<u32, Range<usize>>) -> BTreeMap<u32, u64> {
    layers.iter().map(|(layer, experts)| (*layer, peak(board, experts).0)).collect()
}

/// Takes steps until the peak of a layer has fallen; none, where it does not.
fn plan(board: &mut Board, experts: &Range<usize>, limits: &Limits, steps_max: usize) -> Vec<Step> {
    let before = peak(board, experts).0;
    let mut steps = Vec::new();
    // Several devices may share the peak.
    while steps.len() < steps_max && best_step(board, experts, limits, &mut steps) {
        if peak(board, experts).0 * 100 <= before * CALM_PERCENT {
            return steps;
        }
    }
    revert(board, &steps);
    Vec::new()
}

/// Takes the step that leaves the least on the most loaded device and on the one that takes over. Whether there is one.
fn best_step(board: &mut Board, experts: &Range<usize>, limits: &Limits, steps: &mut Vec<Step>) -> bool {
    let rows = rows_on(board, experts);
    let (high, at) = peak(board, experts);
    let load = |place: usize| rows.get(&place).copied().unwrap_or(0);
    let mut parts: Vec<usize> = board.places[at].parts.clone();
    parts.retain(|part| experts.contains(&board.copies[board.parts[*part].copy].expert));
    parts.sort_by_key(|part| (Reverse(board.parts[*part].rows), *part));
    parts.truncate(LOOKED_AT_MAX);
    let mut best: Option<(u64, usize, bool)> = None;
    for part in parts {
        let own = board.parts[part].rows;
        if board.shards == 1 {
            board.unseat(part);
            let to = least_loaded(board, part, limits, &load);
            board.seat(part, at);
            let after = to.map(|to| (high - own).max(load(to) + own));
            if let Some(after) = after.filter(|after| *after < best.map_or(high, |best| best.0)) {
                best = Some((after, part, false));
            }
        }
        let expert = board.copies[board.parts[part].copy].expert;
        let copies = board.experts[expert].copies.len();
        if copies < limits.copies_max {
            let share = board.experts[expert].rows / (copies as u64 + 1);
            let after = high - own + share;
            if after < best.map_or(high, |best| best.0) {
                best = Some((after, part, true));
            }
        }
    }
    let Some((_, part, is_gain)) = best else { return false };
    if is_gain {
        gain(board, part, high, limits, &load, steps)
    } else {
        shift(board, part, limits, &load, steps)
    }
}

/// The device that may take a part and has the least of its layer, then of all.
fn least_loaded(board: &Board, part: usize, limits: &Limits, load: &dyn Fn(usize) -> u64) -> Option<usize> {
    let empty = board.places.iter().filter(|place| place.parts.is_empty()).count();
    let may = |place: &usize| {
        let is_spare = board.places[*place].parts.is_empty() && empty <= limits.spares_min;
        !is_spare && board.barrier(part, *place).is_none()
    };
    let key = |place: &usize| (load(*place), board.places[*place].rows, *place);
    (0..board.places.len()).filter(may).min_by_key(key)
}

fn shift(
    board: &mut Board,
    part: usize,
    limits: &Limits,
    load: &dyn Fn(usize) -> u64,
    steps: &mut Vec<Step>,
) -> bool {
    let from = board.unseat(part);
    let to = least_loaded(board, part, limits, load).expect("it was found a moment ago");
    board.seat(part, to);
    let copy = board.parts[part].copy;
    let number = board.copies[copy].number;
    board.note_moved(part, None);
    steps.push(Step::Moved { part, from, to, number });
    true
}

/// Gives the expert of a part a replica, where there is room or a colder replica can make some.
fn gain(
    board: &mut Board,
    part: usize,
    high: u64,
    limits: &Limits,
    load: &dyn Fn(usize) -> u64,
    steps: &mut Vec<Step>,
) -> bool {
    let expert = board.copies[board.parts[part].copy].expert;
    let Some(number) = board.free_number(expert) else { return false };
    let copy = board.add_copy(expert, number);
    if board.shards > 1 {
        let is_seated = seat_copy(board, copy, &|_, _| true);
        if is_seated {
            steps.push(Step::Gained { copy });
        } else {
            board.remove_last_copy();
            board.give_number(expert, number);
        }
        return is_seated;
    }
    let first = board.copies[copy].parts.start;
    let share = board.parts[first].rows;
    if let Some(to) = least_loaded(board, first, limits, load).filter(|to| load(*to) + share < high) {
        board.seat(first, to);
        steps.push(Step::Gained { copy });
        return true;
    }
    let mut colder: Vec<usize> = board
        .experts
        .iter()
        .filter(|of| of.copies.len() > limits.copies_min)
        .flat_map(|of| of.copies.iter().copied().filter(|other| board.copies[*other].expert != expert))
        .collect();
    // Of equal ones the latest goes.
    let heat = |copy: &usize| (board.parts[board.copies[*copy].parts.start].rows, Reverse(*copy));
    colder.retain(|other| heat(other).0 < share);
    colder.sort_by_key(heat);
    for other in colder.into_iter().take(LOOKED_AT_MAX) {
        let places = board.take_copy(other);
        let place = places[0];
        if load(place) + share < high && board.barrier(first, place).is_none() {
            board.seat(first, place);
            // The one that goes was there before the new one came.
            steps.push(Step::Lost { copy: other, places });
            steps.push(Step::Gained { copy });
            return true;
        }
        board.put_back(other, &places);
    }
    board.remove_last_copy();
    board.give_number(expert, number);
    false
}

/// Takes steps back, the last one first.
fn revert(board: &mut Board, steps: &[Step]) {
    for step in steps.iter().rev() {
        match step {
            Step::Moved { part, from, number, .. } => {
                board.unseat(*part);
                board.seat(*part, *from);
                let copy = board.parts[*part].copy;
                let taken = std::mem::replace(&mut board.copies[copy].number, *number);
                if taken != *number {
                    board.give_number(board.copies[copy].expert, taken);
                    board.parts[*part].is_kept = true;
                }
            }
            Step::Gained { copy } => {
                board.take_copy(*copy);
                board.give_number(board.copies[*copy].expert, board.copies[*copy].number);
            }
            Step::Lost { copy, places } => board.put_back(*copy, places),
        }
    }
}

fn proposal(
    board: &Board,
    steps: &[Step],
    before: &BTreeMap<u32, u64>,
    after: &BTreeMap<u32, u64>,
) -> Proposal {
    let mut proposal = Proposal::default();
    let seat = |place: &usize| board.places[*place].seat;
    for step in steps {
        let (copy, from, to): (usize, Vec<usize>, Vec<usize>) = match step {
            Step::Moved { part, from, to, .. } => (board.parts[*part].copy, vec![*from], vec![*to]),
            Step::Gained { copy } => {
                let parts = board.parts[board.copies[*copy].parts.clone()].iter();
                (*copy, Vec::new(), parts.filter_map(|part| part.place).collect())
            }
            Step::Lost { copy, places } => (*copy, places.clone(), Vec::new()),
        };
        let expert = &board.experts[board.copies[copy].expert];
        for place in &to {
            *proposal.loads.entry(seat(place).node).or_default() += expert.bytes;
        }
        proposal.freed += expert.bytes * from.len() as u64;
        proposal.changes.push(Change {
            layer: expert.layer,
            expert: expert.expert,
            from: from.iter().map(seat).collect(),
            to: to.iter().map(seat).collect(),
        });
    }
    let changed = before.iter().filter(|(layer, rows)| after[layer] != **rows);
    proposal.peaks = changed.map(|(layer, rows)| (*layer, (*rows, after[layer]))).collect();
    proposal
}

/// Takes replicas away that are not worth their memory, the coldest first.
fn lose(
    board: &mut Board,
    layers: &BTreeMap<u32, Range<usize>>,
    limits: &Limits,
    most: usize,
    pays: &mut dyn FnMut(&Proposal) -> bool,
    improved: &mut Improved,
) {
    let gained: Vec<(u32, u32)> = improved
        .taken
        .iter()
        .flat_map(|taken| &taken.changes)
        .map(|change| (change.layer, change.expert))
        .collect();
    let mut extras: Vec<(u64, usize)> = Vec::new();
    for experts in layers.values() {
        for of in &board.experts[experts.clone()] {
            if of.copies.len() > limits.copies_min && !gained.contains(&(of.layer, of.expert)) {
                let last = *of.copies.iter().max().expect("it has several");
                extras.push((of.rows / of.copies.len() as u64, last));
            }
        }
    }
    extras.sort_unstable();
    for (_, copy) in extras.into_iter().take(most) {
        let layer = board.experts[board.copies[copy].expert].layer;
        let before = peak(board, &layers[&layer]).0;
        let places = board.take_copy(copy);
        let after = peak(board, &layers[&layer]).0;
        let steps = [Step::Lost { copy, places }];
        let proposal = proposal(board, &steps, &[(layer, before)].into(), &[(layer, after)].into());
        if pays(&proposal) {
            improved.taken.push(proposal);
        } else {
            revert(board, &steps);
        }
    }
}
