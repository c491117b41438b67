//! Experts' tensors from a coordinator, for a node without a copy of the checkpoint; kept on disk.
//!
//! [`Asks`] knows the links and who waits for what: sessions tell it what comes over the weights lanes. [`Fetcher`] is
//! the [`Source`] of the loading threads: it looks on disk, else asks, writes what comes and hands it on as a checkpoint
//! of one expert. It waits on the loading thread; frames wait in a queue that is bounded by the room that this node has
//! granted on the lane.
//!
//! An expert lies in `experts/<digest of config.json>/<layer>-<expert>/model.safetensors`. It is written under another
//! name, synced, and renamed only when it is whole and its digest is what was ordered; found again, it is hashed before
//! it is used. So what is half-written or damaged is never used, whenever the node was stopped.
//!
//! The disk is a cache. One that is full, or cannot be written for another reason, costs no expert: it is received into memory,
//! packed from there, and received again at the node's next start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::checkpoint::Checkpoint;
use model::load::Opened;
use model::spec::Spec;
use model::weights::{ArrivingExpert, Digest, ExpertFile, ExpertId};
use transport::Frame;
use transport::link::TellRefused;
use transport::peer::Peer;
use transport::wire::cluster::{Ask, Cluster, ToCoordinator};

use crate::batcher::LinkId;
use crate::source::{Fetched, Source};

/// How long nothing may come of an expert that was asked for.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Until room for an ask is looked for again.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a long transfer says how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Links over which an expert is asked for, one after the other, when they end meanwhile.
const LINKS_MAX: usize = 4;

/// Who waits for tensors, and over which links they can be asked for.
#[derive(Debug, Default)]
pub struct Asks {
    next: AtomicU64,
    state: Mutex<State>,
    strays: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    links: BTreeMap<LinkId, Peer>,
    waiting: HashMap<u64, (LinkId, Sender<Arrival>)>,
}

/// What comes of an ask.
#[derive(Debug)]
enum Arrival {
    /// The next bytes. They hold the lane's credit until they are written.
    Frame(Frame),
    NotServed(String),
    LinkEnded,
}

/// An ask that is open; dropped, what still comes for it is dropped too.
struct Open<'a> {
    asks: &'a Asks,
    ask: u64,
    peer: Peer,
    arrivals: Receiver<Arrival>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.asks.state().waiting.remove(&self.ask);
    }
}

impl Asks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A coordinator can be asked.
    pub fn handle_link(&self, link: LinkId, peer: Peer) {
        self.state().links.insert(link, peer);
    }

    /// It cannot any more; who waits for it hears so.
    pub fn handle_link_ended(&self, link: LinkId) {
        let mut state = self.state();
        state.links.remove(&link);
        for (_, waiting) in state.waiting.values().filter(|(over, _)| *over == link) {
            // Whoever does not wait any more need not be told.
            let _ = waiting.send(Arrival::LinkEnded);
        }
    }

    /// A frame came over a link's weights lane. One that nobody waits for is dropped and counted.
    pub fn handle_frame(&self, link: LinkId, frame: Frame) {
        let ask = frame.header.dispatch;
        self.tell(link, ask, Arrival::Frame(frame));
    }

    /// The coordinator has nothing to send for an ask.
    pub fn handle_not_served(&self, link: LinkId, ask: u64, why: String) {
        self.tell(link, ask, Arrival::NotServed(why));
    }

    fn tell(&self, link: LinkId, ask: u64, arrival: Arrival) {
        let state = self.state();
        let waiting = state.waiting.get(&ask).filter(|(over, _)| *over == link);
        if waiting.is_none_or(|(_, waiting)| waiting.send(arrival).is_err()) {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Frames that nobody waited for.
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    /// Asks for an expert over the newest link; nothing if there is none.
    fn ask(&self, expert: ExpertId) -> Option<Result<Open<'_>, String>> {
        let (tell, arrivals) = channel();
        let ask = self.next.fetch_add(1, Ordering::Relaxed);
        let peer = {
            let mut state = self.state();
            let (link, peer) = state.links.last_key_value().map(|(link, peer)| (*link, peer.clone()))?;
            state.waiting.insert(ask, (link, tell));
            peer
        };
        let open = Open { asks: self, ask, peer, arrivals };
        let question = Ask { ask, layer: expert.layer, expert: expert.expert };
        let question = Cluster::ToCoordinator(ToCoordinator::Ask(question));
        let began = Instant::now();
        Some(loop {
            match open.peer.tell(question.clone()) {
                Ok(()) => break Ok(open),
                Err(TellRefused::Full { .. }) if began.elapsed() < SILENCE_MAX => std::thread::sleep(PAUSE),
                Err(why) => break Err(format!("it cannot be asked for: {why}")),
            }
        })
    }
}

