//! Which tokens of a model have a name (`bos_token`, `eos_token`, ...) and which are added.
//!
//! Pure. Tokenizer and chat template both need them and must agree, so they are read in one place, with
//! the precedence of transformers 5: `special_tokens_map.json` counts only where `tokenizer_config.json`
//! has no `added_tokens_decoder`, and then it wins.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TextError;
use super::files::{parse_object, wrong};

/// The names that every tokenizer may give to a token.
const STANDARD_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens of one model. The default has none.
#[derive(Debug, Clone, Default)]
pub struct SpecialTokens {
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
    /// From `added_tokens_decoder`, in rising order of id.
    added: Vec<AddedToken>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json` and `special_tokens_map.json`, given as (display name, bytes).
    pub fn from_bytes(
        config: Option<(&str, &[u8])>,
        map: Option<(&str, &[u8])>,
    ) -> Result<SpecialTokens, TextError> {
        let mut tokens = SpecialTokens::default();
        let mut has_decoder = false;
        if let Some((file, bytes)) = config {
            let config = parse_object(file, bytes)?;
            has_decoder = config.contains_key("added_tokens_decoder");
            tokens.read_names(file, &config)?;
            tokens.read_added(file, &config)?;
        }
        if let (Some((file, bytes)), false) = (map, has_decoder) {
            tokens.read_names(file, &parse_object(file, bytes)?)?;
        }
        Ok(tokens)
    }

    /// The text of the token with this name, such as `bos_token`.
    pub fn content(&self, name: &str) -> Option<&str> {
        let (_, token) = self.named.iter().find(|(known, _)| known == name)?;
        Some(&token.content)
    }

    /// Every named token: (name, text).
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.content.as_str()))
    }

    /// Those of `added_tokens_decoder`, in the order in which they are to be added.
    pub(super) fn added(&self) -> &[AddedToken] {
        &self.added
    }

    /// Those to be added if the tokenizer does not have them: the named ones, then the extra ones.
    pub(super) fn required(&self) -> impl Iterator<Item = &AddedToken> {
        self.named.iter().map(|(_, token)| token).chain(&self.extra)
    }

    fn read_names(&mut self, file: &str, object: &Map<String, Value>) -> Result<(), TextError> {
        for (name, value) in object {
            if STANDARD_NAMES.contains(&name.as_str()) {
                let token = match value {
                    Value::Null => None,
                    other => Some(token(file, name, other)?),
                };
                self.set(name, token);
            } else if let (true, Value::String(content)) = (name.ends_with("_token"), value) {
                // Names of the model's own, such as `image_token`, which its template may use.
                self.set(name, Some(AddedToken::from(content.clone(), true)));
            }
        }
        // The old name counts where the new one has nothing.
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            match object.get(key) {
                Some(Value::Array(list)) if !list.is_empty() => {
                    self.extra =
                        list.iter().map(|value| token(file, key, value)).collect::<Result<_, TextError>>()?;
                    break;
                }
                Some(Value::Object(named)) => {
                    for (name, value) in named {
                        self.set(name, Some(token(file, &format!("{key}.{name}"), value)?));
                    }
                    break;
                }
                None | Some(Value::Null | Value::Array(_)) => {}
                Some(other) => return Err(wrong(file, key, "a list of tokens", other)),
            }
        }
        Ok(())
    }

    fn read_added(&mut self, file: &str, config: &Map<String, Value>) -> Result<(), TextError> {
        let key = "added_tokens_decoder";
        let decoder = match config.get(key) {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(decoder)) => decoder,
            Some(other) => return Err(wrong(file, key, "an object of tokens by id", other)),
        };
        let mut by_id = Vec::with_capacity(decoder.len());
        for (id, value) in decoder {
            let path = format!("{key}.{id}");
            let Ok(number) = id.parse::<u32>() else {
                return Err(wrong(file, &path, "keyed by a token id", &Value::from(id.as_str())));
            };
            by_id.push((number, token(file, &path, value)?));
        }
        by_id.sort_by_key(|(id, _)| *id);
        self.added = by_id.into_iter().map(|(_, token)| token).collect();
        Ok(())
    }

    fn set(&mut self, name: &str, token: Option<AddedToken>) {
        self.named.retain(|(known, _)| known != name);
        self.named.extend(token.map(|token| (name.to_owned(), token)));
    }
}

/// A token written as a string, or as an object with `content` and flags.
fn token(file: &str, key: &str, value: &Value) -> Result<AddedToken, TextError> {
    const EXPECTED: &str = "a string, or an object with a string under content";
    let object = match value {
        Value::String(content) => return Ok(AddedToken::from(content.clone(), true)),
        Value::Object(object) => object,
        other => return Err(wrong(file, key, EXPECTED, other)),
    };
    let Some(content) = object.get("content").and_then(Value::as_str) else {
        return Err(wrong(file, key, EXPECTED, value));
    };
    let flag = |name| super::files::optional_bool(file, object, name);
    // An object of `added_tokens_decoder` says whether it is special; one that has a name is.
    let special = flag("special")?.unwrap_or(!key.starts_with("added_tokens_decoder"));
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false))
        .normalized(flag("normalized")?.unwrap_or(!special)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str, map: &str) -> SpecialTokens {
        SpecialTokens::from_bytes(
            Some(("tokenizer_config.json", config.as_bytes())),
            Some(("special_tokens_map.json", map.as_bytes())),
        )
        .unwrap()
    }

    /// Old checkpoints write objects, new ones strings; both mean the same token.
    #[test]
    fn a_token_may_be_a_string_or_an_object() {
        let tokens = read(r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#, "{}");
        assert_eq!(tokens.content("bos_token"), Some("<s>"));
        assert_eq!(tokens.content("eos_token"), Some("</s>"));
        assert_eq!(tokens.content("pad_token"), None);
    }

    /// transformers lets the map win, but only over a config without `added_tokens_decoder`.
    #[test]
    fn the_map_counts_only_without_a_decoder() {
        let map = r#"{"eos_token": "<from-map>"}"#;
        let old = read(r#"{"eos_token": "<from-config>"}"#, map);
        assert_eq!(old.content("eos_token"), Some("<from-map>"));
        let new = read(r#"{"eos_token": "<from-config>", "added_tokens_decoder": {}}"#, map);
        assert_eq!(new.content("eos_token"), Some("<from-config>"));
    }

    /// A person mends the file only if the message says where.
    #[test]
    fn a_wrong_token_is_named() {
        let bytes = br#"{"eos_token": 7}"#;
        let error = SpecialTokens::from_bytes(Some(("dir/tokenizer_config.json", bytes)), None);
        let message = error.unwrap_err().to_string();
        assert!(message.starts_with("dir/tokenizer_config.json: eos_token should be"), "{message}");
        assert!(message.contains("found 7"), "{message}");
    }
}
