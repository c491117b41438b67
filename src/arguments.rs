//! Arguments that several commands take, and how values on the command line are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use model::kernel::{Admission, Kernels, NumericClass, Path};
use model::load::Opened;

use crate::Failure;
use crate::session::open;

/// Which model, and what computes it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArguments {
    /// Folder of a Hugging Face checkpoint (config.json, safetensors, tokenizer.json).
    /// Without it: the embedded demo model.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) compute: ComputeArguments,

    /// Cut every expert into so many shards, as a cluster does whose devices are too small for a whole
    /// one. Part of the numeric identity: the answers of another number differ in their last bits.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) shards: usize,

    /// Most memory for keys and values, for example 512M or 4G. It is touched only as it is used.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = size)]
    pub(crate) kv_memory: u64,
}

impl ModelArguments {
    /// Opens the model, cut as asked for.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        Ok(open(self.model.as_deref())?.with_shards(self.shards)?)
    }
}

/// What computes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ComputeArguments {
    /// Numeric class: same class, same bits, on any host. `f32` is the accuracy oracle, `portable`
    /// runs everywhere, `avx512bf16` where the processor has it. Default: the fastest that runs here.
    #[arg(long, value_name = "CLASS")]
    pub(crate) numeric_class: Option<NumericClass>,

    /// Force the instructions that compute the class (plain, avx2, avx512f, avx512bf16), to compare
    /// or to measure them. Results of one class are the same on all of them.
    #[arg(long, value_name = "PATH", value_parser = path)]
    pub(crate) kernel_path: Option<Path>,

    /// Compute threads. Default: as many as the process may use cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Cores that the threads are pinned to and have for themselves, for example 0,1 or 4-7.
    /// Without it nothing is pinned and idle threads give their cores back quickly.
    #[arg(long, value_name = "LIST", value_parser = cores)]
    pub(crate) cores: Option<Cores>,
}

/// A list of cores.
#[derive(Debug, Clone)]
pub(crate) struct Cores(pub(crate) Vec<usize>);

impl ComputeArguments {
    /// The kernels asked for, admitted by their self-test; messages go to standard error.
    pub(crate) fn kernels(&self) -> Result<Kernels, Failure> {
        Ok(self.admission()?.kernels)
    }

    /// The same, with the digest of the self-test.
    pub(crate) fn admission(&self) -> Result<Admission, Failure> {
        let class = self.numeric_class.unwrap_or_else(|| match self.kernel_path {
            Some(Path::Avx512Bf16) => NumericClass::Avx512Bf16,
            Some(_) => NumericClass::Portable,
            None => Kernels::best().class(),
        });
        if let Some(path) = self.kernel_path {
            return Ok(Kernels::admitted_of(class, &[path])?);
        }
        match Kernels::admitted(class) {
            Ok(admission) => {
                admission.messages.iter().for_each(|m| eprintln!("warning: {m}"));
                Ok(admission)
            }
            // Not asked for by name: the class that runs everywhere is as good.
            Err(error) if self.numeric_class.is_none() => {
                eprintln!("warning: {error}; using portable");
                Ok(Kernels::admitted(NumericClass::Portable)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How many threads compute.
    pub(crate) fn threads(&self) -> Result<usize, Failure> {
        let threads = match (self.threads, &self.cores) {
            (Some(0), _) => return Err("--threads 0: at least one thread is needed".into()),
            (Some(n), _) if n > 1024 => {
                return Err(format!("--threads {n}: at most 1024 are supported").into());
            }
            (Some(n), _) => n,
            (None, Some(cores)) => cores.0.len(),
            (None, None) => std::thread::available_parallelism().map_or(1, usize::from),
        };
        match &self.cores {
            Some(cores) if cores.0.len() < threads => Err(format!(
                "--cores names {} cores for {threads} threads; name as many, or lower --threads",
                cores.0.len()
            )
            .into()),
            _ => Ok(threads),
        }
    }
}

/// A number of bytes: `123`, `512M`, `4G`, `1.5T`; powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write for example 512M or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let value: f64 = digits.parse().map_err(|_| wrong())?;
    let bytes = value * (1u64 << shift) as f64;
    if !(bytes >= 1.0 && bytes < 2f64.powi(62)) {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Token ids: `5,17,3`.
pub(crate) fn token_ids(text: &str) -> Result<Tokens, String> {
    text.split(',')
        .map(|id| {
            id.trim()
                .parse::<u32>()
                .map_err(|_| format!("`{}` is not a token id; write for example 5,17,3", id.trim()))
        })
        .collect::<Result<_, _>>()
        .map(Tokens)
}

/// A number of seconds, at most a day.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("`{text}` is not a number of seconds; write for example 30")),
    }
}

/// A list of token ids.
#[derive(Debug, Clone)]
pub(crate) struct Tokens(pub(crate) Vec<u32>);

fn path(text: &str) -> Result<Path, String> {
    [Path::Plain, Path::Avx2, Path::Avx512f, Path::Avx512Bf16]
        .into_iter()
        .find(|p| p.to_string() == text)
        .ok_or_else(|| format!("`{text}` is none of plain, avx2, avx512f, avx512bf16"))
}

fn cores(text: &str) -> Result<Cores, String> {
    let wrong = || format!("`{text}` is not a list of cores; write for example 0,1 or 4-7");
    let mut all = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) =
            (from.trim().parse().map_err(|_| wrong())?, to.trim().parse().map_err(|_| wrong())?);
        if from > to || to >= 4096 {
            return Err(wrong());
        }
        all.extend(from..=to);
    }
    let mut distinct = all.clone();
    distinct.sort_unstable();
    distinct.dedup();
    match distinct.len() == all.len() {
        true => Ok(Cores(all)),
        false => Err(format!("`{text}` names a core twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("123"), Ok(123));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("2gb"), Ok(2 << 30));
        for bad in ["", "M", "-1", "0", "1X", "nan", "inf", "1e30"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_lists_and_ranges() {
        assert_eq!(cores("0,2-4").map(|c| c.0), Ok(vec![0, 2, 3, 4]));
        for bad in ["", "a", "3-1", "1,1", "0-99999"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }
}
