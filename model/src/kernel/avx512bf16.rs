//! AVX-512 BF16: 16 lanes of pairs, `vdpbf16ps`.
//!
//! A line of a panel is sixteen pairs of k, a row's value is a pair broadcast, and the instruction multiplies and adds both
//! elements of each pair. Nothing is widened, so four panels of six rows are 24 sums with four loads.
//!
//! zmm0-23 sums, zmm26-29 weights, zmm30 the row's pair.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_reduce_add_ps,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::block::{Block, Kernel, STEP};

/// The most rows of a kernel.
pub(super) const ROWS_MAX: usize = 6;

/// The kernel of so many rows and panels (1, 2 or 4).
pub(super) fn kernel(rows: usize, panels: usize) -> Kernel {
    match panels {
        1 => ONE[rows - 1],
        2 => TWO[rows - 1],
        4 => FOUR[rows - 1],
        _ => unreachable!("no kernel of {panels} panels"),
    }
}

macro_rules! six {
    ($panels:literal) => {
        [
            pairs::<1, $panels>,
            pairs::<2, $panels>,
            pairs::<3, $panels>,
            pairs::<4, $panels>,
            pairs::<5, $panels>,
            pairs::<6, $panels>,
        ]
    };
}
static ONE: [Kernel; ROWS_MAX] = six!(1);
static TWO: [Kernel; ROWS_MAX] = six!(2);
static FOUR: [Kernel; ROWS_MAX] = six!(4);

/// Row `$row` at `$address`, if the kernel has it: broadcast a pair, and into the sums of each panel.
macro_rules! row {
    ($row:literal, $address:literal, $offset:literal; $($panel:literal $sum:literal $weight:literal),*) => {
        concat!(
            ".if {rows} > ", $row, "\n",
            "vpbroadcastd zmm30, dword ptr [", $address, "+", $offset, "]\n",
            $(".if {panels} > ", $panel, "\nvdpbf16ps zmm", $sum, ", zmm30, zmm", $weight, "\n.endif\n",)*
            ".endif\n"
        )
    };
}

/// All rows, for the pair at `$o` bytes of each.
macro_rules! rows {
    ($o:literal) => {
        concat!(
            row!("0", "{a}", $o; "0" "0" "26", "1" "1" "27", "2" "2" "28", "3" "3" "29"),
            row!("1", "{a}+{s}", $o; "0" "4" "26", "1" "5" "27", "2" "6" "28", "3" "7" "29"),
            row!("2", "{a}+2*{s}", $o; "0" "8" "26", "1" "9" "27", "2" "10" "28", "3" "11" "29"),
            row!("3", "{a3}", $o; "0" "12" "26", "1" "13" "27", "2" "14" "28", "3" "15" "29"),
            row!("4", "{a3}+{s}", $o; "0" "16" "26", "1" "17" "27", "2" "18" "28", "3" "19" "29"),
            row!("5", "{a3}+2*{s}", $o; "0" "20" "26", "1" "21" "27", "2" "22" "28", "3" "23" "29"),
        )
    };
}

/// One line of each panel, and what is prefetched meanwhile, `$o` bytes on.
macro_rules! line {
    ($o:literal) => {
        concat!(
            "prefetcht1 [{pf}+",
            $o,
            "]\nvmovups zmm26, [{b}+",
            $o,
            "]\n",
            ".if {panels} > 1\nprefetcht1 [{pf}+{pfd}+",
            $o,
            "]\nvmovups zmm27, [{b}+{bs}+",
            $o,
            "]\n.endif\n",
            ".if {panels} > 2\nprefetcht1 [{pf}+2*{pfd}+",
            $o,
            "]\nvmovups zmm28, [{b}+2*{bs}+",
            $o,
            "]\n",
            "prefetcht1 [{pf3}+",
            $o,
            "]\nvmovups zmm29, [{b3}+",
            $o,
            "]\n.endif\n",
        )
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pairs<const ROWS: usize, const PANELS: usize>(block: &Block) {
    // Sum `row * 4 + panel`, also where there are fewer panels.
    let mut c: [__m512; 24] = [_mm512_setzero_ps(); 24];
    let sum = |row: usize, panel: usize| block.c.wrapping_add(row * block.c_stride + panel * block.c_apart);
    if block.accumulate {
        for row in 0..ROWS {
            for panel in 0..PANELS {
                // SAFETY: the caller promises so many sums.
                c[row * 4 + panel] = unsafe { _mm512_loadu_ps(sum(row, panel)) };
            }
        }
    }
    // SAFETY: reads the rows and lines that the caller promises, and 0 terms when there are none.
    unsafe {
        asm!(
            "test {n}, {n}", "jz 3f",
            ".p2align 5", "2:",
            line!("0"), rows!("0"), line!("64"), rows!("4"), line!("128"), rows!("8"), line!("192"), rows!("12"),
            "add {pf}, {pfs}",
            "add {a}, 16",
            ".if {rows} > 3", "add {a3}, 16", ".endif",
            ".if {panels} > 2", "add {b3}, 256", "add {pf3}, {pfs}", ".endif",
            "add {b}, 256", "dec {n}", "jnz 2b", "3:",
            "# {s} {a3} {bs} {b3} {pfd} {pf3}",
            rows = const ROWS, panels = const PANELS,
            a = inout(reg) block.a => _, a3 = inout(reg) block.a.wrapping_add(3 * block.a_stride) => _,
            s = in(reg) block.a_stride * 4,
            b = inout(reg) block.b => _, bs = in(reg) block.b_stride,
            b3 = inout(reg) block.b.wrapping_add(3 * block.b_stride) => _, n = inout(reg) block.terms / STEP => _,
            pf = inout(reg) block.ahead.start => _, pfd = in(reg) block.ahead.stride, pfs = in(reg) block.ahead.step,
            pf3 = inout(reg) block.ahead.start.wrapping_add(3 * block.ahead.stride) => _,
            inout("zmm0") c[0], inout("zmm1") c[1], inout("zmm2") c[2], inout("zmm3") c[3],
            inout("zmm4") c[4], inout("zmm5") c[5], inout("zmm6") c[6], inout("zmm7") c[7],
            inout("zmm8") c[8], inout("zmm9") c[9], inout("zmm10") c[10], inout("zmm11") c[11],
            inout("zmm12") c[12], inout("zmm13") c[13], inout("zmm14") c[14], inout("zmm15") c[15],
            inout("zmm16") c[16], inout("zmm17") c[17], inout("zmm18") c[18], inout("zmm19") c[19],
            inout("zmm20") c[20], inout("zmm21") c[21], inout("zmm22") c[22], inout("zmm23") c[23],
            out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
            options(nostack)
        );
    }
    for row in 0..ROWS {
        for panel in 0..PANELS {
            // SAFETY: the caller promises so many sums.
            unsafe { _mm512_storeu_ps(sum(row, panel), c[row * 4 + panel]) };
        }
    }
}

/// The most multiply-adds there can be: twelve independent sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn peak(turns: usize) -> f32 {
    let pair = _mm512_set1_epi32(0x3f80_3f80);
    // SAFETY: both types are 512 bits, and any bits are BF16 values.
    let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(pair) };
    let mut sums = [_mm512_setzero_ps(); 12];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |all, sum| _mm512_add_ps(all, sum)))
}
