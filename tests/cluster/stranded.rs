//! Requests that wait for experts that nobody holds: more than there are places and rows for, and nobody else waits for them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coordinator::api::Backend;
use coordinator::data::flow::Forwarding;
use coordinator::data::forwarding::Choice;
use coordinator::data::request::{Event, Failure, OnMissing, Priority, Submission};
use coordinator::data::steer::Forward;
use coordinator::generation::{FinishReason, Generation, Request, Token};
use model::kernel::{Kernels, NumericClass};
use model::text::StopStream;
use serde_json::Value;

use crate::conductor::Heard;
use crate::elastic::{is_drained, is_settled, placer};
use crate::live::Live;
use crate::oracle::{Oracle, Random, repository};

/// An expert of the demo model is 98,304 bytes, and there are 64: two of such devices have room for all but two of them.
const DEVICE: u64 = 31 * 98_304;
/// There are 32 places, and 256 rows.
const STRANDED: usize = 44;
/// Others that need the experts, and others that do not.
const OTHERS: usize = 8;

type Answer = (Vec<Token>, Option<FinishReason>);
/// With their answers.
type Requests = Vec<(Request, Answer)>;

/// Whether an answer comes to need an expert that is missing. What the last experts make of a prompt is of use for its last row
/// alone.
fn needs(oracle: &mut Oracle, request: &Request, is_missing: &dyn Fn(usize, u32) -> bool) -> bool {
    let last = oracle.opened.spec.layers.len() - 1;
    let prompt = request.prompt.len();
    let is_needed = Cell::new(false);
    oracle.without(request.clone(), &|position, layer, expert| {
        let is_missing = is_missing(layer, expert);
        is_needed.set(is_needed.get() || is_missing && (layer < last || position + 1 >= prompt));
        is_missing
    });
    is_needed.get()
}

/// What two nodes hold of which one is drained by force, as it is published.
fn held(view: &Value) -> BTreeSet<(usize, u32)> {
    let number = |load: &Value, key: &str| load[key].as_u64().unwrap();
    let loads = view["loads"].as_array().unwrap().iter();
    loads.map(|load| (number(load, "layer") as usize, number(load, "expert") as u32)).collect()
}

/// Exact requests that all need a missing expert, with their answers, and others that do not, with theirs.
fn requests(oracle: &mut Oracle, is_missing: &dyn Fn(usize, u32) -> bool) -> (Requests, Requests) {
    let mut random = Random::new(17);
    let (mut stranded, mut free) = (Vec::new(), Vec::new());
    while stranded.len() < STRANDED + OTHERS || free.len() < OTHERS {
        let (prompt, tokens) = (1 + random.below(90), 1 + random.below(20));
        // Long ones need every expert, short ones need few.
        let (prompt, tokens) =
            if random.below(2) == 0 { (prompt, tokens) } else { (1 + prompt % 8, 1 + tokens % 4) };
        let request = oracle.request(&mut random, prompt, tokens);
        let all = if needs(oracle, &request, is_missing) { &mut stranded } else { &mut free };
        let answer = oracle.answer(request.clone());
        all.push((request, answer));
    }
    (stranded, free)
}

fn data<'v>(view: &'v Value, key: &str) -> &'v Value {
    &view["data"][key]
}

fn count(view: &Value, key: &str) -> u64 {
    data(view, key).as_u64().unwrap()
}

/// What a client hears at last who has so much time.
async fn failure(live: &Live, request: Request, within: Duration) -> Failure {
    let (events, mut heard) = tokio::sync::mpsc::channel(Submission::events_max(request.tokens_max));
    let submission = Submission {
        generation: Generation::new(request, None, StopStream::new(Vec::new()).unwrap()),
        priority: Priority::default(),
        on_missing: OnMissing::Exact,
        deadline: Instant::now() + within,
        within_ms: within.as_millis() as u64,
        events,
        trace: None,
    };
    live.coordinator.submit(submission).await;
    loop {
        match heard.recv().await.expect("it hears of its end") {
            Event::Failed(failure) => return failure,
            Event::End(_) => panic!("it needs the expert"),
            _ => {}
        }
    }
}

