//! The header of a frame: as it comes, and with its checksum set right, so that what lies behind is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_transport::wire::crc::crc32c;
use phalanx_transport::wire::{HEADER_BYTES, Header};

fuzz_target!(|bytes: &[u8]| {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    check(header);
    let mut sealed = *header;
    let checksum = crc32c(&sealed[..60]);
    sealed[60..].copy_from_slice(&checksum.to_le_bytes());
    check(&sealed);
});

fn check(bytes: &[u8; HEADER_BYTES]) {
    let Ok(header) = Header::read(bytes, 1 << 32) else { return };
    assert_eq!(&header.write(), bytes, "what is understood is what is written");
    assert!(header.payload_bytes() <= 1 << 32);
}
