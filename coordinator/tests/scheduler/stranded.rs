//! Sequences that wait for an expert that nobody holds, in whole lists of actions: in nobody's way, and first to give way.

use phalanx_coordinator::data::ids::SequenceId;
use phalanx_coordinator::data::scheduler::{
    Asked, Held, PREEMPTED_MAX, RequestId, Scheduler, SchedulerSettings,
};

use super::actions::{actions, alike, ask, asked, caching, request, settings, token, tokens};

/// Rows are free, and so many of the others are those of stranded sequences.
fn rows(scheduler: &mut Scheduler, free: usize, stranded: usize) {
    scheduler.handle_rows_free(free);
    scheduler.handle_rows_stranded(stranded);
}

/// What it has under way is not counted among what prompts may have beside those who decode, and it gets no more until it goes on.
#[test]
fn a_stranded_prompt_holds_back_no_other() {
    let mut scheduler = Scheduler::new(settings(20));
    request(&mut scheduler, 1, 10);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+10*");
    rows(&mut scheduler, 300, 0);
    assert_eq!(token(&mut scheduler, 0), "0@10+1*");
    request(&mut scheduler, 2, 300);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1@0+100");
    request(&mut scheduler, 3, 150);
    assert_eq!(actions(&mut scheduler), "begin 3 as 2");
    scheduler.handle_stranded(SequenceId(1));
    rows(&mut scheduler, 199, 100);
    assert_eq!(actions(&mut scheduler), "2@0+100");
    rows(&mut scheduler, 148, 100);
    assert_eq!(actions(&mut scheduler), "", "51 of the other's rows are in flight");
    scheduler.handle_found(SequenceId(1));
    rows(&mut scheduler, 199, 0);
    assert_eq!(actions(&mut scheduler), "", "now both count");
    rows(&mut scheduler, 299, 0);
    assert_eq!(actions(&mut scheduler), "2@100+50*");
    rows(&mut scheduler, 299, 0);
    assert_eq!(token(&mut scheduler, 2), "2@150+1*, 1@100+100");
}

/// Four prompts may be given out at once, and those that cannot go on are none of them.
#[test]
fn a_stranded_prompt_is_not_one_of_those_that_are_given_out() {
    let mut scheduler = Scheduler::new(SchedulerSettings {
        sequences_max: 9,
        queue_max: 9,
        rows_in_flight_max: 600,
        ..settings(100)
    });
    for (id, prompt) in [(1, 1000), (2, 800), (3, 600), (4, 400)] {
        rows(&mut scheduler, 100, 0);
        request(&mut scheduler, id, prompt);
        let sequence = id - 1;
        assert_eq!(actions(&mut scheduler), format!("begin {id} as {sequence}, {sequence}@0+100"));
    }
    request(&mut scheduler, 5, 50);
    assert_eq!(actions(&mut scheduler), "");
    assert_eq!(scheduler.held_requests().collect::<Vec<_>>(), [(RequestId(5), Held::Prompt)]);
    scheduler.handle_stranded(SequenceId(3));
    rows(&mut scheduler, 200, 100);
    assert_eq!(actions(&mut scheduler), "begin 5 as 4, 0@100+100, 4@0+50*");
    // The one that began first is so still when it goes on: of the chunks one in four is its own.
    scheduler.handle_stranded(SequenceId(0));
    scheduler.handle_found(SequenceId(0));
    scheduler.handle_found(SequenceId(3));
    let mut order = Vec::new();
    for _ in 0..4 {
        rows(&mut scheduler, 599, 0);
        order.push(actions(&mut scheduler));
    }
    assert_eq!(order, ["3@100+100", "3@200+100", "0@200+100", "3@300+100*"]);
}

