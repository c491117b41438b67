//! Buffers of rows that one phase of a step writes and the next reads, in the class's row type.
//!
//! They are kept from step to step, so a steady state allocates nothing.

use crate::kernel::{Kernels, Matrix, RowOut, RowType, RowsMut, RowsRef, Sink, Task, math};

/// Rows of one width in the row type of a class.
#[derive(Debug, Clone)]
pub struct RowBuffer {
    row: RowType,
    rows: usize,
    columns: usize,
    halves: Vec<u16>,
    floats: Vec<f32>,
}

/// The values of a buffer.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// BF16.
    Bf16(&'a mut [u16]),
    /// f32.
    F32(&'a mut [f32]),
}

impl RowBuffer {
    /// An empty buffer.
    pub fn new(row: RowType) -> Self {
        Self { row, rows: 0, columns: 0, halves: Vec::new(), floats: Vec::new() }
    }

    /// Makes room for `rows` rows of `columns` values; what they hold is unspecified.
    pub fn reset(&mut self, rows: usize, columns: usize) {
        (self.rows, self.columns) = (rows, columns);
        match self.row {
            RowType::Bf16 => self.halves.resize(rows * columns, 0),
            RowType::F32 => self.floats.resize(rows * columns, 0.0),
        }
    }

    /// The type of its values.
    pub fn row_type(&self) -> RowType {
        self.row
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All rows, to be read.
    pub fn view(&self) -> RowsRef<'_> {
        self.columns_from(0)
    }

    /// All rows without their first columns, to be read.
    pub fn columns_from(&self, column: usize) -> RowsRef<'_> {
        let stride = self.columns;
        match self.row {
            RowType::Bf16 => RowsRef::Bf16 { data: self.halves.get(column..).unwrap_or_default(), stride },
            RowType::F32 => RowsRef::F32 { data: self.floats.get(column..).unwrap_or_default(), stride },
        }
    }

    /// All rows from one on, to be read.
    pub fn rows_from(&self, row: usize) -> RowsRef<'_> {
        self.columns_from(row * self.columns)
    }

    /// All rows, to be written.
    pub fn out(&mut self) -> RowOut<'_> {
        let (rows, columns) = (self.rows, self.columns);
        match self.row {
            RowType::Bf16 => RowOut::Bf16(RowsMut::new(&mut self.halves, rows, columns, columns)),
            RowType::F32 => RowOut::F32(RowsMut::new(&mut self.floats, rows, columns, columns)),
        }
    }

    /// All values, row by row, to be written.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match self.row {
            RowType::Bf16 => ValuesMut::Bf16(&mut self.halves),
            RowType::F32 => ValuesMut::F32(&mut self.floats),
        }
    }

    /// One row in f32.
    pub fn row_f32(&self, row: usize) -> Vec<f32> {
        let range = row * self.columns..(row + 1) * self.columns;
        match self.row {
            RowType::Bf16 => self.halves[range].iter().map(|x| crate::kernel::widen_bf16(*x)).collect(),
            RowType::F32 => self.floats[range].to_vec(),
        }
    }

    /// `sums += weight * row`, one fused multiply-add each.
    pub fn add_row(&self, kernels: Kernels, row: usize, weight: f32, sums: &mut [f32]) {
        let range = row * self.columns..(row + 1) * self.columns;
        match self.row {
            RowType::Bf16 => math::axpy_bf16(kernels, sums, weight, &self.halves[range]),
            RowType::F32 => math::axpy(kernels, sums, weight, &self.floats[range]),
        }
    }
}

/// Writes one row of f32 values, rounded to the row type of `out`.
pub fn write_row(kernels: Kernels, out: &mut RowOut<'_>, row: usize, values: &[f32]) {
    match out {
        RowOut::Bf16(out) => math::round_row(kernels, values, out.row_mut(row)),
        RowOut::F32(out) => out.row_mut(row).copy_from_slice(values),
    }
}

/// A task that stores a product of all rows of `input`, as many as `out` has, in f32.
pub fn store<'a>(
    weights: &'a Matrix,
    bias: Option<&'a [f32]>,
    input: RowsRef<'a>,
    out: RowsMut<'a, f32>,
) -> Task<'a> {
    Task { weights, bias, input, pick: None, rows: out.rows(), sink: Sink::Store(out) }
}

/// Splits rows to be written into consecutive groups of the given numbers of rows.
pub fn split_rows<'a>(out: RowOut<'a>, counts: impl Iterator<Item = usize>) -> Vec<RowOut<'a>> {
    match out {
        RowOut::Bf16(rows) => split(rows, counts).into_iter().map(RowOut::Bf16).collect(),
        RowOut::F32(rows) => split(rows, counts).into_iter().map(RowOut::F32).collect(),
    }
}

/// Splits rows to be written into windows of `width` columns.
pub fn split_columns(out: RowOut<'_>, width: usize) -> Vec<RowOut<'_>> {
    match out {
        RowOut::Bf16(rows) => columns(rows, width).into_iter().map(RowOut::Bf16).collect(),
        RowOut::F32(rows) => columns(rows, width).into_iter().map(RowOut::F32).collect(),
    }
}

/// The same for rows of one element type.
pub fn columns<T>(mut rest: RowsMut<'_, T>, width: usize) -> Vec<RowsMut<'_, T>> {
    let mut windows = Vec::with_capacity(rest.columns() / width);
    while rest.columns() > 0 {
        let (first, others) = rest.split_columns(width);
        windows.push(first);
        rest = others;
    }
    windows
}

fn split<T>(mut rest: RowsMut<'_, T>, counts: impl Iterator<Item = usize>) -> Vec<RowsMut<'_, T>> {
    counts
        .map(|count| {
            let (first, others) =
                std::mem::replace(&mut rest, RowsMut::new(&mut [], 0, 0, 0)).split_rows(count);
            rest = others;
            first
        })
        .collect()
}
