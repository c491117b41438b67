//! What a measurement must not leave behind when somebody interrupts it: folders of gigabytes, processes of nodes, and what
//! others have started for it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// Whoever is interrupted ends so, by custom.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Leftover {
    Folder(PathBuf),
    Process(Pid),
    Command(Undo),
}

/// A command that takes down what another has put up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undo {
    pub(crate) words: Vec<String>,
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl Undo {
    fn run(&self) {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).envs(self.variables.iter().cloned());
        // What stays is a nuisance, not a failure of what was measured.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

static ALL: Mutex<Vec<Leftover>> = Mutex::new(Vec::new());

fn add(what: Leftover) {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

fn forget(what: &Leftover) {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != what);
}

/// A folder is there.
pub(crate) fn add_folder(folder: PathBuf) {
    add(Leftover::Folder(folder));
}

/// Removes a folder.
pub(crate) fn remove_folder(folder: PathBuf) {
    // A folder that stays is a nuisance, not a failure of what was measured.
    let _ = std::fs::remove_dir_all(&folder);
    forget(&Leftover::Folder(folder));
}

/// A process runs.
pub(crate) fn add_process(child: &Child) {
    add(Leftover::Process(Pid::from_child(child)));
}

/// Ends a process: nothing that it holds is worth an orderly end.
pub(crate) fn end_process(child: &mut Child) {
    // It may have ended already. It is forgotten before its number can be another's.
    let _ = child.kill();
    forget(&Leftover::Process(Pid::from_child(child)));
    let _ = child.wait();
}

/// Something stands that a command takes down.
pub(crate) fn add_command(undo: Undo) {
    add(Leftover::Command(undo));
}

/// Takes it down.
pub(crate) fn run_command(undo: Undo) {
    undo.run();
    forget(&Leftover::Command(undo));
}

/// From now on an interrupt or a polite kill ends all of that, and the program.
pub(crate) fn watch() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        // Held to the end, so that nothing is added any more.
        let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        for what in all.iter() {
            match what {
                Leftover::Process(pid) => drop(kill_process(*pid, Signal::KILL)),
                Leftover::Folder(folder) => drop(std::fs::remove_dir_all(folder)),
                Leftover::Command(undo) => undo.run(),
            }
        }
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}
