//! The next token of an answer: from logits, history, seed and position, and the form that was asked for.
//!
//! Pure. What a guide knows is what the tokens so far say, so the choice is a function of them still, and a choice that
//! is made again elsewhere is the same. What the model thought of a token is told as if there were no form.

use model::sampler::{self, Logprobs, Sampling, SamplingError};

use crate::grammar::Guide;

/// Why there is no next token.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    /// The logits, or what was asked of them.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The form: it needs more work than one token may cost, or a text that this vocabulary cannot spell.
    #[error("the answer cannot go on in the form that was asked for: {0}")]
    Form(String),
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub id: u32,
    /// What the model thought of it, before the form, penalties, temperature and cuts, if that was asked for.
    pub logprobs: Option<Logprobs>,
    /// The form is complete: nothing may follow.
    pub is_last: bool,
}

/// What a choice depends on beside the logits.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    /// Ids of the prompt.
    pub prompt: &'a [u32],
    /// Ids generated since.
    pub tokens: &'a [u32],
    /// How to choose.
    pub sampling: &'a Sampling,
    /// Report so many likeliest alternatives.
    pub logprobs: Option<usize>,
}

/// Chooses the token after `history`, and leads the guide on past it.
pub fn choose(
    guide: Option<&mut Guide>,
    logits: &[f32],
    history: History<'_>,
) -> Result<Chosen, ChoiceError> {
    let History { prompt, tokens, sampling, logprobs } = history;
    let position = (prompt.len() + tokens.len()) as u64;
    let (id, is_last) = match guide {
        None => (sampler::choose(logits, prompt, tokens, sampling, position)?.token, false),
        Some(guide) => {
            let mask = Some(guide.mask()?);
            let id = sampler::choose_among(mask, logits, prompt, tokens, sampling, position)?.token;
            (id, guide.handle_token(id)?)
        }
    };
    let logprobs = logprobs.map(|count| sampler::logprobs(logits, id, count)).transpose()?;
    Ok(Chosen { id, logprobs, is_last })
}
