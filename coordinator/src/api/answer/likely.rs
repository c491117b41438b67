//! How likely tokens were, in the two shapes that OpenAI's clients read.
//!
//! Pure.

use model::sampler::Logprobs;
use model::text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::generation::Token;

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum LogprobsObject {
    Text(TextLogprobs),
    Chat { content: Vec<ChatLogprob>, refusal: Option<Vec<ChatLogprob>> },
}

#[derive(Serialize, Default)]
pub(super) struct TextLogprobs {
    pub(super) tokens: Vec<String>,
    /// None of a prompt's first token, which nothing goes before.
    pub(super) token_logprobs: Vec<Option<f64>>,
    pub(super) top_logprobs: Vec<Option<Map<String, Value>>>,
    pub(super) text_offset: Vec<usize>,
}

#[derive(Serialize)]
pub(super) struct ChatLogprob {
    #[serde(flatten)]
    pub(super) token: Spelled,
    pub(super) top_logprobs: Vec<Spelled>,
}

/// A token and how likely it was.
#[derive(Serialize)]
pub(super) struct Spelled {
    pub(super) token: String,
    pub(super) logprob: f64,
    pub(super) bytes: Option<Vec<u8>>,
}

/// A prompt that is told with how likely its tokens were.
#[derive(Debug)]
pub(super) struct Echoed {
    pub(super) ids: Vec<u32>,
    /// Characters of its text.
    pub(super) chars: usize,
    /// Once they are known, of all tokens but the first.
    pub(super) logprobs: Option<Vec<Logprobs>>,
}

/// Shows tokens alone, as people may read them.
#[derive(Debug)]
pub(super) struct Speller(pub(super) Option<Tokenizer>);

impl Speller {
    /// How likely these tokens were, of a chat.
    pub(super) fn chat(&self, tokens: &[Token]) -> LogprobsObject {
        let spelled = |&(id, logprob): &(u32, f64)| self.spelled(id, logprob);
        let content = tokens.iter().filter_map(|token| {
            let Logprobs { chosen, top } = token.logprobs.as_ref()?;
            let top_logprobs = top.iter().map(spelled).collect();
            Some(ChatLogprob { token: spelled(&(token.id, *chosen)), top_logprobs })
        });
        LogprobsObject::Chat { content: content.collect(), refusal: None }
    }

    /// The tokens of a prompt, the first of which nothing goes before.
    pub(super) fn push_echoed(&self, echoed: &Echoed, object: &mut TextLogprobs) {
        let Echoed { ids, chars, logprobs } = echoed;
        let mut pieces = self.0.as_ref().map(|tokenizer| tokenizer.stream(false));
        let mut lengths: Vec<usize> = ids
            .iter()
            .map(|id| pieces.as_mut().map_or(0, |pieces| pieces.push(*id).chars().count()))
            .collect();
        if let (Some(pieces), Some(last)) = (&mut pieces, lengths.last_mut()) {
            *last += pieces.finish().chars().count();
        }
        // What the model wants around a text is not part of it.
        let around = lengths.iter().sum::<usize>().saturating_sub(*chars);
        let known = logprobs.iter().flatten().map(Some);
        let mut end = 0;
        for ((id, logprobs), length) in ids.iter().zip(std::iter::once(None).chain(known)).zip(lengths) {
            self.push(*id, logprobs, object);
            object.text_offset.push(usize::saturating_sub(end, around).min(*chars));
            end += length;
        }
    }

    /// One token more, without where its text begins.
    pub(super) fn push(&self, id: u32, logprobs: Option<&Logprobs>, object: &mut TextLogprobs) {
        object.tokens.push(self.spelling(id));
        object.token_logprobs.push(logprobs.map(|logprobs| logprobs.chosen));
        object.top_logprobs.push(logprobs.map(|Logprobs { chosen, top }| {
            let mut alternatives = Map::new();
            // The token itself is among them even where it was not likely; of two with one text the likelier is.
            for &(id, logprob) in top.iter().chain([&(id, *chosen)]) {
                alternatives.entry(self.spelling(id)).or_insert_with(|| logprob.into());
            }
            alternatives
        }));
    }

    fn spelled(&self, id: u32, logprob: f64) -> Spelled {
        let token = self.spelling(id);
        // Of half a character the text is a sign that stands for any bytes.
        let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then(|| token.as_bytes().to_vec());
        Spelled { token, logprob, bytes }
    }

    /// A token alone, as people may read it.
    fn spelling(&self, id: u32) -> String {
        let decoded = self.0.as_ref().and_then(|tokenizer| tokenizer.decode(&[id], false).ok());
        decoded.unwrap_or_else(|| format!("token_id:{id}"))
    }
}
