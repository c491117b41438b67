//! Whatever a peer sends: an answer, no panic, and no allocation that the bytes do not justify.

use phalanx_transport::wire::cluster::{
    self, ActorId, Assignment, Cluster, DeviceOffer, Epoch, Fallen, Hold, Holding, Join, Joined, Load,
    ToCoordinator, ToNode,
};
use phalanx_transport::wire::codec::{self, CodecError, MESSAGE_BYTES_MAX};
use phalanx_transport::wire::control::{self, CloseReason, Control, ControlError, words};
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::groups::{DispatchGroups, GroupsError, ReturnGroups};
use phalanx_transport::wire::{HEADER_BYTES, Header, HeaderError, Kind};
use proptest::prelude::*;

use super::golden::examples;
use super::groups::written;
use super::largest::largest_allocation;

/// What decoding may allocate at once: four times the message, in steps of four, and the words of an error.
fn justified(bytes: usize) -> usize {
    (16 * bytes).max(1024)
}

fn decode(bytes: &[u8]) -> Result<Control, CodecError> {
    let (largest, decoded) = largest_allocation(|| codec::decode::<Control>(bytes));
    assert!(largest <= justified(bytes.len()), "{largest} bytes for a message of {}", bytes.len());
    decoded
}

/// Goes through a table as its users do, so that a check that is missing panics here.
fn walk(header: &Header, payload: &[u8]) -> Result<usize, GroupsError> {
    let (largest, walked) = largest_allocation(|| {
        if header.kind == Kind::Dispatch {
            let groups = DispatchGroups::read(header, payload)?;
            let row_bytes = groups.rows().len() / header.rows.max(1) as usize;
            let each = groups.iter().map(|(group, rows)| {
                assert_eq!(rows.len(), group.rows as usize);
                let seen = rows.map(|row| groups.rows()[row as usize * row_bytes..][..row_bytes].len());
                seen.count()
            });
            Ok(each.sum())
        } else {
            let groups = ReturnGroups::read(header, payload)?;
            Ok(groups.iter().map(|(_, numbers, _)| numbers.len()).sum())
        }
    });
    assert_eq!(largest, 0, "a table is read in place");
    walked
}

/// A header with a right checksum, whatever it says.
fn sealed(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
    let checksum = crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The examples that are control messages.
fn control_examples() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let examples = examples();
    super::messages::all().into_iter().map(move |(name, _)| (name, examples[name].clone()))
}

#[test]
fn no_prefix_of_a_message_is_one() {
    for (name, bytes) in control_examples() {
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes of {name}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode(&longer), Err(CodecError::Trailing(1)), "{name}");
    }
}

/// What a message with one wrong bit says is itself what is written for it: no two encodings mean the same.
#[test]
fn a_flipped_bit_is_refused_or_another_message() {
    for (name, bytes) in control_examples() {
        let good = decode(&bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(message) = decode(&bad) {
                assert_ne!(message, good, "bit {bit} of {name}");
                assert_eq!(codec::encode(&message).unwrap(), bad, "bit {bit} of {name}");
                let _ = message.check();
            }
        }
    }
}

/// 4 MiB said to follow, and 20 bytes that do.
#[test]
fn a_length_that_lies_allocates_nothing_for_it() {
    for length in [100, 1 << 10, 1 << 20, 4 << 20, 1 << 40, u64::MAX] {
        for variant in [9_u32, 11, 12, 13] {
            let mut bytes = variant.to_le_bytes().to_vec();
            if variant == 9 {
                bytes.extend(7_u64.to_le_bytes());
            }
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 20]);
            assert!(decode(&bytes).is_err(), "variant {variant} of {length}");
        }
        // The lists of the cluster: actors to hold, devices, actors held, what could not be held, loads.
        for (direction, variant, before) in [(0_u32, 2_u32, 16), (1, 0, 0), (1, 0, 25), (1, 2, 16), (1, 4, 0)]
        {
            let mut bytes = [14, direction, variant].map(u32::to_le_bytes).concat();
            bytes.extend(vec![0; before]);
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 20]);
            assert!(decode(&bytes).is_err(), "variant {direction}.{variant} of {length}");
        }
    }
    let (largest, refused) =
        largest_allocation(|| codec::decode::<Control>(&vec![0; MESSAGE_BYTES_MAX + 1]).unwrap_err());
    assert_eq!(refused, CodecError::TooLong(MESSAGE_BYTES_MAX + 1));
    assert_eq!(largest, MESSAGE_BYTES_MAX + 1, "only the test's own");
}

