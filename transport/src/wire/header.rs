//! The header of a data frame: 64 bytes, little-endian, read in place.
//!
//! Pure. Every data frame is this header and then its payload, rows as raw BF16 or f32; no codec touches
//! activations. The header is one cache line, so that the payload behind it is aligned as the kernels
//! want it. Whatever a peer sends, [`Header::read`] either understands it whole or says why not. What a frame
//! of each kind must say is in `docs/protocol.md`.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `PHLX` |
//! | 4 | version |
//! | 5 | kind: 1 dispatch, 2 return, 3 control, 4 weights |
//! | 6 | element of the rows: 1 BF16, 2 f32, 3 plain bytes |
//! | 7 | 0 |
//! | 8..16 | dispatch id (of the first group), or what the message is about |
//! | 16..20 | layer |
//! | 20..24 | rows |
//! | 24..28 | values of a row |
//! | 28..32 | bytes of the table of groups before the rows, a multiple of 64 |
//! | 32..40 | payload bytes: table and rows |
//! | 40..44 | remaining time of the deadline, microseconds |
//! | 44..48 | CRC-32C of the payload, 0 where the carrier protects it |
//! | 48..50 | groups in the table |
//! | 50..60 | 0 |
//! | 60..64 | CRC-32C of bytes 0..60 |

use super::crc::crc32c;
use super::groups::ENTRY_BYTES;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// The version that this program speaks.
pub const VERSION: u8 = 1;
/// Stands where a header would, and says that nothing follows: a host ends the stream of a process that was killed just
/// as one that was closed in order. It is no header of any version.
pub const FINISH: [u8; HEADER_BYTES] = {
    let mut bytes = [0; HEADER_BYTES];
    let word = *b"PHLX-FINISH";
    let mut at = 0;
    while at < word.len() {
        bytes[at] = word[at];
        at += 1;
    }
    bytes
};
const MAGIC: [u8; 4] = *b"PHLX";
const CHECKED: usize = 60;

/// What a data frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows for an expert.
    Dispatch,
    /// Rows from an expert, or its refusal.
    Return,
    /// A control message.
    Control,
    /// A piece of a tensor.
    Weights,
}

/// What rows are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Two bytes.
    Bf16,
    /// Four bytes.
    F32,
    /// Bytes that are not numbers to this crate.
    Bytes,
}

impl Element {
    /// Bytes of one value.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Bytes => 1,
        }
    }
}

/// Why a header is refused. The link that brought it must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The bytes do not begin a frame.
    #[error("not a frame: begins with {0:02x?}, expected \"PHLX\"")]
    Magic([u8; 4]),
    /// Another version.
    #[error("frame version {0}, this program speaks {VERSION}")]
    Version(u8),
    /// The header was damaged.
    #[error("header checksum is {found:#010x}, the bytes have {computed:#010x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A field has a value that means nothing.
    #[error("header field {field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A control message is one row of plain bytes and nothing more.
    #[error("a control message with a table, rows, a layer or a deadline")]
    Control,
    /// The payload's length and the rows disagree.
    #[error("{rows} rows of {columns} values and their table are {needed} bytes, the header says {payload}")]
    Length {
        /// Rows.
        rows: u32,
        /// Values of a row.
        columns: u32,
        /// Bytes of that.
        needed: u64,
        /// Bytes said.
        payload: u64,
    },
    /// The payload is longer than this link takes.
    #[error("payload of {payload} bytes, this link takes {max}")]
    TooLong {
        /// Bytes said.
        payload: u64,
        /// Bytes taken.
        max: u64,
    },
}

/// The header of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// What its rows are made of.
    pub element: Element,
    /// Never reused within a sender's life.
    pub dispatch: u64,
    /// Layer of the experts.
    pub layer: u32,
    /// How many rows.
    pub rows: u32,
    /// Values of a row.
    pub columns: u32,
    /// Bytes of the table of groups before the rows.
    pub table_bytes: u32,
    /// Groups in the table.
    pub groups: u16,
    /// Time left, not a time of day: clocks of two hosts never meet.
    pub remaining_us: u32,
    /// CRC-32C of the payload, or 0.
    pub payload_crc: u32,
}

impl Header {
    /// A frame of plain bytes, as control messages and weights are.
    pub const fn of_bytes(kind: Kind, about: u64, bytes: u32) -> Self {
        Self {
            kind,
            element: Element::Bytes,
            dispatch: about,
            layer: 0,
            rows: 1,
            columns: bytes,
            table_bytes: 0,
            groups: 0,
            remaining_us: 0,
            payload_crc: 0,
        }
    }

    /// Checks what the fields say to one another; [`read`](Self::read) does it with every header that came.
    pub fn check(&self) -> Result<(), HeaderError> {
        let field = |field, value: u64| Err(HeaderError::Field { field, value });
        let (table, groups) = (u64::from(self.table_bytes), u64::from(self.groups));
        if table % 64 != 0 || (table == 0) != (groups == 0) || table < groups * ENTRY_BYTES as u64 {
            return field("table bytes", table);
        }
        // Rows without values would take no bytes, however many there are said to be, and whoever goes
        // through them would go through four billion. One is the empty message.
        if self.columns == 0 && self.rows > 1 {
            return field("rows of no values", self.rows.into());
        }
        if self.kind == Kind::Control {
            let plain = Self::of_bytes(self.kind, self.dispatch, self.columns);
            if (Self { payload_crc: 0, ..*self }) != plain {
                return Err(HeaderError::Control);
            }
        }
        Ok(())
    }

