//! The form that an answer is to keep to: `response_format`, read and compiled.
//!
//! A shell around [`Grammars`]: compiling takes its milliseconds beside the threads that serve clients, only a few do so at
//! once, and the last forms are kept, since clients ask for the same one again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::fields::Fields;
use super::refusal::{Refusal, quote};
use crate::grammar::{Form, Grammar, GrammarError, Grammars};
use crate::texts::Texts;

/// The largest schema. Those that describe whole document formats have some hundreds of KiB.
pub(super) const SCHEMA_BYTES_MAX: usize = 256 << 10;
/// How long a form may take to compile; its other bounds end it sooner.
const COMPILE_WITHIN: Duration = Duration::from_secs(5);
/// So many are compiled at once.
const ASIDE_MAX: usize = 2;
/// So many forms are kept.
const KEPT_MAX: usize = 16;
/// The longest name of a schema or a function, as OpenAI has it.
const NAME_CHARS_MAX: usize = 64;

/// Reads `response_format`. `None`: any text.
pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Form>, Refusal> {
    const NAME: &str = "response_format";
    const EXPECTED: &str = "\"text\", \"json_object\" or \"json_schema\"";
    let Some(raw) = fields.raw(NAME) else { return Ok(None) };
    let format = Fields::read(raw, "response_format.", &["type", "json_schema"])?;
    let kind = format.take::<String>("type", EXPECTED)?;
    match (kind.as_deref(), format.raw("json_schema")) {
        (Some("text"), None) => Ok(None),
        (Some("json_object"), None) => Ok(Some(Form::Schema(json!({"type": "object"})))),
        (Some("json_schema"), Some(raw)) => read_schema(raw).map(|schema| Some(Form::Schema(schema))),
        (Some("json_schema"), None) => {
            Err(Refusal::value("response_format.json_schema", "`response_format.json_schema` is missing"))
        }
        (Some(kind @ ("text" | "json_object")), Some(_)) => {
            let message =
                format!("`response_format.json_schema` is not for the type \"{kind}\"; leave it out");
            Err(Refusal::value("response_format.json_schema", message))
        }
        _ => Err(format.wrong("type", EXPECTED)),
    }
}

fn read_schema(raw: &str) -> Result<Value, Refusal> {
    const SCHEMA: &str = "response_format.json_schema.schema";
    let fields =
        Fields::read(raw, "response_format.json_schema.", &["name", "description", "schema", "strict"])?;
    let name = fields.take::<String>("name", "a string")?;
    if name.is_some_and(|name| !is_name(&name)) {
        return Err(fields.wrong("name", NAME_EXPECTED));
    }
    fields.take::<String>("description", "a string")?;
    // The answer keeps to its schema in any case.
    fields.take::<bool>("strict", "true or false")?;
    let Some(raw) = fields.raw("schema") else {
        return Err(Refusal::value(SCHEMA, format!("`{SCHEMA}` is missing")));
    };
    schema(SCHEMA, raw)
}

/// What names of schemas and functions are.
pub(super) const NAME_EXPECTED: &str = "1 to 64 letters, digits, `_` and `-`";

/// Whether a schema or a function may have this name.
pub(super) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// A schema within its bounds, which is found out to be one when it is compiled.
pub(super) fn schema(place: &str, raw: &str) -> Result<Value, Refusal> {
    if raw.len() > SCHEMA_BYTES_MAX {
        let message = format!("`{place}` has {} bytes, at most {SCHEMA_BYTES_MAX} are taken", raw.len());
        return Err(Refusal::value(place, message));
    }
    match serde_json::from_str::<Value>(raw) {
        Ok(schema) if schema.is_object() => Ok(schema),
        Ok(_) => {
            let message = format!("`{place}` should be a JSON Schema, an object; found {}", quote(raw));
            Err(Refusal::value(place, message))
        }
        Err(error) => Err(Refusal::value(place, format!("`{place}` cannot be read: {error}"))),
    }
}

/// Makes grammars of forms.
pub(super) struct Forms {
    texts: Arc<Texts>,
    vocab: usize,
    /// Made when the first form is asked for: a large vocabulary takes some tenths of a second.
    grammars: Arc<OnceLock<Result<Grammars, GrammarError>>>,
    aside: Arc<Semaphore>,
    kept: Mutex<VecDeque<(String, Grammar)>>,
}

impl Forms {
    pub(super) fn new(texts: Arc<Texts>, vocab: usize) -> Self {
        let aside = Arc::new(Semaphore::new(ASIDE_MAX));
        Self { texts, vocab, grammars: Arc::default(), aside, kept: Mutex::default() }
    }

