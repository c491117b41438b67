//! A whole coordinator over nodes of this process: what the control plane does while requests run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Arbiter;
use coordinator::api::Backend;
use coordinator::control::bias::BiasSettings;
use coordinator::control::membership::MembershipSettings;
use coordinator::control::placer::PlacerSettings;
use coordinator::control::rebalance::RebalanceSettings;
use coordinator::data::flow::Forwarding;
use coordinator::data::request::{Event, OnMissing, Priority, Submission};
use coordinator::generation::{FinishReason, Generation, Request, Token};
use coordinator::start::{Arbiters, Coordinator, Settings, endpoint, start};
use model::kernel::{Kernels, NumericClass};
use model::load::{self, Opened, Progress};
use model::pool::Pool;
use model::text::StopStream;
use model::trunk::Trunk;
use model::weights::Manifest;
use node::runtime::Actors;
use node::{CoordinatorAddress, NodeHandle, Runtime, RuntimeSettings};
use serde_json::Value;
use transport::Limits;
use transport::buffer::Pool as Buffers;
use transport::carrier::memory::MemoryCarrier;
use transport::wire::control::NumericIdentity;

use crate::conductor::Heard;
use crate::nodes::{CLUSTER, WIDE, start_node};
use crate::oracle::{Oracle, Random, repository};

/// A cluster that has not come so far by then never does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A coordinator, and nodes of two devices.
pub(crate) struct Live {
    pub(crate) coordinator: Coordinator,
    pub(crate) nodes: Vec<NodeHandle>,
    opened: Arc<Opened>,
    numeric: NumericIdentity,
    carrier: MemoryCarrier,
    /// Bytes of each device.
    memory: u64,
    runtime: Runtime,
}

impl Live {
    async fn start(oracle: &Oracle, kernels: Kernels, nodes: u32, placer: PlacerSettings) -> Self {
        Self::of_memory(oracle, kernels, nodes, WIDE, placer, None).await
    }

    /// The same where each device has so many bytes, and the coordinator perhaps a data directory.
    pub(crate) async fn of_memory(
        oracle: &Oracle,
        kernels: Kernels,
        nodes: u32,
        memory: u64,
        placer: PlacerSettings,
        data_folder: Option<PathBuf>,
    ) -> Self {
        Self::under(oracle, kernels, nodes, memory, placer, data_folder, None).await
    }

    /// The same where overloaded experts are chosen less.
    pub(crate) async fn under(
        oracle: &Oracle,
        kernels: Kernels,
        nodes: u32,
        memory: u64,
        placer: PlacerSettings,
        data_folder: Option<PathBuf>,
        bias: Option<BiasSettings>,
    ) -> Self {
        let opened = &oracle.opened;
        let pool = Arc::new(Pool::new(2, None));
        let admission = Kernels::admitted(kernels.class()).unwrap();
        let fingerprint = *admission.fingerprint.as_bytes();
        let numeric = NumericIdentity { class: kernels.class().to_string(), fingerprint };
        let settings = Settings {
            name: "front".to_owned(),
            cluster: CLUSTER,
            admission,
            data: crate::settings(Forwarding::Partial),
            placer,
            bias,
            limits: Limits::default(),
            membership: MembershipSettings { join_window: Duration::ZERO, ..MembershipSettings::default() },
            data_folder,
            config: oracle.config.clone(),
            manifest: Manifest::default(),
            gives_weights: false,
            authority: None,
        };
        let buffers = Buffers::new(1 << 30);
        let carrier = MemoryCarrier::default();
        let door = carrier.listen("front").unwrap();
        let listener = endpoint(&settings, opened, buffers.clone()).unwrap().listen(Box::new(door));
        let request = load::Request {
            kernels,
            threads: 1,
            trunk: true,
            experts: &[],
            digests: false,
            known: &Manifest::default(),
        };
        let trunk = load::load(opened, &request, &Progress::default()).unwrap().trunk.unwrap();
        let trunk = Trunk::new(Arc::clone(&opened.spec), kernels, trunk);
        let arbiters = Arbiters { data: Arbiter::new().handle(), control: Arbiter::new().handle() };
        let model = "demo".to_owned();
        let shared = Arc::clone(&pool);
        let coordinator =
            start(settings, opened, trunk, shared, &buffers, vec![listener], model, &arbiters).unwrap();
        let actors = Actors::Own(1);
        let runtime =
            Runtime::start(RuntimeSettings { kernels, pool, actors, spin: Duration::ZERO, on_busy: None })
                .unwrap();
        let opened = Arc::clone(opened);
        let mut live = Self { coordinator, nodes: Vec::new(), opened, numeric, carrier, memory, runtime };
        live.nodes = (0..nodes).map(|number| live.node(number)).collect();
        live
    }

