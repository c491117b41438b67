//! One file of weights: on disk, in memory, or made up as it is read.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::synthetic::Generator;

/// A file of weights.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    length: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Disk(File),
    Memory(Cow<'static, [u8]>),
    Synthetic(Generator),
}

impl Source {
    /// Opens a file on disk.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |problem: String| CheckpointError::Io {
            file: path.to_path_buf(),
            problem,
            hint: "check that it is a readable file",
        };
        let file = File::open(path).map_err(|e| io(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| io(e.to_string()))?;
        if !metadata.is_file() {
            return Err(io("not a regular file".into()));
        }
        Ok(Self { path: path.to_path_buf(), length: metadata.len(), bytes: Bytes::Disk(file) })
    }

    /// A file that was compiled in, or came from elsewhere and is on no disk.
    pub fn in_memory(name: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { path: name.to_path_buf(), length: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// A file of random weights that does not exist.
    pub(super) fn synthetic(name: &str, length: u64, generator: Generator) -> Self {
        Self { path: PathBuf::from(name), length, bytes: Bytes::Synthetic(generator) }
    }

    /// Its path, or its name if it is on no disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Size and time of last change, for caches; `None` if it is not on disk.
    pub fn stamp(&self) -> Option<(u64, i128)> {
        let Bytes::Disk(file) = &self.bytes else { return None };
        let modified = file.metadata().ok()?.modified().ok()?;
        let nanos = match modified.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        Some((self.length, nanos))
    }

    /// Fills `buffer` from `offset` on.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        match &self.bytes {
            Bytes::Disk(file) => file.read_exact_at(buffer, offset).map_err(|e| {
                let end = offset + buffer.len() as u64;
                let now = file.metadata().map_or(self.length, |m| m.len());
                match now < end {
                    true => CheckpointError::Malformed {
                        file: self.path.clone(),
                        problem: format!("ends after {now} bytes, {end} are needed; it was truncated"),
                    },
                    false => CheckpointError::Io {
                        file: self.path.clone(),
                        problem: e.to_string(),
                        hint: "check the disk",
                    },
                }
            }),
            Bytes::Synthetic(generator) => {
                generator.fill(offset, buffer);
                Ok(())
            }
            Bytes::Memory(bytes) => {
                let start = offset as usize;
                match bytes.get(start..start + buffer.len()) {
                    Some(part) => buffer.copy_from_slice(part),
                    None => {
                        return Err(CheckpointError::Malformed {
                            file: self.path.clone(),
                            problem: format!(
                                "ends after {} bytes, {} are needed",
                                bytes.len(),
                                start + buffer.len()
                            ),
                        });
                    }
                }
                Ok(())
            }
        }
    }
}