/// The places, and all rows that prompts may have, are taken by exact requests that wait for two experts, and more of these wait. Those
/// who go on without and those who need neither are answered; who has no time left is told what was missing; and when somebody holds the
/// experts, all are answered, with the plain loop's bits.
#[test]
fn who_is_stranded_holds_nobody_up() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    for forwarding in [Forwarding::Partial, Forwarding::Whole] {
        actix::System::new().block_on(async {
            let live = Rc::new(Live::of_memory(&oracle, kernels, 2, DEVICE, placer(2), None).await);
            live.seen(is_settled).await;
            live.coordinator.data().send(Forward(Choice::Always(forwarding))).await.unwrap();
            live.coordinator.drain("n0".into(), true).await.unwrap();
            let view = live.seen(|view| is_drained(view, "n0")).await;
            let held = held(&view);
            assert_eq!(held.len(), 62, "two are missing");
            let is_missing = |layer: usize, expert: u32| !held.contains(&(layer, expert));
            let (mut stranded, free) = requests(&mut oracle, &is_missing);
            let others = stranded.split_off(STRANDED);
            let waits: Vec<_> = stranded
                .iter()
                .cloned()
                .map(|(request, answer)| {
                    let live = Rc::clone(&live);
                    actix::spawn(async move { assert_eq!(live.ask(request).await, answer) })
                })
                .collect();
            let view =
                live.seen(|view| count(view, "stranded") + count(view, "aside") == STRANDED as u64).await;
            assert_eq!(
                (count(&view, "running"), count(&view, "stranded")),
                (32, 32),
                "nobody gives way in vain"
            );
            assert_eq!(count(&view, "set_aside"), STRANDED as u64 - 32, "{:#}", view["data"]);

            let drop: Vec<(Request, Heard)> = others
                .into_iter()
                .take(OTHERS)
                .map(|(request, _)| {
                    let heard =
                        oracle.without(request.clone(), &|_, layer, expert| is_missing(layer, expert));
                    assert!(!heard.missing.is_empty());
                    (request, heard)
                })
                .collect();
            let exact = free.iter().cloned().map(|(request, (tokens, finish))| {
                (request, Heard { tokens, finish, prompt: None, missing: BTreeMap::new() }, OnMissing::Exact)
            });
            let drop = drop.into_iter().map(|(request, heard)| (request, heard, OnMissing::Drop));
            let asked: Vec<_> = exact
                .chain(drop)
                .map(|(request, expected, on_missing)| {
                    let live = Rc::clone(&live);
                    actix::spawn(async move { assert_eq!(live.heard(request, on_missing).await, expected) })
                })
                .collect();
            let late = failure(&live, stranded[0].0.clone(), Duration::from_secs(2)).await;
            let late = late.to_string();
            assert!(late.contains("within 2000 ms: ") && late.contains(", which has no holder"), "{late}");
            for asked in asked {
                asked.await.unwrap();
            }
            assert!(waits.iter().all(|waits| !waits.is_finished()), "they wait");

            let why = live.coordinator.why(None).await;
            let why = why["requests"].as_array().unwrap();
            assert_eq!(why.len(), STRANDED);
            let aside: Vec<_> = why.iter().filter(|one| one["kind"] == "aside").collect();
            assert!(aside.len() >= STRANDED - 32, "{why:#?}");
            for one in aside {
                let said = one["why"].as_str().unwrap();
                let (layer, expert) = (one["layer"].as_u64().unwrap(), one["expert"].as_u64().unwrap());
                assert!(is_missing(layer as usize, expert as u32), "{one:#}");
                let names = format!("waits at layer {layer} for expert {expert}, which has no holder: node ");
                assert!(said.starts_with("has given way: row ") && said.contains(&names), "{said}");
                assert_eq!(one["state"], "waiting");
            }

            live.coordinator.undrain("n0".into()).await.unwrap();
            for waits in waits {
                waits.await.unwrap();
            }
            let view = live.seen(|view| count(view, "running") == 0).await;
            assert_eq!(["stranded", "aside", "waiting"].map(|key| count(&view, key)), [0; 3]);
            assert_eq!(data(&view, "kv_pages_free"), data(&view, "kv_pages"), "all pages come back");
        });
    }
}
