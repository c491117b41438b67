//! One fused multiply-add, rounded once, without the host's libm.
//!
//! Pure. `f32::mul_add` is an instruction where the CPU has one, and a call into libm where it has not. So code
//! that sums is written once over [`Fused`] and compiled twice: with the instruction, and with the product
//! and sum below, which give the same bits.

/// A multiply-add rounded once.
pub(crate) trait Fused: Copy {
    /// `a * b + c`, rounded once to nearest even.
    fn fused(a: f32, b: f32, c: f32) -> f32;
}

/// The CPU's own instruction. Only for code compiled with the feature enabled (or on aarch64, which always has it).
#[derive(Clone, Copy)]
pub(crate) struct Instruction;

impl Fused for Instruction {
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Plain arithmetic in f64, for CPUs without the instruction.
#[derive(Clone, Copy)]
pub(crate) struct Software;

impl Fused for Software {
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        fused_software(a, b, c)
    }
}

/// What an architecture without paths of its own uses.
#[cfg(target_arch = "aarch64")]
pub(crate) type Native = Instruction;
/// What an architecture without paths of its own uses.
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
pub(crate) type Native = Software;

/// `a * b + c` rounded once, in f64 arithmetic.
///
/// The product of two f32 is exact in f64. The sum is rounded *to odd*: if it is inexact, the last bit
/// is set. 53 bits rounded to odd, then to 24 to nearest, give what rounding once to 24 gives.
#[inline]
pub(crate) fn fused_software(a: f32, b: f32, c: f32) -> f32 {
    fused_to_odd(a, b, c) as f32
}

/// What `vdpbf16ps` does once per element, by Intel's manual: denormal inputs count as zeros, the result is rounded to
/// nearest even, and a result that is tiny after rounding becomes a zero of its sign.
#[inline]
pub(crate) fn fused_flushed(a: f32, b: f32, c: f32) -> f32 {
    let flush = |x: f32| {
        if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
    };
    let sum = fused_to_odd(flush(a), flush(b), flush(c));
    // With an unbounded exponent, what is nearer to the smallest normal number than to its lower neighbour
    // (2^-150 below, not 2^-149) is rounded up to it and is not tiny.
    let tiny_below = f64::from(f32::MIN_POSITIVE) * (1.0 - f64::from(f32::EPSILON) / 4.0);
    if sum.abs() < tiny_below { 0.0_f32.copysign(sum as f32) } else { sum as f32 }
}

/// `a * b + c` in f64, rounded to odd.
#[inline]
fn fused_to_odd(a: f32, b: f32, c: f32) -> f64 {
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    if !sum.is_finite() {
        return sum;
    }
    // Knuth's two-sum: what the rounding lost.
    let shadow = sum - product;
    let lost = (product - (sum - shadow)) + (addend - shadow);
    let bits = sum.to_bits();
    if lost == 0.0 || bits & 1 == 1 {
        return sum;
    }
    // The true sum lies between `sum` and its odd neighbour on the side of `lost`.
    let odd = if (lost > 0.0) == (sum > 0.0) { bits + 1 } else { bits - 1 };
    f64::from_bits(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The software form gives the instruction's bits, denormals, infinities and NaN included.
    #[test]
    fn software_equals_the_instruction() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        let special = [
            0.0,
            -0.0,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1.0,
            -1.0,
        ];
        for round in 0..10_000_000_u32 {
            let (x, y) = (next(), next());
            let mut a = f32::from_bits(x as u32);
            let mut b = f32::from_bits((x >> 32) as u32);
            let mut c = f32::from_bits(y as u32);
            match (y >> 32) % 8 {
                // The sum nearly cancels.
                0 => c = -(a * b) * (1.0 + ((y >> 40) % 5) as f32 * f32::EPSILON),
                // The result is denormal.
                1 => {
                    a = f32::from_bits((x as u32 & 0x807f_ffff) | 0x2000_0000);
                    b = f32::from_bits(((x >> 32) as u32 & 0x807f_ffff) | 0x2000_0000);
                    c = f32::from_bits(y as u32 & 0x80ff_ffff);
                }
                2 => c = special[(y >> 40) as usize % special.len()],
                3 => a = special[(y >> 40) as usize % special.len()],
                // Few bits set: exact halves.
                4 => {
                    a = f32::from_bits(x as u32 & 0xbff0_0000 | 0x2000_0000);
                    b = f32::from_bits((x >> 32) as u32 & 0xbff0_0000 | 0x2000_0000);
                }
                _ => {}
            }
            let (want, got) = (a.mul_add(b, c), fused_software(a, b, c));
            assert!(
                want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(),
                "round {round}: {a:e} * {b:e} + {c:e} gives {got:e}, expected {want:e}"
            );
        }
    }
}