/// What a fetcher has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchCount {
    /// Experts received whole.
    pub received: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Experts found on disk and used.
    pub kept: u64,
    /// Experts found on disk that were damaged, and received again.
    pub damaged: u64,
    /// Experts received that the disk did not take, and that were used all the same.
    pub unkept: u64,
}

/// Brings experts of one model from coordinators, through a folder.
#[derive(Debug)]
pub struct Fetcher {
    asks: Arc<Asks>,
    spec: Arc<Spec>,
    config: Digest,
    folder: PathBuf,
    silence_max: Duration,
    /// Experts that a thread is busy with: shards and replicas of one expert are received once.
    busy: Mutex<HashSet<ExpertId>>,
    news: Condvar,
    count: Mutex<FetchCount>,
    /// That the disk takes nothing has been said, and nothing been kept since.
    is_disk_said: AtomicBool,
}

/// Why an expert was not received.
enum Failed {
    /// Not by this link; perhaps by another.
    LinkEnded,
    /// The disk does not take it, in words; memory may.
    Disk(String),
    /// In words.
    Because(String),
}

impl Failed {
    fn words(self) -> String {
        match self {
            Failed::LinkEnded => "the link ended while it came".to_owned(),
            Failed::Disk(why) | Failed::Because(why) => why,
        }
    }
}

/// Where an expert's bytes go as they come.
enum Shelf<'a> {
    Disk { part: &'a Path, file: &'a mut File },
    Memory(&'a mut Vec<u8>),
}

