//! Whole lists of actions, for the cases that can be followed by hand.

use std::ops::Range;

use phalanx_coordinator::data::flow::Chunk;
use phalanx_coordinator::data::ids::{BlockId, SequenceId};
use phalanx_coordinator::data::scheduler::{
    Action, Asked, OVERTAKEN_MAX, Priority, Refused, RequestId, Scheduler, SchedulerSettings,
};

pub(crate) fn settings(pages: u32) -> SchedulerSettings {
    SchedulerSettings {
        sequences_max: 3,
        queue_max: 3,
        pages,
        rows_in_flight_max: 300,
        chunk_rows_max: 100,
        prefill_rows_max: 100,
        prefix_cache: false,
    }
}

pub(crate) fn asked(id: u64, prompt: &[u32]) -> Asked<'_> {
    let priority = Priority::default();
    Asked {
        request: RequestId(id),
        prompt,
        tokens: &[],
        tokens_max: 1_000,
        priority,
        goes_alone: false,
        is_scored: false,
        bias: None,
    }
}

pub(crate) fn ask(scheduler: &mut Scheduler, id: u64, prompt: &[u32], priority: i64) -> Result<(), Refused> {
    scheduler.handle_request(Asked { priority: Priority::new(priority).unwrap(), ..asked(id, prompt) })
}

/// A request whose prompt is like no other.
pub(crate) fn request(scheduler: &mut Scheduler, id: u64, prompt_tokens: u32) {
    let prompt: Vec<u32> = (0..prompt_tokens).map(|at| 1_000_000 * id as u32 + at).collect();
    ask(scheduler, id, &prompt, 0).unwrap();
}

fn told(action: Action) -> String {
    match action {
        Action::Begin { request, sequence } => format!("begin {} as {}", request.0, sequence.0),
        Action::Chunk(Chunk { sequence, start, count, samples, is_scored }) => {
            let scored = if is_scored { "?" } else { "" };
            format!("{}@{start}+{count}{scored}{}", sequence.0, if samples { "*" } else { "" })
        }
        Action::Preempt { sequence } => format!("preempt {}", sequence.0),
        Action::SetAside { sequence } => format!("set aside {}", sequence.0),
        Action::Full { request } => format!("full {}", request.0),
        Action::Share { sequence, block } => format!("{} has {}", sequence.0, name(block)),
        Action::Keep { sequence, index, block } => format!("{}.{index} is {}", sequence.0, name(block)),
        Action::Replace { sequence, index, block } => {
            format!("{}.{index} was {}", sequence.0, name(block))
        }
        Action::Forget { block } => format!("forget {}", name(block)),
        Action::Leave { sequence } => format!("leave {}", sequence.0),
        Action::Release { sequence } => format!("release {}", sequence.0),
    }
}

/// Blocks are letters.
fn name(BlockId(block): BlockId) -> char {
    char::from(b'A' + block as u8)
}

pub(crate) fn actions(scheduler: &mut Scheduler) -> String {
    let told: Vec<String> = std::iter::from_fn(|| scheduler.poll_action()).map(told).collect();
    told.join(", ")
}

pub(crate) fn token(scheduler: &mut Scheduler, sequence: u32) -> String {
    scheduler.handle_token(SequenceId(sequence), 7);
    actions(scheduler)
}

