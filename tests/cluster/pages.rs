//! Whoever shares pages, finds them, loses them or has to give them up: the answer is that of the request alone.

use std::rc::Rc;
use std::sync::Arc;

use coordinator::data::actor::{Ask, Report};
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use coordinator::generation::{FinishReason, Request, Token};
use model::kernel::{Kernels, NumericClass};
use model::kv::KvCache;

use crate::conductor::{Conductor, Over};
use crate::oracle::{Oracle, Random, repository};
use crate::{by_turns, settings};

type Answer = (Vec<Token>, Option<FinishReason>);

/// Requests whose prompts begin in three ways, and some that are one and the same but for how they are sampled.
fn requests(oracle: &Oracle, random: &mut Random, count: usize) -> Vec<Request> {
    let beginnings: Vec<Vec<u32>> = (0..3).map(|_| oracle.request(random, 200, 1).prompt).collect();
    let request = |index: usize| {
        let (common, own) = (64 + random.below(136), 1 + random.below(40));
        let tokens = 1 + random.below(80);
        let mut request = oracle.request(random, own, tokens);
        let beginning = &beginnings[index % 3];
        match index % 5 {
            0 => request.prompt = beginning[..128].to_vec(),
            _ => request.prompt = [&beginning[..common], &request.prompt].concat(),
        }
        request
    };
    (0..count).map(request).collect()
}

/// Asks all at once, then the first alone once more.
async fn ask_all(
    oracle: &Oracle,
    settings: DataSettings,
    requests: &[Request],
) -> (Vec<Answer>, Answer, Report) {
    let opened = Arc::clone(&oracle.opened);
    let kernels = oracle.kernels();
    let cluster =
        Conductor::start(&opened, &oracle.config, kernels, Over::Memory, 2, settings, by_turns).await;
    let cluster = Rc::new(cluster);
    let mut asked = Vec::new();
    for request in requests {
        let (cluster, request) = (Rc::clone(&cluster), request.clone());
        asked.push(actix::spawn(async move { cluster.ask(request).await }));
    }
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.await.unwrap());
    }
    let again = cluster.ask(requests[0].clone()).await;
    let report = cluster.data.send(Ask).await.unwrap();
    (answers, again, report)
}

/// 101 requests at once, with pages enough for all and with so few that they have to give way to one another, with and without
/// kept pages: tokens and probabilities are those of each alone in the plain loop.
#[test]
fn company_pages_and_kept_pages_change_nothing() {
    let class = NumericClass::Portable;
    let kernels = Kernels::for_class(class).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let requests = requests(&oracle, &mut Random::new(11), 101);
    let expected: Vec<Answer> = requests.iter().map(|request| oracle.answer(request.clone())).collect();
    let page_bytes = KvCache::page_bytes(&oracle.opened.spec, class.row_type());
    for (prefix_cache, pages) in [(true, 2_000), (true, 12), (false, 2_000), (false, 12)] {
        let settings =
            DataSettings { prefix_cache, kv_bytes: pages * page_bytes, ..settings(Forwarding::Partial) };
        let what = format!("{class}, {pages} pages, kept: {prefix_cache}");
        let (answers, again, report) = actix::System::new().block_on(ask_all(&oracle, settings, &requests));
        for (number, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answer, expected, "{what}, request {number}");
        }
        assert_eq!(again, expected[0], "{what}, once more");
        println!("{what}: {} preempted, {:?}", report.preempted, report.prefix);
        assert_eq!(report.pages as usize, pages, "{what}");
        assert_eq!(report.pages_free, report.pages, "{what}: all pages come back");
        assert_eq!(report.preempted > 0, pages == 12, "{what}: {} gave way", report.preempted);
        match prefix_cache {
            false => assert_eq!((report.prefix.hits, report.prefix.pages), (0, 0), "{what}"),
            true => assert!(report.prefix.hits > 30, "{what}: {:?}", report.prefix),
        }
    }
}
