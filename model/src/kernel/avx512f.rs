//! AVX-512F: 16 lanes, BF16 weights widened on the way, one fused multiply-add per k.
//!
//! A line of a panel holds two k: the even one in the low halves (a shift by 16), the odd one in the high halves (an AND).
//! Both run on the ports of the multiply-add (0 and 5 on Intel), so a kernel takes as many rows as registers allow: with twelve,
//! 2 of 26 operations. (Keeping the widened weights for later rows was 13% slower at 16 and 24 rows and no
//! faster at 64 and 256: the stores cost what they save.) Sums, weights and the broadcast row value stay in registers: that
//! is what the assembly is for; the compiler spills from 24 sums on. `.if` leaves out the rows that a kernel has not.
//!
//! zmm0-23 sums, zmm28-29 weights, zmm30 the row's value, zmm31 the mask.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::block::{Block, Kernel, STEP};

/// Weights are BF16.
const BF16: u32 = 0;
/// Weights are f32.
const F32: u32 = 1;

/// The most rows of a kernel.
pub(super) const ROWS_MAX: usize = 12;

/// The most rows of a kernel of four panels.
pub(super) const ROWS_MAX_FOUR: usize = 6;

/// The kernel of so many rows and panels (1, 2 or 4), which prefetches or does not, and takes each pair of k as
/// `vdpbf16ps` does or in ascending order.
pub(super) fn kernel(rows: usize, panels: usize, ahead: bool, pairs: bool) -> Kernel {
    match panels {
        1 => ONE[pairs as usize][ahead as usize][rows - 1],
        2 => TWO[pairs as usize][ahead as usize][rows - 1],
        4 => FOUR[pairs as usize][ahead as usize][rows - 1],
        _ => unreachable!("no kernel of {panels} panels"),
    }
}

/// The kernel of one f32 panel `[k][16]`.
pub(super) fn kernel_f32(rows: usize) -> Kernel {
    ONE_F32[rows - 1]
}

macro_rules! twelve {
    ($kernel:ident, $($constant:tt),*) => {
        [
            $kernel::<1, $($constant),*>, $kernel::<2, $($constant),*>, $kernel::<3, $($constant),*>,
            $kernel::<4, $($constant),*>, $kernel::<5, $($constant),*>, $kernel::<6, $($constant),*>,
            $kernel::<7, $($constant),*>, $kernel::<8, $($constant),*>, $kernel::<9, $($constant),*>,
            $kernel::<10, $($constant),*>, $kernel::<11, $($constant),*>, $kernel::<12, $($constant),*>,
        ]
    };
}
macro_rules! six {
    ($ahead:tt, $pairs:tt) => {
        [
            four::<1, $ahead, $pairs>,
            four::<2, $ahead, $pairs>,
            four::<3, $ahead, $pairs>,
            four::<4, $ahead, $pairs>,
            four::<5, $ahead, $pairs>,
            four::<6, $ahead, $pairs>,
        ]
    };
}
static ONE: [[[Kernel; ROWS_MAX]; 2]; 2] = [
    [twelve!(one, BF16, 0, 0), twelve!(one, BF16, 1, 0)],
    [twelve!(one, BF16, 0, 1), twelve!(one, BF16, 1, 1)],
];
static TWO: [[[Kernel; ROWS_MAX]; 2]; 2] =
    [[twelve!(two, 0, 0), twelve!(two, 1, 0)], [twelve!(two, 0, 1), twelve!(two, 1, 1)]];
static FOUR: [[[Kernel; ROWS_MAX_FOUR]; 2]; 2] = [[six!(0, 0), six!(1, 0)], [six!(0, 1), six!(1, 1)]];
static ONE_F32: [Kernel; ROWS_MAX] = twelve!(one, F32, 0, 0);

/// Every exception masked, to nearest even, denormals count as zeros and are not made: how `vdpbf16ps` computes.
static FLUSHED: u32 = 0x1f80 | 0x8000 | 0x0040;

/// Row `$row` at `$address`, if the kernel has it: its value, broadcast, into the sums of each panel. A row whose address is
/// one register is broadcast by the multiply-add itself: one operation fewer to issue, for one load more.
macro_rules! row {
    ($row:literal, $base:literal, $offset:literal; $($sum:literal $weight:literal),*) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            $("vfmadd231ps zmm", $sum, ", zmm", $weight, ", dword ptr [{", $base, "}+", $offset, "]{{1to16}}\n",)*
            ".endif\n"
        )
    };
    ($row:literal, $base:literal, $further:literal, $offset:literal; $($sum:literal $weight:literal),*) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            "vbroadcastss zmm30, dword ptr [{", $base, "}+", $further, "*{s}+", $offset, "]\n",
            $("vfmadd231ps zmm", $sum, ", zmm30, zmm", $weight, "\n",)*
            ".endif\n"
        )
    };
}

