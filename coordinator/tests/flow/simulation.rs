//! A cluster in virtual time: a real flow between a trunk, wires and devices that are nothing but service times.
//!
//! A device serves what is in its queue together, in `base + per_row x rows`, and so does the trunk. Every expert has a
//! device of its own, unless the trunk's own cores serve all of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use phalanx_coordinator::data::flow::{Chunk, Flow, FlowSettings, Forwarding};
use phalanx_coordinator::data::ids::{RowId, SequenceId};

/// Time for a batch, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    pub(crate) base: f64,
    pub(crate) per_row: f64,
}

impl Service {
    pub(crate) fn of(base_ms: f64, per_row_ms: f64) -> Self {
        Self { base: base_ms * 1e3, per_row: per_row_ms * 1e3 }
    }

    fn time(self, rows: usize) -> u64 {
        (self.base + self.per_row * rows as f64) as u64
    }
}

/// A cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) layers: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: usize,
    pub(crate) device: Service,
    /// One way.
    pub(crate) wire_ms: f64,
    /// A stage.
    pub(crate) trunk: Service,
    /// Whether experts are computed on the trunk's cores, one after the other.
    pub(crate) shares_cores: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Attended,
    Arrived { device: usize, rows: Vec<u32> },
    Served { device: usize },
    Returned { rows: Vec<u32> },
}

#[derive(Debug, Default, Clone)]
struct Device {
    queue: Vec<u32>,
    serving: Vec<u32>,
}

/// A cluster at work.
pub(crate) struct Simulation {
    cluster: Cluster,
    pub(crate) flow: Flow,
    pub(crate) now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    happened: u64,
    devices: Vec<Device>,
    /// Returns that a row still waits for.
    missing: Vec<usize>,
    next: Vec<u32>,
    /// Requests that go on when their token comes.
    pub(crate) requests: u32,
    active: Vec<bool>,
    random: u64,
    /// Prompts of this length come one after the other as the last sequence.
    pub(crate) tokens: u64,
    pub(crate) batches: u64,
    pub(crate) batch_rows: u64,
    pub(crate) prompt_rows: u64,
    prompts: Option<u32>,
    decoded_at: Vec<u64>,
    pub(crate) longest_us: u64,
}

const SEQUENCES_MAX: u32 = 256;
const CHUNK: u32 = 64;

impl Simulation {
    pub(crate) fn new(cluster: Cluster, forwarding: Forwarding, requests: u32, seed: u64) -> Self {
        let settings = FlowSettings {
            stages: cluster.layers + 1,
            head_has_layers: false,
            rows_max: 1_024,
            sequences_max: SEQUENCES_MAX,
            batch_rows_max: 512,
            forwarding,
        };
        let mut simulation = Self {
            flow: Flow::new(settings),
            now_us: 0,
            events: BinaryHeap::new(),
            happened: 0,
            devices: vec![Device::default(); (cluster.layers * cluster.experts) as usize],
            missing: vec![0; 1_024],
            next: vec![0; SEQUENCES_MAX as usize],
            requests: 0,
            active: vec![false; SEQUENCES_MAX as usize],
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            tokens: 0,
            batches: 0,
            batch_rows: 0,
            prompt_rows: 0,
            prompts: None,
            decoded_at: vec![0; SEQUENCES_MAX as usize],
            longest_us: 0,
            cluster,
        };
        simulation.set_requests(requests);
        simulation
    }

    /// So many requests decode from now on.
    pub(crate) fn set_requests(&mut self, requests: u32) {
        self.requests = requests;
        for sequence in 0..requests {
            if !std::mem::replace(&mut self.active[sequence as usize], true) {
                self.decode(sequence);
            }
        }
        self.start();
    }

    /// Beside those who decode, prompts come one after the other, with so many chunks in flight.
    pub(crate) fn add_prompts(&mut self, chunks: u32) {
        self.prompts = Some(SEQUENCES_MAX - 1);
        for _ in 0..chunks {
            self.prompt_chunk();
        }
        self.start();
    }

    /// Lets time pass.
    pub(crate) fn run_until(&mut self, until_us: u64) {
        while let Some(Reverse((at, _, _))) = self.events.peek() {
            if *at > until_us {
                break;
            }
            self.step();
        }
        self.now_us = until_us;
    }

    /// The next event.
    pub(crate) fn step(&mut self) {
        let Reverse((at, _, event)) = self.events.pop().expect("something is always under way");
        self.now_us = at;
        match event {
            Event::Attended => self.attended(),
            Event::Arrived { device, rows } => {
                self.devices[device].queue.extend(rows);
                self.serve(device);
            }
            Event::Served { device } => {
                let rows = std::mem::take(&mut self.devices[device].serving);
                self.after(self.wire_us(), Event::Returned { rows });
                self.serve(device);
            }
            Event::Returned { rows } => {
                for row in rows {
                    self.missing[row as usize] -= 1;
                    if self.missing[row as usize] == 0 {
                        self.flow.handle_whole(RowId(row));
                    }
                }
            }
        }
        self.start();
    }

