//! How an answer is told: OpenAI's objects for completions and chats, whole or in chunks.
//!
//! Pure: the identity and the time of an answer are arguments. A stream's texts, one after the other, are the plain
//! answer's text, and its other lists likewise. An answer has one or more choices, each with a text of its own; a chunk
//! is of one choice.

mod likely;
mod object;
mod telling;

use std::collections::BTreeMap;
use std::ops::Range;

use model::bias::Bias;
use model::sampler::Logprobs;
use model::text::Tokenizer;
use serde::Serialize;

use self::likely::{Echoed, LogprobsObject, Speller};
use self::object::{Choice, Extension, MissingExpert, Object, PromptDetails, Usage, write_json};
use self::telling::{Steps, Telling};
use super::resume::{EventId, Place, Stream};
use super::said::{Call, CallFunction, CallIdentity, CallNews, News, said};
use super::tools::{Format, Reader};
use crate::data::request::Missing;
use crate::generation::{FinishReason, Token};

/// What is the same in every chunk of an answer.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) system_fingerprint: String,
}

/// What the client wants to hear beside the text.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) logprobs: bool,
    pub(super) token_ids: bool,
    pub(super) usage: bool,
    /// Layers whose experts are told of each token, and how many each has; none, where nobody wants to know.
    pub(super) experts: Vec<(usize, usize)>,
}

/// In which of OpenAI's forms an answer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `/v1/completions`.
    Text,
    /// `/v1/chat/completions`.
    Chat,
}

impl Form {
    /// What clients call such an answer.
    pub(super) fn object(self, is_stream: bool) -> &'static str {
        match (self, is_stream) {
            (Form::Text, _) => "text_completion",
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
        }
    }

    /// How the names of its answers begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Form::Text => "cmpl",
            Form::Chat => "chatcmpl",
        }
    }
}

/// An answer that is being told.
#[derive(Debug)]
pub(super) struct Answer {
    head: Head,
    form: Form,
    wanted: Wanted,
    seed: u64,
    /// The digest of the bias that it is computed under.
    bias: Option<String>,
    prompt: Vec<u32>,
    prompt_tokens: usize,
    is_begun: bool,
    tokens_count: usize,
    /// Tokens of the prompt that the first choice found computed.
    cached_count: usize,
    speller: Speller,
    /// What the ids of a stream have in common.
    stream: Option<Stream>,
    /// Which choice is the first of `tellings`.
    first_choice: usize,
    tellings: Vec<Telling>,
    /// How the model writes calls, and what their names begin from.
    format: Option<Format>,
    calls_seed: u64,
}

/// What is computed again is not what was told: there is no way to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Astray;

impl Answer {
    /// An answer of so many choices of which nothing has been told. `tokenizer` shows tokens where their logprobs are
    /// wanted.
    pub(super) fn new(
        head: Head,
        form: Form,
        choices: usize,
        wanted: Wanted,
        seed: u64,
        prompt: Vec<u32>,
        tokenizer: Option<(Tokenizer, bool)>,
    ) -> Self {
        let tokenizer = tokenizer.filter(|_| wanted.logprobs);
        let telling = |_| Telling {
            pieces: tokenizer.as_ref().map(|(tokenizer, skip_special)| tokenizer.stream(*skip_special)),
            ..Telling::default()
        };
        let tellings = (0..choices).map(telling).collect();
        let speller = Speller(tokenizer.map(|(tokenizer, _)| tokenizer));
        Self {
            head,
            form,
            wanted,
            seed,
            bias: None,
            prompt_tokens: prompt.len(),
            prompt,
            is_begun: false,
            tokens_count: 0,
            cached_count: 0,
            speller,
            stream: None,
            first_choice: 0,
            tellings,
            format: None,
            calls_seed: 0,
        }
    }

    /// So many tokens have all its prompts together, of which it knows the first.
    pub(super) fn count_prompts(&mut self, tokens: usize) {
        self.prompt_tokens = tokens;
    }

    /// It is computed under this bias.
    pub(super) fn name_bias(&mut self, bias: Option<&Bias>) {
        self.bias = bias.map(|bias| bias.digest().to_string());
    }

