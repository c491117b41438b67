//! The header of a safetensors file, checked against the file's length.
//!
//! The `safetensors` crate wants the whole file as one slice; here only the header is read, and an
//! error has to name the tensor and both numbers. So the crate's own `TensorInfo` is used for an
//! entry, and the checks around it are written here.

use std::ops::Range;

use safetensors::tensor::TensorInfo;
use serde_json::Value;

use super::{CheckpointError, Source};

pub use safetensors::Dtype;

/// As in the reference implementation: a header above this is an attack or an accident.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Index into [`super::Checkpoint::files`].
    pub file: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: Range<u64>,
}

impl Tensor {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Reads and checks the header of `source`, which is file `number`.
pub(super) fn read(source: &Source, number: usize) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let malformed =
        |problem: String| CheckpointError::Malformed { file: source.path().to_path_buf(), problem };
    if source.length() < 8 {
        return Err(malformed(format!(
            "is {} bytes long, too short for a safetensors header",
            source.length()
        )));
    }
    let mut length = [0; 8];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length + 8 > source.length() {
        return Err(malformed(format!(
            "claims a header of {length} bytes, but the file has {} bytes; it is truncated or not a safetensors file",
            source.length()
        )));
    }
    let mut text = vec![0; length as usize];
    source.read_at(8, &mut text)?;
    parse(&text, 8 + length, source.length(), number).map_err(malformed)
}

/// Checks a header's text, behind which tensors lie from byte `base` on in a file of `file_bytes`.
pub(crate) fn parse(
    text: &[u8],
    base: u64,
    file_bytes: u64,
    number: usize,
) -> Result<Vec<(String, Tensor)>, String> {
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| format!("its header is not a JSON object ({e})"))?;
    let mut tensors = Vec::with_capacity(header.len());
    for (name, entry) in header {
        if name == "__metadata__" {
            continue;
        }
        let info: TensorInfo = serde_json::from_value(entry)
            .map_err(|e| format!("the header's entry for tensor `{name}` cannot be read ({e})"))?;
        tensors.push((name.clone(), check(&name, info, base, file_bytes, number)?));
    }
    let mut ranges: Vec<(&Range<u64>, &str)> =
        tensors.iter().filter(|(_, t)| !t.is_empty()).map(|(n, t)| (&t.bytes, n.as_str())).collect();
    ranges.sort_by_key(|(range, _)| range.start);
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        return Err(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1));
    }
    Ok(tensors)
}

fn check(name: &str, info: TensorInfo, base: u64, file_bytes: u64, file: usize) -> Result<Tensor, String> {
    let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize() as u64));
    let needed = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    let Some(needed) = needed else {
        return Err(format!("tensor `{name}` has shape {:?}, which overflows", info.shape));
    };
    if start > end || end - start != needed {
        return Err(format!(
            "tensor `{name}` is {} of shape {:?}, which is {needed} bytes, but the header gives it bytes {start} to {end}",
            info.dtype, info.shape
        ));
    }
    match base.checked_add(end) {
        Some(last) if last <= file_bytes => {}
        _ => {
            return Err(format!(
                "tensor `{name}` ends at byte {} but the file has {file_bytes}; it is truncated",
                base.saturating_add(end)
            ));
        }
    }
    Ok(Tensor { file, dtype: info.dtype, shape: info.shape, bytes: base + start..base + end })
}
