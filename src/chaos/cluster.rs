//! What faults are done to: a cluster of processes, or one of containers.

use super::compose::Compose;
use super::plan::{Fault, Injection};
use super::processes::Processes;
use crate::Failure;
use crate::remote::ClusterUrl;

/// A cluster that was started for this run, and ends with it.
pub(super) enum Cluster {
    Processes(Box<Processes>),
    Compose(Box<Compose>),
}

impl Cluster {
    pub(super) fn url(&self) -> &ClusterUrl {
        match self {
            Self::Processes(processes) => &processes.url,
            Self::Compose(compose) => &compose.url,
        }
    }

    /// What can be done to it.
    pub(super) fn faults(&self) -> Vec<Fault> {
        match self {
            Self::Processes(processes) => processes.faults(),
            Self::Compose(compose) => compose.faults(),
        }
    }

    /// The name of a node, as the coordinator knows it.
    pub(super) async fn name(&self, number: usize) -> Result<String, Failure> {
        match self {
            Self::Processes(processes) => Ok(processes.name(number)),
            Self::Compose(compose) => compose.name(number).await,
        }
    }

    /// Does it, and undoes what is to be undone; healing is the cluster's.
    pub(super) async fn inject(&mut self, injection: &mut Injection) -> Result<(), Failure> {
        match self {
            Self::Processes(processes) => processes.inject(injection).await,
            Self::Compose(compose) => compose.inject(injection).await,
        }
    }

    /// What is to be undone only when the cluster is whole again.
    pub(super) fn undo(&mut self, injection: &Injection) -> Result<(), Failure> {
        match self {
            Self::Processes(processes) => processes.undo(injection),
            Self::Compose(_) => Ok(()),
        }
    }

    /// Names and numbers of its processes, where they are this machine's.
    pub(super) fn processes(&self) -> Vec<(String, u32)> {
        match self {
            Self::Processes(processes) => processes.processes(),
            Self::Compose(_) => Vec::new(),
        }
    }
}
