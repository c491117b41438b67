//! Answers under a bias: each is the plain loop's under that bias, whatever others choose under, and whatever becomes of the cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::api::Backend;
use coordinator::control::bias::BiasSettings;
use coordinator::control::placer::PlacerSettings;
use coordinator::data::actor::{Ask, Report};
use coordinator::data::flow::Forwarding;
use coordinator::data::start::DataSettings;
use coordinator::generation::{FinishReason, Request, Token};
use model::bias::Bias;
use model::kernel::{Kernels, NumericClass};
use model::kv::KvCache;
use serde_json::Value;

use crate::conductor::{Conductor, Over};
use crate::live::{Live, PATIENCE};
use crate::nodes::WIDE;
use crate::oracle::{Oracle, Random, repository};
use crate::{settings, twice};

type Answer = (Vec<Token>, Option<FinishReason>);

/// Large enough that most rows choose otherwise.
fn random_bias(oracle: &Oracle, random: &mut Random) -> Arc<Bias> {
    let mut value = || (random.below(2_001) as f32 - 1_000.0) / 1_000.0;
    let layers = oracle.opened.spec.moe_layers();
    let layers: BTreeMap<usize, Vec<f32>> =
        layers.map(|(layer, moe)| (layer, (0..moe.experts).map(|_| value()).collect())).collect();
    Arc::new(Bias::new(layers).unwrap())
}

