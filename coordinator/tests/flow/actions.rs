//! Whole lists of batches, for the cases that can be followed by hand.

use phalanx_coordinator::data::flow::{Batch, Chunk, Flow, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::{RowId, SequenceId};

const A: SequenceId = SequenceId(0);
const B: SequenceId = SequenceId(1);

pub(crate) fn settings(stages: u32, forwarding: Forwarding) -> FlowSettings {
    FlowSettings {
        stages,
        head_has_layers: false,
        rows_max: 16,
        sequences_max: 4,
        batch_rows_max: 8,
        forwarding,
    }
}

fn flow(stages: u32, forwarding: Forwarding) -> Flow {
    Flow::new(settings(stages, forwarding))
}

fn chunk(sequence: SequenceId, start: u32, count: u32, samples: bool) -> Chunk {
    Chunk { sequence, start, count, samples, is_scored: false }
}

/// A batch in few words: stage, and of each run the sequence, first position, rows, and `*` if it samples.
fn told(batch: &Batch) -> String {
    let mut told = format!("{}:", batch.stage);
    let mut end = 0;
    for run in &batch.runs {
        assert_eq!(run.rows.start, end, "runs lie one behind the other");
        end = run.rows.end;
        let star = if run.samples { "*" } else { "" };
        told += &format!(" {}@{}+{}{star}", run.sequence.0, run.start, run.rows.len());
    }
    assert_eq!(end as usize, batch.rows.len());
    told
}

/// Starts and ends a batch. Returns it and the rows that are out.
fn step(flow: &mut Flow) -> Option<(String, Vec<RowId>)> {
    let batch = flow.poll_batch()?.clone();
    assert_eq!(flow.poll_batch(), None, "the trunk is busy");
    flow.handle_attended();
    Some((told(&batch), batch.rows.into_iter().filter(|&row| flow.is_out(row)).collect()))
}

fn expect(flow: &mut Flow, expected: &str) -> Vec<RowId> {
    let (told, out) = step(flow).unwrap_or_else(|| panic!("{expected} may start"));
    assert_eq!(told, expected);
    out
}

fn whole(flow: &mut Flow, rows: &[RowId]) {
    for &row in rows {
        flow.handle_whole(row);
    }
}

/// Nothing waits for company: each sequence goes on as soon as its row is whole, and who meets is computed together.
#[test]
fn partial_batches_go_on_without_those_they_came_with() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 7, 1, true));
    flow.handle_chunk(chunk(B, 3, 1, true));
    let out = expect(&mut flow, "0: 0@7+1* 1@3+1*");
    assert_eq!(flow.poll_batch(), None, "everything is out");
    flow.handle_whole(out[0]);
    let ahead = expect(&mut flow, "1: 0@7+1*");
    flow.handle_whole(ahead[0]);
    assert_eq!(expect(&mut flow, "2: 0@7+1*"), []);
    flow.handle_whole(out[1]);
    flow.handle_chunk(chunk(A, 8, 1, true));
    let behind = expect(&mut flow, "1: 1@3+1*");
    let again = expect(&mut flow, "0: 0@8+1*");
    flow.handle_whole(again[0]);
    flow.handle_whole(behind[0]);
    expect(&mut flow, "2: 1@3+1*");
    expect(&mut flow, "1: 0@8+1*");
    assert_eq!((step(&mut flow), flow.rows_passed(), flow.rows_free()), (None, 2, 15));
}

