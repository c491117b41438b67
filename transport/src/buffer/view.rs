//! Bytes seen as the values of rows, in place.
//!
//! Pure. Rows are little-endian on the wire and read as they lie, so a host of the other order cannot
//! run this. Buffers and tables of groups are multiples of 64 bytes, so rows in a frame are always aligned;
//! bytes from elsewhere may not be, and then there is no view.

#[cfg(target_endian = "big")]
compile_error!("rows are read in place as little-endian values; this processor has the other order");

/// BF16 values as their 16 bits; `None` if the bytes are not aligned to 2 or not a multiple of 2 long.
pub fn as_u16(bytes: &[u8]) -> Option<&[u16]> {
    // SAFETY: every bit pattern is a `u16`, and what is not aligned or left over is refused.
    let (before, values, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// The same, to be written.
pub fn as_u16_mut(bytes: &mut [u8]) -> Option<&mut [u16]> {
    // SAFETY: as in `as_u16`, and every `u16` is two bytes.
    let (before, values, after) = unsafe { bytes.align_to_mut() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// f32 values; `None` if the bytes are not aligned to 4 or not a multiple of 4 long.
pub fn as_f32(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every bit pattern is an `f32`, and what is not aligned or left over is refused.
    let (before, values, after) = unsafe { bytes.align_to() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// The same, to be written.
pub fn as_f32_mut(bytes: &mut [u8]) -> Option<&mut [f32]> {
    // SAFETY: as in `as_f32`, and every `f32` is four bytes.
    let (before, values, after) = unsafe { bytes.align_to_mut() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Aligned([u8; 64]);

    #[test]
    fn only_aligned_and_whole_values_are_seen() {
        let mut memory = Aligned([0; 64]);
        as_u16_mut(&mut memory.0).unwrap()[1] = 0x3f80;
        assert_eq!(memory.0[2..4], [0x80, 0x3f]);
        assert_eq!(as_f32(&memory.0).unwrap()[0], 1.0, "a BF16 is the upper half of an f32");
        as_f32_mut(&mut memory.0[4..8]).unwrap()[0] = 2.0;
        assert_eq!(as_u16(&memory.0[4..8]), Some(&[0, 0x4000][..]));
        assert_eq!(as_u16(&memory.0[1..3]), None);
        assert_eq!(as_u16(&memory.0[..3]), None);
        assert_eq!(as_f32(&memory.0[2..6]), None);
        assert_eq!(as_f32(&memory.0[..6]), None);
        assert_eq!(as_f32_mut(&mut memory.0[2..6]), None);
        assert_eq!(as_u16_mut(&mut memory.0[1..3]), None);
        assert_eq!(as_u16(&[]), Some(&[][..]));
    }
}
