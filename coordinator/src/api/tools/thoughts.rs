//! What a model thinks between `<think>` and `</think>` before it answers.

use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const OPEN: &str = "<think>";
pub(super) const CLOSE: &str = "</think>";
const TAGS: [&str; 2] = [OPEN, CLOSE];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    Begun,
    /// Thoughts come.
    Open,
    /// They have ended, and white space follows.
    Closed,
    /// Whatever comes is no thought.
    Past,
}

/// Takes thoughts out of the beginning of an answer.
#[derive(Debug)]
pub(super) struct Thoughts {
    tags: Tags,
    state: State,
    has_thoughts: bool,
    space: String,
}

impl Thoughts {
    /// Of an answer whose prompt ends within thoughts if `is_open`.
    pub(super) fn new(is_open: bool) -> Self {
        let state = if is_open { State::Open } else { State::Begun };
        Self { tags: Tags::new(&TAGS), state, has_thoughts: false, space: String::new() }
    }

    /// Takes a character; `rest` gets what is no thought.
    pub(super) fn push(&mut self, char: char, parts: &mut Parts, rest: &mut dyn FnMut(&mut Parts, char)) {
        let Self { tags, state, has_thoughts, space } = self;
        if *state == State::Past && tags.is_empty() {
            return rest(parts, char);
        }
        tags.push(char, |piece| take(state, has_thoughts, space, piece, parts, rest));
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self, parts: &mut Parts, rest: &mut dyn FnMut(&mut Parts, char)) {
        let Self { tags, state, has_thoughts, space } = self;
        tags.finish(|piece| take(state, has_thoughts, space, piece, parts, rest));
        for char in std::mem::take(space).chars() {
            match state {
                State::Open => parts.reasoning(char),
                _ => rest(parts, char),
            }
        }
    }
}

fn take(
    state: &mut State,
    has_thoughts: &mut bool,
    space: &mut String,
    piece: Piece,
    parts: &mut Parts,
    rest: &mut dyn FnMut(&mut Parts, char),
) {
    match (*state, piece) {
        (State::Begun, Piece::Tag(0)) => {
            space.clear();
            *state = State::Open;
        }
        (State::Begun, Piece::Text(char)) if char.is_whitespace() => space.push(char),
        (State::Open, Piece::Tag(1)) => {
            space.clear();
            *state = State::Closed;
        }
        // Lines before and after thoughts are no thoughts.
        (State::Open, Piece::Text(char)) if char.is_whitespace() => {
            if *has_thoughts {
                space.push(char);
            }
        }
        (State::Open, piece) => {
            *has_thoughts = true;
            std::mem::take(space).chars().for_each(|char| parts.reasoning(char));
            text(piece, |char| parts.reasoning(char));
        }
        (State::Closed, Piece::Text(char)) if char.is_whitespace() => {}
        (State::Begun | State::Closed | State::Past, piece) => {
            *state = State::Past;
            std::mem::take(space).chars().for_each(|char| rest(parts, char));
            text(piece, |char| rest(parts, char));
        }
    }
}

/// A piece as the text that it is.
fn text(piece: Piece, take: impl FnMut(char)) {
    match piece {
        Piece::Text(char) => std::iter::once(char).for_each(take),
        Piece::Tag(tag) => TAGS[tag].chars().for_each(take),
    }
}
