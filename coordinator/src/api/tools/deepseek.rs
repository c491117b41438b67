//! Calls between DeepSeek's tags: a name, a separator, and arguments, which may be in a fence.

use super::json_call::{Step, Value};
use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
pub(super) const TAGS: [&str; 5] = [CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct DeepSeek {
    tags: Tags,
    fenced: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Content,
    /// Before the separator: the name, or, where that comes later, what kind of tool it is.
    Head(String),
    /// After the separator, to the end of the line.
    Name(String),
    /// Before the arguments, where a fence may be.
    Fence,
    Arguments(Value),
    /// After them.
    Tail,
}

impl DeepSeek {
    pub(super) fn new(fenced: bool) -> Self {
        Self { tags: Tags::new(&TAGS), fenced, state: State::Content }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, state, fenced } = self;
        tags.push(char, |piece| take(state, *fenced, piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, state, fenced } = self;
        tags.finish(|piece| take(state, *fenced, piece, parts));
        leave(state, parts);
    }
}

/// A call has ended, wherever it stood.
fn leave(state: &mut State, parts: &mut Parts) {
    match std::mem::replace(state, State::Content) {
        State::Head(text) => parts.content_text(&text),
        State::Name(name) => {
            parts.call(name.trim());
            parts.arguments_text("{}");
        }
        State::Fence => parts.arguments_text("{}"),
        State::Content | State::Arguments(_) | State::Tail => {}
    }
}

fn take(state: &mut State, fenced: bool, piece: Piece, parts: &mut Parts) {
    match (piece, &mut *state) {
        (Piece::Tag(2), _) => {
            leave(state, parts);
            *state = State::Head(String::new());
        }
        (Piece::Tag(4), State::Head(name)) => {
            if fenced {
                *state = State::Name(String::new());
            } else {
                parts.call(name.trim());
                *state = State::Fence;
            }
        }
        (Piece::Tag(_), _) => leave(state, parts),
        (Piece::Text(char), State::Content) => parts.content(char),
        (Piece::Text(char), State::Head(text)) => text.push(char),
        (Piece::Text('\n'), State::Name(name)) if !name.trim().is_empty() => {
            parts.call(name.trim());
            *state = State::Fence;
        }
        (Piece::Text(char), State::Name(name)) => name.push(char),
        (Piece::Text(char @ ('{' | '[')), State::Fence) => {
            let mut value = Value::default();
            value.push(char);
            parts.arguments(char);
            *state = State::Arguments(value);
        }
        (Piece::Text(char), State::Arguments(value)) => {
            parts.arguments(char);
            if value.push(char) == Step::Last {
                *state = State::Tail;
            }
        }
        (Piece::Text(_), State::Fence | State::Tail) => {}
    }
}
