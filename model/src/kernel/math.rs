//! Sums, exponentials and norms with one written order, equal bits on every path.
//!
//! Pure. A sum that runs over values lying side by side is sixteen partial sums, by index mod 16, each in ascending
//! order, then a fixed tree (8, 4, 2, 1). Vectors of 8 and of 16 lanes and a plain loop all do exactly that.
//! Nothing here calls the host's libm.

use super::bf16;
use super::dispatch::dispatched;
use super::fused::Fused;

/// How many partial sums a sum over lanes has.
pub const LANES: usize = 16;

/// Adds sixteen partial sums: lane i and i + 8, then i + 4, then i + 2, then i + 1.
#[inline(always)]
pub fn tree16(sums: &[f32; LANES]) -> f32 {
    let mut s = *sums;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            s[lane] += s[lane + width];
        }
        width /= 2;
    }
    s[0]
}

/// e to the power x, within about one unit in the last place; below -103.98 zero, above 88.73 infinite.
#[inline(always)]
fn exp_body<F: Fused>(x: f32) -> f32 {
    // The largest and smallest f32 above which and below which nothing changes any more. NaN passes.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    let shifted = F::fused(x, std::f32::consts::LOG2_E, ROUNDER);
    let whole = shifted - ROUNDER;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    // ln 2 in two parts: the first has trailing zeros, so that its multiples are exact.
    let r = F::fused(whole, -0.693_145_75, x);
    let r = F::fused(whole, -1.428_606_8e-6, r);
    // e^r = 1 + r + r^2 q(r) for |r| <= ln(2)/2; q by minimax.
    let q = F::fused(r, 1.987_569_1e-4, 1.398_199_9e-3);
    let q = F::fused(q, r, 8.333_452e-3);
    let q = F::fused(q, r, 4.166_579_6e-2);
    let q = F::fused(q, r, 1.666_666_5e-1);
    let q = F::fused(q, r, 0.5);
    let p = F::fused(q, r * r, r) + 1.0;
    // 2^exponent in two factors: the first product is exact, so the second rounds once, denormals included.
    let half = exponent >> 1;
    p * power_of_two(half) * power_of_two(exponent.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

/// x times its sigmoid.
#[inline(always)]
pub(super) fn silu<F: Fused>(x: f32) -> f32 {
    x / (1.0 + exp_body::<F>(-x))
}

/// GPT-OSS's gate: both inputs clamped, `(up + 1) * gate * sigmoid(alpha * gate)`.
#[inline(always)]
pub(super) fn clamped_swiglu<F: Fused>(gate: f32, up: f32, alpha: f32, limit: f32) -> f32 {
    let gate = if gate > limit { limit } else { gate };
    let up = if up > limit { limit } else { up };
    let up = if up < -limit { -limit } else { up };
    let sigmoid = 1.0 / (1.0 + exp_body::<F>(-(gate * alpha)));
    (up + 1.0) * (gate * sigmoid)
}

#[inline(always)]
fn exp_f32_body<F: Fused>(x: f32) -> f32 {
    exp_body::<F>(x)
}

#[inline(always)]
fn sigmoid_body<F: Fused>(x: f32) -> f32 {
    1.0 / (1.0 + exp_body::<F>(-x))
}

#[inline(always)]
fn silu_body<F: Fused>(x: f32) -> f32 {
    silu::<F>(x)
}

#[inline(always)]
fn sigmoid_row_body<F: Fused>(values: &mut [f32]) {
    for value in values {
        *value = sigmoid_body::<F>(*value);
    }
}

#[inline(always)]
fn gate_rows_body<F: Fused>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = silu::<F>(*gate) * up;
    }
}

#[inline(always)]
fn dot16_body<F: Fused>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = F::fused(a[lane], b[lane], sums[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] = F::fused(a, b, sums[lane]);
    }
    tree16(&sums)
}

#[inline(always)]
fn dot16_bf16_body<F: Fused>(a: &[f32], b: &[u16]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = F::fused(a[lane], bf16::widen(b[lane]), sums[lane]);
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] = F::fused(a, bf16::widen(b), sums[lane]);
    }
    tree16(&sums)
}

#[inline(always)]
fn sum_squares16_body<F: Fused>(x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for lane in 0..LANES {
            sums[lane] = F::fused(x[lane], x[lane], sums[lane]);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        sums[lane] = F::fused(x, x, sums[lane]);
    }
    tree16(&sums)
}

#[inline(always)]
fn max_body<F: Fused>(x: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], x[lane]);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        lanes[lane] = greater(lanes[lane], x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, greater)
}

