//! AVX-512F: 16 lanes, BF16 weights widened on the way, one fused multiply-add per k.
//!
//! A line of a panel holds two k: the even one in the low halves (a shift by 16), the odd one in the high halves (an AND).
//! Both run on the ports of the multiply-add (0 and 5 on Intel), so for many rows the first block of rows
//! keeps the widened weights, and the others read them. Sums, weights and the broadcast row value stay in registers: that
//! is what the assembly is for; the compiler spills from 24 sums on. `.if` leaves out the rows that a kernel has not.
//!
//! zmm0-23 sums, zmm26-29 weights, zmm30 the row's value, zmm31 the mask.

use std::arch::asm;
use std::arch::x86_64::{__m512, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps};

use super::block::{Block, Kernel};

/// Weights are BF16.
const BF16: u32 = 0;
/// Weights are BF16, and kept as f32 for the next rows.
const KEEP: u32 = 1;
/// Weights are the f32 that were kept.
const KEPT: u32 = 2;

/// The most rows of a kernel, by how many panels it has.
pub(super) const fn rows_max(panels: usize) -> usize {
    match panels {
        4 => 6,
        _ => 12,
    }
}

/// The kernel of so many rows and panels (1, 2 or 4).
pub(super) fn kernel(rows: usize, panels: usize) -> Kernel {
    match panels {
        1 => ONE[rows - 1],
        2 => TWO[rows - 1],
        4 => FOUR[rows - 1],
        _ => unreachable!("no kernel of {panels} panels"),
    }
}

/// The kernel of two panels that keeps the widened weights.
pub(super) fn kernel_keep(rows: usize) -> Kernel {
    TWO_KEEP[rows - 1]
}

/// The kernel of two panels that reads the weights kept.
pub(super) fn kernel_kept(rows: usize) -> Kernel {
    TWO_KEPT[rows - 1]
}

/// The kernel of one f32 panel `[k][16]`, given as `wide`.
pub(super) fn kernel_f32(rows: usize) -> Kernel {
    ONE_F32[rows - 1]
}

macro_rules! twelve {
    ($kernel:ident $(, $mode:ident)?) => {
        [
            $kernel::<1 $(, $mode)?>, $kernel::<2 $(, $mode)?>, $kernel::<3 $(, $mode)?>, $kernel::<4 $(, $mode)?>,
            $kernel::<5 $(, $mode)?>, $kernel::<6 $(, $mode)?>, $kernel::<7 $(, $mode)?>, $kernel::<8 $(, $mode)?>,
            $kernel::<9 $(, $mode)?>, $kernel::<10 $(, $mode)?>, $kernel::<11 $(, $mode)?>, $kernel::<12 $(, $mode)?>,
        ]
    };
}
static ONE: [Kernel; 12] = twelve!(one, BF16);
static ONE_F32: [Kernel; 12] = twelve!(one, KEPT);
static TWO: [Kernel; 12] = twelve!(two, BF16);
static TWO_KEEP: [Kernel; 12] = twelve!(two, KEEP);
static TWO_KEPT: [Kernel; 12] = twelve!(two, KEPT);
static FOUR: [Kernel; 6] = [four::<1>, four::<2>, four::<3>, four::<4>, four::<5>, four::<6>];

/// Row `$row` at `$address`, if the kernel has it: broadcast, and into the sums of each panel.
macro_rules! row {
    ($row:literal, $address:literal, $offset:literal; $($sum:literal $weight:literal),*) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            "vbroadcastss zmm30, dword ptr [", $address, "+", $offset, "]\n",
            $("vfmadd231ps zmm", $sum, ", zmm30, zmm", $weight, "\n",)*
            ".endif"
        )
    };
}

