//! Whose deadline is next.
//!
//! Pure. A binary heap of row numbers; every row knows its place in it, so that it can leave from anywhere. Deadlines
//! mostly come in order, and then an insertion is one comparison.

use std::time::Instant;

use super::landing::Row;

/// The rows under way, first the one whose deadline is next.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    order: Vec<u32>,
}

impl Deadlines {
    pub(super) fn new(rows_max: u32) -> Self {
        Self { order: Vec::with_capacity(rows_max as usize) }
    }

    pub(super) fn first(&self) -> Option<u32> {
        self.order.first().copied()
    }

    pub(super) fn insert(&mut self, rows: &mut [Row], row: u32) {
        self.order.push(row);
        let at = self.order.len() - 1;
        rows[row as usize].at = at as u32;
        self.rise(rows, at);
    }

    pub(super) fn remove(&mut self, rows: &mut [Row], row: u32) {
        let at = rows[row as usize].at as usize;
        let last = self.order.pop().expect("a row that leaves is in the heap");
        if last != row {
            self.place(rows, at, last);
            self.sink(rows, at);
            self.rise(rows, at);
        }
    }

    fn place(&mut self, rows: &mut [Row], at: usize, row: u32) {
        self.order[at] = row;
        rows[row as usize].at = at as u32;
    }

    /// Rows of one deadline by their numbers, so that no run differs from another.
    fn key(&self, rows: &[Row], at: usize) -> (Option<Instant>, u32) {
        let row = self.order[at];
        (rows[row as usize].deadline, row)
    }

    fn swap(&mut self, rows: &mut [Row], a: usize, b: usize) {
        let (of_a, of_b) = (self.order[a], self.order[b]);
        self.place(rows, a, of_b);
        self.place(rows, b, of_a);
    }

    fn rise(&mut self, rows: &mut [Row], mut at: usize) {
        while at > 0 {
            let above = (at - 1) / 2;
            if self.key(rows, above) <= self.key(rows, at) {
                break;
            }
            self.swap(rows, at, above);
            at = above;
        }
    }

    fn sink(&mut self, rows: &mut [Row], mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.order.len() {
                break;
            }
            let right_is_next = right < self.order.len() && self.key(rows, right) < self.key(rows, left);
            let next = if right_is_next { right } else { left };
            if self.key(rows, at) <= self.key(rows, next) {
                break;
            }
            self.swap(rows, at, next);
            at = next;
        }
    }
}
