//! Calls in the manner of Llama 3: the answer is a JSON object, `{"name": …, "parameters": …}`, or several with `;` between.
//!
//! Nothing but the function's name tells a call from any other object: so an answer that is one is held back until it names a
//! function that is offered, and is text if it does not.

use super::asked::Function;
use super::json_call::JsonCall;
use super::parts::{Part, Parts};
use super::tags::{Piece, Tags};

/// By which templates of it are known: what they ask of the model.
pub(super) const ASKED: &str = "{\"name\": function name, \"parameters\": ";
/// What may come before a call.
const PYTHON: &str = "<|python_tag|>";
pub(super) const TAGS: [&str; 1] = [PYTHON];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Llama {
    tags: Tags,
    state: State,
    functions: Vec<String>,
}

#[derive(Debug)]
enum State {
    /// A call may begin.
    Begin,
    Call(Box<Call>),
    Content,
}

/// An object that may be a call.
#[derive(Debug, Default)]
struct Call {
    json: JsonCall,
    parts: Parts,
    /// All of it so far, until it is known to be one.
    raw: String,
    is_known: bool,
}

impl Call {
    /// Tells what is known of the call; false if it is none.
    fn tell(&mut self, functions: &[String], parts: &mut Parts) -> bool {
        for part in self.parts.take() {
            match part {
                Part::Call(name) if functions.contains(&name) => {
                    self.is_known = true;
                    parts.call(&name);
                }
                Part::Call(_) => return false,
                Part::Arguments(text) => parts.arguments_text(&text),
                Part::Content(_) | Part::Reasoning(_) => {}
            }
        }
        true
    }
}

impl Llama {
    pub(super) fn new(functions: &[Function]) -> Self {
        let functions = functions.iter().map(|function| function.name.clone()).collect();
        Self { tags: Tags::new(&TAGS), state: State::Begin, functions }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, state, functions } = self;
        tags.push(char, |piece| take(state, functions, piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, state, functions } = self;
        tags.finish(|piece| take(state, functions, piece, parts));
        if let State::Call(call) = std::mem::replace(state, State::Content) {
            end(*call, functions, parts);
        }
    }
}

fn take(state: &mut State, functions: &[String], piece: Piece, parts: &mut Parts) {
    match (piece, &mut *state) {
        (Piece::Tag(_), State::Begin) => {}
        (Piece::Tag(tag), _) => TAGS[tag].chars().for_each(|char| letter(state, functions, char, parts)),
        (Piece::Text(char), _) => letter(state, functions, char, parts),
    }
}

fn letter(state: &mut State, functions: &[String], char: char, parts: &mut Parts) {
    match state {
        State::Content => parts.content(char),
        State::Begin if char.is_whitespace() => parts.content(char),
        State::Begin if char == ';' && parts.has_calls() => {}
        State::Begin if char == '{' => {
            *state = State::Call(Box::default());
            letter(state, functions, char, parts);
        }
        State::Begin => {
            *state = State::Content;
            parts.content(char);
        }
        State::Call(call) => {
            if !call.is_known {
                call.raw.push(char);
            }
            call.json.push(char, &mut call.parts);
            let is_call = call.tell(functions, parts);
            if !is_call || call.json.is_over() {
                let call = std::mem::take(call);
                *state = if end(*call, functions, parts) { State::Begin } else { State::Content };
            }
        }
    }
}

/// Nothing more comes of an object. Says whether it was a call; if not, it is text.
fn end(mut call: Call, functions: &[String], parts: &mut Parts) -> bool {
    let json = std::mem::take(&mut call.json);
    if call.is_known {
        let _ = json.finish(&mut call.parts);
        call.tell(functions, parts);
    } else {
        parts.content_text(&call.raw);
    }
    call.is_known
}
