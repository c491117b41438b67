//! The table of groups that a dispatch or a return carries before its rows.
//!
//! Pure. One frame carries the groups of many experts of one node. In a **dispatch** each group lists
//! which rows of the frame it takes, because a row that several experts of the node need travels once. In
//! a **return** every group has its own rows, one group's after the other's, and a group that was refused
//! has none. All is read in place, checked once and as a whole: whoever has a table may index rows with
//! what it says. What it costs to check is bounded by the bytes that came.
//!
//! | bytes of an entry | field |
//! |---|---|
//! | 0..4 | expert |
//! | 4..8 | rows of the group |
//! | 8..12 | its dispatch id, counted from the header's |
//! | 12 | replica |
//! | 13 | shard |
//! | 14..16 | 0: to be computed, or computed; otherwise the reason of a refusal |
//!
//! After the entries a dispatch has the row indices, group after group, u32 each: a row is kilobytes, so two
//! bytes less of index would save nothing, and a row of a frame has one number everywhere. Indices of a
//! group ascend strictly, so that no row is in it twice. Zeros fill the table to 64 bytes.

use std::iter::FusedIterator;
use std::ops::Range;

use super::header::{Header, Kind};

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// Bytes of a row index.
pub const INDEX_BYTES: usize = 4;
/// A table is a multiple of this, so that the rows behind it are aligned.
pub const TABLE_ALIGNMENT: usize = 64;

/// Rows for, or from, one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The expert, within the header's layer.
    pub expert: u32,
    /// How many rows. A refused group of a return has none.
    pub rows: u32,
    /// Its dispatch id: not before the header's, and within 2^32 of it.
    pub dispatch: u64,
    /// Which replica of the expert.
    pub replica: u8,
    /// Which shard of the replica.
    pub shard: u8,
    /// Why there are no rows; `None` in every dispatch.
    pub refused: Option<Reason>,
}

/// Why a group was not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The node does not hold the expert: send it elsewhere at once.
    NotHeld,
    /// The placement that it was sent by is too old for the node to serve it.
    Stale,
    /// The actor fell over it: retry alone, then row by row.
    Failed,
    /// There is no room for it now.
    Busy,
    /// The node takes no new work.
    Draining,
    /// Its time was over before it was computed.
    Late,
}

impl Reason {
    /// All of them, in the order of their numbers from 1.
    pub const ALL: [Self; 6] =
        [Self::NotHeld, Self::Stale, Self::Failed, Self::Busy, Self::Draining, Self::Late];

    const fn code(refused: Option<Self>) -> u16 {
        match refused {
            None => 0,
            Some(Self::NotHeld) => 1,
            Some(Self::Stale) => 2,
            Some(Self::Failed) => 3,
            Some(Self::Busy) => 4,
            Some(Self::Draining) => 5,
            Some(Self::Late) => 6,
        }
    }

    fn of_code(code: u16) -> Option<Option<Self>> {
        match code {
            0 => Some(None),
            _ => Self::ALL.get(usize::from(code) - 1).copied().map(Some),
        }
    }
}

/// Why a table cannot be read, or written. A link that brought one is closed; none of its rows are used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupsError {
    /// The frame is of a kind that has no such table.
    #[error("a frame of kind {0:?} has no table of this kind")]
    Kind(Kind),
    /// The payload is not the header's.
    #[error("a payload of {found} bytes, its header says {said}")]
    Payload {
        /// Of the payload.
        found: u64,
        /// Of the header.
        said: u64,
    },
    /// The table is not as long as its groups and indices need.
    #[error("{groups} groups of {indices} indices need a table of {needed} bytes, this one has {table}")]
    Length {
        /// Groups.
        groups: usize,
        /// Row indices of all of them.
        indices: u64,
        /// Bytes of that.
        needed: u64,
        /// Bytes there are.
        table: u64,
    },
    /// A table without groups.
    #[error("a frame without groups")]
    Empty,
    /// More groups than a header counts.
    #[error("{0} groups in a frame, a header counts {max}", max = u16::MAX)]
    TooMany(usize),
    /// An entry has a code that means nothing here.
    #[error("group {group} has code {code}")]
    Code {
        /// Which.
        group: usize,
        /// Its code.
        code: u16,
    },
    /// A dispatched or computed group has no rows, or a refused one has some.
    #[error("group {group} has {rows} rows, that cannot be")]
    Rows {
        /// Which.
        group: usize,
        /// Its rows.
        rows: u32,
    },
    /// The rows of all groups of a return are not those of the frame.
    #[error("the groups have {groups} rows, the frame has {frame}")]
    Sum {
        /// Of the groups.
        groups: u64,
        /// Of the header.
        frame: u32,
    },
    /// A row index is outside of the frame, or not after the one before it.
    #[error("group {group} lists row {row} after {before:?}, the frame has {rows}")]
    Index {
        /// Which group.
        group: usize,
        /// The index.
        row: u32,
        /// The index before it in the group.
        before: Option<u32>,
        /// Rows of the frame.
        rows: u32,
    },
    /// A dispatch id lies before the header's, or 2^32 or more behind it, or beyond the last there is.
    #[error("group {group} is {delta:#x} dispatches behind the header's {first:#x}")]
    Dispatch {
        /// Which group.
        group: usize,
        /// How far; of a group to be written, its id itself if that lies before the header's.
        delta: u64,
        /// The header's.
        first: u64,
    },
    /// What fills the table up is not zero.
    #[error("byte {at} of the table fills it up and is {value}")]
    Padding {
        /// Where.
        at: usize,
        /// What.
        value: u8,
    },
}