#[inline(always)]
fn exp_sub_sum_body<F: Fused>(values: &mut [f32], max: f32, offset: usize, sums: &mut [f32; LANES]) {
    let first = offset % LANES;
    let head = if first == 0 { 0 } else { (LANES - first).min(values.len()) };
    let (head, rest) = values.split_at_mut(head);
    for (index, value) in head.iter_mut().enumerate() {
        *value = exp_body::<F>(*value - max);
        sums[first + index] += *value;
    }
    let (chunks, tail) = rest.as_chunks_mut::<LANES>();
    let mut lanes = *sums;
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp_body::<F>(chunk[lane] - max);
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in tail.iter_mut().enumerate() {
        *value = exp_body::<F>(*value - max);
        lanes[lane] += *value;
    }
    *sums = lanes;
}

#[inline(always)]
fn norm_row_body<F: Fused>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let mean = sum_squares16_body::<F>(x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = (x * scale) * weight;
    }
}

#[inline(always)]
fn axpy_body<F: Fused>(sums: &mut [f32], weight: f32, row: &[f32]) {
    assert_eq!(sums.len(), row.len());
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum = F::fused(weight, x, *sum);
    }
}

#[inline(always)]
fn axpy_bf16_body<F: Fused>(sums: &mut [f32], weight: f32, row: &[u16]) {
    assert_eq!(sums.len(), row.len());
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum = F::fused(weight, bf16::widen(x), *sum);
    }
}

