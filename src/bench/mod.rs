//! `phalanx bench`: measurements, each as a share of a limit measured in the same run.

mod checkpoint;
mod cluster;
mod forwarding;
pub(crate) mod heard;
mod kernel;
pub(crate) mod leftover;
mod model;
pub(crate) mod scratch;
mod serve;
pub(crate) mod shape;
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
    /// A cluster beside the same model alone, in turns, as ratios.
    Cluster(Box<cluster::Cluster>),
    /// Carriers of the transport, as ratios to bare programs of the same kind.
    Transport(transport::Transport),
    /// Rows that go on by themselves beside rows that go on by steps.
    Forwarding(Box<forwarding::Forwarding>),
    /// A server under load: time to the first token and between tokens, tokens per second, goodput.
    Serve(Box<serve::Serve>),
    /// Write a checkpoint with random weights of any shape.
    MakeCheckpoint(checkpoint::MakeCheckpoint),
}

impl Bench {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Bench::Kernel(command) => command.run(),
            Bench::Model(command) => command.run(),
            Bench::Cluster(command) => command.run(),
            Bench::Transport(command) => command.run(),
            Bench::Forwarding(command) => command.run(),
            Bench::Serve(command) => command.run(),
            Bench::MakeCheckpoint(command) => command.run(),
        }
    }
}
