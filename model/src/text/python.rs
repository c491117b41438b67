//! How Python writes values: `str`, `repr` and `json.dumps`.
//!
//! Pure. Chat templates were written against Python's Jinja, and models saw what it printed: `True` and
//! not `true`, `{"a": 1}` with a space after the colon. A prompt that differs there is another prompt.

use minijinja::Value;
use minijinja::value::ValueKind;

/// What `str(value)` gives, and so what `{{ value }}` prints. Undefined is empty, as Jinja has it.
pub(super) fn str_of(value: &Value) -> String {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => text.to_owned(),
        (ValueKind::Undefined, _) => String::new(),
        _ => {
            let mut out = String::new();
            write_repr(value, &mut out);
            out
        }
    }
}

/// Writes what `repr(value)` gives.
fn write_repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        // A slice of a list is an iterable here and a list in Python.
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in items(value).enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in items(value).enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_repr(&key, out);
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// The items of a list, or the keys of a map.
fn items(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => float_repr(float),
        Err(_) => value.to_string(),
    }
}

/// Python's `repr(float)`: the shortest digits that read back the same, with an exponent below 1e-4 and
/// from 1e16.
fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = float.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Python's `repr(str)`: single quotes, unless there are only single ones inside.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == mark => out.extend(['\\', char]),
            char if (char as u32) < 0x20 || (0x7F..0xA1).contains(&(char as u32)) || char == '\u{AD}' => {
                out.push_str(&format!("\\x{:02x}", char as u32));
            }
            char => out.push(char),
        }
    }
    out.push(mark);
}

/// The options of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    /// Write `\u00e9` for é.
    pub(super) ensure_ascii: bool,
    /// What one level of indentation is; without it everything is on one line.
    pub(super) indent: Option<String>,
    /// Between items, and between key and value.
    pub(super) separators: (String, String),
    /// Order keys by their text instead of keeping their order.
    pub(super) sort_keys: bool,
}

/// What `json.dumps(value)` gives; an error names what has no JSON.
pub(super) fn json_dumps(value: &Value, style: &JsonStyle) -> Result<String, String> {
    let mut out = String::new();
    write_json(value, style, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), String> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(value)),
        ValueKind::String => json_quote(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let list: Vec<Value> = items(value).collect();
            enclose('[', ']', list.len(), style, depth, out, |index, out| {
                write_json(&list[index], style, depth + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<(String, Value)> =
                items(value).map(|key| Ok((json_key(&key)?, key))).collect::<Result<_, String>>()?;
            if style.sort_keys {
                keys.sort_by(|a, b| a.0.cmp(&b.0));
            }
            enclose('{', '}', keys.len(), style, depth, out, |index, out| {
                let (name, key) = &keys[index];
                json_quote(name, style.ensure_ascii, out);
                out.push_str(&style.separators.1);
                write_json(&value.get_item(key).unwrap_or_default(), style, depth + 1, out)
            })?;
        }
        kind => return Err(format!("a value of type {kind} has no JSON")),
    }
    Ok(())
}

/// Writes brackets, separators and line breaks around `count` items.
fn enclose(
    open: char,
    close: char,
    count: usize,
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
    mut item: impl FnMut(usize, &mut String) -> Result<(), String>,
) -> Result<(), String> {
    let line_break = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    for index in 0..count {
        if index > 0 {
            out.push_str(&style.separators.0);
        }
        line_break(depth + 1, out);
        item(index, out)?;
    }
    if count > 0 {
        line_break(depth, out);
    }
    out.push(close);
    Ok(())
}

fn json_key(key: &Value) -> Result<String, String> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        kind => Err(format!("a key of type {kind} has no JSON")),
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        number => number.to_owned(),
    }
}

fn json_quote(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            char if char < ' ' || (ensure_ascii && !(' '..='~').contains(&char)) => {
                let mut units = [0; 2];
                for unit in char.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            char => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        Value::from_serialize(serde_json::from_str::<serde_json::Value>(json).unwrap())
    }

    /// Expected by Python 3.11's `str`.
    #[test]
    fn values_print_as_in_python() {
        for (json, expected) in [
            ("null", "None"),
            ("true", "True"),
            ("1.0", "1.0"),
            ("1e16", "1e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-0.0", "-0.0"),
            (r#"["a", "it's", "\"'", 1, null]"#, r#"['a', "it's", '"\'', 1, None]"#),
            (r#"{"b": {"a": [false]}, "a": "é\n\u007f"}"#, r"{'b': {'a': [False]}, 'a': 'é\n\x7f'}"),
            (r#""plain \"text\"""#, r#"plain "text""#),
        ] {
            assert_eq!(str_of(&value(json)), expected);
        }
    }
}
