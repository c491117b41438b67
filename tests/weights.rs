//! Weights from a coordinator to a node without a copy of the checkpoint, both ends, over real links: what is kept is
//! right or not used, and what goes wrong is said.

mod program;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coordinator::weights::Weights;
use model::checkpoint::Reader;
use model::kernel::Region;
use model::load::Opened as OpenedModel;
use model::weights::{Digest, ExpertFile, ExpertId, ExpertPlan};
use node::batcher::LinkId;
use node::fetch::{Asks, FetchCount, Fetcher};
use node::source::{Fetched, Source};
use program::{Scratch, fixture};
use transport::buffer::Pool;
use transport::carrier::memory::MemoryCarrier;
use transport::carrier::tcp::{Plaintext, Protection, TcpCarrier};
use transport::carrier::{Acceptor, Carrier};
use transport::link::Local;
use transport::peer::{Endpoint, Listener, Notice, Opened, Peer};
use transport::security::{ClusterId, PeerName, Role};
use transport::wire::cluster::{Ask, Cluster, ToCoordinator, ToNode};
use transport::wire::control::CloseReason;
use transport::wire::{Header, Kind, PerLane};
use transport::{Frame, Limits};

/// Longest that any case may take; it is there so that a hang says where.
const CASE_MAX: Duration = Duration::from_secs(60);

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("threads");
    runtime.block_on(async { tokio::time::timeout(CASE_MAX, case).await.expect("the case hangs") });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

fn open(dir: &Path) -> Arc<OpenedModel> {
    Arc::new(OpenedModel::open(dir).unwrap_or_else(|e| panic!("{e}")))
}

fn demo() -> Arc<OpenedModel> {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model"))
}

/// The digests of all experts, as the coordinator orders them.
fn digests(model: &OpenedModel) -> BTreeMap<ExpertId, Digest> {
    let digest = |id: &ExpertId| {
        let file = ExpertFile::open(&model.checkpoint, &model.spec, *id).unwrap_or_else(|e| panic!("{e}"));
        file.digest().unwrap_or_else(|e| panic!("{e}"))
    };
    model.experts().iter().map(|id| (*id, digest(id))).collect()
}

fn ordered(digest: Digest) -> Option<[u8; 32]> {
    Some(*digest.0.as_bytes())
}

/// A coordinator's door, and how nodes come to it.
struct Place {
    carrier: Box<dyn Carrier>,
    listener: Listener,
    limits: Limits,
}

fn endpoint(role: Role, limits: Limits) -> Endpoint {
    let name = if role == Role::Node { "node-1" } else { "front" };
    let local = Local {
        peer: PeerName { cluster: ClusterId([7; 16]), role, name: name.to_owned() },
        program: "test".to_owned(),
        incarnation: 1,
        numeric: None,
        row_bytes: 0,
        mixed_classes: false,
    };
    Endpoint::new(local, limits, Pool::new(256 << 20)).unwrap_or_else(|e| panic!("{e}"))
}

impl Place {
    fn new(carrier: Box<dyn Carrier>, acceptor: Box<dyn Acceptor>) -> Self {
        // So little room that a file of the demo model waits for it several times.
        let limits = Limits {
            payload_bytes_max: PerLane { weights: 8 << 10, ..Limits::default().payload_bytes_max },
            window_bytes: PerLane { weights: 32 << 10, ..Limits::default().window_bytes },
            ..Limits::default()
        };
        let listener = endpoint(Role::Coordinator, limits).listen(acceptor);
        Self { carrier, listener, limits }
    }

    fn memory() -> Self {
        let carrier = MemoryCarrier::default();
        let acceptor = carrier.listen("front").unwrap_or_else(|e| panic!("{e}"));
        Self::new(Box::new(carrier), Box::new(acceptor))
    }

    async fn tcp() -> Self {
        let carrier = TcpCarrier::new(Protection::Plaintext(Plaintext::Loopback), Pool::new(64 << 20));
        let acceptor = carrier.listen("127.0.0.1:0").await.unwrap_or_else(|e| panic!("{e}"));
        Self::new(Box::new(carrier), Box::new(acceptor))
    }