/// A step moves as one, and the next one waits until it has left.
#[test]
fn whole_steps_move_as_one() {
    let mut flow = flow(3, Forwarding::Whole);
    flow.handle_chunk(chunk(A, 0, 2, true));
    flow.handle_chunk(chunk(B, 0, 1, true));
    let out = expect(&mut flow, "0: 0@0+2* 1@0+1*");
    let late = SequenceId(2);
    flow.handle_chunk(chunk(late, 0, 1, true));
    flow.handle_whole(out[0]);
    flow.handle_whole(out[2]);
    assert_eq!(step(&mut flow), None, "one row is still out");
    flow.handle_whole(out[1]);
    let out = expect(&mut flow, "1: 0@0+2* 1@0+1*");
    flow.handle_whole(out[0]);
    flow.handle_whole(out[1]);
    assert_eq!(step(&mut flow), None, "what does not sample left, the other two wait for one another");
    flow.handle_whole(out[2]);
    expect(&mut flow, "2: 0@1+1* 1@0+1*");
    expect(&mut flow, "0: 2@0+1*");
}

/// A row is whole before those ahead of it: it is parked, and goes on with them.
#[test]
fn a_row_waits_for_those_before_it_in_its_sequence() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 4, true));
    let out = expect(&mut flow, "0: 0@0+4*");
    flow.handle_whole(out[3]);
    flow.handle_whole(out[1]);
    assert_eq!(step(&mut flow), None, "parked");
    flow.handle_whole(out[0]);
    let first = expect(&mut flow, "1: 0@0+2");
    whole(&mut flow, &first);
    assert_eq!(
        (step(&mut flow), flow.rows_free()),
        (None, 14),
        "what does not sample leaves before the head"
    );
    flow.handle_whole(out[2]);
    expect(&mut flow, "1: 0@2+2*");
}

/// What returned for a row is needed as long as the row goes on: not at a head that has nothing to do for it, and not
/// once its sequence leaves.
#[test]
fn a_row_that_leaves_as_it_is_whole_says_so() {
    let mut flow = flow(2, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 2, true));
    flow.handle_chunk(chunk(B, 0, 1, true));
    let out = expect(&mut flow, "0: 0@0+2* 1@0+1*");
    flow.handle_cancel(B);
    let go_on: Vec<bool> = out.into_iter().map(|row| flow.handle_whole(row)).collect();
    assert_eq!(go_on, [false, true, false]);
    expect(&mut flow, "1: 0@1+1*");
}

/// Where layers follow the last experts every row goes through the head, in order.
#[test]
fn rows_that_do_not_sample_pass_a_head_with_layers() {
    let mut flow = Flow::new(FlowSettings { head_has_layers: true, ..settings(2, Forwarding::Partial) });
    flow.handle_chunk(chunk(A, 0, 3, true));
    let out = expect(&mut flow, "0: 0@0+3*");
    flow.handle_whole(out[2]);
    assert_eq!(step(&mut flow), None);
    flow.handle_whole(out[1]);
    flow.handle_whole(out[0]);
    expect(&mut flow, "1: 0@0+3*");
    assert_eq!((flow.rows_passed(), flow.rows_free()), (3, 16));
}

/// A run that does not fit is cut; its rest goes before those that came later.
#[test]
fn a_run_is_cut_at_the_largest_batch() {
    let mut flow = flow(2, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 5, false));
    flow.handle_chunk(chunk(B, 0, 6, true));
    flow.handle_chunk(chunk(A, 5, 1, false));
    expect(&mut flow, "0: 0@0+6 1@0+2");
    flow.handle_chunk(chunk(A, 6, 1, true));
    expect(&mut flow, "0: 1@2+4* 0@6+1*");
}