    /// The grammar of a form that came by the parameter `param`; `place` is where the form itself is.
    pub(super) async fn grammar(&self, form: Form, param: &str, place: &str) -> Result<Grammar, Refusal> {
        let key = key(&form);
        if let Some(grammar) = self.find(&key) {
            return Ok(grammar);
        }
        let refuse = |error: GrammarError| match error {
            GrammarError::NoBytes => Refusal::unsupported(param, error.to_string()),
            GrammarError::Form(why) => Refusal::value(place, format!("`{place}` is not supported: {why}")),
        };
        let tokenizer =
            self.texts.tokenizer().map_err(|error| Refusal::unsupported(param, error.to_string()))?.clone();
        let (grammars, vocab, end_ids) = (Arc::clone(&self.grammars), self.vocab, self.texts.end_ids());
        let permit = Arc::clone(&self.aside).acquire_owned();
        let permit = tokio::time::timeout(COMPILE_WITHIN, permit).await.map_err(|_| {
            let message = "too many forms are being prepared; try again later";
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
        })?;
        let compile = move || {
            // Held until it is done, whoever still waits for it.
            let _permit = permit;
            let made = grammars.get_or_init(|| Grammars::new(&tokenizer, vocab, &end_ids));
            made.as_ref().map_err(Clone::clone)?.compile(form)
        };
        let compiling = tokio::task::spawn_blocking(compile);
        let compiled = tokio::time::timeout(COMPILE_WITHIN, compiling).await.map_err(|_| {
            let within = COMPILE_WITHIN.as_secs();
            Refusal::value(
                place,
                format!("`{place}` takes longer than {within} s to prepare; make it simpler"),
            )
        })?;
        let grammar = compiled
            .map_err(|_| Refusal::value(place, format!("`{place}` cannot be prepared")))?
            .map_err(refuse)?;
        self.keep(key, grammar.clone());
        Ok(grammar)
    }

    fn find(&self, key: &str) -> Option<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|(other, _)| other == key)?;
        let found = kept.remove(found)?;
        let grammar = found.1.clone();
        kept.push_front(found);
        Some(grammar)
    }

    fn keep(&self, key: String, grammar: Grammar) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| *other != key);
        kept.push_front((key, grammar));
        kept.truncate(KEPT_MAX);
    }
}

/// What tells forms apart: the order of properties counts, which values alone would not tell.
fn key(form: &Form) -> String {
    match form {
        Form::Schema(schema) => format!("schema {schema}"),
        Form::Lark(text) => format!("lark {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(json: &str) -> Result<Option<Form>, Refusal> {
        let body = format!("{{\"response_format\": {json}}}");
        read(&Fields::read(&body, "", &["response_format"]).unwrap())
    }

    #[test]
    fn forms_are_read_by_their_kind() {
        assert_eq!(format("null").unwrap(), None);
        assert_eq!(format(r#"{"type": "text"}"#).unwrap(), None);
        let object = Form::Schema(json!({"type": "object"}));
        assert_eq!(format(r#"{"type": "json_object"}"#).unwrap(), Some(object.clone()));
        let schema = r#"{"type": "json_schema", "json_schema":
            {"name": "a-b_1", "description": "x", "strict": true, "schema": {"type": "object"}}}"#;
        assert_eq!(format(schema).unwrap(), Some(object));
    }

    #[test]
    fn what_is_wrong_with_a_form_is_named() {
        let long = format!(
            r#"{{"type": "json_schema", "json_schema": {{"schema": {{"title": "{}"}}}}}}"#,
            "x".repeat(SCHEMA_BYTES_MAX)
        );
        let deep = format!(
            r#"{{"type": "json_schema", "json_schema": {{"schema": {}1{}}}}}"#,
            "{\"not\": ".repeat(1000),
            "}".repeat(1000)
        );
        for (json, param) in [
            ("1", "response_format"),
            ("{}", "response_format.type"),
            (r#"{"type": 1}"#, "response_format.type"),
            (r#"{"type": "xml"}"#, "response_format.type"),
            (r#"{"type": "text", "kind": 1}"#, "response_format.kind"),
            (r#"{"type": "text", "json_schema": {}}"#, "response_format.json_schema"),
            (r#"{"type": "json_schema"}"#, "response_format.json_schema"),
            (r#"{"type": "json_schema", "json_schema": 1}"#, "response_format.json_schema"),
            (r#"{"type": "json_schema", "json_schema": {}}"#, "response_format.json_schema.schema"),
            (
                r#"{"type": "json_schema", "json_schema": {"name": "a b"}}"#,
                "response_format.json_schema.name",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"strict": 1}}"#,
                "response_format.json_schema.strict",
            ),
            (
                r#"{"type": "json_schema", "json_schema": {"schema": []}}"#,
                "response_format.json_schema.schema",
            ),
            (&long, "response_format.json_schema.schema"),
            (&deep, "response_format.json_schema.schema"),
        ] {
            let refusal = format(json).expect_err(json);
            assert_eq!(
                (refusal.param.as_deref(), refusal.status.as_u16()),
                (Some(param), 400),
                "{json:.200}"
            );
            assert!(refusal.message.len() < 300, "{}", refusal.message);
        }
    }
}
