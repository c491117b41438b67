//! AVX2 and FMA: 8 lanes, BF16 weights widened in one operation, one fused multiply-add per k.
//!
//! A line of a panel holds two k. The odd one is in the high halves: an AND of the load with a mask. The even one
//! is that AND on a load two bytes earlier, which brings the low halves up. Both are one operation with a
//! memory operand, on any port, without shift or scratch; the buffer needs two readable bytes in front.
//!
//! A kernel has one panel, two sums a row: six rows are 12 sums, and with two weights, the row's value and the mask all 16
//! registers are full, so it is assembly: nothing may spill. `.if` leaves out the rows that a kernel has not. One or two
//! rows take two panels: two sums wait for one another at every k, four hide it.
//!
//! What is prefetched with one panel is the next, as four streams, a line of each at a time: four parts of a panel read in
//! turn arrive faster than one after the other, at every number of rows. With two panels each is a stream. (On a Zen 3,
//! for one to three rows, several panels in lockstep with a short prefetch were 4-10% slower.)

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, _mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps,
};
use std::sync::OnceLock;

use super::block::{Block, Kernel, STEP};

/// Weights are BF16.
const BF16: u32 = 0;
/// Weights are f32.
const WIDE: u32 = 1;

/// The most rows of a kernel.
pub(super) const ROWS_MAX: usize = 6;

/// How many streams the kernels of one panel prefetch, a line of each at a time.
pub(super) const AHEAD_STREAMS: usize = 4;

/// The most rows of a kernel of two panels.
pub(super) const ROWS_MAX_TWO: usize = 2;

/// The kernel of so many rows and panels (1 or 2), which prefetches or does not.
pub(super) fn kernel(rows: usize, panels: usize, ahead: bool) -> Kernel {
    match panels {
        1 => ONE[ahead as usize][rows - 1],
        2 => TWO[ahead as usize][rows - 1],
        _ => unreachable!("no kernel of {panels} panels"),
    }
}

/// The kernel of one f32 panel `[k][16]`.
pub(super) fn kernel_f32(rows: usize) -> Kernel {
    ONE_F32[rows - 1]
}

/// Whether Intel made this CPU.
pub(super) fn of_intel() -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    *INTEL.get_or_init(|| {
        // SAFETY: every CPU that has AVX2 has this instruction.
        #[allow(unused_unsafe, reason = "safe from some version of the compiler on")]
        let vendor = unsafe { __cpuid(0) };
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    })
}

macro_rules! six {
    ($mode:ident, $ahead:literal) => {
        [
            one::<1, $mode, $ahead>,
            one::<2, $mode, $ahead>,
            one::<3, $mode, $ahead>,
            one::<4, $mode, $ahead>,
            one::<5, $mode, $ahead>,
            one::<6, $mode, $ahead>,
        ]
    };
}
static ONE: [[Kernel; ROWS_MAX]; 2] = [six!(BF16, 0), six!(BF16, 1)];
static TWO: [[Kernel; ROWS_MAX_TWO]; 2] = [[two::<1, 0>, two::<2, 0>], [two::<1, 1>, two::<2, 1>]];
static ONE_F32: [Kernel; ROWS_MAX] = six!(WIDE, 0);

/// The high half of every lane.
#[repr(align(32))]
struct Mask(#[expect(dead_code, reason = "read by the assembly")] [u32; 8]);
static MASK: Mask = Mask([0xffff_0000; 8]);

/// Row `$row` at `$address`, if the kernel has it: broadcast, and into its two sums.
macro_rules! row {
    ($row:literal, $address:literal, $offset:literal, $low:literal, $high:literal) => {
        concat!(
            ".if {rows} > ",
            $row,
            "\n",
            "vbroadcastss ymm14, dword ptr [",
            $address,
            "+",
            $offset,
            "]\n",
            "vfmadd231ps ymm",
            $low,
            ", ymm14, ymm12\n",
            "vfmadd231ps ymm",
            $high,
            ", ymm14, ymm13\n",
            ".endif\n"
        )
    };
}

/// All rows, for the k at `$o` bytes of each.
macro_rules! rows {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o, "0", "1"),
            row!("1", "{a}+{s}", $o, "2", "3"),
            row!("2", "{a}+2*{s}", $o, "4", "5"),
            row!("3", "{a3}", $o, "6", "7"),
            row!("4", "{a3}+{s}", $o, "8", "9"),
            row!("5", "{a3}+2*{s}", $o, "10", "11")
        )
    };
}

