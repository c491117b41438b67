//! What of a checkpoint's files becomes the file of one expert: whole tensors, and slices of tensors that all experts of
//! a layer share.
//!
//! A slice has a name of its own, with the expert's number in it, so that a file which holds one expert cannot be taken
//! for another's: `experts.gate_up_proj` of expert 17 is `experts.17.gate_up_proj`. Whoever looks for a slice finds it
//! under either name.

use std::ops::Range;
use std::sync::Arc;

use super::{Checkpoint, CheckpointError, Dtype, Source, Tensor};

/// A tensor of the file to be made, and where its bytes are.
#[derive(Debug, Clone)]
pub struct Extract {
    /// Its name there.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// The file that has its bytes.
    pub source: Arc<Source>,
    /// Which bytes of that file.
    pub bytes: Range<u64>,
}

/// The name of slice `index` of the tensor `name` where it stands alone.
pub fn slice_name(name: &str, index: usize) -> String {
    match name.rsplit_once('.') {
        Some((stem, last)) => format!("{stem}.{index}.{last}"),
        None => format!("{index}.{name}"),
    }
}

impl Checkpoint {
    /// Slice `index` of the tensor `name` of shape `[count, ..shape]`, or the same slice standing alone; with the slice's
    /// first byte, relative to the tensor's.
    pub(super) fn slice(
        &self,
        name: &str,
        count: usize,
        index: usize,
        shape: &[usize],
    ) -> Result<(&Tensor, u64), CheckpointError> {
        let alone = slice_name(name, index);
        if self.find(name).is_none() && self.find(&alone).is_some() {
            return Ok((self.tensor(&alone, shape)?, 0));
        }
        let whole: Vec<usize> = std::iter::once(count).chain(shape.iter().copied()).collect();
        let tensor = self.tensor(name, &whole)?;
        Ok((tensor, index as u64 * (tensor.len() / count as u64)))
    }

    /// Whether slice `index` of the tensor `name` is here, in the whole tensor or alone.
    pub fn has_slice(&self, name: &str, index: usize) -> bool {
        self.find(name).is_some() || self.find(&slice_name(name, index)).is_some()
    }

    /// The tensor `name` as it is.
    pub(super) fn extract(&self, name: &str, tensor: &Tensor) -> Extract {
        Extract {
            name: name.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            source: Arc::clone(&self.files[tensor.file]),
            bytes: tensor.bytes.clone(),
        }
    }

    /// Slice `index` of the tensor `name`, of that shape, which begins at byte `first` of `tensor`.
    pub(super) fn extract_slice(
        &self,
        name: &str,
        index: usize,
        tensor: &Tensor,
        first: u64,
        shape: &[usize],
    ) -> Extract {
        let elements: u64 = shape.iter().map(|d| *d as u64).product();
        let bytes = elements * tensor.dtype.bitsize() as u64 / 8;
        let start = tensor.bytes.start + first;
        Extract {
            name: slice_name(name, index),
            dtype: tensor.dtype,
            shape: shape.to_vec(),
            source: Arc::clone(&self.files[tensor.file]),
            bytes: start..start + bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number stands where a separate expert's tensors have it.
    #[test]
    fn a_slice_has_its_number_in_its_name() {
        assert_eq!(slice_name("a.experts.down_proj", 17), "a.experts.17.down_proj");
        assert_eq!(slice_name("down_proj", 0), "0.down_proj");
    }
}