    fn wire_us(&self) -> u64 {
        (self.cluster.wire_ms * 1e3) as u64
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.happened += 1;
        self.events.push(Reverse((self.now_us + delay_us, self.happened, event)));
    }

    fn decode(&mut self, sequence: u32) {
        let start = self.next[sequence as usize];
        self.next[sequence as usize] += 1;
        self.flow.handle_chunk(Chunk {
            sequence: SequenceId(sequence),
            start,
            count: 1,
            samples: true,
            is_scored: false,
        });
    }

    fn prompt_chunk(&mut self) {
        let Some(sequence) = self.prompts else { return };
        let start = self.next[sequence as usize];
        self.next[sequence as usize] += CHUNK;
        // Its last row is sampled only to be told that the chunk has passed.
        self.flow.handle_chunk(Chunk {
            sequence: SequenceId(sequence),
            start,
            count: CHUNK,
            samples: true,
            is_scored: false,
        });
    }

    fn start(&mut self) {
        if self.cluster.shares_cores {
            let idle = self.devices.iter().all(|device| device.queue.is_empty() && device.serving.is_empty());
            let under_way = self.events.iter().any(|Reverse((_, _, event))| *event != Event::Attended);
            self.flow.handle_devices(idle && !under_way);
        }
        let trunk = self.cluster.trunk;
        if let Some(batch) = self.flow.poll_batch() {
            self.batches += 1;
            self.batch_rows += batch.rows.len() as u64;
            let time = trunk.time(batch.rows.len());
            self.after(time, Event::Attended);
        }
    }

    fn attended(&mut self) {
        self.flow.handle_attended();
        let batch = self.flow.batch().clone();
        if batch.stage == self.cluster.layers {
            for run in &batch.runs {
                let sequence = run.sequence.0;
                if self.prompts == Some(sequence) {
                    self.prompt_rows += u64::from(CHUNK);
                    self.prompt_chunk();
                    continue;
                }
                self.tokens += 1;
                let waited = self.now_us - self.decoded_at[sequence as usize];
                self.longest_us = self.longest_us.max(waited);
                self.decoded_at[sequence as usize] = self.now_us;
                if sequence < self.requests {
                    self.decode(sequence);
                } else {
                    self.active[sequence as usize] = false;
                }
            }
            return;
        }
        let mut groups = vec![Vec::new(); self.cluster.experts as usize];
        for row in batch.rows {
            self.missing[row.0 as usize] = self.cluster.top_k;
            for expert in self.choose() {
                groups[expert].push(row.0);
            }
        }
        let first = (batch.stage * self.cluster.experts) as usize;
        for (expert, rows) in groups.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let device = if self.cluster.shares_cores { 0 } else { first + expert };
            self.after(self.wire_us(), Event::Arrived { device, rows });
        }
    }

    /// The experts of a row, all different.
    fn choose(&mut self) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::with_capacity(self.cluster.top_k);
        while chosen.len() < self.cluster.top_k {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let expert = (self.random >> 33) as usize % self.cluster.experts as usize;
            if !chosen.contains(&expert) {
                chosen.push(expert);
            }
        }
        chosen
    }

    /// Never wait when idle, never split when busy.
    fn serve(&mut self, device: usize) {
        let served = &mut self.devices[device];
        if !served.serving.is_empty() || served.queue.is_empty() {
            return;
        }
        std::mem::swap(&mut served.queue, &mut served.serving);
        let rows = served.serving.len();
        self.after(self.cluster.device.time(rows), Event::Served { device });
    }
}

/// Tokens in a second, after things have settled.
pub(crate) fn tokens_per_s(cluster: Cluster, forwarding: Forwarding, requests: u32, seconds: u64) -> f64 {
    let mut simulation = Simulation::new(cluster, forwarding, requests, 7);
    let settle = seconds * 1_000_000 / 5;
    simulation.run_until(settle);
    let before = simulation.tokens;
    simulation.run_until(settle + seconds * 1_000_000);
    (simulation.tokens - before) as f64 / seconds as f64
}

