//! One of each control message, with the name of its example in `docs/protocol.md`.

use phalanx_transport::security::{ClusterId, PeerName, Role};
use phalanx_transport::wire::cluster::{
    ActorId, Ask, Assignment, Cluster, DeviceOffer, Epoch, Fallen, Hold, Holding, Join, Joined, Load,
    Progress, ToCoordinator, ToNode,
};
use phalanx_transport::wire::control::{
    Attach, CloseReason, Control, Hello, NumericIdentity, Offer, PROTOCOL, Refusal, Welcome,
};
use phalanx_transport::wire::enrolment::{EnrolmentAnswer, EnrolmentRefusal};
use phalanx_transport::wire::{Lane, PerLane};

const MIB: u64 = 1 << 20;

fn ascending(from: u8) -> [u8; 16] {
    std::array::from_fn(|index| from + index as u8)
}

pub(crate) fn hello(role: Role, name: &str, incarnation: u64, class: Option<&str>) -> Hello {
    Hello {
        protocol: PROTOCOL,
        program: "phalanx 0.1.0".into(),
        peer: PeerName { cluster: ClusterId(ascending(0)), role, name: name.into() },
        incarnation,
        numeric: class.map(|class| NumericIdentity { class: class.into(), fingerprint: [0xaa; 32] }),
        limits: Offer {
            payload_bytes_max: PerLane { control: 4 * MIB, data: 16 * MIB, weights: 4 * MIB },
            window_bytes: PerLane { control: 16 * MIB, data: 64 * MIB, weights: 16 * MIB },
            in_flight_max: 65_536,
            heartbeat_us: 100_000,
            row_bytes: 14_336,
        },
    }
}

pub(crate) fn all() -> Vec<(&'static str, Control)> {
    let mut all = of_links();
    all.extend(of_clusters().into_iter().map(|(name, message)| (name, Control::Cluster(message))));
    all
}

/// One of each message of the cluster.
fn of_clusters() -> Vec<(&'static str, Cluster)> {
    let why = || "why".to_owned();
    let first = ActorId { layer: 3, expert: 5, replica: 0, shard: 0 };
    let second = ActorId { layer: 3, expert: 9, replica: 1, shard: 0 };
    let epoch = Epoch { term: 7, number: 2 };
    let actors = vec![
        Assignment { actor: first, device: 0, digest: Some([0xcc; 32]) },
        Assignment { actor: second, device: 1, digest: None },
    ];
    let join = Join {
        devices: vec![DeviceOffer { kind: "cpu".into(), memory_bytes: 1 << 30 }],
        labels: vec![("rack".into(), "r1".into())],
        term: 6,
        checkpoint: Some([0xbb; 32]),
        held: vec![Assignment { actor: first, device: 2, digest: None }],
    };
    let load = Load { actor: first, rows: 1000, batches: 10, busy_us: 2000, service_us: 3000, queued: 4 };
    let to_node = [
        ("cluster-joined", ToNode::Joined(Joined { node: 7, term: 7, config: b"{}".to_vec(), shards: 1 })),
        ("cluster-not-joined", ToNode::NotJoined { why: why() }),
        ("cluster-hold", ToNode::Hold(Hold { epoch, actors })),
        ("cluster-not-served", ToNode::NotServed { ask: 11, why: why() }),
    ];
    let to_coordinator = [
        ("cluster-join", ToCoordinator::Join(join)),
        (
            "cluster-progress",
            ToCoordinator::Progress(Progress { epoch, actors: 1, actors_all: 2, bytes: 4096 }),
        ),
        ("cluster-holding", ToCoordinator::Holding(Holding { epoch, failed: vec![(second, why())] })),
        (
            "cluster-fallen",
            ToCoordinator::Fallen(Fallen { actor: first, why: why(), restarts: 2, is_lost: true }),
        ),
        ("cluster-loads", ToCoordinator::Loads(vec![load])),
        ("cluster-ask", ToCoordinator::Ask(Ask { ask: 11, layer: 3, expert: 5 })),
        ("cluster-leaving", ToCoordinator::Leaving),
    ];
    let to_node = to_node.map(|(name, message)| (name, Cluster::ToNode(message)));
    let to_coordinator = to_coordinator.map(|(name, message)| (name, Cluster::ToCoordinator(message)));
    to_node.into_iter().chain(to_coordinator).collect()
}