/// Of three that are stranded nobody gives way as long as nobody wants his place. Then the youngest does, and its request waits in no
/// line until it is called back; then it is where it came, before those that came later.
#[test]
fn who_is_stranded_gives_up_his_place_to_those_who_want_it() {
    let mut scheduler = Scheduler::new(settings(20));
    (1..4).for_each(|id| request(&mut scheduler, id, 5));
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 0@0+5*, 1@0+5*, 2@0+5*");
    (0..3).for_each(|sequence| scheduler.handle_stranded(SequenceId(sequence)));
    rows(&mut scheduler, 285, 15);
    assert_eq!(actions(&mut scheduler), "");
    assert_eq!((scheduler.running(), scheduler.stranded(), scheduler.set_aside()), (3, 3, 0));
    request(&mut scheduler, 4, 5);
    assert_eq!(actions(&mut scheduler), "", "it may be over soon");
    assert_eq!(scheduler.held_requests().collect::<Vec<_>>(), [(RequestId(4), Held::Places { running: 3 })]);
    scheduler.handle_long(SequenceId(1));
    scheduler.handle_found(SequenceId(1));
    scheduler.handle_stranded(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "", "it begins to wait anew");
    (0..3).for_each(|sequence| scheduler.handle_long(SequenceId(sequence)));
    assert_eq!(actions(&mut scheduler), "set aside 2, leave 2");
    request(&mut scheduler, 5, 5);
    assert_eq!(actions(&mut scheduler), "", "one leaves already");
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "release 2, begin 4 as 2, set aside 1, leave 1, 2@0+5*");
    let held: Vec<_> = scheduler.held_requests().collect();
    assert_eq!(
        held,
        [
            (RequestId(5), Held::Places { running: 3 }),
            (RequestId(3), Held::Aside),
            (RequestId(2), Held::Aside)
        ]
    );
    assert_eq!((scheduler.waiting(), scheduler.set_aside()), (3, 2));
    // Called back while its last rows are on their way, it is next, as it came first.
    scheduler.handle_called_back(RequestId(3));
    scheduler.handle_called_back(RequestId(2));
    scheduler.handle_called_back(RequestId(2));
    scheduler.handle_called_back(RequestId(77));
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "release 1, begin 2 as 1, set aside 0, leave 0, 1@0+5*");
    scheduler.handle_left(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "release 0, begin 3 as 0, 0@0+5*");
    // One that is set aside may be cancelled as any other.
    scheduler.handle_cancel(RequestId(1));
    scheduler.handle_called_back(RequestId(1));
    assert_eq!((scheduler.waiting(), scheduler.set_aside()), (1, 0));
    scheduler.handle_cancel(RequestId(4));
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "leave 2, release 2, begin 5 as 2, 2@0+5*");
}

/// However often it is: others that are more urgent begin before it, as they would have.
#[test]
fn who_gave_way_is_no_more_urgent_for_that() {
    let mut scheduler = Scheduler::new(SchedulerSettings { sequences_max: 1, ..settings(20) });
    ask(&mut scheduler, 1, &[1], -1).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+1*");
    for urgent in 2..2 + u64::from(PREEMPTED_MAX) {
        scheduler.handle_stranded(SequenceId(0));
        scheduler.handle_long(SequenceId(0));
        ask(&mut scheduler, urgent, &[1], 0).unwrap();
        assert_eq!(actions(&mut scheduler), "set aside 0, leave 0");
        scheduler.handle_left(SequenceId(0));
        assert_eq!(actions(&mut scheduler), format!("release 0, begin {urgent} as 0, 0@0+1*"));
        ask(&mut scheduler, urgent + 10, &[1], 0).unwrap();
        scheduler.handle_called_back(RequestId(1));
        for next in [urgent + 10, 1] {
            scheduler.handle_finished(SequenceId(0));
            scheduler.handle_left(SequenceId(0));
            assert_eq!(actions(&mut scheduler), format!("leave 0, release 0, begin {next} as 0, 0@0+1*"));
        }
    }
}