    /// Another life of the node of this number.
    pub(crate) fn node(&self, number: u32) -> NodeHandle {
        let carrier = Arc::new(self.carrier.clone());
        let coordinator = CoordinatorAddress { carrier, address: "front".to_owned() };
        start_node(&self.runtime, &self.opened, self.numeric.clone(), number, self.memory, coordinator)
    }

    /// How the cluster is as soon as `is_so`.
    pub(crate) async fn seen(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let view = self.coordinator.cluster().await;
            if is_so(&view) {
                return view;
            }
            assert!(Instant::now() < until, "{view:#}");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn ask(&self, request: Request) -> (Vec<Token>, Option<FinishReason>) {
        let Heard { tokens, finish, missing, .. } = self.heard(request, OnMissing::Exact).await;
        assert_eq!(missing, BTreeMap::new(), "nothing is left out that nobody has said may be");
        (tokens, finish)
    }

    /// Asks, with what becomes of rows whose expert has no holder.
    pub(crate) async fn heard(&self, request: Request, on_missing: OnMissing) -> Heard {
        let (events, mut heard) = tokio::sync::mpsc::channel(Submission::events_max(request.tokens_max));
        let generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let (deadline, within_ms) = (Instant::now() + PATIENCE, PATIENCE.as_millis() as u64);
        let priority = Priority::default();
        self.coordinator
            .submit(Submission { generation, priority, on_missing, deadline, within_ms, events, trace: None })
            .await;
        let mut all = Heard::default();
        while let Some(event) = heard.recv().await {
            all.take(event);
        }
        all
    }
}

/// Every seat of the placement, with the rows that were computed there.
fn seats(view: &Value) -> BTreeMap<[u64; 5], u64> {
    let number = |load: &Value, key: &str| load[key].as_u64().unwrap();
    let seat = |load: &Value| ["layer", "expert", "replica", "node", "device"].map(|key| number(load, key));
    view["loads"].as_array().unwrap().iter().map(|load| (seat(load), number(load, "rows"))).collect()
}

/// Hot experts gain replicas, rows go to them, others let go of what they had: no token of any request is another one.
#[test]
fn rebalancing_changes_no_answer() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let mut oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let mut random = Random::new(11);
    let mut requests = Vec::new();
    for _ in 0..8 {
        let (prompt, tokens) = (20 + random.below(90), 10 + random.below(20));
        let request = oracle.request(&mut random, prompt, tokens);
        let answer = oracle.answer(request.clone());
        requests.push((request, answer));
    }
    actix::System::new().block_on(async {
        // Whatever saves anything at all pays within a year.
        let rebalance = RebalanceSettings {
            every: Duration::from_millis(50),
            horizon: Duration::from_secs(365 * 86_400),
            changes_max: 4,
            margin: 1.0,
        };
        let placer = PlacerSettings {
            nodes_min: 3,
            start_window: PATIENCE,
            rebalance: Some(rebalance),
            ..PlacerSettings::default()
        };
        let live = Rc::new(Live::start(&oracle, kernels, 3, placer).await);
        let begun = live.seen(|view| view["state"] == "serving").await;
        let number = |view: &Value| view["epoch"]["number"].as_u64().unwrap();
        let before = seats(&begun);
        let until = Instant::now() + PATIENCE;
        loop {
            let ask = |(request, answer): (Request, _)| {
                let live = Rc::clone(&live);
                actix::spawn(async move { assert_eq!(live.ask(request).await, answer) })
            };
            let asked: Vec<_> = requests.iter().cloned().map(ask).collect();
            for asked in asked {
                asked.await.unwrap();
            }
            let view = live.coordinator.cluster().await;
            let new = seats(&view).into_iter().filter(|(seat, _)| !before.contains_key(seat));
            let rows: u64 = new.map(|(_, rows)| rows).sum();
            if number(&view) > number(&begun) && rows > 0 && view["rebalance"]["changes"].as_u64() > Some(3) {
                return;
            }
            assert!(Instant::now() < until, "nothing has moved: {:#} {:#}", view["rebalance"], view["moves"]);
        }
    });
}

