//! `phalanx bench transport`: each carrier beside the least program of the same kind, in the same run.
//!
//! Two processes, this one and one that it starts to echo; windows in turn; ratios of windows of one
//! round. See `contest` for how, `raw` for what the carriers are measured beside, and `ours` for the
//! carriers as their users have them.

mod cluster;
mod contest;
mod cores;
mod ours;
mod process;
mod raw;
mod report;

use std::time::Duration;

use clap::{Args, ValueEnum};
use node::host::Host;
use serde_json::{Value, json};

use self::cluster::Cluster;
use self::contest::{Contestant, Measure, ROW_BYTES};
use self::cores::{Cores, Placed};
use self::process::Parent;
use self::report::{Bar, Comparison, HEAD, Row};
use crate::Failure;
use crate::output::show;

/// How long both ends look for news before they sleep, where they are to spin: longer than a message
/// takes, so that nobody sleeps inside a window, and short enough that nobody spins in the window of
/// another.
const SPIN: Duration = Duration::from_millis(2);

/// Carriers, each beside the least program of the same kind in the same run.
///
/// Round trips are of whole messages, echoed by a second process (memory: by the same thread, and by
/// another). One way ends with a word from the peer that all have come. Ratios are those of times for
/// round trips, and those of bytes per second for one way.
#[derive(Debug, Args)]
pub(crate) struct Transport {
    /// Which carriers.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "memory,shm,tcp,tcp-tls,quic")]
    carrier: Vec<CarrierName>,

    /// Seconds for each figure.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = seconds)]
    seconds: f64,

    /// One JSON object.
    #[arg(long)]
    json: bool,

    /// Be the other process.
    #[arg(long, value_name = "PROGRAM", hide = true)]
    echo: Option<Program>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 60.0);
    seconds.ok_or_else(|| format!("`{text}` is no time for a figure; from a little above 0 to 60 seconds"))
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CarrierName {
    Memory,
    Shm,
    Tcp,
    TcpTls,
    Quic,
}

/// What the other process can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Program {
    RawRingSpinning,
    RawRingSleeping,
    RawTcp,
    RawTls,
    RawQuic,
    RawQuicDefault,
    ShmSpinning,
    ShmSleeping,
    Tcp,
    TcpTls,
    Quic,
}

impl Program {
    /// Echoes until the parent is gone.
    fn run(self) -> Result<(), Failure> {
        let parent = Parent::meet()?;
        match self {
            Self::RawRingSpinning | Self::RawRingSleeping => raw::ring::echo(parent, self),
            Self::RawTcp | Self::RawTls => raw::tcp::echo(parent, self),
            Self::RawQuic | Self::RawQuicDefault => raw::quic::echo(parent, self),
            Self::ShmSpinning | Self::ShmSleeping => ours::shm::echo(parent, self),
            Self::Tcp | Self::TcpTls => ours::tcp::echo(parent, self),
            Self::Quic => ours::quic::echo(parent),
        }
    }
}

/// A message as long as a batch of rows of a prompt, and how many of them are a window.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_COUNT: usize = 128;

/// Bytes per second that a carrier brings to another process, of large messages, while nothing else runs.
pub(super) fn throughput(carrier: CarrierName) -> Result<f64, Failure> {
    let cluster = Cluster::create()?;
    let mut ours = match carrier {
        CarrierName::Memory => ours::memory::two_threads()?,
        CarrierName::Shm => ours::shm::dial(false)?,
        CarrierName::Tcp => ours::tcp::dial(None)?,
        CarrierName::TcpTls => ours::tcp::dial(Some(&cluster))?,
        CarrierName::Quic => ours::quic::dial(&cluster)?,
    };
    // The first is for the caches.
    let windows = (0..6).map(|_| ours.one_way(LARGE_BYTES, LARGE_COUNT)).collect::<Result<Vec<_>, _>>()?;
    let rates = windows[1..].iter().map(|took| (LARGE_BYTES * LARGE_COUNT) as f64 / took.as_secs_f64());
    Ok(super::model::median(rates.collect()))
}

/// Contestants that take turns, and which of them are compared.
struct Field {
    contestants: Vec<Box<dyn Contestant>>,
    pairs: Vec<Pair>,
}

/// Two of a field by their places, and what their ratio must reach.
struct Pair {
    one: usize,
    beside: usize,
    bar: BarOf,
}

/// The bar of each measure, where it has one.
type BarOf = fn(Measure) -> Option<Bar>;

