//! How two processes come to share memory: what they say to each other before the first frame.
//!
//! Not pure: it speaks over the socket. The dialling end makes everything and sends it in one message: this
//! greeting, and with it five descriptors in the order of [`FILES`]. The accepting end looks at the
//! kernel's word on who that is, then at the greeting, then at every descriptor, and only then maps them. It
//! answers with its own doorbell, or with the reason why not.
//!
//! | bytes | greeting | answer |
//! |---|---|---|
//! | 0..8 | `PHLX-SHM` | `PHLX-SHM` |
//! | 8..12 | version, 1 | version, 1 |
//! | 12..16 | 0 | 0 welcome (with one descriptor), 1 refused |
//! | 16..24 | bytes of each ring of the data lane | bytes of the reason that follows, at most 512 |
//! | 24..32 | bytes of each ring of the weights lane | 0 |
//! | 32..64 | 0 | 0 |

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::doorbell::{Bell, Doorbell, PAGE_BYTES};
use super::memory::{Shared, Unfit};
use super::ring::{Ring, memory_bytes};

const MAGIC: [u8; 8] = *b"PHLX-SHM";
const VERSION: u32 = 1;
const GREETING_BYTES: usize = 64;
const REASON_BYTES_MAX: usize = 512;
/// What the descriptors of a greeting are.
const FILES: [&str; 5] =
    ["the doorbell", "the data ring", "the data ring back", "the weights ring", "the weights ring back"];
/// Smallest ring: a frame of one small row.
const RING_BYTES_MIN: u64 = 4096;
/// Largest ring that can be asked for at all.
const RING_BYTES_MAX: u64 = 1 << 30;

/// How an endpoint of shared memory is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShmSettings {
    /// Bytes of each of the two rings of a data lane that this end dials, a power of two. Raising it costs
    /// memory of every connection, and lets a sender run further ahead of its reader. 4 MiB is a few hundred
    /// rows, and stays in the last cache together with what is copied.
    pub data_ring_bytes: u64,
    /// The same for the weights lane.
    pub weights_ring_bytes: u64,
    /// Largest ring taken from a peer that dials: this bounds the memory of a connection to four of them.
    pub ring_bytes_max: u64,
    /// Most time that a peer may take to set a connection up.
    pub setup_max: Duration,
    /// Connections that may be set up at once; others wait in the host's queue.
    pub setups_max: usize,
    /// Users that may be peers besides the one that runs this process. Naming one opens the socket to all
    /// users that may enter its folder, and those that are not named are then refused.
    pub users_allowed: Vec<u32>,
}

