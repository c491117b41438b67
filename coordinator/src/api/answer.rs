//! How an answer is told: OpenAI's completion object, whole or in chunks.
//!
//! Pure: the identity and the time of an answer are arguments. A stream's texts, one after the other, are the plain
//! answer's text, and its other lists likewise.

use model::sampler::Logprobs;
use model::text::{TextStream, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value};

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
}

/// An answer that is being told.
#[derive(Debug)]
pub(super) struct Answer {
    head: Head,
    wanted: Wanted,
    seed: u64,
    prompt: Vec<u32>,
    /// What has not been told yet.
    untold: Untold,
    is_begun: bool,
    tokens_count: usize,
    tokenizer: Option<Tokenizer>,
    /// Where each token's text begins, which only the tokens before it can say.
    pieces: Option<TextStream>,
    offset: usize,
}

#[derive(Debug, Default)]
struct Untold {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phalanx: Option<Extension<'a>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<LogprobsObject>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Extension<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// For each token the likeliest ids and the logarithms of their probabilities: texts may be alike, ids are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<&'a [(u32, f64)]>>,
}

#[derive(Serialize, Default)]
struct LogprobsObject {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Answer {
    /// An answer of which nothing has been told. `tokenizer` shows tokens where their logprobs are wanted.
    pub(super) fn new(
        head: Head,
        wanted: Wanted,
        seed: u64,
        prompt: Vec<u32>,
        tokenizer: Option<Tokenizer>,
        skip_special: bool,
    ) -> Self {
        let tokenizer = tokenizer.filter(|_| wanted.logprobs);
        let pieces = tokenizer.as_ref().map(|tokenizer| tokenizer.stream(skip_special));
        Self {
            head,
            wanted,
            seed,
            prompt,
            untold: Untold::default(),
            is_begun: false,
            tokens_count: 0,
            tokenizer,
            pieces,
            offset: 0,
        }
    }

    /// Takes a step of the answer.
    pub(super) fn push(&mut self, token: Option<Token>, text: &str) {
        self.untold.text += text;
        self.tokens_count += usize::from(token.is_some());
        if self.wanted.token_ids || self.wanted.logprobs {
            self.untold.tokens.extend(token);
        }
    }

    /// Whether there is something to tell.
    pub(super) fn has_news(&self) -> bool {
        !self.untold.text.is_empty() || !self.untold.tokens.is_empty()
    }

    /// Writes what has not been told as a chunk: one line of a stream and the empty line after it.
    pub(super) fn write_chunk(&mut self, finish: Option<FinishReason>, out: &mut Vec<u8>) {
        // Where the usage comes at the end, every other chunk says that it does not have it.
        let usage = self.wanted.usage.then_some(None);
        out.extend_from_slice(b"data: ");
        self.write(finish, usage, out);
        out.extend_from_slice(b"\n\n");
        if finish.is_some() {
            self.write_end(out);
        }
    }

    /// Writes the whole answer as one object.
    pub(super) fn write_whole(&mut self, finish: FinishReason) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(Some(finish), Some(Some(self.usage())), &mut out);
        out
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

    fn write(&mut self, finish: Option<FinishReason>, usage: Option<Option<Usage>>, out: &mut Vec<u8>) {
        let Untold { text, tokens } = std::mem::take(&mut self.untold);
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let logprobs = self.wanted.logprobs.then(|| self.logprobs(&tokens));
        let ids = self.wanted.token_ids;
        let phalanx = (is_first || ids).then(|| Extension {
            seed: is_first.then_some(self.seed),
            prompt_token_ids: (is_first && ids).then_some(&self.prompt),
            token_ids: ids.then(|| tokens.iter().map(|token| token.id).collect()),
            top_logprobs: (ids && self.wanted.logprobs)
                .then(|| tokens.iter().filter_map(|t| Some(t.logprobs.as_ref()?.top.as_slice())).collect()),
        });
        let finish_reason = finish.map(FinishReason::name);
        let choice = Choice { index: 0, text: &text, logprobs, finish_reason };
        write_json(&Object { head: &self.head, choices: &[choice], usage, phalanx }, out);
    }