/// Bytes of the table of a dispatch of so many groups and row indices.
pub const fn dispatch_table_bytes(groups: usize, indices: usize) -> usize {
    (groups * ENTRY_BYTES + indices * INDEX_BYTES).next_multiple_of(TABLE_ALIGNMENT)
}

/// Bytes of the table of a return of so many groups.
pub const fn return_table_bytes(groups: usize) -> usize {
    dispatch_table_bytes(groups, 0)
}

/// The groups of a dispatch, checked.
#[derive(Debug, Clone, Copy)]
pub struct DispatchGroups<'a> {
    table: Entries<'a>,
    indices: &'a [[u8; INDEX_BYTES]],
    rows: &'a [u8],
}

/// The groups of a return, checked.
#[derive(Debug, Clone, Copy)]
pub struct ReturnGroups<'a> {
    table: Entries<'a>,
    rows: &'a [u8],
    row_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entries<'a> {
    /// The header's dispatch id.
    first: u64,
    entries: &'a [[u8; ENTRY_BYTES]],
}

impl<'a> DispatchGroups<'a> {
    /// Reads and checks the table of a dispatch.
    pub fn read(header: &Header, payload: &'a [u8]) -> Result<Self, GroupsError> {
        let (table, behind, rows) = split(header, payload, Kind::Dispatch)?;
        // 65,535 times 2^32 is far below 2^64.
        let mut needed = 0_u64;
        for (index, group) in table.iter().enumerate() {
            let group = group?;
            if let Some(reason) = group.refused {
                return Err(GroupsError::Code { group: index, code: Reason::code(Some(reason)) });
            }
            if group.rows == 0 {
                return Err(GroupsError::Rows { group: index, rows: 0 });
            }
            needed += u64::from(group.rows);
        }
        let behind = check_length(header, behind, needed)?;
        let indices = behind.as_chunks::<INDEX_BYTES>().0;
        let groups = Self { table, indices, rows };
        for (index, (_, listed)) in groups.iter().enumerate() {
            let mut before = None;
            for row in listed {
                if row >= header.rows || before.is_some_and(|before| row <= before) {
                    return Err(GroupsError::Index { group: index, row, before, rows: header.rows });
                }
                before = Some(row);
            }
        }
        Ok(groups)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.table.entries.len()
    }

    /// Never: a table has a group.
    pub fn is_empty(&self) -> bool {
        self.table.entries.is_empty()
    }

    /// Each with the indices of its rows in the frame, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Group, RowIndices<'a>)> + use<'a> {
        let mut rest = self.indices;
        self.table.iter().map(move |group| {
            let group = group.expect("checked as it was read");
            let (listed, others) = rest.split_at(group.rows as usize);
            rest = others;
            (group, RowIndices(listed.iter()))
        })
    }

    /// The bytes of all rows of the frame.
    pub fn rows(&self) -> &'a [u8] {
        self.rows
    }
}

impl<'a> ReturnGroups<'a> {
    /// Reads and checks the table of a return.
    pub fn read(header: &Header, payload: &'a [u8]) -> Result<Self, GroupsError> {
        let (table, behind, rows) = split(header, payload, Kind::Return)?;
        check_length(header, behind, 0)?;
        let mut sum = 0;
        for (index, group) in table.iter().enumerate() {
            let group = group?;
            if group.refused.is_some() != (group.rows == 0) {
                return Err(GroupsError::Rows { group: index, rows: group.rows });
            }
            sum += u64::from(group.rows);
        }
        if sum != u64::from(header.rows) {
            return Err(GroupsError::Sum { groups: sum, frame: header.rows });
        }
        let row_bytes = rows.len().checked_div(header.rows as usize).unwrap_or(0);
        Ok(Self { table, rows, row_bytes })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.table.entries.len()
    }