/// When the last holder goes, whoever waits hears who it was, people see what happened, and when another comes all goes on.
#[test]
fn an_expert_without_a_holder_is_named_with_who_left() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let oracle = Oracle::new(&repository().join("demo-model"), kernels);
    let request = oracle.request(&mut Random::new(4), 200, 200);
    actix::System::new().block_on(async {
        let live = Live::start(&oracle, kernels, 1, PlacerSettings::default()).await;
        live.seen(|view| view["state"] == "serving").await;
        let asked = live.coordinator.clone();
        let (events, mut heard) = tokio::sync::mpsc::channel(Submission::events_max(request.tokens_max));
        let generation = Generation::new(request, None, StopStream::new(Vec::new()).unwrap());
        let deadline = Instant::now() + PATIENCE;
        asked
            .submit(Submission {
                trace: None,
                generation,
                deadline,
                within_ms: 60_000,
                events,
                priority: Priority::default(),
                on_missing: OnMissing::Exact,
            })
            .await;
        assert!(matches!(heard.recv().await, Some(Event::Step { .. })), "it has begun");
        live.nodes[0].stop().await;
        let until = Instant::now() + PATIENCE;
        let said = loop {
            let why = live.coordinator.why(None).await;
            let said = why["requests"][0]["why"].as_str().unwrap_or_default().to_owned();
            if said.contains("no holder: ") {
                assert_eq!(why["requests"][0]["kind"], "expert");
                break said;
            }
            assert!(Instant::now() < until, "{why:#}");
            tokio::task::yield_now().await;
        };
        assert!(said.starts_with("row ") && said.contains(", which has no holder: node n0 left "), "{said}");
        let view = live.coordinator.cluster().await;
        let kinds: Vec<_> =
            view["events"].as_array().unwrap().iter().map(|event| event["kind"].clone()).collect();
        let expected = ["epoch", "waiting", "left", "serving", "epoch", "joined"];
        assert_eq!(kinds.iter().filter(|kind| *kind != "leaving").collect::<Vec<_>>(), expected, "{view:#}");
    });
}

/// A message goes to each node and back, people see how long that takes, and a node that has gone has no way.
#[test]
fn the_way_to_each_node_is_measured() {
    let kernels = Kernels::for_class(NumericClass::Portable).unwrap();
    let oracle = Oracle::new(&repository().join("demo-model"), kernels);
    actix::System::new().block_on(async {
        let live = Live::start(&oracle, kernels, 2, PlacerSettings::default()).await;
        let trips = |view: &Value| -> Vec<Option<[u64; 3]>> {
            let of = |node: &Value| {
                let trips = &node["round_trips"];
                Some([node["round_trip_us"].as_u64()?, trips["count"].as_u64()?, trips["sum_us"].as_u64()?])
            };
            view["nodes"].as_array().unwrap().iter().map(of).collect()
        };
        let again = |trip: &Option<[u64; 3]>| trip.is_some_and(|[_, count, _]| count >= 2);
        let view = live.seen(|view| trips(view).len() == 2 && trips(view).iter().all(again)).await;
        for [middle, count, sum] in trips(&view).into_iter().flatten() {
            // The middle one is one of them.
            assert!(count < 30 && middle <= sum, "{view:#}");
        }
        live.nodes[0].stop().await;
        let view = live.seen(|view| trips(view).iter().flatten().count() == 1).await;
        let gone = view["nodes"].as_array().unwrap().iter().find(|node| node["state"] == "gone").unwrap();
        assert_eq!((&gone["round_trip_us"], &gone["round_trips"]), (&Value::Null, &Value::Null));
        let pulse = live.coordinator.pulse().await;
        let told: Vec<u64> = pulse["round_trips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|trip| trip["node"].as_u64().unwrap())
            .collect();
        assert_eq!(told.len(), 1);
        assert_ne!(told[0], gone["node"].as_u64().unwrap());
    });
}
