//! Makes room on a full board: others are moved along a chain of devices until one of them finds a seat.
//!
//! Pure. The shortest chain is searched for, breadth first over devices: where all experts are of one size and have one
//! replica, this is an augmenting path, and finds a seat whenever there is a layout at all. Else it may miss one.

use std::collections::VecDeque;

use super::board::Board;

/// Checks after which the search is given up.
const CHECKS_MAX: usize = 2_000_000;

/// How a device was reached: who is to come, and from where.
#[derive(Debug, Clone, Copy)]
struct Step {
    incoming: usize,
    from: Option<usize>,
}

/// Seats a copy that has one part.
pub(super) fn make_room(board: &mut Board, copy: usize) -> bool {
    let part = board.copies[copy].parts.start;
    let mut steps: Vec<Option<Step>> = vec![None; board.places.len()];
    let mut queue = VecDeque::new();
    let mut checks = 0;
    reach(board, part, None, &mut steps, &mut queue, &mut checks);
    while let Some(place) = queue.pop_front() {
        let step = steps[place].expect("only devices that were reached are queued");
        for outgoing in replaceable(board, step.incoming, place, &mut checks) {
            if checks > CHECKS_MAX {
                return false;
            }
            board.unseat(outgoing);
            checks += board.places.len();
            let end = board.best(outgoing, |end| end != place);
            if end.is_none() {
                reach(board, outgoing, Some(place), &mut steps, &mut queue, &mut checks);
            }
            board.seat(outgoing, place);
            if let Some(end) = end {
                return shift(board, &steps, place, outgoing, end);
            }
        }
    }
    false
}

/// Queues every device, not reached before, that could take `incoming` in exchange for somebody.
fn reach(
    board: &mut Board,
    incoming: usize,
    from: Option<usize>,
    steps: &mut [Option<Step>],
    queue: &mut VecDeque<usize>,
    checks: &mut usize,
) {
    for (place, step) in steps.iter_mut().enumerate() {
        let is_new = step.is_none() && Some(place) != from;
        if is_new && !replaceable(board, incoming, place, checks).is_empty() {
            *step = Some(Step { incoming, from });
            queue.push_back(place);
        }
    }
}

/// Who would have to leave a device for `incoming` to sit there: each of them would do.
fn replaceable(board: &mut Board, incoming: usize, place: usize, checks: &mut usize) -> Vec<usize> {
    let parts = board.places[place].parts.clone();
    *checks += parts.len() + 1;
    let may_leave = |part: &usize| {
        let part = &board.parts[*part];
        // Of one layer and one size, one is as good as another.
        part.layer != board.parts[incoming].layer && !(board.is_beside && part.is_kept)
    };
    let movable: Vec<usize> = parts.into_iter().filter(may_leave).collect();
    let mut found = Vec::new();
    for outgoing in movable {
        board.unseat(outgoing);
        if board.barrier(incoming, place).is_none() {
            found.push(outgoing);
        }
        board.seat(outgoing, place);
    }
    found
}

/// Moves everybody on the way one device on, the last one first. All or nobody.
fn shift(board: &mut Board, steps: &[Option<Step>], place: usize, outgoing: usize, end: usize) -> bool {
    let mut done: Vec<(usize, Option<usize>)> = Vec::new();
    let (mut moving, mut to, mut vacated) = (outgoing, end, Some(place));
    loop {
        let from = board.parts[moving].place.map(|_| board.unseat(moving));
        if board.barrier(moving, to).is_some() {
            if let Some(from) = from {
                board.seat(moving, from);
            }
            for (part, from) in done.into_iter().rev() {
                board.unseat(part);
                if let Some(from) = from {
                    board.seat(part, from);
                }
            }
            return false;
        }
        board.seat(moving, to);
        done.push((moving, from));
        let Some(place) = vacated else { break };
        let step = steps[place].expect("the way leads over devices that were reached");
        (moving, to, vacated) = (step.incoming, place, step.from);
    }
    for (part, _) in done {
        board.note_moved(part, None);
    }
    true
}