    /// Another link of the node. The coordinator answers what is asked over it with `answer`.
    async fn link(&mut self, asks: &Arc<Asks>, mut answer: impl FnMut(&Peer, Ask) + Send + 'static) -> Peer {
        let address = self.listener.address().to_owned();
        let endpoint = endpoint(Role::Node, self.limits);
        let (node, coordinator) =
            tokio::join!(endpoint.dial(&*self.carrier, &address), self.listener.next_link());
        let Opened { peer, mut notices, .. } = coordinator;
        let coordinator = peer.clone();
        tokio::spawn(async move {
            while let Some(notice) = notices.next().await {
                if let Notice::Told(Cluster::ToCoordinator(ToCoordinator::Ask(ask))) = notice {
                    answer(&peer, ask);
                }
            }
        });
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let link = LinkId(NEXT.fetch_add(1, Ordering::Relaxed));
        let Opened { peer, mut weights, mut notices, .. } = node.unwrap_or_else(|e| panic!("{e}"));
        asks.handle_link(link, peer);
        let frames = Arc::clone(asks);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = weights.receive().await {
                frames.handle_frame(link, frame);
            }
        });
        let asks = Arc::clone(asks);
        tokio::spawn(async move {
            while let Some(notice) = notices.next().await {
                if let Notice::Told(Cluster::ToNode(ToNode::NotServed { ask, why })) = notice {
                    asks.handle_not_served(link, ask, why);
                }
            }
            asks.handle_link_ended(link);
        });
        coordinator
    }

    /// The same, answered as a coordinator of `model` does.
    async fn served(&mut self, asks: &Arc<Asks>, model: &Arc<OpenedModel>) -> Peer {
        let weights = Weights::new(Arc::clone(model), Pool::new(64 << 20));
        let mut to = None;
        self.link(asks, move |peer, ask| to.get_or_insert_with(|| weights.to(peer.clone())).handle_ask(ask))
            .await
    }
}

fn fetcher(asks: &Arc<Asks>, model: &OpenedModel, data: &Path) -> Arc<Fetcher> {
    let fetcher = Fetcher::new(Arc::clone(asks), Arc::clone(&model.spec), model.config_digest, data);
    Arc::new(fetcher.with_silence_max(Duration::from_secs(20)))
}

/// On a thread of its own, as loading threads do.
async fn fetch(fetcher: &Arc<Fetcher>, id: ExpertId, digest: Digest) -> Result<Fetched, String> {
    let fetcher = Arc::clone(fetcher);
    let fetched = tokio::task::spawn_blocking(move || fetcher.fetch(id, ordered(digest)));
    fetched.await.expect("it does not panic")
}

fn fetched(result: Result<Fetched, String>) -> Fetched {
    result.unwrap_or_else(|why| panic!("{why}"))
}

fn why(result: Result<Fetched, String>) -> String {
    result.expect_err("it cannot be fetched")
}

/// What is packed from what was fetched is what is packed from the whole checkpoint.
fn check(fetched: &Fetched, model: &OpenedModel, id: ExpertId, digest: Digest) {
    assert_eq!(fetched.known, Some(digest));
    let load = |model: &OpenedModel| {
        let plan = ExpertPlan::new(&model.checkpoint, &model.spec, id).unwrap_or_else(|e| panic!("{e}"));
        let region = Arc::new(Region::new(plan.bytes(false)));
        plan.load(&region, &mut Reader::new(false, true)).unwrap_or_else(|e| panic!("{e}"))
    };
    let ((found, found_digest), (wanted, wanted_digest)) = (load(&fetched.opened), load(model));
    assert_eq!((found_digest, wanted_digest), (Some(digest), Some(digest)), "expert {id}");
    let column = |block: &model::weights::Block| block.down.column(model::kernel::Placement::Plain, 3);
    assert_eq!(column(&found), column(&wanted));
}

/// The files of a node's data folder.
fn files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

