//! Memory that two processes share: made by one end, checked and then mapped by the other.
//!
//! Not pure: it makes, examines and maps descriptors. What a peer hands over is examined before it is mapped,
//! since a mapping of something else can kill this process: a file that is cut short afterwards raises
//! SIGBUS, and so does a huge page that the host has not got. Sealed memory of tmpfs can be neither.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Nobody may change its length, and nobody may add a seal (one against writing, say).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// The file system of ordinary memory files. One of huge pages has another number.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Why a descriptor of a peer is not mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("{what} is no memory of ordinary pages (file system {found:#x}, expected {TMPFS_MAGIC:#x})")]
    NoMemory { what: &'static str, found: i64 },
    #[error("{what} has seals {found:#x}, needed are {:#x}", SEALS.bits())]
    Seals { what: &'static str, found: u32 },
    #[error("{what} has {found} bytes, {said} were announced")]
    Bytes { what: &'static str, found: u64, said: u64 },
    #[error("{what}: {why}")]
    Host { what: &'static str, why: rustix::io::Errno },
}

/// A mapping. It stays as long as this lives; the bytes in it may change at any time, so there is no slice
/// of them.
#[derive(Debug)]
pub(super) struct Shared {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that no thread owns; all access goes through atomics or raw copies.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes `bytes` of zeroed memory that can be handed over. The name is for people who look into `/proc`.
    pub(super) fn create(name: &str, bytes: u64) -> rustix::io::Result<(OwnedFd, Self)> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, bytes)?;
        rustix::fs::fcntl_add_seals(&file, SEALS)?;
        let shared = Self::map(&file, bytes)?;
        Ok((file, shared))
    }

    /// Maps what a peer handed over, if it is what it ought to be: nothing in it can kill this process.
    pub(super) fn admit(file: &OwnedFd, what: &'static str, bytes: u64) -> Result<Self, Unfit> {
        let host = |why| Unfit::Host { what, why };
        let kind = rustix::fs::fstatfs(file).map_err(host)?.f_type;
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        let kind = i64::from(kind);
        if kind != TMPFS_MAGIC {
            return Err(Unfit::NoMemory { what, found: kind });
        }
        // A file of a mounted tmpfs has the seal against seals, and never the others.
        let seals = rustix::fs::fcntl_get_seals(file).map_err(host)?;
        if !seals.contains(SEALS) {
            return Err(Unfit::Seals { what, found: seals.bits() });
        }
        // After the seals: from here on the length cannot change.
        let found = u64::try_from(rustix::fs::fstat(file).map_err(host)?.st_size).unwrap_or(0);
        if found != bytes {
            return Err(Unfit::Bytes { what, found, said: bytes });
        }
        Self::map(file, bytes).map_err(host)
    }

    fn map(file: impl AsFd, bytes: u64) -> rustix::io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| rustix::io::Errno::NOMEM)?;
        // SAFETY: the kernel chooses an address that nothing else uses.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let at = NonNull::new(at.cast()).expect("a mapping is never at address 0");
        Ok(Self { at, bytes })
    }

    /// The number at `offset`.
    pub(super) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes, "a number lies within the mapping");
        // SAFETY: aligned and within the mapping, which lives as long as `self`; both ends use it atomically
        // only, and for a peer that does not, atomics of ours still read some number.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(offset).cast()) }
    }

    /// The number at `offset`.
    pub(super) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes, "a number lies within the mapping");
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(offset).cast()) }
    }

    /// Copies `bytes` to `offset`.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.bytes && bytes.len() <= self.bytes - offset, "bytes lie within the mapping");
        // SAFETY: checked above; a slice of this process does not overlap the mapping, of which none are
        // made. A peer that writes here at the same time garbles bytes that are for itself.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().add(offset), bytes.len());
        }
    }

    /// Copies out what lies at `offset`. A hostile peer may change it meanwhile: then some mixture of bytes
    /// comes out, which is as good as any other bytes that it might have sent.
    pub(super) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.bytes && into.len() <= self.bytes - offset, "bytes lie within the mapping");
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and all references into it borrow `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be taken away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: u64, flags: MemfdFlags, seals: SealFlags) -> OwnedFd {
        let file = rustix::fs::memfd_create("test", flags | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let (file, ours) = Shared::create("test", 8192).unwrap();
        let theirs = Shared::admit(&file, "a ring", 8192).unwrap();
        ours.copy_in(8190, b"no");
        let mut read = [0; 2];
        theirs.copy_out(8190, &mut read);
        assert_eq!(&read, b"no");
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    /// Each of these could be cut short under our eyes, or is not what was announced.
    #[test]
    fn memory_that_could_kill_us_is_not_mapped() {
        let none = MemfdFlags::empty();
        for (missing, seals) in [
            ("all", SealFlags::empty()),
            ("shrink", SealFlags::GROW | SealFlags::SEAL),
            ("grow", SealFlags::SHRINK | SealFlags::SEAL),
            ("seal", SealFlags::SHRINK | SealFlags::GROW),
        ] {
            let file = memory(8192, none, seals);
            let refused = Shared::admit(&file, "a ring", 8192);
            assert!(matches!(refused, Err(Unfit::Seals { .. })), "{missing}: {refused:?}");
        }
        for bytes in [0, 4096, 8191, 1 << 40] {
            let file = memory(bytes, none, SEALS);
            let refused = Shared::admit(&file, "a ring", 8192);
            assert!(matches!(refused, Err(Unfit::Bytes { said: 8192, .. })), "{bytes}: {refused:?}");
        }
        let file = memory(8192, none, SEALS | SealFlags::WRITE);
        assert!(matches!(Shared::admit(&file, "a ring", 8192), Err(Unfit::Host { .. })));
        let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        assert!(matches!(Shared::admit(&file, "a ring", 8192), Err(Unfit::NoMemory { .. })));
        let (pipe, _other) = std::io::pipe().unwrap();
        let pipe = OwnedFd::from(pipe);
        assert!(matches!(Shared::admit(&pipe, "a ring", 8192), Err(Unfit::NoMemory { .. })));
    }
}
