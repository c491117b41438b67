//! Which kernels compute a task, and how its rows, panels and terms are cut into blocks for them.

use super::block::{Block, Kernel, STEP};
use super::{Kernels, NumericClass, Path, plain};

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512bf16, avx512f};

/// How rows meet weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Rows as f32, weights BF16.
    Widened,
    /// Rows as BF16 pairs, weights BF16.
    Paired,
    /// What `Paired` computes, by multiply-adds: rows as f32, weights BF16.
    Split,
    /// Rows and weights f32.
    Full,
}

/// How a task is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) mode: Mode,
    /// The most rows of a block.
    pub(super) rows_max: usize,
    /// The most panels of a tile, the piece of work a thread claims. Even, at most [`TILE_PANELS_MAX`].
    pub(super) tile: usize,
    /// The most k of a block.
    pub(super) terms: usize,
    /// The most rows computed before the next panels are taken up.
    pub(super) pass: usize,
    /// Whether kernels prefetch what they read themselves, a little later.
    pub(super) near: bool,
    /// Rows of the task, or of a run of them.
    rows: usize,
}

/// Bytes of rows that a block reads with every few panels: more than a first cache, but far less than their weights.
const NEAR_BYTES: usize = 96 << 10;

impl Mode {
    /// Bytes of one value of a row, as the kernels read it.
    fn term_bytes(self) -> usize {
        if self == Mode::Paired { 2 } else { 4 }
    }
}

/// The most panels of any tile.
pub(super) const TILE_PANELS_MAX: usize = 16;

impl Plan {
    /// The plan for `rows` rows of `k` terms. With one block of rows a tile may be long, and its terms too: every weight is
    /// read once. With more, terms are cut so that the rows of a pass and the weights of a tile stay in L2.
    pub(super) fn new(kernels: Kernels, mode: Mode, rows: usize, k: usize) -> Plan {
        let rows_max = Plan::rows_max(kernels, mode);
        let near = rows <= rows_max && Plan::reads_near(kernels, rows);
        let terms = if near { NEAR_BYTES / (rows.max(1) * mode.term_bytes()) } else { 2048 };
        let one_block =
            Plan { mode, rows_max, tile: 16, terms: equal_terms(k, terms), pass: rows_max, rows, near };
        if rows <= rows_max {
            return one_block;
        }
        match kernels.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => Plan { terms: equal_terms(k, 1024), pass: 84, ..one_block },
            _ => Plan { pass: 36, ..one_block },
        }
    }

    /// Whether kernels that read every weight once prefetch their own streams, a little ahead, or the panels after
    /// theirs. On Sapphire Rapids the first is up to a fifth faster, on all paths; the AVX2 kernels of one panel have one
    /// stream only, and on a Zen 3 it was the second that was 4-10% faster with them.
    fn reads_near(kernels: Kernels, rows: usize) -> bool {
        match kernels.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => true,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => rows <= avx2::ROWS_MAX_TWO && avx2::of_intel(),
            _ => false,
        }
    }

    /// The most rows of any block.
    pub(super) fn rows_max(kernels: Kernels, mode: Mode) -> usize {
        match kernels.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2::ROWS_MAX,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16 if mode == Mode::Paired => avx512bf16::ROWS_MAX,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => avx512f::ROWS_MAX,
            _ => 12,
        }
    }

    /// The most panels of a block: a power of two.
    pub(super) fn panels_max(&self, kernels: Kernels) -> usize {
        match kernels.path() {
            _ if self.mode == Mode::Full => 1,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16 if self.mode == Mode::Paired => 4,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 if self.rows <= avx512f::ROWS_MAX_FOUR => 4,
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => 2,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 if self.rows <= avx2::ROWS_MAX_TWO => 2,
            _ => 1,
        }
    }

    /// The kernel for a block of so many rows and panels; none: the plain loops.
    pub(super) fn kernel(
        kernels: Kernels,
        mode: Mode,
        rows: usize,
        panels: usize,
        ahead: bool,
    ) -> Option<Kernel> {
        let _ = ahead;
        match (kernels.path(), mode) {
            (Path::Plain, _) => None,
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, Mode::Full) => Some(avx2::kernel_f32(rows)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, _) => Some(avx2::kernel(rows, panels, ahead)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512Bf16, Mode::Paired) => Some(avx512bf16::kernel(rows, panels)),
            #[cfg(target_arch = "x86_64")]
            (_, Mode::Full) => Some(avx512f::kernel_f32(rows)),
            #[cfg(target_arch = "x86_64")]
            (_, _) => Some(avx512f::kernel(rows, panels, ahead, mode == Mode::Split)),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// How many streams a kernel of so many panels prefetches.
    pub(super) fn streams(kernels: Kernels, panels: usize) -> usize {
        match kernels.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 if panels == 1 => avx2::AHEAD_STREAMS,
            _ => panels,
        }
    }

    /// Computes the block's terms, whatever their number.
    ///
    /// # Safety
    /// As for a [`Kernel`]; `kernel` is one for the block's rows and panels.
    pub(super) unsafe fn compute(kernels: Kernels, mode: Mode, kernel: Option<Kernel>, block: Block) {
        let whole = block.terms - block.terms % STEP;
        let mut rest = block;
        if let Some(kernel) = kernel
            && whole > 0
        {
            // SAFETY: promised by the caller.
            unsafe { kernel(&Block { terms: whole, ..block }) };
            let (row, line) = match mode {
                Mode::Widened | Mode::Split => (whole, whole * 32),
                Mode::Paired => (whole / 2, whole * 32),
                Mode::Full => (whole, whole * 64),
            };
            let (a, b) = (block.a.wrapping_add(row), block.b.wrapping_add(line));
            rest = Block { terms: block.terms - whole, a, b, accumulate: true, ..block };
        }
        if rest.terms > 0 {
            match mode {
                Mode::Widened => plain::block(kernels, rest),
                Mode::Paired => plain::block_pairs(rest),
                Mode::Split => plain::block_split(rest),
                Mode::Full => plain::block_f32(kernels, rest),
            }
        }
    }

    /// Which mode a task has.
    pub(super) fn mode(kernels: Kernels, bf16_rows: bool, bf16_weights: bool) -> Mode {
        match (bf16_rows, bf16_weights) {
            (_, false) => Mode::Full,
            (true, true) if kernels.class() == NumericClass::Avx512Bf16 => match kernels.path() {
                Path::Avx512f => Mode::Split,
                _ => Mode::Paired,
            },
            _ => Mode::Widened,
        }
    }
}

/// A multiple of [`STEP`] that cuts `k` into equal blocks of at most `most`.
fn equal_terms(k: usize, most: usize) -> usize {
    k.div_ceil(k.div_ceil(most)).next_multiple_of(STEP)
}
