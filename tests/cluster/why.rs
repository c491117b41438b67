//! What a request is said to wait for is what it waits for: one expert is held back, a node goes, the queue fills.

use std::cmp::Reverse;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::data::actor::{Ask, Submit};
use coordinator::data::exchange::{Held, Wait};
use coordinator::data::flow::Forwarding;
use coordinator::data::request::{Event, Failure, OnMissing, Priority, RequestId, Submission};
use coordinator::data::scheduler;
use coordinator::data::start::DataSettings;
use coordinator::data::why::{AtExpert, Cause, Other, Waiting, Why};
use coordinator::generation::{Generation, Request};
use model::kernel::{Kernels, NumericClass};
use model::kv::KvCache;
use model::text::StopStream;
use tokio::sync::mpsc;

use crate::conductor::{Conductor, Over};
use crate::oracle::{Oracle, Random, repository};
use crate::settings;
use crate::unruly::{Gate, Manner};

/// Returns of one expert of this layer are held back, or its node goes; it sits alone there.
const LAYER: u32 = 4;
/// As many as any test asks, and among how many they are found: all of them need the expert.
const REQUESTS: usize = 12;
const ASKED: usize = 64;
const ALONE: u32 = 2;
/// Longer than any of this takes; it is there so that a hang says where.
const CASE_MAX: Duration = Duration::from_secs(60);

struct Case {
    cluster: Rc<Conductor>,
    gate: Arc<Gate>,
    /// All of them need the expert.
    requests: Vec<Request>,
    expert: u32,
}

impl Case {
    async fn start(settings: DataSettings) -> Self {
        let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
        let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
        let mut random = Random::new(5);
        let asked: Vec<_> = (0..ASKED).map(|_| oracle.request(&mut random, 2, 60)).collect();
        let asked: Vec<_> = asked
            .into_iter()
            .map(|request| (oracle.tokens_before(request.clone(), LAYER as usize).1, request))
            .collect();
        let need = |expert: &u32| asked.iter().filter(|(needs, _)| needs.contains_key(expert)).count();
        let expert = (0..16).max_by_key(need).unwrap();
        let requests = asked.into_iter().filter_map(|(needs, request)| Some((*needs.get(&expert)?, request)));
        let mut requests: Vec<(usize, Request)> = requests.collect();
        // Those that need it soonest are taken first.
        requests.sort_by_key(|(tokens, _)| Reverse(*tokens));
        let requests: Vec<Request> = requests.into_iter().map(|(_, request)| request).collect();
        assert!(requests.len() >= REQUESTS, "{} need it", requests.len());
        let gate = Gate::new(LAYER, expert);
        let (manner, held) = (Manner::Held(Arc::clone(&gate)), (LAYER, expert));
        let place = |layer, expert, _| vec![if (layer, expert) == held { ALONE } else { expert % ALONE }];
        let (opened, config) = (Arc::clone(&oracle.opened), oracle.config.clone());
        let cluster =
            Conductor::start_so(&opened, &config, kernels, Over::Tcp, ALONE + 1, settings, place, manner)
                .await;
        Self { cluster: Rc::new(cluster), gate, requests, expert }
    }

    async fn submit(&mut self, within: Duration) -> (RequestId, mpsc::Receiver<Event>) {
        let request = self.requests.pop().unwrap();
        let (events, heard) = mpsc::channel(Submission::events_max(request.tokens_max));
        let generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let within_ms = within.as_millis() as u64;
        let submission = Submission {
            trace: None,
            generation,
            deadline: Instant::now() + within,
            within_ms,
            events,
            priority: Priority::default(),
            on_missing: OnMissing::Exact,
        };
        (self.cluster.data.send(Submit(submission)).await.unwrap(), heard)
    }

    /// What all wait for, as soon as `is_so`.
    async fn why(&self, is_so: impl Fn(&[Waiting]) -> bool) -> Vec<Waiting> {
        loop {
            let waiting = self.cluster.data.send(Why(None)).await.unwrap();
            if is_so(&waiting) {
                return waiting;
            }
            // Each question gives way to what else there is to do.
            self.cluster.data.send(Ask).await.unwrap();
        }
    }
}