#[inline(always)]
fn scale_body<F: Fused>(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[inline(always)]
fn widen_row_body<F: Fused>(source: &[u16], target: &mut [f32]) {
    assert_eq!(source.len(), target.len());
    for (to, &from) in target.iter_mut().zip(source) {
        *to = bf16::widen(from);
    }
}

#[inline(always)]
fn round_row_body<F: Fused>(source: &[f32], target: &mut [u16]) {
    assert_eq!(source.len(), target.len());
    for (to, &from) in target.iter_mut().zip(source) {
        *to = bf16::round(from);
    }
}

dispatched! {
    /// e to the power x, within about one unit in the last place.
    pub fn exp_f32(x: f32) -> f32 = exp_f32_body
}
dispatched! {
    /// 1 / (1 + e^-x).
    pub fn sigmoid_f32(x: f32) -> f32 = sigmoid_body
}
dispatched! {
    /// x / (1 + e^-x).
    pub fn silu_f32(x: f32) -> f32 = silu_body
}
dispatched! {
    /// Every value becomes its sigmoid.
    pub fn sigmoid_row(values: &mut [f32]) = sigmoid_row_body
}
dispatched! {
    /// `gate` becomes silu(gate) * up.
    pub fn gate_row(gate: &mut [f32], up: &[f32]) = gate_rows_body
}
dispatched! {
    /// The sum of products.
    pub fn dot16(a: &[f32], b: &[f32]) -> f32 = dot16_body
}
dispatched! {
    /// The sum of products with a BF16 row.
    pub fn dot16_bf16(a: &[f32], b: &[u16]) -> f32 = dot16_bf16_body
}
dispatched! {
    /// The sum of squares.
    pub fn sum_squares16(x: &[f32]) -> f32 = sum_squares16_body
}
dispatched! {
    /// The greatest value, minus infinity if there is none. NaN is passed over.
    pub fn max(x: &[f32]) -> f32 = max_body
}
dispatched! {
    /// Every value becomes e^(value - max) and is added to the partial sum of its index mod 16, the first
    /// value's index being `offset`. So blocks of one sequence can be summed one after the other; [`tree16`]
    /// adds the partial sums at the end.
    pub fn exp_sub_sum(values: &mut [f32], max: f32, offset: usize, sums: &mut [f32; LANES]) = exp_sub_sum_body
}
dispatched! {
    /// `out` = x / sqrt(mean of x^2 + eps) * weight.
    pub fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_row_body
}
dispatched! {
    /// `sums` += weight * row, one fused multiply-add each.
    pub fn axpy(sums: &mut [f32], weight: f32, row: &[f32]) = axpy_body
}
dispatched! {
    /// `sums` += weight * row, one fused multiply-add each.
    pub fn axpy_bf16(sums: &mut [f32], weight: f32, row: &[u16]) = axpy_bf16_body
}
dispatched! {
    /// Every value times `factor`.
    pub fn scale(values: &mut [f32], factor: f32) = scale_body
}
dispatched! {
    /// Widens a BF16 row.
    pub fn widen_row(source: &[u16], target: &mut [f32]) = widen_row_body
}
dispatched! {
    /// Rounds a row to BF16, to nearest even.
    pub fn round_row(source: &[f32], target: &mut [u16]) = round_row_body
}

#[cfg(test)]
mod tests {
    use super::super::{Kernels, NumericClass, Path};
    use super::*;

    fn all_kernels() -> Vec<Kernels> {
        [Path::Plain, Path::Avx2, Path::Avx512f]
            .into_iter()
            .filter_map(|path| match Kernels::new(NumericClass::Portable, path) {
                Ok(kernels) => Some(kernels),
                Err(error) => {
                    println!("SKIPPED: {error}");
                    None
                }
            })
            .collect()
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 8.0
            })
            .collect()
    }

    /// e^x is within 1.2 units in the last place of the f64 result, down to denormals.
    #[test]
    fn exp_is_accurate() {
        let kernels = Kernels::best();
        let mut worst = 0.0_f64;
        let mut bits = 0_u32;
        while bits < 0x42d2_0000 {
            for sign in [0, 0x8000_0000] {
                let x = f32::from_bits(bits | sign);
                let got = f64::from(exp_f32(kernels, x));
                let want = libm::exp(f64::from(x));
                if want > f64::from(f32::MAX) {
                    continue;
                }
                let unit = (f64::from_bits(want.to_bits() & 0x7ff0_0000_0000_0000) * f64::from(f32::EPSILON))
                    .max(1.4e-45);
                worst = worst.max((got - want).abs() / unit);
            }
            bits += 997;
        }
        println!("e^x: {worst:.3} units in the last place");
        assert!(worst < 1.2, "{worst} units in the last place");
        assert_eq!(exp_f32(kernels, f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(kernels, 88.8), f32::INFINITY);
        assert_eq!(exp_f32(kernels, f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(kernels, 0.0), 1.0);
        assert!(exp_f32(kernels, f32::NAN).is_nan());
    }

    /// Every path gives the bits of loops written out here.
    #[test]
    fn every_path_sums_in_the_written_order() {
        for kernels in all_kernels() {
            for count in [0, 1, 7, 16, 17, 40, 64, 129, 1000] {
                let (a, b) = (random(count, 1), random(count, 2));
                let mut sums = [0.0_f32; 16];
                let mut squares = [0.0_f32; 16];
                for i in 0..count {
                    sums[i % 16] = a[i].mul_add(b[i], sums[i % 16]);
                    squares[i % 16] = a[i].mul_add(a[i], squares[i % 16]);
                }
                let tree = |s: [f32; 16]| {
                    let e: Vec<f32> = (0..8).map(|i| s[i] + s[i + 8]).collect();
                    let f: Vec<f32> = (0..4).map(|i| e[i] + e[i + 4]).collect();
                    (f[0] + f[2]) + (f[1] + f[3])
                };
                assert_eq!(dot16(kernels, &a, &b).to_bits(), tree(sums).to_bits(), "{kernels:?} {count}");
                assert_eq!(
                    sum_squares16(kernels, &a).to_bits(),
                    tree(squares).to_bits(),
                    "{kernels:?} {count}"
                );
                let mut half = vec![0; count];
                round_row(kernels, &b, &mut half);
                let mut wide = vec![0.0; count];
                widen_row(kernels, &half, &mut wide);
                assert_eq!(dot16_bf16(kernels, &a, &half).to_bits(), dot16(kernels, &a, &wide).to_bits());
                let (mut one, mut two) = (a.clone(), a.clone());
                axpy(kernels, &mut one, 0.3, &wide);
                axpy_bf16(kernels, &mut two, 0.3, &half);
                for i in 0..count {
                    assert_eq!(one[i].to_bits(), 0.3_f32.mul_add(wide[i], a[i]).to_bits());
                    assert_eq!(two[i].to_bits(), one[i].to_bits());
                }
            }
        }
    }

    /// A block of a sequence gives the partial sums that the whole sequence gives, on every path.
    #[test]
    fn softmax_does_not_depend_on_blocks() {
        let x = random(333, 3);
        let plain = all_kernels()[0];
        let greatest = max(plain, &x);
        let mut whole = x.clone();
        let mut want = [0.0; 16];
        exp_sub_sum(plain, &mut whole, greatest, 0, &mut want);
        for kernels in all_kernels() {
            assert_eq!(max(kernels, &x), greatest);
            for block in [1, 5, 16, 48, 100] {
                let mut values = x.clone();
                let mut sums = [0.0; 16];
                let mut offset = 0;
                for part in values.chunks_mut(block) {
                    let count = part.len();
                    exp_sub_sum(kernels, part, greatest, offset, &mut sums);
                    offset += count;
                }
                assert_eq!(sums.map(f32::to_bits), want.map(f32::to_bits), "{kernels:?} {block}");
                assert_eq!(values, whole);
            }
        }
    }
}
