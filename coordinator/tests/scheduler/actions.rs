//! Whole lists of actions, for the cases that can be followed by hand.

use std::ops::Range;

use phalanx_coordinator::data::flow::Chunk;
use phalanx_coordinator::data::ids::SequenceId;
use phalanx_coordinator::data::scheduler::{Action, Refused, RequestId, Scheduler, SchedulerSettings};

fn settings(pages: u32) -> SchedulerSettings {
    SchedulerSettings {
        sequences_max: 3,
        queue_max: 3,
        pages,
        rows_in_flight_max: 300,
        chunk_rows_max: 100,
        prefill_rows_max: 100,
    }
}

fn request(scheduler: &mut Scheduler, id: u64, prompt_tokens: u32) {
    scheduler.handle_request(RequestId(id), prompt_tokens, 1_000).unwrap();
}

fn told(action: Action) -> String {
    match action {
        Action::Begin { request, sequence } => format!("begin {} as {}", request.0, sequence.0),
        Action::Chunk(Chunk { sequence, start, count, samples }) => {
            format!("{}@{start}+{count}{}", sequence.0, if samples { "*" } else { "" })
        }
        Action::Preempt { sequence } => format!("preempt {}", sequence.0),
        Action::Full { sequence } => format!("full {}", sequence.0),
        Action::Leave { sequence } => format!("leave {}", sequence.0),
        Action::Release { sequence } => format!("release {}", sequence.0),
    }
}

fn actions(scheduler: &mut Scheduler) -> String {
    let told: Vec<String> = std::iter::from_fn(|| scheduler.poll_action()).map(told).collect();
    told.join(", ")
}

fn token(scheduler: &mut Scheduler, sequence: u32) -> String {
    scheduler.handle_token(SequenceId(sequence));
    actions(scheduler)
}

/// Tokens come, one by one, whose rows go to these positions.
fn tokens(scheduler: &mut Scheduler, sequence: u32, positions: Range<u32>) {
    for at in positions {
        assert_eq!(token(scheduler, sequence), format!("{sequence}@{at}+1*"));
        scheduler.handle_rows_free(300);
    }
}

/// Chunks of a prompt follow one another as far as there is room; its last row is sampled, then each token's.
#[test]
fn a_request_goes_from_chunks_to_tokens() {
    let mut scheduler = Scheduler::new(settings(10));
    request(&mut scheduler, 7, 250);
    assert_eq!(actions(&mut scheduler), "begin 7 as 0, 0@0+100, 0@100+100, 0@200+50*");
    assert_eq!(scheduler.pages_free(), 6, "250 positions are four pages");
    assert_eq!(token(&mut scheduler, 0), "0@250+1*");
    scheduler.handle_finished(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "leave 0");
    assert_eq!(scheduler.pages_free(), 6, "its last row has not left");
    scheduler.handle_left(SequenceId(0));
    assert_eq!((actions(&mut scheduler).as_str(), scheduler.pages_free()), ("release 0", 10));
}

/// A row in flight is a place taken: nothing enters beyond them, and a chunk waits until all of it can.
#[test]
fn rows_enter_as_far_as_there_is_room() {
    let mut scheduler = Scheduler::new(settings(10));
    request(&mut scheduler, 1, 640);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100, 0@100+100, 0@200+100");
    scheduler.handle_rows_free(99);
    assert_eq!(actions(&mut scheduler), "");
    scheduler.handle_rows_free(100);
    assert_eq!(actions(&mut scheduler), "0@300+100");
}

/// First come, first served, though a later one would fit: small ones would keep a large one waiting for ever.
#[test]
fn a_later_request_does_not_begin_before_an_earlier_one() {
    let mut scheduler = Scheduler::new(settings(10));
    request(&mut scheduler, 1, 64 * 6);
    scheduler.handle_rows_free(1_000);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100, 0@100+100, 0@200+100, 0@300+84*");
    request(&mut scheduler, 2, 64 * 5);
    request(&mut scheduler, 3, 5);
    assert_eq!(actions(&mut scheduler), "");
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(
        actions(&mut scheduler),
        "leave 0, release 0, begin 2 as 0, 0@0+100, 0@100+100, 0@200+100, 0@300+20*, begin 3 as 1, 1@0+5*"
    );
}

/// Decoded rows first; and while others decode, prompts have one chunk in flight and no more.
#[test]
fn a_prompt_does_not_hold_back_those_who_decode() {
    let mut scheduler = Scheduler::new(settings(20));
    request(&mut scheduler, 1, 10);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+10*");
    request(&mut scheduler, 2, 300);
    scheduler.handle_rows_free(300);
    scheduler.handle_token(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "0@10+1*, begin 2 as 1, 1@0+100");
    scheduler.handle_rows_free(298);
    assert_eq!(actions(&mut scheduler), "", "a row of the chunk is in flight");
    scheduler.handle_rows_free(300);
    scheduler.handle_token(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "0@11+1*, 1@100+100");
}

