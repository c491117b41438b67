//! What a person says of a node: arguments, environment and a file, each above the next.
//!
//! Pure: nothing here reads any of them; `main.rs` does. Each field is one flag, one variable `PHALANX_NODE_…` and one
//! key of the file. Types cannot hold what makes no sense; what makes no sense together is refused by whoever puts
//! it together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use model::kernel::{NumericClass, Path as KernelPath};
use serde::de::{Deserialize, Deserializer};
use settings::program::Settings;
use settings::values::{one_or_many, written, written_or_none};
pub use settings::{Bytes, Cores, LogFormat};

use crate::emulation::Emulation;

/// Where a coordinator listens: `HOST:PORT`, `tcp:HOST:PORT`, `quic:HOST:PORT`, `shm:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Over which carrier.
    pub carrier: CarrierName,
    /// As the carrier writes it.
    pub place: String,
}

/// The carriers that reach another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CarrierName {
    /// TCP with mutual TLS.
    Tcp,
    /// QUIC.
    Quic,
    /// Shared memory of one host.
    Shm,
}

/// One label: `rack=r1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// `rack`
    pub key: String,
    /// `r1`
    pub value: String,
}

/// What a person says of a node. Nothing has to be said but a coordinator.
#[derive(Debug, Clone, Default, PartialEq, Args, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A coordinator to join: HOST:PORT or tcp:HOST:PORT, quic:HOST:PORT, shm:PATH. Repeat it for several
    /// coordinators; all of them are served.
    #[arg(
        long = "coordinator",
        value_name = "ADDRESS",
        env = "PHALANX_NODE_COORDINATOR",
        value_delimiter = ','
    )]
    #[serde(rename = "coordinator", deserialize_with = "one_or_many")]
    pub coordinators: Vec<Address>,

    /// The node's name in the cluster. Default: that of its certificate, else the host's.
    #[arg(long, env = "PHALANX_NODE_NAME")]
    pub name: Option<String>,

    /// How many devices it offers: experts are placed one to a device, as far as there are enough. Default: 1.
    #[arg(long, value_name = "N", env = "PHALANX_NODE_DEVICES")]
    pub devices: Option<usize>,

    /// Most bytes of weights on each device, for example 4G. Default: the machine's memory, divided by the devices.
    #[arg(long, value_name = "BYTES", env = "PHALANX_NODE_MEMORY")]
    pub memory: Option<Bytes>,

    /// Compute threads, which all devices share. Default: as many as the process may use cores.
    #[arg(long, value_name = "N", env = "PHALANX_NODE_THREADS")]
    pub threads: Option<usize>,

    /// Cores that the threads are pinned to and have for themselves, for example 0,1 or 4-7. Without it nothing is
    /// pinned and idle threads give their cores back quickly.
    #[arg(long, value_name = "LIST", env = "PHALANX_NODE_CORES")]
    pub cores: Option<Cores>,

    /// What placement is to know of where the node is: rack=r1, host=h7. Repeat it for several labels.
    #[arg(long = "label", value_name = "KEY=VALUE", env = "PHALANX_NODE_LABEL", value_delimiter = ',')]
    #[serde(rename = "labels", deserialize_with = "labels")]
    pub labels: Vec<Label>,

    /// The node's own copy of the checkpoint: experts are loaded from there, if it is the coordinator's model.
    #[arg(long, value_name = "DIR", env = "PHALANX_NODE_MODEL")]
    pub model: Option<PathBuf>,

    /// Folder for what the node is to remember: its certificate if it has joined by a token, digests of its
    /// checkpoint. Default: it remembers nothing.
    #[arg(long, value_name = "DIR", env = "PHALANX_NODE_DATA")]
    pub data: Option<PathBuf>,

    /// Folder of the node's certificate, as `phalanx certs issue` makes it.
    #[arg(long, value_name = "DIR", env = "PHALANX_NODE_CERTS")]
    pub certs: Option<PathBuf>,

    /// Join token (`phalanx certs token`) to get a certificate with at the first start; it is kept in the folder of
    /// --data. Better given as PHALANX_NODE_TOKEN, since everybody on the machine can read arguments.
    #[arg(long, env = "PHALANX_NODE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// File with a join token, as a coordinator's --token-file keeps it: read at each start without a certificate, and
    /// again until the coordinator is there and takes it.
    #[arg(long, value_name = "FILE", env = "PHALANX_NODE_TOKEN_FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,

    /// File that is there while a coordinator has this node, for health checks.
    #[arg(long, value_name = "FILE", env = "PHALANX_NODE_JOINED_FILE")]
    pub joined_file: Option<PathBuf>,

    /// Plaintext and no certificates, to coordinators on this host only.
    #[arg(long, env = "PHALANX_NODE_INSECURE")]
    pub insecure: bool,

    /// With --insecure: to coordinators anywhere. Everybody on the way can read and forge what is sent.
    #[arg(long, env = "PHALANX_NODE_INSECURE_ANYWHERE")]
    pub insecure_anywhere: bool,

    /// Numeric class: f32, portable or avx512bf16; all of a cluster compute in one. Default: the fastest that
    /// runs here.
    #[arg(long, value_name = "CLASS", env = "PHALANX_NODE_NUMERIC_CLASS")]
    #[serde(deserialize_with = "written_or_none")]
    pub numeric_class: Option<NumericClass>,

    /// Force the instructions that compute the class (plain, avx2, avx512f, avx512bf16).
    #[arg(long, value_name = "PATH", env = "PHALANX_NODE_KERNEL_PATH")]
    #[serde(deserialize_with = "written_or_none")]
    pub kernel_path: Option<KernelPath>,

    /// Most rows that an actor computes at once. Default: 512.
    #[arg(long, value_name = "N", env = "PHALANX_NODE_BATCH_ROWS_MAX")]
    pub batch_rows_max: Option<u32>,

    /// Seconds that a node which was asked to end goes on serving while what it holds moves to others, where they have room.
    /// Whoever ends it (Docker, Kubernetes, systemd) must give it longer than this. Default: 30.
    #[arg(long, value_name = "SECONDS", env = "PHALANX_NODE_LEAVE_WITHIN")]
    pub leave_within: Option<u32>,

    /// Emulate devices and a wire that are slower than this machine's, to see what they do to a cluster: experts
    /// compute their real bits, but answer no earlier. For example device=2ms+4ms/row,wire=5ms: a device takes
    /// 2 ms for a batch and 4 ms for each row of it, a frame is 5 ms under way in each direction.
    #[arg(long, value_name = "WHAT", env = "PHALANX_NODE_EMULATE")]
    pub emulate: Option<Emulation>,

    /// How the log is written: lines or json. Default: lines.
    #[arg(long, value_name = "FORMAT", env = "PHALANX_NODE_LOG")]
    pub log: Option<LogFormat>,

    /// How much is logged: error, warn, info, debug or trace, also by module. Default: info.
    #[arg(long, value_name = "LEVEL", env = "PHALANX_NODE_LOG_LEVEL")]
    pub log_level: Option<String>,
}

