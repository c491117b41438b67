//! The plain loops: what every path must equal, bit for bit, and the path of CPUs without one of their own.
//!
//! One accumulator per output, k ascending, one fused multiply-add per k. On aarch64 the compiler makes NEON of them.

use super::bf16;
use super::block::Block;
use super::dispatch::dispatched;
use super::fused::{Fused, fused_flushed};
use super::matrix::PANEL;

#[inline(always)]
fn bf16_body<F: Fused>(t: Block) {
    for panel in 0..t.panels {
        let (b, c) = (t.b.wrapping_add(panel * t.b_stride), t.c.wrapping_add(panel * PANEL));
        // SAFETY: whoever calls `block` keeps a kernel's promises.
        unsafe { tile_bf16::<F>(t.rows, t.terms, t.a, t.a_stride, b, c, t.c_stride, t.accumulate) };
    }
}

#[inline(always)]
fn f32_body<F: Fused>(t: Block) {
    // SAFETY: whoever calls `block_f32` keeps a kernel's promises.
    unsafe { tile_f32::<F>(t.rows, t.terms, t.a, t.a_stride, t.wide, t.c, t.c_stride, t.accumulate) };
}

dispatched! {
    /// A block of BF16 panels; `terms` may be any number. To be called only with a kernel's promises kept.
    pub(super) fn block(t: Block) = bf16_body
}
dispatched! {
    /// A block of one f32 panel, given as `wide`; the rest as for [`block`].
    pub(super) fn block_f32(t: Block) = f32_body
}

/// A block of pairs: `a` holds pairs of BF16. To be called only with a kernel's promises kept.
pub(super) fn block_pairs(t: Block) {
    for panel in 0..t.panels {
        let (b, c) = (t.b.wrapping_add(panel * t.b_stride), t.c.wrapping_add(panel * PANEL));
        // SAFETY: as the caller promises.
        unsafe { tile_pairs(t.rows, t.terms.div_ceil(2), t.a.cast(), t.a_stride, b, c, t.c_stride, t.accumulate) };
    }
}

/// `rows` rows times a BF16 panel: see [`super::tile`].
///
/// # Safety
/// As for [`super::tile`].
#[inline(always)]
pub(super) unsafe fn tile_bf16<F: Fused>(
    rows: usize,
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const u8,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    for row in 0..rows {
        // SAFETY: the caller promises `rows` rows of sixteen sums.
        let target = unsafe { &mut *c.add(row * c_stride).cast::<[f32; PANEL]>() };
        let mut sums = if accumulate { *target } else { [0.0; PANEL] };
        for index in 0..k {
            // SAFETY: the caller promises k values in each row, and k/2 lines (rounded up) in the panel.
            let (x, line) = unsafe { (*a.add(row * a_stride + index), &*b.cast::<[u32; PANEL]>().add(index / 2)) };
            let shift = if index % 2 == 0 { 16 } else { 0 };
            for lane in 0..PANEL {
                let weight = f32::from_bits((line[lane] << shift) & 0xffff_0000);
                sums[lane] = F::fused(x, weight, sums[lane]);
            }
        }
        *target = sums;
    }
}

/// `rows` rows times an f32 panel: see [`super::tile_f32`].
///
/// # Safety
/// As for [`super::tile_f32`].
#[inline(always)]
pub(super) unsafe fn tile_f32<F: Fused>(
    rows: usize,
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    for row in 0..rows {
        // SAFETY: the caller promises `rows` rows of sixteen sums.
        let target = unsafe { &mut *c.add(row * c_stride).cast::<[f32; PANEL]>() };
        let mut sums = if accumulate { *target } else { [0.0; PANEL] };
        for index in 0..k {
            // SAFETY: the caller promises k values in each row, and k lines in the panel.
            let (x, line) = unsafe { (*a.add(row * a_stride + index), &*b.cast::<[f32; PANEL]>().add(index)) };
            for lane in 0..PANEL {
                sums[lane] = F::fused(x, line[lane], sums[lane]);
            }
        }
        *target = sums;
    }
}

/// Rows of BF16 pairs times a BF16 panel, as `vdpbf16ps` does it by Intel's manual: per pair the odd element first, then
/// the even, each a multiply-add rounded once, denormals flushed in and out.
///
/// # Safety
/// `a` has `rows` rows of `pairs` pairs, `a_stride` pairs apart; `b` has `pairs` lines; `c` as in [`tile_bf16`].
pub(super) unsafe fn tile_pairs(
    rows: usize,
    pairs: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u8,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    for row in 0..rows {
        // SAFETY: the caller promises `rows` rows of sixteen sums.
        let target = unsafe { &mut *c.add(row * c_stride).cast::<[f32; PANEL]>() };
        let mut sums = if accumulate { *target } else { [0.0; PANEL] };
        for index in 0..pairs {
            // SAFETY: the caller promises `pairs` pairs in each row, and as many lines.
            let (x, line) = unsafe { (*a.add(row * a_stride + index), &*b.cast::<[u32; PANEL]>().add(index)) };
            for lane in 0..PANEL {
                let odd = fused_flushed(bf16::widen((x >> 16) as u16), bf16::widen((line[lane] >> 16) as u16), sums[lane]);
                sums[lane] = fused_flushed(bf16::widen(x as u16), bf16::widen(line[lane] as u16), odd);
            }
        }
        *target = sums;
    }
}