    /// Never: a table has a group.
    pub fn is_empty(&self) -> bool {
        self.table.entries.is_empty()
    }

    /// Each with the numbers of its rows in the frame and the bytes of these.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Group, Range<u32>, &'a [u8])> + use<'a> {
        let (mut next, mut rest, row_bytes) = (0, self.rows, self.row_bytes);
        self.table.iter().map(move |group| {
            let group = group.expect("checked as it was read");
            let (own, others) = rest.split_at(group.rows as usize * row_bytes);
            rest = others;
            let from = next;
            next += group.rows;
            (group, from..next, own)
        })
    }
}

/// The indices of a group's rows in the frame.
#[derive(Debug, Clone)]
pub struct RowIndices<'a>(std::slice::Iter<'a, [u8; INDEX_BYTES]>);

impl Iterator for RowIndices<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for RowIndices<'_> {}
impl FusedIterator for RowIndices<'_> {}

/// The ids of the dispatches that a frame carries or returns, of a header that was checked: what the link counts.
/// Nothing else of the table is looked at; a frame without groups is one dispatch.
pub fn dispatches(header: &Header, payload: &[u8]) -> impl Iterator<Item = u64> {
    let entries = payload.as_chunks::<ENTRY_BYTES>().0.iter().take(header.groups.into());
    let alone = (header.groups == 0).then_some(header.dispatch);
    let delta = |entry: &[u8; ENTRY_BYTES]| u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
    alone.into_iter().chain(entries.map(move |entry| header.dispatch.wrapping_add(delta(entry).into())))
}

impl<'a> Entries<'a> {
    fn iter(self) -> impl ExactSizeIterator<Item = Result<Group, GroupsError>> + use<'a> {
        self.entries.iter().enumerate().map(move |(index, bytes)| {
            let u32_at = |at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let code = u16::from_le_bytes([bytes[14], bytes[15]]);
            let delta = u64::from(u32_at(8));
            let dispatch = self.first.checked_add(delta).ok_or(GroupsError::Dispatch {
                group: index,
                delta,
                first: self.first,
            })?;
            Ok(Group {
                expert: u32_at(0),
                rows: u32_at(4),
                dispatch,
                replica: bytes[12],
                shard: bytes[13],
                refused: Reason::of_code(code).ok_or(GroupsError::Code { group: index, code })?,
            })
        })
    }
}

/// The entries, what follows them in the table, and the rows.
fn split<'a>(
    header: &Header,
    payload: &'a [u8],
    kind: Kind,
) -> Result<(Entries<'a>, &'a [u8], &'a [u8]), GroupsError> {
    if header.kind != kind {
        return Err(GroupsError::Kind(header.kind));
    }
    if payload.len() as u64 != header.payload_bytes() {
        return Err(GroupsError::Payload { found: payload.len() as u64, said: header.payload_bytes() });
    }
    if header.groups == 0 {
        return Err(GroupsError::Empty);
    }
    let (table, rows) = payload.split_at(header.table_bytes as usize);
    let entries = usize::from(header.groups) * ENTRY_BYTES;
    let Some((entries, behind)) = table.split_at_checked(entries) else {
        return Err(length(header, 0));
    };
    Ok((Entries { first: header.dispatch, entries: entries.as_chunks().0 }, behind, rows))
}

/// The `indices` out of what is behind the entries; checks that nothing but zeros to the next multiple
/// of 64 follows.
fn check_length<'a>(header: &Header, behind: &'a [u8], indices: u64) -> Result<&'a [u8], GroupsError> {
    let bytes = usize::try_from(indices).ok().and_then(|indices| indices.checked_mul(INDEX_BYTES));
    let Some((listed, padding)) = bytes.and_then(|bytes| behind.split_at_checked(bytes)) else {
        return Err(length(header, indices));
    };
    if padding.len() >= TABLE_ALIGNMENT {
        return Err(length(header, indices));
    }
    if let Some(at) = padding.iter().position(|byte| *byte != 0) {
        let before = header.table_bytes as usize - padding.len();
        return Err(GroupsError::Padding { at: before + at, value: padding[at] });
    }
    Ok(listed)
}

fn length(header: &Header, indices: u64) -> GroupsError {
    let groups = usize::from(header.groups);
    let needed = ((groups * ENTRY_BYTES) as u64)
        .saturating_add(indices.saturating_mul(INDEX_BYTES as u64))
        .next_multiple_of(TABLE_ALIGNMENT as u64);
    GroupsError::Length { groups, indices, needed, table: header.table_bytes.into() }
}

