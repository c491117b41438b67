//! A form compiled for a vocabulary.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, ParserFactory, TokenParser};
use model::text::{Spelling, Tokenizer};
use serde_json::Value;

use super::in_words;

/// The most white space in one place: without a bound a model that has lost its way fills its answer with it.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";
/// Marks tokens that no text is made of by chance.
const ADDED: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// Where a schema says how `llguidance` reads it, which is ours to say.
const OPTIONS: &str = "x-guidance";

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// A JSON text that a schema, itself an object, describes.
    Schema(Value),
    /// A text of a grammar in `llguidance`'s notation.
    Lark(String),
}

/// Why there is no grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Tokens of such a vocabulary spell nothing alone.
    #[error(
        "this model's tokenizer decodes tokens by their neighbours, so an answer cannot be kept to a form"
    )]
    NoBytes,
    /// The form itself.
    #[error("{0}")]
    Form(String),
}

/// Makes grammars for a vocabulary.
pub struct Grammars {
    factory: ParserFactory,
}

/// A form compiled for a vocabulary. Clones are one grammar.
#[derive(Clone)]
pub struct Grammar {
    // Never advanced: each guide begins with a copy that shares nothing with others.
    parser: Arc<Mutex<TokenParser>>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammars {
    /// Grammars for the first `vocab` tokens of a tokenizer; `end_ids` may end an answer wherever its form is complete.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, end_ids: &[u32]) -> Result<Self, GrammarError> {
        if !tokenizer.spells_bytes() {
            return Err(GrammarError::NoBytes);
        }
        let vocab = u32::try_from(vocab).expect("ids have 32 bits");
        let words: Vec<Vec<u8>> = (0..vocab).map(|id| word(tokenizer.spelling(id))).collect();
        let end_ids: Vec<u32> = end_ids.iter().copied().filter(|id| *id < vocab).collect();
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab, INVALID_TOKEN), &words);
        if !end_ids.is_empty() {
            trie = trie.with_eos_tokens(&end_ids);
        }
        let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| form(&error))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory })
    }

    /// Compiles a form. It takes milliseconds to some tenths of a second, which its limits see to.
    pub fn compile(&self, wanted: Form) -> Result<Grammar, GrammarError> {
        let grammar = match wanted {
            Form::Schema(schema) => GrammarWithLexer::from_json_schema(with_options(schema)?),
            Form::Lark(text) => GrammarWithLexer::from_lark(text),
        };
        let parser = self.factory.create_parser(TopLevelGrammar::from_grammar(grammar));
        let parser = parser.map_err(|error| form(&error))?;
        Ok(Grammar { parser: Arc::new(Mutex::new(parser)) })
    }
}

impl Grammar {
    /// A parser of its own for one answer.
    pub(super) fn parser(&self) -> TokenParser {
        self.parser.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
    }
}

/// What stands for a tag in a grammar in `llguidance`'s notation: the token that was added for it, or else its text.
pub fn tag_rule(tokenizer: &Tokenizer, text: &str) -> String {
    match tokenizer.id(text) {
        Some(id) if matches!(tokenizer.spelling(id), Some(Spelling::Added(_))) => format!("<[{id}]>"),
        _ => Value::from(text).to_string(),
    }
}

/// A schema as a part of a grammar in `llguidance`'s notation.
pub fn json_rule(schema: Value) -> Result<String, GrammarError> {
    Ok(format!("%json {}", with_options(schema)?))
}

/// A schema that says how it is read.
fn with_options(mut schema: Value) -> Result<Value, GrammarError> {
    let options = JsonCompileOptions { whitespace_pattern: Some(SPACE.into()), ..Default::default() };
    match schema.as_object() {
        Some(object) if object.contains_key(OPTIONS) => {
            Err(GrammarError::Form(format!("`{OPTIONS}` is no keyword of JSON Schema")))
        }
        Some(_) => {
            options.apply_to(&mut schema);
            Ok(schema)
        }
        None => Err(GrammarError::Form("a schema should be an object".into())),
    }
}

/// The bytes of a token, as the trie has them; none where a token is no part of any text.
fn word(spelling: Option<Spelling>) -> Vec<u8> {
    match spelling {
        // Text is UTF-8, so a token that begins like the mark is no token of text; alone it stays a byte of none.
        Some(Spelling::Bytes(bytes)) if bytes.first() == Some(&ADDED) => Vec::new(),
        Some(Spelling::Bytes(bytes)) => bytes,
        Some(Spelling::Added(name)) => [&[ADDED], name.as_bytes()].concat(),
        None => Vec::new(),
    }
}

fn form(error: &impl fmt::Display) -> GrammarError {
    GrammarError::Form(in_words(&format!("{error:#}")))
}

/// Bounds of one form: of compiling it, of each mask, of what it may hold meanwhile. Where a mask needs more, its answer ends
/// with an error.
fn limits() -> ParserLimits {
    ParserLimits {
        // At 14,000 in a millisecond: no mask holds up a step for longer than some milliseconds.
        step_lexer_fuel: 100_000,
        // At 50,000 in a millisecond.
        initial_lexer_fuel: 1_000_000,
        // Of one to two KiB each.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        // It may tell what an answer says.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
