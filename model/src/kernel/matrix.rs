//! Weights, packed once for the order in which the kernels read them.
//!
//! A matrix has n output columns (the rows of a checkpoint's tensor) and sums over k. It lies in *panels* of sixteen
//! output columns. A BF16 panel is `[k / 2][16][2]`: a line of 64 bytes holds two k of sixteen columns, the
//! even k in the low halves. An f32 panel is `[k][16]`. What is missing to whole panels and pairs is zero.
//!
//! A gated matrix holds gate and up together: panel 2i is gate columns 16i.., panel 2i + 1 the same columns of up, so
//! one task has both at hand when it applies the activation.
//!
//! Filling writes through pointers, a panel at a time, each held by one thread while it is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::memory::Region;
use super::{bf16, pack};

/// Output columns per panel.
pub(super) const PANEL: usize = 16;

/// What a packed matrix is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Two bytes a weight.
    Bf16,
    /// Four bytes a weight; only the class f32 uses it, for checkpoints that store more than BF16.
    F32,
}

/// The size of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Output columns; of a gated matrix, gate and up together.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// What it is made of.
    pub element: Element,
    /// Whether panels of gate and up alternate.
    pub gated: bool,
}

impl Shape {
    /// An ordinary matrix.
    pub fn plain(n: usize, k: usize, element: Element) -> Shape {
        Shape { n, k, element, gated: false }
    }

    /// Gate and up of `width` columns each.
    pub fn gated(width: usize, k: usize, element: Element) -> Shape {
        Shape { n: 2 * width, k, element, gated: true }
    }

    /// How many panels it has.
    pub fn panels(self) -> usize {
        if self.gated { 2 * (self.n / 2).div_ceil(PANEL) } else { self.n.div_ceil(PANEL) }
    }

    /// Values of a bias in panel order, padding included.
    pub fn bias_len(self) -> usize {
        self.panels() * PANEL
    }

    /// Bytes when packed.
    pub fn bytes(self) -> usize {
        self.panels() * self.panel_bytes()
    }

    pub(super) fn panel_bytes(self) -> usize {
        match self.element {
            Element::Bf16 => self.k.div_ceil(2) * PANEL * 4,
            Element::F32 => self.k * PANEL * 4,
        }
    }

    /// Columns that the values of a source are.
    fn source_columns(self, placement: Placement) -> usize {
        match placement {
            Placement::Plain | Placement::Interleaved => self.n,
            Placement::Gate | Placement::Up => self.n / 2,
        }
    }

    /// Panel and lane of a source's column.
    fn place(self, placement: Placement, column: usize) -> (usize, usize) {
        let half = |column: usize, second: usize| (column / PANEL * 2 + second, column % PANEL);
        match placement {
            Placement::Plain => (column / PANEL, column % PANEL),
            Placement::Gate => half(column, 0),
            Placement::Up => half(column, 1),
            Placement::Interleaved => half(column / 2, column % 2),
        }
    }

    fn check(self, placement: Placement) {
        assert_eq!(self.gated, placement != Placement::Plain, "placement {placement:?} in {self:?}");
    }
}

/// Which columns of the matrix a source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All, of an ordinary matrix.
    Plain,
    /// The gate half of a gated matrix.
    Gate,
    /// The up half.
    Up,
    /// Both: source column 2i is gate column i, 2i + 1 is up column i.
    Interleaved,
}

/// A packed matrix. Cloning shares the memory.
#[derive(Clone)]
pub struct Matrix {
    shape: Shape,
    region: Arc<Region>,
    offset: usize,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shape.fmt(f)
    }
}

