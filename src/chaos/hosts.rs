//! Nodes as hosts of their own on one machine: a network namespace for each, on one bridge, whose packets the kernel itself
//! drops and holds back.
//!
//! All of it is in a namespace of this run: no interface, address or rule is seen outside of it, and the kernel takes it away
//! with the last process in it, however that ends.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::command::{Variables, run, run_aside};
use crate::Failure;
use crate::bench::leftover;

/// Where the coordinator is, in the network of the run.
pub(super) const COORDINATOR: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
/// The first node.
const FIRST: u8 = 10;
const BRIDGE: &str = "hosts";
/// How long a process may take to have a namespace of its own.
const APART_WITHIN: Duration = Duration::from_secs(10);
/// Of what is lost, the part.
const LOST_PART: &str = "0.2";
/// What a wire carries where it is narrow, and what may wait before it.
const NARROW: [&str; 6] = ["rate", "2mbit", "burst", "16kb", "latency", "400ms"];

/// Begins the program again in a network of its own, as this user's root where it is not the machine's. It returns only if that
/// cannot be.
pub(super) fn enter(arguments: impl Iterator<Item = std::ffi::OsString>) -> Failure {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(why) => return why.into(),
    };
    let why = command.arg("--net").arg(program).args(arguments).arg("--is-apart").exec();
    format!("unshare: {why}; --hosts needs util-linux and iproute2").into()
}

/// The hosts of nodes.
pub(super) struct Hosts {
    /// Each a process that holds a namespace open, whatever becomes of the node.
    holders: Vec<Child>,
    variables: Variables,
    can_filter: bool,
    can_narrow: bool,
}

/// A direction, as a host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    Input,
    Output,
}

impl Hosts {
    pub(super) fn start(count: usize, folder: &Path) -> Result<Self, Failure> {
        let own = namespace(std::process::id())?;
        let variables = vec![("XTABLES_LOCKFILE", folder.join("xtables.lock").display().to_string())];
        let mut all = Self { holders: Vec::new(), variables, can_filter: false, can_narrow: false };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "name", BRIDGE, "type", "bridge"])?;
        ip(&["address", "add", &format!("{COORDINATOR}/24"), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        for number in 0..count {
            let mut holder = Command::new("unshare");
            holder.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
            let holder = holder.spawn().map_err(|why| format!("unshare: {why}"))?;
            leftover::add_process(&holder);
            let pid = holder.id();
            all.holders.push(holder);
            let began = Instant::now();
            while namespace(pid)? == own {
                if began.elapsed() > APART_WITHIN {
                    return Err("`unshare --net` gives nobody a network of his own".into());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            let (port, pid) = (format!("port{number}"), pid.to_string());
            ip(&["link", "add", "name", &port, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
            ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
            let address = Ipv4Addr::new(10, 7, 0, FIRST + number as u8);
            all.run(number, &["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            all.run(number, &["ip", "link", "set", "eth0", "up"])?;
            all.run(number, &["ip", "link", "set", "lo", "up"])?;
        }
        all.can_filter = all.works("one-way, cut and loss are", &["iptables", "--list-rules"]);
        all.can_narrow = all.works("narrow is", &narrow("add")) && all.run(0, &narrow("delete")).is_ok();
        Ok(all)
    }

    pub(super) fn can_filter(&self) -> bool {
        self.can_filter
    }

    pub(super) fn can_narrow(&self) -> bool {
        self.can_narrow
    }

    /// How a program is begun on a host.
    pub(super) fn on(&self, number: usize) -> Vec<String> {
        let pid = self.holders[number].id().to_string();
        ["nsenter", "--target", &pid, "--net"].map(str::to_owned).to_vec()
    }

    /// From now on a host's packets are lost in these directions, or all pass again.
    pub(super) async fn drop_all(&self, number: usize, chains: &[Chain], is_on: bool) -> Result<(), Failure> {
        for chain in chains {
            self.filter(number, *chain, &[], is_on).await?;
        }
        Ok(())
    }

    /// The same for some of what a host sends and is sent, by chance.
    pub(super) async fn drop_some(&self, number: usize, is_on: bool) -> Result<(), Failure> {
        for chain in [Chain::Input, Chain::Output] {
            let some = ["--match", "statistic", "--mode", "random", "--probability", LOST_PART];
            self.filter(number, chain, &some, is_on).await?;
        }
        Ok(())
    }

    /// From now on a host's wire is narrow, or as wide as it was.
    pub(super) async fn narrow(&self, number: usize, is_on: bool) -> Result<(), Failure> {
        self.aside(number, &narrow(if is_on { "add" } else { "delete" })).await
    }

    async fn filter(&self, number: usize, chain: Chain, which: &[&str], is_on: bool) -> Result<(), Failure> {
        let what = if is_on { "--append" } else { "--delete" };
        let chain = match chain {
            Chain::Input => "INPUT",
            Chain::Output => "OUTPUT",
        };
        let rule = [&["iptables", "--wait", what, chain], which, &["--jump", "DROP"]].concat();
        self.aside(number, &rule).await
    }

    async fn aside(&self, number: usize, words: &[&str]) -> Result<(), Failure> {
        let words = self.on(number).into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect();
        run_aside(words, self.variables.clone()).await.map(drop)
    }

    fn run(&self, number: usize, words: &[&str]) -> Result<String, Failure> {
        let on = self.on(number);
        let words: Vec<&str> = on.iter().map(String::as_str).chain(words.iter().copied()).collect();
        run(&words, &self.variables)
    }

    fn works(&self, what: &str, words: &[&str]) -> bool {
        match self.run(0, words) {
            Ok(_) => true,
            Err(why) => {
                eprintln!("note: {what} left out, since the kernel does not do it here ({why})");
                false
            }
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.holders.iter_mut().for_each(leftover::end_process);
    }
}

fn narrow(what: &'static str) -> Vec<&'static str> {
    let mut words = vec!["tc", "qdisc", what, "dev", "eth0", "root"];
    if what == "add" {
        words.push("tbf");
        words.extend(NARROW);
    }
    words
}

fn ip(words: &[&str]) -> Result<(), Failure> {
    run(&[&["ip"], words].concat(), &[]).map(drop)
}

/// Which network a process is in.
fn namespace(pid: u32) -> Result<PathBuf, Failure> {
    Ok(std::fs::read_link(format!("/proc/{pid}/ns/net"))?)
}
