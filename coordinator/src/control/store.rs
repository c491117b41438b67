//! Keeps on disk what nodes cannot say when a coordinator is started anew: its term, so that a later life takes a higher
//! one, which nodes are drained, and under which biases answers were computed of late.
//!
//! Not pure: it writes files. Each counts only once it is durable: the file is written beside the old one, synced,
//! and renamed over it, and then the folder is synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::bias::Bias;

use super::drain::Drained;
use super::versions::Version;

/// The file of the term, in the data directory.
const TERM: &str = "term";
/// The file of the drained nodes.
const DRAINED: &str = "drained";
/// How the file of a bias begins; its number follows.
const BIAS: &str = "bias-";

/// Where it is kept; nowhere, for a coordinator without a data directory, whose nodes then remember the term for it, and
/// nobody who is drained.
#[derive(Debug, Clone)]
pub struct Store {
    folder: Option<PathBuf>,
}

impl Store {
    /// In that folder, which is made if there is none.
    pub fn new(folder: Option<&Path>) -> io::Result<Self> {
        if let Some(folder) = folder {
            fs::create_dir_all(folder)?;
        }
        Ok(Self { folder: folder.map(Path::to_owned) })
    }

    /// Whether anything is kept.
    pub fn is_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// The term stored last, 0 if there is none.
    pub fn load_term(&self) -> io::Result<u64> {
        let Some((file, text)) = self.read(TERM)? else { return Ok(0) };
        text.trim().parse().map_err(|_| {
            let file = file.display();
            invalid(format!(
                "{file} holds no term; remove it if no node runs, or write the highest term into it"
            ))
        })
    }

    /// Stores a term, durably.
    pub fn store_term(&self, term: u64) -> io::Result<()> {
        self.write(TERM, &format!("{term}\n"))
    }

    /// The nodes that are drained.
    pub fn load_drained(&self) -> io::Result<Drained> {
        let Some((file, text)) = self.read(DRAINED)? else { return Ok(Drained::default()) };
        Drained::read(&text).map_err(|line| {
            let file = file.display();
            invalid(format!(
                "{file} names the drained nodes, one a line, and `{line}` is no such line; correct it, or remove the \
                 file if none is drained"
            ))
        })
    }

    /// Stores which nodes are drained, durably.
    pub fn store_drained(&self, drained: &Drained) -> io::Result<()> {
        self.write(DRAINED, &drained.text())
    }

    /// All biases that are stored.
    pub fn load_biases(&self) -> io::Result<Vec<Version>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut versions = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(BIAS)?.parse().ok());
            let Some(number) = number else { continue };
            let bias = Bias::open(&entry.path()).map_err(|why| {
                let file = entry.path();
                let file = file.display();
                invalid(format!("{file}: {why}; remove it: only streams that began under it need it"))
            })?;
            versions.push(Version { number, bias: Arc::new(bias) });
        }
        Ok(versions)
    }

    /// Stores a bias, durably.
    pub fn store_bias(&self, number: u64, bias: &Bias) -> io::Result<()> {
        self.write(&format!("{BIAS}{number}"), &bias.text())
    }

    /// Stores a bias no longer.
    pub fn forget_bias(&self, number: u64) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        match fs::remove_file(folder.join(format!("{BIAS}{number}"))) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> io::Result<Option<(PathBuf, String)>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let file = folder.join(name);
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some((file, text))),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let part = folder.join(format!("{name}.part"));
        let mut file = File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, folder.join(name))?;
        File::open(folder)?.sync_all()
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::super::drain::Manner;
    use super::*;

    #[test]
    fn what_is_stored_survives_and_what_cannot_be_read_is_named() {
        let folder = std::env::temp_dir().join(format!("phalanx-store-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let store = Store::new(Some(&folder)).expect("a folder");
        assert_eq!(store.load_term().expect("readable"), 0);
        assert_eq!(store.load_drained().expect("readable"), Drained::default());
        store.store_term(41).expect("written");
        store.store_term(42).expect("written");
        let drained = Drained::default().with("n1", Manner::Kindly).with("n2", Manner::ByForce);
        store.store_drained(&drained).expect("written");
        let another_life = Store::new(Some(&folder)).expect("there");
        assert_eq!(another_life.load_term().expect("readable"), 42);
        assert_eq!(another_life.load_drained().expect("readable"), drained);
        let bias = |value: f32| Bias::new([(1, vec![value, -value])].into()).expect("finite");
        store.store_bias(8, &bias(0.1)).expect("written");
        store.store_bias(12, &bias(0.2)).expect("written");
        store.store_bias(13, &bias(0.3)).expect("written");
        store.forget_bias(12).expect("removed");
        store.forget_bias(12).expect("it has gone already");
        let mut biases = another_life.load_biases().expect("readable");
        biases.sort_by_key(|version| version.number);
        let expected = [(8, 0.1), (13, 0.3)];
        let expected = expected.map(|(number, value)| Version { number, bias: Arc::new(bias(value)) });
        assert_eq!(biases, expected);
        fs::write(folder.join("bias-14"), "{").expect("written");
        let why = store.load_biases().expect_err("no bias").to_string();
        assert!(why.contains("bias-14") && why.contains("remove it"), "{why}");
        fs::write(folder.join(TERM), "many").expect("written");
        let why = store.load_term().expect_err("no number").to_string();
        assert!(why.contains("term holds no term"), "{why}");
        fs::write(folder.join(DRAINED), "n1\nn2, and n3\n").expect("written");
        let why = store.load_drained().expect_err("no name").to_string();
        assert!(why.contains("drained names the drained nodes") && why.contains("`n2, and n3`"), "{why}");
        fs::remove_dir_all(&folder).expect("removed");
        let none = Store::new(None).expect("nothing to make");
        none.store_drained(&drained).expect("nowhere");
        none.store_bias(1, &bias(0.1)).expect("nowhere");
        none.forget_bias(1).expect("nowhere");
        assert_eq!(none.load_biases().expect("nothing to read"), []);
        assert_eq!(none.load_term().expect("nothing to read"), 0);
        assert_eq!(none.load_drained().expect("nothing to read"), Drained::default());
    }
}