/// All experts of the demo model, four at a time, through a window of 32 KiB; after a restart nothing is asked for again,
/// not even where nobody could be asked.
async fn all_experts_come_and_are_kept(mut place: Place, data: &Path) {
    let (model, asks) = (demo(), Arc::new(Asks::default()));
    let digests = digests(&model);
    let _link = place.served(&asks, &model).await;
    let first = fetcher(&asks, &model, data);
    let all: Vec<(ExpertId, Digest)> = digests.iter().map(|(id, digest)| (*id, *digest)).collect();
    for some in all.chunks(4) {
        let under_way: Vec<_> = some
            .iter()
            .map(|(id, digest)| {
                (
                    *id,
                    *digest,
                    tokio::spawn({
                        let first = Arc::clone(&first);
                        let (id, digest) = (*id, *digest);
                        async move { fetch(&first, id, digest).await }
                    }),
                )
            })
            .collect();
        for (id, digest, result) in under_way {
            check(&fetched(result.await.expect("it does not panic")), &model, id, digest);
        }
    }
    let count = first.count();
    let bytes = all.iter().map(|(id, _)| {
        ExpertFile::open(&model.checkpoint, &model.spec, *id).unwrap_or_else(|e| panic!("{e}")).length()
    });
    let received =
        FetchCount { received: all.len() as u64, bytes: bytes.sum(), kept: 0, damaged: 0, unkept: 0 };
    assert_eq!(count, received);
    let kept = files(data);
    assert_eq!(kept.len(), all.len());
    assert!(kept.iter().all(|file| file.ends_with("model.safetensors")), "{kept:?}");
    assert_eq!(asks.strays(), 0);

    let restarted = fetcher(&Arc::new(Asks::default()), &model, data);
    for (id, digest) in &all {
        check(&fetched(fetch(&restarted, *id, *digest).await), &model, *id, *digest);
    }
    let found = FetchCount { kept: all.len() as u64, ..FetchCount::default() };
    assert_eq!(restarted.count(), found, "nothing is received again");
}

#[test]
fn all_experts_come_and_are_kept_over_memory() {
    let data = Scratch::new("weights-memory");
    run(async { all_experts_come_and_are_kept(Place::memory(), data.path()).await });
}

#[test]
fn all_experts_come_and_are_kept_over_tcp() {
    let data = Scratch::new("weights-tcp");
    run(async { all_experts_come_and_are_kept(Place::tcp().await, data.path()).await });
}

/// Quantised, fused and dense experts travel as well as those of the demo model.
#[test]
fn every_way_to_store_an_expert_travels() {
    let data = Scratch::new("weights-kinds");
    run(async {
        for name in ["extra/gptoss-mxfp4", "extra/deepseekv3-fp8", "extra/qwen3moe-v5-fused", "gptoss"] {
            let model = OpenedModel::open(&fixture(name)).unwrap_or_else(|e| panic!("{e}"));
            let model = Arc::new(model.with_dense_out(true));
            let asks = Arc::new(Asks::default());
            let mut place = Place::memory();
            let _link = place.served(&asks, &model).await;
            let fetcher = fetcher(&asks, &model, data.path());
            for (id, digest) in digests(&model).into_iter().step_by(5) {
                check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
            }
        }
    });
}

/// What was damaged on disk, or left half-written, is received again and never used.
#[test]
fn what_is_damaged_on_disk_is_received_again() {
    let data = Scratch::new("weights-damaged");
    run(async {
        let (model, asks) = (demo(), Arc::new(Asks::default()));
        let (id, digest) = digests(&model).into_iter().nth(7).expect("it has more");
        let mut place = Place::memory();
        let _link = place.served(&asks, &model).await;
        let fetcher = fetcher(&asks, &model, data.path());
        let folder = fetcher.folder_of(id);
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(folder.join("model.safetensors.part"), vec![7; 100_000]).expect("left by a crash");
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
        let file = folder.join("model.safetensors");
        let whole = std::fs::read(&file).expect("kept");
        let damages: [Vec<u8>; 4] = [
            {
                let mut bytes = whole.clone();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                bytes
            },
            whole[..whole.len() - 1].to_vec(),
            vec![0; whole.len()],
            Vec::new(),
        ];
        for (times, damage) in damages.iter().enumerate() {
            std::fs::write(&file, damage).expect("damaged");
            check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
            assert_eq!(fetcher.count().damaged, times as u64 + 1);
            assert_eq!(std::fs::read(&file).expect("kept"), whole);
        }
        assert_eq!(fetcher.count().received, 5);
        assert_eq!(files(data.path()), [file], "nothing else is left");
    });
}

