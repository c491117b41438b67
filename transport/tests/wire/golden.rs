//! `docs/protocol.md` and the program say the same: its examples were written by hand from the text.

use std::collections::BTreeMap;

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::security::{Token, Utc};
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::enrolment::{ENROLMENT, EnrolmentRequest};
use phalanx_transport::wire::groups::{
    DispatchGroups, Group, Reason, ReturnGroups, write_dispatch, write_return,
};
use phalanx_transport::wire::{
    Element, FINISH, HEADER_BYTES, Header, Kind, codec, control::Control, control_frame, read_control,
};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// The examples of the document by their names.
pub(crate) fn examples() -> BTreeMap<String, Vec<u8>> {
    let mut examples = BTreeMap::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```golden ") else { continue };
        let block = lines.by_ref().take_while(|line| *line != "```");
        let hex = block.flat_map(|line| line.split_once(';').unwrap_or((line, "")).0.split_whitespace());
        let bytes = hex.map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect();
        assert!(examples.insert(name.to_owned(), bytes).is_none(), "{name} is there twice");
    }
    examples
}

fn header_of(name: &str) -> [u8; HEADER_BYTES] {
    examples()[name].as_slice().try_into().unwrap()
}

#[test]
fn messages_are_what_the_document_shows() {
    let examples = examples();
    let pool = Pool::new(1 << 20);
    let messages = super::messages::all();
    for (name, message) in &messages {
        let bytes = &examples[*name];
        assert_eq!(&codec::encode(message).unwrap(), bytes, "{name}");
        assert_eq!(codec::encoded_bytes(message), Ok(bytes.len()), "{name}");
        assert_eq!(codec::decode::<Control>(bytes).as_ref(), Ok(message), "{name}");
        let frame = control_frame(&pool, message).unwrap();
        assert_eq!((&frame.payload[..], read_control(&frame)), (&bytes[..], Ok(message.clone())));
    }
    let others = [
        "header-heartbeat",
        "dispatch-header",
        "dispatch-payload",
        "return-header",
        "return-payload",
        "finish",
        "token",
    ];
    assert_eq!(examples["finish"], FINISH);
    // The question of enrolment, and its answers.
    let enrolment = 1 + super::messages::enrolment_answers().len();
    let held = messages.len() + others.len() + enrolment;
    assert_eq!(examples.len(), held, "every example is held against something");
}

/// A token and its proof, computed by another program (HMAC of Python's library) from the words of the document.
#[test]
fn enrolment_is_what_the_document_shows() {
    fn framed(message: Vec<u8>) -> Vec<u8> {
        [&(message.len() as u32).to_le_bytes()[..], &message].concat()
    }
    let examples = examples();
    let text = format!("phx1.{}", data_encoding::BASE64URL_NOPAD.encode(&examples["token"]));
    let token: Token = text.parse().unwrap();
    assert_eq!(token.reveal(), text);
    assert_eq!((token.expires, token.id), (Utc(2_000_000_000), *b"\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7"));
    let (name, request) = ("n7".to_owned(), vec![0x30, 1, 0]);
    let proof = token.prove(&[3; 32], &name, &request);
    let question = EnrolmentRequest { protocol: ENROLMENT, token: token.id, name, request, proof };
    assert_eq!(framed(codec::encode(&question).unwrap()), examples["enrolment-request"]);
    assert_eq!(codec::decode(&examples["enrolment-request"][4..]), Ok(question));
    for (name, answer) in super::messages::enrolment_answers() {
        assert_eq!(framed(codec::encode(&answer).unwrap()), examples[name], "{name}");
        assert_eq!(codec::decode(&examples[name][4..]), Ok(answer), "{name}");
    }
}

#[test]
fn headers_are_what_the_document_shows() {
    let heartbeat = Header::of_bytes(Kind::Control, 0, 20);
    assert_eq!(heartbeat.write(), header_of("header-heartbeat"));
    assert_eq!(Header::read(&header_of("header-heartbeat"), 20), Ok(heartbeat));
}

const DISPATCH: Header = Header {
    kind: Kind::Dispatch,
    element: Element::Bf16,
    dispatch: 1000,
    layer: 3,
    rows: 3,
    columns: 2,
    table_bytes: 0,
    groups: 0,
    remaining_us: 250_000,
    payload_crc: 0,
};

