//! One feed-forward block: gate and up, what joins them, and down. A routed expert, the shared experts
//! and a dense layer are all this; so is each shard of one.

use std::sync::Arc;

use super::matrix_plan::{MatrixPlan, Part};
use super::shard::Shard;
use crate::checkpoint::{Checkpoint, CheckpointError, Extract, Plane, Reader};
use crate::family::BlockNames;
use crate::kernel::{Activation, Matrix, Placement, Region};
use crate::spec::Quantization;

/// A packed feed-forward block, or one shard of it.
#[derive(Debug, Clone)]
pub struct Block {
    /// Gate and up, panel by panel in turn.
    pub gate_up: Matrix,
    /// Down.
    pub down: Matrix,
    /// In panel order.
    pub gate_up_bias: Option<Arc<[f32]>>,
    /// In panel order. Only the first shard has it: it is added once.
    pub down_bias: Option<Arc<[f32]>>,
    /// What joins gate and up.
    pub activation: Activation,
    /// The shards after this one, where one process computes all of a block that is cut; see [`Shard`].
    pub others: Vec<Block>,
}

impl Block {
    /// Inner width, of this shard.
    pub fn width(&self) -> usize {
        self.down.k()
    }

    /// Bytes of its packed matrices, and of the other shards'.
    pub fn bytes(&self) -> usize {
        self.shards().map(|shard| shard.gate_up.bytes() + shard.down.bytes()).sum()
    }

    /// It, and the other shards that are here.
    pub fn shards(&self) -> impl Iterator<Item = &Block> {
        std::iter::once(self).chain(&self.others)
    }
}

/// A block that has been found in a checkpoint, and not read yet.
#[derive(Debug)]
pub(super) struct BlockPlan<'c> {
    /// At least one, of the same planes.
    shards: Vec<ShardPlan<'c>>,
}

/// One shard of a block that has been found.
#[derive(Debug)]
pub(super) struct ShardPlan<'c> {
    pub(super) gate_up: MatrixPlan<'c>,
    pub(super) down: MatrixPlan<'c>,
}

impl<'c> BlockPlan<'c> {
    /// A block, or the shards of it that `plan` gives.
    pub(super) fn new(shards: &[Shard], plan: impl Fn(Shard) -> ShardPlan<'c>) -> Self {
        assert!(!shards.is_empty(), "a block has a shard");
        Self { shards: shards.iter().map(|shard| plan(*shard)).collect() }
    }

    /// A block of three tensors.
    pub(super) fn separate(
        checkpoint: &'c Checkpoint,
        names: &BlockNames,
        hidden: usize,
        width: usize,
        quantization: Option<Quantization>,
        shards: &[Shard],
    ) -> Result<Self, CheckpointError> {
        let plane = |name: &str, rows, columns| {
            Plane::whole(checkpoint, name, rows, columns, quantization).map(Arc::new)
        };
        let gate = plane(&names.gate, width, hidden)?;
        let up = plane(&names.up, width, hidden)?;
        let down = plane(&names.down, hidden, width)?;
        Ok(Self::new(shards, |shard| {
            let run = shard.run(width);
            let mut gate_up = MatrixPlan::gated(run.len(), hidden);
            gate_up.add(Part::rows(&gate, 0..width, Placement::Gate).only_rows(run.clone()));
            gate_up.add(Part::rows(&up, 0..width, Placement::Up).only_rows(run.clone()));
            ShardPlan { gate_up, down: MatrixPlan::down(&down, hidden, run) }
        }))
    }

    /// Bytes when packed.
    pub(super) fn bytes(&self, exact: bool) -> usize {
        self.shards.iter().map(|shard| shard.gate_up.bytes(exact) + shard.down.bytes(exact)).sum()
    }

    /// Bytes as stored, of the whole block.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.shards[0].gate_up.stored_bytes() + self.shards[0].down.stored_bytes()
    }

    /// Its tensors as an expert's own file has them, in the order in which they are hashed.
    pub(super) fn extracts(&self) -> impl Iterator<Item = Extract> {
        let ShardPlan { gate_up, down } = &self.shards[0];
        gate_up.extracts().chain(down.extracts())
    }

    /// Reads and packs a block without biases. The whole block is hashed, once, however few of its shards are packed.
    pub(super) fn load(
        &self,
        region: &Arc<Region>,
        reader: &mut Reader,
        activation: Activation,
    ) -> Result<Block, CheckpointError> {
        let load = |plan: &ShardPlan<'c>, reader: &mut Reader| {
            Ok(Block {
                gate_up: plan.gate_up.load(region, reader)?,
                down: plan.down.load(region, reader)?,
                gate_up_bias: None,
                down_bias: None,
                activation,
                others: Vec::new(),
            })
        };
        let mut block = load(&self.shards[0], reader)?;
        let others = self.shards[1..].iter().map(|plan| reader.unhashed(|reader| load(plan, reader)));
        block.others = others.collect::<Result<_, _>>()?;
        Ok(block)
    }
}
