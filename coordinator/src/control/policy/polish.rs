//! Makes loads even: parts move or change places as long as that lowers the largest load.
//!
//! Pure. Level by level, the outermost link first, and within a level only inside one group of the level above, so
//! that what was made even stays so. Where an earlier placement is kept, nothing is touched within a tenth of even:
//! rows are measured, and moving for noise costs more than it saves.

use super::board::{Aim, Board};

/// How far above even a load may be before what sits is moved, in percent.
const CALM_PERCENT: u128 = 110;
/// Pairs of parts that are looked at before the rest is left as it is.
const PAIRS_MAX: usize = 5_000_000;

/// Groups that may take something from the largest: the least loaded ones.
const TAKERS_MAX: usize = 8;

/// What may be done.
#[derive(Debug, Clone, Copy)]
enum Change {
    Move { part: usize, to: usize },
    Swap { part: usize, with: usize },
}

/// Makes the board even. `calm`: an earlier placement is kept.
pub(super) fn polish(board: &mut Board, calm: bool) {
    let devices = board.groups.len();
    let mut budget = PAIRS_MAX;
    match board.rules.aim {
        Aim::Devices => {
            let all: Vec<usize> = (0..board.places.len()).collect();
            even_out(board, devices, &all, calm, &mut budget);
        }
        Aim::Links => {
            for level in 0..=devices {
                for within in split(board, level.checked_sub(1)) {
                    even_out(board, level, &within, calm, &mut budget);
                }
            }
        }
    }
}

/// The devices of each group of a level, or all of them.
fn split(board: &Board, level: Option<usize>) -> Vec<Vec<usize>> {
    let all = 0..board.places.len();
    let Some(level) = level else { return vec![all.collect()] };
    let mut split = vec![Vec::new(); board.loads[level].len()];
    for place in all {
        split[board.groups[level][place]].push(place);
    }
    split
}

fn group(board: &Board, level: usize, place: usize) -> usize {
    board.groups.get(level).map_or(place, |groups| groups[place])
}

fn load(board: &Board, level: usize, group: usize) -> u64 {
    board.loads.get(level).map_or_else(|| board.places[group].rows, |loads| loads[group])
}

/// Evens out the groups of one level that `places` belong to.
fn even_out(board: &mut Board, level: usize, places: &[usize], calm: bool, budget: &mut usize) {
    let mut groups: Vec<usize> = places.iter().map(|place| group(board, level, *place)).collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() < 2 {
        return;
    }
    let all: u128 = groups.iter().map(|group| u128::from(load(board, level, *group))).sum();
    while *budget > 0 {
        let largest = groups.iter().copied().max_by_key(|group| (load(board, level, *group), *group));
        let largest = largest.expect("there are groups");
        let scaled = u128::from(load(board, level, largest)) * groups.len() as u128;
        if scaled <= all || (calm && scaled * 100 <= all * CALM_PERCENT) {
            return;
        }
        groups.sort_by_key(|group| (load(board, level, *group), *group));
        let takers = &groups[..groups.len().min(TAKERS_MAX)];
        let Some(change) = best_change(board, level, places, largest, takers, calm, budget) else { return };
        apply(board, change);
    }
}

/// The change that lowers the larger load of two groups most, one of them the largest.
fn best_change(
    board: &mut Board,
    level: usize,
    places: &[usize],
    largest: usize,
    takers: &[usize],
    calm: bool,
    budget: &mut usize,
) -> Option<Change> {
    let high = load(board, level, largest);
    let (mut best, mut best_load) = (None, high);
    let inside = places.iter().filter(|place| group(board, level, **place) == largest);
    let parts: Vec<usize> = inside.flat_map(|place| board.places[*place].parts.clone()).collect();
    let is_taker = |place: &usize| {
        let own = group(board, level, *place);
        own != largest && takers.contains(&own)
    };
    let others: Vec<usize> = places.iter().copied().filter(is_taker).collect();
    for part in parts {
        let rows = board.parts[part].rows;
        for &to in &others {
            let low = load(board, level, group(board, level, to));
            *budget = budget.saturating_sub(1 + board.places[to].parts.len());
            let after = (high - rows).max(low + rows);
            if after < best_load && may_move(board, part, to) {
                (best, best_load) = (Some(Change::Move { part, to }), after);
            }
            if calm {
                continue;
            }
            for with in board.places[to].parts.clone() {
                let back = board.parts[with].rows;
                let after = (high - rows + back).max((low + rows).saturating_sub(back));
                if back < rows && after < best_load && may_swap(board, part, with) {
                    (best, best_load) = (Some(Change::Swap { part, with }), after);
                }
            }
        }
        if *budget == 0 {
            break;
        }
    }
    best
}

/// Shards of a replica that is kept move only together, which nothing here does.
fn is_stuck(board: &Board, part: usize) -> bool {
    board.shards > 1
        && board.copies[board.parts[part].copy].parts.clone().any(|part| board.parts[part].is_kept)
}

fn may_move(board: &mut Board, part: usize, to: usize) -> bool {
    if is_stuck(board, part) || shares_device(board, part, to) {
        return false;
    }
    let from = board.unseat(part);
    let may = board.barrier(part, to).is_none();
    board.seat(part, from);
    may
}

/// Shards of one copy are put on one device only where there is no other way.
fn shares_device(board: &Board, part: usize, to: usize) -> bool {
    let copy = board.parts[part].copy;
    board.shards > 1 && board.places[to].parts.iter().any(|other| board.parts[*other].copy == copy)
}

fn may_swap(board: &mut Board, part: usize, with: usize) -> bool {
    if is_stuck(board, part) || is_stuck(board, with) || board.parts[part].copy == board.parts[with].copy {
        return false;
    }
    let (from, to) = (board.unseat(part), board.unseat(with));
    let mut may = !shares_device(board, part, to) && !shares_device(board, with, from);
    if may && board.barrier(part, to).is_none() {
        board.seat(part, to);
        may = board.barrier(with, from).is_none();
        board.unseat(part);
    } else {
        may = false;
    }
    board.seat(with, to);
    board.seat(part, from);
    may
}

fn apply(board: &mut Board, change: Change) {
    match change {
        Change::Move { part, to } => {
            let from = board.unseat(part);
            board.seat(part, to);
            board.note_moved(part, Some(from));
        }
        Change::Swap { part, with } => {
            let (from, to) = (board.unseat(part), board.unseat(with));
            board.seat(part, to);
            board.seat(with, from);
            board.note_moved(part, None);
            board.note_moved(with, None);
        }
    }
}
