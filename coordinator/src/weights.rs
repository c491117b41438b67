//! Gives nodes the tensors of their experts, over the weights lane, from the coordinator's copy of the checkpoint.
//!
//! A node asks on the control lane; the answer is the expert as one safetensors file ([`ExpertFile`]) in frames that
//! carry the ask's number. What sets the pace is the node's own room: a frame waits for credit. Several asks of a link
//! are answered side by side, so that a small expert does not wait for a large one, and those of different links do not
//! wait for one another. A shell: nothing here is decided but who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::load::Opened;
use model::weights::{ExpertFile, ExpertId};
use tokio::sync::Semaphore;
use transport::Frame;
use transport::buffer::{Buffer, Pool};
use transport::link::TellRefused;
use transport::peer::Peer;
use transport::wire::cluster::{Ask, Cluster, ToNode};
use transport::wire::control::words;
use transport::wire::{Header, Kind, Lane};

/// Bytes of a frame: enough to hide its cost, few enough that asks take turns.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Asks of one link that are answered at once; each holds two frames at most. A node has half as many loading threads.
const AT_ONCE_MAX: usize = 8;
/// Asks of one link that may be open, answered or not. Beyond that an ask is refused, and beyond twice that ignored.
const ASKS_MAX: usize = 64;
/// Reads of the checkpoint at once, over all links: a disk gains nothing from more.
const READS_MAX: usize = 4;
/// Until buffers, or room for words, are looked for again.
const PAUSE: Duration = Duration::from_millis(10);

/// The weights of a checkpoint, to be given to nodes. Clones are the same.
#[derive(Debug, Clone)]
pub struct Weights {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    opened: Arc<Opened>,
    buffers: Pool,
    reads: Arc<Semaphore>,
}

impl Weights {
    /// Gives what `opened` has, through buffers of `buffers`.
    pub fn new(opened: Arc<Opened>, buffers: Pool) -> Self {
        Self { shared: Arc::new(Shared { opened, buffers, reads: Arc::new(Semaphore::new(READS_MAX)) }) }
    }

    /// What one node is given over one link.
    pub fn to(&self, peer: Peer) -> LinkWeights {
        let shared = Arc::clone(&self.shared);
        LinkWeights {
            link: Arc::new(Link {
                shared,
                peer,
                turns: Semaphore::new(AT_ONCE_MAX),
                open: AtomicUsize::new(0),
            }),
        }
    }
}

/// What one node is given over one link. It may be dropped at any time; answers under way go on until the link ends.
#[derive(Debug)]
pub struct LinkWeights {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    shared: Arc<Shared>,
    peer: Peer,
    turns: Semaphore,
    open: AtomicUsize,
}

/// Why an ask is not answered to its end.
enum Unserved {
    /// The node is told so.
    Because(String),
    /// There is nobody to be told.
    LinkEnded,
}

impl LinkWeights {
    /// Answers an ask: with frames on the weights lane, or with [`ToNode::NotServed`]. Never waits; must be called on a
    /// runtime.
    pub fn handle_ask(&self, ask: Ask) {
        let link = Arc::clone(&self.link);
        let open = link.open.fetch_add(1, Ordering::Relaxed);
        if open >= 2 * ASKS_MAX {
            // Refusals wait for room too; who does not read them has had enough of them.
            link.open.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        tokio::spawn(async move {
            let answered = match open >= ASKS_MAX {
                true => Err(Unserved::Because(format!("{ASKS_MAX} asks are open already; ask again later"))),
                false => link.answer(ask).await,
            };
            if let Err(Unserved::Because(why)) = answered {
                tracing::warn!(peer = ?link.peer, layer = ask.layer, expert = ask.expert, %why, "weights not served");
                link.refuse(ask.ask, &why).await;
            }
            link.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Link {
    async fn answer(&self, ask: Ask) -> Result<(), Unserved> {
        let Ok(_turn) = self.turns.acquire().await else { return Err(Unserved::LinkEnded) };
        if self.peer.ended().is_some() {
            return Err(Unserved::LinkEnded);
        }
        let id = ExpertId { layer: ask.layer, expert: ask.expert };
        let opened = &self.shared.opened;
        if !opened.spec.has_expert(id.layer as usize, id.expert as usize) {
            return Err(Unserved::Because(format!("the model has no expert {id}")));
        }
        let file = ExpertFile::open(&opened.checkpoint, &opened.spec, id);
        let file = Arc::new(file.map_err(|why| Unserved::Because(why.to_string()))?);
        let taken = self.peer.hello().limits.payload_bytes_max[Lane::Weights];
        let piece = usize::try_from(taken).unwrap_or(usize::MAX).clamp(1, FRAME_BYTES_MAX);
        let mut at = 0;
        let mut next = self.read(&file, at, piece);
        while at < file.length() {
            let buffer = next.await.map_err(|why| Unserved::Because(format!("reading it failed: {why}")))?;
            let buffer = buffer.map_err(Unserved::Because)?;
            at += buffer.len() as u64;
            // Read while this one is sent.
            next = self.read(&file, at, piece);
            let header =
                Header::of_bytes(Kind::Weights, ask.ask, u32::try_from(buffer.len()).expect("a MiB"));
            // Too long it is not, and it waits for room; what remains is that the link has ended, or drains.
            self.peer.send(Frame::new(header, buffer)).await.map_err(|_| Unserved::LinkEnded)?;
        }
        tracing::debug!(peer = ?self.peer, expert = %id, bytes = at, "weights served");
        Ok(())
    }

    /// Begins to read the file's next piece, at its end an empty one.
    fn read(
        &self,
        file: &Arc<ExpertFile>,
        at: u64,
        piece: usize,
    ) -> tokio::task::JoinHandle<Result<Buffer, String>> {
        let (shared, file) = (Arc::clone(&self.shared), Arc::clone(file));
        tokio::spawn(async move {
            let bytes = (file.length() - at).min(piece as u64) as usize;
            if bytes == 0 {
                return Ok(Buffer::default());
            }
            let mut buffer = loop {
                match shared.buffers.take(bytes) {
                    Some(buffer) => break buffer,
                    None => tokio::time::sleep(PAUSE).await,
                }
            };
            let Ok(permit) = Arc::clone(&shared.reads).acquire_owned().await else {
                return Err("the coordinator is stopping".to_owned());
            };
            let read = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                file.read_at(at, &mut buffer).map(|()| buffer).map_err(|why| why.to_string())
            });
            read.await.map_err(|why| format!("reading it failed: {why}"))?
        })
    }

    async fn refuse(&self, ask: u64, why: &str) {
        let message = Cluster::ToNode(ToNode::NotServed { ask, why: words(why) });
        while let Err(TellRefused::Full { .. }) = self.peer.tell(message.clone()) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
