//! Control messages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_transport::wire::Control;
use phalanx_transport::wire::codec;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = codec::decode::<Control>(bytes) else { return };
    let _ = message.check();
    assert_eq!(codec::encode(&message).as_deref(), Ok(bytes), "no two encodings mean the same");
});