/// All rows, for the k at `$offset` bytes of each.
macro_rules! rows_one {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o; "0" "28"), "\n", row!("1", "{a}+{s}", $o; "1" "28"), "\n",
            row!("2", "{a}+2*{s}", $o; "2" "28"), "\n", row!("3", "{a3}", $o; "3" "28"), "\n",
            row!("4", "{a3}+{s}", $o; "4" "28"), "\n", row!("5", "{a3}+2*{s}", $o; "5" "28"), "\n",
            row!("6", "{a6}", $o; "6" "28"), "\n", row!("7", "{a6}+{s}", $o; "7" "28"), "\n",
            row!("8", "{a6}+2*{s}", $o; "8" "28"), "\n", row!("9", "{a9}", $o; "9" "28"), "\n",
            row!("10", "{a9}+{s}", $o; "10" "28"), "\n", row!("11", "{a9}+2*{s}", $o; "11" "28"),
        )
    };
}
macro_rules! rows_two {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o; "0" "28", "1" "29"), "\n", row!("1", "{a}+{s}", $o; "2" "28", "3" "29"), "\n",
            row!("2", "{a}+2*{s}", $o; "4" "28", "5" "29"), "\n", row!("3", "{a3}", $o; "6" "28", "7" "29"), "\n",
            row!("4", "{a3}+{s}", $o; "8" "28", "9" "29"), "\n", row!("5", "{a3}+2*{s}", $o; "10" "28", "11" "29"), "\n",
            row!("6", "{a6}", $o; "12" "28", "13" "29"), "\n", row!("7", "{a6}+{s}", $o; "14" "28", "15" "29"), "\n",
            row!("8", "{a6}+2*{s}", $o; "16" "28", "17" "29"), "\n", row!("9", "{a9}", $o; "18" "28", "19" "29"), "\n",
            row!("10", "{a9}+{s}", $o; "20" "28", "21" "29"), "\n", row!("11", "{a9}+2*{s}", $o; "22" "28", "23" "29"),
        )
    };
}
macro_rules! rows_four {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o; "0" "26", "1" "27", "2" "28", "3" "29"), "\n",
            row!("1", "{a}+{s}", $o; "4" "26", "5" "27", "6" "28", "7" "29"), "\n",
            row!("2", "{a}+2*{s}", $o; "8" "26", "9" "27", "10" "28", "11" "29"), "\n",
            row!("3", "{a3}", $o; "12" "26", "13" "27", "14" "28", "15" "29"), "\n",
            row!("4", "{a3}+{s}", $o; "16" "26", "17" "27", "18" "28", "19" "29"), "\n",
            row!("5", "{a3}+2*{s}", $o; "20" "26", "21" "27", "22" "28", "23" "29"),
        )
    };
}

/// The weights of one k of one panel: widened from `$line` by `$widen`, or read from `$wide` where they are kept.
macro_rules! weights {
    ("even", $register:literal, $line:literal, $wide:literal) => {
        weights!(concat!("vpslld zmm", $register, ", [", $line, "], 16"), $register, $wide)
    };
    ("odd", $register:literal, $line:literal, $wide:literal) => {
        weights!(concat!("vpandd zmm", $register, ", zmm31, [", $line, "]"), $register, $wide)
    };
    ($widen:expr, $register:literal, $wide:literal) => {
        concat!(
            ".if {mode} == 2\nvmovups zmm", $register, ", [{wide}+", $wide, "]\n.else\n", $widen, "\n",
            ".if {mode} == 1\nvmovups [{wide}+", $wide, "], zmm", $register, "\n.endif\n.endif"
        )
    };
}

/// The sums before a block.
macro_rules! sums {
    ($block:ident, $rows:ident, $panels:literal, $count:literal) => {{
        // SAFETY: zeros are made, nothing is read.
        let mut sums: [__m512; $count] = [_mm512_setzero_ps(); $count];
        if $block.accumulate {
            for row in 0..$rows {
                for panel in 0..$panels {
                    // SAFETY: the caller promises so many sums.
                    sums[row * $panels + panel] =
                        unsafe { _mm512_loadu_ps($block.c.add(row * $block.c_stride + panel * 16)) };
                }
            }
        }
        sums
    }};
}

