//! The form that an answer keeps to: a JSON Schema, or a grammar, made a mask over the vocabulary for each next token.
//!
//! Pure, and the one place that knows `llguidance`, which follows a grammar byte by byte through a trie of the
//! vocabulary's tokens. A [`Grammars`] belongs to a vocabulary, a [`Grammar`] is a form compiled for it, a [`Guide`] goes
//! with one answer. Compiling takes milliseconds and is bounded, so whoever serves clients does it elsewhere; a mask takes
//! microseconds.

mod compile;
mod guide;

pub use compile::{Form, Grammar, GrammarError, Grammars, json_rule, tag_rule};
pub use guide::Guide;

/// What `llguidance` says, as one line for people.
fn in_words(error: &str) -> String {
    // A backtrace or the state of a parser may follow.
    let line = error.lines().next().unwrap_or_default();
    line.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// As much of a message as is told.
const MESSAGE_CHARS_MAX: usize = 300;