/// The youngest gives way, goes to the front of the queue, and begins again with all that it has said.
#[test]
fn the_youngest_is_preempted_and_computed_again() {
    let mut scheduler = Scheduler::new(settings(4));
    request(&mut scheduler, 1, 63);
    request(&mut scheduler, 2, 5);
    request(&mut scheduler, 3, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+63*, begin 2 as 1, 1@0+5*, begin 3 as 2, 2@0+5*");
    request(&mut scheduler, 4, 5);
    tokens(&mut scheduler, 0, 63..128);
    assert_eq!(token(&mut scheduler, 2), "2@5+1*");
    assert_eq!(token(&mut scheduler, 0), "preempt 2, leave 2");
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 2));
    scheduler.handle_token(SequenceId(2)); // It was in the trunk when it had to give way.
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "release 2, 0@128+1*");
    scheduler.handle_finished(SequenceId(1));
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "leave 1, release 1", "the other would want the page soon");
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(
        actions(&mut scheduler),
        "leave 0, release 0, begin 3 as 0, 0@0+7*, begin 4 as 1, 1@0+5*",
        "five of the prompt, and two tokens"
    );
}

/// If the youngest is the one that wants a page, it gives way itself.
#[test]
fn the_youngest_makes_no_elder_give_way() {
    let mut scheduler = Scheduler::new(settings(3));
    request(&mut scheduler, 1, 5);
    request(&mut scheduler, 2, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+5*, begin 2 as 1, 1@0+5*");
    tokens(&mut scheduler, 1, 5..128);
    assert_eq!(token(&mut scheduler, 1), "preempt 1, leave 1");
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "release 1", "it needs three pages now, and the elder holds one");
    assert_eq!(token(&mut scheduler, 0), "0@5+1*");
}

/// Alone, and all pages are its own: there will never be another.
#[test]
fn a_sequence_that_outgrows_all_pages_is_full() {
    let mut scheduler = Scheduler::new(settings(1));
    request(&mut scheduler, 1, 63);
    request(&mut scheduler, 2, 3);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+63*");
    assert_eq!(token(&mut scheduler, 0), "0@63+1*");
    assert_eq!(token(&mut scheduler, 0), "full 0, leave 0");
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_cancel(RequestId(1));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "release 0, begin 2 as 0, 0@0+3*");
}

/// Pages that are coming back are waited for, and nobody gives way for them.
#[test]
fn pages_that_come_back_are_waited_for() {
    let mut scheduler = Scheduler::new(settings(4));
    request(&mut scheduler, 1, 63);
    request(&mut scheduler, 2, 5);
    request(&mut scheduler, 3, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+63*, begin 2 as 1, 1@0+5*, begin 3 as 2, 2@0+5*");
    tokens(&mut scheduler, 0, 63..128);
    scheduler.handle_cancel(RequestId(2));
    assert_eq!(token(&mut scheduler, 0), "leave 1");
    assert_eq!(token(&mut scheduler, 2), "2@5+1*", "who wants no page goes on");
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "release 1, 0@128+1*");
}

/// What can never be, or not now, is said at once.
#[test]
fn a_request_is_refused_with_the_numbers_that_disagree() {
    let mut scheduler = Scheduler::new(settings(2));
    let refused = scheduler.handle_request(RequestId(1), 129, 1).unwrap_err();
    assert_eq!(refused, Refused::TooLong { needed: 3, pages: 2 });
    for id in 2..5 {
        request(&mut scheduler, id, 128);
    }
    let refused = scheduler.handle_request(RequestId(5), 1, 1).unwrap_err();
    assert_eq!(refused, Refused::QueueFull { waiting: 3 });
}

/// Cancelled before it began, before its first chunk, twice, and never known.
#[test]
fn a_request_may_be_cancelled_at_any_moment() {
    let mut scheduler = Scheduler::new(settings(2));
    request(&mut scheduler, 1, 70);
    request(&mut scheduler, 2, 70);
    scheduler.handle_cancel(RequestId(1));
    scheduler.handle_cancel(RequestId(1));
    scheduler.handle_cancel(RequestId(9));
    assert_eq!(scheduler.poll_action().map(told).as_deref(), Some("begin 2 as 0"));
    scheduler.handle_cancel(RequestId(2));
    assert_eq!(actions(&mut scheduler), "release 0", "the flow has never heard of it");
    assert_eq!((scheduler.pages_free(), scheduler.running(), scheduler.waiting()), (2, 0, 0));
}
