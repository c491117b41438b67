//! Calls after `[TOOL_CALLS]`: a list of JSON objects, or a name and, after `[ARGS]`, its arguments.

use super::json_call::{JsonCall, Step, Value};
use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const CALLS: &str = "[TOOL_CALLS]";
pub(super) const ARGUMENTS: &str = "[ARGS]";
const ID: &str = "[CALL_ID]";
pub(super) const TAGS: [&str; 3] = [CALLS, ARGUMENTS, ID];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Mistral {
    tags: Tags,
    state: State,
}

#[derive(Debug)]
enum State {
    Content,
    /// After the tag.
    Begun,
    /// In the list, between calls.
    List,
    Call(JsonCall),
    Name(String),
    /// Between a call's identity and its arguments.
    Id,
    Arguments {
        value: Value,
        has_begun: bool,
    },
}

impl Mistral {
    pub(super) fn new() -> Self {
        Self { tags: Tags::new(&TAGS), state: State::Content }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, state } = self;
        tags.push(char, |piece| take(state, piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, state } = self;
        tags.finish(|piece| take(state, piece, parts));
        leave(state, parts);
    }
}

/// What has come without an end is told as it is.
fn leave(state: &mut State, parts: &mut Parts) {
    match std::mem::replace(state, State::Content) {
        State::Call(call) => {
            if let Some(text) = call.finish(parts) {
                parts.content_text(&text);
            }
        }
        State::Name(name) => parts.content_text(&name),
        State::Arguments { has_begun: false, .. } => parts.arguments_text("{}"),
        _ => {}
    }
}

fn take(state: &mut State, piece: Piece, parts: &mut Parts) {
    match (piece, &mut *state) {
        (Piece::Tag(0), State::Call(_)) => text(TAGS[0], state, parts),
        (Piece::Tag(0), _) => {
            leave(state, parts);
            *state = State::Begun;
        }
        (Piece::Tag(tag), State::Name(name)) => {
            parts.call(name.trim());
            *state = match tag {
                1 => State::Arguments { value: Value::default(), has_begun: false },
                _ => State::Id,
            };
        }
        (Piece::Tag(1), State::Id) => *state = State::Arguments { value: Value::default(), has_begun: false },
        (Piece::Tag(tag), _) => text(TAGS[tag], state, parts),
        (Piece::Text(char), _) => letter(state, char, parts),
    }
}

fn text(text: &str, state: &mut State, parts: &mut Parts) {
    text.chars().for_each(|char| letter(state, char, parts));
}

fn letter(state: &mut State, char: char, parts: &mut Parts) {
    match state {
        State::Content => parts.content(char),
        State::Begun if char.is_whitespace() => {}
        State::Begun if char == '[' => *state = State::List,
        State::Begun if char == '{' => call(state, char, parts),
        State::Begun => *state = State::Name(char.into()),
        State::List if char == '{' => call(state, char, parts),
        State::List if char == ']' => *state = State::Content,
        State::List if char.is_whitespace() || char == ',' => {}
        State::List => {
            *state = State::Content;
            parts.content(char);
        }
        State::Call(json) => {
            json.push(char, parts);
            if json.is_over() {
                leave(state, parts);
                *state = State::List;
            }
        }
        State::Name(name) => name.push(char),
        State::Id => {}
        State::Arguments { has_begun: false, .. } if char.is_whitespace() => {}
        State::Arguments { value, has_begun } => {
            let step = value.push(char);
            if step != Step::After {
                *has_begun = true;
                parts.arguments(char);
            }
            if step != Step::Within {
                leave(state, parts);
            }
        }
    }
}

fn call(state: &mut State, char: char, parts: &mut Parts) {
    let mut call = JsonCall::default();
    call.push(char, parts);
    *state = State::Call(call);
}
