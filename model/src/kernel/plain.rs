//! The plain loops: what every path must equal, bit for bit, and the path of CPUs without one of their own.
//!
//! One accumulator per output, k ascending, one fused multiply-add per k. On aarch64 the compiler makes NEON of them. All
//! take a block with the promises of a [`Kernel`](super::block::Kernel) kept, of any number of terms.

use super::bf16;
use super::block::Block;
use super::dispatch::dispatched;
use super::fused::{Fused, fused_flushed};
use super::matrix::PANEL;

/// Calls `sum` for every row of every panel, with the row, the panel and its sums so far.
#[inline(always)]
fn each(t: &Block, mut sum: impl FnMut(*const f32, *const u8, &mut [f32; PANEL])) {
    for panel in 0..t.panels {
        for row in 0..t.rows {
            let target = t.c.wrapping_add(row * t.c_stride + panel * t.c_apart).cast::<[f32; PANEL]>();
            let mut sums = [0.0; PANEL];
            if t.accumulate {
                // SAFETY: the block has these sums, and nobody else touches them.
                sums = unsafe { target.read() };
            }
            sum(t.a.wrapping_add(row * t.a_stride), t.b.wrapping_add(panel * t.b_stride), &mut sums);
            // SAFETY: as above.
            unsafe { target.write(sums) };
        }
    }
}

#[inline(always)]
fn bf16_body<F: Fused>(t: Block) {
    each(&t, |a, b, sums| {
        for k in 0..t.terms {
            // SAFETY: the block has `terms` values in each row, and half as many lines, rounded up, in each panel.
            let (x, line) = unsafe { (*a.add(k), &*b.cast::<[u32; PANEL]>().add(k / 2)) };
            let shift = if k % 2 == 0 { 16 } else { 0 };
            for lane in 0..PANEL {
                let weight = f32::from_bits((line[lane] << shift) & 0xffff_0000);
                sums[lane] = F::fused(x, weight, sums[lane]);
            }
        }
    });
}

#[inline(always)]
fn f32_body<F: Fused>(t: Block) {
    each(&t, |a, b, sums| {
        for k in 0..t.terms {
            // SAFETY: the block has `terms` values in each row, and as many lines in its panel.
            let (x, line) = unsafe { (*a.add(k), &*b.cast::<[f32; PANEL]>().add(k)) };
            for lane in 0..PANEL {
                sums[lane] = F::fused(x, line[lane], sums[lane]);
            }
        }
    });
}

dispatched! {
    /// A block of BF16 panels.
    pub(super) fn block(t: Block) = bf16_body
}
dispatched! {
    /// A block of f32 panels.
    pub(super) fn block_f32(t: Block) = f32_body
}

/// A block of BF16 panels and rows of BF16 pairs, as `vdpbf16ps` does it by Intel's manual: per pair the odd element first,
/// then the even, each a multiply-add rounded once, denormals flushed in and out.
pub(super) fn block_pairs(t: Block) {
    each(&t, |a, b, sums| {
        for pair in 0..t.terms.div_ceil(2) {
            // SAFETY: the block has so many pairs in each row, and as many lines in each panel.
            let (x, line) = unsafe { (*a.cast::<u32>().add(pair), &*b.cast::<[u32; PANEL]>().add(pair)) };
            add_pair(bf16::widen(x as u16), bf16::widen((x >> 16) as u16), line, sums);
        }
    });
}

/// The same with rows of f32. A row of an odd number of terms has a zero behind it.
pub(super) fn block_split(t: Block) {
    each(&t, |a, b, sums| {
        for pair in 0..t.terms.div_ceil(2) {
            // SAFETY: the block has so many pairs in each row, and as many lines in each panel.
            let (x, line) =
                unsafe { (a.cast::<[f32; 2]>().add(pair).read(), &*b.cast::<[u32; PANEL]>().add(pair)) };
            add_pair(x[0], x[1], line, sums);
        }
    });
}

#[inline(always)]
fn add_pair(even: f32, odd: f32, line: &[u32; PANEL], sums: &mut [f32; PANEL]) {
    for lane in 0..PANEL {
        let (low, high) = (bf16::widen(line[lane] as u16), bf16::widen((line[lane] >> 16) as u16));
        sums[lane] = fused_flushed(even, low, fused_flushed(odd, high, sums[lane]));
    }
}
