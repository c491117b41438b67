//! How `spread`, `pack` and `replicate` fill a board: what sits well stays, what has no seat gets one, hot experts
//! gain copies, and then it is made even.
//!
//! Pure. The hottest go first, each to the best device that may take it, which keeps the largest load within a third
//! of the best possible; where nothing is left, others are moved out of the way. Each way is tried from the calmest to
//! the one that moves most, and the first that seats everybody is taken.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use transport::wire::cluster::Epoch;

use super::board::{Aim, Barrier, Board, Rules};
use super::keep::{Keeps, keep_extras, keep_first, note_previous};
use super::polish::polish;
use super::room::make_room;
use super::{Refused, Request};
use crate::placement::{Placement, Replica};

/// One way to fill a board.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) aim: Aim,
    pub(super) cap: Option<u32>,
    pub(super) per_layer: Option<u32>,
    /// Copies beyond those that everybody must have.
    pub(super) extras_max: u32,
}

/// Parts that must be seated.
pub(super) fn parts_min(request: &Request<'_>) -> u64 {
    let copies = u64::from(request.constraints.replicas_min.max(1));
    request.demand.experts() * copies * u64::from(request.demand.shards.max(1))
}

/// Fills a board by the first of the plans that works.
pub(super) fn build(request: &Request<'_>, plans: &[Plan]) -> Result<Placement, Refused> {
    let keeps: &[Keeps] = match request.previous {
        Some(_) => &[Keeps::Beside, Keeps::Instead, Keeps::Nothing],
        None => &[Keeps::Nothing],
    };
    let mut sizes = request.demand.layers.values().map(|layer| layer.shard_bytes);
    let first = sizes.next();
    // Where sizes differ, the large ones may have to go first.
    let orders: &[bool] = if sizes.all(|bytes| Some(bytes) == first) { &[false] } else { &[false, true] };
    let mut refused = Refused::NoDevice;
    for keeps in keeps {
        for plan in plans {
            for by_bytes in orders {
                match attempt(request, plan, *keeps, *by_bytes, Unseated::Refuses) {
                    Ok(placement) => return Ok(placement),
                    Err(why) => refused = why,
                }
            }
        }
    }
    Err(refused)
}

/// What an expert means that finds no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unseated {
    /// There is no placement.
    Refuses,
    /// It has none.
    StaysOut,
}

/// Seats whom there is room for, and leaves out the others. What sits well stays where it is.
pub(super) fn build_what_fits(request: &Request<'_>, plan: &Plan) -> Placement {
    let placement = attempt(request, plan, Keeps::Beside, false, Unseated::StaysOut);
    placement.expect("whoever finds no seat stays out")
}

fn attempt(
    request: &Request<'_>,
    plan: &Plan,
    keeps: Keeps,
    by_bytes: bool,
    unseated: Unseated,
) -> Result<Placement, Refused> {
    let constraints = request.constraints;
    let mut board = Board::new(request, Rules::new(plan.aim, plan.cap, plan.per_layer, constraints));
    let mut order: Vec<usize> = (0..board.experts.len()).collect();
    order.sort_by_key(|expert| {
        let of = &board.experts[*expert];
        (Reverse(if by_bytes { of.bytes } else { 0 }), Reverse(of.rows), *expert)
    });
    let copies_min = usize::from(constraints.replicas_min.max(1));
    let copies_max = usize::from(constraints.replicas_max).max(copies_min);
    note_previous(&mut board, request, keeps);
    keep_first(&mut board, request, keeps, &order, copies_min);
    for copy_index in 0..copies_min {
        for expert in &order {
            if board.experts[*expert].copies.len() <= copy_index {
                let seated = seat_missing(&mut board, *expert);
                if unseated == Unseated::Refuses {
                    seated?;
                }
            }
        }
    }
    keep_extras(&mut board, request, keeps, &order, copies_max);
    add_extras(&mut board, plan.extras_max, copies_max, constraints.spares_min as usize);
    polish(&mut board, keeps != Keeps::Nothing);
    Ok(placement(&board))
}

/// A copy more for an expert that must have one. Without a seat for it, it has none more.
fn seat_missing(board: &mut Board, expert: usize) -> Result<(), Refused> {
    let Some(number) = board.free_number(expert) else { return Err(no_seat(board, expert)) };
    let copy = board.add_copy(expert, number);
    if seat_copy(board, copy, &|_, _| true) || (board.shards == 1 && make_room(board, copy)) {
        return Ok(());
    }
    let refused = no_seat(board, expert);
    board.remove_last_copy();
    Err(refused)
}

/// Who may take a part: a condition on the board and a device.
type May<'a> = &'a dyn Fn(&Board, usize) -> bool;

