//! A matrix that has been found in a checkpoint: where its parts lie and how they are placed when packed.

use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::{CheckpointError, Extract, Plane, Reader, Scales, Values};
use crate::kernel::{Element, Matrix, MatrixBuilder, Placement, Region, Shape, widen_bf16};

/// A matrix to be packed.
#[derive(Debug)]
pub(super) struct MatrixPlan<'c> {
    n: usize,
    k: usize,
    gated: bool,
    parts: Vec<Part<'c>>,
}

/// Some rows of a plane, and which of their values the matrix has.
#[derive(Debug)]
pub(super) struct Part<'c> {
    plane: Arc<Plane<'c>>,
    /// All that belong to the whole matrix, of which this one may be a shard: they are hashed.
    rows: Range<usize>,
    /// Of these, the ones that are packed.
    packed: Range<usize>,
    /// The values of each that are packed.
    columns: Range<usize>,
    placement: Placement,
    /// Rows of the plane are terms of the sum, not output columns.
    turned: bool,
}

impl<'c> Part<'c> {
    /// Rows of a plane stored `[outputs, terms]`.
    pub(super) fn rows(plane: &Arc<Plane<'c>>, rows: Range<usize>, placement: Placement) -> Self {
        let (packed, columns) = (rows.clone(), 0..plane.columns());
        Self { plane: Arc::clone(plane), rows, packed, columns, placement, turned: false }
    }

    /// Rows of a plane stored `[terms, outputs]`.
    pub(super) fn turned(plane: &Arc<Plane<'c>>, rows: Range<usize>, placement: Placement) -> Self {
        Self { turned: true, ..Self::rows(plane, rows, placement) }
    }

    /// Packs only a run of the rows, counted from their first.
    pub(super) fn only_rows(self, run: Range<usize>) -> Self {
        let first = self.rows.start;
        Self { packed: first + run.start..first + run.end, ..self }
    }

    /// Packs only a run of each row's values.
    pub(super) fn only_columns(self, run: Range<usize>) -> Self {
        Self { columns: run, ..self }
    }
}

impl<'c> MatrixPlan<'c> {
    /// An ordinary matrix of `n` outputs.
    pub(super) fn plain(n: usize, k: usize) -> Self {
        Self { n, k, gated: false, parts: Vec::new() }
    }

    /// Gate and up of `width` outputs each.
    pub(super) fn gated(width: usize, k: usize) -> Self {
        Self { n: width, k, gated: true, parts: Vec::new() }
    }

    /// One tensor that is the whole matrix, `[n, k]`.
    pub(super) fn of(plane: Plane<'c>) -> Self {
        let mut plan = Self::plain(plane.rows(), plane.columns());
        let rows = 0..plane.rows();
        plan.add(Part::rows(&Arc::new(plane), rows, Placement::Plain));
        plan
    }

    /// A run of the terms of a down matrix, one tensor stored `[hidden, width]`.
    pub(super) fn down(plane: &Arc<Plane<'c>>, hidden: usize, run: Range<usize>) -> Self {
        let mut plan = Self::plain(hidden, run.len());
        plan.add(Part::rows(plane, 0..hidden, Placement::Plain).only_columns(run));
        plan
    }

    /// Adds what a plane has of it.
    pub(super) fn add(&mut self, part: Part<'c>) {
        self.parts.push(part);
    }

    fn shape(&self, exact: bool) -> Shape {
        let wide = exact && self.parts.iter().any(|part| part.plane.is_wide());
        let element = if wide { Element::F32 } else { Element::Bf16 };
        match self.gated {
            true => Shape::gated(self.n, self.k, element),
            false => Shape::plain(self.n, self.k, element),
        }
    }

    /// Bytes when packed.
    pub(super) fn bytes(&self, exact: bool) -> usize {
        self.shape(exact).bytes().next_multiple_of(64)
    }

    /// Bytes as stored, of the whole matrix if this is a shard. A plane that several matrices share counts in part.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.plane.stored_bytes() * p.rows.len() as u64 / p.plane.rows() as u64).sum()
    }

    /// Its tensors as an expert's own file has them, in the order in which they are hashed.
    pub(super) fn extracts(&self) -> impl Iterator<Item = Extract> {
        // A plane that several parts share is one tensor, and its parts follow one another.
        self.parts.iter().filter(|part| part.rows.start == 0).flat_map(|part| part.plane.extracts())
    }

    /// Reads, hashes and packs it into the next bytes of `region`. Of a shard's matrix, what is not packed is read only to
    /// be hashed.
    pub(super) fn load(&self, region: &Arc<Region>, reader: &mut Reader) -> Result<Matrix, CheckpointError> {
        let shape = self.shape(reader.exact);
        let builder = Matrix::builder(region, shape);
        for part in &self.parts {
            let plane = &part.plane;
            // The scales of a plane that several matrices share are hashed with its first rows.
            let scales = match part.rows.start {
                0 => plane.scales(reader)?,
                _ => plane.scales_again()?,
            };
            plane.hash_rows(reader, part.rows.start..part.packed.start)?;
            match shape.element {
                Element::Bf16 => pack_halves(part, reader, &scales, &builder)?,
                Element::F32 => pack_floats(part, reader, &scales, &builder)?,
            }
            plane.hash_rows(reader, part.packed.end..part.rows.end)?;
        }
        Ok(builder.finish())
    }
}

fn pack_halves(
    part: &Part<'_>,
    reader: &mut Reader,
    scales: &Scales,
    builder: &MatrixBuilder,
) -> Result<(), CheckpointError> {
    let stride = part.plane.columns();
    part.plane.stream_rows(reader, scales, part.packed.clone(), |row, values| {
        let Values::Bf16(values) = values else { unreachable!("a wide part makes the matrix wide") };
        let values = &values[part.columns.start..];
        match part.turned {
            false => builder.pack_rows(part.placement, row, values, stride),
            true => builder.pack_columns(part.placement, row, 0, part.columns.len(), values, stride),
        }
    })
}

/// Class `f32` with weights that BF16 does not hold: rare, so a part is held whole and turned plainly.
fn pack_floats(
    part: &Part<'_>,
    reader: &mut Reader,
    scales: &Scales,
    builder: &MatrixBuilder,
) -> Result<(), CheckpointError> {
    let stride = part.plane.columns();
    let mut floats = Vec::with_capacity(part.packed.len() * stride);
    part.plane.stream_rows(reader, scales, part.packed.clone(), |_, values| match values {
        Values::Bf16(values) => floats.extend(values.iter().map(|x| widen_bf16(*x))),
        Values::F32(values) => floats.extend_from_slice(values),
    })?;
    if part.turned {
        let terms = part.packed.len();
        let turned: Vec<f32> = part
            .columns
            .clone()
            .flat_map(|n| (0..terms).map(move |k| (n, k)))
            .map(|(n, k)| floats[k * stride + n])
            .collect();
        builder.pack_rows_f32(part.placement, 0, &turned, terms);
    } else {
        builder.pack_rows_f32(part.placement, 0, &floats[part.columns.start..], stride);
    }
    Ok(())
}
