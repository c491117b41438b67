//! Small files that must be whole or not there: certificates, keys, lists.
//!
//! A shell. Each is written beside its place, flushed to the disk and then moved there, so that a reader or a
//! crash never meets half of one. What must not be overwritten is linked into place, which fails if something
//! is there. Keys are readable by their owner only, from the first moment on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::SecurityError;

/// Longer than any file of ours; a longer one is something else.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Owner,
    All,
}

/// Reads a file of ours.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    let failed = |why: String| SecurityError::Unreadable { path: path.into(), why };
    let said = |error: io::Error| {
        failed(match error.kind() {
            io::ErrorKind::NotFound => "no such file".into(),
            io::ErrorKind::PermissionDenied => {
                "permission denied; run this as the user who owns it, or `chown` it".into()
            }
            _ => error.to_string(),
        })
    };
    let file = File::open(path).map_err(said)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("longer than {FILE_BYTES_MAX} bytes, so it is something else")));
    }
    Ok(bytes)
}

/// Reads a file of ours that need not be there.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, SecurityError> {
    if fs::symlink_metadata(path).is_err_and(|why| why.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    read(path).map(Some)
}

/// Writes a file that must not be there yet.
pub(crate) fn create(path: &Path, bytes: &[u8], access: Access) -> Result<(), SecurityError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(SecurityError::Exists(path.into()));
    }
    let beside = beside(path, bytes, access)?;
    let linked = fs::hard_link(&beside.0, path);
    match linked {
        Ok(()) => flush_folder(path),
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Err(SecurityError::Exists(path.into())),
        // A file system without links. Between this look and the move somebody else's file could be lost;
        // the folder is ours alone.
        Err(_) if fs::symlink_metadata(path).is_err() => {
            fs::rename(&beside.0, path).map_err(|why| unwritable(path, &why))?;
            flush_folder(path)
        }
        Err(why) => Err(unwritable(path, &why)),
    }
}

/// Writes a file in the place of an older one.
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<(), SecurityError> {
    let beside = beside(path, bytes, access)?;
    fs::rename(&beside.0, path).map_err(|why| unwritable(path, &why))?;
    flush_folder(path)
}

/// Refuses a folder that holds something. One that is not there, and a volume that has only just been mounted,
/// are empty.
pub(crate) fn check_empty(folder: &Path) -> Result<(), SecurityError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => {
            let used = entries.any(|entry| !entry.is_ok_and(|entry| entry.file_name() == "lost+found"));
            if used { Err(SecurityError::NotEmpty(folder.into())) } else { Ok(()) }
        }
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(unwritable(folder, &why)),
    }
}

/// Makes a folder for its owner alone, if it is not there. Says whether it was made.
fn make_folder(folder: &Path) -> Result<bool, SecurityError> {
    if folder.is_dir() {
        return Ok(false);
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|why| unwritable(folder, &why))?;
    Ok(true)
}

/// Writes files that must not be there into a folder, all or none.
pub(crate) fn create_all(folder: &Path, files: &[(&str, &[u8], Access)]) -> Result<(), SecurityError> {
    let folder_or_here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for (name, ..) in files {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(SecurityError::Exists(path));
        }
    }
    let made = make_folder(folder_or_here)?;
    for (index, (name, bytes, access)) in files.iter().enumerate() {
        if let Err(why) = create(&folder.join(name), bytes, *access) {
            // Only what this call wrote; what cannot be removed either is left to whoever reads the error.
            for (name, ..) in &files[..index] {
                let _ = fs::remove_file(folder.join(name));
            }
            if made {
                let _ = fs::remove_dir(folder);
            }
            return Err(why);
        }
    }
    Ok(())
}

/// The mode of a file that others than its owner may read, which a key's must not be.
pub fn others_may_read(path: &Path) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Held while a list is read, changed and written: `phalanx certs` and a coordinator may do so at once.
pub(crate) fn lock(path: &Path) -> Result<File, SecurityError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|why| unwritable(path, &why))?;
    file.lock().map_err(|why| unwritable(path, &why))?;
    Ok(file)
}

/// The certificates in a PEM file.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    const EXPECTED: &str = "certificate in PEM";
    let failed = |why: String| SecurityError::Content { path: path.into(), expected: EXPECTED, why };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let all = all.map_err(|why| failed(why.to_string()))?;
    if all.is_empty() {
        return Err(failed("nothing begins with -----BEGIN CERTIFICATE-----".into()));
    }
    Ok(all)
}

/// The key in a PEM file.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, SecurityError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|why| SecurityError::Content {
        path: path.into(),
        expected: "private key in PEM",
        why: why.to_string(),
    })
}

/// A certificate as PEM.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = data_encoding::BASE64.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// A file on its way, removed unless it was moved.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        // Moved, linked or of no use: nothing of this name is to stay.
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(path: &Path, bytes: &[u8], access: Access) -> Result<Beside, SecurityError> {
    let failed = |why: io::Error| unwritable(path, &why);
    let name = path.file_name().expect("files of ours have names").to_string_lossy();
    let mut random = [0; 8];
    super::token::fill_random(&mut random);
    let place = path.with_file_name(format!(".{name}.{}", data_encoding::HEXLOWER.encode(&random)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(
        &mut options,
        match access {
            Access::Owner => 0o600,
            Access::All => 0o644,
        },
    );
    #[cfg(not(unix))]
    let _ = access;
    let mut file = options.open(&place).map_err(failed)?;
    let beside = Beside(place);
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(beside)
}

/// So that the name survives a loss of power as well as the bytes do.
fn flush_folder(path: &Path) -> Result<(), SecurityError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Some file systems cannot flush a folder; the file itself is safe.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

fn unwritable(path: &Path, why: &io::Error) -> SecurityError {
    let why = match why.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        io::ErrorKind::NotADirectory => "a part of the path is no folder".into(),
        _ => why.to_string(),
    };
    SecurityError::Unwritable { path: path.into(), why }
}
