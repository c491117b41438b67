//! Text to token ids and back, equal to what transformers does with the same folder.
//!
//! The work is done by the `tokenizers` library. This file adds what transformers adds around it: special
//! tokens of `tokenizer_config.json`, `add_bos_token`, clean-up of spaces, and no truncation or padding
//! even if `tokenizer.json` asks for it (a server neither cuts a prompt silently nor pads it).
//!
//! `add_bos_token` and `add_eos_token` count for the Llama classes alone, as in transformers 4, whose
//! `update_post_processor` replaced the post-processor there. DeepSeek's folders need it: their
//! `tokenizer.json` adds no beginning-of-sequence token, the flag does. (transformers 5.23 drops both
//! flags wherever there is a `tokenizer.json`, so its prompts for raw completion lack that token. Chat
//! does not differ: templates write the token themselves.)
//!
//! Pure but for [`Tokenizer::open`]. Cloning is cheap: clones share one vocabulary.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};

use super::files::{self, optional_bool, parse_object, read_optional, unreadable, wrong};
use super::stream::Plan;
use super::{SpecialTokens, TextError, TextStream};

/// What one token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spelling {
    /// A piece of text, as bytes: a character may be spread over several tokens.
    Bytes(Vec<u8>),
    /// A token that was added to the vocabulary under this name, special or not. No text is made of it by chance.
    Added(String),
}

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: String,
    backend: tokenizers::Tokenizer,
    special_tokens: SpecialTokens,
    plan: Plan,
    cleans_up: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and if there are any `tokenizer_config.json` and `special_tokens_map.json`,
    /// from a Hugging Face folder.
    pub fn open(dir: &Path) -> Result<Tokenizer, TextError> {
        let name = "tokenizer.json";
        let json = std::fs::read(dir.join(name)).map_err(|error| unreadable(dir, name, error))?;
        let config = read_optional(dir, "tokenizer_config.json")?;
        let map = read_optional(dir, "special_tokens_map.json")?;
        let place = dir.display().to_string();
        Tokenizer::from_bytes(&place, &json, config.as_deref(), map.as_deref())
    }

    /// Builds a tokenizer from the bytes of its files; `place` is the folder that messages name.
    pub fn from_bytes(
        place: &str,
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        special_tokens_map_json: Option<&[u8]>,
    ) -> Result<Tokenizer, TextError> {
        let named = |name| files::display(Path::new(place), name);
        let (file, config_file, map_file) =
            (named("tokenizer.json"), named("tokenizer_config.json"), named("special_tokens_map.json"));
        let special_tokens = SpecialTokens::from_bytes(
            tokenizer_config_json.map(|bytes| (config_file.as_str(), bytes)),
            special_tokens_map_json.map(|bytes| (map_file.as_str(), bytes)),
        )?;
        let config = match tokenizer_config_json {
            Some(bytes) => parse_object(&config_file, bytes)?,
            None => Map::new(),
        };
        let config = Config::read(&config_file, &config)?;

        let unusable = |reason: String| TextError::Tokenizer { file: file.clone(), reason };
        // Parsed as plain JSON first: the library's own message for a cut file names neither line nor file.
        let json = parse_object(&file, tokenizer_json)?;
        if !json.get("model").is_some_and(Value::is_object) {
            return Err(unusable("it has no model section".to_owned()));
        }
        let mut backend =
            tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| unusable(error.to_string()))?;
        backend.with_truncation(None).map_err(|error| unusable(error.to_string()))?;
        backend.with_padding(None);
        backend.set_encode_special_tokens(config.split_special_tokens);
        add_tokens(&mut backend, &special_tokens).map_err(|error| unusable(error.to_string()))?;
        if let Some((bos, eos)) = config.llama_ends {
            let ends = ends(&backend, &special_tokens, bos, eos).map_err(unusable)?;
            backend.with_post_processor(Some(ends));
        }
        let cleans_up =
            config.clean_up && (config.clean_up_bpe || !matches!(backend.get_model(), ModelWrapper::BPE(_)));
        let plan = Plan::of(backend.get_decoder(), cleans_up).map_err(unusable)?;
        Ok(Tokenizer { inner: Arc::new(Inner { file, backend, special_tokens, plan, cleans_up }) })
    }

    /// The ids of `text`. `add_special` adds what the model wants around a raw text, usually a
    /// beginning-of-sequence token; the text of a chat template brings its own.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match self.inner.backend.encode_fast(text, add_special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(TextError::Encode {
                file: self.inner.file.clone(),
                bytes: text.len(),
                reason: error.to_string(),
            }),
        }
    }

    /// The text of `ids`; ids that stand for nothing are left out. `skip_special` leaves out the special
    /// tokens too.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        match self.inner.backend.decode(ids, skip_special) {
            Ok(text) if self.inner.cleans_up => Ok(clean_up(&text)),
            Ok(text) => Ok(text),
            Err(error) => Err(TextError::Decode {
                file: self.inner.file.clone(),
                ids: ids.len(),
                reason: error.to_string(),
            }),
        }
    }

    /// Decodes ids that arrive one at a time.
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special, Arc::default())
    }

    /// Decodes ids that arrive one at a time, without special tokens but for those with these texts: the tags of an
    /// answer.
    pub fn stream_with(&self, tags: &[&str]) -> TextStream {
        let kept = tags.iter().filter_map(|tag| self.id(tag)).collect();
        TextStream::new(self.clone(), true, kept)
    }

    /// The token with this id, in the vocabulary's own spelling (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.backend.id_to_token(id)
    }

    /// The id of a token in the vocabulary's own spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.backend.token_to_id(token)
    }

    /// What a token is to whoever reads an answer byte by byte; `None` where the id stands for nothing, or where what
    /// the token spells depends on its neighbours.
    pub fn spelling(&self, id: u32) -> Option<Spelling> {
        use tokenizers::Model;
        if let Some(token) = self.inner.backend.get_added_vocabulary().simple_id_to_token(id) {
            return Some(Spelling::Added(token));
        }
        let token = self.inner.backend.get_model().id_to_token(id)?;
        self.inner.plan.bytes(&token).map(Spelling::Bytes)
    }

    /// Whether every token of the vocabulary spells the same bytes wherever it stands.
    pub fn spells_bytes(&self) -> bool {
        !matches!(self.inner.plan, Plan::Whole)
    }

    /// How many tokens there are, added ones included. Where the ids have gaps the largest id is greater.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.backend.get_vocab_size(true)
    }

    /// Begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.named_id("bos_token")
    }

    /// Ends a text. A model may have more than one: see [`GenerationConfig`](super::GenerationConfig).
    pub fn eos_id(&self) -> Option<u32> {
        self.named_id("eos_token")
    }

    /// Fills up what is too short.
    pub fn pad_id(&self) -> Option<u32> {
        self.named_id("pad_token")
    }

    /// Whether decoding may skip this id.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.backend.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// The tokens that have a name.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special_tokens
    }

    /// What `decode` hands to the decoder for one id.
    pub(super) fn decodable(&self, id: u32, skip_special: bool) -> Option<String> {
        use tokenizers::Model;
        let added = self.inner.backend.get_added_vocabulary();
        let token =
            added.simple_id_to_token(id).or_else(|| self.inner.backend.get_model().id_to_token(id))?;
        (!skip_special || !added.is_special_token(&token)).then_some(token)
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    fn named_id(&self, name: &str) -> Option<u32> {
        self.id(self.inner.special_tokens.content(name)?)
    }
}

