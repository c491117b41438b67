//! What becomes of finished sums: bias, activation, rounding, and into the sink.

use super::dispatch::dispatched;
use super::fused::Fused;
use super::gemm::{Activation, Job, Sink};
use super::matrix::PANEL;
use super::rows::RowOut;
use super::{bf16, math};

/// Finished sums: `rows` rows from `row` on, `panels` panels from `panel` on. The sums of a panel's row
/// lie together, sixteen of them; `row_stride` and `panel_stride` lead to the next.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) start: *const f32,
    pub(super) row_stride: usize,
    pub(super) panel_stride: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) panel: usize,
    pub(super) panels: usize,
}

impl Sums {
    #[inline(always)]
    fn at(&self, row: usize, panel: usize) -> &[f32; PANEL] {
        // SAFETY: whoever made this promised sums for all its rows and panels.
        unsafe { &*self.start.add(row * self.row_stride + panel * self.panel_stride).cast::<[f32; PANEL]>() }
    }
}

/// A panel's row of finished sums, with its bias.
///
/// These are functions and not closures, because only functions can be told to be inlined: left to itself
/// the compiler puts a closure outside the path's instructions, where a multiply-add calls libm.
#[inline(always)]
fn value(task: &Job<'_>, sums: &Sums, row: usize, panel: usize) -> [f32; PANEL] {
    let mut value = *sums.at(row, panel);
    // Without a bias nothing is added: adding zero would turn -0.0 into 0.0.
    if let Some(bias) = task.bias {
        let from = (sums.panel + panel) * PANEL;
        let bias = bias[from..].first_chunk::<PANEL>().expect("a bias covers whole panels");
        for lane in 0..PANEL {
            value[lane] += bias[lane];
        }
    }
    value
}

/// Gate and up of one pair of panels, joined.
#[inline(always)]
fn gated<F: Fused>(activation: Activation, gate: [f32; PANEL], up: [f32; PANEL]) -> [f32; PANEL] {
    let mut result = [0.0; PANEL];
    match activation {
        Activation::Silu => {
            for lane in 0..PANEL {
                result[lane] = math::silu::<F>(gate[lane]) * up[lane];
            }
        }
        Activation::ClampedSwiglu { alpha, limit } => {
            for lane in 0..PANEL {
                result[lane] = math::clamped_swiglu::<F>(gate[lane], up[lane], alpha, limit);
            }
        }
    }
    result
}

#[inline(always)]
fn body<F: Fused>(task: &Job<'_>, sums: Sums) {
    let columns = task.sink.columns();
    let step = if matches!(task.sink, Sink::Gate { .. }) { 2 } else { 1 };
    debug_assert!(sums.panel.is_multiple_of(step) && sums.panels.is_multiple_of(step));
    // A tile belongs to one thread, so these columns of these rows are nobody else's, and they are
    // inside the sink's window: that is the reason of every block below.
    for row in 0..sums.rows {
        let to = sums.row + row;
        for panel in (0..sums.panels).step_by(step) {
            let column = (sums.panel + panel) / step * PANEL;
            let count = PANEL.min(columns - column);
            let value = value(task, &sums, row, panel);
            match task.sink {
                // SAFETY: as said above the loop.
                Sink::Store(out) => unsafe { store(&value, out.pointer(to, column), count) },
                Sink::Add(out) => {
                    let target = out.pointer(to, column);
                    for (lane, value) in value.iter().enumerate().take(count) {
                        // SAFETY: as said above the loop.
                        unsafe { *target.add(lane) += value };
                    }
                }
                // SAFETY: as said above the loop.
                Sink::Round(out) => unsafe { put(&value, out, to, column, count) },
                Sink::Gate { activation, out } => {
                    let up = self::value(task, &sums, row, panel + 1);
                    let joined = gated::<F>(*activation, value, up);
                    // SAFETY: as said above the loop.
                    unsafe { put(&joined, out, to, column, count) };
                }
            }
        }
    }
}

/// Rounds to the row type.
///
/// # Safety
/// `count` values from `column` of `row` on may be written.
#[inline(always)]
unsafe fn put(value: &[f32; PANEL], out: &RowOut<'_>, row: usize, column: usize, count: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        match out {
            RowOut::F32(out) => store(value, out.pointer(row, column), count),
            RowOut::Bf16(out) => store(&rounded(value), out.pointer(row, column), count),
        }
    }
}

#[inline(always)]
fn rounded(value: &[f32; PANEL]) -> [u16; PANEL] {
    let mut halves = [0; PANEL];
    for lane in 0..PANEL {
        halves[lane] = bf16::round(value[lane]);
    }
    halves
}

/// # Safety
/// `count` values at `target` may be written.
#[inline(always)]
unsafe fn store<T: Copy>(value: &[T; PANEL], target: *mut T, count: usize) {
    if count == PANEL {
        // SAFETY: promised by the caller.
        unsafe { target.cast::<[T; PANEL]>().write_unaligned(*value) };
    } else {
        // SAFETY: promised by the caller.
        unsafe { store_some(value, target, count) };
    }
}

/// The last panel of a matrix whose outputs are not a multiple of sixteen. Not inlined: the compiler
/// would join both cases into one copy of unknown length, which took 4% of a prefill.
///
/// # Safety
/// `count` values at `target` may be written; `count` is less than a panel.
#[cold]
#[inline(never)]
unsafe fn store_some<T: Copy>(value: &[T; PANEL], target: *mut T, count: usize) {
    // SAFETY: promised by the caller.
    unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), target, count) };
}

dispatched! {
    /// Puts finished sums into the task's sink. The caller alone has these rows and panels of the task.
    pub(super) fn finish(task: &Job<'_>, sums: Sums) = body
}
