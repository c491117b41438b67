//! Text from ids that arrive one at a time.
//!
//! Decoding single ids gives wrong text: a character may be spread over several ids, the first id of a
//! text loses its leading space, and one bad byte spoils a whole run of byte tokens. So a stream keeps
//! what later ids could still change and gives out the rest: all pieces together are exactly what
//! `decode` makes of all ids, and each is whole characters.
//!
//! Two kinds of decoder cover the released models, each in a few instructions per id: byte-level ones
//! (GPT-2, Llama 3, Qwen, DeepSeek) and those in the manner of SentencePiece (Llama 2, Mixtral). Any other
//! is decoded from the start at each id: slower, and right.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::DecoderWrapper;

use super::Tokenizer;

/// Text this near the end may still change under a decoder that is not known to this file. The longest
/// clean-up rule spans four characters and can follow upon another.
const UNSETTLED_BYTES: usize = 32;

/// How to decode one id after the other.
#[derive(Debug)]
pub(super) enum Plan {
    /// Tokens spell bytes; the bytes are UTF-8.
    ByteLevel,
    /// Tokens are text, byte tokens excepted.
    Pieces(Pieces),
    /// All ids together, each time.
    Whole,
}

/// A decoder in the manner of SentencePiece.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// What is replaced in each token, in this order.
    replacements: Vec<(String, String)>,
    /// Replaced by a space, and if true left out in the first token.
    metaspace: Option<(char, bool)>,
    /// Whether `<0x41>` is a byte.
    byte_fallback: bool,
    /// Up to so many of this character are taken from the beginning of the text.
    strip: Option<(char, usize)>,
}

impl Plan {
    /// The plan for a decoder; an error if the library could not run it safely.
    pub(super) fn of(decoder: Option<&DecoderWrapper>, cleans_up: bool) -> Result<Plan, String> {
        let json = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
        let mut steps = Vec::new();
        flatten(&json, &mut steps);
        for step in &steps {
            // The library subtracts without asking and would panic on a short token.
            if kind(step) == "Strip" && step["stop"].as_u64() != Some(0) {
                return Err("its decoder strips the end of tokens, which is not supported".to_owned());
            }
        }
        if cleans_up {
            return Ok(Plan::Whole);
        }
        if let [step] = steps[..]
            && kind(step) == "ByteLevel"
        {
            return Ok(Plan::ByteLevel);
        }
        Ok(Pieces::of(&steps).map_or(Plan::Whole, Plan::Pieces))
    }
}

impl Plan {
    /// The bytes that a token adds to a text, wherever it stands but at its beginning; `None` where that depends on the
    /// tokens around it.
    pub(super) fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Plan::ByteLevel => {
                let mut bytes = Vec::new();
                push_bytes(token, &mut bytes);
                Some(bytes)
            }
            Plan::Pieces(pieces) => {
                let text = pieces.text(token, true);
                match byte_of(&text).filter(|_| pieces.byte_fallback) {
                    Some(byte) => Some(vec![byte]),
                    None => Some(text.into_bytes()),
                }
            }
            Plan::Whole => None,
        }
    }
}

impl Pieces {
    /// The text of a token; `begun`: others have come before it.
    fn text(&self, token: &str, begun: bool) -> String {
        let mut text = token.to_owned();
        for (from, to) in &self.replacements {
            text = text.replace(from, to);
        }
        if let Some((replacement, strips_first)) = self.metaspace {
            let space = if strips_first && !begun { "" } else { " " };
            text = text.replace(replacement, space);
        }
        text
    }

    /// `None` unless the steps are replacements, then byte fallback, then fuse and strip; each at most once
    /// but the replacements.
    fn of(steps: &[&Value]) -> Option<Pieces> {
        let mut pieces = Pieces::default();
        let mut rank = 0;
        for step in steps {
            let step_rank = match kind(step) {
                "Replace" => {
                    let from = step["pattern"]["String"].as_str().filter(|from| !from.is_empty())?;
                    pieces.replacements.push((from.to_owned(), step["content"].as_str()?.to_owned()));
                    0
                }
                "Metaspace" => {
                    let mut replacement = step["replacement"].as_str()?.chars();
                    let scheme = step["prepend_scheme"].as_str()?;
                    pieces.metaspace = Some((replacement.next()?, scheme != "never"));
                    1
                }
                "ByteFallback" => {
                    pieces.byte_fallback = true;
                    2
                }
                "Fuse" => 3,
                // Before a fuse it would strip each token.
                "Strip" if rank == 4 => {
                    let mut content = step["content"].as_str()?.chars();
                    pieces.strip = Some((content.next()?, step["start"].as_u64()? as usize));
                    4
                }
                _ => return None,
            };
            if step_rank < rank {
                return None;
            }
            // Only replacements may come twice.
            rank = if step_rank == 0 { 0 } else { step_rank + 1 };
        }
        (!steps.is_empty()).then_some(pieces)
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|decoder| flatten(decoder, steps)),
        None if decoder.is_object() => steps.push(decoder),
        None => {}
    }
}

