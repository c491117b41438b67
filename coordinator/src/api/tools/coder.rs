//! Calls in the manner of Qwen3-Coder: `<function=name>` and, for each argument, `<parameter=name>`, the bare value and
//! `</parameter>`.
//!
//! What a bare value is, the function's parameters say: text where they want a string, else JSON, if it is any.

use std::collections::HashMap;

use serde_json::Value;

use super::asked::Function;
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
    state: State,
    /// Parameters that are strings, by function.
    strings: HashMap<String, Vec<String>>,
    function: String,
    parameters_count: usize,
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
        let strings = |function: &Function| {
            let properties = function.parameters["properties"].as_object();
            let is_string = |schema: &Value| is_string(schema);
            let names = properties.into_iter().flatten().filter(|(_, schema)| is_string(schema));
            (function.name.clone(), names.map(|(name, _)| name.clone()).collect())
        };
        Self {
            tags: Tags::new(&TAGS),
            state: State::Content,
            strings: functions.iter().map(strings).collect(),
            function: String::new(),
            parameters_count: 0,
        }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let mut pieces = Vec::new();
        self.tags.push(char, |piece| pieces.push(piece));
        pieces.into_iter().for_each(|piece| self.take(piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let mut pieces = Vec::new();
        self.tags.finish(|piece| pieces.push(piece));
        pieces.into_iter().for_each(|piece| self.take(piece, parts));
        if let State::Function(name) = &self.state {
            [FUNCTION, name].into_iter().for_each(|text| parts.content_text(text));
        }
    }

    fn take(&mut self, piece: Piece, parts: &mut Parts) {
        match (piece, &mut self.state) {
            (Piece::Tag(0), State::Content) => self.state = State::Call,
            (Piece::Tag(2), State::Content | State::Call) => self.state = State::Function(String::new()),
            (Piece::Tag(1), State::Call) => self.state = State::Content,
            (Piece::Tag(3), State::Call) => {
                parts.arguments_text(if self.parameters_count == 0 { "{}" } else { "}" });
                self.parameters_count = 0;
            }
            (Piece::Tag(4), State::Call) => self.state = State::Parameter(String::new()),
            (Piece::Tag(5), State::Value { name, text }) => {
                let name = std::mem::take(name);
                let text = std::mem::take(text);
                self.argument(&name, &text, parts);
                self.state = State::Call;
            }
            (Piece::Tag(tag), State::Value { text, .. }) => text.push_str(TAGS[tag]),
            (Piece::Tag(tag), State::Content) => parts.content_text(TAGS[tag]),
            (Piece::Tag(_), _) => {}
            (Piece::Text(char), State::Content) => parts.content(char),
            (Piece::Text(_), State::Call) => {}
            (Piece::Text('>'), State::Function(name)) => {
                self.function = std::mem::take(name);
                self.state = State::Call;
                self.parameters_count = 0;
                parts.call(&self.function);
            }
            (Piece::Text('>'), State::Parameter(name)) => {
                self.state = State::Value { name: std::mem::take(name), text: String::new() };
            }
            (Piece::Text(char), State::Function(name) | State::Parameter(name)) => name.push(char),
            (Piece::Text(char), State::Value { text, .. }) => text.push(char),
        }
    }

    /// An argument is known.
    fn argument(&mut self, name: &str, text: &str, parts: &mut Parts) {
        // A line end on each side belongs to the tags.
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let is_string = self.strings.get(&self.function).is_some_and(|names| names.iter().any(|n| n == name));
        let json = || serde_json::from_str::<Value>(text).ok().filter(|_| !is_string);
        let value = json().map_or_else(|| Value::from(text).to_string(), |_| text.trim().to_owned());
        let before = if self.parameters_count == 0 { "{" } else { ", " };
        parts.arguments_text(&format!("{before}{}: {value}", Value::from(name)));
        self.parameters_count += 1;
    }
}

/// Whether a schema wants text and nothing else.
pub(super) fn is_string(schema: &Value) -> bool {
    match &schema["type"] {
        Value::String(kind) => kind == "string",
        _ => schema["enum"].as_array().is_some_and(|some| some.iter().all(Value::is_string)),
    }
}
