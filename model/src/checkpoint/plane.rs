//! A matrix as a checkpoint stores it: streamed in pieces that fit the cache, hashed and widened on
//! the way.
//!
//! One pass over the bytes does all that loading needs: read into a small buffer, hash, widen, hand
//! on to be packed. Nothing here holds more than one piece.

use std::ops::Range;

use super::{Checkpoint, CheckpointError, Dtype, Extract, Tensor};
use crate::kernel::{round_bf16, widen_bf16};
use crate::spec::Quantization;
use crate::widen::{E2M1, f32_from_e4m3, f32_from_f16, power_of_two};

/// Bytes of a piece: small enough for the second-level cache, large enough to hide the system call.
const PIECE_BYTES: usize = 256 << 10;
/// Rows of a piece are a multiple of this, so that packing fills whole panels.
const PIECE_ROWS: usize = 32;
/// Values that share one scale in MXFP4.
const MXFP4_BLOCK: usize = 32;

/// A matrix of `rows` rows of `columns` values, in the order in which they are stored.
#[derive(Debug)]
pub struct Plane<'c> {
    checkpoint: &'c Checkpoint,
    tensor: &'c Tensor,
    name: String,
    /// Which slice of a tensor that several planes share.
    slice: Option<usize>,
    /// First byte, relative to the tensor's.
    first: u64,
    rows: usize,
    columns: usize,
    stored: Stored<'c>,
}

#[derive(Debug)]
enum Stored<'c> {
    Bf16,
    F16,
    F32,
    /// `scales` is F32 `[ceil(rows / block_rows), ceil(columns / block_columns)]`.
    Fp8 {
        scales: &'c Tensor,
        block_rows: usize,
        block_columns: usize,
    },
    /// One exponent per 32 values of a row, from byte `first` of `scales` on.
    Mxfp4 {
        scales: &'c Tensor,
        first: u64,
    },
}

/// The scales of a plane; empty for types that have none.
#[derive(Debug)]
pub struct Scales(Vec<u8>);

/// Rows as [`Plane::stream`] hands them on.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// BF16, exact or rounded to nearest even.
    Bf16(&'a [u16]),
    /// f32, exact.
    F32(&'a [f32]),
}

/// What goes with reading: buffers that are reused, the digest, and what was noticed.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    halves: Vec<u16>,
    floats: Vec<f32>,
    hasher: Option<blake3::Hasher>,
    /// Tensors in which a NaN was seen.
    pub nan_tensors: Vec<String>,
    /// Tensors whose values were rounded, because they are stored with more than BF16 holds.
    pub rounded_tensors: Vec<String>,
    /// Keep values of F16 and F32 tensors exactly, as f32.
    pub exact: bool,
}

impl Reader {
    /// A reader; `digest`: hash what is read.
    pub fn new(exact: bool, digest: bool) -> Self {
        Self { exact, hasher: digest.then(blake3::Hasher::new), ..Self::default() }
    }

    /// The digest of all bytes read since the last call, if they were hashed.
    pub fn take_digest(&mut self) -> Option<blake3::Hash> {
        let hasher = self.hasher.as_mut()?;
        let digest = hasher.finalize();
        hasher.reset();
        Some(digest)
    }

    /// Does some reading whose bytes are not of the digest.
    pub fn unhashed<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let hasher = self.hasher.take();
        let result = read(self);
        self.hasher = hasher;
        result
    }

    fn hash(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    fn note(list: &mut Vec<String>, name: &str) {
        if list.last().is_none_or(|last| last != name) {
            list.push(name.to_string());
        }
    }
}

impl<'c> Plane<'c> {
    /// The tensor `name`, which must be a matrix of this shape.
    pub fn whole(
        checkpoint: &'c Checkpoint,
        name: &str,
        rows: usize,
        columns: usize,
        quantization: Option<Quantization>,
    ) -> Result<Self, CheckpointError> {
        let tensor = checkpoint.tensor(name, &[rows, columns])?;
        let stored = match tensor.dtype {
            Dtype::BF16 => Stored::Bf16,
            Dtype::F16 => Stored::F16,
            Dtype::F32 => Stored::F32,
            Dtype::F8_E4M3 => {
                let Some(Quantization::Fp8 { block_rows, block_columns }) = quantization else {
                    return Err(checkpoint.wrong_dtype(
                        name,
                        tensor,
                        "BF16, F16 or F32, since config.json has no quantization_config of FP8",
                    ));
                };
                let scales_name = format!("{name}_scale_inv");
                let shape = [rows.div_ceil(block_rows), columns.div_ceil(block_columns)];
                let scales = checkpoint.tensor(&scales_name, &shape)?;
                if scales.dtype != Dtype::F32 {
                    return Err(checkpoint.wrong_dtype(&scales_name, scales, "F32"));
                }
                Stored::Fp8 { scales, block_rows, block_columns }
            }
            _ => return Err(checkpoint.wrong_dtype(name, tensor, "BF16, F16, F32 or F8_E4M3")),
        };
        Ok(Self { checkpoint, tensor, name: name.to_string(), slice: None, first: 0, rows, columns, stored })
    }

