//! What a person says of a coordinator: arguments, environment and a file, each above the next.
//!
//! Pure: nothing here reads any of them; whoever starts the program does. Each field is one flag, one variable
//! `PHALANX_COORDINATOR_…` and one key of the file. `phalanx serve` and `phalanx-coordinator` both take it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use model::kernel::{NumericClass, Path as KernelPath};
use settings::program::Settings;
use settings::values::{one_or_many, written_or_none};
use settings::{Bytes, Cores, LogFormat};

use crate::control::bias::BiasSettings;
use crate::control::placer::PlacerSettings;
use crate::control::policy::{Constraints, Policy};
use crate::control::rebalance::RebalanceSettings;
use crate::data::flow::Forwarding;
use crate::data::forwarding::Choice;
use crate::data::start::DataSettings;
use crate::trace::{Collector, Share};

/// Where clients come, where nobody says it.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
/// Memory for keys and values, where nobody says it.
const KV_MEMORY: Bytes = Bytes(2 << 30);
/// Between looks for a better placement, where nobody says it.
const REBALANCE_EVERY: RebalanceEvery = RebalanceEvery(30);
/// How long nodes are waited for before experts are placed on those that are there.
const START_WINDOW: Duration = Duration::from_secs(2);

/// What a person says of a coordinator. Nothing has to be said.
#[derive(Debug, Clone, Default, PartialEq, Args, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of a Hugging Face checkpoint (config.json, safetensors, tokenizer.json).
    #[arg(long, value_name = "DIR", env = "PHALANX_COORDINATOR_MODEL")]
    pub model: Option<PathBuf>,

    /// Where clients come: OpenAI's completions, /health, /cluster. Default: 127.0.0.1:8080.
    #[arg(long, value_name = "ADDRESS", env = "PHALANX_COORDINATOR_HTTP")]
    pub http: Option<SocketAddr>,

    /// Let --http be an address that other machines reach, without API keys: whoever reaches it may use the model.
    #[arg(long, env = "PHALANX_COORDINATOR_HTTP_OPEN")]
    pub http_open: bool,

    /// File of API keys: one on a line, and behind it, if wanted, name=NAME, requests=N under way at once, and
    /// tokens-per-minute=N. Without it everybody may ask.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,

    /// The certificate that clients are shown, in PEM, followed by those that vouch for it: --http then speaks https.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_HTTP_CERT")]
    pub http_cert: Option<PathBuf>,

    /// The key of --http-cert, in PEM.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_HTTP_KEY")]
    pub http_key: Option<PathBuf>,

    /// Where nodes come: HOST:PORT or tcp:HOST:PORT, quic:HOST:PORT, shm:PATH. Can be given several times.
    #[arg(long, value_name = "ADDRESS", env = "PHALANX_COORDINATOR_NODES", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub nodes: Vec<String>,

    /// How experts are laid out: auto, reference, spread, pack or replicate. Default: auto.
    #[arg(long, value_name = "POLICY", env = "PHALANX_COORDINATOR_POLICY")]
    #[serde(deserialize_with = "written_or_none")]
    pub policy: Option<Policy>,

    /// Cut every expert into so many shards, for devices that are too small for a whole one. Part of the numeric identity:
    /// the answers of another number differ in their last bits. Default: 1.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_SHARDS")]
    pub shards: Option<usize>,

    /// Where dense layers' feed-forwards are computed: by the trunk, or each on a device of its own, as an expert that
    /// every row takes. The answers are the same. Default: trunk.
    #[arg(long, value_name = "WHERE", env = "PHALANX_COORDINATOR_DENSE")]
    pub dense: Option<DensePlace>,

    /// Replicas that every expert must have. Default: 1.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_REPLICAS")]
    pub replicas: Option<u8>,

    /// Experts of one layer on one device.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_MAX_EXPERTS_PER_DEVICE_PER_LAYER")]
    pub max_experts_per_device_per_layer: Option<u32>,

    /// Layers that one device serves.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_MAX_LAYERS_PER_DEVICE")]
    pub max_layers_per_device: Option<u32>,

    /// Label whose values fail as one, for example rack: replicas never share one.
    #[arg(long, value_name = "LABEL", env = "PHALANX_COORDINATOR_FAILURE_DOMAIN")]
    pub failure_domain: Option<String>,

    /// Whether experts that are hot gain replicas or move, and replicas of cold ones go, where measured loads say that
    /// it saves more than it costs. `auto`: where experts have cores of their own, so not with embedded nodes alone.
    /// Default: auto.
    #[arg(long, value_name = "HOW", env = "PHALANX_COORDINATOR_REBALANCE")]
    pub rebalance: Option<RebalanceChoice>,

    /// Seconds from one look for a better placement to the next, at most a day; it must pay within twenty times as long.
    /// Default: 30.
    #[arg(long, value_name = "SECONDS", env = "PHALANX_COORDINATOR_REBALANCE_EVERY")]
    pub rebalance_every: Option<RebalanceEvery>,

    /// What is done about experts that are hot: `replicas`: rows go to whichever replica is less loaded, and answers are the model's
    /// own. `bias`: also, those that are overloaded are chosen less. ANSWERS THEN DIFFER from the model's own; each names the bias
    /// under which it was computed, and is the same wherever it is computed under that. Default: replicas.
    #[arg(long, value_name = "HOW", env = "PHALANX_COORDINATOR_BALANCE")]
    pub balance: Option<BalanceChoice>,

    /// With --balance bias: the most that is added to an expert's score or taken from it, from 0.001 to 8; 1 is about what a
    /// logit more does. More evens out more, and is further from the model. Default: 0.5.
    #[arg(long, value_name = "X", env = "PHALANX_COORDINATOR_BIAS_MAX")]
    pub bias_max: Option<BiasMax>,

    /// Whether a row goes on as soon as it is whole (`partial`), or with all rows of its step (`whole`). `auto`: whole
    /// where trunk and experts share cores; elsewhere both are tried now and then, and the faster is kept. Default: auto.
    #[arg(long, value_name = "HOW", env = "PHALANX_COORDINATOR_FORWARDING")]
    pub forwarding: Option<ForwardingChoice>,

    /// Rows on their way through the layers at once. Default: 4096.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_ROWS_IN_FLIGHT")]
    pub rows_in_flight: Option<u32>,

    /// Most memory for keys and values, for example 512M or 4G. It is touched only as it is used. Default: 2G.
    #[arg(long, value_name = "BYTES", env = "PHALANX_COORDINATOR_KV_MEMORY")]
    pub kv_memory: Option<Bytes>,

    /// Whether keys and values of prompts and answers are kept in that memory for prompts that begin alike, as long as it is
    /// not needed otherwise. The answers are the same. Default: on.
    #[arg(long, value_name = "HOW", env = "PHALANX_COORDINATOR_PREFIX_CACHE")]
    pub prefix_cache: Option<PrefixCacheChoice>,

    /// Requests that may wait for their turn; one more is told to come again later. Each keeps its prompt in memory.
    /// Default: 4096.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_QUEUE_MAX")]
    pub queue_max: Option<QueueMax>,

    /// Where this coordinator keeps what it must remember: its term, who is drained, biases, digests of its checkpoint.
    #[arg(long, value_name = "DIR", env = "PHALANX_COORDINATOR_DATA")]
    pub data: Option<PathBuf>,

    /// Folder of certificates (`phalanx certs issue`), for nodes from outside.
    #[arg(long, value_name = "DIR", env = "PHALANX_COORDINATOR_CERTS")]
    pub certs: Option<PathBuf>,

    /// Folder of the cluster's authority (`phalanx certs init`): nodes then join with a token, and their
    /// certificates are renewed.
    #[arg(long, value_name = "DIR", env = "PHALANX_COORDINATOR_AUTHORITY")]
    pub authority: Option<PathBuf>,

    /// File in which a valid join token always lies, renewed every 20 minutes, for nodes that are started by machines
    /// (`phalanx-node --token-file`). Its tokens may take names that other keys have. Needs --authority.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,

    /// Nodes come without certificates, over loopback only.
    #[arg(long, env = "PHALANX_COORDINATOR_INSECURE")]
    pub insecure: bool,

    /// With --insecure: over any network, where everybody can read and forge what is sent.
    #[arg(long, env = "PHALANX_COORDINATOR_INSECURE_ANYWHERE")]
    pub insecure_anywhere: bool,

    /// Numeric class: same class, same bits, on any host. `f32` is the accuracy oracle, `portable` runs everywhere,
    /// `avx512bf16` where the processor has it. Default: the fastest that runs here.
    #[arg(long, value_name = "CLASS", env = "PHALANX_COORDINATOR_NUMERIC_CLASS")]
    #[serde(deserialize_with = "written_or_none")]
    pub numeric_class: Option<NumericClass>,

    /// Force the instructions that compute the class (plain, avx2, avx512f, avx512bf16).
    #[arg(long, value_name = "PATH", env = "PHALANX_COORDINATOR_KERNEL_PATH")]
    #[serde(deserialize_with = "written_or_none")]
    pub kernel_path: Option<KernelPath>,

    /// Compute threads. Default: as many as the process may use cores.
    #[arg(long, value_name = "N", env = "PHALANX_COORDINATOR_THREADS")]
    pub threads: Option<usize>,

    /// Cores that the threads are pinned to and have for themselves, for example 0,1 or 4-7. Without it nothing is
    /// pinned and idle threads give their cores back quickly.
    #[arg(long, value_name = "LIST", env = "PHALANX_COORDINATOR_CORES")]
    pub cores: Option<Cores>,

    /// URL of a collector of OpenTelemetry traces, for example http://127.0.0.1:4318: it is sent a span for each request and what it
    /// did, and for some requests each dispatch to an expert. Default: OTEL_EXPORTER_OTLP_ENDPOINT, if it is set.
    #[arg(long, value_name = "URL", env = "PHALANX_COORDINATOR_OTLP")]
    pub otlp: Option<Collector>,

    /// The part of all requests whose dispatches are traced too, from 0 to 1; up to 2000 of each. Default: 0.01.
    #[arg(long, value_name = "PART", env = "PHALANX_COORDINATOR_OTLP_SHARE")]
    pub otlp_share: Option<Share>,

    /// File in PEM of the certificates that vouch for the collector's, for https. Default: the system's.
    #[arg(long, value_name = "FILE", env = "PHALANX_COORDINATOR_OTLP_CA")]
    pub otlp_ca: Option<PathBuf>,

    /// How the log is written: lines or json. Default: lines.
    #[arg(long, value_name = "FORMAT", env = "PHALANX_COORDINATOR_LOG")]
    pub log: Option<LogFormat>,

    /// How much is logged: error, warn, info, debug or trace, also by module. Default: info.
    #[arg(long, value_name = "LEVEL", env = "PHALANX_COORDINATOR_LOG_LEVEL")]
    pub log_level: Option<String>,
}

