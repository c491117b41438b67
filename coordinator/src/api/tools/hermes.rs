//! Calls between `<tool_call>` and `</tool_call>`, each a JSON object.

use super::json_call::JsonCall;
use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
pub(super) const TAGS: [&str; 2] = [OPEN, CLOSE];

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Hermes {
    tags: Tags,
    call: Option<JsonCall>,
}

impl Hermes {
    pub(super) fn new() -> Self {
        Self { tags: Tags::new(&TAGS), call: None }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, call } = self;
        tags.push(char, |piece| take(call, piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, call } = self;
        tags.finish(|piece| take(call, piece, parts));
        end(call, "", parts);
    }
}

fn take(call: &mut Option<JsonCall>, piece: Piece, parts: &mut Parts) {
    match (piece, call.as_mut()) {
        (Piece::Tag(0), _) => {
            end(call, "", parts);
            *call = Some(JsonCall::default());
        }
        (Piece::Tag(_), Some(_)) => end(call, CLOSE, parts),
        (Piece::Tag(tag), None) => parts.content_text(TAGS[tag]),
        (Piece::Text(char), Some(call)) => call.push(char, parts),
        (Piece::Text(char), None) => parts.content(char),
    }
}

/// A call has ended. What was none is text, tags and all.
fn end(call: &mut Option<JsonCall>, close: &str, parts: &mut Parts) {
    if let Some(text) = call.take().and_then(|call| call.finish(parts)) {
        [OPEN, &text, close].into_iter().for_each(|text| parts.content_text(text));
    }
}
