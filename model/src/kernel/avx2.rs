//! AVX2 and FMA: 8 lanes, BF16 weights widened in one operation, one fused multiply-add per k.
//!
//! A line of a panel holds two k. The odd one is in the high halves: an AND of the load with a mask. The even one
//! is that AND on a load two bytes earlier, which brings the low halves up. Both are one operation with a
//! memory operand, on any port, without shift or scratch; the buffer needs two readable bytes in front.
//!
//! From four rows on a kernel has one panel, two sums a row: six rows are 12 sums, and with two weights, the row's value and
//! the mask all 16 registers are full, so it is assembly: nothing may spill. With one to three rows, more panels keep
//! enough sums and read streams open.

use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_T0, _mm_prefetch, _mm256_and_si256, _mm256_broadcast_ss, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::block::{Block, Kernel};

/// Weights are BF16.
const BF16: u32 = 0;
/// Weights are f32, given as `wide`.
const WIDE: u32 = 1;

/// The most rows of a kernel.
pub(super) const ROWS_MAX: usize = 6;

/// How many streams the kernels of one panel prefetch, a line of each at a time.
pub(super) const AHEAD_STREAMS: usize = 4;

/// The most panels of a kernel of so many rows.
pub(super) const fn panels_max(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 => 3,
        3 => 2,
        _ => 1,
    }
}

/// The kernel of so many rows and panels: one, or [`panels_max`].
pub(super) fn kernel(rows: usize, panels: usize) -> Kernel {
    match (rows, panels) {
        (_, 1) => ONE[rows - 1],
        (1, 4) => few::<1, 4>,
        (2, 3) => few::<2, 3>,
        (3, 2) => few::<3, 2>,
        _ => unreachable!("no kernel of {rows} rows and {panels} panels"),
    }
}

/// The kernel of one f32 panel `[k][16]`, given as `wide`.
pub(super) fn kernel_f32(rows: usize) -> Kernel {
    ONE_F32[rows - 1]
}

static ONE: [Kernel; ROWS_MAX] =
    [one::<1, BF16>, one::<2, BF16>, one::<3, BF16>, one::<4, BF16>, one::<5, BF16>, one::<6, BF16>];
static ONE_F32: [Kernel; ROWS_MAX] =
    [one::<1, WIDE>, one::<2, WIDE>, one::<3, WIDE>, one::<4, WIDE>, one::<5, WIDE>, one::<6, WIDE>];

/// The high half of every lane.
#[repr(align(32))]
struct Mask([u32; 8]);
static MASK: Mask = Mask([0xffff_0000; 8]);

/// Row `$row` at `$address`, if the kernel has it: broadcast, and into its two sums.
macro_rules! row {
    ($row:literal, $address:literal, $offset:literal, $low:literal, $high:literal) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            "vbroadcastss ymm14, dword ptr [", $address, "+", $offset, "]\n",
            "vfmadd231ps ymm", $low, ", ymm14, ymm12\n",
            "vfmadd231ps ymm", $high, ", ymm14, ymm13\n",
            ".endif\n"
        )
    };
}

/// All rows, for the k at `$o` bytes of each.
macro_rules! rows {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o, "0", "1"), row!("1", "{a}+{s}", $o, "2", "3"), row!("2", "{a}+2*{s}", $o, "4", "5"),
            row!("3", "{a3}", $o, "6", "7"), row!("4", "{a3}+{s}", $o, "8", "9"), row!("5", "{a3}+2*{s}", $o, "10", "11")
        )
    };
}

