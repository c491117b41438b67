//! Views of rows: what a multiplication reads, and windows of a buffer that several tasks write at once.
//!
//! Pure. A row is a run of values; rows lie a fixed number of values apart. Two windows made by splitting
//! one view never overlap, so they can go to different tasks although both lie in the same buffer.

use std::marker::PhantomData;
use std::ops::Range;

/// Rows that are read.
#[derive(Clone, Copy, Debug)]
pub enum RowsRef<'a> {
    /// BF16 values.
    Bf16 {
        /// From the first value of the first row on.
        data: &'a [u16],
        /// Values from one row to the next.
        stride: usize,
    },
    /// f32 values.
    F32 {
        /// From the first value of the first row on.
        data: &'a [f32],
        /// Values from one row to the next.
        stride: usize,
    },
}

impl RowsRef<'_> {
    /// How many rows of `k` values there are.
    pub fn rows(&self, k: usize) -> usize {
        let (len, stride) = match *self {
            RowsRef::Bf16 { data, stride } => (data.len(), stride),
            RowsRef::F32 { data, stride } => (data.len(), stride),
        };
        match len.checked_sub(k) {
            None => 0,
            // Rows that all lie in one place: there are as many as one likes.
            Some(rest) => rest.checked_div(stride).map_or(usize::MAX, |more| more + 1),
        }
    }
}

/// Rows that are written: a window of a buffer, nobody else's while it lives.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    start: *mut T,
    rows: usize,
    columns: usize,
    stride: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: a window is like `&mut [T]` of its elements, which no other window has.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}

impl<'a, T> RowsMut<'a, T> {
    /// The first `columns` values of each of `rows` rows that lie `stride` values apart in `data`.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, stride: usize) -> RowsMut<'a, T> {
        assert!(columns <= stride || rows <= 1, "rows of {columns} values lie {stride} apart");
        if rows > 0 {
            let needed = (rows - 1) * stride + columns;
            assert!(
                data.len() >= needed,
                "{rows} rows of {columns} values need {needed}, the buffer has {}",
                data.len()
            );
        }
        RowsMut { start: data.as_mut_ptr(), rows, columns, stride, buffer: PhantomData }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many values of each row are in the window.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The values of one row.
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is inside the window, which is this view's alone; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.add(row * self.stride), self.columns) }
    }

    /// The values of one row, to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is inside the window, which is this view's alone, and `&mut self` makes it ours.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) }
    }

    /// The same window for a shorter while.
    pub fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut {
            start: self.start,
            rows: self.rows,
            columns: self.columns,
            stride: self.stride,
            buffer: PhantomData,
        }
    }

    /// The rows before `at`, and the others.
    pub fn split_rows(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
        assert!(at <= self.rows, "split at row {at} of {}", self.rows);
        // SAFETY: with no rows left the start is not moved; else it stays inside the buffer.
        let second = unsafe { self.start.add(if at < self.rows { at * self.stride } else { 0 }) };
        (RowsMut { rows: at, ..self.copy() }, RowsMut { start: second, rows: self.rows - at, ..self.copy() })
    }

    /// The columns before `at`, and the others.
    pub fn split_columns(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
        assert!(at <= self.columns, "split at column {at} of {}", self.columns);
        // SAFETY: at most `columns` further on, inside the buffer or one past its end; not moved without rows.
        let second = unsafe { self.start.add(if self.rows > 0 { at } else { 0 }) };
        (
            RowsMut { columns: at, ..self.copy() },
            RowsMut { start: second, columns: self.columns - at, ..self.copy() },
        )
    }

    /// Only the rows of a range.
    pub fn row_range(self, range: Range<usize>) -> RowsMut<'a, T> {
        self.split_rows(range.end).0.split_rows(range.start).1
    }

    /// Only the columns of a range.
    pub fn column_range(self, range: Range<usize>) -> RowsMut<'a, T> {
        self.split_columns(range.end).0.split_columns(range.start).1
    }

    /// Where a value lies. For the kernels, which write disjoint tiles of one window from several threads.
    pub(super) fn pointer(&self, row: usize, column: usize) -> *mut T {
        debug_assert!(row < self.rows && column <= self.columns);
        self.start.wrapping_add(row * self.stride + column)
    }

    /// From the first value to the last, and the values from one row to the next.
    ///
    /// # Safety
    /// Nobody writes to these rows while the slice lives, nor between their columns.
    pub(super) unsafe fn written(&self) -> (&[T], usize) {
        let len = self.rows.checked_sub(1).map_or(0, |more| more * self.stride + self.columns);
        // SAFETY: inside the buffer; the rest is promised by the caller.
        (unsafe { std::slice::from_raw_parts(self.start, len) }, self.stride)
    }

    /// A second name for the window, to be narrowed at once.
    fn copy(&self) -> RowsMut<'a, T> {
        RowsMut {
            start: self.start,
            rows: self.rows,
            columns: self.columns,
            stride: self.stride,
            buffer: PhantomData,
        }
    }
}

/// Rows of a class's row type, to be written.
#[derive(Debug)]
pub enum RowOut<'a> {
    /// Rounded to BF16.
    Bf16(RowsMut<'a, u16>),
    /// As computed.
    F32(RowsMut<'a, f32>),
}

impl RowOut<'_> {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        match self {
            RowOut::Bf16(rows) => rows.rows(),
            RowOut::F32(rows) => rows.rows(),
        }
    }

    /// How many values of each row are in the window.
    pub fn columns(&self) -> usize {
        match self {
            RowOut::Bf16(rows) => rows.columns(),
            RowOut::F32(rows) => rows.columns(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of one buffer are apart, and together they are the whole.
    #[test]
    fn windows_do_not_overlap() {
        let mut data = vec![0; 5 * 8];
        let (mut top, bottom) = RowsMut::new(&mut data, 5, 7, 8).split_rows(2);
        let (mut left, mut right) = bottom.split_columns(3);
        top.row_mut(1).fill(1);
        left.row_mut(0).fill(2);
        right.row_mut(2).fill(3);
        let mut middle = right.row_range(0..2).column_range(1..2);
        middle.row_mut(1)[0] = 4;
        assert_eq!(data[8..16], [1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(data[16..24], [2, 2, 2, 0, 0, 0, 0, 0]);
        assert_eq!(data[24..32], [0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(data[32..40], [0, 0, 0, 3, 3, 3, 3, 0]);
    }
}