impl CarrierName {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::TcpTls => "tcp-tls",
            Self::Quic => "quic",
        }
    }

    /// Starts everything that is measured together.
    fn field(self, cores: Option<Cores>) -> Result<Field, Failure> {
        let place = |contestant| Box::new(Placed { contestant, cores }) as Box<dyn Contestant>;
        let field = |contestants: Vec<Box<dyn Contestant>>, pairs: &[(usize, usize, BarOf)]| Field {
            contestants: contestants.into_iter().map(place).collect(),
            pairs: pairs.iter().map(|&(one, beside, bar)| Pair { one, beside, bar }).collect(),
        };
        Ok(match self {
            Self::Memory => {
                let bar = |measure| match measure {
                    Measure::RoundTrip { .. } => Some(Bar::AtMost(1.3)),
                    Measure::OneWay { .. } => None,
                };
                field(
                    vec![
                        ours::memory::same_thread()?,
                        raw::actors::start(true)?,
                        ours::memory::two_threads()?,
                        raw::actors::start(false)?,
                    ],
                    &[(0, 1, bar), (2, 3, bar)],
                )
            }
            Self::Shm => {
                let bar = |measure| match measure {
                    Measure::RoundTrip { bytes: ROW_BYTES } => Some(Bar::AtMost(2.0)),
                    Measure::RoundTrip { .. } => None,
                    Measure::OneWay { .. } => Some(Bar::AtLeast(0.6)),
                };
                field(
                    vec![
                        ours::shm::dial(true)?,
                        raw::ring::dial(true)?,
                        ours::shm::dial(false)?,
                        raw::ring::dial(false)?,
                    ],
                    &[(0, 1, bar), (2, 3, bar)],
                )
            }
            Self::Tcp => {
                let bar = |measure| match measure {
                    Measure::RoundTrip { bytes: ROW_BYTES } => Some(Bar::AtMost(1.15)),
                    Measure::RoundTrip { .. } => None,
                    Measure::OneWay { .. } => Some(Bar::AtLeast(0.95)),
                };
                field(vec![ours::tcp::dial(None)?, raw::tcp::dial(None)?], &[(0, 1, bar)])
            }
            Self::TcpTls => {
                let of_plain = |measure| match measure {
                    Measure::RoundTrip { .. } => None,
                    Measure::OneWay { .. } => Some(Bar::AtLeast(0.5)),
                };
                let cluster = Cluster::create()?;
                field(
                    vec![
                        ours::tcp::dial(Some(&cluster))?,
                        raw::tcp::dial(Some(&cluster))?,
                        ours::tcp::dial(None)?,
                    ],
                    &[(0, 1, |_| None), (0, 2, of_plain)],
                )
            }
            Self::Quic => {
                let of_tcp = |measure| match measure {
                    Measure::RoundTrip { bytes: ROW_BYTES } => Some(Bar::AtMost(2.5)),
                    Measure::RoundTrip { .. } => None,
                    Measure::OneWay { .. } => Some(Bar::AtLeast(0.45)),
                };
                let cluster = Cluster::create()?;
                field(
                    vec![
                        ours::quic::dial(&cluster)?,
                        raw::quic::dial(&cluster, true)?,
                        raw::quic::dial(&cluster, false)?,
                        ours::tcp::dial(None)?,
                    ],
                    &[(0, 1, |_| None), (0, 2, |_| None), (0, 3, of_tcp)],
                )
            }
        })
    }
}

impl Transport {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if let Some(program) = self.echo {
            return program.run();
        }
        let host = Host::read();
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = Cores::choose()?;
        let used: Vec<usize> = cores.iter().flat_map(|cores| [cores.first, cores.second]).collect();
        if !self.json {
            show(&format!("{}, {count} cores\n{HEAD}", host.cpu))?;
        }
        let (mut rows, mut comparisons) = (Vec::new(), Vec::new());
        for (place, carrier) in self.carrier.iter().enumerate() {
            if self.carrier[..place].contains(carrier) {
                continue;
            }
            let mut field = carrier.field(cores).map_err(|why| format!("{}: {why}", carrier.name()))?;
            for measure in Measure::ALL {
                let (new_rows, new_comparisons) = self
                    .measure(*carrier, &mut field, measure)
                    .map_err(|why| format!("{}: {measure:?}: {why}", carrier.name()))?;
                if !self.json {
                    let lines =
                        new_rows.iter().map(Row::line).chain(new_comparisons.iter().map(Comparison::line));
                    show(&(lines.collect::<String>() + "\n"))?;
                }
                rows.extend(new_rows);
                comparisons.extend(new_comparisons);
            }
        }
        if self.json {
            let object = json!({
                "cpu": host.cpu, "cores": count, "cores_used": used, "seconds": self.seconds,
                "figures": rows.iter().map(Row::json).collect::<Vec<Value>>(),
                "ratios": comparisons.iter().map(Comparison::json).collect::<Vec<Value>>(),
            });
            show(&format!("{object:#}\n"))?;
        }
        Ok(())
    }

    fn measure(
        &self,
        carrier: CarrierName,
        field: &mut Field,
        measure: Measure,
    ) -> Result<(Vec<Row>, Vec<Comparison>), Failure> {
        let rounds = contest::measure(&mut field.contestants, measure, self.seconds)?;
        let name = |place: usize| field.contestants[place].name();
        let carrier = carrier.name();
        let row = |place| Row { carrier, contestant: name(place), measure, figure: rounds.figure(place) };
        let compare = |&Pair { one, beside, bar }: &Pair| {
            let ratio = rounds.ratio(measure, one, beside);
            Comparison {
                carrier,
                contestant: name(one),
                beside: name(beside),
                measure,
                ratio,
                bar: bar(measure),
            }
        };
        let rows = (0..field.contestants.len()).map(row).collect();
        Ok((rows, field.pairs.iter().map(compare).collect()))
    }
}
