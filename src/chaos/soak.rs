//! Whether processes stay as they are: their memory and their descriptors, over a long time.
//!
//! A process has warmed up after a sixth of the time. What it has then, in the second sixth, is compared with what it has in
//! the last: medians, so that a batch that happens to be large while somebody looks is no growth.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);
/// So much more is growth, where it is more than a huge page: the system gives and takes those when it likes.
const GROWTH_MAX: f64 = 0.05;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Parts of the time: the first is passed over, the second is held against the last.
const PARTS: u32 = 6;
/// Of each part: fewer say nothing.
const LOOKS_MIN: usize = 5;

/// What a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Has {
    resident_bytes: u64,
    descriptors: u64,
}

impl Has {
    /// As the kernel says.
    fn read(pid: u32) -> Result<Self, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse()?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        Ok(Self { resident_bytes: kilobytes << 10, descriptors })
    }
}

/// What every process had, and when.
#[derive(Debug, Default)]
pub(super) struct Soak {
    looks: BTreeMap<String, Vec<(Duration, Has)>>,
    last: Option<Instant>,
}

/// How one process has grown.
#[derive(Debug, PartialEq)]
pub(super) struct Growth {
    process: String,
    /// Before and after.
    resident_bytes: [u64; 2],
    descriptors: [u64; 2],
}

impl Soak {
    /// Looks, if it is time: a while after `began`.
    pub(super) fn look(&mut self, began: Instant, processes: &[(String, u32)]) -> Result<(), Failure> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < EVERY) {
            return Ok(());
        }
        self.last = Some(now);
        for (name, pid) in processes {
            let has = Has::read(*pid).map_err(|why| format!("what {name} has cannot be read: {why}"))?;
            self.looks.entry(name.clone()).or_default().push((now - began, has));
        }
        Ok(())
    }

    /// What has come of it in so long.
    pub(super) fn growth(&self, lasted: Duration) -> Result<Vec<Growth>, Failure> {
        let part = lasted / PARTS;
        let growth = |(process, looks): (&String, &Vec<(Duration, Has)>)| {
            let median = |from: Duration, to: Duration, of: fn(&Has) -> u64| {
                let inside = looks.iter().filter(|(at, _)| *at >= from && *at < to);
                let mut values: Vec<u64> = inside.map(|(_, has)| of(has)).collect();
                values.sort();
                (values.len() >= LOOKS_MIN).then(|| values[values.len() / 2]).ok_or_else(|| {
                    format!(
                        "{process} was looked at {} times in a sixth of the time; soak longer",
                        values.len()
                    )
                })
            };
            let both = |of| -> Result<[u64; 2], String> {
                Ok([median(part, 2 * part, of)?, median((PARTS - 1) * part, Duration::MAX, of)?])
            };
            let resident_bytes = both(|has| has.resident_bytes)?;
            Ok(Growth { process: process.clone(), resident_bytes, descriptors: both(|has| has.descriptors)? })
        };
        self.looks.iter().map(growth).collect()
    }
}

impl Growth {
    /// Whether memory and descriptors have stayed as they were.
    pub(super) fn is_flat(&self) -> bool {
        let is_flat = |[before, after]: [u64; 2], free: u64| {
            after as f64 <= before as f64 * (1.0 + GROWTH_MAX) || after <= before + free
        };
        is_flat(self.resident_bytes, HUGE_PAGE_BYTES) && is_flat(self.descriptors, 0)
    }

    fn percent(&self) -> f64 {
        let [before, after] = self.resident_bytes;
        (after as f64 / before as f64 - 1.0) * 100.0
    }

    pub(super) fn object(&self) -> Value {
        let Self { process, resident_bytes, descriptors } = self;
        json!({
            "process": process, "resident_bytes": resident_bytes, "descriptors": descriptors,
            "growth_percent": self.percent(), "is_flat": self.is_flat(),
        })
    }
}

/// For people.
pub(super) fn table(all: &[Growth]) -> String {
    let mut text = "\nprocess        memory MB    after  growth   descriptors  after\n".to_owned();
    for growth in all {
        let [before, after] = growth.resident_bytes.map(|bytes| bytes as f64 / 1e6);
        let [had, has] = growth.descriptors;
        let (process, percent) = (&growth.process, growth.percent());
        text += &format!("{process:14} {before:9.1} {after:8.1} {percent:6.1}% {had:13} {has:6}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many megabytes and descriptors in the second of each minute, for an hour.
    fn soak(bytes: impl Fn(u64) -> u64, descriptors: impl Fn(u64) -> u64) -> Soak {
        let look = |minute: u64| {
            let has = Has { resident_bytes: bytes(minute) << 20, descriptors: descriptors(minute) };
            (Duration::from_secs(60 * minute), has)
        };
        Soak { looks: [("n0".to_owned(), (0..60).map(look).collect())].into(), last: None }
    }

    #[test]
    fn growth_is_what_comes_after_warming_up() {
        let hour = Duration::from_secs(3_600);
        let is_flat = |soak: Soak| soak.growth(hour).expect("an hour is enough")[0].is_flat();
        assert!(is_flat(soak(|_| 1_000, |_| 40)));
        // It warms up, and has a peak now and then.
        assert!(is_flat(soak(
            |minute| 500 + 50 * minute.min(10),
            |minute| 40 + 9 * u64::from(minute % 7 == 0)
        )));
        assert!(!is_flat(soak(|minute| 1_000 + 2 * minute, |_| 40)));
        // A huge page is nothing to a small process, two are.
        assert!(is_flat(soak(|minute| 20 + 2 * (minute / 30), |_| 40)));
        assert!(!is_flat(soak(|minute| 20 + 4 * (minute / 30), |_| 40)));
        assert!(!is_flat(soak(|_| 1_000, |minute| 40 + minute / 10)));
        assert!(soak(|_| 1, |_| 1).growth(Duration::from_secs(1_800)).is_ok());
        assert!(soak(|_| 1, |_| 1).growth(Duration::from_secs(60)).is_err(), "too few looks");
    }

    /// Of the process that asks: it has descriptors, and memory.
    #[test]
    fn the_kernel_says_what_there_is() {
        let has = Has::read(std::process::id()).expect("this is Linux");
        assert!(has.resident_bytes > 1 << 16 && has.descriptors >= 3, "{has:?}");
        assert!(Has::read(u32::MAX).is_err());
    }
}