impl Matrix {
    /// A matrix to be filled, in the next free bytes of `region`.
    pub fn builder(region: &Arc<Region>, shape: Shape) -> MatrixBuilder {
        assert!(shape.k > 0 && shape.n > 0, "an empty matrix: {shape:?}");
        assert!(!shape.gated || shape.n.is_multiple_of(2), "gate and up differ in width: {shape:?}");
        let part = region.take(shape.bytes());
        MatrixBuilder {
            matrix: Matrix { shape, region: Arc::clone(region), offset: part.offset },
            busy: (0..shape.panels()).map(|_| AtomicBool::new(false)).collect(),
            packed: AtomicUsize::new(0),
        }
    }

    /// A matrix of row-major BF16 values `[n][k]` in memory of its own.
    pub fn from_rows(values: &[u16], n: usize, k: usize) -> Matrix {
        let shape = Shape::plain(n, k, Element::Bf16);
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        builder.pack_rows(Placement::Plain, 0, values, k);
        builder.finish()
    }

    /// The same of f32 values.
    pub fn from_rows_f32(values: &[f32], n: usize, k: usize) -> Matrix {
        let shape = Shape::plain(n, k, Element::F32);
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        builder.pack_rows_f32(Placement::Plain, 0, values, k);
        builder.finish()
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Output columns.
    pub fn n(&self) -> usize {
        self.shape.n
    }

    /// Terms of each sum.
    pub fn k(&self) -> usize {
        self.shape.k
    }

    /// Bytes when packed.
    pub fn bytes(&self) -> usize {
        self.shape.bytes()
    }

    /// The weights of one source column, widened. For tests and digests, not fast.
    pub fn column(&self, placement: Placement, column: usize) -> Vec<f32> {
        self.shape.check(placement);
        assert!(column < self.shape.source_columns(placement), "column {column} of {:?}", self.shape);
        let (panel, lane) = self.shape.place(placement, column);
        let panel = self.panel(panel);
        let value = |k: usize| match self.shape.element {
            Element::Bf16 => {
                // SAFETY: k and lane are inside the panel, which is inside the region.
                let value = unsafe { *panel.cast::<u16>().add(k / 2 * 2 * PANEL + lane * 2 + k % 2) };
                bf16::widen(value)
            }
            // SAFETY: as above.
            Element::F32 => unsafe { *panel.cast::<f32>().add(k * PANEL + lane) },
        };
        (0..self.shape.k).map(value).collect()
    }

    /// A bias in panel order, padded with zeros.
    pub fn place_bias(&self, placement: Placement, values: &[f32], bias: &mut [f32]) {
        self.shape.check(placement);
        assert_eq!(values.len(), self.shape.source_columns(placement), "the bias of {:?}", self.shape);
        assert_eq!(bias.len(), self.shape.bias_len(), "the placed bias of {:?}", self.shape);
        for (column, &value) in values.iter().enumerate() {
            let (panel, lane) = self.shape.place(placement, column);
            bias[panel * PANEL + lane] = value;
        }
    }

    /// Where a panel begins.
    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        self.region.as_ptr().wrapping_add(self.offset + panel * self.shape.panel_bytes())
    }
}

/// A matrix being filled, by any number of threads. Every weight must be packed once.
pub struct MatrixBuilder {
    matrix: Matrix,
    /// One per panel: held while a thread writes it.
    busy: Vec<AtomicBool>,
    packed: AtomicUsize,
}

impl MatrixBuilder {
    /// Its size.
    pub fn shape(&self) -> Shape {
        self.matrix.shape
    }

    /// Packs whole source columns from `first` on, each `k` BF16 values that lie together (a row of the tensor).
    pub fn pack_rows(&self, placement: Placement, first: usize, rows: &[u16], stride: usize) {
        let shape = self.checked(placement, Element::Bf16);
        let count = rows_in(rows.len(), shape.k, stride);
        self.each_panel(placement, first, count, |panel, lanes| {
            let mut starts = [std::ptr::null(); PANEL];
            for &(lane, source) in lanes {
                starts[lane] = rows[source * stride..][..shape.k].as_ptr();
            }
            if lanes.len() == PANEL {
                // SAFETY: all rows were found to have k values, and this thread holds the panel.
                return unsafe { pack::pack_panel(&starts, shape.k, panel) };
            }
            for &(lane, source) in lanes {
                let row = &rows[source * stride..][..shape.k];
                for (k, &value) in row.iter().enumerate() {
                    // SAFETY: inside the panel, which this thread holds.
                    unsafe { *panel.cast::<u16>().add(k / 2 * 32 + lane * 2 + k % 2) = value };
                }
            }
        });
        self.packed.fetch_add(count * shape.k, Ordering::Relaxed);
    }