/// All rows, for the k at `$o` bytes of each.
macro_rules! rows {
    (1, $o:literal) => {
        concat!(
            row!("0", "a", $o; "0" "28"), row!("1", "a", "1", $o; "1" "28"), row!("2", "a", "2", $o; "2" "28"),
            row!("3", "a3", $o; "3" "28"), row!("4", "a3", "1", $o; "4" "28"), row!("5", "a3", "2", $o; "5" "28"),
            row!("6", "a6", $o; "6" "28"), row!("7", "a6", "1", $o; "7" "28"), row!("8", "a6", "2", $o; "8" "28"),
            row!("9", "a9", $o; "9" "28"), row!("10", "a9", "1", $o; "10" "28"), row!("11", "a9", "2", $o; "11" "28"),
        )
    };
    (2, $o:literal) => {
        concat!(
            row!("0", "a", $o; "0" "28", "1" "29"), row!("1", "a", "1", $o; "2" "28", "3" "29"),
            row!("2", "a", "2", $o; "4" "28", "5" "29"), row!("3", "a3", $o; "6" "28", "7" "29"),
            row!("4", "a3", "1", $o; "8" "28", "9" "29"), row!("5", "a3", "2", $o; "10" "28", "11" "29"),
            row!("6", "a6", $o; "12" "28", "13" "29"), row!("7", "a6", "1", $o; "14" "28", "15" "29"),
            row!("8", "a6", "2", $o; "16" "28", "17" "29"), row!("9", "a9", $o; "18" "28", "19" "29"),
            row!("10", "a9", "1", $o; "20" "28", "21" "29"), row!("11", "a9", "2", $o; "22" "28", "23" "29"),
        )
    };
}

/// One row of four panels, its value broadcast.
macro_rules! row4 {
    ($row:literal, $address:literal, $offset:literal, $($sum:literal),*) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            "vbroadcastss zmm30, dword ptr [", $address, "+", $offset, "]\n",
            row4!(@ $($sum),*),
            ".endif\n"
        )
    };
    (@ $s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
        concat!(
            "vfmadd231ps zmm", $s0, ", zmm30, zmm24\n",
            "vfmadd231ps zmm", $s1, ", zmm30, zmm25\n",
            "vfmadd231ps zmm", $s2, ", zmm30, zmm26\n",
            "vfmadd231ps zmm", $s3, ", zmm30, zmm27\n",
        )
    };
}

/// All rows of four panels, for the k at `$o` bytes of each.
macro_rules! rows4 {
    ($o:literal) => {
        concat!(
            row4!("0", "{a}", $o, "0", "1", "2", "3"),
            row4!("1", "{a}+{s}", $o, "4", "5", "6", "7"),
            row4!("2", "{a}+2*{s}", $o, "8", "9", "10", "11"),
            row4!("3", "{a3}", $o, "12", "13", "14", "15"),
            row4!("4", "{a3}+{s}", $o, "16", "17", "18", "19"),
            row4!("5", "{a3}+2*{s}", $o, "20", "21", "22", "23"),
        )
    };
}

/// The odd k of the line at `$o` bytes of each of four panels, at `$odd` bytes of the rows.
macro_rules! odd4 {
    ($o:literal, $odd:literal) => {
        concat!(
            "vpandd zmm24, zmm31, [{b}+",
            $o,
            "]\nvpandd zmm25, zmm31, [{b}+{bs}+",
            $o,
            "]\n",
            "vpandd zmm26, zmm31, [{b}+2*{bs}+",
            $o,
            "]\nvpandd zmm27, zmm31, [{b3}+",
            $o,
            "]\n",
            rows4!($odd)
        )
    };
}

/// Both k of a line of four panels.
macro_rules! line4 {
    ($o:literal, $even:literal, $odd:literal) => {
        concat!(
            ".if {ahead}\nprefetcht1 [{pf}+",
            $o,
            "]\nprefetcht1 [{pf}+{pfd}+",
            $o,
            "]\n",
            "prefetcht1 [{pf}+2*{pfd}+",
            $o,
            "]\nprefetcht1 [{pf3}+",
            $o,
            "]\n.endif\n",
            ".if {pairs}\n",
            odd4!($o, $odd),
            ".endif\n",
            "vpslld zmm24, [{b}+",
            $o,
            "], 16\nvpslld zmm25, [{b}+{bs}+",
            $o,
            "], 16\n",
            "vpslld zmm26, [{b}+2*{bs}+",
            $o,
            "], 16\nvpslld zmm27, [{b3}+",
            $o,
            "], 16\n",
            rows4!($even),
            ".if {pairs} == 0\n",
            odd4!($o, $odd),
            ".endif\n",
        )
    };
}

