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

#[derive(Debug)]
struct Part<'c> {
    plane: Arc<Plane<'c>>,
    rows: Range<usize>,
    placement: Placement,
    /// Rows of the plane are terms of the sum, not output columns.
    turned: bool,
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
        plan.add(Arc::new(plane), rows, Placement::Plain);
        plan
    }

    /// Adds rows of a plane stored `[outputs, terms]`.
    pub(super) fn add(&mut self, plane: Arc<Plane<'c>>, rows: Range<usize>, placement: Placement) {
        self.parts.push(Part { plane, rows, placement, turned: false });
    }

    /// Adds rows of a plane stored `[terms, outputs]`.
    pub(super) fn add_turned(&mut self, plane: Arc<Plane<'c>>, rows: Range<usize>, placement: Placement) {
        self.parts.push(Part { plane, rows, placement, turned: true });
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

    /// Bytes as stored. A plane that several matrices share counts in part.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.plane.stored_bytes() * p.rows.len() as u64 / p.plane.rows() as u64).sum()
    }

    /// Its tensors as an expert's own file has them, in the order in which they are hashed.
    pub(super) fn extracts(&self) -> impl Iterator<Item = Extract> {
        // A plane that several parts share is one tensor, and its parts follow one another.
        self.parts.iter().filter(|part| part.rows.start == 0).flat_map(|part| part.plane.extracts())
    }

    /// Reads, hashes and packs it into the next bytes of `region`.
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
            match shape.element {
                Element::Bf16 => pack_halves(part, reader, &scales, &builder)?,
                Element::F32 => pack_floats(part, reader, &scales, &builder)?,
            }
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
    let columns = part.plane.columns();
    part.plane.stream_rows(reader, scales, part.rows.clone(), |row, values| {
        let Values::Bf16(values) = values else { unreachable!("a wide part makes the matrix wide") };
        match part.turned {
            false => builder.pack_rows(part.placement, row, values, columns),
            true => builder.pack_columns(part.placement, row, 0, columns, values, columns),
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
    let columns = part.plane.columns();
    let mut floats = Vec::with_capacity(part.rows.len() * columns);
    part.plane.stream_rows(reader, scales, part.rows.clone(), |_, values| match values {
        Values::Bf16(values) => floats.extend(values.iter().map(|x| widen_bf16(*x))),
        Values::F32(values) => floats.extend_from_slice(values),
    })?;
    if part.turned {
        let terms = part.rows.len();
        let turned: Vec<f32> = (0..columns)
            .flat_map(|n| (0..terms).map(move |k| (n, k)))
            .map(|(n, k)| floats[k * columns + n])
            .collect();
        builder.pack_rows_f32(part.placement, 0, &turned, terms);
    } else {
        builder.pack_rows_f32(part.placement, 0, &floats, columns);
    }
    Ok(())
}
