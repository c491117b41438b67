//! Weights in memory, packed for the kernels that will read them.
//!
//! The unit is an expert: `(layer, expert)` is opened and packed alone, and so is the trunk, from the
//! same files, reading only their bytes.

mod block;
mod expert;
mod expert_file;
mod manifest;
mod matrix_plan;
mod shard;
mod trunk;

pub use block::Block;
pub use expert::{ExpertId, ExpertPlan};
pub use expert_file::{ArrivalError, ArrivingExpert, ExpertFile};
pub use manifest::{Digest, DigestCache, Manifest};
pub use shard::{SHARD_UNIT, Shard};
pub use trunk::{
    AttentionWeights, Embedding, ForwardWeights, GateWeights, GroupedWeights, LatentWeights, QueryWeights,
    TrunkLayer, TrunkPlan, TrunkWeights,
};