/// Both k of the line at `$o` bytes of each panel, at `$even` and `$odd` bytes of the rows: the even one first, or in
/// pairs the odd one. One f32 panel has them in two lines, at `$w0` and `$w1`.
macro_rules! line {
    (1, $o:literal, $even:literal, $odd:literal; $w0:literal, $w1:literal) => {
        concat!(
            ".if {ahead}\nprefetcht1 [{pf}+",
            $o,
            "]\n.endif\n",
            ".if {pairs}\n",
            odd!(1, $o, $odd),
            ".endif\n",
            ".if {mode}\nvmovups zmm28, [{b}+",
            $w0,
            "]\n.else\nvpslld zmm28, [{b}+",
            $o,
            "], 16\n.endif\n",
            rows!(1, $even),
            ".if {mode}\nvmovups zmm28, [{b}+",
            $w1,
            "]\n",
            rows!(1, $odd),
            ".elseif {pairs} == 0\n",
            odd!(1, $o, $odd),
            ".endif\n",
        )
    };
    (2, $o:literal, $even:literal, $odd:literal) => {
        concat!(
            ".if {ahead}\nprefetcht1 [{pf}+",
            $o,
            "]\nprefetcht1 [{pf}+{pfd}+",
            $o,
            "]\n.endif\n",
            ".if {pairs}\n",
            odd!(2, $o, $odd),
            ".endif\n",
            "vpslld zmm28, [{b}+",
            $o,
            "], 16\nvpslld zmm29, [{b1}+",
            $o,
            "], 16\n",
            rows!(2, $even),
            ".if {pairs} == 0\n",
            odd!(2, $o, $odd),
            ".endif\n",
        )
    };
}

