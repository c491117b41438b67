//! Nodes are drained, used again, killed meanwhile and started anew, while requests run: no answer is another one.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use coordinator::api::{Backend, DrainRefused};
use coordinator::control::placer::PlacerSettings;
use coordinator::data::request::OnMissing;
use coordinator::generation::{FinishReason, Request, Token};
use model::kernel::{Kernels, NumericClass};
use serde_json::Value;

use crate::live::{Live, PATIENCE};
use crate::oracle::{Oracle, Random, repository};

/// An expert of the demo model is 98,304 bytes, and there are 64: two nodes of two such devices have room for all of them, one
/// has not.
const DEVICE: u64 = 17 * 98_304;

type Answer = (Vec<Token>, Option<FinishReason>);

fn oracle() -> (Oracle, Kernels) {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    (Oracle::new(&repository().join("demo-model"), kernels), kernels)
}

fn requests(oracle: &mut Oracle, count: usize) -> Vec<(Request, Answer)> {
    let mut random = Random::new(31);
    let mut request = || {
        let (prompt, tokens) = (10 + random.below(90), 10 + random.below(20));
        let request = oracle.request(&mut random, prompt, tokens);
        let answer = oracle.answer(request.clone());
        (request, answer)
    };
    (0..count).map(|_| request()).collect()
}

pub(crate) fn placer(nodes: usize) -> PlacerSettings {
    PlacerSettings { nodes_min: nodes, start_window: PATIENCE, ..PlacerSettings::default() }
}

/// Asks again and again until it is dropped, and compares each answer.
struct Load {
    goes_on: Rc<Cell<bool>>,
    answers: Rc<Cell<usize>>,
    streams: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(live: &Rc<Live>, requests: &[(Request, Answer)]) -> Self {
        let (goes_on, answers) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(0)));
        let stream = |(request, answer): &(Request, Answer)| {
            let (live, request, answer) = (Rc::clone(live), request.clone(), answer.clone());
            let (goes_on, answers) = (Rc::clone(&goes_on), Rc::clone(&answers));
            actix::spawn(async move {
                while goes_on.get() {
                    assert_eq!(live.ask(request.clone()).await, answer);
                    answers.set(answers.get() + 1);
                }
            })
        };
        Self { streams: requests.iter().map(stream).collect(), goes_on, answers }
    }

    /// So many answers more have come.
    async fn goes_on(&self, more: usize) {
        let (wanted, until) = (self.answers.get() + more, Instant::now() + PATIENCE);
        while self.answers.get() < wanted {
            let has_failed = self.streams.iter().any(tokio::task::JoinHandle::is_finished);
            assert!(!has_failed && Instant::now() < until, "it is held up");
            tokio::task::yield_now().await;
        }
    }

    async fn stop(self) {
        self.goes_on.set(false);
        for stream in self.streams {
            stream.await.unwrap();
        }
    }
}

