//! A routed expert: found, read and packed alone. A dense layer's feed-forward is expert 0 of its layer.

use std::fmt;
use std::sync::Arc;

use super::block::{Block, BlockPlan};
use super::manifest::Digest;
use super::matrix_plan::MatrixPlan;
use crate::checkpoint::{Checkpoint, CheckpointError, Extract, Plane, Reader, extract_vector, vector_slice};
use crate::family::{ExpertNames, Names};
use crate::kernel::{Activation, Placement, Region};
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

/// An expert that has been found in a checkpoint, and not read yet.
#[derive(Debug)]
pub struct ExpertPlan<'c> {
    checkpoint: &'c Checkpoint,
    block: BlockPlan<'c>,
    /// Names of the fused bias tensors, how many experts they hold, and which one this is.
    biases: Option<(String, String, usize, usize)>,
    activation: Activation,
    hidden: usize,
    width: usize,
}

impl<'c> ExpertPlan<'c> {
    /// Finds expert `id` and checks its tensors' shapes and types.
    ///
    /// Panics if the model has no such expert.
    pub fn new(checkpoint: &'c Checkpoint, spec: &Spec, id: ExpertId) -> Result<Self, CheckpointError> {
        let (layer, expert) = (id.layer as usize, id.expert as usize);
        let experts = spec.layer_experts(layer).expect("the model has the layer");
        assert!(expert < experts.experts, "expert {id} of {}", experts.experts);
        let (hidden, width, count) = (spec.hidden, experts.width, experts.experts);
        let names = Names::new(spec.family).layer(layer);
        let mut biases = None;
        let own = match experts.is_dense {
            true => ExpertNames::Separate(names.dense()),
            false => names.expert(expert),
        };
        let block = match own {
            ExpertNames::Separate(block) => {
                let fused = names
                    .fused_experts()
                    .into_iter()
                    .find(|prefix| checkpoint.has_slice(&format!("{prefix}.gate_up_proj"), expert));
                match fused {
                    Some(prefix) if !experts.is_dense && checkpoint.find(&block.gate).is_none() => {
                        stacked(checkpoint, &prefix, count, expert, hidden, width)?
                    }
                    _ => BlockPlan::separate(checkpoint, &block, hidden, width, spec.quantization)?,
                }
            }
            ExpertNames::Fused(prefix) => {
                let (gate_up, down) = (format!("{prefix}.gate_up_proj"), format!("{prefix}.down_proj"));
                if experts.bias {
                    biases = Some((format!("{gate_up}_bias"), format!("{down}_bias"), count, expert));
                }
                interleaved(checkpoint, &gate_up, &down, count, expert, hidden, width)?
            }
        };
        Ok(Self { checkpoint, block, biases, activation: activation(experts.activation), hidden, width })
    }

    /// Bytes when packed.
    pub fn bytes(&self, exact: bool) -> usize {
        self.block.bytes(exact)
    }

    /// Bytes as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.block.stored_bytes()
    }

    /// Its tensors as its own file has them, in the order in which they are hashed.
    pub(super) fn extracts(&self) -> Result<Vec<Extract>, CheckpointError> {
        let BlockPlan { gate_up, down } = &self.block;
        let mut extracts: Vec<Extract> = gate_up.extracts().chain(down.extracts()).collect();
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
            let (count, expert) = (*count, *expert);
            let bias = |reader: &mut Reader, name: &str, matrix: &crate::kernel::Matrix, placement| {
                let values = vector_slice(self.checkpoint, reader, name, count, expert, matrix.n())?;
                let mut bias = vec![0.0; matrix.shape().bias_len()];
                matrix.place_bias(placement, &values, &mut bias);
                Ok(Some(Arc::from(bias)))
            };
            block.gate_up_bias = bias(reader, gate_up, &block.gate_up, Placement::Interleaved)?;
            block.down_bias = bias(reader, down, &block.down, Placement::Plain)?;
        }
        Ok((block, reader.take_digest().map(Digest)))
    }
}

/// The specification's activation as the kernels name it.
pub(super) fn activation(activation: spec::Activation) -> Activation {
    match activation {
        spec::Activation::Silu => Activation::Silu,
        spec::Activation::ClampedSwiglu { alpha, limit } => Activation::ClampedSwiglu { alpha, limit },
    }
}

/// `[experts, 2 * width, hidden]`, gate rows before up rows, and `[experts, hidden, width]`.
fn stacked<'c>(
    checkpoint: &'c Checkpoint,
    prefix: &str,
    count: usize,
    expert: usize,
    hidden: usize,
    width: usize,
) -> Result<BlockPlan<'c>, CheckpointError> {
    let name = format!("{prefix}.gate_up_proj");
    let both = Arc::new(Plane::slice(checkpoint, &name, count, expert, 2 * width, hidden)?);
    let mut gate_up = MatrixPlan::gated(width, hidden);
    gate_up.add(Arc::clone(&both), 0..width, Placement::Gate);
    gate_up.add(both, width..2 * width, Placement::Up);
    let name = format!("{prefix}.down_proj");
    let down = MatrixPlan::of(Plane::slice(checkpoint, &name, count, expert, hidden, width)?);
    Ok(BlockPlan { gate_up, down })
}

/// GPT-OSS: gate and up in turn, either MXFP4 `[experts, 2 * width, hidden]` and `[experts, hidden, width]`,
/// or turned, `[experts, hidden, 2 * width]` and `[experts, width, hidden]`.
fn interleaved<'c>(
    checkpoint: &'c Checkpoint,
    gate_up_name: &str,
    down_name: &str,
    count: usize,
    expert: usize,
    hidden: usize,
    width: usize,
) -> Result<BlockPlan<'c>, CheckpointError> {
    let mut gate_up = MatrixPlan::gated(width, hidden);
    let mut down = MatrixPlan::plain(hidden, width);
    if checkpoint.has_slice(&format!("{gate_up_name}_blocks"), expert) {
        let plane = Plane::mxfp4(checkpoint, gate_up_name, count, expert, 2 * width, hidden)?;
        gate_up.add(Arc::new(plane), 0..2 * width, Placement::Interleaved);
        let plane = Plane::mxfp4(checkpoint, down_name, count, expert, hidden, width)?;
        down.add(Arc::new(plane), 0..hidden, Placement::Plain);
    } else {
        let plane = Plane::slice(checkpoint, gate_up_name, count, expert, hidden, 2 * width)?;
        gate_up.add_turned(Arc::new(plane), 0..hidden, Placement::Interleaved);
        let plane = Plane::slice(checkpoint, down_name, count, expert, width, hidden)?;
        down.add_turned(Arc::new(plane), 0..width, Placement::Plain);
    }
    Ok(BlockPlan { gate_up, down })
}