    /// Tokens of all its prompts.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The text of a choice begins with that of its prompt.
    pub(super) fn echo(&mut self, index: usize, prompt: &str, ids: &[u32]) {
        let telling = &mut self.tellings[index];
        telling.text += prompt;
        if self.wanted.logprobs {
            let chars = prompt.chars().count();
            telling.offset = chars;
            telling.echoed = Some(Echoed { ids: ids.to_vec(), chars, logprobs: None });
        }
    }

    /// The one choice that is gone on with has begun with its prompt.
    pub(super) fn pass_over_echo(&mut self, prompt: &str) {
        self.tellings[0].offset += prompt.chars().count();
    }

    /// How likely the tokens of a choice's prompt were, but the first. Who goes on has heard it.
    pub(super) fn set_prompt(&mut self, index: usize, logprobs: Vec<Logprobs>) {
        if let Some(echoed) = &mut self.tellings[index].echoed {
            echoed.logprobs = Some(logprobs);
        }
    }

    /// Has calls and thoughts told apart from content; `calls` tells this answer's calls from those of others.
    pub(super) fn read_with(&mut self, format: Option<Format>, calls: u64, reader: impl Fn() -> Reader) {
        (self.format, self.calls_seed) = (format, calls);
        self.tellings.iter_mut().for_each(|telling| telling.reader = Some(reader()));
    }