/// What `tokenizer_config.json` says about encoding and decoding.
struct Config {
    /// For the Llama classes: whether to begin and to end with a special token.
    llama_ends: Option<(bool, bool)>,
    clean_up: bool,
    clean_up_bpe: bool,
    split_special_tokens: bool,
}

impl Config {
    fn read(file: &str, object: &Map<String, Value>) -> Result<Config, TextError> {
        let flag = |key| optional_bool(file, object, key);
        let class = match object.get("tokenizer_class") {
            None | Some(Value::Null) => "",
            Some(Value::String(class)) => class,
            Some(other) => return Err(wrong(file, "tokenizer_class", "a string", other)),
        };
        let llama_ends = match (flag("add_bos_token")?, flag("add_eos_token")?) {
            (None, None) => None,
            // The class begins a text with a token and does not end it, unless told otherwise.
            (bos, eos) => Some((bos.unwrap_or(true), eos.unwrap_or(false))),
        };
        Ok(Config {
            llama_ends: llama_ends.filter(|_| matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast")),
            clean_up: flag("clean_up_tokenization_spaces")?.unwrap_or(false),
            clean_up_bpe: flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")?
                .unwrap_or(false),
            split_special_tokens: flag("split_special_tokens")?.unwrap_or(false),
        })
    }
}

/// Adds what the configuration lists and `tokenizer.json` lacks.
fn add_tokens(backend: &mut tokenizers::Tokenizer, special_tokens: &SpecialTokens) -> tokenizers::Result<()> {
    backend.add_tokens(special_tokens.added().iter().cloned())?;
    let known: std::collections::HashSet<String> =
        backend.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let missing = special_tokens.required().filter(|token| !known.contains(&token.content)).cloned();
    backend.add_tokens(missing)?;
    Ok(())
}

/// A post-processor that puts `bos` before a text and `eos` after it; a token the model lacks is left out.
fn ends(
    backend: &tokenizers::Tokenizer,
    special_tokens: &SpecialTokens,
    bos: bool,
    eos: bool,
) -> Result<TemplateProcessing, String> {
    let find = |wanted: bool, name| {
        let content = special_tokens.content(name).filter(|_| wanted)?;
        Some((content.to_owned(), backend.token_to_id(content)?))
    };
    let tokens: [Option<(String, u32)>; 2] = [find(bos, "bos_token"), find(eos, "eos_token")];
    // Pieces are handed over one by one: a template string would misread a token that holds a space.
    let piece = |token: &Option<(String, u32)>| token.iter().map(|(text, _)| text.clone()).collect();
    let single: Vec<String> = [piece(&tokens[0]), vec!["$A".to_owned()], piece(&tokens[1])].concat();
    let specials = tokens
        .iter()
        .flatten()
        .map(|(text, id)| SpecialToken::new(text.clone(), vec![*id], vec![text.clone()]))
        .collect::<tokenizers::Result<Vec<_>>>()
        .map_err(|error| error.to_string())?;
    TemplateProcessing::builder()
        .try_single(single)?
        .special_tokens(specials)
        .build()
        .map_err(|error| error.to_string())
}

/// transformers' `clean_up_tokenization`, made for word-piece vocabularies.
fn clean_up(text: &str) -> String {
    [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
