//! One expert of one layer stops answering, in virtual time: who goes on, and for how long, is counted and not timed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use phalanx_coordinator::data::flow::{Chunk, Flow, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::{RowId, SequenceId};

const SEQUENCES: u32 = 32;
const LAYERS: u32 = 4;
const EXPERTS: u64 = 16;
const TOKENS: u32 = 40;
/// Whose returns are held back.
const HELD: (u32, u64) = (2, 5);

/// Something that looks random, and is the same for the same numbers.
fn mixed(sequence: u32, position: u32, layer: u32, of: u32) -> u64 {
    let mut z = [sequence, position, layer, of].into_iter().fold(7_u64, |z, value| {
        (z ^ u64::from(value)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    });
    z ^= z >> 29;
    z
}

/// Whether a row goes to an expert: to two of sixteen.
fn needs(sequence: u32, position: u32, layer: u32, expert: u64) -> bool {
    let first = mixed(sequence, position, layer, 0) % EXPERTS;
    let second = (first + 1 + mixed(sequence, position, layer, 1) % (EXPERTS - 1)) % EXPERTS;
    first == expert || second == expert
}

/// Lets 32 sequences decode until nothing can happen any more; the tokens that each has then.
fn tokens_when_all_stands(forwarding: Forwarding, held: Option<(u32, u64)>, is_missing: bool) -> Vec<u32> {
    let mut flow = Flow::new(FlowSettings {
        stages: LAYERS + 1,
        head_has_layers: false,
        rows_max: SEQUENCES,
        sequences_max: SEQUENCES,
        batch_rows_max: SEQUENCES,
        forwarding,
    });
    let mut tokens = vec![0; SEQUENCES as usize];
    let decode = |flow: &mut Flow, sequence: u32, start: u32| {
        flow.handle_chunk(Chunk {
            sequence: SequenceId(sequence),
            start,
            count: 1,
            samples: true,
            is_scored: false,
        });
    };
    (0..SEQUENCES).for_each(|sequence| decode(&mut flow, sequence, 0));
    // When, and which row is whole; no row: the trunk is done.
    let mut events: BinaryHeap<Reverse<(u64, Option<u32>)>> = BinaryHeap::new();
    let mut now = 0;
    loop {
        if flow.poll_batch().is_some() {
            events.push(Reverse((now + 20, None)));
        }
        let Some(Reverse((at, event))) = events.pop() else { return tokens };
        now = at;
        if let Some(row) = event {
            flow.handle_whole(RowId(row));
            continue;
        }
        flow.handle_attended();
        let batch = flow.batch().clone();
        for (row, run) in batch.rows.iter().zip(&batch.runs) {
            let (sequence, position) = (run.sequence.0, run.start);
            if batch.stage < LAYERS {
                if !held.is_some_and(|(layer, expert)| {
                    layer == batch.stage && needs(sequence, position, layer, expert)
                }) {
                    let delay = 100 + mixed(sequence, position, batch.stage, 2) % 100;
                    events.push(Reverse((now + delay, Some(row.0))));
                } else if is_missing {
                    assert_eq!(flow.handle_stranded(*row, true), Some(run.sequence));
                }
                continue;
            }
            tokens[sequence as usize] += 1;
            if position + 1 < TOKENS {
                decode(&mut flow, sequence, position + 1);
            }
        }
    }
}

/// How many tokens each sequence has before a row of its own needs the expert.
fn tokens_before_it_is_needed() -> Vec<u32> {
    let (layer, expert) = HELD;
    let stops = |sequence| (0..TOKENS).find(|position| needs(sequence, *position, layer, expert));
    (0..SEQUENCES).map(|sequence| stops(sequence).unwrap_or(TOKENS)).collect()
}

/// Partial batches, shown to be that: each sequence goes on until a row of its own needs the expert that does not answer.
#[test]
fn an_expert_that_does_not_answer_stops_exactly_the_rows_that_need_it() {
    let expected = tokens_before_it_is_needed();
    assert!(expected.iter().max() > Some(&15) && expected.iter().min() < Some(&2), "{expected:?}");
    assert_eq!(tokens_when_all_stands(Forwarding::Partial, Some(HELD), false), expected);
    assert_eq!(tokens_when_all_stands(Forwarding::Partial, None, false), [TOKENS; SEQUENCES as usize]);
}

/// With whole steps all of them stop with the first that needs it, in the same step.
#[test]
fn with_whole_steps_all_stop_with_the_first() {
    let first = tokens_before_it_is_needed().into_iter().min().unwrap();
    let whole = |held| tokens_when_all_stands(Forwarding::Whole, held, false);
    assert_eq!(whole(Some(HELD)), [first; SEQUENCES as usize]);
    assert_eq!(whole(None), [TOKENS; SEQUENCES as usize]);
}

/// Unless nobody holds it: that may last, so their step goes on without those that wait for a holder.
#[test]
fn with_whole_steps_nobody_waits_for_who_is_stranded() {
    let expected = tokens_before_it_is_needed();
    assert_eq!(tokens_when_all_stands(Forwarding::Whole, Some(HELD), true), expected);
    assert_eq!(tokens_when_all_stands(Forwarding::Partial, Some(HELD), true), expected);
}
