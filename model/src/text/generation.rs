//! A model's own defaults for generating: `generation_config.json`.
//!
//! Pure but for [`GenerationConfig::open`]. Every key is optional and unknown ones are ignored, since the
//! file carries options of many programs; a known key of the wrong type is an error, because a default
//! that is silently lost (an end token above all) shows only in strange answers.

use std::path::Path;

use serde_json::{Map, Value};

use super::TextError;
use super::files::{display, optional_bool, parse_object, read_optional, wrong};

/// What `generation_config.json` says; the default says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// The ids that end an answer; empty where the file names none.
    pub eos_ids: Vec<u32>,
    /// The id that begins a text.
    pub bos_id: Option<u32>,
    /// The id that fills up.
    pub pad_id: Option<u32>,
    /// Whether to draw at random rather than take the likeliest token.
    pub do_sample: Option<bool>,
    /// See [`Sampling`](crate::sampler::Sampling), as for the five below.
    pub temperature: Option<f64>,
    /// Share of the probability that is kept.
    pub top_p: Option<f64>,
    /// How many tokens are kept.
    pub top_k: Option<u32>,
    /// Least probability kept, relative to the likeliest token.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens already seen.
    pub repetition_penalty: Option<f64>,
    /// How many tokens an answer may have.
    pub max_new_tokens: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; the default if the folder has none.
    pub fn open(dir: &Path) -> Result<GenerationConfig, TextError> {
        let name = "generation_config.json";
        match read_optional(dir, name)? {
            Some(bytes) => GenerationConfig::from_bytes(&display(dir, name), &bytes),
            None => Ok(GenerationConfig::default()),
        }
    }

    /// Reads the bytes of the file; `file` is its name in messages.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<GenerationConfig, TextError> {
        let object = parse_object(file, bytes)?;
        let reader = Reader { file, object: &object };
        Ok(GenerationConfig {
            eos_ids: reader.ids("eos_token_id")?,
            // Some files list a single one.
            bos_id: reader.ids("bos_token_id")?.first().copied(),
            pad_id: reader.ids("pad_token_id")?.first().copied(),
            do_sample: optional_bool(file, &object, "do_sample")?,
            temperature: reader.number("temperature")?,
            top_p: reader.number("top_p")?,
            top_k: reader.count("top_k")?,
            min_p: reader.number("min_p")?,
            repetition_penalty: reader.number("repetition_penalty")?,
            max_new_tokens: reader.count("max_new_tokens")?,
        })
    }
}

struct Reader<'a> {
    file: &'a str,
    object: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn ids(&self, key: &str) -> Result<Vec<u32>, TextError> {
        let list = match self.value(key) {
            None => &[],
            Some(Value::Array(list)) => list.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        list.iter()
            // -1 is an old way to say none.
            .filter(|id| id.as_i64() != Some(-1))
            .map(|id| whole(id).ok_or_else(|| wrong(self.file, key, "a token id or a list of them", id)))
            .collect()
    }

    fn count(&self, key: &str) -> Result<Option<u32>, TextError> {
        let number = |value| whole(value).ok_or_else(|| wrong(self.file, key, "a whole number", value));
        self.value(key).map(number).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, TextError> {
        let number = |value: &Value| value.as_f64().ok_or_else(|| wrong(self.file, key, "a number", value));
        self.value(key).map(number).transpose()
    }
}

fn whole(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationConfig, TextError> {
        GenerationConfig::from_bytes("m/generation_config.json", json.as_bytes())
    }

    /// Files in the wild write one end token or several, and carry keys that are not ours.
    #[test]
    fn one_or_several_end_tokens() {
        assert_eq!(read(r#"{"eos_token_id": 2, "transformers_version": "4"}"#).unwrap().eos_ids, [2]);
        let config = read(
            r#"{"eos_token_id": [151645, 151643], "do_sample": true, "temperature": 1,
                "top_k": 20, "top_p": 0.8, "pad_token_id": null, "max_new_tokens": 64}"#,
        )
        .unwrap();
        let expected = GenerationConfig {
            eos_ids: vec![151_645, 151_643],
            do_sample: Some(true),
            temperature: Some(1.0),
            top_k: Some(20),
            top_p: Some(0.8),
            max_new_tokens: Some(64),
            ..GenerationConfig::default()
        };
        assert_eq!(config, expected);
        assert_eq!(read("{}").unwrap(), GenerationConfig::default());
    }

    /// A lost default shows only in strange answers, so a wrong type is named.
    #[test]
    fn a_wrong_type_names_file_and_key() {
        for (json, key) in [
            (r#"{"eos_token_id": "</s>"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, -2]}"#, "eos_token_id"),
            (r#"{"temperature": "warm"}"#, "temperature"),
            (r#"{"top_k": 1.5}"#, "top_k"),
            (r#"{"do_sample": 1}"#, "do_sample"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.starts_with(&format!("m/generation_config.json: {key} ")), "{message}");
        }
        let message = read("{\"top_k\": ").unwrap_err().to_string();
        assert!(message.contains("is not valid JSON") && message.contains("line 1"), "{message}");
    }
}
