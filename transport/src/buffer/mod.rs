//! Memory that frames travel in: pooled, aligned, bounded, and whole slabs of it registrable with a device.
//!
//! A sender takes a [`Buffer`], writes its rows and makes it a [`Payload`]; clones of that are the same
//! memory, kept for a resend. A receiver gets payloads from its own [`Pool`], and kernels read the rows
//! where they lie ([`view`]). Nothing here copies, and once a pool has grown to what is needed, nothing
//! here allocates.
//!
//! [`class`] says how large a buffer is, [`slab`] holds the memory, [`pool`] hands it out, [`payload`] is
//! what comes out. `unsafe` is in `slab`, `payload` and `view`, and in no other file of this module.

mod class;
mod payload;
mod pool;
mod slab;
#[cfg(test)]
mod tests;
pub mod view;

pub use class::{ALIGNMENT, SLAB_BYTES_MAX};
pub use payload::{Buffer, Payload};
pub use pool::{Pool, PoolStats, SlabRange};
