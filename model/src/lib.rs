//! What a token means: configuration, weights, kernels, trunk, gate, expert, sampler.
//!
//! Modules stand in the order in which a token meets them. This crate knows nothing of networks; it
//! computes, and it is the oracle that everything above is compared with.

pub mod text;

pub mod config;
pub mod family;
pub mod rope;
pub mod spec;

pub mod checkpoint;
pub mod weights;
mod widen;

pub mod kernel;
pub mod pool;
pub mod rows;

pub mod attention;
pub mod bias;
pub mod expert_batch;
pub mod experts;
pub mod gate;
pub mod kv;
pub mod plain;
pub mod share;
pub mod trunk;

pub mod load;

pub mod sampler;
