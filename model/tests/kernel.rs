//! The kernels against loops written out here, bit for bit.
//!
//! Random tests print their seed; `KERNEL_SEED=<seed> cargo test --release -p phalanx-model --test kernel` replays it.

use std::sync::Arc;

use phalanx_model::kernel::{
    Activation, Element, Kernels, Matrix, NumericClass, Path, Placement, Region, RowOut, RowsMut, RowsRef,
    Shape, Sink, Task, Then, multiply, multiply_twice, round_bf16, tile, tile_f32, widen_bf16,
};
use phalanx_model::pool::Pool;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Signs, fractions, exponents from 2^-8 to 2^-1.
    fn bf16(&mut self) -> u16 {
        let x = self.next();
        ((x & 0x7f) | (0x77 + ((x >> 8) & 7)) << 7 | ((x >> 20) & 1) << 15) as u16
    }

    fn rows(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| self.bf16()).collect()
    }

    /// Any bits at all: denormals, infinities, NaN, zeros of both signs.
    fn wild(&mut self) -> u16 {
        const SPECIAL: [u16; 10] = [0, 0x8000, 1, 0x8001, 0x007f, 0x0080, 0x7f80, 0xff80, 0x7fc0, 0x7f7f];
        match self.below(4) {
            0 => SPECIAL[self.below(SPECIAL.len())],
            1 => self.next() as u16,
            _ => self.bf16(),
        }
    }
}

