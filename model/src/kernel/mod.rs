//! Kernels: packed weights times rows, and the sums of the trunk, with one order of summation each.
//!
//! A result never depends on which rows it is computed with, on the number of threads or on the instruction
//! path; only on the numeric class. [`gemm`] says in what order each class sums, [`math`] the same for what runs
//! over lanes. Unsafe code lives in `memory`, `rows`, `matrix`, `pack`, `dispatch`,
//! `drive`, `finish`, `tile`, `limits`, `plain` and the files of the paths.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, unused_variables, unused_mut, reason = "other CPUs have the plain path alone")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(target_arch = "x86_64")]
mod avx512f;
mod bf16;
mod block;
mod class;
mod dispatch;
mod drive;
mod finish;
mod fused;
mod gemm;
mod limits;
pub mod math;
mod matrix;
mod memory;
mod pack;
mod path;
mod plain;
mod rows;
mod selftest;
mod tile;

pub use bf16::{NAN as BF16_NAN, round as round_bf16, widen as widen_bf16};
pub use class::{KernelError, Kernels, NumericClass, Path, RowType};
pub use gemm::{Activation, Sink, Task, Then, multiply, multiply_twice};
pub use limits::{multiply_add_peak, read_bandwidth};
pub use matrix::{Element, Matrix, MatrixBuilder, Placement, Shape};
pub use memory::{Part, Region};
pub use rows::{RowOut, RowsMut, RowsRef};
pub use selftest::{Admission, Fingerprint};
pub use tile::{TILE_ROWS_MAX, tile, tile_f32};