    /// The same with f32 values, for an f32 matrix.
    pub fn pack_rows_f32(&self, placement: Placement, first: usize, rows: &[f32], stride: usize) {
        let shape = self.checked(placement, Element::F32);
        let count = rows_in(rows.len(), shape.k, stride);
        self.each_panel(placement, first, count, |panel, lanes| {
            for &(lane, source) in lanes {
                let row = &rows[source * stride..][..shape.k];
                for (k, &value) in row.iter().enumerate() {
                    // SAFETY: inside the panel, which this thread holds.
                    unsafe { *panel.cast::<f32>().add(k * PANEL + lane) = value };
                }
            }
        });
        self.packed.fetch_add(count * shape.k, Ordering::Relaxed);
    }

    /// Packs from a tensor stored `[k][columns]`: `values` begins at the k `first_k`, source column
    /// `first`, and holds `columns` of them per k, `stride` values apart.
    pub fn pack_columns(
        &self,
        placement: Placement,
        first_k: usize,
        first: usize,
        columns: usize,
        values: &[u16],
        stride: usize,
    ) {
        let shape = self.checked(placement, Element::Bf16);
        let count = rows_in(values.len(), columns, stride);
        assert!(first_k + count <= shape.k, "{count} terms from {first_k} on, in {shape:?}");
        // So many k at a time that their values stay in the cache while they go to all panels.
        let block = (BLOCK_VALUES / stride).max(2).next_multiple_of(2);
        let mut index = 0;
        while index < count {
            // Blocks end at an even k, so that pairs are whole.
            let end = (index + block - (first_k + index) % 2).min(count);
            self.each_panel(placement, first, columns, |panel, lanes| {
                let mut at = index;
                if lanes.len() == PANEL {
                    // Single values up to an even k, then whole lines.
                    at += (first_k + at) % 2;
                    let pairs = end.saturating_sub(at) / 2;
                    let column = lanes[0].1;
                    // All values of these lines, checked.
                    let values = &values[(at * stride + column).min(values.len())..];
                    assert!(
                        pairs == 0 || (2 * pairs - 1) * stride + lanes[PANEL - 1].1 - column < values.len()
                    );
                    let every_second = lanes[1].1 == column + 2;
                    let line = panel.wrapping_add((first_k + at) / 2 * 64);
                    // SAFETY: checked above; the lines are inside the panel, which this thread holds.
                    unsafe { pack::pack_lines(values.as_ptr(), stride, pairs, every_second, line) };
                    at += 2 * pairs;
                }
                let single = if lanes.len() == PANEL { at.min(end) } else { index };
                let head =
                    if lanes.len() == PANEL && (first_k + index) % 2 == 1 { index..index + 1 } else { 0..0 };
                for at in head.chain(single..end) {
                    let k = first_k + at;
                    for &(lane, source) in lanes {
                        let value = values[at * stride + source];
                        // SAFETY: inside the panel, which this thread holds.
                        unsafe { *panel.cast::<u16>().add(k / 2 * 32 + lane * 2 + k % 2) = value };
                    }
                }
            });
            index = end;
        }
        self.packed.fetch_add(count * columns, Ordering::Relaxed);
    }

    /// The matrix, once all of it is packed.
    pub fn finish(self) -> Matrix {
        let shape = self.matrix.shape;
        let packed = self.packed.load(Ordering::Acquire);
        assert_eq!(packed, shape.n * shape.k, "weights packed, of {shape:?}");
        self.matrix
    }

