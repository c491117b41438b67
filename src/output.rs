//! Writing to standard output without panicking when it is full or closed.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use model::load::Progress;
use model::spec::Spec;

use crate::Failure;

/// Writes text and shows it at once.
pub(crate) fn show(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => e.into(),
        _ => format!("standard output cannot be written ({e}); is the disk full?").into(),
    })
}

/// Whether the reader of our output has gone.
pub(crate) fn is_broken_pipe(failure: &(dyn std::error::Error + 'static)) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A bar while `work` loads a model; only where a person watches.
pub(crate) fn with_progress<T>(progress: &Progress, work: impl FnOnce() -> T) -> T {
    use std::sync::atomic::{AtomicBool, Ordering};

    if !io::stderr().is_terminal() {
        return work();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("loading {bar:30} {pos}/{len} parts, {msg} [{elapsed}]");
            bar.set_style(style.expect("the template is well formed"));
            while !done.load(Ordering::Relaxed) {
                bar.set_length(progress.parts_all.load(Ordering::Relaxed) as u64);
                bar.set_position(progress.parts.load(Ordering::Relaxed) as u64);
                bar.set_message(bytes(progress.bytes.load(Ordering::Relaxed)));
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
            bar.finish_and_clear();
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// What follows a numeric class where experts are cut.
pub(crate) fn shards(spec: &Spec) -> String {
    match spec.shards {
        1 => String::new(),
        n => format!(", experts in {n} shards"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_949, "99.9 kB"),
            (999_600, "1.0 MB"),
            (3_440_000_000, "3.4 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
