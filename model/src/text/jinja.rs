//! minijinja, set up to render as the Jinja environment that transformers gives to chat templates.
//!
//! Pure. Trimmed blocks, loop controls, Python's methods and Python's way to print; `tojson` that escapes
//! nothing, `raise_exception`, and `{% generation %}` blocks, which only mark text for training.
//!
//! Known to differ: tuples print as lists, `~` prints a list with double quotes, and `"%s" % x`, `varargs`,
//! `joiner`, `cycler` and a few filters about HTML and layout (`truncate`, `urlencode`, `wordcount`) are
//! errors.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::python::{JsonStyle, json_dumps, str_of};

/// What a template passed to `raise_exception`, kept apart from mistakes of the template itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    // By default the template's name would decide, and a name that ends in .json would quote everything.
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| Ok(out.write_str(&str_of(value))?));
    env.set_unknown_method_callback(call_method);
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| str_of(value));
    env.add_filter("join", join);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("items", |value: &Value| match value.is_undefined() {
        true => Ok(Value::from(Vec::<Value>::new())),
        false => minijinja::filters::items(value),
    });
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_test("sequence", is_sequence);
    // Without none, over which minijinja would loop.
    env.add_test("iterable", |value: &Value| is_sequence(value) || value.is_undefined());
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = str_of(message);
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env
}

/// Makes a template's source fit: one kind of line end, as Jinja has it, and `generation` blocks as plain
/// scopes. Lines stay where they are.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                out.push_str(&format!("{{%{}%}}", inside.replacen(name, replacement, 1)));
                rest = &tag[end + 2..];
            }
            // Only the opening is passed over: a `%}` inside a string is not the tag's end.
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Jinja's test: whatever has a length and can be indexed.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String};
    matches!(value.kind(), Seq | Iterable | Map | String)
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`: `json.dumps`, which
/// escapes neither `<` nor `'`.
fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match args.get(index) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match argument(1, "indent")? {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            // Python takes a negative number as none.
            None => " ".repeat(i64::try_from(value)?.clamp(0, 64) as usize),
        }),
    };
    let separators = match argument(2, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(value) => (str_of(&value.get_item_by_index(0)?), str_of(&value.get_item_by_index(1)?)),
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    json_dumps(value, &JsonStyle { ensure_ascii, indent, separators, sort_keys })
        .map(Value::from)
        .map_err(invalid)
}

/// `join`, with items printed as in Python.
fn join(
    value: &Value,
    separator: Option<&Value>,
    attribute: Option<&Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let separator = match separator {
        Some(separator) => str_of(separator),
        None => kwargs.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute.clone()),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let texts = value
        .try_iter()?
        .map(|item| match &attribute {
            Some(attribute) => Ok(str_of(&item.get_item(attribute)?)),
            None => Ok(str_of(&item)),
        })
        .collect::<Result<Vec<String>, Error>>()?;
    Ok(texts.join(&separator))
}

/// `length`, which for undefined is 0.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// `int`: what is no number is the default, not an error.
fn int(value: &Value, default: Option<Value>) -> Value {
    let whole = |float: f64| float.is_finite().then(|| Value::from(float.trunc() as i128));
    let number = match value.as_str().map(str::trim) {
        Some(text) => match text.parse::<i128>() {
            Ok(number) => Some(Value::from(number)),
            Err(_) => text.parse().ok().and_then(whole),
        },
        None if value.is_integer() => Some(value.clone()),
        None => number(value).and_then(whole),
    };
    number.unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0)))
}

/// `float`, likewise.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => number(value),
    };
    number.map(Value::from).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0.0)))
}

fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Python's methods: those that minijinja's own collection lacks, or has differently, then that one.
fn call_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    if value.kind() == ValueKind::Map && method == "copy" {
        return Ok(value.clone());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    // Positions are counted in characters, as Python does, not in bytes.
    let position = |found: Option<usize>| match found {
        Some(byte) => text[..byte].chars().count() as i64,
        None => -1,
    };
    let found = |found: Option<usize>| match found {
        Some(_) => Ok(Value::from(position(found))),
        None => Err(invalid("substring not found")),
    };
    let parts = |parts: [&str; 3]| Value::from(parts.map(Value::from).to_vec());
    let separator = |separator: &str| match separator {
        "" => Err(invalid("empty separator")),
        separator => Ok(separator.to_owned()),
    };
    let one = || from_args::<(&str,)>(args).map(|(text,)| text);
    Some((|| {
        Ok(match method {
            "removeprefix" => Value::from(text.strip_prefix(one()?).unwrap_or(text)),
            "removesuffix" => Value::from(text.strip_suffix(one()?).unwrap_or(text)),
            "find" => Value::from(position(text.find(one()?))),
            "rfind" => Value::from(position(text.rfind(one()?))),
            "index" => found(text.find(one()?))?,
            "rindex" => found(text.rfind(one()?))?,
            "count" => match one()? {
                "" => Value::from(text.chars().count() + 1),
                what => Value::from(text.matches(what).count()),
            },
            "partition" => match text.split_once(&separator(one()?)?) {
                Some((before, after)) => parts([before, one()?, after]),
                None => parts([text, "", ""]),
            },
            "rpartition" => match text.rsplit_once(&separator(one()?)?) {
                Some((before, after)) => parts([before, one()?, after]),
                None => parts(["", "", text]),
            },
            "split" | "rsplit" => return split(text, method == "rsplit", args),
            "join" => {
                let (list,): (&Value,) = from_args(args)?;
                let texts: Vec<String> = list.try_iter()?.map(|item| str_of(&item)).collect();
                Value::from(texts.join(text))
            }
            // Of no characters none is of a kind.
            "isalnum" | "isalpha" | "isdigit" | "islower" | "isnumeric" | "isspace" | "isupper"
                if text.is_empty() =>
            {
                let () = from_args(args)?;
                Value::from(false)
            }
            "zfill" => {
                let (width,): (usize,) = from_args(args)?;
                let missing = width.min(1024).saturating_sub(text.chars().count());
                let sign = usize::from(text.starts_with(['+', '-']));
                Value::from(format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..]))
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        })
    })())
    .filter(|result: &Result<Value, Error>| {
        !matches!(result, Err(error) if error.kind() == ErrorKind::UnknownMethod)
    })
}

