//! Devices: what computes the batches of the actors that are placed on it.
//!
//! [`Device`] is the seat: a CPU device ([`cpu`]) is a share of memory on a compute pool; a GPU is another
//! implementation. [`compute`] is the thread that drives a pool for all of its devices, [`round`] what it does
//! with all that was handed over until it looked, and [`ends`] how that comes back.

pub mod compute;
pub mod cpu;
mod ends;
mod round;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::Addr;
use model::weights::Block;
use transport::wire::cluster::DeviceOffer;

use crate::expert::ExpertActor;
use crate::group::Group;

pub use compute::Compute;
pub use cpu::CpuDevice;
pub use ends::Ends;

/// Computes batches.
pub trait Device: Send + Sync {
    /// What it is, as a node announces it.
    fn offer(&self) -> DeviceOffer;

    /// How much of its memory is in use.
    fn memory(&self) -> &DeviceMemory;

    /// Takes a batch, on an arbiter's thread. It never waits: [`Computed`] comes when the batch has been returned. What is
    /// handed over in one turn of the arbiter begins together.
    fn submit(&self, batch: Batch);
}

/// Groups of one actor that are computed together.
pub struct Batch {
    /// The expert's weights.
    pub weights: Arc<Block>,
    /// The groups, in the order in which they came.
    pub groups: Vec<Group>,
    /// Who is told.
    pub actor: Addr<ExpertActor>,
    /// And on which arbiter.
    pub ends: Ends,
    /// It is to fall: a fault that a test has asked for.
    pub falls: bool,
    /// What the device is said to have spent on it at least: what an emulated one does.
    pub busy_min: Duration,
}

/// The end of a batch.
#[derive(Debug)]
pub struct Computed {
    /// Its groups: none where it was returned, all where it fell.
    pub groups: Vec<Group>,
    /// What came of it.
    pub outcome: Outcome,
}

impl actix::Message for Computed {
    type Result = ();
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its rows are on their way back; the device has spent so long on them.
    Returned(Duration),
    /// Computing it panicked, for this reason.
    Fell(String),
}

/// Bytes of weights on one device.
#[derive(Debug)]
pub struct DeviceMemory {
    bytes_max: u64,
    used: AtomicU64,
}

impl DeviceMemory {
    /// Nothing of `bytes_max` is used.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: AtomicU64::new(0) }
    }

    /// What it has.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What is used of it.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, or says how many are left.
    pub fn take(&self, bytes: u64) -> Result<(), u64> {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.bytes_max)
        });
        taken.map(drop).map_err(|used| self.bytes_max - used)
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: u64) {
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_as_long_as_there_is_some() {
        let memory = DeviceMemory::new(10);
        assert_eq!((memory.take(6), memory.take(5), memory.take(4)), (Ok(()), Err(4), Ok(())));
        memory.give_back(6);
        assert_eq!((memory.used(), memory.take(u64::MAX)), (4, Err(6)));
    }
}
