//! A routed expert: found, read and packed alone. A dense layer's feed-forward is expert 0 of its layer.

use std::fmt;
use std::sync::Arc;

use super::block::{Block, BlockPlan, ShardPlan};
use super::manifest::Digest;
use super::matrix_plan::{MatrixPlan, Part};
use super::shard::Shard;
use crate::checkpoint::{Checkpoint, CheckpointError, Extract, Plane, Reader, extract_vector, vector_slice};
use crate::family::{ExpertNames, Names};
use crate::kernel::{Activation, Matrix, Placement, Region};
use crate::spec::{self, Spec};

/// Which expert: layer and number within the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertId {
    /// Layer of the model, dense layers counted.
    pub layer: u32,
    /// Expert of the layer.
    pub expert: u32,
}

impl fmt::Display for ExpertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.expert)
    }
}

/// An expert that has been found in a checkpoint, and not read yet: all shards of it, or one.
#[derive(Debug)]
pub struct ExpertPlan<'c> {
    checkpoint: &'c Checkpoint,
    block: BlockPlan<'c>,
    shards: Vec<Shard>,
    /// Names of the fused bias tensors, how many experts they hold, and which one this is.
    biases: Option<(String, String, usize, usize)>,
    activation: Activation,
    hidden: usize,
    width: usize,
}

impl<'c> ExpertPlan<'c> {
    /// Finds expert `id` and checks its tensors' shapes and types. All shards of it will be loaded.
    ///
    /// Panics if the model has no such expert.
    pub fn new(checkpoint: &'c Checkpoint, spec: &Spec, id: ExpertId) -> Result<Self, CheckpointError> {
        Self::of_shards(checkpoint, spec, id, Shard::all(spec.shards).collect())
    }

    /// The same for shard `index` of the expert alone: its block is what one device of several holds, and computes
    /// partial outputs. The digest is still the whole expert's, so whoever hashes reads all of it.
    ///
    /// Panics if the model has no such expert, or is not cut into so many shards.
    pub fn shard(
        checkpoint: &'c Checkpoint,
        spec: &Spec,
        id: ExpertId,
        index: usize,
    ) -> Result<Self, CheckpointError> {
        assert!(index < spec.shards, "shard {index} of {}", spec.shards);
        Self::of_shards(checkpoint, spec, id, vec![Shard { index, count: spec.shards }])
    }

    fn of_shards(
        checkpoint: &'c Checkpoint,
        spec: &Spec,
        id: ExpertId,
        shards: Vec<Shard>,
    ) -> Result<Self, CheckpointError> {
        let (layer, expert) = (id.layer as usize, id.expert as usize);
        let experts = spec.layer_experts(layer).expect("the model has the layer");
        assert!(expert < experts.experts, "expert {id} of {}", experts.experts);
        let (hidden, width) = (spec.hidden, experts.width);
        let names = Names::new(spec.family).layer(layer);
        let own = match experts.is_dense {
            true => ExpertNames::Separate(names.dense()),
            false => names.expert(expert),
        };
        let among = Among { checkpoint, count: experts.experts, expert, hidden, width, shards: &shards };
        let mut biases = None;
        let block = match own {
            ExpertNames::Separate(block) => {
                let prefixes = names.fused_experts();
                let has = |prefix: &&String| checkpoint.has_slice(&format!("{prefix}.gate_up_proj"), expert);
                match prefixes.iter().find(has) {
                    Some(prefix) if !experts.is_dense && checkpoint.find(&block.gate).is_none() => {
                        among.stacked(prefix)?
                    }
                    _ => BlockPlan::separate(checkpoint, &block, hidden, width, spec.quantization, &shards)?,
                }
            }
            ExpertNames::Fused(prefix) => {
                let (gate_up, down) = (format!("{prefix}.gate_up_proj"), format!("{prefix}.down_proj"));
                let block = among.interleaved(&gate_up, &down)?;
                if experts.bias {
                    let names = (format!("{gate_up}_bias"), format!("{down}_bias"));
                    biases = Some((names.0, names.1, experts.experts, expert));
                }
                block
            }
        };
        let activation = activation(experts.activation);
        Ok(Self { checkpoint, block, shards, biases, activation, hidden, width })
    }

    /// Bytes when packed, of the shards that will be loaded.
    pub fn bytes(&self, exact: bool) -> usize {
        self.block.bytes(exact)
    }

    /// Bytes as stored, of the whole expert.
    pub fn stored_bytes(&self) -> u64 {
        self.block.stored_bytes()
    }

    /// Its tensors as its own file has them, in the order in which they are hashed.
    pub(super) fn extracts(&self) -> Result<Vec<Extract>, CheckpointError> {
        let mut extracts: Vec<Extract> = self.block.extracts().collect();
        if let Some((gate_up, down, count, expert)) = &self.biases {
            let vector = |name, length| extract_vector(self.checkpoint, name, *count, *expert, length);
            extracts.push(vector(gate_up, 2 * self.width)?);
            extracts.push(vector(down, self.hidden)?);
        }
        Ok(extracts)
    }

