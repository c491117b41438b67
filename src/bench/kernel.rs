//! `phalanx bench kernel`: each kernel as a share of the limit that binds it, measured beside it.
//!
//! Weights are cold: matrices are cycled over far more memory than the caches hold. Kernel and probes run in
//! alternating windows on the same threads, and the share is the median over windows of their ratio, so
//! that a neighbour who slows the machine slows both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use model::kernel::{
    Element, Kernels, Matrix, Placement, Region, RowType, RowsMut, RowsRef, Shape, Sink, Task, multiply,
    multiply_add_peak, read_bandwidth, round_bf16,
};
use model::pool::Pool;
use node::host::Host;
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::ComputeArguments;
use crate::output::show;

/// Memory that matrices are cycled over.
const MEMORY_BYTES: usize = 768 << 20;
/// Bytes of one window of the read probe.
const WINDOW_BYTES: usize = 32 << 20;

/// Matrix kernels, as a share of read bandwidth or of the multiply-add peak.
#[derive(Debug, Args)]
pub(crate) struct Kernel {
    #[command(flatten)]
    compute: ComputeArguments,

    /// Shapes, terms by outputs.
    #[arg(long, value_name = "KxN,KxN", value_delimiter = ',', value_parser = shape,
          default_value = "7168x2048,2048x1024,1024x2048")]
    shapes: Vec<(usize, usize)>,

    /// Rows.
    #[arg(long, value_name = "M,M", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 64, 256])]
    rows: Vec<usize>,

    /// Seconds for each figure.
    #[arg(long, value_name = "S", default_value_t = 0.8)]
    seconds: f64,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("`{text}` is not a shape; write for example 2048x1024");
    let (k, n) = text.split_once('x').ok_or_else(wrong)?;
    let size = |t: &str| t.parse().ok().filter(|n| (1..=1 << 16).contains(n)).ok_or_else(wrong);
    Ok((size(k)?, size(n)?))
}

struct Figure {
    k: usize,
    n: usize,
    m: usize,
    micros: f64,
    of_read: f64,
    of_peak: f64,
    of_roof: f64,
    read: f64,
    peak: f64,
}

