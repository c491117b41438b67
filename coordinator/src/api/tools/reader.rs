//! Tells content, thoughts and calls apart in the text of an answer.

use super::asked::Function;
use super::coder::Coder;
use super::deepseek::DeepSeek;
use super::harmony::Harmony;
use super::hermes::Hermes;
use super::mistral::Mistral;
use super::parts::{Part, Parts};
use super::thoughts::Thoughts;
use super::Format;

/// Reads one answer.
#[derive(Debug)]
pub(in crate::api) struct Reader {
    thoughts: Option<Thoughts>,
    format: Machine,
    parts: Parts,
}

#[derive(Debug)]
enum Machine {
    /// All of it is content.
    Text,
    Hermes(Hermes),
    Coder(Box<Coder>),
    Mistral(Mistral),
    DeepSeek(DeepSeek),
    Harmony(Harmony),
}

impl Machine {
    fn push(&mut self, parts: &mut Parts, char: char) {
        match self {
            Machine::Text => parts.content(char),
            Machine::Hermes(hermes) => hermes.push(char, parts),
            Machine::Coder(coder) => coder.push(char, parts),
            Machine::Mistral(mistral) => mistral.push(char, parts),
            Machine::DeepSeek(deepseek) => deepseek.push(char, parts),
            Machine::Harmony(harmony) => harmony.push(char, parts),
        }
    }

    fn finish(&mut self, parts: &mut Parts) {
        match self {
            Machine::Text => {}
            Machine::Hermes(hermes) => hermes.finish(parts),
            Machine::Coder(coder) => coder.finish(parts),
            Machine::Mistral(mistral) => mistral.finish(parts),
            Machine::DeepSeek(deepseek) => deepseek.finish(parts),
            Machine::Harmony(harmony) => harmony.finish(parts),
        }
    }
}

impl Reader {
    /// A reader of an answer with calls of this format, if there may be any, and with thoughts, if there are: then it is
    /// said whether the prompt ends within them.
    pub(in crate::api) fn new(
        format: Option<Format>,
        functions: &[Function],
        thoughts: Option<bool>,
    ) -> Self {
        let format = match format {
            None => Machine::Text,
            Some(Format::Hermes) => Machine::Hermes(Hermes::new()),
            Some(Format::Coder) => Machine::Coder(Box::new(Coder::new(functions))),
            Some(Format::Mistral { .. }) => Machine::Mistral(Mistral::new()),
            Some(Format::DeepSeek { fenced }) => Machine::DeepSeek(DeepSeek::new(fenced)),
            Some(Format::Harmony) => Machine::Harmony(Harmony::new()),
        };
        Self { thoughts: thoughts.map(Thoughts::new), format, parts: Parts::default() }
    }

    /// Takes the next piece of the text and returns what is known by now.
    pub(in crate::api) fn push(&mut self, text: &str) -> Vec<Part> {
        let Self { thoughts, format, parts } = self;
        for char in text.chars() {
            match thoughts {
                None => format.push(parts, char),
                Some(thoughts) => thoughts.push(char, parts, &mut |parts, char| format.push(parts, char)),
            }
        }
        parts.take()
    }

    /// Nothing follows.
    pub(in crate::api) fn finish(&mut self) -> Vec<Part> {
        let Self { thoughts, format, parts } = self;
        if let Some(thoughts) = thoughts {
            thoughts.finish(parts, &mut |parts, char| format.push(parts, char));
        }
        format.finish(parts);
        parts.finish();
        parts.take()
    }
}
