//! Calls in the manner of GLM-4.5: between `<tool_call>` and `</tool_call>` the function's name, and for each argument
//! `<arg_key>name</arg_key>` and `<arg_value>` with the bare value.

use super::asked::Function;
use super::bare::Bare;
use super::hermes::{CLOSE, OPEN};
use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const KEY: &str = "<arg_key>";
pub(super) const KEY_END: &str = "</arg_key>";
pub(super) const VALUE: &str = "<arg_value>";
pub(super) const VALUE_END: &str = "</arg_value>";
pub(super) const TAGS: [&str; 6] = [OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Glm {
    tags: Tags,
    calls: Calls,
}

/// What pieces of it come to.
#[derive(Debug)]
struct Calls {
    state: State,
    bare: Bare,
    /// Of the argument that comes.
    key: String,
}

#[derive(Debug)]
enum State {
    Content,
    /// The function's name, up to its first argument or the end.
    Name(String),
    /// Between arguments.
    Call,
    Key(String),
    Value(String),
}

impl Glm {
    pub(super) fn new(functions: &[Function]) -> Self {
        let calls = Calls { state: State::Content, bare: Bare::new(functions), key: String::new() };
        Self { tags: Tags::new(&TAGS), calls }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, calls } = self;
        tags.push(char, |piece| calls.take(piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, calls } = self;
        tags.finish(|piece| calls.take(piece, parts));
        // A name that nothing followed is no call.
        if let State::Name(name) = &calls.state {
            [OPEN, name].into_iter().for_each(|text| parts.content_text(text));
        }
    }
}

impl Calls {
    fn take(&mut self, piece: Piece, parts: &mut Parts) {
        match (piece, &mut self.state) {
            (Piece::Tag(0), State::Content) => self.state = State::Name(String::new()),
            (Piece::Tag(tag @ (1 | 2)), State::Name(name)) => {
                let name = name.trim().to_owned();
                self.bare.begin(name, parts);
                self.state = State::Call;
                self.take(Piece::Tag(tag), parts);
            }
            (Piece::Tag(1), State::Call) => {
                self.bare.end(parts);
                self.state = State::Content;
            }
            (Piece::Tag(2), State::Call) => self.state = State::Key(String::new()),
            (Piece::Tag(3), State::Key(key)) => {
                self.key = key.trim().to_owned();
                self.state = State::Call;
            }
            (Piece::Tag(4), State::Call) => self.state = State::Value(String::new()),
            (Piece::Tag(5), State::Value(text)) => {
                let text = std::mem::take(text);
                self.bare.argument(&self.key, &text, parts);
                self.state = State::Call;
            }
            (Piece::Tag(tag), State::Name(text) | State::Key(text) | State::Value(text)) => {
                text.push_str(TAGS[tag])
            }
            (Piece::Tag(tag), State::Content) => parts.content_text(TAGS[tag]),
            (Piece::Text(char), State::Content) => parts.content(char),
            (Piece::Text(char), State::Name(text) | State::Key(text) | State::Value(text)) => text.push(char),
            (_, State::Call) => {}
        }
    }
}