/// The clusters by which things are judged.
pub(crate) fn clusters() -> Vec<(&'static str, Cluster)> {
    let demo = Cluster {
        layers: 4,
        experts: 16,
        top_k: 2,
        device: Service::of(2.0, 4.0),
        wire_ms: 5.0,
        trunk: Service::of(0.1, 0.01),
        shares_cores: false,
    };
    let large = Cluster {
        layers: 58,
        experts: 256,
        top_k: 8,
        device: Service::of(0.04, 0.002),
        wire_ms: 0.03,
        trunk: Service::of(0.15, 0.002),
        shares_cores: false,
    };
    vec![
        ("emulated: the demo model, device 2 ms + 4 ms/row, wire 5 ms", demo),
        ("the same, and a slow trunk: 3 ms + 0.1 ms/row", Cluster { trunk: Service::of(3.0, 0.1), ..demo }),
        (
            "the same, and a very slow trunk: 20 ms + 0.1 ms/row",
            Cluster { trunk: Service::of(20.0, 0.1), ..demo },
        ),
        ("a large model, the trunk takes 0.15 ms + 2 us/row", large),
        (
            "a large model, slower experts: 1 ms + 0.1 ms/row",
            Cluster { device: Service::of(1.0, 0.1), ..large },
        ),
        (
            "16 layers, top 4 of 32, experts and trunk of equal weight",
            Cluster {
                layers: 16,
                experts: 32,
                top_k: 4,
                device: Service::of(0.5, 0.05),
                wire_ms: 0.1,
                trunk: Service::of(0.5, 0.05),
                shares_cores: false,
            },
        ),
        (
            "16 layers, top 4 of 32, all on the trunk's cores",
            Cluster {
                layers: 16,
                experts: 32,
                top_k: 4,
                device: Service::of(0.1, 0.05),
                wire_ms: 0.0,
                trunk: Service::of(0.5, 0.05),
                shares_cores: true,
            },
        ),
    ]
}

/// The point of partial batches: devices far away and slow, and the trunk waits for none of them in particular.
#[test]
fn partial_batches_keep_emulated_devices_busy() {
    let (name, cluster) = clusters()[0];
    let partial = tokens_per_s(cluster, Forwarding::Partial, 64, 60);
    let whole = tokens_per_s(cluster, Forwarding::Whole, 64, 60);
    println!("{name}: partial {partial:.0}, whole {whole:.0} tokens/s, {:.2} x", partial / whole);
    assert!(partial >= 2.0 * whole);
}

/// Not an assertion but a table: `cargo test --release -p phalanx-coordinator --test flow -- --ignored --nocapture`.
#[test]
#[ignore = "a table for people"]
fn what_wins_where() {
    for (name, cluster) in clusters() {
        println!("{name}");
        for requests in [1, 8, 32, 64, 128] {
            let rate = |forwarding| {
                let mut simulation = Simulation::new(cluster, forwarding, requests, 7);
                simulation.run_until(4_000_000);
                let before = (simulation.tokens, simulation.batches, simulation.batch_rows);
                simulation.longest_us = 0;
                simulation.run_until(24_000_000);
                let rows = (simulation.batch_rows - before.2) as f64 / (simulation.batches - before.1) as f64;
                ((simulation.tokens - before.0) as f64 / 20.0, rows, simulation.longest_us as f64 / 1e3)
            };
            let (partial, whole) = (rate(Forwarding::Partial), rate(Forwarding::Whole));
            println!(
                "  {requests:>3} requests: partial {:>7.1} tokens/s ({:>5.1} rows a batch, longest {:>6.1} ms), whole \
                 {:>7.1} ({:>5.1}, {:>6.1} ms), {:.2} x",
                partial.0,
                partial.1,
                partial.2,
                whole.0,
                whole.1,
                whole.2,
                partial.0 / whole.0
            );
        }
    }
}

/// As above.
#[test]
#[ignore = "a table for people"]
fn prompts_beside_decoding() {
    for (name, cluster) in clusters() {
        println!("{name}");
        for (requests, chunks) in [(1, 1), (1, 4), (32, 1), (32, 4)] {
            for forwarding in [Forwarding::Partial, Forwarding::Whole] {
                let mut simulation = Simulation::new(cluster, forwarding, requests, 7);
                simulation.add_prompts(chunks);
                simulation.run_until(4_000_000);
                let before = (simulation.tokens, simulation.prompt_rows);
                simulation.longest_us = 0;
                simulation.run_until(24_000_000);
                println!(
                    "  {requests:>3} requests, {chunks} chunks, {:>7}: {:>7.1} tokens/s, prompts {:>7.1} rows/s, longest \
                     {:>6.1} ms",
                    forwarding.name(),
                    (simulation.tokens - before.0) as f64 / 20.0,
                    (simulation.prompt_rows - before.1) as f64 / 20.0,
                    simulation.longest_us as f64 / 1e3
                );
            }
        }
    }
}
