//! One answer: from logits to tokens to text, until something ends it.
//!
//! Pure. It holds no weights and computes nothing: whoever runs the model asks for
//! [`Generation::next_tokens`], computes them, and brings the logits back. Since a choice depends on
//! logits, history, seed and position alone, an answer can be taken up again anywhere from its prompt and
//! the tokens so far.

use std::sync::Arc;

use model::bias::Bias;
use model::sampler::{Logprobs, Sampling};
use model::text::{StopStream, TextStream};

use crate::choice::{self, ChoiceError, Chosen, History};
use crate::grammar::{Grammar, Guide};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, a stop string came, or the form that it keeps to is complete.
    Stop,
    /// It has as many tokens as it may, or as there is room for.
    Length,
}

impl FinishReason {
    /// The word that clients know.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// How to choose.
    pub sampling: Sampling,
    /// Most tokens of the answer; with none only the prompt is computed.
    pub tokens_max: usize,
    /// Ids that end the answer. They are not part of it.
    pub end_ids: Vec<u32>,
    /// Report what the model thought of each token, and so many likeliest alternatives. It costs a pass
    /// over the vocabulary per token.
    pub logprobs: Option<usize>,
    /// Report the same of every token of the prompt but the first, and of the id that ends the answer, which then is part of
    /// it: so whoever adds logprobs up finds one for each token that was computed.
    pub prompt_logprobs: bool,
    /// Report the experts that computed each token.
    pub experts: bool,
    /// The form that the answer keeps to.
    pub grammar: Option<Grammar>,
    /// The bias under which all its rows choose, from the first of the prompt to the last.
    pub bias: Option<Arc<Bias>>,
}

/// A token of the answer, and what the model thought of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What the model thought of it, before penalties, temperature and cuts, if that was asked for.
    pub logprobs: Option<Logprobs>,
    /// The experts of the row that it was chosen from, by layer and rank, if that was asked for.
    pub experts: Vec<u32>,
}

/// What one step brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// The token that was added to the answer, if the answer did not end before it.
    pub token: Option<Token>,
    /// Text that may be shown.
    pub text: String,
}

/// An answer under way.
#[derive(Debug)]
pub struct Generation {
    request: Request,
    tokens: Vec<u32>,
    text: Option<TextStream>,
    stop: StopStream,
    finish: Option<FinishReason>,
    /// Of an answer that keeps to a form, once it chooses its own tokens.
    guide: Option<Guide>,
}

impl Generation {
    /// An answer that has not begun. Without `text` it stays ids, and stop strings never come.
    pub fn new(request: Request, text: Option<TextStream>, stop: StopStream) -> Self {
        assert!(!request.prompt.is_empty(), "a prompt has at least one token");
        Self { request, tokens: Vec::new(), text, stop, finish: None, guide: None }
    }

    /// What is to be computed next: the prompt, then the last token. Nothing once it has ended.
    pub fn next_tokens(&self) -> &[u32] {
        match (self.finish, self.tokens.last()) {
            (Some(_), _) => &[],
            (None, None) => &self.request.prompt,
            (None, Some(last)) => std::slice::from_ref(last),
        }
    }

    /// Takes the logits that follow the tokens last asked for.
    pub fn handle_logits(&mut self, logits: &[f32]) -> Result<Step, ChoiceError> {
        let Self { request: Request { prompt, sampling, logprobs, grammar, .. }, tokens, guide, .. } = self;
        if let (Some(grammar), None) = (grammar, &guide) {
            *guide = Some(Guide::new(grammar, tokens));
        }
        let history = History { prompt, tokens, sampling, logprobs: *logprobs };
        let chosen = choice::choose(guide.as_mut(), logits, history)?;
        Ok(self.handle_choice(chosen))
    }

    /// Takes what was chosen after the tokens last asked for.
    pub fn handle_choice(&mut self, Chosen { id, logprobs, is_last }: Chosen) -> Step {
        let mut step = self.handle_token(id, logprobs);
        // What was held back for a token that does not come is text.
        if is_last && self.request.tokens_max > 0 && self.finish.replace(FinishReason::Stop).is_none() {
            step.text += &self.flush();
        }
        step
    }

