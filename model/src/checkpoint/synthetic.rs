//! A checkpoint of random weights that is nowhere on disk: every byte is a function of its place.
//!
//! For measuring shapes nobody has trained. What is read here is byte for byte what
//! `phalanx bench make-checkpoint` writes, so a model can be measured with and without the file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

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
        Self { dir: Path::new(name).to_path_buf(), files: vec![Arc::new(source)], tensors: map }
    }
}

impl Generator {
    /// Fills `buffer` from `offset` on.
    pub(super) fn fill(&self, offset: u64, buffer: &mut [u8]) {
        if offset.is_multiple_of(2) && buffer.len().is_multiple_of(2) {
            return self.fill_values(offset, buffer);
        }
        let (first, end) = (offset & !1, (offset + buffer.len() as u64).next_multiple_of(2));
        let mut values = vec![0; (end - first) as usize];
        self.fill_values(first, &mut values);
        buffer.copy_from_slice(&values[(offset - first) as usize..][..buffer.len()]);
    }

    /// The same for whole values.
    fn fill_values(&self, offset: u64, mut buffer: &mut [u8]) {
        let mut tensor = self.tensors.partition_point(|(start, _)| *start <= offset) - 1;
        let mut at = offset;
        while !buffer.is_empty() {
            let scale = self.tensors[tensor].1;
            let left = self.tensors.get(tensor + 1).map_or(u64::MAX, |(next, _)| next - at);
            let (part, rest) = buffer.split_at_mut(left.min(buffer.len() as u64) as usize);
            for (pair, place) in part.chunks_exact_mut(2).zip((at / 2..).map(|i| i as u32)) {
                let value = if scale == 0.0 { 1.0 } else { self.noise(place) * scale };
                // Rounding by adding half a unit: no value here is near the ends of the range.
                let bits = value.to_bits().wrapping_add(0x8000) >> 16;
                pair.copy_from_slice(&(bits as u16).to_le_bytes());
            }
            at += part.len() as u64;
            (buffer, tensor) = (rest, tensor + 1);
        }
    }

    /// Between -1 and 1, from the place alone: a 32-bit mix, so that eight go side by side.
    #[inline]
    fn noise(&self, place: u32) -> f32 {
        let mut z = (self.seed as u32 ^ place).wrapping_mul(0x9e37_79b9);
        z = (z ^ z >> 16).wrapping_mul(0x85eb_ca6b);
        z = (z ^ z >> 13).wrapping_mul(0xc2b2_ae35);
        ((z >> 8) as i32 - (1 << 23)) as f32 * (1.0 / (1 << 23) as f32)
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
        let odd: Vec<u8> = [0..1, 1..7, 7..52, 52..128].into_iter().flat_map(|r| read("matrix", r)).collect();
        assert_eq!(whole, odd);
        assert!(whole.chunks(2).collect::<std::collections::HashSet<_>>().len() > 32);
    }
}