fn of_links() -> Vec<(&'static str, Control)> {
    let session = ascending(16);
    let welcome =
        Welcome { hello: hello(Role::Coordinator, "c0", 9, None), session, ports: [Some(7001), None] };
    let (f32, portable) = ("f32".to_owned(), "portable".to_owned());
    vec![
        ("hello", Control::Hello(hello(Role::Node, "node-7", 0x1122_3344_5566_7788, Some("portable")))),
        ("welcome", Control::Welcome(welcome)),
        ("refused-protocol", Control::Refused(Refusal::Protocol { theirs: 2, ours: 1 })),
        (
            "refused-cluster",
            Control::Refused(Refusal::Cluster { theirs: ClusterId([1; 16]), ours: ClusterId([2; 16]) }),
        ),
        ("refused-name", Control::Refused(Refusal::Name { said: "a".into(), certificate: "b".into() })),
        ("refused-role", Control::Refused(Refusal::Role { theirs: Role::Node, ours: Role::Node })),
        ("refused-class", Control::Refused(Refusal::Class { theirs: f32.clone(), ours: portable })),
        ("refused-fingerprint", Control::Refused(Refusal::Fingerprint { class: f32 })),
        ("refused-row", Control::Refused(Refusal::Row { payload: 4096, row: 14_336 })),
        ("refused-offer", Control::Refused(Refusal::Offer { what: "window".into(), value: 1 })),
        ("refused-attach", Control::Refused(Refusal::Attach)),
        ("refused-busy", Control::Refused(Refusal::Busy("full".into()))),
        ("attach", Control::Attach(Attach { protocol: PROTOCOL, session, lane: Lane::Data })),
        ("attached", Control::Attached),
        ("heartbeat", Control::Heartbeat { sequence: 0x0102, heard: 0x0304 }),
        ("grant", Control::Grant { lane: Lane::Data, total: 80 * MIB }),
        ("drain", Control::Drain),
        ("close-drained", Control::Close(CloseReason::Drained)),
        ("close-wanted", Control::Close(CloseReason::Wanted)),
        ("close-replaced", Control::Close(CloseReason::Replaced)),
        ("close-broken", Control::Close(CloseReason::Broken("why".into()))),
        ("close-silent", Control::Close(CloseReason::Silent)),
        ("close-drain-too-long", Control::Close(CloseReason::DrainTooLong)),
        ("probe", Control::Probe { id: 3, padding: vec![1, 2, 3, 4] }),
        ("echo", Control::Echo { id: 3, padding: vec![1, 2, 3, 4] }),
        ("renew", Control::Renew { request: vec![0x30, 1, 0] }),
        ("renewed", Control::Renewed { chain: vec![vec![0x30, 0], vec![0x30]] }),
        ("not-renewed", Control::NotRenewed { why: "why".into() }),
    ]
}

/// One of each answer to a question for a certificate.
pub(crate) fn enrolment_answers() -> Vec<(&'static str, EnrolmentAnswer)> {
    let why = || "why".to_owned();
    let refused = EnrolmentAnswer::Refused;
    vec![
        ("enrolled", EnrolmentAnswer::Enrolled { chain: vec![vec![0x30, 0], vec![0x30]] }),
        ("not-enrolled-protocol", refused(EnrolmentRefusal::Protocol { theirs: 2, ours: 1 })),
        ("not-enrolled-token", refused(EnrolmentRefusal::Token(why()))),
        ("not-enrolled-name", refused(EnrolmentRefusal::Name(why()))),
        (
            "not-enrolled-name-held",
            refused(EnrolmentRefusal::NameHeld { name: "n7".into(), until: "later".into() }),
        ),
        ("not-enrolled-request", refused(EnrolmentRefusal::Request(why()))),
        ("not-enrolled-authority", refused(EnrolmentRefusal::Authority(why()))),
    ]
}

/// A message that is added must be listed here, shown in the document, and seen by every test of this file.
#[test]
fn every_message_has_an_example() {
    let mut seen: Vec<_> = all().iter().map(|(_, message)| std::mem::discriminant(message)).collect();
    seen.dedup();
    let numbers = all().into_iter().map(|(_, message)| match message {
        Control::Hello(_) => 0,
        Control::Welcome(_) => 1,
        Control::Refused(_) => 2,
        Control::Attach(_) => 3,
        Control::Attached => 4,
        Control::Heartbeat { .. } => 5,
        Control::Grant { .. } => 6,
        Control::Drain => 7,
        Control::Close(_) => 8,
        Control::Probe { .. } => 9,
        Control::Echo { .. } => 10,
        Control::Renew { .. } => 11,
        Control::Renewed { .. } => 12,
        Control::NotRenewed { .. } => 13,
        Control::Cluster(_) => 14,
    });
    let numbers: std::collections::BTreeSet<u32> = numbers.collect();
    assert_eq!(numbers.into_iter().collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
    assert_eq!(seen.len(), 15);
    let of_clusters: std::collections::BTreeSet<_> = of_clusters()
        .iter()
        .map(|(_, message)| match message {
            Cluster::ToNode(ToNode::Joined(_)) => 0,
            Cluster::ToNode(ToNode::NotJoined { .. }) => 1,
            Cluster::ToNode(ToNode::Hold(_)) => 2,
            Cluster::ToNode(ToNode::NotServed { .. }) => 3,
            Cluster::ToCoordinator(ToCoordinator::Join(_)) => 4,
            Cluster::ToCoordinator(ToCoordinator::Progress(_)) => 5,
            Cluster::ToCoordinator(ToCoordinator::Holding(_)) => 6,
            Cluster::ToCoordinator(ToCoordinator::Fallen(_)) => 7,
            Cluster::ToCoordinator(ToCoordinator::Loads(_)) => 8,
            Cluster::ToCoordinator(ToCoordinator::Ask(_)) => 9,
            Cluster::ToCoordinator(ToCoordinator::Leaving) => 10,
        })
        .collect();
    assert_eq!(of_clusters.len(), 11);
}
