//! Turns checkpoint rows into panels at nearly the speed of memory.
//!
//! Sixteen rows become lines of sixteen pairs: a transposition of 32-bit values, in blocks of 8 x 8 where AVX2 is
//! there. A block takes a whole cache line of each of eight rows at a time: rows whose length is a power of two all fall
//! into one set of the first cache, which has eight ways.

use super::matrix::PANEL;

/// Pairs in a cache line of a row.
const PAIRS: usize = 16;

/// Packs sixteen rows of `k` BF16 values, which begin at `rows`, into a whole panel.
///
/// # Safety
/// Every row has `k` values; `panel` has `k / 2` (rounded up) lines of 64 bytes, which nobody else touches.
pub(super) unsafe fn pack_panel(rows: &[*const u16; PANEL], k: usize, panel: *mut u8) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        done = k - k % (2 * PAIRS);
        // SAFETY: the feature was found above; the rest is the caller's promise.
        unsafe { avx2::transpose(rows, done / 2, panel) };
    }
    for index in done..k {
        for (lane, row) in rows.iter().enumerate() {
            // SAFETY: promised by the caller.
            unsafe {
                *panel.cast::<u16>().add(index / 2 * 2 * PANEL + lane * 2 + index % 2) = *row.add(index)
            };
        }
    }
}

/// Packs `pairs` pairs of k of sixteen columns of a tensor stored `[k][columns]`: columns that lie together, or every
/// second one. `values` begins at the first column, k by k `stride` values apart, and `panel` at the first line.
///
/// # Safety
/// All these values are there; `panel` has `pairs` lines of 64 bytes, which nobody else touches.
pub(super) unsafe fn pack_lines(
    values: *const u16,
    stride: usize,
    pairs: usize,
    every_second: bool,
    panel: *mut u8,
) {
    for pair in 0..pairs {
        let (even, odd) =
            (values.wrapping_add(2 * pair * stride), values.wrapping_add((2 * pair + 1) * stride));
        let mut line = [0_u32; PANEL];
        if every_second {
            for (lane, value) in line.iter_mut().enumerate() {
                // SAFETY: promised by the caller.
                let (even, odd) = unsafe { (*even.add(2 * lane), *odd.add(2 * lane)) };
                *value = u32::from(even) | u32::from(odd) << 16;
            }
        } else {
            // SAFETY: promised by the caller; the values may lie at any even address.
            let (even, odd) =
                unsafe { (even.cast::<[u16; PANEL]>().read(), odd.cast::<[u16; PANEL]>().read()) };
            for lane in 0..PANEL {
                line[lane] = u32::from(even[lane]) | u32::from(odd[lane]) << 16;
            }
        }
        // SAFETY: promised by the caller; lines of a panel are aligned.
        unsafe { panel.cast::<[u32; PANEL]>().add(pair).write(line) };
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_storeu_si256, _mm256_unpackhi_epi32,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    };

    use super::{PAIRS, PANEL};

    /// Transposes `pairs` pairs of each row, a multiple of [`PAIRS`].
    ///
    /// # Safety
    /// As for [`super::pack_panel`]; the CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose(rows: &[*const u16; PANEL], pairs: usize, panel: *mut u8) {
        for first in (0..pairs).step_by(PAIRS) {
            for half in 0..2 {
                for part in 0..2 {
                    let at = first + part * 8;
                    // SAFETY: pairs `at` to `at + 8` are inside every row.
                    let block = std::array::from_fn(|row| unsafe {
                        _mm256_loadu_si256(rows[half * 8 + row].cast::<u32>().add(at).cast())
                    });
                    for (index, line) in turn(block).into_iter().enumerate() {
                        // SAFETY: the line is inside the panel, and so is its half.
                        unsafe { _mm256_storeu_si256(panel.add((at + index) * 64 + half * 32).cast(), line) };
                    }
                }
            }
        }
    }

    /// Transposes 8 x 8 values of 32 bits.
    #[target_feature(enable = "avx2")]
    fn turn(r: [__m256i; 8]) -> [__m256i; 8] {
        let a = [
            _mm256_unpacklo_epi32(r[0], r[1]),
            _mm256_unpackhi_epi32(r[0], r[1]),
            _mm256_unpacklo_epi32(r[2], r[3]),
            _mm256_unpackhi_epi32(r[2], r[3]),
            _mm256_unpacklo_epi32(r[4], r[5]),
            _mm256_unpackhi_epi32(r[4], r[5]),
            _mm256_unpacklo_epi32(r[6], r[7]),
            _mm256_unpackhi_epi32(r[6], r[7]),
        ];
        let b = [
            _mm256_unpacklo_epi64(a[0], a[2]),
            _mm256_unpackhi_epi64(a[0], a[2]),
            _mm256_unpacklo_epi64(a[1], a[3]),
            _mm256_unpackhi_epi64(a[1], a[3]),
            _mm256_unpacklo_epi64(a[4], a[6]),
            _mm256_unpackhi_epi64(a[4], a[6]),
            _mm256_unpacklo_epi64(a[5], a[7]),
            _mm256_unpackhi_epi64(a[5], a[7]),
        ];
        [
            _mm256_permute2x128_si256::<0x20>(b[0], b[4]),
            _mm256_permute2x128_si256::<0x20>(b[1], b[5]),
            _mm256_permute2x128_si256::<0x20>(b[2], b[6]),
            _mm256_permute2x128_si256::<0x20>(b[3], b[7]),
            _mm256_permute2x128_si256::<0x31>(b[0], b[4]),
            _mm256_permute2x128_si256::<0x31>(b[1], b[5]),
            _mm256_permute2x128_si256::<0x31>(b[2], b[6]),
            _mm256_permute2x128_si256::<0x31>(b[3], b[7]),
        ]
    }
}
