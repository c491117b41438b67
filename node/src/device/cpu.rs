//! A CPU device: a share of this host's memory on a compute pool. Several of them may share one pool.

use std::sync::Arc;

use transport::wire::cluster::DeviceOffer;

use super::{Batch, Compute, Device, DeviceMemory};

/// A share of memory on a compute pool.
#[derive(Debug)]
pub struct CpuDevice {
    memory: DeviceMemory,
    compute: Arc<Compute>,
}

impl CpuDevice {
    /// A device that may hold `memory_bytes` of weights and computes on `compute`.
    pub fn new(memory_bytes: u64, compute: Arc<Compute>) -> Self {
        Self { memory: DeviceMemory::new(memory_bytes), compute }
    }
}

impl Device for CpuDevice {
    fn offer(&self) -> DeviceOffer {
        DeviceOffer { kind: "cpu".to_owned(), memory_bytes: self.memory.bytes_max() }
    }

    fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    fn submit(&self, batch: Batch) {
        self.compute.submit(batch);
    }
}
