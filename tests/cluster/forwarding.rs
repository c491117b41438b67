//! Rows that go on by themselves: whatever comes late, in whatever order, the answer is the same; and where one expert
//! does not answer, exactly those stop who need it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coordinator::data::actor::Ask;
use coordinator::data::flow::Forwarding;
use coordinator::data::forwarding::Choice;
use coordinator::data::start::DataSettings;
use coordinator::data::steer::Forward;
use coordinator::generation::Request;
use model::kernel::{Kernels, NumericClass};

use crate::conductor::{Conductor, Over};
use crate::oracle::{Oracle, Random, repository};
use crate::unruly::{Gate, Manner};
use crate::{by_turns, settings};

/// Returns of one expert of this layer are held back.
const LAYER: u32 = 4;
/// The node on which it sits alone, so that nobody else's returns come with its own.
const ALONE: u32 = 2;
const TOKENS: usize = 24;
const SEQUENCES: usize = 32;
/// Longer than any of this takes; it is there so that a hang says where.
const CASE_MAX: Duration = Duration::from_secs(60);
/// Questions in which anything that still goes on would show.
const QUESTIONS: usize = 2000;

/// 32 sequences decode over TCP while an expert's returns are held back, then let through.
struct Stopped {
    oracle: Oracle,
    requests: Vec<Request>,
    /// Whose returns are held back.
    expert: u32,
    /// Tokens of each request before a row of its own needs it.
    before: Vec<usize>,
}

impl Stopped {
    fn new() -> Self {
        let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
        let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
        let mut random = Random::new(11);
        let requests: Vec<_> = (0..SEQUENCES)
            .map(|_| {
                let prompt = 1 + random.below(2);
                oracle.request(&mut random, prompt, TOKENS)
            })
            .collect();
        let needs: Vec<_> =
            requests.iter().map(|request| oracle.tokens_before(request.clone(), LAYER as usize)).collect();
        let before = |expert| -> Vec<usize> {
            needs.iter().map(|(tokens, before)| before.get(&expert).copied().unwrap_or(*tokens)).collect()
        };
        // The one that stops them at as many different tokens as any does.
        let stops = |expert: &u32| BTreeSet::from_iter(before(*expert)).len();
        let expert = (0..16).max_by_key(stops).unwrap();
        let before = before(expert);
        Self { oracle, requests, expert, before }
    }

    async fn start(&self, forwarding: Forwarding, gate: &Arc<Gate>) -> Rc<Conductor> {
        let (opened, kernels) = (Arc::clone(&self.oracle.opened), self.oracle.kernels());
        let (config, manner) = (&self.oracle.config, Manner::Held(Arc::clone(gate)));
        let settings = settings(forwarding);
        let held = (LAYER, self.expert);
        let place = |layer, expert, _| vec![if (layer, expert) == held { ALONE } else { expert % ALONE }];
        Rc::new(
            Conductor::start_so(&opened, config, kernels, Over::Tcp, ALONE + 1, settings, place, manner)
                .await,
        )
    }
}

/// Stopping one expert's actor stops exactly the rows that need it.
#[test]
fn an_expert_that_does_not_answer_stops_exactly_the_rows_that_need_it() {
    let mut stopped = Stopped::new();
    let before = stopped.before.clone();
    assert!(BTreeSet::from_iter(&before).len() > 5, "some stop soon, some late: {before:?}");
    let expected: Vec<_> =
        stopped.requests.clone().into_iter().map(|request| stopped.oracle.answer(request)).collect();
    let case = async {
        let gate = Gate::new(LAYER, stopped.expert);
        let cluster = stopped.start(Forwarding::Partial, &gate).await;
        let heard = Rc::new(RefCell::new(vec![0; SEQUENCES]));
        let asked: Vec<_> = (0..SEQUENCES)
            .map(|number| {
                let (cluster, request) = (Rc::clone(&cluster), stopped.requests[number].clone());
                let heard = Rc::clone(&heard);
                actix::spawn(async move {
                    cluster.ask_and(request, |tokens| heard.borrow_mut()[number] = tokens).await
                })
            })
            .collect();
        // Each question gives way to what else there is to do.
        while heard.borrow().iter().zip(&before).any(|(heard, before)| heard < before) {
            cluster.data.send(Ask).await.unwrap();
        }
        for _ in 0..QUESTIONS {
            cluster.data.send(Ask).await.unwrap();
        }
        assert_eq!(*heard.borrow(), before, "nobody goes on without the expert");
        gate.open();
        for (number, (asked, expected)) in asked.into_iter().zip(&expected).enumerate() {
            assert_eq!(asked.await.unwrap(), *expected, "request {number}");
        }
    };
    actix::System::new().block_on(async { tokio::time::timeout(CASE_MAX, case).await.expect("it hangs") });
}

