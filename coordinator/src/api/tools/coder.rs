//! Calls in the manner of Qwen3-Coder: `<function=name>` and, for each argument, `<parameter=name>`, the bare value and
//! `</parameter>`.

use super::asked::Function;
use super::bare::Bare;
use super::hermes::{CLOSE, OPEN};
use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";
pub(super) const PARAMETER: &str = "<parameter=";
pub(super) const PARAMETER_END: &str = "</parameter>";
pub(super) const TAGS: [&str; 6] = [OPEN, CLOSE, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Coder {
    tags: Tags,
    calls: Calls,
}

/// What pieces of it come to.
#[derive(Debug)]
struct Calls {
    state: State,
    bare: Bare,
}

#[derive(Debug)]
enum State {
    Content,
    /// Between tags.
    Call,
    Function(String),
    Parameter(String),
    Value {
        name: String,
        text: String,
    },
}

impl Coder {
    pub(super) fn new(functions: &[Function]) -> Self {
        Self { tags: Tags::new(&TAGS), calls: Calls { state: State::Content, bare: Bare::new(functions) } }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, calls } = self;
        tags.push(char, |piece| calls.take(piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, calls } = self;
        tags.finish(|piece| calls.take(piece, parts));
        if let State::Function(name) = &calls.state {
            [FUNCTION, name].into_iter().for_each(|text| parts.content_text(text));
        }
    }
}

impl Calls {
    fn take(&mut self, piece: Piece, parts: &mut Parts) {
        match (piece, &mut self.state) {
            (Piece::Tag(0), State::Content) => self.state = State::Call,
            (Piece::Tag(2), State::Content | State::Call) => self.state = State::Function(String::new()),
            (Piece::Tag(1), State::Call) => self.state = State::Content,
            (Piece::Tag(3), State::Call) => self.bare.end(parts),
            (Piece::Tag(4), State::Call) => self.state = State::Parameter(String::new()),
            (Piece::Tag(5), State::Value { name, text }) => {
                let name = std::mem::take(name);
                let text = std::mem::take(text);
                // A line end on each side belongs to the tags.
                let text = text.strip_prefix('\n').unwrap_or(&text);
                self.bare.argument(&name, text.strip_suffix('\n').unwrap_or(text), parts);
                self.state = State::Call;
            }
            (Piece::Tag(tag), State::Value { text, .. }) => text.push_str(TAGS[tag]),
            (Piece::Tag(tag), State::Content) => parts.content_text(TAGS[tag]),
            (Piece::Tag(_), _) => {}
            (Piece::Text(char), State::Content) => parts.content(char),
            (Piece::Text(_), State::Call) => {}
            (Piece::Text('>'), State::Function(name)) => {
                let name = std::mem::take(name);
                self.bare.begin(name, parts);
                self.state = State::Call;
            }
            (Piece::Text('>'), State::Parameter(name)) => {
                self.state = State::Value { name: std::mem::take(name), text: String::new() };
            }
            (Piece::Text(char), State::Function(name) | State::Parameter(name)) => name.push(char),
            (Piece::Text(char), State::Value { text, .. }) => text.push(char),
        }
    }
}