    /// Matrix `index` of the tensor `name` of shape `[count, rows, columns]`.
    pub fn slice(
        checkpoint: &'c Checkpoint,
        name: &str,
        count: usize,
        index: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Self, CheckpointError> {
        let (tensor, first) = checkpoint.slice(name, count, index, &[rows, columns])?;
        let stored = match tensor.dtype {
            Dtype::BF16 => Stored::Bf16,
            Dtype::F16 => Stored::F16,
            Dtype::F32 => Stored::F32,
            _ => return Err(checkpoint.wrong_dtype(name, tensor, "BF16, F16 or F32")),
        };
        let name = name.to_string();
        Ok(Self { checkpoint, tensor, name, slice: Some(index), first, rows, columns, stored })
    }

    /// Matrix `index` of `{name}_blocks` and `{name}_scales`, MXFP4 of `count` matrices.
    pub fn mxfp4(
        checkpoint: &'c Checkpoint,
        name: &str,
        count: usize,
        index: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Self, CheckpointError> {
        let groups = columns.div_ceil(MXFP4_BLOCK);
        let (blocks_name, scales_name) = (format!("{name}_blocks"), format!("{name}_scales"));
        let (tensor, first) =
            checkpoint.slice(&blocks_name, count, index, &[rows, groups, MXFP4_BLOCK / 2])?;
        let (scales, scales_first) = checkpoint.slice(&scales_name, count, index, &[rows, groups])?;
        for (name, tensor) in [(&blocks_name, tensor), (&scales_name, scales)] {
            if tensor.dtype != Dtype::U8 {
                return Err(checkpoint.wrong_dtype(name, tensor, "U8"));
            }
        }
        Ok(Self {
            checkpoint,
            tensor,
            name: blocks_name,
            slice: Some(index),
            first,
            rows,
            columns: groups * MXFP4_BLOCK,
            stored: Stored::Mxfp4 { scales, first: scales_first },
        })
    }

    /// Rows as stored.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row as stored.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether values are stored with more than BF16 holds.
    pub fn is_wide(&self) -> bool {
        matches!(self.stored, Stored::F16 | Stored::F32)
    }

    /// Bytes read for all of it.
    pub fn stored_bytes(&self) -> u64 {
        (self.rows * self.row_bytes()) as u64
            + self.scale_bytes().map_or(0, |(_, range)| range.end - range.start)
    }

    /// Where the scales lie, relative to their tensor.
    fn scale_bytes(&self) -> Option<(&'c Tensor, Range<u64>)> {
        match self.stored {
            Stored::Fp8 { scales, .. } => Some((scales, 0..scales.len())),
            Stored::Mxfp4 { scales, first } => {
                let bytes = (self.rows * self.columns / MXFP4_BLOCK) as u64;
                Some((scales, first..first + bytes))
            }
            Stored::Bf16 | Stored::F16 | Stored::F32 => None,
        }
    }

    fn row_bytes(&self) -> usize {
        match self.stored {
            Stored::Bf16 | Stored::F16 => 2 * self.columns,
            Stored::F32 => 4 * self.columns,
            Stored::Fp8 { .. } => self.columns,
            Stored::Mxfp4 { .. } => self.columns / 2,
        }
    }

    /// Its tensors as an expert's own file has them, in the order in which they are hashed.
    pub fn extracts(&self) -> Vec<Extract> {
        let (checkpoint, tensor) = (self.checkpoint, self.tensor);
        let scales = match self.stored {
            Stored::Fp8 { scales, .. } => {
                Some(checkpoint.extract(&format!("{}_scale_inv", self.name), scales))
            }
            Stored::Mxfp4 { scales, first } => {
                let name = self.name.replace("_blocks", "_scales");
                let index = self.slice.expect("MXFP4 matrices are slices");
                let shape = [self.rows, self.columns / MXFP4_BLOCK];
                Some(checkpoint.extract_slice(&name, index, scales, first, &shape))
            }
            Stored::Bf16 | Stored::F16 | Stored::F32 => None,
        };
        let values = match (self.slice, &self.stored) {
            (None, _) => checkpoint.extract(&self.name, tensor),
            (Some(index), Stored::Mxfp4 { .. }) => {
                let shape = [self.rows, self.columns / MXFP4_BLOCK, MXFP4_BLOCK / 2];
                checkpoint.extract_slice(&self.name, index, tensor, self.first, &shape)
            }
            (Some(index), _) => {
                let shape = [self.rows, self.columns];
                checkpoint.extract_slice(&self.name, index, tensor, self.first, &shape)
            }
        };
        scales.into_iter().chain([values]).collect()
    }

    /// Reads all rows in order and hands them on in pieces.
    pub fn stream(
        &self,
        reader: &mut Reader,
        take: impl FnMut(usize, Values<'_>),
    ) -> Result<(), CheckpointError> {
        let scales = self.scales(reader)?;
        self.stream_rows(reader, &scales, 0..self.rows, take)
    }

    /// Reads the scales, which are hashed before the rows.
    pub fn scales(&self, reader: &mut Reader) -> Result<Scales, CheckpointError> {
        let Some((tensor, range)) = self.scale_bytes() else { return Ok(Scales(Vec::new())) };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.checkpoint.read(tensor, range, &mut bytes)?;
        reader.hash(&bytes);
        Ok(Scales(bytes))
    }

    /// The scales once more, for a plane that several matrices share: read and not hashed again.
    pub fn scales_again(&self) -> Result<Scales, CheckpointError> {
        self.scales(&mut Reader::default())
    }

    /// Reads some rows for nothing but their digest; does not read them if the reader does not hash.
    pub fn hash_rows(&self, reader: &mut Reader, range: Range<usize>) -> Result<(), CheckpointError> {
        if reader.hasher.is_none() {
            return Ok(());
        }
        let row_bytes = self.row_bytes() as u64;
        let end = self.first + range.end as u64 * row_bytes;
        let mut at = self.first + range.start as u64 * row_bytes;
        while at < end {
            let length = (end - at).min(PIECE_BYTES as u64);
            reader.bytes.resize(length as usize, 0);
            self.checkpoint.read(self.tensor, at..at + length, &mut reader.bytes)?;
            if let Some(hasher) = &mut reader.hasher {
                hasher.update(&reader.bytes);
            }
            at += length;
        }
        Ok(())
    }

    /// Reads some rows in order and hands them on in pieces. The row given to `take` is relative to the range.
    pub fn stream_rows(
        &self,
        reader: &mut Reader,
        scales: &Scales,
        range: Range<usize>,
        mut take: impl FnMut(usize, Values<'_>),
    ) -> Result<(), CheckpointError> {
        let row_bytes = self.row_bytes();
        let step = (PIECE_BYTES / row_bytes / PIECE_ROWS).max(1) * PIECE_ROWS;
        for row in range.clone().step_by(step) {
            let rows = step.min(range.end - row);
            let first = self.first + (row * row_bytes) as u64;
            self.read_piece(reader, first, rows * row_bytes)?;
            self.widen(reader, scales, row, rows);
            let values = match reader.exact && self.is_wide() {
                true => Values::F32(&reader.floats),
                false => Values::Bf16(&reader.halves),
            };
            take(row - range.start, values);
        }
        Ok(())
    }

    /// Reads and hashes a piece: BF16 at once to where it is packed from, other types to be widened.
    fn read_piece(&self, reader: &mut Reader, first: u64, length: usize) -> Result<(), CheckpointError> {
        let mut halves = std::mem::take(&mut reader.halves);
        let mut bytes = std::mem::take(&mut reader.bytes);
        let buffer = match self.stored {
            Stored::Bf16 => {
                halves.resize(length / 2, 0);
                bytes_of(&mut halves)
            }
            _ => {
                bytes.resize(length, 0);
                &mut bytes
            }
        };
        let read = self.checkpoint.read(self.tensor, first..first + length as u64, buffer);
        reader.hash(buffer);
        (reader.halves, reader.bytes) = (halves, bytes);
        read
    }

    /// From what was read to `reader.halves` or `reader.floats`.
    fn widen(&self, reader: &mut Reader, scales: &Scales, row: usize, rows: usize) {
        let Reader { bytes, halves, floats, nan_tensors, rounded_tensors, exact, .. } = reader;
        let count = rows * self.columns;
        let (pairs, _) = bytes.as_chunks::<2>();
        halves.resize(count, 0);
        match &self.stored {
            Stored::Bf16 => halves.iter_mut().for_each(|half| *half = u16::from_le(*half)),
            Stored::F16 | Stored::F32 => {
                floats.resize(count, 0.0);
                if matches!(self.stored, Stored::F16) {
                    for (float, bytes) in floats.iter_mut().zip(pairs) {
                        *float = f32_from_f16(u16::from_le_bytes(*bytes));
                    }
                } else {
                    let (words, _) = bytes.as_chunks::<4>();
                    for (float, bytes) in floats.iter_mut().zip(words) {
                        *float = f32::from_le_bytes(*bytes);
                    }
                }
                for (half, float) in halves.iter_mut().zip(floats.iter()) {
                    *half = round_bf16(*float);
                }
                let differs = halves.iter().zip(floats.iter()).any(|(h, f)| widen_bf16(*h) != *f);
                if !*exact && differs {
                    Reader::note(rounded_tensors, &self.name);
                }
            }
            Stored::Fp8 { block_rows, block_columns, .. } => {
                let scales = floats_of(&scales.0);
                let table: [f32; 256] = std::array::from_fn(|x| f32_from_e4m3(x as u8));
                let per_row = self.columns.div_ceil(*block_columns);
                for (r, (out, bytes)) in
                    halves.chunks_exact_mut(self.columns).zip(bytes.chunks_exact(self.columns)).enumerate()
                {
                    let scales = &scales[(row + r) / block_rows * per_row..][..per_row];
                    for ((out, bytes), scale) in
                        out.chunks_mut(*block_columns).zip(bytes.chunks(*block_columns)).zip(scales)
                    {
                        for (half, byte) in out.iter_mut().zip(bytes) {
                            *half = round_bf16(table[*byte as usize] * scale);
                        }
                    }
                }
            }
            Stored::Mxfp4 { .. } => {
                let scales = &scales.0[row * self.columns / MXFP4_BLOCK..];
                for ((out, bytes), scale) in
                    halves.chunks_exact_mut(MXFP4_BLOCK).zip(bytes.chunks_exact(MXFP4_BLOCK / 2)).zip(scales)
                {
                    let factor = power_of_two(i32::from(*scale) - 127);
                    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
                        // The low nibble is the even element.
                        pair[0] = round_bf16(E2M1[(byte & 15) as usize] * factor);
                        pair[1] = round_bf16(E2M1[(byte >> 4) as usize] * factor);
                    }
                }
            }
        }
        // Without their signs, NaNs are the greatest bit patterns; signed, so that vectors can compare.
        if halves.iter().fold(0, |most, x| most.max((x & 0x7fff) as i16)) > 0x7f80 {
            Reader::note(nan_tensors, &self.name);
        }
    }
}

/// A vector of `length` values, widened exactly, hashed as raw bytes.
pub fn vector(
    checkpoint: &Checkpoint,
    reader: &mut Reader,
    name: &str,
    length: usize,
) -> Result<Vec<f32>, CheckpointError> {
    let tensor = checkpoint.tensor(name, &[length])?;
    values(checkpoint, reader, name, tensor, 0, length)
}

/// Vector `index` of a tensor of shape `[count, length]`.
pub fn vector_slice(
    checkpoint: &Checkpoint,
    reader: &mut Reader,
    name: &str,
    count: usize,
    index: usize,
    length: usize,
) -> Result<Vec<f32>, CheckpointError> {
    let (tensor, first) = checkpoint.slice(name, count, index, &[length])?;
    values(checkpoint, reader, name, tensor, first, length)
}

/// The same vector as an expert's own file has it.
pub fn extract_vector(
    checkpoint: &Checkpoint,
    name: &str,
    count: usize,
    index: usize,
    length: usize,
) -> Result<Extract, CheckpointError> {
    let (tensor, first) = checkpoint.slice(name, count, index, &[length])?;
    Ok(checkpoint.extract_slice(name, index, tensor, first, &[length]))
}

fn values(
    checkpoint: &Checkpoint,
    reader: &mut Reader,
    name: &str,
    tensor: &Tensor,
    first: u64,
    length: usize,
) -> Result<Vec<f32>, CheckpointError> {
    let size = match tensor.dtype {
        Dtype::BF16 | Dtype::F16 => 2,
        Dtype::F32 => 4,
        _ => return Err(checkpoint.wrong_dtype(name, tensor, "BF16, F16 or F32")),
    };
    let mut bytes = vec![0; length * size];
    checkpoint.read(tensor, first..first + bytes.len() as u64, &mut bytes)?;
    reader.hash(&bytes);
    let (pairs, _) = bytes.as_chunks::<2>();
    let values: Vec<f32> = match tensor.dtype {
        Dtype::BF16 => pairs.iter().map(|b| widen_bf16(u16::from_le_bytes(*b))).collect(),
        Dtype::F16 => pairs.iter().map(|b| f32_from_f16(u16::from_le_bytes(*b))).collect(),
        _ => floats_of(&bytes),
    };
    if values.iter().any(|x| x.is_nan()) {
        Reader::note(&mut reader.nan_tensors, name);
    }
    Ok(values)
}

/// The memory of BF16 values as bytes, to be read into.
fn bytes_of(halves: &mut [u16]) -> &mut [u8] {
    // SAFETY: a u16 is two bytes without padding, any bytes are u16s, and the borrow goes on.
    unsafe { std::slice::from_raw_parts_mut(halves.as_mut_ptr().cast(), size_of_val(halves)) }
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
