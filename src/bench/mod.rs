//! `phalanx bench`: measurements, each as a share of a limit measured in the same run.

mod checkpoint;
mod kernel;
mod model;
mod shape;
mod transport;

use clap::Subcommand;

use crate::Failure;

/// Measure kernels and models against what this machine can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Matrix kernels, as a share of read bandwidth or of the multiply-add peak.
    Kernel(kernel::Kernel),
    /// Prefill and decode of a model, as a share of the roofline.
    Model(model::Model),
    /// Carriers of the transport, as ratios to bare programs of the same kind.
    Transport(transport::Transport),
    /// Write a checkpoint with random weights of any shape.
    MakeCheckpoint(checkpoint::MakeCheckpoint),
}

impl Bench {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Bench::Kernel(command) => command.run(),
            Bench::Model(command) => command.run(),
            Bench::Transport(command) => command.run(),
            Bench::MakeCheckpoint(command) => command.run(),
        }
    }
}