/// The sums after a block.
macro_rules! keep_sums {
    ($block:ident, $rows:ident, $panels:literal, $sums:ident) => {
        for row in 0..$rows {
            for panel in 0..$panels {
                // SAFETY: the caller promises so many sums.
                unsafe {
                    _mm512_storeu_ps($block.c.add(row * $block.c_stride + panel * 16), $sums[row * $panels + panel]);
                }
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn one<const ROWS: usize, const MODE: u32>(block: &Block) {
    let mut c = sums!(block, ROWS, 1, 12);
    let rows = |row: usize| block.a.wrapping_add(row * block.a_stride);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            "prefetcht0 [{pf}]", "prefetcht0 [{pf}+64]", "add {pf}, {pfs}",
            weights!("even", "28", "{b}", "0"), rows_one!("0"),
            weights!("odd", "28", "{b}", "64"), rows_one!("4"),
            weights!("even", "28", "{b}+64", "128"), rows_one!("8"),
            weights!("odd", "28", "{b}+64", "192"), rows_one!("12"),
            "add {a}, 16",
            ".if {rows} > 3", "add {a3}, 16", ".endif",
            ".if {rows} > 6", "add {a6}, 16", ".endif",
            ".if {rows} > 9", "add {a9}, 16", ".endif",
            ".if {mode} > 0", "add {wide}, 256", ".endif",
            "add {b}, 128", "dec {n}", "jnz 2b", "3:",
            "# {s}",
            rows = const ROWS, mode = const MODE,
            a = inout(reg) rows(0) => _, a3 = inout(reg) rows(3) => _, a6 = inout(reg) rows(6) => _,
            a9 = inout(reg) rows(9) => _, s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, n = inout(reg) block.terms / 4 => _, wide = inout(reg) block.wide => _,
            pf = inout(reg) block.ahead.start => _, pfs = in(reg) block.ahead.step,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            out("zmm28") _, out("zmm30") _, in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 1, c);
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn two<const ROWS: usize, const MODE: u32>(block: &Block) {
    let mut c = sums!(block, ROWS, 2, 24);
    let rows = |row: usize| block.a.wrapping_add(row * block.a_stride);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            "prefetcht0 [{pf}]", "prefetcht0 [{pf}+64]", "prefetcht0 [{pf}+{pfd}]", "prefetcht0 [{pf}+{pfd}+64]",
            "add {pf}, {pfs}",
            weights!("even", "28", "{b}", "0"), weights!("even", "29", "{b}+{bs}", "64"), rows_two!("0"),
            weights!("odd", "28", "{b}", "128"), weights!("odd", "29", "{b}+{bs}", "192"), rows_two!("4"),
            weights!("even", "28", "{b}+64", "256"), weights!("even", "29", "{b}+{bs}+64", "320"), rows_two!("8"),
            weights!("odd", "28", "{b}+64", "384"), weights!("odd", "29", "{b}+{bs}+64", "448"), rows_two!("12"),
            "add {a}, 16",
            ".if {rows} > 3", "add {a3}, 16", ".endif",
            ".if {rows} > 6", "add {a6}, 16", ".endif",
            ".if {rows} > 9", "add {a9}, 16", ".endif",
            ".if {mode} > 0", "add {wide}, 512", ".endif",
            "add {b}, 128", "dec {n}", "jnz 2b", "3:",
            "# {s} {bs}",
            rows = const ROWS, mode = const MODE,
            a = inout(reg) rows(0) => _, a3 = inout(reg) rows(3) => _, a6 = inout(reg) rows(6) => _,
            a9 = inout(reg) rows(9) => _, s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, bs = in(reg) block.b_stride,
            n = inout(reg) block.terms / 4 => _, wide = inout(reg) block.wide => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            inout("zmm12") c[12], inout("zmm13") c[13], inout("zmm14") c[14], inout("zmm15") c[15],
            inout("zmm16") c[16], inout("zmm17") c[17], inout("zmm18") c[18], inout("zmm19") c[19],
            inout("zmm20") c[20], inout("zmm21") c[21], inout("zmm22") c[22], inout("zmm23") c[23],
            out("zmm28") _, out("zmm29") _, out("zmm30") _, in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 2, c);
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn four<const ROWS: usize>(block: &Block) {
    let mut c = sums!(block, ROWS, 4, 24);
    let rows = |row: usize| block.a.wrapping_add(row * block.a_stride);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            "prefetcht0 [{pf}]", "prefetcht0 [{pf}+{pfd}]", "prefetcht0 [{pf}+2*{pfd}]", "prefetcht0 [{pf3}]",
            "vpslld zmm26, [{b}], 16", "vpslld zmm27, [{b}+{bs}], 16",
            "vpslld zmm28, [{b}+2*{bs}], 16", "vpslld zmm29, [{b3}], 16", rows_four!("0"),
            "vpandd zmm26, zmm31, [{b}]", "vpandd zmm27, zmm31, [{b}+{bs}]",
            "vpandd zmm28, zmm31, [{b}+2*{bs}]", "vpandd zmm29, zmm31, [{b3}]", rows_four!("4"),
            "prefetcht0 [{pf}+64]", "prefetcht0 [{pf}+{pfd}+64]", "prefetcht0 [{pf}+2*{pfd}+64]", "prefetcht0 [{pf3}+64]",
            "add {pf}, {pfs}", "add {pf3}, {pfs}",
            "vpslld zmm26, [{b}+64], 16", "vpslld zmm27, [{b}+{bs}+64], 16",
            "vpslld zmm28, [{b}+2*{bs}+64], 16", "vpslld zmm29, [{b3}+64], 16", rows_four!("8"),
            "vpandd zmm26, zmm31, [{b}+64]", "vpandd zmm27, zmm31, [{b}+{bs}+64]",
            "vpandd zmm28, zmm31, [{b}+2*{bs}+64]", "vpandd zmm29, zmm31, [{b3}+64]", rows_four!("12"),
            "add {a}, 16",
            ".if {rows} > 3", "add {a3}, 16", ".endif",
            "add {b}, 128", "add {b3}, 128", "dec {n}", "jnz 2b", "3:",
            "# {s} {a3}",
            rows = const ROWS,
            a = inout(reg) rows(0) => _, a3 = inout(reg) rows(3) => _, s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, bs = in(reg) block.b_stride,
            b3 = inout(reg) block.b.wrapping_add(3 * block.b_stride) => _, n = inout(reg) block.terms / 4 => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            pf3 = inout(reg) block.ahead.start.wrapping_add(3 * block.ahead.stride) => _,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            inout("zmm12") c[12], inout("zmm13") c[13], inout("zmm14") c[14], inout("zmm15") c[15],
            inout("zmm16") c[16], inout("zmm17") c[17], inout("zmm18") c[18], inout("zmm19") c[19],
            inout("zmm20") c[20], inout("zmm21") c[21], inout("zmm22") c[22], inout("zmm23") c[23],
            out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
            in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 4, c);
}
