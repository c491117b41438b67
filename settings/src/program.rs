//! What every program does before its own work: the file of settings, variables, the log.
//!
//! A shell, called by `main.rs` alone.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use serde::de::DeserializeOwned;
use tracing_subscriber::EnvFilter;

use crate::values::LogFormat;

/// Why a program cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A variable that is misspelt would be a setting that is not set.
    #[error("the variable {name} is unknown; these are known: {known}")]
    Variable {
        /// The variable.
        name: String,
        /// All there are.
        known: String,
    },
    /// The file of settings cannot be read.
    #[error("{file}: {why}; give a file of settings in TOML with --config")]
    File {
        /// The file.
        file: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// It says what cannot be.
    #[error("{0}")]
    Settings(String),
    /// No such levels.
    #[error("--log-level {level}: {why}; write for example info, or info,{program}=debug")]
    LogLevel {
        /// As it was given.
        level: String,
        /// What is wrong with it.
        why: String,
        /// Whose log it is.
        program: &'static str,
    },
}

/// Settings that are said in several places, one above the other.
pub trait Settings: DeserializeOwned {
    /// Begins the name of every variable.
    const VARIABLES: &str;

    /// This, and `below` where this says nothing.
    fn above(self, below: Self) -> Self;

    /// How the log is written, and how much.
    fn log(&self) -> (Option<LogFormat>, Option<&str>);
}

/// What `said` by flags and variables of `command` comes to with the file of settings, if there is one. Begins the log;
/// `program` is the name of its own modules.
pub fn begin<S: Settings>(
    command: &Command,
    said: S,
    file: Option<&Path>,
    program: &'static str,
) -> Result<S, ProgramError> {
    check_variables(command, S::VARIABLES)?;
    let settings = match file {
        Some(file) => said.above(read_file(file)?),
        None => said,
    };
    let (format, level) = settings.log();
    log(format, level, program)?;
    Ok(settings)
}

/// The end of a program: what went wrong is one message, and the exit code 2.
pub fn end(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Refuses variables that begin as the program's do and are none of them.
fn check_variables(command: &Command, begin: &str) -> Result<(), ProgramError> {
    let known: Vec<_> = command.get_arguments().filter_map(|argument| argument.get_env()).collect();
    let ours = |name: &OsString| name.to_string_lossy().starts_with(begin);
    let mut names = std::env::vars_os().map(|(name, _)| name);
    match names.find(|name| ours(name) && !known.contains(&name.as_os_str())) {
        None => Ok(()),
        Some(name) => {
            let mut known: Vec<_> = known.iter().map(|name| name.to_string_lossy()).collect();
            known.sort();
            Err(ProgramError::Variable { name: name.display().to_string(), known: known.join(", ") })
        }
    }
}

/// Reads a file of settings.
fn read_file<T: DeserializeOwned>(file: &Path) -> Result<T, ProgramError> {
    let name = file.display().to_string();
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&name, &text).map_err(ProgramError::Settings),
        Err(why) => Err(ProgramError::File { file: name, why }),
    }
}

/// Reads its text; `file` is for messages.
pub fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|why| format!("{file}: {why}"))
}

/// Begins the log, on standard error. `program` is the name of its own modules, for messages.
fn log(format: Option<LogFormat>, level: Option<&str>, program: &'static str) -> Result<(), ProgramError> {
    let level = level.unwrap_or("info");
    let filter = EnvFilter::try_new(level).map_err(|why| ProgramError::LogLevel {
        level: level.to_owned(),
        why: why.to_string(),
        program,
    })?;
    // Whoever read standard error may have gone; that is no reason to end.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match format.unwrap_or(LogFormat::Lines) {
        LogFormat::Lines => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