/// A checkpoint that is not the one that was ordered: both digests are named, and nothing is kept.
#[test]
fn a_wrong_digest_is_refused() {
    let data = Scratch::new("weights-wrong");
    run(async {
        let (model, asks) = (demo(), Arc::new(Asks::default()));
        let (id, digest) = digests(&model).into_iter().next().expect("it has some");
        let mut place = Place::memory();
        let _link = place.served(&asks, &model).await;
        let fetcher = fetcher(&asks, &model, data.path());
        let other = Digest::of(b"another");
        let said = why(fetch(&fetcher, id, other).await);
        assert!(said.contains(&digest.to_string()) && said.contains(&other.to_string()), "{said}");
        assert!(said.contains("inspect DIR --digests"), "{said}");
        assert_eq!(files(data.path()), Vec::<PathBuf>::new());
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
    });
}

/// What the coordinator cannot give, and what nobody could ask for.
#[test]
fn an_expert_that_is_not_served_is_said_to_be_so() {
    let data = Scratch::new("weights-not-served");
    run(async {
        let (small, large) = (open(&fixture("mixtral")), demo());
        let (asks, lonely) = (Arc::new(Asks::default()), Arc::new(Asks::default()));
        let mut place = Place::memory();
        let _link = place.served(&asks, &small).await;
        let fetcher_of = |asks| fetcher(asks, &large, data.path());
        let missing = large.experts().into_iter().rfind(|id| !small.experts().contains(id));
        let missing = missing.expect("the demo model has more experts");
        let said = why(fetch(&fetcher_of(&asks), missing, Digest::of(b"")).await);
        assert_eq!(said, format!("front does not serve it: the model has no expert {missing}"));
        let nobody = ExpertId { layer: 999, expert: 0 };
        let said = why(fetch(&fetcher_of(&asks), nobody, Digest::of(b"")).await);
        assert_eq!(said, "the model has no expert 999.0");
        let said = why(fetch(&fetcher_of(&lonely), missing, Digest::of(b"")).await);
        assert_eq!(said, "no coordinator is linked that could be asked for it");
    });
}

/// A full disk costs no expert: it is used from memory, and kept as soon as there is room. So does a folder that is none.
#[test]
fn a_full_disk_costs_no_expert() {
    let data = Scratch::new("weights-full");
    run(async {
        let (model, asks) = (demo(), Arc::new(Asks::default()));
        let (id, digest) = digests(&model).into_iter().next().expect("it has some");
        let mut place = Place::memory();
        let _link = place.served(&asks, &model).await;
        let fetcher = fetcher(&asks, &model, data.path());
        let folder = fetcher.folder_of(id);
        std::fs::create_dir_all(&folder).expect("made");
        symlink("/dev/full", folder.join("model.safetensors.part")).expect("linked");
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
        assert_eq!((fetcher.count().received, fetcher.count().unkept), (1, 1));
        assert_eq!(files(data.path()), Vec::<PathBuf>::new());
        // What was in the way went with the try: there is room now.
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
        assert_eq!((fetcher.count().received, fetcher.count().unkept), (2, 1));
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
        assert_eq!((fetcher.count().received, fetcher.count().kept), (2, 1));

        let other = digests(&model).into_iter().nth(1).expect("it has more");
        std::fs::write(fetcher.folder_of(other.0), "no folder").expect("written");
        check(&fetched(fetch(&fetcher, other.0, other.1).await), &model, other.0, other.1);
        assert_eq!((fetcher.count().received, fetcher.count().unkept), (3, 2));
    });
}

fn frame(ask: Ask, bytes: &[u8]) -> Frame {
    let buffer = Pool::new(1 << 20).copy_of(bytes).expect("there is room");
    Frame::new(Header::of_bytes(Kind::Weights, ask.ask, bytes.len() as u32), buffer)
}

fn bytes_of(model: &OpenedModel, id: ExpertId) -> Vec<u8> {
    let file = ExpertFile::open(&model.checkpoint, &model.spec, id).unwrap_or_else(|e| panic!("{e}"));
    let mut bytes = vec![0; file.length() as usize];
    file.read_at(0, &mut bytes).unwrap_or_else(|e| panic!("{e}"));
    bytes
}