impl Shelf<'_> {
    fn disk(part: &Path, why: std::io::Error) -> Failed {
        Failed::Disk(format!(
            "{}: {why}; make room there, or give the node another data folder",
            part.display()
        ))
    }

    /// A try before this one may have left something.
    fn clear(&mut self) -> Result<(), Failed> {
        match self {
            Shelf::Disk { part, file } => rewind(file).map_err(|why| Self::disk(part, why)),
            Shelf::Memory(bytes) => {
                bytes.clear();
                Ok(())
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        match self {
            Shelf::Disk { part, file } => file.write_all(bytes).map_err(|why| Self::disk(part, why)),
            Shelf::Memory(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Failed::Because(why)
    }
}

impl Fetcher {
    /// Experts of the model of this `config.json`, kept in the node's data folder `data`.
    pub fn new(asks: Arc<Asks>, spec: Arc<Spec>, config: Digest, data: &Path) -> Self {
        let folder = data.join("experts").join(config.to_string());
        Self {
            asks,
            spec,
            config,
            folder,
            silence_max: SILENCE_MAX,
            busy: Mutex::default(),
            news: Condvar::new(),
            count: Mutex::default(),
            is_disk_said: AtomicBool::new(false),
        }
    }

    /// The same that waits so long for the next frame.
    pub fn with_silence_max(self, silence_max: Duration) -> Self {
        Self { silence_max, ..self }
    }

    /// What it has done so far.
    pub fn count(&self) -> FetchCount {
        *self.counting()
    }

    fn counting(&self) -> MutexGuard<'_, FetchCount> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where an expert is kept.
    pub fn folder_of(&self, expert: ExpertId) -> PathBuf {
        self.folder.join(format!("{}-{}", expert.layer, expert.expert))
    }

    /// What is on disk, if it is what was ordered. Without an order's digest nothing there can be trusted.
    fn kept(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Option<Fetched> {
        let folder = self.folder_of(expert);
        let file = folder.join(FILE);
        if !file.exists() {
            return None;
        }
        let found = self.open(&folder).and_then(|opened| {
            let found = ExpertFile::open(&opened.checkpoint, &self.spec, expert).map_err(in_words)?;
            Ok((opened, found.digest().map_err(in_words)?))
        });
        let why = match found {
            Ok((opened, found)) if digest == Some(*found.0.as_bytes()) => {
                self.counting().kept += 1;
                return Some(Fetched { opened, known: Some(found) });
            }
            Ok((_, found)) => format!("its digest is {found}"),
            Err(why) => why,
        };
        if digest.is_some() {
            tracing::warn!(%expert, file = %file.display(), %why, "damaged on disk, it is received again");
            self.counting().damaged += 1;
        }
        None
    }

    fn open(&self, folder: &Path) -> Result<Arc<Opened>, String> {
        Ok(self.opened(Checkpoint::open(folder).map_err(in_words)?))
    }

    fn opened(&self, checkpoint: Checkpoint) -> Arc<Opened> {
        let spec = Arc::clone(&self.spec);
        Arc::new(Opened { spec, checkpoint, config_digest: self.config, dense_out: true })
    }

    /// Receives an expert into its place, or into memory where the disk does not take it. What a disk has refused is received
    /// again from its beginning: a full one refuses the first bytes.
    fn receive(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Result<Fetched, String> {
        match self.receive_onto_disk(expert, digest) {
            Ok(fetched) => {
                self.is_disk_said.store(false, Ordering::Relaxed);
                Ok(fetched)
            }
            Err(Failed::Disk(why)) => {
                if !self.is_disk_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%why, "experts cannot be kept on disk: they are used from memory, and received again at the next start");
                }
                let fetched = self.receive_into_memory(expert, digest).map_err(Failed::words)?;
                self.counting().unkept += 1;
                Ok(fetched)
            }
            Err(other) => Err(other.words()),
        }
    }

    fn receive_onto_disk(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Result<Fetched, Failed> {
        let folder = self.folder_of(expert);
        let part = folder.join(PART);
        fs::create_dir_all(&folder).map_err(|why| Shelf::disk(&folder, why))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part);
        let mut file = file.map_err(|why| Shelf::disk(&part, why))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failed::Because(format!(
                    "{}: another process receives it; give every node a data folder of its own",
                    part.display()
                )));
            }
            Err(TryLockError::Error(why)) => return Err(Shelf::disk(&part, why)),
        }
        let received = self.write(expert, digest, &mut Shelf::Disk { part: &part, file: &mut file });
        let synced = received.and_then(|found| match file.sync_all() {
            Ok(()) => Ok(found),
            Err(why) => Err(Shelf::disk(&part, why)),
        });
        let found = synced.inspect_err(|_| {
            // What is left of it is overwritten by the next try.
            let _ = fs::remove_file(&part);
        })?;
        fs::rename(&part, folder.join(FILE)).map_err(|why| Shelf::disk(&part, why))?;
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(|why| Shelf::disk(&folder, why))?;

        let opened = self.open(&folder)?;
        self.check_order(&opened, expert).inspect_err(|_| {
            // Found again, it would be refused by its digest.
            let _ = fs::remove_file(folder.join(FILE));
        })?;
        Ok(Fetched { opened, known: Some(found) })
    }

    fn receive_into_memory(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Result<Fetched, Failed> {
        let mut bytes = Vec::new();
        let found = self.write(expert, digest, &mut Shelf::Memory(&mut bytes))?;
        let name = self.folder_of(expert).join(FILE);
        let opened = self.opened(Checkpoint::in_memory(&name, bytes).map_err(in_words)?);
        self.check_order(&opened, expert)?;
        Ok(Fetched { opened, known: Some(found) })
    }

    fn check_order(&self, opened: &Opened, expert: ExpertId) -> Result<(), String> {
        let placed = ExpertFile::open(&opened.checkpoint, &self.spec, expert).map_err(in_words)?;
        match placed.is_in_place().map_err(in_words)? {
            true => Ok(()),
            false => Err("its tensors came in another order than they are hashed in".to_owned()),
        }
    }

    /// Asks for an expert and puts what comes on the shelf, until it is whole and right.
    fn write(
        &self,
        expert: ExpertId,
        digest: Option<[u8; 32]>,
        shelf: &mut Shelf<'_>,
    ) -> Result<Digest, Failed> {
        for _ in 0..LINKS_MAX {
            let Some(open) = self.asks.ask(expert) else {
                return Err("no coordinator is linked that could be asked for it".to_owned().into());
            };
            match self.stream(&open?, expert, shelf) {
                Ok(found) => {
                    if let Some(wanted) = digest.filter(|wanted| wanted != found.0.as_bytes()) {
                        let wanted = Digest::from(wanted);
                        return Err(Failed::Because(format!(
                            "what came has digest {found}, the order says {wanted}; run `phalanx inspect DIR --digests` \
                             on the coordinator's copy of the checkpoint"
                        )));
                    }
                    return Ok(found);
                }
                Err(Failed::LinkEnded) => {
                    tracing::info!(%expert, "the link ended while it came, asking again")
                }
                Err(other) => return Err(other),
            }
        }
        Err(Failed::Because(format!("{LINKS_MAX} links ended while it came")))
    }

    fn stream(&self, open: &Open<'_>, expert: ExpertId, shelf: &mut Shelf<'_>) -> Result<Digest, Failed> {
        shelf.clear()?;
        let mut arriving = ArrivingExpert::new(ExpertFile::bytes_max(&self.spec, expert.layer as usize));
        let (began, mut said) = (Instant::now(), Instant::now());
        while !arriving.is_whole() {
            let frame = match open.arrivals.recv_timeout(self.silence_max) {
                Ok(Arrival::Frame(frame)) => frame,
                Ok(Arrival::NotServed(why)) => {
                    return Err(format!("{} does not serve it: {why}", name(&open.peer)).into());
                }
                Ok(Arrival::LinkEnded) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failed::LinkEnded);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failed::Because(format!(
                        "{} sent nothing for {:?}, after {} bytes{}",
                        name(&open.peer),
                        self.silence_max,
                        arriving.received(),
                        arriving.length().map_or(String::new(), |length| format!(" of {length}")),
                    )));
                }
            };
            arriving.handle_bytes(&frame.payload).map_err(in_words)?;
            shelf.add(&frame.payload)?;
            self.counting().bytes += frame.payload.len() as u64;
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                let (received, length) = (arriving.received(), arriving.length());
                tracing::info!(%expert, received, length, "receiving");
            }
        }
        let bytes = arriving.received();
        let found = arriving.finish().map_err(in_words)?;
        self.counting().received += 1;
        tracing::info!(%expert, bytes, took = ?began.elapsed(), "received");
        Ok(found)
    }
}

