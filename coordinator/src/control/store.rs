//! Keeps the term of this coordinator on disk, so that a later life takes a higher one.
//!
//! Not pure: it writes a file. A term counts only once it is durable: the file is written beside the old one, synced,
//! and renamed over it, and then the folder is synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file of the term, in the data directory.
const FILE: &str = "term";

/// Where terms are kept; nowhere, for a coordinator without a data directory, whose nodes then remember the term for it.
#[derive(Debug, Clone)]
pub struct TermStore {
    folder: Option<PathBuf>,
}

impl TermStore {
    /// In that folder, which is made if there is none.
    pub fn new(folder: Option<&Path>) -> io::Result<Self> {
        if let Some(folder) = folder {
            fs::create_dir_all(folder)?;
        }
        Ok(Self { folder: folder.map(Path::to_owned) })
    }

    /// The term stored last, 0 if there is none.
    pub fn load(&self) -> io::Result<u64> {
        let Some(folder) = &self.folder else { return Ok(0) };
        match fs::read_to_string(folder.join(FILE)) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let file = folder.join(FILE).display().to_string();
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{file} holds no term; remove it if no node runs, or write the highest term into it"
                    ),
                )
            }),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(why) => Err(why),
        }
    }

    /// Stores a term, durably.
    pub fn store(&self, term: u64) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let part = folder.join(format!("{FILE}.part"));
        let mut file = File::create(&part)?;
        writeln!(file, "{term}")?;
        file.sync_all()?;
        fs::rename(&part, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_survives_and_what_is_none_is_named() {
        let folder = std::env::temp_dir().join(format!("phalanx-term-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let store = TermStore::new(Some(&folder)).expect("a folder");
        assert_eq!(store.load().expect("readable"), 0);
        store.store(41).expect("written");
        store.store(42).expect("written");
        assert_eq!(TermStore::new(Some(&folder)).expect("there").load().expect("readable"), 42);
        fs::write(folder.join(FILE), "many").expect("written");
        let why = store.load().expect_err("no number").to_string();
        assert!(why.contains("term holds no term"), "{why}");
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(TermStore::new(None).expect("nothing to make").load().expect("nothing to read"), 0);
    }
}
