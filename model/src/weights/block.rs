//! One feed-forward block: gate and up, what joins them, and down. A routed expert, the shared experts
//! and a dense layer are all this.

use std::sync::Arc;

use super::matrix_plan::MatrixPlan;
use crate::checkpoint::{Checkpoint, CheckpointError, Plane, Reader};
use crate::family::BlockNames;
use crate::kernel::{Activation, Matrix, Placement, Region};
use crate::spec::Quantization;

/// A packed feed-forward block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Gate and up, panel by panel in turn.
    pub gate_up: Matrix,
    /// Down.
    pub down: Matrix,
    /// In panel order.
    pub gate_up_bias: Option<Arc<[f32]>>,
    /// In panel order.
    pub down_bias: Option<Arc<[f32]>>,
    /// What joins gate and up.
    pub activation: Activation,
}

impl Block {
    /// Inner width.
    pub fn width(&self) -> usize {
        self.down.k()
    }

    /// Bytes of its packed matrices.
    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}

/// A block that has been found in a checkpoint, and not read yet.
#[derive(Debug)]
pub(super) struct BlockPlan<'c> {
    pub(super) gate_up: MatrixPlan<'c>,
    pub(super) down: MatrixPlan<'c>,
}

impl<'c> BlockPlan<'c> {
    /// A block of three tensors.
    pub(super) fn separate(
        checkpoint: &'c Checkpoint,
        names: &BlockNames,
        hidden: usize,
        width: usize,
        quantization: Option<Quantization>,
    ) -> Result<Self, CheckpointError> {
        let plane = |name: &str, rows, columns| {
            Plane::whole(checkpoint, name, rows, columns, quantization).map(Arc::new)
        };
        let mut gate_up = MatrixPlan::gated(width, hidden);
        gate_up.add(plane(&names.gate, width, hidden)?, 0..width, Placement::Gate);
        gate_up.add(plane(&names.up, width, hidden)?, 0..width, Placement::Up);
        let mut down = MatrixPlan::plain(hidden, width);
        down.add(plane(&names.down, hidden, width)?, 0..hidden, Placement::Plain);
        Ok(Self { gate_up, down })
    }

    /// Bytes when packed.
    pub(super) fn bytes(&self, exact: bool) -> usize {
        self.gate_up.bytes(exact) + self.down.bytes(exact)
    }

    /// Bytes as stored.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.gate_up.stored_bytes() + self.down.stored_bytes()
    }

    /// Reads and packs a block without biases.
    pub(super) fn load(
        &self,
        region: &Arc<Region>,
        reader: &mut Reader,
        activation: Activation,
    ) -> Result<Block, CheckpointError> {
        Ok(Block {
            gate_up: self.gate_up.load(region, reader)?,
            down: self.down.load(region, reader)?,
            gate_up_bias: None,
            down_bias: None,
            activation,
        })
    }
}