/// Streams that are damaged in every way end in words, and leave nothing behind.
#[test]
fn a_damaged_stream_is_refused() {
    let data = Scratch::new("weights-stream");
    run(async {
        let model = demo();
        let (id, digest) = digests(&model).into_iter().nth(2).expect("it has more");
        let whole = bytes_of(&model, id);
        let flipped = {
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            bytes
        };
        let cases: [(Vec<u8>, &str); 4] = [
            (flipped, "has digest"),
            ([&whole[..], &[0; 100]].concat(), "bytes came of a file of"),
            (vec![0xff; 5000], "claims a header of"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":[1,2,3]}   ".to_vec(), "no expert's file"),
        ];
        for (bytes, words) in cases {
            let asks = Arc::new(Asks::default());
            let mut place = Place::memory();
            let _link = place
                .link(&asks, move |peer, ask| {
                    let (peer, bytes) = (peer.clone(), bytes.clone());
                    tokio::spawn(async move {
                        for piece in bytes.chunks(8 << 10) {
                            let _ = peer.send(frame(ask, piece)).await;
                        }
                    });
                })
                .await;
            let said = why(fetch(&fetcher(&asks, &model, data.path()), id, digest).await);
            assert!(said.contains(words), "{said}");
            assert_eq!(files(data.path()), Vec::<PathBuf>::new(), "{said}");
        }
    });
}

/// A coordinator that goes silent is named after a bounded time, with how far it came.
#[test]
fn a_peer_that_stops_sending_is_said_to_have_stopped() {
    let data = Scratch::new("weights-silent");
    run(async {
        let model = demo();
        let (id, digest) = digests(&model).into_iter().next().expect("it has some");
        let (asks, whole) = (Arc::new(Asks::default()), bytes_of(&model, id));
        let mut place = Place::memory();
        let _link = place
            .link(&asks, move |peer, ask| {
                assert!(peer.try_send(frame(ask, &whole[..5000])).is_ok());
            })
            .await;
        let fetcher =
            Fetcher::new(Arc::clone(&asks), Arc::clone(&model.spec), model.config_digest, data.path());
        let fetcher = Arc::new(fetcher.with_silence_max(Duration::from_millis(200)));
        let said = why(fetch(&fetcher, id, digest).await);
        assert!(said.starts_with("front sent nothing for 200ms, after 5000 bytes of"), "{said}");
        assert_eq!(files(data.path()), Vec::<PathBuf>::new());
    });
}

/// A link that ends half-way: the expert is asked for over another one, if there is one.
#[test]
fn another_link_is_asked_when_one_ends() {
    let data = Scratch::new("weights-links");
    run(async {
        let model = demo();
        let (id, digest) = digests(&model).into_iter().next().expect("it has some");
        let (asks, whole) = (Arc::new(Asks::default()), bytes_of(&model, id));
        let fetcher = fetcher(&asks, &model, data.path());
        let breaking = move |peer: &Peer, ask: Ask| {
            assert!(peer.try_send(frame(ask, &whole[..5000])).is_ok());
            peer.close(CloseReason::Wanted);
        };
        let mut place = Place::memory();
        let _first = place.link(&asks, breaking.clone()).await;
        let said = why(fetch(&fetcher, id, digest).await);
        assert_eq!(said, "no coordinator is linked that could be asked for it");

        let _good = place.served(&asks, &model).await;
        let _bad = place.link(&asks, breaking).await;
        check(&fetched(fetch(&fetcher, id, digest).await), &model, id, digest);
        assert_eq!(fetcher.count().received, 1);
    });
}

/// Two actors of one expert, on two loading threads: it comes once.
#[test]
fn an_expert_that_two_want_comes_once() {
    let data = Scratch::new("weights-twice");
    run(async {
        let (model, asks) = (demo(), Arc::new(Asks::default()));
        let (id, digest) = digests(&model).into_iter().next().expect("it has some");
        let mut place = Place::memory();
        let _link = place.served(&asks, &model).await;
        let fetcher = fetcher(&asks, &model, data.path());
        let (one, two) = tokio::join!(fetch(&fetcher, id, digest), fetch(&fetcher, id, digest));
        check(&fetched(one), &model, id, digest);
        check(&fetched(two), &model, id, digest);
        let count = fetcher.count();
        assert_eq!((count.received, count.kept), (1, 1));
    });
}