impl Settings for Config {
    const VARIABLES: &str = "PHALANX_NODE_";

    fn above(self, below: Self) -> Self {
        Self {
            coordinators: or(self.coordinators, below.coordinators),
            name: self.name.or(below.name),
            devices: self.devices.or(below.devices),
            memory: self.memory.or(below.memory),
            threads: self.threads.or(below.threads),
            cores: self.cores.or(below.cores),
            labels: or(self.labels, below.labels),
            model: self.model.or(below.model),
            data: self.data.or(below.data),
            certs: self.certs.or(below.certs),
            token: self.token.or(below.token),
            token_file: self.token_file.or(below.token_file),
            joined_file: self.joined_file.or(below.joined_file),
            insecure: self.insecure || below.insecure,
            insecure_anywhere: self.insecure_anywhere || below.insecure_anywhere,
            numeric_class: self.numeric_class.or(below.numeric_class),
            kernel_path: self.kernel_path.or(below.kernel_path),
            batch_rows_max: self.batch_rows_max.or(below.batch_rows_max),
            leave_within: self.leave_within.or(below.leave_within),
            emulate: self.emulate.or(below.emulate),
            log: self.log.or(below.log),
            log_level: self.log_level.or(below.log_level),
        }
    }

    fn log(&self) -> (Option<LogFormat>, Option<&str>) {
        (self.log, self.log_level.as_deref())
    }
}

impl Config {
    /// Reads a file's text; `file` is for messages.
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        settings::program::parse(file, text)
    }
}