/// The odd k of the line at `$o` bytes of each panel, at `$odd` bytes of the rows.
macro_rules! odd {
    (1, $o:literal, $odd:literal) => {
        concat!("vpandd zmm28, zmm31, [{b}+", $o, "]\n", rows!(1, $odd))
    };
    (2, $o:literal, $odd:literal) => {
        concat!("vpandd zmm28, zmm31, [{b}+", $o, "]\nvpandd zmm29, zmm31, [{b1}+", $o, "]\n", rows!(2, $odd))
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
                    let at = row * $block.c_stride + panel * $block.c_apart;
                    // SAFETY: the caller promises so many sums.
                    let before = unsafe { _mm512_loadu_ps($block.c.add(at)) };
                    sums[row * $panels + panel] = before;
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
                    _mm512_storeu_ps(
                        $block.c.add(row * $block.c_stride + panel * $block.c_apart),
                        $sums[row * $panels + panel],
                    );
                }
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn one<const ROWS: usize, const MODE: u32, const AHEAD: usize, const PAIRS: usize>(block: &Block) {
    let mut control = 0_u32;
    let mut c = sums!(block, ROWS, 1, 12);
    let row = |row: usize| block.a.wrapping_add(row * block.a_stride);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            ".if {pairs}", "stmxcsr [{control}]", "ldmxcsr [rip + {flushed}]", ".endif",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            line!(1, "0", "0", "4"; "0", "64"),
            line!(1, "64", "8", "12"; "128", "192"),
            line!(1, "128", "16", "20"; "256", "320"),
            line!(1, "192", "24", "28"; "384", "448"),
            ".if {ahead}", "add {pf}, {pfs}", ".endif",
            "add {a}, 32",
            ".if {rows} > 3", "add {a3}, 32", ".endif",
            ".if {rows} > 6", "add {a6}, 32", ".endif",
            ".if {rows} > 9", "add {a9}, 32", ".endif",
            ".if {mode}", "add {b}, 512", ".else", "add {b}, 256", ".endif",
            "dec {n}", "jnz 2b", "3:",
            ".if {pairs}", "ldmxcsr [{control}]", ".endif", "# {s} {a3} {pf} {pfs} {b} {a6} {a9} {control}",
            rows = const ROWS, mode = const MODE, ahead = const AHEAD, pairs = const PAIRS, flushed = sym FLUSHED,
            control = in(reg) &raw mut control,
            a = inout(reg) row(0) => _, a3 = inout(reg) row(3) => _, s = in(reg) block.a_stride * 4,
            a6 = inout(reg) row(6) => _, a9 = inout(reg) row(9) => _,
            b = inout(reg) block.b => _,
            n = inout(reg) block.terms / STEP => _,
            pf = inout(reg) block.ahead.start => _, pfs = in(reg) block.ahead.step,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            out("zmm28") _, out("zmm30") _,
            in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 1, c);
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn two<const ROWS: usize, const AHEAD: usize, const PAIRS: usize>(block: &Block) {
    let mut control = 0_u32;
    let mut c = sums!(block, ROWS, 2, 24);
    let row = |row: usize| block.a.wrapping_add(row * block.a_stride);
    let panel = |panel: usize| block.b.wrapping_add(panel * block.b_stride);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            ".if {pairs}", "stmxcsr [{control}]", "ldmxcsr [rip + {flushed}]", ".endif",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            line!(2, "0", "0", "4"),
            line!(2, "64", "8", "12"),
            line!(2, "128", "16", "20"),
            line!(2, "192", "24", "28"),
            ".if {ahead}", "add {pf}, {pfs}", ".endif",
            "add {a}, 32",
            ".if {rows} > 3", "add {a3}, 32", ".endif",
            ".if {rows} > 6", "add {a6}, 32", ".endif",
            ".if {rows} > 9", "add {a9}, 32", ".endif",
            "add {b}, 256", "add {b1}, 256",
            "dec {n}", "jnz 2b", "3:",
            ".if {pairs}", "ldmxcsr [{control}]", ".endif", "# {s} {a3} {pf} {pfs} {b} {b1} {a6} {a9} {pfd} {control}",
            rows = const ROWS, ahead = const AHEAD, pairs = const PAIRS, flushed = sym FLUSHED,
            control = in(reg) &raw mut control,
            a = inout(reg) row(0) => _, a3 = inout(reg) row(3) => _, s = in(reg) block.a_stride * 4,
            a6 = inout(reg) row(6) => _, a9 = inout(reg) row(9) => _,
            b = inout(reg) panel(0) => _, b1 = inout(reg) panel(1) => _,
            n = inout(reg) block.terms / STEP => _,
            pf = inout(reg) block.ahead.start => _, pfs = in(reg) block.ahead.step, pfd = in(reg) block.ahead.stride,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            inout("zmm12") c[12], inout("zmm13") c[13], inout("zmm14") c[14], inout("zmm15") c[15],
            inout("zmm16") c[16], inout("zmm17") c[17], inout("zmm18") c[18], inout("zmm19") c[19],
            inout("zmm20") c[20], inout("zmm21") c[21], inout("zmm22") c[22], inout("zmm23") c[23],
            out("zmm28") _, out("zmm29") _, out("zmm30") _,
            in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 2, c);
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn four<const ROWS: usize, const AHEAD: usize, const PAIRS: usize>(block: &Block) {
    let mut control = 0_u32;
    let mut c = sums!(block, ROWS, 4, 24);
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            ".if {pairs}", "stmxcsr [{control}]", "ldmxcsr [rip + {flushed}]", ".endif",
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            line4!("0", "0", "4"),
            line4!("64", "8", "12"),
            line4!("128", "16", "20"),
            line4!("192", "24", "28"),
            ".if {ahead}", "add {pf}, {pfs}", "add {pf3}, {pfs}", ".endif",
            "add {a}, 32",
            ".if {rows} > 3", "add {a3}, 32", ".endif",
            "add {b}, 256", "add {b3}, 256",
            "dec {n}", "jnz 2b", "3:",
            ".if {pairs}", "ldmxcsr [{control}]", ".endif", "# {s} {a3} {pf} {pf3} {pfs} {pfd} {control}",
            rows = const ROWS, ahead = const AHEAD, pairs = const PAIRS, flushed = sym FLUSHED,
            control = in(reg) &raw mut control,
            a = inout(reg) block.a => _, a3 = inout(reg) block.a.wrapping_add(3 * block.a_stride) => _,
            s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, bs = in(reg) block.b_stride,
            b3 = inout(reg) block.b.wrapping_add(3 * block.b_stride) => _,
            n = inout(reg) block.terms / STEP => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            pf3 = inout(reg) block.ahead.start.wrapping_add(3 * block.ahead.stride) => _,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            inout("zmm12") c[12], inout("zmm13") c[13], inout("zmm14") c[14], inout("zmm15") c[15],
            inout("zmm16") c[16], inout("zmm17") c[17], inout("zmm18") c[18], inout("zmm19") c[19],
            inout("zmm20") c[20], inout("zmm21") c[21], inout("zmm22") c[22], inout("zmm23") c[23],
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm30") _,
            in("zmm31") _mm512_set1_epi32(0xffff_0000_u32 as i32),
            options(nostack)
        );
    }
    keep_sums!(block, ROWS, 4, c);
}

/// The most multiply-adds there can be: twelve independent sums in registers.
#[target_feature(enable = "avx512f")]
pub(super) fn peak(turns: usize) -> f32 {
    let (x, y) = (_mm512_set1_ps(1.000_000_1), _mm512_set1_ps(1e-9));
    let mut sums = [_mm512_set1_ps(0.5); 12];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, x, y);
        }
    }
    _mm512_reduce_add_ps(sums.into_iter().fold(x, |all, sum| _mm512_add_ps(all, sum)))
}
