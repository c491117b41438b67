//! Random requests, served to the end.

use phalanx_coordinator::data::flow::{FlowSettings, Forwarding};
use phalanx_coordinator::data::scheduler::SchedulerSettings;
use proptest::prelude::*;

use super::world::{EXPERTS, End, World, needs};

#[derive(Debug, Clone, Copy)]
enum Event {
    Request { prompt: u32, tokens_max: u32, text: u32, priority: i64, is_scored: bool },
    Cancel { ago: u64 },
    Fail { ago: u64 },
    Lack { ago: u64 },
    Miss { expert: u32 },
    Find { expert: u32 },
    WaitLong,
    Whole { nth: usize },
    Compute { cancelled_ago: Option<u64> },
}

fn event() -> impl Strategy<Value = Event> {
    let length = prop_oneof![3 => 1..80_u32, 1 => 60..400_u32];
    prop_oneof![
        2 => (length, 1..150_u32, 0..4_u32, -3..=3_i64, prop::bool::weighted(0.3)).prop_map(|request| {
            let (prompt, tokens_max, text, priority, is_scored) = request;
            let priority = if text == 0 { 0 } else { priority };
            Event::Request { prompt, tokens_max, text, priority, is_scored }
        }),
        1 => (0..9_u64).prop_map(|ago| Event::Cancel { ago }),
        1 => (0..9_u64).prop_map(|ago| Event::Fail { ago }),
        1 => (0..9_u64).prop_map(|ago| Event::Lack { ago }),
        1 => (0..EXPERTS).prop_map(|expert| Event::Miss { expert }),
        2 => (0..EXPERTS).prop_map(|expert| Event::Find { expert }),
        1 => Just(Event::WaitLong),
        30 => any::<usize>().prop_map(|nth| Event::Whole { nth }),
        25 => prop::option::weighted(0.03, 0..9_u64).prop_map(|cancelled_ago| Event::Compute { cancelled_ago }),
    ]
}

prop_compose! {
    fn settings()(
        stages in 2..4_u32,
        whole: bool,
        sequences_max in 1..6_u32,
        queue_max in 1..8_u32,
        pages in 1..9_u32,
        chunk_rows_max in 1..100_u32,
        more_rows in 0..150_u32,
        more_prefill in 0..100_u32,
        batch_rows_max in 1..150_u32,
        prefix_cache in prop::bool::weighted(0.9),
    ) -> (FlowSettings, SchedulerSettings) {
        let rows_max = chunk_rows_max + sequences_max + more_rows;
        let forwarding = if whole { Forwarding::Whole } else { Forwarding::Partial };
        let flow =
            FlowSettings { stages, head_has_layers: false, rows_max, sequences_max, batch_rows_max, forwarding };
        let prefill_rows_max = chunk_rows_max + more_prefill;
        let rows_in_flight_max = rows_max;
        let scheduler = SchedulerSettings {
            sequences_max, queue_max, pages, rows_in_flight_max, chunk_rows_max, prefill_rows_max, prefix_cache,
        };
        (flow, scheduler)
    }
}

/// Lets happen what can happen. All that has not ended then waits for experts that are missing.
fn settle(world: &mut World) {
    let goes_on = |world: &mut World| world.compute(None) | world.whole(3) || world.wait_long();
    let moves = (0..1_000_000).take_while(|_| goes_on(world)).count();
    assert!(moves < 1_000_000, "it does not come to an end");
    world.check_all_are_stranded();
}

/// Lets everything end. Panics if nothing can happen while something has not ended.
fn drain(world: &mut World) {
    for _ in 0..1_000_000 {
        if world.is_done() {
            break;
        }
        let moved = world.compute(None) | world.whole(3);
        assert!(moved, "something has not ended and nothing can happen");
    }
    world.check_empty();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1_000, ..ProptestConfig::default() })]

    /// Whatever is asked, cancelled and lost: whoever comes first of a class begins first and nobody is overtaken again and
    /// again, no page is given twice or shared by mistake or written while others have it, decoding goes before prompts, nobody waits
    /// for those who wait for a missing expert, everything ends once all experts are there, and all comes back.
    #[test]
    fn everything_ends_and_all_pages_come_back(
        (flow, scheduler) in settings(),
        keeps_late_tokens: bool,
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut world = World::new(flow, scheduler, keeps_late_tokens);
        let mut asked = 0_u64;
        for event in events {
            match event {
                Event::Request { prompt, tokens_max, text, priority, is_scored } => {
                    world.request(asked, prompt, tokens_max, text, priority, is_scored);
                    asked += 1;
                }
                Event::Fail { ago } => world.fail(asked.saturating_sub(ago)),
                Event::Lack { ago } => world.lack(asked.saturating_sub(ago)),
                Event::Miss { expert } => world.miss(expert),
                Event::Find { expert } => world.find(expert),
                Event::WaitLong => {
                    world.wait_long();
                }
                Event::Cancel { ago } => world.cancel(asked.saturating_sub(ago)),
                Event::Whole { nth } => {
                    world.whole(nth);
                }
                Event::Compute { cancelled_ago } => {
                    world.compute(cancelled_ago.map(|ago| asked.saturating_sub(ago)));
                }
            }
        }
        settle(&mut world);
        for expert in world.missing() {
            world.find(expert);
        }
        drain(&mut world);
    }
}