    fn checked(&self, placement: Placement, element: Element) -> Shape {
        let shape = self.matrix.shape;
        shape.check(placement);
        assert_eq!(shape.element, element, "elements packed into {shape:?}");
        shape
    }

    /// Calls `fill` for every panel that holds some of the `count` columns from `first` on, with the lanes of these
    /// columns and their index in the source. One thread at a time is in a panel.
    fn each_panel(
        &self,
        placement: Placement,
        first: usize,
        count: usize,
        fill: impl Fn(*mut u8, &[(usize, usize)]),
    ) {
        let shape = self.matrix.shape;
        assert!(
            first + count <= shape.source_columns(placement),
            "{count} columns from {first} on, placed as {placement:?} in {shape:?}"
        );
        if count == 0 {
            return;
        }
        let step = if placement == Placement::Interleaved { 2 } else { 1 };
        let run = PANEL * step;
        for group in first / run..(first + count).div_ceil(run) {
            for second in 0..step {
                let mut lanes = [(0, 0); PANEL];
                let mut filled = 0;
                for lane in 0..PANEL {
                    let column = group * run + lane * step + second;
                    if (first..first + count).contains(&column) {
                        lanes[filled] = (lane, column - first);
                        filled += 1;
                    }
                }
                let Some(&(_, source)) = lanes[..filled].first() else {
                    continue;
                };
                let (panel, _) = shape.place(placement, first + source);
                let busy = &self.busy[panel];
                while busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
                    std::thread::yield_now();
                }
                fill(self.matrix.panel(panel).cast_mut(), &lanes[..filled]);
                busy.store(false, Ordering::Release);
            }
        }
    }
}

/// Values of a tensor that stay in the first cache while they are packed.
const BLOCK_VALUES: usize = 16 << 10;

