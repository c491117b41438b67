//! What this machine can do at most, measured beside a benchmark and on the same threads.
//!
//! Not pure: it reads the clock. On a shared machine the limits move within minutes, so a benchmark takes them in short
//! windows, alternating with what it measures, and prints ratios.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::dispatch::dispatched;
use super::fused::Fused;
use super::{Kernels, Path, Region};
use crate::pool::Pool;

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512bf16, avx512f};

/// Bytes a thread claims at a time.
const CHUNK: usize = 1 << 20;
/// Read streams per thread. Four with a short prefetch read fastest, of 1, 2, 4, 8 and distances up to 4 KiB.
const STREAMS: usize = 4;
const AHEAD: usize = 512;

/// How fast the threads of the pool together read `bytes` of `memory` from `offset` on, in GB/s. Walk through much more
/// memory than the caches hold, and write it once before: pages that were never written are all one page.
pub fn read_bandwidth(kernels: Kernels, pool: &Pool, memory: &Region, offset: usize, bytes: usize) -> f64 {
    assert!(offset + bytes <= memory.bytes(), "{bytes} bytes from {offset} on, of {}", memory.bytes());
    assert!(
        offset.is_multiple_of(64) && bytes.is_multiple_of(CHUNK),
        "{bytes} bytes from {offset} on are not whole pieces of {CHUNK}"
    );
    let next = AtomicUsize::new(0);
    let start = memory.as_ptr() as usize + offset;
    let clock = Instant::now();
    pool.run(&|_| {
        loop {
            let at = next.fetch_add(CHUNK, Ordering::Relaxed);
            if at >= bytes {
                break;
            }
            // SAFETY: inside the region, which lives; any bits are a u64.
            black_box(read(kernels, unsafe {
                std::slice::from_raw_parts((start + at) as *const [u64; 8], CHUNK / 64)
            }));
        }
    });
    bytes as f64 / clock.elapsed().as_secs_f64() * 1e-9
}

#[inline(always)]
fn read_body<F: Fused>(lines: &[[u64; 8]]) -> u64 {
    let stream = lines.len() / STREAMS;
    let mut sums = [[0_u64; 8]; STREAMS];
    for index in 0..stream {
        for (number, sum) in sums.iter_mut().enumerate() {
            let line = &lines[number * stream + index];
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let ahead = (line as *const [u64; 8]).cast::<i8>().wrapping_add(AHEAD);
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
            }
            for lane in 0..8 {
                sum[lane] ^= line[lane];
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all ^ sum)
}
dispatched! { fn read(lines: &[[u64; 8]]) -> u64 = read_body }

/// How many GFLOP/s the threads of the pool together reach with the multiply-add of the path (pairs count
/// as two), in a window of about `window`.
pub fn multiply_add_peak(kernels: Kernels, pool: &Pool, window: Duration) -> f64 {
    let rate = |turns: usize| {
        let work = AtomicUsize::new(0);
        let clock = Instant::now();
        pool.run(&|_| {
            work.fetch_add(turn(kernels, turns), Ordering::Relaxed);
        });
        (work.into_inner() as f64, clock.elapsed().as_secs_f64())
    };
    // A short run says how long a run must be.
    let (_, seconds) = rate(2_000);
    let turns = (2_000.0 * window.as_secs_f64() / seconds).clamp(2_000.0, 1e9) as usize;
    let (work, seconds) = rate(turns);
    work / seconds * 1e-9
}

/// Multiplies and adds in registers; returns how many operations that were.
fn turn(kernels: Kernels, turns: usize) -> usize {
    match kernels.path() {
        Path::Plain => {
            black_box(plain_peak(kernels, turns));
            turns * SUMS * 4 * 2
        }
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => {
            // SAFETY: a `Kernels` exists only for a path whose features this CPU has.
            black_box(unsafe { avx2::peak(turns) });
            turns * 12 * 8 * 2
        }
        #[cfg(target_arch = "x86_64")]
        Path::Avx512f => {
            // SAFETY: as above.
            black_box(unsafe { avx512f::peak(turns) });
            turns * 12 * 16 * 2
        }
        #[cfg(target_arch = "x86_64")]
        Path::Avx512Bf16 => {
            // SAFETY: as above.
            black_box(unsafe { avx512bf16::peak(turns) });
            turns * 12 * 32 * 2
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("this path runs on x86-64 alone"),
    }
}

/// Whether `vdpbf16ps` is so slow here that multiply-adds on widened pairs take less time. On Sapphire Rapids it
/// does half as many of them per cycle; on Zen 5 it does twice as many.
pub(super) fn pairs_are_slow() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static SLOW: OnceLock<bool> = OnceLock::new();
        *SLOW.get_or_init(|| {
            if Path::Avx512Bf16.missing_feature().is_some() {
                return false;
            }
            // The least of some windows of microseconds: others may run on this core meanwhile.
            let mut best = [Duration::MAX; 2];
            for _ in 0..20 {
                let clock = Instant::now();
                // SAFETY: the features were found above.
                black_box(unsafe { avx512bf16::peak(black_box(500)) });
                best[0] = best[0].min(clock.elapsed());
                let clock = Instant::now();
                // SAFETY: as above.
                black_box(unsafe { avx512f::peak(black_box(1000)) });
                best[1] = best[1].min(clock.elapsed());
            }
            // Widening costs up to a third where few rows share it.
            best[0] > best[1].mul_f64(1.4)
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Sums of four lanes: eight hide the latency of NEON's two or four pipes.
const SUMS: usize = 16;

#[inline(always)]
fn plain_peak_body<F: Fused>(turns: usize) -> f32 {
    let (x, y) = (black_box([1.000_000_1_f32; 4]), black_box([1e-9_f32; 4]));
    let mut sums = [[0.5_f32; 4]; SUMS];
    for _ in 0..turns {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] = F::fused(sum[lane], x[lane], y[lane]);
            }
        }
    }
    sums.iter().flatten().sum()
}
dispatched! { fn plain_peak(turns: usize) -> f32 = plain_peak_body }

#[cfg(test)]
mod tests {
    use super::super::NumericClass;
    use super::*;

    /// The probes give numbers a machine can have.
    #[test]
    fn limits_are_plausible() {
        let memory = Region::new(8 << 20);
        let pool = Pool::new(2, None);
        for path in [Path::Plain, Path::Avx2, Path::Avx512f] {
            let Ok(kernels) = Kernels::new(NumericClass::Portable, path) else {
                continue;
            };
            let peak = multiply_add_peak(kernels, &pool, Duration::from_millis(2));
            let read = read_bandwidth(kernels, &pool, &memory, 0, 8 << 20);
            println!("{path}: {peak:.0} GFLOP/s, {read:.0} GB/s");
            // No lower bound: others may run on these cores, and a window is short.
            assert!(peak > 0.0 && peak < 1e5 && read > 0.0 && read < 1e5);
        }
    }
}
