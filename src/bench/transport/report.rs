//! What was measured, for people and for programs.
//!
//! Pure.

use serde_json::{Value, json};

use super::contest::{Figure, Measure};

/// What a ratio must reach. The numbers stand in the project's requirements for the transport.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn is_reached(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bar) => ratio <= bar,
            Self::AtLeast(bar) => ratio >= bar,
        }
    }
}

/// One contestant under one measure.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) carrier: &'static str,
    pub(super) contestant: &'static str,
    pub(super) measure: Measure,
    pub(super) figure: Figure,
}

/// Two contestants under one measure.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) carrier: &'static str,
    pub(super) contestant: &'static str,
    pub(super) beside: &'static str,
    pub(super) measure: Measure,
    /// Of the times of a round trip, or of the bytes of a second.
    pub(super) ratio: f64,
    pub(super) bar: Option<Bar>,
}

/// The head of the table that [`Row::line`] and [`Comparison::line`] make.
pub(super) const HEAD: &str = "
carrier   measure                contestant                p50 us    p99 us      GB/s     ratio   bar
";

fn name(measure: Measure) -> String {
    let bytes = match measure.bytes() {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    };
    match measure {
        Measure::RoundTrip { .. } => format!("round trip {bytes}"),
        Measure::OneWay { .. } => format!("one way {bytes}"),
    }
}

fn gigabytes_per_second(measure: Measure, nanos: f64) -> f64 {
    measure.bytes() as f64 / nanos
}

impl Row {
    pub(super) fn line(&self) -> String {
        let Self { carrier, contestant, measure, figure } = self;
        let numbers = match measure {
            Measure::RoundTrip { .. } => {
                let tail = figure.nanos_p99.unwrap_or(f64::NAN);
                format!("{:10.2}{:10.2}", figure.nanos * 1e-3, tail * 1e-3)
            }
            Measure::OneWay { .. } => format!("{:>30.2}", gigabytes_per_second(*measure, figure.nanos)),
        };
        format!("{carrier:<10}{:<23}{contestant:<22}{numbers}\n", name(*measure))
    }

    pub(super) fn json(&self) -> Value {
        let Self { carrier, contestant, measure, figure } = self;
        let mut object = json!({
            "carrier": carrier, "contestant": contestant, "measure": kind(*measure), "bytes": measure.bytes(),
        });
        match measure {
            Measure::RoundTrip { .. } => {
                object["us_p50"] = json!(figure.nanos * 1e-3);
                object["us_p99"] = json!(figure.nanos_p99.map(|nanos| nanos * 1e-3));
            }
            Measure::OneWay { .. } => {
                object["gb_per_s"] = json!(gigabytes_per_second(*measure, figure.nanos));
            }
        }
        object["windows"] = json!(figure.windows);
        object
    }
}

impl Comparison {
    pub(super) fn line(&self) -> String {
        let Self { carrier, contestant, beside, measure, ratio, bar } = self;
        let bar = bar.map_or(String::new(), |bar| {
            let (sign, limit) = match bar {
                Bar::AtMost(limit) => ("<=", limit),
                Bar::AtLeast(limit) => (">=", limit),
            };
            let mark = if bar.is_reached(*ratio) { "reached" } else { "MISSED" };
            format!("   {sign} {limit:.2} {mark}")
        });
        let pair = format!("{contestant} / {beside}");
        format!("{carrier:<10}{:<23}{pair:<52}{ratio:>10.2}{bar}\n", name(*measure))
    }

    pub(super) fn json(&self) -> Value {
        let Self { carrier, contestant, beside, measure, ratio, bar } = self;
        let (at_most, at_least) = match bar {
            Some(Bar::AtMost(limit)) => (Some(limit), None),
            Some(Bar::AtLeast(limit)) => (None, Some(limit)),
            None => (None, None),
        };
        json!({
            "carrier": carrier, "contestant": contestant, "beside": beside,
            "measure": kind(*measure), "bytes": measure.bytes(), "ratio": ratio,
            "at_most": at_most, "at_least": at_least, "reached": bar.map(|bar| bar.is_reached(*ratio)),
        })
    }
}

fn kind(measure: Measure) -> &'static str {
    match measure {
        Measure::RoundTrip { .. } => "round_trip",
        Measure::OneWay { .. } => "one_way",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_reached_at_the_bar() {
        assert!(Bar::AtMost(1.15).is_reached(1.15) && !Bar::AtMost(1.15).is_reached(1.16));
        assert!(Bar::AtLeast(0.95).is_reached(0.95) && !Bar::AtLeast(0.95).is_reached(0.94));
        assert!(!Bar::AtMost(1.0).is_reached(f64::NAN) && !Bar::AtLeast(1.0).is_reached(f64::NAN));
    }

    #[test]
    fn a_missed_bar_is_shown() {
        let measure = Measure::OneWay { bytes: 1 << 20 };
        let mut comparison = Comparison {
            carrier: "tcp",
            contestant: "tcp",
            beside: "raw tokio",
            measure,
            ratio: 0.9,
            bar: Some(Bar::AtLeast(0.95)),
        };
        assert!(comparison.line().ends_with("0.90   >= 0.95 MISSED\n"), "{}", comparison.line());
        assert_eq!(comparison.json()["reached"], false);
        assert_eq!(comparison.json()["at_least"], 0.95);
        comparison.ratio = 1.0;
        assert!(comparison.line().ends_with("1.00   >= 0.95 reached\n"));
        assert_eq!(comparison.json()["reached"], true);
    }

    /// Rows and ratios stand under the words of the head.
    #[test]
    fn numbers_stand_in_their_columns() {
        let figure = Figure { nanos: 1_000.0, nanos_p99: Some(2_000.0), windows: 3 };
        let row = |measure| Row { carrier: "tcp", contestant: "raw tokio", measure, figure };
        let head = HEAD.trim_start();
        let end = |word: &str| head.find(word).expect("it is in the head") + word.len();
        let trip = row(Measure::RoundTrip { bytes: 64 }).line();
        assert_eq!(&trip[..end("p50 us")].trim_end()[end("p50 us") - 4..], "1.00");
        assert_eq!(trip.trim_end().len(), end("p99 us"));
        let way = row(Measure::OneWay { bytes: 14_336 }).line();
        assert!(way.ends_with("14.34\n") && way.trim_end().len() == end("GB/s"), "{way}");
    }
}
