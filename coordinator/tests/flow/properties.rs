//! A flow driven at random beside the oracle.

use phalanx_coordinator::data::flow::{Chunk, Flow, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::SequenceId;
use proptest::prelude::*;

use super::oracle::Oracle;

#[derive(Debug, Clone, Copy)]
enum Event {
    Chunk { sequence: u32, start: u32, count: u32, samples: bool, is_scored: bool },
    Poll,
    Attended,
    Whole { nth: usize },
    Strand { nth: usize },
    Find { nth: usize },
    Cancel { sequence: u32 },
    Devices { idle: bool },
    Forwarding { whole: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..6_u32, 0..200_u32, 1..7_u32, any::<bool>(), any::<bool>()).prop_map(|chunk| {
            let (sequence, start, count, samples, is_scored) = chunk;
            Event::Chunk { sequence, start, count, samples, is_scored }
        }),
        16 => Just(Event::Poll),
        16 => Just(Event::Attended),
        40 => any::<usize>().prop_map(|nth| Event::Whole { nth }),
        2 => any::<usize>().prop_map(|nth| Event::Strand { nth }),
        2 => any::<usize>().prop_map(|nth| Event::Find { nth }),
        2 => (0..8_u32).prop_map(|sequence| Event::Cancel { sequence }),
        1 => any::<bool>().prop_map(|idle| Event::Devices { idle }),
        1 => any::<bool>().prop_map(|whole| Event::Forwarding { whole }),
    ]
}

fn mode(whole: bool) -> Forwarding {
    if whole { Forwarding::Whole } else { Forwarding::Partial }
}

prop_compose! {
    fn settings()(
        stages in 1..7_u32,
        head_has_layers: bool,
        rows_max in 1..40_u32,
        batch_rows_max in 1..50_u32,
        whole: bool,
    ) -> FlowSettings {
        let head_has_layers = head_has_layers || stages == 1;
        FlowSettings {
            stages, head_has_layers, rows_max, sequences_max: 6, batch_rows_max, forwarding: mode(whole),
        }
    }
}

/// A flow and what it should do.
struct Pair {
    settings: FlowSettings,
    flow: Flow,
    oracle: Oracle,
    busy: bool,
    idle: bool,
    left: Vec<SequenceId>,
}

