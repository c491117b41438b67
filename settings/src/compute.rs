//! Which kernels compute, and on how many threads.

use model::kernel::{Admission, KernelError, Kernels, NumericClass, Path};

use crate::values::Cores;

/// Most threads that compute.
const THREADS_MAX: usize = 1024;

/// Why there are no such threads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThreadsError {
    /// None, or too many.
    #[error("--threads {0}: 1 to {THREADS_MAX} are supported")]
    Count(usize),
    /// More threads than cores for them.
    #[error("--cores names {cores} cores for {threads} threads; name as many, or lower --threads")]
    Cores {
        /// That were named.
        cores: usize,
        /// That were asked for.
        threads: usize,
    },
}

/// The kernels asked for, admitted by their self-test; its messages are for whoever asked. Without a class the fastest
/// that runs here, and `portable` where that fails its test.
pub fn admission(class: Option<NumericClass>, path: Option<Path>) -> Result<Admission, KernelError> {
    let wanted = class.unwrap_or_else(|| match path {
        Some(Path::Avx512Bf16) => NumericClass::Avx512Bf16,
        Some(_) => NumericClass::Portable,
        None => Kernels::best().class(),
    });
    if let Some(path) = path {
        return Kernels::admitted_of(wanted, &[path]);
    }
    match Kernels::admitted(wanted) {
        // Not asked for by name: the class that runs everywhere is as good.
        Err(why) if class.is_none() => {
            let mut admission = Kernels::admitted(NumericClass::Portable)?;
            admission.messages.insert(0, format!("{why}; using portable"));
            Ok(admission)
        }
        other => other,
    }
}

/// How many threads compute: as many as were asked for, or as there are cores.
pub fn threads(threads: Option<usize>, cores: Option<&Cores>) -> Result<usize, ThreadsError> {
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or_else(|| cores.map_or_else(available, |cores| cores.0.len()));
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(ThreadsError::Count(threads));
    }
    match cores {
        Some(cores) if cores.0.len() < threads => Err(ThreadsError::Cores { cores: cores.0.len(), threads }),
        _ => Ok(threads),
    }
}