/// How many rows of `k` values lie in `len` values, `stride` apart.
fn rows_in(len: usize, k: usize, stride: usize) -> usize {
    assert!(stride >= k, "rows of {k} values lie {stride} apart");
    if len < k { 0 } else { (len - k) / stride + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<u16> {
        (0..count).map(|i| (i.wrapping_mul(40503) >> 3) as u16 & 0xbfff).collect()
    }

    fn wide(values: &[u16]) -> Vec<f32> {
        values.iter().map(|&value| bf16::widen(value)).collect()
    }

    /// Whatever the shape and the pieces, every column comes out as it went in, and padding is zero.
    #[test]
    fn packing_keeps_every_weight() {
        for (n, k) in [(1, 1), (16, 32), (40, 33), (33, 100), (64, 64), (70, 131)] {
            let source = values(n * k);
            for piece in [1, 5, 16, 17, 100] {
                let shape = Shape::plain(n, k, Element::Bf16);
                let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
                for (index, rows) in source.chunks(piece * k).enumerate() {
                    builder.pack_rows(Placement::Plain, index * piece, rows, k);
                }
                let matrix = builder.finish();
                for (column, row) in source.chunks(k).enumerate() {
                    assert_eq!(
                        matrix.column(Placement::Plain, column),
                        wide(row),
                        "{n} x {k} by {piece}, column {column}"
                    );
                }
                let lines = k.div_ceil(2);
                for lane in n % PANEL..if n % PANEL == 0 { 0 } else { PANEL } {
                    for line in 0..lines {
                        // SAFETY: inside the last panel.
                        let pair = unsafe { *matrix.panel(n / PANEL).cast::<u32>().add(line * PANEL + lane) };
                        assert_eq!(pair, 0, "padding of {n} x {k}");
                    }
                }
            }
        }
    }

    /// A tensor stored the other way round gives the same matrix, in pieces of any size.
    #[test]
    fn packing_columns_equals_packing_rows() {
        for (n, k) in [(16, 32), (40, 33), (96, 70)] {
            let source = values(n * k);
            let turned: Vec<u16> = (0..n * k).map(|i| source[i % n * k + i / n]).collect();
            for piece in [1, 3, 16, 64] {
                let shape = Shape::plain(n, k, Element::Bf16);
                let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
                for (index, values) in turned.chunks(piece * n).enumerate() {
                    builder.pack_columns(Placement::Plain, index * piece, 0, n, values, n);
                }
                let matrix = builder.finish();
                for (column, row) in source.chunks(k).enumerate() {
                    assert_eq!(matrix.column(Placement::Plain, column), wide(row), "{n} x {k} by {piece}");
                }
            }
        }
    }

    /// The interleaved form of a tensor stored the other way round.
    #[test]
    fn packing_interleaved_columns_equals_rows() {
        let (width, k) = (40, 67);
        let shape = Shape::gated(width, k, Element::Bf16);
        let source = values(2 * width * k);
        let n = 2 * width;
        let turned: Vec<u16> = (0..n * k).map(|i| source[i % n * k + i / n]).collect();
        let one = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        one.pack_rows(Placement::Interleaved, 0, &source, k);
        let two = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        for (index, values) in turned.chunks(9 * n).enumerate() {
            two.pack_columns(Placement::Interleaved, index * 9, 0, n, values, n);
        }
        let (one, two) = (one.finish(), two.finish());
        for column in 0..n {
            let (one, two) =
                (one.column(Placement::Interleaved, column), two.column(Placement::Interleaved, column));
            assert_eq!(one, two, "column {column}");
        }
    }

    /// Several threads fill one matrix in pieces that share panels.
    #[test]
    fn threads_fill_one_matrix() {
        let (n, k) = (1024, 2048);
        let source = values(n * k);
        let shape = Shape::plain(n, k, Element::Bf16);
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        std::thread::scope(|scope| {
            for (index, rows) in source.chunks(100 * k).enumerate() {
                let builder = &builder;
                scope.spawn(move || builder.pack_rows(Placement::Plain, index * 100, rows, k));
            }
        });
        let matrix = builder.finish();
        for column in [0, 99, 100, 517, 1023] {
            assert_eq!(matrix.column(Placement::Plain, column), wide(&source[column * k..][..k]));
        }
    }

    /// Gate and up come to alternating panels, from two sources or from one interleaved source.
    #[test]
    fn gate_and_up_alternate() {
        let (width, k) = (40, 34);
        let shape = Shape::gated(width, k, Element::Bf16);
        let both = values(2 * width * k);
        let pick =
            |second: usize| both.chunks(k).skip(second).step_by(2).flatten().copied().collect::<Vec<u16>>();
        let (gate, up) = (pick(0), pick(1));
        let one = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        one.pack_rows(Placement::Gate, 0, &gate, k);
        one.pack_rows(Placement::Up, 0, &up, k);
        let one = one.finish();
        let two = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        two.pack_rows(Placement::Interleaved, 0, &both[..7 * k], k);
        two.pack_rows(Placement::Interleaved, 7, &both[7 * k..], k);
        let two = two.finish();
        for column in 0..width {
            assert_eq!(one.column(Placement::Gate, column), wide(&gate[column * k..][..k]));
            assert_eq!(one.column(Placement::Up, column), wide(&up[column * k..][..k]));
            assert_eq!(one.column(Placement::Gate, column), two.column(Placement::Gate, column));
            assert_eq!(one.column(Placement::Up, column), two.column(Placement::Up, column));
        }
        // SAFETY: panel 2 is inside.
        let third = unsafe { *one.panel(2).cast::<u16>() };
        assert_eq!(third, gate[16 * k], "panel 2 begins with gate column 16");
    }

    /// A weight left out is noticed.
    #[test]
    #[should_panic(expected = "weights packed")]
    fn a_matrix_not_full_is_refused() {
        let shape = Shape::plain(4, 8, Element::Bf16);
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        builder.pack_rows(Placement::Plain, 0, &values(3 * 8), 8);
        builder.finish();
    }
}
