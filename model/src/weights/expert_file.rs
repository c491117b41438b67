//! One expert as one safetensors file: what travels to a node that has no copy of the checkpoint, and what it keeps.
//!
//! The file holds the expert's raw tensors under the checkpoint's own names (a slice of a tensor that all experts share
//! has the expert's number in its name), so that it opens beside a `config.json` like any checkpoint and packs to the
//! same block. Its tensors lie in the order in which an expert is hashed, without gaps: the digest of the expert is the
//! BLAKE3 of everything behind the header, and a receiver verifies it while the bytes come in.
//!
//! [`ExpertFile`] never exists as a file at the sender: it is a header and a list of places. [`ArrivingExpert`] is the
//! receiver's side, pure: bytes in, verdict out, whatever the bytes are.

use std::sync::Arc;

use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::expert::{ExpertId, ExpertPlan};
use super::manifest::Digest;
use crate::checkpoint::{Checkpoint, CheckpointError, Extract, Source, parse_header};
use crate::spec::Spec;

/// Longest header: a dozen tensors of some hundred bytes each, with room.
const HEADER_BYTES_MAX: u64 = 64 << 10;

/// Read at once for a digest: stays in the second-level cache.
const DIGEST_PIECE_BYTES: usize = 256 << 10;

/// The bytes before a header's text, which say how long it is.
const LENGTH_BYTES: u64 = 8;

/// An expert of a checkpoint, as a file of its own that is read without being written.
#[derive(Debug)]
pub struct ExpertFile {
    header: Vec<u8>,
    stretches: Vec<Stretch>,
    length: u64,
}

/// Bytes of the file that lie together in another.
#[derive(Debug)]
struct Stretch {
    /// Where they begin in this file.
    start: u64,
    length: u64,
    source: Arc<Source>,
    /// Where they begin in the other.
    source_start: u64,
}

impl ExpertFile {
    /// Finds expert `id` and checks its tensors' shapes and types; reads none of them.
    ///
    /// Panics if the model has no such expert: see [`Spec::has_expert`].
    pub fn open(checkpoint: &Checkpoint, spec: &Spec, id: ExpertId) -> Result<Self, CheckpointError> {
        let extracts = ExpertPlan::new(checkpoint, spec, id)?.extracts()?;
        let header = header(&extracts);
        let mut at = header.len() as u64;
        let stretches = extracts
            .into_iter()
            .map(|extract| {
                let length = extract.bytes.end - extract.bytes.start;
                let start = at;
                at += length;
                Stretch { start, length, source: extract.source, source_start: extract.bytes.start }
            })
            .collect();
        Ok(Self { header, stretches, length: at })
    }

    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Its first bytes, up to the tensors.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Fills `buffer` with the file's bytes from `offset` on.
    ///
    /// Panics if that goes beyond its end.
    pub fn read_at(&self, offset: u64, mut buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let end = offset.checked_add(buffer.len() as u64);
        assert!(end.is_some_and(|end| end <= self.length), "{} bytes of {}", buffer.len(), self.length);
        let mut at = offset;
        if at < self.header.len() as u64 {
            let from = &self.header[at as usize..];
            let (part, rest) = buffer.split_at_mut(from.len().min(buffer.len()));
            part.copy_from_slice(&from[..part.len()]);
            at += part.len() as u64;
            buffer = rest;
        }
        let mut index = self.stretches.partition_point(|s| s.start + s.length <= at);
        while !buffer.is_empty() {
            let stretch = &self.stretches[index];
            let inside = at - stretch.start;
            let length = (stretch.length - inside).min(buffer.len() as u64) as usize;
            let (part, rest) = buffer.split_at_mut(length);
            stretch.source.read_at(stretch.source_start + inside, part)?;
            at += length as u64;
            (buffer, index) = (rest, index + 1);
        }
        Ok(())
    }

