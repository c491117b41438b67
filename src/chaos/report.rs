//! What faults have done, by their kinds.
//!
//! Pure.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::Fault;
use super::streams::{Heard, Wrong};
use crate::bench::heard::quantile;

/// What one fault did.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) fault: Fault,
    /// Whom it was for; nobody for the coordinator's.
    pub(super) node: Option<String>,
    /// When all of it was over.
    pub(super) end: Instant,
    /// The longest time that one of the streams had nothing new, above what is usual.
    pub(super) stall: Duration,
    /// Until everything was as before; none if it was not within its time.
    pub(super) recovered: Option<Duration>,
}

impl Done {
    pub(super) fn line(&self) -> String {
        let recovered = match self.recovered {
            Some(recovered) => format!("recovered after {:.1} s", recovered.as_secs_f64()),
            None => "NOT recovered".to_owned(),
        };
        let whom = self.node.as_ref().map_or(String::new(), |node| format!(" {node}"));
        let what = format!("{}{whom}", self.fault);
        format!("{what:22} stalled for {:5} ms, {recovered}\n", self.stall.as_millis())
    }

    fn object(&self) -> Value {
        json!({
            "fault": self.fault.name(), "node": self.node, "stall_ms": self.stall.as_secs_f64() * 1e3,
            "recovered_ms": self.recovered.map(|recovered| recovered.as_secs_f64() * 1e3),
        })
    }
}

/// One kind of fault.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    pub(super) fault: Fault,
    pub(super) injected: usize,
    pub(super) recovered: usize,
    /// Median, 99th percentile and greatest, in milliseconds; nothing where there were none.
    pub(super) stall_ms: Option<[f64; 3]>,
    pub(super) lost: usize,
    pub(super) different: usize,
}

impl Class {
    /// Whether 99 in 100 were held up no longer than is promised.
    pub(super) fn is_within(&self) -> bool {
        self.stall_ms.is_none_or(|[_, p99, _]| p99 <= self.fault.stall_max().as_secs_f64() * 1e3)
    }

    fn object(&self) -> Value {
        let [p50, p99, max] = self.stall_ms.map_or([None; 3], |all| all.map(Some));
        json!({
            "fault": self.fault.name(), "injected": self.injected, "recovered": self.recovered,
            "stall_ms": { "p50": p50, "p99": p99, "max": max, "promised": self.fault.stall_max().as_millis() as u64 },
            "lost": self.lost, "different": self.different,
        })
    }
}

/// What goes wrong while a fault, or its end, is under way counts as its doing; what goes wrong later, as the last one's.
pub(super) fn classes(kinds: &[Fault], done: &[Done], heard: &Heard) -> Vec<Class> {
    let doing = |wrong: &Wrong| {
        done.iter().find(|done| done.end > wrong.since).or(done.last()).map(|done| done.fault)
    };
    let count = |all: &[Wrong], fault| all.iter().filter(|wrong| doing(wrong) == Some(fault)).count();
    let class = |fault: &Fault| {
        let of_kind: Vec<&Done> = done.iter().filter(|done| done.fault == *fault).collect();
        let mut stalls: Vec<f64> = of_kind.iter().map(|done| done.stall.as_secs_f64() * 1e3).collect();
        Class {
            fault: *fault,
            injected: of_kind.len(),
            recovered: of_kind.iter().filter(|done| done.recovered.is_some()).count(),
            stall_ms: (!stalls.is_empty()).then(|| [0.5, 0.99, 1.0].map(|part| quantile(&mut stalls, part))),
            lost: count(&heard.lost, *fault),
            different: count(&heard.different, *fault),
        }
    };
    kinds.iter().map(class).collect()
}

/// For people.
pub(super) fn table(classes: &[Class]) -> String {
    let mut text =
        "\nfault        injected  recovered   stall p50      p99      max ms   promised   lost  different\n"
            .to_owned();
    for class in classes {
        let [p50, p99, max] = class
            .stall_ms
            .map_or(["-"; 3].map(str::to_owned), |stalls| stalls.map(|stall| format!("{stall:.0}")));
        let (fault, promised) = (class.fault.name(), class.fault.stall_max().as_millis());
        let Class { injected, recovered, lost, different, .. } = class;
        text += &format!(
            "{fault:12} {injected:8} {recovered:10} {p50:>11} {p99:>8} {max:>8} {promised:13} {lost:6} {different:10}\n"
        );
    }
    text
}

/// For programs.
pub(super) fn object(classes: &[Class], done: &[Done]) -> [Value; 2] {
    [classes.iter().map(Class::object).collect(), done.iter().map(Done::object).collect()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_the_doing_of_what_was_under_way() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let done = |fault, end, stall| Done {
            fault,
            node: None,
            end: at(end),
            stall: Duration::from_millis(stall),
            recovered: (stall < 200).then_some(Duration::ZERO),
        };
        let done = [done(Fault::Kill, 100, 5), done(Fault::Cut, 200, 1_500), done(Fault::Kill, 300, 50)];
        let wrong = |since| Wrong { since: at(since), what: String::new() };
        let heard = Heard {
            lost: vec![wrong(150), wrong(400)],
            different: vec![wrong(99), wrong(250), wrong(250)],
            ..Heard::default()
        };
        let found = classes(&[Fault::Kill, Fault::Cut, Fault::Panic], &done, &heard);
        let class = |fault, counts: [usize; 4], stall_ms| {
            let [injected, recovered, lost, different] = counts;
            Class { fault, injected, recovered, stall_ms, lost, different }
        };
        let expected = [
            class(Fault::Kill, [2, 2, 1, 3], Some([5.0, 50.0, 50.0])),
            class(Fault::Cut, [1, 0, 1, 0], Some([1_500.0; 3])),
            class(Fault::Panic, [0; 4], None),
        ];
        assert_eq!(found, expected);
        assert_eq!(found.iter().map(Class::is_within).collect::<Vec<_>>(), [true, false, true]);
    }
}
