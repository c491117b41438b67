//! Leads one answer through its form.

use std::fmt;

use llguidance::Matcher;
use model::sampler::Mask;

use super::{Grammar, in_words};
use crate::choice::ChoiceError;

/// Where an answer stands in its form. What it knows follows from the grammar and the tokens alone.
pub struct Guide {
    matcher: Matcher,
    /// What may come next, once it was asked for.
    next: Option<Result<Mask, ChoiceError>>,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guide")
    }
}

impl Guide {
    /// A guide of an answer that has these tokens already.
    pub fn new(grammar: &Grammar, tokens: &[u32]) -> Self {
        let mut matcher = Matcher::new(Ok(grammar.parser()));
        // A matcher keeps its error, and says it when it is asked for a mask.
        let _ = matcher.consume_tokens(tokens);
        Self { matcher, next: None }
    }

    /// Finds out what may come next, unless that is known. Whoever has time does it before it is asked for.
    pub fn prepare(&mut self) {
        if self.next.is_none() {
            let mask = self.matcher.compute_mask().map(|mask| Mask::new(mask.as_slice().to_vec()));
            self.next = Some(mask.map_err(|error| failed(&error)));
        }
    }

    /// What may come next.
    pub fn mask(&mut self) -> Result<&Mask, ChoiceError> {
        self.prepare();
        self.next.as_ref().expect("it was prepared").as_ref().map_err(Clone::clone)
    }

    /// Takes the token that came. True: the form is complete, and nothing may follow.
    pub fn handle_token(&mut self, id: u32) -> Result<bool, ChoiceError> {
        self.next = None;
        self.matcher.consume_token(id).map_err(|error| failed(&error))?;
        Ok(self.matcher.is_stopped())
    }
}

fn failed(error: &impl fmt::Display) -> ChoiceError {
    let words = in_words(&error.to_string());
    ChoiceError::Form(match words.starts_with("NoExtension") {
        true => "no token of the vocabulary may come next".into(),
        false => words,
    })
}
