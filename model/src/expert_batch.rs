//! Rows of many experts computed at once, each part with an input and an output of its own.
//!
//! What [`compute_blocks`](crate::experts::compute_blocks) does for one buffer, for rows that lie where they were
//! received and outputs that go where they will be sent from: gates, ups and downs of all parts are one job for the
//! threads, so that eight small experts fill them as one large one does. A result depends on its row and its
//! expert alone, never on the parts beside it. Pure but for the pool's threads.

use crate::kernel::{Kernels, RowOut, RowType, RowsMut, RowsRef, Sink, Task, Then, multiply_twice};
use crate::pool::Pool;
use crate::weights::Block;

/// Some rows for one expert.
#[derive(Debug)]
pub struct Part<'a> {
    /// The expert.
    pub block: &'a Block,
    /// Where its rows are.
    pub input: RowsRef<'a>,
    /// Which rows of `input`; without it the first ones.
    pub pick: Option<&'a [u32]>,
    /// How many rows.
    pub rows: usize,
    /// Where their outputs go: as many rows, each as wide as the model.
    pub out: PartOut<'a>,
}

/// Where a part's outputs go.
#[derive(Debug)]
pub enum PartOut<'a> {
    /// Whole outputs, rounded to the row type: what an expert returns.
    Whole(RowOut<'a>),
    /// Sums as they are: what a shard of an expert returns, for whoever adds the shards.
    Partial(RowsMut<'a, f32>),
}

/// What stands between gate and down, kept from one call to the next so that a steady state allocates nothing.
#[derive(Debug)]
pub struct InnerRows {
    row: RowType,
    halves: Vec<u16>,
    floats: Vec<f32>,
}

impl InnerRows {
    /// For a class with this row type.
    pub fn new(row: RowType) -> Self {
        Self { row, halves: Vec::new(), floats: Vec::new() }
    }

    /// One window for each of `shapes` (rows and columns), in order.
    fn windows(&mut self, shapes: impl Iterator<Item = (usize, usize)> + Clone) -> Vec<RowOut<'_>> {
        let values = shapes.clone().map(|(rows, columns)| rows * columns).sum();
        match self.row {
            RowType::Bf16 => {
                grow(&mut self.halves, values, 0);
                cut(&mut self.halves, shapes).map(RowOut::Bf16).collect()
            }
            RowType::F32 => {
                grow(&mut self.floats, values, 0.0);
                cut(&mut self.floats, shapes).map(RowOut::F32).collect()
            }
        }
    }
}

/// Never shrinks: what was there once will be needed again.
fn grow<T: Copy>(values: &mut Vec<T>, needed: usize, zero: T) {
    if values.len() < needed {
        values.resize(needed, zero);
    }
}

fn cut<'a, T>(
    mut rest: &'a mut [T],
    shapes: impl Iterator<Item = (usize, usize)>,
) -> impl Iterator<Item = RowsMut<'a, T>> {
    shapes.map(move |(rows, columns)| {
        let (first, others) = std::mem::take(&mut rest).split_at_mut(rows * columns);
        rest = others;
        RowsMut::new(first, rows, columns, columns)
    })
}

