//! `/openapi.json`: the API for programs, as a document of OpenAPI 3.1.
//!
//! Written by hand, because it is to say what a client may rely on. That nothing is missing from it, and that nothing stands in
//! it that is not there, is for the tests to find.

/// The document.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{admin, ask, chat, tokens};
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    fn keys(object: &Value) -> BTreeSet<String> {
        object.as_object().unwrap().keys().cloned().collect()
    }

    /// All values of a key, wherever it stands.
    fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, inner)| {
                found.extend((name == key).then_some(inner));
                all(inner, key, found);
            }),
            Value::Array(elements) => elements.iter().for_each(|inner| all(inner, key, found)),
            _ => {}
        }
    }

    /// The routes are read from where they are made.
    #[test]
    fn every_route_is_in_the_document_and_no_other() {
        let routes = include_str!("routes.rs").split(".route(\"").skip(1).map(|rest| {
            let (path, rest) = rest.split_once("\", ").unwrap();
            (path.replace("{*", "{"), rest.split_once('(').unwrap().0.to_owned())
        });
        let routes: BTreeSet<(String, String)> = routes.collect();
        let document = document();
        let told = document["paths"].as_object().unwrap().iter();
        let told =
            told.flat_map(|(path, item)| keys(item).into_iter().map(move |method| (path.clone(), method)));
        assert_eq!(told.collect::<BTreeSet<_>>(), routes);
        assert!(routes.len() > 10, "{routes:?}");
    }

    #[test]
    fn every_parameter_is_in_the_document_and_no_other() {
        let document = document();
        for (schema, known) in [
            ("Completion", ask::KNOWN_TEXT),
            ("ChatCompletion", ask::KNOWN_CHAT),
            ("Extensions", ask::KNOWN_PHALANX),
            ("Message", &chat::MESSAGE),
            ("Drain", admin::DRAIN),
            ("Undrain", admin::UNDRAIN),
            ("Tokenize", tokens::TOKENIZE),
            ("Detokenize", tokens::DETOKENIZE),
        ] {
            let of = &document["components"]["schemas"][schema];
            let known: BTreeSet<String> = known.iter().map(ToString::to_string).collect();
            assert_eq!(keys(&of["properties"]), known, "{schema}");
            assert_eq!(of["additionalProperties"], false, "{schema} is refused by name");
        }
        let roles = document["components"]["schemas"]["Message"]["properties"]["role"]["enum"].clone();
        assert_eq!(roles, serde_json::json!(chat::ROLES));
    }

    /// What is referred to is there, what is there is referred to, and operations can be told apart.
    #[test]
    fn the_document_holds_together() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let mut references = Vec::new();
        all(&document, "$ref", &mut references);
        let references: BTreeSet<&str> =
            references.into_iter().map(|value| value.as_str().unwrap()).collect();
        for reference in &references {
            let place = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(place).is_some(), "{reference}");
        }
        for kind in ["schemas", "responses"] {
            for name in keys(&document["components"][kind]) {
                let reference = format!("#/components/{kind}/{name}");
                assert!(references.contains(reference.as_str()), "nobody refers to {reference}");
            }
        }
        let mut operations = Vec::new();
        all(&document["paths"], "operationId", &mut operations);
        let names: BTreeSet<String> = operations.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), operations.len(), "{names:?}");
    }
}