fn seed() -> u64 {
    let seed =
        std::env::var("KERNEL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9_u64);
    println!("seed {seed}");
    seed
}

/// Every path of every class that this CPU can run; says which it cannot.
fn all_kernels() -> Vec<Kernels> {
    let mut found = Vec::new();
    for class in NumericClass::ALL {
        for path in [Path::Plain, Path::Avx2, Path::Avx512f, Path::Avx512Bf16] {
            match Kernels::new(class, path) {
                Ok(kernels) => found.push(kernels),
                Err(error) if path.missing_feature().is_some() => {
                    println!("SKIPPED: {class} on {path}: {error}")
                }
                Err(_) => {}
            }
        }
    }
    found
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// The sum of one output, as its class defines it. Rows in `x` are BF16 where the class has such rows.
fn chain(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum, (&x, &w)| x.mul_add(w, sum))
}

/// `vdpbf16ps` by Intel's manual, in f64: 48 bits of product are exact, and where adding them to the sum is not,
/// the inputs here are so near in size that one rounding to f64 before that to f32 is checked not to matter.
fn chain_of_pairs(x: &[f32], w: &[f32]) -> f32 {
    let flush = |x: f32| {
        if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
    };
    let mut sum = 0.0_f32;
    for pair in 0..x.len().div_ceil(2) {
        for k in [2 * pair + 1, 2 * pair] {
            let (x, w) = (x.get(k).copied().unwrap_or(0.0), w.get(k).copied().unwrap_or(0.0));
            sum = flush(flush(x).mul_add(flush(w), flush(sum)));
        }
    }
    sum
}

fn silu(x: f32) -> f32 {
    x / (1.0
        + phalanx_model::kernel::math::exp_f32(
            Kernels::new(NumericClass::Portable, Path::Plain).expect("the plain path runs on every CPU"),
            -x,
        ))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Store,
    Add,
    Round,
    Silu,
    Clamped,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    n: usize,
    k: usize,
    m: usize,
    kind: Kind,
    bias: bool,
    picked: bool,
    wide_rows: bool,
    wide_weights: bool,
    wild: bool,
}

/// One task with all it needs, and what must come out.
struct Problem {
    case: Case,
    weights: Matrix,
    columns: Vec<Vec<f32>>,
    bias: Vec<f32>,
    placed_bias: Vec<f32>,
    half: Vec<u16>,
    wide: Vec<f32>,
    stride: usize,
    pick: Vec<u32>,
}

const ALPHA: f32 = 1.702;
const LIMIT: f32 = 1.5;

impl Problem {
    fn new(case: Case, random: &mut Random) -> Problem {
        let Case { n, k, m, kind, .. } = case;
        let gated = matches!(kind, Kind::Silu | Kind::Clamped);
        let columns = if gated { 2 * n } else { n };
        let element = if case.wide_weights { Element::F32 } else { Element::Bf16 };
        let shape = if gated { Shape::gated(n, k, element) } else { Shape::plain(n, k, element) };
        let placement = if gated { Placement::Interleaved } else { Placement::Plain };
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        let value = |random: &mut Random| {
            if case.wild { random.wild() } else { random.bf16() }
        };
        let values: Vec<u16> = (0..columns * k).map(|_| value(random)).collect();
        let mut wide: Vec<f32> = values.iter().map(|&x| widen_bf16(x)).collect();
        if case.wide_weights {
            wide.iter_mut().for_each(|x| *x *= 1.001);
            builder.pack_rows_f32(placement, 0, &wide, k);
        } else {
            builder.pack_rows(placement, 0, &values, k);
        }
        let weights = builder.finish();
        let columns: Vec<Vec<f32>> = wide.chunks(k).map(<[f32]>::to_vec).collect();
        let bias: Vec<f32> = (0..columns.len()).map(|_| widen_bf16(random.bf16()) * 1.01).collect();
        let mut placed_bias = vec![0.0; shape.bias_len()];
        weights.place_bias(placement, &bias, &mut placed_bias);
        let stride = k + random.below(9);
        let sources = if case.picked { m + 5 } else { m };
        let half: Vec<u16> = (0..sources * stride).map(|_| value(random)).collect();
        let wide: Vec<f32> =
            half.iter().map(|&x| widen_bf16(x) * if case.wide_rows { 1.003 } else { 1.0 }).collect();
        let pick = (0..m).map(|_| random.below(sources) as u32).collect();
        Problem { case, weights, columns, bias, placed_bias, half, wide, stride, pick }
    }

    fn expected(&self, kernels: Kernels, row: usize, column: usize) -> f32 {
        let case = self.case;
        let source = if case.picked { self.pick[row] as usize } else { row };
        let x = &self.wide[source * self.stride..][..case.k];
        let paired = kernels.class() == NumericClass::Avx512Bf16 && !case.wide_rows && !case.wide_weights;
        let sum = |column: usize| {
            let w = &self.columns[column];
            let sum = if paired { chain_of_pairs(x, w) } else { chain(x, w) };
            if case.bias { sum + self.bias[column] } else { sum }
        };
        match case.kind {
            Kind::Store | Kind::Round => sum(column),
            Kind::Add => 0.5 + sum(column),
            Kind::Silu => silu(sum(2 * column)) * sum(2 * column + 1),
            Kind::Clamped => {
                let clamp = |x: f32| x.clamp(-LIMIT, LIMIT);
                let gate = sum(2 * column);
                let gate = if gate > LIMIT { LIMIT } else { gate };
                let exp = phalanx_model::kernel::math::exp_f32(kernels, -(gate * ALPHA));
                (clamp(sum(2 * column + 1)) + 1.0) * (gate * (1.0 / (1.0 + exp)))
            }
        }
    }

    /// The results of rows `from` to `to`, widened if they were rounded.
    fn run(&self, kernels: Kernels, pool: &Pool, from: usize, to: usize) -> Vec<f32> {
        let Case { n, m: _, kind, .. } = self.case;
        let rows = to - from;
        let stride = n + 3;
        let mut floats = vec![0.5_f32; rows * stride];
        let mut halves = vec![7_u16; rows * stride];
        let rounded = kind != Kind::Store && kind != Kind::Add && kernels.class() != NumericClass::F32;
        {
            let mut task = self.task(from, to, self.sink(rounded, rows, stride, &mut floats, &mut halves));
            multiply(kernels, pool, std::slice::from_mut(&mut task));
        }
        self.gather(rounded, rows, stride, &floats, &halves)
    }

    fn sink<'a>(
        &self,
        rounded: bool,
        rows: usize,
        stride: usize,
        floats: &'a mut [f32],
        halves: &'a mut [u16],
    ) -> Sink<'a> {
        let n = self.case.n;
        let out = |floats: &'a mut [f32], halves: &'a mut [u16]| {
            if rounded {
                RowOut::Bf16(RowsMut::new(halves, rows, n, stride))
            } else {
                RowOut::F32(RowsMut::new(floats, rows, n, stride))
            }
        };
        match self.case.kind {
            Kind::Store => Sink::Store(RowsMut::new(floats, rows, n, stride)),
            Kind::Add => Sink::Add(RowsMut::new(floats, rows, n, stride)),
            Kind::Round => Sink::Round(out(floats, halves)),
            Kind::Silu => Sink::Gate { activation: Activation::Silu, out: out(floats, halves) },
            Kind::Clamped => Sink::Gate {
                activation: Activation::ClampedSwiglu { alpha: ALPHA, limit: LIMIT },
                out: out(floats, halves),
            },
        }
    }

    fn task<'a>(&'a self, from: usize, to: usize, sink: Sink<'a>) -> Task<'a> {
        let skip = if self.case.picked { 0 } else { from * self.stride };
        let input = if self.case.wide_rows {
            RowsRef::F32 { data: &self.wide[skip..], stride: self.stride }
        } else {
            RowsRef::Bf16 { data: &self.half[skip..], stride: self.stride }
        };
        Task {
            weights: &self.weights,
            bias: self.case.bias.then_some(self.placed_bias.as_slice()),
            input,
            pick: self.case.picked.then(|| &self.pick[from..to]),
            rows: to - from,
            sink,
        }
    }

    fn gather(&self, rounded: bool, rows: usize, stride: usize, floats: &[f32], halves: &[u16]) -> Vec<f32> {
        let n = self.case.n;
        for row in 0..rows {
            let end = (row + 1) * stride;
            assert!(floats[row * stride + n..end].iter().all(|&x| x == 0.5), "written behind the window");
            assert!(halves[row * stride + n..end].iter().all(|&x| x == 7), "written behind the window");
        }
        (0..rows * n)
            .map(|i| i / n * stride + i % n)
            .map(|i| if rounded { widen_bf16(halves[i]) } else { floats[i] })
            .collect()
    }

    /// Compares some rows with the loops above; all rows would take long where there are many.
    fn check(&self, kernels: Kernels, pool: &Pool, found: &[f32]) {
        let Case { n, m, kind, .. } = self.case;
        let rounded = kind != Kind::Store && kind != Kind::Add && kernels.class() != NumericClass::F32;
        for row in (0..m).step_by(m.div_ceil(14)) {
            for column in 0..n {
                let want = self.expected(kernels, row, column);
                let want = if rounded { widen_bf16(round_bf16(want)) } else { want };
                let got = found[row * n + column];
                assert!(
                    same(got, want),
                    "{kernels:?}, {} threads, {:?}: row {row} column {column} is {got:e}, expected {want:e}",
                    pool.threads(),
                    self.case
                );
            }
        }
    }
}