#[test]
fn texts_beyond_their_bounds_are_refused() {
    let long = |bytes: usize| "x".repeat(bytes);
    let base = super::messages::hello(phalanx_transport::security::Role::Node, "n", 1, Some("f32"));
    let hello = |change: &dyn Fn(&mut control::Hello)| {
        let mut hello = base.clone();
        change(&mut hello);
        Control::Hello(hello).check()
    };
    assert_eq!(hello(&|_| ()), Ok(()));
    assert_eq!(hello(&|it| it.peer.name = long(63)), Ok(()));
    assert!(matches!(hello(&|it| it.peer.name = long(64)), Err(ControlError::TooLong { found: 64, .. })));
    for name in ["", "a b", "a/b", "ä", "a\n"] {
        assert!(
            matches!(hello(&|it| it.peer.name = name.into()), Err(ControlError::Name { .. })),
            "{name:?}"
        );
        let class = hello(&|it| it.numeric.as_mut().unwrap().class = name.into());
        assert!(matches!(class, Err(ControlError::Name { .. })), "{name:?}");
    }
    assert_eq!(hello(&|it| it.program = long(128)), Ok(()));
    assert!(matches!(hello(&|it| it.program = long(129)), Err(ControlError::TooLong { max: 128, .. })));
    let escape = hello(&|it| it.program = "\x1b[2J".into());
    assert!(matches!(escape, Err(ControlError::Character { character: '\x1b', .. })));

    let padding = |bytes| Control::Probe { id: 0, padding: vec![0; bytes] }.check();
    assert_eq!(padding(1 << 20), Ok(()));
    assert!(padding((1 << 20) + 1).is_err());
    let chain = |certificates, bytes| Control::Renewed { chain: vec![vec![0; bytes]; certificates] }.check();
    assert_eq!(chain(8, 16 << 10), Ok(()));
    assert!(chain(9, 1).is_err() && chain(1, (16 << 10) + 1).is_err());
    assert!(Control::Renew { request: vec![0; (16 << 10) + 1] }.check().is_err());
    for text in [long(1025), "a\0".into()] {
        assert!(Control::NotRenewed { why: text.clone() }.check().is_err());
        assert!(Control::Close(CloseReason::Broken(text.clone())).check().is_err());
        assert!(Control::Refused(control::Refusal::Busy(text.clone())).check().is_err());
        assert_eq!(Control::NotRenewed { why: words(&text) }.check(), Ok(()), "words are always taken");
    }
    assert_eq!(words("ä".repeat(600)).len(), 1024);
}

