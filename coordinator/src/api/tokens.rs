//! `/tokenize` and `/detokenize`: what the model makes of a text, and of ids. Their shapes are vLLM's.
//!
//! Pure but for [`Encoder`], which may take its time elsewhere.

use model::plain::check_tokens;
use model::spec::Spec;
use serde_json::{Value, json};

use super::ask::{self, flag};
use super::fields::Fields;
use super::prompt::{Encoder, Prompt};
use super::refusal::Refusal;
use crate::texts::Texts;

pub(super) const TOKENIZE: &[&str] = &["model", "prompt", "add_special_tokens", "return_token_strs"];
pub(super) const DETOKENIZE: &[&str] = &["model", "tokens"];

/// What is to be made ids.
#[derive(Debug)]
pub(super) struct Tokenize {
    pub(super) model: Option<String>,
    prompt: Prompt,
    spells: bool,
}

impl Tokenize {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let fields = Fields::read(ask::utf8(body)?, "", TOKENIZE)?;
        let text = fields.take("prompt", "a string")?.ok_or_else(|| fields.wrong("prompt", "a string"))?;
        let special = fields.take("add_special_tokens", "true or false")?.unwrap_or(true);
        let prompt = Prompt::Text { text, special };
        Ok(Self {
            model: fields.take("model", "a string")?,
            prompt,
            spells: flag(&fields, "return_token_strs")?,
        })
    }

    pub(super) async fn answer(
        self,
        encoder: &Encoder,
        texts: &Texts,
        spec: &Spec,
    ) -> Result<Value, Refusal> {
        let param = self.prompt.param();
        let tokenizer = texts.tokenizer().map_err(|error| Refusal::value(param, error.to_string()))?;
        let ids = encoder.ids(self.prompt, 0).await?;
        let spelling = |id: &u32| tokenizer.token(*id).unwrap_or_default();
        let strings = self.spells.then(|| ids.iter().map(spelling).collect::<Vec<_>>());
        Ok(
            json!({"count": ids.len(), "max_model_len": spec.context_max, "tokens": ids, "token_strs": strings}),
        )
    }
}

/// What is to be made a text.
#[derive(Debug)]
pub(super) struct Detokenize {
    pub(super) model: Option<String>,
    ids: Vec<u32>,
}

impl Detokenize {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        const EXPECTED: &str = "a list of token ids";
        let fields = Fields::read(ask::utf8(body)?, "", DETOKENIZE)?;
        let ids = fields.take("tokens", EXPECTED)?.ok_or_else(|| fields.wrong("tokens", EXPECTED))?;
        Ok(Self { model: fields.take("model", "a string")?, ids })
    }

    /// The text, special tokens too: of the ids of a text it is that text.
    pub(super) fn answer(&self, texts: &Texts, spec: &Spec) -> Result<Value, Refusal> {
        let refuse = |error: &dyn std::error::Error| Refusal::value("tokens", error.to_string());
        check_tokens(spec, &self.ids).map_err(|error| refuse(&error))?;
        let tokenizer = texts.tokenizer().map_err(|error| refuse(&error))?;
        let text = tokenizer.decode(&self.ids, false).map_err(|error| refuse(&error))?;
        Ok(json!({ "prompt": text }))
    }
}
