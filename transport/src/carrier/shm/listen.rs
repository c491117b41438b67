//! The socket file: made, taken over from a listener that died, and taken away in the end.
//!
//! Not pure: it works on the file system.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::carrier::ConnectError;

/// Longest path that the kernel takes, without the 0 at its end.
pub(super) const PATH_BYTES_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Most time that another listener may hold the folder while it takes over a dead one's file: it takes a few
/// microseconds.
const FOLDER_WAIT_MAX: Duration = Duration::from_secs(1);

/// A socket file of ours. To be dropped before its socket is closed: until then the file's number cannot be
/// another's, and no other listener takes it over.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number, so that no file of somebody else is taken away.
    is: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.is) {
            // If it cannot be taken away, the next listener takes it over.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// The path in an address, `shm:/path` or the path alone.
pub(super) fn path_of(address: &str) -> Result<&Path, ConnectError> {
    let path = address.strip_prefix("shm:").unwrap_or(address);
    let wrong = |why| ConnectError::Address { address: address.into(), carrier: "shm", why };
    if path.is_empty() || path.contains('\0') {
        return Err(wrong("no path; give one as shm:/path/to/socket".into()));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(wrong(format!(
            "the path has {} bytes, a socket's has at most {PATH_BYTES_MAX}; choose a shorter one",
            path.len()
        )));
    }
    Ok(Path::new(path))
}

/// Listens at `address`. `is_shared` lets processes of other users connect as far as the folder lets them.
pub(super) fn listen(address: &str, is_shared: bool) -> Result<(OwnedFd, SocketFile), ConnectError> {
    let path = path_of(address)?;
    let failed = |doing: &str, why: Errno| {
        let hint = match why {
            Errno::NOENT | Errno::NOTDIR => "; make its folder first",
            Errno::ACCESS | Errno::PERM | Errno::ROFS => "; choose a folder that this user may write",
            _ => "",
        };
        let why = format!("{doing}: {why}{hint}");
        ConnectError::Address { address: address.into(), carrier: "shm", why }
    };
    let place = SocketAddrUnix::new(path).map_err(|why| failed("cannot name the socket", why))?;
    let attempt = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Before the file is there, so that there is no moment in which others could connect.
        let mode = if is_shared { 0o666 } else { 0o600 };
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
        rustix::net::bind(&socket, &place)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    // One at a time: a socket that is bound and does not listen yet looks like a dead one's, and two that find
    // a dead one's file must not take away each other's.
    let _folder = hold_folder(path).map_err(|why| failed("cannot lock its folder", why))?;
    let socket = match attempt() {
        Err(Errno::ADDRINUSE) => {
            remove_stale(address, path, &place)?;
            attempt()
        }
        other => other,
    };
    let socket = socket.map_err(|why| match why {
        Errno::ADDRINUSE => ConnectError::InUse { address: address.into() },
        why => failed("cannot bind the socket", why),
    })?;
    let is = identity(path).ok_or_else(|| failed("the socket vanished", Errno::NOENT))?;
    Ok((socket, SocketFile { path: path.into(), is }))
}

fn hold_folder(path: &Path) -> Result<std::fs::File, Errno> {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    };
    let folder = std::fs::File::open(folder)
        .map_err(|why| why.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < FOLDER_WAIT_MAX => std::thread::yield_now(),
            result => return result.map(|()| folder),
        }
    }
}

/// Takes away the file of a listener that is no more; says who is there if somebody is.
fn remove_stale(address: &str, path: &Path, place: &SocketAddrUnix) -> Result<(), ConnectError> {
    let wrong = |why: String| ConnectError::Address { address: address.into(), carrier: "shm", why };
    match std::fs::symlink_metadata(path) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(wrong(why.to_string())),
        // A connection to a plain file is refused just as one to a dead listener is.
        Ok(file) if !file.file_type().is_socket() => {
            return Err(wrong("there is a file that is no socket; choose another path".into()));
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let tried = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| rustix::net::connect(&socket, place));
    match tried {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path)
            .map_err(|why| wrong(format!("cannot take away the file of a dead listener: {why}"))),
        Err(Errno::NOENT) => Ok(()),
        // Connected, or its backlog is full, or it is not ours to connect to: somebody listens.
        _ => Err(ConnectError::InUse { address: address.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("phalanx-listen-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    fn at(path: &Path) -> String {
        format!("shm:{}", path.display())
    }

    #[test]
    fn a_live_listener_is_not_replaced_and_a_dead_one_is() {
        let folder = folder();
        let path = folder.join("socket");
        let (socket, file) = listen(&at(&path), false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(matches!(listen(&at(&path), false), Err(ConnectError::InUse { .. })));

        // As after SIGKILL: the socket is closed, the file stays.
        drop(socket);
        std::mem::forget(file);
        let (_socket, file) = listen(&at(&path), false).expect("the dead one's file is taken over");

        // Somebody took our file away and listens there.
        std::fs::remove_file(&path).unwrap();
        let (_other_socket, other) = listen(&at(&path), false).unwrap();
        drop(file);
        assert!(path.exists(), "no file of somebody else is taken away");
        drop(other);
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Of many that find a dead listener's file at once, one listens and the rest are told so.
    #[test]
    fn one_of_many_takes_over() {
        let folder = folder();
        let path = folder.join("socket");
        for _ in 0..20 {
            let (socket, file) = listen(&at(&path), false).unwrap();
            drop(socket);
            std::mem::forget(file);
            let all: Vec<_> = std::thread::scope(|scope| {
                let some: Vec<_> = (0..4).map(|_| scope.spawn(|| listen(&at(&path), false))).collect();
                some.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(all.iter().filter(|one| one.is_ok()).count(), 1, "{all:?}");
            drop(all.into_iter().map(|one| one.map(|(socket, file)| (file, socket))).collect::<Vec<_>>());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_listened_at_is_said() {
        let folder = folder();
        let long = folder.join("x".repeat(120));
        let said = listen(&at(&long), false).unwrap_err().to_string();
        assert!(said.contains(&long.as_os_str().len().to_string()) && said.contains("107"), "{said}");
        let said = listen(&at(&folder.join("missing/socket")), false).unwrap_err().to_string();
        assert!(said.contains("make its folder"), "{said}");
        let plain = folder.join("plain");
        std::fs::write(&plain, "rows").unwrap();
        let said = listen(&at(&plain), false).unwrap_err().to_string();
        assert!(said.contains("no socket"), "{said}");
        assert_eq!(std::fs::read(&plain).unwrap(), b"rows", "nobody's file is taken away");
        assert!(listen("shm:", false).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