fn case(run: impl AsyncFnOnce()) {
    actix::System::new().block_on(async {
        tokio::time::timeout(CASE_MAX, run()).await.expect("what it waits for does not come")
    });
}

/// Where the request is held up at the expert that is held back.
fn at_expert(cause: &Cause, expert: u32) -> Option<&AtExpert> {
    match cause {
        Cause::Expert(at) if (at.wait.layer, at.wait.expert) == (LAYER, expert) => Some(at),
        _ => None,
    }
}

/// The one that is to blame is named: the layer, the expert, its node and link, and since when.
#[test]
fn an_expert_that_is_held_back_is_named() {
    case(async || {
        let mut case = Case::start(settings(Forwarding::Partial)).await;
        let expert = case.expert;
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(case.submit(CASE_MAX).await);
        }
        let all = case
            .why(|all| all.len() == 4 && all.iter().all(|one| at_expert(&one.cause, expert).is_some()))
            .await;
        for Waiting { cause, runs, prompt_tokens, .. } in &all {
            let at = at_expert(cause, expert).unwrap();
            let Wait { held: Held::Out { node, replica, is_overdue, .. }, shard, .. } = at.wait else {
                panic!("{cause:?}")
            };
            assert_eq!((node.0, replica, shard, is_overdue), (ALONE, 0, 0, false));
            assert!(*runs && *prompt_tokens == 2 && at.node.as_deref() == Some("n2"), "{cause:?}");
            let row = at.row;
            let said = cause.to_string();
            let begins = format!("row {row} waits at layer {LAYER} for expert {expert} on node n2 since ");
            assert!(said.starts_with(&begins) && said.contains("link silent for "), "{said}");
        }
        // One of them alone, and nobody.
        let (id, _) = heard[2];
        let one = case.cluster.data.send(Why(Some(id))).await.unwrap();
        assert_eq!(one.iter().map(|one| one.request).collect::<Vec<_>>(), [id]);
        assert_eq!(case.cluster.data.send(Why(Some(RequestId(99)))).await.unwrap(), []);
        // The time goes on.
        let since = |all: &[Waiting]| match at_expert(&all[0].cause, expert).unwrap().wait.held {
            Held::Out { since, silent, .. } => (since, silent),
            other => panic!("{other:?}"),
        };
        let (first, silent) = since(&all);
        case.why(|all| since(all).0 > first + Duration::from_millis(20) && since(all).1 > silent).await;
        case.gate.open();
        for (_, heard) in &mut heard {
            while !matches!(heard.recv().await.unwrap(), Event::End(_)) {}
        }
        assert_eq!(case.cluster.data.send(Why(None)).await.unwrap(), []);
    });
}

/// Where rows of a step go on together, those whose rows are back wait for the one whose row is not.
#[test]
fn in_whole_steps_the_row_that_all_wait_for_is_named() {
    case(async || {
        let mut case = Case::start(settings(Forwarding::Whole)).await;
        let expert = case.expert;
        let mut heard = Vec::new();
        for _ in 0..12 {
            heard.push(case.submit(CASE_MAX).await);
        }
        let waits_for_other = |one: &Waiting| match &one.cause {
            Cause::Step { other: Other { request: Some(request), at }, .. } => {
                *request != one.request && (at.wait.layer, at.wait.expert) == (LAYER, expert)
            }
            _ => false,
        };
        let all = case.why(|all| all.iter().any(waits_for_other)).await;
        let said = all.iter().find(|one| waits_for_other(one)).unwrap().cause.to_string();
        assert!(
            said.contains("goes on with row ")
                && said.contains(&format!("for expert {expert} on node n2 since")),
            "{said}"
        );
    });
}

