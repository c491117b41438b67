//! Reads the optional JSON files of a model folder and names what is wrong in them.
//!
//! Shared by all of `text`: each file may be absent, and each mistake must name file and key.

use std::path::Path;

use serde_json::{Map, Value};

use super::TextError;

/// The bytes of `dir/name`, or `None` if there is no such file.
pub(super) fn read_optional(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(unreadable(dir, name, source)),
    }
}

pub(super) fn unreadable(dir: &Path, name: &str, source: std::io::Error) -> TextError {
    TextError::Unreadable { file: display(dir, name), source }
}

/// How messages name a file.
pub(super) fn display(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// The JSON object that `bytes` hold.
pub(super) fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, TextError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(wrong(file, "the whole file", "an object", &other)),
        Err(error) => Err(TextError::Json { file: file.to_owned(), reason: error.to_string() }),
    }
}

/// The error for a value of the wrong kind.
pub(super) fn wrong(file: &str, key: &str, expected: &'static str, found: &Value) -> TextError {
    // Scalars are shown, the rest only named: a vocabulary does not belong in a message.
    let found = match found {
        Value::Null | Value::Bool(_) | Value::Number(_) => found.to_string(),
        Value::String(text) if text.len() <= 40 => format!("the string {text:?}"),
        other => kind(other).to_owned(),
    };
    TextError::Value { file: file.to_owned(), key: key.to_owned(), expected, found }
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The boolean under `key`; absent and null are `None`.
pub(super) fn optional_bool(
    file: &str,
    object: &Map<String, Value>,
    key: &str,
) -> Result<Option<bool>, TextError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(wrong(file, key, "true or false", other)),
    }
}
