//! Arguments that several commands take, and how values on the command line are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use model::kernel::{Admission, Kernels, NumericClass, Path};
use model::load::Opened;
use settings::{Bytes, Cores, compute};

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
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel_path: Option<Path>,

    /// Compute threads. Default: as many as the process may use cores.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,

    /// Cores that the threads are pinned to and have for themselves, for example 0,1 or 4-7.
    /// Without it nothing is pinned and idle threads give their cores back quickly.
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<Cores>,
}

impl ComputeArguments {
    /// The kernels asked for, admitted by their self-test; messages go to standard error.
    pub(crate) fn kernels(&self) -> Result<Kernels, Failure> {
        Ok(self.admission()?.kernels)
    }

    /// The same, with the digest of the self-test.
    pub(crate) fn admission(&self) -> Result<Admission, Failure> {
        let admission = compute::admission(self.numeric_class, self.kernel_path)?;
        admission.messages.iter().for_each(|message| eprintln!("warning: {message}"));
        Ok(admission)
    }

    /// How many threads compute.
    pub(crate) fn threads(&self) -> Result<usize, Failure> {
        Ok(compute::threads(self.threads, self.cores.as_ref())?)
    }
}

/// A number of bytes: `123`, `512M`, `4G`, `1.5T`; powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    text.parse().map(|Bytes(bytes)| bytes)
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
