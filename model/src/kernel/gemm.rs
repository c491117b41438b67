//! Rows times packed weights, for one large matrix or many small ones at once.
//!
//! The order of every sum, per output element:
//! - BF16 or f32 rows in the classes f32 and portable, and f32 rows or f32 weights in any class: one f32 accumulator
//!   from +0.0, one fused multiply-add per k, k ascending.
//! - BF16 rows and weights in the class avx512bf16: `vdpbf16ps` over pairs of k, ascending.
//!
//! Then the bias, if any, is added. So a result depends on its row and its column of weights, and not on
//! the other rows, the tiling or the number of threads.

use super::Kernels;
use super::drive::drive;
use super::matrix::Matrix;
use super::rows::{RowOut, RowsMut, RowsRef};
use crate::pool::Pool;

/// What joins gate and up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// silu(gate) * up.
    Silu,
    /// GPT-OSS: gate at most `limit`, up within `limit`, `(up + 1) * gate * sigmoid(alpha * gate)`.
    ClampedSwiglu {
        /// The factor inside the sigmoid.
        alpha: f32,
        /// Where both are cut.
        limit: f32,
    },
}

/// Where results go.
#[derive(Debug)]
pub enum Sink<'a> {
    /// As they are.
    Store(RowsMut<'a, f32>),
    /// Added to what is there, one f32 addition each.
    Add(RowsMut<'a, f32>),
    /// Rounded to the row type.
    Round(RowOut<'a>),
    /// Gate and up joined, then rounded to the row type; the matrix is gated and the window half as wide.
    Gate {
        /// How they are joined.
        activation: Activation,
        /// Where the result goes.
        out: RowOut<'a>,
    },
}

impl Sink<'_> {
    fn rows(&self) -> usize {
        match self {
            Sink::Store(out) | Sink::Add(out) => out.rows(),
            Sink::Round(out) | Sink::Gate { out, .. } => out.rows(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Sink::Store(out) | Sink::Add(out) => out.columns(),
            Sink::Round(out) | Sink::Gate { out, .. } => out.columns(),
        }
    }
}

/// One matrix times some rows.
#[derive(Debug)]
pub struct Task<'a> {
    /// The matrix.
    pub weights: &'a Matrix,
    /// Added to every sum; in panel order, as [`Matrix::place_bias`] lays it out.
    pub bias: Option<&'a [f32]>,
    /// Where the rows are.
    pub input: RowsRef<'a>,
    /// Which rows of `input`; without it the first ones.
    pub pick: Option<&'a [u32]>,
    /// How many rows.
    pub rows: usize,
    /// Where the results go.
    pub sink: Sink<'a>,
}

impl Task<'_> {
    /// Everything the kernels rely on when they use pointers.
    fn check(&self) {
        let shape = self.weights.shape();
        let available = self.input.rows(shape.k);
        match self.pick {
            Some(pick) => {
                assert_eq!(pick.len(), self.rows, "rows picked");
                let greatest = pick.iter().copied().max().map_or(0, |row| row as usize + 1);
                assert!(greatest <= available, "row {} picked of {available}", greatest.wrapping_sub(1));
            }
            None => assert!(self.rows <= available, "{} rows of {available}", self.rows),
        }
        let gate = matches!(self.sink, Sink::Gate { .. });
        assert!(!gate || shape.gated, "gate and up of a matrix that is not gated");
        let columns = if gate { shape.n / 2 } else { shape.n };
        assert!(gate || !shape.gated, "a gated matrix without an activation");
        assert_eq!(self.sink.columns(), columns, "columns of the sink");
        assert_eq!(self.sink.rows(), self.rows, "rows of the sink");
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), shape.bias_len(), "values of the bias");
        }
    }

    /// Which row of the input row `row` of the task is.
    pub(super) fn row_index(&self, row: usize) -> usize {
        self.pick.map_or(row, |pick| pick[row] as usize)
    }
}

/// Does all tasks, on all threads of the pool. Tiles are claimed one by one from one counter, so that one large matrix or
/// many small ones keep every thread busy.
pub fn multiply(kernels: Kernels, pool: &Pool, tasks: &mut [Task<'_>]) {
    for task in tasks.iter() {
        task.check();
    }
    drive(kernels, pool, tasks);
}
