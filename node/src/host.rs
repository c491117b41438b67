//! What this host offers: what a node will announce when it joins, and what a benchmark's figures mean.
//!
//! A shell: it asks the system. Only what the process may really use counts, so cores come from its
//! affinity and memory from its cgroup where that is lower.

use std::fs;

use model::kernel::{Kernels, NumericClass};

/// What this host offers.
#[derive(Debug, Clone)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may run on.
    pub cores: usize,
    /// Bytes of memory that this process may use, if the system says.
    pub memory_bytes: Option<u64>,
    /// Numeric classes that run here at speed, with the path that runs them.
    pub classes: Vec<Kernels>,
}

impl Host {
    /// Asks the system.
    pub fn read() -> Self {
        let classes = NumericClass::ALL.iter().filter_map(|c| Kernels::for_class(*c).ok()).collect();
        Self {
            cpu: cpu().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(),
            classes,
        }
    }

    /// The class that runs fastest here.
    pub fn best(&self) -> Kernels {
        Kernels::best()
    }
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let total = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    Some(limit.map_or(total, |limit| limit.min(total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the host, it can compute, and says with what.
    #[test]
    fn a_host_offers_at_least_the_portable_class() {
        let host = Host::read();
        assert!(host.cores > 0);
        assert!(host.classes.iter().any(|k| k.class() == NumericClass::Portable));
        assert!(host.classes.contains(&host.best()));
    }
}