/// Where dense layers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DensePlace {
    /// With attention.
    Trunk,
    /// Each on a device.
    Device,
}

/// Whether experts are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebalanceChoice {
    /// Where it can pay.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// What is done about hot experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BalanceChoice {
    /// The less loaded replica is chosen.
    Replicas,
    /// And whoever is overloaded is chosen less.
    Bias,
}

/// The largest bias of an expert.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(try_from = "f64")]
pub struct BiasMax(f32);

/// Beyond it a bias decides and not the model.
const BIAS_MAX: f64 = 8.0;

impl TryFrom<f64> for BiasMax {
    type Error = String;

    fn try_from(max: f64) -> Result<Self, String> {
        // Steps below this would vanish beside scores.
        match (1e-3..=BIAS_MAX).contains(&max) {
            true => Ok(Self(max as f32)),
            false => Err(format!("a largest bias of {max}; from 0.001 to {BIAS_MAX} are supported")),
        }
    }
}

impl std::str::FromStr for BiasMax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let max: f64 = text.parse().map_err(|_| format!("`{text}` is no number; write for example 0.5"))?;
        max.try_into()
    }
}

/// Whether what was computed of prompts is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixCacheChoice {
    /// Yes.
    On,
    /// No.
    Off,
}

/// Requests that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "u64")]
pub struct QueueMax(pub u32);