fn random_case(random: &mut Random, kernels: Kernels) -> Case {
    let pick = |random: &mut Random, of: &[usize]| of[random.below(of.len())];
    let slow = kernels.path() == Path::Plain;
    let m = if slow {
        1 + random.below(20)
    } else {
        pick(random, &[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 25, 37, 64, 90, 145, 300])
    };
    Case {
        n: 1 + random.below(if slow { 40 } else { 150 }),
        k: if random.below(8) == 0 { 2000 + random.below(3000) } else { 1 + random.below(300) },
        m,
        kind: [Kind::Store, Kind::Add, Kind::Round, Kind::Silu, Kind::Clamped][random.below(5)],
        bias: random.below(3) == 0,
        picked: random.below(2) == 0,
        wide_rows: kernels.class() == NumericClass::F32 || random.below(6) == 0,
        wide_weights: random.below(8) == 0,
        wild: false,
    }
}

/// The contract of every class, for random shapes, sinks and thread counts.
#[test]
fn every_path_equals_the_written_loop() {
    let mut random = Random(seed());
    let pools = [1, 2, 4].map(|threads| Pool::new(threads, None));
    for kernels in all_kernels() {
        for round in 0..if kernels.path() == Path::Plain { 40 } else { 150 } {
            let problem = Problem::new(random_case(&mut random, kernels), &mut random);
            let pool = &pools[round % 3];
            let found = problem.run(kernels, pool, 0, problem.case.m);
            problem.check(kernels, pool, &found);
        }
    }
}

/// A row alone, or in part of the batch, has the bits it has in the whole batch; and so with any number of threads.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let mut random = Random(seed() ^ 0x55);
    let pools = [1, 2, 4].map(|threads| Pool::new(threads, None));
    for kernels in all_kernels() {
        let slow = kernels.path() == Path::Plain;
        for m in if slow { vec![13] } else { vec![2, 6, 13, 64, 300] } {
            let case = Case {
                n: 70,
                k: if slow { 65 } else { 1037 },
                m,
                kind: Kind::Round,
                bias: true,
                picked: true,
                wide_rows: kernels.class() == NumericClass::F32,
                wide_weights: false,
                wild: false,
            };
            let problem = Problem::new(case, &mut random);
            let whole = problem.run(kernels, &pools[0], 0, m);
            for pool in &pools {
                assert_eq!(problem.run(kernels, pool, 0, m), whole, "{kernels:?} {} threads", pool.threads());
            }
            for row in 0..m {
                let alone = problem.run(kernels, &pools[0], row, row + 1);
                assert_eq!(alone, whole[row * 70..][..70], "{kernels:?}: row {row} of {m}");
            }
            let mut row = 0;
            while row < m {
                let end = (row + 1 + random.below(20)).min(m);
                let part = problem.run(kernels, &pools[1], row, end);
                assert_eq!(part, whole[row * 70..end * 70], "{kernels:?}: rows {row} to {end} of {m}");
                row = end;
            }
        }
    }
}

