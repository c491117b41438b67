//! `config.json` as it lies on disk: typed look-ups whose errors name the file, the key, what was
//! expected and what was found. Families read their options through this and through nothing else.
//!
//! Pure: the text is an argument. Keys that no family asks for are ignored, because released
//! configurations are full of them; a *value* that a family does not support is refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Why a configuration cannot be used. Nothing has been loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("{}: not a JSON object ({problem}); is this the folder of a Hugging Face checkpoint?", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// A key that has no default is absent.
    #[error("{}: key `{key}` is missing, {expected} is needed; compare with the config.json of the original release", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A key has a value of the wrong type or out of its range.
    #[error("{}: `{key}` is {found}, expected {expected}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },
    /// The configuration is well formed, and asks for something that is not built.
    #[error("{}: {what} is not supported; {hint}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The family or option, by its name in the file.
        what: String,
        /// What is supported instead.
        hint: String,
    },
}

/// One JSON object of a configuration file.
#[derive(Debug, Clone)]
pub struct Config {
    file: PathBuf,
    /// Prefix of keys in messages: empty at the top, `rope_scaling.` inside that object.
    within: String,
    map: Map<String, Value>,
}

impl Config {
    /// Parses the text of `file` (the name is for messages only).
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self, ConfigError> {
        let malformed = |problem: String| ConfigError::Malformed { file: file.to_path_buf(), problem };
        match serde_json::from_slice(text).map_err(|e| malformed(e.to_string()))? {
            Value::Object(map) => Ok(Self { file: file.to_path_buf(), within: String::new(), map }),
            other => Err(malformed(format!("found {}", brief(&other)))),
        }
    }

    /// The raw value; `null` counts as absent, as it does for the reference implementation.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the object has no keys.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// An object that no file holds: what a family takes where the file has none.
    pub fn default_object(&self, key: &str, map: Map<String, Value>) -> Config {
        Config { file: self.file.clone(), within: format!("{}{key}.", self.within), map }
    }

    /// Whether the key is present, be it `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A positive integer that must be there.
    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let size = self.size_or_none(key)?;
        size.ok_or_else(|| self.missing(key, "a positive integer"))
    }

    /// A positive integer with a default.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.size_or_none(key)?.unwrap_or(default))
    }

    /// A positive integer that may be absent.
    pub fn size_or_none(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.count_or_none(key)?
            .map(|n| match n {
                0 => Err(self.invalid(key, "a positive integer")),
                n => Ok(n),
            })
            .transpose()
    }

    /// An integer from 0 on that may be absent.
    pub fn count_or_none(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        // 2^40 is far above any size in use and keeps products of two sizes inside 128 bits.
        self.value(key)
            .map(|v| match v.as_u64() {
                Some(n) if n < 1 << 40 => Ok(n as usize),
                _ => Err(self.invalid(key, "an integer from 0 on")),
            })
            .transpose()
    }

    /// A finite number that must be there.
    pub fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.number_or_none(key)?.ok_or_else(|| self.missing(key, "a number"))
    }

    /// A finite number with a default.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.number_or_none(key)?.unwrap_or(default))
    }

    /// A finite number that may be absent.
    pub fn number_or_none(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.value(key)
            .map(|v| v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.invalid(key, "a number")))
            .transpose()
    }

    /// A truth value with a default.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.invalid(key, "true or false")),
        }
    }

    /// A string that may be absent.
    pub fn text_or_none(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => v.as_str().map(Some).ok_or_else(|| self.invalid(key, "a string")),
        }
    }

    /// A list of integers from 0 on; absent is empty.
    pub fn counts(&self, key: &str) -> Result<Vec<usize>, ConfigError> {
        let wrong = || self.invalid(key, "a list of integers from 0 on");
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|v| v.as_u64().map(|n| n as usize).ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// A list of strings that may be absent.
    pub fn texts_or_none(&self, key: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        let wrong = || self.invalid(key, "a list of strings");
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                items.iter().map(|v| v.as_str().ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// An object inside this one that may be absent.
    pub fn object_or_none(&self, key: &str) -> Result<Option<Config>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config {
                file: self.file.clone(),
                within: format!("{}{key}.", self.within),
                map: map.clone(),
            })),
            Some(_) => Err(self.invalid(key, "an object")),
        }
    }

    /// Refuses an option by name: `key` with the value that stands in the file.
    pub fn unsupported(&self, key: &str, hint: &str) -> ConfigError {
        let what = match self.map.get(key) {
            Some(v) => format!("`{}{key}: {}`", self.within, brief(v)),
            None => format!("a missing `{}{key}`", self.within),
        };
        ConfigError::Unsupported { file: self.file.clone(), what, hint: hint.to_string() }
    }

    /// Refuses something that is not one key.
    pub fn refuse(&self, what: String, hint: &str) -> ConfigError {
        ConfigError::Unsupported { file: self.file.clone(), what, hint: hint.to_string() }
    }

    /// The error for a value out of its range.
    pub fn invalid(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.clone(),
            key: format!("{}{key}", self.within),
            found: self.map.get(key).map_or("absent".to_string(), brief),
            expected: expected.into(),
        }
    }

    fn missing(&self, key: &str, expected: &'static str) -> ConfigError {
        let key = format!("{}{key}", self.within);
        ConfigError::Missing { file: self.file.clone(), key, expected }
    }
}

/// A value in at most some forty characters, for messages.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
