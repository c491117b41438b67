//! How likely a prompt is, is what the plain loop says row by row, however it is cut, in whatever company, and though others have
//! left the same pages there.

use std::rc::Rc;
use std::sync::Arc;

use coordinator::data::actor::Ask;
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use coordinator::generation::{FinishReason, Request, Token};
use model::kernel::{Kernels, NumericClass};
use model::kv::KvCache;
use model::sampler::Logprobs;

use crate::conductor::{Conductor, Over};
use crate::oracle::{Oracle, Random, repository};
use crate::{by_turns, settings};

type Heard = (Option<Vec<Logprobs>>, Vec<Token>, Option<FinishReason>);

/// Prompts that begin alike. Two of three are looked at, some of those without a token after them, and some end by a token.
fn requests(oracle: &Oracle, random: &mut Random) -> Vec<Request> {
    let beginning = oracle.request(random, 150, 1).prompt;
    let request = |index: usize| {
        let (common, own, tokens) = (random.below(151), 1 + random.below(40), 1 + random.below(60));
        let mut request = oracle.request(random, own, tokens);
        request.prompt = match index {
            0 => vec![7],
            _ if index.is_multiple_of(4) => beginning[..128].to_vec(),
            _ => [&beginning[..common], &request.prompt].concat(),
        };
        request.prompt_logprobs = index % 3 != 1;
        if request.prompt_logprobs && index.is_multiple_of(5) {
            request.tokens_max = 0;
        }
        if index % 7 == 2 {
            (request.grammar, request.end_ids) =
                (None, (0..oracle.opened.spec.vocab as u32).step_by(3).collect());
        }
        request
    };
    (0..48).map(request).collect()
}

fn scored_in(model: &str, class: NumericClass, forwarding: Forwarding) {
    let Ok(kernels) = Kernels::for_class(class) else {
        return println!("SKIPPED: class {class} does not run here");
    };
    let mut oracle = Oracle::new(&repository().join(model), kernels);
    let requests = requests(&oracle, &mut Random::new(17));
    let mut expect = |request: &Request| -> Heard {
        let prompt = request.prompt_logprobs.then(|| oracle.scored(&request.prompt, 5));
        let (tokens, reason) = oracle.answer(request.clone());
        (prompt, tokens, reason)
    };
    let expected: Vec<Heard> = requests.iter().map(&mut expect).collect();
    let ended = |(prompt, tokens, reason): &&Heard| {
        prompt.is_some() && *reason == Some(FinishReason::Stop) && !tokens.is_empty()
    };
    assert!(expected.iter().filter(ended).count() > 2, "some end by a token, which is told");
    let page_bytes = KvCache::page_bytes(&oracle.opened.spec, class.row_type());
    for pages in [2_000, 9] {
        let settings = DataSettings { kv_bytes: pages * page_bytes, ..settings(forwarding) };
        let (opened, config) = (Arc::clone(&oracle.opened), oracle.config.clone());
        actix::System::new().block_on(async {
            let cluster =
                Conductor::start(&opened, &config, kernels, Over::Memory, 2, settings, by_turns).await;
            let cluster = Rc::new(cluster);
            // At once, and then again one by one, when others have left all pages there.
            let ask = |request: &Request| {
                let (cluster, request) = (Rc::clone(&cluster), request.clone());
                actix::spawn(async move { cluster.hear(request, |_| ()).await })
            };
            let asked: Vec<_> = requests.iter().map(ask).collect();
            for (number, (asked, expected)) in asked.into_iter().zip(&expected).enumerate() {
                assert_eq!(asked.await.unwrap(), *expected, "{model}, {pages} pages, request {number}");
            }
            for (request, expected) in requests.iter().zip(&expected).take(12) {
                assert_eq!(cluster.hear(request.clone(), |_| ()).await, *expected);
            }
            let report = cluster.data.send(Ask).await.unwrap();
            println!("{model}, {pages} pages: {} preempted, {:?}", report.preempted, report.prefix);
            assert_eq!(report.preempted > 0, pages == 9, "{pages} pages: {} gave way", report.preempted);
            assert!(report.prefix.hits > 0, "others share as ever");
        });
    }
}

#[test]
fn a_prompt_is_scored_as_row_by_row() {
    scored_in("demo-model", NumericClass::Portable, Forwarding::Partial);
}

#[test]
fn a_prompt_is_scored_as_row_by_row_in_whole_steps() {
    scored_in("demo-model", NumericClass::F32, Forwarding::Whole);
}