/// Tokens come, one by one, whose rows go to these positions.
pub(crate) fn tokens(scheduler: &mut Scheduler, sequence: u32, positions: Range<u32>) {
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

/// Whoever wants to know how likely a prompt was takes nothing of it from others, gives to them what it computed, and once it has a
/// token is like anybody.
#[test]
fn a_prompt_that_is_scored_is_computed() {
    let mut scheduler = Scheduler::new(SchedulerSettings { prefix_cache: true, ..settings(12) });
    let prompt: Vec<u32> = (0..130).collect();
    let ask = |scheduler: &mut Scheduler, id: u64, is_scored: bool| {
        let (priority, request) = (Priority::default(), RequestId(id));
        let asked = Asked {
            request,
            prompt: &prompt,
            tokens: &[],
            tokens_max: 9,
            priority,
            goes_alone: false,
            is_scored,
            bias: None,
        };
        scheduler.handle_request(asked).unwrap();
        actions(scheduler)
    };
    let end = |scheduler: &mut Scheduler| {
        scheduler.handle_finished(SequenceId(0));
        scheduler.handle_left(SequenceId(0));
        scheduler.handle_rows_free(300);
        actions(scheduler)
    };
    assert_eq!(ask(&mut scheduler, 1, true), "begin 1 as 0, 0@0+100?, 0@100+30?*");
    assert_eq!(end(&mut scheduler), "0.0 is A, 0.1 is B, leave 0, release 0");
    assert_eq!(ask(&mut scheduler, 2, true), "begin 2 as 0, 0@0+100?, 0@100+30?*");
    assert_eq!(token(&mut scheduler, 0), "0.0 was A, 0.1 was B, 0@130+1*");
    assert_eq!(end(&mut scheduler), "leave 0, release 0");
    assert_eq!(ask(&mut scheduler, 3, false), "begin 3 as 0, 0 has A, 0 has B, 0@128+2*");
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
        "leave 0, release 0, begin 2 as 0, begin 3 as 1, 1@0+5*, 0@0+100, 0@100+100, 0@200+100, 0@300+20*"
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
    scheduler.handle_token(SequenceId(0), 7);
    assert_eq!(actions(&mut scheduler), "0@10+1*, begin 2 as 1, 1@0+100");
    scheduler.handle_rows_free(298);
    assert_eq!(actions(&mut scheduler), "", "a row of the chunk is in flight");
    scheduler.handle_rows_free(300);
    scheduler.handle_token(SequenceId(0), 7);
    assert_eq!(actions(&mut scheduler), "0@11+1*, 1@100+100");
}

/// The youngest gives way, goes to the front of the queue, and begins again with all that it has said.
#[test]
fn the_youngest_is_preempted_and_computed_again() {
    let mut scheduler = Scheduler::new(settings(4));
    request(&mut scheduler, 1, 63);
    request(&mut scheduler, 2, 5);
    request(&mut scheduler, 3, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 1@0+5*, 2@0+5*, 0@0+63*");
    request(&mut scheduler, 4, 5);
    tokens(&mut scheduler, 0, 63..128);
    assert_eq!(token(&mut scheduler, 2), "2@5+1*");
    assert_eq!(token(&mut scheduler, 0), "preempt 2, leave 2");
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 2));
    scheduler.handle_token(SequenceId(2), 7); // It was in the trunk when it had to give way.
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "release 2, 0@128+1*");
    scheduler.handle_finished(SequenceId(1));
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "leave 1, release 1", "the other would want the page soon");
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(
        actions(&mut scheduler),
        "leave 0, release 0, begin 3 as 0, begin 4 as 1, 1@0+5*, 0@0+7*",
        "five of the prompt, and two tokens"
    );
}

/// If the youngest is the one that wants a page, it gives way itself.
#[test]
fn the_youngest_makes_no_elder_give_way() {
    let mut scheduler = Scheduler::new(settings(3));
    request(&mut scheduler, 1, 5);
    request(&mut scheduler, 2, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, 0@0+5*, 1@0+5*");
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
    assert_eq!(token(&mut scheduler, 0), "full 1, leave 0");
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
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 1@0+5*, 2@0+5*, 0@0+63*");
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
    let refused = ask(&mut scheduler, 1, &[1; 129], 0).unwrap_err();
    assert_eq!(refused, Refused::TooLong { needed: 3, pages: 2 });
    for id in 2..5 {
        request(&mut scheduler, id, 128);
    }
    let refused = ask(&mut scheduler, 5, &[1], 3).unwrap_err();
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

pub(crate) fn caching(pages: u32) -> Scheduler {
    Scheduler::new(SchedulerSettings { prefix_cache: true, ..settings(pages) })
}

/// A prompt that begins as all of these do.
pub(crate) fn alike(scheduler: &mut Scheduler, id: u64, prompt_tokens: u32) {
    let prompt: Vec<u32> = (0..prompt_tokens).collect();
    ask(scheduler, id, &prompt, 0).unwrap();
}

/// What was computed is found, but for the row that is sampled; what was computed twice is kept once. An answer is a beginning
/// too.
#[test]
fn a_prompt_that_begins_alike_computes_the_rest() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 130);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100, 0@100+30*");
    assert_eq!(token(&mut scheduler, 0), "0.0 is A, 0.1 is B, 0@130+1*");
    scheduler.handle_rows_free(300);
    alike(&mut scheduler, 2, 130);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1 has A, 1 has B, 1@128+2*");
    alike(&mut scheduler, 3, 128);
    assert_eq!(actions(&mut scheduler), "begin 3 as 2, 2 has A, 2@64+64*");
    assert_eq!(token(&mut scheduler, 2), "2.1 was B, 2@128+1*");
    assert_eq!(scheduler.pages_free(), 15, "A and B, and one each");
    let seen = scheduler.prefix_seen();
    assert_eq!((seen.begun, seen.hits, seen.positions, seen.pages), (3, 2, 192, 2));

    // 62 more tokens of the first, all of them 7.
    for at in 131..192 {
        assert_eq!(token(&mut scheduler, 0), format!("0@{at}+1*"));
        scheduler.handle_rows_free(300);
    }
    assert_eq!(token(&mut scheduler, 0), "0.2 is C, 0@192+1*");
    scheduler.handle_cancel(RequestId(2));
    scheduler.handle_left(SequenceId(1));
    let told: Vec<u32> = (0..130).chain([7; 63]).collect();
    ask(&mut scheduler, 4, &told, 0).unwrap();
    assert_eq!(
        actions(&mut scheduler),
        "leave 1, release 1, begin 4 as 1, 1 has A, 1 has B, 1 has C, 1@192+1*"
    );
}