/// `str.split` and `str.rsplit`, each with `sep` and `maxsplit` by position or name.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit, kwargs): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(separator) => Some(separator.clone()),
        None => kwargs.get::<Option<Value>>("sep")?,
    }
    .filter(|separator| !separator.is_none() && !separator.is_undefined());
    let limit = match limit {
        Some(limit) => Some(limit),
        None => kwargs.get::<Option<i64>>("maxsplit")?,
    };
    kwargs.assert_all_used()?;
    let limit = usize::try_from(limit.unwrap_or(-1)).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| invalid("must be str or None"))?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let count = limit.saturating_add(1);
            if from_right {
                text.rsplitn(count, separator).collect()
            } else {
                text.splitn(count, separator).collect()
            }
        }
        None => split_whitespace(text, from_right, limit),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// At most `limit` splits at runs of white space; what is left keeps its inner spaces.
fn split_whitespace(text: &str, from_right: bool, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = if from_right {
            rest.rfind(char::is_whitespace).map(|at| {
                let space = rest[at..].chars().next().map_or(1, char::len_utf8);
                (&rest[at + space..], &rest[..at])
            })
        } else {
            rest.find(char::is_whitespace).map(|at| (&rest[..at], &rest[at..]))
        };
        match end.filter(|_| parts.len() < limit) {
            Some((part, more)) => {
                parts.push(part);
                rest = more.trim();
            }
            None => {
                // Python trims only the side that it works on.
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        environment().render_str(&prepare(source), ())
    }

    /// Expected by Python: `repr` of each expression.
    #[test]
    fn methods_of_strings_agree_with_python() {
        for (expression, expected) in [
            ("'a-b-c'.rsplit('-', 1)", "['a-b', 'c']"),
            ("'a-b-c'.split('-', 1)", "['a', 'b-c']"),
            ("'a-b-c'.split('-')", "['a', 'b', 'c']"),
            ("' a  b c '.split()", "['a', 'b', 'c']"),
            ("'a  b c'.split(none, 1)", "['a', 'b c']"),
            ("'a  b c'.rsplit(maxsplit=1)", "['a  b', 'c']"),
            ("''.split()", "[]"),
            ("''.split(',')", "['']"),
            ("'x</t>y'.partition('</t>')[2]", "y"),
            ("'héllo'.find('l')", "2"),
            ("'abc'.count('')", "4"),
            ("'pre.fix'.removeprefix('pre')", ".fix"),
            ("','.join([1, true, 'x'])", "1,True,x"),
            ("'7'.zfill(3)", "007"),
            ("[true, none, 1.5]|join('|')", "True|None|1.5"),
            ("{'b': 1, 'a': '<&>'}|tojson", r#"{"b": 1, "a": "<&>"}"#),
            (
                "{'b': [1, {}], 'a': []}|tojson(indent=2)",
                "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": []\n}",
            ),
            ("{'b': 1, 'a': 'é'}|tojson(sort_keys=true, ensure_ascii=true)", r#"{"a": "\u00e9", "b": 1}"#),
            ("{'b': 1}|tojson(separators=(',', ':'))", r#"{"b":1}"#),
        ] {
            let rendered = render(&format!("{{{{ {expression} }}}}"));
            assert_eq!(rendered.unwrap(), expected, "{expression}");
        }
    }

    /// The block is transparent, and names set inside stay inside, as in Jinja's own block.
    #[test]
    fn generation_blocks_are_transparent() {
        let source = "a\n{%- generation %}\n{% set x = 1 %}b{{ x }}\n{%- endgeneration -%}\n c{{ x }}";
        assert_eq!(render(source).unwrap(), "ab1c");
    }
}
