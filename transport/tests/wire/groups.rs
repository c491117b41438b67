//! Tables of groups against a plain model.

use phalanx_transport::wire::groups::{
    DispatchGroups, Group, GroupsError, Reason, ReturnGroups, dispatch_table_bytes, return_table_bytes,
    write_dispatch, write_return,
};
use phalanx_transport::wire::{Element, Header, Kind};
use proptest::prelude::*;

pub(crate) fn header(kind: Kind, rows: u32, columns: u32) -> Header {
    Header {
        kind,
        element: Element::Bf16,
        dispatch: 50,
        layer: 1,
        rows,
        columns,
        table_bytes: 0,
        groups: 0,
        remaining_us: 0,
        payload_crc: 0,
    }
}

fn group(rows: u32) -> Group {
    Group { expert: 3, rows, dispatch: 50, replica: 0, shard: 0, refused: None }
}

prop_compose! {
    /// A group and which of 40 rows it takes.
    fn dispatched()(
        expert: u32, ahead: u32, replica: u8, shard: u8,
        rows in prop::collection::btree_set(0..40_u32, 1..40),
    ) -> (Group, Vec<u32>) {
        let dispatch = 50 + u64::from(ahead);
        let group = Group { expert, rows: rows.len() as u32, dispatch, replica, shard, refused: None };
        (group, rows.into_iter().collect())
    }
}

/// A dispatch of 40 rows, written: header and payload. The rows are counted up, so that each is told apart.
pub(crate) fn written(groups: &[(Group, Vec<u32>)]) -> (Header, Vec<u8>) {
    let indices = groups.iter().map(|(_, rows)| rows.len()).sum();
    let table = dispatch_table_bytes(groups.len(), indices);
    let mut header = header(Kind::Dispatch, 40, 3);
    let mut payload = vec![0xee; table + 40 * 3 * 2];
    write_dispatch(&mut payload, &mut header, groups.iter().map(|(group, rows)| (*group, &rows[..])))
        .unwrap();
    assert_eq!(header.table_bytes as usize, table);
    for (row, bytes) in payload[table..].chunks_exact_mut(6).enumerate() {
        bytes.fill(row as u8);
    }
    (header, payload)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dispatch_survives_the_wire(groups in prop::collection::vec(dispatched(), 1..20)) {
        let (header, payload) = written(&groups);
        let header = Header::read(&header.write(), u64::MAX).unwrap();
        let read = DispatchGroups::read(&header, &payload).unwrap();
        prop_assert_eq!(read.len(), groups.len());
        let back: Vec<_> = read.iter().map(|(group, rows)| (group, rows.collect::<Vec<_>>())).collect();
        prop_assert_eq!(back, groups);
        prop_assert_eq!(&read.rows()[39 * 6..], [39; 6]);
    }

    #[test]
    fn a_return_survives_the_wire(
        groups in prop::collection::vec((0..9_u32, 0..Reason::ALL.len(), any::<u32>()), 1..60),
    ) {
        let groups: Vec<Group> = groups.into_iter().map(|(rows, reason, expert)| {
            let refused = (rows == 0).then_some(Reason::ALL[reason]);
            Group { expert, rows, dispatch: u64::from(expert) + 50, replica: 7, shard: 200, refused }
        }).collect();
        let rows = groups.iter().map(|group| group.rows).sum();
        let mut header = header(Kind::Return, rows, 2);
        let table = return_table_bytes(groups.len());
        let mut payload = vec![0xee; table + rows as usize * 4];
        write_return(&mut payload, &mut header, groups.iter().copied()).unwrap();
        for (row, bytes) in payload[table..].chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&(row as u32).to_le_bytes());
        }
        let header = Header::read(&header.write(), u64::MAX).unwrap();
        let read = ReturnGroups::read(&header, &payload).unwrap();
        let mut next = 0;
        for ((back, numbers, bytes), group) in read.iter().zip(&groups) {
            prop_assert_eq!(&back, group);
            prop_assert_eq!(numbers.clone(), next..next + group.rows);
            let own: Vec<u32> = bytes.chunks_exact(4)
                .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
            prop_assert_eq!(own, numbers.collect::<Vec<_>>());
            next += group.rows;
        }
        prop_assert_eq!(read.len(), groups.len());
    }
}

/// What a writer refuses is what a reader would refuse.
#[test]
fn wrong_groups_are_not_written() {
    let dispatch = |groups: &[(Group, &[u32])]| {
        write_dispatch(&mut [0; 256], &mut header(Kind::Dispatch, 4, 1), groups.iter().copied())
    };
    assert_eq!(dispatch(&[(group(2), &[1, 3])]), Ok(()));
    assert_eq!(dispatch(&[]), Err(GroupsError::Empty));
    assert_eq!(dispatch(&[(group(0), &[])]), Err(GroupsError::Rows { group: 0, rows: 0 }));
    assert_eq!(dispatch(&[(group(3), &[1, 3])]), Err(GroupsError::Rows { group: 0, rows: 3 }));
    for (rows, before, row) in [([1, 4], Some(1), 4), ([2, 2], Some(2), 2), ([3, 1], Some(3), 1)] {
        let expected = GroupsError::Index { group: 0, row, before, rows: 4 };
        assert_eq!(dispatch(&[(group(2), &rows)]), Err(expected));
    }
    let early = Group { dispatch: 49, ..group(1) };
    assert_eq!(dispatch(&[(early, &[0])]), Err(GroupsError::Dispatch { group: 0, delta: 49, first: 50 }));
    let far = Group { dispatch: 50 + (1 << 32), ..group(1) };
    assert!(matches!(dispatch(&[(far, &[0])]), Err(GroupsError::Dispatch { delta: 0x1_0000_0000, .. })));
    let refused = Group { refused: Some(Reason::Late), ..group(1) };
    assert_eq!(dispatch(&[(refused, &[0])]), Err(GroupsError::Code { group: 0, code: 6 }));
    let many = [(group(4), &[0, 1, 2, 3][..]); 8];
    assert!(matches!(dispatch(&many), Ok(())));
    let more = [(group(4), &[0, 1, 2, 3][..]); 9];
    assert!(matches!(dispatch(&more), Err(GroupsError::Length { needed: 320, table: 256, .. })));

    let answer = |groups: &[Group]| {
        write_return(&mut [0; 64], &mut header(Kind::Return, 4, 1), groups.iter().copied())
    };
    assert_eq!(answer(&[group(3), group(1)]), Ok(()));
    assert_eq!(answer(&[group(3)]), Err(GroupsError::Sum { groups: 3, frame: 4 }));
    assert_eq!(answer(&[group(4), group(0)]), Err(GroupsError::Rows { group: 1, rows: 0 }));
    let refused = Group { refused: Some(Reason::Busy), ..group(4) };
    assert_eq!(answer(&[refused]), Err(GroupsError::Rows { group: 0, rows: 4 }));
}

/// The largest table a header can count.
#[test]
fn a_table_has_at_most_65535_groups() {
    let mut payload = vec![0; return_table_bytes(65_536)];
    let mut frame = header(Kind::Return, 65_535, 0);
    write_return(&mut payload, &mut frame, std::iter::repeat_n(group(1), 65_535)).unwrap();
    frame.rows = 65_536;
    assert_eq!(
        write_return(&mut payload, &mut frame, std::iter::repeat_n(group(1), 65_536)),
        Err(GroupsError::TooMany(65_536))
    );
}