    /// Bytes of the payload.
    pub fn payload_bytes(&self) -> u64 {
        // Two 32-bit factors and 4 stay below 2^66; saturated, no limit lets it pass.
        (u64::from(self.rows) * u64::from(self.columns))
            .saturating_mul(self.element.bytes())
            .saturating_add(self.table_bytes.into())
    }

    /// Writes it.
    pub fn write(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Dispatch => 1,
            Kind::Return => 2,
            Kind::Control => 3,
            Kind::Weights => 4,
        };
        bytes[6] = match self.element {
            Element::Bf16 => 1,
            Element::F32 => 2,
            Element::Bytes => 3,
        };
        bytes[8..16].copy_from_slice(&self.dispatch.to_le_bytes());
        for (at, value) in [
            (16, self.layer),
            (20, self.rows),
            (24, self.columns),
            (28, self.table_bytes),
            (40, self.remaining_us),
            (44, self.payload_crc),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[32..40].copy_from_slice(&self.payload_bytes().to_le_bytes());
        bytes[48..50].copy_from_slice(&self.groups.to_le_bytes());
        let checksum = crc32c(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads and checks one; `payload_max` is what the link takes.
    pub fn read(bytes: &[u8; HEADER_BYTES], payload_max: u64) -> Result<Self, HeaderError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        if bytes[4] != VERSION {
            return Err(HeaderError::Version(bytes[4]));
        }
        let (found, computed) = (u32_at(CHECKED), crc32c(&bytes[..CHECKED]));
        if found != computed {
            return Err(HeaderError::Checksum { found, computed });
        }
        let field = |field, value: u64| HeaderError::Field { field, value };
        let header = Self {
            kind: match bytes[5] {
                1 => Kind::Dispatch,
                2 => Kind::Return,
                3 => Kind::Control,
                4 => Kind::Weights,
                other => return Err(field("kind", other.into())),
            },
            element: match bytes[6] {
                1 => Element::Bf16,
                2 => Element::F32,
                3 => Element::Bytes,
                other => return Err(field("element", other.into())),
            },
            dispatch: u64_at(8),
            layer: u32_at(16),
            rows: u32_at(20),
            columns: u32_at(24),
            table_bytes: u32_at(28),
            groups: u16::from_le_bytes([bytes[48], bytes[49]]),
            remaining_us: u32_at(40),
            payload_crc: u32_at(44),
        };
        if let Some(at) = std::iter::once(7).chain(50..CHECKED).find(|at| bytes[*at] != 0) {
            return Err(field("reserved", bytes[at].into()));
        }
        header.check()?;
        let (needed, payload) = (header.payload_bytes(), u64_at(32));
        if needed != payload {
            let Header { rows, columns, .. } = header;
            return Err(HeaderError::Length { rows, columns, needed, payload });
        }
        if payload > payload_max {
            return Err(HeaderError::TooLong { payload, max: payload_max });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Dispatch,
            element: Element::Bf16,
            dispatch: 0x0123_4567_89ab_cdef,
            layer: 60,
            rows: 7,
            columns: 7168,
            table_bytes: 64,
            groups: 3,
            remaining_us: 250_000,
            payload_crc: 0,
        }
    }

    #[test]
    fn a_header_survives_the_wire() {
        for kind in [Kind::Dispatch, Kind::Return, Kind::Weights] {
            for element in [Element::Bf16, Element::F32, Element::Bytes] {
                let header = Header { kind, element, ..header() };
                assert_eq!(Header::read(&header.write(), 1 << 20), Ok(header));
            }
        }
        let control = Header { payload_crc: 77, ..Header::of_bytes(Kind::Control, 9, 100) };
        assert_eq!(Header::read(&control.write(), 100), Ok(control));
    }

    /// No single damaged bit is taken for a header.
    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = header().write();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::read(&bad, u64::MAX).is_err(), "bit {bit}");
        }
    }

    /// A header with a right checksum and lies inside is still refused.
    #[test]
    fn lies_about_length_are_refused() {
        let resealed = |at: usize, value: u8| {
            let mut bytes = header().write();
            bytes[at] = value;
            let checksum = crc32c(&bytes[..CHECKED]);
            bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
            Header::read(&bytes, 1 << 20)
        };
        assert!(matches!(resealed(20, 8), Err(HeaderError::Length { rows: 8, .. })));
        assert!(matches!(resealed(5, 9), Err(HeaderError::Field { field: "kind", value: 9 })));
        assert!(matches!(resealed(51, 1), Err(HeaderError::Field { field: "reserved", value: 1 })));
        let refused = |header: Header| Header::read(&header.write(), u64::MAX);
        for (groups, table_bytes) in [(3, 32), (3, 0), (0, 64), (5, 64), (u16::MAX, 1 << 19)] {
            let header = Header { groups, table_bytes, ..header() };
            assert!(matches!(refused(header), Err(HeaderError::Field { field: "table bytes", .. })));
        }
        let of_nothing = Header { rows: 2, columns: 0, ..header() };
        assert!(matches!(refused(of_nothing), Err(HeaderError::Field { value: 2, .. })));
        let control = Header::of_bytes(Kind::Control, 0, 9);
        for control in [
            Header { rows: 2, ..control },
            Header { element: Element::Bf16, ..control },
            Header { layer: 1, ..control },
            Header { groups: 1, table_bytes: 64, ..control },
            Header { remaining_us: 1, ..control },
        ] {
            assert_eq!(refused(control), Err(HeaderError::Control));
        }
        let header = Header { rows: u32::MAX, columns: u32::MAX, element: Element::F32, ..header() };
        assert!(matches!(Header::read(&header.write(), 1 << 20), Err(HeaderError::TooLong { .. })));
    }
}