    /// Takes the token that was chosen after the tokens last asked for.
    pub fn handle_token(&mut self, id: u32, logprobs: Option<Logprobs>) -> Step {
        assert!(self.finish.is_none(), "an ended answer takes no tokens");
        let Request { tokens_max, end_ids, .. } = &self.request;
        if *tokens_max == 0 {
            self.finish = Some(FinishReason::Length);
            return Step::default();
        }
        if end_ids.contains(&id) {
            self.finish = Some(FinishReason::Stop);
            let token = self.request.prompt_logprobs.then(|| Token { id, logprobs, experts: Vec::new() });
            return Step { token, text: self.flush() };
        }
        self.tokens.push(id);
        let piece = self.text.as_mut().map(|text| text.push(id)).unwrap_or_default();
        let mut text = self.stop.push(&piece).text;
        if self.stop.is_stopped() {
            self.finish = Some(FinishReason::Stop);
        } else if self.tokens.len() == *tokens_max {
            self.finish = Some(FinishReason::Length);
            text += &self.flush();
        }
        Step { token: Some(Token { id, logprobs, experts: Vec::new() }), text }
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// There is no room for another token: the answer ends as one that is as long as it may be. Returns
    /// the text that was held back.
    pub fn handle_full(&mut self) -> String {
        assert!(self.finish.is_none(), "an ended answer needs no room");
        self.finish = Some(FinishReason::Length);
        self.flush()
    }

    /// The answer's ids so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Text held back: half a character, or what might have become a stop string.
    fn flush(&mut self) -> String {
        let piece = self.text.as_mut().map(TextStream::finish).unwrap_or_default();
        let mut text = self.stop.push(&piece).text;
        text += &self.stop.finish();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::text::Tokenizer;

    fn tokenizer() -> Tokenizer {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model");
        Tokenizer::open(std::path::Path::new(dir)).expect("the demo model has a tokenizer")
    }

    fn logits(id: u32) -> Vec<f32> {
        (0..264).map(|i| if i == id { 9.0 } else { 0.0 }).collect()
    }

    fn generation(stops: &[&str], tokens_max: usize) -> Generation {
        let tokenizer = tokenizer();
        let request = Request {
            prompt: tokenizer.encode("x=", true).expect("text"),
            sampling: Sampling::greedy(),
            tokens_max,
            end_ids: vec![257],
            logprobs: Some(1),
            prompt_logprobs: false,
            experts: false,
            grammar: None,
            bias: None,
        };
        let stops = stops.iter().map(|s| s.to_string()).collect();
        Generation::new(request, Some(tokenizer.stream(true)), StopStream::new(stops).expect("few"))
    }

    fn run(generation: &mut Generation, ids: &[u32]) -> String {
        ids.iter().map(|id| generation.handle_logits(&logits(*id)).expect("finite").text).collect()
    }

    /// The prompt is computed once, then each token as it is chosen; the end token is not part of it.
    #[test]
    fn the_end_token_ends_an_answer_and_is_not_part_of_it() {
        let mut generation = generation(&[], 10);
        assert_eq!(generation.next_tokens(), [120, 61]);
        assert_eq!(run(&mut generation, &[56]), "8");
        assert_eq!(generation.next_tokens(), [56]);
        run(&mut generation, &[59, 257]);
        assert_eq!(generation.tokens(), [56, 59]);
        assert_eq!(generation.finish_reason(), Some(FinishReason::Stop));
        assert!(generation.next_tokens().is_empty());
    }

    /// Where the prompt is looked at too, there is a logprob for the id that was computed last, or for none.
    #[test]
    fn what_is_added_up_has_its_end() {
        let of = |tokens_max: usize| {
            let mut request = generation(&[], 10).request;
            (request.tokens_max, request.prompt_logprobs) = (tokens_max, true);
            Generation::new(request, None, StopStream::new(Vec::new()).expect("none"))
        };
        let mut ended = of(10);
        ended.handle_logits(&logits(56)).expect("finite");
        let last = ended.handle_logits(&logits(257)).expect("finite").token.expect("it is told");
        assert_eq!((last.id, last.logprobs.map(|likely| likely.top[0].0)), (257, Some(257)));
        assert_eq!((ended.finish_reason(), ended.tokens()), (Some(FinishReason::Stop), &[56][..]));

        let mut none = of(0);
        assert_eq!(none.next_tokens(), [120, 61]);
        assert_eq!(none.handle_logits(&logits(56)).expect("finite"), Step::default());
        assert_eq!((none.finish_reason(), none.tokens().len()), (Some(FinishReason::Length), 0));
    }

    /// Text that might become a stop string is held, and shown if it does not.
    #[test]
    fn a_stop_string_ends_an_answer_before_itself() {
        let mut stopped = generation(&["89;"], 10);
        assert_eq!(run(&mut stopped, &[55, 56, 57]), "7");
        assert_eq!(run(&mut stopped, &[59]), "");
        assert_eq!(stopped.finish_reason(), Some(FinishReason::Stop));

        let mut cut = generation(&["89;"], 10);
        assert_eq!(run(&mut cut, &[55, 56, 57]), "7");
        assert_eq!(cut.handle_full(), "89");
        assert_eq!(cut.finish_reason(), Some(FinishReason::Length));

        let mut full = generation(&["89;"], 3);
        assert_eq!(run(&mut full, &[55, 56, 57]), "789");
        assert_eq!(full.finish_reason(), Some(FinishReason::Length));
    }
}