    fn usage(&self) -> Usage {
        let (prompt_tokens, completion_tokens) = (self.prompt.len(), self.tokens_count);
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    fn logprobs(&mut self, tokens: &[Token]) -> LogprobsObject {
        let mut object = LogprobsObject::default();
        for token in tokens {
            let Some(Logprobs { chosen, top }) = &token.logprobs else { continue };
            let mut alternatives = Map::new();
            // The token itself is among them even where it was not likely; of two with one text the likelier is.
            for &(id, logprob) in top.iter().chain([&(token.id, *chosen)]) {
                alternatives.entry(self.spelling(id)).or_insert_with(|| logprob.into());
            }
            object.tokens.push(self.spelling(token.id));
            object.token_logprobs.push(*chosen);
            object.top_logprobs.push(alternatives);
            object.text_offset.push(self.offset);
            let piece = self.pieces.as_mut().map(|pieces| pieces.push(token.id)).unwrap_or_default();
            self.offset += piece.chars().count();
        }
        object
    }

    /// A token alone, as people may read it.
    fn spelling(&self, id: u32) -> String {
        let decoded = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.decode(&[id], false).ok());
        decoded.unwrap_or_else(|| format!("token_id:{id}"))
    }
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("text as keys, and memory takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(wanted: Wanted) -> Answer {
        let head = Head {
            id: "cmpl-1".into(),
            object: "text_completion",
            created: 7,
            model: "m".into(),
            system_fingerprint: "f".into(),
        };
        Answer::new(head, wanted, 3, vec![1, 2], None, true)
    }

    fn chunk(answer: &mut Answer, finish: Option<FinishReason>) -> String {
        let mut out = Vec::new();
        answer.write_chunk(finish, &mut out);
        String::from_utf8(out).unwrap()
    }

    const HEAD: &str =
        r#""id":"cmpl-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"f""#;

    /// What OpenAI's clients read, to the letter.
    #[test]
    fn an_answer_whole_and_in_chunks() {
        let token = |id| Some(Token { id, logprobs: None });
        let mut whole = answer(Wanted::default());
        whole.push(token(5), "a");
        whole.push(token(6), "");
        whole.push(None, "b");
        let text = String::from_utf8(whole.write_whole(FinishReason::Stop)).unwrap();
        let expected = format!(
            "{{{HEAD},\"choices\":[{{\"index\":0,\"text\":\"ab\",\"logprobs\":null,\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":2,\"completion_tokens\":2,\"total_tokens\":4}},\"phalanx\":{{\"seed\":3}}}}"
        );
        assert_eq!(text, expected);

        let mut stream = answer(Wanted::default());
        stream.push(token(5), "a");
        let choice = |text: &str, finish: &str| {
            format!(
                "\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":{finish}}}]"
            )
        };
        let expected = format!("data: {{{HEAD},{},\"phalanx\":{{\"seed\":3}}}}\n\n", choice("a", "null"));
        assert_eq!(chunk(&mut stream, None), expected);
        stream.push(token(6), "");
        assert!(!stream.has_news(), "a token without text is no news");
        let expected = format!("data: {{{HEAD},{}}}\n\ndata: [DONE]\n\n", choice("", "\"length\""));
        assert_eq!(chunk(&mut stream, Some(FinishReason::Length)), expected);
    }

    #[test]
    fn ids_logprobs_and_usage_come_where_they_are_wanted() {
        let mut stream = answer(Wanted { logprobs: true, token_ids: true, usage: true });
        let logprobs = Logprobs { chosen: -2.5, top: vec![(9, -0.5)] };
        stream.push(Some(Token { id: 5, logprobs: Some(logprobs) }), "");
        assert!(stream.has_news());
        let text = chunk(&mut stream, Some(FinishReason::Length));
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
}
