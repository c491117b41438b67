//! What becomes of finished sums: bias, activation, rounding, and into the sink.

use super::dispatch::dispatched;
use super::fused::Fused;
use super::gemm::{Activation, Sink, Task};
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

#[inline(always)]
fn body<F: Fused>(task: &Task<'_>, sums: Sums) {
    let ones = [0.0_f32; PANEL];
    // Without a bias nothing is added: adding zero would turn -0.0 into 0.0.
    let bias = |panel: usize| match task.bias {
        Some(bias) => bias[panel * PANEL..].first_chunk::<PANEL>().expect("a bias covers whole panels"),
        None => &ones,
    };
    let value = |row: usize, panel: usize| {
        let mut value = *sums.at(row, panel);
        if task.bias.is_some() {
            let bias = bias(sums.panel + panel);
            for lane in 0..PANEL {
                value[lane] += bias[lane];
            }
        }
        value
    };
    match &task.sink {
        Sink::Store(out) => each(&sums, out.columns(), |row, panel, column, count| {
            // SAFETY: see `each`.
            unsafe { store(&value(row, panel), out.pointer(sums.row + row, column), count) }
        }),
        Sink::Add(out) => each(&sums, out.columns(), |row, panel, column, count| {
            let value = value(row, panel);
            let target = out.pointer(sums.row + row, column);
            for (lane, value) in value.iter().enumerate().take(count) {
                // SAFETY: see `each`.
                unsafe { *target.add(lane) += value };
            }
        }),
        Sink::Round(RowOut::F32(out)) => each(&sums, out.columns(), |row, panel, column, count| {
            // SAFETY: see `each`.
            unsafe { store(&value(row, panel), out.pointer(sums.row + row, column), count) }
        }),
        Sink::Round(RowOut::Bf16(out)) => {
            each(&sums, out.columns(), |row, panel, column, count| {
                // SAFETY: see `each`.
                unsafe {
                    store(&value(row, panel).map(bf16::round), out.pointer(sums.row + row, column), count)
                }
            })
        }
        Sink::Gate { activation, out } => {
            let gated = |row: usize, pair: usize| {
                let (gate, up) = (value(row, 2 * pair), value(row, 2 * pair + 1));
                let mut result = [0.0; PANEL];
                match *activation {
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
            };
            debug_assert!(sums.panel.is_multiple_of(2) && sums.panels.is_multiple_of(2));
            let pairs = Sums { panel: sums.panel / 2, panels: sums.panels / 2, ..sums };
            match out {
                RowOut::F32(out) => each(&pairs, out.columns(), |row, pair, column, count| {
                    // SAFETY: see `each`.
                    unsafe { store(&gated(row, pair), out.pointer(sums.row + row, column), count) }
                }),
                RowOut::Bf16(out) => each(&pairs, out.columns(), |row, pair, column, count| {
                    // SAFETY: see `each`.
                    unsafe {
                        store(&gated(row, pair).map(bf16::round), out.pointer(sums.row + row, column), count)
                    }
                }),
            }
        }
    }
}

/// Calls `put` for every row of every panel, with the panel's first column and how many columns are real. A tile belongs
/// to one thread, so these columns of these rows are nobody else's, and they are inside the sink's window.
#[inline(always)]
fn each(sums: &Sums, columns: usize, mut put: impl FnMut(usize, usize, usize, usize)) {
    for row in 0..sums.rows {
        for panel in 0..sums.panels {
            let column = (sums.panel + panel) * PANEL;
            put(row, panel, column, PANEL.min(columns - column));
        }
    }
}

/// # Safety
/// `count` values at `target` may be written.
#[inline(always)]
unsafe fn store<T: Copy>(value: &[T; PANEL], target: *mut T, count: usize) {
    if count == PANEL {
        // SAFETY: promised by the caller.
        unsafe { target.cast::<[T; PANEL]>().write_unaligned(*value) };
    } else {
        // SAFETY: promised by the caller, and `count` is less than a panel.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), target, count) };
    }
}

dispatched! {
    /// Puts finished sums into the task's sink. The caller alone has these rows and panels of the task.
    pub(super) fn finish(task: &Task<'_>, sums: Sums) = body
}