#[test]
fn messages_of_the_cluster_beyond_their_bounds_are_refused() {
    let actor = ActorId { layer: 1, expert: 2, replica: 0, shard: 0 };
    let epoch = Epoch::default();
    let taken = |message: Cluster| Control::Cluster(message).check().is_ok();
    let long = |bytes: usize| "x".repeat(bytes);
    let join = |change: &dyn Fn(&mut Join)| {
        let mut join = Join { devices: vec![], labels: vec![], term: 0, checkpoint: None, held: vec![] };
        change(&mut join);
        taken(Cluster::ToCoordinator(ToCoordinator::Join(join)))
    };
    let device = |kind: &str| DeviceOffer { kind: kind.to_owned(), memory_bytes: 1 };
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert!(join(&|it| it.devices = vec![device(&long(63)); cluster::DEVICES_MAX]));
    assert!(!join(&|it| it.devices = vec![device("cpu"); cluster::DEVICES_MAX + 1]));
    assert!(!join(&|it| it.devices = vec![device(&long(64))]));
    assert!(!join(&|it| it.devices = vec![device("a\u{7}")]));
    assert!(join(&|it| it.labels = vec![label(&long(63), &long(255)); cluster::LABELS_MAX]));
    assert!(!join(&|it| it.labels = vec![label("rack", "1"); cluster::LABELS_MAX + 1]));
    assert!(join(&|it| it.labels = vec![label("rack", "hall 3 / r\u{fc}ck")]));
    for (key, value) in [("", "1"), ("a b", "1"), ("rack", "a\n"), ("rack", &long(256)), (&long(64), "1")] {
        assert!(!join(&|it| it.labels = vec![label(key, value)]), "{key:?} {value:?}");
    }
    let held = Assignment { actor, device: 0, digest: None };
    assert!(join(&|it| it.held = vec![held; cluster::ACTORS_MAX]));
    assert!(!join(&|it| it.held = vec![held; cluster::ACTORS_MAX + 1]));

    let to_node = |message| taken(Cluster::ToNode(message));
    let joined =
        |bytes| to_node(ToNode::Joined(Joined { node: 1, term: 1, config: vec![b' '; bytes], shards: 1 }));
    assert!(joined(cluster::CONFIG_BYTES_MAX) && !joined(cluster::CONFIG_BYTES_MAX + 1));
    let assignment = Assignment { actor, device: 0, digest: None };
    let hold = |actors| to_node(ToNode::Hold(Hold { epoch, actors: vec![assignment; actors] }));
    assert!(hold(cluster::ACTORS_MAX) && !hold(cluster::ACTORS_MAX + 1));
    let to_coordinator = |message| taken(Cluster::ToCoordinator(message));
    let load = Load { actor, rows: 0, batches: 0, busy_us: 0, service_us: 0, queued: 0 };
    let loads = |actors| to_coordinator(ToCoordinator::Loads(vec![load; actors]));
    assert!(loads(cluster::ACTORS_MAX) && !loads(cluster::ACTORS_MAX + 1));
    let holding = |actors, why: &str| {
        to_coordinator(ToCoordinator::Holding(Holding {
            epoch,
            failed: vec![(actor, why.to_owned()); actors],
        }))
    };
    assert!(holding(cluster::ACTORS_MAX, "") && !holding(cluster::ACTORS_MAX + 1, ""));
    assert!(holding(2, &long(1024)) && !holding(2, &long(1025)) && !holding(2, "a\u{1b}"));
    for (why, fits) in [(long(1024), true), (long(1025), false), ("a\0".to_owned(), false)] {
        let fallen = Fallen { actor, why: why.clone(), restarts: 0, is_lost: false };
        assert_eq!(to_coordinator(ToCoordinator::Fallen(fallen)), fits);
        assert_eq!(to_node(ToNode::NotJoined { why: why.clone() }), fits);
        assert_eq!(to_node(ToNode::NotServed { ask: 1, why }), fits);
    }
}

