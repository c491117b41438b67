//! Nodes as processes of their own, as they are on bare metal.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Failure;
use crate::bench::leftover;

/// Processes that end with this.
pub(super) struct Nodes(Vec<Child>);

/// What nodes are told.
pub(super) struct NodeArguments<'a> {
    /// The coordinator's door, with its carrier.
    pub(super) coordinator: &'a str,
    /// Folder of the checkpoint.
    pub(super) model: &'a Path,
    /// Folders of their certificates; none where links are plain.
    pub(super) certs: Option<&'a Path>,
    /// Devices of each.
    pub(super) devices: usize,
    /// Compute threads of each.
    pub(super) threads: usize,
    /// What computes.
    pub(super) numeric_class: &'a str,
    pub(super) kernel_path: &'a str,
}

impl Nodes {
    /// Starts `count` of them.
    pub(super) fn start(count: usize, arguments: &NodeArguments<'_>) -> Result<Self, Failure> {
        let program = program()?;
        let mut nodes = Self(Vec::new());
        for number in 0..count {
            let mut command = Command::new(&program);
            command
                .args(["--coordinator", arguments.coordinator])
                .arg("--model")
                .arg(arguments.model)
                .args(["--devices", &arguments.devices.to_string()])
                .args(["--threads", &arguments.threads.to_string()])
                .args(["--numeric-class", arguments.numeric_class])
                .args(["--kernel-path", arguments.kernel_path])
                .args(["--log-level", "error"])
                // Variables of this shell are not meant for them.
                .env_clear();
            match arguments.certs {
                Some(folder) => command.arg("--certs").arg(folder.join(name(number))),
                None => command.args(["--insecure", "--name", &name(number)]),
            };
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let child = child.map_err(|why| format!("{}: {why}", program.display()))?;
            leftover::add_process(&child);
            nodes.0.push(child);
        }
        Ok(nodes)
    }

    /// Says if one has ended, which none should.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        for (number, child) in self.0.iter_mut().enumerate() {
            if let Some(status) = child.try_wait()? {
                return Err(format!("{} has ended with {status}", name(number)).into());
            }
        }
        Ok(())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(leftover::end_process);
    }
}

/// Name of a node.
pub(super) fn name(number: usize) -> String {
    format!("node-{number}")
}

/// It lies beside this program.
fn program() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()?.with_file_name("phalanx-node");
    match program.exists() {
        true => Ok(program),
        false => Err(format!(
            "{}: the node's program is not there; build it with `cargo build --release --workspace`",
            program.display()
        )
        .into()),
    }
}