impl TryFrom<u64> for QueueMax {
    type Error = String;

    fn try_from(count: u64) -> Result<Self, String> {
        match u32::try_from(count) {
            Ok(count @ 1..=65_536) => Ok(Self(count)),
            _ => Err(format!("{count} requests that may wait; from 1 to 65536 are supported")),
        }
    }
}

impl std::str::FromStr for QueueMax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count: u64 = text
            .parse()
            .map_err(|_| format!("`{text}` is not a number of requests; write for example 1000"))?;
        count.try_into()
    }
}

/// Seconds from one look to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "u64")]
pub struct RebalanceEvery(pub u64);

impl TryFrom<u64> for RebalanceEvery {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        match (1..=86_400).contains(&seconds) {
            true => Ok(Self(seconds)),
            false => Err(format!("{seconds} seconds from look to look; from 1 to 86400 are supported")),
        }
    }
}

impl std::str::FromStr for RebalanceEvery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds: u64 =
            text.parse().map_err(|_| format!("`{text}` is not a number of seconds; write for example 30"))?;
        seconds.try_into()
    }
}

/// How rows go on, as a person says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardingChoice {
    /// Each as soon as it is whole.
    Partial,
    /// All of a step together.
    Whole,
    /// Whichever suits.
    Auto,
}

impl ForwardingChoice {
    /// What the data plane is told.
    pub fn choice(self) -> Choice {
        match self {
            Self::Partial => Choice::Always(Forwarding::Partial),
            Self::Whole => Choice::Always(Forwarding::Whole),
            Self::Auto => Choice::Auto,
        }
    }
}