/// The elder one gives way, as it can do nothing with its pages. Healthy ones do where nobody is stranded.
#[test]
fn who_is_stranded_gives_up_his_pages_first() {
    let mut scheduler = Scheduler::new(settings(4));
    request(&mut scheduler, 1, 63);
    request(&mut scheduler, 2, 5);
    request(&mut scheduler, 3, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, begin 3 as 2, 1@0+5*, 2@0+5*, 0@0+63*");
    scheduler.handle_stranded(SequenceId(1));
    tokens(&mut scheduler, 0, 63..128);
    assert_eq!(token(&mut scheduler, 0), "set aside 1, leave 1");
    assert_eq!(token(&mut scheduler, 2), "2@5+1*");
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "release 1, 0@128+1*");
    tokens(&mut scheduler, 0, 129..192);
    assert_eq!(token(&mut scheduler, 0), "preempt 2, leave 2");
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "release 2, 0@192+1*");
    scheduler.handle_called_back(RequestId(2));
    scheduler.handle_finished(SequenceId(0));
    scheduler.handle_left(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "leave 0, release 0, begin 2 as 0, begin 3 as 2, 0@0+5*, 2@0+6*");
}

/// Who wants to begin has the pages of as many as it takes, one after the other, and of nobody where all of them would not do.
#[test]
fn who_begins_has_pages_of_those_who_are_stranded() {
    let mut scheduler = Scheduler::new(SchedulerSettings { sequences_max: 5, ..settings(6) });
    [(1, 128), (2, 64), (3, 64), (4, 64)].into_iter().for_each(|(id, prompt)| {
        request(&mut scheduler, id, prompt);
        actions(&mut scheduler);
        scheduler.handle_rows_free(300);
    });
    assert_eq!(scheduler.pages_free(), 1);
    for sequence in [1, 2] {
        scheduler.handle_stranded(SequenceId(sequence));
        scheduler.handle_long(SequenceId(sequence));
    }
    request(&mut scheduler, 5, 64 * 3);
    assert_eq!(actions(&mut scheduler), "", "it needs four beside others, and there would be three");
    scheduler.handle_stranded(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "", "and this one has not been for long");
    scheduler.handle_long(SequenceId(0));
    assert_eq!(actions(&mut scheduler), "set aside 2, leave 2");
    scheduler.handle_left(SequenceId(2));
    assert_eq!(actions(&mut scheduler), "release 2, set aside 1, leave 1");
    scheduler.handle_left(SequenceId(1));
    assert_eq!(actions(&mut scheduler), "release 1, set aside 0, leave 0");
    scheduler.handle_left(SequenceId(0));
    rows(&mut scheduler, 299, 0);
    assert_eq!(actions(&mut scheduler), "release 0, begin 5 as 0, 0@0+100");
}

/// A chunk and a row for each of the others fit beside what stranded ones have, or these give way.
#[test]
fn who_is_stranded_gives_up_rows_that_others_need() {
    let mut scheduler = Scheduler::new(settings(20));
    request(&mut scheduler, 1, 300);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100, 0@100+100, 0@200+100*");
    scheduler.handle_stranded(SequenceId(0));
    rows(&mut scheduler, 99, 201);
    request(&mut scheduler, 2, 90);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1@0+90*", "there is room");
    request(&mut scheduler, 3, 100);
    assert_eq!(
        actions(&mut scheduler),
        "begin 3 as 2, set aside 0, leave 0",
        "of 99 rows 100 never come free"
    );
    scheduler.handle_left(SequenceId(0));
    rows(&mut scheduler, 299, 0);
    assert_eq!(actions(&mut scheduler), "release 0, 2@0+100*");

    let mut scheduler = Scheduler::new(settings(20));
    request(&mut scheduler, 1, 100);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+100*");
    scheduler.handle_stranded(SequenceId(0));
    rows(&mut scheduler, 200, 100);
    request(&mut scheduler, 2, 300);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1@0+100, 1@100+100", "the third waits for the first");
    assert_eq!(scheduler.set_aside(), 0);
}