/// Writes the table of a dispatch into the beginning of `into`, a payload of `rows` rows, and names groups and
/// table in `header`, whose dispatch id and rows must stand. `into` is at least as long as
/// [`dispatch_table_bytes`] says. What is written here is read there: both check the same. After an error the
/// bytes mean nothing.
pub fn write_dispatch<'r, G>(into: &mut [u8], header: &mut Header, groups: G) -> Result<(), GroupsError>
where
    G: IntoIterator<Item = (Group, &'r [u32])>,
    G::IntoIter: ExactSizeIterator + Clone,
{
    let groups = groups.into_iter();
    let indices: usize = groups.clone().map(|(_, rows)| rows.len()).sum();
    let (count, behind) = write_entries(into, header, groups.clone().map(|(group, _)| group), indices)?;
    let mut slots = behind.as_chunks_mut::<INDEX_BYTES>().0.iter_mut();
    for (index, (group, rows)) in groups.enumerate() {
        if group.refused.is_some() {
            return Err(GroupsError::Code { group: index, code: Reason::code(group.refused) });
        }
        if group.rows == 0 || group.rows as usize != rows.len() {
            return Err(GroupsError::Rows { group: index, rows: group.rows });
        }
        let mut before = None;
        for (&row, slot) in rows.iter().zip(&mut slots) {
            if row >= header.rows || before.is_some_and(|before| row <= before) {
                return Err(GroupsError::Index { group: index, row, before, rows: header.rows });
            }
            *slot = row.to_le_bytes();
            before = Some(row);
        }
    }
    header.groups = count;
    Ok(())
}

/// Writes the table of a return, as [`write_dispatch`] does for a dispatch.
pub fn write_return<G>(into: &mut [u8], header: &mut Header, groups: G) -> Result<(), GroupsError>
where
    G: IntoIterator<Item = Group>,
    G::IntoIter: ExactSizeIterator + Clone,
{
    let groups = groups.into_iter();
    let (count, _) = write_entries(into, header, groups.clone(), 0)?;
    let mut sum = 0;
    for (index, group) in groups.enumerate() {
        if group.refused.is_some() != (group.rows == 0) {
            return Err(GroupsError::Rows { group: index, rows: group.rows });
        }
        sum += u64::from(group.rows);
    }
    if sum != u64::from(header.rows) {
        return Err(GroupsError::Sum { groups: sum, frame: header.rows });
    }
    header.groups = count;
    Ok(())
}

/// Writes the entries and zeros the rest of the table, which is returned.
fn write_entries<'i>(
    into: &'i mut [u8],
    header: &mut Header,
    groups: impl ExactSizeIterator<Item = Group>,
    indices: usize,
) -> Result<(u16, &'i mut [u8]), GroupsError> {
    let count = match groups.len() {
        0 => return Err(GroupsError::Empty),
        count => u16::try_from(count).map_err(|_| GroupsError::TooMany(count))?,
    };
    let needed = dispatch_table_bytes(count.into(), indices);
    let short = GroupsError::Length {
        groups: count.into(),
        indices: indices as u64,
        needed: needed as u64,
        table: into.len() as u64,
    };
    let Ok(table_bytes) = u32::try_from(needed) else { return Err(short) };
    let Some(table) = into.get_mut(..needed) else { return Err(short) };
    let (entries, behind) = table.split_at_mut(usize::from(count) * ENTRY_BYTES);
    behind.fill(0);
    for (index, (bytes, group)) in entries.as_chunks_mut::<ENTRY_BYTES>().0.iter_mut().zip(groups).enumerate()
    {
        let delta = group.dispatch.checked_sub(header.dispatch).and_then(|delta| u32::try_from(delta).ok());
        let Some(delta) = delta else {
            let delta = group.dispatch.checked_sub(header.dispatch).unwrap_or(group.dispatch);
            return Err(GroupsError::Dispatch { group: index, delta, first: header.dispatch });
        };
        bytes[0..4].copy_from_slice(&group.expert.to_le_bytes());
        bytes[4..8].copy_from_slice(&group.rows.to_le_bytes());
        bytes[8..12].copy_from_slice(&delta.to_le_bytes());
        bytes[12..14].copy_from_slice(&[group.replica, group.shard]);
        bytes[14..16].copy_from_slice(&Reason::code(group.refused).to_le_bytes());
    }
    header.table_bytes = table_bytes;
    Ok((count, behind))
}