impl Settings for Config {
    const VARIABLES: &str = "PHALANX_COORDINATOR_";

    fn above(self, below: Self) -> Self {
        Self {
            model: self.model.or(below.model),
            http: self.http.or(below.http),
            http_open: self.http_open || below.http_open,
            api_key_file: self.api_key_file.or(below.api_key_file),
            http_cert: self.http_cert.or(below.http_cert),
            http_key: self.http_key.or(below.http_key),
            nodes: if self.nodes.is_empty() { below.nodes } else { self.nodes },
            policy: self.policy.or(below.policy),
            shards: self.shards.or(below.shards),
            dense: self.dense.or(below.dense),
            replicas: self.replicas.or(below.replicas),
            max_experts_per_device_per_layer: self
                .max_experts_per_device_per_layer
                .or(below.max_experts_per_device_per_layer),
            max_layers_per_device: self.max_layers_per_device.or(below.max_layers_per_device),
            failure_domain: self.failure_domain.or(below.failure_domain),
            rebalance: self.rebalance.or(below.rebalance),
            rebalance_every: self.rebalance_every.or(below.rebalance_every),
            balance: self.balance.or(below.balance),
            bias_max: self.bias_max.or(below.bias_max),
            forwarding: self.forwarding.or(below.forwarding),
            rows_in_flight: self.rows_in_flight.or(below.rows_in_flight),
            kv_memory: self.kv_memory.or(below.kv_memory),
            prefix_cache: self.prefix_cache.or(below.prefix_cache),
            queue_max: self.queue_max.or(below.queue_max),
            data: self.data.or(below.data),
            certs: self.certs.or(below.certs),
            authority: self.authority.or(below.authority),
            token_file: self.token_file.or(below.token_file),
            insecure: self.insecure || below.insecure,
            insecure_anywhere: self.insecure_anywhere || below.insecure_anywhere,
            numeric_class: self.numeric_class.or(below.numeric_class),
            kernel_path: self.kernel_path.or(below.kernel_path),
            threads: self.threads.or(below.threads),
            cores: self.cores.or(below.cores),
            otlp: self.otlp.or(below.otlp),
            otlp_share: self.otlp_share.or(below.otlp_share),
            otlp_ca: self.otlp_ca.or(below.otlp_ca),
            log: self.log.or(below.log),
            log_level: self.log_level.or(below.log_level),
        }
    }

    fn log(&self) -> (Option<LogFormat>, Option<&str>) {
        (self.log, self.log_level.as_deref())
    }
}

impl Config {
    /// Where clients come.
    pub fn http(&self) -> SocketAddr {
        self.http.unwrap_or(HTTP)
    }

    /// Dense layers have devices of their own.
    pub fn dense_out(&self) -> bool {
        self.dense == Some(DensePlace::Device)
    }

    /// Limits of the data plane. `shared_cores`: experts compute on the trunk's cores.
    pub fn data_settings(&self, shared_cores: bool) -> DataSettings {
        let defaults = DataSettings::default();
        let Bytes(kv_bytes) = self.kv_memory.unwrap_or(KV_MEMORY);
        DataSettings {
            rows_in_flight_max: self.rows_in_flight.unwrap_or(defaults.rows_in_flight_max),
            kv_bytes: usize::try_from(kv_bytes).unwrap_or(usize::MAX),
            prefix_cache: self.prefix_cache != Some(PrefixCacheChoice::Off),
            queue_max: self.queue_max.map_or(defaults.queue_max, |QueueMax(count)| count),
            forwarding: self.forwarding.unwrap_or(ForwardingChoice::Auto).choice(),
            shared_cores,
            dense_out: self.dense_out(),
            ..defaults
        }
    }

    /// Whether and how often experts are moved where it pays.
    fn rebalance(&self) -> Option<RebalanceSettings> {
        let is_wanted = match self.rebalance.unwrap_or(RebalanceChoice::Auto) {
            RebalanceChoice::Auto => !self.nodes.is_empty(),
            RebalanceChoice::On => true,
            RebalanceChoice::Off => false,
        };
        let RebalanceEvery(seconds) = self.rebalance_every.unwrap_or(REBALANCE_EVERY);
        is_wanted.then(|| RebalanceSettings::every(Duration::from_secs(seconds)))
    }

    /// How far experts' scores may be moved against overload; not at all, where nobody says so.
    pub fn bias_settings(&self) -> Option<BiasSettings> {
        let is_wanted = self.balance == Some(BalanceChoice::Bias);
        is_wanted.then(|| BiasSettings::up_to(self.bias_max.map_or(BiasSettings::MAX, |BiasMax(max)| max)))
    }