impl Kernel {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.rows.iter().any(|m| !(1..=4096).contains(m)) {
            return Err("--rows: from 1 to 4096".into());
        }
        let kernels = self.compute.kernels()?;
        let pool = Pool::new(self.compute.threads()?, self.compute.cores.as_ref().map(|c| c.0.as_slice()));
        pool.pin_caller();
        let host = Host::read();
        if !self.json {
            show(&format!(
                "{}, {} threads, class {}, path {}\n\n     k x n         m        us   of read   of peak   of roof   read GB/s   GFLOP/s\n",
                host.cpu,
                pool.threads(),
                kernels.class(),
                kernels.path()
            ))?;
        }
        let mut figures = Vec::new();
        for &(k, n) in &self.shapes {
            let matrices = matrices(k, n);
            for &m in &self.rows {
                let figure = self.measure(kernels, &pool, &matrices, k, n, m);
                if !self.json {
                    show(&figure.line())?;
                }
                figures.push(figure);
            }
        }
        if self.json {
            let rows: Vec<Value> = figures.iter().map(Figure::json).collect();
            let object = json!({
                "cpu": host.cpu, "threads": pool.threads(),
                "numeric_class": kernels.class().to_string(), "kernel_path": kernels.path().to_string(),
                "figures": rows,
            });
            show(&format!("{object:#}\n"))?;
        }
        Ok(())
    }

    fn measure(
        &self,
        kernels: Kernels,
        pool: &Pool,
        matrices: &Matrices,
        k: usize,
        n: usize,
        m: usize,
    ) -> Figure {
        let halves: Vec<u16> = (0..m * k).map(|i| 0x3f80 | (i as u16 & 0x3f)).collect();
        let floats: Vec<f32> = halves.iter().map(|x| model::kernel::widen_bf16(*x)).collect();
        let mut out = vec![0.0; m * n];
        let bytes = 2.0 * (k * n) as f64;
        let flops = 2.0 * (m * k * n) as f64;
        // A window is a few milliseconds: long against a clock's noise, short against a neighbour's.
        let per =
            (16e6 / bytes).max(2e9 / flops).min(64.0).ceil().min((16e6 / bytes).max(1.0).ceil()) as usize;
        let mut next = 0;
        let mut at = 0;
        let mut probe = || {
            at = (at + WINDOW_BYTES) % (MEMORY_BYTES / 2);
            let read = read_bandwidth(kernels, pool, &matrices.region, at, WINDOW_BYTES);
            (read * 1e9, multiply_add_peak(kernels, pool, Duration::from_millis(2)) * 1e9)
        };
        let mean = |a: f64, b: f64| 2.0 / (1.0 / a + 1.0 / b);
        let mut samples: Vec<[f64; 6]> = Vec::new();
        let begin = Instant::now();
        let mut before = probe();
        let mut warm = false;
        while begin.elapsed().as_secs_f64() < self.seconds || samples.len() < 9 {
            let start = Instant::now();
            for _ in 0..per {
                let weights = &matrices.all[next % matrices.all.len()];
                next += 1;
                let input = match kernels.class().row_type() {
                    RowType::Bf16 => RowsRef::Bf16 { data: &halves, stride: k },
                    RowType::F32 => RowsRef::F32 { data: &floats, stride: k },
                };
                let sink = Sink::Store(RowsMut::new(&mut out, m, n, n));
                multiply(
                    kernels,
                    pool,
                    &mut [Task { weights, bias: None, input, pick: None, rows: m, sink }],
                );
            }
            let time = start.elapsed().as_secs_f64() / per as f64;
            let after = probe();
            let (read, peak) = (mean(before.0, after.0), mean(before.1, after.1));
            before = after;
            if std::mem::replace(&mut warm, true) {
                let (of_read, of_peak) = (bytes / time / read, flops / time / peak);
                samples.push([time * 1e6, of_read, of_peak, of_read.max(of_peak), read * 1e-9, peak * 1e-9]);
            }
        }
        let median = |index: usize| {
            let mut values: Vec<f64> = samples.iter().map(|s| s[index]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Figure {
            k,
            n,
            m,
            micros: median(0),
            of_read: median(1),
            of_peak: median(2),
            of_roof: median(3),
            read: median(4),
            peak: median(5),
        }
    }
}

/// Matrices of one shape over much memory.
pub(super) struct Matrices {
    pub(super) region: Arc<Region>,
    all: Vec<Matrix>,
}

/// Fills [`MEMORY_BYTES`] with matrices.
pub(super) fn matrices(k: usize, n: usize) -> Matrices {
    let shape = Shape::plain(n, k, Element::Bf16);
    let count = (MEMORY_BYTES / shape.bytes()).max(2);
    let region = Arc::new(Region::new((count * shape.bytes().next_multiple_of(64)).max(MEMORY_BYTES)));
    let row: Vec<u16> = (0..k).map(|i| round_bf16(0.01 + (i % 97) as f32 * 1e-4)).collect();
    let rows = row.repeat(n);
    let all = (0..count)
        .map(|_| {
            let builder = Matrix::builder(&region, shape);
            builder.pack_rows(Placement::Plain, 0, &rows, k);
            builder.finish()
        })
        .collect();
    Matrices { region, all }
}

impl Figure {
    fn line(&self) -> String {
        format!(
            "{:>6} x {:<6} {:5} {:10.1} {:8.1}% {:8.1}% {:8.1}% {:10.1} {:10.0}\n",
            self.k,
            self.n,
            self.m,
            self.micros,
            100.0 * self.of_read,
            100.0 * self.of_peak,
            100.0 * self.of_roof,
            self.read,
            self.peak
        )
    }

    fn json(&self) -> Value {
        json!({
            "k": self.k, "n": self.n, "m": self.m, "us": self.micros,
            "share_of_read": self.of_read, "share_of_peak": self.of_peak, "share_of_roof": self.of_roof,
            "read_gb_per_s": self.read, "peak_gflop_per_s": self.peak,
        })
    }
}
