//! The fields of a JSON object, taken one by one and by name.
//!
//! Pure. A field that nobody knows is refused by its name, and so is one of the wrong type. Values stay as they are
//! in the body until they are asked for, so that a body of some megabytes of brackets costs a pass over it and no
//! tree of them; the first unknown name ends that pass.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::refusal::{Refusal, quote};

/// The fields of one object.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The path to the object, with its dot; empty at the top.
    path: &'static str,
    found: Vec<(&'static str, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads an object that may have fields of these names.
    pub(super) fn read(
        json: &'a str,
        path: &'static str,
        known: &'static [&'static str],
    ) -> Result<Self, Refusal> {
        let mut stranger = None;
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let reader = Reader { known, stranger: &mut stranger };
        let read = reader.deserialize(&mut deserializer).and_then(|found| {
            deserializer.end()?;
            Ok(found)
        });
        match (read, stranger) {
            (Ok(found), _) => Ok(Self { path, found }),
            (Err(_), Some(Stranger::Unknown(name))) => {
                let name = format!("{path}{name}");
                let known = known.join(", ");
                let message = format!(
                    "`{}` is not supported; it is refused rather than ignored. Known here: {known}",
                    quote(&name)
                );
                Err(Refusal::unsupported(&name, message))
            }
            (Err(_), Some(Stranger::Twice(name))) => {
                let name = format!("{path}{name}");
                Err(Refusal::value(&name, format!("`{name}` is given twice")))
            }
            (Err(error), None) if path.is_empty() => {
                let status = axum::http::StatusCode::BAD_REQUEST;
                let message = format!("the body is not a JSON object that can be read: {error}");
                Err(Refusal::new(status, "invalid_json", message))
            }
            (Err(error), None) => {
                let name = path.trim_end_matches('.');
                Err(Refusal::value(name, format!("`{name}` should be an object: {error}")))
            }
        }
    }

    /// The text of a field, unless it is absent or null.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        let (_, raw) = self.found.iter().find(|(found, _)| *found == name)?;
        Some(raw.get()).filter(|raw| *raw != "null")
    }

    /// All fields that are neither absent nor null, by name.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, &'a str)> + '_ {
        self.found.iter().map(|(name, raw)| (*name, raw.get())).filter(|(_, raw)| *raw != "null")
    }

    /// Takes a field that should be `expected`.
    pub(super) fn take<T: serde::Deserialize<'a>>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match serde_json::from_str(raw) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.wrong(name, expected)),
        }
    }

    /// A field is not what it should be.
    pub(super) fn wrong(&self, name: &str, expected: &str) -> Refusal {
        let found = self.raw(name).map_or("nothing".into(), describe);
        let name = format!("{}{name}", self.path);
        Refusal::value(&name, format!("`{name}` should be {expected}, found {found}"))
    }
}

/// A value in a few words.
fn describe(raw: &str) -> String {
    match raw.as_bytes().first() {
        Some(b'{') => "an object".into(),
        Some(b'[') => "a list".into(),
        Some(b'"') => "a string".into(),
        _ => quote(raw),
    }
}

/// A name that cannot be taken.
enum Stranger {
    Unknown(String),
    Twice(&'static str),
}

struct Reader<'s> {
    known: &'static [&'static str],
    stranger: &'s mut Option<Stranger>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Self::Value = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let Some(name) = self.known.iter().find(|name| **name == key) else {
                *self.stranger = Some(Stranger::Unknown(key));
                return Err(A::Error::custom("unknown name"));
            };
            if found.iter().any(|(other, _)| other == name) {
                *self.stranger = Some(Stranger::Twice(name));
                return Err(A::Error::custom("twice"));
            }
            found.push((name, map.next_value()?));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: &str) -> String {
        Fields::read(json, "", &["a", "b"]).unwrap_err().message
    }

    #[test]
    fn fields_are_taken_by_name_and_type() {
        let fields = Fields::read(r#" {"a": 1.5, "b": null} "#, "", &["a", "b", "c"]).unwrap();
        assert_eq!(fields.take("a", "a number").unwrap(), Some(1.5));
        assert_eq!(fields.take::<bool>("b", "a boolean").unwrap(), None, "null is absence");
        assert_eq!(fields.take::<bool>("c", "a boolean").unwrap(), None);
        let refusal = fields.take::<u32>("a", "a whole number").unwrap_err();
        assert_eq!(refusal.message, "`a` should be a whole number, found 1.5");
        assert_eq!(refusal.param.as_deref(), Some("a"));
    }

    /// A client that misspells a parameter must hear of it, wherever it is in the body.
    #[test]
    fn strangers_are_named() {
        assert!(message(r#"{"a":1,"tempratur":2}"#).starts_with("`tempratur` is not supported"));
        assert_eq!(message(r#"{"a":1,"a":2}"#), "`a` is given twice");
        let nested = Fields::read(r#"{"x":1}"#, "phalanx.", &["deadline_ms"]).unwrap_err();
        assert_eq!(nested.param.as_deref(), Some("phalanx.x"));
        let long = format!("{{\"{}\":1}}", "é".repeat(10_000));
        assert!(message(&long).len() < 300);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["", "[]", "1", "{", "{\"a\":1}}", "{\"a\" 1}", "{\"a\":}", "nul", "\u{feff}{}"] {
            assert!(message(bad).starts_with("the body is not a JSON object"), "{bad}");
        }
        // Depth costs no stack: it is passed over as text, and then is not what it should be.
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let fields = Fields::read(&deep, "", &["a"]).unwrap();
        assert_eq!(
            fields.take::<f64>("a", "a number").unwrap_err().message,
            "`a` should be a number, found a list"
        );
    }
}
