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
use super::matrix::{Matrix, Shape};
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

    pub(super) fn columns(&self) -> usize {
        match self {
            Sink::Store(out) | Sink::Add(out) => out.columns(),
            Sink::Round(out) | Sink::Gate { out, .. } => out.columns(),
        }
    }

    /// Whether results are rounded to BF16.
    pub(super) fn rounds(&self) -> bool {
        matches!(self, Sink::Round(RowOut::Bf16(_)) | Sink::Gate { out: RowOut::Bf16(_), .. })
    }

    /// What was written, to be read.
    ///
    /// # Safety
    /// Nobody writes there while the view lives.
    unsafe fn results(&self) -> RowsRef<'_> {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                Sink::Store(out)
                | Sink::Add(out)
                | Sink::Round(RowOut::F32(out))
                | Sink::Gate { out: RowOut::F32(out), .. } => {
                    let (data, stride) = out.written();
                    RowsRef::F32 { data, stride }
                }
                Sink::Round(RowOut::Bf16(out)) | Sink::Gate { out: RowOut::Bf16(out), .. } => {
                    let (data, stride) = out.written();
                    RowsRef::Bf16 { data, stride }
                }
            }
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
        check_results(shape, self.rows, self.bias, &self.sink);
    }

    pub(super) fn job(&self) -> Job<'_> {
        Job { weights: self.weights, bias: self.bias, input: self.input, pick: self.pick, sink: &self.sink }
    }
}

/// What is done with a task's results: they are the rows of a second matrix.
#[derive(Debug)]
pub struct Then<'a> {
    /// The second matrix.
    pub weights: &'a Matrix,
    /// Its bias, as a task's.
    pub bias: Option<&'a [f32]>,
    /// Where its results go.
    pub sink: Sink<'a>,
}

impl Then<'_> {
    /// As a task whose rows are the results of `first`.
    ///
    /// # Safety
    /// `first` is complete: nobody writes its results while the job lives.
    pub(super) unsafe fn job<'a>(&'a self, first: &'a Task<'_>) -> Job<'a> {
        // SAFETY: promised by the caller.
        let input = unsafe { first.sink.results() };
        Job { weights: self.weights, bias: self.bias, input, pick: None, sink: &self.sink }
    }

    fn check(&self, first: &Task<'_>) {
        let shape = self.weights.shape();
        assert_eq!(first.sink.columns(), shape.k, "columns of the first results");
        assert!(!matches!(first.sink, Sink::Add(_)), "results added to something are no rows");
        check_results(shape, first.rows, self.bias, &self.sink);
    }
}

/// A task as a thread computes it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) weights: &'a Matrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) input: RowsRef<'a>,
    pub(super) pick: Option<&'a [u32]>,
    pub(super) sink: &'a Sink<'a>,
}

impl Job<'_> {
    /// Which row of the input row `row` of the task is.
    pub(super) fn row_index(&self, row: usize) -> usize {
        self.pick.map_or(row, |pick| pick[row] as usize)
    }
}

fn check_results(shape: Shape, rows: usize, bias: Option<&[f32]>, sink: &Sink<'_>) {
    let gate = matches!(sink, Sink::Gate { .. });
    assert!(!gate || shape.gated, "gate and up of a matrix that is not gated");
    let columns = if gate { shape.n / 2 } else { shape.n };
    assert!(gate || !shape.gated, "a gated matrix without an activation");
    assert_eq!(sink.columns(), columns, "columns of the sink");
    assert_eq!(sink.rows(), rows, "rows of the sink");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), shape.bias_len(), "values of the bias");
    }
}

/// Does all tasks, on all threads of the pool. Tiles are claimed one by one from one counter, so that one large matrix or
/// many small ones keep every thread busy.
pub fn multiply(kernels: Kernels, pool: &Pool, tasks: &mut [Task<'_>]) {
    for task in tasks.iter() {
        task.check();
    }
    drive(kernels, pool, tasks, &[]);
}

/// Does all tasks and with the results of each what stands at its place in `then`. No thread waits for the others in
/// between, unless there is nothing else to do.
pub fn multiply_twice(kernels: Kernels, pool: &Pool, tasks: &mut [Task<'_>], then: &mut [Then<'_>]) {
    assert_eq!(tasks.len(), then.len(), "second products for the tasks");
    for (task, then) in tasks.iter().zip(then.iter()) {
        task.check();
        then.check(task);
    }
    drive(kernels, pool, tasks, then);
}
