//! A checkpoint on disk: which tensor lies where, and its bytes on demand.
//!
//! Files are read with positioned reads into buffers of our own, never mapped: a file that is
//! truncated while it is read is then an error and not a SIGBUS, and packed weights are the only
//! copy in memory. Sizes in headers are checked against the file before anything is read.

mod extract;
mod header;
mod plane;
mod source;
mod synthetic;

pub use extract::{Extract, slice_name};
pub(crate) use header::parse as parse_header;
pub use header::{Dtype, Tensor};
pub use plane::{Plane, Reader, Scales, Values, extract_vector, vector, vector_slice};
pub use source::Source;
pub use synthetic::Synthetic;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

/// Which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// Why a checkpoint cannot be read. Nothing is kept of what was read so far.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be opened or read.
    #[error("{}: cannot be read ({problem}); {hint}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        problem: String,
        /// What to try.
        hint: &'static str,
    },
    /// A header or index does not say what it must.
    #[error("{}: {problem}; download the file again, or compare its checksum with the release", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, with the numbers that disagree.
        problem: String,
    },
    /// A tensor that the configuration asks for is not there.
    #[error("{}: tensor `{tensor}` is missing{near}; does config.json belong to these weights?", file.display())]
    Missing {
        /// The file, or the index of several.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What there is instead, if something is close.
        near: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor `{tensor}` has shape {found:?}, config.json asks for {expected:?}; they belong to different models", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// From config.json.
        expected: Vec<usize>,
        /// From the header.
        found: Vec<usize>,
    },
    /// A tensor has a type that cannot be used in its place.
    #[error("{}: tensor `{tensor}` is {found}, expected {expected}; convert the checkpoint, or use the original release", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What can be used.
        expected: &'static str,
        /// From the header.
        found: String,
    },
}

/// All tensors of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<Arc<Source>>,
    tensors: HashMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, in `dir`.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let index = dir.join(INDEX);
        let single = dir.join("model.safetensors");
        if !index.exists() {
            if !single.exists() {
                return Err(CheckpointError::Io {
                    file: single,
                    problem: "no such file, and no model.safetensors.index.json beside it".into(),
                    hint: "give the folder of a Hugging Face checkpoint with safetensors weights",
                });
            }
            return Self::of_files(dir, vec![Source::open(&single)?], None);
        }
        let text = std::fs::read(&index).map_err(|e| CheckpointError::Io {
            file: index.clone(),
            problem: e.to_string(),
            hint: "check its permissions",
        })?;
        let map = weight_map(&index, &text)?;
        let mut names: Vec<&String> = map.values().collect();
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let path = dir.join(name);
            if !path.exists() {
                return Err(CheckpointError::Io {
                    file: path,
                    problem: format!("no such file, but {} names it", index.display()),
                    hint: "download the missing shard",
                });
            }
            files.push(Source::open(&path)?);
        }
        Self::of_files(dir, files, Some((&index, &map)))
    }

    /// A checkpoint of one safetensors file that is in memory, as the embedded model is.
    pub fn in_memory(name: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, CheckpointError> {
        Self::of_files(name, vec![Source::in_memory(name, bytes)], None)
    }

    fn of_files(
        dir: &Path,
        files: Vec<Source>,
        index: Option<(&Path, &HashMap<String, String>)>,
    ) -> Result<Self, CheckpointError> {
        let mut tensors = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for (name, tensor) in header::read(file, number)? {
                let listed = index.and_then(|(_, map)| map.get(&name));
                // A tensor in a shard that the index gives to another shard is left alone: the
                // index decides.
                if index.is_some() && !listed.is_some_and(|f| file.path().ends_with(f)) {
                    continue;
                }
                tensors.insert(name, tensor);
            }
        }
        if let Some((path, map)) = index
            && let Some((name, shard)) = map.iter().find(|(name, _)| !tensors.contains_key(*name))
        {
            return Err(CheckpointError::Malformed {
                file: path.to_path_buf(),
                problem: format!("gives tensor `{name}` to {shard}, whose header does not list it"),
            });
        }
        let files = files.into_iter().map(Arc::new).collect();
        Ok(Self { dir: dir.to_path_buf(), files, tensors })
    }

    /// The folder, or the name of the embedded model.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files, in order of their names.
    pub fn files(&self) -> &[Arc<Source>] {
        &self.files
    }

    /// The tensor of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor of that name, which must be there and have `shape`.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor, CheckpointError> {
        let tensor = self.find(name).ok_or_else(|| self.missing(name))?;
        if tensor.shape != shape {
            return Err(CheckpointError::Shape {
                file: self.file_of(tensor).to_path_buf(),
                tensor: name.to_string(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        Ok(tensor)
    }

    /// The error for a tensor that is not there.
    pub fn missing(&self, name: &str) -> CheckpointError {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let mut near: Vec<&str> =
            self.tensors.keys().filter(|k| k.starts_with(stem)).map(String::as_str).collect();
        near.sort_unstable();
        near.truncate(3);
        let near = match near.is_empty() {
            true => format!(" among {} tensors", self.tensors.len()),
            false => format!(" (there is `{}`)", near.join("`, `")),
        };
        let file = match self.files.as_slice() {
            [only] => only.path().to_path_buf(),
            _ => self.dir.join(INDEX),
        };
        CheckpointError::Missing { file, tensor: name.to_string(), near }
    }

    /// The error for a tensor of an unusable type.
    pub fn wrong_dtype(&self, name: &str, tensor: &Tensor, expected: &'static str) -> CheckpointError {
        CheckpointError::Dtype {
            file: self.file_of(tensor).to_path_buf(),
            tensor: name.to_string(),
            expected,
            found: tensor.dtype.to_string(),
        }
    }

    /// The file in which `tensor` lies.
    pub fn file_of(&self, tensor: &Tensor) -> &Path {
        self.files[tensor.file].path()
    }

    /// Reads `range` (bytes, relative to the tensor's beginning) into `buffer`, which has its length.
    pub fn read(&self, tensor: &Tensor, range: Range<u64>, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        assert!(range.end <= tensor.bytes.end - tensor.bytes.start, "inside the tensor");
        assert_eq!(range.end - range.start, buffer.len() as u64, "buffer has the range's length");
        self.files[tensor.file].read_at(tensor.bytes.start + range.start, buffer)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

fn weight_map(file: &Path, text: &[u8]) -> Result<HashMap<String, String>, CheckpointError> {
    let malformed = |problem: String| CheckpointError::Malformed { file: file.to_path_buf(), problem };
    let value: Value = serde_json::from_slice(text).map_err(|e| malformed(format!("not JSON ({e})")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("has no object `weight_map`".into()))?;
    map.iter()
        .map(|(tensor, shard)| match shard.as_str() {
            // A shard is a name in the same folder, never a way out of it.
            Some(shard) if !shard.is_empty() && !shard.contains(['/', '\\']) && shard != ".." => {
                Ok((tensor.clone(), shard.to_string()))
            }
            _ => Err(malformed(format!(
                "`weight_map` gives tensor `{tensor}` to {shard}, expected a file name"
            ))),
        })
        .collect()
}
