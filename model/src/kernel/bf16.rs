//! BF16: the upper half of an f32. One way to round to it, one way to widen it.
//!
//! Pure.

/// The NaN that every NaN becomes: a NaN's payload differs between CPUs, and rows travel between them.
pub const NAN: u16 = 0x7fc0;

/// `x` rounded to nearest, ties to even. Infinities stay, values beyond the largest become infinite, and
/// every NaN becomes [`NAN`].
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { NAN } else { rounded }
}

/// `x` as f32, exactly.
#[inline(always)]
pub fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding goes to the nearest, ties to even, for every BF16 value and its neighbourhood.
    #[test]
    fn rounding_is_to_nearest_even() {
        for x in 0..=u16::MAX {
            let wide = widen(x);
            if wide.is_nan() {
                assert_eq!(round(wide), NAN);
                continue;
            }
            assert_eq!(round(wide), x);
            if wide.is_infinite() {
                continue;
            }
            let bits = wide.to_bits();
            assert_eq!(round(f32::from_bits(bits + 0x7fff)), x, "below the half of {x:#x}");
            assert_eq!(round(f32::from_bits(bits + 0x8000)), x + (x & 1), "the half of {x:#x}");
            assert_eq!(round(f32::from_bits(bits + 0x8001)), x + 1, "above the half of {x:#x}");
        }
        assert_eq!(round(f32::MAX), 0x7f80);
    }
}