/// With whole steps all of them stop with the first, within a step.
#[test]
fn with_whole_steps_all_stop_with_the_first() {
    let mut stopped = Stopped::new();
    let expected: Vec<_> =
        stopped.requests.clone().into_iter().map(|request| stopped.oracle.answer(request)).collect();
    let partial: usize = stopped.before.iter().sum();
    let case = async {
        let gate = Gate::new(LAYER, stopped.expert);
        let cluster = stopped.start(Forwarding::Whole, &gate).await;
        let asked: Vec<_> = stopped
            .requests
            .iter()
            .map(|request| {
                let (cluster, request) = (Rc::clone(&cluster), request.clone());
                actix::spawn(async move { cluster.ask(request).await })
            })
            .collect();
        while gate.held() == 0 {
            cluster.data.send(Ask).await.unwrap();
        }
        let then = cluster.data.send(Ask).await.unwrap().tokens;
        for _ in 0..QUESTIONS {
            cluster.data.send(Ask).await.unwrap();
        }
        let now = cluster.data.send(Ask).await.unwrap();
        assert_eq!(now.tokens, then, "the step stands, and no other one begins");
        assert!((now.tokens as usize) < partial, "{} tokens, by themselves they make {partial}", now.tokens);
        gate.open();
        for (number, (asked, expected)) in asked.into_iter().zip(&expected).enumerate() {
            assert_eq!(asked.await.unwrap(), *expected, "request {number}");
        }
    };
    actix::System::new().block_on(async { tokio::time::timeout(CASE_MAX, case).await.expect("it hangs") });
}

/// Requests of random lengths, so many at once, while returns come late and in any order.
fn shuffled(model: &str, over: Over, forwarding: Choice, requests: usize, seed: u64) {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join(model), kernels);
    let mut random = Random::new(seed);
    let requests: Vec<_> = (0..requests)
        .map(|_| {
            let (prompt, tokens) = (1 + random.below(60), 1 + random.below(12));
            oracle.request(&mut random, prompt, tokens)
        })
        .collect();
    let expected: Vec<_> = requests.iter().map(|request| oracle.answer(request.clone())).collect();
    let settings = DataSettings { sequences_max: 64, forwarding, ..settings(Forwarding::Partial) };
    actix::System::new().block_on(async {
        let (opened, config) = (Arc::clone(&oracle.opened), &oracle.config);
        let manner = Manner::Shuffled(seed);
        let cluster =
            Conductor::start_so(&opened, config, kernels, over, 3, settings, by_turns, manner).await;
        let cluster = Rc::new(cluster);
        let asked: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let cluster = Rc::clone(&cluster);
                actix::spawn(async move { cluster.ask(request).await })
            })
            .collect();
        for (number, (asked, expected)) in asked.into_iter().zip(expected).enumerate() {
            // Modes change under way, which nobody may see in an answer.
            if let Choice::Auto = forwarding {
                let mode = if number.is_multiple_of(2) { Forwarding::Whole } else { Forwarding::Partial };
                cluster.data.send(Forward(Choice::Always(mode))).await.unwrap();
            }
            assert_eq!(asked.await.unwrap(), expected, "{model}, seed {seed}, request {number}");
        }
    });
}

#[test]
fn returns_in_any_order_change_no_answer() {
    let partial = Choice::Always(Forwarding::Partial);
    shuffled("demo-model", Over::Memory, partial, 64, 1);
    shuffled("demo-model", Over::Memory, Choice::Always(Forwarding::Whole), 24, 2);
    shuffled("demo-model", Over::Tcp, partial, 32, 3);
    shuffled("demo-model", Over::Memory, partial, 1, 4);
    shuffled("demo-model", Over::Memory, Choice::Auto, 48, 5);
}

#[test]
fn returns_in_any_order_change_no_answer_of_any_family() {
    let families = ["deepseekv2", "deepseekv3-seed", "gptoss", "mixtral", "olmoe", "qwen2moe", "qwen3moe"];
    for (seed, family) in (10..).zip(families) {
        let requests = [7, 16, 2, 33, 5, 12, 20][seed as usize - 10];
        let partial = Choice::Always(Forwarding::Partial);
        shuffled(&format!("tests/fixtures/{family}"), Over::Memory, partial, requests, seed);
    }
}