/// Nor do those who decode wait for them, when they have all rows there are.
#[test]
fn who_decodes_has_a_row() {
    let mut scheduler = Scheduler::new(settings(20));
    request(&mut scheduler, 1, 5);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+5*");
    request(&mut scheduler, 2, 300);
    rows(&mut scheduler, 300, 0);
    assert_eq!(actions(&mut scheduler), "begin 2 as 1, 1@0+100");
    // The shell says so; how it has come to it is not the point.
    scheduler.handle_stranded(SequenceId(1));
    rows(&mut scheduler, 0, 300);
    assert_eq!(token(&mut scheduler, 0), "set aside 1, leave 1");
    rows(&mut scheduler, 0, 299);
    assert_eq!(actions(&mut scheduler), "");
    scheduler.handle_left(SequenceId(1));
    rows(&mut scheduler, 300, 0);
    assert_eq!(actions(&mut scheduler), "release 1, 0@5+1*");
}

/// Whoever waits for pages that it computes computes them itself. If it goes on soon, whoever comes then waits for it again.
#[test]
fn nobody_waits_for_pages_of_who_is_stranded() {
    let mut scheduler = caching(20);
    alike(&mut scheduler, 1, 130);
    alike(&mut scheduler, 2, 130);
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, begin 2 as 1, 0@0+100, 0@100+30*");
    scheduler.handle_stranded(SequenceId(0));
    rows(&mut scheduler, 170, 130);
    assert_eq!(actions(&mut scheduler), "1@0+100, 1@100+30*");
    scheduler.handle_stranded(SequenceId(1));
    scheduler.handle_found(SequenceId(0));
    rows(&mut scheduler, 170, 130);
    alike(&mut scheduler, 3, 130);
    assert_eq!(actions(&mut scheduler), "begin 3 as 2", "it waits for the first");
    scheduler.handle_found(SequenceId(1));
    rows(&mut scheduler, 300, 0);
    assert_eq!(token(&mut scheduler, 1), "1.0 is A, 1.1 is B, 1@130+1*, 2 has A, 2 has B, 2@128+2*");
    assert_eq!(token(&mut scheduler, 0), "0.0 was A, 0.1 was B, 0@130+1*");
}

/// What it has said stays said, its rows come again, and what it had kept it finds.
#[test]
fn who_was_set_aside_is_computed_again() {
    let mut scheduler = caching(5);
    let prompt: Vec<u32> = (0..70).collect();
    scheduler.handle_request(Asked { tokens_max: 10, ..asked(1, &prompt) }).unwrap();
    assert_eq!(actions(&mut scheduler), "begin 1 as 0, 0@0+70*");
    assert_eq!(token(&mut scheduler, 0), "0.0 is A, 0@70+1*");
    assert_eq!(token(&mut scheduler, 0), "0@71+1*");
    scheduler.handle_stranded(SequenceId(0));
    scheduler.handle_long(SequenceId(0));
    rows(&mut scheduler, 299, 1);
    request(&mut scheduler, 2, 64 * 4);
    assert_eq!(actions(&mut scheduler), "set aside 0, leave 0");
    scheduler.handle_left(SequenceId(0));
    rows(&mut scheduler, 300, 0);
    assert_eq!(actions(&mut scheduler), "release 0, begin 2 as 0, 0@0+100, 0@100+100, 0@200+56*");
    scheduler.handle_called_back(RequestId(1));
    assert_eq!(actions(&mut scheduler), "", "no page is left for its rows");
    scheduler.handle_cancel(RequestId(2));
    scheduler.handle_left(SequenceId(0));
    rows(&mut scheduler, 300, 0);
    assert_eq!(actions(&mut scheduler), "leave 0, release 0, begin 1 as 0, 0 has A, 0@64+8*");
    assert_eq!(token(&mut scheduler, 0), "0@72+1*");
}
