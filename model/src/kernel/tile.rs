//! The micro-kernels: a few rows times one panel.

use super::dispatch::dispatched;
use super::fused::Fused;
use super::{Kernels, plain};

/// The most rows a tile may have.
pub const TILE_ROWS_MAX: usize = 12;

/// What a tile is made of. Pointers as in [`tile`].
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    k: usize,
    a: *const f32,
    a_stride: usize,
    b: *const u8,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

#[inline(always)]
fn bf16_body<F: Fused>(t: Tile) {
    // SAFETY: `tile` passes its caller's promise on.
    unsafe { plain::tile_bf16::<F>(t.rows, t.k, t.a, t.a_stride, t.b, t.c, t.c_stride, t.accumulate) }
}

#[inline(always)]
fn f32_body<F: Fused>(t: Tile) {
    // SAFETY: `tile_f32` passes its caller's promise on.
    unsafe { plain::tile_f32::<F>(t.rows, t.k, t.a, t.a_stride, t.b.cast(), t.c, t.c_stride, t.accumulate) }
}

dispatched! { fn tile_bf16_on(t: Tile) = bf16_body }
dispatched! { fn tile_f32_on(t: Tile) = f32_body }

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
    debug_assert!((1..=TILE_ROWS_MAX).contains(&rows));
    tile_bf16_on(kernels, Tile { rows, k, a, a_stride, b, c, c_stride, accumulate });
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
    debug_assert!((1..=TILE_ROWS_MAX).contains(&rows));
    tile_f32_on(kernels, Tile { rows, k, a, a_stride, b: b.cast(), c, c_stride, accumulate });
}