/// A request that has had its time is told what it waited for.
#[test]
fn who_is_late_hears_what_was_missing() {
    case(async || {
        let mut case = Case::start(settings(Forwarding::Partial)).await;
        let expert = case.expert;
        let (_, mut heard) = case.submit(Duration::from_secs(2)).await;
        let failure = loop {
            match heard.recv().await.unwrap() {
                Event::Failed(failure) => break failure,
                Event::Step { .. } | Event::Cached(_) | Event::Missing(_) | Event::Prompt(_) => {}
                Event::End(_) => panic!("it needs the expert"),
            }
        };
        let Failure::TooLate { within_ms: 2000, missing: Some(missing) } = &failure else {
            panic!("{failure}")
        };
        assert!(
            missing.contains(&format!("waits at layer {LAYER} for expert {expert} on node n2 since")),
            "{failure}"
        );
        assert!(failure.to_string().contains(": row "), "{failure}");
    });
}

/// A node that has gone is named, with the expert that nobody else holds.
#[test]
fn a_node_that_has_gone_is_named() {
    case(async || {
        let mut case = Case::start(settings(Forwarding::Partial)).await;
        let expert = case.expert;
        let _heard = case.submit(CASE_MAX).await;
        case.why(|all| all.len() == 1 && at_expert(&all[0].cause, expert).is_some()).await;
        case.cluster.nodes[ALONE as usize].stop().await;
        let away = |one: &Waiting| {
            at_expert(&one.cause, expert).is_some_and(|at| matches!(at.wait.held, Held::Away { .. }))
        };
        let all = case.why(|all| all.iter().any(away)).await;
        let said = all[0].cause.to_string();
        assert!(
            said.ends_with(&format!(
                "for expert {expert}: node n2, which should hold it, does not serve it now"
            )),
            "{said}"
        );
    });
}

/// Those who wait to begin hear whose turn it is, and what the first of them waits for.
#[test]
fn those_in_the_queue_hear_why() {
    case(async || {
        let mut case = Case::start(DataSettings { sequences_max: 2, ..settings(Forwarding::Partial) }).await;
        let expert = case.expert;
        let mut heard = Vec::new();
        for _ in 0..5 {
            heard.push(case.submit(CASE_MAX).await);
        }
        let all = case
            .why(|all| all.len() == 5 && all[..2].iter().all(|one| at_expert(&one.cause, expert).is_some()))
            .await;
        let held = all[2..].iter().map(|one| match &one.cause {
            Cause::Room { held, .. } => *held,
            other => panic!("{other:?}"),
        });
        let expected = [
            scheduler::Held::Places { running: 2 },
            scheduler::Held::Behind { ahead: 1 },
            scheduler::Held::Behind { ahead: 2 },
        ];
        assert_eq!(held.collect::<Vec<_>>(), expected);
        assert!(all[2..].iter().all(|one| !one.runs));
        // As soon as it has been out for so long that it holds them up, they hear what is at the bottom of it.
        let all = case.why(|all| all[2..].iter().all(|one| one.cause.expert().is_some())).await;
        let said = all[4].cause.to_string();
        let row = all[4].cause.expert().unwrap().row;
        assert!(said.starts_with(&format!("queued behind 2 others; row {row} of request ")), "{said}");
        assert!(
            said.contains(&format!("waits at layer {LAYER} for expert {expert} on node n2 since")),
            "{said}"
        );
        drop(heard);
    });
}

/// There is room for three pages of keys and values, and who finds none says how many it needs.
#[test]
fn want_of_pages_is_named() {
    case(async || {
        let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
        let spec = Arc::clone(&Oracle::new(&repository().join("demo-model"), kernels).opened.spec);
        let memory = 64 << 20;
        let kv_bytes = 3 * (memory / KvCache::new(&spec, kernels.class().row_type(), memory).pages());
        let mut case = Case::start(DataSettings { kv_bytes, ..settings(Forwarding::Partial) }).await;
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(case.submit(CASE_MAX).await);
        }
        let lacks = |one: &Waiting| {
            matches!(one.cause, Cause::Room { held: scheduler::Held::Pages { pages: 3, .. }, .. })
        };
        let all = case.why(|all| all.iter().any(lacks)).await;
        let said = all.iter().find(|one| lacks(one)).unwrap().cause.to_string();
        assert!(
            said.starts_with("waits for KV pages: it needs ") && said.contains(" of 3 are free"),
            "{said}"
        );
        drop(heard);
    });
}
