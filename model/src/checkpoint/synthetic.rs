//! A checkpoint of random weights that is nowhere on disk: every byte is a function of its place.
//!
//! For measuring shapes nobody has trained. What is read here is byte for byte what
//! `phalanx bench make-checkpoint` writes, so a model can be measured with and without the file.

use std::collections::HashMap;
use std::path::Path;

use super::header::{Dtype, Tensor};
use super::{Checkpoint, Source};

/// A tensor of a synthetic checkpoint.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// Its name.
    pub name: String,
    /// Its shape; BF16.
    pub shape: Vec<usize>,
}

/// The values of a synthetic file.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    seed: u64,
    /// Ascending: first byte and scale of each tensor.
    tensors: Vec<(u64, f32)>,
}

impl Checkpoint {
    /// A checkpoint of `tensors`, in order, in one file that does not exist.
    pub fn synthetic(name: &str, tensors: &[Synthetic], seed: u64) -> Self {
        let mut map = HashMap::new();
        let mut places = Vec::with_capacity(tensors.len());
        let mut at = 0u64;
        for tensor in tensors {
            let bytes = 2 * tensor.shape.iter().map(|d| *d as u64).product::<u64>();
            // A vector is a norm: one. A matrix keeps the size of what it multiplies.
            let scale = match tensor.shape.as_slice() {
                [.., fan_in] if tensor.shape.len() > 1 => (3.0 / *fan_in as f64).sqrt() as f32,
                _ => 0.0,
            };
            places.push((at, scale));
            let range = at..at + bytes;
            at = range.end;
            let entry = Tensor { file: 0, dtype: Dtype::BF16, shape: tensor.shape.clone(), bytes: range };
            map.insert(tensor.name.clone(), entry);
        }
        let source = Source::synthetic(name, at, Generator { seed, tensors: places });
        Self { dir: Path::new(name).to_path_buf(), files: vec![source], tensors: map }
    }
}

impl Generator {
    /// Fills `buffer` from `offset` on.
    pub(super) fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut tensor = self.tensors.partition_point(|(start, _)| *start <= offset) - 1;
        for (pair, at) in buffer.chunks_mut(2).zip((offset..).step_by(2)) {
            while self.tensors.get(tensor + 1).is_some_and(|(start, _)| *start <= at) {
                tensor += 1;
            }
            let scale = self.tensors[tensor].1;
            let value = if scale == 0.0 { 1.0 } else { self.noise(at) * scale };
            pair.copy_from_slice(&crate::kernel::round_bf16(value).to_le_bytes()[..pair.len()]);
        }
    }

    /// Between -1 and 1, from the place alone (splitmix64).
    fn noise(&self, at: u64) -> f32 {
        let mut z = self.seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as i32 - (1 << 23)) as f32 / (1 << 23) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are asked for, they are the same, and norms are one.
    #[test]
    fn bytes_depend_on_their_place_alone() {
        let tensors = [
            Synthetic { name: "norm".into(), shape: vec![8] },
            Synthetic { name: "matrix".into(), shape: vec![4, 16] },
        ];
        let checkpoint = Checkpoint::synthetic("shape", &tensors, 1);
        let read = |name: &str, range: std::ops::Range<u64>| {
            let tensor = checkpoint.find(name).expect("made above");
            let mut bytes = vec![0; (range.end - range.start) as usize];
            checkpoint.read(tensor, range, &mut bytes).expect("made above");
            bytes
        };
        assert_eq!(read("norm", 0..16), [0x80, 0x3f].repeat(8));
        let whole = read("matrix", 0..128);
        let pieces: Vec<u8> = (0..8).flat_map(|i| read("matrix", i * 16..i * 16 + 16)).collect();
        assert_eq!(whole, pieces);
        assert!(whole.chunks(2).collect::<std::collections::HashSet<_>>().len() > 32);
    }
}