/// Computes all parts. Whatever is wrong with one of them is a panic, and then no output means anything.
pub fn compute_parts(kernels: Kernels, pool: &Pool, parts: Vec<Part<'_>>, inner: &mut InnerRows) {
    assert_eq!(inner.row, kernels.class().row_type(), "rows between gate and down are of the class's type");
    let shapes = parts.iter().map(|part| (part.rows, part.block.width()));
    let mut tasks: Vec<Task<'_>> = inner
        .windows(shapes)
        .into_iter()
        .zip(&parts)
        .map(|(out, part)| Task {
            weights: &part.block.gate_up,
            bias: part.block.gate_up_bias.as_deref(),
            input: part.input,
            pick: part.pick,
            rows: part.rows,
            sink: Sink::Gate { activation: part.block.activation, out },
        })
        .collect();
    let mut then: Vec<Then<'_>> = parts
        .into_iter()
        .map(|part| Then {
            weights: &part.block.down,
            bias: part.block.down_bias.as_deref(),
            sink: match part.out {
                PartOut::Whole(out) => Sink::Round(out),
                PartOut::Partial(out) => Sink::Store(out),
            },
        })
        .collect();
    multiply_twice(kernels, pool, &mut tasks, &mut then);
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::experts::{Experts, Groups, LocalExperts};
    use crate::kernel::{NumericClass, round_bf16};
    use crate::load::{self, Opened, Progress, Request};
    use crate::rows::{RowBuffer, ValuesMut};
    use crate::weights::{ExpertId, Manifest};

    /// The same numbers for the same seed.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit as u64) as usize
        }

        fn rows(&mut self, row: RowType, rows: usize, columns: usize) -> RowBuffer {
            let mut buffer = RowBuffer::new(row);
            buffer.reset(rows, columns);
            let mut value = || self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
            match buffer.values_mut() {
                ValuesMut::Bf16(values) => values.iter_mut().for_each(|v| *v = round_bf16(value())),
                ValuesMut::F32(values) => values.iter_mut().for_each(|v| *v = value()),
            }
            buffer
        }
    }

    /// Some rows for some experts of one layer, in odd groups: what each (row, expert) gives must be what
    /// `LocalExperts` gives for the whole batch, however the rows are grouped, picked and laid out.
    fn check(dir: &Path, kernels: Kernels, random: &mut Random) {
        let opened = Opened::open(dir).expect("a fixture can be opened");
        let (layer, moe) = opened.spec.moe_layers().next().expect("a fixture has experts");
        let ids: Vec<_> =
            (0..moe.experts).map(|e| ExpertId { layer: layer as u32, expert: e as u32 }).collect();
        let known = Manifest::default();
        let request =
            Request { kernels, threads: 1, trunk: false, experts: &ids, digests: false, known: &known };
        let blocks = load::load(&opened, &request, &Progress::default()).expect("a fixture loads").experts;
        let (pool, hidden) = (Arc::new(Pool::new(2, None)), opened.spec.hidden);
        let row = kernels.class().row_type();
        let rows = random.rows(row, 40, hidden);

        // Every expert takes a random subset of the rows.
        let mut groups = Groups::default();
        for expert in 0..moe.experts as u32 {
            let picked: Vec<u32> = (0..40).filter(|_| random.below(3) == 0).collect();
            if !picked.is_empty() {
                groups.experts.push(expert);
                groups.starts.push(groups.rows.len());
                groups.rows.extend(picked);
            }
        }
        groups.starts.push(groups.rows.len());
        let mut truth = RowBuffer::new(row);
        truth.reset(groups.rows.len(), hidden);
        LocalExperts::new(kernels, Arc::clone(&pool), blocks.clone())
            .compute(layer, &rows, &groups, &mut truth)
            .expect("all experts are held");

        let mut inner = InnerRows::new(row);
        for _ in 0..3 {
            // Each group is cut into parts of random sizes, and the parts are shuffled.
            let mut cuts = Vec::new();
            for (at, &expert) in groups.experts.iter().enumerate() {
                let (mut from, to) = (groups.starts[at], groups.starts[at + 1]);
                while from < to {
                    let end = to.min(from + 1 + random.below(9));
                    cuts.push((expert, from, end));
                    from = end;
                }
            }
            for at in (1..cuts.len()).rev() {
                cuts.swap(at, random.below(at + 1));
            }
            let mut outs: Vec<RowBuffer> = cuts.iter().map(|_| RowBuffer::new(row)).collect();
            let parts = cuts
                .iter()
                .zip(&mut outs)
                .map(|(&(expert, from, end), out)| {
                    out.reset(end - from, hidden);
                    Part {
                        block: &blocks[&ExpertId { layer: layer as u32, expert }],
                        input: rows.view(),
                        pick: Some(&groups.rows[from..end]),
                        rows: end - from,
                        out: PartOut::Whole(out.out()),
                    }
                })
                .collect();
            compute_parts(kernels, &pool, parts, &mut inner);
            for (&(expert, from, end), out) in cuts.iter().zip(&outs) {
                for slot in from..end {
                    let (found, wanted) = (out.row_f32(slot - from), truth.row_f32(slot));
                    let same = found.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{}: {} rows of expert {expert}", dir.display(), end - from);
                }
            }
        }
    }

    /// On every class that runs here, for experts with and without biases, of both activations.
    #[test]
    fn parts_are_the_local_experts_bit_for_bit() {
        let mut random = Random(20_260_726);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for name in ["demo-model", "tests/fixtures/gptoss", "tests/fixtures/qwen3moe"] {
            for kernels in NumericClass::ALL.iter().filter_map(|class| Kernels::for_class(*class).ok()) {
                check(&root.join(name), kernels, &mut random);
            }
        }
    }

    /// A shard's sums are not rounded: rounded afterwards they are the whole output.
    #[test]
    fn partial_outputs_are_what_is_rounded() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo-model");
        let opened = Opened::open(&root).expect("the demo model can be opened");
        let kernels = Kernels::for_class(NumericClass::Portable).expect("it runs everywhere");
        let (id, known) = (opened.experts()[0], Manifest::default());
        let request =
            Request { kernels, threads: 1, trunk: false, experts: &[id], digests: false, known: &known };
        let blocks = load::load(&opened, &request, &Progress::default()).expect("it loads").experts;
        let (pool, hidden) = (Pool::new(1, None), opened.spec.hidden);
        let rows = Random(7).rows(RowType::Bf16, 5, hidden);
        let (mut whole, mut partial) = (vec![0_u16; 5 * hidden], vec![0_f32; 5 * hidden]);
        let part = |out| Part { block: &blocks[&id], input: rows.view(), pick: None, rows: 5, out };
        let parts = vec![
            part(PartOut::Whole(RowOut::Bf16(RowsMut::new(&mut whole, 5, hidden, hidden)))),
            part(PartOut::Partial(RowsMut::new(&mut partial, 5, hidden, hidden))),
        ];
        compute_parts(kernels, &pool, parts, &mut InnerRows::new(RowType::Bf16));
        assert!(whole.iter().zip(&partial).all(|(whole, partial)| *whole == round_bf16(*partial)));
        assert!(whole.iter().any(|value| *value != 0));
    }
}
