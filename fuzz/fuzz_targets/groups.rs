//! The table of groups: 64 bytes are the header, whose checksum and length are set right; the payload follows.

#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::groups::{DispatchGroups, ReturnGroups};
use phalanx_transport::wire::{HEADER_BYTES, Header, Kind};

fuzz_target!(|bytes: &[u8]| {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let mut header = *header;
    header[32..40].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    let checksum = crc32c(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    let Ok(header) = Header::read(&header, 1 << 32) else { return };
    if header.kind == Kind::Dispatch {
        let Ok(groups) = DispatchGroups::read(&header, payload) else { return };
        let row_bytes = groups.rows().len() / header.rows as usize;
        for (group, rows) in groups.iter() {
            assert_eq!(rows.len(), group.rows as usize);
            for row in rows {
                std::hint::black_box(&groups.rows()[row as usize * row_bytes..][..row_bytes]);
            }
        }
    } else if let Ok(groups) = ReturnGroups::read(&header, payload) {
        let rows: usize = groups.iter().map(|(_, numbers, _)| numbers.len()).sum();
        assert_eq!(rows, header.rows as usize);
    }
});