fn or<T>(above: Vec<T>, below: Vec<T>) -> Vec<T> {
    if above.is_empty() { below } else { above }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (carrier, place) = match text.split_once(':') {
            Some(("tcp", place)) => (CarrierName::Tcp, place),
            Some(("quic", place)) => (CarrierName::Quic, place),
            Some(("shm", place)) => (CarrierName::Shm, place),
            _ => (CarrierName::Tcp, text),
        };
        let has_port = || {
            place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        let is_place = if carrier == CarrierName::Shm { !place.is_empty() } else { has_port() };
        if !is_place {
            return Err(format!(
                "`{text}` is no coordinator's address; write HOST:PORT, quic:HOST:PORT or shm:/path/to/socket"
            ));
        }
        Ok(Self { carrier, place: place.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carrier = match self.carrier {
            CarrierName::Tcp => "tcp",
            CarrierName::Quic => "quic",
            CarrierName::Shm => "shm",
        };
        write!(f, "{carrier}:{}", self.place)
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not a label; write for example rack=r1"))?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        written(from)
    }
}

impl<'de> Deserialize<'de> for Emulation {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        written(from)
    }
}

fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Label>, D::Error> {
    let all = BTreeMap::<String, String>::deserialize(from)?;
    Ok(all.into_iter().map(|(key, value)| Label { key, value }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_flags_say() {
        let text = r#"
            coordinator = ["c0:7000", "quic:[::1]:7001", "shm:/run/phalanx.sock"]
            name = "n0"
            devices = 4
            memory = "1.5G"
            threads = 2
            cores = "0,4-5"
            labels = { rack = "r1", host = "h7" }
            model = "/models/m"
            insecure = true
            numeric_class = "portable"
            kernel_path = "avx2"
            leave_within = 300
            emulate = "device=2ms+4ms/row,wire=5ms"
            log = "json"
        "#;
        let config = Config::parse("node.toml", text).unwrap();
        let addresses: Vec<_> = config.coordinators.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["tcp:c0:7000", "quic:[::1]:7001", "shm:/run/phalanx.sock"]);
        assert_eq!(config.memory, Some(Bytes(3 << 29)));
        assert_eq!(config.cores, Some(Cores(vec![0, 4, 5])));
        assert_eq!(config.labels.len(), 2);
        assert_eq!(config.numeric_class, Some(NumericClass::Portable));
        assert_eq!(config.kernel_path, Some(KernelPath::Avx2));
        assert_eq!(config.leave_within, Some(300));
        assert_eq!(config.emulate, "device=2ms+4ms/row,wire=5ms".parse().ok());
        assert_eq!(config.log, Some(LogFormat::Json));
        assert_eq!(Config::parse("", "memory = 1024").unwrap().memory, Some(Bytes(1024)));
        assert_eq!(Config::parse("", "coordinator = 'c:1'").unwrap().coordinators.len(), 1);
        assert_eq!(Config::parse("", "").unwrap(), Config::default());
    }

    /// A key that is misspelt would be a setting that is not set.
    #[test]
    fn unknown_keys_and_odd_values_are_refused_by_name() {
        for (text, expected) in [
            ("device = 4", "unknown field `device`"),
            ("memory = '4X'", "`4X` is not a size"),
            ("memory = -4", "`-4` is not a size"),
            ("cores = '3-1'", "`3-1` is not a list of cores"),
            ("coordinator = 'c0'", "`c0` is no coordinator's address"),
            ("coordinator = 'shm:'", "`shm:` is no coordinator's address"),
            ("numeric_class = 'bf16'", "numeric class \"bf16\" is unknown"),
            ("log = 'xml'", "`xml` is neither lines nor json"),
        ] {
            let why = Config::parse("node.toml", text).unwrap_err();
            assert!(why.contains(expected) && why.starts_with("node.toml: "), "{text}: {why}");
        }
    }

    #[test]
    fn what_is_said_above_counts() {
        let below =
            Config::parse("", "name = 'a'\ndevices = 2\ncoordinator = 'c:1'\ninsecure = true").unwrap();
        let above = Config { name: Some("b".to_owned()), threads: Some(3), ..Config::default() };
        let both = above.above(below.clone());
        assert_eq!((both.name.as_deref(), both.devices, both.threads), (Some("b"), Some(2), Some(3)));
        assert_eq!((both.coordinators, both.insecure), (below.coordinators, true));
    }
}