/// The file's name when it is whole, which is what a checkpoint of one file is called.
const FILE: &str = "model.safetensors";
/// And while it is written.
const PART: &str = "model.safetensors.part";

impl Source for Fetcher {
    fn fetch(&self, expert: ExpertId, digest: Option<[u8; 32]>) -> Result<Fetched, String> {
        if !self.spec.has_expert(expert.layer as usize, expert.expert as usize) {
            return Err(format!("the model has no expert {expert}"));
        }
        let _turn = Turn::wait(self, expert);
        match self.kept(expert, digest) {
            Some(fetched) => Ok(fetched),
            None => self.receive(expert, digest),
        }
    }
}

/// One thread at a time is busy with an expert.
struct Turn<'a> {
    fetcher: &'a Fetcher,
    expert: ExpertId,
}

impl<'a> Turn<'a> {
    fn wait(fetcher: &'a Fetcher, expert: ExpertId) -> Self {
        let mut busy = fetcher.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(expert) {
            busy = fetcher.news.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Self { fetcher, expert }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.fetcher.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.expert);
        self.fetcher.news.notify_all();
    }
}

/// Empties a file; one that is empty already may be something else than a file.
fn rewind(file: &mut File) -> std::io::Result<()> {
    use std::io::Seek;
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
        file.rewind()?;
    }
    Ok(())
}

fn name(peer: &Peer) -> &str {
    &peer.hello().peer.name
}

fn in_words(why: impl std::fmt::Display) -> String {
    why.to_string()
}