    /// Reads it once: packs it into `region`, and returns the digest if the reader hashes.
    pub fn load(
        &self,
        region: &Arc<Region>,
        reader: &mut Reader,
    ) -> Result<(Block, Option<Digest>), CheckpointError> {
        let mut block = self.block.load(region, reader, self.activation)?;
        if let Some((gate_up, down, count, expert)) = &self.biases {
            let mut vector =
                |name, length| vector_slice(self.checkpoint, reader, name, *count, *expert, length);
            let (gate_up, down) = (vector(gate_up, 2 * self.width)?, vector(down, self.hidden)?);
            let others = std::mem::take(&mut block.others);
            let mut blocks: Vec<Block> = std::iter::once(block).chain(others).collect();
            for (block, shard) in blocks.iter_mut().zip(&self.shards) {
                let run = shard.run(self.width);
                let own = &gate_up[2 * run.start..2 * run.end];
                block.gate_up_bias = Some(place_bias(&block.gate_up, Placement::Interleaved, own));
                if shard.index == 0 {
                    block.down_bias = Some(place_bias(&block.down, Placement::Plain, &down));
                }
            }
            let others = blocks.split_off(1);
            block = blocks.pop().expect("a block has a shard");
            block.others = others;
        }
        Ok((block, reader.take_digest().map(Digest)))
    }
}

/// A bias in panel order.
fn place_bias(matrix: &Matrix, placement: Placement, values: &[f32]) -> Arc<[f32]> {
    let mut bias = vec![0.0; matrix.shape().bias_len()];
    matrix.place_bias(placement, values, &mut bias);
    Arc::from(bias)
}

/// The specification's activation as the kernels name it.
pub(super) fn activation(activation: spec::Activation) -> Activation {
    match activation {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::ClampedSwiglu { alpha, limit } => Activation::ClampedSwiglu { alpha, limit },
    }
}

/// One expert of tensors that all experts of a layer share.
struct Among<'a, 'c> {
    checkpoint: &'c Checkpoint,
    count: usize,
    expert: usize,
    hidden: usize,
    width: usize,
    shards: &'a [Shard],
}

impl<'c> Among<'_, 'c> {
    fn slice(&self, name: &str, rows: usize, columns: usize) -> Result<Arc<Plane<'c>>, CheckpointError> {
        Plane::slice(self.checkpoint, name, self.count, self.expert, rows, columns).map(Arc::new)
    }

    fn mxfp4(&self, name: &str, rows: usize, columns: usize) -> Result<Arc<Plane<'c>>, CheckpointError> {
        Plane::mxfp4(self.checkpoint, name, self.count, self.expert, rows, columns).map(Arc::new)
    }

    /// `[experts, 2 * width, hidden]`, gate rows before up rows, and `[experts, hidden, width]`.
    fn stacked(&self, prefix: &str) -> Result<BlockPlan<'c>, CheckpointError> {
        let (hidden, width) = (self.hidden, self.width);
        let both = self.slice(&format!("{prefix}.gate_up_proj"), 2 * width, hidden)?;
        let down = self.slice(&format!("{prefix}.down_proj"), hidden, width)?;
        Ok(BlockPlan::new(self.shards, |shard| {
            let run = shard.run(width);
            let mut gate_up = MatrixPlan::gated(run.len(), hidden);
            gate_up.add(Part::rows(&both, 0..width, Placement::Gate).only_rows(run.clone()));
            gate_up.add(Part::rows(&both, width..2 * width, Placement::Up).only_rows(run.clone()));
            ShardPlan { gate_up, down: MatrixPlan::down(&down, hidden, run) }
        }))
    }

    /// GPT-OSS: gate and up in turn, either MXFP4 `[experts, 2 * width, hidden]` and `[experts, hidden, width]`,
    /// or turned, `[experts, hidden, 2 * width]` and `[experts, width, hidden]`.
    fn interleaved(&self, gate_up_name: &str, down_name: &str) -> Result<BlockPlan<'c>, CheckpointError> {
        let (hidden, width) = (self.hidden, self.width);
        let in_turn = Placement::Interleaved;
        if self.checkpoint.has_slice(&format!("{gate_up_name}_blocks"), self.expert) {
            let both = self.mxfp4(gate_up_name, 2 * width, hidden)?;
            let down = self.mxfp4(down_name, hidden, width)?;
            return Ok(BlockPlan::new(self.shards, |shard| {
                let run = shard.run(width);
                let mut gate_up = MatrixPlan::gated(run.len(), hidden);
                let rows = 2 * run.start..2 * run.end;
                gate_up.add(Part::rows(&both, 0..2 * width, in_turn).only_rows(rows));
                ShardPlan { gate_up, down: MatrixPlan::down(&down, hidden, run) }
            }));
        }
        let both = self.slice(gate_up_name, hidden, 2 * width)?;
        let turned = self.slice(down_name, width, hidden)?;
        Ok(BlockPlan::new(self.shards, |shard| {
            let run = shard.run(width);
            let mut gate_up = MatrixPlan::gated(run.len(), hidden);
            let columns = 2 * run.start..2 * run.end;
            gate_up.add(Part::turned(&both, 0..hidden, in_turn).only_columns(columns));
            let mut down = MatrixPlan::plain(hidden, run.len());
            down.add(Part::turned(&turned, 0..width, Placement::Plain).only_rows(run));
            ShardPlan { gate_up, down }
        }))
    }
}