    /// When and how experts are laid out; `nodes_min` nodes are waited for.
    pub fn placer_settings(&self, nodes_min: usize) -> PlacerSettings {
        PlacerSettings {
            policy: self.policy.unwrap_or_default(),
            constraints: Constraints {
                max_experts_per_device_per_layer: self.max_experts_per_device_per_layer,
                max_layers_per_device: self.max_layers_per_device,
                failure_domain: self.failure_domain.clone(),
                replicas_min: self.replicas.unwrap_or(1),
                ..Constraints::default()
            },
            nodes_min,
            start_window: START_WINDOW,
            rebalance: self.rebalance(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        settings::program::parse("coordinator.toml", text)
    }

    #[test]
    fn a_file_says_what_flags_say() {
        let text = r#"
            model = "/models/m"
            http = "127.0.0.1:0"
            nodes = ["127.0.0.1:7070", "quic:127.0.0.1:7071"]
            policy = "pack"
            replicas = 2
            shards = 2
            dense = "device"
            failure_domain = "rack"
            balance = "bias"
            bias_max = 0.25
            forwarding = "whole"
            kv_memory = "1.5G"
            prefix_cache = "off"
            queue_max = 7
            numeric_class = "portable"
            cores = "0,4-5"
            otlp = "http://collector:4318"
            otlp_share = 0.5
            log = "json"
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.nodes.len(), 2);
        assert_eq!(config.http(), "127.0.0.1:0".parse().unwrap());
        let data = config.data_settings(false);
        assert_eq!(
            (data.kv_bytes, data.forwarding, data.dense_out),
            (3 << 29, Choice::Always(Forwarding::Whole), true)
        );
        assert_eq!((data.prefix_cache, data.queue_max), (false, 7));
        let defaults = Config::default().data_settings(false);
        assert_eq!((defaults.prefix_cache, defaults.queue_max), (true, 4096));
        assert_eq!(config.shards, Some(2));
        let bias = config.bias_settings().unwrap();
        assert_eq!((bias.max, bias.every), (0.25, Duration::from_secs(10)));
        assert_eq!(parse("balance = 'bias'").unwrap().bias_settings().unwrap().max, 0.5);
        assert_eq!(parse("balance = 'replicas'").unwrap().bias_settings(), None);
        assert_eq!(Config::default().bias_settings(), None);
        assert_eq!(config.otlp.as_ref().unwrap().to_string(), "http://collector:4318/v1/traces");
        assert_eq!(config.otlp_share, Some(0.5.try_into().unwrap()));
        let placer = config.placer_settings(3);
        assert_eq!((placer.policy, placer.constraints.replicas_min), (Policy::Pack, 2));
        assert_eq!(config.cores, Some(Cores(vec![0, 4, 5])));
        assert_eq!(parse("nodes = 'h:1'").unwrap().nodes, ["h:1"]);
        assert_eq!(parse("").unwrap(), Config::default());
    }

    /// A key that is misspelt would be a setting that is not set.
    #[test]
    fn unknown_keys_and_odd_values_are_refused_by_name() {
        for (text, expected) in [
            ("node = 'c:1'", "unknown field `node`"),
            ("policy = 'best'", "`best` is none of auto, reference"),
            ("kv_memory = '4X'", "`4X` is not a size"),
            ("otlp = 'collector'", "`collector` is not the URL of a collector"),
            ("otlp_share = 2.0", "2 is no part of all"),
            ("forwarding = 'some'", "unknown variant `some`"),
            ("balance = 'even'", "unknown variant `even`"),
            ("bias_max = 0.0", "a largest bias of 0; from 0.001 to 8 are supported"),
            ("bias_max = -1.0", "a largest bias of -1; from 0.001 to 8"),
            ("bias_max = nan", "a largest bias of NaN; from 0.001 to 8"),
            ("bias_max = 9.0", "a largest bias of 9; from 0.001 to 8"),
            ("numeric_class = 'bf16'", "numeric class \"bf16\" is unknown"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(expected) && why.starts_with("coordinator.toml: "), "{text}: {why}");
        }
    }

    #[test]
    fn what_is_said_above_counts() {
        let below = parse("replicas = 2\nthreads = 2\nnodes = 'c:1'\ninsecure = true").unwrap();
        let above = Config { threads: Some(3), ..Config::default() };
        let both = above.above(below.clone());
        assert_eq!((both.replicas, both.threads, both.insecure), (Some(2), Some(3), true));
        assert_eq!(both.nodes, below.nodes);
    }
}