impl Pair {
    fn new(settings: FlowSettings) -> Self {
        let (flow, oracle) = (Flow::new(settings.clone()), Oracle::new(settings.clone()));
        Self { settings, flow, oracle, busy: false, idle: true, left: Vec::new() }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Chunk { sequence, start, count, samples, is_scored } => {
                let sequence = SequenceId(sequence);
                let count = count.min(self.flow.rows_free() as u32);
                if count > 0 && !self.oracle.is_leaving(sequence) {
                    let start = self.oracle.next(sequence).unwrap_or(start);
                    let chunk = Chunk { sequence, start, count, samples, is_scored };
                    self.flow.handle_chunk(chunk);
                    self.oracle.chunk(chunk);
                }
            }
            Event::Poll => {
                self.poll();
            }
            Event::Attended if self.busy => {
                self.flow.handle_attended();
                self.oracle.attended(|row| self.flow.is_out(row));
                self.busy = false;
            }
            Event::Attended => {}
            Event::Whole { nth } => {
                let out = self.oracle.out();
                if !out.is_empty() {
                    let row = out[nth % out.len()];
                    self.flow.handle_whole(row);
                    self.oracle.whole(row);
                }
            }
            Event::Strand { nth } => {
                let out = self.oracle.out();
                let Some(row) = out.get(nth % out.len().max(1)) else { return };
                assert_eq!(self.flow.is_needed(*row), self.oracle.is_needed(*row));
                if self.oracle.is_needed(*row) {
                    let stranded = self.flow.handle_stranded(*row, true);
                    assert_eq!(stranded, self.oracle.strand(*row, true));
                }
            }
            Event::Find { nth } => {
                let stranded = self.oracle.stranded();
                let Some(row) = stranded.get(nth % stranded.len().max(1)) else { return };
                assert_eq!(self.flow.handle_stranded(*row, false), self.oracle.strand(*row, false));
            }
            Event::Cancel { sequence } => {
                self.flow.handle_cancel(SequenceId(sequence));
                self.oracle.cancel(SequenceId(sequence));
            }
            Event::Devices { idle } => {
                self.flow.handle_devices(idle);
                self.idle = idle;
            }
            Event::Forwarding { whole } => {
                // A step under way stays one for the oracle if the mode changes to and fro with nothing between, and is
                // mixed for the flow, which then waits for less. So the modes change only when something changes.
                if mode(whole) != self.oracle.forwarding {
                    self.flow.set_forwarding(mode(whole));
                    self.oracle.set_forwarding(mode(whole));
                }
            }
        }
        self.left.extend(std::iter::from_fn(|| self.flow.poll_left()));
        // Several may leave with one batch.
        self.left.sort();
        self.oracle.left.sort();
        assert_eq!(self.left, self.oracle.left, "who has left, each time it did");
        assert_eq!(self.flow.rows_free() + self.oracle.len(), self.settings.rows_max as usize);
        assert_eq!(self.flow.rows_passed(), self.oracle.passed);
        assert_eq!(self.flow.rows_stranded(), self.oracle.rows_stranded());
    }

    fn poll(&mut self) -> bool {
        let Some(batch) = self.flow.poll_batch() else {
            if !self.busy && self.idle {
                self.oracle.no_batch();
            }
            return false;
        };
        assert!(!self.busy && self.idle, "nothing starts while the trunk or its cores are busy");
        let batch = batch.clone();
        self.oracle.batch(&batch, |row| self.flow.position(row));
        self.busy = true;
        true
    }

    /// Whatever happened, all rows come to an end, in few events: those of stranded sequences when these are so no more.
    fn drain(&mut self) {
        self.handle(Event::Devices { idle: true });
        loop {
            let is_out = !self.oracle.out().is_empty();
            if !self.busy && !is_out && !self.poll() {
                break;
            }
            self.handle(Event::Attended);
            self.handle(Event::Whole { nth: 3 });
        }
        self.oracle.check_all_are_stranded();
        while !self.oracle.stranded().is_empty() {
            self.handle(Event::Find { nth: 7 });
        }
        let visits = self.oracle.len() * self.settings.stages as usize;
        for _ in 0..2 * visits + 2 {
            let is_out = !self.oracle.out().is_empty();
            let rows = self.oracle.len();
            let event_is_possible = rows == 0 || self.busy || is_out || self.poll();
            assert!(event_is_possible, "{rows} rows and nothing can happen");
            self.handle(Event::Attended);
            if is_out {
                self.handle(Event::Whole { nth: 5 });
            }
        }
        assert_eq!(self.flow.rows_free(), self.settings.rows_max as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1_000, ..ProptestConfig::default() })]

    /// Every row passes every stage once and in order within its sequence; a batch is all that is ready at its door; a step
    /// stays together, and waits for nobody who is stranded; nothing is stuck; whoever is cancelled leaves, and is named once.
    #[test]
    fn a_flow_does_what_the_rules_say(
        settings in settings(),
        events in prop::collection::vec(event(), 1..300),
    ) {
        let patience = 2 * u64::from(settings.stages);
        let stages = u64::from(settings.stages);
        let mut pair = Pair::new(settings);
        for event in events {
            pair.handle(event);
        }
        pair.drain();
        prop_assert!(pair.oracle.waited_max <= patience + stages, "no door is passed over for ever");
    }
}

/// One sequence that is alone at its door, and others that always meet and are more: it goes on all the same.
#[test]
fn a_crowd_does_not_keep_a_door_waiting_for_ever() {
    let settings = FlowSettings {
        stages: 4,
        head_has_layers: false,
        rows_max: 16,
        sequences_max: 16,
        batch_rows_max: 16,
        forwarding: Forwarding::Partial,
    };
    let mut pair = Pair::new(settings);
    // Three crowds at different doors, so that one of them can always go: the lone row would never be the most.
    for crowd in 0..3 {
        for i in 0..5 {
            pair.handle(Event::Chunk {
                sequence: crowd * 5 + i,
                start: 0,
                count: 1,
                samples: true,
                is_scored: false,
            });
        }
        if crowd < 2 {
            assert!(pair.poll());
            pair.handle(Event::Attended);
        }
    }
    pair.handle(Event::Chunk { sequence: 15, start: 0, count: 1, samples: true, is_scored: false });
    let mut lone_waited = 0;
    for _ in 0..200 {
        while !pair.oracle.out().is_empty() {
            pair.handle(Event::Whole { nth: 0 });
        }
        assert!(pair.poll());
        lone_waited = lone_waited.max(pair.oracle.waited_max);
        pair.handle(Event::Attended);
        for sequence in 0..16 {
            if !pair.oracle.has_rows(SequenceId(sequence)) {
                pair.handle(Event::Chunk { sequence, start: 0, count: 1, samples: true, is_scored: false });
            }
        }
    }
    assert!(lone_waited <= 2 * 4 + 4, "waited {lone_waited}");
}