/// A list takes more memory than bytes on the wire; no honest one may meet the limit that stops lies.
#[test]
fn long_lists_are_read_whatever_their_length() {
    let actor = ActorId { layer: 1, expert: 2, replica: 0, shard: 0 };
    let load = Load { actor, rows: 0, batches: 0, busy_us: 0, service_us: 0, queued: 0 };
    let lengths = (0..400).chain([1_000, 1_259, 5_000, 20_000, 40_000, cluster::ACTORS_MAX]);
    for count in lengths {
        let assignments = |digest| vec![Assignment { actor, device: 0, digest }; count];
        let epoch = Epoch::default();
        let join = Join {
            devices: vec![DeviceOffer { kind: String::new(), memory_bytes: 0 }; count],
            labels: vec![(String::new(), String::new()); count],
            term: 0,
            checkpoint: None,
            held: assignments(None),
        };
        for message in [
            Cluster::ToNode(ToNode::Hold(Hold { epoch, actors: assignments(None) })),
            Cluster::ToNode(ToNode::Hold(Hold { epoch, actors: assignments(Some([1; 32])) })),
            Cluster::ToCoordinator(ToCoordinator::Join(join)),
            Cluster::ToCoordinator(ToCoordinator::Loads(vec![load; count])),
            Cluster::ToCoordinator(ToCoordinator::Holding(Holding {
                epoch,
                failed: vec![(actor, String::new()); count],
            })),
        ] {
            let message = Control::Cluster(message);
            let bytes = codec::encode(&message).unwrap();
            assert!(decode(&bytes).as_ref() == Ok(&message), "{count} in {} bytes", bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400), variant in 0..16_u32) {
        let _ = decode(&bytes);
        let _ = decode(&[&variant.to_le_bytes()[..], &bytes].concat());
        if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            let (largest, read) = largest_allocation(|| Header::read(header, u64::MAX));
            prop_assert!(read.is_err() && largest == 0);
        }
    }

    /// Whatever fields a header has: read whole, and what is read is what is written.
    #[test]
    fn a_sealed_header_is_refused_or_understood(
        body in prop::collection::vec(prop_oneof![4 => Just(0_u8), 2 => 0..5_u8, 1 => any::<u8>()], 60),
        fixes in 0..8_u8,
    ) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..60].copy_from_slice(&body);
        bytes[..5].copy_from_slice(b"PHLX\x01");
        if fixes & 1 == 0 {
            (bytes[5], bytes[6]) = (1 + bytes[5] % 4, 1 + bytes[6] % 3);
        }
        if fixes & 2 == 0 {
            bytes[7] = 0;
            bytes[50..60].fill(0);
        }
        let number = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        if fixes & 4 == 0 {
            let element = [2, 4, 1][usize::from(bytes[6].wrapping_sub(1)) % 3];
            let payload = number(20) * number(24) * element + number(28);
            bytes[32..40].copy_from_slice(&payload.to_le_bytes());
        }
        let bytes = sealed(bytes);
        match Header::read(&bytes, u64::MAX) {
            Ok(header) => {
                prop_assert_eq!(header.write(), bytes);
                prop_assert_eq!(header.check(), Ok(()));
            }
            Err(HeaderError::Magic(_) | HeaderError::Version(_) | HeaderError::Checksum { .. }) => {
                prop_assert!(false, "these were right");
            }
            Err(_) => {}
        }
    }

    /// Tables that were right but for some bytes, and tables of nothing but noise.
    #[test]
    fn damaged_tables_are_answered(
        changes in prop::collection::vec((0..200_usize, prop_oneof![0..9_u8, any::<u8>()]), 0..4),
        rows in prop_oneof![3 => Just(40_u32), 1 => any::<u32>()],
        count in prop_oneof![3 => Just(3_u16), 1 => any::<u16>()],
        kind in prop_oneof![Just(Kind::Dispatch), Just(Kind::Return)],
        noise in any::<bool>(),
    ) {
        let group = |rows: &[u32]| {
            let own = phalanx_transport::wire::groups::Group {
                expert: 1, rows: rows.len() as u32, dispatch: 50, replica: 0, shard: 0, refused: None,
            };
            (own, rows.to_vec())
        };
        let (mut header, mut payload) = written(&[group(&[0, 39]), group(&[7]), group(&[1, 2, 3])]);
        for (at, value) in &changes {
            let length = payload.len();
            payload[at % length] = *value;
        }
        if noise {
            payload.iter_mut().enumerate().for_each(|(at, byte)| *byte = byte.wrapping_mul(at as u8 | 1));
        }
        (header.groups, header.kind) = (count, kind);
        let table = header.table_bytes;
        let walked = walk(&header, &payload);
        if kind == Kind::Dispatch && count == 3 && !noise && changes.iter().all(|(at, _)| *at >= table as usize) {
            prop_assert_eq!(walked, Ok(6));
        }
        header.rows = rows;
        let _ = walk(&header, &payload);
        // Fields that fit the payload but not the table.
        header.columns = 0;
        header.table_bytes = payload.len() as u32;
        let _ = walk(&header, &payload);
    }
}

