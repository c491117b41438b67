//! Keeps on the board what sits well already.
//!
//! Pure. A replica is kept where all its seats are open and nothing forbids it. One that has lost a seat to a death
//! keeps its number and its other seats, so that only the lost shard is loaded again. Of a device with too much on it
//! the hottest stay: they cost most while they move.

use super::Request;
use super::board::Board;
use super::build::seat_copy;
use crate::control::cluster::Cluster;
use crate::placement::{Placement, Replica, Seat};

/// What becomes of what an earlier placement has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// It is kept; and what is not kept still needs its memory until what replaces it stands.
    Beside,
    /// It is kept; what is not kept makes room first.
    Instead,
    /// All is laid out anew.
    Nothing,
}

/// Takes the numbers that were given out, and the memory of what sits.
pub(super) fn note_previous(board: &mut Board, request: &Request<'_>, keeps: Keeps) {
    let Some(previous) = request.previous else { return };
    board.is_beside = keeps == Keeps::Beside;
    for expert in 0..board.experts.len() {
        let bytes = board.experts[expert].bytes;
        for replica in replicas(board, previous, expert) {
            board.take_number(expert, replica.number);
            for seat in &replica.seats {
                if let Some(place) = board.place_of.get(seat).filter(|_| keeps == Keeps::Beside) {
                    board.add_shadow(*place, bytes);
                }
            }
        }
    }
}

fn replicas<'p>(board: &Board, previous: &'p Placement, expert: usize) -> &'p [Replica] {
    let of = &board.experts[expert];
    previous.replicas(of.layer, of.expert)
}

/// Keeps what every expert must have, in the order given.
pub(super) fn keep_first(
    board: &mut Board,
    request: &Request<'_>,
    keeps: Keeps,
    order: &[usize],
    copies_min: usize,
) {
    let Some(previous) = request.previous.filter(|_| keeps != Keeps::Nothing) else { return };
    for &expert in order {
        for replica in replicas(board, previous, expert) {
            if board.experts[expert].copies.len() < copies_min {
                keep_whole(board, keeps, expert, replica);
            }
        }
    }
    for &expert in order {
        for replica in replicas(board, previous, expert) {
            if board.experts[expert].copies.len() < copies_min {
                keep_survivors(board, request.cluster, keeps, expert, replica);
            }
        }
    }
}

/// Keeps what experts have beyond that, as far as they may.
pub(super) fn keep_extras(
    board: &mut Board,
    request: &Request<'_>,
    keeps: Keeps,
    order: &[usize],
    copies_max: usize,
) {
    let Some(previous) = request.previous.filter(|_| keeps != Keeps::Nothing) else { return };
    for &expert in order {
        for replica in replicas(board, previous, expert) {
            let copies = &board.experts[expert].copies;
            let is_there = copies.iter().any(|copy| board.copies[*copy].number == replica.number);
            if copies.len() < copies_max && !is_there {
                keep_whole(board, keeps, expert, replica);
            }
        }
    }
}

/// Keeps a replica whose seats are all open, if nothing forbids it.
fn keep_whole(board: &mut Board, keeps: Keeps, expert: usize, replica: &Replica) {
    let places: Option<Vec<usize>> =
        replica.seats.iter().map(|seat| board.place_of.get(seat).copied()).collect();
    let Some(places) = places.filter(|places| places.len() == usize::from(board.shards)) else { return };
    let copy = board.add_copy(expert, replica.number);
    note_width(board, copy, &places);
    let seats: Vec<_> = board.copies[copy].parts.clone().zip(places).collect();
    if keep_parts(board, keeps, &seats) < seats.len() {
        forget(board, keeps, &seats);
        board.remove_last_copy();
    }
}

/// Keeps what is left of a replica of which a device has died, and seats the rest.
fn keep_survivors(board: &mut Board, cluster: &Cluster, keeps: Keeps, expert: usize, replica: &Replica) {
    let is_dead = |seat: &Seat| cluster.memory(*seat) == 0;
    let dead = replica.seats.iter().filter(|seat| is_dead(seat)).count();
    let open = replica.seats.iter().filter(|seat| board.place_of.contains_key(seat)).count();
    if replica.seats.len() != usize::from(board.shards)
        || dead == 0
        || open == 0
        || dead + open < replica.seats.len()
    {
        return;
    }
    let copy = board.add_copy(expert, replica.number);
    let parts = board.copies[copy].parts.clone().zip(&replica.seats);
    let seats: Vec<_> = parts.filter_map(|(part, seat)| Some((part, *board.place_of.get(seat)?))).collect();
    let places: Vec<_> = seats.iter().map(|(_, place)| *place).collect();
    note_width(board, copy, &places);
    if keep_parts(board, keeps, &seats) < seats.len() || !seat_copy(board, copy, &|_, _| true) {
        forget(board, keeps, &seats);
        board.remove_last_copy();
    }
}

/// Whether the shards of a copy were in several domains, which only an unnamed domain allows.
fn note_width(board: &mut Board, copy: usize, places: &[usize]) {
    let mut domains = places.iter().map(|place| board.places[*place].domain);
    let first = domains.next();
    board.copies[copy].is_wide = !board.rules.is_domain_named && domains.any(|domain| Some(domain) != first);
}

/// Seats parts where they sat, until something forbids it. How many sit.
fn keep_parts(board: &mut Board, keeps: Keeps, seats: &[(usize, usize)]) -> usize {
    for (kept, &(part, place)) in seats.iter().enumerate() {
        let bytes = board.parts[part].bytes;
        if keeps == Keeps::Beside {
            board.remove_shadow(place, bytes);
        }
        if board.stay_barrier(part, place).is_some() {
            if keeps == Keeps::Beside {
                board.add_shadow(place, bytes);
            }
            return kept;
        }
        board.seat(part, place);
        board.parts[part].is_kept = true;
    }
    seats.len()
}

/// Takes back what [`keep_parts`] did.
fn forget(board: &mut Board, keeps: Keeps, seats: &[(usize, usize)]) {
    for &(part, place) in seats {
        if board.parts[part].place.is_some() {
            board.unseat(part);
            board.parts[part].is_kept = false;
            if keeps == Keeps::Beside {
                board.add_shadow(place, board.parts[part].bytes);
            }
        }
    }
}
