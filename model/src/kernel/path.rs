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
    /// Rows and weights f32.
    Full,
}

/// How a task is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) mode: Mode,
    /// The most rows of a block.
    pub(super) rows_max: usize,
    /// The most panels of a tile, the piece of work a thread claims. Even.
    pub(super) tile: usize,
    /// The most k of a block.
    pub(super) terms: usize,
    /// The most rows computed before the next panels are taken up.
    pub(super) pass: usize,
    /// All panels of the tile go on together, so the next block to prefetch is this panel's next, not the next panel's.
    pub(super) together: bool,
    /// Keep widened weights for later rows where a pass has at least so many blocks.
    pub(super) keep_from: usize,
}

/// A multiple of [`STEP`] that cuts `k` into equal blocks of at most `most`.
fn equal_terms(k: usize, most: usize) -> usize {
    let blocks = k.div_ceil(most);
    k.div_ceil(blocks).next_multiple_of(STEP)
}

impl Plan {
    pub(super) fn new(kernels: Kernels, mode: Mode, rows: usize, k: usize) -> Plan {
        let wide = Plan { mode, rows_max: 12, tile: 8, terms: equal_terms(k, 2048), pass: 36, together: false, keep_from: usize::MAX };
        match kernels.path() {
            Path::Plain => wide,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Plan::avx2(Plan { rows_max: avx2::ROWS_MAX, ..wide }, rows, k),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16 if mode == Mode::Paired => {
                Plan::avx512bf16(Plan { rows_max: avx512bf16::ROWS_MAX, ..wide }, rows, k)
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => Plan::avx512f(wide, rows, k),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("this path runs on x86-64 alone"),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2(plan: Plan, rows: usize, k: usize) -> Plan {
        match rows {
            1 => Plan { tile: 4, terms: tune(0, 64), together: true, ..plan },
            2 => Plan { tile: 6, terms: tune(0, 64), together: true, ..plan },
            3..=6 => Plan { tile: 4, terms: tune(0, 64), together: true, ..plan },
            _ => Plan { terms: equal_terms(k, tune(1, 2048)), pass: tune(2, 36), tile: tune(3, 8), ..plan },
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512f(plan: Plan, rows: usize, k: usize) -> Plan {
        match rows {
            1..=6 => Plan { rows_max: 6, tile: 4, terms: tune(0, 64), together: true, ..plan },
            7..=12 => Plan { tile: 4, terms: tune(0, 64), together: true, ..plan },
            _ => Plan { terms: equal_terms(k, tune(1, 512)), pass: tune(2, 144), tile: tune(3, 8), keep_from: tune(4, 2), ..plan },
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512bf16(plan: Plan, rows: usize, k: usize) -> Plan {
        match rows {
            1..=6 => Plan { tile: 4, terms: 128, together: true, ..plan },
            _ => Plan { terms: equal_terms(k, 512), pass: 144, tile: 8, ..plan },
        }
    }

    /// How many panels the next block has, of `left`.
    pub(super) fn group(&self, kernels: Kernels, rows: usize, left: usize) -> usize {
        let _ = rows;
        if self.mode == Mode::Full {
            return 1;
        }
        match kernels.path() {
            Path::Plain => 1,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => if left >= avx2::panels_max(rows) { avx2::panels_max(rows) } else { 1 },
            #[cfg(target_arch = "x86_64")]
            Path::Avx512f | Path::Avx512Bf16 => match left {
                4.. if self.rows_max <= 6 => 4,
                2.. => 2,
                _ => 1,
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => 1,
        }
    }

    /// The kernel for a block of so many rows and panels; none: the plain loops.
    pub(super) fn kernel(&self, kernels: Kernels, rows: usize, panels: usize) -> Option<Kernel> {
        match (kernels.path(), self.mode) {
            (Path::Plain, _) => None,
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, Mode::Full) => Some(avx2::kernel_f32(rows)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx2, _) => Some(avx2::kernel(rows, panels)),
            #[cfg(target_arch = "x86_64")]
            (Path::Avx512Bf16, Mode::Paired) => Some(avx512bf16::kernel(rows, panels)),
            #[cfg(target_arch = "x86_64")]
            (_, Mode::Full) => Some(avx512f::kernel_f32(rows)),
            #[cfg(target_arch = "x86_64")]
            (_, _) => Some(avx512f::kernel(rows, panels)),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// The kernels that keep widened weights, and that read them, where a path has them for so many panels.
    pub(super) fn kernels_keeping(&self, kernels: Kernels, panels: usize) -> Option<Keeping> {
        #[cfg(target_arch = "x86_64")]
        if matches!(kernels.path(), Path::Avx512f | Path::Avx512Bf16) && self.mode == Mode::Widened && panels == 2 {
            return Some(Keeping { keep: avx512f::kernel_keep, kept: avx512f::kernel_kept });
        }
        let _ = (kernels, panels);
        None
    }

    /// How many streams a kernel of so many panels prefetches.
    pub(super) fn streams(&self, kernels: Kernels, panels: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if kernels.path() == Path::Avx2 && panels == 1 {
            return avx2::AHEAD_STREAMS;
        }
        let _ = kernels;
        panels
    }

    /// Computes the block's terms, whatever their number.
    ///
    /// # Safety
    /// As for a [`Kernel`]; `kernel` is one for the block's rows and panels.
    pub(super) unsafe fn compute(&self, kernels: Kernels, kernel: Option<Kernel>, block: Block) {
        let whole = block.terms - block.terms % STEP;
        let mut rest = block;
        if let Some(kernel) = kernel {
            if whole > 0 {
                // SAFETY: promised by the caller.
                unsafe { kernel(&Block { terms: whole, ..block }) };
                rest = Block {
                    terms: block.terms - whole,
                    a: block.a.wrapping_add(if self.mode == Mode::Paired { whole / 2 } else { whole }),
                    b: block.b.wrapping_add(whole * 32),
                    wide: block.wide.wrapping_add(whole * 16 * block.panels),
                    accumulate: true,
                    ..block
                };
            }
        }
        if rest.terms > 0 {
            match self.mode {
                Mode::Widened => plain::block(kernels, rest),
                Mode::Paired => plain::block_pairs(rest),
                Mode::Full => plain::block_f32(kernels, rest),
            }
        }
    }

    /// Which mode a task has.
    pub(super) fn mode(kernels: Kernels, bf16_rows: bool, bf16_weights: bool) -> Mode {
        match (bf16_rows, bf16_weights) {
            (_, false) => Mode::Full,
            (true, true) if kernels.class() == NumericClass::Avx512Bf16 => Mode::Paired,
            _ => Mode::Widened,
        }
    }
}

/// Kernels by rows.
#[derive(Clone, Copy)]
pub(super) struct Keeping {
    pub(super) keep: fn(usize) -> Kernel,
    pub(super) kept: fn(usize) -> Kernel,
}

pub(super) fn tune(i: usize, default: usize) -> usize {
    static T: std::sync::OnceLock<Vec<Option<usize>>> = std::sync::OnceLock::new();
    T.get_or_init(|| (0..16).map(|i| std::env::var(format!("T{i}")).ok().and_then(|v| v.parse().ok())).collect())[i].unwrap_or(default)
}