/// Seats the parts of a copy that do not sit; all or none of them.
pub(super) fn seat_copy(board: &mut Board, copy: usize, may: May<'_>) -> bool {
    let parts: Vec<usize> =
        board.copies[copy].parts.clone().filter(|part| board.parts[*part].place.is_none()).collect();
    if board.shards == 1 {
        return seat_parts(board, &parts, &|board, _, place| may(board, place));
    }
    let is_fresh = parts.len() == usize::from(board.shards);
    let domains = if is_fresh { domains_by_load(board) } else { vec![domain_of(board, copy)] };
    for shares_device in [false, true] {
        for domain in &domains {
            let allowed = |board: &Board, part: usize, place: usize| {
                board.places[place].domain == *domain
                    && (shares_device || !has_part_of(board, place, board.parts[part].copy))
                    && may(board, place)
            };
            if seat_parts(board, &parts, &allowed) {
                return true;
            }
        }
        if !board.rules.is_domain_named {
            board.copies[copy].is_wide = true;
            let allowed = |board: &Board, part: usize, place: usize| {
                (shares_device || !has_part_of(board, place, board.parts[part].copy)) && may(board, place)
            };
            if seat_parts(board, &parts, &allowed) {
                return true;
            }
            board.copies[copy].is_wide = false;
        }
    }
    false
}

fn seat_parts(board: &mut Board, parts: &[usize], may: &dyn Fn(&Board, usize, usize) -> bool) -> bool {
    for (seated, &part) in parts.iter().enumerate() {
        match board.best(part, |place| may(board, part, place)) {
            Some(place) => board.seat(part, place),
            None => {
                for part in &parts[..seated] {
                    board.unseat(*part);
                }
                return false;
            }
        }
    }
    true
}

fn has_part_of(board: &Board, place: usize, copy: usize) -> bool {
    board.places[place].parts.iter().any(|part| board.parts[*part].copy == copy)
}

/// The domain of the parts of a copy that sit.
fn domain_of(board: &Board, copy: usize) -> usize {
    let place = board.copies[copy].parts.clone().find_map(|part| board.parts[part].place);
    board.places[place.expect("a part sits")].domain
}

/// The least loaded for its devices first.
fn domains_by_load(board: &Board) -> Vec<usize> {
    let mut domains: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for place in &board.places {
        let (rows, devices) = domains.entry(place.domain).or_default();
        (*rows, *devices) = (*rows + place.rows, *devices + 1);
    }
    let mut order: Vec<_> =
        domains.into_iter().map(|(domain, (rows, devices))| (rows / devices, domain)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, domain)| domain).collect()
}

/// Copies of hot experts, one at a time to the expert with the most rows for each of its copies.
fn add_extras(board: &mut Board, extras_max: u32, copies_max: usize, spares_min: usize) {
    let heat =
        |board: &Board, expert: usize| board.experts[expert].rows / board.experts[expert].copies.len() as u64;
    let all = if extras_max == 0 { 0 } else { board.experts.len() };
    let mut hottest: BinaryHeap<_> = (0..all).map(|expert| (heat(board, expert), Reverse(expert))).collect();
    let mut extras = 0;
    while let Some((_, Reverse(expert))) = hottest.pop() {
        if extras == extras_max {
            break;
        }
        if board.experts[expert].copies.len() >= copies_max {
            continue;
        }
        let empty = board.places.iter().filter(|place| place.parts.is_empty()).count();
        let may = |board: &Board, place: usize| {
            !board.is_full(place) && (empty > spares_min || !board.places[place].parts.is_empty())
        };
        if !(0..board.places.len()).any(|place| may(board, place)) {
            break;
        }
        let Some(number) = board.free_number(expert) else { continue };
        let copy = board.add_copy(expert, number);
        if seat_copy(board, copy, &may) {
            extras += 1;
            hottest.push((heat(board, expert), Reverse(expert)));
        } else {
            board.remove_last_copy();
        }
    }
}

/// Why nobody takes an expert's copy that was just added and does not sit.
fn no_seat(board: &Board, expert: usize) -> Refused {
    let of = &board.experts[expert];
    let part = of.copies.last().map(|copy| board.copies[*copy].parts.start);
    let barriers: Vec<_> = (0..board.places.len()).filter_map(|place| board.barrier(part?, place)).collect();
    let count = |why: Barrier| barriers.iter().filter(|barrier| **barrier == why).count() as u64;
    Refused::Seat {
        layer: of.layer,
        expert: of.expert,
        devices: board.places.len() as u64,
        memory: count(Barrier::Memory),
        crowded: count(Barrier::Crowded),
        layers: count(Barrier::Layers),
        apart: count(Barrier::Apart),
        banned: count(Barrier::Banned),
    }
}

/// What the board says, as it is published.
pub(super) fn placement(board: &Board) -> Placement {
    let mut layers: BTreeMap<u32, Vec<Vec<Replica>>> = BTreeMap::new();
    for expert in &board.experts {
        let mut replicas: Vec<Replica> = expert
            .copies
            .iter()
            .map(|copy| {
                let copy = &board.copies[*copy];
                let seats = board.parts[copy.parts.clone()].iter();
                let seats = seats.map(|part| board.places[part.place.expect("every copy sits")].seat);
                Replica { number: copy.number, seats: seats.collect() }
            })
            .collect();
        replicas.sort_by_key(|replica| replica.number);
        layers.entry(expert.layer).or_default().push(replicas);
    }
    Placement { epoch: Epoch::default(), layers }
}
