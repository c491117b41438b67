//! The server of a measurement, in a process of its own as its users have it, and what it takes of the machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Failure;
use crate::arguments::ComputeArguments;
use crate::bench::leftover;
use crate::remote::{ClusterUrl, cluster_url};

/// `phalanx serve`, which ends with this.
pub(super) struct Server {
    child: Child,
    pub(super) url: ClusterUrl,
}

/// Clock ticks of the kernel in a second, as it tells them.
const TICKS: f64 = 100.0;

impl Server {
    /// Starts one, and waits until it says where it is.
    pub(super) fn start(model: &Path, compute: &ComputeArguments, kv_memory: u64) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--http", "127.0.0.1:0", "--log-level", "error", "--model"]).arg(model);
        command.args(["--kv-memory", &kv_memory.to_string()]);
        let options = [
            ("--numeric-class", compute.numeric_class.map(|class| class.to_string())),
            ("--kernel-path", compute.kernel_path.map(|path| path.to_string())),
            ("--threads", compute.threads.map(|threads| threads.to_string())),
        ];
        for (flag, value) in options {
            command.args(value.iter().flat_map(|value| [flag, value]));
        }
        // Variables of this shell are not meant for it.
        let mut child = command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        leftover::add_process(&child);
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let url = loop {
            match lines.next() {
                Some(Ok(line)) if line.starts_with("serving ") => {
                    let url = line.rsplit(' ').next().unwrap_or_default();
                    break cluster_url(url)?;
                }
                Some(Ok(_)) => {}
                _ => {
                    leftover::end_process(&mut child);
                    return Err("the server has ended; its message is above".into());
                }
            }
        };
        // What it says later is read, so that it is never held up.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, url })
    }

    /// Bytes that it holds in memory.
    pub(super) fn resident(&self) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        resident_of(&status).ok_or_else(|| "this system does not say how much memory a process holds".into())
    }

    /// Seconds of processor that each of its threads has used, by name.
    pub(super) fn cpu(&self) -> BTreeMap<String, f64> {
        let mut used = BTreeMap::new();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.into_iter().flatten().flatten() {
            // A thread may end meanwhile.
            let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
            if let Some((name, seconds)) = thread_of(&stat) {
                *used.entry(name).or_default() += seconds;
            }
        }
        used
    }
}

/// Bytes in memory, of a process's `status`.
fn resident_of(status: &str) -> Option<u64> {
    let told = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(told.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// A thread's name and the processor time that it has used, of its `stat`.
fn thread_of(stat: &str) -> Option<(String, f64)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((name.to_owned(), (ticks()? + ticks()?) / TICKS))
}

impl Drop for Server {
    fn drop(&mut self) {
        leftover::end_process(&mut self.child);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_holds_is_read() {
        assert_eq!(resident_of("Name:\tx\nVmRSS:\t   12 kB\nRssAnon: 3 kB\n"), Some(12 << 10));
        assert_eq!(resident_of("VmRSS: much"), None);
        let own = std::fs::read_to_string("/proc/self/status").expect("Linux");
        assert!(resident_of(&own).is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn a_threads_name_may_be_anything() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 5 0 0 0 150 25 0 0 20 0 9 0 100 1 1";
        assert_eq!(thread_of(stat), Some(("a ) b".into(), 1.75)));
        assert_eq!(thread_of("7"), None);
        let own = std::fs::read_to_string("/proc/self/stat").expect("Linux");
        assert!(thread_of(&own).is_some());
    }
}