#[test]
fn a_dispatch_is_what_the_document_shows() {
    let payload = &examples()["dispatch-payload"];
    let first = Group { expert: 5, rows: 2, dispatch: 1000, replica: 0, shard: 0, refused: None };
    let second = Group { expert: 9, rows: 3, dispatch: 1001, replica: 1, shard: 0, refused: None };
    let listed: [(Group, &[u32]); 2] = [(first, &[0, 2]), (second, &[0, 1, 2])];

    let mut header = DISPATCH;
    let mut table = [0xff; 64];
    write_dispatch(&mut table, &mut header, listed).unwrap();
    assert_eq!(table[..], payload[..64]);
    header.payload_crc = crc32c(payload);
    assert_eq!(header.write(), header_of("dispatch-header"));

    let header = Header::read(&header_of("dispatch-header"), 1 << 20).unwrap();
    let groups = DispatchGroups::read(&header, payload).unwrap();
    let read: Vec<_> = groups.iter().map(|(group, rows)| (group, rows.collect::<Vec<_>>())).collect();
    assert_eq!(read, listed.map(|(group, rows)| (group, rows.to_vec())));
    assert_eq!(groups.rows(), &payload[64..]);
}

#[test]
fn a_return_is_what_the_document_shows() {
    let payload = &examples()["return-payload"];
    let first = Group { expert: 5, rows: 2, dispatch: 1000, replica: 0, shard: 0, refused: None };
    let refused = Some(Reason::NotHeld);
    let second = Group { expert: 9, rows: 0, dispatch: 1001, replica: 1, shard: 0, refused };

    let mut header = Header { kind: Kind::Return, rows: 2, remaining_us: 0, ..DISPATCH };
    let mut table = [0xff; 64];
    write_return(&mut table, &mut header, [first, second]).unwrap();
    assert_eq!(table[..], payload[..64]);
    assert_eq!(header.write(), header_of("return-header"));

    let header = Header::read(&header_of("return-header"), 1 << 20).unwrap();
    let groups = ReturnGroups::read(&header, payload).unwrap();
    let read: Vec<_> = groups.iter().collect();
    assert_eq!(read, [(first, 0..2, &payload[64..]), (second, 2..2, &[][..])]);
}

/// Reasons have their numbers in the document's table.
#[test]
fn reasons_have_the_numbers_of_the_document() {
    for (number, reason) in (1..).zip(Reason::ALL) {
        let row = format!("| {number} | {reason:?}:");
        assert!(DOCUMENT.contains(&row), "{row}");
        let group = Group { expert: 1, rows: 0, dispatch: 7, replica: 0, shard: 0, refused: Some(reason) };
        let mut header = Header { kind: Kind::Return, rows: 0, dispatch: 7, ..DISPATCH };
        let mut table = [0; 64];
        write_return(&mut table, &mut header, [group]).unwrap();
        assert_eq!(table[14..16], [number, 0]);
        assert_eq!(ReturnGroups::read(&header, &table).unwrap().iter().next().unwrap().0, group);
    }
}

/// A frame that is not control is not taken for a message, and a newer `Hello` is told apart in words.
#[test]
fn what_is_no_message_says_why() {
    use phalanx_transport::wire::ControlError;
    let pool = Pool::new(1 << 20);
    let frame = |kind, bytes: &[u8]| {
        Frame::new(Header::of_bytes(kind, 0, bytes.len() as u32), pool.copy_of(bytes).unwrap())
    };
    let drain = codec::encode(&Control::Drain).unwrap();
    assert_eq!(read_control(&frame(Kind::Weights, &drain)), Err(ControlError::Kind(Kind::Weights)));
    let newer = [0, 0, 0, 0, 2, 0, 0, 0, 99];
    assert_eq!(read_control(&frame(Kind::Control, &newer)), Err(ControlError::Protocol { theirs: 2 }));
    let broken = [0, 0, 0, 0, 1, 0, 0, 0, 99];
    assert!(matches!(read_control(&frame(Kind::Control, &broken)), Err(ControlError::Codec(_))));
    let full = control_frame(&Pool::new(64), &Control::Probe { id: 1, padding: vec![0; 100] });
    assert!(matches!(full, Err(ControlError::NoRoom { bytes: 120, max: 64 })));
}