#[test]
fn no_prefix_of_a_table_is_one_and_every_flipped_bit_is_answered() {
    let examples = examples();
    for frame in ["dispatch", "return"] {
        let header: [u8; HEADER_BYTES] = examples[&format!("{frame}-header")][..].try_into().unwrap();
        let header = Header::read(&header, 1 << 20).unwrap();
        let payload = &examples[&format!("{frame}-payload")];
        let rows = walk(&header, payload).unwrap();
        for length in 0..payload.len() {
            let expected = GroupsError::Payload { found: length as u64, said: payload.len() as u64 };
            assert_eq!(walk(&header, &payload[..length]), Err(expected));
            let lying = Header { table_bytes: length as u32, rows: 0, ..header };
            assert!(walk(&lying, &payload[..length]).is_err(), "a table of {length} bytes");
        }
        for bit in 0..header.table_bytes as usize * 8 {
            let mut bad = payload.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(walked) = walk(&header, &bad) {
                assert_eq!(walked, rows, "bit {bit} of a {frame} changes no count unnoticed");
            }
        }
    }
}

/// Each check of a table, met by the one lie that it is for.
#[test]
fn lies_in_a_table_are_named() {
    let examples = examples();
    let header_of = |frame: &str| {
        let header: [u8; HEADER_BYTES] = examples[&format!("{frame}-header")][..].try_into().unwrap();
        Header::read(&header, 1 << 20).unwrap()
    };
    let with = |frame: &str, at: usize, value: u8| {
        let mut payload = examples[&format!("{frame}-payload")].clone();
        payload[at] = value;
        walk(&header_of(frame), &payload).unwrap_err()
    };
    assert_eq!(with("dispatch", 14, 1), GroupsError::Code { group: 0, code: 1 });
    assert_eq!(with("dispatch", 15, 9), GroupsError::Code { group: 0, code: 0x900 });
    assert_eq!(with("dispatch", 4, 0), GroupsError::Rows { group: 0, rows: 0 });
    assert!(matches!(with("dispatch", 7, 0xff), GroupsError::Length { .. }));
    assert_eq!(
        with("dispatch", 36, 3),
        GroupsError::Index { group: 0, row: 3, before: Some(0), rows: 3 },
        "the frame has rows 0 to 2"
    );
    assert_eq!(with("dispatch", 36, 0), GroupsError::Index { group: 0, row: 0, before: Some(0), rows: 3 });
    assert_eq!(with("dispatch", 63, 5), GroupsError::Padding { at: 63, value: 5 });
    assert_eq!(with("dispatch", 52, 5), GroupsError::Padding { at: 52, value: 5 });
    assert_eq!(with("return", 4, 1), GroupsError::Sum { groups: 1, frame: 2 });
    assert_eq!(with("return", 20, 1), GroupsError::Rows { group: 1, rows: 1 });
    assert_eq!(with("return", 30, 0), GroupsError::Rows { group: 1, rows: 0 });
    assert_eq!(with("return", 30, 7), GroupsError::Code { group: 1, code: 7 });
    assert_eq!(with("return", 32, 7), GroupsError::Padding { at: 32, value: 7 });

    let payload = &examples["dispatch-payload"];
    let late = Header { dispatch: u64::MAX, ..header_of("dispatch") };
    let expected = GroupsError::Dispatch { group: 1, delta: 1, first: u64::MAX };
    assert_eq!(walk(&late, payload), Err(expected));
    let other = Header { kind: Kind::Weights, ..late };
    assert_eq!(DispatchGroups::read(&other, payload).unwrap_err(), GroupsError::Kind(Kind::Weights));
    assert_eq!(ReturnGroups::read(&late, payload).unwrap_err(), GroupsError::Kind(Kind::Dispatch));
    let none = Header { groups: 0, ..header_of("dispatch") };
    assert_eq!(walk(&none, payload), Err(GroupsError::Empty));
}
