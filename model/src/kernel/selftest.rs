//! Before a path is used, it must equal its plain loop and give a row the same bits alone as in company.
//!
//! The digest of what it computed is the *fingerprint*: two hosts with the same class and fingerprint may stand in for one
//! another.

use std::fmt;
use std::sync::Arc;

use super::gemm::{Activation, Sink, Task, multiply};
use super::matrix::{Element, Matrix, Placement, Shape};
use super::memory::Region;
use super::rows::{RowOut, RowsMut, RowsRef};
use super::{KernelError, Kernels, NumericClass, Path, RowType, math};
use crate::pool::Pool;

/// The digest of the self-test's results.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A class that may be used here.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The class and the fastest path that passed.
    pub kernels: Kernels,
    /// The digest of its results.
    pub fingerprint: Fingerprint,
    /// One line for every path that was passed over because it failed, to be shown.
    pub messages: Vec<String>,
}

impl Kernels {
    /// The fastest path of a class that passes the self-test, with its fingerprint.
    pub fn admitted(class: NumericClass) -> Result<Admission, KernelError> {
        Kernels::admitted_of(class, class.paths())
    }

    /// The first of `paths` that can run here and passes the self-test, with its fingerprint.
    pub fn admitted_of(class: NumericClass, paths: &[Path]) -> Result<Admission, KernelError> {
        let plain = Kernels::new(class, Path::Plain)?;
        let expected = results(plain, false);
        let mut messages = Vec::new();
        let mut refusal = None;
        for &path in paths {
            let kernels = match Kernels::new(class, path) {
                Ok(kernels) => kernels,
                Err(error) => {
                    refusal = refusal.or(Some(error));
                    continue;
                }
            };
            let found = results(kernels, false);
            if found != expected {
                messages.push(format!(
                    "the path {path} is not used: it disagrees with the plain loop of class {class}"
                ));
            } else if found != results(kernels, true) {
                messages
                    .push(format!("the path {path} is not used: a row depends on the rows computed with it"));
            } else {
                return Ok(Admission {
                    kernels,
                    fingerprint: Fingerprint(*blake3::hash(&found).as_bytes()),
                    messages,
                });
            }
        }
        Err(match refusal {
            Some(refusal) if messages.is_empty() => refusal,
            _ => KernelError::Rejected { class, reason: messages.join("; ") },
        })
    }
}

/// k, n, m, gated: odd k, n not a multiple of sixteen, and every number of rows a kernel takes at once.
const SHAPES: [(usize, usize, usize, bool); 6] = [
    (64, 48, 1, false),
    (96, 80, 13, false),
    (129, 33, 6, false),
    (2200, 32, 3, false),
    (48, 40, 26, true),
    (32, 16, 40, true),
];

/// The results of the fixed shapes, as bytes; `alone`: every row computed by itself.
fn results(kernels: Kernels, alone: bool) -> Vec<u8> {
    let pool = Pool::new(1, None);
    let mut bytes = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Signs, seven bits of fraction, exponents from 2^-8 to 2^-1.
        ((state >> 20) & 0x7f | (0x77 + ((state >> 40) & 7)) << 7 | ((state >> 50) & 1) << 15) as u16
    };
    for (k, n, m, gated) in SHAPES {
        let shape = if gated { Shape::gated(n, k, Element::Bf16) } else { Shape::plain(n, k, Element::Bf16) };
        let builder = Matrix::builder(&Arc::new(Region::new(shape.bytes())), shape);
        let values: Vec<u16> = (0..shape.n * k).map(|_| next()).collect();
        builder.pack_rows(if gated { Placement::Interleaved } else { Placement::Plain }, 0, &values, k);
        let weights = builder.finish();
        let half: Vec<u16> = (0..m * k).map(|_| next()).collect();
        let wide: Vec<f32> = half.iter().map(|&x| super::widen_bf16(x) * 1.001).collect();
        let mut floats = vec![0.0_f32; m * n];
        let mut halves = vec![0_u16; m * n];
        let step = if alone { 1 } else { m };
        for row in (0..m).step_by(step) {
            let input = match kernels.class().row_type() {
                RowType::F32 => RowsRef::F32 { data: &wide[row * k..], stride: k },
                RowType::Bf16 => RowsRef::Bf16 { data: &half[row * k..], stride: k },
            };
            let sink = if gated {
                let out = match kernels.class().row_type() {
                    RowType::F32 => RowOut::F32(RowsMut::new(&mut floats[row * n..], step, n, n)),
                    RowType::Bf16 => RowOut::Bf16(RowsMut::new(&mut halves[row * n..], step, n, n)),
                };
                Sink::Gate { activation: Activation::Silu, out }
            } else {
                Sink::Store(RowsMut::new(&mut floats[row * n..], step, n, n))
            };
            let task = Task { weights: &weights, bias: None, input, pick: None, rows: step, sink };
            multiply(kernels, &pool, &mut [task]);
        }
        bytes.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(halves.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(math::dot16(kernels, &wide[..k], &wide[..k]).to_le_bytes());
        let mut sums = [0.0; math::LANES];
        let mut values = wide[..k].to_vec();
        math::exp_sub_sum(kernels, &mut values, math::max(kernels, &wide[..k]), 5, &mut sums);
        bytes.extend(values.iter().chain(&sums).flat_map(|x| x.to_le_bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every path that can run here is admitted, quickly, and two admissions give one fingerprint.
    #[test]
    fn paths_are_admitted() {
        for class in [NumericClass::F32, NumericClass::Portable] {
            let start = std::time::Instant::now();
            let admission = Kernels::admitted(class).expect("the plain path always passes");
            println!("{class}: {:?} in {:?}", admission, start.elapsed());
            assert!(admission.messages.is_empty(), "{:?}", admission.messages);
            assert_eq!(admission.fingerprint, Kernels::admitted(class).expect("as before").fingerprint);
            assert_eq!(admission.kernels, Kernels::for_class(class).expect("as above"));
        }
        match Kernels::admitted(NumericClass::Avx512Bf16) {
            Ok(admission) => assert!(admission.messages.is_empty(), "{:?}", admission.messages),
            Err(error) => println!("SKIPPED: {error}"),
        }
    }
}
