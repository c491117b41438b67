//! The micro-kernels by themselves: a few rows times one panel, for sums that are not a task.

use super::Kernels;
use super::block::{Ahead, Block};
use super::path::{Mode, Plan};

/// The most rows a tile may have.
pub const TILE_ROWS_MAX: usize = 12;

/// `rows` rows of f32 times one BF16 panel of sixteen columns: `c[r][0..16]` becomes, or with `accumulate` goes on
/// from, the chain of fused multiply-adds over ascending k. The same bits on every path, in every class.
///
/// # Safety
/// `a` has `rows` rows of `k` values, `a_stride` values apart; `b` has `k / 2` (rounded up) lines of 64 bytes, laid out as
/// in a packed BF16 matrix, with 2 readable bytes in front; `c` has `rows` rows of sixteen values, `c_stride` apart,
/// which nobody else touches. `rows` is 1 to [`TILE_ROWS_MAX`]. Of an odd last pair only the first half is used.
pub unsafe fn tile(
    kernels: Kernels,
    rows: usize,
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const u8,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    let ahead = Ahead::NOTHING;
    let block = Block {
        rows,
        panels: 1,
        terms: k,
        a,
        a_stride,
        b,
        b_stride: 0,
        c,
        c_stride,
        c_apart: 16,
        accumulate,
        ahead,
    };
    // SAFETY: promised by the caller.
    unsafe { bare(kernels, Mode::Widened, block) };
}

/// The same with an f32 panel `[k][16]`.
///
/// # Safety
/// As for [`tile`], but `b` has `k` lines of sixteen f32.
pub unsafe fn tile_f32(
    kernels: Kernels,
    rows: usize,
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    let (b, ahead) = (b.cast(), Ahead::NOTHING);
    let block = Block {
        rows,
        panels: 1,
        terms: k,
        a,
        a_stride,
        b,
        b_stride: 0,
        c,
        c_stride,
        c_apart: 16,
        accumulate,
        ahead,
    };
    // SAFETY: promised by the caller.
    unsafe { bare(kernels, Mode::Full, block) };
}

/// # Safety
/// As for [`tile`] or [`tile_f32`].
#[inline]
unsafe fn bare(kernels: Kernels, mode: Mode, block: Block) {
    debug_assert!((1..=TILE_ROWS_MAX).contains(&block.rows), "a tile of {} rows", block.rows);
    let most = Plan::rows_max(kernels, mode);
    let mut first = 0;
    while first < block.rows {
        let rows = most.min(block.rows - first);
        let part = Block {
            rows,
            a: block.a.wrapping_add(first * block.a_stride),
            c: block.c.wrapping_add(first * block.c_stride),
            ..block
        };
        // SAFETY: rows of the block, as the caller promises them.
        unsafe { Plan::compute(kernels, mode, Plan::kernel(kernels, mode, rows, 1, false), part) };
        first += rows;
    }
}