/// Asks all at once.
async fn ask_all(oracle: &Oracle, settings: DataSettings, requests: &[Request]) -> (Vec<Answer>, Report) {
    let opened = Arc::clone(&oracle.opened);
    let kernels = oracle.kernels();
    let cluster = Conductor::start(&opened, &oracle.config, kernels, Over::Memory, 2, settings, twice).await;
    let cluster = Rc::new(cluster);
    let asked: Vec<_> = requests
        .iter()
        .map(|request| {
            let (cluster, request) = (Rc::clone(&cluster), request.clone());
            actix::spawn(async move { cluster.ask(request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.await.unwrap());
    }
    let report = cluster.data.send(Ask).await.unwrap();
    (answers, report)
}

/// Each prompt is asked without a bias and under two, all at once, with pages enough and with so few that they give way to one
/// another, with and without kept pages. Prompts begin alike, so whoever found a page of another bias would answer otherwise.
#[test]
fn rows_of_several_biases_are_computed_together() {
    let class = NumericClass::Portable;
    let kernels = Kernels::for_class(class).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let mut random = Random::new(23);
    let biases = [None, Some(random_bias(&oracle, &mut random)), Some(random_bias(&oracle, &mut random))];
    let beginning = oracle.request(&mut random, 150, 1).prompt;
    let mut requests = Vec::new();
    for _ in 0..14 {
        let (common, own, tokens) = (64 + random.below(86), 1 + random.below(30), 4 + random.below(50));
        let mut request = oracle.request(&mut random, own, tokens);
        request.prompt = [&beginning[..common], &request.prompt].concat();
        requests.extend(biases.iter().map(|bias| Request { bias: bias.clone(), ..request.clone() }));
    }
    let expected: Vec<Answer> = requests.iter().map(|request| oracle.answer(request.clone())).collect();
    let others = expected.chunks(3).filter(|three| three[0] != three[1] && three[1] != three[2]).count();
    assert!(others > 10, "a bias that changes nothing shows nothing: {others} of 14");
    let page_bytes = KvCache::page_bytes(&oracle.opened.spec, class.row_type());
    for (prefix_cache, pages) in [(true, 2_000), (true, 12), (false, 12)] {
        let settings =
            DataSettings { prefix_cache, kv_bytes: pages * page_bytes, ..settings(Forwarding::Partial) };
        let what = format!("{pages} pages, kept: {prefix_cache}");
        let (answers, report) = actix::System::new().block_on(ask_all(&oracle, settings, &requests));
        for (number, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answer, expected, "{what}, request {number}, bias {}", number % 3);
        }
        println!("{what}: {} preempted, {:?}", report.preempted, report.prefix);
        assert_eq!(report.preempted > 0, pages == 12, "{what}");
        assert_eq!(report.prefix.hits > 10, prefix_cache, "{what}: {:?}", report.prefix);
    }
}

/// A coordinator that balances quickly, over nodes that hold every expert twice.
async fn balanced(oracle: &Oracle, data_folder: PathBuf, max: f32) -> Live {
    let placer = PlacerSettings { nodes_min: 2, start_window: PATIENCE, ..PlacerSettings::default() };
    let bias = Some(BiasSettings { max, every: Duration::from_millis(100) });
    let live = Live::under(oracle, oracle.kernels(), 2, WIDE, placer, Some(data_folder), bias).await;
    live.seen(|view| view["state"] == "serving").await;
    live
}

/// A prompt of few different ids, so that some experts have far more than their part.
fn skewed(oracle: &Oracle, random: &mut Random) -> Request {
    let (prompt, tokens) = (60 + random.below(60), 5 + random.below(20));
    let mut request = oracle.request(random, prompt, tokens);
    request.prompt = (0..prompt).map(|_| [65, 101, 32][random.below(3)]).collect();
    request
}

/// While one bias follows the other, and a node goes: every answer is the plain loop's under the bias with which it began. That is still
/// known when others have followed, to a later life of the coordinator too.
#[test]
fn an_answer_keeps_the_bias_that_it_began_with() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let mut random = Random::new(5);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("biased-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let mut checks: Vec<(Request, Answer)> = Vec::new();
    let (known, last): (Vec<Arc<Bias>>, Arc<Bias>) = actix::System::new().block_on(async {
        let live = Rc::new(balanced(&oracle, folder.clone(), 0.5).await);
        assert_eq!(live.coordinator.bias(None).await, None, "nothing is known yet");
        let began = |request: Request, live: &Rc<Live>| {
            let live = Rc::clone(live);
            actix::spawn(async move {
                let bias = live.coordinator.bias(None).await;
                let request = Request { bias, ..request };
                let answer = live.ask(request.clone()).await;
                (request, answer)
            })
        };
        let until = Instant::now() + PATIENCE;
        let version = |view: &Value| view["bias"]["version"].as_u64().unwrap();
        let (mut may_leave, mut has_left) = (false, false);
        let mut known: Vec<Arc<Bias>> = Vec::new();
        let mut long_ones = Vec::new();
        loop {
            // A long answer goes on while others begin under later biases.
            let long = Request { tokens_max: 300, ..skewed(&oracle, &mut random) };
            long_ones.push(began(long, &live));
            let asked: Vec<_> = (0..24).map(|_| began(skewed(&oracle, &mut random), &live)).collect();
            if may_leave && !std::mem::replace(&mut has_left, true) {
                live.nodes[0].stop().await;
            }
            for asked in asked {
                let (request, answer) = asked.await.unwrap();
                known.extend(request.bias.clone().filter(|bias| !known.contains(bias)));
                checks.push((request, answer));
            }
            let view = live.coordinator.cluster().await;
            may_leave = version(&view) >= 2;
            if known.len() >= 3 && has_left {
                check_view(&view);
                break;
            }
            assert!(Instant::now() < until, "{:#}", view["bias"]);
        }
        for long in long_ones {
            checks.push(long.await.unwrap());
        }
        for bias in &known {
            assert_eq!(live.coordinator.bias(Some(beginning(bias))).await.as_ref(), Some(bias));
        }
        (known, live.coordinator.bias(None).await.unwrap())
    });
    // Another life, and one that may go half as far: it knows what was, and does not take it up.
    for (max, takes_up) in [(0.5, true), (0.3, false)] {
        let again = Request { bias: Some(Arc::clone(&known[0])), ..skewed(&oracle, &mut random) };
        let answer = actix::System::new().block_on(async {
            let live = balanced(&oracle, folder.clone(), max).await;
            assert_eq!(live.coordinator.bias(None).await, takes_up.then(|| Arc::clone(&last)), "{max}");
            for bias in &known {
                assert_eq!(live.coordinator.bias(Some(beginning(bias))).await.as_ref(), Some(bias));
            }
            assert_eq!(live.coordinator.bias(Some([0; 4])).await, None);
            live.ask(again.clone()).await
        });
        checks.push((again, answer));
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let mut others = 0;
    for (number, (request, answer)) in checks.into_iter().enumerate() {
        assert_eq!(answer, oracle.answer(request.clone()), "answer {number}");
        if request.bias.is_some() {
            others += usize::from(oracle.answer(Request { bias: None, ..request }) != answer);
        }
    }
    assert!(others > 0, "a bias that changes nothing shows nothing");
}

fn beginning(bias: &Bias) -> [u8; 4] {
    *bias.digest().0.as_bytes().first_chunk().unwrap()
}

/// People see what was done: the bias, how uneven layers were and are, and an event for each change.
fn check_view(view: &Value) {
    let bias = &view["bias"];
    let number = |key: &str| bias[key].as_f64().unwrap();
    assert_eq!(bias["digest"].as_str().unwrap().len(), 64, "{bias:#}");
    assert_eq!((number("max"), number("known")), (0.5, number("version")), "{bias:#}");
    assert!(number("largest") <= 0.5 && number("largest") >= 0.0625, "{bias:#}");
    assert!(number("mean") > 0.0 && number("mean") <= number("largest"), "{bias:#}");
    let layers = bias["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4, "{bias:#}");
    assert!(layers.iter().any(|layer| layer["before"].as_f64().unwrap() > 1.2), "{bias:#}");
    let biased = view["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "biased");
    let texts: Vec<&str> = biased.map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len() as f64, number("version"), "{texts:?}");
    let newest = format!("bias {} ({:.12})", bias["version"], bias["digest"].as_str().unwrap());
    assert!(texts[0].starts_with(&newest), "{texts:?}");
}