    /// The same with an id for each event.
    pub(super) fn with_ids(mut self, stream: Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Goes on where a client has this one choice already, as if all before had been told. `tokens` come from the client and will
    /// not come again.
    pub(super) fn resumed(mut self, place: &Place, tokens: &[u32]) -> Self {
        let Place { choice, tokens_count, tokens: sum, is_flushed, .. } = *place;
        (self.first_choice, self.is_begun) = (choice, true);
        self.tellings[0].is_begun = true;
        self.tellings[0].told = Some(Steps { tokens_count, tokens: sum, is_flushed });
        for id in tokens {
            self.take_step(0, Some(*id));
            self.tellings[0].pass_over(*id);
        }
        self
    }

    /// A text that came with tokens of the client's own.
    pub(super) fn read_over(&mut self, text: &str) {
        self.tellings[0].read_over(text);
    }

    /// What is told of a choice of which nothing is left to compute: its end, if there is a reason for it, and that of the stream.
    pub(super) fn write_rest(&mut self, reason: Option<FinishReason>) -> Vec<u8> {
        let mut out = Vec::new();
        let telling = &mut self.tellings[0];
        telling.finish = reason;
        if let Some(parts) = telling.reader.as_mut().map(Reader::finish) {
            telling.take_parts(parts);
        }
        match reason {
            Some(_) => self.write_chunk(0, &mut out),
            None => {
                // All of its tokens were told.
                self.tokens_count = self.tellings[0].told.map_or(0, |told| told.tokens_count as usize);
                self.write_end(&mut out);
            }
        }
        out
    }

    /// Takes a step of a choice. What its client has is not told again.
    pub(super) fn push(&mut self, index: usize, token: Option<Token>, text: &str) -> Result<(), Astray> {
        self.take_step(index, token.as_ref().map(|token| token.id));
        let telling = &mut self.tellings[index];
        if let Some(told) = telling.told {
            let Steps { tokens_count, tokens, is_flushed } = telling.steps;
            if (tokens_count, is_flushed) <= (told.tokens_count, told.is_flushed) {
                let is_there = tokens_count == told.tokens_count;
                token.iter().for_each(|token| telling.pass_over(token.id));
                telling.read_over(text);
                return if is_there && tokens != told.tokens { Err(Astray) } else { Ok(()) };
            }
        }
        match telling.reader.as_mut().map(|reader| reader.push(text)) {
            Some(parts) => telling.take_parts(parts),
            None => telling.text += text,
        }
        if self.wanted.token_ids || self.wanted.logprobs || !self.wanted.experts.is_empty() {
            telling.tokens.extend(token);
        }
        Ok(())
    }

    fn take_step(&mut self, index: usize, id: Option<u32>) {
        let steps = &mut self.tellings[index].steps;
        match id {
            Some(id) => {
                steps.tokens_count += 1;
                steps.tokens.push(id);
                self.tokens_count += 1;
            }
            None => steps.is_flushed = true,
        }
    }

    /// So many tokens of the prompt did not have to be computed for a choice. The first choice's count is told: others may
    /// have found what it computed.
    pub(super) fn set_cached(&mut self, index: usize, count: usize) {
        if index == 0 {
            self.cached_count = count;
        }
    }

    /// Rows of a choice went on without these.
    pub(super) fn take_missing(&mut self, index: usize, missing: &[Missing]) {
        for Missing { layer, expert, rows } in missing {
            *self.tellings[index].missing.entry((*layer, *expert)).or_default() += rows;
        }
    }

    /// A choice has ended.
    pub(super) fn end(&mut self, index: usize, reason: FinishReason) -> Result<(), Astray> {
        let telling = &mut self.tellings[index];
        telling.finish = Some(reason);
        if let Some(parts) = telling.reader.as_mut().map(Reader::finish) {
            telling.take_parts(parts);
        }
        match telling.told {
            Some(told) if telling.steps.tokens_count < told.tokens_count => Err(Astray),
            _ => Ok(()),
        }
    }

    /// Whether every choice has ended.
    pub(super) fn is_complete(&self) -> bool {
        self.tellings.iter().all(|telling| telling.finish.is_some())
    }

    /// Whether there is something to tell of a choice.
    pub(super) fn has_news(&self, index: usize) -> bool {
        let telling = &self.tellings[index];
        let has_text = !telling.text.is_empty() || !telling.reasoning.is_empty() || !telling.calls.is_empty();
        has_text || !telling.tokens.is_empty() || telling.finish.is_some()
    }

    /// Writes what has not been told of a choice as a chunk: one line of a stream and the empty line after it.
    pub(super) fn write_chunk(&mut self, index: usize, out: &mut Vec<u8>) {
        // Where the usage comes at the end, every other chunk says that it does not have it.
        let usage = self.wanted.usage.then_some(None);
        self.write_id(index, out);
        out.extend_from_slice(b"data: ");
        self.write(index..index + 1, true, usage, out);
        out.extend_from_slice(b"\n\n");
        if self.is_complete() {
            self.write_end(out);
        }
    }

    /// Writes the whole answer as one object.
    pub(super) fn write_whole(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(0..self.tellings.len(), false, Some(Some(self.usage())), &mut out);
        out
    }

    /// By which a client that is cut off after this event comes back.
    fn write_id(&self, index: usize, out: &mut Vec<u8>) {
        let Some(stream) = self.stream else { return };
        let telling = &self.tellings[index];
        let Steps { tokens_count, tokens, is_flushed } = telling.steps;
        let choice = self.first_choice + index;
        let (is_ended, has_left_out) = (telling.finish.is_some(), !telling.missing.is_empty());
        let place = Place { choice, tokens_count, tokens, is_flushed, is_ended, has_left_out };
        out.extend_from_slice(format!("id: {}\n", EventId { stream, place }.write()).as_bytes());
    }

    /// Usage if wanted, and the line that ends a stream.
    fn write_end(&self, out: &mut Vec<u8>) {
        if self.wanted.usage {
            let usage = Some(Some(self.usage()));
            let object = Object { head: &self.head, choices: &[], usage, phalanx: None };
            out.extend_from_slice(b"data: ");
            write_json(&object, out);
            out.extend_from_slice(b"\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn write(
        &mut self,
        indices: Range<usize>,
        is_chunk: bool,
        usage: Option<Option<Usage>>,
        out: &mut Vec<u8>,
    ) {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let ids = self.wanted.token_ids;
        let experts = !self.wanted.experts.is_empty();
        let mut extension = Extension {
            seed: is_first.then_some(self.seed),
            bias: None,
            prompt_token_ids: None,
            token_ids: None,
            top_logprobs: None,
            expert_layers: None,
            experts: None,
            missing: Vec::new(),
        };
        let mut choices = Vec::new();
        let mut missing: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for index in indices {
            let telling = &mut self.tellings[index];
            for (expert, rows) in telling.missing.iter().filter(|_| telling.finish.is_some()) {
                *missing.entry(*expert).or_default() += rows;
            }
            let tokens = std::mem::take(&mut telling.tokens);
            let calls = |call: CallNews| {
                let choice = self.first_choice + index;
                let id = || self.format.map(|format| format.call_id(self.calls_seed, choice, call.index));
                let id = id().filter(|_| call.name.is_some());
                Call {
                    index: is_chunk.then_some(call.index),
                    identity: id.map(|id| CallIdentity { id, kind: "function" }),
                    function: CallFunction { name: call.name, arguments: call.arguments },
                }
            };
            let news = News {
                text: std::mem::take(&mut telling.text),
                reasoning: Some(std::mem::take(&mut telling.reasoning)).filter(|text| !text.is_empty()),
                calls: std::mem::take(&mut telling.calls).into_iter().map(calls).collect(),
            };
            let said = said(self.form, is_chunk, !std::mem::replace(&mut telling.is_begun, true), news);
            let finish_reason = telling.finish_reason();
            let logprobs = self.wanted.logprobs.then(|| match self.form {
                Form::Text => LogprobsObject::Text(telling.text_logprobs(&self.speller, &tokens)),
                Form::Chat => self.speller.chat(&tokens),
            });
            choices.push(Choice { index: self.first_choice + index, said, logprobs, finish_reason });
            if experts {
                extension.experts = Some(tokens.iter().map(|token| self.experts_of(token)).collect());
            }
            if ids {
                let top = |token: &Token| Some(token.logprobs.as_ref()?.top.clone());
                extension.token_ids = Some(tokens.iter().map(|token| token.id).collect());
                extension.top_logprobs =
                    self.wanted.logprobs.then(|| tokens.iter().filter_map(top).collect());
            }
        }
        extension.bias = self.bias.as_deref().filter(|_| is_first);
        extension.prompt_token_ids = (is_first && ids).then_some(&self.prompt);
        let layers = || self.wanted.experts.iter().map(|(layer, _)| *layer).collect();
        extension.expert_layers = (is_first && experts).then(layers);
        let missing = missing.into_iter();
        extension.missing =
            missing.map(|((layer, expert), rows)| MissingExpert { layer, expert, rows }).collect();
        let has_news = is_first || ids || experts || !extension.missing.is_empty();
        let phalanx = has_news.then_some(extension);
        write_json(&Object { head: &self.head, choices: &choices, usage, phalanx }, out);
    }

    fn usage(&self) -> Usage {
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.tokens_count);
        let prompt_tokens_details = PromptDetails { cached_tokens: self.cached_count };
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }

    /// The experts of a token, layer by layer.
    fn experts_of(&self, token: &Token) -> Vec<Vec<u32>> {
        let mut left = token.experts.as_slice();
        let layers = self.wanted.experts.iter().map(|(_, top_k)| {
            let (experts, rest) = left.split_at((*top_k).min(left.len()));
            left = rest;
            experts.to_vec()
        });
        layers.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::api::resume::TokensSum;

    fn answer(form: Form, choices: usize, wanted: Wanted) -> Answer {
        let head = Head {
            id: "cmpl-1".into(),
            object: form.object(false),
            created: 7,
            model: "m".into(),
            system_fingerprint: "f".into(),
        };
        Answer::new(head, form, choices, wanted, 3, vec![1, 2], None)
    }

    fn chunk(answer: &mut Answer, index: usize, finish: Option<FinishReason>) -> String {
        let mut out = Vec::new();
        if let Some(reason) = finish {
            answer.end(index, reason).unwrap();
        }
        answer.write_chunk(index, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn parsed(chunk: &str) -> Value {
        serde_json::from_str(chunk.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap()
    }

    const HEAD: &str =
        r#""id":"cmpl-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"f""#;

    /// What OpenAI's clients read, to the letter.
    #[test]
    fn an_answer_whole_and_in_chunks() {
        let token = |id| Some(Token { id, ..Token::default() });
        let mut whole = answer(Form::Text, 1, Wanted::default());
        whole.push(0, token(5), "a").unwrap();
        whole.push(0, token(6), "").unwrap();
        whole.push(0, None, "b").unwrap();
        whole.end(0, FinishReason::Stop).unwrap();
        let text = String::from_utf8(whole.write_whole()).unwrap();
        let expected = format!(
            "{{{HEAD},\"choices\":[{{\"index\":0,\"text\":\"ab\",\"logprobs\":null,\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":2,\"completion_tokens\":2,\"total_tokens\":4,\
             \"prompt_tokens_details\":{{\"cached_tokens\":0}}}},\"phalanx\":{{\"seed\":3}}}}"
        );
        assert_eq!(text, expected);

        let mut stream = answer(Form::Text, 1, Wanted::default());
        stream.push(0, token(5), "a").unwrap();
        let choice = |text: &str, finish: &str| {
            format!(
                "\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":{finish}}}]"
            )
        };
        let expected = format!("data: {{{HEAD},{},\"phalanx\":{{\"seed\":3}}}}\n\n", choice("a", "null"));
        assert_eq!(chunk(&mut stream, 0, None), expected);
        stream.push(0, token(6), "").unwrap();
        assert!(!stream.has_news(0), "a token without text is no news");
        let expected = format!("data: {{{HEAD},{}}}\n\ndata: [DONE]\n\n", choice("", "\"length\""));
        assert_eq!(chunk(&mut stream, 0, Some(FinishReason::Length)), expected);
    }

    #[test]
    fn ids_logprobs_and_usage_come_where_they_are_wanted() {
        let mut stream = answer(
            Form::Text,
            1,
            Wanted { logprobs: true, token_ids: true, usage: true, ..Wanted::default() },
        );
        let logprobs = Logprobs { chosen: -2.5, top: vec![(9, -0.5)] };
        stream.push(0, Some(Token { id: 5, logprobs: Some(logprobs), ..Token::default() }), "").unwrap();
        assert!(stream.has_news(0));
        let text = chunk(&mut stream, 0, Some(FinishReason::Length));
        let lines: Vec<&str> = text.split("\n\n").map(|line| line.trim_start_matches("data: ")).collect();
        let first: Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(first["usage"], Value::Null);
        assert_eq!(
            first["choices"][0]["logprobs"],
            serde_json::json!({
                "tokens": ["token_id:5"], "token_logprobs": [-2.5],
                "top_logprobs": [{"token_id:9": -0.5, "token_id:5": -2.5}], "text_offset": [0]
            })
        );
        let extension = serde_json::json!({
            "seed": 3, "prompt_token_ids": [1, 2], "token_ids": [5], "top_logprobs": [[[9, -0.5]]]
        });
        assert_eq!(first["phalanx"], extension);
        let usage: Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&Value::Array(vec![]), &3.into()));
        assert_eq!(lines[2..], ["[DONE]", ""]);
    }

    /// A prompt that is told has its tokens before the answer's, the first without a logprob, in whichever chunk they are known.
    #[test]
    fn a_prompt_is_told_with_its_logprobs() {
        let mut stream = answer(Form::Text, 1, Wanted { logprobs: true, ..Wanted::default() });
        stream.echo(0, "a\u{e9}", &[1, 2]);
        stream.set_prompt(0, vec![Logprobs { chosen: -0.25, top: vec![(2, -0.25)] }]);
        let first = parsed(&chunk(&mut stream, 0, None));
        assert_eq!(first["choices"][0]["text"], "a\u{e9}");
        let expected = serde_json::json!({"tokens": ["token_id:1", "token_id:2"], "token_logprobs": [null, -0.25],
            "top_logprobs": [null, {"token_id:2": -0.25}], "text_offset": [0, 0]});
        assert_eq!(first["choices"][0]["logprobs"], expected);
        let logprobs = Some(Logprobs { chosen: -1.5, top: vec![] });
        stream.push(0, Some(Token { id: 7, logprobs, ..Token::default() }), "x").unwrap();
        let last = parsed(&chunk(&mut stream, 0, Some(FinishReason::Length)));
        let expected = serde_json::json!({"tokens": ["token_id:7"], "token_logprobs": [-1.5],
            "top_logprobs": [{"token_id:7": -1.5}], "text_offset": [2]});
        assert_eq!(last["choices"][0]["logprobs"], expected);
        assert_eq!(stream.usage().completion_tokens, 1, "the prompt is none of the answer's tokens");
    }

    /// A chat's shape, and several choices that are told as they come: the end of all is the end of the stream.
    #[test]
    fn chats_have_messages_and_choices_have_numbers() {
        let token = |id| Some(Token { id, ..Token::default() });
        let mut whole = answer(Form::Chat, 2, Wanted::default());
        whole.push(1, token(5), "b").unwrap();
        whole.push(0, token(6), "a").unwrap();
        whole.end(1, FinishReason::Length).unwrap();
        assert!(!whole.is_complete());
        whole.end(0, FinishReason::Stop).unwrap();
        let whole: Value = serde_json::from_slice(&whole.write_whole()).unwrap();
        let choice = |index: usize, content: &str, reason: &str| {
            serde_json::json!({"index": index, "logprobs": null, "finish_reason": reason,
                "message": {"role": "assistant", "content": content, "refusal": null}})
        };
        assert_eq!(whole["choices"], Value::Array(vec![choice(0, "a", "stop"), choice(1, "b", "length")]));
        assert_eq!(
            (&whole["object"], &whole["usage"]["completion_tokens"]),
            (&"chat.completion".into(), &2.into())
        );

        let mut stream = answer(Form::Chat, 2, Wanted::default());
        let choice = |text: &str| parsed(text)["choices"][0].clone();
        let expected = |index: usize, delta: Value, reason: Option<&str>| serde_json::json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": reason});
        stream.push(1, token(5), "b").unwrap();
        let role = |content: &str| serde_json::json!({"role": "assistant", "content": content});
        assert_eq!(choice(&chunk(&mut stream, 1, None)), expected(1, role("b"), None));
        stream.push(1, token(6), "c").unwrap();
        let delta = serde_json::json!({"content": "c"});
        assert_eq!(choice(&chunk(&mut stream, 1, None)), expected(1, delta, None));
        let ended = chunk(&mut stream, 1, Some(FinishReason::Stop));
        assert_eq!(choice(&ended), expected(1, serde_json::json!({}), Some("stop")));
        assert!(!ended.contains("[DONE]"));
        let ended = chunk(&mut stream, 0, Some(FinishReason::Stop));
        assert_eq!(choice(&ended), expected(0, role(""), Some("stop")));
        assert!(ended.ends_with("data: [DONE]\n\n"));

        let mut likely = answer(Form::Chat, 1, Wanted { logprobs: true, ..Wanted::default() });
        let logprobs = Some(Logprobs { chosen: -2.5, top: vec![(9, -0.5)] });
        likely.push(0, Some(Token { id: 5, logprobs, ..Token::default() }), "").unwrap();
        let spelled = |id: u32, logprob: f64| {
            let token = format!("token_id:{id}");
            serde_json::json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()})
        };
        let mut first = spelled(5, -2.5);
        first["top_logprobs"] = Value::Array(vec![spelled(9, -0.5)]);
        let expected = serde_json::json!({"content": [first], "refusal": null});
        assert_eq!(choice(&chunk(&mut likely, 0, None))["logprobs"], expected);
    }

    /// Cut after any of its tokens, also within the tag that ends the thoughts, an answer goes on as what it was: thoughts, or what
    /// is said.
    #[test]
    fn thoughts_go_on_as_thoughts() {
        let pieces = ["I ", "", "think</th", "ink>", "\n\n", "so", "</think>", ""];
        let thinking = || {
            let mut answer = answer(Form::Chat, 1, Wanted::default());
            answer.read_with(None, 0, || Reader::new(None, &[], Some(true)));
            answer
        };
        let tell = |answer: &mut Answer, from: usize, to: usize, said: &mut [String; 2]| {
            for (id, piece) in pieces.iter().enumerate().take(to) {
                answer.push(0, Some(Token { id: id as u32, ..Token::default() }), piece).unwrap();
                let is_last = id + 1 == pieces.len();
                if id >= from && (answer.has_news(0) || is_last) {
                    let delta = &parsed(&chunk(answer, 0, is_last.then_some(FinishReason::Stop)))["choices"]
                        [0]["delta"];
                    for (key, said) in ["reasoning_content", "content"].iter().zip(&mut *said) {
                        *said += delta[key].as_str().unwrap_or_default();
                    }
                }
            }
        };
        let mut whole = <[String; 2]>::default();
        tell(&mut thinking(), 0, pieces.len(), &mut whole);
        assert_eq!(whole, ["I think", "so</think>"]);
        for cut in 1..pieces.len() {
            let (mut said, mut tokens) = (<[String; 2]>::default(), TokensSum::default());
            tell(&mut thinking(), 0, cut, &mut said);
            (0..cut).for_each(|id| tokens.push(id as u32));
            let tokens_count = cut as u32;
            let place = Place {
                choice: 0,
                tokens_count,
                tokens,
                is_flushed: false,
                is_ended: false,
                has_left_out: false,
            };
            tell(&mut thinking().resumed(&place, &[]), cut, pieces.len(), &mut said);
            assert_eq!(said, whole, "cut after {cut}");
        }
    }
}