    /// The expert's digest: reads all of its tensors, once.
    pub fn digest(&self) -> Result<Digest, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; DIGEST_PIECE_BYTES];
        let mut at = self.header.len() as u64;
        while at < self.length {
            let length = (self.length - at).min(piece.len() as u64) as usize;
            self.read_at(at, &mut piece[..length])?;
            hasher.update(&piece[..length]);
            at += length as u64;
        }
        Ok(Digest(hasher.finalize()))
    }

    /// Whether the checkpoint it was found in is this very file, byte for byte in the same places: then the digest of what
    /// follows that file's header is the expert's, and no other order of its tensors can pass for it.
    pub fn is_in_place(&self) -> Result<bool, CheckpointError> {
        let Some(first) = self.stretches.first() else { return Ok(false) };
        let source = &first.source;
        let is_there = |s: &Stretch| Arc::ptr_eq(&s.source, source) && s.start == s.source_start;
        if source.length() != self.length || !self.stretches.iter().all(is_there) {
            return Ok(false);
        }
        let mut header = vec![0; self.header.len()];
        source.read_at(0, &mut header)?;
        Ok(header == self.header)
    }

    /// How many bytes a whole file has that begins with `first`; `None` if these are too few to say. Nobody's file is
    /// longer than `bytes_max`, and [`HEADER_BYTES_MAX`] and eight bytes always suffice.
    pub fn length_of(first: &[u8], bytes_max: u64) -> Result<Option<u64>, ArrivalError> {
        Ok(Extent::of(first, bytes_max)?.map(|extent| extent.length))
    }

    /// A bound for the file of any expert of layer `layer`, whatever its tensors are stored as.
    ///
    /// Panics if the model has no such layer.
    pub fn bytes_max(spec: &Spec, layer: usize) -> u64 {
        let experts = spec.layer_experts(layer).expect("the model has the layer");
        // Three matrices and their biases. No type has more than four bytes a value; an FP8 value with a scale of
        // its own has five.
        let (hidden, width) = (spec.hidden as u64, experts.width as u64);
        let values = hidden.saturating_mul(width).saturating_mul(3).saturating_add(hidden + 2 * width);
        values.saturating_mul(8).saturating_add(LENGTH_BYTES + HEADER_BYTES_MAX)
    }
}

/// Length and text, padded with spaces so that the tensors begin at a multiple of 64.
fn header(extracts: &[Extract]) -> Vec<u8> {
    let mut at = 0;
    let entries: Map<String, Value> = extracts
        .iter()
        .map(|extract| {
            let start = at;
            at += (extract.bytes.end - extract.bytes.start) as usize;
            let shape = extract.shape.clone();
            let info = TensorInfo { dtype: extract.dtype, shape, data_offsets: (start, at) };
            let entry = serde_json::to_value(info).expect("numbers and names are always JSON");
            (extract.name.clone(), entry)
        })
        .collect();
    let mut text = Value::Object(entries).to_string().into_bytes();
    let length = (text.len() + LENGTH_BYTES as usize).next_multiple_of(64) - LENGTH_BYTES as usize;
    text.resize(length, b' ');
    assert!(length as u64 <= HEADER_BYTES_MAX, "an expert's header has {length} bytes");
    [&(length as u64).to_le_bytes()[..], &text].concat()
}

/// Why an expert's file that is coming in is of no use. None of it may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrivalError {
    /// What came is not the beginning of such a file.
    #[error("what came is no expert's file: {0}")]
    Malformed(String),
    /// It would be longer than an expert of this model can be.
    #[error("the file would have {length} bytes, an expert of this layer has at most {max}")]
    TooLong {
        /// What its header says.
        length: u64,
        /// What is taken.
        max: u64,
    },
    /// More came than the header says.
    #[error("{received} bytes came of a file of {length}")]
    Excess {
        /// Bytes that came.
        received: u64,
        /// Bytes of the file.
        length: u64,
    },
    /// It ended early.
    #[error("only {received} bytes came of a file of {}", length.map_or("unknown length".into(), |n| format!("{n} bytes")))]
    Short {
        /// Bytes that came.
        received: u64,
        /// Bytes of the file, if its header came.
        length: Option<u64>,
    },
}