/// Denormals, infinities, NaN and zeros of both signs go through as the class says.
#[test]
fn special_values_follow_the_class() {
    let mut random = Random(seed() ^ 0xaa);
    let pools = [1, 2].map(|threads| Pool::new(threads, None));
    for kernels in all_kernels() {
        for round in 0..60 {
            let case = Case {
                wild: true,
                k: 1 + random.below(12),
                n: 1 + random.below(40),
                m: 1 + random.below(14),
                bias: false,
                ..random_case(&mut random, kernels)
            };
            let problem = Problem::new(case, &mut random);
            let pool = &pools[round % 2];
            let found = problem.run(kernels, pool, 0, case.m);
            problem.check(kernels, pool, &found);
        }
    }
}

/// Many tasks in one call, of different sizes, give what each gives alone.
#[test]
fn many_tasks_equal_each_alone() {
    let mut random = Random(seed() ^ 0x77);
    let pools = [1, 2, 4].map(|threads| Pool::new(threads, None));
    for kernels in all_kernels() {
        let slow = kernels.path() == Path::Plain;
        let problems: Vec<Problem> = (0..12)
            .map(|_| {
                let m = 1 + random.below(if slow { 3 } else { 40 });
                Problem::new(
                    Case {
                        m,
                        k: 40 + random.below(300),
                        kind: Kind::Store,
                        ..random_case(&mut random, kernels)
                    },
                    &mut random,
                )
            })
            .collect();
        let alone: Vec<Vec<f32>> = problems.iter().map(|p| p.run(kernels, &pools[0], 0, p.case.m)).collect();
        for pool in &pools {
            let mut buffers: Vec<Vec<f32>> =
                problems.iter().map(|p| vec![0.5; p.case.m * p.case.n]).collect();
            let mut tasks: Vec<Task<'_>> = problems
                .iter()
                .zip(&mut buffers)
                .map(|(p, out)| {
                    p.task(0, p.case.m, Sink::Store(RowsMut::new(out, p.case.m, p.case.n, p.case.n)))
                })
                .collect();
            multiply(kernels, pool, &mut tasks);
            drop(tasks);
            assert_eq!(buffers, alone, "{kernels:?} {} threads", pool.threads());
        }
    }
}

/// Second products that run on without a stop give what two separate runs give, however many threads and tasks there are.
#[test]
fn results_may_be_the_rows_of_a_second_product() {
    let mut random = Random(seed() ^ 0x99);
    let pools = [1, 2, 4].map(|threads| Pool::new(threads, None));
    for kernels in all_kernels() {
        let slow = kernels.path() == Path::Plain;
        for count in [1, 2, 7] {
            let case = random_case(&mut random, kernels);
            let firsts: Vec<Problem> = (0..count)
                .map(|_| {
                    let m = random.below(if slow { 3 } else { 20 });
                    let (n, k) = (case.n, 200 + random.below(200));
                    let wild = false;
                    Problem::new(
                        Case { m, n, k, kind: Kind::Silu, wide_weights: false, wild, ..case },
                        &mut random,
                    )
                })
                .collect();
            let seconds: Vec<Problem> = firsts
                .iter()
                .map(|first| {
                    let case =
                        Case { k: first.case.n, n: 1 + random.below(300), kind: Kind::Store, ..first.case };
                    Problem::new(case, &mut random)
                })
                .collect();
            let rounded = kernels.class() != NumericClass::F32;
            let buffers = |of: &[Problem]| -> Vec<(Vec<f32>, Vec<u16>)> {
                of.iter()
                    .map(|p| vec![0.5; p.case.m * p.case.n])
                    .map(|x| (x.clone(), vec![0; x.len()]))
                    .collect()
            };
            for pool in &pools {
                for round in 0..if slow { 1 } else { 5 } {
                    let mut between = buffers(&firsts);
                    let mut found = buffers(&seconds);
                    let mut tasks: Vec<Task<'_>> = firsts
                        .iter()
                        .zip(&mut between)
                        .map(|(p, (x, y))| p.task(0, p.case.m, p.sink(rounded, p.case.m, p.case.n, x, y)))
                        .collect();
                    let mut then: Vec<Then<'_>> = seconds
                        .iter()
                        .zip(&mut found)
                        .map(|(p, (x, y))| Then {
                            weights: &p.weights,
                            bias: p.case.bias.then_some(p.placed_bias.as_slice()),
                            sink: p.sink(rounded, p.case.m, p.case.n, x, y),
                        })
                        .collect();
                    multiply_twice(kernels, pool, &mut tasks, &mut then);
                    for ((second, (x, y)), (found, _)) in seconds.iter().zip(&between).zip(&found) {
                        let Case { m, n, k, .. } = second.case;
                        let mut want = vec![0.0; m * n];
                        let mut alone = second.task(0, 0, Sink::Store(RowsMut::new(&mut want, m, n, n)));
                        alone.rows = m;
                        alone.pick = None;
                        alone.input = if rounded {
                            RowsRef::Bf16 { data: y, stride: k }
                        } else {
                            RowsRef::F32 { data: x, stride: k }
                        };
                        multiply(kernels, &pools[0], &mut [alone]);
                        assert_eq!(
                            *found,
                            want,
                            "{kernels:?} {} threads, round {round}: {case:?}",
                            pool.threads()
                        );
                    }
                }
            }
        }
    }
}

