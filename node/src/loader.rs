//! Threads that load weights, so that nobody else waits for a disk.
//!
//! Errands are done in the order in which they come, one expert each; the result goes to the agent as a message. The
//! device's memory is taken before a byte is read, and digests are computed while tensors are read.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use actix::{Message, Recipient};
use model::kernel::{Kernels, RowType};
use model::load::{Opened, load_shard};
use model::spec::Spec;
use model::weights::{Block, Digest, ExpertId, ExpertPlan, Manifest};

use crate::device::Device;
use crate::holdings::LoadFailed;
use crate::post::post_to;
use crate::source::{Fetched, Source};

/// Loading threads of a process: a disk gains nothing from more.
const THREADS_MAX: usize = 4;

/// One expert to load.
pub struct Errand {
    /// Names the errand.
    pub ticket: u64,
    /// Which expert.
    pub expert: ExpertId,
    /// Which shard of it.
    pub shard: usize,
    /// The model, cut into the cluster's shards.
    pub spec: Arc<Spec>,
    /// What its tensors' digest must be.
    pub digest: Option<[u8; 32]>,
    /// Where it will sit.
    pub device: Arc<dyn Device>,
    /// Where its tensors come from.
    pub source: Arc<dyn Source>,
    /// It is not wanted any more.
    pub is_cancelled: Arc<AtomicBool>,
    /// Who is told.
    pub agent: Recipient<Loaded>,
}

/// What came of an errand.
#[derive(Debug)]
pub struct Loaded {
    /// Which.
    pub ticket: u64,
    /// The weights, for which the device's memory has been taken; or why there are none, in words.
    pub result: Result<Arc<Block>, LoadFailed>,
}

impl Message for Loaded {
    type Result = ();
}

/// The loading threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    kernels: Kernels,
    errands: Mutex<VecDeque<Errand>>,
    news: Condvar,
    stop: AtomicBool,
}

impl Loader {
    /// Loads for `kernels`.
    pub fn start(kernels: Kernels) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            kernels,
            errands: Mutex::default(),
            news: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let threads = (0..count)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name("loading".to_owned()).spawn(move || shared.serve())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// Adds an errand.
    pub fn load(&self, errand: Errand) {
        self.shared.lock().push_back(errand);
        self.shared.news.notify_one();
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.lock().clear();
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // Panics are caught inside.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Errand>> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(errand) = self.next() {
            let result = if errand.is_cancelled.load(Ordering::Relaxed) {
                Err(because("it is not wanted any more"))
            } else {
                let loaded = catch_unwind(AssertUnwindSafe(|| load(self.kernels, &errand)));
                loaded.unwrap_or_else(|_| Err(because("loading it panicked; see the node's log")))
            };
            post_to(&errand.agent, Loaded { ticket: errand.ticket, result });
        }
    }

    fn next(&self) -> Option<Errand> {
        let mut errands = self.lock();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(errand) = errands.pop_front() {
                return Some(errand);
            }
            errands = self.news.wait(errands).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn load(kernels: Kernels, errand: &Errand) -> Result<Arc<Block>, LoadFailed> {
    let Errand { expert, shard, digest, .. } = *errand;
    let Fetched { opened, known } = errand.source.fetch(expert, digest).map_err(because)?;
    if !opened.spec.has_expert(expert.layer as usize, expert.expert as usize) {
        return Err(because(format!("the model has no expert {expert}")));
    }
    let plan = ExpertPlan::shard(&opened.checkpoint, &errand.spec, expert, shard).map_err(because)?;
    let bytes = plan.bytes(kernels.class().row_type() == RowType::F32) as u64;
    let memory = errand.device.memory();
    memory.take(bytes).map_err(|left| {
        let why = format!("it takes {bytes} bytes, {left} of the device's {} are left", memory.bytes_max());
        LoadFailed::NoRoom(why)
    })?;
    let loaded = read(kernels, errand, &opened, known);
    let found = loaded.as_ref().map_or(0, |block| block.bytes() as u64);
    // What the supervisor gives back is what the block has.
    memory.give_back(bytes.saturating_sub(found));
    loaded.map_err(because)
}

fn read(
    kernels: Kernels,
    errand: &Errand,
    opened: &Opened,
    known: Option<Digest>,
) -> Result<Arc<Block>, String> {
    let (expert, wanted) = (errand.expert, errand.digest);
    let dir = opened.checkpoint.dir().display();
    let differs = |found: Digest| {
        let wanted = wanted.unwrap_or_default().map(|byte| format!("{byte:02x}")).concat();
        format!(
            "its tensors in {dir} have digest {found}, the coordinator's have {wanted}; copy the checkpoint again, \
             or start the node without its own copy"
        )
    };
    let is_wrong = |found: &Digest| wanted.is_some_and(|wanted| wanted != *found.0.as_bytes());
    if let Some(found) = known.filter(is_wrong) {
        return Err(differs(found));
    }
    let hashes = wanted.is_some() && known.is_none();
    let Errand { spec, shard, .. } = errand;
    let loaded = load_shard(&opened.checkpoint, spec, kernels, expert, *shard, hashes).map_err(in_words)?;
    for warning in &loaded.warnings {
        tracing::warn!(%expert, "{warning}");
    }
    if let Some(found) = loaded.digest {
        let experts = [(expert, found)].into();
        errand.source.learn(&Manifest { experts, ..Manifest::default() });
        if is_wrong(&found) {
            return Err(differs(found));
        }
    }
    Ok(Arc::new(loaded.block))
}

fn because(why: impl std::fmt::Display) -> LoadFailed {
    LoadFailed::Because(why.to_string())
}

fn in_words(why: impl std::fmt::Display) -> String {
    why.to_string()
}