/// Several answers to one prompt compute it once. If the one that computes it goes, the next does.
#[test]
fn a_prompt_waits_for_its_like_that_is_being_computed() {
    let mut scheduler = caching(20);
    for id in 1..4 {
        alike(&mut scheduler, id, 130);
    }
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 0@0+100, 0@100+30*");
    scheduler.handle_cancel(RequestId(1));
    scheduler.handle_rows_free(300);
    assert_eq!(actions(&mut scheduler), "leave 0, 1@0+100, 1@100+30*");
    scheduler.handle_rows_free(300);
    assert_eq!(token(&mut scheduler, 1), "1.0 is A, 1.1 is B, 1@130+1*, 2 has A, 2 has B, 2@128+2*");
}

/// What it may go on without, another one may wait for without an end: so it computes what it has in common itself, and what comes
/// of it is kept once.
#[test]
fn who_goes_alone_waits_for_nobody() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 100);
    let prompt: Vec<u32> = (0..100).collect();
    scheduler.handle_request(Asked { goes_alone: true, ..asked(2, &prompt) }).unwrap();
    alike(&mut scheduler, 3, 100);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 0@0+100*");
    scheduler.handle_rows_free(300);
    assert_eq!(actions(&mut scheduler), "1@0+100*", "the third waits for the first");
    assert_eq!(token(&mut scheduler, 1), "1.0 is A, 1@100+1*, 2 has A");
    scheduler.handle_rows_free(300);
    assert_eq!(token(&mut scheduler, 0), "0.0 was A, 0@100+1*, 2@64+36*");
}

/// Who chooses under another bias computes something else of the same ids: he waits for nobody else's pages, finds none, and what comes of
/// it stands beside theirs.
#[test]
fn pages_of_another_bias_are_other_pages() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 100);
    let prompt: Vec<u32> = (0..100).collect();
    scheduler.handle_request(Asked { bias: Some([1; 32]), ..asked(2, &prompt) }).unwrap();
    scheduler.handle_request(Asked { bias: Some([1; 32]), ..asked(3, &prompt) }).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 0@0+100*");
    scheduler.handle_rows_free(300);
    assert_eq!(actions(&mut scheduler), "1@0+100*", "the third waits for the second");
    assert_eq!(token(&mut scheduler, 0), "0.0 is A, 0@100+1*");
    scheduler.handle_rows_free(300);
    assert_eq!(token(&mut scheduler, 1), "1.0 is B, 1@100+1*, 2 has B, 2@64+36*");
    scheduler.handle_rows_free(300);
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    alike(&mut scheduler, 4, 100);
    assert_eq!(actions(&mut scheduler), "leave 0, release 0, begin 4 as 0, 0 has A, 0@64+36*");
    scheduler.handle_finished(SequenceId(1));
    scheduler.handle_left(SequenceId(1));
    scheduler.handle_rows_free(300);
    scheduler.handle_request(Asked { bias: Some([2; 32]), ..asked(5, &prompt) }).unwrap();
    assert_eq!(
        actions(&mut scheduler),
        "leave 1, release 1, begin 5 as 1, 1@0+100*",
        "a third bias finds nothing"
    );
}

/// What nobody uses goes when its page is needed, of a beginning the end first. What is used stays.
#[test]
fn kept_pages_go_when_they_are_needed() {
    let mut scheduler = caching(5);
    alike(&mut scheduler, 1, 130);
    actions(&mut scheduler);
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "0.0 is A, 0.1 is B, leave 0, release 0");
    assert_eq!(scheduler.pages_free(), 5);
    scheduler.handle_rows_free(300);
    request(&mut scheduler, 2, 250);
    assert_eq!(actions(&mut scheduler), "begin 2 as 0, forget B, 0@0+100, 0@100+100, 0@200+50*");
    scheduler.handle_rows_free(300);
    alike(&mut scheduler, 3, 65);
    assert_eq!(actions(&mut scheduler), "", "A is there, and no other page for its last row");
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    let expected = "0.0 is B, 0.1 is C, 0.2 is D, leave 0, release 0, begin 3 as 0, 0 has A, 0@64+1*";
    assert_eq!(actions(&mut scheduler), expected);
}