/// Far too many for their pages: they give way to one another again and again, and all say all they have to say.
#[test]
fn crowded_sequences_all_finish() {
    let flow = FlowSettings {
        stages: 3,
        head_has_layers: false,
        rows_max: 200,
        sequences_max: 8,
        batch_rows_max: 64,
        forwarding: Forwarding::Partial,
    };
    let scheduler = SchedulerSettings {
        sequences_max: 8,
        queue_max: 40,
        pages: 12,
        rows_in_flight_max: 200,
        chunk_rows_max: 64,
        prefill_rows_max: 128,
        prefix_cache: false,
    };
    let mut world = World::new(flow, scheduler, true);
    let mut rows_at_least = 0;
    for id in 0..40 {
        let (prompt, tokens_max) = (10 + 3 * id as u32, 300);
        world.request(id, prompt, tokens_max, 0, 0, false);
        rows_at_least += u64::from(2 * (prompt + tokens_max - 1) + 300);
    }
    drain(&mut world);
    assert!(world.ends.values().all(|&end| end == End::Finished) && world.ends.len() == 40);
    assert!(world.preempted > 10, "only {} were preempted", world.preempted);
    // Non-sampling rows skip the head.
    let again = world.rows as f64 / rows_at_least as f64;
    println!("{} preemptions, {:.2} times the rows that were needed", world.preempted, again);
    assert!(again < 1.5, "{again} times the rows that were needed");
}

/// The same with texts that are alike: what is common is computed about once, and nothing is mixed up.
#[test]
fn crowded_sequences_share_what_they_have_in_common() {
    let flow = FlowSettings {
        stages: 3,
        head_has_layers: false,
        rows_max: 300,
        sequences_max: 8,
        batch_rows_max: 64,
        forwarding: Forwarding::Partial,
    };
    let scheduler = SchedulerSettings {
        sequences_max: 8,
        queue_max: 40,
        pages: 30,
        rows_in_flight_max: 300,
        chunk_rows_max: 64,
        prefill_rows_max: 128,
        prefix_cache: true,
    };
    let rows = |prefix_cache: bool| {
        let scheduler = SchedulerSettings { prefix_cache, ..scheduler.clone() };
        let mut world = World::new(flow.clone(), scheduler, true);
        for id in 0..40 {
            world.request(id, 200 + id as u32, 130, id as u32 % 2, 0, false);
        }
        drain(&mut world);
        assert!(world.ends.values().all(|&end| end == End::Finished) && world.ends.len() == 40);
        (world.rows, world.shared, world.replaced)
    };
    let (alone, together) = (rows(false), rows(true));
    println!("{alone:?} without, {together:?} with what is kept");
    assert!(3 * together.0 < 2 * alone.0 && together.1 > 100, "{together:?} of {alone:?}");
}

fn eight_at_once() -> (FlowSettings, SchedulerSettings) {
    let flow = FlowSettings {
        stages: 3,
        head_has_layers: false,
        rows_max: 90,
        sequences_max: 8,
        batch_rows_max: 64,
        forwarding: Forwarding::Partial,
    };
    let scheduler = SchedulerSettings {
        sequences_max: 8,
        queue_max: 80,
        pages: 12,
        rows_in_flight_max: 90,
        chunk_rows_max: 64,
        prefill_rows_max: 64,
        prefix_cache: true,
    };
    (flow, scheduler)
}

/// More wait for a missing expert than there are places, pages and rows, and those who came after them and do not need it are
/// answered; when it is there so are all.
#[test]
fn who_can_be_answered_is_though_many_are_stranded() {
    let of = |positions: u32| -> Vec<u32> { (0..2).flat_map(|stage| needs(0, positions, stage)).collect() };
    let missing = needs(0, 60, 0).into_iter().find(|expert| !of(4).contains(expert)).unwrap();
    let (flow, scheduler) = eight_at_once();
    let mut world = World::new(flow, scheduler, true);
    world.miss(missing);
    (0..40).for_each(|id| world.request(id, 60, 60, 0, 0, false));
    settle(&mut world);
    assert!((32..=40).contains(&world.set_aside), "{} of forty gave way", world.set_aside);
    (40..60).for_each(|id| world.request(id, 2, 3, 0, 0, false));
    settle(&mut world);
    let ended: Vec<u64> = world.ends.keys().map(|id| id.0).collect();
    assert_eq!(ended, (40..60).collect::<Vec<_>>());
    world.find(missing);
    drain(&mut world);
    assert!(world.ends.values().all(|&end| end == End::Finished) && world.ends.len() == 60);
    println!("{} set aside, {} preempted", world.set_aside, world.preempted);
}

/// Where nobody wants what the stranded ones have nobody gives way, and nothing is computed twice when the expert comes back.
#[test]
fn a_short_absence_costs_no_row() {
    let rows = |missing: Option<u32>| {
        let (flow, scheduler) = eight_at_once();
        let mut world = World::new(flow, SchedulerSettings { pages: 16, ..scheduler }, true);
        (0..8).for_each(|id| world.request(id, 10, 60, 0, 0, false));
        for _ in 0..100 {
            world.compute(None);
            world.whole(3);
        }
        if let Some(expert) = missing {
            world.miss(expert);
            settle(&mut world);
            assert!(world.ends.is_empty(), "all of them need it");
            world.find(expert);
        }
        drain(&mut world);
        assert_eq!((world.ends.len(), world.set_aside, world.preempted), (8, 0, 0));
        world.rows
    };
    let late = *needs(0, 60, 0).difference(&needs(0, 16, 0)).next().unwrap();
    assert_eq!(rows(Some(late)), rows(None));
}