/// Rows at doors go at once, those in the trunk or out when they come back; the sequence is named once, at its last.
#[test]
fn a_cancelled_sequence_leaves_as_its_rows_come_back() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 3, false));
    let out = expect(&mut flow, "0: 0@0+3");
    flow.handle_whole(out[0]);
    flow.handle_whole(out[2]);
    flow.handle_chunk(chunk(A, 3, 2, false));
    flow.handle_chunk(chunk(B, 0, 1, true));
    let batch = flow.poll_batch().unwrap();
    assert_eq!(
        told(batch),
        "0: 0@3+2 1@0+1*",
        "the ties go to who came first, to the door served longest ago"
    );
    let rows = batch.rows.clone();
    assert_eq!(flow.rows_free(), 10);
    flow.handle_cancel(A);
    flow.handle_cancel(A);
    flow.handle_cancel(SequenceId(99));
    assert_eq!(flow.rows_out(A).collect::<Vec<_>>(), [out[1]]);
    assert_eq!((flow.rows_free(), flow.poll_left()), (12, None));
    flow.handle_attended();
    assert_eq!(rows.iter().map(|&row| flow.is_out(row)).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((flow.rows_free(), flow.poll_left()), (14, None));
    flow.handle_whole(out[1]);
    assert_eq!((flow.rows_free(), flow.poll_left(), flow.poll_left()), (15, Some(A), None));
    assert_eq!(flow.rows_passed(), 0);

    flow.handle_chunk(chunk(A, 0, 1, true));
    expect(&mut flow, "0: 0@0+1*");
}

/// Between two tokens a sequence has no row; then it leaves at once.
#[test]
fn a_sequence_without_rows_leaves_at_once() {
    let mut flow = flow(2, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 1, true));
    let out = expect(&mut flow, "0: 0@0+1*");
    whole(&mut flow, &out);
    expect(&mut flow, "1: 0@0+1*");
    assert_eq!(flow.poll_left(), None, "it may go on");
    flow.handle_cancel(A);
    assert_eq!((flow.poll_left(), flow.poll_left()), (Some(A), None));
    flow.handle_cancel(A);
    assert_eq!(flow.poll_left(), None, "it is not known any more");
}

/// On shared cores the trunk is not idle while experts compute: partial batches become waves.
#[test]
fn nothing_starts_while_devices_on_the_same_cores_compute() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 1, true));
    flow.handle_chunk(chunk(B, 0, 1, true));
    let out = expect(&mut flow, "0: 0@0+1* 1@0+1*");
    flow.handle_devices(false);
    flow.handle_whole(out[1]);
    assert_eq!(step(&mut flow), None);
    flow.handle_whole(out[0]);
    flow.handle_devices(true);
    expect(&mut flow, "1: 1@0+1* 0@0+1*");
}

/// Changing over loses nothing: what is inside first leaves, then the first step enters.
#[test]
fn rows_inside_leave_before_the_first_step_enters() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 1, true));
    let ahead = expect(&mut flow, "0: 0@0+1*");
    whole(&mut flow, &ahead);
    flow.handle_chunk(chunk(B, 0, 1, true));
    flow.set_forwarding(Forwarding::Whole);
    let ahead = expect(&mut flow, "1: 0@0+1*");
    assert_eq!(step(&mut flow), None, "no step enters while anything is inside");
    whole(&mut flow, &ahead);
    expect(&mut flow, "2: 0@0+1*");
    flow.handle_chunk(chunk(A, 1, 1, true));
    let out = expect(&mut flow, "0: 1@0+1* 0@1+1*");
    flow.handle_whole(out[0]);
    assert_eq!(step(&mut flow), None);
    flow.set_forwarding(Forwarding::Partial);
    expect(&mut flow, "1: 1@0+1*");
}

/// The larger crowd goes first; of equal ones the one that has waited longer.
#[test]
fn the_larger_crowd_goes_first() {
    let mut flow = flow(3, Forwarding::Partial);
    flow.handle_chunk(chunk(A, 0, 1, true));
    let alone = expect(&mut flow, "0: 0@0+1*");
    flow.handle_chunk(chunk(B, 0, 1, true));
    flow.handle_chunk(chunk(SequenceId(2), 0, 1, true));
    flow.handle_whole(alone[0]);
    let pair = expect(&mut flow, "0: 1@0+1* 2@0+1*");
    whole(&mut flow, &pair);
    expect(&mut flow, "1: 0@0+1* 1@0+1* 2@0+1*");
}
