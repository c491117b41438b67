//! What a path's inner kernel is told: a few rows times a few panels over a run of k, and what to prefetch meanwhile.

/// Rows times panels. The kernel of R rows and P panels reads R rows of `a` and P panels of `b`, and leaves
/// R rows of P times sixteen sums at `c`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Rows; a kernel made for R rows is given R.
    pub(super) rows: usize,
    /// Panels; likewise.
    pub(super) panels: usize,
    /// How many k: a multiple of [`STEP`], except for the plain loops.
    pub(super) terms: usize,
    /// The first row: f32, or pairs of BF16.
    pub(super) a: *const f32,
    /// Values from one row to the next.
    pub(super) a_stride: usize,
    /// The first panel, where the run of k begins.
    pub(super) b: *const u8,
    /// Bytes from one panel to the next.
    pub(super) b_stride: usize,
    /// The first sum.
    pub(super) c: *mut f32,
    /// Values from one row of sums to the next.
    pub(super) c_stride: usize,
    /// Values from one panel's sums to the next's.
    pub(super) c_apart: usize,
    /// Whether the sums go on from what is there, or begin at zero.
    pub(super) accumulate: bool,
    /// What to prefetch. Any address will do: a prefetch never faults.
    pub(super) ahead: Ahead,
}

/// Lines to be prefetched while a block is computed. A kernel says how many streams it prefetches and how many lines of
/// each at a time; they begin at `start`, lie `stride` bytes apart, and move on by `step` bytes per [`STEP`].
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) start: *const u8,
    pub(super) stride: usize,
    pub(super) step: usize,
}

impl Ahead {
    /// A line that is in the cache after the first time.
    pub(super) const NOTHING: Ahead = Ahead { start: NOWHERE.as_ptr(), stride: 0, step: 0 };
}

static NOWHERE: [u8; 128] = [0; 128];

/// Kernels go on by eight k at a time, four lines of a panel.
pub(super) const STEP: usize = 8;

/// Computes one block.
///
/// # Safety
/// The CPU has the features of the kernel's path. `a` has R rows of `terms` values, `b` P panels that go on for `terms`,
/// with 2 readable bytes in front; `c` has R rows of P times sixteen values, which nobody else touches.
pub(super) type Kernel = unsafe fn(&Block);
