//! One choice of an answer: what has not been told of it, and how far it has got.
//!
//! Pure.

use std::collections::BTreeMap;

use model::text::TextStream;

use super::likely::{Echoed, Speller, TextLogprobs};
use crate::api::resume::TokensSum;
use crate::api::said::CallNews;
use crate::api::tools::{Part, Reader};
use crate::generation::{FinishReason, Token};

/// One choice of it.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// What has not been told yet.
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<CallNews>,
    pub(super) calls_count: usize,
    /// Tells these apart in what the model writes.
    pub(super) reader: Option<Reader>,
    pub(super) tokens: Vec<Token>,
    pub(super) is_begun: bool,
    pub(super) finish: Option<FinishReason>,
    /// What rows went on without, by layer and expert.
    pub(super) missing: BTreeMap<(u32, u32), u64>,
    /// Where each token's text begins, which only the tokens before it can say.
    pub(super) pieces: Option<TextStream>,
    pub(super) offset: usize,
    /// The prompt, of an answer that begins with it and tells how likely tokens were.
    pub(super) echoed: Option<Echoed>,
    /// How far it has got.
    pub(super) steps: Steps,
    /// Up to where its client has it already.
    pub(super) told: Option<Steps>,
}

/// How far a choice has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Steps {
    pub(super) tokens_count: u32,
    pub(super) tokens: TokensSum,
    pub(super) is_flushed: bool,
}

impl Telling {
    pub(super) fn take_parts(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Content(text) => self.text += &text,
                Part::Reasoning(text) => self.reasoning += &text,
                Part::Call(name) => {
                    let index = self.calls_count;
                    self.calls_count += 1;
                    self.calls.push(CallNews { index, name: Some(name), arguments: String::new() });
                }
                Part::Arguments(text) => {
                    let index = self.calls_count.saturating_sub(1);
                    match self.calls.last_mut() {
                        Some(call) => call.arguments += &text,
                        None => self.calls.push(CallNews { index, name: None, arguments: text }),
                    }
                }
            }
        }
    }

    /// The next token's text begins where this one's ends.
    pub(super) fn pass_over(&mut self, id: u32) {
        let piece = self.pieces.as_mut().map(|pieces| pieces.push(id)).unwrap_or_default();
        self.offset += piece.chars().count();
    }

    /// A text that its client has: whoever tells calls from text reads it, and nothing is told.
    pub(super) fn read_over(&mut self, text: &str) {
        let Some(reader) = &mut self.reader else { return };
        let parts = reader.push(text);
        self.take_parts(parts);
        self.text.clear();
        self.reasoning.clear();
        self.calls.clear();
    }

    pub(super) fn finish_reason(&self) -> Option<&'static str> {
        match self.finish? {
            FinishReason::Stop if self.calls_count > 0 => Some("tool_calls"),
            reason => Some(reason.name()),
        }
    }

    /// How likely these tokens were, of a text; before the first of them the prompt's, once they are known.
    pub(super) fn text_logprobs(&mut self, speller: &Speller, tokens: &[Token]) -> TextLogprobs {
        let mut object = TextLogprobs::default();
        if let Some(echoed) = self.echoed.take_if(|echoed| echoed.logprobs.is_some()) {
            speller.push_echoed(&echoed, &mut object);
        }
        for token in tokens {
            let Some(logprobs) = &token.logprobs else { continue };
            speller.push(token.id, Some(logprobs), &mut object);
            object.text_offset.push(self.offset);
            self.pass_over(token.id);
        }
        object
    }
}
