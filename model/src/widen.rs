//! From stored element types to f32. Rounding to BF16 is `kernel`'s.
//!
//! Every function here is exact. Pure.

/// Exact: IEEE half precision, subnormals included.
#[inline]
pub(crate) fn f32_from_f16(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let exponent = u32::from(x >> 10 & 0x1f);
    let mantissa = u32::from(x & 0x3ff);
    match exponent {
        // Zero and subnormals: the mantissa in units of 2^-24, exact in f32.
        0 => f32::from_bits(sign | (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        e => f32::from_bits(sign | (e + 112) << 23 | mantissa << 13),
    }
}

/// Exact: E4M3 without infinities ("fn"), as the hardware and the releases have it.
pub(crate) fn f32_from_e4m3(x: u8) -> f32 {
    let sign = if x & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(x >> 3 & 0xf);
    let mantissa = f32::from(x & 7);
    match (exponent, x & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * power_of_two(-9),
        (e, _) => sign * (8.0 + mantissa) * power_of_two(e - 10),
    }
}

/// The sixteen values of E2M1, by nibble.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `2^e`, subnormal and infinite where f32 has it so.
pub(crate) fn power_of_two(e: i32) -> f32 {
    match e {
        128.. => f32::INFINITY,
        -126..=127 => f32::from_bits(((e + 127) as u32) << 23),
        -149..=-127 => f32::from_bits(1 << (e + 149)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half-precision value, against a conversion through its definition in f64.
    #[test]
    fn all_halves_widen_exactly() {
        for x in 0..=u16::MAX {
            let (s, e, m) = (x >> 15, i32::from(x >> 10 & 31), f64::from(x & 1023));
            let magnitude = match e {
                0 => m * 2f64.powi(-24),
                31 if m == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                e => (1024.0 + m) * 2f64.powi(e - 25),
            };
            let expected = if s == 1 { -magnitude } else { magnitude };
            let found = f32_from_f16(x);
            assert!(found.is_nan() == expected.is_nan());
            if !found.is_nan() {
                assert_eq!(f64::from(found).to_bits(), expected.to_bits(), "{x:#06x}");
            }
        }
    }

    #[test]
    fn e4m3_has_its_landmarks() {
        assert_eq!(f32_from_e4m3(0x7e), 448.0);
        assert_eq!(f32_from_e4m3(0x38), 1.0);
        assert_eq!(f32_from_e4m3(0x01), 2f32.powi(-9));
        assert_eq!(f32_from_e4m3(0x08), 2f32.powi(-6));
        assert_eq!(f32_from_e4m3(0xb8), -1.0);
        assert!(f32_from_e4m3(0x7f).is_nan() && f32_from_e4m3(0xff).is_nan());
    }
}