/// Turns ids into text, piece by piece.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are not skipped.
    kept: Arc<[u32]>,
    /// Whether a token has come that was not skipped.
    begun: bool,
    /// Bytes that are no text yet: an unfinished character, or a run of byte tokens.
    bytes: Vec<u8>,
    /// How many leading characters may still be stripped.
    strip_left: usize,
    /// All ids so far and how many bytes of their text are out, for a decoder unknown to this file.
    ids: Vec<u32>,
    emitted_bytes: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool, kept: Arc<[u32]>) -> TextStream {
        let strip_left = match tokenizer.plan() {
            Plan::Pieces(Pieces { strip: Some((_, count)), .. }) => *count,
            _ => 0,
        };
        TextStream {
            tokenizer,
            skip_special,
            kept,
            begun: false,
            bytes: Vec::new(),
            strip_left,
            ids: Vec::new(),
            emitted_bytes: 0,
        }
    }

    /// Takes the next id and returns the text that no later id can change; often empty.
    pub fn push(&mut self, id: u32) -> String {
        let tokenizer = self.tokenizer.clone();
        let skip_special = self.skip_special && !self.kept.contains(&id);
        let Some(token) = tokenizer.decodable(id, skip_special) else {
            return String::new();
        };
        let mut out = String::new();
        match tokenizer.plan() {
            Plan::ByteLevel => {
                push_bytes(&token, &mut self.bytes);
                drain_utf8(&mut self.bytes, &mut out);
            }
            Plan::Pieces(pieces) => self.push_piece(pieces, &token, &mut out),
            Plan::Whole => {
                self.ids.push(id);
                let text = self.decode_all();
                let mut settled = text.len().saturating_sub(UNSETTLED_BYTES);
                while !text.is_char_boundary(settled) {
                    settled -= 1;
                }
                self.emit(&text, settled, &mut out);
            }
        }
        self.begun = true;
        out
    }

    /// Returns what was still held back. The stream is then as new.
    pub fn finish(&mut self) -> String {
        let tokenizer = self.tokenizer.clone();
        let mut out = String::new();
        match tokenizer.plan() {
            Plan::ByteLevel => {
                drain_utf8(&mut self.bytes, &mut out);
                if !self.bytes.is_empty() {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
            }
            Plan::Pieces(pieces) => {
                let run = self.take_run();
                self.push_stripped(pieces, &run, &mut out);
            }
            Plan::Whole => {
                let text = self.decode_all();
                self.emit(&text, text.len(), &mut out);
            }
        }
        *self = TextStream::new(tokenizer, self.skip_special, Arc::clone(&self.kept));
        out
    }

    fn push_piece(&mut self, pieces: &Pieces, token: &str, out: &mut String) {
        let text = pieces.text(token, self.begun);
        if let (true, Some(byte)) = (pieces.byte_fallback, byte_of(&text)) {
            // One byte that does not fit turns the whole run into replacement characters, so nothing of
            // a run is settled before its end.
            self.bytes.push(byte);
            return;
        }
        let run = self.take_run();
        self.push_stripped(pieces, &run, out);
        self.push_stripped(pieces, &text, out);
    }

    /// The text of the byte tokens held back.
    fn take_run(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.bytes))
            .unwrap_or_else(|error| "\u{FFFD}".repeat(error.as_bytes().len()))
    }

    fn push_stripped(&mut self, pieces: &Pieces, text: &str, out: &mut String) {
        let mut text = text;
        while let (Some((content, _)), 1..) = (pieces.strip, self.strip_left)
            && !text.is_empty()
        {
            match text.strip_prefix(content) {
                Some(rest) => {
                    text = rest;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        out.push_str(text);
    }

    /// A decoder that fails on these ids gives no text; `decode` gives the error.
    fn decode_all(&self) -> String {
        // What is not kept did not become one of these.
        let skip_special = self.skip_special && self.kept.is_empty();
        self.tokenizer.decode(&self.ids, skip_special).unwrap_or_default()
    }

    fn emit(&mut self, text: &str, end: usize, out: &mut String) {
        if let Some(fresh) = text.get(self.emitted_bytes..end.max(self.emitted_bytes)) {
            out.push_str(fresh);
            self.emitted_bytes += fresh.len();
        }
    }
}

/// The byte that `<0x41>` stands for; the test is the library's.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Appends the bytes that a byte-level token spells, or its own if it is not spelled so.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for char in token.chars() {
        let Some(byte) = byte_of_char(char) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up, in order.
fn byte_of_char(char: char) -> Option<u8> {
    match char as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Moves whole characters from `bytes` to `out` and replaces what can become none, as
/// `String::from_utf8_lossy` would; keeps an unfinished character.
fn drain_utf8(bytes: &mut Vec<u8>, out: &mut String) {
    let mut taken = 0;
    loop {
        match std::str::from_utf8(&bytes[taken..]) {
            Ok(text) => {
                out.push_str(text);
                taken = bytes.len();
                break;
            }
            Err(error) => {
                let valid = taken + error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&bytes[taken..valid]));
                taken = valid;
                match error.error_len() {
                    Some(bad) => {
                        out.push(char::REPLACEMENT_CHARACTER);
                        taken += bad;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..taken);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The alphabet is a bijection on bytes; one wrong row would garble some language silently.
    #[test]
    fn the_byte_alphabet_is_complete() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }

    /// Bytes split anywhere give the text of the whole, replacement characters included.
    #[test]
    fn split_bytes_are_decoded_as_one() {
        let whole = b"a\xE2\x82\xAC\xFF\xE2\x82b\xF0\x9F\x98\x80\xF0\x9F".to_vec();
        for cut in 0..=whole.len() {
            let (mut bytes, mut out) = (whole[..cut].to_vec(), String::new());
            drain_utf8(&mut bytes, &mut out);
            bytes.extend_from_slice(&whole[cut..]);
            drain_utf8(&mut bytes, &mut out);
            out.push_str(&String::from_utf8_lossy(&bytes));
            assert_eq!(out, String::from_utf8_lossy(&whole), "cut at {cut}");
        }
    }
}