/// Nobody is to build on what led to a failure.
#[test]
fn what_a_failed_sequence_computed_is_not_found() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 70);
    actions(&mut scheduler);
    assert_eq!(token(&mut scheduler, 0), "0.0 is A, 0@70+1*");
    alike(&mut scheduler, 2, 70);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1 has A, 1@64+6*");
    scheduler.handle_failed(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    scheduler.handle_rows_free(300);
    alike(&mut scheduler, 3, 70);
    assert_eq!(actions(&mut scheduler), "leave 0, release 0, begin 3 as 0, 0@0+70*");
    scheduler.handle_cancel(RequestId(2));
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "leave 1, release 1, forget A", "who had it may have it to the end");
}

/// A row that went on without an expert makes all that follows another answer than its ids say: whoever waits for it computes by
/// itself, nobody finds it, and it finds nothing. What was kept before is what it is said to be.
#[test]
fn what_lacks_an_expert_is_nobody_elses() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 130);
    alike(&mut scheduler, 2, 130);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, 0@0+100, 0@100+30*");
    scheduler.handle_left_out(SequenceId(0));
    scheduler.handle_rows_free(300);
    assert_eq!(actions(&mut scheduler), "1@0+100");
    scheduler.handle_rows_free(300);
    assert_eq!(actions(&mut scheduler), "1@100+30*");
    assert_eq!(token(&mut scheduler, 0), "0@130+1*");
    assert_eq!(token(&mut scheduler, 1), "1.0 is A, 1.1 is B, 1@130+1*");

    scheduler.handle_left_out(SequenceId(1));
    scheduler.handle_left_out(SequenceId(1));
    scheduler.handle_rows_free(300);
    tokens(&mut scheduler, 1, 131..200);
    scheduler.handle_finished(SequenceId(1));
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "leave 1, release 1");
    let told: Vec<u32> = (0..130).chain([7; 69]).collect();
    ask(&mut scheduler, 3, &told, 0).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 3 as 1, 1 has A, 1 has B, 1@128+71*");
}

/// The urgent begin first, and each class in order; of two that want one page the less urgent gives way, the older too.
#[test]
fn the_urgent_begin_first_and_give_way_last() {
    let mut scheduler = Scheduler::new(SchedulerSettings { sequences_max: 1, ..settings(20) });
    ask(&mut scheduler, 1, &[1], 0).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+1*");
    for (id, priority) in [(2, -1), (3, 0), (4, 3)] {
        ask(&mut scheduler, id, &[1], priority).unwrap();
    }
    for next in [4, 3, 2] {
        scheduler.handle_finished(SequenceId(0));
        scheduler.handle_left(SequenceId(0));
        assert_eq!(actions(&mut scheduler), format!("leave 0, release 0, begin {next} as 0, 0@0+1*"));
    }

    let mut scheduler = Scheduler::new(settings(3));
    ask(&mut scheduler, 1, &[1; 63], -1).unwrap();
    ask(&mut scheduler, 2, &[1; 5], 0).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 2 as 0, begin 1 as 1, 0@0+5*, 1@0+63*");
    tokens(&mut scheduler, 0, 5..128);
    assert_eq!(token(&mut scheduler, 0), "preempt 1, leave 1");
}

/// However many urgent ones come: after so many it is somebody else's turn.
#[test]
fn nobody_is_overtaken_for_ever() {
    let mut scheduler = Scheduler::new(SchedulerSettings { sequences_max: 1, ..settings(20) });
    ask(&mut scheduler, 1, &[1], 3).unwrap();
    actions(&mut scheduler);
    ask(&mut scheduler, 2, &[1], -3).unwrap();
    let mut urgent = 3;
    loop {
        ask(&mut scheduler, urgent, &[1], 3).unwrap();
        scheduler.handle_finished(SequenceId(0));
        scheduler.handle_left(SequenceId(0));
        let told = actions(&mut scheduler);
        if told.contains("begin 2 as") {
            break;
        }
        assert_eq!(told, format!("leave 0, release 0, begin {urgent} as 0, 0@0+1*"));
        urgent += 1;
    }
    assert_eq!(urgent - 3, OVERTAKEN_MAX);
}

/// A short prompt does not wait for a long one, and a long one goes on all the same.
#[test]
fn of_four_chunks_one_is_the_first_prompts() {
    let mut scheduler = Scheduler::new(SchedulerSettings {
        sequences_max: 9,
        queue_max: 9,
        rows_in_flight_max: 400,
        ..settings(100)
    });
    scheduler.handle_rows_free(100);
    request(&mut scheduler, 1, 1000);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100");
    let mut order = String::new();
    for id in 2..8 {
        request(&mut scheduler, id, 90);
    }
    for _ in 0..8 {
        scheduler.handle_rows_free(400);
        let chunk = loop {
            match scheduler.poll_action() {
                Some(Action::Chunk(chunk)) => break chunk,
                Some(_) => {}
                None => panic!("there is room"),
            }
        };
        order += &chunk.sequence.0.to_string();
    }
    assert_eq!(order, "12304560");
}