/// The two weights of one k: at `$line` bytes of the BF16 panel, or `$wide` bytes of the f32 panel.
macro_rules! weights {
    ($line:literal, $line_high:literal, $wide:literal, $wide_high:literal) => {
        concat!(
            ".if {mode} == 0\n",
            "vandps ymm12, ymm15, [{b}+", $line, "]\nvandps ymm13, ymm15, [{b}+", $line_high, "]\n",
            ".else\n",
            "vmovups ymm12, [{b}+", $wide, "]\nvmovups ymm13, [{b}+", $wide_high, "]\n",
            ".endif\n"
        )
    };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn one<const ROWS: usize, const MODE: u32>(block: &Block) {
    let mut c = [_mm256_setzero_ps(); 12];
    let sum = |row: usize, half: usize| block.c.wrapping_add(row * block.c_stride + half * 8);
    if block.accumulate {
        for row in 0..ROWS {
            for half in 0..2 {
                // SAFETY: the caller promises so many sums.
                c[2 * row + half] = unsafe { _mm256_loadu_ps(sum(row, half)) };
            }
        }
    }
    let b = if MODE == BF16 { block.b } else { block.wide.cast_const().cast() };
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "vmovaps ymm15, [rip + {mask}]",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            "prefetcht1 [{pf}]", "prefetcht1 [{pf}+{pfd}]", "prefetcht1 [{pf}+2*{pfd}]", "prefetcht1 [{pf3}]",
            "add {pf}, {pfs}", "add {pf3}, {pfs}",
            weights!("-2", "30", "0", "32"), rows!("0"),
            weights!("0", "32", "64", "96"), rows!("4"),
            weights!("62", "94", "128", "160"), rows!("8"),
            weights!("64", "96", "192", "224"), rows!("12"),
            "add {a}, 16",
            ".if {rows} > 3", "add {a3}, 16", ".endif",
            ".if {mode} == 0", "add {b}, 128", ".else", "add {b}, 256", ".endif",
            "dec {n}", "jnz 2b", "3:",
            "# {s} {a3}",
            mask = sym MASK, rows = const ROWS, mode = const MODE,
            a = inout(reg) block.a => _, a3 = inout(reg) block.a.wrapping_add(3 * block.a_stride) => _,
            s = in(reg) block.a_stride * 4, b = inout(reg) b => _, n = inout(reg) block.terms / 4 => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            pf3 = inout(reg) block.ahead.start.wrapping_add(3 * block.ahead.stride) => _,
            inout("ymm0") c[0], inout("ymm1") c[1], inout("ymm2") c[2], inout("ymm3") c[3],
            inout("ymm4") c[4], inout("ymm5") c[5], inout("ymm6") c[6], inout("ymm7") c[7],
            inout("ymm8") c[8], inout("ymm9") c[9], inout("ymm10") c[10], inout("ymm11") c[11],
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack)
        );
    }
    for row in 0..ROWS {
        for half in 0..2 {
            // SAFETY: the caller promises so many sums.
            unsafe { _mm256_storeu_ps(sum(row, half), c[2 * row + half]) };
        }
    }
}

/// One to three rows, several panels in lockstep; prefetches two lines of each panel's stream at a time.
#[target_feature(enable = "avx2,fma")]
unsafe fn few<const ROWS: usize, const PANELS: usize>(block: &Block) {
    let mask = _mm256_set1_epi32(MASK.0[0] as i32);
    let mut c = [[[_mm256_setzero_ps(); 2]; PANELS]; ROWS];
    let sum = |row: usize, panel: usize, half: usize| block.c.wrapping_add(row * block.c_stride + panel * 16 + half * 8);
    if block.accumulate {
        for row in 0..ROWS {
            for panel in 0..PANELS {
                for half in 0..2 {
                    // SAFETY: the caller promises so many sums.
                    c[row][panel][half] = unsafe { _mm256_loadu_ps(sum(row, panel, half)) };
                }
            }
        }
    }
    let (mut a, mut b, mut ahead) = (block.a, block.b, block.ahead.start);
    for _ in 0..block.terms / 4 {
        for line in 0..2 {
            for panel in 0..PANELS {
                let line = ahead.wrapping_add(panel * block.ahead.stride + line * 64);
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
            }
            for parity in 0..2 {
                let mut x = [_mm256_setzero_ps(); ROWS];
                for row in 0..ROWS {
                    // SAFETY: the caller promises `terms` values in each row.
                    x[row] = unsafe { _mm256_broadcast_ss(&*a.add(row * block.a_stride + line * 2 + parity)) };
                }
                for panel in 0..PANELS {
                    for half in 0..2 {
                        let at = b.wrapping_add(panel * block.b_stride + line * 64 + half * 32 + 2 * parity).wrapping_sub(2);
                        // SAFETY: a line of the panel, or two bytes earlier, which the caller promises readable.
                        let pair = unsafe { _mm256_loadu_si256(at.cast()) };
                        let weight = _mm256_castsi256_ps(_mm256_and_si256(mask, pair));
                        for row in 0..ROWS {
                            c[row][panel][half] = _mm256_fmadd_ps(x[row], weight, c[row][panel][half]);
                        }
                    }
                }
            }
        }
        a = a.wrapping_add(4);
        b = b.wrapping_add(128);
        ahead = ahead.wrapping_add(block.ahead.step);
    }
    for row in 0..ROWS {
        for panel in 0..PANELS {
            for half in 0..2 {
                // SAFETY: the caller promises so many sums.
                unsafe { _mm256_storeu_ps(sum(row, panel, half), c[row][panel][half]) };
            }
        }
    }
}