/// Where a file's tensors begin and end.
#[derive(Debug, Clone, Copy)]
struct Extent {
    base: u64,
    length: u64,
}

impl Extent {
    fn of(first: &[u8], bytes_max: u64) -> Result<Option<Self>, ArrivalError> {
        let Some((length, rest)) = first.split_first_chunk::<{ LENGTH_BYTES as usize }>() else {
            return Ok(None);
        };
        let text_bytes = u64::from_le_bytes(*length);
        if text_bytes > HEADER_BYTES_MAX {
            return Err(ArrivalError::Malformed(format!(
                "it claims a header of {text_bytes} bytes, at most {HEADER_BYTES_MAX} are taken"
            )));
        }
        let Some(text) = rest.get(..text_bytes as usize) else { return Ok(None) };
        let base = LENGTH_BYTES + text_bytes;
        let tensors = parse_header(text, base, u64::MAX, 0).map_err(ArrivalError::Malformed)?;
        let mut ranges: Vec<_> = tensors.iter().map(|(_, tensor)| tensor.bytes.clone()).collect();
        ranges.sort_by_key(|range| range.start);
        let mut end = base;
        for range in &ranges {
            if range.start != end {
                let problem = format!("its header leaves bytes {end} to {} to no tensor", range.start);
                return Err(ArrivalError::Malformed(problem));
            }
            end = range.end;
        }
        if end == base {
            return Err(ArrivalError::Malformed("its header lists no tensor".into()));
        }
        if end > bytes_max {
            return Err(ArrivalError::TooLong { length: end, max: bytes_max });
        }
        Ok(Some(Self { base, length: end }))
    }
}

/// An expert's file that is coming in, piece by piece, in order.
#[derive(Debug)]
pub struct ArrivingExpert {
    bytes_max: u64,
    /// What came before the header was whole.
    first: Vec<u8>,
    extent: Option<Extent>,
    received: u64,
    hasher: blake3::Hasher,
}

impl ArrivingExpert {
    /// Nothing has come yet; more than `bytes_max` will not be taken.
    pub fn new(bytes_max: u64) -> Self {
        let hasher = blake3::Hasher::new();
        Self { bytes_max, first: Vec::new(), extent: None, received: 0, hasher }
    }

    /// Takes the next bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), ArrivalError> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        let tensors = match self.extent {
            Some(_) => bytes,
            None => match self.handle_first(bytes)? {
                Some(tensors) => tensors,
                None => return Ok(()),
            },
        };
        let extent = self.extent.expect("it was there, or has just been found");
        if self.received > extent.length {
            return Err(ArrivalError::Excess { received: self.received, length: extent.length });
        }
        self.hasher.update(tensors);
        Ok(())
    }

    /// Takes bytes that may still be of the header, and gives back those that no longer are.
    fn handle_first<'b>(&mut self, bytes: &'b [u8]) -> Result<Option<&'b [u8]>, ArrivalError> {
        // No more is kept than can be a header.
        let room = (LENGTH_BYTES + HEADER_BYTES_MAX) as usize - self.first.len();
        let before = self.first.len();
        self.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.extent = Extent::of(&self.first, self.bytes_max)?;
        Ok(self.extent.map(|extent| {
            self.first = Vec::new();
            &bytes[extent.base as usize - before..]
        }))
    }

    /// Bytes of the whole file, once its header has come.
    pub fn length(&self) -> Option<u64> {
        self.extent.map(|extent| extent.length)
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether all of it has come.
    pub fn is_whole(&self) -> bool {
        self.length() == Some(self.received)
    }

    /// The expert's digest, once all of it has come.
    pub fn finish(self) -> Result<Digest, ArrivalError> {
        match self.is_whole() {
            true => Ok(Digest(self.hasher.finalize())),
            false => Err(ArrivalError::Short { received: self.received, length: self.length() }),
        }
    }
}