/// The two weights of one k: at `$line` bytes of the BF16 panel, or `$wide` bytes of the f32 panel.
macro_rules! weights {
    ($line:literal, $line_high:literal, $wide:literal, $wide_high:literal) => {
        concat!(
            ".if {mode} == 0\n",
            "vandps ymm12, ymm15, [{b}+",
            $line,
            "]\nvandps ymm13, ymm15, [{b}+",
            $line_high,
            "]\n",
            ".else\n",
            "vmovups ymm12, [{b}+",
            $wide,
            "]\nvmovups ymm13, [{b}+",
            $wide_high,
            "]\n",
            ".endif\n"
        )
    };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn one<const ROWS: usize, const MODE: u32, const AHEAD: usize>(block: &Block) {
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
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "vmovaps ymm15, [rip + {mask}]",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            ".if {ahead}",
            "prefetcht1 [{pf}]", "prefetcht1 [{pf}+{pfd}]", "prefetcht1 [{pf}+2*{pfd}]", "prefetcht1 [{pf3}]",
            "add {pf}, {pfs}", "add {pf3}, {pfs}",
            ".endif",
            weights!("-2", "30", "0", "32"), rows!("0"), weights!("0", "32", "64", "96"), rows!("4"),
            weights!("62", "94", "128", "160"), rows!("8"), weights!("64", "96", "192", "224"), rows!("12"),
            weights!("126", "158", "256", "288"), rows!("16"), weights!("128", "160", "320", "352"), rows!("20"),
            weights!("190", "222", "384", "416"), rows!("24"), weights!("192", "224", "448", "480"), rows!("28"),
            "add {a}, 32",
            ".if {rows} > 3", "add {a3}, 32", ".endif",
            ".if {mode} == 0", "add {b}, 256", ".else", "add {b}, 512", ".endif",
            "dec {n}", "jnz 2b", "3:",
            "# {s} {a3} {pf} {pf3} {pfd} {pfs}",
            mask = sym MASK, rows = const ROWS, mode = const MODE, ahead = const AHEAD,
            a = inout(reg) block.a => _, a3 = inout(reg) block.a.wrapping_add(3 * block.a_stride) => _,
            s = in(reg) block.a_stride * 4, b = inout(reg) block.b => _, n = inout(reg) block.terms / STEP => _,
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

/// One row of two panels: broadcast, and into its four sums.
macro_rules! row2 {
    ($row:literal, $address:literal, $offset:literal, $s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
        concat!(
            ".if {rows} > ",
            $row,
            "\nvbroadcastss ymm14, dword ptr [",
            $address,
            "+",
            $offset,
            "]\n",
            "vfmadd231ps ymm",
            $s0,
            ", ymm14, ymm8\nvfmadd231ps ymm",
            $s1,
            ", ymm14, ymm9\n",
            "vfmadd231ps ymm",
            $s2,
            ", ymm14, ymm10\nvfmadd231ps ymm",
            $s3,
            ", ymm14, ymm11\n.endif\n",
        )
    };
}

/// The weights of one k of two panels at `$low` and `$high` bytes, and both rows at `$o` bytes.
macro_rules! term2 {
    ($low:literal, $high:literal, $o:literal) => {
        concat!(
            "vandps ymm8, ymm15, [{b}+",
            $low,
            "]\nvandps ymm9, ymm15, [{b}+",
            $high,
            "]\n",
            "vandps ymm10, ymm15, [{b}+{bs}+",
            $low,
            "]\nvandps ymm11, ymm15, [{b}+{bs}+",
            $high,
            "]\n",
            row2!("0", "{a}", $o, "0", "1", "2", "3"),
            row2!("1", "{a}+{s}", $o, "4", "5", "6", "7"),
        )
    };
}

/// What is prefetched of both panels.
macro_rules! ahead2 {
    ($o:literal) => {
        concat!(".if {ahead}\nprefetcht1 [{pf}+", $o, "]\nprefetcht1 [{pf}+{pfd}+", $o, "]\n.endif\n")
    };
}

#[target_feature(enable = "avx2,fma")]
unsafe fn two<const ROWS: usize, const AHEAD: usize>(block: &Block) {
    let mut c = [_mm256_setzero_ps(); 8];
    let sum = |row: usize, at: usize| {
        block.c.wrapping_add(row * block.c_stride + at / 2 * block.c_apart + at % 2 * 8)
    };
    if block.accumulate {
        for row in 0..ROWS {
            for at in 0..4 {
                // SAFETY: the caller promises so many sums.
                c[4 * row + at] = unsafe { _mm256_loadu_ps(sum(row, at)) };
            }
        }
    }
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "vmovaps ymm15, [rip + {mask}]",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            ahead2!("0"), term2!("-2", "30", "0"), term2!("0", "32", "4"),
            ahead2!("64"), term2!("62", "94", "8"), term2!("64", "96", "12"),
            ahead2!("128"), term2!("126", "158", "16"), term2!("128", "160", "20"),
            ahead2!("192"), term2!("190", "222", "24"), term2!("192", "224", "28"),
            ".if {ahead}", "add {pf}, {pfs}", ".endif",
            "add {a}, 32", "add {b}, 256",
            "dec {n}", "jnz 2b", "3:",
            "# {s} {pf} {pfd} {pfs}",
            mask = sym MASK, rows = const ROWS, ahead = const AHEAD,
            a = inout(reg) block.a => _, s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, bs = in(reg) block.b_stride, n = inout(reg) block.terms / STEP => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            inout("ymm0") c[0], inout("ymm1") c[1], inout("ymm2") c[2], inout("ymm3") c[3],
            inout("ymm4") c[4], inout("ymm5") c[5], inout("ymm6") c[6], inout("ymm7") c[7],
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm14") _, out("ymm15") _,
            options(nostack)
        );
    }
    for row in 0..ROWS {
        for at in 0..4 {
            // SAFETY: the caller promises so many sums.
            unsafe { _mm256_storeu_ps(sum(row, at), c[4 * row + at]) };
        }
    }
}

/// The most multiply-adds there can be: twelve independent sums in registers.
#[target_feature(enable = "avx2,fma")]
pub(super) fn peak(turns: usize) -> f32 {
    let (x, y) = (_mm256_set1_ps(1.000_000_1), _mm256_set1_ps(1e-9));
    let mut sums = [_mm256_set1_ps(0.5); 12];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, x, y);
        }
    }
    _mm256_cvtss_f32(sums.into_iter().fold(x, |all, sum| _mm256_add_ps(all, sum)))
}