/// The bare micro-kernels: the same chain in every class, an odd last k included, going on from sums before.
#[test]
fn tiles_are_chains() {
    let mut random = Random(seed() ^ 0x33);
    for kernels in all_kernels() {
        for rows in 1..=12 {
            for k in [1, 2, 3, 4, 7, 8, 33, 64, 65] {
                let x: Vec<f32> = random.rows(rows * 80).iter().map(|&x| widen_bf16(x) * 1.01).collect();
                let w = random.rows(16 * k);
                let wide: Vec<f32> = w.iter().map(|&w| widen_bf16(w)).collect();
                // The second half of an odd last pair must not be multiplied.
                let mut panel = vec![0x7fc0_u16; 64 + k.div_ceil(2) * 32];
                let mut panel_f32 = vec![0.0_f32; k * 16];
                for column in 0..16 {
                    for index in 0..k {
                        panel[64 + index / 2 * 32 + column * 2 + index % 2] = w[column * k + index];
                        panel_f32[index * 16 + column] = wide[column * k + index];
                    }
                }
                for accumulate in [false, true] {
                    let (mut one, mut two) = (vec![0.25_f32; rows * 20], vec![0.25_f32; rows * 20]);
                    // SAFETY: all rows and lines are there, and 128 bytes in front of the panel.
                    unsafe {
                        let b = panel.as_ptr().add(64).cast();
                        tile(kernels, rows, k, x.as_ptr(), 80, b, one.as_mut_ptr(), 20, accumulate);
                        tile_f32(
                            kernels,
                            rows,
                            k,
                            x.as_ptr(),
                            80,
                            panel_f32.as_ptr(),
                            two.as_mut_ptr(),
                            20,
                            accumulate,
                        );
                    }
                    for row in 0..rows {
                        for column in 0..16 {
                            let start = if accumulate { 0.25 } else { 0.0 };
                            let want = (0..k)
                                .fold(start, |sum, i| x[row * 80 + i].mul_add(wide[column * k + i], sum));
                            assert_eq!(
                                one[row * 20 + column].to_bits(),
                                want.to_bits(),
                                "{kernels:?} {rows} x {k}"
                            );
                            assert_eq!(
                                two[row * 20 + column].to_bits(),
                                want.to_bits(),
                                "{kernels:?} {rows} x {k}, f32"
                            );
                        }
                        assert_eq!(one[row * 20 + 16], 0.25, "written behind the tile");
                    }
                }
            }
        }
    }
}

/// No rows, no tasks: nothing happens.
#[test]
fn nothing_to_do_is_done() {
    let kernels = Kernels::best();
    let pool = Pool::new(2, None);
    multiply(kernels, &pool, &mut []);
    let weights = Matrix::from_rows(&[0x3f80; 32], 2, 16);
    let input = RowsRef::Bf16 { data: &[], stride: 16 };
    let sink = Sink::Store(RowsMut::new(&mut [], 0, 2, 2));
    multiply(kernels, &pool, &mut [Task { weights: &weights, bias: None, input, pick: None, rows: 0, sink }]);
}