fn node<'v>(view: &'v Value, name: &str) -> &'v Value {
    view["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

fn actors(view: &Value, name: &str) -> u64 {
    let devices = node(view, name)["devices"].as_array().unwrap();
    devices.iter().map(|device| device["actors"].as_u64().unwrap()).sum()
}

pub(crate) fn is_settled(view: &Value) -> bool {
    let moves = ["loading", "waiting", "lingering"].map(|key| view["moves"][key].as_u64().unwrap());
    view["state"] == "serving" && moves == [0; 3]
}

pub(crate) fn is_drained(view: &Value, name: &str) -> bool {
    node(view, name)["state"] == "drained"
}

/// What it holds is held elsewhere before it goes, so that nobody waits; then it holds nothing, in deed and not in name alone,
/// and stays so in another life of it. Used again, it is given experts where they are too many for the others.
#[test]
fn a_node_is_drained_and_used_again_under_load() {
    let (mut oracle, kernels) = oracle();
    let requests = requests(&mut oracle, 6);
    actix::System::new().block_on(async {
        let mut live = Live::of_memory(&oracle, kernels, 3, DEVICE, placer(3), None).await;
        live.seen(is_settled).await;
        let second = live.nodes.remove(1);
        let live = Rc::new(live);
        let load = Load::start(&live, &requests);
        let answer = live.coordinator.drain("n1".into(), false).await.unwrap();
        assert_eq!((&answer["changed"], &answer["state"]), (&true.into(), &"draining".into()), "{answer:#}");
        let moved: u64 =
            answer["moves"].as_array().unwrap().iter().map(|to| to["experts"].as_u64().unwrap()).sum();
        assert!(moved >= answer["experts"].as_u64().unwrap() && moved > 10, "{answer:#}");
        let view = live.seen(|view| is_drained(view, "n1") && is_settled(view)).await;
        assert_eq!((actors(&view, "n1"), second.status().await.standing), (0, vec![]));
        assert_eq!(view["experts"]["spares"], 0, "a drained device is no spare one");
        load.goes_on(6).await;
        // Twice is no news, and undoing what is not done neither.
        let again = live.coordinator.drain("n1".into(), false).await.unwrap();
        assert_eq!((&again["changed"], &again["state"]), (&false.into(), &"drained".into()));
        assert_eq!(live.coordinator.undrain("n0".into()).await.unwrap()["changed"], false);
        // It goes at once, for nobody needs it, and comes back as it went.
        second.leave().await;
        drop(second);
        live.seen(|view| node(view, "n1")["state"] == "gone").await;
        let second = live.node(1);
        let view = live.seen(|view| is_drained(view, "n1")).await;
        assert_eq!(node(&view, "n1")["drained"], true);
        assert!(is_settled(&view));
        let answer = live.coordinator.undrain("n1".into()).await.unwrap();
        assert_eq!((&answer["changed"], &answer["state"]), (&true.into(), &"joined".into()));
        // Now another can be drained, and most of it has room nowhere else.
        live.coordinator.drain("n2".into(), false).await.unwrap();
        let view = live.seen(|view| is_drained(view, "n2") && is_settled(view)).await;
        assert!(actors(&view, "n1") > 10, "{view:#}");
        load.goes_on(6).await;
        load.stop().await;
        let kinds: Vec<String> = view["events"]
            .as_array()
            .unwrap()
            .iter()
            .rev()
            .map(|event| {
                format!("{} {}", event["node"].as_str().unwrap_or("-"), event["kind"].as_str().unwrap())
            })
            .filter(|event| event.contains("drain"))
            .collect();
        assert_eq!(
            kinds,
            ["n1 draining", "n1 drained", "n1 drained", "n1 undrained", "n2 draining", "n2 drained"]
        );
        drop(second);
    });
}

/// Each with what is wrong, in words and numbers; and nothing changes.
#[test]
fn what_cannot_be_drained_is_refused_with_the_sum() {
    let (oracle, kernels) = oracle();
    actix::System::new().block_on(async {
        let live = Live::of_memory(&oracle, kernels, 2, DEVICE, placer(2), None).await;
        let before = live.seen(is_settled).await;
        let refused = |node: &str, force: bool| {
            let asked = live.coordinator.drain(node.to_owned(), force);
            async { asked.await.unwrap_err() }
        };
        assert_eq!(
            refused("n7", true).await,
            DrainRefused::Unknown("no node is called n7; there are n0, n1".into())
        );
        assert_eq!(
            live.coordinator.undrain("x".into()).await.unwrap_err(),
            DrainRefused::Unknown("no node is called x; there are n0, n1".into())
        );
        let DrainRefused::NoRoom(why) = refused("n0", false).await else { panic!("there is no room") };
        let held = actors(&before, "n0");
        let words = format!("It holds {held} experts, {held} of them alone: expert ");
        assert!(why.starts_with("n0 cannot be drained") && why.contains(&words), "{why}");
        assert!(
            why.contains("64 experts of 98 kB need 6.3 MB, 2 devices have room for 3.3 MB: 2.9 MB short"),
            "{why}"
        );
        let after = live.seen(|_| true).await;
        assert_eq!((&after["epoch"], &after["nodes"][0]["drained"]), (&before["epoch"], &false.into()));
        // By force it is, and what found no seat has no holder.
        let answer = live.coordinator.drain("n0".into(), true).await.unwrap();
        assert!(answer["refused"].as_str().unwrap().contains("2.9 MB short"), "{answer:#}");
        let view = live.seen(|view| is_drained(view, "n0")).await;
        assert_eq!((actors(&view, "n0"), actors(&view, "n1")), (0, 34), "17 fit on a device");
        assert_eq!((&view["state"], &view["experts"]["held"]), (&"waiting".into(), &34.into()));
        let missing = view["missing"].to_string();
        assert!(
            missing.contains("30 of 64 experts have no holder") && missing.contains("not used: n0"),
            "{missing}"
        );
        let DrainRefused::OnlyOne(why) = refused("n1", true).await else { panic!("nobody else is there") };
        assert!(why.starts_with("n1 is the only node that may hold experts"), "{why}");
        // Undone, all is well again.
        live.coordinator.undrain("n0".into()).await.unwrap();
        live.seen(is_settled).await;
    });
}

/// Who waits for an expert that was given up by force waits until somebody holds it; who need not goes on, names what it lacks, and
/// leaves nothing behind that another answer could have of it.
#[test]
fn what_is_given_up_is_waited_for_or_left_out_and_never_kept() {
    let (mut oracle, kernels) = oracle();
    let request = oracle.request(&mut Random::new(12), 200, 20);
    let answer = oracle.answer(request.clone());
    actix::System::new().block_on(async {
        let live = Rc::new(Live::of_memory(&oracle, kernels, 2, DEVICE, placer(2), None).await);
        live.seen(is_settled).await;
        live.coordinator.drain("n0".into(), true).await.unwrap();
        let view = live.seen(|view| is_drained(view, "n0")).await;
        let here = view["loads"].as_array().unwrap().iter();
        let here: BTreeSet<_> = here
            .map(|load| (load["layer"].as_u64().unwrap() as usize, load["expert"].as_u64().unwrap() as u32))
            .collect();
        let expected = oracle.without(request.clone(), &|_, layer, expert| !here.contains(&(layer, expert)));
        assert!(expected.missing.len() > 10, "{:?}", expected.missing);
        let pages = live.coordinator.cluster().await["data"]["prefix_pages"].clone();
        assert_eq!(live.heard(request.clone(), OnMissing::Drop).await, expected);
        let view = live.coordinator.cluster().await;
        assert_eq!(view["data"]["prefix_pages"], pages, "nothing of it was kept");
        let left_out: u64 = expected.missing.values().sum();
        assert_eq!(view["data"]["dispatches"]["left_out"], left_out);
        let waits = actix::spawn({
            let (live, request) = (Rc::clone(&live), request.clone());
            async move { live.ask(request).await }
        });
        live.seen(|view| view["data"]["running"] == 1).await;
        assert!(!waits.is_finished(), "it waits");
        live.coordinator.undrain("n0".into()).await.unwrap();
        assert_eq!(waits.await.unwrap(), answer);
        assert_eq!(live.ask(request).await, answer);
    });
}

/// Killed during a drain: the one that is drained, and one that takes over; and both, twice in a row.
#[test]
fn nodes_are_killed_while_one_is_drained() {
    let (mut oracle, kernels) = oracle();
    let requests = requests(&mut oracle, 4);
    for killed in [1, 2] {
        actix::System::new().block_on(async {
            // Room enough for any two of four.
            let mut live = Live::of_memory(&oracle, kernels, 4, DEVICE, placer(4), None).await;
            live.seen(is_settled).await;
            let mut victims: Vec<_> = live.nodes.drain(1..3).collect();
            let live = Rc::new(live);
            let load = Load::start(&live, &requests);
            for turn in 0..2 {
                live.coordinator.drain("n1".into(), false).await.unwrap();
                // Now, or as soon as something has been loaded.
                if turn == 1 {
                    let before = live.coordinator.cluster().await["epoch"]["number"].clone();
                    live.seen(|view| view["epoch"]["number"] != before || is_drained(view, "n1")).await;
                }
                victims[killed - 1].stop().await;
                let name = format!("n{killed}");
                live.seen(|view| node(view, &name)["state"] == "gone").await;
                victims[killed - 1] = live.node(killed as u32);
                let view = live.seen(|view| is_drained(view, "n1") && is_settled(view)).await;
                assert_eq!(actors(&view, "n1"), 0);
                live.coordinator.undrain("n1".into()).await.unwrap();
                live.seen(is_settled).await;
            }
            load.goes_on(4).await;
            load.stop().await;
        });
    }
}

/// Nodes come and go, and the coordinator too: what is drained stays so, as its data directory has it.
#[test]
fn a_coordinator_that_is_started_anew_knows_who_is_drained() {
    let (oracle, kernels) = oracle();
    let folder = std::env::temp_dir().join(format!("phalanx-drained-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    for life in 0..3 {
        actix::System::new().block_on(async {
            let live = Live::of_memory(&oracle, kernels, 3, DEVICE, placer(3), Some(folder.clone())).await;
            let view =
                live.seen(|view| view["state"] == "serving" && node(view, "n2")["state"] != "joining").await;
            match life {
                0 => {
                    let answer = live.coordinator.drain("n2".into(), false).await.unwrap();
                    assert_eq!(answer["kept"], true);
                }
                1 => {
                    assert_eq!((actors(&view, "n2"), is_drained(&view, "n2")), (0, true), "{view:#}");
                    live.coordinator.undrain("n2".into()).await.unwrap();
                }
                _ => assert_eq!(
                    (node(&view, "n2")["state"].as_str(), actors(&view, "n2") > 0),
                    (Some("joined"), true)
                ),
            }
        });
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
