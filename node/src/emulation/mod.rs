//! Emulation of devices and wires that are slower than this machine, so that what they do to a cluster can be seen here.
//!
//! Experts compute their real bits, but answer no earlier than the emulated device and wire would let them. Since that
//! is waiting and not computing, many devices overlap on two cores. Everything that is emulated says so: in the log,
//! and in the kind of device that the node offers.
//!
//! [`Emulation`] is what is asked for (pure). [`later`] holds things back, [`device`] batches, [`wire`] frames.

pub(crate) mod device;
pub(crate) mod later;
pub(crate) mod wire;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest that any of its times may be.
const TIME_MAX: Duration = Duration::from_secs(9);

/// What is emulated: `device=2ms+4ms/row,wire=5ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emulation {
    /// How long a device takes for a batch; without it, as long as it takes.
    pub device: Option<DeviceTime>,
    /// How long a frame is under way, in each direction.
    pub wire: Duration,
}

/// What a device takes for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTime {
    /// However many rows there are.
    pub base: Duration,
    /// For each of them.
    pub per_row: Duration,
}

impl DeviceTime {
    /// For a batch of so many rows.
    pub fn of(self, rows: u32) -> Duration {
        self.base + self.per_row * rows
    }
}

impl FromStr for Emulation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}`: {why}; write for example device=2ms+4ms/row,wire=5ms");
        let (mut device, mut wire) = (None, None);
        for part in text.split(',') {
            let is_twice = match part.split_once('=') {
                Some(("device", time)) => {
                    let (base, per_row) = time.split_once('+').unwrap_or((time, "0ms/row"));
                    let per_row =
                        per_row.strip_suffix("/row").ok_or_else(|| wrong("what a row takes ends in /row"))?;
                    let time = DeviceTime {
                        base: duration(base).map_err(|why| wrong(&why))?,
                        per_row: duration(per_row).map_err(|why| wrong(&why))?,
                    };
                    device.replace(time).is_some()
                }
                Some(("wire", time)) => wire.replace(duration(time).map_err(|why| wrong(&why))?).is_some(),
                _ => return Err(wrong(&format!("`{part}` is neither device=… nor wire=…"))),
            };
            if is_twice {
                return Err(wrong(&format!("`{part}` says something a second time")));
            }
        }
        Ok(Self { device, wire: wire.unwrap_or_default() })
    }
}

impl fmt::Display for Emulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(DeviceTime { base, per_row }) = self.device {
            write!(f, "device={}+{}/row,", Time(base), Time(per_row))?;
        }
        write!(f, "wire={}", Time(self.wire))
    }
}

/// A time, in the longest unit of which it is a multiple.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_micros() {
            us if us % 1_000_000 == 0 => write!(f, "{}s", us / 1_000_000),
            us if us % 1_000 == 0 => write!(f, "{}ms", us / 1_000),
            us => write!(f, "{us}us"),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        _ => return Err(format!("`{text}` is not a time in s, ms or us")),
    };
    let time = number.trim().parse::<f64>().ok().map(|number| number * seconds);
    match time.filter(|time| (0.0..=TIME_MAX.as_secs_f64()).contains(time)) {
        Some(time) => Ok(Duration::from_micros((time * 1e6).round() as u64)),
        None => Err(format!("`{text}` is not a time from 0 to {TIME_MAX:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        let ms = Duration::from_millis;
        let full = Emulation { device: Some(DeviceTime { base: ms(2), per_row: ms(4) }), wire: ms(5) };
        assert_eq!("device=2ms+4ms/row,wire=5ms".parse(), Ok(full));
        assert_eq!("wire=0.005s,device=2000us+4ms/row".parse(), Ok(full));
        assert_eq!(full.device.map(|device| device.of(3)), Some(ms(14)));
        assert_eq!(
            "device=1ms".parse::<Emulation>().map(|e| e.to_string()),
            Ok("device=1ms+0s/row,wire=0s".into())
        );
        for text in ["device=2ms+4ms/row,wire=5ms", "wire=200us", "device=1s+1500us/row,wire=0s"] {
            assert_eq!(text.parse::<Emulation>().map(|e| e.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_an_example() {
        for bad in [
            "",
            "device",
            "wire=5",
            "wire=-1ms",
            "wire=nans",
            "wire=10s",
            "device=2ms+4ms",
            "wire=1ms,wire=2ms",
        ] {
            let why = bad.parse::<Emulation>().unwrap_err();
            assert!(why.contains("write for example device=2ms+4ms/row,wire=5ms"), "{bad}: {why}");
        }
    }
}
