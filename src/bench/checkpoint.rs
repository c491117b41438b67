//! `phalanx bench make-checkpoint`: a synthetic checkpoint as a normal Hugging Face folder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, json};

use super::shape::{Shape, parse};
use crate::Failure;
use crate::arguments::size;
use crate::output::{bytes, show};

/// Write a Qwen3-MoE checkpoint with random weights of any shape.
///
/// It has no tokenizer: use it with `generate --tokens`, `forward` and `bench model --model`.
#[derive(Debug, Args)]
pub(crate) struct MakeCheckpoint {
    /// Folder to write; it must not exist or be empty.
    dir: PathBuf,

    /// For example layers=4,experts=8,hidden=512,width=256; what is not named is the bench model's.
    #[arg(long, value_name = "SHAPE", value_parser = parse, default_value = "")]
    shape: Shape,

    /// Begin a new file after so many bytes.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "2G")]
    shard: u64,
}

impl MakeCheckpoint {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let (files, size) = write(&self.dir, &self.shape, self.shard)?;
        show(&format!("{}: {} in {files} files\n", self.dir.display(), bytes(size)))
    }
}

/// Writes the checkpoint of a shape; returns how many files and bytes of tensors there are.
pub(super) fn write(dir: &Path, shape: &Shape, shard: u64) -> Result<(usize, u64), Failure> {
    let opened = shape.open()?;
    let failed = |path: &Path, e: std::io::Error| -> Failure {
        format!("{}: cannot be written ({e}); is the disk full?", path.display()).into()
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    if std::fs::read_dir(dir).map_err(|e| failed(dir, e))?.next().is_some() {
        return Err(format!("{}: is not empty; name a new folder", dir.display()).into());
    }
    let tensors = shape.tensors();
    let sizes: Vec<u64> =
        tensors.iter().map(|t| 2 * t.shape.iter().map(|d| *d as u64).product::<u64>()).collect();
    let shards = shards(&sizes, shard);
    let mut weight_map = Map::new();
    let mut at = 0u64;
    for (index, range) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let path = dir.join(&name);
        let mut header = Map::new();
        let mut end = 0;
        for i in range.clone() {
            let offsets = [end, end + sizes[i]];
            end = offsets[1];
            header.insert(
                tensors[i].name.clone(),
                json!({ "dtype": "BF16", "shape": tensors[i].shape, "data_offsets": offsets }),
            );
            weight_map.insert(tensors[i].name.clone(), json!(name));
        }
        let source = &opened.checkpoint.files()[0];
        write_file(&path, &header, end, |offset, buffer| {
            source.read_at(at + offset, buffer).expect("a synthetic file can always be read");
        })
        .map_err(|e| failed(&path, e))?;
        at += end;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": at }, "weight_map": weight_map });
        let path = dir.join("model.safetensors.index.json");
        std::fs::write(&path, format!("{index:#}\n")).map_err(|e| failed(&path, e))?;
    }
    let path = dir.join("config.json");
    std::fs::write(&path, format!("{:#}\n", shape.config())).map_err(|e| failed(&path, e))?;
    Ok((shards.len(), at))
}

/// Which tensors go into which file.
fn shards(sizes: &[u64], most: u64) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (i, size) in sizes.iter().enumerate() {
        if i > start && sum + size > most {
            shards.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += size;
    }
    shards.push(start..sizes.len());
    shards
}

fn write_file(
    path: &Path,
    header: &Map<String, serde_json::Value>,
    length: u64,
    fill: impl Fn(u64, &mut [u8]),
) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(header)?;
    // Weights begin at a multiple of eight bytes, as the format's own writer does it.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let count = (length - at).min(buffer.len() as u64) as usize;
        fill(at, &mut buffer[..count]);
        file.write_all(&buffer[..count])?;
        at += count as u64;
    }
    file.into_inner()?.sync_data()
}
