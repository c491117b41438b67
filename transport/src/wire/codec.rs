//! The one place where a codec reads what a peer sent.
//!
//! Pure. bincode 2: little-endian, integers of fixed length, a variant as its number in 4 bytes, a length
//! in 8. What is allocated is bounded by what came, and bytes left over refuse the message. A peer that sends
//! what cannot be read is closed.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::EncoderImpl;
use bincode::enc::write::SizeWriter;
use bincode::{Decode, Encode};

/// Longest encoded message.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Why bytes are no message. The link that brought them is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They cannot be read.
    #[error("not a message: {0}")]
    Unreadable(String),
    /// Something follows the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Longer than any message is.
    #[error("a message of {0} bytes, the longest is {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
}

/// Bounds what a decoder may allocate, in bytes, containers counted by their size in memory.
type Bounded<const MAX: usize> = Configuration<LittleEndian, Fixint, Limit<MAX>>;

const fn bounded<const MAX: usize>() -> Bounded<MAX> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX>()
}

/// The bytes of a message.
pub fn encode<T: Encode>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; encoded_bytes(message)?];
    let written = encode_into(message, &mut bytes)?;
    debug_assert_eq!(written, bytes.len(), "as many as were counted");
    Ok(bytes)
}

/// How many bytes a message has. Allocates nothing.
pub fn encoded_bytes<T: Encode>(message: &T) -> Result<usize, CodecError> {
    let mut counter = EncoderImpl::new(SizeWriter::default(), bounded::<MESSAGE_BYTES_MAX>());
    message.encode(&mut counter).map_err(|why| CodecError::Unreadable(why.to_string()))?;
    let bytes = counter.into_writer().bytes_written;
    if bytes > MESSAGE_BYTES_MAX { Err(CodecError::TooLong(bytes)) } else { Ok(bytes) }
}

/// Writes a message to the beginning of `into`, which is long enough; returns its bytes. Allocates nothing.
pub fn encode_into<T: Encode>(message: &T, into: &mut [u8]) -> Result<usize, CodecError> {
    bincode::encode_into_slice(message, into, bounded::<MESSAGE_BYTES_MAX>())
        .map_err(|why| CodecError::Unreadable(why.to_string()))
}

/// The message that `bytes` are, and nothing more.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    // The limit of bincode is a constant, and it allocates what a length says before it looks whether so
    // much is there. So 30 bytes that claim a megabyte must meet another limit than a megabyte does: about
    // four times what came, as a list of empty strings takes three times its bytes.
    match bytes.len() {
        0..=0x100 => decode_bounded::<T, 0x400>(bytes),
        0x101..=0x400 => decode_bounded::<T, 0x1000>(bytes),
        0x401..=0x1000 => decode_bounded::<T, 0x4000>(bytes),
        0x1001..=0x4000 => decode_bounded::<T, 0x1_0000>(bytes),
        0x4001..=0x1_0000 => decode_bounded::<T, 0x4_0000>(bytes),
        0x1_0001..=0x4_0000 => decode_bounded::<T, 0x10_0000>(bytes),
        0x4_0001..=MESSAGE_BYTES_MAX => decode_bounded::<T, { 4 * MESSAGE_BYTES_MAX }>(bytes),
        _ => Err(CodecError::TooLong(bytes.len())),
    }
}

fn decode_bounded<T: Decode<()>, const MAX: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, read) = bincode::decode_from_slice(bytes, bounded::<MAX>())
        .map_err(|why| CodecError::Unreadable(why.to_string()))?;
    if read != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - read));
    }
    Ok(message)
}