impl Default for ShmSettings {
    fn default() -> Self {
        Self {
            data_ring_bytes: 4 << 20,
            weights_ring_bytes: 4 << 20,
            ring_bytes_max: 64 << 20,
            setup_max: Duration::from_secs(5),
            setups_max: 64,
            users_allowed: Vec::new(),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShmSettingsError {
    /// Not every size can be a ring's.
    #[error("{what} of {bytes} bytes; take a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX}")]
    Ring {
        /// Which size.
        what: &'static str,
        /// What was asked for.
        bytes: u64,
    },
    /// Nobody could ever connect.
    #[error("{0} is zero; take at least 1")]
    Zero(&'static str),
}

fn is_ring(bytes: u64) -> bool {
    bytes.is_power_of_two() && (RING_BYTES_MIN..=RING_BYTES_MAX).contains(&bytes)
}

impl ShmSettings {
    /// Checks them.
    pub fn check(&self) -> Result<(), ShmSettingsError> {
        for (what, bytes) in [
            ("a data ring", self.data_ring_bytes),
            ("a weights ring", self.weights_ring_bytes),
            ("a largest ring", self.ring_bytes_max),
        ] {
            if !is_ring(bytes) {
                return Err(ShmSettingsError::Ring { what, bytes });
            }
        }
        if self.setup_max.is_zero() {
            return Err(ShmSettingsError::Zero("the time to set a connection up"));
        }
        if self.setups_max == 0 {
            return Err(ShmSettingsError::Zero("the number of connections that are set up at once"));
        }
        Ok(())
    }

    /// Whether `user` may be a peer.
    pub(super) fn allows(&self, user: u32) -> bool {
        user == rustix::process::geteuid().as_raw() || self.users_allowed.contains(&user)
    }
}

/// Why there is no connection after all.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("user {user} may not connect, only user {own} and those named in the settings may")]
    User { user: u32, own: u32 },
    #[error("not a peer for shared memory: begins with {0:02x?}")]
    Magic([u8; 8]),
    #[error("version {0} of the setup, this program speaks {VERSION}; run the same release at both ends")]
    Version(u32),
    #[error("a setup with bytes that mean nothing")]
    Reserved,
    #[error("rings of {bytes} bytes; taken are powers of two from {RING_BYTES_MIN} to {max}")]
    Ring { bytes: u64, max: u64 },
    #[error("{found} descriptors came with the setup, needed are {needed}")]
    Files { found: usize, needed: usize },
    #[error("more than {0} descriptors came with the setup")]
    TooManyFiles(usize),
    #[error("{0}")]
    Unfit(#[from] Unfit),
    #[error("the stream ended within the setup")]
    Ended,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the setup failed: {0}")]
    Host(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for SetupError {
    fn from(why: rustix::io::Errno) -> Self {
        Self::Host(why.into())
    }
}

/// What both ends share.
pub(super) struct Memory {
    pub(super) peer: Arc<Bell>,
    /// From the dialling end, and to it.
    pub(super) data: [Arc<Ring>; 2],
    pub(super) weights: [Arc<Ring>; 2],
}

/// The dialling end's part.
pub(super) async fn propose(
    stream: &UnixStream,
    settings: &ShmSettings,
    doorbell: &Doorbell,
) -> Result<Memory, SetupError> {
    let sizes = [settings.data_ring_bytes, settings.weights_ring_bytes];
    let make = |size: u64| -> Result<(OwnedFd, Arc<Ring>), SetupError> {
        let (file, shared) = Shared::create("phalanx-ring", memory_bytes(size))?;
        Ok((file, Ring::new(shared, size)))
    };
    let made = [make(sizes[0])?, make(sizes[0])?, make(sizes[1])?, make(sizes[1])?];
    let mut greeting = [0; GREETING_BYTES];
    greeting[..8].copy_from_slice(&MAGIC);
    greeting[8..12].copy_from_slice(&VERSION.to_le_bytes());
    greeting[16..24].copy_from_slice(&sizes[0].to_le_bytes());
    greeting[24..32].copy_from_slice(&sizes[1].to_le_bytes());
    let [(a, data_out), (b, data_back), (c, weights_out), (d, weights_back)] = &made;
    send(stream, &greeting, &[doorbell.file(), a, b, c, d].map(OwnedFd::as_fd)).await?;

    let mut answer = [0; GREETING_BYTES];
    let mut files = Vec::new();
    receive(stream, &mut answer, &mut files, 1).await?;
    check_magic(&answer)?;
    match (u32_of(&answer, 12), u64_of(&answer, 16)) {
        (0, 0) => {}
        (1, bytes) if bytes <= REASON_BYTES_MAX as u64 => {
            let mut reason = vec![0; bytes as usize];
            receive(stream, &mut reason, &mut files, 1).await?;
            return Err(SetupError::Refused(readable(&reason)));
        }
        _ => return Err(SetupError::Reserved),
    }
    let [file] = files.as_slice() else {
        return Err(SetupError::Files { found: files.len(), needed: 1 });
    };
    Ok(Memory {
        peer: Bell::new(Shared::admit(file, FILES[0], PAGE_BYTES)?),
        data: [data_out, data_back].map(Arc::clone),
        weights: [weights_out, weights_back].map(Arc::clone),
    })
}

/// The accepting end's part. A peer that is refused is told why.
pub(super) async fn consider(
    stream: &UnixStream,
    user: u32,
    settings: &ShmSettings,
    doorbell: &Doorbell,
) -> Result<Memory, SetupError> {
    let considered = examine(stream, user, settings).await;
    let mut answer = [0; GREETING_BYTES];
    answer[..8].copy_from_slice(&MAGIC);
    answer[8..12].copy_from_slice(&VERSION.to_le_bytes());
    match &considered {
        Ok(_) => send(stream, &answer, &[doorbell.file().as_fd()]).await?,
        Err(why) => {
            let reason = why.to_string();
            let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
            answer[12..16].copy_from_slice(&1_u32.to_le_bytes());
            answer[16..24].copy_from_slice(&(reason.len() as u64).to_le_bytes());
            // Why it was refused is worth more to the caller than that it could not be told.
            let _ = send(stream, &[&answer[..], reason].concat(), &[]).await;
        }
    }
    considered
}

async fn examine(stream: &UnixStream, user: u32, settings: &ShmSettings) -> Result<Memory, SetupError> {
    if !settings.allows(user) {
        return Err(SetupError::User { user, own: rustix::process::geteuid().as_raw() });
    }
    let mut greeting = [0; GREETING_BYTES];
    let mut files = Vec::new();
    receive(stream, &mut greeting, &mut files, FILES.len()).await?;
    check_magic(&greeting)?;
    if u32_of(&greeting, 12) != 0 || greeting[32..].iter().any(|byte| *byte != 0) {
        return Err(SetupError::Reserved);
    }
    let sizes = [u64_of(&greeting, 16), u64_of(&greeting, 24)];
    let max = settings.ring_bytes_max;
    if let Some(bytes) = sizes.into_iter().find(|bytes| !is_ring(*bytes) || *bytes > max) {
        return Err(SetupError::Ring { bytes, max });
    }
    let [bell, data_out, data_back, weights_out, weights_back] = files.as_slice() else {
        return Err(SetupError::Files { found: files.len(), needed: FILES.len() });
    };
    let ring = |file: &OwnedFd, what, size| -> Result<Arc<Ring>, SetupError> {
        Ok(Ring::new(Shared::admit(file, what, memory_bytes(size))?, size))
    };
    Ok(Memory {
        peer: Bell::new(Shared::admit(bell, FILES[0], PAGE_BYTES)?),
        data: [ring(data_out, FILES[1], sizes[0])?, ring(data_back, FILES[2], sizes[0])?],
        weights: [ring(weights_out, FILES[3], sizes[1])?, ring(weights_back, FILES[4], sizes[1])?],
    })
}

fn u32_of(bytes: &[u8; GREETING_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_of(bytes: &[u8; GREETING_BYTES], at: usize) -> u64 {
    u64::from(u32_of(bytes, at)) | u64::from(u32_of(bytes, at + 4)) << 32
}

fn check_magic(bytes: &[u8; GREETING_BYTES]) -> Result<(), SetupError> {
    let (magic, version) = (u64_of(bytes, 0).to_le_bytes(), u32_of(bytes, 8));
    if magic != MAGIC {
        return Err(SetupError::Magic(magic));
    }
    if version != VERSION {
        return Err(SetupError::Version(version));
    }
    Ok(())
}

/// A peer's words, fit for a log.
fn readable(words: &[u8]) -> String {
    String::from_utf8_lossy(words).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Sends `bytes`, and with the first of them `files`.
async fn send(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), SetupError> {
    let (mut sent, mut files) = (0, files);
    while sent < bytes.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES.len()))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() {
                    let is_room = control.push(SendAncillaryMessage::ScmRights(files));
                    assert!(is_room, "there is space for as many descriptors as a greeting has");
                }
                let part = [IoSlice::new(&bytes[sent..])];
                Ok(rustix::net::sendmsg(stream, &part, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        files = &[];
    }
    Ok(())
}

/// Receives `bytes` and not one more, and the descriptors that come with them, at most `files_max`.
async fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    files: &mut Vec<OwnedFd>,
    files_max: usize,
) -> Result<(), SetupError> {
    let mut received = 0;
    while received < bytes.len() {
        let (read, flags) = stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES.len()))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut part = [IoSliceMut::new(&mut bytes[received..])];
                let message = rustix::net::recvmsg(stream, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(some) = message {
                        files.extend(some);
                    }
                }
                Ok((message.bytes, message.flags))
            })
            .await?;
        // What found no room was closed by the kernel.
        if flags.contains(ReturnFlags::CTRUNC) || files.len() > files_max {
            return Err(SetupError::TooManyFiles(files_max));
        }
        if read == 0 {
            return Err(SetupError::Ended);
        }
        received += read;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_are_refused() {
        let good = ShmSettings::default();
        assert_eq!(good.check(), Ok(()));
        for bytes in [0, 1, 2048, 3 << 20, RING_BYTES_MAX * 2] {
            assert!(ShmSettings { data_ring_bytes: bytes, ..good.clone() }.check().is_err(), "{bytes}");
            assert!(ShmSettings { weights_ring_bytes: bytes, ..good.clone() }.check().is_err(), "{bytes}");
        }
        assert!(ShmSettings { setups_max: 0, ..good.clone() }.check().is_err());
        assert!(ShmSettings { setup_max: Duration::ZERO, ..good }.check().is_err());
    }

    #[test]
    fn only_this_user_and_those_named_are_let_in() {
        let own = rustix::process::geteuid().as_raw();
        let settings = ShmSettings { users_allowed: vec![own + 7], ..ShmSettings::default() };
        assert_eq!([own, own + 1, own + 7].map(|user| settings.allows(user)), [true, false, true]);
    }

    /// The kernel's word on the user comes before anything that the peer says, and the peer is told.
    #[tokio::test]
    async fn another_user_is_refused_and_told_so() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (settings, doorbell) = (ShmSettings::default(), Doorbell::new(Duration::ZERO).unwrap());
        let user = rustix::process::geteuid().as_raw() + 1;
        let (considered, proposed) = tokio::join!(
            consider(&ours, user, &settings, &doorbell),
            propose(&theirs, &settings, &doorbell),
        );
        assert!(matches!(considered, Err(SetupError::User { user: found, .. }) if found == user));
        let told = proposed.err().unwrap().to_string();
        assert!(told.contains(&format!("user {user} may not connect")), "{told}");
    }
}
