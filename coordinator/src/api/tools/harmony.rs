//! GPT-OSS's messages: each has a channel, `analysis` for thoughts, `final` for the answer, `commentary` for calls and for
//! words that go with them; a call names its recipient.

use super::parts::Parts;
use super::tags::{Piece, Tags};

pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const CONSTRAIN: &str = "<|constrain|>";
pub(super) const START: &str = "<|start|>";
pub(super) const END: &str = "<|end|>";
pub(super) const TAGS: [&str; 7] = [CHANNEL, MESSAGE, CONSTRAIN, START, END, "<|call|>", "<|return|>"];
/// Longer than any header: what goes on without a message is none.
const HEADER_BYTES_MAX: usize = 256;
/// Begins the names of functions.
const FUNCTIONS: &str = "functions.";

/// Reads such an answer.
#[derive(Debug)]
pub(super) struct Harmony {
    tags: Tags,
    state: State,
}

#[derive(Debug)]
enum State {
    Header { text: String, channel: Option<usize> },
    Body(Kind),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Thoughts,
    Content,
    Call,
}

impl State {
    fn header() -> Self {
        State::Header { text: String::new(), channel: None }
    }
}

impl Harmony {
    pub(super) fn new() -> Self {
        Self { tags: Tags::new(&TAGS), state: State::header() }
    }

    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        let Self { tags, state } = self;
        tags.push(char, |piece| take(state, piece, parts));
    }

    pub(super) fn finish(&mut self, parts: &mut Parts) {
        let Self { tags, state } = self;
        tags.finish(|piece| take(state, piece, parts));
        // A text without any header is an answer all the same.
        if let State::Header { text, channel: None } = state
            && text.trim() != "assistant"
        {
            parts.content_text(text);
        }
    }
}

fn take(state: &mut State, piece: Piece, parts: &mut Parts) {
    match (piece, &mut *state) {
        (Piece::Text(char), State::Header { text, channel }) => {
            text.push(char);
            if text.len() > HEADER_BYTES_MAX && channel.is_none() {
                parts.content_text(text);
                *state = State::Body(Kind::Content);
            }
        }
        (Piece::Tag(0), State::Header { text, channel }) => {
            text.push(' ');
            *channel = Some(text.len());
        }
        (Piece::Tag(1), State::Header { text, channel }) => {
            *state = State::Body(kind(text, channel.unwrap_or(0), parts));
        }
        // Between the words of a header.
        (Piece::Tag(2), State::Header { text, .. }) => text.push(' '),
        (Piece::Tag(0), State::Body(_)) => *state = State::Header { text: String::new(), channel: Some(0) },
        (Piece::Tag(_), _) => *state = State::header(),
        (Piece::Text(char), State::Body(Kind::Thoughts)) => parts.reasoning(char),
        (Piece::Text(char), State::Body(Kind::Content)) => parts.content(char),
        (Piece::Text(char), State::Body(Kind::Call)) => parts.arguments(char),
    }
}

/// What a message is, by its header; the channel's name begins at `channel`.
fn kind(header: &str, channel: usize, parts: &mut Parts) -> Kind {
    let recipient = header.split_whitespace().find_map(|word| word.strip_prefix("to="));
    if let Some(name) = recipient.and_then(|name| name.strip_prefix(FUNCTIONS)) {
        parts.call(name);
        return Kind::Call;
    }
    match header[channel..].split_whitespace().next() {
        Some("analysis") => Kind::Thoughts,
        // To nobody that the client knows of.
        Some("commentary") if recipient.is_some() => Kind::Thoughts,
        _ => Kind::Content,
    }
}
